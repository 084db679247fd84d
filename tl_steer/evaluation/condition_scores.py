"""Scores by which a condition can be chosen, each with its interval and its change against unsteered."""

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import pandas as pd
from jaxtyping import Int

from .._util.seeds import generator
from ..statistics import percentile_interval, rate_interval
from ..sweeps.selection import Score, correct, correct_if_readable, directed, numbers
from ..sweeps.sweep_table import (
    CONDITION,
    UNSTEERED,
    by_condition,
    condition_means,
    ends,
    prompt_groups,
    text_index,
    with_unsteered,
)
from ._effectiveness import effectiveness, flips, share_changes
from ._signal_detection import signal_detection

Measure = Callable[[pd.DataFrame, int, int], pd.DataFrame]  # rows, resamples, seed
VALUE = ["value", "low", "high"]
MEASURED = (*VALUE, "unsteered", *ends("change"))


def measure_of(value: Score) -> tuple[Measure, str]:
    """The function that returns the columns `MEASURED` per steered condition, and the score's name.

    Raises:
        ValueError: an unknown name.
    """
    if callable(value):
        return partial(_function, value), getattr(value, "__name__", type(value).__name__)
    if value not in _MEASURES:
        names = ", ".join(map(repr, _MEASURES))
        raise ValueError(f"value={value!r}: expected {names}, or a function of rows.")
    return _MEASURES[value], value


def _accuracy(rows: pd.DataFrame, resamples: int, seed: int, outcome: Callable = correct) -> pd.DataFrame:
    rows = with_unsteered(rows, [])
    values = pd.DataFrame({"value": outcome(numbers(rows["choice"]), numbers(rows["answer"]))})
    result = _named(condition_means(by_condition(rows), values, {"value": rate_interval}), "value")
    changes = share_changes(rows, [], outcome, resamples=resamples, seed=seed)
    if outcome is correct_if_readable:  # the change is of the prompts that are readable both times
        return _steered(result, changes[ends("change")])
    return _steered(result, changes[["change_low", "change_high"]])


def _d_prime(rows: pd.DataFrame, resamples: int, seed: int) -> pd.DataFrame:
    result = signal_detection(rows, resamples=resamples, seed=seed)
    names = dict(zip(ends("d_prime_change"), ends("change"), strict=True))
    result = _named(result, "d_prime").rename(columns=names)
    return _steered(result.assign(n=result["n_signal"] + result["n_noise"]), result[ends("change")])


def _shift(rows: pd.DataFrame, resamples: int, seed: int) -> pd.DataFrame:
    result = effectiveness(rows)
    multiplier = result["multiplier"].to_numpy()
    interval = np.sort(directed(result[["shift_low", "shift_high"]].to_numpy(), multiplier[:, None]), axis=1)
    result[VALUE] = np.column_stack([directed(result["shift"].to_numpy(), multiplier), interval])
    return _steered(result, result[VALUE].set_axis(ends("change"), axis=1))


def _flipped(rows: pd.DataFrame, resamples: int, seed: int) -> pd.DataFrame:
    result = _named(flips(rows, []), "flipped")
    return _steered(result.assign(n=result["compared"]), result[VALUE].set_axis(ends("change"), axis=1))


def _function(
    score: Callable[[pd.DataFrame], float], rows: pd.DataFrame, resamples: int, seed: int
) -> pd.DataFrame:
    unsteered = rows[rows["vector"] == UNSTEERED]
    unsteered = unsteered.set_index(text_index(unsteered))
    results = []
    for _, condition in by_condition(rows):
        before = unsteered.loc[text_index(condition)].reset_index(drop=True)
        draws = _resampled(condition, resamples, seed)
        scores = np.array([[score(side.iloc[draw]) for side in (condition, before)] for draw in draws], float)
        value = score(condition)
        change = value - score(before)
        intervals = [percentile_interval(each) for each in (scores[:, 0], scores[:, 0] - scores[:, 1])]
        results.append([len(condition), value, *intervals[0], change, *intervals[1]])
    labels = by_condition(rows).head(1)[[*CONDITION, "dose"]].reset_index(drop=True)
    result = labels.join(pd.DataFrame(results, columns=["n", *VALUE, *ends("change")]))
    return _steered(result, result[ends("change")])


def _resampled(condition: pd.DataFrame, resamples: int, seed: int) -> Iterator[Int[np.ndarray, " row"]]:
    """Rows drawn with replacement, groups whole, within strata of groups with the same answers.

    So every draw has both answers. Without a column "group" each prompt is a group of its own.
    """
    rng = generator(seed)
    group = prompt_groups(condition)
    answers = condition["answer"].map(str).groupby(group).agg(lambda each: " ".join(sorted(set(each))))
    rows = np.split(np.argsort(group, kind="stable"), np.cumsum(np.bincount(group))[:-1])
    strata = [np.flatnonzero(answers == each) for each in sorted(set(answers))]
    drawn = np.concatenate([rng.choice(each, (resamples, len(each))) for each in strata], axis=1)
    return (np.concatenate([rows[number] for number in draw]) for draw in drawn)


def _named(result: pd.DataFrame, name: str) -> pd.DataFrame:
    return result.rename(columns=dict(zip(ends(name), VALUE, strict=True)))


def _steered(result: pd.DataFrame, changes: pd.DataFrame) -> pd.DataFrame:
    """The steered conditions, with the unsteered value and the change against it."""
    result = result.drop(columns=changes.columns, errors="ignore").join(changes)
    result["unsteered"] = result.loc[result["vector"] == UNSTEERED, "value"].iloc[0]
    if "change" not in result:
        result["change"] = result["value"] - result["unsteered"]
    return result[result["vector"] != UNSTEERED]


_MEASURES: dict[str, Measure] = {
    "accuracy": _accuracy,
    "readable_accuracy": partial(_accuracy, outcome=correct_if_readable),
    "d_prime": _d_prime,
    "shift": _shift,
    "flipped": _flipped,
}
