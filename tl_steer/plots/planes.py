"""Conditions of a sweep in a plane: d′ by criterion, effect by damage."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from jaxtyping import Float

from .._util.validation import checked
from .format import axis_title, controls_text, counted, escape, hover, interval, number, short_label, signed
from .marks import DOTTED, add_layer_slider, curve, error_bars, layer_positions, log_axis
from .panels import (
    CONDITION,
    Panel,
    PanelGrid,
    check_conditions,
    condition_hover,
    figure_table,
    layer_styles,
    panels_of,
    rows_at,
    with_ends,
)
from .style import (
    CONTROL,
    GREEN,
    INK,
    SYMBOLS,
    Style,
    multiplier_colours,
    operation_name,
    styled,
    translucent,
)

DETECTION_COLUMNS = (
    *CONDITION, "dose", "n_signal", "n_noise", "hit_rate", "false_alarm_rate",
    *with_ends("d_prime", "criterion"),
)  # fmt: skip
COSTS = ("kl", "loss_change")
COST_COLUMNS = (
    *CONDITION, "dose", "n", "passages", "pareto", "cost", "collapsed", "collapse", "usable", "reason",
    *with_ends("effect", *COSTS),
)  # fmt: skip
LABEL_WIDTH, LABEL_HEIGHT = 0.05, 0.06  # share of the axes
STATES = {"usable": "circle", "not usable": "circle-open", "collapsed": "x-thin-open"}


@checked
def signal_detection(table: pd.DataFrame, *, layer: int | str | None = None) -> go.Figure:
    """Path of d′ and criterion as the multiplier grows from negative through unsteered to positive.

    Args:
        table: from `evaluation.signal_detection`.
        layer: the layer, or layer set ("17+31"), shown at first; by default the middle one.

    Sideways is a change of bias, upwards of sensitivity; but a strong bias takes d′ toward 0 too, because it
    makes all answers alike. The hover has the AUC, which a bias alone does not move, and the verdict. All
    layers have the same axes.

    Source of d′ and c: Macmillan & Creelman 2005, "Detection Theory", chapters 1 and 2.
    """
    caller = "plots.signal_detection"
    table = figure_table(table, "signal_detection", *DETECTION_COLUMNS)
    check_conditions(table, None, caller=caller)
    if table["d_prime"].isna().all():
        raise ValueError(f"{caller}: d′ is NaN in every row; it needs signal and noise prompts.")
    table = table.assign(n=table["n_signal"] + table["n_noise"])
    layers = list(layer_positions(table[~table["control"]]))
    traces = [(trace, name) for name in layers for trace in _at_layers(table, name)]
    unsteered = table[table["operation"] == "none"].head(1)
    if len(unsteered):
        style = Style("unsteered", INK, symbol="diamond")
        traces.append((_detection_points(unsteered, style, size=12), None))
    figure = go.Figure([trace for trace, _ in traces])
    changes = [
        [{"visible": [owner in (None, name) for _, owner in traces]}, {"title.text": _verdicts(table, name)}]
        for name in layers
    ]
    figure.update_xaxes(title_text=axis_title("criterion"), range=_detection_range(table, "criterion"))
    figure.update_yaxes(title_text=axis_title("d_prime"), range=_detection_range(table, "d_prime"))
    figure.add_vline(x=0, layer="below", line=DOTTED)
    counts = f"{counted(table['n_signal'], 'signal prompt')}, {counted(table['n_noise'], 'noise prompt')}"
    styled(figure, "", f"{counts} per point; crosses: 95% intervals", height=560)
    add_layer_slider(figure, layers, changes, layer)
    return figure


def _verdicts(table: pd.DataFrame, layers: str) -> str:
    """A title with the number of conditions of each verdict at a layer, the most frequent first."""
    rows = table[~table["control"] & (table["layers"] == layers)]
    if "verdict" not in rows or not rows["verdict"].any():
        return "Sensitivity or bias?"
    counts = rows["verdict"].value_counts()
    text = ", ".join(f"{escape(name)} in {count}" for name, count in counts.items())
    return f"Layer {escape(layers)}: {text} of {counted([len(rows)], 'condition')}"


def _detection_points(rows: pd.DataFrame, style: Style, *, size: int, **more: Any) -> go.Scatter:
    return curve(rows, "d_prime", style, _detection_hover, x="criterion", mode="markers", size=size, **more)


def _at_layers(table: pd.DataFrame, layers: str) -> Iterator[go.Scatter]:
    """The controls, and a path per vector, operation and hook through the unsteered condition."""
    controls = table[table["control"] & (table["layers"] == layers)]
    if len(controls):
        style = Style("control directions", translucent(CONTROL, 0.55))
        yield _detection_points(controls, style, size=6, legendrank=2000)
    real = table[~table["control"]]
    is_unsteered = real["operation"] == "none"
    colours = multiplier_colours(real["multiplier"])
    keys = ["vector", "operation", "hook"]
    lines = list(real[~is_unsteered].groupby(keys).groups)
    for rank, line in enumerate(lines):
        rows = real[(real[keys] == list(line)).all(axis=1) & (real["layers"] == layers)]
        if rows["multiplier"].notna().any():
            rows = pd.concat([rows, real[is_unsteered]])
        if len(rows):
            style = Style(_path_name(line, lines), INK, symbol=SYMBOLS[rank % len(SYMBOLS)])
            yield _path(rows.sort_values("multiplier"), style, colours)


def _path(path: pd.DataFrame, style: Style, colours: dict[float, str]) -> go.Scatter:
    marker = {
        "color": [colours.get(multiplier, GREEN) for multiplier in path["multiplier"]],
        # The unsteered point is drawn once, above all paths.
        "size": [0 if operation == "none" else 10 for operation in path["operation"]],
        "symbol": style.symbol,
        "opacity": 1,
        "line": {"color": "white", "width": 1},
    }
    return curve(
        path, "d_prime", style, _detection_hover, x="criterion", mode="lines+markers+text", width=1.5,
        line_color=translucent(INK, 0.45),
        marker=marker,
        error_x=error_bars(path, "criterion", INK, opacity=0.3),
        error_y=error_bars(path, "d_prime", INK, opacity=0.3),
        text=_multiplier_labels(path),
        # Alternating, because neighbours are close.
        textposition=["top right" if rank % 2 else "bottom right" for rank in range(len(path))],
        textfont={"size": 11},
    )  # fmt: skip


def _multiplier_labels(path: pd.DataFrame) -> list[str]:
    """Each point's multiplier; one label for points at the same place ("+6 to +16")."""
    steered = path[path["multiplier"].notna() & (path["multiplier"] != 0)]
    labels = pd.Series("", path.index)
    for _, same in steered.groupby(["criterion", "d_prime"], sort=False)["multiplier"]:
        ends = dict.fromkeys([signed(same.min()), signed(same.max())])
        labels[same.index[-1]] = " to ".join(ends)
    return labels.tolist()


