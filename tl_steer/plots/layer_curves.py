"""Curves by layer with bands: separation, agreement, mean projections."""

from dataclasses import replace
from functools import partial
from typing import Any, Literal

import pandas as pd
import plotly.graph_objects as go

from .._util.validation import checked
from .format import at_level, axis_title, broken, counted, escape, hover, interval, level, levels, number
from .marks import DASHED, band, curve, curve_with_band, label_lines, layer_range
from .panels import X_LENGTH, figure_table, with_ends
from .style import (
    CONTROL,
    DASHES,
    INK,
    PANEL_TITLE_HEIGHT,
    Style,
    level_colours,
    styled,
    subplots,
    translucent,
)

SEPARATION_COLUMNS = (
    "layer", *with_ends("paired_accuracy"), "auc", "d_prime", "null_low", "null_high", "null_mean",
    "p_value", "p_corrected", "null_max", "pairs", "folds", "method",
)  # fmt: skip
ALPHA = 0.05  # of p_corrected
AGREEMENT_PANELS = {
    "split_half": "vectors of two halves",
    "single": "single pairs with the vector",
    "between": "with the other methods’ vectors",
    "cone": "95% of resampled vectors lie within (degrees)",
}
AGREEMENT_COLUMNS = (
    "layer", "method", *with_ends("split_half", "single"), "split_half_null", "reliability", "cone",
    "between", "pairs",
)  # fmt: skip
MEAN_COLUMNS = {"layer", "n", "effect", "rank", "projection_rank"}
MEAN_COLUMNS.update(with_ends("projection", "cosine", "spread"))
TOP_RANKS = 3  # layers whose rank is written at their point


@checked
def separation(table: pd.DataFrame) -> go.Figure:
    """Held-out paired accuracy by layer with its interval, over that of shuffled labels.

    The grey band is pointwise: the middle 95 % of shuffles at each layer. The dotted line is simultaneous:
    only 5 % of shuffles have any layer above it. The subtitle counts the layers above the dotted line, where
    p_corrected is at most 0.05.

    Args:
        table: from `analysis.separation`; several in one (`pandas.concat`) give a line per `method`, or per
            `vector` where there is such a column.
    """
    table = figure_table(table, "separation", *SEPARATION_COLUMNS)
    by = "vector" if "vector" in table.columns else "method"
    parts = _by_layer(table, by)
    colours, lines = level_colours(parts), []
    figure = go.Figure()
    for rows in parts.values():
        if rows["null_low"].notna().any():  # with shuffles=0 there is no null
            figure.add_traces(_shuffled(rows, opacity=0.5 / (len(parts) + 0.5)))
    for name, rows in parts.items():
        if rows["null_max"].notna().any():
            figure.add_trace(_threshold(rows, CONTROL if len(parts) == 1 else colours[name]))
        style = Style(escape(name), colours[name])
        text = partial(_separation_hover, name=style.name)
        figure.add_traces(curve_with_band(rows, "paired_accuracy", style, text, opacity=0.18))
        lines.append(figure.data[-1])
    figure.add_hline(y=0.5, line=DASHED)
    right = {"x": 1, "xref": "paper", "xanchor": "right", "yanchor": "bottom"}
    _label_null(figure, list(parts.values()), right)
    lowest = min(0.3, table[["paired_accuracy_low", "null_low"]].min(axis=None))
    figure.update_xaxes(title_text="layer", **layer_range(table["layer"]))
    figure.update_yaxes(title_text=axis_title("paired_accuracy"), range=[lowest - 0.03, 1.02])
    counts = f"{counted(table['pairs'], 'pair')}, {counted(table['folds'], 'fold')}"
    method = f"{escape(next(iter(parts)))}, " if len(parts) == 1 else ""
    if label_lines(figure, lines) or len(parts) == 1:
        figure.update_layout(showlegend=False)
    title, tested = _significant(list(parts.values()))
    return styled(figure, title, f"{method}{counts}; band: 95% interval{tested}")


def _by_layer(table: pd.DataFrame, factor: str) -> dict[str, pd.DataFrame]:
    """The rows of each value of a factor, in the table's order, by layer."""
    parts = table.groupby(table[factor].map(level), sort=False)
    return {name: rows.sort_values("layer") for name, rows in parts}


