"""The report's sections on pairs and questions: what to read, and figures or tables."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from markupsafe import Markup

from ... import plots
from ...evaluation._effectiveness import effectiveness
from ...sweeps.sweep_table import UNSTEERED
from ..results import CHOOSE, REPORT, Results
from .report_tables import Table, audit_table, choice_table, detection_table, optimism_table
from .text_rows import answer_table

MOST_MARKERS = 5
FIGURE_LAYERS = 7  # a scatter of every layer would make the file many times larger
UNREAD = (
    " An answer that cannot be read counts as wrong in the accuracy, and is left out of the share that says "
    "the signal."
)


@dataclass(frozen=True)
class Section:
    """A part of the report: heading, what to read from it, and figures, tables, or both."""

    id: str
    title: str
    read: str
    figures: Sequence[tuple[str, Markup]] = ()
    tables: Sequence[Table] = ()


def drawn(id_: str, plot: Callable[..., Any], table: pd.DataFrame, **options: Any) -> tuple[str, Markup]:
    """A figure's id, and its HTML without plotly.js, which the page holds once."""
    figure = plot(table, **options)
    config = {"displaylogo": False, "responsive": True}
    div = figure.to_html(full_html=False, include_plotlyjs=False, div_id=f"figure-{id_}", config=config)
    return id_, Markup(div)


def pair_sections(results: Results) -> list[Section]:
    """Differences between the sides, their separation, and the distribution of the prompts."""
    return [_audit(results), _separation(results), _components(results), _projections(results)]


def _audit(results: Results) -> Section:
    differing = results.audit[results.audit["differs"].astype(str) == "True"]
    names = ", ".join(differing["factor"].unique())
    marked = f"{names} may be carried by the vector too" if names else "none is marked here"
    read = (
        "The two sides should differ in the behaviour alone. What differs by more than a tenth of a standard "
        f"deviation is marked: {marked}."
    )
    return Section("audit", "What differs between the two sides", read, tables=[audit_table(results.audit)])


def _separation(results: Results) -> Section:
    read = (
        "Directions are made on some pairs and tested on others. Above the dotted line they hold something "
        "that the labels are about: only 5 % of shuffled labels get that far at any layer. The grey band is "
        "what these get at each layer taken alone."
    )
    figure = drawn("separation", plots.separation, results.separation)
    return Section("separation", "Do the pairs separate?", read, [figure])


def _components(results: Results) -> Section:
    read = (
        "Each point is a prompt (hover to read it), placed by what varies most among all of them. Sides "
        "that fall apart differ in what varies most; sides that mix may still differ elsewhere."
    )
    table = results.components(_some_layers(results))
    symbol = _factor_by_side(table)
    figure = drawn("pca", plots.pca, table, layer=results.report_layer, symbol=symbol)
    return Section("pca", "Where the prompts lie", read, [figure])


def _projections(results: Results) -> Section:
    read = (
        "How far each prompt lies along the vector, from both sides' mean. The vector was made of these "
        "very pairs, so this flatters it; the held-out pairs above do not."
    )
    table = results.projected(_some_layers(results))
    figure = drawn("projections", plots.projections, table, layer=results.report_layer)
    return Section("projections", "Along the vector", read, [figure])


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


def question_sections(results: Results) -> list[Section]:
    """Effect by layer and dose, bias or sensitivity, the choice of a condition, and generated answers."""
    sections = [_effects(results), _doses(results), _detection(results), _choices(results), _answers(results)]
    return [section for section in sections if section is not None]


def _effects(results: Results) -> Section:
    effects = results.effects(overall=True)
    read = "Training claims: these made the vector. " if results.experiment.questions.training else ""
    read += (
        "All questions, together and by kind. A vector that improves the answers raises accuracy in every "
        "panel; one that shifts a bias raises one kind and lowers the other, and all together may not move. "
    )
    values = {"effectiveness": "accuracy"}
    if not results.is_generated:
        values["shift"] = "shift"
        read += (
            "The second figure shows the change of the logit difference, which moves before any answer flips."
        )
    elif results.has_noise and effects["signal_rate"].notna().any():
        values["signal"] = "signal_rate"
        read += "The second figure shows what is said, right or wrong." + UNREAD
    else:
        read += UNREAD.strip()
    figures = [
        drawn(id_, plots.effectiveness, effects, value=value, facet=results.factor)
        for id_, value in values.items()
    ]
    return Section("effects", "Effect by layer and kind of question", read, figures)


def _doses(results: Results) -> Section | None:
    """`None` if nothing was added (a projection has no dose), or no answer could be read."""
    effects, value = results.effects(), "signal_rate" if results.is_generated else "shift"
    if effects.loc[effects["vector"] != UNSTEERED, "multiplier"].isna().all() or effects[value].isna().all():
        return None
    alike, against = "a bias", "an improvement or its opposite"
    if not results.has_noise:  # the right answer to all is the signal
        alike, against = "more right answers or fewer", "a preference for one kind's answer"
    read = (
        f"All questions, by kind. Panels that slope alike show {alike}; panels that slope against each "
        f"other, {against}. Grey: control vectors of the same length."
    )
    figure = drawn("doses", plots.dose_response, effects, value=value, facet=results.factor)
    return Section("doses", "Effect by dose", read, [figure])


def _detection(results: Results) -> Section | None:
    """`None` if all questions have the same right answer, so that there is no d′."""
    detection, layers = results.detection(), results.chosen["layers"]
    if detection["d_prime"].isna().all():
        return None
    read = (
        "All questions in the figure. Higher is better at telling the kinds apart; further left says the "
        "signal more often, whatever the question. A strong bias takes d′ toward 0 as well, since answers "
        "become alike: the table's verdict goes by the AUC where that is known. The table: the chosen layer "
        f"({layers}), on the half of the questions that had no part in choosing."
    )
    half = results.detection(split=REPORT)
    half = half[half["layers"].isin(["", layers])]
    figure = drawn("detection", plots.signal_detection, detection, layer=layers)
    table = detection_table(half, effectiveness(results.half(REPORT)))
    return Section("detection", "Bias or sensitivity", read, [figure], [table])


def _choices(results: Results) -> Section:
    read = (
        "A condition picked for being the best of many is flattered where it was picked "
        f"(“{CHOOSE}”). Its result is the marked row: the same condition on questions that had no part in "
        f"the choice (“{REPORT}”). The second table says how much the first would have been flattered."
    )
    tables = [choice_table(results.choices), optimism_table(results.choices)]
    return Section("choice", "The choice of layer and dose", read, tables=tables)


def _answers(results: Results) -> Section | None:
    if not results.is_generated:
        return None
    read = (
        "Every number above rests on how these texts are read. Steering that breaks a text leaves no answer, "
        "which is neither honesty nor its opposite: look here before believing a curve."
    )
    table = answer_table(results.half(REPORT), results.reported, factor=results.factor)
    return Section("answers", "The answers themselves", read, tables=[table])
