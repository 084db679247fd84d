"""Both sides of the pairs on two principal components, at any layer."""

from itertools import combinations
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from .._util.validation import checked
from .labels import (
    counted,
    escape,
    level,
    levels,
    number,
    prompt_labels,
    require_columns,
    require_same_rows,
    start_of,
    wrapped,
)
from .marks import layer_slider, rounded
from .template import SYMBOLS, level_colours, styled

KEYS = ("layer", "pair", "side", "prompt", "decomposed")
DECOMPOSED = {  # the subtitle, and what a component's share is a share of
    "pooled": ("both sides pooled", "variance"),
    "differences": ("components of the pairs' differences, mean kept", "differences' sum of squares"),
    "centred_differences": (
        "components of the pairs' differences, mean removed",
        "differences' variance",
    ),
}
OFFERED = 3  # the menu pairs the first three components; others are asked for with x= and y=


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
    """Scatter of prompts on principal components, with a slider over layers and a menu for the components.

    Args:
        table: what `analysis.pca` makes.
        colour: "side" or a factor; each of its values has a colour.
        symbol: a factor whose values are told apart by the marker.
        x, y: the components shown at first, counted from 1.
        layer: the layer shown at first; by default the middle one.

    Raises:
        ValueError: no rows, columns are missing, an unknown component or layer, too many values, layers whose
            rows differ, or components of different decompositions in one table.

    A component is fitted at each layer anew: the same point may lie elsewhere, or mirrored, one layer on.
    """
    maker = "analysis.pca(activations, components=…)"
    require_columns(table, [*KEYS, *_columns(x, y)], figure="pca", maker=maker, factors=[colour, symbol])
    if x == y:
        raise ValueError(f"x and y are both component {x}: give two different ones.")
    require_same_rows(table, figure="pca")
    if (several := table["decomposed"].unique()).size > 1 or several[0] not in DECOMPOSED:
        raise ValueError(
            f"column decomposed: got {list(several)}: expected one of {', '.join(DECOMPOSED)} in all rows. "
            "Give the table of one call of pca."
        )
    table = table.sort_values(["layer", "pair", "side"])
    layers = [str(value) for value in table["layer"].unique()]
    start = start_of(layers, layer)
    pairs = _component_pairs(table, x, y)
    groups = _groups(table, colour, symbol)
    figure = go.Figure(_traces(groups, pairs, colour, symbol))
    changes = [_change(table, groups, pairs, int(value)) for value in layers]
    figure.update_layout(_axes(pairs), updatemenus=_menu(pairs, len(groups)))
    figure.update_layout(sliders=layer_slider(layers, changes, start))
    _apply(figure, changes[start])
    figure.update_layout(legend_title_text=escape(colour if symbol is None else f"{colour}, {symbol}"))
    count = counted([table["pair"].nunique()], "pair")
    subtitle = f"{count}; {DECOMPOSED[several[0]][0]}"
    return styled(figure, "Principal components of both sides", subtitle, height=560)


def _columns(x: int, y: int) -> list[str]:
    return [f"{name}{component}" for component in (x, y) for name in ("PC", "explained_")]


def _component_pairs(table: pd.DataFrame, x: int, y: int) -> list[tuple[int, int]]:
    """The pair asked for first, then the others of the first components."""
    known = [component for component in range(1, OFFERED + 1) if f"PC{component}" in table.columns]
    return [(x, y), *(pair for pair in combinations(known, 2) if set(pair) != {x, y})]


def _groups(table: pd.DataFrame, colour: str, symbol: str | None) -> list[dict[str, Any]]:
    """Each combination of colour and marker: its name, look, and rows."""
    colours = level_colours(levels(table[colour]))
    marks = levels(table[symbol]) if symbol and symbol != colour else [None]
    if len(marks) > len(SYMBOLS):
        raise ValueError(
            f"{symbol!r} has {len(marks)} values, at most {len(SYMBOLS)} markers can be told apart."
        )
    found = []
    for shade in colours:
        for mark, shape in zip(marks, SYMBOLS, strict=False):
            chosen = table[colour].map(level) == shade
            if mark is not None:
                chosen &= table[symbol].map(level) == mark
            name = escape(shade if mark is None else f"{shade}, {mark}")
            if chosen.any():
                found.append({"name": name, "colour": colours[shade], "shape": shape, "rows": table[chosen]})
    return found


