"""Parts that several figures share: bands, ticks of layers, sliders."""

from collections.abc import Iterable, Sequence
from typing import Any

import pandas as pd
import plotly.graph_objects as go

Numbers = Iterable[float | int]


def band(x: Numbers, low: Numbers, high: Numbers, colour: str, **more: Any) -> go.Scatter:
    """A filled band between two curves, without line or hover."""
    return go.Scatter(
        x=[*x, *reversed(list(x))],
        y=[*high, *reversed(list(low))],
        mode="lines",
        line={"width": 0},
        fill="toself",
        fillcolor=colour,
        hoverinfo="skip",
        **more,
    )


def layer_step(layers: Iterable[int], most: int = 20) -> int:
    """Layers from one tick to the next, so that there are at most about `most` ticks."""
    layers = list(layers)
    span = max(layers) - min(layers)
    return next((step for step in (1, 2, 5, 10, 20) if span <= most * step), 50)


def layer_slider(layers: Sequence[str], arguments: Sequence[list[Any]], active: int) -> list[dict[str, Any]]:
    """A slider below the figure that says "layer" and applies `update` arguments.

    Args:
        layers: the label of each step.
        arguments: for each step, what `Plotly.update` takes: changes of traces and of the layout.
        active: the step that the figure shows at first.
    """
    steps = [
        {"label": layer, "method": "update", "args": change}
        for layer, change in zip(layers, arguments, strict=True)
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
            "tickcolor": "#9AA0A8",
            "font": {"size": 11},
        }
    ]


def rounded(values: pd.Series) -> list[float]:
    """Five digits, so that a slider over many layers does not make a heavy file."""
    return [float(f"{value:.5g}") for value in values]
