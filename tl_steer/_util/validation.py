"""The door of every public function: an argument of another kind is refused in words, before anything runs.

What is natural is taken: numbers and arrays of numpy's, columns, tensors of numbers and generators come in
where a number or a list of Python's is wanted.
"""

import functools
import inspect
import os
import re
import reprlib
import sys
import traceback
import types
import typing
import warnings
from collections.abc import Callable, Hashable, Iterator, MappingView
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import pandas as pd
import torch
from typeguard import CollectionCheckStrategy, ForwardRefPolicy, TypeCheckError, check_type

Checked = TypeVar("Checked", bound=Callable[..., Any])
# What may run between a user's line and this package: context managers, callbacks of tables, hooks.
RUNNERS = ("contextlib", "functools", "pandas", "torch", "transformer_lens", "transformers")
SHORT = reprlib.Repr()
SHORT.maxstring = SHORT.maxother = 60
SAMPLED = 64  # items from which on a collection is represented by one item of each type
REPR_WIDTH = 100
REPR_LINES = 10
MOST_LEVELS = 4
BRIEF = reprlib.Repr()
BRIEF.maxstring = BRIEF.maxother = BRIEF.maxlong = 80
BRIEF.maxtuple = BRIEF.maxlist = BRIEF.maxdict = BRIEF.maxlevel = 3


def checked(public: Checked) -> Checked:
    """A public function, or a class of which the constructor is meant, that checks what it is given.

    What it then raises is a `TypeError`, or a `ValueError` where only some words are allowed; it says what
    came, what is allowed and, where that can be told, what to write instead.
    """
    if isinstance(public, type):
        public.__init__ = _checking(public.__init__, public.__name__)
        return public
    return _checking(public, public.__qualname__.removesuffix(".__getitem__"))


def holds_numbers(column: pd.Series) -> bool:
    """Whether a table's column is one of numbers alone; true and false are none."""
    return pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column)


def require_characters(text: str, what: str) -> None:
    """Raise `ValueError` for half of a surrogate pair, which no tokenizer, table or file takes."""
    if re.search("[\ud800-\udfff]", text):
        raise ValueError(f"{what} {text!r:.60} has half of a surrogate pair, which is no character.")


def warn(message: str, category: type[Warning] = UserWarning) -> None:
    """Warn at the line of the user's code that called this package, through however many functions."""
    names = [
        each.f_globals.get("__name__", "").partition(".")[0]
        for each, _ in traceback.walk_stack(sys._getframe())
    ]
    outermost = max(depth for depth, name in enumerate(names) if name == names[0])
    outside = (depth for depth in range(outermost + 1, len(names)) if names[depth] not in RUNNERS)
    warnings.warn(message, category, stacklevel=next(outside, outermost) + 1)


def _checking(function: Checked, name: str) -> Checked:
    signature = inspect.signature(function)

    @functools.cache  # at the first call: annotations may name what is defined further down
    def hints() -> dict[str, Any]:
        return typing.get_type_hints(function)

    @functools.wraps(function)
    def checking(*args: Any, **kwargs: Any) -> Any:
        try:
            given = signature.bind(*args, **kwargs)
        except TypeError:
            return function(*args, **kwargs)  # Python's own words name the function
        for argument, value in given.arguments.items():
            if argument in ("self", "cls") or argument not in hints():
                continue
            taken = functools.partial(_taken, hint=hints()[argument], where=f"{name}: {argument}")
            kind = signature.parameters[argument].kind
            if kind is inspect.Parameter.VAR_POSITIONAL:
                given.arguments[argument] = tuple(taken(each) for each in value)
            elif kind is not inspect.Parameter.VAR_KEYWORD:
                given.arguments[argument] = taken(value)
        return function(*given.args, **given.kwargs)

    return checking


