"""How near steered texts come to exemplar answers at each multiplier, a line a layer."""

from functools import partial

import pandas as pd
import plotly.graph_objects as go

from .cells import CELL, Panel, cell_hover, panels_of
from .effectiveness_curves import subtitle
from .labels import interval, require_columns
from .marks import band
from .multiplier_lines import MultiplierAxis, control_lines, layer_lines, multiplier_axis
from .panel_grid import PanelGrid
from .template import INK, styled, translucent

VALUES = {
    "shift": "shift of the embedding score (cosine)",
    "score": "embedding score (cosine, positive − negative)",
}
HEADINGS = {"shift": "Shift towards the positive exemplars", "score": "Nearness to the positive exemplars"}


def embedding_scores(table: pd.DataFrame, *, value: str = "shift", facet: str | None = None) -> go.Figure:
    """Embedding score by multiplier, a line a layer, with 95% intervals, beside the unsteered texts.

    Args:
        table: what `evaluation.embedding_effect` makes.
        value: "shift" (the change on the same prompts) or "score".
        facet: a factor the table is split by; each of its values gets a panel, on common axes.

    Raises:
        ValueError: no rows, columns are missing, an unknown value, or rows that share a cell.

    Operations without a multiplier (`project_out`) are left out.
    """
    if value not in VALUES:
        raise ValueError(f"value={value!r} is unknown: use one of {', '.join(VALUES)}.")
    numbers = [f"{value}{end}" for end in ("", "_low", "_high")]
    columns = [*CELL, "dose", "n", *numbers, *([facet] if facet else [])]
    maker = "evaluation.embedding_effect(scored_table, by=…)"
    require_columns(table, columns, figure="embedding_scores", maker=maker)
    if table[value].isna().all():
        raise ValueError(
            f"plots.embedding_scores: {value} is NaN in every row; a shift needs unsteered texts."
        )
    axis = multiplier_axis(table, figure="embedding_scores")
    panels = panels_of(table, facet, figure="embedding_scores")
    grid = PanelGrid(panels, x_title="multiplier (evenly spaced)", y_title=VALUES[value])
    hover = partial(cell_hover, value=value)
    lines = layer_lines(panels)
    for place, panel in enumerate(panels):
        for trace in _unsteered(panel, value, axis):
            grid.add(place, trace, "unsteered", rank=800)
        for trace in control_lines(panel, value, axis, hover):
            grid.add(place, trace, "controls", rank=900)
        for line in lines:
            grid.add(place, line.trace(panel.steered, value, axis, hover), line.name)
    grid.figure.update_xaxes(**axis.layout())
    grid.figure.update_layout(legend_title_text="layer")
    return styled(grid.figure, HEADINGS[value], subtitle(table), height=grid.height)


def _unsteered(panel: Panel, value: str, axis: MultiplierAxis) -> list[go.Scatter]:
    """Its line and its interval; of a shift, which is against itself, the line at zero."""
    if panel.unsteered.empty:
        return []
    row = panel.unsteered.iloc[0]
    ends = [-0.5, len(axis.multipliers) - 0.5]
    low, high = ([row[f"{value}{end}"]] * 2 for end in ("_low", "_high"))
    line = go.Scatter(
        x=ends,
        y=[row[value]] * 2,
        mode="lines",
        name="unsteered",
        line={"color": INK, "width": 1.5, "dash": "dash"},
        hovertext=f"unsteered: {interval(row[value], low[0], high[0])}, n = {row['n']}",
        hoverinfo="text",
    )
    return [band(ends, low, high, translucent(INK, 0.07), showlegend=False), line]
