"""A value in sixteen digits, however large it is, so that two can be told apart in another process."""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from functools import partial
from numbers import Integral, Real
from pathlib import PurePath
from types import CellType, CodeType, FunctionType, MethodType
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from ..directions import SteeringVector, SteeringVectors
from ..models.weights import weight_digests

Within = frozenset[int]  # the ids of what a value lies in


def counted(values: Any) -> str:
    """How many, and the digest of all: short, and another one where anything is different."""
    return f"{len(values)} ({digest(values)})"


def digest(value: Any) -> str:
    """16 hexadecimal digits of a value's content: tensors, tables, dataclasses, plain values, containers.

    Functions count by name, code, defaults and what they have caught; of vectors their numbers and place, not
    how they were made; of models their weights; of other objects their type, with its methods where it is not
    of this package, and what they hold.

    Raises:
        ValueError: an object of which nothing can be told but where in memory it lies.
    """
    return _digest(value, frozenset())


def _digest(value: Any, within: Within) -> str:
    found = hashlib.sha256()
    for part in _fed(value, within):
        found.update(len(part).to_bytes(8, "big") + part)  # lengths: no two values run together alike
    return found.hexdigest()[:16]


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
        kind = "str" if isinstance(value, str) else type(value).__name__  # a `ChatPrompt` is its text
        yield f"{kind} {value}".encode()
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
        return [_name(type(value)), *_told(weight_digests(value))]
    if is_dataclass(value) and not isinstance(value, type):
        held = [each.name for each in fields(value) if each.compare or not _is_ours(type(value))]
        return [_kind(type(value)), *(getattr(value, name) for name in held)]
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
        return [_kind(type(value)), held]
    if " at 0x" not in (written := str(value)):
        return [_name(type(value)), written]
    if slots or hasattr(value, "__dict__"):
        return [_kind(type(value))]  # it could hold something, and holds nothing
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


def _kind(kind: type) -> str | list[Any]:
    """A class by its name; one that somebody wrote for a sweep by its methods, too."""
    written = [each for each in kind.__mro__ if not _is_ours(each) and each.__module__ == kind.__module__]
    methods = [value for each in written for value in vars(each).values() if isinstance(value, FunctionType)]
    return [_name(kind), *methods] if methods else _name(kind)


def _is_ours(kind: type) -> bool:
    return kind.__module__.partition(".")[0] == __name__.partition(".")[0]


def _name(thing: Any) -> str:
    return f"{getattr(thing, '__module__', '')}.{getattr(thing, '__qualname__', '')}"
