"""Projections token by token, while a model reads the end of a prompt and writes on."""

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
import pandas as pd

from .._util.validation import checked, holds_numbers
from ..activations import Activations
from ..directions import SteeringVectors
from ..models import prompt_label
from ..prompts.pairs import group_numbers
from ..statistics import difference_interval, mean_interval, nested
from .along import along, shared_layers
from .token_texts import token_texts

VALUES = ("projection", "cosine")
PLACE = ["prompt_id", "layer", "position"]
LABELS = (*PLACE, "prompt", "token_id", "token", "difference", *VALUES)


@checked
def traces(
    activations: Activations,
    vectors: SteeringVectors,
    *,
    factors: pd.DataFrame | None = None,
    tokenizer: Any = None,
    window: tuple[int, int] | None = None,
) -> pd.DataFrame:
    """Projection and cosine of every captured token on the vector of each layer.

    Args:
        activations: of many positions, such as `capture(…, positions=all_tokens(), max_new_tokens=20)`.
        vectors: for some of the same layers, at the same hook. Their length does not matter.
        factors: a row a prompt, to compare kinds of prompts by.
        tokenizer: `model.tokenizer`, to show the tokens as text.
        window: the first and the last position kept, such as `(-10, 15)`; by default all.

    Returns:
        A row a prompt, shared layer and token: prompt_id (its place among the activations), prompt, label
        (its message, where it was rendered from one), the factors, layer, position, token_id, token (as text,
        without a tokenizer the id), projection (x · d, d the unit direction, in the stream's units) and
        cosine. Positions count from the prompt's end: −1 is
        its last token, 0 the first new one, so that prompts of unequal length lie end to end.

    Raises:
        ModelMismatchError: the vectors belong to another model.
        ValueError: no layer in common, another hook, one vector a position, a vector of length zero, factors
            that do not fit, or no token in the window.

    The prompt's first token often holds a stream a hundred times longer than the others: for colours of
    projections, leave it out of the window. The last new token was never fed back and has no row.
    """
    layers = shared_layers(activations, vectors)
    directions = vectors.normalized()
    if factors is not None:
        _require_factors(factors, len(activations))
    tables = []
    for layer in layers:
        place = activations.layers.index(layer)
        if not tables or activations.token_index.ndim == 3:
            rows, slots, labels = _tokens(activations, place, factors, tokenizer, window)
        stream = activations.values[rows, place, slots].double().numpy()
        tables.append(labels.assign(layer=layer).join(along(stream, directions[layer])))
    table = pd.concat(tables).sort_values(PLACE, ignore_index=True)
    names = [name for name in table if name not in (*LABELS, "layer")]
    return table[["prompt_id", "prompt", *names, "layer", "position", "token_id", "token", *VALUES]]


@checked
def trace_difference(first: pd.DataFrame, second: pd.DataFrame) -> pd.DataFrame:
    """`first` minus `second`, token by token: two tables of `traces` over the same tokens.

    Args:
        first: such as a steered run.
        second: such as the unsteered model's, which read the same: `completions=steered.completion_tokens`.

    Returns:
        The rows of `first`, with the differences in `projection` and `cosine`, and `difference` True.

    Raises:
        ValueError: the tables hold other prompts, layers, positions or tokens.
    """
    for table in (first, second):
        _require_traces(table)
    first, second = (_unlike(table.sort_values(PLACE, ignore_index=True), PLACE) for table in (first, second))
    if not first[PLACE].equals(second[PLACE]):
        raise ValueError(
            f"the tables differ in their prompts, layers or positions ({len(first)} and {len(second)} rows): "
            "capture both with the same prompts, layers and positions, and let the second run read what the "
            "first wrote: capture(…, completions=first_activations.completion_tokens)."
        )
    other = first["token_id"] != second["token_id"]
    if other.any():
        row = int(other.argmax())
        tokens = first["token"][row], second["token"][row]
        raise ValueError(
            f"the tables hold other tokens: at position {first['position'][row]} of prompt "
            f"{first['prompt_id'][row]}, {tokens[0]!r} and {tokens[1]!r}. Let the second run read what the "
            "first wrote: capture(…, completions=first_activations.completion_tokens)."
        )
    return first.assign(**{value: first[value] - second[value] for value in VALUES}, difference=True)


