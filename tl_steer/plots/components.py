"""Components: prompts on principal components, the coordinates of a vector."""

from collections.abc import Sequence
from itertools import combinations, product
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from .._util.validation import checked
from .format import at_level, counted, escape, hover, level, levels, number, prompt_labels, rounded, wrapped
from .histograms import pairs_by_layer
from .marks import DASHED, add_layer_slider
from .panels import figure_table
from .style import BLUE, SYMBOLS, VERMILLION, Style, level_colours, styled, subplots, translucent

DECOMPOSITIONS = {  # subtitle, and the total of which a component has a share
    "pooled": ("both sides pooled", "variance"),
    "differences": ("components of the pairs' differences, mean kept", "differences' sum of squares"),
    "centred_differences": ("components of the pairs' differences, mean removed", "differences' variance"),
}
MENU_COMPONENTS = 3  # the menu has all pairs of the first components
COMPONENT_COLUMNS = ("layer", "coordinate", "value", "share", "rank", "spread", "kurtosis", "n_half_energy")
COUNT_TICKS = [digit * 10**power for power in range(5) for digit in (1, 2, 5)]
COMPONENT_BINS = 60
LABELLED = 6  # coordinates named below the histogram


@checked
def pca(
    table: pd.DataFrame,
    *,
    colour: str = "side",
    symbol: str | None = None,
    x: int = 1,
    y: int = 2,
    layer: int | None = None,
) -> go.Figure:
    """Scatter of prompts on principal components, with a slider over layers and a menu of components.

    Args:
        table: from `analysis.pca`.
        colour: "side" or a factor.
        symbol: a factor whose values have different markers.
        x, y: the components shown at first, counted from 1.
        layer: the layer shown at first; by default the middle one.

    Components are fitted per layer: the same point may be elsewhere, or mirrored, at the next layer.
    """
    columns = [f"{name}{component}" for component in (x, y) for name in ("PC", "explained_")]
    columns = ["layer", "pair", "side", "prompt", "decomposed", *columns]
    table = figure_table(table, "pca", *columns, factors=[colour, symbol])
    if x == y:
        raise ValueError(f"x and y are both component {x}: expected two different ones.")
    table = pairs_by_layer(table, caller="plots.pca")
    decomposed = table["decomposed"].unique().tolist()
    if len(decomposed) > 1 or decomposed[0] not in DECOMPOSITIONS:
        raise ValueError(
            f"plots.pca: the column decomposed holds {decomposed}: expected one of "
            f"{', '.join(DECOMPOSITIONS)} in all rows. Pass the table of one call of pca."
        )
    layers = table["layer"].unique().tolist()
    known = [component for component in range(1, MENU_COMPONENTS + 1) if f"PC{component}" in table.columns]
    pairs = [(x, y), *(pair for pair in combinations(known, 2) if set(pair) != {x, y})]
    groups = _groups(table, colour, symbol)
    hovers = [_prompt_texts(rows, [colour, symbol]) for _, rows in groups]
    traces = [
        _points(style, texts, pair, index)
        for index, pair in enumerate(pairs)
        for (style, _), texts in zip(groups, hovers, strict=True)
    ]
    figure = go.Figure(traces)
    changes = [_pca_change(table, groups, pairs, each) for each in layers]
    figure.update_layout(_axes(len(pairs)), updatemenus=_menu(pairs, len(groups)))
    add_layer_slider(figure, layers, changes, layer)
    figure.update_layout(legend_title_text=escape(colour if symbol is None else f"{colour}, {symbol}"))
    subtitle = f"{counted([table['pair'].nunique()], 'pair')}; {DECOMPOSITIONS[decomposed[0]][0]}"
    return styled(figure, "Principal components of both sides", subtitle, height=560)


def _groups(table: pd.DataFrame, colour: str, symbol: str | None) -> list[tuple[Style, pd.DataFrame]]:
    """The style and rows of each combination of colour and symbol."""
    colours = level_colours(levels(table[colour]))
    marks = levels(table[symbol]) if symbol and symbol != colour else [None]
    if len(marks) > len(SYMBOLS):
        raise ValueError(f"{symbol!r} has {len(marks)} values: expected at most {len(SYMBOLS)} for markers.")
    groups = []
    for shade, (mark, shape) in product(colours, zip(marks, SYMBOLS, strict=False)):
        rows = at_level(table, colour, shade)
        rows = rows if mark is None else at_level(rows, symbol, mark)
        name = escape(shade if mark is None else f"{shade}, {mark}")
        if len(rows):
            groups.append((Style(name, colours[shade], symbol=shape), rows))
    return groups


