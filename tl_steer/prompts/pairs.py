"""Contrast pairs: two prompts that should differ in one thing only, and what is known of each."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Int

from .._util.validation import checked, short_repr

SIDES = ("positive", "negative")
Rows = Iterable[Any]  # their numbers, or true and false a row: a list, an array, a column


@checked
@dataclass(frozen=True, eq=False)
class ContrastPairs:
    """Positive and negative prompts, pair by pair.

    Attributes:
        positive, negative: the two sides, as text. A `ChatPrompt` keeps the message that it is made of.
        factors: one row per pair. What differs between the sides has two columns (`letter_positive`,
            `letter_negative`); `group` names what a split keeps together. Without a column `group`, each
            pair is a group of its own, and so are copies of a pair.

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
            raise ValueError(
                f"{count} positive and {len(negative)} negative prompts: pairs need as many of each."
            )
        if not count:
            raise ValueError("no pairs given; pass at least one positive and one negative prompt.")
        for side, prompts in (("positive", positive), ("negative", negative)):
            for row, prompt in enumerate(prompts):
                if not prompt.strip():
                    raise ValueError(f"{side} prompt {row} is empty.")
        known = pd.DataFrame(index=range(count)) if self.factors is None else self.factors
        if len(known) != count:
            raise ValueError(f"{len(known)} rows of factors for {count} pairs: expected one row per pair.")
        known = known.reset_index(drop=True)
        if "group" not in known:
            numbers: dict[tuple[str, str], int] = {}
            sides = zip(positive, negative, strict=True)
            known = known.assign(group=[numbers.setdefault(pair, len(numbers)) for pair in sides])
        for name, value in (("positive", positive), ("negative", negative), ("factors", known)):
            object.__setattr__(self, name, value)

    def __len__(self) -> int:
        return len(self.positive)

    __repr__ = short_repr

    @checked
    def subset(self, rows: Rows) -> "ContrastPairs":
        """Some of the pairs: `rows` counted from 0, in the order given, or true and false per pair."""
        rows = row_numbers(rows, len(self))
        return ContrastPairs(
            [self.positive[row] for row in rows],
            [self.negative[row] for row in rows],
            self.factors.iloc[rows],
        )


@checked
def contrast_pairs(
    positive: Sequence[str],
    negative: Sequence[str],
    *,
    factors: pd.DataFrame | None = None,
) -> ContrastPairs:
    """Pairs of prompts, the first of each list with the first of the other.

    Args:
        positive, negative: as many of each.
        factors: one row per pair, of what is known of it; see `ContrastPairs`.

    Raises:
        ValueError: as `ContrastPairs`.
    """
    return ContrastPairs(positive, negative, factors)


def truth_labels(labels: pd.Series) -> pd.Series:
    """Labels as 1 and 0, from numbers, booleans, or "true" and "false" in any case; NaN for anything else."""
    texts = labels.astype(str).str.strip().str.casefold().replace({"true": "1", "false": "0"})
    numbers = pd.to_numeric(texts, errors="coerce")
    return numbers.where(numbers.isin([0, 1]))


def row_numbers(rows: Rows, count: int) -> list[int]:
    """Which of `count` rows are meant, by their numbers or by true and false a row.

    Raises:
        ValueError: not as many of true and false as there are rows, or something else than whole numbers.
        IndexError: a row that is not there.
    """
    given = rows.tolist() if hasattr(rows, "tolist") else list(rows)
    chosen = [isinstance(each, bool | np.bool_) for each in given]
    if given and all(chosen):
        if len(given) != count:
            raise ValueError(f"{len(given)} times true or false for {count} rows: give one for each.")
        return np.flatnonzero(given).tolist()
    if any(chosen) or not all(isinstance(each, Integral) for each in given):
        raise ValueError(f"rows are whole numbers, or true and false a row; got {given!r:.60}.")
    if outside := [each for each in given if not -count <= each < count]:
        raise IndexError(f"there is no row {outside[0]}: there are {count}, counted from 0.")
    return [int(each) for each in given]


def group_numbers(factors: pd.DataFrame) -> Int[np.ndarray, " pair"]:
    """The group of each pair, from 0; without a column "group" each pair is its own."""
    if "group" not in factors:
        return np.arange(len(factors))
    return pd.factorize(factors["group"], sort=True, use_na_sentinel=False)[0]


def sided_factors(factors: pd.DataFrame) -> list[str]:
    """Names of the factors that have a column a side, `name_positive` and `name_negative`."""
    names = [str(name) for name in factors.columns]
    found = [name.removesuffix("_positive") for name in names if name.endswith("_positive")]
    return [name for name in found if f"{name}_negative" in names]


def factors_by_side(factors: pd.DataFrame) -> Iterator[tuple[str, list, list]]:
    """Each factor but the group: its name, and its values on the positive and on the negative side."""
    sided = sided_factors(factors)
    for column in factors.columns:
        name, _, side = str(column).rpartition("_")
        if name in sided and side == "positive":
            yield name, factors[column].tolist(), factors[f"{name}_negative"].tolist()
        elif not (name in sided and side == "negative") and column != "group":
            yield str(column), factors[column].tolist(), factors[column].tolist()
