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
from ..evaluation.tables import UNSTEERED
from .effect_findings import effect_finding, ranking_finding
from .findings import choice_finding, mass_finding, separation_finding, text_finding
from .report_tables import Table, audit_table, choice_table, detection_table, text_rows
from .results import CHOOSE, REPORT, Results

MOST_MARKERS = 5
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
    """What the run found, a few sentences each."""
    found = [separation_finding(results.separation)]
    if results.experiment.questions is not None:
        found += _question_findings(results)
    if len(results.texts):
        found.append(text_finding(results.texts))
    return found


def _question_findings(results: Results) -> list[str]:
    """All of the half of the questions that had no part in choosing, but for the choice itself."""
    factor, rows = results.experiment.questions.factor, results.half(REPORT)
    effects, detection = results.effects(split=REPORT), results.detection(split=REPORT)
    signal = sorted(rows.loc[rows["answer"] == 0, factor].unique())
    found = []
    for cell in (results.chosen, results.opposite):
        if cell is not None:
            effect = effect_finding(effects, detection, cell, factor=factor, signal=signal)
            ranking = ranking_finding(rows, cell, seed=results.experiment.seed)
            found.append(" ".join(filter(None, (effect, ranking))))
    by_operation = results.choices.groupby(["score", "vector", "operation"], sort=False)
    found += [choice_finding(choices) for _, choices in by_operation]
    return [*found, *filter(None, [mass_finding(rows, results.chosen)])]


def sections(results: Results) -> list[Section]:
    """The parts of the report between what was found and the texts."""
    made = [_audit(results), _separation(results), _components(results), _projections(results)]
    if results.experiment.questions is not None:
        made += [_effects(results), _doses(results), _detection(results), _choices(results)]
    return [section for section in made if section is not None]


def _audit(results: Results) -> Section:
    differing = results.audit[results.audit["differs"].astype(str) == "True"]
    names = ", ".join(differing["factor"].unique())
    told = f"{names} may be carried by the vector too" if names else "none is marked here"
    read = (
        "The two sides should differ in the behaviour alone. What differs by more than a tenth of a standard "
        f"deviation is marked: {told}."
    )
    return Section("audit", "What differs between the two sides", read, tables=[audit_table(results.audit)])


def _separation(results: Results) -> Section:
    read = (
        "Directions are made on some pairs and tested on others. Where the line and its band lie above the "
        "grey band, they hold something that the labels are about; inside it, chance does as well."
    )
    figure = _figure("separation", plots.separation, results.separation)
    return Section("separation", "Do the pairs separate?", read, [figure])


def _components(results: Results) -> Section:
    read = (
        "Each point is a prompt (hover to read it), placed by what varies most among all of them. Sides "
        "that fall apart differ in what varies most; sides that mix may still differ elsewhere."
    )
    table = results.components(_some_layers(results))
    symbol = _factor_by_side(table)
    figure = _figure("pca", plots.pca, table, layer=results.shown_layer, symbol=symbol)
    return Section("pca", "Where the prompts lie", read, [figure])


def _projections(results: Results) -> Section:
    read = (
        "How far each prompt lies along the vector, from both sides' mean. The vector was made of these "
        "very pairs, so this flatters it; the held-out pairs above do not."
    )
    table = results.projected(_some_layers(results))
    figure = _figure("projections", plots.projections, table, layer=results.shown_layer)
    return Section("projections", "Along the vector", read, [figure])


def _effects(results: Results) -> Section:
    factor, effects = results.experiment.questions.factor, results.effects()
    read = (
        "All questions, by kind. A vector that improves the answers raises accuracy in both panels; one "
        "that shifts a bias raises one kind and lowers the other. The second figure shows the change of "
        "the logit difference, which moves before any answer flips."
    )
    figures = [
        _figure("effectiveness", plots.effectiveness, effects, value="accuracy", facet=factor),
        _figure("shift", plots.effectiveness, effects, value="shift", facet=factor),
    ]
    return Section("effects", "Effect by layer and kind of question", read, figures)


def _doses(results: Results) -> Section | None:
    """`None` where nothing was added: a projection has no dose."""
    effects = results.effects()
    if effects.loc[effects["vector"] != UNSTEERED, "multiplier"].isna().all():
        return None
    read = (
        "All questions, by kind. Panels that slope alike show a bias; panels that slope against each other, "
        "an improvement or its opposite. Grey: random directions of the same length."
    )
    factor = results.experiment.questions.factor
    figure = _figure("doses", plots.dose_response, effects, value="shift", facet=factor)
    return Section("doses", "Effect by dose", read, [figure])


def _detection(results: Results) -> Section | None:
    """`None` where all questions have the same right answer, so that there is no d′."""
    detection = results.detection()
    if detection["d_prime"].isna().all():
        return None
    read = (
        "All questions in the figure. Higher is better at telling the kinds apart; further left is readier "
        f"to say the signal, whatever is asked. The table: the chosen layer ({results.chosen['layers']}), on "
        "the half of the questions that had no part in choosing."
    )
    half = results.detection(split=REPORT)
    half = half[half["layers"].isin(["", results.chosen["layers"]])]
    figure = _figure("detection", plots.signal_detection, detection)
    table = detection_table(half, results.accuracy(split=REPORT))
    return Section("detection", "Bias or sensitivity", read, [figure], [table])


def _choices(results: Results) -> Section:
    read = (
        f"A cell picked for being the best of many is flattered where it was picked (“{CHOOSE}”). Its "
        f"result is the marked row: the same cell on questions that had no part in the choice (“{REPORT}”)."
    )
    return Section("choice", "The choice of layer and dose", read, tables=[choice_table(results.choices)])


def _some_layers(results: Results) -> list[int]:
    """A handful of the captured layers, evenly spread, the one that is shown first among them."""
    layers, shown = results.activations.layers, results.shown_layer
    spread = np.linspace(0, len(layers) - 1, min(FIGURE_LAYERS, len(layers))).round().astype(int)
    some = [layers[place] for place in spread]
    nearest = min(some, key=lambda layer: abs(layer - shown))
    return sorted({*some} - {nearest} | {shown})


def _factor_by_side(table: pd.DataFrame) -> str | None:
    """A factor that differs between the sides of a pair (the letter), to be told apart from the behaviour."""
    known = list(table.columns)
    factors = [name for name in known[known.index("prompt") + 1 : known.index("PC1")] if name != "group"]
    few = [name for name in factors if 2 <= table[name].nunique() <= MOST_MARKERS]
    return next((name for name in few if table.groupby(["layer", "pair"])[name].nunique().max() > 1), None)


def _figure(id_: str, plot: Callable[..., Any], table: pd.DataFrame, **options: Any) -> tuple[str, Markup]:
    """A figure's id, and its HTML without plotly.js, which the page holds once."""
    figure = plot(table, **options)
    config = {"displaylogo": False, "responsive": True}
    div = figure.to_html(full_html=False, include_plotlyjs=False, div_id=f"figure-{id_}", config=config)
    return id_, Markup(div)
