"""Steering vectors as safetensors files."""

import json
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from ..models import ModelIdentity
from .vectors import SteeringVectors

FORMAT = "tl_steer vectors 1"


def save(vectors: SteeringVectors, path: str | Path) -> None:
    """Write values and norms as tensors, everything else as JSON in the metadata."""
    described = {
        "layers": vectors.layers,
        "hook": vectors.hook,
        "method": vectors.method,
        "info": dict(vectors.info),
    }
    tensors = {"values": vectors.values.contiguous(), "stream_norm": vectors.stream_norm.contiguous()}
    metadata = {
        "format": FORMAT,
        "identity": vectors.identity.to_json(),
        "description": json.dumps(described),
    }
    save_file(tensors, path, metadata=metadata)


def load(path: str | Path) -> SteeringVectors:
    """Read what `save` wrote.

    Raises:
        ValueError: not safetensors, or not steering vectors.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT:
                raise ValueError(f"{path} does not hold steering vectors ({FORMAT!r}).")
            described = json.loads(metadata["description"])
            return SteeringVectors(
                file.get_tensor("values"),
                tuple(described["layers"]),
                described["hook"],
                described["method"],
                file.get_tensor("stream_norm"),
                ModelIdentity.from_json(metadata["identity"]),
                described["info"],
            )
    except SafetensorError as error:
        raise ValueError(
            f"{path} is not a safetensors file; pickled vectors are never loaded ({error})."
        ) from error
