"""Sentences about a run's numbers, with intervals, and no more certain than the numbers."""

from collections.abc import Iterable, Sequence

import pandas as pd

from ...directions import SteeringVectors
from ...plots.format import interval, number
from ...sweeps.sweep_table import UNSTEERED, condition_rows
from .report_tables import ALPHA, PLAIN, SIGNED, Row, condition_label, sign_of, value_interval

LITTLE_MASS = 0.5  # of the probability: below it, two choices say little about what the model would say
MUCH_UNREADABLE = 0.1  # share of texts from which the readable ones may not be representative
SCORES = {
    "d_prime": "d′",
    "shift": "the change of the logit difference in the multiplier's direction",
    "flipped": "the share of answers that change",
}
TRAINING_FINDING = (
    "Training claims: these made the vector. Their effects are in-sample, on both halves of the questions, "
    "and may be larger than those on new claims."
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


def effect_finding(
    effects: pd.DataFrame,
    detection: pd.DataFrame,
    chosen: pd.Series,
    *,
    factor: str,
    signal: Sequence[str],
    is_generated: bool = False,
) -> str:
    """Whether steering shifts a bias, improves the answers, or neither: the run's central question.

    Args:
        effects: `effectiveness` by `factor`, or `answer_shifts` of generated text, on the reporting half.
        detection: `signal_detection` of the same questions.
        chosen: the condition to report.
        factor: column of the question types.
        signal: the types whose right answer is the signal; the others' right answer is its opposite.
        is_generated: answers are texts; a shift is the change of the share that says the signal.

    A type has moved if the interval of its shift excludes zero. Whether the whole is bias or sensitivity is
    the `verdict` of `signal_detection`.
    """
    rows = condition_rows(effects, chosen).to_dict("records")
    signs = {str(row[factor]): sign_of(row, "shift") for row in rows}
    shifts = "; ".join(f"{row[factor]} {interval(row, 'shift', SIGNED)}" for row in rows)
    share = f"the share that says {_aim(signal)}" if len(signal) == 1 else "the share of right answers"
    measured = share if is_generated else "the logit difference"
    moved = f"the vector {_movement(signs, factor, signal)} (change of {measured}: {shifts})"
    verdict = _verdict(detection, chosen, signal, has_noise=0 < len(signal) < len(signs))
    return f"At {condition_label(chosen)}, on the half not chosen on, {moved}. {verdict}"


def _movement(signs: dict[str, int], factor: str, signal: Sequence[str]) -> str:
    """How the question types moved; +1 is toward the signal."""
    toward, aim = {1: "toward", -1: "away from"}, _aim(signal)
    if not any(signs.values()):
        return f"moves no kind of question measurably toward or away from {aim}"
    if len(set(signs.values())) == 1:
        (sign,) = set(signs.values())
        return f"moves {'both' if len(signs) == 2 else 'all'} kinds of questions {toward[sign]} {aim}"
    right = {sign if level in signal else -sign for level, sign in signs.items()}
    if len(signal) < len(signs) and len(right) == 1:
        return f"moves each kind of question toward its own {'right' if right == {1} else 'wrong'} answer"
    parts = [f"{level} {toward[sign]} {aim}" for level, sign in signs.items() if sign]
    still = [level for level, sign in signs.items() if not sign]
    rest = f", and {' and '.join(still)} not measurably" if still else ""
    return f"moves questions of {factor} {' and '.join(parts)}{rest}"


def _aim(signal: Sequence[str], several: str = "the right answer") -> str:
    return f"“{signal[0]}”" if len(signal) == 1 else several


def _verdict(detection: pd.DataFrame, chosen: pd.Series, signal: Sequence[str], *, has_noise: bool) -> str:
    """The verdict of `signal_detection` in one sentence, with the numbers that decide it."""
    (row,) = condition_rows(detection, chosen).to_dict("records")
    if not has_noise:
        return "All questions have the same right answer, so bias and sensitivity cannot be distinguished."
    has_logits, verdict = pd.notna(row["auc_change"]), row["verdict"]
    if not has_logits and pd.isna(row["d_prime_change"]):
        return "Too few of these answers can be read to tell bias from sensitivity."
    before = detection[detection["vector"] == UNSTEERED].iloc[0]
    measured = f"{_bias_measure(row)}; {_sensitivity_measure(row, before)}"
    n = int(row["n_signal"] + row["n_noise"])
    if verdict == "cannot tell":
        reason = "too few of some kind for the intervals of d′ and criterion to cover"
        if has_logits:
            change = interval(row, "d_prime_change", SIGNED)
            reason = f"{measured}: the ranking is perfect in both, and d′ changes by {change}"
        return f"These {n} answers cannot tell bias from sensitivity: {reason}."
    if verdict == "neither":
        return f"The {n} answers show no measurable shift of bias or change of sensitivity: {measured}."
    shift = f"a shift of bias {_bias_direction(row, signal)}"
    if verdict == "bias":
        return f"This is {shift}, without a measurable change of sensitivity: {measured}."
    also = f"along with {shift}" if verdict == "both" else "without a measurable shift of bias"
    if _is_reversed(row, before):
        return (
            f"This reverses the answers, {also}: right and wrong are still distinguished, but the opposite "
            f"is said: {measured}."
        )
    improves = row["auc_change" if has_logits else "d_prime_change"] > 0
    return f"This is {'an improvement' if improves else 'a loss of sensitivity'}, {also}: {measured}."


def _bias_direction(row: Row, signal: Sequence[str]) -> str:
    is_toward = row["criterion_change"] < 0 if pd.isna(row["shift"]) else row["shift"] > 0
    return f"{'toward' if is_toward else 'away from'} {_aim(signal, 'the signal')}"


def _bias_measure(row: Row) -> str:
    if pd.isna(row["shift"]):
        return f"the criterion changes by {interval(row, 'criterion_change', SIGNED)}"
    change = f"the logit difference changes by {interval(row, 'shift', SIGNED)}"
    if row["verdict"] not in ("bias", "both") and sign_of(row, "shift"):
        return f"the kinds do not move the same way (on average {change})"
    return f"over both kinds {change}"


def _sensitivity_measure(row: Row, before: Row) -> str:
    if pd.isna(row["auc_change"]):
        return f"d′ changes by {interval(row, 'd_prime_change', SIGNED)}"
    change = interval(row, "auc_change", "+.3f")
    return f"the AUC is {before['auc']:.3f} unsteered and {row['auc']:.3f} steered (change {change})"


def _is_reversed(row: Row, before: Row) -> bool:
    """Whether the right answers were distinguished before, and now the wrong way round."""
    if pd.isna(row["auc_change"]):
        return sign_of(before, "d_prime") > 0 > sign_of(row, "d_prime")
    return bool(before["auc_low"] > 0.5 > row["auc_high"])


def choice_finding(choices: pd.DataFrame) -> str:
    """What was chosen on one half of the questions, and its effect on the other.

    Args:
        choices: two rows from `choose`, the choosing half first.
    """
    on, report = choices.iloc[0], choices.iloc[1]
    score, agreement = on["value_name"], on["selection_agreement"]
    spec = PLAIN if score in ("accuracy", "flipped") else SIGNED
    chosen = (
        f"Chosen by {SCORES.get(score, score)} on {int(on['n'])} questions: {condition_label(on)}, with "
        f"{number(on['value'], spec)}"
    )
    again = "" if pd.isna(agreement) else f", and again in {agreement:.0%} of random halves"
    other = f"On the other {int(report['n'])} it is {value_interval(report, spec)}"
    unless = ", which may be no change at all" if sign_of(report, "change") == 0 else ""
    if score in ("shift", "flipped"):  # a change already
        return f"{chosen}{again}. {other}{unless}."
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


def text_finding(texts: pd.DataFrame) -> str:
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
        f"{texts['prompt_id'].nunique()} open prompts were answered with the vector {', '.join(most)} and "
        f"{last} at {where}. The texts are below to be read; their content is not measured."
    )
