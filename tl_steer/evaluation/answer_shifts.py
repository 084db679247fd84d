"""How steering changes what is answered where answers are texts, which have no logit difference to shift."""

import numpy as np
import pandas as pd

from .._util.seeds import generator
from ..statistics import joint_counts, share_change
from ..sweeps.sweep_table import CELL, UNSTEERED, beside_unsteered, factors_of, in_cells, prompt_groups

COLUMNS = ("n", "compared", "shift", "shift_low", "shift_high")


def answer_shifts(rows: pd.DataFrame, *, by: str, resamples: int = 2000, seed: int = 0) -> pd.DataFrame:
    """The change of the share of answers that say the signal, cell by cell and kind by kind.

    Args:
        rows: a sweep's table with `choice`, the unsteered cell among it.
        by: the factor that tells the kinds of questions apart.
        resamples, seed: of the paired bootstrap over groups (without them, prompts with all their draws),
            `statistics.share_change`; every row starts from the seed.

    Returns:
        A row a cell and kind: the cell's columns, `dose`, the factor,
        n: prompts; with several draws per prompt, all draws.
        compared: those whose answer could be read both unsteered and steered; all else is of these.
        shift, shift_low, shift_high: change of the share of choice 0 against the unsteered cell, from −1 to
            1, with its 95 % interval; NaN where nothing can be compared, zero for the unsteered cell.

    Answers that cannot be read are left out, not counted as the other choice: were they, a vector that only
    breaks the text would seem to move every kind away from the signal.
    """
    factors_of(rows, by, COLUMNS)
    cells = list(in_cells(beside_unsteered(rows, [by]), [by]))
    found = pd.DataFrame([_shift(cell, resamples, seed) for _, cell in cells], columns=COLUMNS)
    labels = pd.concat([cell[[*CELL, "dose", by]].head(1) for _, cell in cells]).reset_index(drop=True)
    return pd.concat([labels, found], axis=1)


def _shift(cell: pd.DataFrame, resamples: int, seed: int) -> tuple[int, int, float, float, float]:
    both = cell[cell["choice"].notna() & cell["unsteered_choice"].notna()]
    if both.empty:
        return len(cell), 0, np.nan, np.nan, np.nan
    if both["vector"].iloc[0] == UNSTEERED:
        return len(cell), len(both), 0.0, 0.0, 0.0
    now, then = (both[name].eq(0).to_numpy(bool) for name in ("choice", "unsteered_choice"))
    joint = joint_counts(now, then, prompt_groups(both))
    found = share_change(joint, resamples=resamples, rng=generator(seed), grouped=True)
    shift, low, high = map(float, found)
    return len(cell), len(both), shift, low, high
