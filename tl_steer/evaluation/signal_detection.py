"""Whether steering changes what a model can tell apart (d′) or only what it prefers to say (criterion)."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from ..statistics import criterion, d_prime, percentile_interval, resampled_counts, share, wilson_interval
from .tables import CELL, UNSTEERED, beside_unsteered, factors_of, in_cells

MEASURES = {"d_prime": d_prime, "criterion": criterion}


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
        d_prime: z(H) − z(F), rates log-linear corrected. Bootstrap interval.
        criterion: −½(z(H) + z(F)), negative says the signal more often. Bootstrap interval.
        d_prime_change, criterion_change: against the unsteered cell, on the prompts readable in both (so that
            where some are not, it is not quite the difference of two rows). Paired bootstrap interval.
        NaN where one kind of prompts, or for changes the unsteered cell, is missing.

    Raises:
        ValueError: no answers, answers other than 0 and 1, missing columns, or a prompt twice in a cell.

    Source: Macmillan & Creelman 2005, chapters 1 and 2; correction of Hautus 1995. Prompts are resampled
    within each kind, since their numbers are the experimenter's; `statistics.resampled_counts` tells how.
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


def _detected(cell: pd.DataFrame, resamples: int, seed: int) -> dict[str, Any]:
    answer, choice, before = (
        cell[name].to_numpy(float, na_value=np.nan) for name in ("answer", "choice", "unsteered_choice")
    )
    now = [_counts(choice[answer == kind]) for kind in (0, 1)]
    joint = [_joint_counts(choice[answer == kind], before[answer == kind]) for kind in (0, 1)]
    detected: dict[str, Any] = {
        "n_signal": int(now[0].sum()),
        "n_noise": int(now[1].sum()),
        "unreadable": float(np.isnan(choice).mean()),
    }
    for name, counts in zip(("hit_rate", "false_alarm_rate"), now, strict=True):
        detected[name] = float(share(counts[0], counts.sum()))
        low, high = wilson_interval(counts[0], counts.sum())
        detected |= {f"{name}_low": float(low), f"{name}_high": float(high)}
    detected |= _measured(now, resamples, seed)
    return detected | _changes(joint, resamples, seed, is_unsteered=cell["vector"].iloc[0] == UNSTEERED)


def _counts(choice: Float[np.ndarray, " n"]) -> Int[np.ndarray, "2"]:
    """How many chose 0 and 1."""
    return np.array([(choice == side).sum() for side in (0, 1)])


def _joint_counts(choice: Float[np.ndarray, " n"], before: Float[np.ndarray, " n"]) -> Int[np.ndarray, "4"]:
    """How many chose 0 both times, 0 and formerly 1, 1 and formerly 0, 1 both times."""
    return np.array([((choice == now) & (before == then)).sum() for now in (0, 1) for then in (0, 1)])


def _measured(kinds: list[Int[np.ndarray, "2"]], resamples: int, seed: int) -> dict[str, float]:
    rng = np.random.default_rng(seed)
    n_signal, n_noise = (int(counts.sum()) for counts in kinds)
    hits, false_alarms = (resampled_counts(counts, resamples=resamples, rng=rng)[:, 0] for counts in kinds)
    result: dict[str, float] = {}
    for name, measure in MEASURES.items():
        result[name] = float(measure(kinds[0][0], n_signal, kinds[1][0], n_noise))
        low, high = percentile_interval(measure(hits, n_signal, false_alarms, n_noise))
        result |= {f"{name}_low": float(low), f"{name}_high": float(high)}
    return result


def _changes(
    kinds: list[Int[np.ndarray, "4"]], resamples: int, seed: int, *, is_unsteered: bool
) -> dict[str, float]:
    rng = np.random.default_rng(seed)
    sizes = [int(counts.sum()) for counts in kinds]
    draws = [resampled_counts(counts, resamples=resamples, rng=rng) for counts in kinds]
    result: dict[str, float] = {}
    for name, measure in MEASURES.items():
        # Row 0 is what was observed, the others are drawn.
        signal, noise = (np.vstack([counts, drawn]) for counts, drawn in zip(kinds, draws, strict=True))
        now = measure(signal[:, 0] + signal[:, 1], sizes[0], noise[:, 0] + noise[:, 1], sizes[1])
        then = measure(signal[:, 0] + signal[:, 2], sizes[0], noise[:, 0] + noise[:, 2], sizes[1])
        # Against itself the change is zero by definition, not by estimate.
        change = np.where(np.isnan(now), np.nan, 0.0) if is_unsteered else now - then
        low, high = percentile_interval(change[1:])
        result |= {f"{name}_change": float(change[0])}
        result |= {f"{name}_change_low": float(low), f"{name}_change_high": float(high)}
    return result
