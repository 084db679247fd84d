"""Runtime type checks for the public API, with readable errors, before any work starts.

NumPy scalars and arrays, pandas columns, tensors and generators are converted where a Python number or list
is expected. NumPy, pandas and PyTorch are imported in the functions: the command line starts without them.
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

from typeguard import CollectionCheckStrategy, ForwardRefPolicy, TypeCheckError, check_type

Checked = TypeVar("Checked", bound=Callable[..., Any])
# Packages that may be between the user's line and this package: context managers, callbacks, hooks.
INTERMEDIATE = ("contextlib", "functools", "pandas", "torch", "transformer_lens", "transformers")
POLICIES = {
    "forward_ref_policy": ForwardRefPolicy.IGNORE,
    "collection_check_strategy": CollectionCheckStrategy.ALL_ITEMS,
}
MAX_ITEMS = 64  # longer collections are checked by one item of each type
MAX_WIDTH, MAX_LINES = 100, 10  # of the repr of a dataclass
MAX_LEVELS = 4  # of a factor that are listed in a repr
VALUES = reprlib.Repr()  # in error messages
VALUES.maxstring = VALUES.maxother = 60
FIELDS = reprlib.Repr()  # in reprs of dataclasses
FIELDS.maxstring = FIELDS.maxother = FIELDS.maxlong = 80
FIELDS.maxtuple = FIELDS.maxlist = FIELDS.maxdict = FIELDS.maxlevel = 3


def checked(public: Checked) -> Checked:
    """Decorator: check the arguments of a public function or, for a class, of its constructor.

    Wrong arguments raise `TypeError`, or `ValueError` if only certain strings are allowed.
    """
    if isinstance(public, type):
        public.__init__ = _with_checks(public.__init__, public.__name__)
        return public
    return _with_checks(public, public.__qualname__.removesuffix(".__getitem__"))


def require_characters(text: str, what: str) -> None:
    """Raise `ValueError` for half of a surrogate pair, which tokenizers, tables and files reject."""
    if re.search("[\ud800-\udfff]", text):
        raise ValueError(f"{what} {text!r:.60} has half of a surrogate pair, which is no character.")


def warn(message: str, category: type[Warning] = UserWarning) -> None:
    """Warn at the line of the user's code that called this package."""
    stack = traceback.walk_stack(sys._getframe())
    names = [frame.f_globals.get("__name__", "").partition(".")[0] for frame, _ in stack]
    outermost = max(depth for depth, name in enumerate(names) if name == names[0])
    outside = (depth for depth in range(outermost + 1, len(names)) if names[depth] not in INTERMEDIATE)
    warnings.warn(message, category, stacklevel=next(outside, outermost) + 1)


def _with_checks(function: Checked, name: str) -> Checked:
    signature = inspect.signature(function)

    @functools.cache  # at the first call: annotations may name what is defined later in the module
    def hints() -> dict[str, Any]:
        return typing.get_type_hints(function)

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        try:
            bound = signature.bind(*args, **kwargs)
        except TypeError:
            return function(*args, **kwargs)  # Python's own message names the function
        for argument, value in bound.arguments.items():
            if argument in ("self", "cls") or argument not in hints():
                continue
            convert = functools.partial(_converted, hint=hints()[argument], where=f"{name}: {argument}")
            parameter = signature.parameters[argument].kind
            if parameter is inspect.Parameter.VAR_POSITIONAL:
                bound.arguments[argument] = tuple(map(convert, value))
            elif parameter is not inspect.Parameter.VAR_KEYWORD:
                bound.arguments[argument] = convert(value)
        return function(*bound.args, **bound.kwargs)

    return wrapper


def _converted(value: Any, *, hint: Any, where: str) -> Any:
    """The value, as Python numbers and lists where the hint requires these; `~` in paths is expanded."""
    if isinstance(value, str | Path) and Path in _members(hint):
        value = type(value)(os.path.expanduser(value))
    if _matches(value, hint):
        return value
    plain = _plain(value)
    if plain is not value and _matches(plain, hint):
        return plain
    message = f"{where} must be {_describe_hint(hint)}; got {_describe(value)}{_first_wrong(plain, hint)}."
    has_choices = any(typing.get_origin(member) is Literal for member in _members(hint))
    error = ValueError if has_choices and isinstance(value, str) else TypeError
    raise error(message + _remedy(plain, hint))


def _matches(value: Any, hint: Any) -> bool:
    if type(value) in _members(hint):
        return True  # the most frequent case, and the fastest
    if isinstance(value, str | bytes) and not _allows(type(value), hint):
        return False  # a string is a sequence of strings, but is not meant as one
    sample = _sample(value)
    if _has_booleans(sample) and not _types_in(hint) & {bool, Any, object}:
        return False  # a mask where indices are expected would be the indices 1 and 0
    try:
        check_type(sample, hint, **POLICIES)
    except TypeCheckError:
        return False
    return True


def _sample(value: Any) -> Any:
    """The value, with long lists, tuples and dicts reduced to one item of each type, at every depth.

    Only the outermost collection is read completely: the time does not grow with the size of its items.
    """
    if type(value) not in (list, tuple, dict):
        return value
    items = list(value.items()) if isinstance(value, dict) else value
    if len(items) > MAX_ITEMS:
        type_of = (lambda item: (type(item[0]), type(item[1]))) if isinstance(value, dict) else type
        items = list({type_of(item): item for item in items}.values())
    if isinstance(value, dict):
        return {key: _sample(item) for key, item in items}
    return type(value)(map(_sample, items))


def _members(hint: Any) -> tuple[Any, ...]:
    """The members of a union, or the hint itself."""
    return typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)


