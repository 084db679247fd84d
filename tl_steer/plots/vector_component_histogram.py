"""Histogram of the numbers a vector is made of, at any layer, beside what a random direction would have."""

from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from .._util.validation import checked
from .labels import number, require_columns, start_of
from .marks import layer_slider, rounded
from .template import BLUE, INK, VERMILLION, styled, translucent

COLUMNS = ("layer", "coordinate", "value", "share", "rank", "spread", "kurtosis", "n_half_energy")
BINS = 60
TICKS = [digit * 10**power for power in range(5) for digit in (1, 2, 5)]
NAMED = 6  # coordinates written out below the histogram


@checked
def vector_components(table: pd.DataFrame, *, layer: int | None = None) -> go.Figure:
    """How many of a vector's coordinates have which value, with the largest named, and a slider over layers.

    Args:
        table: what `analysis.vector_components` makes.
        layer: the layer shown at first; by default the middle one.

    Raises:
        ValueError: no rows, columns are missing, an unknown layer, or a layer that has a coordinate twice.

    The curve is the normal distribution of the same spread: what the coordinates of a random direction of the
    same length follow. Counts are on a logarithmic scale, so that a bar of one coordinate is seen; bins of
    that none falls into are empty.
    """
    maker = "analysis.vector_components(vectors)"
    require_columns(table, COLUMNS, figure="vector_components", maker=maker)
    if table.duplicated(["layer", "coordinate"]).any():
        raise ValueError(
            "plots.vector_components: a layer has a coordinate twice; select the rows of one vector."
        )
    if table["value"].isna().any():
        raise ValueError("plots.vector_components: a coordinate has no value (NaN); select layers that have.")
    layers = [str(value) for value in sorted(table["layer"].unique())]
    start = start_of(layers, layer)
    changes = [_change(table[table["layer"] == int(value)]) for value in layers]
    figure = make_subplots(rows=2, cols=1, row_heights=[0.74, 0.26], shared_xaxes=True, vertical_spacing=0.04)
    figure.add_trace(_bars(), row=1, col=1)
    figure.add_trace(_curve(), row=1, col=1)
    figure.add_trace(_named(), row=2, col=1)
    data, words = changes[start]
    for place, trace in enumerate(figure.data):
        trace.update({name: values[place] for name, values in data.items() if values[place] is not None})
    most = max(max(count for count in change[0]["y"][0] if count) for change in changes)
    figure.update_yaxes(
        title_text="coordinates",
        type="log",
        range=[np.log10(0.5), np.log10(1.6 * most)],
        tickvals=TICKS,
        row=1,
    )
    figure.update_yaxes(
        title_text="largest",
        range=[NAMED - 0.4, -0.6],
        showticklabels=False,
        ticks="",
        showgrid=False,
        zeroline=False,
        row=2,
    )
    figure.update_xaxes(title_text="value of the coordinate (stream units)", row=2)
    figure.update_layout(sliders=layer_slider(layers, changes, start), bargap=0)
    return styled(figure, "What the vector is made of", words["title.subtitle.text"], height=560)


def _bars() -> go.Bar:
    return go.Bar(
        name="this vector",
        marker={"color": translucent(BLUE, 0.55), "line": {"color": BLUE, "width": 1}},
        hovertemplate="%{hovertext}<extra></extra>",
    )


def _curve() -> go.Scatter:
    return go.Scatter(
        name="random direction,<br>same length",
        mode="lines",
        line={"color": INK, "width": 1.5, "dash": "dash"},
        hoverinfo="skip",
    )


def _named() -> go.Scatter:
    return go.Scatter(
        name="coordinate (share of<br>squared length)",
        mode="markers+text",
        marker={"symbol": "line-ns-open", "size": 10, "color": VERMILLION, "line": {"width": 1.6}},
        textfont={"size": 11},
        hovertemplate="%{hovertext}<extra></extra>",
    )


def _change(rows: pd.DataFrame) -> list[dict[str, Any]]:
    """What the slider changes at one layer: bars, curve, named coordinates; and the words above."""
    values = rows["value"].to_numpy(float)
    counts, edges = np.histogram(values, bins=BINS)
    width, spread = float(edges[1] - edges[0]), float(rows["spread"].iloc[0])
    x = np.linspace(edges[0], edges[-1], 201)
    normal = len(values) * width * np.exp(-((x / spread) ** 2) / 2) / (spread * np.sqrt(2 * np.pi))
    curve = pd.DataFrame({"x": x, "y": normal})[normal > 0.3]  # below the axis it would only widen it
    middles = pd.Series((edges[1:] + edges[:-1]) / 2)
    largest = rows.sort_values("rank").head(NAMED)
    data = {
        "x": [rounded(middles), rounded(curve["x"]), rounded(largest["value"])],
        "y": [[int(count) or None for count in counts], rounded(curve["y"]), list(range(len(largest)))],
        "hovertext": [_bar_hovers(rows, counts, edges), None, _hovers(largest)],
        "text": [None, None, [f" {row.coordinate} ({row.share:.1%}) " for row in largest.itertuples()]],
        "textposition": [None, None, _sides(largest["value"], edges)],
    }
    return [data, {"title.subtitle.text": _subtitle(rows)}]


def _bar_hovers(rows: pd.DataFrame, counts: np.ndarray, edges: np.ndarray) -> list[str]:
    return [
        f"{count} of {len(rows)} coordinates<br>from {number(low)} to {number(high)}"
        for count, low, high in zip(counts, edges, edges[1:], strict=False)
    ]


def _hovers(rows: pd.DataFrame) -> list[str]:
    return [
        f"<b>coordinate {row.coordinate}</b>: {number(row.value)}<br>{row.share:.2%} of the squared length"
        for row in rows.itertuples()
    ]


def _sides(values: pd.Series, edges: np.ndarray) -> list[str]:
    """Text toward the middle, where there is room for it."""
    middle = (edges[0] + edges[-1]) / 2
    return ["middle right" if value < middle else "middle left" for value in values]


def _subtitle(rows: pd.DataFrame) -> str:
    first = rows.iloc[0]
    half = f"{first['n_half_energy']:.0f} of {len(rows)} coordinates carry half of the squared length"
    random = f"(random direction: about {len(rows) / 8:.0f})"
    return f"layer {first['layer']:.0f}: {half} {random}; excess kurtosis {number(first['kurtosis'], 2)}"
