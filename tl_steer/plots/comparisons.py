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
    capitalized,
    controls_text,
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
CHOICE_ROW = 84  # pixels of each vector and operation
HALF_ROW = 0.36  # half of a row's height, taken by its marks
PREFERRED = {"opposite": "plus", "unsteered": "steered"}
COUNTS = ("decided", "disagreeing", "ties", "unreadable")


class Mark(NamedTuple):
    """A mark of each row of `choose`: legend name, column, split, style, and offset from the row's middle."""

    name: str
    column: str
    is_reported: bool
    colour: str
    symbol: str
    offset: float


MARKS = (
    Mark("all prompts, chosen on them (naive)", "in_sample_score", True, VERMILLION, "circle-open", 0.27),
    Mark("this choice, where it was made", "value", False, VERMILLION, "diamond-open", 0.09),
    Mark("this choice, on the other prompts", "value", True, BLUE, "diamond", -0.09),
    Mark("halves, chosen on the other (honest)", "held_out_score", True, BLUE, "circle", -0.27),
)
REPORTED = MARKS[2]


@checked
def choose(table: pd.DataFrame) -> go.Figure:
    """The score of each chosen condition, in sample and held out, with 95% intervals.

    Args:
        table: from `evaluation.choose`, by one score.

    Open red marks are biased by the choice, filled blue ones are not. The grey bar is the range of controls
    that were chosen the same way, on prompts that the choice did not use: compare the filled diamond.
    """
    name = "value_name"
    rows = _paired_rows(figure_table(table, "choose", *CHOICE_COLUMNS, name), name)
    reported = rows[rows["is_reported"]]
    figure = go.Figure(_backgrounds(reported))
    for mark in MARKS:
        marked = rows[rows["is_reported"] == mark.is_reported]
        marked = marked.assign(y=marked["y"] + mark.offset)
        style, text = Style(mark.name, mark.colour, symbol=mark.symbol), partial(_choice_hover, mark=mark)
        edge = {"width": 2, "color": mark.colour}
        trace = curve(marked, "y", style, text, x=mark.column, mode="markers", size=10, marker_line=edge)
        if mark.column == "value":
            ends = marked.rename(columns={"low": "value_low", "high": "value_high"})
            trace.error_x = error_bars(ends, "value", mark.colour)
        figure.add_trace(trace)
    names, ends = list(map(escape, reported["row_name"])), [-0.55, len(reported) - 0.45]
    figure.update_yaxes(tickvals=list(reported["y"]), ticktext=names, range=ends)
    figure.update_yaxes(showgrid=False, zeroline=False)
    drawn = rows[[*{mark.column for mark in MARKS}, "low", "high", "unsteered", "null_low", "null_high"]]
    low, high = drawn.min(axis=None), drawn.max(axis=None)
    # Explicit: plotly.js places lines on the edge of the axis, where they are not visible.
    figure.update_xaxes(range=[low - 0.04 * (high - low), high + 0.04 * (high - low)], zeroline=False)
    score = rows[name].iloc[0]
    known = score in ("accuracy", "d_prime", "shift")
    figure.update_xaxes(title_text=axis_title(score, "choose") if known else escape(score))
    used, unused = (counted(part["n"], "prompt") for _, part in rows.groupby("is_reported"))
    grey = controls_text(int(rows["controls"].max()), "control")
    subtitle = f"chosen on {used}, reported on {unused}; whiskers: 95% intervals{grey}"
    title = "What was chosen, where it was chosen and elsewhere"
    return styled(figure, title, subtitle, height=max(300, 160 + CHOICE_ROW * len(reported)))


def _paired_rows(table: pd.DataFrame, name: str) -> pd.DataFrame:
    """The rows with `row_name`, `y` (from below) and `is_reported`."""
    scores, keys = table[name].unique().tolist(), ["vector", "operation"]
    if len(scores) != 1:
        raise ValueError(f"plots.choose: the scores {scores} have no common axis: select one.")
    by_row = table.groupby(keys, sort=False)
    if not (by_row.size() == 2).all():
        raise ValueError(
            "plots.choose: each vector and operation needs two rows, as evaluation.choose returns them."
        )
    order = by_row.ngroup()
    return table.assign(
        row_name=table[keys if table["operation"].nunique() > 1 else keys[:1]].agg(", ".join, axis=1),
        y=float(order.max()) - order,
        is_reported=by_row.cumcount() == 1,
    )


def _backgrounds(rows: pd.DataFrame) -> list[go.Scatter]:
    """Below the marks: the range of controls, and the unsteered score, on the reported split."""
    nulls = rows.dropna(subset="null_low")
    y = nulls["y"] + REPORTED.offset
    grey = translucent(CONTROL, 0.3)
    bars = _segments("controls, chosen alike", (nulls["null_low"], nulls["null_high"]), (y, y))
    bars.update(line={"color": grey, "width": 0.5 * HALF_ROW * CHOICE_ROW}, showlegend=bool(len(nulls)))
    ends = (rows["y"] - HALF_ROW, rows["y"] + HALF_ROW)
    unsteered = _segments("unsteered", (rows["unsteered"], rows["unsteered"]), ends)
    return [bars, unsteered.update(line=DASHED | {"width": 1.5})]


def _segments(name: str, x: tuple[pd.Series, pd.Series], y: tuple[pd.Series, pd.Series]) -> go.Scatter:
    """Separate lines, each from the first of `x` and `y` to the second."""
    x, y = ([each for ends in zip(*sides, strict=True) for each in (*ends, None)] for sides in (x, y))
    return go.Scatter(x=x, y=y, mode="lines", name=name, hoverinfo="skip")


def _choice_hover(row: dict[str, Any], mark: Mark) -> str:
    heading = f"<b>{escape(row['row_name'])}</b>, {escape(mark.name)}"
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
    grid.figure.update_yaxes(title_text="replies preferring the first shown", col=2)
    grid.figure.add_hline(y=0.5, layer="below", line=DOTTED)
    grid.figure.update_layout(legend_title_text="layer")
    counts = table.assign(n=table["decided"]) if value == "win_rate" else table
    title = f"How often the judge prefers the {PREFERRED[against]} answer"
    return styled(grid.figure, title, sweep_subtitle(counts), height=grid.height)


def _preference_hover(row: dict[str, Any], value: str) -> str:
    counts = ", ".join(f"{int(row[name])} {name}" for name in COUNTS)
    return hover(condition_hover(row, value), counts)
