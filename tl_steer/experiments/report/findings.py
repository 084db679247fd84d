"""Sentences made of a run's numbers, with intervals, and no more certain than those."""

from collections.abc import Iterable, Sequence

import pandas as pd

from ...directions import SteeringVectors
from ...sweeps.sweep_table import UNSTEERED, rows_of
from .wording import ALPHA, direction, interval, place, plain, signed

# Below this share of all probability, two choices say little about what the model would say.
LITTLE_MASS = 0.5
# From this share of unreadable texts on, what the readable ones say may not be what all would have.
MUCH_UNREADABLE = 0.1
SCORES = {
    "d_prime": "d′",
    "shift": "the change of the logit difference in the multiplier's direction",
    "flipped": "the share of answers that change",
}

TRAINING_FINDING = (
    "Training claims: these made the vector. What is reported of their answers is in-sample, on both halves "
    "of the questions, and may be larger than on claims that had no part in it."
)


def separation_finding(table: pd.DataFrame) -> str:
    """Where held-out pairs separate better than with shuffled labels.

    Args:
        table: from `analysis.separation`.

    A layer counts where p_corrected is at most 0.05, as in the figure.
    """
    n = f"{int(table['pairs'].iloc[0])} pairs, {int(table['folds'].iloc[0])}-fold"
    best = _highest(table)
    if table["p_corrected"].isna().all():
        return f"Held-out paired accuracy: {best} ({n}); no shuffled labels were run to compare it with."
    if table["null_max"].isna().all():
        return (
            f"Held-out paired accuracy: {best} ({n}). With so few shuffles no layer can reach "
            f"p ≤ {ALPHA}: 19 shuffles or more are needed."
        )
    chance = (
        f"shuffled labels exceed {plain(table['null_max'].iloc[0])} at any layer in 5 % of shuffles ({n})"
    )
    clear = table[table["p_corrected"] <= ALPHA]
    if len(clear):
        return (
            f"Held-out pairs separate at {len(clear)} of {len(table)} layers ({_runs(clear['layer'])}; "
            f"p ≤ {ALPHA}, corrected for all layers): {best}; {chance}."
        )
    return (
        f"The pairs are not shown to separate at any of {len(table)} layers (p ≥ "
        f"{table['p_corrected'].min():.2g}, corrected for all layers): {best}; {chance}. A vector made "
        "of such pairs is not shown to carry what they were meant to differ in."
    )


def _highest(table: pd.DataFrame) -> str:
    """The highest paired accuracy, and at which layers it is."""
    best = table[table["paired_accuracy"] == table["paired_accuracy"].max()]
    first = best.iloc[0]
    accuracy = interval(first, "paired_accuracy", show=plain)
    if len(best) == 1:
        return f"the highest is {accuracy}, at layer {int(first['layer'])}"
    return f"{len(best)} layers tie for the highest, {accuracy}, layer {int(best['layer'].min())} the first"


def choice_finding(choices: pd.DataFrame) -> str:
    """What was chosen on one half of the questions, and what it does on the other.

    Args:
        choices: two rows from `choose`, the choosing half first.
    """
    on, report = choices.iloc[0], choices.iloc[1]
    shown = plain if on["score"] in ("accuracy", "flipped") else signed
    best, result = shown(on["value"]), shown(report["value"])
    around = f"[{shown(report['low'])}, {shown(report['high'])}]"
    by = SCORES.get(on["score"], on["score"])
    picked = f"Chosen by {by} on {int(on['n'])} questions: {place(on)}, with {best}"
    other = f"On the other {int(report['n'])} it is {result} {around}"
    again = (
        ""
        if pd.isna(on["selection_agreement"])
        else f", and again in {on['selection_agreement']:.0%} of random halves"
    )
    if on["score"] in ("shift", "flipped"):  # a change already
        return f"{picked}{again}. {other}{_unless_zero(report)}."
    caution = " A bias that makes answers alike moves d′ too: the verdict says which it is."
    return (
        f"{picked} (unsteered {shown(on['unsteered'])}){again}. {other}, unsteered "
        f"{shown(report['unsteered'])}: a change of {interval(report, 'change')}{_unless_zero(report)}."
        + caution
        * (on["score"] == "d_prime")
    )


