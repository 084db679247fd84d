"""What each cell of a sweep does to the answers: accuracy, and the shift against the unsteered model."""

from collections.abc import Sequence

import pandas as pd

from ..statistics import share, t_interval, wilson_interval
from .tables import CELL, beside_unsteered, factors_of, in_cells


def effectiveness(table: pd.DataFrame, *, by: str | Sequence[str] = ()) -> pd.DataFrame:
    """A row for each cell of a sweep, and within it for each combination of factors.

    Args:
        table: a sweep's table, a row a prompt and cell.
        by: factors of the prompts to split by ("label", "answer", "split"). Cells are never pooled.

    Returns:
        The cell's columns, `dose`, the factors, and, with 95 % intervals in `…_low` and `…_high`:
        n: prompts.
        unreadable: share of them whose answer could not be read (choice NA).
        accuracy: share of right answers where the right one is known, else NaN; an unreadable answer is not
            right. Wilson interval.
        signal_rate: share of choice 0 among the readable. Wilson interval.
        logit_difference: mean of first choice minus second. Student's t interval.
        shift: mean change of the logit difference against the unsteered model on the same prompts. t interval
            of the paired differences.
        flipped: share of prompts, readable with and without, whose choice differs from the unsteered one.
        `shift` and `flipped` are NaN where the table has no unsteered rows for these prompts.

    Raises:
        ValueError: columns are missing, `by` names an outcome, or a prompt is in a cell twice.

    The intervals hold for one number each, not for the best of many cells: for that, see `choose`.
    """
    by = factors_of(table, by)
    rows = beside_unsteered(table, by)
    sums = _sums(pd.concat([rows[[*CELL, "dose", *by, "logit_difference"]], _outcomes(rows)], axis=1), by)
    result = sums[["dose", "n"]].assign(unreadable=1 - sums["readable"] / sums["n"])
    for name, count, of in (("accuracy", "right", "answered"), ("signal_rate", "signal", "readable")):
        successes, trials = sums[count].to_numpy(), sums[of].to_numpy()
        result[name] = share(successes, trials)
        result[f"{name}_low"], result[f"{name}_high"] = wilson_interval(successes, trials)
    for name in ("logit_difference", "shift"):
        mean, deviation, n = (sums[f"{name}_{what}"].to_numpy(float) for what in ("mean", "std", "count"))
        result[name] = mean
        result[f"{name}_low"], result[f"{name}_high"] = t_interval(mean, deviation, n)
    result["flipped"] = share(sums["differs"].to_numpy(), sums["compared"].to_numpy())
    return result.reset_index()[[*CELL, "dose", *by, *result.columns[1:]]]


def _outcomes(rows: pd.DataFrame) -> pd.DataFrame:
    """What is counted, prompt by prompt; comparisons with NA are False."""
    choice, before = rows["choice"], rows["unsteered_choice"]
    return pd.DataFrame(
        {
            "answered": rows["answer"].notna(),
            "readable": choice.notna(),
            "right": choice.eq(rows["answer"]).fillna(False).astype(bool),
            "signal": choice.eq(0).fillna(False).astype(bool),
            "compared": choice.notna() & before.notna(),
            "differs": choice.ne(before).fillna(False).astype(bool),
            "shift": rows["logit_difference"] - rows["unsteered_logit_difference"],
        }
    )


def _sums(rows: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    counted = ("answered", "readable", "right", "signal", "compared", "differs")
    averaged = [(name, what) for name in ("logit_difference", "shift") for what in ("mean", "std", "count")]
    return in_cells(rows, by).agg(
        dose=("dose", "first"),
        n=("readable", "size"),
        **{name: (name, "sum") for name in counted},
        **{f"{name}_{what}": (name, what) for name, what in averaged},
    )
