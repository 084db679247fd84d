"""What each cell of a sweep does to the answers: accuracy, and the shift against the unsteered model."""

from collections.abc import Sequence

import pandas as pd

from ..arguments import checked
from ..statistics import share, t_interval, wilson_interval
from .tables import CELL, beside_unsteered, factors_of, in_cells

ALL = "all"  # the level of a factor in rows of all prompts
MOMENTS = ("mean", "std", "count")
RESULTS = ("n", "unreadable", "accuracy", "signal_rate", "logit_difference", "shift", "flipped")
FLIPPED = ("flipped", "flipped_low", "flipped_high")


@checked
def effectiveness(
    table: pd.DataFrame, *, by: str | Sequence[str] = (), overall: bool = False
) -> pd.DataFrame:
    """A row for each cell of a sweep, and within it for each combination of factors.

    Args:
        table: a sweep's table, a row a prompt and cell.
        by: factors of the prompts to split by ("label", "answer", "split"). Cells are never pooled.
        overall: put rows of all prompts together first, in which the one factor of `by` is "all".

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
        ValueError: columns are missing, `by` names an outcome or a result, a prompt is in a cell twice; or
            `overall` where `by` is not one factor, or one that has a value "all".

    The intervals hold for one number each, not for the best of many cells: for that, see `choose`.
    """
    by = factors_of(table, by, RESULTS)
    if overall:
        return _with_all(table, by)
    sums = _sums(table, by)
    result = sums[["dose", "n"]].assign(unreadable=1 - sums["readable"] / sums["n"])
    for name, count, of in (("accuracy", "right", "answered"), ("signal_rate", "signal", "readable")):
        successes, trials = sums[count].to_numpy(), sums[of].to_numpy()
        result[name] = share(successes, trials)
        result[f"{name}_low"], result[f"{name}_high"] = wilson_interval(successes, trials)
    for name in ("logit_difference", "shift"):
        mean, deviation, n = (sums[f"{name}_{what}"].to_numpy(float) for what in MOMENTS)
        result[name] = mean
        result[f"{name}_low"], result[f"{name}_high"] = t_interval(mean, deviation, n)
    result["flipped"] = share(sums["differs"].to_numpy(), sums["compared"].to_numpy())
    return result.reset_index()[[*CELL, "dose", *by, *result.columns[1:]]]


def flips(table: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """The share of flipped choices of `effectiveness`, with its Wilson interval.

    Returns:
        The cell's columns, `dose`, the factors, n (prompts), compared (those readable with and without
        steering), flipped, flipped_low, flipped_high.
    """
    sums = _sums(table, by)
    differs, compared = sums["differs"].to_numpy(), sums["compared"].to_numpy()
    values = (share(differs, compared), *wilson_interval(differs, compared))
    result = sums[["dose", "n", "compared"]].assign(**dict(zip(FLIPPED, values, strict=True)))
    return result.reset_index()[[*CELL, "dose", *by, "n", "compared", *FLIPPED]]


def _with_all(table: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    if len(by) != 1:
        raise ValueError(
            f"overall=True needs one factor in by=…, not {len(by)}, since its rows say {ALL!r} there."
        )
    (factor,) = by
    if table[factor].astype(str).eq(ALL).any():
        raise ValueError(f"{factor!r} has a value {ALL!r} already: rename it, or leave overall out.")
    split = effectiveness(table, by=by)
    together = effectiveness(table).assign(**{factor: ALL})[list(split)]
    return pd.concat([together, split.astype({factor: object})], ignore_index=True)


def _outcomes(rows: pd.DataFrame) -> pd.DataFrame:
    """What is counted, prompt by prompt, named like no factor; comparisons with NA are False."""
    choice, before = rows["choice"], rows["unsteered_choice"]
    return pd.DataFrame(
        {
            "_answered": rows["answer"].notna(),
            "_readable": choice.notna(),
            "_right": choice.eq(rows["answer"]).fillna(False).astype(bool),
            "_signal": choice.eq(0).fillna(False).astype(bool),
            "_compared": choice.notna() & before.notna(),
            "_differs": choice.ne(before).fillna(False).astype(bool),
            "_shift": rows["logit_difference"] - rows["unsteered_logit_difference"],
        }
    )


def _sums(table: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """Counts and moments of each cell and factor."""
    rows = beside_unsteered(table, by)
    rows = pd.concat([rows[[*CELL, "dose", *by, "logit_difference"]], _outcomes(rows)], axis=1)
    counted = ("answered", "readable", "right", "signal", "compared", "differs")
    averaged = {"logit_difference": "logit_difference", "shift": "_shift"}
    return in_cells(rows, by).agg(
        dose=("dose", "first"),
        n=("_readable", "size"),
        **{name: (f"_{name}", "sum") for name in counted},
        **{f"{name}_{what}": (source, what) for name, source in averaged.items() for what in MOMENTS},
    )
