"""The verdict on the chosen condition: bias or sensitivity, in one line and with its numbers."""

from collections.abc import Mapping
from dataclasses import dataclass

import pandas as pd

from ..plots.format import capitalized, counted, interval
from ..sweeps.sweep_table import UNSTEERED, condition_rows
from .evidence import controls_row
from .report_tables import ALPHA, SIGNED, Row, condition_label, sign_of
from .results import Results


@dataclass(frozen=True)
class Kinds:
    """How sentences name the questions.

    Attributes:
        factor: column of the question types.
        noun: what the questions are about, plural: "reviews".
        signal: what choice 0 says; "" if it is the right answer to all questions.
        answers: per type its right choice.
        is_generated: answers are texts; a shift is the change of the share that says the signal.
        has_noise: whether not all questions have the same right answer.
    """

    factor: str
    noun: str
    signal: str
    answers: Mapping[str, int]
    is_generated: bool = False
    has_noise: bool = True

    @property
    def aim(self) -> str:
        """What a positive shift is toward."""
        return f"“{self.signal}”" if self.signal else "the right answer"

    def level(self, value: object) -> str:
        """A type as text: its value, with the factor's name before a number."""
        return f"{self.factor} {value}" if str(value).isdigit() else str(value)


def kinds_of(results: Results) -> Kinds:
    """How the report's sentences name the questions: by their right answers."""
    settings, rows, factor = results.settings, results.rows, results.class_factor
    answers = {"0": 0, "1": 1} if factor == "answer" else results.right_answers
    is_right = not results.has_noise and rows["answer"].eq(0).all()
    signal = "" if is_right else settings.signal or _signal(rows, settings.factor)
    return Kinds(factor, settings.noun, signal, answers, results.is_generated, results.has_noise)


def _signal(rows: pd.DataFrame, factor: str) -> str:
    """The one value of the factor, or else of `right_choice`, whose questions have the right answer 0."""
    for name in (factor, "right_choice"):
        if name in rows and name != "answer":
            levels = rows.loc[rows["answer"] == 0, name].unique()
            if len(levels) == 1 and not (rows["answer"][rows[name] == levels[0]] == 1).any():
                return str(levels[0])
    return "choice 0"


def verdict_line(results: Results) -> str:
    """The verdict on the chosen condition: bias or sensitivity, what moved, and whether it may be chance."""
    row, before, kinds = *detected(results.detection, results.chosen), kinds_of(results)
    moved = movement(results.shifts, results.chosen, kinds)
    if not results.has_noise:
        rest = "all have the same right answer, so bias and sensitivity cannot be distinguished"
        return f"{capitalized(moved)}; {rest}{_chance(results)}."
    if results.verdict == "cannot tell":
        return f"Bias and sensitivity cannot be distinguished: {moved}, but {_undecided(row)}."
    ranking = f"{'sensitivity (d′)' if kinds.is_generated else 'the ranking'} {_ranking(row, before)}"
    if results.verdict == "neither":
        return f"No measurable shift of bias or change of sensitivity: {moved}, and {ranking}."
    return f"{capitalized(verdict_name(row, before))}: {moved}; {ranking}{_chance(results)}."


def verdict_name(row: Row, before: Row) -> str:
    """The verdict in a few words."""
    if row["verdict"] in ("neither", "cannot tell"):
        return {"neither": "neither", "cannot tell": "undecided"}[row["verdict"]]
    names = [_sensitivity_name(row, before)] * (row["verdict"] != "bias")
    return " and ".join([*names, *["a shift of bias"] * (row["verdict"] != "sensitivity")])


def _chance(results: Results) -> str:
    """A caution if control vectors do as much as the chosen condition, or none were run."""
    row = controls_row(results.against_controls, results.chosen)
    if row is None:
        return f", but {without_controls(results)}"
    p_values = {"this": row["p_value"]}
    if results.verdict == "both":
        other = controls_row(results.controls_of(results.sensitivity), results.chosen)
        p_values = {"the shift of bias": row["p_value"]}
        p_values |= {} if other is None else {"the change of sensitivity": other["p_value"]}
    cautions = {name: p_value for name, p_value in p_values.items() if p_value > ALPHA}
    if not cautions:
        return ""
    controls = counted([int(row["controls"])], "control vector")
    named, numbers = " and ".join(cautions), ", ".join(f"{p_value:.2g}" for p_value in cautions.values())
    return f". Compared with {controls} {named} may be chance (p = {numbers})"


def without_controls(results: Results) -> str:
    """That there is nothing to compare the chosen condition with."""
    elsewhere = " in this condition" if results.rows["control"].any() else ""
    return f"no control vectors were run{elsewhere}"


def _ranking(row: Row, before: Row) -> str:
    """What becomes of AUC or d′, as the verdict has it."""
    if row["verdict"] in ("bias", "neither"):
        return "does not measurably change"
    if _is_reversed(row, before):
        return "is reversed"
    return "improves" if _sensitivity_change(row) > 0 else "gets worse"


def _sensitivity_change(row: Row) -> float:
    return row["d_prime_change"] if pd.isna(row["auc_change"]) else row["auc_change"]


def _sensitivity_name(row: Row, before: Row) -> str:
    if _is_reversed(row, before):
        return "reversed answers"
    return "an improvement" if _sensitivity_change(row) > 0 else "a loss of sensitivity"


def _undecided(row: Row) -> str:
    if pd.isna(row["auc_change"]):
        return "there are too few of some kind for the intervals of d′ and criterion to cover"
    return "the ranking is perfect in both, and d′ changes"


