"""Parts that several figures share: bands, what controls reach, ticks of layers, sliders."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import count
from typing import Any

import pandas as pd
import plotly.graph_objects as go
from plotly.colors import sample_colorscale

from .template import CONTROL, translucent

SHADES = ("#BFC4CB", "#EDEFF1")  # of the controls of the smallest and of the largest |multiplier|
UNSIZED = "#E1E4E8"  # of those without a multiplier

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


def layer_bands(
    reach: pd.DataFrame, places: Mapping[str, float], shade: str, **more: Any
) -> list[go.Scatter]:
    """What controls reach at each layer: a band over single layers, a short one at each set of layers.

    Args:
        reach: `null_low` and `null_high`, with the layers ("17", "17+31") as index.
        places: where each `layers` stands on the axis.
        shade: opaque, one of `shades`; the smaller of two bands is drawn over the larger one.
        more: what both kinds of bands are given, such as a name.

    A band needs two layers: one layer alone gets a short one too.
    """
    ends = reach[["null_low", "null_high"]].dropna().rename(index=dict(places)).sort_index()
    sets = {place for name, place in places.items() if not name.isdigit()}
    alone = [place for place in ends.index if place in sets]
    singles = ends.drop(alone)
    if len(singles) == 1:
        alone, singles = [*singles.index, *alone], singles.iloc[:0]
    width = max(0.3, 0.03 * (max(places.values()) - min(places.values())))
    spans = [(list(singles.index), singles)] if len(singles) else []
    spans += [([place - width, place + width], ends.loc[[place, place]]) for place in alone]
    bands = [band(x, rows["null_low"], rows["null_high"], shade, **more) for x, rows in spans]
    return [each.update(line={"width": 1, "color": translucent(CONTROL, 0.6)}) for each in bands]


def shades(sizes: Iterable[float]) -> dict[float, str]:
    """A grey for the controls of each |multiplier|, lighter with size."""
    sizes = sorted(set(sizes))
    steps = [rank / (len(sizes) - 1) for rank in range(len(sizes))] if len(sizes) > 1 else [0.6] * len(sizes)
    greys = sample_colorscale([[0.0, SHADES[0]], [1.0, SHADES[1]]], steps) if steps else []
    return dict(zip(sizes, greys, strict=True))


def rings(rows: pd.DataFrame, value: str) -> go.Scatter:
    """White dots on the points of a line that lie within what their controls reach: they become rings.

    Args:
        rows: `place` on the x axis, `value`, `null_low` and `null_high`.
    """
    inside = rows[rows[value].between(rows["null_low"], rows["null_high"])]
    return go.Scatter(
        x=inside["place"],
        y=inside[value],
        mode="markers",
        marker={"size": 3, "color": "white"},
        hoverinfo="skip",
        showlegend=False,
    )


def layer_step(layers: Iterable[int], most: int = 10) -> int:
    """Layers from one tick to the next, so that there are at most about `most` ticks."""
    layers = list(layers)
    span = max(layers) - min(layers)
    steps = (factor * 10**power for power in count() for factor in (1, 2, 5))
    return next(step for step in steps if span <= most * step)


def layer_ticks(layers: Iterable[int], most: int) -> list[int]:
    """Multiples of `layer_step` among the layers; where fewer than two are, every k-th layer."""
    layers = sorted(layers)
    step = layer_step(layers, min(most, 10))
    multiples = [layer for layer in layers if layer % step == 0]
    return multiples if len(multiples) > 1 else layers[:: -(-len(layers) // most)]


def to_scale(places: Mapping[str, float]) -> bool:
    """Whether each single layer stands at its number."""
    return all(place == int(name) for name, place in places.items() if name.isdigit())


def layer_axis(places: Mapping[str, float], columns: int) -> dict[str, object]:
    """The x axis of layers that stand at `places`, with as many ticks as can be read in so many columns."""
    singles = [int(name) for name in places if name.isdigit()]
    most = min(12, 24 // columns)
    ticks = singles if len(singles) <= most or not to_scale(places) else layer_ticks(singles, most)
    shown = {name: place for name, place in places.items() if not name.isdigit() or int(name) in ticks}
    low, high = min(places.values()), max(places.values())
    margin = max(0.6, (0.02 if len(singles) == len(places) else 0.05) * (high - low))
    return {
        "tickvals": list(shown.values()),
        "ticktext": list(shown),
        "tickangle": 0,
        "range": [low - margin, high + margin],
        "zeroline": False,
    }


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


def rounded(values: Iterable[float | None]) -> list[float | None]:
    """Five digits, so that a slider over many layers makes no heavy file; `None` where there is no number."""
    return [None if pd.isna(value) else float(f"{value:.5g}") for value in values]
