"""The report's sections on questions and pairs, each with its finding, figures and tables."""

import numpy as np
import pandas as pd

import tl_steer.plots as plots

from ..evaluation._effectiveness import effectiveness
from .answers import answer_table
from .evidence import evidence_sections
from .findings import choice_finding, separation_finding, unreadable_finding
from .report_tables import Section, audit_table, choice_table, detection_table, is_known, optimism_table
from .results import CHOOSE, REPORT, Results
from .verdict import detected, detection_numbers, effect_finding, kinds_of

MOST_MARKERS = 5
FIGURE_LAYERS = 7  # a scatter of every layer would make the file many times larger
UNREAD = (
    "An answer that cannot be read counts as wrong in the accuracy, and is left out of the share that says "
    "the signal."
)


def sections(results: Results) -> list[Section]:
    """All sections: of the questions, of the pairs, and the evidence on either."""
    parts: list[Section | None] = []
    if len(results.questions):
        parts += [_effects(results), _doses(results), _detection(results)]
        parts += [_answers(results)] if results.is_generated else []
        parts += [_choice(results)]
    parts += evidence_sections(results)
    if results.activations is not None:
        parts += [_separation(results), _components(results), _projections(results)]
    if results.audit is not None:
        parts.append(_audit(results))
    return [part for part in parts if part is not None]


def _audit(results: Results) -> Section:
    differing = results.audit[results.audit["differs"].astype(str) == "True"]
    names = ", ".join(differing["factor"].unique())
    finding = f"The vector may also carry {names}." if names else "Nothing else differs between the sides."
    read = (
        "The two sides should differ in the behaviour alone. What differs by more than a tenth of a standard "
        "deviation is marked."
    )
    return Section(
        "audit", "What differs between the two sides", finding, read, tables=[audit_table(results.audit)]
    )


def _separation(results: Results) -> Section:
    read = (
        "Directions are estimated on some pairs and tested on others. Only 5 % of shuffled labels exceed the "
        "dotted line at any layer, so directions above it carry what the labels are about. The grey band is "
        "that of shuffled labels at each layer alone."
    )
    figure = ("separation", plots.separation(results.separation))
    finding = separation_finding(results.separation)
    return Section("separation", "Do the pairs separate?", finding, read, [figure])


def _components(results: Results) -> Section:
    read = (
        "Each point is a prompt (hover to read it). Sides that are apart differ in what varies most; sides "
        "that mix may still differ elsewhere."
    )
    table = results.components(_some_layers(results))
    symbol = _factor_by_side(table)
    figure = ("pca", plots.pca(table, layer=results.report_layer, symbol=symbol))
    finding = "The prompts of both sides, placed by what varies most among all of them."
    return Section("pca", "Where the prompts lie", finding, read, [figure])


def _projections(results: Results) -> Section | None:
    if results.vectors is None:
        return None
    read = (
        "Each prompt's projection, from the mean of both sides. These pairs made the vector, so their "
        "separation is overestimated; that of held-out pairs is not."
    )
    table = results.projected(_some_layers(results))
    figure = ("projections", plots.projections(table, layer=results.report_layer))
    finding = "The projections of both sides on the vector that they made."
    return Section("projections", "Along the vector", finding, read, [figure])


def _some_layers(results: Results) -> list[int]:
    """A few of the captured layers, evenly spaced, including the one that is shown first."""
    layers, preferred = results.activations.layers, results.report_layer
    indices = np.linspace(0, len(layers) - 1, min(FIGURE_LAYERS, len(layers))).round().astype(int)
    some = [layers[index] for index in indices]
    nearest = min(some, key=lambda layer: abs(layer - preferred))
    return sorted({*some} - {nearest} | {preferred})


def _factor_by_side(table: pd.DataFrame) -> str | None:
    """A factor that differs between the sides of a pair (the letter), shown by the marker's symbol."""
    names = list(table.columns)
    factors = set(names[names.index("prompt") + 1 : names.index("PC1")]) - {"group", "label"}
    few = [name for name in names if name in factors and 2 <= table[name].nunique() <= MOST_MARKERS]
    return next((name for name in few if table.groupby(["layer", "pair"])[name].nunique().max() > 1), None)


