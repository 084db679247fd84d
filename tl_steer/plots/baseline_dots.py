"""Changes of sampled answers against several unsteered draws: what one baseline draw can make of them."""

from typing import Any

import pandas as pd
import plotly.graph_objects as go

from .._util.validation import checked
from .cells import CELL, NAMES, Panel, layer_places
from .effectiveness_curves import whiskers
from .labels import counted, escape, interval, number, require_columns, signed
from .multiplier_lines import MultiplierAxis, multiplier_axis
from .panel_grid import PanelGrid
from .template import CONTROL, INK, VERMILLION, styled, translucent

TITLES = {"d_prime": "change of d′", "criterion": "change of the criterion c"}


@checked
def baselines(table: pd.DataFrame, *, value: str = "d_prime") -> go.Figure:
    """Change of each condition against each unsteered draw, and against all of them with 95% intervals.

    Args:
        table: what `evaluation.against_baselines` makes, of one vector.
        value: "d_prime" or "criterion".

    Raises:
        ValueError: no rows, columns are missing, an unknown value, or several rows per condition and draw.

    A panel per layer, or set of layers. The draws lie in the same order in every condition: one draw that is
    low or high moves all of them. Operations without a multiplier (`project_out`) are left out.
    """
    if value not in TITLES:
        raise ValueError(f"value={value!r} is unknown: use one of {', '.join(TITLES)}.")
    change = f"{value}_change"
    numbers = [value, f"{value}_unsteered", change, f"{change}_low", f"{change}_high"]
    columns = [*CELL, "draw", "n_signal", "n_noise", *numbers]
    require_columns(
        table, columns, figure="baselines", maker="evaluation.against_baselines(table, baselines)"
    )
    if table.duplicated(["operation", "layers", "multiplier", "draw"]).any():
        raise ValueError("plots.baselines: a condition has the same draw twice: select one vector.")
    axis = multiplier_axis(table, figure="baselines")
    table = table.dropna(subset="multiplier")
    panels = [
        Panel(f"layer {escape(layers)}", table[table["layers"] == layers], table.iloc[:0], table.iloc[:0])
        for layers in layer_places(table)
    ]
    grid = PanelGrid(panels, x_title="multiplier (evenly spaced)", y_title=TITLES[value])
    for place, panel in enumerate(panels):
        together = panel.steered["draw"].isna()
        grid.add(place, _draws(panel.steered[~together], change, axis), "one unsteered draw")
        grid.add(
            place, _together(panel.steered[together].sort_values("multiplier"), change, axis), "all draws"
        )
    grid.figure.update_xaxes(**axis.layout())
    grid.figure.add_hline(y=0, line={"color": INK, "width": 1, "dash": "dash"})
    grid.figure.update_layout(legend_title_text="against")
    prompts = counted(table["n_signal"] + table["n_noise"], "prompt")
    subtitle = f"{prompts}, {counted([table['draw'].nunique()], 'unsteered draw')}; whiskers: 95% intervals"
    heading = f"{TITLES[value].capitalize()}, by the unsteered draw it is compared with"
    return styled(grid.figure, heading, subtitle, height=grid.height)


def _draws(rows: pd.DataFrame, change: str, axis: MultiplierAxis) -> go.Scatter:
    return go.Scatter(
        x=axis.places(rows["multiplier"]),
        y=rows[change],
        mode="markers",
        name="one unsteered draw",
        marker={"symbol": "line-ew-open", "size": 9, "color": translucent(CONTROL, 0.8)},
        hovertext=[_hover(row, change) for row in rows.to_dict("records")],
        hoverinfo="text",
    )


def _together(rows: pd.DataFrame, change: str, axis: MultiplierAxis) -> go.Scatter:
    return go.Scatter(
        x=axis.places(rows["multiplier"]),
        y=rows[change],
        error_y=whiskers(rows, change, VERMILLION),
        mode="markers",
        name="all draws",
        marker={"size": 7, "color": VERMILLION},
        hovertext=[_hover(row, change) for row in rows.to_dict("records")],
        hoverinfo="text",
    )


def _hover(row: dict[str, Any], change: str) -> str:
    value = change.removesuffix("_change")
    draw = "all draws" if pd.isna(row["draw"]) else f"draw {row['draw']}"
    recording = row.get("recording")
    draw += f" ({escape(recording)})" if isinstance(recording, str) else ""
    values = f"{NAMES[value]} {number(row[value])}, unsteered {number(row[f'{value}_unsteered'])}"
    return "<br>".join(
        [
            f"<b>layer {escape(row['layers'])}, {escape(row['operation'])} {signed(row['multiplier'])}</b>",
            f"against {draw}",
            f"change {interval(*(row[f'{change}{end}'] for end in ('', '_low', '_high')))}",
            values,
        ]
    )
