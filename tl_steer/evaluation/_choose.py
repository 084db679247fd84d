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
    UNSTEERED,
    by_condition,
    condition_rows,
    require_unique_prompts,
    serves,
    text_keys,
    validated_sweep,
)
from .condition_scores import MEASURED, measure_of

LABELS = (
    "vector", "operation", "layers", "hook", "multiplier", "dose", "split", "n", "unreadable",
    "unreadable_unsteered", "value_name",
)  # fmt: skip


@checked
def choose(
    table: pd.DataFrame,
    *,
    on: str,
    report: str,
    value: Score = "accuracy",
    resamples: int = 2000,
    seed: int = 0,
    splits: int = 100,
) -> pd.DataFrame:
    """For each vector and operation, the best condition on some prompts, and what it does on others.

    Args:
        table: a sweep's table; its column `split` divides the prompts.
        on: the split on which layer and multiplier are chosen.
        report: the split that had no part in the choice. Its row is the result; the other one is flattered.
        value: "accuracy", in which an unreadable answer is wrong: it rewards vectors that make answers
            readable; "readable_accuracy", of the readable answers alone; "d_prime"; "shift", the mean change
            of the logit difference times the sign of the multiplier (a projection has none and counts as
            plus); "flipped", the share of choices that differ from unsteered, in either direction; or a
            function of a condition's rows.
        resamples: bootstrap draws.
        seed: of the draws and of the halvings.
        splits: random halvings of all these prompts, in which the choice is repeated; 0 leaves NaN. A
            function is called for each half of each condition: with a slow one, take fewer.

    Returns:
        Two rows (split `on`, then `report`) for each vector and operation, controls left out, with one line
        of text for each pair of rows in `attrs["summary"]`, which a notebook shows: vector, operation,
        layers, hook, multiplier, dose, split, n, value_name (the score's name), and
        unreadable, unreadable_unsteered: shares of these prompts whose answer could not be read, under the
            condition and unsteered. Where the second is larger, accuracy may have risen for that alone.
        value, low, high: the score and its 95 % interval: Wilson's for accuracy and flips, that of
            `signal_detection` for d′, the paired t interval for the shift; for a function, by bootstrap.
        unsteered: the same score of the unsteered model on the same prompts.
        change, change_low, change_high: against unsteered, by paired bootstrap over prompts. For d′ and
            readable accuracy on the prompts readable in both; a shift is a change already.
        And, the same in both rows, about the choice itself:
        in_sample_score: the score of the condition chosen on all prompts of both splits, on the same prompts.
        held_out_score: the mean, over the halvings, of the score on one half of the condition chosen on the
            other; each half takes its turn.
        optimism: the mean, over the same, of how much better the chosen condition is on the half that it was
            chosen on. Never below 0.
        optimism_low, optimism_high: between them lie 95 % of the halvings. A spread over splits of the same
            prompts, not a confidence interval.
        selection_agreement: share of choices on a half that are the condition of these rows.
        controls: how many control vectors went through the same choice: best condition on `on`, score on
            `report`. Those swept under the same operation in all the same conditions; else there is no null.
        null_low, null_high: the lowest and the highest of their scores on `report`.
        p_value: how often such a control does as well as the vector on `report`, itself counted:
            (b + 1) / (m + 1), so never below 1 / (m + 1). With vectors of shuffled labels as controls this
            is nearly a permutation test of the whole way from pairs to result (see `control_vectors`: not
            with few groups); with random directions it compares with any vector of this length.

    Raises:
        ValueError: the two splits are one, one is missing, a prompt is in both, a condition lacks prompts
            that another has (the unsteered one included), only controls are there, no condition has a score,
            or `splits` is negative.

    Of conditions with equal scores the one with the smallest |dose| is taken, then the one with the earlier
    layer, then the one that comes first in the table.

    Source: the optimism, Efron 1986, JASA 81, 461–470; choosing again in each split, Varma & Simon 2006, BMC
    Bioinformatics 7, 91; the p value, Phipson & Smyth 2010, section 3.
    """
    measure, name = measure_of(value)
    table = validated_sweep(table, "prompt_id", "split")
    _require_splits(table, on, report, splits)
    both = table[table["split"].isin([on, report])]
    require_unique_prompts(both)
    is_control = both["control"].astype(bool)
    studied = both[~is_control]
    _require_complete(studied)
    is_unsteered = studied["vector"] == UNSTEERED
    unsteered = studied[is_unsteered]
    parts = np.stack([(unsteered["split"] == part).to_numpy() for part in (on, report)])
    halves = halvings(unsteered, splits, seed)
    results = []
    for (vector, operation), rows in studied[~is_unsteered].groupby(["vector", "operation"], sort=False):
        conditions = candidates(rows, unsteered, value)
        index = _best(conditions, parts)
        controls = both[is_control & (both["operation"] == operation) & serves(both, vector)]
        evidence = selection_columns(conditions, halves, index) | null_columns(
            conditions, controls, unsteered, value, parts
        )
        chosen = pd.concat([condition_rows(rows, conditions.labels.iloc[index]), unsteered])
        for split in (on, report):
            half = chosen[chosen["split"] == split]
            row = measure(half, resamples, seed).assign(split=split, value_name=name, **evidence)
            results.append(row.assign(**_unreadable(half)))
    result = _Chosen(
        pd.concat(results)[[*LABELS, *MEASURED, *SELECTION_COLUMNS, *NULL_COLUMNS]].reset_index(drop=True)
    )
    rows = result.to_dict("records")
    result.attrs["summary"] = "\n".join(map(_summary, rows[::2], rows[1::2]))
    return result