def _shuffled(rows: pd.DataFrame, *, opacity: float) -> list[go.Scatter]:
    """The null's band and mean by layer."""
    shade, name = translucent(CONTROL, opacity), "shuffled labels, 95% at each layer"
    around = band(rows["layer"], rows["null_low"], rows["null_high"], shade, name=name)
    mean = curve(rows, "null_mean", Style("their mean", CONTROL), x="layer", mode="lines", width=1)
    return [each.update(showlegend=False) for each in (around, mean)]


def _threshold(rows: pd.DataFrame, colour: str) -> go.Scatter:
    """The paired accuracy that 5 % of shuffles exceed at any layer."""
    ends = pd.DataFrame({"x": layer_range(rows["layer"])["range"], "y": rows["null_max"].iloc[0]})
    style = Style("shuffled labels, 95% at all layers together", colour, "dot")
    return curve(ends, "y", style, mode="lines", width=1.5, showlegend=False)


def _separation_hover(row: dict[str, Any], name: str) -> str:
    null, low, high = (number(row[f"null_{end}"]) for end in ("mean", "low", "high"))
    return hover(
        f"<b>layer {row['layer']}</b>, {name}",
        f"paired accuracy {interval(row, 'paired_accuracy')}",
        f"AUC {number(row['auc'])}, d′ {number(row['d_prime'])}",
        f"shuffled labels {null} [{low}, {high}], p = {number(row['p_value'], '.2g')} for this layer alone",
        f"corrected for all layers p = {number(row['p_corrected'], '.2g')}",
    )


def _label_null(figure: go.Figure, parts: list[pd.DataFrame], right: dict[str, Any]) -> None:
    """Write on the lines and the band of the null what they are."""
    figure.add_annotation(y=0.5, text="chance", showarrow=False, **right)
    for column, text in {
        "null_low": "grey: 95% of shuffled labels, at each layer",
        "null_max": "95% of shuffled labels are below, at all layers",
    }.items():
        known = [rows[column].max() for rows in parts if rows[column].notna().any()]
        if known:
            figure.add_annotation(y=max(known), text=text, showarrow=False, **right)


def _significant(parts: list[pd.DataFrame]) -> tuple[str, str]:
    """A title with the layers of each line at which p_corrected is at most 0.05, and of what that is."""
    tested = [rows for rows in parts if rows["p_corrected"].notna().any()]
    if not tested:
        return "Do held-out pairs separate?", ""
    if any(rows["null_max"].isna().all() for rows in tested):
        return "Do held-out pairs separate?", f"; 19 shuffles or more are needed to reach p ≤ {ALPHA}"
    *first, last = [str(int((rows["p_corrected"] <= ALPHA).sum())) for rows in tested]
    text = f"{', '.join(first)} and {last}" if first else last
    layers = counted(map(len, tested), "layer")
    return f"Held-out pairs separate at {text} of {layers}", f"; p ≤ {ALPHA}, corrected for all layers"


