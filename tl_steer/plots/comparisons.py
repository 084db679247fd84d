"""Comparisons: of the chosen condition on both splits, of estimators, and with unsteered draws."""

from functools import partial
from typing import Any, Literal, NamedTuple

import pandas as pd
import plotly.graph_objects as go

from .._util.validation import checked
from .axes import layer_positions, multiplier_axis, multiplier_ranks
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
from .marks import DASHED, curve, error_bars
from .multiplier_curves import X_TITLE
from .panels import CONDITION, PanelGrid, condition_name, figure_table, with_ends
from .style import BLUE, CONTROL, DASHES, QUALITATIVE, SYMBOLS, VERMILLION, Style, styled, translucent

CHOICE_COLUMNS = (
    "vector", "operation", "layers", "multiplier", "split", "n", "value", "low", "high", "unsteered",
    "in_sample_score", "held_out_score", "optimism", "optimism_low", "optimism_high", "selection_agreement",
    "controls", "null_low", "null_high", "p_value",
)  # fmt: skip
CHOICE_ROW = 84  # pixels of each vector and operation
HALF_ROW = 0.36  # half of a row's height, taken by its marks


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

    Raises:
        ValueError: another table, several scores, or rows that are not in pairs.

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
        trace = curve(marked, "y", style, text, x=mark.column, mode="markers", size=10)
        trace.marker.line = {"width": 2, "color": mark.colour}
        if mark.column == "value":
            ends = marked.rename(columns={"low": "value_low", "high": "value_high"})
            trace.error_x = error_bars(ends, "value", mark.colour)
        figure.add_trace(trace)
    names = [escape(name) for name in reported["row_name"]]
    ends = [-0.55, len(reported) - 0.45]
    figure.update_yaxes(tickvals=list(reported["y"]), ticktext=names, range=ends)
    figure.update_yaxes(showgrid=False, zeroline=False)
    marks = [
        "value",
        "low",
        "high",
        "unsteered",
        "in_sample_score",
        "held_out_score",
        "null_low",
        "null_high",
    ]
    low, high = rows[marks].min(axis=None), rows[marks].max(axis=None)
    # Explicit: plotly.js places lines on the edge of the axis, where they are not visible.
    figure.update_xaxes(range=[low - 0.04 * (high - low), high + 0.04 * (high - low)], zeroline=False)
    score = rows[name].iloc[0]
    known = score in ("accuracy", "d_prime", "shift")
    figure.update_xaxes(title_text=axis_title(score, "choose") if known else escape(score))
    title = "What was chosen, where it was chosen and elsewhere"
    height = max(300, 160 + CHOICE_ROW * len(reported))
    return styled(figure, title, _choice_subtitle(rows), height=height)


def _paired_rows(table: pd.DataFrame, name: str) -> pd.DataFrame:
    """The rows with `row_name`, `y` (from below) and `is_reported`."""
    scores, keys = table[name].unique().tolist(), ["vector", "operation"]
    if len(scores) != 1:
        raise ValueError(f"plots.choose: the scores {scores} have no common axis: select one.")
    if not (table.groupby(keys, sort=False).size() == 2).all():
        raise ValueError(
            "plots.choose: each vector and operation needs two rows, as evaluation.choose returns them."
        )
    order = table.groupby(keys, sort=False).ngroup()
    return table.assign(
        row_name=table[keys if table["operation"].nunique() > 1 else keys[:1]].agg(", ".join, axis=1),
        y=float(order.max()) - order,
        is_reported=table.groupby(keys).cumcount() == 1,
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


def _choice_subtitle(rows: pd.DataFrame) -> str:
    chosen, reported = (
        counted(rows.loc[rows["is_reported"] == half, "n"], "prompt") for half in (False, True)
    )
    grey = controls_text(int(rows["controls"].max()), "control")
    return f"chosen on {chosen}, reported on {reported}; whiskers: 95% intervals{grey}"


@checked
def compare_estimators(
    table: pd.DataFrame, *, value: Literal["cosine", "flipped", "shift"] = "cosine"
) -> go.Figure:
    """A value by number of pairs, a line per estimator, a panel per condition.

    Args:
        table: from `compare_estimators`.
        value: of the table.

    Raises:
        ValueError: another table.

    Points are means over the repetitions, whiskers their lowest and highest.
    """
    producer = "compare_estimators"
    table = figure_table(table, producer, "condition", "method", "pairs", "repeat", value)
    conditions, methods = (list(table[name].unique()) for name in ("condition", "method"))
    y_range = {"cosine": (-0.15, 1.05), "flipped": (-0.05, 1.05)}.get(value)
    y_title, titles = axis_title(value, producer), [escape(each) for each in conditions]
    grid = PanelGrid(titles, x_title="pairs (log scale)", y_title=y_title, y_range=y_range)
    for index, condition in enumerate(conditions):
        for rank, method in enumerate(methods):
            rows = table[(table["condition"] == condition) & (table["method"] == method)]
            names = {"mean": value, "min": f"{value}_low", "max": f"{value}_high"}
            rows = rows.groupby("pairs")[value].agg(list(names)).rename(columns=names).reset_index()
            colour = CONTROL if method == "random" else QUALITATIVE[rank % len(QUALITATIVE)]
            dash, symbol = DASHES[rank % len(DASHES)], SYMBOLS[rank % len(SYMBOLS)]
            style = Style(escape(method), colour, dash, symbol)
            text = partial(_estimator_hover, value=value, method=style.name)
            line = curve(rows, value, style, text, x="pairs", width=1.5, size=7, whiskers=True)
            grid.add(index, line, method, rank=rank)
    counts = sorted(table["pairs"].unique())
    grid.figure.update_xaxes(type="log", tickvals=counts, ticktext=[f"{count:g}" for count in counts])
    grid.figure.update_layout(legend_title_text="estimator")
    repeats = table["repeat"].nunique()
    subtitle = f"mean of {repeats} draws of pairs; whiskers: their lowest and highest"
    title = capitalized(short_label(value, producer))
    return styled(grid.figure, title, subtitle, height=grid.height)


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

    Raises:
        ValueError: another table, or several rows per condition and draw.

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
    grid = PanelGrid(titles, x_title=X_TITLE, y_title=axis_title(change))
    text = partial(_baseline_hover, value=value)
    single = Style("one unsteered draw", translucent(CONTROL, 0.8), symbol="line-ew-open")
    pooled = Style("all draws", VERMILLION)
    for index, each in enumerate(layers):
        rows = table[table["layers"] == each]
        is_pooled = rows["draw"].isna()
        draws = curve(rows[~is_pooled], change, single, text, mode="markers", size=9)
        grid.add(index, draws, single.name)
        pooled_rows = rows[is_pooled].sort_values("multiplier")
        points = curve(pooled_rows, change, pooled, text, mode="markers", size=7, whiskers=True)
        grid.add(index, points, pooled.name)
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
