"""Sentences about a run's numbers, with intervals, and no more certain than the numbers."""

from collections.abc import Iterable, Sequence

import pandas as pd

from ..directions import SteeringVectors
from ..plots.format import counted, interval, number
from ..sweeps.sweep_table import UNSTEERED, condition_rows
from .report_tables import ALPHA, PLAIN, SIGNED, condition_label, sign_of, value_interval

LITTLE_MASS = 0.5  # of the probability: below it, two choices say little about what the model would say
MUCH_UNREADABLE = 0.1  # share of texts from which the readable ones may not be representative
SCORES = {
    "d_prime": "d′",
    "shift": "the change of the logit difference in the multiplier's direction",
    "flipped": "the share of answers that change",
}
TRAINING_FINDING = (
    "These are training claims: they made the vector. Effects on both halves of them are in-sample, and may "
    "be larger than those on new claims."
)


def separation_finding(table: pd.DataFrame) -> str:
    """Where held-out pairs separate better than with shuffled labels.

    Args:
        table: from `analysis.separation`.

    A layer counts if p_corrected is at most 0.05, as in the figure.
    """
    first, best = table.iloc[0], _highest(table)
    n = f"{int(first['pairs'])} pairs, {int(first['folds'])}-fold"
    if table["p_corrected"].isna().all():
        return f"Held-out paired accuracy: {best} ({n}); no shuffled labels were run to compare it with."
    if table["null_max"].isna().all():
        return (
            f"Held-out paired accuracy: {best} ({n}). With so few shuffles no layer can reach "
            f"p ≤ {ALPHA}: 19 shuffles or more are needed."
        )
    highest = number(first["null_max"], PLAIN)
    chance = f"shuffled labels exceed {highest} at any layer in 5 % of shuffles ({n})"
    clear = table[table["p_corrected"] <= ALPHA]
    if len(clear):
        return (
            f"Held-out pairs separate at {len(clear)} of {len(table)} layers ({_runs(clear['layer'])}; "
            f"p ≤ {ALPHA}, corrected for all layers): {best}; {chance}."
        )
    return (
        f"The pairs are not shown to separate at any of {len(table)} layers (p ≥ "
        f"{table['p_corrected'].min():.2g}, corrected for all layers): {best}; {chance}. A vector of such "
        "pairs is not shown to carry their intended difference."
    )


def _highest(table: pd.DataFrame) -> str:
    best = table[table["paired_accuracy"] == table["paired_accuracy"].max()]
    first = best.iloc[0]
    accuracy = interval(first, "paired_accuracy", PLAIN)
    if len(best) == 1:
        return f"the highest is {accuracy}, at layer {int(first['layer'])}"
    return f"{len(best)} layers tie for the highest, {accuracy}, layer {int(best['layer'].min())} the first"


def _runs(layers: Iterable[int]) -> str:
    """Layers as runs: "0–4, 7, 9–11"."""
    layers = sorted(map(int, layers))
    starts = [layer for layer in layers if layer - 1 not in layers]
    ends = [layer for layer in layers if layer + 1 not in layers]
    return ", ".join(str(a) if a == b else f"{a}–{b}" for a, b in zip(starts, ends, strict=True))


def choice_finding(choices: pd.DataFrame) -> str:
    """What was chosen on one half of the questions, and its effect on the other.

    Args:
        choices: two rows from `choose`, the choosing half first.
    """
    on, report = choices.iloc[0], choices.iloc[1]
    score, agreement = on["value_name"], on["selection_agreement"]
    spec = PLAIN if score in ("accuracy", "flipped") else SIGNED
    chosen = (
        f"Chosen by {SCORES.get(score, score)} on {int(on['n'])} questions: {on['vector']} at "
        f"{condition_label(on)}, with "
        f"{number(on['value'], spec)}"
    )
    again = "" if pd.isna(agreement) else f", and again in {agreement:.0%} of random halves"
    other = f"On the other {int(report['n'])} it is {value_interval(report, spec)}"
    unless = ", which may be no change at all" if sign_of(report, "change") == 0 else ""
    if score in ("shift", "flipped"):  # a change already
        return f"{chosen}{again}. On the other {int(report['n'])} it is {number(report['value'], spec)}."
    unsteered, now = (number(row["unsteered"], spec) for row in (on, report))
    change = interval(report, "change", SIGNED)
    caution = " A bias that makes answers alike moves d′ too: the verdict says which it is."
    return (
        f"{chosen} (unsteered {unsteered}){again}. {other}, unsteered {now}: a change of {change}{unless}."
        + caution * (score == "d_prime")
    )


