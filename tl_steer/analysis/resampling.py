"""Pairs drawn anew without undoing their design: groups stay whole, and kinds keep their numbers."""

import numpy as np
import pandas as pd
from jaxtyping import Int

from ..prompts.pairs import group_numbers

RARE = 5  # kinds of fewer groups are drawn as one


def group_kinds(factors: pd.DataFrame, *, fewest: int) -> "pd.Series[tuple[int, ...]]":
    """The kind of each group, by its number: the levels of its pairs.

    Args:
        factors: a row a pair. Of the columns beside "group", those count whose levels have at least `fewest`
            pairs on average: more levels (a length, a topic) describe pairs rather than sort them into kinds.
    """
    sorting = [
        name
        for name in factors.columns
        if name != "group" and factors[name].nunique(dropna=False) * fewest <= len(factors)
    ]
    group = group_numbers(factors)
    level = (
        factors.groupby(sorting, dropna=False, observed=True).ngroup() if sorting else 0 * pd.Series(group)
    )
    return pd.Series(level.to_numpy()).groupby(group).agg(lambda levels: tuple(sorted(levels)))


def bootstrap_rows(factors: pd.DataFrame, rng: np.random.Generator) -> Int[np.ndarray, " row"]:
    """Rows of pairs drawn with replacement, a group at a time, within its kind.

    A kind is the combination of levels of a group's pairs, as in `balanced_folds`. Drawn over all kinds, the
    draws would hold unequal numbers of them, and the direction of what tells kinds apart (the letter) would
    count as uncertainty of the behaviour's, though the design has it balanced.
    """
    group = group_numbers(factors)
    members = [np.flatnonzero(group == number) for number in range(group.max() + 1)]
    drawn = [rng.choice(kind, len(kind)) for kind in _alike(factors)]
    return np.concatenate([members[number] for number in np.concatenate(drawn)])


def permuted_rows(factors: pd.DataFrame, rng: np.random.Generator) -> Int[np.ndarray, " pair"]:
    """An order of the pairs in which groups of one size change places, and pairs change within each.

    What the pairs of a group share stays shared, and what they balance stays balanced.
    """
    group = group_numbers(factors)
    sizes = np.bincount(group)
    members = [rng.permutation(np.flatnonzero(group == number)) for number in range(len(sizes))]
    order = np.empty(len(group), int)
    for size in np.unique(sizes):
        alike = np.flatnonzero(sizes == size)
        for place, source in zip(alike, rng.permutation(alike), strict=True):
            order[np.flatnonzero(group == place)] = members[source]
    return order


def _alike(factors: pd.DataFrame) -> list[Int[np.ndarray, " group"]]:
    """The groups of each kind; those of rare kinds together."""
    kinds = group_kinds(factors, fewest=RARE)
    found = [np.array(numbers) for numbers in kinds.groupby(kinds).groups.values()]
    rare = [numbers for numbers in found if len(numbers) < RARE]
    return [numbers for numbers in found if len(numbers) >= RARE] + ([np.concatenate(rare)] if rare else [])
