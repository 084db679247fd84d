"""How much damage an effect costs: every cell of a sweep by both."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from .._util.validation import checked
from .cells import CELL, Panel, cell_hover, layer_looks, panels_of
from .damage_curves import VALUES, log_axis
from .labels import controls_text, counted, escape, interval, number, require_columns, signed
from .panel_grid import PanelGrid
from .template import CONTROL, INK, styled, translucent

COSTS = ("kl", "loss_change")
ENDS = ("", "_low", "_high")
COLUMNS = (
    *CELL, "dose", "n", "passages", "pareto", "cost", "collapsed", "collapse", "usable", "reason",
    *(f"{name}{end}" for name in ("effect", *COSTS) for end in ENDS),
)  # fmt: skip
WIDE, HIGH = 0.05, 0.06  # of the axes, taken by a label
SYMBOLS = {"usable": "circle", "not usable": "circle-open", "collapsed": "x-thin-open"}


@checked
def effect_and_damage(
    table: pd.DataFrame, *, effect: str = "shift of the logit difference (nats)"
) -> go.Figure:
    """Each cell's effect against its damage; the Pareto set of each sign is joined by a line.

    Args:
        table: what `evaluation.effect_and_damage` makes; its `cost` is the damage, the KL divergence on a
            logarithmic axis.
        effect: what the effect is, for the axis.

    Raises:
        ValueError: no rows, columns are missing, an unknown cost, rows that share a cell, or no cell with a
            cost.

    Filled points are usable cells, open ones are not, and crosses are cells whose text has collapsed. Numbers
    are multipliers, of the Pareto set and of crosses, where there is room. Nearer to the left costs less,
    further from zero does more.
    """
    maker = "evaluation.effect_and_damage(effects, damage_table)"
    require_columns(table, COLUMNS, figure="effect_and_damage", maker=maker)
    cost = table["cost"].iloc[0]
    if cost not in COSTS or table["cost"].nunique() > 1:
        raise ValueError(f"plots.effect_and_damage: the table's cost must be one of {', '.join(COSTS)}.")
    shown = table[
        (table["operation"] == "none") | table[cost].notna() & ~((cost == "kl") & (table["kl"] <= 0))
    ]
    if (shown["operation"] == "none").all():
        raise ValueError(
            f"plots.effect_and_damage: no steered cell has a {cost} above nothing to draw it by."
        )
    panels = panels_of(shown, None, figure="effect_and_damage")
    grid = PanelGrid(panels, x_title=VALUES[cost], y_title=effect)
    looks = layer_looks(panels)
    for place, panel in enumerate(panels):
        grid.add(place, _controls(panel, cost), "controls", rank=900)
        for trace in _pareto(panel, cost):
            grid.add(place, trace, "Pareto set", rank=700)
        for (layers, operation), look in looks.items():
            mine = (panel.steered["layers"] == layers) & (panel.steered["operation"] == operation)
            if mine.any():
                grid.add(place, _points(panel.steered[mine], cost, look), look["name"])
        grid.add(place, _labels(panel, cost), "labels")
    for rank, look in enumerate(looks.values()):
        grid.add(0, _key(look["name"], "circle", look["colour"]), look["name"], rank=500 + rank)
    for rank, (name, symbol) in enumerate(SYMBOLS.items()):
        grid.add(0, _key(name, symbol, INK), name, rank=600 + rank)
    if cost == "kl":
        grid.figure.update_xaxes(**log_axis(shown.loc[shown["kl"] > 0, "kl"]))
    grid.figure.update_yaxes(zeroline=True, zerolinecolor=INK, zerolinewidth=1)
    grid.figure.update_layout(legend_title_text="layer")
    return styled(grid.figure, "What an effect costs", _subtitle(table), height=grid.height + 60)


def _points(rows: pd.DataFrame, cost: str, look: dict[str, str]) -> go.Scatter:
    rows = rows.sort_values("multiplier")
    return go.Scatter(
        x=rows[cost],
        y=rows["effect"],
        mode="markers",
        name=look["name"],
        marker={
            "color": look["colour"],
            "symbol": [SYMBOLS[_kind(row)] for row in rows.to_dict("records")],
            "size": 9,
            "line": {"width": 2, "color": look["colour"]},
        },
        showlegend=False,
        hovertext=[_hover(row) for row in rows.to_dict("records")],
        hoverinfo="text",
    )


def _kind(row: dict[str, Any]) -> str:
    return "collapsed" if row["collapsed"] else "usable" if row["usable"] else "not usable"


def _labels(panel: Panel, cost: str) -> go.Scatter:
    """Multipliers of what has collapsed or is in the Pareto set, where there is room for them."""
    rows = panel.steered[panel.steered["multiplier"].notna()]
    rows = rows[rows["collapsed"].astype(bool) | rows["pareto"].astype(bool)]
    rows = rows.loc[rows["effect"].abs().sort_values(ascending=False).index]
    x = np.log(rows[cost].astype(float)) if cost == "kl" else rows[cost]
    rows = rows[np.array(_apart(_unit(x), _unit(rows["effect"])), dtype=bool)]
    return go.Scatter(
        x=rows[cost],
        y=rows["effect"],
        mode="markers+text",
        marker={"size": 11, "opacity": 0},  # keeps the text off the point
        text=[signed(multiplier) for multiplier in rows["multiplier"]],
        textposition=["top center" if effect > 0 else "bottom center" for effect in rows["effect"]],
        textfont={"size": 10, "color": INK},
        cliponaxis=False,
        showlegend=False,
        hoverinfo="skip",
    )


def _unit(values: pd.Series) -> list[float]:
    """Values on a scale from 0 to 1."""
    span = values.max() - values.min()
    return ((values - values.min()) / (span or 1.0)).tolist()


def _apart(x: Sequence[float], y: Sequence[float]) -> list[bool]:
    """Which points keep off those that were kept before them, by a label's width or height."""
    kept: list[int] = []
    for here in range(len(x)):
        if all(abs(x[here] - x[other]) > WIDE or abs(y[here] - y[other]) > HIGH for other in kept):
            kept.append(here)
    return [here in kept for here in range(len(x))]


