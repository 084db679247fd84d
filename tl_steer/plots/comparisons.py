"""Comparisons: of choices on both splits, of estimators, with unsteered draws, and by a judge."""

from dataclasses import replace
from functools import partial
from itertools import product
from typing import Any, Literal, NamedTuple

import pandas as pd
import plotly.graph_objects as go

from .._util.validation import checked
from .format import (
    axis_title,
    broken,
    capitalized,
    counted,
    escape,
    hover,
    interval,
    number,
    short_label,
)
from .marks import (
    DASHED,
    DOTTED,
    X_MULTIPLIER,
    control_marks,
    curve,
    error_bars,
    layer_positions,
    multiplier_axis,
    multiplier_ranks,
)
from .panels import CONDITION, PanelGrid, condition_hover, condition_name, figure_table, panels_of, with_ends
from .style import BLUE, CONTROL, VERMILLION, Style, ranked_style, styled, translucent
from .sweep_curves import layer_lines, sweep_subtitle

CHOICE_COLUMNS = (
    "vector", "operation", "layers", "multiplier", "split", "n", "value", "low", "high", "unsteered",
    "in_sample_score", "held_out_score", *with_ends("optimism"), "selection_agreement", "controls",
    "null_low", "null_high", "p_value",
)  # fmt: skip
CHOICE_ROW, TICK_LENGTH = 36, 26  # pixels of each row, and characters of a line of its name
PREFERRED = {"opposite": "plus", "unsteered": "steered"}
COUNTS = ("decided", "disagreeing", "ties", "unreadable")


class Mark(NamedTuple):
    """A row of `choose`: its name, with the numbers of prompts, the column, the split, and the style."""

    name: str
    column: str
    is_reported: bool
    colour: str
    symbol: str


MARKS = (
    Mark("on the {chosen} that chose it", "value", False, VERMILLION, "diamond-open"),
    Mark("on the other {other}", "value", True, BLUE, "diamond"),
    Mark("best on all {both}, on the same ones", "in_sample_score", True, VERMILLION, "circle-open"),
    Mark("best on one half, on the other (mean)", "held_out_score", True, BLUE, "circle"),
)
CONTROL_ROW = "{controls}, chosen alike, on the other {other}"


@checked
def choose(table: pd.DataFrame) -> go.Figure:
    """The score of each chosen condition on the prompts that chose it and on others, with 95% intervals.

    Args:
        table: from `evaluation.choose`, by one score.

    Open red marks are biased by the choice, filled blue ones are not: compare the diamonds of a condition
    with the dashed line, and the filled one with the range of the controls, which are chosen alike.
    """
    name = "value_name"
    table = _paired_rows(figure_table(table, "choose", *CHOICE_COLUMNS, name), name)
    chosen, reported = (table[table["is_reported"] == flag] for flag in (False, True))
    score = table[name].iloc[0]
    is_known = score in ("accuracy", "d_prime", "shift")
    label = axis_title(score, "choose") if is_known else escape(score)
    counts = {"chosen": counted(chosen["n"], "prompt"), "other": counted(reported["n"], "prompt")}
    counts["both"] = counted(chosen["n"].to_numpy() + reported["n"].to_numpy(), "prompt")
    counts["controls"] = counted([reported["controls"].max()], "control")
    figure, ticks = go.Figure(), {}
    for key in reported["row"]:
        figure.add_traces(
            _choice_rows(table[table["row"] == key], ticks, counts, has_heading=len(reported) > 1)
        )
    figure.update_yaxes(tickvals=list(ticks), ticktext=list(ticks.values()), zeroline=False, showgrid=False)
    figure.update_yaxes(range=[min(ticks) - 0.7, 0.9])
    drawn = table[[*{mark.column for mark in MARKS}, "low", "high", "unsteered", "null_low", "null_high"]]
    low, high = drawn.min(axis=None), drawn.max(axis=None)
    margin = 0.04 * (high - low) or 1.0
    # Explicit: plotly.js places lines on the edge of the axis, where they are not visible.
    figure.update_xaxes(range=[low - margin, high + margin], zeroline=False, title_text=label)
    title = f"Chosen on {counts['chosen']}, reported on the other {counts['other']}"
    if len(reported) == 1:
        row = reported.to_dict("records")[0]
        value = f"{short_label(score, 'choose') if is_known else label} {number(row['value'])}"
        title = f"{capitalized(condition_name(row))}: {value} on the other {counts['other']}"
    subtitle = f"{label}; unsteered: on the other {counts['other']}; whiskers: 95% intervals"
    figure.update_layout(showlegend=False)
    return styled(figure, title, subtitle, height=180 + CHOICE_ROW * len(ticks))


