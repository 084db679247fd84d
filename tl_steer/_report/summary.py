"""The top of the report: the verdict, three numbers, one figure and three texts."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

import tl_steer.plots as plots

from ..evaluation._effectiveness import effectiveness
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
    "shift_toward_answer": (" nats", "logit difference toward the right answer"),
    "d_prime": ("", "d′"),
    "criterion": ("", "criterion"),
    "accuracy": ("", "accuracy"),
}
MEASURES = {  # columns of `signal_detection`
    "shift": "shift", "d_prime": "d_prime_change", "criterion": "criterion_change",
}  # fmt: skip


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
        f"{capitalized(condition_label(chosen))}, at {chosen['hook']}. "
        f"Chosen on {counts[CHOOSE]} {noun}, measured on {counts[REPORT]} others."
    )


def _effect(results: Results) -> Tile:
    """The chosen condition's effect, with the interval that decides the verdict, next to its controls."""
    unit, name = EFFECTS[results.measure]
    value, low, high = _chosen_effect(results)
    toward = f" toward {kinds_of(results).aim}" * (results.measure == "shift")
    row = controls_row(results.against_controls, results.chosen)
    compared = without_controls(results) if row is None else controls_compared(row)
    ends = f"[{number(low, SIGNED)}, {number(high, SIGNED)}]"
    text = f"Change of the {name}{toward}, 95 % interval {ends}; {compared}."
    return Tile("Effect", f"{number(value, SIGNED)}{unit}", text)


def _chosen_effect(results: Results) -> tuple[float, float, float]:
    """Effect and interval of the chosen condition, from `signal_detection` where that decides."""
    column = MEASURES.get(results.measure) if results.verdict else None
    row = condition_rows(results.detection if column else results.measured, results.chosen).iloc[0]
    return tuple(row[f"{column or 'effect'}{end}"] for end in ("", "_low", "_high"))


def _detection(results: Results) -> Tile:
    """Bias or sensitivity, with the numbers that decide."""
    title = "Bias or sensitivity"
    if not results.has_noise:
        return Tile(title, "Undecided", "All questions have the same right answer.")
    row, before = detected(results.detection, results.chosen)
    value = capitalized(verdict_name(row, before))
    text = sensitivity_numbers(row, before) if results.measure == "shift" else detection_numbers(row, before)
    return Tile(title, value, f"{capitalized(text)}.")


def _damage(results: Results) -> Tile:
    """The cost of the chosen condition in unrelated text."""
    if results.cost is None:
        return Tile("Damage", "Not measured", "No neutral text was read.")
    row = condition_rows(results.cost, results.chosen).iloc[0]
    ends = interval(row, "loss_change", SIGNED).partition(" ")[2]
    text = (
        f"Change of the loss on unrelated text, 95 % interval {ends}; KL divergence "
        f"{number(row['kl'], PLAIN)} nats. By the bounds of “What does it cost?”: {REASONS[row['reason']]}."
    )
    return Tile("Damage", f"{number(row['loss_change'], SIGNED)} nats per token", text)


def _figure(results: Results) -> Any:
    """The change by dose in the chosen layer, a panel per type of question, with controls."""
    value, layers = "signal_rate" if results.is_generated else "shift", results.chosen["layers"]
    rows = results.rows[results.rows["layers"].isin(["", layers])]
    effects = effectiveness(rows, by=results.settings.factor)
    if not (is_known(effects, "multiplier") and is_known(effects, value)):
        return None
    return plots.dose_response(effects, value=value, facet=results.settings.factor)


def three_texts(results: Results) -> tuple[str, list[tuple[str, str]]]:
    """A prompt and its texts: the smallest dose subtracted, unsteered, and added, at the first steered layer.

    Open prompts, or else answers to a question of the chosen layer. Of several draws the first.
    """
    table = results.texts
    if table.empty and len(results.questions) and results.is_generated:
        table = results.rows[results.rows["layers"].isin(["", results.chosen["layers"]])]
    steered = table[(table["vector"] != UNSTEERED) & ~table["control"].astype(bool)] if len(table) else table
    steered = steered[steered["multiplier"].notna()] if len(steered) else steered
    if steered.empty:
        return "", []
    keys = ["vector", "operation", "layers", "hook"]
    first = steered[(steered[keys] == steered[keys].iloc[0]).all(axis=1)]
    sides = [
        first.loc[first["multiplier"].mul(sign) > 0, "multiplier"].abs().min() * sign for sign in (-1, 1)
    ]
    unsteered = table[table["vector"] == UNSTEERED]
    prompt = unsteered["prompt_id"].iloc[0]
    columns = [first[first["multiplier"] == sides[0]], unsteered, first[first["multiplier"] == sides[1]]]
    rows = [each[each["prompt_id"] == prompt].iloc[0] for each in columns if len(each)]
    texts = [(_heading(row), str(row["text"])) for row in rows]
    return str(prompt_labels(unsteered).iloc[0]), texts


def _heading(row: pd.Series) -> str:
    return "unsteered" if row["vector"] == UNSTEERED else condition_label(row)
