"""Effects of a sweep by steered layer (`effectiveness`) and by dose (`dose_response`)."""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Literal

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from .._util.validation import checked
from .axes import is_to_scale, layer_axis, layer_positions
from .format import axis_title, capitalized, controls_text, counted, escape, short_label
from .marks import band, colour_bar, curve, layer_bands, rings, unsteered_lines, with_gaps, x_offsets
from .panels import (
    Panel,
    PanelGrid,
    condition_hover,
    control_ranges,
    effects_table,
    layer_styles,
    multiplier_lines,
    panels_of,
    rows_at,
    with_control_ranges,
)
from .style import CONTROL_BAND, SEQUENTIAL, colour_scale, control_greys, operation_name, styled

Value = Literal["accuracy", "signal_rate", "logit_difference", "shift"]
RANGES = {"accuracy": (-0.02, 1.02), "signal_rate": (-0.02, 1.02)}
MAX_LEGEND = 10  # more lines get a colour bar instead of a legend


@checked
def effectiveness(table: pd.DataFrame, *, value: Value = "accuracy", facet: str | None = None) -> go.Figure:
    """A value by steered layer, a line per multiplier, with 95% intervals.

    Args:
        table: from `evaluation.effectiveness`.
        value: "shift" is the change of the logit difference on the same prompts.
        facet: a factor by which the table is split; a panel for each of its values, on common axes.

    Raises:
        ValueError: another table, or rows that share a condition.

    The grey bands are the range of the controls at a layer, one band per |multiplier|, because a control
    direction has no sign. A point within the band of its own |multiplier| is a ring.
    """
    table = effects_table(table, "effectiveness", value, facet)
    panels = panels_of(table, facet, caller="plots.effectiveness")
    positions = layer_positions(table)
    titles = [panel.title for panel in panels]
    y_title, y_range = axis_title(value), RANGES.get(value)
    grid = PanelGrid(titles, x_title="steered layer", y_title=y_title, y_range=y_range)
    ranges = [control_ranges(panel, value) for panel in panels]
    for rank, (index, trace) in enumerate(_control_bands(ranges, positions)):
        grid.add(index, trace, trace.name, rank=900 + rank)
    ends = [min(positions.values()) - 0.4, max(positions.values()) + 0.4]
    for index, panel in enumerate(panels):
        for trace in unsteered_lines(panel, value, ends):
            grid.add(index, trace, "unsteered", rank=800)
    lines = list(multiplier_lines(panels))
    names = dict.fromkeys(style.name for _, style, _ in lines)
    offsets = x_offsets(names, 0.0 if is_to_scale(positions) else min(0.08, 0.5 / len(names)))
    for index, style, rows in lines:
        rows = with_control_ranges(rows, ranges[index])
        rows = rows.assign(x=rows["layers"].map(positions) + offsets[style.name]).sort_values("x")
        hover = partial(condition_hover, value=value)
        line = curve(with_gaps(rows, positions), value, style, hover, whiskers=True)
        for trace in (line, rings(rows, value)):
            grid.add(index, trace, style.name, rank=style.rank)
    grid.figure.update_xaxes(**layer_axis(positions, grid.columns))
    grid.figure.update_layout(legend_title_text="multiplier")
    title = f"{capitalized(short_label(value))} by steered layer"
    band_text = ", one band per |multiplier|; ring: within its own" if table["control"].any() else ""
    return styled(grid.figure, title, f"{sweep_subtitle(table)}{band_text}", height=grid.height)


def sweep_subtitle(table: pd.DataFrame) -> str:
    """The number of prompts and of control vectors, and what the whiskers are."""
    return f"{counted(table['n'], 'prompt')} per point; whiskers: 95% intervals{controls_text(table)}"


def _control_bands(
    ranges: Sequence[pd.DataFrame], positions: dict[str, float]
) -> Iterator[tuple[int, go.Scatter]]:
    """Panel index and trace of each band; those of the largest |multiplier| first, to be drawn below."""
    groups = pd.concat(ranges)[["operation", "size"]].drop_duplicates()
    has_several = groups.dropna()["operation"].nunique() > 1
    greys = control_greys(groups["size"].dropna())
    for operation, size in groups.sort_values("size", ascending=False, na_position="first").to_numpy():
        name = operation_name(operation)
        if not pd.isna(size):
            name = f"{escape(operation)} ±{size:g}" if has_several else f"±{size:g}"
        for index, panel_ranges in enumerate(ranges):
            rows = panel_ranges.merge(pd.DataFrame({"operation": [operation], "size": [size]}))
            colour = greys.get(size, CONTROL_BAND)
            traces = layer_bands(rows.set_index("layers"), positions, colour, name=f"controls, {name}")
            for trace in traces:
                yield index, trace


