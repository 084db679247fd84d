"""Fuzzing of public functions and file readers: strategies of invalid inputs, and accepted errors.

For every input a call must return a result that passes a check, or raise an error that `is_refusal` accepts.
"""

import functools
import traceback
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pandas as pd
import torch
from hypothesis import strategies as st

import tl_steer as ts

PACKAGE = Path(ts.__file__).parent
REFUSALS = (TypeError, ValueError, IndexError, KeyError, OSError, ts.errors.JudgeError)


class RaisedInsideError(AssertionError):
    """Invalid input was not rejected by the package: the error comes from a library or from a type check."""


def raised_in(error: Exception) -> Path:
    """File of the line that raised an error."""
    return Path(traceback.extract_tb(error.__traceback__)[-1].filename)


def is_refusal(error: Exception) -> bool:
    """Whether an error is of a usual type, raised by a line of the package, with a message.

    Errors of the operating system that name a file count too, those of the tests' type checks do not.
    """
    if isinstance(error, OSError) and error.filename:
        return True
    in_package = raised_in(error).is_relative_to(PACKAGE)
    return isinstance(error, REFUSALS) and in_package and len(str(error).split()) > 2


def outcome(call: Callable[[], Any]) -> Any:
    """Result of a call, or `None` if it rejects its input."""
    try:
        return call()
    except Exception as error:
        if not is_refusal(error):
            raise RaisedInsideError(f"not a refusal: {type(error).__name__}: {error}") from error
        return None


def fuzz(
    inputs: st.SearchStrategy[Any],
    call: Callable[[Any], Any],
    check: Callable[[Any, Any], None],
    examples: int,
    folder: Path | None = None,
) -> None:
    """Call a function with many inputs; every result must pass `check(result, input)`.

    With a folder the inputs are bytes, and the function gets a file there, which it must not change.
    """
    checks = list(hypothesis.HealthCheck)

    @hypothesis.settings(max_examples=examples, print_blob=True, database=None, suppress_health_check=checks)
    @hypothesis.given(inputs)
    def run(value):
        if folder is None:
            result = outcome(lambda: call(value))
        else:
            file = folder / "input"
            file.write_bytes(value)
            result = outcome(lambda: call(file))
            assert [path.name for path in folder.iterdir()] == ["input"], "there is a new file"
            assert file.read_bytes() == value, "the file was changed"
        if result is not None:
            check(result, value)

    run()


# ---- plain values

STRANGE = [
    "", " ", "\x00", "\x1b[31m", "\u202e", "\ufeff", "\ud800", "\n", "\r", '"', "'", ",", "NA", "nan", "é",
    "🙂", "<b>", "{", "\\", "a" * 3000,
]  # fmt: skip
NUMBERS = [
    0, 1, 2, -1, 3, 10**6, -(10**9), 2**63, 10**400, 0.0, 0.5, -0.5, 1e308, 5e-324, float("nan"),
    float("inf"), float("-inf"), True,
]  # fmt: skip


def texts() -> st.SearchStrategy[str]:
    """Short texts of ordinary and strange pieces: control characters, halves of surrogate pairs, quotes."""
    return st.lists(st.sampled_from([*STRANGE, "a", "word", "1", "0"]), max_size=4).map("".join)


def numbers() -> st.SearchStrategy[Any]:
    """Numbers of any size, NaN, infinities and a Boolean."""
    return st.sampled_from(NUMBERS)


def plain_values() -> st.SearchStrategy[Any]:
    """Values of JSON and TOML, nested a little or, seldom, far too deeply."""
    leaves = st.one_of(numbers(), texts(), st.none())
    nested = st.recursive(
        leaves,
        lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(texts(), inner, max_size=3)),
        max_leaves=6,
    )
    deep = st.sampled_from([50, 300, 1200]).map(
        lambda depth: functools.reduce(lambda value, _: [value], range(depth), [])
    )
    return st.one_of(leaves, nested, nested, deep)


