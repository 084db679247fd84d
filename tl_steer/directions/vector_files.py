"""Steering vectors as safetensors files."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save as safetensors_of

from .._util.file_io import atomic
from ..models import identify
from .metadata import FORMAT, describe, json_object, parsed, require_known, require_valid, restore
from .vectors import SteeringVectors

logger = logging.getLogger(__name__)


def save(vectors: SteeringVectors, path: str | Path) -> None:
    """Write the values as a tensor, everything else as JSON in the metadata; whole or not at all.

    Raises:
        ValueError: `info` holds something that is not plain JSON.
        OSError: the file cannot be written; one that was there before stays as it was.
    """
    metadata = {"format": FORMAT, "description": describe(vectors)}
    with atomic(path) as scratch:
        # Not `save_file`: it has a scratch file of its own, which a kill leaves behind.
        scratch.write_bytes(safetensors_of({"values": vectors.values.contiguous()}, metadata=metadata))
    logger.info("wrote %s: %s at %s of %d layers", path, vectors.method, vectors.hook, len(vectors.layers))


def load(path: str | Path, *, model: Any = None, force: bool = False) -> SteeringVectors:
    """Read what `save` wrote, also that of earlier versions.

    Args:
        model: refuse here, not where they are used, vectors that are not of this model.
        force: accept other weights of the same shapes and processing. The vectors keep the identity they
            were saved with, so that steering needs `force=True` too.

    Raises:
        ValueError: not safetensors, not steering vectors, damaged, or of a newer version.
        ModelMismatchError: of another model; says what differs.
    """
    metadata, tensors = _read(path)
    written = require_known(metadata.get("format"), str(path))
    if "values" not in tensors:
        raise ValueError(f"{path} has no tensor 'values'; it has {sorted(tensors)}.")
    if written == 1:
        description = _version_1(metadata, tensors, str(path))
    else:
        description = parsed(metadata.get("description"), str(path))
    vectors = restore(description, tensors["values"], str(path))
    if model is not None:
        vectors.identity.require(identify(model), force=force, what=f"{path}")
    logger.info("read %s: %s, made on %s", path, vectors.method, vectors.identity.name)
    return vectors


def _read(path: str | Path) -> tuple[dict[str, str], dict[str, Any]]:
    try:
        with safe_open(path, framework="pt") as file:
            return file.metadata() or {}, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(
            f"{path} is not a safetensors file; pickled vectors are never loaded ({error})."
        ) from error


def _version_1(metadata: Mapping[str, str], tensors: Mapping[str, Any], what: str) -> dict[str, Any]:
    """The description of a file of version 1, which had the model apart and the norms as a tensor."""
    if "stream_norm" not in tensors or tensors["stream_norm"].ndim != 1:
        raise ValueError(f"{what} has no norms of the stream: it is damaged.")
    norms = tensors["stream_norm"].float().tolist()
    described = {
        **json_object(metadata.get("description"), what),
        "format": metadata["format"],
        "model": json_object(metadata.get("identity"), what),
        "stream_norm": [None if norm != norm else norm for norm in norms],
    }
    require_valid(described, what)
    return described