def _points(style: Style, texts: list[str], pair: tuple[int, int], index: int) -> go.Scatter:
    """A trace per pair of components and group; its texts serve all layers."""
    edge = {"width": 1, "color": style.colour if "open" in style.symbol else "white"}
    return go.Scatter(
        mode="markers",
        name=style.name,
        legendgroup=style.name,
        marker={"color": style.colour, "symbol": style.symbol, "size": 8, "opacity": 0.8, "line": edge},
        hovertext=texts,
        hovertemplate=f"%{{hovertext}}<br>PC{pair[0]} %{{x:.3g}}, PC{pair[1]} %{{y:.3g}}<extra></extra>",
        xaxis=_axis("x", index),
        yaxis=_axis("y", index),
        visible=index == 0,
    )


def _prompt_texts(rows: pd.DataFrame, factors: Sequence[str | None]) -> list[str]:
    """The hover of each prompt, in the order of pair and side that every layer has."""
    first = rows[rows["layer"] == rows["layer"].iloc[0]]
    names = list(dict.fromkeys(["side", *(name for name in factors if name)]))
    texts = []
    for prompt, row in zip(prompt_labels(first), first.to_dict("records"), strict=True):
        values = escape(", ".join(f"{name}: {level(row[name])}" for name in names))
        texts.append(hover(wrapped(prompt), f"<b>pair {row['pair']}</b>, {values}"))
    return texts


def _axis(letter: str, index: int) -> str:
    return letter if index == 0 else f"{letter}{index + 1}"


def _pca_change(
    table: pd.DataFrame, groups: list[tuple[Style, pd.DataFrame]], pairs: list[tuple[int, int]], layer: int
) -> list[dict[str, Any]]:
    """The arguments of the slider's step, for every pair of components.

    Each pair of components has its own axes: the slider sets all their titles, the menu only their
    visibility, so that neither needs the state of the other.
    """
    at_layer = [rows[rows["layer"] == layer] for _, rows in groups]
    explained = table[table["layer"] == layer].iloc[0]
    total = DECOMPOSITIONS[explained["decomposed"]][1]
    data, titles = {}, {}
    for which, letter in enumerate("xy"):
        data[letter] = [rounded(rows[f"PC{pair[which]}"]) for pair in pairs for rows in at_layer]
        for index, pair in enumerate(pairs):
            share = number(100 * explained.get(f"explained_{pair[which]}", float("nan")))
            title = f"PC{pair[which]} ({share}% of the {total})"
            titles[f"{_axis(letter + 'axis', index)}.title.text"] = title
    return [data, titles]


def _axes(n_pairs: int) -> dict[str, Any]:
    """The axes of all pairs are at the same place; those of the first are visible."""
    return {
        _axis(letter + "axis", index): {
            "visible": index == 0,
            "anchor": _axis("y" if letter == "x" else "x", index),
            "overlaying": letter if index else None,
            "zeroline": True,
        }
        for index in range(n_pairs)
        for letter in "xy"
    }


def _menu(pairs: list[tuple[int, int]], n_groups: int) -> list[dict[str, Any]]:
    """Shows the traces and axes of one pair of components, and changes no data."""
    if len(pairs) == 1:
        return []
    buttons = []
    for selected, (across, up) in enumerate(pairs):
        flags = [index == selected for index in range(len(pairs))]
        axes = {
            _axis(f"{letter}axis", i) + ".visible": flag for i, flag in enumerate(flags) for letter in "xy"
        }
        args = [{"visible": np.repeat(flags, n_groups).tolist()}, axes]
        buttons.append({"label": f"PC{across} / PC{up}", "method": "update", "args": args})
    position = {"x": 1.01, "xanchor": "left", "y": 0, "yanchor": "bottom"}
    return [{"buttons": buttons, "active": 0, "showactive": True, "direction": "up", **position}]