def _path_name(line: tuple[str, ...], lines: list[tuple[str, ...]]) -> str:
    """What distinguishes a path from the others; the vector if there is one path."""
    parts = [part for part, *others in zip(line, *lines, strict=True) if len(set(others)) > 1]
    return operation_name(", ".join(parts or [line[0]]))


def _detection_hover(row: dict[str, Any]) -> str:
    has_auc = all(pd.notna(row.get(name)) for name in with_ends("auc"))
    return hover(
        condition_hover(row, "d_prime"),
        f"{short_label('criterion')} {interval(row, 'criterion')}",
        f"hits {row['hit_rate']:.0%}, false alarms {row['false_alarm_rate']:.0%}",
        f"AUC {interval(row, 'auc')}" if has_auc else "",
        f"verdict: {escape(row['verdict'])}" if row.get("verdict") else "",
    )


def _detection_range(table: pd.DataFrame, value: str) -> list[float]:
    real = table[~table["control"]]
    low = min(real[f"{value}_low"].min(), table[value].min())
    high = max(real[f"{value}_high"].max(), table[value].max())
    margin = 0.06 * (high - low) or 1.0
    return [float(low - margin), float(high + margin)]


@checked
def effect_and_damage(
    table: pd.DataFrame, *, label: str = "shift of the logit difference (nats)"
) -> go.Figure:
    """Each condition's effect by its damage; the Pareto set of each sign is joined by a line.

    Args:
        table: from `evaluation.effect_and_damage`; its `cost` is the damage, KL divergences on a logarithmic
            axis.
        label: what the effect is, for the axis.

    Filled points are usable conditions, open ones are not, and crosses are conditions whose text has
    collapsed. Numbers are multipliers, of the Pareto set and of crosses, where there is space.
    """
    caller = "plots.effect_and_damage"
    table = figure_table(table, "effect_and_damage", *COST_COLUMNS)
    cost = table["cost"].iloc[0]
    if cost not in COSTS or table["cost"].nunique() > 1:
        raise ValueError(f"{caller}: the table's cost must be one of {', '.join(COSTS)}.")
    has_cost = table[cost].notna() & ~((cost == "kl") & (table["kl"] <= 0))
    rows = table[(table["operation"] == "none") | has_cost]
    if (rows["operation"] == "none").all():
        raise ValueError(f"{caller}: no steered condition has a {cost} above 0 to draw it by.")
    panels = panels_of(rows, None, caller=caller)
    grid = PanelGrid([panel.title for panel in panels], x_title=axis_title(cost), y_title=label)
    styles = layer_styles(panels)
    for index, panel in enumerate(panels):
        grey = Style("controls", translucent(CONTROL, 0.5))
        controls = curve(panel.controls, "effect", grey, _cost_hover, x=cost, mode="markers", size=5)
        grid.add(index, [controls.update(showlegend=bool(len(panel.controls)))], rank=900)
        grid.add(index, _pareto_lines(panel, cost), rank=700)
        for key, style in styles.items():
            points = rows_at(panel.steered, *key)
            if len(points):
                grid.add(index, [_effect_points(points, cost, style)])
        grid.add(index, [_effect_labels(panel, cost)], "labels")
    keys = [(Style(style.name, style.colour), 500 + rank) for rank, style in enumerate(styles.values())]
    keys += [(Style(state, INK, symbol=STATES[state]), 600 + rank) for rank, state in enumerate(STATES)]
    for style, rank in keys:
        grid.add(0, [_legend_key(style)], rank=rank)
    if cost == "kl":
        grid.figure.update_xaxes(**log_axis(rows.loc[rows["kl"] > 0, "kl"]))
    grid.figure.update_yaxes(zeroline=True, zerolinecolor=INK, zerolinewidth=1)
    grid.figure.update_layout(legend_title_text="layer")
    counts = f"{counted(table['n'], 'prompt')}, {counted(table['passages'], 'passage')} per point"
    subtitle = f"{counts}; numbers: multipliers{controls_text(table)}"
    steered = rows[(rows["operation"] != "none") & ~rows["control"]]
    usable = f"{steered['usable'].sum()} of {counted([len(steered)], 'condition')}"
    return styled(grid.figure, f"What an effect costs: {usable} usable", subtitle, height=grid.height + 60)