def _allows(text_type: type, hint: Any) -> bool:
    """Whether a hint allows a `str` or `bytes` itself, not only as a sequence."""
    return any(
        issubclass(text_type, member)
        if member in (str, bytes)
        else member in (Any, object, Hashable) or typing.get_origin(member) in (Literal, Callable)
        for member in _members(hint)
    )


def _types_in(hint: Any) -> set[Any]:
    """All types that a hint names, at any depth."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return set(map(type, inner))
    return {origin or hint}.union(*map(_types_in, () if origin is Callable else inner))


def _has_booleans(value: Any) -> bool:
    """Whether a value is a Boolean, or a list or dict that contains one."""
    items = value.values() if isinstance(value, dict) else value
    items = items if isinstance(value, dict | list | tuple) else [value]
    return any(isinstance(item, bool) for item in items)


def _plain(value: Any) -> Any:
    """Numbers, arrays, columns and generators as Python numbers and lists; other values unchanged."""
    import numpy as np
    import pandas as pd
    import torch

    if isinstance(value, np.ndarray | np.generic | pd.Series | pd.Index | torch.Tensor):
        return value.tolist()
    if isinstance(value, Iterator | MappingView):
        return list(value)
    if isinstance(value, dict):
        return {_number(key): _number(item) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(map(_number, value))
    return value


def _number(value: Any) -> Any:
    import numpy as np

    return value.item() if isinstance(value, np.generic) else value


def _first_wrong(value: Any, hint: Any) -> str:
    """Name the first item that does not match, if others match."""
    if isinstance(value, list | tuple):
        single = ((index, item, type(value)([item])) for index, item in enumerate(value))
    elif isinstance(value, dict):
        single = ((repr(key), item, {key: item}) for key, item in value.items())
    else:
        return ""
    wrong = [(index, item) for index, item, alone in single if not _matches(alone, hint)]
    if len(value) < 2 or len(wrong) in (0, len(value)):
        return ""
    return f", where item {wrong[0][0]} is {_describe(wrong[0][1])}"


def _remedy(value: Any, hint: Any) -> str:
    if inspect.isfunction(value):
        return f" Did you mean to call it, {value.__name__}(…)?"
    if _has_booleans(value):
        return " True and False are not taken for numbers."
    if _matches([value], hint):
        return f" Put it in a list: [{_describe(value)}]."
    if isinstance(value, list | tuple) and len(value) == 1 and _matches(value[0], hint):
        return " Take it out of its list."
    if isinstance(value, list | tuple | dict):
        return next((each.from_numbers for each in _members(hint) if hasattr(each, "from_numbers")), "")
    return ""


def _describe(value: Any) -> str:
    """A value for a message: short ones as written, others by type and shape."""
    if value is None or isinstance(value, bool | int | float | str | bytes | list | tuple | dict | set):
        return VALUES.repr(value)
    if inspect.isfunction(value) or isinstance(value, type):
        return f"the {'class' if isinstance(value, type) else 'function'} {value.__name__}"
    import numpy as np
    import torch

    name = type(value).__name__
    shape = f" of shape {tuple(value.shape)}" if isinstance(value, torch.Tensor | np.ndarray) else ""
    return f"{'an' if name[0] in 'AEIOUaeiou' else 'a'} {name}{shape}"


def _describe_hint(hint: Any) -> str:
    """A hint for a message, `None` last."""
    *most, last = map(_describe_member, sorted(_members(hint), key=lambda member: member is type(None)))
    return f"{', '.join(most)} or {last}" if most else last


def _describe_member(hint: Any) -> str:
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if hint is type(None):
        return "None"
    if origin is Literal:
        return " or ".join(map(repr, inner))
    if origin is Callable:
        return "a function"
    if origin in (typing.Union, types.UnionType):
        return " | ".join(map(_describe_member, inner))
    if getattr(hint, "_is_protocol", False):
        return inspect.getdoc(hint).partition("\n")[0].replace("`", "").rstrip(".")
    if inner and isinstance(origin, type):
        names = ("…" if each is ... else _describe_member(each) for each in inner)
        return f"{origin.__name__}[{', '.join(names)}]"
    return getattr(hint, "__name__", str(hint))


def short_repr(instance: Any) -> str:
    """Repr of a dataclass in at most ten lines, for its `__repr__`."""
    class_name, names = type(instance).__name__, [field.name for field in fields(instance) if field.repr]
    parts = [f"{name}={_summary(getattr(instance, name))}" for name in names]
    if len(line := f"{class_name}({', '.join(parts)})") <= MAX_WIDTH:
        return line
    last = MAX_LINES - 3
    if len(parts) > last:
        parts[last:] = [", ".join(parts[last:])]
    cut = (part if len(part) <= MAX_WIDTH else f"{part[: MAX_WIDTH - 1]}…" for part in parts)
    return "\n".join([f"{class_name}(", *(f"    {part}," for part in cut), ")"])


def _summary(value: Any) -> str:
    import numpy as np
    import pandas as pd
    import torch

    if isinstance(value, torch.Tensor | np.ndarray):
        return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
    if isinstance(value, pd.DataFrame):
        columns = ", ".join(f"{name} ({_levels(column)})" for name, column in value.items())
        return f"{len(value)} rows" + f": {columns}" * bool(columns)
    if isinstance(value, tuple | list) and len(value) > FIELDS.maxtuple:
        return f"{len(value)}: {_summary(value[0])}, …"
    if is_dataclass(value) and not isinstance(value, type):
        return repr(value) if "\n" not in repr(value) else f"{type(value).__name__}(…)"
    return " ".join(FIELDS.repr(value).split())


def _levels(column: Any) -> str:
    texts = column.map(str).drop_duplicates()  # pandas keeps missing text missing in `astype(str)`
    return "/".join(texts) if len(texts) <= MAX_LEVELS else f"{len(texts)} levels"