@checked
def vector_components(table: pd.DataFrame, *, layer: int | None = None) -> go.Figure:
    """Histogram of a vector's coordinates, with the largest named, and a slider over layers.

    Args:
        table: from `analysis.vector_components`.
        layer: the layer shown at first; by default the middle one.

    The curve is the normal distribution of the same spread, which the coordinates of a random direction of
    the same length follow. Counts are on a logarithmic scale, so that a bar of one coordinate is visible.
    """
    caller = "plots.vector_components"
    table = figure_table(table, "vector_components", *COMPONENT_COLUMNS)
    if table.duplicated(["layer", "coordinate"]).any():
        raise ValueError(f"{caller}: a layer has a coordinate twice: expected one vector. Select its rows.")
    if table["value"].isna().any():
        raise ValueError(f"{caller}: a coordinate has no value (NaN): expected numbers. Select other layers.")
    layers = sorted(table["layer"].unique().tolist())
    changes = [_component_change(table[table["layer"] == each]) for each in layers]
    figure = subplots(2, 1, row_heights=[0.74, 0.26], shared_xaxes=True, vertical_spacing=0.04)
    for trace, row in zip(_component_traces(), (1, 1, 2), strict=True):
        figure.add_trace(trace, row=row, col=1)
    highest = max(max(count for count in change[0]["y"][0] if count) for change in changes)
    ends = [np.log10(0.5), np.log10(1.6 * highest)]
    figure.update_yaxes(title_text="coordinates", type="log", range=ends, tickvals=COUNT_TICKS, row=1)
    figure.update_yaxes(title_text="largest", range=[LABELLED - 0.4, -0.6], row=2)
    figure.update_yaxes(showticklabels=False, ticks="", showgrid=False, zeroline=False, row=2)
    figure.update_xaxes(title_text="value of the coordinate (residual stream units)", row=2)
    figure.update_layout(bargap=0)
    styled(figure, "What the vector is made of", "", height=560)
    add_layer_slider(figure, layers, changes, layer)
    return figure


def _component_traces() -> tuple[go.Bar, go.Scatter, go.Scatter]:
    bars = go.Bar(
        name="this vector",
        marker={"color": translucent(BLUE, 0.55), "line": {"color": BLUE, "width": 1}},
        hovertemplate="%{hovertext}<extra></extra>",
    )
    normal = go.Scatter(
        name="random direction,<br>same length", mode="lines", line=DASHED | {"width": 1.5}, hoverinfo="skip"
    )
    largest = go.Scatter(
        name="coordinate (share of<br>squared length)",
        mode="markers+text",
        marker={"symbol": "line-ns-open", "size": 10, "color": VERMILLION, "line": {"width": 1.6}},
        textfont={"size": 11},
        hovertemplate="%{hovertext}<extra></extra>",
    )
    return bars, normal, largest


def _component_change(rows: pd.DataFrame) -> list[dict[str, Any]]:
    """The arguments of the slider's step: bars, curve and named coordinates, and the subtitle."""
    values = rows["value"].to_numpy(float)
    counts, edges = np.histogram(values, bins=COMPONENT_BINS)
    width, spread = float(edges[1] - edges[0]), float(rows["spread"].iloc[0])
    x = np.linspace(edges[0], edges[-1], 201)
    normal = len(values) * width * np.exp(-((x / spread) ** 2) / 2) / (spread * np.sqrt(2 * np.pi))
    is_visible = normal > 0.3  # smaller values would only widen the axis
    middles, centre = (edges[1:] + edges[:-1]) / 2, (edges[0] + edges[-1]) / 2
    largest = rows.sort_values("rank").head(LABELLED)
    bar_texts = [
        f"{count} of {len(rows)} coordinates<br>from {number(low)} to {number(high)}"
        for count, low, high in zip(counts, edges, edges[1:], strict=False)
    ]
    texts = [
        f"<b>coordinate {row.coordinate}</b>: {number(row.value)}<br>{row.share:.2%} of the squared length"
        for row in largest.itertuples()
    ]
    sides = ["middle right" if value < centre else "middle left" for value in largest["value"]]
    data = {
        "x": [rounded(middles), rounded(x[is_visible]), rounded(largest["value"])],
        "y": [[int(each) or None for each in counts], rounded(normal[is_visible]), list(range(len(largest)))],
        "hovertext": [bar_texts, None, texts],
        "text": [None, None, [f" {row.coordinate} ({row.share:.1%}) " for row in largest.itertuples()]],
        "textposition": [None, None, sides],
    }
    first = rows.iloc[0]
    subtitle = (
        f"layer {first['layer']:.0f}: {first['n_half_energy']:.0f} of {len(rows)} coordinates carry half of "
        f"the squared length (random direction: about {len(rows) / 8:.0f}); "
        f"excess kurtosis {number(first['kurtosis'], '.2g')}"
    )
    return [data, {"title.subtitle.text": subtitle}]