def _effects(results: Results) -> Section:
    kinds, shifts, detection = kinds_of(results), results.shifts, results.detection
    finding = " ".join(effect_finding(shifts, detection, each, kinds) for each in results.reported)
    read = "A vector that improves the answers raises accuracy in every panel"
    is_class = results.class_factor == results.settings.factor
    read += (
        "; one that shifts a bias raises one kind and lowers the other, and all together may not move. "
        if is_class
        else ". Each kind has questions with either right answer. "
    )
    values = {"effectiveness": "accuracy"}
    if not results.is_generated:
        values["shift"] = "shift"
        read += "The second figure shows the change of the logit difference, which moves before answers flip."
    elif results.has_noise and is_known(results.effects, "signal_rate"):
        values["signal"] = "signal_rate"
        read += f"The second figure shows what is said, right or wrong. {UNREAD}"
    else:
        read += UNREAD
    figures = [
        (id_, plots.effectiveness(results.effects, value=value, facet=results.settings.factor))
        for id_, value in values.items()
    ]
    return Section("effects", "Effect by layer and kind of question", finding, read, figures)


def _doses(results: Results) -> Section | None:
    """`None` if nothing was added (a projection has no dose), or no answer could be read."""
    effects, value = results.class_effects, "signal_rate" if results.is_generated else "shift"
    if not (is_known(effects, "multiplier") and is_known(effects, value)):
        return None
    alike, against = "a bias", "an improvement or its opposite"
    if not results.has_noise:  # the right answer to all is the signal
        alike, against = "more right answers or fewer", "a preference for one kind's answer"
    figure = ("doses", plots.dose_response(effects, value=value, facet=results.class_factor))
    finding = "The change at every dose, in every layer that was steered."
    read = (
        f"Panels that slope the same way show {alike}; panels that slope in opposite directions, {against}. "
        "Grey: control vectors of the same length."
    )
    return Section("doses", "Effect by dose", finding, read, [figure])


def _detection(results: Results) -> Section | None:
    """`None` if all questions have the same right answer, so that there is no d′."""
    detection, layers = results.detection, results.chosen["layers"]
    if not is_known(detection, "d_prime"):
        return None
    read = (
        "Higher distinguishes the kinds better; further left says the signal more often, whatever the "
        "question. A strong bias also takes d′ toward 0, since answers become alike, so the verdict uses the "
        "AUC where it is known."
    )
    at_layer = detection["layers"].isin(["", layers]) & detection["hook"].isin(["", results.chosen["hook"]])
    figure = ("detection", plots.signal_detection(detection, layer=layers))
    table = detection_table(detection[at_layer], effectiveness(results.rows))
    finding = f"In the chosen condition {detection_numbers(*detected(detection, results.chosen))}."
    return Section("detection", "Bias or sensitivity", finding, read, [figure], [table])


def _choice(results: Results) -> Section:
    by_operation = results.choices.groupby(["vector", "operation"], sort=False)
    finding = " ".join(choice_finding(choices) for _, choices in by_operation)
    if results.score != results.settings.score:
        finding += (
            " Layer and multiplier were to be chosen by d′, but too few answers on that half can be read: "
            "accuracy chooses instead."
        )
    read = (
        f"The best of many conditions looks better than it is on the questions that chose it (“{CHOOSE}”). "
        f"The marked row is its result: the same condition on the other questions (“{REPORT}”), which all "
        "sections are about. The second table shows by how much the first would be overestimated."
    )
    tables = [choice_table(results.choices), optimism_table(results.choices)]
    return Section("choice", "The choice of layer and dose", finding, read, tables=tables)


def _answers(results: Results) -> Section:
    read = (
        "Every number depends on how these texts are read. Steering that breaks a text leaves no answer, "
        "neither a right one nor its opposite: read some before relying on a curve."
    )
    table = answer_table(results.rows, results.reported, factor=results.settings.factor)
    finding = unreadable_finding(results.rows, results.reported)
    return Section("answers", "The answers themselves", finding, read, tables=[table])
