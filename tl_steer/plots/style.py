"""The style of all figures: template, colours, dashes and symbols; and the version for print."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go
from plotly.colors import hex_to_rgb, sample_colorscale
from plotly.subplots import make_subplots

from .._util.validation import checked
from .format import broken, escape

WIDTH, HEIGHT = 900, 460  # pixels; the width of a notebook's column
PANEL_TITLE_SIZE, PANEL_TITLE_HEIGHT = 13, 18
# Lines of title and subtitle, in characters that fit into 420 pixels, and their heights in pixels.
TITLE_LENGTH, SUBTITLE_LENGTH, TITLE_LINE, SUBTITLE_LINE, HEADING_GAP = 48, 66, 21, 16, 30

# Okabe & Ito 2008, "Color Universal Design"; without yellow, which has no contrast on white.
BLACK, ORANGE, SKY, GREEN = "#000000", "#E69F00", "#56B4E9", "#009E73"
BLUE, VERMILLION, PURPLE = "#0072B2", "#D55E00", "#CC79A7"
INK, GRID, CONTROL, AXIS = "#2A2F36", "#E6E8EB", "#8A9099", "#9AA0A8"
CONTROL_BAND = "#E1E4E8"  # of controls that are not separated by |multiplier|

MEANINGS = {"positive": VERMILLION, "negative": BLUE, "true": GREEN, "false": PURPLE}
QUALITATIVE = (BLUE, ORANGE, GREEN, PURPLE, SKY, VERMILLION, BLACK)
LAYER_SETS = (VERMILLION, BLUE, PURPLE, GREEN)  # of "17+31", which has no rank among the layers
SYMBOLS = ("circle", "diamond-open", "square", "triangle-up-open", "x", "star-open", "triangle-down")
DASHES = ("solid", "dot", "dash", "dashdot", "longdash")

NEGATIVE_SIDE = ("#7DB8E0", BLUE, "#08355C")
POSITIVE_SIDE = ("#F2A667", VERMILLION, "#7A2600")
DIVERGING = (*reversed(NEGATIVE_SIDE), "#F4F4F4", *POSITIVE_SIDE)
# On dark pages zero is dark, and the largest values are light.
DIVERGING_ON_BLACK = ("#C4E4FA", "#4DA6DE", "#1F5F8C", "#2A2F36", "#8A4A16", "#E08334", "#FFD3AC")
CONTROL_GREYS = ("#BFC4CB", "#EDEFF1")  # of the smallest and of the largest |multiplier|
# Viridis without its yellow, which has no contrast on white.
SEQUENTIAL = tuple(sample_colorscale("Viridis", [0.0, 0.17, 0.34, 0.51, 0.68, 0.85]))

# Printed figures: widths of a journal's column and page (85 and 178 mm) at 96 pixels per inch.
PRINT_WIDTHS = {"column": 321, "page": 673}
POINT = 96 / 72  # pixels per typographic point
MIN_PRINT_HEIGHT = 240
LEGEND_SYMBOL = 34  # pixels next to the text of a legend entry


@dataclass(frozen=True)
class Style:
    """The style of a line; `name` is escaped, `offset` along the x axis, `rank` in the legend ascending."""

    name: str
    colour: str
    dash: str = "solid"
    symbol: str = "circle"
    offset: float = 0.0
    rank: int = 500


def ranked_style(rank: int, name: str) -> Style:
    """The style of the k-th line of several without an order, from 0."""
    choices = (QUALITATIVE, DASHES, SYMBOLS)
    return Style(name, *(each[rank % len(each)] for each in choices))


def x_offsets(names: Iterable[Any], width: float) -> dict[Any, float]:
    """Shifts of lines along the x axis, `width` apart, so that their whiskers do not overlap."""
    names = list(names)
    return {name: width * (rank - (len(names) - 1) / 2) for rank, name in enumerate(names)}


def template() -> go.layout.Template:
    """The plotly template. It is not registered, so the user's default template stays."""
    axis = {
        "gridcolor": GRID, "linecolor": AXIS, "showline": True, "ticks": "outside", "tickcolor": AXIS,
        "ticklen": 4, "zerolinecolor": "#C9CDD3", "title": {"standoff": 8, "font": {"size": 13}},
        "automargin": True,
    }  # fmt: skip
    return go.layout.Template(
        layout={
            "font": {"family": "Helvetica, Arial, 'Liberation Sans', sans-serif", "size": 12, "color": INK},
            "title": {
                "x": 0.01, "xanchor": "left", "yref": "container", "y": 1, "yanchor": "top", "pad": {"t": 12},
                "font": {"size": 16},
            },
            "paper_bgcolor": "white",
            "plot_bgcolor": "white",
            "colorway": QUALITATIVE,
            "colorscale": {"diverging": colour_scale(DIVERGING), "sequential": colour_scale(SEQUENTIAL)},
            "xaxis": axis,
            "yaxis": axis,
            "margin": {"l": 70, "r": 20, "t": 76, "b": 56},
            "hoverlabel": {
                "bgcolor": "white", "bordercolor": AXIS, "font": {"color": INK, "size": 12}, "align": "left",
            },
            # Below the axes, where it takes no width from them and wraps in a narrow figure.
            "legend": {
                "orientation": "h", "x": 0, "xanchor": "left", "tracegroupgap": 3,
                "yref": "container", "y": 0, "yanchor": "bottom",
            },
        }
    )  # fmt: skip


