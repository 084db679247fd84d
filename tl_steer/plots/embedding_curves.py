"""How near steered texts come to exemplar answers at each multiplier, a line a layer."""

from functools import partial

import pandas as pd
import plotly.graph_objects as go

from .._util.validation import checked
from .cells import CELL, cell_hover, panels_of
from .effectiveness_curves import subtitle, unsteered
from .labels import require_columns
from .multiplier_lines import control_lines, layer_lines, multiplier_axis
from .panel_grid import PanelGrid
from .template import styled

VALUES = {
    "shift": "shift of the embedding score (cosine)",
    "score": "embedding score (cosine, positive − negative)",
}
HEADINGS = {"shift": "Shift towards the positive exemplars", "score": "Nearness to the positive exemplars"}


@checked
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
        for trace in unsteered(panel, value, [-0.5, len(axis.multipliers) - 0.5]):
            grid.add(place, trace, "unsteered", rank=800)
        for trace in control_lines(panel, value, axis, hover):
            grid.add(place, trace, "controls", rank=900)
        for line in lines:
            grid.add(place, line.trace(panel.steered, value, axis, hover), line.name)
    grid.figure.update_xaxes(**axis.layout())
    grid.figure.update_layout(legend_title_text="layer")
    return styled(grid.figure, HEADINGS[value], subtitle(table), height=grid.height)
