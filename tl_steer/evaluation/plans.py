"""All that a sweep's numbers depend on, as plain values that can be kept and told apart in words."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, fields, is_dataclass
from functools import partial
from numbers import Integral, Real
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from ..directions import SteeringVector, SteeringVectors
from ..models import identify
from ..prompts import ChoiceQuestions
from .cells import Cell
from .chunks import CELLS

FORMAT = 1
Plan = Mapping[str, Any]  # plain JSON
ABSENT = "nothing"
WHOLE = "cells"  # what the parts before it come to


def sweep_plan(
    model: Any,
    vectors: Mapping[str, SteeringVectors],
    controls: int | Mapping[str, SteeringVectors],
    cells: Sequence[Cell],
    questions: ChoiceQuestions | list[str],
    settings: Mapping[str, Any],
) -> dict[str, Any]:
    """What a sweep's numbers depend on, part by part; large things by their digest.

    Args:
        vectors, controls, questions: as `sweep` has them.
        cells: all of them, in order; whatever a callable made is in their operations.
        settings: the arguments that are plain values.
    """
    steered = [cell for cell in cells if cell.operations]
    made = {name: _vectors(each) for name, each in controls.items()} if isinstance(controls, Mapping) else {}
    return {
        "format": FORMAT,
        "model": model_parts(model),
        "vectors": {name: _vectors(each) for name, each in vectors.items()},
        "controls": made or len({cell.vector for cell in cells if cell.control}),
        "questions": questions_parts(questions),
        "operations": list(dict.fromkeys(cell.operation for cell in steered)),
        "layers": list(dict.fromkeys("+".join(map(str, cell.layers)) for cell in steered)),
        "multipliers": list(dict.fromkeys(str(cell.multiplier) for cell in steered)),
        **settings,
        WHOLE: counted([_made(cell) for cell in cells]),
        "cells in a chunk": CELLS,
    }


def model_parts(model: Any) -> dict[str, Any]:
    """Which model, in which precision, run by what, on what kind of device; its name may change."""
    identity = asdict(identify(model))
    compared = {name: value for name, value in identity.items() if name not in ("name", "revision")}
    return {
        **compared,
        "fingerprint": digest(identity["fingerprint"]),
        "dtype": str(model.cfg.dtype),
        "device": torch.device(model.cfg.device).type,
        "backend": type(model).__name__,
    }


def questions_parts(questions: ChoiceQuestions | Sequence[str]) -> dict[str, str]:
    """Prompts, choices, answers and factors: how many, and their digest."""
    if not isinstance(questions, ChoiceQuestions):
        return {"prompts": counted(questions)}
    held = {name: getattr(questions, name) for name in ("prompts", "choices", "answers")}
    if questions.factors is not None:
        held["factors"] = questions.factors
    return {name: counted(values) for name, values in held.items() if values is not None}


def counted(values: Any) -> str:
    """How many, and the digest of all: short, and another one where anything is different."""
    return f"{len(values)} ({digest(values)})"


def digest(value: Any) -> str:
    """16 hexadecimal digits of a value's content: tensors, tables, dataclasses, plain values, containers.

    Callables count by name; of vectors their numbers and place, not how they were made; of other objects
    their type and what they hold.
    """
    found = hashlib.sha256()
    for part in _fed(value):
        found.update(len(part).to_bytes(8, "big") + part)  # lengths: no two values run together alike
    return found.hexdigest()[:16]


def differences(begun: Plan, now: Plan) -> str:
    """Where two plans differ, in words: "multipliers: [1.0] against [1.0, 2.0]"; "" where they do not."""
    told = list(_differing(begun, now, ""))
    named = [each for each in told if not each.startswith(f"{WHOLE}: ")]
    return "; ".join(named or told)


def _differing(begun: Any, now: Any, name: str) -> Iterator[str]:
    if isinstance(begun, Mapping) and isinstance(now, Mapping):
        for key in dict.fromkeys([*begun, *now]):
            yield from _differing(begun.get(key, ABSENT), now.get(key, ABSENT), f"{name} {key}".strip())
    elif begun != now:
        yield f"{name}: {_shown(begun)} against {_shown(now)}"


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(_shown, value))}]"
    return ", ".join(value) if isinstance(value, Mapping) else str(value)


def _vectors(vectors: SteeringVectors) -> str:
    return f"{len(vectors)} layers at {vectors.hook} ({digest(vectors)})"


def _made(cell: Cell) -> list[Any]:
    return [cell.vector, cell.control, cell.operation, cell.layers, cell.multiplier, cell.operations]


def _fed(value: Any) -> Iterator[bytes]:
    """A value as pieces of bytes; alike for alike values, in another process too."""
    if isinstance(value, SteeringVector | SteeringVectors):
        yield from _fed(["vectors", value.values, value.layers, value.hook])
    elif isinstance(value, Tensor):
        yield f"tensor {value.dtype} {tuple(value.shape)}".encode()
        yield value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
    elif isinstance(value, pd.DataFrame):
        yield from _fed({str(name): column.tolist() for name, column in value.items()})
    elif is_dataclass(value) and not isinstance(value, type):
        yield from _fed([_name(type(value)), *(getattr(value, f.name) for f in fields(value) if f.compare)])
    elif isinstance(value, Mapping):
        yield from _fed([each for pair in value.items() for each in pair])
    elif isinstance(value, list | tuple):
        yield f"list {len(value)}".encode()
        for each in value:
            yield from _fed(each)
    elif isinstance(value, np.ndarray | pd.Series):
        yield from _fed(value.tolist())
    elif isinstance(value, set | frozenset):
        yield from _fed(sorted(map(digest, value)))
    elif isinstance(value, partial):
        yield from _fed(["partial", value.func, value.args, value.keywords])
    elif value is None or isinstance(value, bool | str | bytes):
        yield f"{type(value).__name__} {value}".encode()
    elif isinstance(value, Real):
        yield f"{int(value)}".encode() if isinstance(value, Integral) else f"{float(value)!r}".encode()
    elif callable(value) and hasattr(value, "__qualname__"):
        yield f"callable {_name(value)}".encode()
    else:
        yield from _fed([_name(type(value)), getattr(value, "__dict__", None) or str(value)])


def _name(thing: Any) -> str:
    return f"{getattr(thing, '__module__', '')}.{getattr(thing, '__qualname__', '')}"