def _taken(value: Any, *, hint: Any, where: str) -> Any:
    """The value, or what it is in Python's own numbers and lists, where the hint allows one of them.

    The `~` of a path becomes the user's home folder.
    """
    if isinstance(value, str | Path) and Path in _kinds(hint):
        value = type(value)(os.path.expanduser(value))
    if _fits(value, hint):
        return value
    plain = _plain(value)
    if plain is not value and _fits(plain, hint):
        return plain
    refusal = f"{where} must be {_told(hint)}; got {_shown(value)}{_where_wrong(plain, hint)}."
    words = isinstance(value, str) and any(typing.get_origin(each) is Literal for each in _kinds(hint))
    raise (ValueError if words else TypeError)(refusal + _tip(plain, hint))


def _fits(value: Any, hint: Any) -> bool:
    if type(value) in _kinds(hint):
        return True  # most of all, and soonest told
    if isinstance(value, str | bytes) and not _takes(str if isinstance(value, str) else bytes, hint):
        return False  # a sequence of letters, or of numbers, but nobody means that
    if _truths(_sample(value)) and not _names(hint) & {bool, Any, object}:
        return False  # a mask where indices are meant would be the indices 1 and 0
    try:
        check_type(
            _sample(value),
            hint,
            forward_ref_policy=ForwardRefPolicy.IGNORE,
            collection_check_strategy=CollectionCheckStrategy.ALL_ITEMS,
        )
    except TypeCheckError:
        return False
    return True


def _sample(value: Any) -> Any:
    """A value with long lists, tuples and dicts reduced to one item of each type, at every depth.

    Only the outermost collection is looked at as a whole, so the time does not grow with what its items hold.
    """
    if type(value) not in (list, tuple, dict):
        return value
    items = list(value.items()) if isinstance(value, dict) else value
    if len(items) > SAMPLED:
        types_of = (lambda item: (type(item[0]), type(item[1]))) if isinstance(value, dict) else type
        items = list(dict(zip(map(types_of, items), items, strict=True)).values())
    if isinstance(value, dict):
        return {key: _sample(item) for key, item in items}
    return type(value)(map(_sample, items))


def _takes(text: type, hint: Any) -> bool:
    """Whether a hint allows a `str` or `bytes` itself, not only as a sequence."""
    return any(
        each in (text, Any, object, Hashable) or typing.get_origin(each) in (Literal, Callable)
        for each in _kinds(hint)
    )


def _kinds(hint: Any) -> tuple[Any, ...]:
    """What a hint allows: the members of a union, or itself."""
    return typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)


def _names(hint: Any) -> set[Any]:
    """Every type that a hint names, however deep; of allowed words, their types."""
    origin, inside = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return set(map(type, inside))
    return {origin or hint}.union(*map(_names, () if origin is Callable else inside))


def _truths(value: Any) -> bool:
    """Whether a value is true or false, or a list or dict with such a one in it."""
    inside = (
        value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else [value]
    )
    return any(isinstance(each, bool) for each in inside)


def _plain(value: Any) -> Any:
    """Numbers, arrays, columns and generators as Python's own; other things as they are."""
    if isinstance(value, np.ndarray | np.generic | pd.Series | pd.Index | torch.Tensor):
        return value.tolist()
    if isinstance(value, Iterator | MappingView):
        return list(value)
    if isinstance(value, dict):
        return {_number(key): _number(each) for key, each in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_number(each) for each in value)
    return value


