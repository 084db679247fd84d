"""All that a sweep's numbers depend on, as plain values that can be kept and told apart in words."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, fields, is_dataclass
from functools import partial
from numbers import Integral, Real
from pathlib import PurePath
from types import CellType, CodeType, FunctionType, MethodType
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from ..choices import plan_choices
from ..directions import SteeringVector, SteeringVectors
from ..models import Prompt, identify, tokenize_all
from ..models.weights import weight_sums
from ..prompts import ChoiceQuestions
from .cells import Cell
from .chunks import CELLS

FORMAT = 2
Plan = Mapping[str, Any]  # plain JSON
ABSENT = "nothing"
Within = frozenset[int]  # the ids of what a value lies in
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
        settings: the arguments that are plain values; "measure" is among them.

    Raises:
        ValueError: an operation holds something of which nothing can be told but where in memory it lies.
    """
    steered = [cell for cell in cells if cell.operations]
    made = {name: _vectors(each) for name, each in controls.items()} if isinstance(controls, Mapping) else {}
    return {
        "format": FORMAT,
        "model": model_parts(model),
        "vectors": {name: _vectors(each) for name, each in vectors.items()},
        "controls": made or len({cell.vector for cell in cells if cell.control}),
        "questions": questions_parts(questions),
        "tokens": _tokens(model, questions, settings["measure"]),
        "operations": list(dict.fromkeys(cell.operation for cell in steered)),
        "layers": list(dict.fromkeys("+".join(map(str, cell.layers)) for cell in steered)),
        "multipliers": list(dict.fromkeys(str(cell.multiplier) for cell in steered)),
        **{name: _plain(value) for name, value in settings.items()},
        WHOLE: counted([_made(cell) for cell in cells]),
        "cells in a chunk": CELLS,
    }