def _paired_rows(table: pd.DataFrame, name: str) -> pd.DataFrame:
    """The rows with `row`, the vector and operation, escaped, and `is_reported`."""
    scores, keys = table[name].unique().tolist(), ["vector", "operation"]
    if len(scores) != 1:
        raise ValueError(f"plots.choose: the scores {scores} have no common axis: select one.")
    by_row = table.groupby(keys, sort=False)
    if not (by_row.size() == 2).all():
        raise ValueError(
            "plots.choose: each vector and operation needs two rows, as evaluation.choose returns them."
        )
    names = table[keys if table["operation"].nunique() > 1 else keys[:1]].agg(", ".join, axis=1)
    return table.assign(row=names.map(escape), is_reported=by_row.cumcount() == 1)


def _choice_rows(
    rows: pd.DataFrame, ticks: dict[float, str], counts: dict[str, str], *, has_heading: bool
) -> list[go.Scatter]:
    """The traces of one vector and operation, downwards from the last of `ticks`, which gets their names."""
    top = y = min(ticks, default=1.0) - 1.0
    reported = rows[rows["is_reported"]].to_dict("records")[0]
    heading = f"{reported['row']}: " if has_heading else ""
    ticks[y] = f"<b>{heading}{condition_name(reported)}</b>"
    traces = []
    for mark in MARKS:
        y -= 1.0
        ticks[y] = broken(mark.name.format(**counts), TICK_LENGTH)
        marked = rows[rows["is_reported"] == mark.is_reported].assign(y=y)
        text, edge = partial(_choice_hover, mark=mark), {"width": 2, "color": mark.colour}
        style = Style(mark.name.format(**counts), mark.colour, symbol=mark.symbol)
        trace = curve(marked, "y", style, text, x=mark.column, mode="markers", size=11, marker_line=edge)
        if mark.column == "value":
            ends = marked.rename(columns={"low": "value_low", "high": "value_high"})
            trace.error_x = error_bars(ends, "value", mark.colour)
        traces.append(trace)
    if pd.notna(reported["null_low"]):
        y -= 1.0
        ticks[y] = broken(CONTROL_ROW.format(**counts), TICK_LENGTH)
        grey = {"color": translucent(CONTROL, 0.45), "width": 14}
        traces.append(_segment("controls", (reported["null_low"], reported["null_high"]), (y, y), grey))
    unsteered = _segment("unsteered", (reported["unsteered"],) * 2, (top - 0.4, y - 0.5), DASHED)
    side = "left" if reported["unsteered"] > reported["value"] else "right"  # away from the edge of the axes
    unsteered.update(mode="lines+text", text=["unsteered", ""], textposition=f"top {side}")
    return [unsteered, *traces]


def _segment(name: str, x: tuple[float, float], y: tuple[float, float], line: dict[str, Any]) -> go.Scatter:
    return go.Scatter(x=x, y=y, mode="lines", name=name, line=line, hoverinfo="skip")


def _choice_hover(row: dict[str, Any], mark: Mark) -> str:
    heading = f"<b>{row['row']}</b>"
    if mark.column != "value":
        agreement = f"same condition in {row['selection_agreement']:.0%} of halves"
        return hover(heading, number(row[mark.column]), f"optimism {interval(row, 'optimism')}", agreement)
    value, low, high = (number(row[name]) for name in ("value", "low", "high"))
    p_value = f"p = {number(row['p_value'])} against {counted([row['controls']], 'control')}"
    return hover(
        heading,
        condition_name(row),
        f"{value} [{low}, {high}], n = {int(row['n'])}",
        f"unsteered {number(row['unsteered'])}",
        p_value if mark.is_reported and row["controls"] else "",
    )