@st.composite
def one_changed(draw: st.DrawFn, value: Any, changes: st.SearchStrategy[Any] | None = None) -> Any:
    """A value of dictionaries and lists with one item in it removed, inserted or replaced."""
    path, inside = (), value
    while isinstance(inside, dict | list) and inside and draw(st.integers(0, 5)):
        key = draw(st.sampled_from(sorted(inside) if isinstance(inside, dict) else range(len(inside))))
        path, inside = (*path, key), inside[key]
    change = draw(st.sampled_from(["replace", "replace", "remove", "insert"]))
    present = sorted(inside) if isinstance(inside, dict) else []
    key = draw(st.one_of(texts(), st.sampled_from(present or ["a"])))
    return _changed(value, path, change, draw(plain_values() if changes is None else changes), key)


def _changed(value: Any, path: tuple, change: str, new: Any, key: str) -> Any:
    if not path:
        if change == "insert" and isinstance(value, dict):
            return {**value, key: new}
        return [*value, new] if change == "insert" and isinstance(value, list) else new
    first, *rest = path
    copy = dict(value) if isinstance(value, dict) else list(value)
    if change == "remove" and not rest:
        del copy[first]
    else:
        copy[first] = _changed(value[first], rest, change, new, key)
    return copy


# ---- bytes of a file

FILLINGS = [b"\x00", b"\xff" * 8, b"\xff\xfe", b"[" * 3000, b'"', b"\xed\xa0\x80", b"\x7f" + b"\xff" * 7]


def damaged(content: bytes) -> st.SearchStrategy[bytes]:
    """Bytes with up to three parts inserted, overwritten, removed or doubled, or the end cut off."""
    edits = st.tuples(
        st.floats(0, 1, exclude_max=True),
        st.sampled_from(["insert", "overwrite", "remove", "double", "cut"]),
        st.integers(1, 12),
        st.one_of(st.binary(min_size=1, max_size=8), st.sampled_from(FILLINGS)),
    )
    return st.lists(edits, min_size=1, max_size=3).map(
        lambda several: functools.reduce(_edited, several, content)
    )


def _edited(content: bytes, edit: tuple[float, str, int, bytes]) -> bytes:
    share, change, size, filling = edit
    offset = int(share * len(content))
    before, after = content[:offset], content[offset:]
    return {
        "insert": before + filling + after,
        "overwrite": before + filling + after[len(filling) :],
        "remove": before + after[size:],
        "double": before + after[:size] + after,
        "cut": before,
    }[change]


# ---- arguments

WORDS = ["resid_post", "attn_out", "resid_pre", "add", "x", "kind", "accuracy", "plus", "none", "a b"]
OTHER_TYPES = [
    None, 0, -1, 1.5, float("nan"), "", "x", b"x", [], [None], {}, {"a": 1}, (), object(),
    np.array([1.0, 2.0]), torch.tensor([1.0]), pd.DataFrame(), pd.Series([1]), {1, 2}, len,
]  # fmt: skip
LARGEST_COUNT = 50  # more splits, tokens or resamples take long without being wrong
SMALL_NUMBERS = st.sampled_from([number for number in NUMBERS if not abs(number) > LARGEST_COUNT])  # with NaN


def invalid(value: Any) -> st.SearchStrategy[Any]:
    """Replacements of a valid argument: mostly of the same type, with something wrong in them."""
    similar = same_type(value)
    return st.one_of(similar, similar, similar, st.sampled_from(OTHER_TYPES))


def same_type(value: Any) -> st.SearchStrategy[Any]:
    if isinstance(value, bool | int | float):
        return SMALL_NUMBERS
    if isinstance(value, str):
        return st.one_of(texts(), st.sampled_from(WORDS))
    if isinstance(value, pd.DataFrame):
        return tables(value)
    if isinstance(value, ts.PairedActivations):
        return activations(value)
    if isinstance(value, ts.SteeringVectors):
        return vectors(value)
    if isinstance(value, list | tuple) and value:
        return lists(value)
    if isinstance(value, Mapping) and value:
        return mappings(value)
    return st.sampled_from(OTHER_TYPES)


@st.composite
def lists(draw, value):
    """A list that is empty, reversed, or has an item doubled, removed or replaced."""
    change = draw(st.sampled_from(["empty", "double", "remove", "replace", "replace", "reverse"]))
    index = draw(st.integers(0, len(value) - 1))
    items = list(value)
    if change == "replace":
        items[index] = draw(invalid(items[index]))
    changed = {"empty": [], "double": [*items, items[index]], "remove": items[:-1], "reverse": items[::-1]}
    return type(value)(changed.get(change, items))


