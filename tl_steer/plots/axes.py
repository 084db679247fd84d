"""Axes and sliders that several figures share: layers, multipliers, logarithmic scales."""

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import count, pairwise
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from .format import layers_order, signed
from .style import AXIS

# At most this many layers may be evenly spaced where a step exceeds another by this factor.
FEW_LAYERS, UNEVEN = 8, 3


def layer_step(layers: Iterable[int], max_ticks: int = 10) -> int:
    """Distance of ticks so that there are about `max_ticks` at most: 1, 2, 5, 10, …"""
    layers = list(layers)
    span = max(layers) - min(layers)
    steps = (factor * 10**power for power in count() for factor in (1, 2, 5))
    return next(step for step in steps if span <= max_ticks * step)


def layer_ticks(layers: Iterable[int], max_ticks: int) -> list[int]:
    """Multiples of `layer_step` among the layers; if fewer than two, every k-th layer."""
    layers = sorted(layers)
    step = layer_step(layers, min(max_ticks, 10))
    multiples = [layer for layer in layers if layer % step == 0]
    return multiples if len(multiples) > 1 else layers[:: -(-len(layers) // max_ticks)]


def is_to_scale(positions: Mapping[str, float]) -> bool:
    """Whether each single layer is at its index."""
    return all(position == int(name) for name, position in positions.items() if name.isdigit())


def layer_axis(positions: Mapping[str, float], columns: int) -> dict[str, object]:
    """The x axis of `layer_positions`, with as many ticks as `columns` panels in a row leave space for."""
    singles = [int(name) for name in positions if name.isdigit()]
    max_ticks = min(12, 24 // columns)
    is_short = len(singles) <= max_ticks or not is_to_scale(positions)
    named = singles if is_short else layer_ticks(singles, max_ticks)
    ticks = {name: x for name, x in positions.items() if not name.isdigit() or int(name) in named}
    low, high = min(positions.values()), max(positions.values())
    margin = max(0.6, (0.02 if len(singles) == len(positions) else 0.05) * (high - low))
    return {
        "tickvals": list(ticks.values()),
        "ticktext": list(ticks),
        "tickangle": 0,
        "range": [low - margin, high + margin],
        "zeroline": False,
    }


def layer_range(layers: pd.Series) -> dict[str, object]:
    """The axis of a column `layer`: half a layer more on each side, whole layers as ticks."""
    ends = [layers.min() - 0.5, layers.max() + 0.5]
    return {"range": ends, "zeroline": False, "tick0": 0, "dtick": layer_step(layers)}


def multiplier_ranks(table: pd.DataFrame, *, caller: str) -> dict[float, int]:
    """x-coordinate of each multiplier of the steered conditions: evenly spaced, ascending.

    Raises:
        ValueError: no operation has a multiplier.
    """
    multipliers = table.loc[table["operation"] != "none", "multiplier"].dropna()
    if multipliers.empty:
        raise ValueError(f"{caller}: no steered condition has a multiplier; a projection has none.")
    return {multiplier: rank for rank, multiplier in enumerate(sorted(multipliers.astype(float).unique()))}


def multiplier_axis(ranks: Mapping[float, int], *, opposite: bool = False) -> dict[str, object]:
    """The x axis of `multiplier_ranks`; `opposite` where each also represents its opposite ("±8")."""
    return {
        "tickvals": list(ranks.values()),
        "ticktext": [f"±{each:g}" if opposite else signed(each) for each in ranks],
        "tickangle": 0,
        "range": [-0.5, len(ranks) - 0.5],
        "zeroline": False,
    }


def log_axis(values: pd.Series) -> dict[str, object]:
    """A logarithmic axis with a margin, and more ticks the narrower the range is."""
    low, high = math.log10(values.min()), math.log10(values.max())
    margin = max(0.06 * (high - low), 0.05)
    narrow = (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 7, 8, 9)
    steps = narrow if high - low < 0.7 else (1, 2, 5) if high - low < 2.5 else (1,)
    powers = range(math.floor(low) - 1, math.ceil(high) + 1)
    ticks = [step * 10.0**power for power in powers for step in steps]
    return {
        "type": "log",
        "tickvals": ticks,
        "ticktext": [f"{tick:g}" for tick in ticks],
        "range": [low - margin, high + margin],
        "autorange": False,
    }


def start_index(layers: Sequence[str], layer: int | str | None) -> int:
    """Index of the layer that a slider shows at first: `layer`, by default the middle one.

    Raises:
        ValueError: no such layer.
    """
    if layer is None:
        return len(layers) // 2
    if str(layer) not in layers:
        raise ValueError(f"no layer {layer} in the table; it has {', '.join(layers)}.")
    return list(layers).index(str(layer))


def layer_slider(layers: Sequence[str], changes: Sequence[list[Any]], active: int) -> list[dict[str, Any]]:
    """A slider over layers; `changes` has the arguments of `Plotly.update` of each step."""
    steps = [
        {"label": layer, "method": "update", "args": change}
        for layer, change in zip(layers, changes, strict=True)
    ]
    return [
        {
            "steps": steps,
            "active": active,
            "currentvalue": {"prefix": "layer ", "font": {"size": 13}, "xanchor": "left"},
            "pad": {"t": 52, "b": 8},
            "len": 1,
            "x": 0,
            "minorticklen": 0,
            "tickcolor": AXIS,
            "font": {"size": 11},
        }
    ]


def apply_change(figure: go.Figure, change: list[dict[str, Any]]) -> None:
    """Apply a step of a slider to a figure; a `None` leaves a trace's attribute as it is."""
    data, layout = change
    for index, trace in enumerate(figure.data):
        trace.update({name: values[index] for name, values in data.items() if values[index] is not None})
    for path, value in layout.items():
        figure.layout[path] = value


def layer_positions(table: pd.DataFrame) -> dict[str, float]:
    """x-coordinate of each `layers` value: single layers at their index, layer sets appended after the last.

    A few unevenly spaced layers (17, 18, 19, 31) are placed at equal distances, to be legible.
    """
    names = [name for name in table["layers"].unique() if name]
    singles = sorted((name for name in names if name.isdigit()), key=int)
    sets = sorted((name for name in names if not name.isdigit()), key=layers_order)
    steps = layer_steps(singles)
    if len(names) <= FEW_LAYERS and steps and max(steps) > UNEVEN * min(steps):
        return {name: float(rank) for rank, name in enumerate([*singles, *sets])}
    last = int(singles[-1]) if singles else 0
    gap = max(1.0, (last - int(singles[0])) / 4) if singles else 1.0  # wide enough for the names of sets
    positions = {name: float(name) for name in singles}
    return positions | {name: last + gap * (rank + 1) for rank, name in enumerate(sets)}


def layer_steps(layers: Sequence[str]) -> list[int]:
    """Differences of consecutive layers."""
    return [int(upper) - int(lower) for lower, upper in pairwise(layers)]
