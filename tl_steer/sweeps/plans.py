"""Plans: everything that a sweep's numbers depend on, as plain JSON values and content hashes."""

import copyreg
import hashlib
import json
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

from .._generation import stop_tokens
from .._scoring import plan_choices
from ..directions import SteeringVector, SteeringVectors
from ..models import Prompt, identify, tokenize_all
from ..models.weights import weight_digests
from ..prompts import ChoiceQuestions
from .conditions import Condition

FORMAT = 5
Plan = Mapping[str, Any]  # plain JSON
# Fields of a model's configuration that change no number, or that the plan has elsewhere.
NOT_COMPARED = (
    "model_name", "tokenizer", "device", "n_devices", "dtype", "seed", "init", "checkpoint",
    "default_prepend_bos", "n_params",
)  # fmt: skip
CONDITIONS = "cells"  # the part that follows from the others; its name is on disk
# Modules whose classes are in plans on disk under an earlier name.
STORED = {
    "tl_steer._scoring": "tl_steer.choices",
    "tl_steer.positions.selectors": "tl_steer.positions.language",
    "tl_steer.prompts.choice_questions": "tl_steer.prompts.questions",
}
CONTENT = ("vector", "control", "control_of", "operation", "layers", "multiplier", "operations")


def sweep_plan(
    model: Any,
    vectors: Mapping[str, SteeringVectors],
    controls: int | Mapping[str, SteeringVectors],
    conditions: Sequence[Condition],
    questions: ChoiceQuestions | list[str],
    settings: Mapping[str, Any],
) -> dict[str, Any]:
    """What a sweep's numbers depend on, large values by their content hash.

    `settings` are the plain arguments of `sweep`, "measure" among them. `ValueError` for an operation that
    holds an object without a content hash.
    """

    def named(vectors: Mapping[str, SteeringVectors]) -> dict[str, str]:
        return {name: f"{len(each)} layers at {each.hook} ({digest(each)})" for name, each in vectors.items()}

    own_controls = named(controls) if isinstance(controls, Mapping) else {}
    steered = [each for each in conditions if each.operations]
    contents = [[getattr(each, name) for name in CONTENT] for each in conditions]
    return {
        "format": FORMAT,
        "model": model_parts(model),
        "vectors": named(vectors),
        "controls": own_controls or len({each.vector for each in conditions if each.control}),
        "questions": questions_parts(questions),
        "tokens": _tokens(model, questions, settings["measure"]),
        "stop tokens": stop_tokens(model) if settings["measure"] == "generate" else None,
        "operations": list(dict.fromkeys(each.operation for each in steered)),
        "layers": list(dict.fromkeys(each.layers_label for each in steered)),
        "multipliers": list(dict.fromkeys(str(each.multiplier) for each in steered)),
        **settings,
        CONDITIONS: counted(contents),
    }


def model_parts(model: Any) -> dict[str, Any]:
    """The model by all of its weights, its settings, backend and type of device; its name may change."""
    identity = asdict(identify(model))
    config = {name: value for name, value in vars(model.cfg).items() if not name.startswith(NOT_COMPARED)}
    return {
        "weights": digest(weight_digests(model)),  # the fingerprint alone would miss some fine-tuning
        **{name: value for name, value in identity.items() if name not in ("name", "revision")},
        "fingerprint": digest(identity["fingerprint"]),
        "dtype": str(model.cfg.dtype),
        "device": torch.device(model.cfg.device).type,
        "backend": type(model).__name__,
        "settings": {
            name: f"{value}" for name, value in config.items() if isinstance(value, int | float | str | list)
        },
    }


def questions_parts(questions: ChoiceQuestions | Sequence[str]) -> dict[str, str]:
    """Count and content hash of prompts, choices, answers and factors."""
    if not isinstance(questions, ChoiceQuestions):
        return {"prompts": counted(questions)}
    parts = {name: getattr(questions, name) for name in ("prompts", "choices", "answers", "factors")}
    return {name: counted(values) for name, values in parts.items() if values is not None}


def tokens_part(model: Any, prompts: Sequence[Prompt]) -> str:
    """Count and content hash of the prompts' token ids: equal vocabularies may split text differently."""
    return counted(tokenize_all(model, prompts))


def _tokens(model: Any, questions: ChoiceQuestions | Sequence[str], measure: str) -> str:
    if measure != "choice":
        return tokens_part(model, getattr(questions, "prompts", questions))
    plan = plan_choices(model, questions.prompts, questions.choices)
    return f"{len(plan.prompts)} ({digest(plan)})"


def differences(before: Plan, now: Plan) -> str:
    """Where a plan differs from one that was read: "multipliers: [1.0] against [1.0, 2.0]"; "" if nowhere."""
    lines = list(_differing(before, json.loads(json.dumps(now)), ""))
    return "; ".join([line for line in lines if not line.startswith(f"{CONDITIONS}: ")] or lines)


def _differing(before: Any, now: Any, name: str) -> Iterator[str]:
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        for key in before | now:
            values = before.get(key, "nothing"), now.get(key, "nothing")
            yield from _differing(*values, f"{name} {key}".strip())
    elif before != now:
        yield f"{name}: {_text(before)} against {_text(now)}"