def mass_finding(rows: pd.DataFrame, chosen: pd.Series) -> str | None:
    """A warning if the two choices have little of the probability, unsteered or at the chosen condition.

    `None` if they have enough, or for generated text, which has no such share.
    """
    unsteered = rows.loc[rows["vector"] == UNSTEERED, "mass"].mean()
    steered = condition_rows(rows, chosen)["mass"].mean()
    if rows["mass"].isna().all() or min(unsteered, steered) >= LITTLE_MASS:
        return None
    return (
        f"Caution: the two choices together have {number(unsteered, PLAIN)} of the probability unsteered, "
        f"{number(steered, PLAIN)} steered; most of the time the model would say something else."
    )


def unreadable_finding(rows: pd.DataFrame, conditions: Sequence[pd.Series]) -> str:
    """How many texts name neither choice, unsteered and in some conditions of the reporting half."""
    choices = {"unsteered": rows.loc[rows["vector"] == UNSTEERED, "choice"]}
    choices |= {f"at {condition_label(each)}": condition_rows(rows, each)["choice"] for each in conditions}
    if not any(choice.isna().any() for choice in choices.values()):
        return "The answers are texts, and a choice can be read in each of these."
    counts = ", ".join(f"{choice.isna().sum()} of {len(choice)} {where}" for where, choice in choices.items())
    much = max(choice.isna().mean() for choice in choices.values()) >= MUCH_UNREADABLE
    return (
        f"{'Caution: s' if much else 'S'}ome of the answers are texts without a readable choice ({counts}). "
        "They count as wrong in an accuracy. Shares, d′ and criterion leave them out, and so are about the "
        "other questions only."
    )


def prompts_finding(vectors: SteeringVectors) -> str:
    """What the vectors of one or two prompts are."""
    info = {**vectors.info, **vectors.info.get("arguments", {})}  # older runs have no "arguments"
    positive, negative, count = (info[key] for key in ("positive", "negative", "positions"))
    where = f"at {vectors.hook}: one vector for each of the first {count} tokens, where they are added."
    if negative is None:
        return (
            f"The vector is the residual stream on {positive!r}, nothing subtracted, {where} It also "
            "contains what the model computes on any prompt."
        )
    return (
        f"The vector is the residual stream on {positive!r} minus that on {negative!r}, {where} Two prompts "
        "cannot tell their intended difference from any other."
    )


def text_finding(texts: pd.DataFrame, sampling: str) -> str:
    """How many open prompts were answered, and where; nothing is claimed about the texts."""
    layers = [name for name in texts["layers"].unique() if name]
    where = f"{'layers' if len(layers) > 1 else 'layer'} {', '.join(layers)}"
    operations = {
        "subtracted": (texts["multiplier"] < 0).any(),
        "left out": True,
        "added": (texts["multiplier"] > 0).any(),
        "projected out": (texts["operation"] == "project_out").any(),
    }
    *most, last = [name for name, was_run in operations.items() if was_run]
    return (
        f"{counted([texts['prompt_id'].nunique()], 'open prompt')} answered with the vector "
        f"{', '.join(most)} and {last} at {where}{f' ({sampling})' * bool(sampling)}. Their content is not "
        "measured."
    )
