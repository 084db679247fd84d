"""Projections token by token, over the end of a prompt and the generated text."""

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Int

from .._util.validation import checked
from ..activations import Activations
from ..directions import SteeringVectors
from ..models import prompt_label
from ..prompts.pairs import group_numbers
from ..statistics import difference_interval, mean_interval, nested
from ..tables import validated
from ._projections import VALUES, projected, require_unused, shared_layers, token_texts

TOKEN_KEYS = ["prompt_id", "layer", "position"]
POSITION_KEYS = ["layer", "position"]
LABELS = (*TOKEN_KEYS, "prompt", "token_id", "token", "difference", *VALUES)
RESULTS = [
    "layer", "position", "difference", "n", "token", "token_share",
    *(f"{value}{end}" for value in VALUES for end in ("", "_low", "_high")),
]  # fmt: skip


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
        factors: one row per prompt, to compare types of prompts by.
        tokenizer: `model.tokenizer`, to show the tokens as text.
        window: the first and the last position kept, such as `(-10, 15)`; by default all.

    Returns:
        One row per prompt, shared layer and token: prompt_id (its index among the activations), prompt, label
        (its message, where it was rendered from one), the factors, layer, position, token_id, token (as text,
        without a tokenizer the id), projection (x · d, d the unit direction, in units of the residual stream)
        and cosine. Positions count from the prompt's end: −1 is its last token, 0 the first new one, so that
        prompts of unequal length are aligned.

    Raises:
        ModelMismatchError: the vectors belong to another model.
        ValueError: as for `projections`, or factors that do not fit, or no token in the window.

    The norm at a prompt's first token is often a hundred times larger than at the others: for colours of
    projections, leave it out of the window. The last new token was never fed back and has no row.
    """
    layers = shared_layers(activations, vectors)
    directions = vectors.normalized()
    if factors is not None and len(factors) != len(activations):
        raise ValueError(f"{len(factors)} rows of factors for {len(activations)} prompts: give one for each.")
    prompts = pd.DataFrame({"prompt": list(map(str, activations.prompts))})
    if factors is not None:
        require_unused(factors, LABELS)
        prompts = prompts.join(factors.reset_index(drop=True))
    if "label" not in prompts:
        prompts.insert(1, "label", list(map(prompt_label, activations.prompts)))
    tables = []
    for layer in layers:
        index = activations.layers.index(layer)
        if not tables or activations.token_index.ndim == 3:
            rows, slots, tokens = _tokens(activations, index, tokenizer, window)
        values = activations.values[rows, index, slots].double().numpy()
        tables.append(tokens.assign(layer=layer).join(projected(values, directions[layer])))
    table = pd.concat(tables).sort_values(TOKEN_KEYS, ignore_index=True)
    table = table.join(prompts, on="prompt_id")
    return table[["prompt_id", *prompts, "layer", "position", "token_id", "token", *VALUES]]


@checked
def trace_difference(first: pd.DataFrame, second: pd.DataFrame) -> pd.DataFrame:
    """`first` minus `second`, token by token: two tables of `traces` over the same tokens.

    Args:
        first: such as a steered run.
        second: such as the unsteered model on the same text: `completions=steered.completion_tokens`.

    Returns:
        The rows of `first`, with the differences in `projection` and `cosine`, and `difference` True.

    Raises:
        ValueError: the tables have different prompts, layers, positions or tokens.
    """
    for table in (first, second):
        validated(table, *TOKEN_KEYS, "token_id", "token", *VALUES, producer="traces")
        _require_unique(table, TOKEN_KEYS)
    first, second = (table.sort_values(TOKEN_KEYS, ignore_index=True) for table in (first, second))
    remedy = "let the second run read the first's text: capture(…, completions=first.completion_tokens)."
    if not first[TOKEN_KEYS].equals(second[TOKEN_KEYS]):
        raise ValueError(
            f"the tables differ in their prompts, layers or positions ({len(first)} and {len(second)} rows): "
            f"capture both with the same prompts, layers and positions, and {remedy}"
        )
    if len(other := first[first["token_id"] != second["token_id"]]):
        row = other.iloc[0]
        raise ValueError(
            f"the tables have different tokens: at position {row['position']} of prompt {row['prompt_id']}, "
            f"{row['token']!r} and {second['token'][other.index[0]]!r}: {remedy}"
        )
    return first.assign(**{value: first[value] - second[value] for value in VALUES}, difference=True)


@checked
def mean_traces(
    table: pd.DataFrame, *, by: str, difference: Sequence[Hashable] | None = None, pair: str | None = None
) -> pd.DataFrame:
    """Mean projection and cosine over prompts, per layer and position, for each level of a factor.

    Args:
        table: from `traces` or `trace_difference`; or several in one (`pandas.concat`), with `by` different.
        by: the factor.
        difference: two of its levels, such as `("honest", "dishonest")`: rows of their difference follow, as
            the level "honest − dishonest".
        pair: a column that pairs the prompts of one level with those of the other ("prompt_id" where the same
            prompts were run twice): the difference is then taken within pairs, at positions that both prompts
            have. By default the levels are independent samples, but for prompts of the same `group`.

    Returns:
        One row per level (as text), layer and position: difference (whether the values are differences), n
        (prompts; of a difference, pairs, or the prompts of the smaller side), the commonest token there and
        its share of the prompts, and projection and cosine with 95 % intervals in `…_low` and `…_high`:
        Student's t, and for independent levels Welch's, groups whole (`statistics.mean_interval`).

    Raises:
        ValueError: a level is unknown, a prompt is in a level twice, a pair has not one prompt on each side,
            or no pair has a position in both.

    Each interval holds for one row by itself: of many rows, one in twenty misses. Texts end at different
    lengths, so later positions are means over fewer and other prompts; below two there is no interval.

    Source: Welch 1947, Biometrika 34, 28–35.
    """
    factors = [by, pair] if pair else [by]
    validated(table, *TOKEN_KEYS, "token_id", "token", *VALUES, producer="traces", factors=factors)
    require_unused([by], RESULTS)
    is_difference = table["difference"].eq(True) if "difference" in table else False
    table = table.assign(difference=is_difference).astype({by: str})
    _require_unique(table, list(dict.fromkeys([by, *TOKEN_KEYS])))
    levels = {str(level): rows for level, rows in table.groupby(by, sort=False)}
    parts = {level: _means(rows).assign(difference=all(rows["difference"])) for level, rows in levels.items()}
    if difference is not None:
        if len(difference) != 2:
            raise ValueError(f"difference={difference!r}: name two levels, the first minus the second.")
        if unknown := [level for level in map(str, difference) if level not in levels]:
            raise ValueError(f"{by!r} has no level {unknown[0]!r}; it has {', '.join(levels)}.")
        sides = [levels[str(level)] for level in difference]
        compared = _paired(*sides, pair) if pair else _independent(*sides)
        parts[" − ".join(map(str, difference))] = compared.assign(difference=True)
    means = pd.concat([part.reset_index()[RESULTS] for part in parts.values()], ignore_index=True)
    means.insert(0, by, np.repeat([*parts], [len(part) for part in parts.values()]))
    return means


def _tokens(
    activations: Activations, index: int, tokenizer: Any, window: tuple[int, int] | None
) -> tuple[Int[np.ndarray, " token"], Int[np.ndarray, " token"], pd.DataFrame]:
    """Prompt, index on the position axis, and labels of each token of a layer in the window."""
    token_index, tokens = (each.numpy() for each in activations.at_layer(index))
    position = token_index - activations.prompt_lengths.numpy()[:, None]
    known = token_index >= 0
    first, last = window or (-np.inf, np.inf)
    rows, slots = (known & (position >= first) & (position <= last)).nonzero()
    if not len(rows):
        captured = f"{position[known].min()} to {position[known].max()}" if known.any() else "none"
        layer = f" at layer {activations.layers[index]}" * (activations.token_index.ndim == 3)
        raise ValueError(f"no token in the window {window}{layer}; captured positions: {captured}.")
    ids, inverse = np.unique(tokens[rows, slots], return_inverse=True)
    texts = np.array(token_texts(tokenizer, ids.tolist()), dtype=object)
    labels = {"prompt_id": rows, "position": position[rows, slots], "token_id": ids[inverse]}
    return rows, slots, pd.DataFrame(labels).assign(token=texts[inverse])


def _require_unique(table: pd.DataFrame, keys: list[str]) -> None:
    """Raise if two rows have the same keys."""
    if len(again := table[table.duplicated(keys)]):
        row = again.iloc[0]
        raise ValueError(
            f"prompt {row['prompt_id']} is twice at layer {row['layer']}, position {row['position']}: "
            "several tables in one need a column that tells them apart, to be given as by=…."
        )


def _means(rows: pd.DataFrame, is_first: Bool[np.ndarray, " row"] | None = None) -> pd.DataFrame:
    """By layer and position: n, tokens, and each value with Student's t interval.

    With `is_first`, the values are means of these rows minus means of the others, with Welch's interval.
    """
    grouped = rows.groupby(POSITION_KEYS)
    means = pd.DataFrame({"n": grouped.size()}).join(_commonest(rows), on="position")
    sample = grouped.ngroup().to_numpy()
    group = nested(sample, group_numbers(rows))
    for value in VALUES:
        values = rows[value].to_numpy(float)
        if is_first is None:
            ends = mean_interval(values, sample, group)
        else:
            sides = (np.where(side, values, np.nan) for side in (is_first, ~is_first))
            ends = difference_interval(*sides, sample, group)
        means[[value, f"{value}_low", f"{value}_high"]] = np.stack(ends, 1)
    return means


def _paired(first: pd.DataFrame, second: pd.DataFrame, pair: str) -> pd.DataFrame:
    """`_means` of the differences within pairs."""
    for side in (first, second):
        if side.groupby(pair)["prompt_id"].nunique().max() > 1:
            raise ValueError(f"{pair!r} does not pair the prompts: a level has several prompts of one value.")
    if set(first[pair]) != set(second[pair]):
        raise ValueError(f"{pair!r} does not pair the prompts: a value of it is in one level only.")
    keys = [pair, *POSITION_KEYS]
    columns = list(dict.fromkeys([*keys, "prompt_id", "token", *VALUES, *({"group"} & set(first))]))
    both = first[columns].merge(second[columns], on=keys, suffixes=("", "_second"))
    if both.empty:
        raise ValueError("no pair has a layer and position in both of its prompts: nothing can be compared.")
    differences = both.assign(**{value: both[value] - both[f"{value}_second"] for value in VALUES})
    tokens = pd.concat([both, both.assign(token=both["token_second"])])
    return _means(differences).drop(columns=["token", "token_share"]).join(_commonest(tokens), on="position")


def _independent(first: pd.DataFrame, second: pd.DataFrame) -> pd.DataFrame:
    """`_means` of the difference of two samples, where both have rows."""
    counts = [side.groupby(POSITION_KEYS).size() for side in (first, second)]
    counts = pd.concat(counts, axis=1, join="inner").min(axis=1)
    both = pd.concat([first, second], ignore_index=True)
    return _means(both, np.arange(len(both)) < len(first)).loc[counts.index].assign(n=counts)


def _commonest(rows: pd.DataFrame) -> pd.DataFrame:
    """By position: the commonest token, and its share of the prompts."""
    rows = rows[rows["layer"] == rows["layer"].iloc[0]]
    counts = rows.groupby(["position", "token"]).size().reset_index(name="count")
    counts["token_share"] = counts["count"] / counts.groupby("position")["count"].transform("sum")
    ordered = counts.sort_values(["position", "count"], ascending=[True, False], kind="stable")
    return ordered.drop_duplicates("position").set_index("position")[["token", "token_share"]]
