"""What steering costs as its dose grows, a line a layer."""

import math

import pandas as pd
import plotly.graph_objects as go

from .._util.validation import checked
from .cells import CELL, Panel, cell_hover, layer_looks, panels_of
from .effectiveness_curves import unsteered, whiskers
from .labels import controls_text, counted, require_columns
from .panel_grid import PanelGrid
from .template import CONTROL, styled, translucent

VALUES = {
    "kl": "KL(unsteered ‖ steered) a token (nats)",
    "loss_change": "change of the loss on neutral text (nats a token)",
    "loss": "loss (nats a token)",
    "words": "words in a text",
    "distinct_1": "different words in a text (share)",
    "distinct_2": "different pairs of words in a text (share)",
    "distinct_3": "different triples of words in a text (share)",
    "unreadable": "unreadable answers (share)",
}
HEADINGS = {
    "kl": "Change of the predictions by dose",
    "loss_change": "Change of the loss by dose",
    "loss": "Loss by dose",
    "words": "Length of the texts by dose",
    "unreadable": "Unreadable answers by dose",
}
DASHES = {1: "solid", -1: "dot"}


@checked
def damage(table: pd.DataFrame, *, value: str = "kl") -> go.Figure:
    """Damage against the size of the dose, on a logarithmic axis, a line a layer, with 95% intervals.

    Args:
        table: what `evaluation.mean_damage` makes, not split by a factor.
        value: "kl" (drawn on a logarithmic axis too), "loss_change", "loss", or of texts "words",
            "distinct_1", "distinct_2", "distinct_3", "unreadable".

    Raises:
        ValueError: no rows, columns are missing, an unknown value, rows that share a cell, or no dose.

    Solid lines add the vector, dotted ones subtract it; grey lines are random directions of the same length.
    Operations without a multiplier have no dose and are left out.
    """
    if value not in VALUES:
        raise ValueError(f"value={value!r} is unknown: use one of {', '.join(VALUES)}.")
    numbers = [f"{value}{end}" for end in ("", "_low", "_high")]
    maker = "evaluation.mean_damage(damage_table)"
    require_columns(table, [*CELL, "dose", "n", *numbers], figure="damage", maker=maker)
    doses = table.loc[table["dose"] > 0, "dose"]
    if doses.empty:
        raise ValueError(
            "plots.damage: no cell has a dose above 0; operations without a multiplier have none."
        )
    panels = panels_of(_drawable(table, value), None, figure="damage")
    grid = PanelGrid(panels, x_title="dose (‖multiplier · vector‖ / stream norm)", y_title=VALUES[value])
    looks = layer_looks(panels)
    for place, panel in enumerate(panels):
        if value != "kl":
            for trace in unsteered(panel, value, [doses.min(), doses.max()]):
                grid.add(place, trace, "unsteered", rank=800)
        for trace in _controls(panel, value):
            grid.add(place, trace, "controls", rank=900)
        for (layers, operation), look in looks.items():
            for sign in (1, -1):
                trace = _line(panel.steered, layers, operation, sign, value, look)
                if trace is not None:
                    grid.add(place, trace, look["name"])
    grid.figure.update_xaxes(**log_axis(doses))
    if value == "kl":
        grid.figure.update_yaxes(**log_axis(table.loc[table["kl"] > 0, "kl"]))
    grid.figure.update_layout(legend_title_text="layer")
    return styled(grid.figure, _heading(value), _subtitle(table, value), height=grid.height)


def log_axis(values: pd.Series) -> dict[str, object]:
    """A logarithmic axis from a little below the smallest value to a little above the largest."""
    low, high = math.log10(values.min()), math.log10(values.max())
    margin = max(0.06 * (high - low), 0.05)
    narrow = (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 7, 8, 9)
    steps = narrow if high - low < 0.7 else (1, 2, 5) if high - low < 2.5 else (1,)
    ticks = [
        step * 10.0**power for power in range(math.floor(low) - 1, math.ceil(high) + 1) for step in steps
    ]
    return {
        "type": "log",
        "tickvals": ticks,
        "ticktext": [f"{tick:g}" for tick in ticks],
        "range": [low - margin, high + margin],
        "autorange": False,
    }


def _drawable(table: pd.DataFrame, value: str) -> pd.DataFrame:
    """The unsteered cell, and those with a place on the axes: a logarithm has none for zero."""
    shown = (table["dose"] > 0) & ((table["kl"] > 0) if value == "kl" else table[value].notna())
    return table[shown | (table["operation"] == "none")]


def _line(
    steered: pd.DataFrame, layers: str, operation: str, sign: int, value: str, look: dict[str, str]
) -> go.Scatter | None:
    mine = (steered["layers"] == layers) & (steered["operation"] == operation)
    rows = steered[mine & (steered["multiplier"] * sign > 0)].sort_values("dose")
    if rows.empty:
        return None
    return go.Scatter(
        x=rows["dose"],
        y=rows[value],
        error_y=whiskers(rows, value, look["colour"]),
        mode="lines+markers",
        name=look["name"],
        line={"color": look["colour"], "width": 2, "dash": DASHES[sign]},
        marker={"size": 6, "symbol": "circle" if sign > 0 else "circle-open"},
        hovertext=[cell_hover(row, value) for row in rows.to_dict("records")],
        hoverinfo="text",
    )


def _controls(panel: Panel, value: str) -> list[go.Scatter]:
    found = []
    sign = panel.controls["multiplier"] > 0
    for _, rows in panel.controls.groupby(["vector", "operation", "layers", sign]):
        rows = rows.sort_values("dose")
        found.append(
            go.Scatter(
                x=rows["dose"],
                y=rows[value],
                mode="lines+markers",
                name="controls",
                line={"color": translucent(CONTROL, 0.35), "width": 1},
                marker={"size": 3, "color": translucent(CONTROL, 0.5)},
                hovertext=[cell_hover(row, value) for row in rows.to_dict("records")],
                hoverinfo="text",
            )
        )
    return found


def _heading(value: str) -> str:
    return HEADINGS.get(value, "Different n-grams in the texts by dose")


def _subtitle(table: pd.DataFrame, value: str) -> str:
    noun = "passage" if value in ("kl", "loss_change") else "text"
    vectors = table.loc[table["control"].astype(bool), "vector"].nunique()
    lines = "solid: added, dotted: subtracted; 95% intervals"
    return f"{counted(table['n'], noun)} a point; {lines}{controls_text(vectors)}"
