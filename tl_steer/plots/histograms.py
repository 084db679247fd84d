"""Histograms of projections, and the panels above strips of prompts that histograms share."""

import itertools
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from jaxtyping import Float, Int

from .._util.validation import checked
from .format import at_level, counted, escape, hover, levels, number, prompt_labels, rounded, wrapped
from .marks import add_layer_slider, selected_layers
from .panels import facet_parts, figure_table
from .style import PANEL_TITLE_HEIGHT, level_colours, styled, subplots, translucent

PROJECTION_COLUMNS = ("layer", "pair", "side", "prompt", "projection", "cosine")
MAX_FACETS = 4
MAX_BINS, SHEET_BINS = 40, 24
SHEET_COLUMNS = 6
SHEET_ROW = 104  # pixels of each row of a sheet


def facet_panels(table: pd.DataFrame, facet: str | None, *, overall: bool = False) -> dict[str, pd.DataFrame]:
    """The rows of each level of a factor by title, after those of all levels if `overall`."""
    parts = facet_parts(table, facet)
    if len(parts) + overall > MAX_FACETS:
        raise ValueError(
            f"{facet!r} has {len(parts)} values{', and all together' * overall}: "
            f"at most {MAX_FACETS} panels fit next to each other."
        )
    return {"all": table} | parts if overall and facet is not None else parts


def panels_with_strips(titles: Sequence[str], n_strips: int, *, strip_height: float) -> go.Figure:
    """Panels next to each other with common axes, each above a panel of strips of points."""
    figure = subplots(
        2, len(titles), row_heights=[1 - strip_height, strip_height], shared_xaxes=True, shared_yaxes=True,
        vertical_spacing=0.03, horizontal_spacing=0.04, column_titles=[title for title in titles if title],
    )  # fmt: skip
    figure.update_xaxes(matches="x")
    figure.layout.xaxis.matches = None  # an axis that matches itself is a warning of plotly.js
    return figure.update_yaxes(visible=False, fixedrange=True, range=[n_strips - 0.4, -0.6], row=2)


def strip(colour: str, hovertext: list[str], template: str, **more: Any) -> go.Scatter:
    """A short vertical line per prompt; `template` is the hover after its text."""
    return go.Scatter(
        mode="markers",
        showlegend=False,
        marker={"symbol": "line-ns-open", "size": 10, "color": colour, "line": {"width": 1.2}},
        hovertext=hovertext,
        hovertemplate=f"%{{hovertext}}<br>{template}<extra></extra>",
        **more,
    )


def pairs_by_layer(table: pd.DataFrame, *, caller: str) -> pd.DataFrame:
    """The table sorted by layer, pair and side, each of which it must have once.

    Raises:
        ValueError: layers differ in their rows: with a slider, the text of one prompt would be at the point
            of another.
    """
    rows = table.groupby(["pair", "side"])["layer"].agg(["size", "nunique"])
    if not (rows == table["layer"].nunique()).all(axis=None):
        raise ValueError(f"{caller}: every layer needs each pair and side once. Select layers of one table.")
    return table.sort_values(["layer", "pair", "side"])