def mass_finding(rows: pd.DataFrame, chosen: pd.Series) -> str | None:
    """A warning where the two choices hold little of the probability, unsteered or at the chosen cell.

    `None` where they hold enough, or where answers are texts and there is no such share.
    """
    masses = {
        "unsteered": rows.loc[rows["vector"] == UNSTEERED, "mass"].mean(),
        "steered": rows_of(rows, chosen)["mass"].mean(),
    }
    if rows["mass"].isna().all() or min(masses.values()) >= LITTLE_MASS:
        return None
    return (
        f"Caution: the two choices together hold {plain(masses['unsteered'])} of the probability unsteered, "
        f"{plain(masses['steered'])} steered; most of the time the model would say something else."
    )


def unreadable_finding(rows: pd.DataFrame, cells: Sequence[pd.Series]) -> str:
    """How many texts name neither choice, unsteered and in some cells.

    Args:
        rows: a sweep's rows, of the questions that had no part in choosing.
        cells: the chosen cell, and whichever else is spoken of.
    """
    counted = {"unsteered": rows.loc[rows["vector"] == UNSTEERED, "choice"]}
    counted |= {f"at {place(cell)}": rows_of(rows, cell)["choice"] for cell in cells}
    if not any(choice.isna().any() for choice in counted.values()):
        return "The answers are texts, and in each of these a choice could be read."
    told = ", ".join(f"{choice.isna().sum()} of {len(choice)} {where}" for where, choice in counted.items())
    much = max(choice.isna().mean() for choice in counted.values()) >= MUCH_UNREADABLE
    return (
        f"{'Caution: t' if much else 'T'}he answers are texts, and in some no choice can be read ({told}). "
        "They count as wrong in an accuracy, and are left out of shares, d′ and criterion, which therefore "
        "speak of the other questions alone."
    )


def prompts_finding(vectors: SteeringVectors) -> str:
    """What the vectors of one or two prompts are."""
    made = {**vectors.info, **vectors.info.get("arguments", {})}  # older runs have no "arguments"
    positive, negative, count = (made[key] for key in ("positive", "negative", "positions"))
    where = f"at {vectors.hook}: one vector for each of the first {count} tokens, where they are added."
    if negative is None:
        return (
            f"The vector is the residual stream on {positive!r}, nothing subtracted, {where} It holds "
            "whatever the model computes on such a prompt, also what it computes on any prompt."
        )
    return (
        f"The vector is the residual stream on {positive!r} minus that on {negative!r}, {where} Two prompts "
        "cannot tell what they were meant to differ in from what else they differ in."
    )


def text_finding(texts: pd.DataFrame) -> str:
    """What texts there are; nothing is claimed of them."""
    layers = [name for name in texts["layers"].unique() if name]
    where = f"{'layers' if len(layers) > 1 else 'layer'} {', '.join(layers)}"
    return (
        f"{texts['prompt_id'].nunique()} open prompts were answered with the vector {_ways(texts)} at "
        f"{where}. The texts are below to be read; what they say is not measured."
    )


def _ways(texts: pd.DataFrame) -> str:
    """What was done to the vector, in words: "subtracted, left out and added"."""
    done = {
        "subtracted": (texts["multiplier"] < 0).any(),
        "left out": True,
        "added": (texts["multiplier"] > 0).any(),
        "projected out": (texts["operation"] == "project_out").any(),
    }
    ways = [way for way, was in done.items() if was]
    return f"{', '.join(ways[:-1])} and {ways[-1]}"


def _unless_zero(row: pd.Series) -> str:
    return ", which may be no change at all" if direction(row, "change") == 0 else ""


def _runs(layers: Iterable[int]) -> str:
    """Layers as runs: "0–4, 7, 9–11"."""
    layers = sorted(int(layer) for layer in layers)
    starts = [layer for layer in layers if layer - 1 not in layers]
    ends = [layer for layer in layers if layer + 1 not in layers]
    return ", ".join(str(a) if a == b else f"{a}–{b}" for a, b in zip(starts, ends, strict=True))
