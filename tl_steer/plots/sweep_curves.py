"""Effects of a sweep by layer, by dose and by multiplier: a line per multiplier, or per layer."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Literal

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from .._util.validation import checked
from .format import axis_title, capitalized, controls_text, counted, escape, short_label
from .marks import (
    X_MULTIPLIER,
    Hover,
    band,
    colour_bar,
    control_lines,
    control_marks,
    curve,
    is_to_scale,
    label_panels,
    layer_axis,
    layer_bands,
    layer_positions,
    log_axis,
    multiplier_axis,
    multiplier_ranks,
    rings,
    unsteered_lines,
    with_gaps,
)
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
from .style import (
    CONTROL_BAND,
    SEQUENTIAL,
    Style,
    colour_scale,
    control_greys,
    operation_name,
    styled,
    x_offsets,
)

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

    The grey bands are the range of the controls at a layer, one band per |multiplier|, because a control
    direction has no sign. A point within the band of its own |multiplier| is a ring.
    """
    table = effects_table(table, "effectiveness", value, facet)
    panels = panels_of(table, facet, caller="plots.effectiveness")
    positions = layer_positions(table)
    titles, y_title = [panel.title for panel in panels], axis_title(value)
    grid = PanelGrid(titles, x_title="steered layer", y_title=y_title, y_range=RANGES.get(value))
    ranges = [control_ranges(panel, value) for panel in panels]
    for rank, (index, trace) in enumerate(_control_bands(ranges, positions)):
        grid.add(index, [trace], rank=900 + rank)
    ends = [min(positions.values()) - 0.4, max(positions.values()) + 0.4]
    for index, panel in enumerate(panels):
        grid.add(index, unsteered_lines(panel, value, ends), "unsteered", rank=800)
    lines = list(multiplier_lines(panels))
    names = dict.fromkeys(style.name for _, style, _ in lines)
    offsets = x_offsets(names, 0.0 if is_to_scale(positions) else min(0.08, 0.5 / len(names)))
    for index, style, rows in lines:
        rows = with_control_ranges(rows, ranges[index])
        rows = rows.assign(x=rows["layers"].map(positions) + offsets[style.name]).sort_values("x")
        hover = partial(condition_hover, value=value)
        line = curve(with_gaps(rows, positions), value, style, hover, whiskers=True)
        grid.add(index, [line, rings(rows, value)], style.name, rank=style.rank)
    grid.figure.update_xaxes(**layer_axis(positions, grid.columns))
    label_panels(grid, names, "multiplier")
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
            bands = layer_bands(rows.set_index("layers"), positions, colour, name=f"controls, {name}")
            yield from ((index, each) for each in bands)


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
    titles, y_title = [panel.title for panel in panels], axis_title(value)
    grid = PanelGrid(titles, x_title=x_title, y_title=y_title, y_range=RANGES.get(value))
    styles = layer_styles(panels, max_legend=MAX_LEGEND)
    has_bar = len(styles) > MAX_LEGEND
    for index, panel in enumerate(panels):
        parts = (panel.steered, panel.controls, panel.unsteered)
        panel = Panel(panel.title, *(rows.assign(x=positions.loc[rows.index]) for rows in parts))
        ranges = control_ranges(panel, value)
        grid.add(index, _dose_bands(panel, ranges, value), rank=900)
        steered = with_control_ranges(panel.steered, ranges)
        for (layers, operation), style in styles.items():
            rows = rows_at(steered, layers, operation)
            path = pd.concat([rows, panel.unsteered]).sort_values("x")
            width, size = (1.2, 4) if has_bar else (2, 6)
            hover = partial(condition_hover, value=value)
            line = curve(path, value, style, hover, width=width, size=size, whiskers=True)
            line.update(showlegend=not (has_bar and layers.isdigit()), marker_symbol="circle")
            grid.add(index, [line, rings(rows, value)], style.name)
    if has_bar:
        grid.figure.add_trace(_layer_bar([int(layers) for layers, _ in styles if layers.isdigit()]))
    else:
        label_panels(grid, [style.name for style in styles.values()], "layer")
    grid.figure.update_xaxes(zeroline=True)
    ring_text = " at any layer; ring: within its own layer's" if table["control"].any() else ""
    title, subtitle = f"{capitalized(short_label(value))} by {x}", f"{sweep_subtitle(table)}{ring_text}"
    return styled(grid.figure, title, subtitle, height=grid.height)


def _signed_doses(table: pd.DataFrame, x: str | None) -> tuple[pd.Series, str]:
    """Each row's x-coordinate, NaN without one, and which axis it is on."""
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


