"""From a TOML file to an `Experiment`, with errors that name the file, the table and the key."""

import difflib
import math
import re
import tomllib
import types
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, fields, is_dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from ..._util.file_io import read_text
from ..._util.validation import checked
from .experiment import Experiment

NOT_IN_FILES = ("source", "folder")


@checked
def read_experiment(path: str | Path) -> Experiment:
    """Read and check an experiment file.

    Args:
        path: a TOML file, or the name of one that the package brings ("demo", "honesty_llama2", …).

    Raises:
        FileNotFoundError: neither a file nor a name.
        ValueError: not TOML, or a key that is unknown, missing, of the wrong type or with a value that is not
            allowed; the message names file, table and key, and a near match where there is one.
    """
    file, folder = _found(path)
    try:
        source = read_text(file)
        values = tomllib.loads(source)
    except RecursionError as error:
        raise ValueError(f"{file.name} is nested too deeply for a TOML file of experiments.") from error
    except ValueError as error:  # not UTF-8, not TOML, or a number of thousands of digits
        raise ValueError(f"{file.name} is not a TOML file in UTF-8: {error}") from error
    try:
        return _built(Experiment, values, "", source=source, folder=folder)
    except ValueError as error:
        raise ValueError(f"{file.name}: {error}") from error


def require_as_read(experiment: Experiment) -> None:
    """Refuse an experiment that is not what its `source` reads as: the run's folder would tell another one.

    Raises:
        ValueError: names what differs, and says what to do.
    """
    differing = ["title"]
    if experiment.source:  # which one made in Python lacks
        given = {name: getattr(experiment, name) for name in NOT_IN_FILES}
        read = _built(Experiment, tomllib.loads(experiment.source), "", **given)
        names = [each.name for each in fields(Experiment)]
        differing = [name for name in names if getattr(read, name) != getattr(experiment, name)]
    if differing:
        raise ValueError(
            f"this experiment is not the one that its file's text tells: {', '.join(differing)} were made or "
            "changed in Python. A run keeps the text, and its report is made from it: write the change into "
            "a file, and read that with read_experiment."
        )


def own_experiments() -> list[str]:
    """Names of the experiments that the package brings."""
    files = resources.files("tl_steer.experiments").iterdir()
    return sorted(file.name.removesuffix(".toml") for file in files if file.name.endswith(".toml"))


def _found(path: str | Path) -> tuple[Any, Path]:
    """The file, and the folder in which its data is looked for."""
    if str(path) in own_experiments():
        return resources.files("tl_steer.experiments") / f"{path}.toml", Path.cwd()
    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(
            f"{path} is neither a file nor one of the package's experiments ({', '.join(own_experiments())})."
        )
    return file, file.resolve().parent


def _built(kind: type, values: Mapping[str, Any], table: str, **given: Any) -> Any:
    """A dataclass from a TOML table; its own checks speak of keys, the table's name is put in front."""
    known = {each.name: each for each in fields(kind) if each.name not in NOT_IN_FILES}
    for key in values:
        if key not in known:
            raise ValueError(f"{f'[{table}]' if table else 'the file'} {_unknown(key, list(known))}")
    for name, each in known.items():
        if name not in values and each.default is MISSING and each.default_factory is MISSING:
            raise ValueError(f"{_at(table)}the key {name!r} is missing.")
    converted = {key: _converted(value, known[key], table) for key, value in values.items()}
    try:
        return kind(**converted, **given)
    except ValueError as error:
        raise ValueError(f"{_at(table)}{error}") from error


def _converted(value: Any, of: Field, table: str) -> Any:
    """A value as its field wants it: a table becomes its dataclass, an array a tuple."""
    kinds = [kind for kind in _options(of.type) if is_dataclass(kind)]
    if kinds:
        if not isinstance(value, dict):
            raise ValueError(f"{of.name!r} must be a table, [{of.name}], not {value!r}.")
        return _built(_selected(kinds, value, of.name), value, of.name)
    for option in _options(of.type):
        if _fits(value, option):
            return _frozen(value, option)
    raise ValueError(
        f"{_at(table)}{of.name} = {value!r} is not allowed; use {_described(of.type)}.{_near(value, of.type)}"
    )


