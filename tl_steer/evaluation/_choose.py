"""The layer and dose that do best on one half of the prompts, measured on the other half."""

import html
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool

from .._util.validation import checked
from ..sweeps.selection import (
    NULL_COLUMNS,
    SELECTION_COLUMNS,
    Candidates,
    Score,
    best,
    candidates,
    halvings,
    null_columns,
    selection_columns,
)
from ..sweeps.sweep_table import (
    CELL,
    UNSTEERED,
    beside_unsteered,
    in_cell,
    require_one_row_a_prompt,
    serves,
    sweep_table,
    text_keys,
)
from .condition_scores import MEASURED, measure_of

UNREADABLE = ("unreadable", "unreadable_unsteered")
LABELS = (
    "vector", "operation", "layers", "hook", "multiplier", "dose", "split", "n", *UNREADABLE, "score",
)  # fmt: skip


@checked
def choose(
    table: pd.DataFrame,
    *,
    on: str,
    report: str,
    score: Score = "accuracy",
    resamples: int = 2000,
    seed: int = 0,
    splits: int = 100,
) -> pd.DataFrame:
    """For each vector and operation, the best cell on some prompts, and what it does on others.

    Args:
        table: a sweep's table; its column `split` tells the prompts apart.
        on: the split on which layer and multiplier are chosen.
        report: the split that had no part in the choice. Its row is the result; the other one is flattered.
        score: "accuracy", in which an unreadable answer is wrong: it rewards vectors that make answers
            readable; "readable_accuracy", of the readable answers alone; "d_prime"; "shift", the mean change
            of the logit difference times the sign of the multiplier (a projection has none and counts as
            plus); "flipped", the share of choices that are another than unsteered, whichever way; or a
            function of a cell's rows.
        resamples: bootstrap draws.
        seed: of the draws and of the halvings.
        splits: random halvings of all these prompts, in which the choice is made again; 0 leaves NaN. A
            function is called for each half of each cell: with one that is slow, take fewer.

    Returns:
        With a line of words per vector and operation in `attrs["summary"]`, which a notebook shows, two rows
        (split `on`, then `report`) for each vector and operation, controls left out: vector,
        operation, layers, hook, multiplier, dose, split, n, score (its name), and
        unreadable, unreadable_unsteered: shares of these prompts whose answer could not be read, under the
            condition and unsteered. Where the second is larger, accuracy may have risen for that alone.
        value, low, high: the score and its 95 % interval: Wilson's for accuracy and flips, that of
            `signal_detection` for d′, the paired t interval for the shift; for a function, by bootstrap.
        unsteered: the same score of the unsteered model on the same prompts.
        change, change_low, change_high: against unsteered, by paired bootstrap over prompts. For d′ and
            readable accuracy on the prompts readable in both; a shift is a change already.
        And, the same on both rows, about the choice itself:
        in_sample_score: the score of the cell chosen on all prompts of both splits, on the same prompts.
        held_out_score: the mean, over the halvings, of the score on one half of what was chosen on the other;
            each half takes its turn.
        optimism: the mean, over the same, of how much better what was chosen looks on the half that it was
            chosen on. Never below 0: on each half its own choice is at least as good as the other's.
        optimism_low, optimism_high: between them lie 95 % of the halvings. A spread over splits of the same
            prompts, not a confidence interval.
        selection_agreement: share of choices on a half that fall on the very cell of these rows.
        controls: how many control vectors were put through the same choice: best cell on `on`, score on
            `report`. Those swept under the same operation at all the same cells; else there is no null.
        null_low, null_high: the lowest and the highest of their scores on `report`.
        p_value: how often such a control does as well as the vector on `report`, itself counted:
            (b + 1) / (m + 1), so never below 1 / (m + 1). With vectors of exchanged labels as controls this
            is nearly a permutation test of the whole way from pairs to result (see `control_vectors`: not
            with few groups); with random directions it compares with any push.

    Raises:
        ValueError: the two splits are one, one is not there, a prompt is in both, a cell lacks prompts that
            another has (the unsteered cell among them), only controls are there, no cell has a score, or
            `splits` is negative.

    Of cells with equal scores the one with the smallest |dose| is taken, then the one with the earlier layer,
    then the one that comes first in the table.

    Source: the optimism, Efron 1986, JASA 81, 461–470; choosing anew in each split, Varma & Simon 2006, BMC
    Bioinformatics 7, 91; the p value, Phipson & Smyth 2010, section 3.
    """
    measure, name = measure_of(score)
    table = sweep_table(table, "prompt_id", "split")
    _require_splits(table, on, report, splits)
    both = table[table["split"].isin([on, report])]
    require_one_row_a_prompt(both)
    is_control = both["control"].astype(bool)
    wanted = both[~is_control]
    _require_complete(wanted)
    before = wanted[wanted["vector"] == UNSTEERED]
    parts = np.stack([(before["split"] == part).to_numpy() for part in (on, report)])
    halves = halvings(before, splits, seed)
    found = []
    steered = wanted[wanted["vector"] != UNSTEERED]
    for (vector, operation), rows in steered.groupby(["vector", "operation"], sort=False):
        cells = candidates(rows, before, score)
        place = _place(cells, parts)
        mates = is_control & (both["operation"] == operation) & serves(both, vector)
        about = selection_columns(cells, halves, place) | null_columns(
            cells, both[mates], before, score, parts
        )
        chosen = wanted[in_cell(wanted, cells.labels.iloc[place]) | (wanted["vector"] == UNSTEERED)]
        for split in (on, report):
            measured = measure(chosen[chosen["split"] == split], resamples, seed)
            shares = _unreadable(chosen[chosen["split"] == split])
            found.append(measured.assign(split=split, score=name, **shares, **about))
    chosen = _Chosen(
        pd.concat(found)[[*LABELS, *MEASURED, *SELECTION_COLUMNS, *NULL_COLUMNS]].reset_index(drop=True)
    )
    rows = chosen.to_dict("records")
    chosen.attrs["summary"] = "\n".join(map(_summary, rows[::2], rows[1::2]))
    return chosen


