"""Whether a vector shifts a bias, improves the answers, or neither: a run's central question, in words."""

from collections.abc import Sequence
from functools import partial

import pandas as pd

from ...sweeps.sweep_table import UNSTEERED, rows_of
from .wording import Row, direction, interval, place, signed


def effect_finding(
    effects: pd.DataFrame,
    detection: pd.DataFrame,
    chosen: pd.Series,
    *,
    factor: str,
    signal: Sequence[str],
    written: bool = False,
) -> str:
    """Whether steering shifts a bias, improves the answers, or neither: the run's central question.

    Args:
        effects: `effectiveness` by `factor`, of the questions that had no part in choosing; where answers
            are texts, `answer_shifts` of them.
        detection: `signal_detection` of the same questions.
        chosen: the chosen cell, with the columns of a cell.
        factor: tells the kinds of questions apart.
        signal: the kinds whose right answer is the signal; the others' right answer is its opposite.
        written: answers are texts, and a shift is of the share of them that say the signal.

    A kind has moved where the interval of its shift (mean change of the logit difference, or of that share)
    excludes zero. Whether the whole is bias or sensitivity is the `verdict` of `signal_detection`.
    """
    rows = rows_of(effects, chosen).to_dict("records")
    moves = {str(row[factor]): direction(row, "shift") for row in rows}
    shifts = "; ".join(f"{row[factor]} {interval(row, 'shift')}" for row in rows)
    measured = _share(signal) if written else "the logit difference"
    moved = f"the vector {_moved(moves, factor, signal)} (change of {measured}: {shifts})"
    verdict = _verdict(detection, chosen, signal, has_noise=0 < len(signal) < len(moves))
    return f"At {place(chosen)}, on the half not chosen on, {moved}. {verdict}"


def _moved(moves: dict[str, int], factor: str, signal: Sequence[str]) -> str:
    """What happened to the kinds, in words; +1 is toward the signal."""
    toward = {1: "toward", -1: "away from"}
    aim = _aim(signal)
    if not any(moves.values()):
        return f"moves no kind of question measurably toward or away from {aim}"
    if len(set(moves.values())) == 1:
        (way,) = set(moves.values())
        return f"moves {'both' if len(moves) == 2 else 'all'} kinds of questions {toward[way]} {aim}"
    if len(signal) < len(moves):
        right = {kind: way if kind in signal else -way for kind, way in moves.items()}
        if set(right.values()) == {1}:
            return "moves each kind of question toward its own right answer"
        if set(right.values()) == {-1}:
            return "moves each kind of question toward its own wrong answer"
    parts = [f"{kind} {toward[way]} {aim}" for kind, way in moves.items() if way]
    still = [kind for kind, way in moves.items() if not way]
    rest = f", and {' and '.join(still)} not measurably" if still else ""
    return f"moves questions of {factor} {' and '.join(parts)}{rest}"


def _aim(signal: Sequence[str]) -> str:
    return f"“{signal[0]}”" if len(signal) == 1 else "the right answer"


def _share(signal: Sequence[str]) -> str:
    return f"the share that says {_aim(signal)}" if len(signal) == 1 else "the share of right answers"


def _verdict(detection: pd.DataFrame, chosen: pd.Series, signal: Sequence[str], *, has_noise: bool) -> str:
    """The verdict of `signal_detection` in one sentence, with the numbers that decide it."""
    (row,) = rows_of(detection, chosen).to_dict("records")
    if not has_noise:
        return "All questions have the same right answer, so bias and sensitivity cannot be told apart."
    scored, verdict = pd.notna(row["auc_change"]), row["verdict"]
    if not scored and pd.isna(row["d_prime_change"]):
        return "Too few of these answers can be read to tell bias from sensitivity."
    before = detection[detection["vector"] == UNSTEERED].iloc[0]
    measured = f"{_bias_measure(row)}; {_sensitivity_measure(row, before)}"
    number = int(row["n_signal"] + row["n_noise"])
    if verdict == "cannot tell":
        reason = "too few of some kind for the intervals of d′ and criterion to cover"
        if scored:
            lost = interval(row, "d_prime_change")
            reason = f"{measured}: the ranking is perfect in both, and d′ changes by {lost}"
        return f"These {number} answers cannot tell bias from sensitivity: {reason}."
    if verdict == "neither":
        return (
            f"The {number} answers show neither a shift of bias nor a change of sensitivity, measurably: "
            f"{measured}."
        )
    shift = f"a shift of bias {_bias_direction(row, signal)}"
    if verdict == "bias":
        return f"This is {shift}, without a measurable change of sensitivity: {measured}."
    also = f"along with {shift}" if verdict == "both" else "without a measurable shift of bias"
    if _is_reversed(row, before):
        return (
            f"This reverses the answers, {also}: right and wrong are still distinguished, but the opposite "
            f"is said: {measured}."
        )
    change = (
        "an improvement" if row["auc_change" if scored else "d_prime_change"] > 0 else "a loss of sensitivity"
    )
    return f"This is {change}, {also}: {measured}."


def _bias_direction(row: Row, signal: Sequence[str]) -> str:
    name = f"“{signal[0]}”" if len(signal) == 1 else "the signal"
    is_toward = row["criterion_change"] < 0 if pd.isna(row["shift"]) else row["shift"] > 0
    return f"{'toward' if is_toward else 'away from'} {name}"


def _bias_measure(row: Row) -> str:
    """The numbers that decide about bias."""
    if pd.isna(row["shift"]):
        return f"the criterion changes by {interval(row, 'criterion_change')}"
    change = f"the logit difference changes by {interval(row, 'shift')}"
    if row["verdict"] not in ("bias", "both") and direction(row, "shift"):
        return f"the kinds do not move the same way (on average {change})"
    return f"over both kinds {change}"


def _sensitivity_measure(row: Row, before: Row) -> str:
    """The numbers that decide about sensitivity: how well the kinds are distinguished."""
    if pd.isna(row["auc_change"]):
        return f"d′ changes by {interval(row, 'd_prime_change')}"
    change = interval(row, "auc_change", show=partial(signed, digits=3))
    return f"the AUC is {before['auc']:.3f} unsteered and {row['auc']:.3f} steered (change {change})"


def _is_reversed(row: Row, before: Row) -> bool:
    """Whether the kinds were distinguished rightly, and are now distinguished the wrong way round."""
    if pd.isna(row["auc_change"]):
        return direction(before, "d_prime") > 0 > direction(row, "d_prime")
    return bool(before["auc_low"] > 0.5 > row["auc_high"])