def _effect_points(rows: pd.DataFrame, cost: str, style: Style) -> go.Scatter:
    rows = rows.sort_values("multiplier")
    states = np.where(rows["collapsed"], "collapsed", np.where(rows["usable"], "usable", "not usable"))
    symbols = [STATES[state] for state in states]
    points = curve(rows, "effect", style, _cost_hover, x=cost, mode="markers", size=9, showlegend=False)
    return points.update(marker={"symbol": symbols, "line": {"width": 2, "color": style.colour}})


def _effect_labels(panel: Panel, cost: str) -> go.Scatter:
    """Multipliers of collapsed conditions and of the Pareto set, where labels do not overlap."""
    rows = panel.steered[panel.steered["multiplier"].notna()]
    rows = rows[rows["collapsed"] | rows["pareto"]]
    rows = rows.loc[rows["effect"].abs().sort_values(ascending=False).index]
    points = pd.DataFrame({"x": np.log(rows[cost]) if cost == "kl" else rows[cost], "y": rows["effect"]})
    points = (points - points.min()) / (points.max() - points.min()).replace(0.0, 1.0)
    rows = rows[np.fromiter(_without_overlap(points.to_numpy()), dtype=bool)]
    return go.Scatter(
        x=rows[cost],
        y=rows["effect"],
        mode="markers+text",
        marker={"size": 11, "opacity": 0},  # keeps the text off the point
        text=[signed(multiplier) for multiplier in rows["multiplier"]],
        textposition=["top center" if effect > 0 else "bottom center" for effect in rows["effect"]],
        textfont={"size": 10, "color": INK},
        cliponaxis=False,
        showlegend=False,
        hoverinfo="skip",
    )


def _without_overlap(points: Float[np.ndarray, "label 2"]) -> Iterator[bool]:
    """Whether each label, in order of priority, is at a distance from all labels selected before."""
    selected = points[:0]
    for point in points:
        is_free = bool((np.abs(selected - point) > (LABEL_WIDTH, LABEL_HEIGHT)).any(axis=1).all())
        selected = np.vstack([selected, point]) if is_free else selected
        yield is_free


def _pareto_lines(panel: Panel, cost: str) -> list[go.Scatter]:
    """A line for each sign of the multiplier, in order of cost."""
    rows = panel.steered[panel.steered["pareto"]].sort_values(cost)
    style = Style("Pareto set", translucent(INK, 0.55), "dot")
    return [
        curve(side, "effect", style, x=cost, mode="lines", width=1.2)
        for sign, side in rows.groupby(np.sign(rows["multiplier"]))
        if sign
    ]


def _legend_key(style: Style) -> go.Scatter:
    """A trace without points, for the legend."""
    point = pd.DataFrame({"x": [None], "y": [None]})
    return curve(point, "y", style, mode="markers", size=9, marker_line={"width": 2, "color": style.colour})


def _cost_hover(row: dict[str, Any]) -> str:
    verdict = "usable" if row["usable"] else f"not usable: {row['reason']}"
    collapse = f" ({row['collapse']})" if row["collapsed"] else ""
    has_controls = pd.notna(row.get("control_effect"))
    return hover(
        condition_hover(row, "effect"),
        f"KL {interval(row, 'kl')}",
        f"loss change {interval(row, 'loss_change')}",
        f"controls reach {number(row['control_effect'])}" if has_controls else "",
        escape(verdict + collapse),
    )