class _Chosen(pd.DataFrame):
    """The table of `choose`: a notebook shows the summary above it; what is selected from it is plain."""

    def _repr_html_(self) -> str | None:
        table = super()._repr_html_()
        return table and f"<pre>{html.escape(self.attrs.get('summary', ''))}</pre>{table}"


def _summary(on: Mapping[str, Any], report: Mapping[str, Any]) -> str:
    """The choice in a line: the condition, its score where it was chosen and on the other prompts, and p."""
    multiplier = "" if pd.isna(on["multiplier"]) else f" × {on['multiplier']:g}"
    reported = "{value:.3g} [{low:.3g}, {high:.3g}]".format(**report)
    if report["score"] != "shift":
        reported += ", change {change:+.3g} [{change_low:.3g}, {change_high:.3g}]".format(**report)
    p_value = "no p value (it needs controls at all these conditions)"
    if report["controls"]:
        p_value = f"p = {report['p_value']:.2g} against {report['controls']:g} controls"
    where = f"{on['vector']}, {on['operation']}{multiplier} at {on['hook']} of layer {on['layers']}"
    chosen = f"best {on['score']} on {on['n']:g} prompts ({on['split']}), {on['value']:.3g}"
    others = f"on {report['n']:g} others ({report['split']}) {reported}"
    return f"{where}: {chosen}; {others}; {p_value}"


def _unreadable(rows: pd.DataFrame) -> dict[str, float]:
    unsteered, unread = rows["vector"] == UNSTEERED, rows["choice"].isna()
    shares = (float(unread[~unsteered].mean()), float(unread[unsteered].mean()))
    return dict(zip(UNREADABLE, shares, strict=True))


def _place(cells: Candidates, parts: Bool[np.ndarray, "2 prompt"]) -> int:
    """Of the cell chosen on the first part."""
    (place,) = best(cells.scores(parts[:1]))
    if place < 0:
        raise ValueError(
            f"no cell of {cells.labels['vector'].iloc[0]!r} has a score: are choices and answers known?"
        )
    return int(place)


def _require_splits(table: pd.DataFrame, on: str, report: str, splits: int) -> None:
    if splits < 0:
        raise ValueError(f"splits={splits} is negative: give how often to halve the prompts, 0 for never.")
    if on == report:
        raise ValueError(f"on and report are both {on!r}: report on prompts that had no part in the choice.")
    known = set(table["split"].dropna())
    for split in (on, report):
        if split not in known:
            raise ValueError(f"there is no split {split!r}; the table has {sorted(map(str, known))}.")
    for column in table.columns.intersection(["prompt_id", "prompt"]):
        prompts = [set(table.loc[table["split"] == split, column]) for split in (on, report)]
        if shared := prompts[0] & prompts[1]:
            raise ValueError(
                f"{column} {sorted(shared)[:5]!r:.200} in both {on!r} and {report!r}: expected prompts that "
                "are in one of them, by their text too. Give repeated prompts the same split."
            )


def _require_complete(wanted: pd.DataFrame) -> None:
    """Every cell has every prompt once, so that scores compare like with like."""
    rows = beside_unsteered(wanted, [])
    steered = wanted["vector"] != UNSTEERED
    if not steered.any():
        raise ValueError("the table has no steered cell but controls: there is nothing to choose from.")
    cells = len(wanted[list(CELL)].drop_duplicates())
    unsteered = wanted.loc[~steered, "prompt_id"]
    texts = len(rows[text_keys(rows)].drop_duplicates())
    if len(rows) != cells * texts or not rows["prompt_id"].isin(unsteered).all():
        raise ValueError(
            "every cell, the unsteered one too, needs all prompts of both splits: give the whole sweep."
        )
