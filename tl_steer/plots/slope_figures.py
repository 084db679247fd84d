"""Steerability by layer, and the distribution of the prompts' slopes that it summarises."""

from functools import partial
from typing import Any, Literal

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from jaxtyping import Float

from .._util.validation import checked
from .format import (
    axis_title,
    controls_text,
    counted,
    escape,
    hover,
    interval,
    layers_order,
    number,
    prompt_labels,
    rounded,
    wrapped,
)
from .histograms import bar_heights, bar_style, facet_panels, panels_with_strips, round_edges, strip
from .marks import DASHED, add_layer_slider, curve, layer_axis, layer_bands, layer_positions, rings, with_gaps
from .panels import Panel, PanelGrid, facet_parts, figure_table, panels_of, with_ends
from .style import CONTROL, Style, level_colours, styled, translucent, x_offsets

LINE = ("vector", "control", "operation", "hook", "layers")
TARGETS = {"signal": "the signal", "answer": "the right answer"}
STEERABILITY_TITLES = {
    "slope": "How far a unit of multiplier moves the answers toward {target}",
    "slope_per_dose": "How far a unit of dose moves the answers toward {target}",
    "anti_steerable": "How many answers are moved away from {target}",
}
HOVER_LABELS = {"slope": "slope", "slope_per_dose": "per dose", "anti_steerable": "wrong way"}
SLOPES = ("prompt_id", "prompt", "multipliers", "slope", "r_squared", "slope_per_dose")
CONTROLS = "controls"


@checked
def steerability(
    table: pd.DataFrame,
    *,
    value: Literal["slope", "slope_per_dose", "anti_steerable"] = "slope",
    facet: str | None = None,
) -> go.Figure:
    """A value by steered layer, a line per vector, with 95% intervals, over the range of the controls.

    Args:
        table: from `evaluation.steerability`.
        value: "slope_per_dose" is comparable across layers and vectors; "anti_steerable" is the share of
            prompts whose slope is negative.
        facet: a factor by which the table is split; a panel for each of its values, on common axes.

    A control's sign is arbitrary, so the grey band is symmetric: up to the largest |mean slope| of a control,
    or, for "anti_steerable", over the shares p and 1 − p of all controls. A point within it is a ring.
    """
    table = _steerability_table(table, value, facet).reset_index(drop=True)
    positions = layer_positions(table[table["layers"] != ""])
    caller = "plots.steerability"
    parts = facet_parts(table.assign(multiplier=np.nan, dose=np.nan), facet)
    panels = {title: panels_of(rows, None, caller=caller) for title, rows in parts.items()}
    names = _line_names(table).map(escape)
    colours = level_colours(dict.fromkeys(names[~table["control"]]))
    grid = PanelGrid(list(panels), x_title="steered layer", y_title=axis_title(value))
    width = 0.004 * (max(positions.values()) - min(positions.values()) + 1)
    offsets = x_offsets(colours, width)
    for index, parts in enumerate(panels.values()):
        for part, is_shared in _control_owners(parts):
            outline = CONTROL if is_shared else colours[names[part.steered.index[0]]]
            ranges, grey = _signless_ranges(part.controls, value), translucent(CONTROL, 0.25)
            bands = layer_bands(ranges, positions, grey, name="controls, ±")
            bands = [each.update(line_color=translucent(outline, 0.6)) for each in bands]
            grid.add(index, bands, "controls", rank=900)
    for index, parts in enumerate(panels.values()):
        for part in parts:
            ranges = _signless_ranges(part.controls, value)
            for name, rows in part.steered.groupby(names, sort=False):
                rows = rows.join(ranges, on="layers")
                rows = rows.assign(x=rows["layers"].map(positions) + offsets[name]).sort_values("x")
                text, style = partial(_steerability_hover, value=value), Style(name, colours[name])
                line = curve(with_gaps(rows, positions), value, style, text, whiskers=True)
                grid.add(index, [line, rings(rows, value)], name)
    is_share = value == "anti_steerable"
    grid.figure.add_hline(y=0.5 if is_share else 0.0, layer="below", line=DASHED)
    grid.figure.update_xaxes(**layer_axis(positions, grid.columns))
    if is_share:
        grid.figure.update_yaxes(range=(-0.02, 1.02), autorange=False)
    grid.figure.update_layout(legend_title_text="vector")
    title = STEERABILITY_TITLES[value].format(target=_target(table, caller=caller))
    grey = f"{controls_text(table)}{', either sign' if table['control'].any() else ''}"
    subtitle = f"{counted(table['n'], 'prompt')} per point; whiskers: 95% intervals{grey}"
    return styled(grid.figure, title, subtitle, height=grid.height)