def _pareto(panel: Panel, cost: str) -> list[go.Scatter]:
    """A line for each sign of the multiplier, from the cheapest cell on; projections have theirs."""
    chosen = panel.steered[panel.steered["pareto"].astype(bool)].sort_values(cost)
    sides = (chosen["multiplier"] > 0).astype(int) - (chosen["multiplier"] < 0).astype(int)
    return [
        go.Scatter(
            x=rows[cost],
            y=rows["effect"],
            mode="lines",
            name="Pareto set",
            line={"color": translucent(INK, 0.55), "width": 1.2, "dash": "dot"},
            hoverinfo="skip",
        )
        for side, rows in chosen.groupby(sides)
        if side
    ]


def _controls(panel: Panel, cost: str) -> go.Scatter:
    rows = panel.controls
    return go.Scatter(
        x=rows[cost],
        y=rows["effect"],
        mode="markers",
        name="controls",
        marker={"color": translucent(CONTROL, 0.5), "size": 5},
        showlegend=bool(len(rows)),
        hovertext=[_hover(row) for row in rows.to_dict("records")],
        hoverinfo="text",
    )


def _key(name: str, symbol: str, colour: str) -> go.Scatter:
    """A trace without points, for the legend."""
    return go.Scatter(
        x=[None],
        y=[None],
        mode="markers",
        name=name,
        marker={"color": colour, "symbol": symbol, "size": 9, "line": {"width": 2, "color": colour}},
        hoverinfo="skip",
    )


def _hover(row: dict[str, Any]) -> str:
    costs = [
        f"{name} {interval(*(row[f'{column}{end}'] for end in ENDS))}"
        for column, name in (("kl", "KL"), ("loss_change", "loss change"))
    ]
    verdict = "usable" if row["usable"] else f"not usable: {row['reason']}"
    reason = f" ({row['collapse']})" if row["collapsed"] else ""
    reach = f"controls reach {number(row['control_effect'])}" if pd.notna(row.get("control_effect")) else ""
    parts = [cell_hover(row, "effect"), *costs, reach, escape(verdict + reason)]
    return "<br>".join(part for part in parts if part)


def _subtitle(table: pd.DataFrame) -> str:
    counts = f"{counted(table['n'], 'prompt')}, {counted(table['passages'], 'passage')} a point"
    counts += "; numbers: multipliers"
    vectors = table.loc[table["control"].astype(bool), "vector"].nunique()
    return counts + controls_text(vectors)