def _number(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def _where_wrong(value: Any, hint: Any) -> str:
    """The first item that does not fit, of several that would fit one by one."""
    if isinstance(value, list | tuple):
        alone = ((number, each, type(value)([each])) for number, each in enumerate(value))
    elif isinstance(value, dict):
        alone = ((repr(key), each, {key: each}) for key, each in value.items())
    else:
        return ""
    wrong = [(place, each) for place, each, only in alone if not _fits(only, hint)]
    if len(value) < 2 or not wrong or len(wrong) == len(value):
        return ""
    return f", where item {wrong[0][0]} is {_shown(wrong[0][1])}"


def _tip(value: Any, hint: Any) -> str:
    """What was probably meant."""
    if inspect.isfunction(value):
        return f" Did you mean to call it, {value.__name__}(…)?"
    if _truths(value):
        return " True and False are not taken for numbers."
    if _fits([value], hint):
        return f" Put it in a list: [{_shown(value)}]."
    if isinstance(value, list | tuple) and len(value) == 1 and _fits(value[0], hint):
        return " Take it out of its list."
    if isinstance(value, list | tuple | dict):
        return next((each.from_numbers for each in _kinds(hint) if hasattr(each, "from_numbers")), "")
    return ""


def _shown(value: Any) -> str:
    """A value in a few words: what is short as it is written, anything else by its kind."""
    if value is None or isinstance(value, bool | int | float | str | bytes | list | tuple | dict | set):
        return SHORT.repr(value)
    if inspect.isfunction(value):
        return f"the function {value.__name__}"
    if isinstance(value, type):
        return f"the class {value.__name__}"
    kind = type(value).__name__
    shape = f" of shape {tuple(value.shape)}" if isinstance(value, torch.Tensor | np.ndarray) else ""
    return f"{'an' if kind[0] in 'AEIOUaeiou' else 'a'} {kind}{shape}"


def _told(hint: Any) -> str:
    """A hint in words, `None` last."""
    *most, last = map(_named, sorted(_kinds(hint), key=lambda each: each is type(None)))
    return f"{', '.join(most)} or {last}" if most else last


def _named(hint: Any) -> str:
    origin, inside = typing.get_origin(hint), typing.get_args(hint)
    if hint is type(None):
        return "None"
    if origin is Literal:
        return " or ".join(map(repr, inside))
    if origin is Callable:
        return "a function"
    if origin in (typing.Union, types.UnionType):
        return " | ".join(map(_named, inside))
    if getattr(hint, "_is_protocol", False):
        return inspect.getdoc(hint).partition("\n")[0].replace("`", "").rstrip(".")
    if inside and isinstance(origin, type):
        return f"{origin.__name__}[{', '.join('…' if each is ... else _named(each) for each in inside)}]"
    return getattr(hint, "__name__", str(hint))


def short_repr(instance: Any) -> str:
    """The repr of a dataclass in at most ten lines, for its `__repr__`."""
    shown = [each.name for each in fields(instance) if each.repr]
    parts = [f"{name}={_summary(getattr(instance, name))}" for name in shown]
    name, most = type(instance).__name__, REPR_LINES - 2
    if len(line := f"{name}({', '.join(parts)})") <= REPR_WIDTH:
        return line
    if len(parts) > most:
        parts[most - 1 :] = [", ".join(parts[most - 1 :])]
    return "\n".join([f"{name}(", *(f"    {_cut(part)}," for part in parts), ")"])


def _summary(value: Any) -> str:
    if isinstance(value, torch.Tensor | np.ndarray):
        return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
    if isinstance(value, pd.DataFrame):
        columns = ", ".join(f"{name} ({_levels(column)})" for name, column in value.items())
        return f"{len(value)} rows" + f": {columns}" * bool(columns)
    if isinstance(value, tuple | list) and len(value) > BRIEF.maxtuple:
        return f"{len(value)}: {_summary(value[0])}, …"
    if is_dataclass(value) and not isinstance(value, type):
        return repr(value) if "\n" not in repr(value) else f"{type(value).__name__}(…)"
    return " ".join(BRIEF.repr(value).split())


def _levels(column: pd.Series) -> str:
    texts = column.astype(str).drop_duplicates()
    return "/".join(texts) if len(texts) <= MOST_LEVELS else f"{len(texts)} levels"


def _cut(text: str) -> str:
    return text if len(text) <= REPR_WIDTH else f"{text[: REPR_WIDTH - 1]}…"