class _Chosen(pd.DataFrame):
    """The table of `choose`: a notebook shows the summary above it; selections from it are plain tables."""

    def _repr_html_(self) -> str | None:
        table = super()._repr_html_()
        return table and f"<pre>{html.escape(self.attrs.get('summary', ''))}</pre>{table}"


def _summary(on: Mapping[str, Any], report: Mapping[str, Any]) -> str:
    """The choice in one line: the condition, its score on the prompts of the choice and on the others, p."""
    multiplier = "" if pd.isna(on["multiplier"]) else f" × {on['multiplier']:g}"
    reported = "{value:.3g} [{low:.3g}, {high:.3g}]".format(**report)
    if report["value_name"] != "shift":
        reported += ", change {change:+.3g} [{change_low:.3g}, {change_high:.3g}]".format(**report)
    p_value = "no p value (it needs controls at all these conditions)"
    if report["controls"]:
        p_value = f"p = {report['p_value']:.2g} against {report['controls']:g} controls"
    condition = f"{on['vector']}, {on['operation']}{multiplier} at {on['hook']} of layer {on['layers']}"
    chosen = f"best {on['value_name']} on {on['n']:g} prompts ({on['split']}), {on['value']:.3g}"
    others = f"on {report['n']:g} others ({report['split']}) {reported}"
    return f"{condition}: {chosen}; {others}; {p_value}"


def _unreadable(rows: pd.DataFrame) -> dict[str, float]:
    unsteered, unread = rows["vector"] == UNSTEERED, rows["choice"].isna()
    return {
        "unreadable": float(unread[~unsteered].mean()),
        "unreadable_unsteered": float(unread[unsteered].mean()),
    }


def _best(conditions: Candidates, parts: Bool[np.ndarray, "2 prompt"]) -> int:
    """Index of the condition that is best on the first part."""
    (index,) = best(conditions.scores(parts[:1]))
    if index < 0:
        vector = conditions.labels["vector"].iloc[0]
        raise ValueError(f"no condition of {vector!r} has a score: expected known choices and answers.")
    return int(index)


def _require_splits(table: pd.DataFrame, on: str, report: str, splits: int) -> None:
    if splits < 0:
        raise ValueError(f"splits={splits} is negative: expected a number of halvings, 0 for never.")
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


def _require_complete(studied: pd.DataFrame) -> None:
    """Every condition has every prompt (and draw), so that scores compare like with like."""
    unsteered = studied["vector"] == UNSTEERED
    if unsteered.all():
        raise ValueError(
            "all steered conditions are controls: expected conditions of a vector to choose from."
        )
    texts = len(studied[text_keys(studied)].drop_duplicates())
    conditions = by_condition(studied).ngroups
    known = studied["prompt_id"].isin(studied.loc[unsteered, "prompt_id"])
    if len(studied) != conditions * texts or not known.all():
        raise ValueError(
            "some conditions lack prompts: expected all prompts of both splits in each condition, the "
            "unsteered one too. Pass the whole sweep."
        )
