"""The report's sections that ask whether an effect is the vector's, and what it costs."""

import pandas as pd

from ... import plots
from ..results import Results
from .evidence_findings import (
    agreement_finding,
    confounds_finding,
    controls_finding,
    damage_finding,
    prediction_finding,
    steerability_finding,
    texts_finding,
)
from .report_tables import confounds_table, controls_table, cost_table, prediction_table
from .sections import Section, drawn

EFFECTS = {
    "shift": "shift of the logit difference (nats)",
    "accuracy": "change of the accuracy",
    "d_prime": "change of d′",
    "flipped": "answers that change (share)",
}


def evidence_sections(results: Results) -> list[Section]:
    """Controls, steerability and damage of what was asked; before them, what could be known beforehand."""
    made = [] if results.experiment.has_prompts else [_agreement(results), _confounds(results)]
    if results.experiment.questions is not None:
        made += [_controls(results), _steerability(results), _damage(results), _prediction(results)]
    return [section for section in (*made, _texts(results)) if section is not None]


def _agreement(results: Results) -> Section | None:
    """`None` with too few pairs to halve."""
    if results.agreement is None:
        return None
    read = (
        "Vectors made of other pairs of the same kind should point the same way. This says how well the "
        "pairs determine the vector, not what it means: pairs that all differ in a letter agree about the "
        "letter. "
    )
    found = agreement_finding(results.agreement, results.shown_layer)
    figure = drawn("agreement", plots.agreement, results.agreement)
    return Section("agreement", "Do the pairs agree on the vector?", read + found, [figure])


def _confounds(results: Results) -> Section | None:
    """`None` where no factor of the pairs varies."""
    if results.confounds is None:
        return None
    read = (
        "Whatever else varies among the pairs has a direction, too, estimated from them within either side. "
        "A vector that lies along it carries it. "
    )
    found = confounds_finding(results.confounds, results.shown_layer)
    figures = []
    if results.confounds["cosine"].notna().any():
        figures = [drawn("confounds", plots.confounds, results.confounds)]
    here = results.confounds[results.confounds["layer"] == results.shown_layer]
    table = confounds_table(here)
    return Section("confounds", "What else is in the vector?", read + found, figures, [table])


def _controls(results: Results) -> Section | None:
    """`None` where there are no controls."""
    if results.against_controls is None:
        return None
    read = (
        "Any push of this length does something. Control vectors say how much: random directions (“random”, "
        "or “orthogonal” to the vector), and vectors of the same pairs with half of them turned round "
        "(“shuffled”), which lie where these prompts vary anyway. "
    )
    table = results.against_controls
    found = controls_finding(table, results.chosen)
    here = table[table["layers"] == results.chosen["layers"]]
    return Section("controls", "The vector, or any push?", read + found, tables=[controls_table(here, table)])


def _steerability(results: Results) -> Section | None:
    """`None` where answers are texts, or nothing has a multiplier."""
    table = results.steerability
    if table is None:
        return None
    toward = "its own right answer" if results.toward == "answer" else "the signal"
    read = (
        "For every question, the slope of its logit difference over the multipliers, counted toward "
        f"{toward}. A mean hides the questions that move the other way. "
    )
    found = steerability_finding(table, results.chosen["layers"], results.chosen["vector"])
    figures = [drawn("steerability", plots.steerability, table)]
    figures += [drawn("slopes", plots.slopes, results.slopes, layer=results.chosen["layers"])]
    return Section("steerability", "Which questions move, and which way?", read + found, figures)


def _damage(results: Results) -> Section | None:
    """`None` where no neutral text was read."""
    if results.cost is None:
        return None
    positions = results.experiment.damage.positions
    where = "every token" if positions == "all_tokens()" else positions
    read = (
        f"Text that has nothing to do with the behaviour, read with {where} steered: how far the "
        "predictions move (KL divergence) and how much less likely the text becomes (loss, in nats a token; "
        "+0.1 is a tenth more perplexity). "
    )
    found = damage_finding(results.cost, results.usable, results.chosen)
    effect = EFFECTS[results.score]
    figures = []
    if (results.cost["kl"] > 0).any():
        figures = [drawn("damage", plots.effect_and_damage, results.cost, effect=effect)]
    table = cost_table(results.cost, effect=effect)
    return Section("damage", "What does it cost?", read + found, figures, [table])


def _texts(results: Results) -> Section | None:
    """`None` where nothing was written."""
    if results.text_damage.empty:
        return None
    read = "A text that repeats itself, or that the unsteered model would hardly write, has come apart. "
    found = texts_finding(results.text_damage)
    return Section("text-damage", "Are the texts still texts?", read + found)


def _prediction(results: Results) -> Section | None:
    """`None` where too few layers were steered."""
    table: pd.DataFrame | None = results.prediction
    if table is None:
        return None
    read = (
        "Over the steered layers, does what was known of a vector before steering go with what it did? "
        "Neighbouring layers are alike, so chance is what the whole curve gives when it is shifted along the "
        "layers. "
    )
    return Section(
        "prediction",
        "Could the effect have been foreseen?",
        read + prediction_finding(table),
        tables=[prediction_table(table)],
    )