@st.composite
def mappings(draw, value):
    """A mapping that is empty, or has an item removed or its key or value replaced."""
    change = draw(st.sampled_from(["empty", "key", "value", "value", "remove"]))
    key = draw(st.sampled_from(list(value)))
    others = {name: item for name, item in value.items() if name != key}
    if change == "value":
        return others | {key: draw(invalid(value[key]))}
    if change == "key":
        new = draw(invalid(key).filter(lambda name: isinstance(name, str | int | float | None)))
        return others | {new: value[key]}
    return {} if change == "empty" else others


@st.composite
def tables(draw, value):
    """A table with a column removed, doubled, renamed or replaced, a changed cell, other rows or index."""
    writable = texts().map(lambda text: text.replace("\ud800", ""))  # half a surrogate pair has no bytes
    changes = ["drop", "drop", "cell", "cell", "cell", "column", "empty", "double row", "drop row", "index"]
    change = draw(st.sampled_from([*changes, "rename", "double", "object"]))
    column = draw(st.sampled_from(list(value)))
    row = draw(st.integers(0, len(value) - 1)) if len(value) else 0
    table = value.copy()
    if change in ("cell", "column"):
        missing_or_text = st.sampled_from([None, pd.NA, "1", "x", float("nan")])
        new = draw(st.one_of(SMALL_NUMBERS, writable, missing_or_text))
        cells = list(table[column].astype(object))
        cells = [new if change == "column" or i == row else cell for i, cell in enumerate(cells)]
        table[column] = pd.Series(cells, index=table.index, dtype=object)
        return table if draw(st.booleans()) else table.infer_objects()
    return {
        "drop": lambda: table.drop(columns=column),
        "object": lambda: table.astype(object),
        "empty": lambda: table.iloc[:0],
        "double row": lambda: pd.concat([table, table.iloc[[row]]]),
        "drop row": lambda: table.drop(index=table.index[row]) if len(table) else table,
        "index": lambda: table.set_index(pd.Index([7] * len(table))),
        "rename": lambda: table.rename(columns={column: draw(writable)}),
        "double": lambda: pd.concat([table, table[[column]]], axis=1),
    }[change]()


def accepted(*constructors: Callable[[], Any]) -> st.SearchStrategy[Any]:
    """Values whose own constructors do not reject them."""
    return st.sampled_from([value for each in constructors if (value := outcome(each)) is not None])


@functools.cache
def activations(value):
    """Activations that are NaN, infinite, huge, zero or equal, of few pairs, or without a factor."""

    def with_values(change):
        def side(one):
            values = one.values.clone()
            change(values)
            return replace(one, values=values)

        return lambda: replace(value, positive=side(value.positive), negative=side(value.negative))

    def factors(change):
        return lambda: replace(value, factors=change(value.factors))

    return accepted(
        *(with_values(lambda x, n=n: x[0, 0, 0, :1].fill_(n)) for n in (float("nan"), float("inf"), 3e38)),
        *(with_values(lambda x, n=n: x.fill_(n)) for n in (float("nan"), 0.0)),
        *(with_values(lambda x, n=n: x.mul_(n)) for n in (1e37, 1e-42)),
        *(functools.partial(value.subset, rows) for rows in ([0], [0] * 3, [0, 1], [])),
        lambda: value.swapped([True] * len(value)),
        factors(lambda table: table.drop(columns="topic")),
        factors(lambda table: table.assign(topic=None)),
        factors(lambda table: table.assign(group=0)),
    )


@functools.cache
def vectors(value):
    """Vectors that are zero, huge or tiny, of another hook, model or shape, or of fewer layers."""

    def other(**changes):
        return lambda: replace(value, **changes)

    return accepted(
        *(functools.partial(value.__mul__, factor) for factor in (0.0, 1e36, 1e-44)),
        other(hook="attn_out"),
        other(hook="nowhere"),
        lambda: value.weighted({1: 1.0}),
        lambda: value[1].at(layers=[3]),
        lambda: value[2],
        other(values=value.values[:, None].repeat(1, 2, 1)),
        other(identity=replace(value.identity, d_model=7)),
        other(identity=replace(value.identity, fingerprint=tuple(np.ones(256).tolist()))),
        other(stream_norm=torch.full_like(value.stream_norm, float("nan"))),
        other(stream_norm=torch.zeros_like(value.stream_norm)),
        other(values=value.values[:, :5]),
    )
