"""Projections on a direction as histograms: one layer with a slider, or all layers on one sheet."""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from .._util.validation import checked
from .labels import (
    counted,
    escape,
    level,
    levels,
    prompt_labels,
    require_columns,
    require_same_rows,
    start_of,
    wrapped,
)
from .marks import layer_slider, rounded
from .template import level_colours, styled, translucent

COLUMNS = ("layer", "pair", "side", "prompt", "projection", "cosine")
MOST_BINS = 40
MOST_FACETS = 4
SHEET_COLUMNS, SHEET_BINS = 6, 24
SHEET_ROW = 104  # pixels of each row of a sheet


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
    """Overlaid histograms of projections: a layer with a slider and its prompts below, or a sheet of layers.

    Args:
        table: what `analysis.projections` makes.
        by: "side" or a factor; each of its values has a colour.
        facet: a factor whose values get a panel each, on common axes.
        overall: put a panel of all prompts in front of those of `facet`.
        layer: the layer shown at first; by default the middle one.
        layers: "all" or some layers, as small multiples on one sheet instead of a slider. Each layer has its
            own axes, common to its panels: projections grow from layer to layer.

    Raises:
        ValueError: no rows, columns are missing, an unknown layer, too many values to tell apart,
            layers whose rows differ, or both `layer` and `layers`.

    The strip below the slider's histogram shows each prompt as a line; its text is in the hover.
    """
    maker = "analysis.projections(activations, vectors)"
    require_columns(table, COLUMNS, figure="projections", maker=maker, factors=[by, facet])
    require_same_rows(table, figure="projections")
    table = table.sort_values(["layer", "pair", "side"])
    panels = _panels(table, facet, overall)
    colours = level_colours(levels(table[by]))
    if layers is not None:
        if layer is not None:
            raise ValueError("plots.projections: layer=… is where the slider starts, layers=… has none.")
        return _sheet(table, panels, colours, by, layers)
    names = [str(value) for value in table["layer"].unique()]
    start = start_of(names, layer)
    figure = _empty(panels, len(colours))
    groups: list[pd.DataFrame] = []
    for column, rows in enumerate(panels.values(), start=1):
        for strip, name in enumerate(colours):
            chosen = rows[rows[by].map(level) == name]
            groups += [chosen, chosen]  # one for the histogram, one for its strip
            figure.add_trace(_histogram(chosen, name, colours[name], first=column == 1), row=1, col=column)
            figure.add_trace(_strip(chosen, name, colours[name], strip), row=2, col=column)
    changes = [[_data(groups, int(value)), {}] for value in names]
    for trace, *values in zip(
        figure.data, changes[start][0]["x"], changes[start][0]["customdata"], strict=True
    ):
        trace.update(x=values[0], customdata=values[1])
    figure.update_layout(
        barmode="overlay",
        legend_title_text=escape(by),
        sliders=layer_slider(names, changes, start),
        bargap=0.02,
    )
    count = counted([table["pair"].nunique()], "pair")
    return styled(figure, "Projection on the direction", f"{count}; below, a line a prompt", height=540)


