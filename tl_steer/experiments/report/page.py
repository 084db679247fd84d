"""The report of a run folder: one HTML file that opens without a network."""

from importlib import resources
from pathlib import Path

import numpy as np
import pandas as pd
from markupsafe import Markup

from ... import plots
from ..._util.file_io import atomic
from ..._util.validation import checked
from ...evaluation._effectiveness import effectiveness
from ...sweeps.sweep_table import UNSTEERED
from ..results import CHOOSE, REPORT, Results
from .evidence import controls_finding, evidence_sections
from .findings import (
    TRAINING_FINDING,
    choice_finding,
    effect_finding,
    mass_finding,
    prompts_finding,
    separation_finding,
    text_finding,
    unreadable_finding,
)
from .report_tables import Section, audit_table, choice_table, detection_table, drawn, optimism_table
from .text_rows import answer_table, text_rows

MOST_MARKERS = 5
FIGURE_LAYERS = 7  # a scatter of every layer would make the file many times larger
UNREAD = (
    "An answer that cannot be read counts as wrong in the accuracy, and is left out of the share that says "
    "the signal."
)


@checked
def write_report(folder: str | Path) -> Path:
    """Write `report.html` into a run folder, from the folder's files.

    Every text from data or model is escaped, and plotly.js is included.

    Raises:
        FileNotFoundError: a file of a run is missing.
    """
    path = Path(folder) / "report.html"
    page = report_html(Results.load(folder))
    with atomic(path) as scratch:
        scratch.write_text(page, encoding="utf-8")
    return path


def report_html(results: Results) -> str:
    """The report of a run as HTML text."""
    import jinja2
    from plotly.offline import get_plotlyjs

    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    source = (resources.files(__package__) / "report.html.jinja").read_text(encoding="utf-8")
    return environment.from_string(source).render(
        experiment=results.experiment,
        versions=results.versions,
        vectors=results.vectors,
        hook=results.vectors.hook,
        findings=findings(results),
        sections=sections(results),
        texts=text_rows(results.texts),
        plotly=Markup(get_plotlyjs()),
    )


def findings(results: Results) -> list[str]:
    """The run's results in a few sentences each."""
    if results.experiment.has_prompts:
        sentences = [prompts_finding(results.vectors)]
    else:
        sentences = [separation_finding(results.separation)]
    if results.experiment.questions is not None:
        sentences += _question_findings(results)
    if len(results.texts):
        sentences.append(text_finding(results.texts))
    return sentences


def _question_findings(results: Results) -> list[str]:
    """Findings on the reporting half of the questions, and the choice on the other."""
    rows, sweep = results.half(REPORT), results.experiment.sweep
    shifts, detection = results.shifts(split=REPORT), results.detection(split=REPORT)
    types = {
        "factor": results.factor,
        "signal": sorted(rows.loc[rows["answer"] == 0, results.factor].unique()),
        "is_generated": results.is_generated,
    }
    sentences = [TRAINING_FINDING] if results.experiment.questions.training else []
    sentences += [effect_finding(shifts, detection, each, **types) for each in results.reported]
    if results.against_controls is None:
        sentences.append("No control vectors were run, so any vector of this length might do the same.")
    else:
        sentences += [controls_finding(results.against_controls, each) for each in results.reported]
    if results.score != sweep.score:
        sentences.append(
            "Layer and multiplier were to be chosen by d′, but too few answers on that half can be read: "
            "accuracy chooses instead."
        )
    by_operation = results.choices.groupby(["value_name", "vector", "operation"], sort=False)
    sentences += [choice_finding(choices) for _, choices in by_operation]
    if sweep.draws > 1:
        sentences.append(
            f"Each question was answered {sweep.draws} times per condition, at temperature "
            f"{sweep.temperature:g}: numbers of questions here are numbers of answers, and intervals take "
            "the answers to one question together."
        )
    if results.is_generated:
        sentences.append(unreadable_finding(rows, results.reported))
    return [*sentences, *filter(None, [mass_finding(rows, results.chosen)])]


