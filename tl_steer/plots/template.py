"""The one look of all figures: fonts, sizes, and colours that colour-blind readers can tell apart."""

from collections.abc import Iterable, Sequence

import plotly.graph_objects as go
from plotly.colors import sample_colorscale

WIDTH, HEIGHT = 900, 460  # a notebook's column, and a height that leaves room for the next cell

# Okabe & Ito 2008, "Color Universal Design"; without yellow, which is lost on white.
BLACK, ORANGE, SKY, GREEN = "#000000", "#E69F00", "#56B4E9", "#009E73"
BLUE, VERMILLION, PURPLE = "#0072B2", "#D55E00", "#CC79A7"
INK, GRID, CONTROL = "#2A2F36", "#E6E8EB", "#8A9099"

# A value that means the same in two figures has the same colour in both.
MEANINGS = {"positive": VERMILLION, "negative": BLUE, "true": GREEN, "false": PURPLE}
QUALITATIVE = (BLUE, ORANGE, GREEN, PURPLE, SKY, VERMILLION, BLACK)
SYMBOLS = ("circle", "diamond-open", "square", "triangle-up-open", "x", "star-open", "triangle-down")
DASHES = ("solid", "dot", "dash", "dashdot", "longdash")

NEGATIVE_SIDE = ("#7DB8E0", BLUE, "#08355C")
POSITIVE_SIDE = ("#F2A667", VERMILLION, "#7A2600")
DIVERGING = (*reversed(NEGATIVE_SIDE), "#F4F4F4", *POSITIVE_SIDE)
# Short of the yellow that is lost on white.
SEQUENTIAL = tuple(sample_colorscale("Viridis", [0.0, 0.17, 0.34, 0.51, 0.68, 0.85]))


def template() -> go.layout.Template:
    """The template, as a value: nothing is registered with plotly, so the user's own default stays."""
    axis = {
        "gridcolor": GRID,
        "linecolor": "#9AA0A8",
        "showline": True,
        "ticks": "outside",
        "tickcolor": "#9AA0A8",
        "ticklen": 4,
        "zerolinecolor": "#C9CDD3",
        "title": {"standoff": 8, "font": {"size": 13}},
        "automargin": True,
    }
    return go.layout.Template(
        layout={
            "font": {"family": "Helvetica, Arial, 'Liberation Sans', sans-serif", "size": 12, "color": INK},
            "title": {"x": 0.01, "xanchor": "left", "y": 0.97, "yanchor": "top", "font": {"size": 16}},
            "paper_bgcolor": "white",
            "plot_bgcolor": "white",
            "colorway": QUALITATIVE,
            "colorscale": {"diverging": spaced(DIVERGING), "sequential": spaced(SEQUENTIAL)},
            "xaxis": axis,
            "yaxis": axis,
            "margin": {"l": 70, "r": 20, "t": 76, "b": 56},
            "hoverlabel": {
                "bgcolor": "white",
                "bordercolor": "#9AA0A8",
                "font": {"color": INK, "size": 12},
                "align": "left",
            },
            "legend": {
                "x": 1.01,
                "xanchor": "left",
                "y": 1,
                "yanchor": "top",
                "tracegroupgap": 3,
            },
        }
    )


def styled(figure: go.Figure, title: str, subtitle: str, *, height: int = HEIGHT) -> go.Figure:
    """Give a figure the template, its size, and a title with a line below it; returns the same figure.

    Args:
        title, subtitle: already escaped.
        height: in pixels.
    """
    heading = {"text": title, "subtitle": {"text": subtitle, "font": {"size": 12, "color": "#5B626B"}}}
    return figure.update_layout(template=template(), title=heading, width=WIDTH, height=height)


def spaced(colours: Sequence[str]) -> list[list[float | str]]:
    """Colours at equal distances, as plotly wants a scale."""
    return [[place / (len(colours) - 1), colour] for place, colour in enumerate(colours)]


def level_colours(levels: Iterable[str]) -> dict[str, str]:
    """A colour for each value of a factor: fixed for values with a meaning, else by their order.

    Raises:
        ValueError: more values than colours that can be told apart.
    """
    levels = list(levels)
    fixed = {level: MEANINGS[level.lower()] for level in levels if level.lower() in MEANINGS}
    others = [level for level in levels if level not in fixed]
    spare = [colour for colour in QUALITATIVE if colour not in fixed.values()]
    if len(others) > len(spare):
        raise ValueError(
            f"{len(levels)} values cannot be told apart by colour, at most {len(QUALITATIVE)} can: "
            "group them first (pandas.cut for numbers), or choose another factor."
        )
    return {**fixed, **dict(zip(others, spare, strict=False))}


def multiplier_colours(multipliers: Iterable[float | int]) -> dict[float, str]:
    """Blue for negative multipliers, vermillion for positive ones, deeper with size; zero is grey."""
    multipliers = {float(multiplier) for multiplier in multipliers if multiplier == multiplier}
    sizes = sorted({abs(multiplier) for multiplier in multipliers if multiplier})
    depths = {size: (rank + 1) / (len(sizes) + 1) for rank, size in enumerate(sizes)}
    colours = {0.0: CONTROL} if 0.0 in multipliers else {}
    for multiplier in multipliers - {0.0}:
        side = NEGATIVE_SIDE if multiplier < 0 else POSITIVE_SIDE
        (colours[multiplier],) = sample_colorscale(spaced(side), [depths[abs(multiplier)]])
    return colours


def sequential_colours(numbers: Iterable[int]) -> dict[int, str]:
    """From dark to light by size."""
    numbers = sorted(set(numbers))
    span = max(numbers[-1] - numbers[0], 1) if numbers else 1
    places = [(number - numbers[0]) / span for number in numbers]
    return dict(zip(numbers, sample_colorscale(spaced(SEQUENTIAL), places), strict=True)) if numbers else {}


def translucent(colour: str, opacity: float) -> str:
    """A colour as rgba.

    Args:
        colour: "#RRGGBB", or "rgb(r, g, b)" as plotly samples it.
        opacity: 0 to 1.
    """
    if colour.startswith("#"):
        channels = ", ".join(str(int(colour[start : start + 2], 16)) for start in (1, 3, 5))
    else:
        channels = colour.removeprefix("rgb(").removesuffix(")")
    return f"rgba({channels}, {opacity})"