def _selected(kinds: Sequence[type], value: Mapping[str, Any], table: str) -> type:
    """Which dataclass a table is: told by its key "kind" or "method" where there are several."""
    if len(kinds) == 1:
        return kinds[0]
    key = fields(kinds[0])[0].name
    names = {get_args(fields(kind)[0].type)[0]: kind for kind in kinds}
    if key not in value:
        raise ValueError(f"{_at(table)}the key {key!r} is missing; use {_listed(names)}.")
    if not isinstance(value[key], str) or value[key] not in names:
        near = _near(value[key], Literal[tuple(names)])
        raise ValueError(f"{_at(table)}{key} = {value[key]!r} is not allowed; use {_listed(names)}.{near}")
    return names[value[key]]


def _options(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def _fits(value: Any, hint: Any) -> bool:
    if get_origin(hint) is Literal:
        return isinstance(value, str) and value in get_args(hint)
    if get_origin(hint) is tuple:
        options = _options(get_args(hint)[0])
        return isinstance(value, list) and all(
            any(_fits(each, option) for option in options) for each in value
        )
    if get_origin(hint) is Mapping:
        kind, of = get_args(hint)
        keys = value if isinstance(value, dict) else ()
        whole = kind is not int or all(re.fullmatch(r"-?\d+", key) for key in keys)  # TOML's keys are text
        return (
            isinstance(value, dict)
            and whole
            and all(any(_fits(value[key], option) for option in _options(of)) for key in keys)
        )
    if isinstance(value, bool) or hint is bool:  # a bool is an int in Python, not in TOML
        return isinstance(value, bool) and hint is bool
    if hint in (int, float):
        return isinstance(value, int | float if hint is float else int) and _is_of_size(value)
    return isinstance(value, hint)


def _is_of_size(value: int | float) -> bool:
    """Neither NaN nor infinite, and no whole number beyond TOML's 64 bits."""
    return -(2**63) <= value < 2**63 if isinstance(value, int) else math.isfinite(value)


def _frozen(value: Any, hint: Any) -> Any:
    if isinstance(value, list):
        options = _options(get_args(hint)[0])
        return tuple(_frozen(each, next(kind for kind in options if _fits(each, kind))) for each in value)
    if isinstance(value, dict):
        kind, of = get_args(hint)
        return {kind(key): _frozen(each, of) for key, each in value.items()}
    return float(value) if hint is float else value


def _described(hint: Any) -> str:
    """What a type allows, in words."""
    words = {str: "text", int: "a whole number", float: "a finite number", bool: "true or false"}
    parts = []
    for option in _options(hint):
        if get_origin(option) is Literal:
            parts.append(_listed(get_args(option)))
        elif get_origin(option) is tuple:
            parts.append(f"a list of: {_described(get_args(option)[0])}")
        elif get_origin(option) is Mapping:
            parts.append("a table of {} to {}".format(*map(_described, get_args(option))))
        elif option in words:
            parts.append(words[option])
    return ", or ".join(parts)


def _unknown(key: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(key, known, n=1)
    return f"has no key {key!r}; " + (
        f"did you mean {near[0]!r}?" if near else f"it may have {', '.join(known)}."
    )


def _near(value: Any, hint: Any) -> str:
    words = [word for option in _options(hint) if get_origin(option) is Literal for word in get_args(option)]
    near = difflib.get_close_matches(value, words, n=1) if isinstance(value, str) else []
    return f" Did you mean {near[0]!r}?" if near else ""


def _listed(words: Any) -> str:
    return " or ".join(repr(word) for word in words)


def _at(table: str) -> str:
    return f"[{table}] " if table else ""
