"""The layer and dose that do best on one half of the prompts, measured on the other half."""

import numpy as np
import pandas as pd

from .scores import MEASURED, Score, measure_of
from .tables import CELL, UNSTEERED, beside_unsteered, in_cell, require_columns


def choose(
    table: pd.DataFrame,
    *,
    on: str,
    report: str,
    score: Score = "accuracy",
    resamples: int = 2000,
    seed: int = 0,
) -> pd.DataFrame:
    """For each vector and operation, the best cell on some prompts, and what it does on others.

    Args:
        table: a sweep's table; its column `split` tells the prompts apart.
        on: the split on which layer and multiplier are chosen.
        report: the split that had no part in the choice. Its row is the result; the other one is flattered.
        score: "accuracy"; "d_prime"; "shift", the mean change of the logit difference times the sign of the
            multiplier (a projection has none and counts as plus); or a function of a cell's rows.
        resamples: bootstrap draws.
        seed: of the draws.

    Returns:
        Two rows (split `on`, then `report`) for each vector and operation, controls left out: vector,
        operation, layers, hook, multiplier, dose, split, n, score (its name), and
        value, low, high: the score and its 95 % interval: Wilson's for accuracy, the bootstrap of
            `signal_detection` for d′, the paired t interval for the shift; for a function, by bootstrap.
        unsteered: the same score of the unsteered model on the same prompts.
        change, change_low, change_high: against unsteered, by paired bootstrap over prompts. For d′ on the
            prompts readable in both; a shift is a change already.

    Raises:
        ValueError: the two splits are one, one is not there, a prompt is in both, a cell lacks prompts that
            another has (the unsteered cell among them), only controls are there, or no cell has a score.

    Of cells with equal scores the one with the smallest |dose| is taken, then the one with the earlier layer,
    then the one that comes first in the table.
    """
    measure, name = measure_of(score)
    _require_splits(table, on, report)
    wanted = table[table["split"].isin([on, report]) & ~table["control"].astype(bool)]
    _require_complete(wanted)
    ranked = measure(wanted[wanted["split"] == on], 1, seed)
    rows = []
    for _, cells in ranked.groupby(["vector", "operation"], sort=False):
        chosen = wanted[in_cell(wanted, _best(cells)) | (wanted["vector"] == UNSTEERED)]
        for split in (on, report):
            found = measure(chosen[chosen["split"] == split], resamples, seed)
            rows.append(found.assign(split=split, score=name))
    columns = [
        "vector",
        "operation",
        "layers",
        "hook",
        "multiplier",
        "dose",
        "split",
        "n",
        "score",
        *MEASURED,
    ]
    return pd.concat(rows)[columns].reset_index(drop=True)


def _require_splits(table: pd.DataFrame, on: str, report: str) -> None:
    require_columns(table, "prompt_id", *CELL, "split")
    if on == report:
        raise ValueError(f"on and report are both {on!r}: report on prompts that had no part in the choice.")
    known = set(table["split"].dropna())
    for split in (on, report):
        if split not in known:
            raise ValueError(f"there is no split {split!r}; the table has {sorted(map(str, known))}.")
    prompts = [set(table.loc[table["split"] == split, "prompt_id"]) for split in (on, report)]
    if shared := prompts[0] & prompts[1]:
        raise ValueError(
            f"prompt_ids {sorted(shared)[:5]} are in both {on!r} and {report!r}: part the prompts."
        )


def _require_complete(wanted: pd.DataFrame) -> None:
    """Every cell has every prompt once, so that scores compare like with like."""
    rows = beside_unsteered(wanted, [])
    steered = wanted["vector"] != UNSTEERED
    if not steered.any():
        raise ValueError("the table has no steered cell but controls: there is nothing to choose from.")
    cells = len(wanted[list(CELL)].drop_duplicates())
    unsteered = wanted.loc[~steered, "prompt_id"]
    if len(rows) != cells * rows["prompt_id"].nunique() or not rows["prompt_id"].isin(unsteered).all():
        raise ValueError(
            "every cell, the unsteered one too, needs all prompts of both splits: give the whole sweep."
        )


def _best(cells: pd.DataFrame) -> pd.Series:
    scored = cells[cells["value"].notna()]
    if scored.empty:
        raise ValueError(
            f"no cell of {cells['vector'].iloc[0]!r} has a score: are choices and answers known?"
        )
    order = pd.DataFrame(
        {
            "worse": -scored["value"],
            "dose": scored["dose"].abs().fillna(np.inf),
            "layer": [min(map(int, layers.split("+"))) for layers in scored["layers"]],
        }
    )
    return scored.loc[order.sort_values(["worse", "dose", "layer"], kind="stable").index[0]]
