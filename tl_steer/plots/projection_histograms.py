"""How far prompts lie along a direction, as histograms, at any layer."""

from typing import Any

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from ..arguments import checked
from .labels import counted, escape, level, levels, require_columns, require_same_rows, start_of, wrapped
from .marks import layer_slider, rounded
from .template import level_colours, styled, translucent

COLUMNS = ("layer", "pair", "side", "prompt", "projection", "cosine")
MOST_BINS = 40
MOST_FACETS = 4


@checked
def projections(
    table: pd.DataFrame,
    *,
    by: str = "side",
    facet: str | None = None,
    overall: bool = False,
    layer: int | None = None,
) -> go.Figure:
    """Overlaid histograms of projections with common bins, a slider over layers, and the prompts below them.

    Args:
        table: what `analysis.projections` makes.
        by: "side" or a factor; each of its values has a colour.
        facet: a factor whose values get a panel each, on common axes.
        overall: put a panel of all prompts in front of those of `facet`.
        layer: the layer shown at first; by default the middle one.

    Raises:
        ValueError: no rows, columns are missing, an unknown layer, too many values to tell apart,
            or layers whose rows differ.

    The strip below shows each prompt as a line; its text is in the hover.
    """
    maker = "analysis.projections(pairs_activations, vectors)"
    require_columns(table, COLUMNS, figure="projections", maker=maker, factors=[by, facet])
    require_same_rows(table, figure="projections")
    table = table.sort_values(["layer", "pair", "side"])
    layers = [str(value) for value in table["layer"].unique()]
    start = start_of(layers, layer)
    panels = _panels(table, facet, overall)
    colours = level_colours(levels(table[by]))
    figure = _empty(panels, len(colours))
    groups: list[pd.DataFrame] = []
    for column, rows in enumerate(panels.values(), start=1):
        for strip, name in enumerate(colours):
            chosen = rows[rows[by].map(level) == name]
            groups += [chosen, chosen]  # one for the histogram, one for its strip
            figure.add_trace(_histogram(chosen, name, colours[name], first=column == 1), row=1, col=column)
            figure.add_trace(_strip(chosen, name, colours[name], strip), row=2, col=column)
    changes = [[_data(groups, int(value)), {}] for value in layers]
    for trace, *values in zip(
        figure.data, changes[start][0]["x"], changes[start][0]["customdata"], strict=True
    ):
        trace.update(x=values[0], customdata=values[1])
    figure.update_layout(
        barmode="overlay",
        legend_title_text=escape(by),
        sliders=layer_slider(layers, changes, start),
        bargap=0.02,
    )
    count = counted([table["pair"].nunique()], "pair")
    return styled(figure, "Projection on the direction", f"{count}; below, a line a prompt", height=540)


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
        hovertext=[_hover(row, name) for row in first.to_dict("records")],
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