def _traces(
    groups: list[dict[str, Any]], pairs: list[tuple[int, int]], colour: str, symbol: str | None
) -> list[go.Scatter]:
    """A trace a pair of components and group; the texts are there once a pair, not once a layer."""
    return [
        go.Scatter(
            mode="markers",
            name=group["name"],
            legendgroup=group["name"],
            marker={
                "color": group["colour"],
                "symbol": group["shape"],
                "size": 8,
                "opacity": 0.8,
                "line": {"width": 1, "color": "white" if "open" not in group["shape"] else group["colour"]},
            },
            hovertext=_texts(group["rows"], colour, symbol),
            hovertemplate=f"%{{hovertext}}<br>PC{across} %{{x:.3g}}, PC{up} %{{y:.3g}}<extra></extra>",
            xaxis=_axis("x", place),
            yaxis=_axis("y", place),
            visible=place == 0,
        )
        for place, (across, up) in enumerate(pairs)
        for group in groups
    ]


def _texts(rows: pd.DataFrame, colour: str, symbol: str | None) -> list[str]:
    """The hover of each prompt, in the order of pair and side that every layer has."""
    first = rows[rows["layer"] == rows["layer"].iloc[0]]
    shown = list(dict.fromkeys(["side", colour, *([symbol] if symbol else [])]))
    return [
        "<br>".join(
            [
                wrapped(prompt),
                f"<b>pair {row['pair']}</b>, "
                + escape(", ".join(f"{name}: {level(row[name])}" for name in shown)),
            ]
        )
        for prompt, row in zip(prompt_labels(first), first.to_dict("records"), strict=True)
    ]


def _axis(letter: str, place: int) -> str:
    return letter if place == 0 else f"{letter}{place + 1}"


def _change(
    table: pd.DataFrame, groups: list[dict[str, Any]], pairs: list[tuple[int, int]], layer: int
) -> list[dict[str, Any]]:
    """What the slider changes at one layer, for every pair of components, shown or not.

    Each pair of components has its own axes, so that the slider can write all their titles while the menu
    only decides which are seen: neither needs to know where the other stands.
    """
    at_layer = [group["rows"][group["rows"]["layer"] == layer] for group in groups]
    data = {
        letter: [rounded(rows[f"PC{pair[which]}"]) for pair in pairs for rows in at_layer]
        for which, letter in enumerate("xy")
    }
    explained = table[table["layer"] == layer].iloc[0]
    titles = {
        f"{_axis(letter + 'axis', place)}.title.text": _title(pair[which], explained)
        for place, pair in enumerate(pairs)
        for which, letter in enumerate("xy")
    }
    return [data, titles]


def _title(component: int, row: pd.Series) -> str:
    share = number(100 * row.get(f"explained_{component}", float("nan")))
    return f"PC{component} ({share}% of the {DECOMPOSED[row['decomposed']][1]})"


def _apply(figure: go.Figure, change: list[dict[str, Any]]) -> None:
    data, titles = change
    for place, trace in enumerate(figure.data):
        trace.update(x=data["x"][place], y=data["y"][place])
    figure.update_layout({name.replace(".", "_"): text for name, text in titles.items()})


def _axes(pairs: list[tuple[int, int]]) -> dict[str, Any]:
    """The axes of each pair lie on the same place; only those of the first are seen."""
    return {
        f"{_axis(letter + 'axis', place)}": {
            "visible": place == 0,
            "anchor": _axis("y" if letter == "x" else "x", place),
            "overlaying": letter if place else None,
            "zeroline": True,
        }
        for place in range(len(pairs))
        for letter in "xy"
    }


def _menu(pairs: list[tuple[int, int]], groups: int) -> list[dict[str, Any]]:
    """Shows the traces and axes of one pair of components, and touches no data."""
    if len(pairs) == 1:
        return []
    buttons = []
    for shown, (across, up) in enumerate(pairs):
        visible = [place == shown for place in range(len(pairs)) for _ in range(groups)]
        axes = {
            f"{_axis(letter + 'axis', place)}.visible": place == shown
            for place in range(len(pairs))
            for letter in "xy"
        }
        label = f"PC{across} / PC{up}"
        buttons.append({"label": label, "method": "update", "args": [{"visible": visible}, axes]})
    place = {"x": 1.01, "xanchor": "left", "y": 0, "yanchor": "bottom"}
    return [{"buttons": buttons, "active": 0, "showactive": True, "direction": "up", **place}]
