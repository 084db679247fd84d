"""Traces, axes and sliders that several figures share: curves, bands, control ranges, layers, multipliers."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import count, pairwise
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from .format import interval, layers_order, signed
from .panels import Panel, PanelGrid
from .style import AXIS, CONTROL, CONTROL_BAND, INK, Style, translucent

# At most this many layers may be evenly spaced where a step exceeds another by this factor.
FEW_LAYERS, UNEVEN = 8, 3
MAX_CONTROL_LINES = 5  # control vectors that get a line each
DASHED = {"color": INK, "width": 1, "dash": "dash"}  # reference lines
DOTTED = {"color": INK, "width": 1, "dash": "dot"}
MAX_LABELS, LABEL_LENGTH = 6, 20  # lines named at their ends, and characters of a name
LABEL_STEP, LABEL_CHARACTER, PLOT_HEIGHT = 15, 7, 290  # pixels; the last is that of one row of panels
X_MULTIPLIER = "multiplier (evenly spaced)"

Numbers = Iterable[float]
Row = dict[str, Any]
Hover = Callable[[Row], str]


# --- axes and sliders --------------------------------------------------------------------------------------


def layer_step(layers: Iterable[int], max_ticks: int = 10) -> int:
    """Distance of ticks so that there are about `max_ticks` at most: 1, 2, 5, 10, …"""
    span = max(layers) - min(layers)
    steps = (factor * 10**power for power in count() for factor in (1, 2, 5))
    return next(step for step in steps if span <= max_ticks * step)


def layer_ticks(layers: Iterable[int], max_ticks: int) -> list[int]:
    """Multiples of `layer_step` among the layers; if fewer than two, every k-th layer."""
    layers = sorted(layers)
    step = layer_step(layers, min(max_ticks, 10))
    multiples = [layer for layer in layers if layer % step == 0]
    return multiples if len(multiples) > 1 else layers[:: -(-len(layers) // max_ticks)]


def layer_positions(table: pd.DataFrame) -> dict[str, float]:
    """x-coordinate of each `layers` value: single layers at their index, layer sets appended after the last.

    A few unevenly spaced layers (17, 18, 19, 31) are placed at equal distances, to be legible.
    """
    names = sorted(filter(None, table["layers"].unique()), key=layers_order)
    singles = [int(name) for name in names if name.isdigit()]
    steps = [upper - lower for lower, upper in pairwise(singles)]
    if len(names) <= FEW_LAYERS and steps and max(steps) > UNEVEN * min(steps):
        return {name: float(rank) for rank, name in enumerate(names)}
    last = max(singles, default=0)
    gap = max(1.0, (last - min(singles, default=0)) / 4)  # wide enough for the names of sets
    sets = names[len(singles) :]
    positions = {str(layer): float(layer) for layer in singles}
    return positions | {name: last + gap * rank for rank, name in enumerate(sets, start=1)}


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
    return _named_ticks(ticks, [low - margin, high + margin])


def _named_ticks(ticks: Mapping[str, float], ends: list[float]) -> dict[str, object]:
    names, positions = list(ticks), list(ticks.values())
    return {"tickvals": positions, "ticktext": names, "range": ends, "zeroline": False}


def layer_range(layers: pd.Series) -> dict[str, object]:
    """The axis of a column `layer`: half a layer more on each side, whole layers as ticks."""
    ends = [layers.min() - 0.5, layers.max() + 0.5]
    return {"range": ends, "zeroline": False, "tick0": 0, "dtick": layer_step(layers)}


def multiplier_ranks(table: pd.DataFrame, *, caller: str) -> dict[float, int]:
    """x-coordinate of each multiplier of the steered conditions: evenly spaced, ascending."""
    multipliers = table.loc[table["operation"] != "none", "multiplier"].dropna()
    if multipliers.empty:
        raise ValueError(f"{caller}: no steered condition has a multiplier; a projection has none.")
    return {multiplier: rank for rank, multiplier in enumerate(sorted(multipliers.astype(float).unique()))}


def multiplier_axis(ranks: Mapping[float, int], *, opposite: bool = False) -> dict[str, object]:
    """The x axis of `multiplier_ranks`; `opposite` where each also represents its opposite ("±8")."""
    names = {f"±{each:g}" if opposite else signed(each): rank for each, rank in ranks.items()}
    return _named_ticks(names, [-0.5, len(ranks) - 0.5])


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


def selected_layers(available: Sequence[int], layers: Sequence[int]) -> list[int]:
    """The layers that a user selects of a table."""
    if not len(layers) or not set(layers) <= set(available):
        raise ValueError(f"layers={list(layers)}: expected one or more of {', '.join(map(str, available))}.")
    return [int(layer) for layer in layers]


def add_layer_slider(
    figure: go.Figure, layers: Iterable[int | str], changes: Sequence[list[Any]], layer: int | str | None
) -> None:
    """Add a slider over layers, and apply its first step: `layer`, by default the middle one.

    Args:
        changes: the arguments of `Plotly.update` of each step; a `None` leaves a trace's attribute as it is.

    Raises:
        ValueError: no such layer.
    """
    names = [str(each) for each in layers]
    if layer is not None and str(layer) not in names:
        raise ValueError(f"no layer {layer} in the table; it has {', '.join(names)}.")
    start = len(names) // 2 if layer is None else names.index(str(layer))
    steps = zip(names, changes, strict=True)
    slider = {
        "steps": [{"label": name, "method": "update", "args": change} for name, change in steps],
        "active": start,
        "currentvalue": {"prefix": "layer ", "font": {"size": 13}, "xanchor": "left"},
        "pad": {"t": 52, "b": 8},
        "len": 1,
        "x": 0,
        "minorticklen": 0,
        "tickcolor": AXIS,
        "font": {"size": 11},
    }
    figure.update_layout(sliders=[slider])
    data, layout = changes[start]
    for index, trace in enumerate(figure.data):
        trace.update({name: values[index] for name, values in data.items() if values[index] is not None})
    for path, value in layout.items():
        figure.layout[path] = value


# --- traces ------------------------------------------------------------------------------------------------


def curve(
    rows: pd.DataFrame,
    y: str,
    style: Style,
    hover: Hover | None = None,
    *,
    x: str = "x",
    mode: str = "lines+markers",
    width: float = 2,
    size: float | Sequence[float] = 6,
    whiskers: bool = False,
    **more: Any,
) -> go.Scatter:
    """A trace of a table's rows, in drawing order: a line, points, or both.

    Args:
        x, y: columns; a missing `x` interrupts the line.
        hover: text of a row; without it the trace has no hover.
        width, size: of line and markers, in pixels.
        whiskers: draw the intervals `{y}_low` and `{y}_high`.
    """
    trace = go.Scatter(x=rows[x], y=rows[y], mode=mode, name=style.name, hoverinfo="skip")
    if "lines" in mode:
        trace.line = {"color": style.colour, "width": width, "dash": style.dash}
    if "markers" in mode:
        trace.marker = {"color": style.colour, "size": size, "symbol": style.symbol}
    if whiskers:
        trace.error_y = error_bars(rows, y, style.colour)
    if hover:
        records = rows.to_dict("records")
        trace.hovertext = ["" if pd.isna(row[x]) else hover(row) for row in records]
        trace.hoverinfo = "text"
    return trace.update(more)


def label_panels(grid: PanelGrid, names: Iterable[str], noun: str) -> None:
    """Name the lines of one row of panels at the right edge, or give the legend a heading."""
    names, axis = set(names), "y" if grid.columns == 1 else f"y{grid.columns}"
    lines = [each for each in grid.figure.data if each.name in names and each.yaxis == axis]
    if grid.rows > 1 or not label_lines(grid.figure, lines, noun):
        grid.figure.update_layout(legend_title_text=noun)


def label_lines(figure: go.Figure, lines: Sequence[go.Scatter], noun: str = "") -> bool:
    """Name a few lines at their right ends, in their colours, instead of in the legend.

    Args:
        lines: traces of the figure, in the panel at its right edge. Many lines, or long names, stay in the
            legend.
        noun: written above the names.

    Returns:
        whether they are named.
    """
    names = [line.name for line in lines]
    ends = [next((y for y in reversed(line.y) if not pd.isna(y)), None) for line in lines]
    if not 1 < len(lines) <= MAX_LABELS or None in ends or max(map(len, names)) > LABEL_LENGTH:
        return False
    name = (lines[0].yaxis or "y").replace("y", "yaxis")
    drawn = [y for trace in figure.data for y in list(trace.y) if not pd.isna(y)]
    low, high = figure.layout[name].range or (min(drawn), max(drawn))
    scale, lowest = PLOT_HEIGHT / ((high - low) or 1.0), -math.inf
    at = {"x": 1, "xref": "paper", "xanchor": "left", "xshift": 4, "yref": lines[0].yaxis or "y"}
    labels = sorted(zip(ends, names, [line.line.color for line in lines], strict=True))
    for end, text, colour in [*labels, (labels[-1][0], noun, INK)]:
        lowest = max(lowest + LABEL_STEP, scale * (end - low))  # pixels
        shift = lowest - scale * (end - low)
        figure.add_annotation(y=end, yshift=shift, text=text, font_color=colour, showarrow=False, **at)
    figure.for_each_trace(lambda each: each.update(showlegend=False) if each.name in names else None)
    figure.update_layout(margin_r=12 + LABEL_CHARACTER * max(map(len, [noun, *names])))
    return True


def error_bars(rows: pd.DataFrame, value: str, colour: str, *, opacity: float = 0.55) -> dict[str, object]:
    """Interval whiskers for `error_x` or `error_y`."""
    return {
        "type": "data",
        "symmetric": False,
        # NaN, even at a gap, makes plotly.js lose the axis range.
        "array": (rows[f"{value}_high"] - rows[value]).fillna(0),
        "arrayminus": (rows[value] - rows[f"{value}_low"]).fillna(0),
        "thickness": 1.2,
        "width": 0,
        "color": translucent(colour, opacity),
    }


def with_gaps(rows: pd.DataFrame, positions: Mapping[str, float]) -> pd.DataFrame:
    """Insert an empty row where a line over layers is interrupted.

    That is before each layer set and, if single layers are not at their index, where layers are missing.
    """
    rows = rows.reset_index(drop=True)
    is_set = ~rows["layers"].str.isdigit()
    has_gap = is_set
    if not is_to_scale(positions):
        steps = rows.loc[~is_set, "layers"].astype(int).diff()
        has_gap = has_gap | (steps > UNEVEN * steps.min()).reindex(rows.index, fill_value=False)
    return rows.reindex(rows.index.union(rows.index[has_gap] - 0.5)).reset_index(drop=True)


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


def curve_with_band(
    rows: pd.DataFrame, value: str, style: Style, hover: Hover, *, opacity: float = 0.15, **more: Any
) -> list[go.Scatter]:
    """The interval of a value by layer as a band, and its curve; both in one legend entry."""
    rows = rows.sort_values("layer")
    shade = translucent(style.colour, opacity)
    around = band(rows["layer"], rows[f"{value}_low"], rows[f"{value}_high"], shade)
    around.update(legendgroup=style.name, name=style.name, showlegend=False)
    line = curve(rows, value, style, hover, x="layer", size=5, legendgroup=style.name, **more)
    return [around, line]


def layer_bands(
    ranges: pd.DataFrame, positions: Mapping[str, float], shade: str, **more: Any
) -> list[go.Scatter]:
    """Control ranges by layer: a band over single layers; a short one at layer sets and at a lone layer.

    Args:
        ranges: `null_low` and `null_high`, with `layers` as index.
        shade: opaque, so that the smaller of two bands covers the larger one.
    """
    ends = ranges[["null_low", "null_high"]].dropna().rename(index=dict(positions)).sort_index()
    sets = {position for name, position in positions.items() if not name.isdigit()}
    is_set = ends.index.isin(sets)
    if (~is_set).sum() == 1:
        is_set[:] = True
    singles = ends[~is_set]
    width = max(0.3, 0.03 * (max(positions.values()) - min(positions.values())))
    spans = [(list(singles.index), singles)] if len(singles) else []
    spans += [([x - width, x + width], ends.loc[[x] * 2]) for x in ends.index[is_set]]
    bands = [band(x, rows["null_low"], rows["null_high"], shade, **more) for x, rows in spans]
    return [each.update(line={"width": 1, "color": translucent(CONTROL, 0.6)}) for each in bands]


def rings(rows: pd.DataFrame, value: str) -> go.Scatter:
    """White dots, on the points of a line (column `x`) that lie between `null_low` and `null_high`."""
    inside = rows[rows[value].between(rows["null_low"], rows["null_high"])]
    return curve(inside, value, Style("", "white"), mode="markers", size=3, showlegend=False)


def unsteered_lines(panel: Panel, value: str, ends: Sequence[float]) -> list[go.Scatter]:
    """The unsteered value across a panel, from `ends[0]` to `ends[1]`, and the limits of its interval."""
    if panel.unsteered.empty:
        return []
    rows = panel.unsteered.iloc[[0, 0]].assign(x=ends)
    low, high = (rows[f"{value}{end}"].iloc[0] for end in ("_low", "_high"))
    text = f"unsteered: {interval(rows.iloc[0], value)}, n = {int(rows['n'].iloc[0])}"
    dashed = Style("unsteered", INK, "dash")
    line = curve(rows, value, dashed, lambda row: text, mode="lines", width=1.5)
    if low == high:  # a shift against itself
        return [line]
    # Not filled, to be distinct from the bands of controls.
    limits = pd.DataFrame({"x": [*ends, None, *ends], "y": [low, low, None, high, high]})
    dotted = Style("", translucent(INK, 0.55), "dot")
    return [curve(limits, "y", dotted, mode="lines", width=1, showlegend=False), line]


def control_lines(
    rows: pd.DataFrame, value: str, hover: Hover, *, by: Sequence[str] = (), opacity: float = 0.6
) -> Iterator[go.Scatter]:
    """A thin grey line per control vector, operation, layer and column of `by`, over a column `x`."""
    grey = Style("controls", translucent(CONTROL, 0.35))
    for _, line in rows.sort_values("x").groupby(["vector", "operation", "layers", *by]):
        trace = curve(line, value, grey, hover, width=1, size=3)
        yield trace.update(marker_color=translucent(CONTROL, opacity))


def control_marks(panel: Panel, value: str, ranks: Mapping[float, int], hover: Hover) -> list[go.Scatter]:
    """A panel's controls over multipliers: a line each, or of more than five vectors their range.

    The range is that of each |multiplier|, because a control direction has no sign.
    """
    controls = panel.controls.dropna(subset=["multiplier", value])
    controls = controls.assign(x=controls["multiplier"].map(ranks), size=controls["multiplier"].abs())
    if controls["vector"].nunique() <= MAX_CONTROL_LINES:
        return list(control_lines(controls, value, hover))
    of_size = controls.groupby("size")[value]
    controls = controls.assign(low=of_size.transform("min"), high=of_size.transform("max"))
    ends = controls.sort_values("x").drop_duplicates("x")
    return [band(ends["x"], ends["low"], ends["high"], CONTROL_BAND, name="controls")]


def colour_bar(title: str, **more: Any) -> dict[str, Any]:
    """The layout of a colour bar."""
    return {"title": {"text": title}, "thickness": 14, "outlinewidth": 0, **more}
