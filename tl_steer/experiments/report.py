"""A run folder as one HTML file that opens without a network."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from markupsafe import Markup

from .. import plots
from .findings import choice_finding, effect_finding, mass_finding, separation_finding, text_finding
from .report_tables import Table, audit_table, choice_table, detection_table, text_rows
from .results import CHOOSE, REPORT, Results

FIGURE_LAYERS = 7  # a scatter of every layer would make the file many times larger


@dataclass(frozen=True)
class Section:
    """A part of the report: heading, what to read from it, and a figure, tables, or both."""

    id: str
    title: str
    read: str
    figures: Sequence[tuple[str, Markup]] = ()
    tables: Sequence[Table] = ()


def write_report(folder: str | Path) -> Path:
    """Write `report.html` into a run folder, from the files that lie there.

    Every text from data or model is escaped, and plotly.js is inside, so that the file can be opened, kept
    and sent on its own.

    Raises:
        FileNotFoundError: a file of a run is missing.
    """
    path = Path(folder) / "report.html"
    path.write_text(report_html(Results.load(folder)), encoding="utf-8")
    return path


def report_html(results: Results) -> str:
    """The report of a run as HTML text."""
    import jinja2
    from plotly.offline import get_plotlyjs

    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = environment.from_string(
        (resources.files(__package__) / "report.html.jinja").read_text(encoding="utf-8")
    )
    return template.render(
        experiment=results.experiment,
        versions=results.versions,
        vectors=results.vectors,
        hook=results.activations.hook,
        findings=findings(results),
        sections=sections(results),
        texts=text_rows(results.experiment, results.texts),
        plotly=Markup(get_plotlyjs()),
    )


def findings(results: Results) -> list[str]:
    """What the run found, a sentence or two each."""
    found = [separation_finding(results.separation)]
    if results.experiment.questions is not None:
        chosen, factor = results.chosen, results.experiment.questions.factor
        questions = results.questions
        signal = sorted(questions.loc[questions["answer"] == 0, factor].unique())
        found.append(
            effect_finding(
                results.effects(split=REPORT),
                results.detection(split=REPORT),
                chosen,
                factor=factor,
                signal=signal,
            )
        )
        scores = dict.fromkeys(results.choices["score"])
        found += [
            choice_finding(results.choices[results.choices["score"] == score].head(2)) for score in scores
        ]
        found.append(mass_finding(questions[questions["split"] == REPORT], chosen))
    if len(results.texts):
        found.append(text_finding(results.texts))
    return [sentence for sentence in found if sentence]


def sections(results: Results) -> list[Section]:
    """The parts of the report between what was found and the texts."""
    made = [_audit(results), _separation(results), _components(results), _projections(results)]
    if results.experiment.questions is not None:
        made += [_effects(results), _doses(results), _detection(results), _choices(results)]
    return made


def _audit(results: Results) -> Section:
    differing = results.audit[results.audit["differs"].astype(str) == "True"]
    names = ", ".join(differing["factor"].unique())
    told = (
        f"These differ: {names}. A vector may carry them instead of the behaviour."
        if names
        else "Nothing else does."
    )
    read = f"The two sides should differ in the behaviour alone. Standardised differences beyond ±0.1 are marked. {told}"
    return Section("audit", "What differs between the two sides", read, tables=[audit_table(results.audit)])


def _separation(results: Results) -> Section:
    read = (
        "Directions are made on some pairs and tested on others. Where the line leaves the grey band, they hold "
        "something that the labels are about; inside it, chance does as well."
    )
    return Section(
        "separation",
        "Do the pairs separate?",
        read,
        [_figure("separation", plots.separation, results.separation)],
    )


def _components(results: Results) -> Section:
    table = results.components(_some_layers(results))
    read = (
        "Each point is a prompt (hover to read it). Sides that fall apart along a component are told apart by one "
        "of the largest differences between the prompts; sides that mix may still differ elsewhere."
    )
    figure = _figure("pca", plots.pca, table, layer=results.shown_layer)
    return Section("pca", "Where the prompts lie", read, [figure])


def _projections(results: Results) -> Section:
    table = results.projected(_some_layers(results))
    read = (
        "How far each prompt lies along the vector, from the mean of both sides. The vector was made of these very "
        "pairs, so this flatters it: the figure of held-out pairs above does not."
    )
    figure = _figure("projections", plots.projections, table, layer=results.shown_layer)
    return Section("projections", "Along the vector", read, [figure])


def _effects(results: Results) -> Section:
    factor, effects = results.experiment.questions.factor, results.effects()
    read = (
        "All questions. A vector that improves the answers raises both panels; one that shifts a bias raises the one "
        "kind and lowers the other. Lower figure: the same as a change of the logit difference, which moves before "
        "any answer flips."
    )
    figures = [
        _figure("effectiveness", plots.effectiveness, effects, value="accuracy", facet=factor),
        _figure("shift", plots.effectiveness, effects, value="shift", facet=factor),
    ]
    return Section("effects", "Effect by layer and kind of question", read, figures)


def _doses(results: Results) -> Section:
    read = (
        "All questions. Panels that slope alike show a bias; panels that slope against each other, an "
        "improvement or its opposite. Grey: random directions of the same length."
    )
    figure = _figure(
        "doses",
        plots.dose_response,
        results.effects(),
        value="shift",
        facet=results.experiment.questions.factor,
    )
    return Section("doses", "Effect by dose", read, [figure])


def _detection(results: Results) -> Section:
    everything, half = results.detection(), results.detection(split=REPORT)
    read = (
        "Upwards is better at telling the kinds apart; to the left is readier to say the signal, whatever is asked. "
        "The table is of the half that had no part in choosing, at the chosen layer."
    )
    shown = half[half["layers"].isin(["", results.chosen["layers"]])]
    accuracies = results.accuracy(split=REPORT)
    figure = _figure("detection", plots.signal_detection, everything)
    return Section("detection", "Bias or sensitivity", read, [figure], [detection_table(shown, accuracies)])


def _choices(results: Results) -> Section:
    read = (
        f"The best cell on the split “{CHOOSE}” is flattered by having been picked; its result is the row of the split "
        f"“{REPORT}”, questions that had no part in it."
    )
    return Section("choice", "The choice of layer and dose", read, tables=[choice_table(results.choices)])


def _some_layers(results: Results) -> list[int]:
    """A handful of the captured layers, evenly spread, the one that is shown first among them."""
    layers = list(results.activations.layers)
    spread = {layers[place] for place in np.linspace(0, len(layers) - 1, FIGURE_LAYERS).round().astype(int)}
    return sorted(spread | {results.shown_layer})


def _figure(id_: str, plot: Callable[..., Any], table: pd.DataFrame, **options: Any) -> tuple[str, Markup]:
    """A figure's id, and its HTML without plotly.js, which the page holds once."""
    figure = plot(table, **options)
    config = {"displaylogo": False, "responsive": True}
    div = figure.to_html(full_html=False, include_plotlyjs=False, div_id=f"figure-{id_}", config=config)
    return id_, Markup(div)