def sections(results: Results) -> list[Section]:
    """The sections between findings and texts."""
    parts = []
    if not results.experiment.has_prompts:
        parts += [_audit(results), _separation(results), _components(results), _projections(results)]
    if results.experiment.questions is not None:
        parts += [_effects(results), _doses(results), _detection(results), _choices(results)]
        parts += [_answers(results)] if results.is_generated else []
    return [*(part for part in parts if part is not None), *evidence_sections(results)]


def _audit(results: Results) -> Section:
    differing = results.audit[results.audit["differs"].astype(str) == "True"]
    names = ", ".join(differing["factor"].unique())
    marked = f"the vector may also carry {names}" if names else "none is marked here"
    read = (
        "The two sides should differ in the behaviour alone. What differs by more than a tenth of a standard "
        f"deviation is marked: {marked}."
    )
    return Section("audit", "What differs between the two sides", read, tables=[audit_table(results.audit)])


def _separation(results: Results) -> Section:
    read = (
        "Directions are estimated on some pairs and tested on others. Only 5 % of shuffled labels exceed the "
        "dotted line at any layer, so directions above it carry what the labels are about. The grey band is "
        "that of shuffled labels at each layer alone."
    )
    figure = drawn("separation", plots.separation, results.separation)
    return Section("separation", "Do the pairs separate?", read, [figure])


def _components(results: Results) -> Section:
    read = (
        "Each point is a prompt (hover to read it), placed by what varies most among all of them. Sides that "
        "are apart differ in what varies most; sides that mix may still differ elsewhere."
    )
    table = results.components(_some_layers(results))
    symbol = _factor_by_side(table)
    figure = drawn("pca", plots.pca, table, layer=results.report_layer, symbol=symbol)
    return Section("pca", "Where the prompts lie", read, [figure])


def _projections(results: Results) -> Section:
    read = (
        "Each prompt's projection on the vector, from the mean of both sides. These pairs made the vector, "
        "so their separation is overestimated; that of the held-out pairs above is not."
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
        read += "The second figure shows the change of the logit difference, which moves before answers flip."
    elif results.has_noise and effects["signal_rate"].notna().any():
        values["signal"] = "signal_rate"
        read += f"The second figure shows what is said, right or wrong. {UNREAD}"
    else:
        read += UNREAD
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
        f"All questions, by kind. Panels that slope the same way show {alike}; panels that slope in opposite "
        f"directions, {against}. Grey: control vectors of the same length."
    )
    figure = drawn("doses", plots.dose_response, effects, value=value, facet=results.factor)
    return Section("doses", "Effect by dose", read, [figure])


def _detection(results: Results) -> Section | None:
    """`None` if all questions have the same right answer, so that there is no d′."""
    detection, layers = results.detection(), results.chosen["layers"]
    if detection["d_prime"].isna().all():
        return None
    read = (
        "The figure: all questions. Higher distinguishes the kinds better; further left says the signal more "
        "often, whatever the question. A strong bias also takes d′ toward 0, since answers become alike, so "
        "the table's verdict uses the AUC where it is known. The table: the chosen layer "
        f"({layers}), on the half of the questions that had no part in choosing."
    )
    half = results.detection(split=REPORT)
    half = half[half["layers"].isin(["", layers])]
    figure = drawn("detection", plots.signal_detection, detection, layer=layers)
    table = detection_table(half, effectiveness(results.half(REPORT)))
    return Section("detection", "Bias or sensitivity", read, [figure], [table])


def _choices(results: Results) -> Section:
    read = (
        f"The best of many conditions looks better than it is on the questions that chose it (“{CHOOSE}”). "
        f"The marked row is its result: the same condition on the other questions (“{REPORT}”). The second "
        "table shows by how much the first would be overestimated."
    )
    tables = [choice_table(results.choices), optimism_table(results.choices)]
    return Section("choice", "The choice of layer and dose", read, tables=tables)


def _answers(results: Results) -> Section:
    read = (
        "Every number above depends on how these texts are read. Steering that breaks a text leaves no "
        "answer, neither an honest one nor its opposite: read some before relying on a curve."
    )
    table = answer_table(results.half(REPORT), results.reported, factor=results.factor)
    return Section("answers", "The answers themselves", read, tables=[table])
