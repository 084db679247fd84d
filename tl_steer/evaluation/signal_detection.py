"""Whether steering changes what a model can tell apart (d′) or only what it prefers to say (criterion)."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int, Num

from ..arguments import checked
from ..seeds import generator
from ..statistics import (
    bias,
    interval_around,
    joint_counts,
    resampled_weights,
    sensitivity,
    share,
    wilson_interval,
    z_of_weights,
    z_rates,
)
from .tables import CELL, UNSTEERED, beside_unsteered, factors_of, in_cells

MEASURES = {"d_prime": sensitivity, "criterion": bias}  # of the z of both kinds, or of its changes
# Half a prompt for each choice is Jeffreys' prior of a rate. Added to the prompts whose choice changed, it is
# that of both rates, steered and unsteered.
JEFFREYS = (0.5, 0.5)
JEFFREYS_OF_BOTH = (0.0, 0.5, 0.5, 0.0)
FEWEST = 5  # prompts of each kind with each choice, from which on intervals are known to cover
Intervals = dict[str, tuple[Any, Any, Any]]  # value, low and high of each measure


@checked
def signal_detection(
    table: pd.DataFrame, *, by: str | Sequence[str] = (), resamples: int = 2000, seed: int = 0
) -> pd.DataFrame:
    """d′ and criterion of each cell of a sweep, and their change against the unsteered model.

    Args:
        table: a sweep's table with answers. The signal is answer 0, a hit choice 0 where the answer is 0.
        by: factors of the prompts to split by, beside the cell.
        resamples: bootstrap draws.
        seed: of the draws; every cell starts from it, so that its row does not depend on the others.

    Returns:
        The cell's columns, `dose`, the factors, and, with 95 % intervals in `…_low` and `…_high`:
        n_signal, n_noise: readable prompts of each kind.
        unreadable: share of the prompts with an answer whose choice is NA; they are left out.
        hit_rate, false_alarm_rate: share of choice 0 among each kind. Wilson interval.
        d_prime: z(H) − z(F), rates log-linear corrected. Bayesian bootstrap.
        criterion: −½(z(H) + z(F)), negative says the signal more often. Bayesian bootstrap.
        covered: whether the intervals of d′ and c are known to hold the truth in 93 to 97 %: at least 5
            prompts of each kind chose 0, and at least 5 chose 1.
        d_prime_change, criterion_change: against the unsteered cell, on the prompts readable in both (so that
            where some are not, it is not quite the difference of two rows). Paired Bayesian bootstrap.
        change_covered: the same of the changes: at least 5 of these prompts in each choice, steered and
            unsteered, and at least 5 that changed it. True where the change is zero by definition.
        NaN where one kind of prompts, or for changes the unsteered cell, is missing.

    Raises:
        ValueError: no answers, answers other than 0 and 1, missing columns, or a prompt twice in a cell.

    Prompts are resampled within each kind, since their numbers are the experimenter's;
    `statistics.resampled_weights` tells how. In simulations with 20 to 200 prompts a kind, rates of .01 to
    .99, 95 % intervals held the truth in 93 to 97 % where 5 prompts a choice were to be expected, elsewhere
    in 92 to 100 %: there most are wider than they need be. A percentile bootstrap with the same correction
    fails there: 78 % at rates .99 and .43 of 100 prompts, 0 % at .99 and .01 of 20. Wilson's intervals go by
    jumps: 93 to 97 % with at least 100 prompts and rates of .2 to .8, 91 to 98 % elsewhere.
    `tests/coverage_table.py` prints the whole table.

    Source: Macmillan & Creelman 2005, chapters 1 and 2; correction of Hautus 1995; the bootstrap: Rubin 1981,
    with Jeffreys' prior on each rate (Brown, Cai & DasGupta 2001).
    """
    by = factors_of(table, by)
    rows = beside_unsteered(table, by)
    rows = rows[_require_answers(rows["answer"])]
    labels = [*CELL, "dose", *by]
    cells = [cell for _, cell in in_cells(rows, by)]
    found = pd.DataFrame([_detected(cell, resamples, seed) for cell in cells])
    return pd.concat(
        [pd.concat([cell[labels].head(1) for cell in cells]).reset_index(drop=True), found], axis=1
    )


def _require_answers(answer: pd.Series) -> pd.Series:
    known = answer.notna()
    if not known.any():
        raise ValueError(
            "no row has an answer: give questions whose right choice (0, the signal, or 1) is known."
        )
    if not answer[known].isin([0, 1]).all():
        raise ValueError(f"answers must be 0 (the signal) or 1, not {sorted(answer[known].unique())}.")
    return known


def measures(counts: Int[np.ndarray, "*cell kind 2"], *, resamples: int, seed: int) -> Intervals:
    """d′ and criterion, each with its 95 % interval, by `statistics.resampled_weights`.

    Args:
        counts: of signal and of noise prompts (kind), how many chose 0 and 1.
        resamples, seed: of the draws.
    """
    rng = generator(seed)
    weights = resampled_weights(counts, JEFFREYS, resamples=resamples, rng=rng)
    return _with_intervals(_z_of_counts(counts), z_of_weights(weights))


def changes(joint: Int[np.ndarray, "*cell kind 4"], *, resamples: int, seed: int) -> Intervals:
    """The same prompts' change of d′ and criterion, steered minus unsteered, as `measures` gives them.

    Args:
        joint: of signal and of noise prompts, the `joint_counts` of choice 0 steered and unsteered.
        resamples, seed: of the draws.
    """
    rng = generator(seed)
    weights = resampled_weights(joint, JEFFREYS_OF_BOTH, resamples=resamples, rng=rng)
    # d′ and c are linear in z, so that their change is that of z.
    now, then = map(_z_of_counts, margins(joint))
    drawn_now, drawn_then = map(z_of_weights, margins(weights))
    return _with_intervals(now - then, drawn_now - drawn_then)


def margins(
    joint: Num[np.ndarray, "*cell 4"],
) -> tuple[Num[np.ndarray, "*cell 2"], Num[np.ndarray, "*cell 2"]]:
    """Of `joint_counts`, or weights like them: those with and without something now, and then."""
    both, now, then, neither = np.moveaxis(joint, -1, 0)
    return np.stack([both + now, then + neither], -1), np.stack([both + then, now + neither], -1)


def _z_of_counts(counts: Int[np.ndarray, "*cell kind 2"]) -> Float[np.ndarray, "*cell kind"]:
    return z_rates(counts[..., 0], counts.sum(-1))


def _with_intervals(
    observed: Float[np.ndarray, "*cell kind"], drawn: Float[np.ndarray, "draw *cell kind"]
) -> Intervals:
    result = {}
    for name, measure in MEASURES.items():
        value = measure(observed[..., 0], observed[..., 1])
        result[name] = (value, *interval_around(value, measure(drawn[..., 0], drawn[..., 1])))
    return result


def is_covered(counts: Int[np.ndarray, "*cell kind 2"]) -> Bool[np.ndarray, "*cell"] | np.bool_:
    """Whether at least `FEWEST` prompts of each kind chose 0, and at least as many 1."""
    return (counts >= FEWEST).all((-1, -2))


def is_change_covered(joint: Int[np.ndarray, "*cell kind 4"]) -> Bool[np.ndarray, "*cell"] | np.bool_:
    """Whether both times are covered, and at least `FEWEST` prompts changed their choice."""
    now, then = map(is_covered, margins(joint))
    return now & then & (joint[..., 1:3].sum((-1, -2)) >= FEWEST)


def _detected(cell: pd.DataFrame, resamples: int, seed: int) -> dict[str, Any]:
    counts, joint, unreadable = _counted(cell)
    detected: dict[str, Any] = {
        "n_signal": int(counts[0].sum()),
        "n_noise": int(counts[1].sum()),
        "unreadable": unreadable,
    }
    rates = share(counts[:, 0], counts.sum(-1)), *wilson_interval(counts[:, 0], counts.sum(-1))
    for place, name in enumerate(("hit_rate", "false_alarm_rate")):
        detected |= _columns(name, *(each[place] for each in rates))
    for name, found in measures(counts, resamples=resamples, seed=seed).items():
        detected |= _columns(name, *found)
    detected["covered"] = bool(is_covered(counts))
    # Against itself the change is zero by definition, not by estimate.
    is_unsteered = cell["vector"].iloc[0] == UNSTEERED
    for name, found in changes(joint, resamples=resamples, seed=seed).items():
        known = np.where(np.isnan(found), np.nan, 0.0) if is_unsteered else found
        detected |= _columns(f"{name}_change", *known)
    detected["change_covered"] = bool(joint.sum(-1).all() if is_unsteered else is_change_covered(joint))
    return detected


def _counted(
    cell: pd.DataFrame,
) -> tuple[Int[np.ndarray, "kind=2 2"], Int[np.ndarray, "kind=2 4"], float]:
    """Of signal and of noise prompts those that chose 0 and 1; the joint counts; the unreadable's share."""
    answer, choice, before = (
        cell[name].to_numpy(float, na_value=np.nan) for name in ("answer", "choice", "unsteered_choice")
    )
    both = ~np.isnan(choice) & ~np.isnan(before)
    counts = [[((answer == kind) & (choice == side)).sum() for side in (0, 1)] for kind in (0, 1)]
    compared = [both & (answer == kind) for kind in (0, 1)]
    joint = [joint_counts(choice[rows] == 0, before[rows] == 0) for rows in compared]
    return np.array(counts), np.array(joint), float(np.isnan(choice).mean())


def _columns(name: str, value: float, low: float, high: float) -> dict[str, float]:
    return {name: float(value), f"{name}_low": float(low), f"{name}_high": float(high)}