@checked
def compare_estimators(
    table: pd.DataFrame, *, value: Literal["cosine", "flipped", "shift"] = "cosine"
) -> go.Figure:
    """A value by number of pairs, a line per estimator, a panel per condition.

    Args:
        table: from `compare_estimators`.

    Points are means over the repetitions, whiskers their lowest and highest.
    """
    producer = "compare_estimators"
    table = figure_table(table, producer, "condition", "method", "pairs", "repeat", value)
    conditions, methods = (list(table[name].unique()) for name in ("condition", "method"))
    y_range = {"cosine": (-0.15, 1.05), "flipped": (-0.05, 1.05)}.get(value)
    y_title, titles = axis_title(value, producer), [escape(each) for each in conditions]
    grid = PanelGrid(titles, x_title="pairs (log scale)", y_title=y_title, y_range=y_range)
    names = dict(zip(with_ends(value), ("mean", "min", "max"), strict=True))
    for (index, condition), (rank, method) in product(enumerate(conditions), enumerate(methods)):
        rows = table[(table["condition"] == condition) & (table["method"] == method)]
        rows = rows.groupby("pairs")[value].agg(**names).reset_index()
        style = ranked_style(rank, escape(method))
        style = replace(style, colour=CONTROL) if method == "random" else style
        text = partial(_estimator_hover, value=value, method=style.name)
        line = curve(rows, value, style, text, x="pairs", width=1.5, size=7, whiskers=True)
        grid.add(index, [line], method, rank=rank)
    counts = sorted(table["pairs"].unique())
    grid.figure.update_xaxes(type="log", tickvals=counts, ticktext=[f"{count:g}" for count in counts])
    grid.figure.update_layout(legend_title_text="estimator")
    subtitle = f"mean of {table['repeat'].nunique()} draws of pairs; whiskers: their lowest and highest"
    return styled(grid.figure, capitalized(short_label(value, producer)), subtitle, height=grid.height)


def _estimator_hover(row: dict[str, Any], value: str, method: str) -> str:
    mean, low, high = (number(row[name], ".2f") for name in with_ends(value))
    label = axis_title(value, "compare_estimators")
    return hover(f"{method}, {int(row['pairs'])} pairs", f"{label}: {mean} ({low} to {high})")


@checked
def against_baselines(
    table: pd.DataFrame, *, value: Literal["d_prime", "criterion"] = "d_prime"
) -> go.Figure:
    """Change of each condition against each unsteered draw, and against all of them with 95% intervals.

    Args:
        table: from `evaluation.against_baselines`, of one vector.
        value: of which the change is drawn.

    A panel per layer, or layer set. The draws are in the same order in every condition: one draw that is low
    or high moves all of them. Operations without a multiplier (`project_out`) are left out.
    """
    caller, change = "plots.against_baselines", f"{value}_change"
    columns = [*CONDITION, "draw", "n_signal", "n_noise", value, f"{value}_unsteered", *with_ends(change)]
    table = figure_table(table, "against_baselines", *columns)
    if table.duplicated(["operation", "layers", "multiplier", "draw"]).any():
        raise ValueError(f"{caller}: a condition has the same draw twice: expected one vector. Select one.")
    ranks = multiplier_ranks(table, caller=caller)
    table = table.dropna(subset="multiplier")
    table = table.assign(x=table["multiplier"].map(ranks))
    layers = list(layer_positions(table))
    titles = [f"layer {escape(each)}" for each in layers]
    grid = PanelGrid(titles, x_title=X_MULTIPLIER, y_title=axis_title(change))
    text = partial(_baseline_hover, value=value)
    single = Style("one unsteered draw", translucent(CONTROL, 0.8), symbol="line-ew-open")
    pooled = Style("all draws", VERMILLION)
    for index, each in enumerate(layers):
        rows = table[table["layers"] == each]
        is_pooled = rows["draw"].isna()
        draws = curve(rows[~is_pooled], change, single, text, mode="markers", size=9)
        pooled_rows = rows[is_pooled].sort_values("multiplier")
        points = curve(pooled_rows, change, pooled, text, mode="markers", size=7, whiskers=True)
        grid.add(index, [draws, points])
    grid.figure.update_xaxes(**multiplier_axis(ranks))
    grid.figure.add_hline(y=0, line=DASHED)
    grid.figure.update_layout(legend_title_text="against")
    prompts = counted(table["n_signal"] + table["n_noise"], "prompt")
    subtitle = f"{prompts}, {counted([table['draw'].nunique()], 'unsteered draw')}; whiskers: 95% intervals"
    heading = f"{capitalized(axis_title(change))}, by the unsteered draw it is compared with"
    return styled(grid.figure, heading, subtitle, height=grid.height)