def model_parts(model: Any) -> dict[str, Any]:
    """Which model, by every bit of its weights, run by what, on what kind of device; its name may change."""
    identity = asdict(identify(model))
    compared = {name: value for name, value in identity.items() if name not in ("name", "revision")}
    return {
        "weights": digest(weight_sums(model)),  # the fingerprint alone would not see every fine-tuning
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


def tokens_part(model: Any, prompts: Sequence[Prompt]) -> str:
    """How many prompts, and the digest of their token ids: a vocabulary does not say how text is cut."""
    return counted(tokenize_all(model, prompts))


def _tokens(model: Any, questions: ChoiceQuestions | Sequence[str], measure: str) -> str:
    """The token ids of the prompts, and where choices are scored of all that is read of them."""
    if not isinstance(questions, ChoiceQuestions):
        return tokens_part(model, questions)
    if measure != "choice":
        return tokens_part(model, questions.prompts)
    plan = plan_choices(model, questions.prompts, questions.choices)
    return f"{len(plan.prompts)} ({digest(plan)})"


def counted(values: Any) -> str:
    """How many, and the digest of all: short, and another one where anything is different."""
    return f"{len(values)} ({digest(values)})"


def digest(value: Any) -> str:
    """16 hexadecimal digits of a value's content: tensors, tables, dataclasses, plain values, containers.

    Functions count by name, code, defaults and what they have caught; of vectors their numbers and place, not
    how they were made; of models their weights; of other objects their type and what they hold.

    Raises:
        ValueError: an object of which nothing can be told but where in memory it lies.
    """
    return _digest(value, frozenset())


def _digest(value: Any, within: Within) -> str:
    found = hashlib.sha256()
    for part in _fed(value, within):
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


def _plain(value: Any) -> Any:
    """A setting as JSON can hold it: numpy's numbers are plain ones."""
    return value.item() if isinstance(value, np.generic) else value


def _fed(value: Any, within: Within) -> Iterator[bytes]:
    """A value as pieces of bytes; alike for alike values, in another process too."""
    if id(value) in within:
        yield b"what it lies in"  # a function that calls itself, a list in itself
        return
    inner = within | {id(value)}
    if isinstance(value, Tensor):
        yield f"tensor {value.dtype} {tuple(value.shape)}".encode()
        yield value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
    elif isinstance(value, list | tuple):
        yield f"list {len(value)}".encode()
        for each in value:
            yield from _fed(each, inner)
    elif isinstance(value, set | frozenset):
        yield from _fed(sorted(_digest(each, inner) for each in value), inner)
    elif value is None or isinstance(value, bool | str | bytes | PurePath):
        yield f"{type(value).__name__} {value}".encode()
    elif isinstance(value, np.bool_):
        yield from _fed(bool(value), within)
    elif isinstance(value, Real):
        yield f"{int(value)}".encode() if isinstance(value, Integral) else f"{float(value)!r}".encode()
    else:
        yield from _fed(_told(value), inner)


def _told(value: Any) -> list[Any] | str:
    """What makes up a value that is neither plain nor a list."""
    if isinstance(value, SteeringVector | SteeringVectors):
        return ["vectors", value.values, value.layers, value.hook]
    if isinstance(value, pd.DataFrame):
        return _told({str(name): column.tolist() for name, column in value.items()})
    if isinstance(value, nn.Module):
        return [_name(type(value)), *_told(weight_sums(value))]
    if is_dataclass(value) and not isinstance(value, type):
        return [_name(type(value)), *(getattr(value, each.name) for each in fields(value) if each.compare)]
    if isinstance(value, Mapping):
        return [each for pair in value.items() for each in pair]
    if isinstance(value, np.ndarray | pd.Series):
        return value.tolist()
    return _told_callable(value) if callable(value) else _told_object(value)


def _told_callable(value: Any) -> list[Any] | str:
    """What a function does, as far as it lies in itself: not what it finds under a global name."""
    if isinstance(value, partial):
        return ["partial", value.func, value.args, value.keywords]
    if isinstance(value, MethodType):
        return ["method", value.__func__, value.__self__]
    if isinstance(value, FunctionType):
        given = (value.__defaults__, value.__kwdefaults__)
        return [f"callable {_name(value)}", value.__code__, *given, value.__closure__]
    return f"callable {_name(value)}" if hasattr(value, "__qualname__") else _told_object(value)


def _told_object(value: Any) -> list[Any]:
    """The type and what an object holds; without anything held, how it is written."""
    if isinstance(value, CodeType):
        return ["code", value.co_code, value.co_consts, value.co_names]
    if isinstance(value, CellType):
        return _caught(value)
    slots = _slots(value)
    held = {name: getattr(value, name) for name in slots if hasattr(value, name)}
    if held := held | getattr(value, "__dict__", {}):
        return [_name(type(value)), held]
    if " at 0x" not in (written := str(value)):
        return [_name(type(value)), written]
    if slots or hasattr(value, "__dict__"):
        return [_name(type(value))]  # it could hold something, and holds nothing
    raise ValueError(
        f"an operation or its positions hold {value!r:.100}, of which nothing can be told but where in "
        "memory it lies, so that a later call could not be compared with this one: hold plain values, "
        "tensors or dataclasses instead, or leave out=… away."
    )


def _caught(cell: CellType) -> list[Any]:
    try:
        return ["cell", cell.cell_contents]
    except ValueError:  # not yet filled
        return ["cell"]


def _slots(value: Any) -> list[str]:
    """The names of an object's slots, those of its bases included."""
    found = []
    for kind in type(value).__mro__:
        own = vars(kind).get("__slots__", ())
        for name in (own,) if isinstance(own, str) else own:
            hidden = name.startswith("__") and not name.endswith("__")
            found.append(f"_{kind.__name__.lstrip('_')}{name}" if hidden else name)
    return [name for name in found if name not in ("__dict__", "__weakref__")]


def _name(thing: Any) -> str:
    return f"{getattr(thing, '__module__', '')}.{getattr(thing, '__qualname__', '')}"
