"""Values against the multiplier, a line a layer, side by side where they would cover each other."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from .cells import Panel
from .effectiveness_curves import whiskers
from .labels import escape, signed
from .marks import UNSIZED, band
from .template import BLUE, CONTROL, GREEN, PURPLE, SYMBOLS, VERMILLION, sequential_colours, translucent

MOST_LINES = 5  # control vectors that are drawn one by one
SPREAD = 0.36  # of the distance between two multipliers, taken by the lines beside each other
SETS = (VERMILLION, BLUE, PURPLE, GREEN)  # of sets of layers, which have no place between dark and light

Hover = Callable[[dict[str, Any]], str]


@dataclass(frozen=True)
class MultiplierAxis:
    """The multipliers, evenly spaced in their order, whatever their size.

    Attributes:
        multipliers: ascending.
        opposite: whether each stands for itself and its opposite.
    """

    multipliers: tuple[float, ...]
    opposite: bool = False

    def places(self, multipliers: pd.Series, offset: float = 0.0) -> list[float]:
        """Where they stand; `offset` beside it."""
        return [self.multipliers.index(float(each)) + offset for each in multipliers]

    def layout(self) -> dict[str, object]:
        """Ticks and range."""
        return {
            "tickvals": list(range(len(self.multipliers))),
            "ticktext": [f"±{each:g}" if self.opposite else signed(each) for each in self.multipliers],
            "tickangle": 0,
            "range": [-0.5, len(self.multipliers) - 0.5],
            "zeroline": False,
        }


@dataclass(frozen=True)
class LayerLine:
    """The look of one operation at one layer, or set of layers.

    Attributes:
        layers, operation: which rows it draws.
        name: escaped, for the legend.
        colour, dash, symbol: single layers from dark to light, sets of layers dotted.
        offset: beside the multiplier's place.
    """

    layers: str
    operation: str
    name: str
    colour: str
    dash: str
    symbol: str
    offset: float

    def trace(self, rows: pd.DataFrame, value: str, axis: MultiplierAxis, hover: Hover) -> go.Scatter:
        """Its cells among `rows`, with whiskers."""
        mine = rows[(rows["layers"] == self.layers) & (rows["operation"] == self.operation)]
        mine = mine.sort_values("multiplier")
        return go.Scatter(
            x=axis.places(mine["multiplier"], self.offset),
            y=mine[value],
            error_y=whiskers(mine, value, self.colour),
            mode="lines+markers",
            name=self.name,
            line={"color": self.colour, "width": 1.5, "dash": self.dash},
            marker={"size": 7, "symbol": self.symbol},
            hovertext=[hover(row) for row in mine.to_dict("records")],
            hoverinfo="text",
        )


def multiplier_axis(table: pd.DataFrame, *, figure: str, opposite: bool = False) -> MultiplierAxis:
    """The axis of a table's steered cells.

    Raises:
        ValueError: no operation in it has a multiplier.
    """
    multipliers = table.loc[table["operation"] != "none", "multiplier"].dropna()
    if multipliers.empty:
        raise ValueError(f"plots.{figure}: no steered cell has a multiplier; a projection has none.")
    return MultiplierAxis(tuple(sorted({float(each) for each in multipliers})), opposite)


def layer_lines(panels: Sequence[Panel]) -> list[LayerLine]:
    """The lines of all panels: layers ascending, then sets of layers."""
    steered = pd.concat([panel.steered for panel in panels]).dropna(subset="multiplier")
    keys = sorted(set(zip(steered["layers"], steered["operation"], strict=True)), key=_order)
    singles = list(dict.fromkeys(layers for layers, _ in keys if layers.isdigit()))
    # by rank: by number, the layers 17, 18 and 19 of 40 would look the same
    shades = sequential_colours(range(len(singles)))
    sets = list(dict.fromkeys(layers for layers, _ in keys if not layers.isdigit()))
    operations = list(dict.fromkeys(operation for _, operation in keys))
    step = SPREAD / max(len(keys) - 1, 1)
    return [
        LayerLine(
            layers,
            operation,
            escape(f"{layers}, {operation}" if len(operations) > 1 else layers),
            shades[singles.index(layers)] if layers.isdigit() else SETS[sets.index(layers) % len(SETS)],
            "solid" if layers.isdigit() else "dot",
            SYMBOLS[operations.index(operation) % len(SYMBOLS)],
            (rank - (len(keys) - 1) / 2) * step,
        )
        for rank, (layers, operation) in enumerate(keys)
    ]


def control_lines(panel: Panel, value: str, axis: MultiplierAxis, hover: Hover) -> Iterable[go.Scatter]:
    """Thin grey lines, one a control vector, operation and layer; of many vectors, the band they fill.

    The band goes from the lowest to the highest cell of each |multiplier|, since a control direction has no
    sign.
    """
    controls = panel.controls.dropna(subset=["multiplier", value]).sort_values("multiplier")
    if controls["vector"].nunique() > MOST_LINES:
        yield _control_band(controls, value, axis)
        return
    for _, rows in controls.groupby(["vector", "operation", "layers"]):
        yield go.Scatter(
            x=axis.places(rows["multiplier"]),
            y=rows[value],
            mode="lines+markers",
            name="controls",
            line={"color": translucent(CONTROL, 0.35), "width": 1},
            marker={"size": 3, "color": translucent(CONTROL, 0.6)},
            hovertext=[hover(row) for row in rows.to_dict("records")],
            hoverinfo="text",
        )


def _control_band(controls: pd.DataFrame, value: str, axis: MultiplierAxis) -> go.Scatter:
    multipliers = controls["multiplier"].drop_duplicates()
    reach = controls.groupby(controls["multiplier"].abs())[value].agg(["min", "max"]).loc[multipliers.abs()]
    return band(axis.places(multipliers), reach["min"], reach["max"], UNSIZED, name="controls")


def _order(key: tuple[str, str]) -> tuple[bool, list[int], str]:
    layers, operation = key
    return (not layers.isdigit(), [int(part) for part in layers.split("+")], operation)