@checked
def agreement(table: pd.DataFrame) -> go.Figure:
    """Agreement of vectors of the same pairs by layer, a line per method.

    Args:
        table: from `analysis.agreement`.

    Below the dotted line, halves agree no better than with shuffled labels. With one method, the area below
    it is shaded, and bands are the middle 95 % of splits and of pairs; with several these are in the hover.
    Panels without values are left out.
    """
    table = figure_table(table, "agreement", *AGREEMENT_COLUMNS)
    if table.duplicated(["layer", "method"]).any():
        raise ValueError(
            "plots.agreement: a layer and method is there twice: expected one table. Select one."
        )
    parts = _by_layer(table, "method")
    colours = level_colours(parts)
    values = [name for name in AGREEMENT_PANELS if table[name].notna().any()]
    columns = 3 if len(values) == 3 else 2
    figure = _agreement_panels(values, columns)
    for index, value in enumerate(values):
        for method, rows in parts.items():
            style = Style(escape(method), colours[method])
            traces = _agreement_curve(rows, value, style, is_single=len(parts) == 1)
            traces[-1].showlegend = index == 0
            figure.add_traces(traces, rows=index // columns + 1, cols=index % columns + 1)
    figure.update_xaxes(**layer_range(table["layer"]))
    height = 660 if len(values) > columns else 420
    figure.update_layout(margin_t=2 * PANEL_TITLE_HEIGHT)
    bands = "; bands: the middle 95% of splits and of pairs" * (len(parts) == 1)
    dotted = f"{counted(table['pairs'], 'pair')}; dotted: 97.5% with shuffled labels, at each layer alone"
    return styled(figure, _agreeing(parts), dotted + bands, height=height)


def _agreeing(parts: dict[str, pd.DataFrame]) -> str:
    """A title with the layers of each method at which halves agree better than with shuffled labels."""
    tested = [rows for rows in parts.values() if rows["split_half_null"].notna().any()]
    if not tested:
        return "Do vectors of these pairs agree?"
    beyond = [int((rows["split_half"] > rows["split_half_null"]).sum()) for rows in tested]
    layers = counted(map(len, tested), "layer")
    of = f"{beyond[0]}" if len(set(beyond)) == 1 else f"{min(beyond)} to {max(beyond)}"
    return f"Halves agree beyond shuffled labels at {of} of {layers}{', by method' * (len(tested) > 1)}"


def _agreement_panels(values: list[str], columns: int) -> go.Figure:
    rows, columns = -(-len(values) // columns), min(len(values), columns)
    titles = [broken(AGREEMENT_PANELS[name], X_LENGTH // 2) for name in values]
    figure = subplots(rows, columns, titles, horizontal_spacing=0.09, vertical_spacing=0.13)
    figure.update_yaxes(rangemode="tozero")
    for index, name in enumerate(values):
        at = {"row": index // columns + 1, "col": index % columns + 1}
        figure.update_yaxes(title_text="cosine" if name != "cone" and at["col"] == 1 else None, **at)
        figure.update_xaxes(title_text="layer" if index >= len(values) - columns else None, **at)
    return figure


def _agreement_curve(rows: pd.DataFrame, value: str, style: Style, *, is_single: bool) -> list[go.Scatter]:
    """Bands and line of one method in one panel; the line is the last."""
    traces, text = [], partial(_agreement_hover, method=style.name)
    if value == "split_half" and rows["split_half_null"].notna().any():
        null = rows["split_half_null"]
        if is_single:
            floor = [min(0.0, null.min())] * len(rows)
            traces.append(band(rows["layer"], floor, null, translucent(CONTROL, 0.2)))
        traces.append(curve(rows, null.name, replace(style, dash="dot"), x="layer", mode="lines", width=1.5))
    if is_single and f"{value}_low" in rows and rows[f"{value}_low"].notna().all():
        traces.append(curve_with_band(rows, value, style, text)[0])
    traces = [each.update(legendgroup=style.name, showlegend=False) for each in traces]
    return [*traces, curve(rows, value, style, text, x="layer", size=4, legendgroup=style.name)]


def _agreement_hover(row: dict[str, Any], method: str) -> str:
    reliability = f"expected with that of all such pairs {number(row['reliability'])}"
    return hover(
        f"<b>layer {row['layer']}</b>, {method}, {row['pairs']:.0f} pairs",
        f"halves {interval(row, 'split_half')}, shuffled labels {number(row['split_half_null'])}",
        f"single pairs {interval(row, 'single')}",
        f"other methods {number(row['between'])}, cone {number(row['cone'])}°",
        "" if pd.isna(row["reliability"]) else reliability,
    )


@checked
def mean_projections(
    table: pd.DataFrame, *, value: Literal["projection", "cosine"] = "projection"
) -> go.Figure:
    """Means by layer with 95% bands, a line per level; below, the spread, and the difference of the pairs.

    Args:
        table: from `analysis.mean_projections`, by "side" (colours) and at most one factor (dashes), or by
            one factor.
        value: "cosine" has no panel of the spread.

    The numbers at the differences are the first ranks by effect (the difference in standard deviations of the
    pairs), which need not be the highest points: projections grow with the residual stream.
    """
    values = [value, "spread"] if value == "projection" else [value]
    table = figure_table(table, "mean_projections", "layer", "n", *with_ends(*values))
    by = [name for name in table.columns if name not in MEAN_COLUMNS]
    if not by or len(set(by) - {"side"}) > 1:
        raise ValueError(
            f"plots.mean_projections: the table is split by {by}: expected 'side' and at most one "
            "factor. Select one value of the others and drop their columns."
        )
    colour = "side" if "side" in by else by[0]
    dash = next((name for name in by if name != colour), None)
    is_difference = table["side"] == "difference" if colour == "side" else pd.Series(False, table.index)
    has_differences = bool(is_difference.any())
    figure = _mean_panels(values, has_differences=has_differences)
    for row, name in enumerate(values, start=1):
        for traces in _level_curves(table[~is_difference], name, colour, dash):
            traces[-1].showlegend = row == 1
            figure.add_traces(traces, rows=row, cols=1)
    is_labelled = label_lines(figure, [trace for trace in figure.data if trace.showlegend])
    for traces in _level_curves(table[is_difference], value, colour, dash):
        traces[-1].showlegend = dash is not None or not is_labelled
        figure.add_traces(traces, rows=len(values) + 1, cols=1)
    figure.update_xaxes(**layer_range(table["layer"]))
    figure.update_layout(legend_title_text=escape(", ".join(by)))
    n, noun = (table["n"][is_difference], "pair") if has_differences else (table["n"], "prompt")
    ranks = "; 1, 2, 3: the largest effects" if has_differences and value == "projection" else ""
    subtitle = f"{counted(n, noun)} per point; bands: 95% intervals{ranks}"
    title = f"Mean {value}{' and spread' * (len(values) > 1)} by layer"
    height = 460 + 140 * (len(values) - 1) + 100 * has_differences
    return styled(figure, title, subtitle, height=height)


def _mean_panels(values: list[str], *, has_differences: bool) -> go.Figure:
    heights = [0.62, 0.3][: len(values)] + [0.38] * has_differences
    shares = [height / sum(heights) for height in heights]
    figure = subplots(len(heights), 1, shared_xaxes=True, vertical_spacing=0.05, row_heights=shares)
    figure.update_xaxes(title_text="layer", row=len(heights))
    figure.update_yaxes(title_text=f"mean {axis_title(values[0])}", row=1)
    if len(values) > 1:
        figure.update_yaxes(title_text=axis_title("spread"), rangemode="tozero", row=2)
    if has_differences:
        figure.update_yaxes(title_text="positive − negative", row=len(heights), zeroline=False)
        figure.add_hline(y=0, line=DASHED, row=len(heights), col=1)
    return figure


def _level_curves(table: pd.DataFrame, value: str, colour: str, dash: str | None) -> list[list[go.Scatter]]:
    """Band and line of each level of the `colour` factor (a difference in ink) and of the `dash` factor."""
    names, parts = levels(table[colour]), levels(table[dash]) if dash else [""]
    if len(parts) > len(DASHES):
        raise ValueError(f"{dash!r} has {len(parts)} values: expected at most {len(DASHES)}.")
    colours = {"difference": INK} if names == ["difference"] else level_colours(names)
    curves = []
    for name, shade in colours.items():
        for part, style in zip(parts, DASHES, strict=False):
            rows = at_level(table, colour, name)
            rows = at_level(rows, dash, part) if dash else rows
            label = f"{name}, {part}" if dash else name
            text = partial(_mean_hover, value=value, name=label)
            around, line = curve_with_band(rows, value, Style(escape(label), shade, style), text)
            if name == "difference" and value == "projection" and "rank" in rows:
                line.update(mode="lines+markers+text", textposition="top center", textfont_size=12)
                ranks = rows.sort_values("layer")["rank"]
                is_first = (ranks <= TOP_RANKS).fillna(False)
                line.text = ranks.astype(float).map("{:.0f}".format).where(is_first, "")
            curves.append([around, line])
    return curves


def _mean_hover(row: dict[str, Any], value: str, name: str) -> str:
    ranks = f"(rank {row.get('rank')}; by projection {row.get('projection_rank')})"
    effect = "" if pd.isna(row.get("effect")) else f"effect {number(row['effect'])} {ranks}"
    heading = f"<b>layer {row['layer']}</b>, {escape(name)}, n = {row['n']:.0f}"
    return hover(heading, f"{value} {interval(row, value)}", effect)
