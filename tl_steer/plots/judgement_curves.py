"""What a judge prefers at each multiplier, beside how often it prefers the answer shown first."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from .._util.validation import checked
from .cells import CELL, Panel, cell_hover, panels_of
from .effectiveness_curves import subtitle
from .labels import require_columns
from .multiplier_lines import MultiplierAxis, control_lines, layer_lines, multiplier_axis
from .panel_grid import ROW
from .template import HEIGHT, INK, styled

VALUES = {
    "preference": "share of prompts (no preference: ½)",
    "win_rate": "share of prompts that both orders decide",
}
BIAS = "first_share"
TEXTS = {"opposite": "plus", "unsteered": "steered"}
WORDS = {"preference": "preference", "win_rate": "win rate", BIAS: "first shown preferred"}
COUNTS = ("n", "decided", "disagreeing", "ties", "unreadable")


@checked
def judgements(table: pd.DataFrame, *, value: str = "preference", facet: str | None = None) -> go.Figure:
    """Share preferring the plus (steered) answer by multiplier, a line a layer; beside it the position bias.

    Args:
        table: what `evaluation.preference` makes.
        value: "preference" (ties and prompts whose orders disagree count one half) or "win_rate" (of the
            prompts for which both orders prefer the same answer).
        facet: a factor the table is split by; each of its values gets a row of panels.

    Raises:
        ValueError: no rows, columns are missing, an unknown value, opposite and unsteered comparisons in one
            table, or rows that share a cell.

    At 0.5 neither answer is preferred, on the left, and neither place, on the right. Operations without a
    multiplier (`project_out`) are left out.
    """
    if value not in VALUES:
        raise ValueError(f"value={value!r} is unknown: use one of {', '.join(VALUES)}.")
    numbers = [f"{name}{end}" for name in (value, BIAS) for end in ("", "_low", "_high")]
    columns = [*CELL, "dose", "against", *COUNTS, *numbers, *([facet] if facet else [])]
    require_columns(table, columns, figure="judgements", maker="evaluation.preference(judge_table, by=…)")
    if table["against"].nunique() > 1:
        raise ValueError("plots.judgements: opposite and unsteered comparisons in one table: select one.")
    against = table["against"].iloc[0]
    if against not in TEXTS:
        raise ValueError(
            f"plots.judgements: the column 'against' has {against!r:.60}; {tuple(TEXTS)} are known."
        )
    axis = multiplier_axis(table, figure="judgements", opposite=bool(against == "opposite"))
    panels = panels_of(table, facet, figure="judgements")
    figure = _panels(panels, axis, value)
    _draw(figure, panels, axis, value)
    counts = table.assign(n=table["decided"]) if value == "win_rate" else table
    title = f"How often the judge prefers the {TEXTS[against]} answer"
    return styled(figure, title, subtitle(counts), height=HEIGHT + ROW * (len(panels) - 1))


def _panels(panels: Sequence[Panel], axis: MultiplierAxis, value: str) -> go.Figure:
    """A row a panel: the value on the left, the bias on the right."""
    names = (WORDS[value], "position bias")
    titles = [f"{panel.title}: {name}".removeprefix(": ") for panel in panels for name in names]
    figure = make_subplots(
        rows=len(panels),
        cols=2,
        shared_xaxes="all",
        column_widths=[0.58, 0.42],
        horizontal_spacing=0.11,
        vertical_spacing=0.16 / len(panels),
        subplot_titles=titles,
    )
    figure.update_annotations(font_size=13)
    figure.update_layout(margin_t=100, legend_title_text="layer")
    figure.update_xaxes(**axis.layout())
    figure.update_xaxes(title_text="multiplier (evenly spaced)", row=len(panels))
    figure.update_yaxes(range=(-0.02, 1.02))
    figure.update_yaxes(title_text=VALUES[value], col=1)
    figure.update_yaxes(title_text="replies preferring the first shown", col=2)
    return figure


def _draw(figure: go.Figure, panels: Sequence[Panel], axis: MultiplierAxis, value: str) -> None:
    named: set[str] = set()
    lines = layer_lines(panels)
    for place, panel in enumerate(panels):
        for column, shown in enumerate((value, BIAS)):
            hover = partial(_hover, shown)
            traces = [(trace, 900) for trace in control_lines(panel, shown, axis, hover)]
            traces += [(line.trace(panel.steered, shown, axis, hover), 500) for line in lines]
            for trace, rank in traces:
                trace.update(legendgroup=trace.name, legendrank=rank, showlegend=trace.name not in named)
                named.add(trace.name)
                figure.add_trace(trace, row=place + 1, col=column + 1)
    figure.add_hline(y=0.5, layer="below", line={"color": INK, "width": 1, "dash": "dot"})


def _hover(value: str, row: dict[str, Any]) -> str:
    word = WORDS[value]
    told = cell_hover(row | {f"{word}{end}": row[f"{value}{end}"] for end in ("", "_low", "_high")}, word)
    counts = ", ".join(f"{int(row[name])} {name}" for name in COUNTS if name != "n")
    return f"{told}<br>{counts}"