@checked
def projections(
    table: pd.DataFrame,
    *,
    by: str = "side",
    facet: str | None = None,
    overall: bool = False,
    layer: int | None = None,
    layers: Literal["all"] | Sequence[int] | None = None,
) -> go.Figure:
    """Overlaid histograms of projections, at one layer with a slider, or of many layers on one sheet.

    Args:
        table: from `analysis.projections`.
        by: "side" or a factor; a colour for each of its values.
        facet: a factor; a panel for each of its values, on common axes.
        overall: add a panel of all prompts before those of `facet`.
        layer: the layer shown at first; by default the middle one.
        layers: "all" or some layers, as small multiples instead of a slider. Each layer has its own axes,
            common to its panels, because projections grow from layer to layer.

    The strip below the slider's histogram has a line per prompt, with its text in the hover.
    """
    table = figure_table(table, "projections", *PROJECTION_COLUMNS, factors=[by, facet])
    table = pairs_by_layer(table, caller="plots.projections")
    panels = facet_panels(table, facet, overall=overall)
    colours = level_colours(levels(table[by]))
    pairs = counted([table["pair"].nunique()], "pair")
    if layers is not None:
        if layer is not None:
            raise ValueError("plots.projections: layer=… is where the slider starts, layers=… has none.")
        available = table["layer"].unique().tolist()
        selected = available if layers == "all" else selected_layers(available, layers)
        figure = _sheet(panels, colours, by, selected)
        subtitle = f"{pairs}; residual stream units; height: prompts per bin, on a scale per layer"
        figure.update_layout(margin={"t": PANEL_TITLE_HEIGHT, "l": 12})
        return styled(figure, "Projection on the direction, by layer", subtitle, height=figure.layout.height)
    figure = panels_with_strips(list(panels), len(colours), strip_height=0.16)
    groups: list[pd.DataFrame] = []  # of each trace
    for column, rows in enumerate(panels.values(), start=1):
        for rank, (name, colour) in enumerate(colours.items()):
            group = at_level(rows, by, name)
            groups += [group, group]
            figure.add_trace(_histogram(name, colour, is_first=column == 1), row=1, col=column)
            figure.add_trace(_prompt_strip(group, name, colour, rank), row=2, col=column)
    names = table["layer"].unique().tolist()
    add_layer_slider(figure, names, [[_projection_data(groups, each), {}] for each in names], layer)
    figure.update_xaxes(title_text="projection (residual stream units)", row=2)
    figure.update_yaxes(title_text="prompts", row=1, col=1)
    figure.update_layout(barmode="overlay", bargap=0.02, legend_title_text=escape(by))
    figure.update_layout(margin_t=0 if len(panels) == 1 else PANEL_TITLE_HEIGHT)
    return styled(figure, "Projection on the direction", f"{pairs}; below, a line per prompt", height=540)


def bar_style(name: str, colour: str, *, opacity: float = 0.55, is_first: bool) -> dict[str, Any]:
    """Name, legend entry and colours of a trace of bars."""
    marker = {"color": translucent(colour, opacity), "line": {"color": colour, "width": 1}}
    return {"name": escape(name), "legendgroup": name, "showlegend": is_first, "marker": marker}


def _histogram(name: str, colour: str, *, is_first: bool) -> go.Histogram:
    return go.Histogram(
        # With one group, plotly.js gives the traces of all panels the same bins, recomputed at every layer.
        bingroup="projection",
        nbinsx=MAX_BINS,
        hovertemplate=f"{escape(name)}: %{{y}} prompts between %{{x}}<extra></extra>",
        **bar_style(name, colour, is_first=is_first),
    )


def _prompt_strip(rows: pd.DataFrame, name: str, colour: str, rank: int) -> go.Scatter:
    first = rows[rows["layer"] == rows["layer"].min()]
    texts = []
    for prompt, row in zip(prompt_labels(first), first.to_dict("records"), strict=True):
        names = escape(name if name == row["side"] else f"{name}, {row['side']}")
        texts.append(hover(wrapped(prompt), f"<b>pair {row['pair']}</b>, {names}"))
    template = "projection %{x:.4g}, cosine %{customdata:.3f}"
    return strip(colour, texts, template, y=[rank] * len(first), legendgroup=name)


def _projection_data(groups: list[pd.DataFrame], layer: int) -> dict[str, list[list[float]]]:
    at_layer = [rows[rows["layer"] == layer] for rows in groups]
    return {
        "x": [rounded(rows["projection"]) for rows in at_layer],
        "customdata": [rounded(rows["cosine"]) for rows in at_layer],
    }


