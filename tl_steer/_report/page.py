"""The report as one HTML page that opens without a network."""

import html
from dataclasses import dataclass
from importlib import resources
from typing import Any

import tl_steer.plots as plots

from .._util.html_output import COLOURS, Html
from ..plots.format import counted
from ..texts import side_by_side
from .findings import text_finding
from .results import Results
from .sections import sections
from .summary import summary

FRAME = (
    '<iframe srcdoc="{page}" sandbox="allow-scripts" title="{title}" '
    'style="width: 100%; height: 800px; border: 0"></iframe>'
)
DOSE = (
    "Dose: the length of what is added, divided by the typical norm of the residual stream there. Doses are "
    "comparable between layers and models, multipliers are not."
)


@dataclass(frozen=True, repr=False)
class Report(Html):
    """A report, displayed in a notebook in a frame of its own.

    Attributes:
        html: the complete page.
        verdict: its first line.
    """

    html: str
    verdict: str

    @property
    def page(self) -> str:
        """The complete page."""
        return self.html


def report_page(results: Results) -> Report:
    """The page of all results. Every text from data or model is escaped, and plotly.js is included."""
    import jinja2
    from markupsafe import Markup
    from plotly.offline import get_plotlyjs

    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    top, parts = summary(results), sections(results)
    figures = dict(figure for section in parts for figure in section.figures)
    if top.figure is not None:
        figures["summary"] = top.figure
    source = (resources.files(__package__) / "report.html.jinja").read_text(encoding="utf-8")
    page = environment.from_string(source).render(
        settings=results.settings,
        top=top,
        sections=parts,
        texts=_texts(results),
        texts_finding=text_finding(results.texts, results.settings.sampling) if len(results.texts) else "",
        facts=_facts(results),
        dose=DOSE,
        colours=COLOURS,
        figures=Markup(_json(figures)),
        alt=_alt,
        plotly=Markup(get_plotlyjs()),
    )
    title = results.settings.title
    frame = FRAME.format(page=html.escape(page), title=html.escape(title))
    return Report(frame, title, page, top.verdict)


def _texts(results: Results) -> Any:
    """Open prompts with their texts side by side, filterable by layer and multiplier."""
    from markupsafe import Markup

    if results.texts.empty:
        return ""
    return Markup(plots.side_by_side(side_by_side(results.texts)).body)


def _alt(figure: Any) -> str:
    """A figure's title as plain text."""
    return html.unescape(figure.layout.title.text.replace("<br>", " "))


def _json(figures: dict[str, Any]) -> str:
    """Figures by id as JSON that cannot end a script element. Their width is that of the page."""
    texts = []
    for name, figure in figures.items():
        figure.update_layout(width=None, autosize=True)
        texts.append(f'"{name}": {figure.to_json()}')
    return "{" + ",\n".join(texts).replace("</", "<\\/").replace("<!--", "<\\!--") + "}"


def _facts(results: Results) -> dict[str, str]:
    """The lines of "How it was made"."""
    source, facts = results.vectors or results.activations, {}
    if source is not None:
        positive = getattr(source, "positive", source)  # one side of pairs
        identity = positive.identity
        facts["model"] = f"{identity.name}, {identity.n_layers} layers, d_model {identity.d_model}"
    if results.vectors is not None:
        vectors = results.vectors
        layers = counted([len(vectors.layers)], "layer")
        facts["vectors"] = f"{vectors.method} at {vectors.hook}, {layers}"
    return facts | {"seed": str(results.settings.seed)} | dict(results.settings.facts)
