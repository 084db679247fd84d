"""Traces and axes that several figures share: curves, bands, control ranges, heat maps, layers, sliders."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from .axes import UNEVEN, is_to_scale, layer_steps
from .format import interval
from .panels import Panel
from .style import CONTROL, CONTROL_BAND, DIVERGING, INK, Style, colour_scale, translucent

MAX_CONTROL_LINES = 5  # control vectors that get a line each
DASHED = {"color": INK, "width": 1, "dash": "dash"}  # reference lines
DOTTED = {"color": INK, "width": 1, "dash": "dot"}

Numbers = Iterable[float | int]
Row = dict[str, Any]
Hover = Callable[[Row], str]


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
    singles = [layers for layers in rows["layers"] if layers.isdigit()]
    steps = layer_steps(singles)
    breaks = {
        upper
        for upper, step in zip(singles[1:], steps, strict=True)
        if step > UNEVEN * min(steps) and not is_to_scale(positions)
    }
    has_gap = [layers in breaks or not layers.isdigit() for layers in rows["layers"]]
    return rows.reindex(rows.index.union(rows.index[has_gap] - 0.5)).reset_index(drop=True)


def x_offsets(names: Iterable[str], width: float) -> dict[str, float]:
    """Shifts of lines along the x axis, `width` apart, so that their whiskers do not overlap."""
    names = list(dict.fromkeys(names))
    return {name: width * (rank - (len(names) - 1) / 2) for rank, name in enumerate(names)}


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
    around = band(
        rows["layer"], rows[f"{value}_low"], rows[f"{value}_high"], translucent(style.colour, opacity)
    )
    around.update(legendgroup=style.name, name=style.name, showlegend=False)
    line = curve(rows, value, style, hover, x="layer", size=5, legendgroup=style.name, **more)
    return [around, line]


def layer_bands(
    ranges: pd.DataFrame, positions: Mapping[str, float], shade: str, **more: Any
) -> list[go.Scatter]:
    """Control ranges by layer: a band over single layers, a short one at each layer set.

    Args:
        ranges: `null_low` and `null_high`, with `layers` as index.
        positions: x-coordinates of `layers`.
        shade: opaque, so that the smaller of two bands covers the larger one.

    A layer without neighbours gets a short band too.
    """
    ends = ranges[["null_low", "null_high"]].dropna().rename(index=dict(positions)).sort_index()
    sets = {position for name, position in positions.items() if not name.isdigit()}
    isolated = [position for position in ends.index if position in sets]
    singles = ends.drop(isolated)
    if len(singles) == 1:
        isolated, singles = [*singles.index, *isolated], singles.iloc[:0]
    width = max(0.3, 0.03 * (max(positions.values()) - min(positions.values())))
    spans = [(list(singles.index), singles)] if len(singles) else []
    spans += [([position - width, position + width], ends.loc[[position] * 2]) for position in isolated]
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


def control_marks(panel: Panel, value: str, ranks: Mapping[float, int], hover: Hover) -> Iterator[go.Scatter]:
    """A panel's controls over multipliers: a line each, or of more than five vectors their range.

    The range is that of each |multiplier|, because a control direction has no sign.
    """
    controls = panel.controls.dropna(subset=["multiplier", value]).sort_values("multiplier")
    controls = controls.assign(x=controls["multiplier"].map(ranks))
    if controls["vector"].nunique() <= MAX_CONTROL_LINES:
        yield from control_lines(controls, value, hover)
        return
    positions = controls.drop_duplicates("multiplier").set_index("multiplier")["x"]
    ranges = controls.groupby(controls["multiplier"].abs())[value].agg(["min", "max"])
    ranges = ranges.loc[positions.index.to_series().abs()]
    yield band(positions, ranges["min"], ranges["max"], CONTROL_BAND, name="controls")


def row_grid(rows: pd.DataFrame, row_keys: pd.Series, column_keys: pd.Series, shape: tuple) -> list[list]:
    """The table's rows as a grid of dicts, or `None`; `shape`: the keys of its rows, and of its columns."""
    records = zip(row_keys, column_keys, rows.to_dict("records"), strict=True)
    cells = {(row_key, column_key): record for row_key, column_key, record in records}
    return [[cells.get((row_key, column_key)) for column_key in shape[1]] for row_key in shape[0]]


def on_grid(grid: list[list], function: Callable[[Row], Any], missing: Any = "") -> list[list]:
    """A function of every cell of a grid of `row_grid`."""
    return [[missing if cell is None else function(cell) for cell in line] for line in grid]


def heat_map(grid: list[list], value: str, hover: Hover, **more: Any) -> go.Heatmap:
    """A heat map of a grid of `row_grid`; `more` has the axes, colours and texts."""
    return go.Heatmap(
        z=on_grid(grid, lambda row: None if pd.isna(row[value]) else row[value], missing=None),
        hovertext=on_grid(grid, hover),
        **{"hovertemplate": "%{hovertext}<extra></extra>", "hoverongaps": False, "xgap": 1, "ygap": 1} | more,
    )


def colour_bar(title: str, **more: Any) -> dict[str, Any]:
    """The layout of a colour bar."""
    return {"title": {"text": title}, "thickness": 14, "outlinewidth": 0, **more}


def correlation_scale(title: str) -> dict[str, Any]:
    """A diverging colour scale from −1 to 1, for the arguments of a heat map."""
    return {"zmin": -1, "zmax": 1, "colorscale": colour_scale(DIVERGING), "colorbar": colour_bar(title)}


def rounded(values: Iterable[float | None]) -> list[float | None]:
    """Five significant digits, to keep figures with many layers small; `None` for missing values."""
    return [None if pd.isna(value) else float(f"{value:.5g}") for value in values]
