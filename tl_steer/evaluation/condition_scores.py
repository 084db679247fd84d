"""Scores by which a cell can be chosen, each with its interval and its change against the unsteered model."""

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import pandas as pd
from jaxtyping import Int

from .._util.seeds import generator
from ..statistics import joint_counts, percentile_interval, rate_interval, share_change
from ..sweeps.selection import Score
from ..sweeps.sweep_table import CELL, UNSTEERED, beside_unsteered, in_cells, prompt_groups, text_index
from ._effectiveness import FLIPPED, effectiveness, flips
from ._signal_detection import signal_detection

Measure = Callable[[pd.DataFrame, int, int], pd.DataFrame]  # rows, resamples, seed
MEASURED = ("value", "low", "high", "unsteered", "change", "change_low", "change_high")


def measure_of(score: Score) -> tuple[Measure, str]:
    """The function that gives each steered cell a row with the columns `MEASURED`, and the score's name.

    Raises:
        ValueError: an unknown name.
    """
    named = {
        "accuracy": _accuracy,
        "readable_accuracy": _readable_accuracy,
        "d_prime": _d_prime,
        "shift": _shift,
        "flipped": _flipped,
    }
    if callable(score):
        return partial(_function, score), getattr(score, "__name__", type(score).__name__)
    if score not in named:
        raise ValueError(
            f"score={score!r} is unknown: use {', '.join(map(repr, named))}, or a function of rows."
        )
    return named[score], score


def _accuracy(rows: pd.DataFrame, resamples: int, seed: int) -> pd.DataFrame:
    found = effectiveness(rows)
    found = found.assign(value=found["accuracy"], low=found["accuracy_low"], high=found["accuracy_high"])
    changes = [
        _accuracy_change(cell, resamples, seed) for _, cell in in_cells(beside_unsteered(rows, []), [])
    ]
    return _steered(found, pd.DataFrame(changes, columns=["change_low", "change_high"]))


def _accuracy_change(cell: pd.DataFrame, resamples: int, seed: int) -> tuple[float, float]:
    """Interval of P(right now) − P(right before), of the same prompts."""
    answered = cell[cell["answer"].notna()]
    now, then = (
        answered[name].eq(answered["answer"]).fillna(False).to_numpy(bool)
        for name in ("choice", "unsteered_choice")
    )
    joint = joint_counts(now, then, prompt_groups(answered))
    _, low, high = share_change(joint, resamples=resamples, rng=generator(seed), grouped=True)
    return float(low), float(high)


def _readable_accuracy(rows: pd.DataFrame, resamples: int, seed: int) -> pd.DataFrame:
    """Of the answers that can be read; the change is of the prompts that are readable in both."""
    results = effectiveness(rows)[[*CELL, "dose", "n"]]
    values, changes = [], []
    for _, cell in in_cells(beside_unsteered(rows, []), []):
        read = cell[cell["answer"].notna() & cell["choice"].notna()]
        values.append(_rate(read["choice"].eq(read["answer"]), prompt_groups(read)))
        both = read[read["unsteered_choice"].notna()]
        now, then = (both[name].eq(both["answer"]).to_numpy(bool) for name in ("choice", "unsteered_choice"))
        joint = joint_counts(now, then, prompt_groups(both))
        change = share_change(joint, resamples=resamples, rng=generator(seed), grouped=True)
        changes.append([float(each) for each in change])
    results[["value", "low", "high"]] = values
    return _steered(results, pd.DataFrame(changes, columns=["change", "change_low", "change_high"]))


def _rate(right: pd.Series, group: Int[np.ndarray, " row"]) -> list[float]:
    """The share with its Wilson interval, groups whole; NaN of no rows."""
    ends = rate_interval(right.to_numpy(float), np.zeros(len(right), int), group)
    return [float(end[0]) for end in ends] if len(right) else [np.nan] * 3


