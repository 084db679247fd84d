"""Damage by dose; embedding scores and judges' preferences by multiplier; a line per layer."""

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from .._util.validation import checked
from .axes import log_axis, multiplier_axis, multiplier_ranks
from .format import axis_title, capitalized, controls_text, counted, hover, short_label
from .marks import DOTTED, control_lines, control_marks, curve, unsteered_lines
from .panels import (
    CONDITION,
    ROW_HEIGHT,
    Panel,
    PanelGrid,
    add_grouped,
    condition_hover,
    effects_table,
    figure_table,
    layer_styles,
    panels_of,
    rows_at,
    with_ends,
)
from .style import HEIGHT, PANEL_TITLE_SIZE, Style, styled
from .sweep_curves import sweep_subtitle

X_TITLE = "multiplier (evenly spaced)"
PREFERRED = {"opposite": "plus", "unsteered": "steered"}
COUNTS = ("decided", "disagreeing", "ties", "unreadable")


@checked
def damage(
    table: pd.DataFrame,
    *,
    value: Literal[
        "kl", "loss_change", "loss", "words", "distinct_1", "distinct_2", "distinct_3", "unreadable"
    ] = "kl",
) -> go.Figure:
    """Damage by |dose|, on a logarithmic axis, a line per layer, with 95% intervals.

    Args:
        table: from `evaluation.mean_damage`, not split by a factor.
        value: "kl" (also on a logarithmic axis) and the losses are of neutral text, the others of texts.

    Raises:
        ValueError: another table, rows that share a condition, or no dose.

    Solid lines add the vector, dotted ones subtract it; grey lines are random directions of the same length.
    Operations without a multiplier have no dose and are left out.
    """
    table = effects_table(table, "damage", value, None, producer="mean_damage")
    doses = table.loc[table["dose"] > 0, "dose"]
    if doses.empty:
        raise ValueError(
            "plots.damage: no condition has a dose above 0; operations without a multiplier have none."
        )
    is_drawable = (table["dose"] > 0) & ((table["kl"] > 0) if value == "kl" else table[value].notna())
    panels = panels_of(table[is_drawable | (table["operation"] == "none")], None, caller="plots.damage")
    titles = [panel.title for panel in panels]
    grid = PanelGrid(titles, x_title=axis_title("dose"), y_title=axis_title(value))
    styles, text = layer_styles(panels), partial(condition_hover, value=value)
    for index, panel in enumerate(panels):
        for trace in unsteered_lines(panel, value, [doses.min(), doses.max()]) if value != "kl" else []:
            grid.add(index, trace, "unsteered", rank=800)
        controls = panel.controls.assign(x=panel.controls["dose"], is_added=panel.controls["multiplier"] > 0)
        for trace in control_lines(controls, value, text, by=["is_added"], opacity=0.5):
            grid.add(index, trace, "controls", rank=900)
        for key, style in styles.items():
            for trace in _added_and_subtracted(panel.steered, key, style, value):
                grid.add(index, trace, style.name)
    grid.figure.update_xaxes(**log_axis(doses))
    if value == "kl":
        grid.figure.update_yaxes(**log_axis(table.loc[table["kl"] > 0, "kl"]))
    grid.figure.update_layout(legend_title_text="layer")
    per_point = f"{counted(table['n'], 'passage' if value in ('kl', 'loss_change') else 'text')} per point"
    subtitle = f"{per_point}; solid: added, dotted: subtracted; 95% intervals{controls_text(table)}"
    title = f"{capitalized(short_label(value))} by dose"
    return styled(grid.figure, title, subtitle, height=grid.height)


def _added_and_subtracted(
    steered: pd.DataFrame, key: tuple[str, str], style: Style, value: str
) -> list[go.Scatter]:
    """A solid line of positive multipliers and a dotted one of negative ones, where there are any."""
    rows = rows_at(steered, *key).sort_values("dose")
    text = partial(condition_hover, value=value)
    traces = []
    for side, dash, symbol in (
        (rows[rows["multiplier"] > 0], "solid", "circle"),
        (rows[rows["multiplier"] < 0], "dot", "circle-open"),
    ):
        if len(side):
            trace = curve(side, value, style, text, x="dose", whiskers=True)
            traces.append(trace.update(line_dash=dash, marker_symbol=symbol))
    return traces