def detected(detection: pd.DataFrame, condition: pd.Series) -> tuple[Row, Row]:
    """Rows of `signal_detection`: of a condition, and unsteered."""
    (row,) = condition_rows(detection, condition).to_dict("records")
    return row, detection[detection["vector"] == UNSTEERED].iloc[0].to_dict()


def effect_finding(shifts: pd.DataFrame, detection: pd.DataFrame, condition: pd.Series, kinds: Kinds) -> str:
    """What moved in a condition, and whether it is a bias or a change of sensitivity, with the numbers.

    Args:
        shifts: `effectiveness` by the factor, or `answer_shifts` of generated text.
        detection: `signal_detection` of the same questions.
        condition: the one to report.
        kinds: names of the questions.

    A type has moved if the interval of its shift excludes zero. Whether the whole is bias or sensitivity is
    the `verdict` of `signal_detection`.
    """
    rows = condition_rows(shifts, condition).to_dict("records")
    numbers = "; ".join(f"{kinds.level(row[kinds.factor])} {interval(row, 'shift', SIGNED)}" for row in rows)
    measured = f"the share that says {kinds.aim}" if kinds.is_generated else "the logit difference"
    moved = f"{movement(shifts, condition, kinds)} (change of {measured}: {numbers})"
    return f"At {condition_label(condition)} {moved}. {_verdict(detection, condition, kinds)}"


def movement(shifts: pd.DataFrame, condition: pd.Series, kinds: Kinds) -> str:
    """Which types of questions moved measurably, and which way."""
    rows = condition_rows(shifts, condition).to_dict("records")
    signs = {str(row[kinds.factor]): sign_of(row, "shift") for row in rows}
    toward, aim, noun = {1: "toward", -1: "away from"}, kinds.aim, kinds.noun
    movers = {1: noun, 2: f"both kinds of {noun}"}.get(len(signs), f"all kinds of {noun}")
    if not any(signs.values()):
        return f"{noun} do not measurably move toward or away from {aim}"
    if len(set(signs.values())) == 1:
        return f"{movers} move {toward[min(signs.values())]} {aim}"
    right = {sign if kinds.answers.get(level) == 0 else -sign for level, sign in signs.items()}
    if set(signs) == set(kinds.answers) and len(right) == 1:
        return f"each kind of {noun} moves toward its own {'right' if right == {1} else 'wrong'} answer"
    parts = [f"of {kinds.factor} {level} move {toward[sign]} {aim}" for level, sign in signs.items() if sign]
    still = [level for level, sign in signs.items() if not sign]
    parts += [f"of {kinds.factor} {' and '.join(still)} do not measurably move"] * bool(still)
    return f"{noun} {', those '.join(parts)}"


def _verdict(detection: pd.DataFrame, condition: pd.Series, kinds: Kinds) -> str:
    """The verdict of `signal_detection` in one sentence, with the numbers that decide it."""
    row, before = detected(detection, condition)
    if not kinds.has_noise:
        return "All questions have the same right answer, so bias and sensitivity cannot be distinguished."
    has_logits, verdict = pd.notna(row["auc_change"]), row["verdict"]
    if not has_logits and pd.isna(row["d_prime_change"]):
        return "Too few of these answers can be read to tell bias from sensitivity."
    measured = detection_numbers(row, before)
    n = int(row["n_signal"] + row["n_noise"])
    if verdict == "cannot tell":
        reason = f"{measured}: " * has_logits + _undecided(row)
        reason += f" by {interval(row, 'd_prime_change', SIGNED)}" * has_logits
        return f"These {n} answers cannot tell bias from sensitivity: {reason}."
    if verdict == "neither":
        return f"The {n} answers show no measurable shift of bias or change of sensitivity: {measured}."
    shift = f"a shift of bias {_bias_direction(row, kinds)}"
    if verdict == "bias":
        return f"This is {shift}, without a measurable change of sensitivity: {measured}."
    also = f"along with {shift}" if verdict == "both" else "without a measurable shift of bias"
    if _is_reversed(row, before):
        return (
            f"This reverses the answers, {also}: right and wrong are still distinguished, but the opposite "
            f"is said: {measured}."
        )
    return f"This is {_sensitivity_name(row, before)}, {also}: {measured}."


def detection_numbers(row: Row, before: Row) -> str:
    """The measures of bias and of sensitivity that decide the verdict."""
    return f"{_bias_measure(row)}; {sensitivity_numbers(row, before)}"


def _bias_direction(row: Row, kinds: Kinds) -> str:
    is_toward = row["criterion_change"] < 0 if pd.isna(row["shift"]) else row["shift"] > 0
    return f"{'toward' if is_toward else 'away from'} {kinds.aim}"


def _bias_measure(row: Row) -> str:
    if pd.isna(row["shift"]):
        return f"the criterion changes by {interval(row, 'criterion_change', SIGNED)}"
    change = f"the logit difference changes by {interval(row, 'shift', SIGNED)}"
    if row["verdict"] not in ("bias", "both") and sign_of(row, "shift"):
        return f"the kinds do not move the same way (on average {change})"
    return f"over both kinds {change}"


def sensitivity_numbers(row: Row, before: Row) -> str:
    """The measure of sensitivity with its change."""
    if pd.isna(row["auc_change"]):
        return f"d′ changes by {interval(row, 'd_prime_change', SIGNED)}"
    change = interval(row, "auc_change", "+.3f")
    return f"the AUC is {before['auc']:.3f} unsteered and {row['auc']:.3f} steered (change {change})"


def _is_reversed(row: Row, before: Row) -> bool:
    """Whether the right answers were distinguished before, and now the wrong way round."""
    if pd.isna(row["auc_change"]):
        return sign_of(before, "d_prime") > 0 > sign_of(row, "d_prime")
    return bool(before["auc_low"] > 0.5 > row["auc_high"])
