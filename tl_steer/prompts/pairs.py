"""Contrast pairs, two prompts that should differ in one thing only, and an audit of what else differs."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Int

from .._util.validation import checked, short_repr
from ..statistics import standardised_difference

SIDES = ("positive", "negative")
Rows = Iterable[Any]  # indices, or a mask: a list, an array, a column


@checked
@dataclass(frozen=True, eq=False)
class ContrastPairs:
    """Positive and negative prompts, pair by pair.

    Attributes:
        positive, negative: the two sides, as text. A `ChatPrompt` keeps the message that it is made of.
        factors: one row per pair. A factor that differs between the sides has two columns (`letter_positive`,
            `letter_negative`); `group` names what a split keeps together. Without a column `group`, each
            pair is a group of its own, except that copies of a pair share one.

    Raises:
        ValueError: no pairs, unequal numbers, an empty prompt, or factors of another length.
    """

    positive: Sequence[str]
    negative: Sequence[str]
    factors: pd.DataFrame | None = None

    def __post_init__(self) -> None:
        positive, negative = (tuple(getattr(self, side)) for side in SIDES)
        count = len(positive)
        if count != len(negative):
            raise ValueError(f"{count} positive and {len(negative)} negative prompts: give as many of each.")
        if not count:
            raise ValueError("no pairs given; pass at least one positive and one negative prompt.")
        for side, prompts in zip(SIDES, (positive, negative), strict=True):
            if empty := [row for row, prompt in enumerate(prompts) if not prompt.strip()]:
                raise ValueError(f"{side} prompt {empty[0]} is empty.")
        factors = pd.DataFrame(index=range(count)) if self.factors is None else self.factors
        if len(factors) != count:
            raise ValueError(f"{len(factors)} rows of factors for {count} pairs: expected one row per pair.")
        factors = factors.reset_index(drop=True)
        if "group" not in factors:
            pairs = pd.Series(list(zip(positive, negative, strict=True)))
            factors["group"] = pd.factorize(pairs)[0]
        for name, value in (("positive", positive), ("negative", negative), ("factors", factors)):
            object.__setattr__(self, name, value)

    def __len__(self) -> int:
        return len(self.positive)

    __repr__ = short_repr

    @checked
    def subset(self, rows: Rows) -> "ContrastPairs":
        """Some of the pairs: `rows` as indices from 0, in the order given, or as a mask."""
        rows = row_numbers(rows, len(self))
        return ContrastPairs(
            [self.positive[row] for row in rows],
            [self.negative[row] for row in rows],
            self.factors.iloc[rows],
        )


@checked
def contrast_pairs(
    positive: Sequence[str], negative: Sequence[str], *, factors: pd.DataFrame | None = None
) -> ContrastPairs:
    """Pair the prompts of two lists, in order.

    Args:
        positive, negative: as many of each.
        factors: one row per pair; see `ContrastPairs`.

    Raises:
        ValueError: as `ContrastPairs`.
    """
    return ContrastPairs(positive, negative, factors)


def truth_labels(labels: pd.Series) -> pd.Series:
    """Labels as 1 and 0, from numbers, booleans, or "true" and "false" in any case; NaN for anything else."""
    texts = labels.astype(str).str.strip().str.casefold().replace({"true": "1", "false": "0"})
    numbers = pd.to_numeric(texts, errors="coerce")
    return numbers.where(numbers.isin([0, 1]))


def checked_columns(table: pd.DataFrame, name: str, *texts: str, label: bool = False) -> None:
    """Raise `ValueError` unless the table that `read_{name}` returns has each column once, with texts."""
    columns = [*texts, "label"] if label else list(texts)
    if missing := [column for column in columns if list(table.columns).count(column) != 1]:
        raise ValueError(
            f"{name} need one column each of {missing}; they have {list(table.columns)}: "
            f"read them with read_{name}."
        )
    for column in texts:
        if wrong := [text for text in table[column] if not isinstance(text, str) or not text.strip()]:
            raise ValueError(f"{name}: {column} must be text that is not empty; got {wrong[0]!r:.60}.")


def checked_labels(table: pd.DataFrame, name: str, text: str) -> pd.Series:
    """The labels of texts as 1 and 0, after `checked_columns`."""
    checked_columns(table, name, text, label=True)
    if (labels := truth_labels(table["label"])).isna().any():
        raise ValueError(f"{name}: labels must be 1 or 0; got {table['label'].unique().tolist()!r:.100}.")
    return labels.astype(int)


def row_numbers(rows: Rows, count: int) -> list[int]:
    """Indices of the selected rows, from indices or a mask of `count` rows.

    Raises:
        ValueError: a mask of another length, or values other than whole numbers.
        IndexError: a row that does not exist.
    """
    values = rows.tolist() if hasattr(rows, "tolist") else list(rows)
    is_bool = [isinstance(each, bool | np.bool_) for each in values]
    if values and all(is_bool):
        if len(values) != count:
            raise ValueError(f"{len(values)} times true or false for {count} rows: give one for each.")
        return np.flatnonzero(values).tolist()
    if any(is_bool) or not all(isinstance(each, Integral) for each in values):
        raise ValueError(f"rows are whole numbers, or true and false per row; got {values!r:.60}.")
    if outside := [each for each in values if not -count <= each < count]:
        raise IndexError(f"there is no row {outside[0]}: there are {count}, counted from 0.")
    return list(map(int, values))


def group_numbers(factors: pd.DataFrame) -> Int[np.ndarray, " pair"]:
    """The group of each pair, from 0; without a column "group" each pair is its own."""
    if "group" not in factors:
        return np.arange(len(factors))
    return pd.factorize(factors["group"], sort=True, use_na_sentinel=False)[0]


def sided_factors(factors: pd.DataFrame) -> list[str]:
    """Names of the factors that have a column per side, `name_positive` and `name_negative`."""
    columns = list(map(str, factors.columns))
    names = [name.removesuffix("_positive") for name in columns if name.endswith("_positive")]
    return [name for name in names if f"{name}_negative" in columns]


def factors_by_side(factors: pd.DataFrame) -> Iterator[tuple[str, list, list]]:
    """Each factor but the group: its name, and its values on the positive and on the negative side."""
    sided = sided_factors(factors)
    for column in factors.columns:
        name, _, side = str(column).rpartition("_")
        if name in sided and side == "positive":
            yield name, factors[column].tolist(), factors[f"{name}_negative"].tolist()
        elif not (name in sided and side == "negative") and column != "group":
            yield str(column), factors[column].tolist(), factors[column].tolist()


MAX_LEVELS = 20
LAST_TOKEN = "last token"
LIMIT = 0.1  # Austin 2009: below a tenth of a standard deviation two groups count as balanced


@checked
def audit(pairs: ContrastPairs, *, tokenizer: Any = None) -> pd.DataFrame:
    """Which factors differ between the positive and the negative side, and so may enter a vector.

    Args:
        pairs: with their factors; `letter_positive` and `letter_negative` are the letter on either side.
        tokenizer: to count tokens too, and to compare the last ones.

    Returns:
        One row per factor and level: factor, level, positive, negative (counts; means for length in
        characters and tokens), difference (standardised: in pooled standard deviations), differs
        (|difference| > 0.1). Factors of more than 20 levels (a topic) are left out.

        Of the factor "last token" the levels are the tokens at which `last_token()` reads; without a
        tokenizer, the last words or punctuation marks. More than 20 of them are one row, "commoner on the
        positive side", which counts the prompts on either side that end in such a token.

        "repeated text" counts the prompts whose text occurs again on the "same side" or on "both sides".
        It has no difference, and without any such prompt no row.

    Source: standardised differences as a measure of balance, Austin 2009 (Statistics in Medicine 28:3083).
    """
    rows = [
        row
        for factor, positive, negative in factors_by_side(pairs.factors)
        if len({*positive, *negative}) <= MAX_LEVELS
        for row in _level_rows(factor, positive, negative)
    ]
    sides = (pairs.positive, pairs.negative)
    if tokenizer is None:
        last = [[(re.findall(r"\w+|[^\w\s]", text) or [""])[-1] for text in side] for side in sides]
    else:
        ids = [[tokenizer(text, add_special_tokens=False)["input_ids"] for text in side] for side in sides]
        decoded = [[tokenizer.decode(each[-1:]) for each in side] for side in ids]
        last = [[token if token.strip() else repr(token) for token in side] for side in decoded]
    rows += _last_token_rows(*last) + _repeat_rows(sides)
    rows.append(_length_row("length (characters)", sides))
    if tokenizer is not None:
        rows.append(_length_row("tokens", ids))
    table = pd.DataFrame(rows, columns=["factor", "level", "positive", "negative", "difference"])
    return table.assign(differs=table["difference"].abs() > LIMIT)


def _level_rows(factor: str, positive: Sequence, negative: Sequence) -> list[tuple]:
    levels = sorted({*positive, *negative}, key=str)
    return [_count_row(factor, str(level), {level}, positive, negative) for level in levels]


def _last_token_rows(positive: Sequence[str], negative: Sequence[str]) -> list[tuple]:
    if len({*positive, *negative}) <= MAX_LEVELS:
        return _level_rows(LAST_TOKEN, positive, negative)
    commoner = set(Counter(positive) - Counter(negative))
    return [_count_row(LAST_TOKEN, "commoner on the positive side", commoner, positive, negative)]


def _repeat_rows(sides: Sequence[Sequence[str]]) -> list[tuple]:
    texts = [[" ".join(text.split()) for text in side] for side in sides]
    counts = [Counter(side) for side in texts]
    same = [sum(count[text] > 1 for text in side) for side, count in zip(texts, counts, strict=True)]
    both = [sum(text in count for text in side) for side, count in zip(texts, counts[::-1], strict=True)]
    rows = [("repeated text", "same side", *same, np.nan), ("repeated text", "both sides", *both, np.nan)]
    return [row for row in rows if row[2] or row[3]]


def _count_row(factor: str, level: str, values: set, *sides: Sequence) -> tuple:
    """How many items of either side are among the values."""
    hits = [np.array([item in values for item in side], dtype=float) for side in sides]
    return factor, level, *(side.sum() for side in hits), _difference(*hits)


def _length_row(factor: str, sides: Sequence[Sequence]) -> tuple:
    lengths = [np.array(list(map(len, side)), dtype=float) for side in sides]
    return factor, "mean", *(side.mean() for side in lengths), _difference(*lengths)


def _difference(positive: np.ndarray, negative: np.ndarray) -> float:
    """Standardised difference; of two constants 0 or ± infinity."""
    gap = positive[0] - negative[0]
    if (positive == positive[0]).all() and (negative == negative[0]).all():
        return 0.0 if gap == 0 else float(np.copysign(np.inf, gap))
    return float(standardised_difference(positive, negative))