def _sheet(
    table: pd.DataFrame,
    panels: dict[str, pd.DataFrame],
    colours: dict[str, str],
    by: str,
    layers: str | Sequence[int],
) -> go.Figure:
    """Small multiples: the panels of a layer next to each other, as many layers per row as fit."""
    known = [int(value) for value in table["layer"].unique()]
    chosen = known if layers == "all" else [int(value) for value in layers]
    if unknown := [value for value in chosen if value not in known]:
        raise ValueError(f"no layer {unknown[0]} in the table; it has {', '.join(map(str, known))}.")
    if not chosen:
        raise ValueError("layers=[] is empty: give 'all' or at least one layer.")
    columns = len(panels) * min(len(chosen), max(1, SHEET_COLUMNS // len(panels)))
    cells = [(value, title) for value in chosen for title in panels]
    rows = -(-len(cells) // columns)
    height = 110 + SHEET_ROW * rows
    figure = make_subplots(
        rows=rows,
        cols=columns,
        horizontal_spacing=0.012,
        vertical_spacing=min(44 / (height - 110), 1 / max(rows - 1, 1) / 1.5),
        subplot_titles=[f"layer {value}{f', {title}' if title else ''}" for value, title in cells],
    )
    for place, (value, title) in enumerate(cells):
        row, column = place // columns + 1, place % columns + 1
        whole = table.loc[table["layer"] == value, "projection"]
        edges = np.histogram_bin_edges(whole, bins=SHEET_BINS)
        most = max(
            _counts(rows_, by, name, value, edges).max() for rows_ in panels.values() for name in colours
        )
        for name, colour in colours.items():
            counts = _counts(panels[title], by, name, value, edges)
            figure.add_trace(_steps(edges, counts, name, colour, first=place == 0), row=row, col=column)
        figure.update_xaxes(range=[edges[0], edges[-1]], row=row, col=column)
        figure.update_yaxes(range=[0, 1.05 * most], row=row, col=column)
    figure.update_annotations(font_size=10, yshift=-3)
    figure.update_xaxes(nticks=4, tickfont_size=8, ticklen=2, tickangle=0, zeroline=True)
    figure.update_yaxes(visible=False)
    figure.update_layout(legend_title_text=escape(by))
    count = counted([table["pair"].nunique()], "pair")
    subtitle = f"{count}; residual stream units; height: prompts per bin, on a scale per layer"
    styled(figure, "Projection on the direction, by layer", subtitle, height=height)
    return figure.update_layout(margin={"t": 84, "l": 12, "b": 26}, title_y=1 - 14 / height)


def _counts(rows: pd.DataFrame, by: str, name: str, layer: int, edges: np.ndarray) -> np.ndarray:
    chosen = rows.loc[(rows["layer"] == layer) & (rows[by].map(level) == name), "projection"]
    return np.histogram(chosen, bins=edges)[0]


def _steps(edges: np.ndarray, counts: np.ndarray, name: str, colour: str, *, first: bool) -> go.Scatter:
    return go.Scatter(
        x=rounded(np.repeat(edges, 2)),
        y=[0, *np.repeat(counts, 2).tolist(), 0],
        mode="lines",
        fill="tozeroy",
        fillcolor=translucent(colour, 0.45),
        line={"color": colour, "width": 1},
        name=escape(name),
        legendgroup=name,
        showlegend=first,
        hovertemplate=f"{escape(name)}: %{{y}} prompts at %{{x}}<extra></extra>",
    )


def _panels(table: pd.DataFrame, facet: str | None, overall: bool) -> dict[str, pd.DataFrame]:
    if facet is None:
        return {"": table}
    names = levels(table[facet])
    if len(names) + overall > MOST_FACETS:
        raise ValueError(
            f"{facet!r} has {len(names)} values{', and all together' * overall}: "
            f"at most {MOST_FACETS} panels fit beside each other."
        )
    every = {"all": table} if overall else {}
    return every | {escape(f"{facet}: {name}"): table[table[facet].map(level) == name] for name in names}


def _empty(panels: dict[str, pd.DataFrame], colours: int) -> go.Figure:
    figure = make_subplots(
        rows=2,
        cols=len(panels),
        row_heights=[0.84, 0.16],
        shared_xaxes=True,
        shared_yaxes=True,
        vertical_spacing=0.03,
        horizontal_spacing=0.04,
        column_titles=[title for title in panels if title],
    )
    figure.update_xaxes(matches="x")
    figure.update_xaxes(title_text="projection (stream units)", row=2)
    figure.update_annotations(font_size=13)  # the panels' titles
    figure.update_layout(margin_t=76 if len(panels) == 1 else 100)
    figure.update_yaxes(title_text="prompts", row=1, col=1)
    figure.update_yaxes(visible=False, fixedrange=True, range=[colours - 0.4, -0.6], row=2)
    return figure


def _histogram(rows: pd.DataFrame, name: str, colour: str, *, first: bool) -> go.Histogram:
    return go.Histogram(
        name=escape(name),
        legendgroup=name,
        showlegend=first,
        marker={"color": translucent(colour, 0.55), "line": {"color": colour, "width": 1}},
        # one group: plotly then gives all traces of all panels the same bins, at every layer anew
        bingroup="projection",
        nbinsx=MOST_BINS,
        hovertemplate=f"{escape(name)}: %{{y}} prompts between %{{x}}<extra></extra>",
    )


def _strip(rows: pd.DataFrame, name: str, colour: str, place: int) -> go.Scatter:
    first = rows[rows["layer"] == rows["layer"].min()]
    return go.Scatter(
        y=[place] * len(first),
        mode="markers",
        legendgroup=name,
        showlegend=False,
        marker={"symbol": "line-ns-open", "size": 10, "color": colour, "line": {"width": 1.2}},
        hovertext=[_hover(row, name) for row in first.assign(prompt=prompt_labels(first)).to_dict("records")],
        hovertemplate="%{hovertext}<br>projection %{x:.4g}, cosine %{customdata:.3f}<extra></extra>",
    )


def _hover(row: dict[str, Any], name: str) -> str:
    side = "" if name == row["side"] else f", {row['side']}"
    return f"{wrapped(row['prompt'])}<br><b>pair {row['pair']}</b>, {escape(name)}{escape(side)}"


def _data(groups: list[pd.DataFrame], layer: int) -> dict[str, list[list[float]]]:
    at_layer = [rows[rows["layer"] == layer] for rows in groups]
    return {
        "x": [rounded(rows["projection"]) for rows in at_layer],
        "customdata": [rounded(rows["cosine"]) for rows in at_layer],
    }
