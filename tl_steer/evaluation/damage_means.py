"""Damage cell by cell: means over passages or texts, with intervals."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from .._util.validation import checked
from ..statistics import mean_interval, rate_interval
from ..sweeps.sweep_table import (
    CELL,
    factors_of,
    in_cells,
    require_one_row_a_prompt,
    samples_and_groups,
    sweep_table,
)

AVERAGED = ("kl", "loss", "loss_change", "words", "distinct_1", "distinct_2", "distinct_3", "unreadable")


@checked
def mean_damage(table: pd.DataFrame, *, by: str | Sequence[str] = ()) -> pd.DataFrame:
    """A row for each cell, and within it for each combination of factors: the mean damage.

    Args:
        table: what `damage` or `text_damage` makes.
        by: columns of the passages to split by, such as "topic". Cells are never pooled.

    Returns:
        The cell's columns, `dose`, the factors, n (passages or texts), and of each measure that the table has
        (kl, loss, loss_change; words, distinct_1, distinct_2, distinct_3, unreadable) the mean, with its 95 %
        interval in `…_low` and `…_high`: Student's t, and Wilson's for the share `unreadable`; passages of
        one `group`, and draws of one prompt, are taken together, as in `effectiveness`. Where there is a
        `loss`, perplexity too: exp of the mean loss.

    Raises:
        ValueError: columns are missing, or a prompt is in a cell twice.

    A passage counts once, however long it is, and one without a value (NaN) not at all.
    """
    table = sweep_table(table, "prompt_id", "dose", maker="damage or text_damage", numbers=AVERAGED[:-1])
    by = factors_of(table, by, {"n", "perplexity", *AVERAGED})
    measures = [name for name in AVERAGED if name in table]
    if not measures:
        raise ValueError("the table has no damage in it: give what damage or text_damage makes.")
    require_one_row_a_prompt(table, by)
    rows = table.assign(
        **{name: pd.to_numeric(table[name].fillna(np.nan)).astype(float) for name in measures}
    )
    cells = in_cells(rows, by)
    result = cells.agg(dose=("dose", "first"), n=("prompt_id", "size"))
    samples = samples_and_groups(cells)
    for name in measures:
        interval = rate_interval if name == "unreadable" else mean_interval
        ends = interval(rows[name].to_numpy(), *samples)
        result[[name, f"{name}_low", f"{name}_high"]] = np.stack(ends, 1)
    if "loss" in measures:
        result["perplexity"] = np.exp(result["loss"])
    return result.reset_index()[[*CELL, "dose", *by, *result.columns[1:]]]