def _baseline_hover(row: dict[str, Any], value: str) -> str:
    draw = "all draws" if pd.isna(row["draw"]) else f"draw {int(row['draw'])}"
    recording = f" ({escape(row['recording'])})" if isinstance(row.get("recording"), str) else ""
    return hover(
        f"<b>{condition_name(row)}</b>",
        f"against {draw}{recording}",
        f"change {interval(row, f'{value}_change')}",
        f"{short_label(value)} {number(row[value])}, unsteered {number(row[f'{value}_unsteered'])}",
    )


@checked
def preference(
    table: pd.DataFrame, *, value: Literal["preference", "win_rate"] = "preference", facet: str | None = None
) -> go.Figure:
    """Share preferring the plus (steered) answer by multiplier, and next to it the judge's position bias.

    Args:
        table: from `evaluation.preference`.
        value: "preference" (ties and prompts whose orders disagree count one half) or "win_rate" (of the
            prompts for which both orders prefer the same answer).
        facet: a factor by which the table is split; a row of panels for each of its values.

    At 0.5 neither answer is preferred (left), and neither position (right). Operations without a multiplier
    (`project_out`) are left out.
    """
    caller = "plots.preference"
    columns = [*CONDITION, "dose", "n", "against", *COUNTS, *with_ends(value, "first_share")]
    table = figure_table(table, "preference", *columns, factors=[facet])
    against = table["against"].iloc[0]
    if table["against"].nunique() > 1 or against not in PREFERRED:
        raise ValueError(
            f"{caller}: opposite and unsteered comparisons in one table, or others: expected one of "
            f"{', '.join(PREFERRED)} in all rows of 'against'. Select one."
        )
    ranks = multiplier_ranks(table, caller=caller)
    panels = panels_of(table, facet, caller=caller)
    names = {value: short_label(value), "first_share": "position bias"}
    titles = [f"{panel.title}: {name}".removeprefix(": ") for panel in panels for name in names.values()]
    look = {"columns": 2, "shared_yaxes": False, "column_widths": [0.58, 0.42], "horizontal_spacing": 0.11}
    grid = PanelGrid(titles, x_title=X_MULTIPLIER, y_title=axis_title(value), **look)
    grid.figure.update_yaxes(range=(-0.02, 1.02), autorange=None)
    for index, (panel, name) in enumerate(product(panels, names)):
        text = partial(_preference_hover, value=name)
        grid.add(index, control_marks(panel, name, ranks, text), rank=900)
        grid.add(index, layer_lines(panels, panel, name, ranks, text))
    grid.figure.update_xaxes(**multiplier_axis(ranks, opposite=bool(against == "opposite")))
    grid.figure.add_hline(y=0.5, layer="below", line=DOTTED)
    grid.figure.update_layout(legend_title_text="layer")
    counts = table.assign(n=table["decided"]) if value == "win_rate" else table
    title = f"How often the judge prefers the {PREFERRED[against]} answer"
    subtitle = f"{sweep_subtitle(counts)}; right: share of replies preferring the first shown"
    return styled(grid.figure, title, subtitle, height=grid.height)


def _preference_hover(row: dict[str, Any], value: str) -> str:
    counts = ", ".join(f"{int(row[name])} {name}" for name in COUNTS)
    return hover(condition_hover(row, value), counts)
