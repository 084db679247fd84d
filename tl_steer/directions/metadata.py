"""What is written beside the values of steering vectors: JSON, checked against `vectors.schema.json`."""

import json
import math
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cache
from importlib import resources
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from torch import Tensor

from ..models import ModelIdentity
from .vectors import SteeringVectors

NAME = "tl_steer vectors"
VERSION = 2
FORMAT = f"{NAME} {VERSION}"
UNITS = {
    "values": "stream units of the model's hook, unscaled",
    "stream_norm": "the same; median over prompts of each prompt's median norm but for its first position",
}
WRITERS = {
    "tl_steer": "tl-steer",
    "torch": "torch",
    "transformers": "transformers",
    "transformer_lens": "transformer-lens",
}
UNIT = 1e-4  # how far from 1 the length of a direction may be


def describe(vectors: SteeringVectors) -> str:
    """Everything but the values, as JSON.

    Raises:
        ValueError: `info` holds something that is not plain JSON, or of another kind than the schema says.
    """
    lengths = vectors.values.double().norm(dim=-1)
    norms = [None if norm != norm else norm for norm in vectors.stream_norm.tolist()]
    description = {
        "format": FORMAT,
        "model": json.loads(vectors.identity.to_json()),
        "hook": vectors.hook,
        "layers": list(vectors.layers),
        "method": vectors.method,
        "stream_norm": norms,
        "info": dict(vectors.info),
        "units": {**UNITS, "direction": bool(((lengths - 1).abs() < UNIT).all())},
        "versions": {name: _version(package) for name, package in WRITERS.items()},
        "saved": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    try:
        text = json.dumps(description)
    except (TypeError, ValueError) as error:
        raise ValueError(f"the vectors' info cannot be written as JSON: {error}.") from error
    require_valid(json.loads(text), "these vectors")
    return text


def restore(description: Mapping[str, Any], values: Tensor, what: str) -> SteeringVectors:
    """The vectors of a valid description and values.

    Raises:
        ValueError: the two do not belong together.
    """
    identity = _identity(description["model"], what)
    layers, hook = tuple(map(int, description["layers"])), description["hook"]
    norms = _floats(description["stream_norm"], what)
    width = identity.n_heads * identity.d_head if hook == "z" else identity.d_model
    if max(layers) >= identity.n_layers:
        raise ValueError(f"{what}: layers {list(layers)} of a model that has {identity.n_layers}.")
    shape = tuple(values.shape)
    if len(shape) not in (2, 3) or (shape[0], shape[-1]) != (len(layers), width) or len(norms) != len(layers):
        raise ValueError(
            f"{what}: values of shape {shape} and {len(norms)} norms are not those of {len(layers)} layers "
            f"with {width} numbers each."
        )
    if not values.is_floating_point() or not bool(torch.isfinite(values).all()):
        raise ValueError(f"{what}: the values are not all finite floating-point numbers.")
    return SteeringVectors(
        values.float(),
        layers,
        hook,
        description["method"],
        torch.tensor(norms, dtype=torch.float32),
        identity,
        description["info"],
    )


def require_known(written: Any, what: str) -> int:
    """The version in a format's name.

    Raises:
        ValueError: no such name, or one that only a newer tl_steer knows.
    """
    found = re.fullmatch(rf"{NAME} (\d{{1,9}})", written) if isinstance(written, str) else None
    if not found:
        raise ValueError(f"{what} does not hold steering vectors ({FORMAT!r}).")
    number = int(found[1])
    if not 1 <= number <= VERSION:
        raise ValueError(
            f"{what} was written by a newer tl_steer: it is {written!r}, and this one reads up to {FORMAT!r} "
            f"(tl_steer {_version('tl-steer')}). Update it to read the file."
        )
    return number


def parsed(text: Any, what: str) -> dict[str, Any]:
    """A description from its JSON, valid.

    Raises:
        ValueError: not JSON, or not such a description.
    """
    description = json_object(text, what)
    require_known(description.get("format"), what)
    require_valid(description, what)
    return description


def json_object(text: Any, what: str) -> dict[str, Any]:
    """A JSON object from its text.

    Raises:
        ValueError: anything else.
    """
    try:
        value = json.loads(text)
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{what}: its description is damaged ({error or 'missing'}).") from error
    if not isinstance(value, dict):
        raise ValueError(f"{what}: its description is damaged (not an object).")
    return value


def require_valid(description: Mapping[str, Any], what: str) -> None:
    """Check a description against `vectors.schema.json`.

    Raises:
        ValueError: says where it departs, and how.
    """
    from jsonschema.exceptions import best_match

    try:
        error = best_match(_validator().iter_errors(description))
    except RecursionError as deep:
        raise ValueError(f"{what}: its description is nested too deep.") from deep
    if error is not None:
        told = error.message if len(error.message) < 200 else f"{error.message[:200]}…"
        raise ValueError(f"{what}: its description is not as it must be, at {error.json_path}: {told}.")


@cache
def schema() -> dict[str, Any]:
    """The JSON schema of a description."""
    return json.loads((resources.files(__package__) / "vectors.schema.json").read_text(encoding="utf-8"))


def _identity(model: Mapping[str, Any], what: str) -> ModelIdentity:
    # JSON knows one kind of number: 4.0 layers are 4.
    values = {name: int(value) if isinstance(value, float) else value for name, value in model.items()}
    try:
        return ModelIdentity.from_json(json.dumps(values))
    except ValueError as error:
        raise ValueError(f"{what}: {error}") from error


def _floats(numbers: list[int | float | None], what: str) -> list[float]:
    try:
        found = [float("nan") if number is None else float(number) for number in numbers]
    except OverflowError as error:
        raise ValueError(f"{what}: its description holds a number that is too large ({error}).") from error
    if any(map(math.isinf, found)):
        raise ValueError(f"{what}: its description holds an infinite number.")
    return found


@cache
def _validator() -> Any:
    from jsonschema import Draft202012Validator

    return Draft202012Validator(schema())


@cache
def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"
