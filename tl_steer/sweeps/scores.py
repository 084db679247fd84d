"""Scores of answers, from arrays: what accuracy, flips, shift and d′ mean.

For accuracy, flips and shift, one number per answer; the score is the mean, without NaN. d′ is not
a mean. Arrays of choices and answers contain 0, 1 and NaN: unreadable, or no answer known.
"""

from collections.abc import Callable

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float

from ..statistics import d_prime, share

Values = Float[np.ndarray, "..."]
Sets = Bool[np.ndarray, "set prompt"]
Scorer = Callable[[Sets], Float[np.ndarray, "set condition"]]


def numbers(column: pd.Series) -> Float[np.ndarray, " row"]:
    """The column as floats, missing values as NaN."""
    return column.to_numpy(float, na_value=np.nan)


def correct(choice: Values, answer: Values) -> Values:
    """1 for the right choice, 0 for the wrong one and for an unreadable one."""
    return np.where(np.isnan(answer), np.nan, choice == answer)


def correct_if_readable(choice: Values, answer: Values) -> Values:
    """`correct`, of readable answers only."""
    return np.where(np.isnan(choice), np.nan, correct(choice, answer))


def says_signal(choice: Values) -> Values:
    """1 for choice 0, the signal."""
    return np.where(np.isnan(choice), np.nan, choice == 0)


def flipped(choice: Values, unsteered_choice: Values) -> Values:
    """1 where steering changed the choice; both must be readable."""
    return np.where(np.isnan(choice + unsteered_choice), np.nan, choice != unsteered_choice)


def directed(shift: Values, multiplier: Values) -> Values:
    """A shift in the multiplier's direction; without a multiplier (a projection) as it is."""
    return shift * np.nan_to_num(np.sign(multiplier), nan=1.0)


def scorer(score: str, rows: pd.DataFrame, unsteered: pd.DataFrame) -> Scorer:
    """The score of each condition on sets of prompts.

    Args:
        score: "accuracy", "readable_accuracy", "d_prime", "shift" or "flipped".
        rows: condition by condition, each with every prompt once, in the order of `unsteered`.
        unsteered: the unsteered row of each prompt.
    """
    columns = ("answer", "choice", "logit_difference", "multiplier")
    matrix = {name: numbers(rows[name]).reshape(-1, len(unsteered)) for name in columns if name in rows}
    choice, answer = matrix["choice"], matrix["answer"]
    if score == "d_prime":
        return _d_prime_scorer(choice, answer)
    if score == "accuracy":
        values = correct(choice, answer)
    elif score == "readable_accuracy":
        values = correct_if_readable(choice, answer)
    elif score == "flipped":
        values = flipped(choice, numbers(unsteered["choice"]))
    else:
        shift = matrix["logit_difference"] - numbers(unsteered["logit_difference"])
        values = directed(shift, matrix["multiplier"])
    total, known = np.nan_to_num(values), ~np.isnan(values)
    return lambda sets: share(_sums(sets, total), _sums(sets, known))


def _d_prime_scorer(
    choice: Float[np.ndarray, "condition prompt"], answer: Float[np.ndarray, "condition prompt"]
) -> Scorer:
    signal, readable = choice == 0, ~np.isnan(choice)
    counted = [each & (answer == of_class) for of_class in (0, 1) for each in (signal, readable)]
    return lambda sets: d_prime(*(_sums(sets, each) for each in counted))


def _sums(sets: Sets, values: np.ndarray) -> Float[np.ndarray, "set condition"]:
    return sets.astype(float) @ values.T.astype(float)
