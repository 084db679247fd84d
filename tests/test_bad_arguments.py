"""Every public function with an argument or two spoiled: a result or a refusal, and its inputs as before."""

import copy
import functools
import tempfile
from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import strategies as st

import tl_steer as ts

from .bad_input import Target, numbers, outcome, texts, tried
from .public_calls import Materials, figure_calls, public_calls

WORDS = ["resid_post", "attn_out", "resid_pre", "add", "x", "kind", "accuracy", "plus", "none", "a b"]
OTHERS = [
    None,
    0,
    -1,
    1.5,
    float("nan"),
    "",
    "x",
    b"x",
    [],
    [None],
    {},
    {"a": 1},
    (),
    object(),
    np.array([1.0, 2.0]),
    torch.tensor([1.0]),
    pd.DataFrame(),
    pd.Series([1]),
    {1, 2},
    len,
]
LEFT = {
    "tokenizer",
    "client",
    "embedder",
    "out",
    "path",
    "cache",
    "it",
}
MOST = 50  # of counts: what takes long on purpose is no hang


def small_numbers():
    return numbers().filter(
        lambda number: (not MOST < abs(number) < 2**62 and abs(number) < 10**9) or number != number
    )


def spoiled(value: Any) -> st.SearchStrategy[Any]:
    """What may come in the place of a valid value: mostly of its own kind, with something wrong."""
    own = _of_its_kind(value)
    return st.one_of(own, own, own, st.sampled_from(OTHERS))


def _of_its_kind(value: Any) -> st.SearchStrategy[Any]:
    if isinstance(value, bool | int | float):
        return small_numbers()
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
    return st.sampled_from(OTHERS)


@st.composite
def lists(draw, value):
    """Empty, one thing twice, left out or spoiled, and the order exchanged."""
    kind = draw(st.sampled_from(["empty", "twice", "less", "spoil", "spoil", "reverse"]))
    place = draw(st.integers(0, len(value) - 1))
    items = list(value)
    if kind == "spoil":
        items[place] = draw(spoiled(items[place]))
    changed = {
        "empty": [],
        "twice": [*items, items[place]],
        "less": items[:-1],
        "spoil": items,
        "reverse": items[::-1],
    }
    return type(value)(changed[kind])


@st.composite
def mappings(draw, value):
    """Empty, a key or a value spoiled, one left out."""
    kind = draw(st.sampled_from(["empty", "key", "value", "value", "less"]))
    key = draw(st.sampled_from(list(value)))
    left = {name: each for name, each in value.items() if name != key}
    if kind == "value":
        return left | {key: draw(spoiled(value[key]))}
    if kind == "key":
        new = draw(spoiled(key).filter(lambda each: isinstance(each, str | int | float | None)))
        return left | {new: value[key]}
    return {} if kind == "empty" else left


@st.composite
def tables(draw, value):
    """A column left out, doubled, emptied or spoiled in one cell; rows left out or doubled; another index."""
    whole = texts().map(lambda text: text.replace("\ud800", ""))  # of which no table can be written
    kind = draw(
        st.sampled_from(
            [
                "drop",
                "drop",
                "cell",
                "cell",
                "cell",
                "column",
                "empty",
                "twice",
                "less",
                "index",
                "rename",
                "double",
                "object",
            ]
        )
    )
    column = draw(st.sampled_from(list(value)))
    row = draw(st.integers(0, len(value) - 1)) if len(value) else 0
    table = value.copy()
    if kind == "drop":
        return table.drop(columns=column)
    if kind in ("cell", "column"):
        new = draw(
            st.one_of(
                small_numbers().filter(lambda each: abs(each) < 2**62 or each != each),
                whole,
                st.sampled_from([None, pd.NA, "1", "x", float("nan")]),
            )
        )
        cells = list(table[column].astype(object))
        table[column] = pd.Series(
            [new if kind == "column" or place == row else each for place, each in enumerate(cells)],
            index=table.index,
            dtype=object,
        )
        return table if draw(st.booleans()) else table.infer_objects()
    if kind == "object":
        return table.astype(object)
    return {
        "empty": lambda: table.iloc[:0],
        "twice": lambda: pd.concat([table, table.iloc[[row]]]),
        "less": lambda: table.drop(index=table.index[row]) if len(table) else table,
        "index": lambda: table.set_index(pd.Index([7] * len(table))),
        "rename": lambda: table.rename(columns={column: draw(whole)}),
        "double": lambda: pd.concat([table, table[[column]]], axis=1),
    }[kind]()


