"""Figures at the size of a printed column or page."""

import math

import plotly.graph_objects as go

from .._util.validation import checked

# Widths of a journal's column and page (85 and 178 mm) in plotly's pixels, of which 96 make an inch.
WIDTHS = {"column": 321, "page": 673}
POINT = 96 / 72  # pixels in a typographic point
LOWEST = 240
ENTRY = 34  # pixels of a legend entry beside its text


@checked
def sized(figure: go.Figure, to: str, *, height: int | None = None, title: bool = False) -> go.Figure:
    """A copy of a figure for print, with type of 8 points, and the legend below.

    Args:
        figure: from one of the plots.
        to: "column" (85 mm) or "page" (178 mm).
        height: in pixels, 96 to the inch; by default in proportion, but not too low to read, and the legend.
        title: keep title and subtitle. A printed figure has them in its caption.

    Raises:
        ValueError: another size.

    Sliders and menus are left out, since they do not print: what they show at that moment stays. To write the
    copy, `.write_image("figure.pdf")`, .svg, or .png with scale=4; needs `kaleido`, the extra "images".
    """
    if to not in WIDTHS:
        raise ValueError(f"to={to!r} is unknown: use 'column' or 'page'.")
    width = WIDTHS[to]
    copy = go.Figure(figure)
    copy.layout.sliders, copy.layout.updatemenus = (), ()
    copy.update_layout(width=width, font_size=8 * POINT, legend_title_font_size=8 * POINT)
    copy.for_each_trace(_smaller, selector={"type": "scatter"})
    if not title:
        copy.update_layout(title=None)
    legend = _legend_below(copy, width)
    proportion = (figure.layout.height or 450) / (figure.layout.width or 700)
    copy.update_layout(
        height=height or max(LOWEST, round(width * proportion)) + legend,
        margin={"l": 44, "r": 8, "t": _top(copy, title=title), "b": 44 + legend},
    )
    copy.update_annotations(font_size=8 * POINT)
    for axis in (*copy.select_xaxes(), *copy.select_yaxes()):
        axis.update(title_font_size=8 * POINT, tickfont_size=7 * POINT)
    return copy


def _legend_below(figure: go.Figure, width: int) -> int:
    """Put the legend below the axes; returns the pixels it takes."""
    names = [
        trace.name or ""
        for trace in figure.data
        if trace.visible is not False and trace.showlegend is not False
    ]
    heading = figure.layout.legend.title.text or ""
    if not any(names) or figure.layout.showlegend is False:
        return 0
    longest = max(len(name) for name in names) * 8 * POINT * 0.55 + ENTRY
    room = width - len(heading) * 8 * POINT * 0.55
    rows = math.ceil(len(names) / max(1, int(room // longest)))
    figure.update_layout(
        legend={
            "orientation": "h", "x": 0, "xref": "container", "y": 0, "yref": "container", "yanchor": "bottom",
            "font": {"size": 7.5 * POINT}, "tracegroupgap": 0,
        }
    )  # fmt: skip
    return 15 * rows + 6


def _top(figure: go.Figure, *, title: bool) -> int:
    """The margin above: for the panels' titles, and for the figure's own."""
    panels = any(note.text for note in figure.layout.annotations)
    return 8 + 18 * panels + 44 * title


def _smaller(trace: go.Scatter) -> None:
    """Markers, and the words beside them, at the type's scale."""
    size = trace.marker.size
    if size is not None:
        trace.marker.size = [0.7 * each for each in size] if isinstance(size, tuple) else 0.7 * size
    if trace.text is not None:
        trace.textfont.size = 6.5 * POINT
