"""What each cell of a sweep does to the answers: accuracy, and the shift against the unsteered model."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from .._util.validation import checked
from ..statistics import mean_interval, rate_interval
from ..sweeps.sweep_table import CELL, beside_unsteered, factors_of, in_cells, samples_and_groups, sweep_table

ALL = "all"  # the level of a factor in rows of all prompts
RESULTS = ("n", "unreadable", "accuracy", "signal_rate", "logit_difference", "shift", "flipped")
RATES = ("accuracy", "signal_rate")
MEANS = ("logit_difference", "shift")
FLIPPED = ("flipped", "flipped_low", "flipped_high")


@checked
def effectiveness(
    table: pd.DataFrame, *, by: str | Sequence[str] = (), overall: bool = False
) -> pd.DataFrame:
    """A row for each cell of a sweep, and within it for each combination of factors.

    Args:
        table: a sweep's table, a row a prompt (or draw of it) and cell.
        by: factors of the prompts to split by ("label", "answer", "split"). Cells are never pooled.
        overall: put rows of all prompts together first, in which the one factor of `by` is "all".

    Returns:
        The cell's columns, `dose`, the factors, and, with 95 % intervals in `…_low` and `…_high`:
        n: prompts; with several draws per prompt, all draws.
        unreadable: share of them whose answer could not be read (choice NA).
        accuracy: share of right answers where the right one is known, else NaN; an unreadable answer is not
            right. Wilson interval.
        signal_rate: share of choice 0 among the readable. Wilson interval.
        logit_difference: mean of first choice minus second. t interval.
        shift: mean change of the logit difference against the unsteered model on the same prompts. t interval
            of the paired differences.
        flipped: share of prompts, readable with and without, whose choice differs from the unsteered one.
        `shift` and `flipped` are NaN where the table has no unsteered rows for these prompts.

    Raises:
        ValueError: columns are missing, `by` names an outcome or a result, a prompt is in a cell twice; or
            `overall` where `by` is not one factor, or one that has a value "all".

    Prompts that share a `group` or their text are not independent, nor are the draws of a prompt:
    intervals take groups, and without them prompts, whole (`statistics.mean_interval`,
    `statistics.rate_interval`). With one row per group these are Student's t
    and Wilson's interval. They hold for one number each, not for the best of many cells: see `choose`.
    """
    by = factors_of(table, by, RESULTS)
    if overall:
        return _with_all(table, by)
    cells, outcomes = _cells(table, by)
    samples = samples_and_groups(cells)
    means = outcomes.groupby(samples[0]).mean()
    result = cells.agg(dose=("dose", "first"), n=("dose", "size"))
    result["unreadable"] = 1 - means["readable"].to_numpy()
    for name in (*RATES, *MEANS):
        interval = rate_interval if name in RATES else mean_interval
        ends = interval(outcomes[name].to_numpy(), *samples)
        result[[name, f"{name}_low", f"{name}_high"]] = np.stack(ends, 1)
    result["flipped"] = means["flipped"].to_numpy()
    return result.reset_index()[[*CELL, "dose", *by, *result.columns[1:]]]


def flips(table: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """The share of flipped choices of `effectiveness`, with its Wilson interval, groups whole.

    Returns:
        The cell's columns, `dose`, the factors, n (prompts), compared (those readable with and without
        steering), flipped, flipped_low, flipped_high.
    """
    cells, outcomes = _cells(table, by)
    samples, flipped = samples_and_groups(cells), outcomes["flipped"]
    result = cells.agg(dose=("dose", "first"), n=("dose", "size"))
    result["compared"] = flipped.groupby(samples[0]).count().to_numpy()
    result[[*FLIPPED]] = np.stack(rate_interval(flipped.to_numpy(), *samples), 1)
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
    together = effectiveness(table)
    together[factor] = ALL
    return pd.concat([together[list(split)], split.astype({factor: object})], ignore_index=True)


def _outcomes(rows: pd.DataFrame) -> pd.DataFrame:
    """What is averaged, prompt by prompt; NaN in prompts that do not count."""
    choice, before = rows["choice"], rows["unsteered_choice"]
    outcomes = {
        "accuracy": choice.eq(rows["answer"]).fillna(False).where(rows["answer"].notna()),
        "signal_rate": choice.eq(0),
        "flipped": choice.ne(before),  # NA where either is
        "logit_difference": rows["logit_difference"],
        "shift": rows["logit_difference"] - rows["unsteered_logit_difference"],
    }
    floats = {name: each.to_numpy(float, na_value=np.nan) for name, each in outcomes.items()}
    return pd.DataFrame({"readable": choice.notna(), **floats})


def _cells(table: pd.DataFrame, by: Sequence[str]) -> tuple["pd.api.typing.DataFrameGroupBy", pd.DataFrame]:
    """The rows of each cell and factor, and all rows' outcomes: apart, since factors may have their names."""
    rows = beside_unsteered(table, by)
    kept = dict.fromkeys([*CELL, "dose", *by, *rows.columns.intersection(["prompt_id", "prompt", "group"])])
    return in_cells(rows[[*kept]], by), _outcomes(rows)


@checked
def embedding_effect(table: pd.DataFrame, *, by: str | Sequence[str] = ()) -> pd.DataFrame:
    """A row for each cell, and within it for each combination of factors: mean score, and its shift.

    Args:
        table: what `embedding_scores` makes.
        by: factors of the prompts to split by. Cells are never pooled.

    Returns:
        The cell's columns, `dose`, the factors, and, with 95 % intervals in `…_low` and `…_high`:
        n: texts with a score.
        blank: texts without one.
        score: mean embedding score. Student's t interval.
        shift: mean change against the unsteered text of the same prompt and draw. t interval of the paired
            differences; NaN where there is no unsteered text.
        Prompts of one `group`, and draws of one prompt, are taken together in the intervals, as in
        `effectiveness`.

    Raises:
        ValueError: columns are missing, `by` names an outcome, or a prompt is in a cell twice.
    """
    table = sweep_table(table, "embedding_score")
    factors = factors_of(table, by, {"n", "blank", "score", "shift"})
    found = effectiveness(table.assign(logit_difference=table["embedding_score"]), by=factors)
    rows = in_cells(table, factors)["embedding_score"].agg(["count", "size"])  # in the same order
    names = {f"logit_difference{end}": f"score{end}" for end in ("", "_low", "_high")}
    found = found.assign(n=rows["count"].to_numpy(), blank=(rows["size"] - rows["count"]).to_numpy())
    shifts = ["shift", "shift_low", "shift_high"]
    return found.rename(columns=names)[[*CELL, "dose", *factors, "n", "blank", *names.values(), *shifts]]