@checked
def mean_traces(
    table: pd.DataFrame,
    *,
    by: str,
    difference: Sequence[Hashable] | None = None,
    pair: str | None = None,
) -> pd.DataFrame:
    """Mean projection and cosine over prompts, at each layer and position, for each level of a factor.

    Args:
        table: what `traces` or `trace_difference` makes; or several in one (`pandas.concat`), told apart by a
            column of their own.
        by: the factor.
        difference: two of its levels, such as `("honest", "dishonest")`: rows of their difference follow, as
            the level "honest − dishonest".
        pair: a column that says which prompt of the one level belongs to which of the other ("prompt_id"
            where the same prompts were run twice): the difference is then taken within pairs, at the
            positions that both prompts of a pair have. By default the levels are independent samples, but for
            the prompts that share a value of the factor `group`.

    Returns:
        A row a level (as text), layer and position: difference (whether the values are differences), n
        (prompts; of a difference, pairs, or the prompts of the smaller side), the commonest token there and
        its share of the prompts, and projection and cosine with 95 % intervals in `…_low` and `…_high`:
        Student's t, and for independent levels Welch's, groups whole (`statistics.mean_interval`).

    Raises:
        ValueError: a column is missing, a level is unknown, a prompt is in a level twice, or a pair has not
            one prompt on each side, or no pair a position in both.

    Each interval holds for one cell by itself: of many cells, one in twenty misses. Texts end at different
    lengths, so later positions are means over fewer prompts, and other ones; below two there is no interval.

    Source: Welch 1947, Biometrika 34, 28–35.
    """
    _require_traces(table)
    needed = [by, *PLACE, "token", *VALUES, *([pair] if pair else [])]
    if missing := [column for column in needed if column not in table]:
        raise ValueError(f"the table lacks the columns {missing}: it has {list(table.columns)}.")
    bounds = [f"{value}{end}" for value in VALUES for end in ("", "_low", "_high")]
    results = ["layer", "position", "difference", "n", "token", "token_share", *bounds]
    if by in results:
        raise ValueError(f"by={by!r} is the name of a result: rename this factor first.")
    table = _unlike(table.astype({by: str}), list(dict.fromkeys([by, *PLACE])))
    levels = {str(level): rows for level, rows in table.groupby(by, sort=False)}
    parts = {level: _means(rows).assign(difference=_is_difference(rows)) for level, rows in levels.items()}
    if difference is not None:
        if len(difference) != 2:
            raise ValueError(f"difference={difference!r}: name two levels, the first minus the second.")
        sides = [_level(levels, by, str(level)) for level in difference]
        name = " − ".join(map(str, difference))
        compared = _paired(*sides, pair) if pair else _independent(*sides)
        parts[name] = compared.assign(difference=True)
    means = pd.concat([part.reset_index()[results] for part in parts.values()], ignore_index=True)
    means.insert(0, by, np.repeat([*parts], [len(part) for part in parts.values()]))
    return means


def _tokens(
    activations: Activations,
    place: int,
    factors: pd.DataFrame | None,
    tokenizer: Any,
    window: tuple[int, int] | None,
) -> tuple[np.ndarray, np.ndarray, pd.DataFrame]:
    """Which prompt and slot each kept token of a layer has, and what a row says of it."""
    index, tokens = (each.numpy() for each in activations.at_layer(place))
    position = np.where(index >= 0, index - activations.prompt_lengths.numpy()[:, None], np.nan)
    first, last = (-np.inf, np.inf) if window is None else window
    rows, slots = ((position >= first) & (position <= last)).nonzero()
    if not len(rows):
        held = f"{np.nanmin(position):g} to {np.nanmax(position):g}" if (index >= 0).any() else "none"
        layer = f" at layer {activations.layers[place]}" * (activations.token_index.ndim == 3)
        raise ValueError(f"no token in the window {window}{layer}; captured positions: {held}.")
    ids = tokens[rows, slots]
    different, which = np.unique(ids, return_inverse=True)
    texts = np.array(token_texts(tokenizer, different.tolist()), dtype=object)
    labels = pd.DataFrame(
        {
            "prompt_id": rows,
            "prompt": np.array([*map(str, activations.prompts)], dtype=object)[rows],
            "label": np.array([*map(prompt_label, activations.prompts)], dtype=object)[rows],
            "position": position[rows, slots].astype(int),
            "token_id": ids,
            "token": texts[which],
        }
    )
    if factors is not None:
        labels = labels.drop(columns=list({"label"} & set(factors))).join(
            factors.iloc[rows].reset_index(drop=True)
        )
    return rows, slots, labels


def _require_factors(factors: pd.DataFrame, prompts: int) -> None:
    if len(factors) != prompts:
        raise ValueError(f"{len(factors)} rows of factors for {prompts} prompts: give one for each.")
    taken = sorted(set(factors.columns) & set(LABELS))
    if taken:
        raise ValueError(f"the factors {taken} have the name of another column of the table: rename them.")