def _steerability_table(table: pd.DataFrame, value: str, facet: str | None) -> pd.DataFrame:
    caller = "plots.steerability"
    columns = [*LINE, "toward", "n", *with_ends(*STEERABILITY_TITLES), "spread", "r_squared"]
    table = figure_table(table, "steerability", *columns, factors=[facet])
    if table.loc[~table["control"], value].isna().all():
        raise ValueError(f"{caller}: {value} is NaN in every row; some operations have no dose.")
    if table.duplicated([*LINE, *([facet] if facet else [])]).any():
        raise ValueError(
            f"{caller}: rows share their vector, operation, hook and layers: give facet=… if the table is "
            "split by a factor, or select one value of it."
        )
    return table if facet is None else table[table.groupby(facet, dropna=False)[value].transform("count") > 0]


def _target(table: pd.DataFrame, *, caller: str) -> str:
    """What the slopes are toward, for a sentence."""
    toward = table["toward"].unique().tolist()
    if len(toward) != 1 or toward[0] not in TARGETS:
        raise ValueError(
            f"{caller}: the column 'toward' must be one of {', '.join(TARGETS)}, the same in every row; it "
            f"has {toward!r:.60}."
        )
    return TARGETS[toward[0]]


def _line_names(table: pd.DataFrame) -> pd.Series:
    """The vector, and operation and hook where there are several."""
    steered = table[~table["control"]]
    columns = ["vector", *(name for name in ("operation", "hook") if steered[name].nunique() > 1)]
    return table[columns].agg(", ".join, axis=1)


def _control_owners(parts: list[Panel]) -> list[tuple[Panel, bool]]:
    """A panel for each set of control vectors, and whether it is the only set."""
    first = {tuple(sorted(part.controls["vector"].unique())): part for part in reversed(parts)}
    return [(part, len(first) == 1) for part in first.values() if len(part.controls)]


def _signless_ranges(controls: pd.DataFrame, value: str) -> pd.DataFrame:
    """The range of controls of either sign at each layer."""
    opposite = 1 - controls[value] if value == "anti_steerable" else -controls[value]
    both = pd.concat([controls[value], opposite]).groupby(pd.concat([controls["layers"]] * 2))
    return both.agg(null_low="min", null_high="max")


def _steerability_hover(row: dict[str, Any], value: str) -> str:
    null = f"controls' {HOVER_LABELS[value]} {number(row['null_low'])} to {number(row['null_high'])}"
    return hover(
        f"<b>layer {escape(row['layers'])}, {escape(row['operation'])}</b>",
        escape(f"{row['vector']}, {row['hook']}, n = {int(row['n'])}"),
        *(f"{label} {interval(row, name)}" for name, label in HOVER_LABELS.items()),
        f"spread of slopes {number(row['spread'])}, median r² {number(row['r_squared'])}",
        "" if pd.isna(row["null_low"]) else null,
    )


@checked
def prompt_slopes(
    table: pd.DataFrame,
    *,
    value: Literal["slope", "slope_per_dose"] = "slope",
    layer: int | str | None = None,
    facet: str | None = None,
) -> go.Figure:
    """Histograms of the prompts' slopes, controls in grey, with a slider over layers.

    Args:
        table: from `evaluation.prompt_slopes`.
        value: of the histograms.
        layer: the layer, or layer set such as "17+31", shown at first; by default the middle one.
        facet: a factor of the prompts; a panel for each of its values, on common axes.

    The text above each panel says how many prompts move the wrong way: left of the line at 0. Bars are
    shares, because there are more controls than vectors. The strip below has a line per prompt, with its text
    in the hover.
    """
    table = figure_table(table, "prompt_slopes", *LINE, "toward", *SLOPES, factors=[facet])
    table = table.sort_values("prompt_id", kind="stable", ignore_index=True)
    groups = _slope_groups(table)
    panels = facet_panels(table, facet)
    panels = {title: rows.assign(group=groups[rows.index]) for title, rows in panels.items()}
    layers = sorted(table["layers"].unique(), key=layers_order)
    colours = level_colours(groups[groups != CONTROLS].unique())
    has_controls = bool((groups == CONTROLS).any())
    shades = {CONTROLS: CONTROL, **colours} if has_controls else colours  # drawn below the vectors
    figure = _slope_panels(list(panels), len(colours))
    for column, rows in enumerate(panels.values(), start=1):
        for name, colour in shades.items():
            figure.add_trace(_bars(name, colour, is_first=column == 1), row=1, col=column)
        for name, colour in colours.items():
            first = rows[rows["group"] == name].drop_duplicates("prompt_id")
            texts = [wrapped(prompt) for prompt in prompt_labels(first)]
            points = strip(colour, texts, "<b>slope %{x:.4g}</b>, r² %{customdata:.2f}")
            figure.add_trace(points, row=2, col=column)
    changes = [_layer_change(panels, list(shades), list(colours), value, each) for each in layers]
    add_layer_slider(figure, layers, changes, layer)
    figure.add_vline(x=0, line=DASHED)
    figure.update_xaxes(title_text=axis_title(value, "prompt_slopes"), row=2)
    figure.update_layout(barmode="overlay", bargap=0, legend_title_text="vector")
    figure.update_layout(margin_t=8 + 16 * (1 + len(shades) + (facet is not None)))
    target, points = _target(table, caller="plots.prompt_slopes"), counted(table["multipliers"], "multiplier")
    prompts = counted([table["prompt_id"].nunique()], "prompt")
    subtitle = f"{prompts}, each a line over {points}; positive: toward {target}{controls_text(table)}"
    return styled(figure, "How far each prompt is moved", subtitle, height=560)