def _text(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(_text, value))}]"
    return ", ".join(value) if isinstance(value, Mapping) else str(value)


def counted(values: Any) -> str:
    """Number of values and their content hash."""
    return f"{len(values)} ({digest(values)})"


def digest(value: Any) -> str:
    """Content hash (16 hex digits) of a value, stable across processes.

    Functions count by name, code, defaults and closure; vectors by values, layers and hook, not by origin;
    models by their weights; other objects by type and attributes, and by the methods of classes outside this
    package.

    Raises:
        ValueError: an object without attributes whose repr is its address in memory.
    """
    return _digest(value, frozenset())


def _digest(value: Any, outer: frozenset[int]) -> str:
    result = hashlib.sha256()
    for part in _bytes_of(value, outer):
        result.update(len(part).to_bytes(8, "big") + part)  # lengths keep adjacent values apart
    return result.hexdigest()[:16]


def _bytes_of(value: Any, outer: frozenset[int]) -> Iterator[bytes]:
    """A value's content as bytes; `outer` has the ids of the values that contain it."""
    if id(value) in outer:
        yield b"what it lies in"  # a recursive function, or a list in itself
        return
    inner = outer | {id(value)}
    if isinstance(value, Tensor):
        yield f"tensor {value.dtype} {tuple(value.shape)}".encode()
        yield value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
    elif isinstance(value, list | tuple):
        yield f"list {len(value)}".encode()
        for each in value:
            yield from _bytes_of(each, inner)
    elif isinstance(value, set | frozenset):
        yield from _bytes_of(sorted(_digest(each, inner) for each in value), inner)
    elif value is None or isinstance(value, bool | str | bytes | PurePath):
        # a `ChatPrompt` counts as its text
        yield f"{'str' if isinstance(value, str) else type(value).__name__} {value}".encode()
    elif isinstance(value, np.bool_):
        yield from _bytes_of(bool(value), outer)
    elif isinstance(value, Real):
        yield f"{int(value)}".encode() if isinstance(value, Integral) else f"{float(value)!r}".encode()
    else:
        yield from _bytes_of(_content(value), inner)


def _content(value: Any) -> list[Any] | str:
    """The parts of a value that is neither plain nor a list."""
    if isinstance(value, SteeringVector | SteeringVectors):
        return ["vectors", value.values, value.layers, value.hook]
    if isinstance(value, pd.DataFrame):
        value = {str(name): column.tolist() for name, column in value.items()}
    if isinstance(value, nn.Module):
        return [_name(type(value)), *_content(weight_digests(value))]
    if is_dataclass(value) and not isinstance(value, type):
        names = [each.name for each in fields(value) if each.compare or not _is_ours(type(value))]
        return [_class_content(type(value)), *(getattr(value, name) for name in names)]
    if isinstance(value, Mapping):
        return [each for pair in value.items() for each in pair]
    if isinstance(value, np.ndarray | pd.Series):
        return value.tolist()
    if isinstance(value, partial):
        return ["partial", value.func, value.args, value.keywords]
    if isinstance(value, MethodType):
        return ["method", value.__func__, value.__self__]
    if isinstance(value, FunctionType):  # without what it reads from global names
        defaults = (value.__defaults__, value.__kwdefaults__)
        return [f"callable {_name(value)}", value.__code__, *defaults, value.__closure__]
    if callable(value) and hasattr(value, "__qualname__"):
        return f"callable {_name(value)}"
    return _object_content(value)


def _object_content(value: Any) -> list[Any]:
    """Type and attributes of an object; its text if it has no attributes."""
    if isinstance(value, CodeType):
        return ["code", value.co_code, value.co_consts, value.co_names]
    if isinstance(value, CellType):
        try:
            return ["cell", value.cell_contents]
        except ValueError:  # not yet assigned
            return ["cell"]
    slots = copyreg._slotnames(type(value))
    attributes = {name: getattr(value, name) for name in slots if hasattr(value, name)}
    if attributes := attributes | getattr(value, "__dict__", {}):
        return [_class_content(type(value)), attributes]
    if " at 0x" not in (text := str(value)):
        return [_name(type(value)), text]
    if slots or hasattr(value, "__dict__"):
        return [_class_content(type(value))]  # has attributes, all unset
    raise ValueError(
        f"an operation or its positions hold {value!r:.100}, of which nothing is known but where in memory "
        "it is: expected values that a later call can compare. Hold plain values, or leave out=… away."
    )


def _class_content(cls: type) -> str | list[Any]:
    """A class's name; for classes of the user, also the methods."""
    bases = [each for each in cls.__mro__ if not _is_ours(each) and each.__module__ == cls.__module__]
    methods = [value for each in bases for value in vars(each).values() if isinstance(value, FunctionType)]
    return [_name(cls), *methods] if methods else _name(cls)


def _is_ours(cls: type) -> bool:
    return cls.__module__.partition(".")[0] == __name__.partition(".")[0]


def _name(thing: Any) -> str:
    module = getattr(thing, "__module__", "")
    return f"{STORED.get(module, module)}.{getattr(thing, '__qualname__', '')}"
