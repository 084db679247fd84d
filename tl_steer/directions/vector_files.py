"""Files of steering vectors: values as safetensors, everything else as JSON (`vectors.schema.json`)."""

import json
import logging
import math
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cache
from importlib import resources
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..activations import read_safetensors, write_safetensors
from ..models import ModelIdentity, identify
from .vectors import SteeringVectors

logger = logging.getLogger(__name__)

NAME = "tl_steer vectors"
VERSION = 2
FORMAT = f"{NAME} {VERSION}"
UNITS = {
    "values": "stream units of the model's hook, unscaled",
    "stream_norm": "the same; median over prompts of each prompt's median norm but for its first position",
}
WRITERS = ("tl_steer", "torch", "transformers", "transformer_lens")
UNIT_TOLERANCE = 1e-4  # how far from 1 the length of a direction may be


def save(vectors: SteeringVectors, path: str | Path) -> None:
    """See `SteeringVectors.save`."""
    metadata = {"format": FORMAT, "description": describe(vectors)}
    write_safetensors(path, {"values": vectors.values.contiguous()}, metadata)
    logger.info("wrote %s: %s at %s of %d layers", path, vectors.method, vectors.hook, len(vectors.layers))


def load(path: str | Path, *, model: Any = None, force: bool = False) -> SteeringVectors:
    """See `SteeringVectors.load`."""
    source, (metadata, tensors) = str(path), read_safetensors(path)
    is_first = _format_version(metadata.get("format"), source) == 1
    if "values" not in tensors:
        raise ValueError(f"{path} has no tensor 'values'; it has {sorted(tensors)}.")
    text = metadata.get("description")
    description = _version_1(metadata, tensors, source) if is_first else parse_description(text, source)
    vectors = restore(description, tensors["values"], source)
    if model is not None:
        vectors.identity.require(identify(model), force=force, what=source)
    logger.info("read %s: %s, made on %s", path, vectors.method, vectors.identity.name)
    return vectors


def describe(vectors: SteeringVectors) -> str:
    """Everything but the values, as JSON. Raises ValueError for an `info` that is not plain JSON."""
    lengths = vectors.values.double().norm(dim=-1)
    description = {
        "format": FORMAT,
        "model": json.loads(vectors.identity.to_json()),
        "hook": vectors.hook,
        "layers": list(vectors.layers),
        "method": vectors.method,
        "stream_norm": _nullable(vectors.stream_norm),
        "info": dict(vectors.info),
        "units": {**UNITS, "direction": bool(((lengths - 1).abs() < UNIT_TOLERANCE).all())},
        "versions": {name: _version(name) for name in WRITERS},
        "saved": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    try:
        text = json.dumps(description)
    except (TypeError, ValueError) as error:
        raise ValueError(f"the vectors' info cannot be written as JSON: {error}.") from error
    _validate(json.loads(text), "these vectors")
    return text


def parse_description(text: Any, source: str) -> dict[str, Any]:
    """Parse and validate the JSON of `describe`; messages name `source`."""
    description = _json_object(text, source)
    _format_version(description.get("format"), source)
    _validate(description, source)
    return description


def restore(description: Mapping[str, Any], values: Tensor, source: str) -> SteeringVectors:
    """Steering vectors from a valid description and values, if these fit together."""
    # JSON has one type of number: 4.0 layers are 4.
    model = {name: int(x) if isinstance(x, float) else x for name, x in description["model"].items()}
    try:
        identity = ModelIdentity.from_json(json.dumps(model))
        norms = [math.nan if number is None else float(number) for number in description["stream_norm"]]
    except (OverflowError, ValueError) as error:
        raise ValueError(f"{source}: its description is damaged ({error}).") from error
    if any(map(math.isinf, norms)):
        raise ValueError(f"{source}: its description holds an infinite number.")
    layers, hook = tuple(map(int, description["layers"])), description["hook"]
    width = identity.n_heads * identity.d_head if hook == "z" else identity.d_model
    if max(layers) >= identity.n_layers:
        raise ValueError(f"{source}: layers {list(layers)} of a model that has {identity.n_layers}.")
    shape = tuple(values.shape)
    if len(shape) not in (2, 3) or (shape[0], shape[-1]) != (len(layers), width) or len(norms) != len(layers):
        raise ValueError(
            f"{source}: values of shape {shape} and {len(norms)} norms are not those of {len(layers)} layers "
            f"with {width} numbers each."
        )
    if not values.is_floating_point() or not bool(torch.isfinite(values).all()):
        raise ValueError(f"{source}: the values are not all finite floating-point numbers.")
    method, info = description["method"], description["info"]
    norms = torch.tensor(norms, dtype=torch.float32)
    return SteeringVectors(values.float(), layers, hook, method, norms, identity, info)


@cache
def schema() -> dict[str, Any]:
    """The JSON schema of a description."""
    return json.loads((resources.files(__package__) / "vectors.schema.json").read_text(encoding="utf-8"))


def _validate(description: Mapping[str, Any], source: str) -> None:
    """Check a description against the schema; the error names the JSON path."""
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import best_match

    try:
        error = best_match(Draft202012Validator(schema()).iter_errors(description))
    except RecursionError as deep:
        raise ValueError(f"{source}: its description is nested too deeply.") from deep
    if error is not None:
        where = f"{source}: its description is not valid, at {error.json_path}"
        raise ValueError(f"{where}: {error.message:.200}.")


def _format_version(name: Any, source: str) -> int:
    """The version in a format's name; raises for other formats and newer versions."""
    match = re.fullmatch(rf"{NAME} (\d{{1,9}})", name) if isinstance(name, str) else None
    if not match:
        raise ValueError(f"{source} does not hold steering vectors ({FORMAT!r}).")
    if not 1 <= int(match[1]) <= VERSION:
        raise ValueError(
            f"{source} was written by a newer tl_steer: its format is {name!r}, and this version reads up to "
            f"{FORMAT!r} (tl_steer {_version('tl_steer')}). Update tl_steer to read the file."
        )
    return int(match[1])


def _version_1(metadata: Mapping[str, str], tensors: Mapping[str, Any], source: str) -> dict[str, Any]:
    """The description of a file of version 1, which has the model apart and the norms as a tensor."""
    if "stream_norm" not in tensors or tensors["stream_norm"].ndim != 1:
        raise ValueError(f"{source} has no stream norms: it is damaged.")
    description = {
        **_json_object(metadata.get("description"), source),
        "format": metadata["format"],
        "model": _json_object(metadata.get("identity"), source),
        "stream_norm": _nullable(tensors["stream_norm"]),
    }
    _validate(description, source)
    return description


def _json_object(text: Any, source: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{source}: its description is damaged ({error or 'missing'}).") from error
    if not isinstance(value, dict):
        raise ValueError(f"{source}: its description is damaged (not an object).")
    return value


def _nullable(norms: Tensor) -> list[float | None]:
    return [None if norm != norm else norm for norm in norms.float().tolist()]


@cache
def _version(package: str) -> str:
    try:
        return version(package.replace("_", "-"))
    except PackageNotFoundError:
        return "unknown"
