"""The top of the report: the verdict, three numbers, one figure and three texts."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

import tl_steer.plots as plots

from ..plots.format import capitalized, interval, number, prompt_labels
from ..sweeps.sweep_table import UNSTEERED, condition_rows
from .evidence import controls_compared, controls_row
from .findings import TRAINING_FINDING, mass_finding, prompts_finding, separation_finding
from .report_tables import PLAIN, REASONS, SIGNED, condition_label, is_known
from .results import CHOOSE, REPORT, Results
from .verdict import (
    detected,
    detection_numbers,
    kinds_of,
    sensitivity_numbers,
    verdict_line,
    verdict_name,
    without_controls,
)

EFFECTS = {  # of a tile, by measure: unit, and what changes
    "shift": (" nats", "logit difference"),
    "bias": (" nats", "logit difference"),
    "shift_toward_answer": (" nats", "logit difference toward the right answer"),
    "d_prime": ("", "d′"),
    "criterion": ("", "criterion"),
    "accuracy": ("", "accuracy"),
}


@dataclass(frozen=True)
class Tile:
    """A number with its name and its comparison."""

    title: str
    value: str
    text: str


@dataclass(frozen=True)
class Summary:
    """What the report shows before its sections.

    Attributes:
        verdict: one sentence.
        where: the condition and the questions that it is about.
        tiles, cautions: numbers, and reasons for doubt.
        figure: the effect by dose in the chosen layer; `None` without doses.
        texts: of one prompt: headings and texts, from subtracted to added.
        prompt: that prompt.
    """

    verdict: str
    where: str = ""
    tiles: Sequence[Tile] = ()
    cautions: Sequence[str] = ()
    figure: Any = None
    prompt: str = ""
    texts: Sequence[tuple[str, str]] = ()


def summary(results: Results) -> Summary:
    """The top of the report."""
    prompt, texts = three_texts(results)
    if results.questions.empty:
        return Summary(*_without_questions(results), prompt=prompt, texts=texts)
    cautions = [TRAINING_FINDING] if results.settings.training else []
    cautions += filter(None, [mass_finding(results.rows, results.chosen)])
    return Summary(
        verdict_line(results),
        _where(results),
        [_effect(results), _detection(results), _damage(results)],
        cautions,
        _figure(results),
        prompt,
        texts,
    )


def _without_questions(results: Results) -> tuple[str, str]:
    """What was done instead, and what is known of the vector."""
    rest = "there are texts to read." if len(results.texts) else "the pairs alone were examined."
    if results.activations is None:
        return f"No effect was measured; {rest}", prompts_finding(results.vectors)
    return f"No effect was measured; {rest}", separation_finding(results.separation)


def _where(results: Results) -> str:
    """The condition of all statements, and the questions they are about."""
    counts = results.questions.groupby("split")["prompt_id"].nunique()
    chosen, noun = results.chosen, results.settings.noun
    return (
        f"{chosen['vector']} at {condition_label(chosen)}, {chosen['hook']}. "
        f"Chosen on {counts[CHOOSE]} {noun}, measured on {counts[REPORT]} others."
    )


def _effect(results: Results) -> Tile:
    """The chosen condition's effect with its interval, next to its controls."""
    unit, name = EFFECTS[results.measure]
    effect = condition_rows(results.measured, results.chosen).iloc[0]
    toward = f" toward {kinds_of(results).aim}" * (results.measure in ("shift", "bias"))
    row = controls_row(results.against_controls, results.chosen)
    compared = without_controls(results) if row is None else controls_compared(row)
    ends = interval(effect, "effect", SIGNED).partition(" ")[2]
    text = f"Change of the {name}{toward}, 95 % interval {ends}; {compared}."
    return Tile("Effect", f"{number(effect['effect'], SIGNED)}{unit}", text)


def _detection(results: Results) -> Tile:
    """Bias or sensitivity, with the numbers that decide."""
    title = "Bias or sensitivity"
    if not results.has_noise:
        return Tile(title, "Undecided", "All questions have the same right answer.")
    row, before = detected(results.detection, results.chosen)
    value = capitalized(verdict_name(row, before))
    is_shift = results.measure in ("shift", "bias")
    text = sensitivity_numbers(row, before) if is_shift else detection_numbers(row, before)
    return Tile(title, value, f"{capitalized(text)}.")


def _damage(results: Results) -> Tile:
    """The cost of the chosen condition in unrelated text."""
    if results.cost is None:
        elsewhere = " in this condition" * bool(len(results.damage))
        return Tile("Damage", "Not measured", f"No neutral text was read{elsewhere}.")
    row = condition_rows(results.cost, results.chosen).iloc[0]
    ends = interval(row, "loss_change", SIGNED).partition(" ")[2]
    text = (
        f"Change of the loss on unrelated text, 95 % interval {ends}; KL divergence "
        f"{number(row['kl'], PLAIN)} nats. By the bounds of “What does it cost?”: {REASONS[row['reason']]}."
    )
    return Tile("Damage", f"{number(row['loss_change'], SIGNED)} nats per token", text)


def _figure(results: Results) -> Any:
    """The change by dose in the chosen layer, a panel per type of question, with controls."""
    value, effects = "signal_rate" if results.is_generated else "shift", results.class_effects
    effects = effects[effects["layers"].isin(["", results.chosen["layers"]])]
    if not (is_known(effects, "multiplier") and is_known(effects, value)):
        return None
    return plots.dose_response(effects, value=value, facet=results.class_factor)


def three_texts(results: Results) -> tuple[str, list[tuple[str, str]]]:
    """A prompt and its texts: the smallest dose subtracted, unsteered, and added.

    Open prompts at the chosen layer, or else at the first that they have; without any, answers to a question.
    Of several draws the first.
    """
    table = results.texts
    if table.empty and len(results.questions) and results.is_generated:
        table = results.rows
    if table.empty:
        return "", []
    is_unsteered = table["vector"] == UNSTEERED
    first = _displayed(results, table[~is_unsteered & ~table["control"] & table["multiplier"].notna()])
    if first.empty or not is_unsteered.any():
        return "", []
    sides = [sign * first.loc[first["multiplier"] * sign > 0, "multiplier"].abs().min() for sign in (-1, 1)]
    unsteered = table[is_unsteered]
    columns = [first[first["multiplier"] == sides[0]], unsteered, first[first["multiplier"] == sides[1]]]
    rows = [each[each["prompt_id"] == unsteered["prompt_id"].iloc[0]].head(1) for each in columns]
    texts = [(_heading(row), "–" if pd.isna(row["text"]) else row["text"]) for row in _rows(rows)]
    return str(prompt_labels(unsteered).iloc[0]), texts


def _rows(tables: Sequence[pd.DataFrame]) -> list[pd.Series]:
    return [row for table in tables for _, row in table.iterrows()]


def _displayed(results: Results, steered: pd.DataFrame) -> pd.DataFrame:
    """The rows with the chosen vector, layer and hook, or with the first of the table."""
    keys = ["vector", "operation", "layers", "hook"]
    if len(results.questions):
        chosen = steered[(steered[keys] == results.chosen[keys]).all(axis=1)]
        steered = chosen if len(chosen) else steered
    return steered if steered.empty else steered[(steered[keys] == steered[keys].iloc[0]).all(axis=1)]


def _heading(row: pd.Series) -> str:
    return "unsteered" if row["vector"] == UNSTEERED else condition_label(row)