@checked
def dose_response(
    table: pd.DataFrame,
    *,
    value: Value = "shift",
    facet: str | None = None,
    x: Literal["dose", "multiplier"] | None = None,
) -> go.Figure:
    """A value by signed dose, a line per layer, with 95% intervals.

    Args:
        table: from `evaluation.effectiveness`.
        value: "shift" is the change of the logit difference on the same prompts.
        facet: a factor by which the table is split; a panel for each of its values, on common axes. A vector
            that changes a bias moves all panels the same way.
        x: by default "dose" if any steered condition has one. Multipliers are not comparable across layers.

    Raises:
        ValueError: another table, an unknown value or x, or rows that share a condition.

    The grey band is the range of the controls of any layer at a dose or its opposite, because a control
    direction has no sign. A point within the range of its own layer and |multiplier| is a ring. Operations
    without a multiplier (`project_out`) have no dose and are left out.
    """
    table = effects_table(table, "dose_response", value, facet, producer="effectiveness")
    table = table.reset_index(drop=True)
    positions, x = _signed_doses(table, x)
    table = table[positions.notna()]
    panels = panels_of(table, facet, caller="plots.dose_response")
    x_title = f"{axis_title(x)}{', signed' if x == 'dose' else ''}"
    titles = [panel.title for panel in panels]
    grid = PanelGrid(titles, x_title=x_title, y_title=axis_title(value), y_range=RANGES.get(value))
    styles = layer_styles(panels, max_legend=MAX_LEGEND)
    has_bar = len(styles) > MAX_LEGEND
    for index, panel in enumerate(panels):
        parts = (panel.steered, panel.controls, panel.unsteered)
        panel = Panel(panel.title, *(rows.assign(x=positions.loc[rows.index]) for rows in parts))
        ranges = control_ranges(panel, value)
        for trace in _dose_bands(panel, ranges, value):
            grid.add(index, trace, "controls", rank=900)
        steered = with_control_ranges(panel.steered, ranges)
        for (layers, operation), style in styles.items():
            rows = rows_at(steered, layers, operation)
            path = pd.concat([rows, panel.unsteered]).sort_values("x")
            width, size = (1.2, 4) if has_bar else (2, 6)
            hover = partial(condition_hover, value=value)
            line = curve(path, value, style, hover, width=width, size=size, whiskers=True)
            line.update(showlegend=not (has_bar and layers.isdigit()), marker_symbol="circle")
            for trace in (line, rings(rows, value)):
                grid.add(index, trace, style.name)
    if has_bar:
        grid.figure.add_trace(_layer_bar([int(layers) for layers, _ in styles if layers.isdigit()]))
    else:
        grid.figure.update_layout(legend_title_text="layer")
    grid.figure.update_xaxes(zeroline=True)
    ring_text = " at any layer; ring: within its own layer's" if table["control"].any() else ""
    title, subtitle = f"{capitalized(short_label(value))} by {x}", f"{sweep_subtitle(table)}{ring_text}"
    return styled(grid.figure, title, subtitle, height=grid.height)


def _signed_doses(table: pd.DataFrame, x: str | None) -> tuple[pd.Series, str]:
    """Each row's x-coordinate, NaN without one, and which axis it is on.

    Raises:
        ValueError: no steered row has a coordinate.
    """
    steered = table["operation"] != "none"
    multiplier, dose = table["multiplier"], table["dose"]
    if x is None:
        x = "dose" if dose[steered & multiplier.notna()].notna().any() else "multiplier"
    positions = multiplier if x == "multiplier" else dose * np.sign(multiplier)
    if positions[steered].isna().all():
        raise ValueError(
            f"plots.dose_response: no steered row has a {x}; operations without a multiplier have none."
        )
    return positions, x


def _dose_bands(panel: Panel, ranges: pd.DataFrame, value: str) -> Iterator[go.Scatter]:
    """A band per layer from the most negative dose to the most positive; all of one opaque grey, as one."""
    unsteered = panel.unsteered.assign(null_low=panel.unsteered[value], null_high=panel.unsteered[value])
    controls = with_control_ranges(panel.controls, ranges)
    for _, rows in controls.groupby(["operation", "layers"]):
        both = pd.concat([rows, rows.assign(x=-rows["x"]), unsteered])[["x", "null_low", "null_high"]]
        both = both.dropna().drop_duplicates("x").sort_values("x")
        yield band(both["x"], both["null_low"], both["null_high"], CONTROL_BAND, name="controls")


def _layer_bar(layers: list[int]) -> go.Scatter:
    """A trace without points that carries the colour bar of layers."""
    marker = {
        "color": [min(layers)],
        "cmin": min(layers),
        "cmax": max(layers),
        "colorscale": colour_scale(SEQUENTIAL),
        "colorbar": colour_bar("layer", x=1.02, y=0, yanchor="bottom", len=0.78),
    }
    hidden = {"showlegend": False, "hoverinfo": "skip"}
    return go.Scatter(x=[None], y=[None], mode="markers", marker=marker, **hidden)