def _require_traces(table: pd.DataFrame) -> None:
    """Refuse a table that is not one of `traces`: a column that is not there once, or holds no numbers."""
    wanted = [*PLACE, "token_id", "token", *VALUES]
    if table.empty:
        raise ValueError("the table of traces has no rows.")
    if wrong := [name for name in wanted if list(table.columns).count(name) != 1]:
        raise ValueError(
            f"a table of traces needs one column each of {wrong}; it has {list(table.columns)}: give what "
            "traces makes."
        )
    numbers = [name for name in wanted if name != "token"]
    if wrong := [name for name in numbers if not holds_numbers(table[name])]:
        raise ValueError(f"the columns {wrong} do not hold numbers alone: give the table that traces makes.")


def _unlike(table: pd.DataFrame, place: list[str]) -> pd.DataFrame:
    """The table, if no two rows have the same place."""
    again = table.duplicated(place)
    if again.any():
        row = table[again].iloc[0]
        raise ValueError(
            f"prompt {row['prompt_id']} is twice at layer {row['layer']}, position {row['position']}: "
            "several tables in one need a column that tells them apart, to be given as by=…."
        )
    return table


def _level(levels: dict[str, pd.DataFrame], by: str, level: str) -> pd.DataFrame:
    if level not in levels:
        raise ValueError(f"{by!r} has no level {level!r}; it has {', '.join(levels)}.")
    return levels[level]


def _is_difference(rows: pd.DataFrame) -> bool:
    return "difference" in rows and bool(rows["difference"].eq(True).all())


def _means(rows: pd.DataFrame) -> pd.DataFrame:
    """By layer and position: n, tokens, and each value with Student's t interval."""
    grouped = rows.groupby(["layer", "position"])
    found = pd.DataFrame({"n": grouped.size()}).join(_commonest(rows), on="position")
    samples = _samples_and_groups(grouped)
    for value in VALUES:
        ends = mean_interval(rows[value].to_numpy(float), *samples)
        found[[value, f"{value}_low", f"{value}_high"]] = np.stack(ends, 1)
    return found


def _paired(first: pd.DataFrame, second: pd.DataFrame, pair: str) -> pd.DataFrame:
    """`_means` of the differences within pairs."""
    place = [pair, "layer", "position"]
    for side in (first, second):
        if side.groupby(pair)["prompt_id"].nunique().max() > 1:
            raise ValueError(f"{pair!r} does not pair the prompts: a level has several prompts of one value.")
    if set(first[pair]) != set(second[pair]):
        raise ValueError(f"{pair!r} does not pair the prompts: a value of it is in one level only.")
    columns = list(dict.fromkeys([*place, "prompt_id", "token", *VALUES, *({"group"} & set(first))]))
    first, second = first[columns], second[columns]
    both = first.merge(second, on=place, suffixes=("", "_second"))
    if both.empty:
        raise ValueError("no pair has a layer and position in both of its prompts: nothing can be compared.")
    differences = both.assign(**{value: both[value] - both[f"{value}_second"] for value in VALUES})
    tokens = pd.concat([both, both.assign(token=both["token_second"])])
    return _means(differences).drop(columns=["token", "token_share"]).join(_commonest(tokens), on="position")


def _independent(first: pd.DataFrame, second: pd.DataFrame) -> pd.DataFrame:
    """By layer and position: the difference of the sides' means, with Welch's interval."""
    counts = [side.groupby(["layer", "position"]).size() for side in (first, second)]
    counts = pd.concat(counts, axis=1, join="inner")
    both = pd.concat([first, second], ignore_index=True)
    found = pd.DataFrame({"n": counts.min(axis=1)}).join(_commonest(both), on="position")
    grouped = both.groupby(["layer", "position"])
    samples = _samples_and_groups(grouped)
    is_first = np.arange(len(both)) < len(first)
    for value in VALUES:
        sides = [both[value].where(side).to_numpy(float) for side in (is_first, ~is_first)]
        ends = pd.DataFrame(np.stack(difference_interval(*sides, *samples), 1), grouped.size().index)
        found[[value, f"{value}_low", f"{value}_high"]] = ends.loc[found.index].to_numpy()
    return found


def _samples_and_groups(grouped: "pd.api.typing.DataFrameGroupBy") -> tuple[np.ndarray, np.ndarray]:
    """Number of each row's layer and position, and of its prompt's group there."""
    sample = grouped.ngroup().to_numpy()
    return sample, nested(sample, group_numbers(grouped.obj))


def _commonest(rows: pd.DataFrame) -> pd.DataFrame:
    """By position: the commonest token, and its share of the prompts."""
    rows = rows[rows["layer"] == rows["layer"].iloc[0]]
    counts = rows.groupby(["position", "token"]).size().reset_index(name="count")
    counts["token_share"] = counts["count"] / counts.groupby("position")["count"].transform("sum")
    ordered = counts.sort_values(["position", "count"], ascending=[True, False], kind="stable")
    return ordered.drop_duplicates("position").set_index("position")[["token", "token_share"]]