def styled(figure: go.Figure, title: str, subtitle: str, *, height: float = HEIGHT) -> go.Figure:
    """Set template, size, title and subtitle (both escaped) of a figure, and return it.

    Both are broken into lines that fit at half of the width; the top margin grows with them, by what the
    figure asks for above its axes (`margin_t`, for titles of panels).
    """
    title, subtitle = broken(title, TITLE_LENGTH), broken(subtitle, SUBTITLE_LENGTH)
    lines = title.count("<br>")
    top = TITLE_LINE * (1 + lines) + SUBTITLE_LINE * (1 + subtitle.count("<br>")) + HEADING_GAP
    heading = {"text": title, "subtitle": {"text": subtitle, "font": {"size": 12, "color": "#5B626B"}}}
    heading["pad"] = {"t": 12 + TITLE_LINE * lines // 2}  # plotly.js centres the lines on the first
    margin = {"t": top + (figure.layout.margin.t or 0)}
    return figure.update_layout(template=template(), title=heading, width=WIDTH, height=height, margin=margin)


def subplots(rows: int, columns: int, titles: Sequence[str] | None = None, **more: Any) -> go.Figure:
    """A figure of panels with small titles."""
    figure = make_subplots(rows=rows, cols=columns, subplot_titles=titles, **more)
    return figure.update_annotations(font_size=PANEL_TITLE_SIZE)


def colour_scale(colours: Sequence[str]) -> list[list[float | str]]:
    """A plotly colour scale of colours at equal distances."""
    return [[rank / (len(colours) - 1), colour] for rank, colour in enumerate(colours)]


def level_colours(levels: Iterable[str]) -> dict[str, str]:
    """Assign colours to levels: fixed for those in `MEANINGS`, in order for the others."""
    levels = list(levels)
    fixed = {level: MEANINGS[level.lower()] for level in levels if level.lower() in MEANINGS}
    others = [level for level in levels if level not in fixed]
    spare = [colour for colour in QUALITATIVE if colour not in fixed.values()]
    if len(others) > len(spare):
        raise ValueError(
            f"{len(levels)} values to colour: expected at most {len(QUALITATIVE)}. "
            "Group them first (pandas.cut for numbers), or choose another factor."
        )
    return {**fixed, **dict(zip(others, spare, strict=False))}


def multiplier_colours(multipliers: Iterable[float | int]) -> dict[float, str]:
    """Blue for negative multipliers, vermillion for positive ones, darker with size; zero is grey."""
    multipliers = {float(multiplier) for multiplier in multipliers if multiplier == multiplier}
    sizes = sorted({abs(multiplier) for multiplier in multipliers if multiplier})
    depths = {size: (rank + 1) / (len(sizes) + 1) for rank, size in enumerate(sizes)}
    colours = {0.0: CONTROL} if 0.0 in multipliers else {}
    for multiplier in multipliers - {0.0}:
        side = NEGATIVE_SIDE if multiplier < 0 else POSITIVE_SIDE
        colours |= _sampled(side, {multiplier: depths[abs(multiplier)]})
    return colours


def sequential_colours(numbers: Iterable[int]) -> dict[int, str]:
    """From dark for the smallest number to light for the largest."""
    numbers = sorted(set(numbers))
    span = max(numbers[-1] - numbers[0], 1) if numbers else 1
    return _sampled(SEQUENTIAL, {number: (number - numbers[0]) / span for number in numbers})


def control_greys(sizes: Iterable[float]) -> dict[float, str]:
    """A grey for the controls of each |multiplier|, lighter with size."""
    sizes = sorted(set(sizes))
    steps = len(sizes) - 1
    return _sampled(CONTROL_GREYS, {size: rank / steps if steps else 0.6 for rank, size in enumerate(sizes)})


def _sampled(colours: Sequence[str], depths: dict[Any, float]) -> dict[Any, str]:
    """The colour of each key, at its depth from 0 to 1 of a scale."""
    scale = colour_scale(colours)
    return {key: sample_colorscale(scale, [depth])[0] for key, depth in depths.items()}


def translucent(colour: str, opacity: float) -> str:
    """A colour ("#RRGGBB" or "rgb(r, g, b)") as rgba."""
    if colour.startswith("#"):
        colour = f"rgb{hex_to_rgb(colour)}"
    return f"rgba({colour.removeprefix('rgb(').removesuffix(')')}, {opacity})"


def ink_on(colour: str) -> str:
    """Black or white text, whichever has more contrast on a colour "rgb(r, g, b)"; at least 4.5 to 1."""
    shares = [float(part) / 255 for part in colour.removeprefix("rgb(").removesuffix(")").split(",")]
    linear = [each / 12.92 if each <= 0.04045 else ((each + 0.055) / 1.055) ** 2.4 for each in shares]
    luminance = sum(weight * each for weight, each in zip((0.2126, 0.7152, 0.0722), linear, strict=True))
    return "#000" if luminance > 0.179 else "#fff"


def operation_name(operation: str) -> str:
    """An operation for a legend, escaped."""
    return escape(operation.replace("project_out", "project out"))


@checked
def for_print(figure: go.Figure, to: str, *, height: int | None = None, title: bool = False) -> go.Figure:
    """A copy of a figure for print, with 8-point type and the legend below.

    Args:
        figure: from one of the plots.
        to: "column" (85 mm) or "page" (178 mm).
        height: in pixels, 96 to the inch; by default in proportion, at least 240, plus the legend.
        title: keep title and subtitle. A printed figure has them in its caption.

    Sliders and menus are removed; what they select stays. To write the copy, use
    `.write_image("figure.pdf")`, .svg, or .png with scale=4; needs `kaleido`, the extra "images".
    """
    if to not in PRINT_WIDTHS:
        raise ValueError(f"to={to!r} is unknown: use 'column' or 'page'.")
    width = PRINT_WIDTHS[to]
    copy = go.Figure(figure)
    copy.layout.sliders, copy.layout.updatemenus = (), ()
    copy.update_layout(width=width, font_size=8 * POINT, legend_title_font_size=8 * POINT)
    copy.for_each_trace(_shrink, selector={"type": "scatter"})
    if not title:
        copy.update_layout(title=None)
    legend = _move_legend_below(copy, width)
    proportion = (figure.layout.height or 450) / (figure.layout.width or 700)
    panel_titles = [note.text for note in copy.layout.annotations if note.text and not note.xshift]
    lines = max((text.count("<br>") + 1 for text in panel_titles), default=0)
    copy.update_layout(
        height=height or max(MIN_PRINT_HEIGHT, round(width * proportion)) + legend,
        margin={"l": 44, "r": copy.layout.margin.r or 8, "t": 8 + 18 * lines + 44 * title, "b": 44 + legend},
    )
    copy.update_annotations(font_size=8 * POINT)
    for axis in (*copy.select_xaxes(), *copy.select_yaxes()):
        axis.update(title_font_size=8 * POINT, tickfont_size=7 * POINT)
    return copy


def _move_legend_below(figure: go.Figure, width: int) -> int:
    """Put the legend below the axes; returns its height in pixels."""
    traces = [each for each in figure.data if each.visible is not False and each.showlegend is not False]
    names = [trace.name or "" for trace in traces]
    heading = figure.layout.legend.title.text or ""
    if not any(names) or figure.layout.showlegend is False:
        return 0
    character = 8 * POINT * 0.55
    entry_width = max(len(name) for name in names) * character + LEGEND_SYMBOL
    rows = math.ceil(len(names) / max(1, int((width - len(heading) * character) // entry_width)))
    figure.update_layout(
        legend={
            "orientation": "h", "x": 0, "xref": "container", "y": 0, "yref": "container", "yanchor": "bottom",
            "font": {"size": 7.5 * POINT}, "tracegroupgap": 0,
        }
    )  # fmt: skip
    return 15 * rows + 6


def _shrink(trace: go.Scatter) -> None:
    """Reduce markers and their text to the size of the type."""
    size = trace.marker.size
    if size is not None:
        trace.marker.size = [0.7 * each for each in size] if isinstance(size, tuple) else 0.7 * size
    if trace.text is not None:
        trace.textfont.size = 6.5 * POINT