@checked
def damage(
    table: pd.DataFrame,
    *,
    value: Literal[
        "kl", "loss_change", "loss", "words", "distinct_1", "distinct_2", "distinct_3", "unreadable"
    ] = "kl",
) -> go.Figure:
    """Damage by |dose|, on a logarithmic axis, a line per layer, with 95% intervals.

    Args:
        table: from `evaluation.mean_damage`, not split by a factor.
        value: "kl" (also on a logarithmic axis) and the losses are of neutral text, the others of texts.

    Solid lines add the vector, dotted ones subtract it; grey lines are random directions of the same length.
    Operations without a multiplier have no dose and are left out.
    """
    table = effects_table(table, "damage", value, None, producer="mean_damage")
    doses = table.loc[table["dose"] > 0, "dose"]
    if doses.empty:
        raise ValueError(
            "plots.damage: no condition has a dose above 0; operations without a multiplier have none."
        )
    is_drawable = (table["dose"] > 0) & ((table["kl"] > 0) if value == "kl" else table[value].notna())
    panels = panels_of(table[is_drawable | (table["operation"] == "none")], None, caller="plots.damage")
    grid = PanelGrid([panel.title for panel in panels], x_title=axis_title("dose"), y_title=axis_title(value))
    styles, text = layer_styles(panels), partial(condition_hover, value=value)
    for index, panel in enumerate(panels):
        if value != "kl":
            ends = [doses.min(), doses.max()]
            grid.add(index, unsteered_lines(panel, value, ends), "unsteered", rank=800)
        controls = panel.controls.assign(x=panel.controls["dose"], is_added=panel.controls["multiplier"] > 0)
        grid.add(index, control_lines(controls, value, text, by=["is_added"], opacity=0.5), rank=900)
        for key, style in styles.items():
            rows = rows_at(panel.steered, *key).sort_values("dose")
            grid.add(index, _added_and_subtracted(rows, value, style), style.name)
    grid.figure.update_xaxes(**log_axis(doses))
    if value == "kl":
        grid.figure.update_yaxes(**log_axis(table.loc[table["kl"] > 0, "kl"]))
    grid.figure.update_layout(legend_title_text="layer")
    per_point = f"{counted(table['n'], 'passage' if value in ('kl', 'loss_change') else 'text')} per point"
    subtitle = f"{per_point}; solid: added, dotted: subtracted; 95% intervals{controls_text(table)}"
    title = f"{capitalized(short_label(value))} by dose"
    return styled(grid.figure, title, subtitle, height=grid.height)


def _added_and_subtracted(rows: pd.DataFrame, value: str, style: Style) -> Iterator[go.Scatter]:
    """A solid line of positive multipliers and a dotted one of negative ones, where there are any."""
    text = partial(condition_hover, value=value)
    for sign, dash, symbol in ((1, "solid", "circle"), (-1, "dot", "circle-open")):
        side = rows[np.sign(rows["multiplier"]) == sign]
        if len(side):
            line = replace(style, dash=dash, symbol=symbol)
            yield curve(side, value, line, text, x="dose", whiskers=True)


@checked
def embedding_scores(
    table: pd.DataFrame, *, value: Literal["shift", "score"] = "shift", facet: str | None = None
) -> go.Figure:
    """Embedding score by multiplier, a line per layer, with 95% intervals, next to the unsteered texts.

    Args:
        table: from `evaluation.embedding_effect`.
        value: "shift" is the change on the same prompts.
        facet: a factor by which the table is split; a panel for each of its values, on common axes.

    Operations without a multiplier (`project_out`) are left out.
    """
    caller = "plots.embedding_scores"
    table = effects_table(table, "embedding_scores", value, facet, producer="embedding_effect")
    ranks = multiplier_ranks(table, caller=caller)
    panels = panels_of(table, facet, caller=caller)
    y_title = axis_title(value, "embedding_effect")
    grid = PanelGrid([panel.title for panel in panels], x_title=X_MULTIPLIER, y_title=y_title)
    text = partial(condition_hover, value=value, label=short_label(value, "embedding_effect"))
    for index, panel in enumerate(panels):
        ends = [-0.5, len(ranks) - 0.5]
        grid.add(index, unsteered_lines(panel, value, ends), "unsteered", rank=800)
        grid.add(index, control_marks(panel, value, ranks, text), rank=900)
        grid.add(index, layer_lines(panels, panel, value, ranks, text))
    grid.figure.update_xaxes(**multiplier_axis(ranks))
    grid.figure.update_layout(legend_title_text="layer")
    quantity = {"shift": "Shift towards", "score": "Nearness to"}[value]
    heading = f"{quantity} the positive exemplars"
    return styled(grid.figure, heading, sweep_subtitle(table), height=grid.height)


def layer_lines(
    panels: Sequence[Panel], panel: Panel, value: str, ranks: Mapping[float, int], hover: Hover
) -> Iterator[go.Scatter]:
    """One panel's line over multipliers of each layer, or layer set, and operation of any of the panels."""
    scaled = [replace(each, steered=each.steered.dropna(subset="multiplier")) for each in panels]
    for (layers, operation), style in layer_styles(scaled).items():
        rows = rows_at(panel.steered, layers, operation).sort_values("multiplier")
        rows = rows.assign(x=rows["multiplier"].map(ranks) + style.offset)
        yield curve(rows, value, style, hover, width=1.5, size=7, whiskers=True)