def those_that_can_be_made(*makers):
    """Some values cannot be had at all, since their own kind refuses them."""
    made = [result for maker in makers if (result := outcome(maker)) is not None]
    return st.sampled_from(made)


@functools.cache
def activations(value):
    """Values that are NaN, infinite, huge, zero or alike; few pairs; a factor gone."""

    def with_values(change):
        def side(each):
            values = each.values.clone()
            change(values)
            return replace(each, values=values)

        return lambda: replace(value, positive=side(value.positive), negative=side(value.negative))

    def one(number):
        return with_values(lambda values: values[0, 0, 0, :1].fill_(number))

    def factors(change):
        return lambda: replace(value, factors=change(value.factors))

    return those_that_can_be_made(
        one(float("nan")),
        one(float("inf")),
        one(3e38),
        with_values(lambda values: values.fill_(float("nan"))),
        with_values(lambda values: values.fill_(0.0)),
        with_values(lambda values: values.mul_(1e37)),
        with_values(lambda values: values.mul_(1e-42)),
        *(functools.partial(value.subset, rows) for rows in ([0], [0] * 3, [0, 1], [])),
        lambda: value.swapped([True] * len(value)),
        factors(lambda table: table.drop(columns="topic")),
        factors(lambda table: table.assign(topic=None)),
        factors(lambda table: table.assign(group=0)),
    )


@functools.cache
def vectors(value):
    """Of length zero, huge, tiny; at another hook; of fewer layers; one a position; of another model."""

    def other(**changes):
        return lambda: replace(value, **changes)

    return those_that_can_be_made(
        lambda: value * 0.0,
        lambda: value * 1e36,
        lambda: value * 1e-44,
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


def same(a: Any, b: Any) -> bool:
    """Whether a value is as it was."""
    if isinstance(a, pd.DataFrame | pd.Series):
        return a.equals(b)
    if isinstance(a, torch.Tensor):
        return a.shape == b.shape and bool(torch.equal(a.nan_to_num(7), b.nan_to_num(7)))
    if isinstance(a, np.ndarray):
        return np.array_equal(a, b)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, Mapping):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if is_dataclass(a):
        return all(same(getattr(a, each.name), getattr(b, each.name)) for each in fields(a))
    return True


def finite(result: Any) -> bool:
    """Vectors are finite, however they were made."""
    if isinstance(result, ts.SteeringVectors | ts.SteeringVector):
        return bool(torch.isfinite(result.values).all())
    return all(map(finite, result.values())) if isinstance(result, dict) else True


HELD = tempfile.TemporaryDirectory()  # gone when this module is
FOLDER = Path(HELD.name)  # of what is written


@functools.cache
def calls():
    made = Materials()
    return public_calls(made, FOLDER) | {f"plots.{name}": call for name, call in figure_calls(made).items()}


def names():
    """Those with arguments to spoil."""
    return sorted(name for name, call in calls().items() if set(call.arguments) - LEFT)


@st.composite
def changed_arguments(draw, arguments):
    names = draw(
        st.lists(st.sampled_from(sorted(set(arguments) - LEFT)), min_size=1, max_size=2, unique=True)
    )
    return Changes({name: draw(spoiled(arguments[name])) for name in names})


class Changes(dict):
    """Arguments that are shown in a line."""

    def __repr__(self):
        return f"Changes({', '.join(f'{name}={each!r:.300}' for name, each in self.items())})"


def target(name):
    call = calls()[name]
    for value in call.arguments.values():  # made before anything is drawn
        _of_its_kind(value)

    def run(changes):
        for each in FOLDER.iterdir():
            each.unlink()
        given = call.arguments | changes
        before = {key: copied(value) for key, value in given.items()}
        try:
            return call(**changes)
        finally:
            wrong = [key for key, value in given.items() if not same(before[key], value)]
            assert not wrong, f"changed: {wrong}"
            assert not [each for each in FOLDER.iterdir() if each.name.startswith(".")], (
                "a file is left behind"
            )

    def check(result, changes):
        assert finite(result)

    return Target(changed_arguments(call.arguments), run, check)


def copied(value):
    return (
        copy.deepcopy(value)
        if isinstance(value, pd.DataFrame | list | dict | torch.Tensor | ts.PairedActivations)
        else value
    )


def test_the_calls_that_are_spoiled_are_valid():
    for call in calls().values():
        call()


@pytest.mark.parametrize("name", names())
def test_spoiled_arguments_give_a_result_or_a_refusal(name):
    tried(target(name), 2)


@pytest.mark.slow
@pytest.mark.parametrize("name", names())
def test_ten_thousand_spoiled_calls_give_a_result_or_a_refusal(name):
    tried(target(name), 100)