def _slope_panels(titles: list[str], n_vectors: int) -> go.Figure:
    figure = panels_with_strips([title or " " for title in titles], n_vectors, strip_height=0.14)
    figure.update_xaxes(zeroline=False)
    figure.update_annotations(font_size=12)
    figure.update_yaxes(title_text="share of prompts", row=1, col=1)
    return figure.update_yaxes(tickformat=".0%", rangemode="tozero", row=1)


def _slope_groups(table: pd.DataFrame) -> pd.Series:
    """What has a colour: each vector (and operation and hook, if there are several), and all controls."""
    is_control = table["control"]
    if is_control.all():
        raise ValueError("plots.prompt_slopes: the table has controls alone: add the rows of a vector.")
    groups = _line_names(table).mask(is_control, CONTROLS)
    for name, rows in table[~is_control].groupby(groups):
        sizes = rows.groupby("prompt_id")["layers"].agg(["size", "nunique"])
        # With a slider, the text of one prompt would be at the point of another.
        if not (sizes == rows["layers"].nunique()).all(axis=None):
            raise ValueError(
                f"plots.prompt_slopes: every layer of {name!r} needs each prompt once. Select whole layers, "
                "of one table."
            )
    return groups


def _bars(name: str, colour: str, *, is_first: bool) -> go.Bar:
    opacity, rank = (0.3, 900) if name == CONTROLS else (0.55, 500)
    style = bar_style(name, colour, opacity=opacity, is_first=is_first)
    return go.Bar(legendrank=rank, textposition="none", hovertemplate="%{text}<extra></extra>", **style)


def _layer_change(
    panels: dict[str, pd.DataFrame], names: list[str], vectors: list[str], value: str, layers: str
) -> list[dict[str, Any]]:
    """The arguments of the slider's step: bars, prompts, and the texts above the panels."""
    at_layers = [rows[rows["layers"] == layers] for rows in panels.values()]
    edges = round_edges(pd.concat(at_layers)[value])
    traces, layout = [], {}
    for index, (title, rows) in enumerate(zip(panels, at_layers, strict=True)):
        lines = []
        for name in names:
            known = rows.loc[rows["group"] == name, value].dropna().to_numpy(float)
            traces.append(bar_heights(known, edges, name))
            lines.append(_moved_wrong(known, name))
        for rank, name in enumerate(vectors):
            points = rows[rows["group"] == name]
            fit = rounded(points["r_squared"])
            traces.append({"x": rounded(points[value]), "y": [rank] * len(points), "customdata": fit})
        if CONTROLS in names:
            lines = [*lines[1:], lines[0]]
        heading = [f"<b>{title}</b>"] if title else []
        layout[f"annotations[{index}].text"] = "<br>".join([*heading, "moved the wrong way:", *lines])
    keys = ("x", "y", "width", "text", "customdata")
    return [{key: [trace.get(key) for trace in traces] for key in keys}, layout]


def _moved_wrong(values: Float[np.ndarray, " n"], name: str) -> str:
    count = int((values < 0).sum())
    share = number(count / len(values) if len(values) else None, ".0%")
    return f"{escape(name)} {share}" + ("" if name == CONTROLS else f" ({count} of {len(values)})")