def _d_prime(rows: pd.DataFrame, resamples: int, seed: int) -> pd.DataFrame:
    found = signal_detection(rows, resamples=resamples, seed=seed)
    renamed = {"d_prime": "value"} | {f"d_prime_{end}": end for end in ("low", "high", "change")}
    renamed |= {f"d_prime_change_{end}": f"change_{end}" for end in ("low", "high")}
    found = found.rename(columns=renamed).assign(n=found["n_signal"] + found["n_noise"])
    return _steered(found, found[["change", "change_low", "change_high"]])


def _shift(rows: pd.DataFrame, resamples: int, seed: int) -> pd.DataFrame:
    found = effectiveness(rows)
    sign = np.sign(found["multiplier"]).fillna(1)
    ends = np.sort(found[["shift_low", "shift_high"]].to_numpy() * sign.to_numpy()[:, None], axis=1)
    found = found.assign(value=sign * found["shift"], low=ends[:, 0], high=ends[:, 1])
    changes = {
        f"change{end}": found[name] for end, name in (("", "value"), ("_low", "low"), ("_high", "high"))
    }
    return _steered(found, pd.DataFrame(changes))


def _flipped(rows: pd.DataFrame, resamples: int, seed: int) -> pd.DataFrame:
    found = flips(rows, [])
    found = found.assign(n=found["compared"]).rename(columns=dict(zip(FLIPPED, MEASURED[:3], strict=True)))
    return _steered(found, found[[*MEASURED[:3]]].set_axis(MEASURED[-3:], axis=1))


def _function(
    score: Callable[[pd.DataFrame], float], rows: pd.DataFrame, resamples: int, seed: int
) -> pd.DataFrame:
    unsteered = rows[rows["vector"] == UNSTEERED]
    unsteered = unsteered.set_index(text_index(unsteered))
    found = []
    for _, cell in in_cells(rows, []):
        before = unsteered.loc[text_index(cell)].reset_index(drop=True)
        draws = _redrawn(cell, resamples, seed)
        scores = np.array([[score(side.iloc[draw]) for side in (cell, before)] for draw in draws], float)
        value, then = score(cell), score(before)
        intervals = [*percentile_interval(scores[:, 0]), *percentile_interval(scores[:, 0] - scores[:, 1])]
        found.append([len(cell), value, *intervals[:2], value - then, *intervals[2:]])
    columns = ["n", "value", "low", "high", "change", "change_low", "change_high"]
    labels = in_cells(rows, []).head(1)[[*CELL, "dose"]].reset_index(drop=True)
    found = pd.concat([labels, pd.DataFrame(found, columns=columns)], axis=1)
    return _steered(found, found[columns[-3:]])


def _redrawn(cell: pd.DataFrame, resamples: int, seed: int) -> Iterator[Int[np.ndarray, " row"]]:
    """Rows drawn with replacement, groups whole, within the groups of the same answers (or unknown ones).

    So every draw has both answers. Without a column "group" each prompt is a group of its own.
    """
    rng = generator(seed)
    group = prompt_groups(cell)
    kinds = cell["answer"].map(str).groupby(group).agg(lambda answers: " ".join(sorted(set(answers))))
    rows = np.split(np.argsort(group, kind="stable"), np.cumsum(np.bincount(group))[:-1])
    strata = [np.flatnonzero(kinds == kind) for kind in sorted(set(kinds))]
    drawn = np.concatenate([rng.choice(each, (resamples, len(each))) for each in strata], axis=1)
    return (np.concatenate([rows[number] for number in draw]) for draw in drawn)


def _steered(found: pd.DataFrame, changes: pd.DataFrame) -> pd.DataFrame:
    """The steered cells, beside the unsteered cell's value."""
    found = found.drop(columns=changes.columns, errors="ignore").join(changes)
    before = found.loc[found["vector"] == UNSTEERED, "value"].iloc[0]
    found = found.assign(unsteered=before)
    if "change" not in found:
        found["change"] = found["value"] - before
    return found[found["vector"] != UNSTEERED]