@checked
def embedding_scores(
    table: pd.DataFrame, *, value: Literal["shift", "score"] = "shift", facet: str | None = None
) -> go.Figure:
    """Embedding score by multiplier, a line per layer, with 95% intervals, next to the unsteered texts.

    Args:
        table: from `evaluation.embedding_effect`.
        value: "shift" is the change on the same prompts.
        facet: a factor by which the table is split; a panel for each of its values, on common axes.

    Raises:
        ValueError: another table, or rows that share a condition.

    Operations without a multiplier (`project_out`) are left out.
    """
    caller = "plots.embedding_scores"
    table = effects_table(table, "embedding_scores", value, facet, producer="embedding_effect")
    ranks = multiplier_ranks(table, caller=caller)
    panels = panels_of(table, facet, caller=caller)
    titles = [panel.title for panel in panels]
    grid = PanelGrid(titles, x_title=X_TITLE, y_title=axis_title(value, "embedding_effect"))
    text = partial(condition_hover, value=value, label=short_label(value, "embedding_effect"))
    for index, panel in enumerate(panels):
        for trace in unsteered_lines(panel, value, [-0.5, len(ranks) - 0.5]):
            grid.add(index, trace, "unsteered", rank=800)
        for trace in control_marks(panel, value, ranks, text):
            grid.add(index, trace, "controls", rank=900)
        for trace in _layer_lines(panels, panel, value, ranks, text):
            grid.add(index, trace, trace.name)
    grid.figure.update_xaxes(**multiplier_axis(ranks))
    grid.figure.update_layout(legend_title_text="layer")
    heading = {
        "shift": "Shift towards the positive exemplars",
        "score": "Nearness to the positive exemplars",
    }[value]
    return styled(grid.figure, heading, sweep_subtitle(table), height=grid.height)


def _layer_lines(
    panels: Sequence[Panel], panel: Panel, value: str, ranks: dict[float, int], text: Any
) -> list[go.Scatter]:
    """One panel's line of each layer, or layer set, and operation that any of the panels has."""
    lines = []
    scaled = [
        Panel(each.title, each.steered.dropna(subset="multiplier"), each.controls, each.unsteered)
        for each in panels
    ]
    for (layers, operation), style in layer_styles(scaled).items():
        rows = rows_at(panel.steered, layers, operation).sort_values("multiplier")
        rows = rows.assign(x=rows["multiplier"].map(ranks) + style.offset)
        lines.append(curve(rows, value, style, text, width=1.5, size=7, whiskers=True))
    return lines


@checked
def preference(
    table: pd.DataFrame, *, value: Literal["preference", "win_rate"] = "preference", facet: str | None = None
) -> go.Figure:
    """Share preferring the plus (steered) answer by multiplier, and next to it the judge's position bias.

    Args:
        table: from `evaluation.preference`.
        value: "preference" (ties and prompts whose orders disagree count one half) or "win_rate" (of the
            prompts for which both orders prefer the same answer).
        facet: a factor by which the table is split; a row of panels for each of its values.

    Raises:
        ValueError: another table, opposite and unsteered comparisons in one table, or rows that share a
            condition.

    At 0.5 neither answer is preferred (left), and neither position (right). Operations without a multiplier
    (`project_out`) are left out.
    """
    caller = "plots.preference"
    columns = [*CONDITION, "dose", "n", "against", *COUNTS, *with_ends(value, "first_share")]
    table = figure_table(table, "preference", *columns, factors=[facet])
    against = table["against"].iloc[0]
    if table["against"].nunique() > 1 or against not in PREFERRED:
        raise ValueError(
            f"{caller}: opposite and unsteered comparisons in one table, or others: expected one of "
            f"{', '.join(PREFERRED)} in all rows of 'against'. Select one."
        )
    ranks = multiplier_ranks(table, caller=caller)
    panels = panels_of(table, facet, caller=caller)
    figure = _two_columns(panels, value)
    for row, panel in enumerate(panels, start=1):
        for column, name in enumerate((value, "first_share"), start=1):
            text = partial(_preference_hover, value=name)
            for trace in control_marks(panel, name, ranks, text):
                add_grouped(figure, trace, "controls", row=row, column=column, rank=900)
            for trace in _layer_lines(panels, panel, name, ranks, text):
                add_grouped(figure, trace, trace.name, row=row, column=column)
    figure.update_xaxes(**multiplier_axis(ranks, opposite=bool(against == "opposite")))
    figure.add_hline(y=0.5, layer="below", line=DOTTED)
    counts = table.assign(n=table["decided"]) if value == "win_rate" else table
    title = f"How often the judge prefers the {PREFERRED[against]} answer"
    return styled(figure, title, sweep_subtitle(counts), height=HEIGHT + ROW_HEIGHT * (len(panels) - 1))


def _two_columns(panels: Sequence[Panel], value: str) -> go.Figure:
    """A row per panel: the value on the left, the bias on the right."""
    names = (short_label(value), "position bias")
    figure = make_subplots(
        rows=len(panels),
        cols=2,
        shared_xaxes="all",
        column_widths=[0.58, 0.42],
        horizontal_spacing=0.11,
        vertical_spacing=0.16 / len(panels),
        subplot_titles=[f"{panel.title}: {name}".removeprefix(": ") for panel in panels for name in names],
    )
    figure.update_annotations(font_size=PANEL_TITLE_SIZE)
    figure.update_layout(margin_t=100, legend_title_text="layer")
    figure.update_xaxes(title_text=X_TITLE, row=len(panels))
    figure.update_yaxes(range=(-0.02, 1.02))
    figure.update_yaxes(title_text=axis_title(value), col=1)
    figure.update_yaxes(title_text="replies preferring the first shown", col=2)
    return figure


def _preference_hover(row: dict[str, Any], value: str) -> str:
    counts = ", ".join(f"{int(row[name])} {name}" for name in COUNTS)
    return hover(condition_hover(row, value), counts)