def _sheet(
    panels: dict[str, pd.DataFrame], colours: dict[str, str], by: str, layers: Sequence[int]
) -> go.Figure:
    """Small multiples: the panels of a layer next to each other, as many layers per row as fit."""
    columns = len(panels) * min(len(layers), max(1, SHEET_COLUMNS // len(panels)))
    rows = -(-len(layers) * len(panels) // columns)
    height = 110 + SHEET_ROW * rows
    titles = [f"layer {each}{f', {title}' * bool(title)}" for each in layers for title in panels]
    gap = min(44 / (height - 110), 1 / max(rows - 1, 1) / 1.5)
    figure = subplots(rows, columns, titles, horizontal_spacing=0.012, vertical_spacing=gap)
    cells = itertools.product(range(1, rows + 1), range(1, columns + 1))
    for layer in layers:
        at_layer = [each[each["layer"] == layer] for each in panels.values()]
        edges = np.histogram_bin_edges(pd.concat(at_layer)["projection"], bins=SHEET_BINS)
        groups = [[at_level(each, by, name)["projection"] for name in colours] for each in at_layer]
        counts = [[np.histogram(values, bins=edges)[0] for values in group] for group in groups]
        for panel_counts, (row, column) in zip(counts, cells, strict=False):
            at = {"row": row, "col": column}
            for (name, colour), values in zip(colours.items(), panel_counts, strict=True):
                style = bar_style(name, colour, opacity=0.45, is_first=row == column == 1)
                figure.add_trace(_steps(edges, values, **style), **at)
            figure.update_xaxes(range=[edges[0], edges[-1]], **at)
            figure.update_yaxes(range=[0, 1.05 * np.max(counts)], **at)
    figure.update_annotations(font_size=10, yshift=-3)
    figure.update_xaxes(nticks=4, tickfont_size=8, ticklen=2, tickangle=0, zeroline=True)
    figure.update_yaxes(visible=False)
    return figure.update_layout(legend_title_text=escape(by), height=height)


def _steps(
    edges: Float[np.ndarray, " edge"],
    counts: Int[np.ndarray, " bin"],
    *,
    marker: dict[str, Any],
    **style: Any,
) -> go.Scatter:
    """A histogram as an area, in a `bar_style`."""
    return go.Scatter(
        x=rounded(np.repeat(edges, 2)),
        y=[0, *np.repeat(counts, 2).tolist(), 0],
        mode="lines",
        fill="tozeroy",
        fillcolor=marker["color"],
        line=marker["line"],
        hovertemplate=f"{style['name']}: %{{y}} prompts at %{{x}}<extra></extra>",
        **style,
    )


def round_edges(values: pd.Series) -> Float[np.ndarray, " edge"]:
    """Bin edges of a round width, one of them 0, so that no bin holds both signs."""
    low, high = min(values.min(), 0.0), max(values.max(), 0.0)
    span = high - low
    if not span > 0:
        return np.array([-1.0, 0.0, 1.0])
    power = 10.0 ** np.floor(np.log10(span / MAX_BINS))
    width = next(step * power for step in (1, 2, 5, 10) if span <= MAX_BINS * step * power)
    return width * np.arange(np.floor(low / width), np.floor(high / width) + 2)


def bar_heights(
    values: Float[np.ndarray, " n"], edges: Float[np.ndarray, " edge"], name: str
) -> dict[str, Any]:
    """The attributes of a bar trace: shares of the values per bin, without empty bins."""
    counts, _ = np.histogram(values, bins=edges)
    filled = np.flatnonzero(counts)
    middle, width = (edges[:-1] + edges[1:]) / 2, edges[1] - edges[0]
    texts = [
        f"{escape(name)}: {count} of {len(values)}<br>from {number(low)} to {number(high)}"
        for count, low, high in zip(counts[filled], edges[filled], edges[filled + 1], strict=True)
    ]
    return {
        "x": rounded(middle[filled]),
        "y": rounded(counts[filled] / max(len(values), 1)),
        "width": float(f"{width:.5g}"),
        "text": texts,
    }
