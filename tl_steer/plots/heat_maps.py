"""Heat maps: confounds, correlations with principal components, tokens of the logit lens."""

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import pandas as pd
import plotly.graph_objects as go

from .._util.characters import visible
from .._util.validation import checked
from .format import (
    counted,
    escape,
    hover,
    interval,
    level,
    number,
    prompt_labels,
    truncated,
    wrapped,
)
from .marks import Hover, Row, add_layer_slider, colour_bar, curve, layer_range, selected_layers
from .panels import figure_table, with_ends
from .style import BLUE, CONTROL, DIVERGING, INK, Style, colour_scale, styled, subplots, translucent

CONFOUND_COLUMNS = (
    "layer", "factor", "contrast", "cosine", "share", "null_high", "differs", "balanced", "pairs", "method",
)  # fmt: skip
MAX_FACTORS = 20
FACTOR_COLUMNS = (
    "layer", "component", "explained", "factor", "level", *with_ends("correlation"), "n", "units",
)  # fmt: skip
MAX_ROWS = 14  # legible factors and components
LENS_COLUMNS = ("layer", "rank", "token_id", "token", "logit", "probability")
MAX_LENS_PANELS, MAX_RANKS, FEW_LAYERS = 4, 10, 12
CELL_LENGTH = 11  # characters of a token
LENS_ROW, LENS_TOP, LENS_BOTTOM, LENS_GAP = 25, 100, 60, 40  # pixels: of a layer, around panels, between
CORRELATION = {"zmin": -1, "zmax": 1, "colorscale": colour_scale(DIVERGING)}
LIGHT_TO_DARK = ("#FFFFFF", "#BBDDF1", "#56A5D3", BLUE, "#08355C")


def heat_map(
    rows: pd.DataFrame,
    axes: dict[str, list],
    value: str,
    hover: Hover,
    text: Hover | None = None,
    **more: Any,
) -> go.Heatmap:
    """A heat map of a table that has a row per cell.

    Args:
        axes: the columns of the vertical and of the horizontal axis, each with its values in order.
        text: written into each cell.
        more: titles, colours and gaps.
    """
    records = {tuple(row[name] for name in axes): row for row in rows.to_dict("records")}
    downwards, rightwards = axes.values()
    grid = [[records.get((down, right)) for right in rightwards] for down in downwards]
    if text is not None:
        more |= {"text": _on_grid(grid, text), "texttemplate": "%{text}"}
    z = _on_grid(grid, lambda row: None if pd.isna(row[value]) else row[value], missing=None)
    defaults = {"hovertemplate": "%{hovertext}<extra></extra>", "hoverongaps": False, "xgap": 1, "ygap": 1}
    return go.Heatmap(z=z, hovertext=_on_grid(grid, hover), **(defaults | more))


def _on_grid(grid: list[list], function: Callable[[Row], Any], missing: Any = "") -> list[list]:
    return [[missing if row is None else function(row) for row in line] for line in grid]


def stacked_panels(titles: Sequence[str], *, gap: float) -> go.Figure:
    """Panels below each other with a common x axis; `gap` is a share of the height."""
    return subplots(len(titles), 1, titles, shared_xaxes=True, vertical_spacing=gap * (len(titles) > 1))


@checked
def confounds(table: pd.DataFrame) -> go.Figure:
    """Cosines of a vector with the directions of factors (rows) by layer; a dot where beyond chance.

    Args:
        table: from `analysis.confounds`, of one vector.

    Grey rows with question marks are factors that vary between the sides only: they cannot be distinguished
    from the vector, which may be theirs.
    """
    caller = "plots.confounds"
    table = figure_table(table, "confounds", *CONFOUND_COLUMNS)
    if table.duplicated(["layer", "factor"]).any():
        raise ValueError(f"{caller}: rows share layer and factor: are these several tables in one?")
    layers = sorted(table["layer"].unique().tolist())
    first = table.drop_duplicates("factor")
    names = dict(zip(first["factor"], map(_factor_name, first.to_dict("records")), strict=True))
    if len(names) > MAX_FACTORS:
        raise ValueError(f"{caller}: {len(names)} factors cannot be read, at most {MAX_FACTORS} can.")
    table = table.assign(y=table["factor"].map(names))
    labels, axes = list(names.values()), {"factor": list(names), "layer": layers}
    scale = CORRELATION | {"colorbar": colour_bar("cosine")}
    figure = go.Figure(heat_map(table, axes, "cosine", _confound_hover, x=layers, y=labels, ygap=2, **scale))
    _mark_confounds(figure, table)
    figure.update_xaxes(title_text="layer", showgrid=False, **layer_range(table["layer"]))
    figure.update_yaxes(
        type="category", categoryorder="array", categoryarray=labels[::-1], showgrid=False,
        range=[-0.5, len(labels) - 0.5],
    )  # fmt: skip
    methods = ", ".join(escape(level(name)) for name in table["method"].unique())
    has_null = table["null_high"].notna().any() or table["cosine"].isna().all()
    tested = "dot: p ≤ 0.05, corrected for all layers and factors"
    dots = tested if has_null else "19 shuffles or more are needed to reach p ≤ 0.05"
    subtitle = f"{methods}, {counted(table['pairs'], 'pair')}; {dots}"
    height = min(700, 220 + 34 * len(labels))
    return styled(figure, "What else does the vector point along?", subtitle, height=height)


def _factor_name(row: dict[str, Any]) -> str:
    if row["factor"] == "all":
        return "all together" if row["balanced"] else "all others together"
    contrast = row["contrast"] if " = " not in row["factor"] else ""
    return escape(f"{row['factor']} ({contrast})" if contrast else row["factor"])


def _mark_confounds(figure: go.Figure, table: pd.DataFrame) -> None:
    """Dots where a cosine is beyond chance, question marks where it cannot be measured."""
    beyond = table[table["differs"]]
    unknown = table[~table["balanced"] & table["cosine"].isna()].sort_values("layer")
    if len(beyond):
        edge = {"width": 1, "color": "white"}
        dots = curve(beyond, "y", Style("", INK), x="layer", mode="markers", marker_line=edge)
        figure.add_trace(dots.update(showlegend=False))
    if len(unknown):
        grey = Style("", translucent(CONTROL, 0.35), symbol="square")
        marks = curve(unknown, "y", grey, _confound_hover, x="layer", mode="markers+text", size=18)
        text = ["?"] * len(unknown)
        figure.add_trace(marks.update(text=text, textfont={"size": 12, "color": INK}, showlegend=False))


def _confound_hover(row: dict[str, Any]) -> str:
    contrast = f" ({escape(row['contrast'])})" if row["contrast"] else ""
    heading = f"<b>layer {row['layer']}</b>, {escape(row['factor'])}{contrast}"
    if pd.isna(row["cosine"]):
        return hover(heading, "varies between the sides only: cannot be separated from the vector")
    return hover(
        heading,
        f"cosine {number(row['cosine'])}, {number(100 * row['share'])}% of the squared length",
        f"factors that mean nothing, at any layer: up to ±{number(row['null_high'])}",
    )


@checked
def component_factors(table: pd.DataFrame, *, layer: int | None = None) -> go.Figure:
    """Heat map of correlations of components (rows) with factors (columns), with a slider over layers.

    Args:
        table: from `analysis.component_factors`.
        layer: the layer shown at first; by default the middle one.

    A number in bold has an interval that excludes zero; among many, some do by chance.
    """
    caller = "plots.component_factors"
    table = figure_table(table, "component_factors", *FACTOR_COLUMNS)
    if table.duplicated(["layer", "component", "factor", "level"]).any():
        raise ValueError(f"{caller}: rows share layer, component and factor: expected one table.")
    names = table["factor"] + (" = " + table["level"]).where(table["level"] != "", "")
    table, factors = table.assign(name=names), list(dict.fromkeys(names))
    components = sorted(table["component"].unique().tolist())
    if max(len(factors), len(components)) > MAX_ROWS:
        size = f"{len(components)} components × {len(factors)} factors"
        raise ValueError(f"{caller}: got {size}: expected at most {MAX_ROWS} of each. Select some.")
    layers = sorted(table["layer"].unique().tolist())
    heat_maps = [_correlations(table[table["layer"] == each], components, factors) for each in layers]
    changing = ("y", "z", "text", "hovertext")
    changes = [[{name: [getattr(each, name)] for name in changing}, {}] for each in heat_maps]
    figure = go.Figure(heat_maps[0])
    add_layer_slider(figure, layers, changes, layer)
    figure.update_xaxes(type="category", title_text="factor (the level counted as 1)", showgrid=False)
    figure.update_yaxes(type="category", autorange="reversed", title_text="component (share of variance)")
    figure.update_yaxes(showgrid=False)
    counts = f"{counted(table['n'], 'prompt')}, {counted(table['units'], 'independent unit')}"
    subtitle = f"{counts}; bold: the 95% interval of that cell alone excludes 0"
    height = min(560, max(420, 230 + 60 * len(components)))
    return styled(figure, "What the components go with", subtitle, height=height)


def _correlations(rows: pd.DataFrame, components: list[int], factors: list[str]) -> go.Heatmap:
    """The heat map of one layer."""
    explained = dict(zip(rows["component"], rows["explained"], strict=True))
    shares = [number(100 * explained.get(each, float("nan"))) for each in components]
    return heat_map(
        rows,
        {"component": components, "name": factors},
        "correlation",
        _correlation_hover,
        text=_correlation_text,
        x=[escape(name) for name in factors],
        y=[f"PC{each} ({share}%)" for each, share in zip(components, shares, strict=True)],
        textfont={"size": 13},
        xgap=2,
        ygap=2,
        colorbar=colour_bar("Pearson’s r"),
        **CORRELATION,
    )


def _correlation_text(row: dict[str, Any]) -> str:
    text = number(row["correlation"], "+.2f")
    text = "0.00" if text[1:] == "0.00" else text
    return f"<b>{text}</b>" if row["correlation_low"] * row["correlation_high"] > 0 else text


def _correlation_hover(row: dict[str, Any]) -> str:
    return hover(
        f"<b>layer {row['layer']}, PC{row['component']}</b>, {escape(row['name'])}",
        f"r {interval(row, 'correlation')}",
        f"n = {row['n']:.0f} prompts, {row['units']:.0f} independent units",
    )


@checked
def logit_lens(
    table: pd.DataFrame,
    *,
    value: Literal["probability", "logit"] = "probability",
    layers: Sequence[int] | None = None,
) -> go.Figure:
    """Tokens by layer (rows) and rank (columns), coloured by probability, a panel per multiplier.

    Args:
        table: from `analysis.logit_lens`: of vectors at one to four multipliers; of activations, or of one
            vector per position, the rows of as few prompts and positions.
        value: of the colour.
        layers: those to show; by default all up to twelve. Of more, every second, or third, … counted from
            the last, so that at most twelve are shown.

    Spaces are written ␣, line ends ⏎; long tokens are cut, and complete in the hover. Ranks beyond ten are
    left out. All panels share one colour scale.
    """
    table = figure_table(table, "logit_lens", *LENS_COLUMNS)
    available = sorted(table["layer"].unique().tolist())
    step = math.ceil(len(available) / FEW_LAYERS)
    selected = sorted(set(selected_layers(available, available[::-step] if layers is None else layers)))
    table = table[table["layer"].isin(selected) & (table["rank"] <= MAX_RANKS)]
    if table.empty:
        raise ValueError(f"plots.logit_lens: no row has a rank of at most {MAX_RANKS}.")
    panels = _lens_panels(table)
    inner = len(panels) * len(selected) * LENS_ROW + (len(panels) - 1) * LENS_GAP
    figure = stacked_panels(list(panels), gap=LENS_GAP / inner)
    for row, rows in enumerate(panels.values(), start=1):
        figure.add_trace(_lens_heat_map(rows, selected, value), row=row, col=1)
    bare = {"showgrid": False, "zeroline": False, "ticks": "", "showline": False}
    figure.update_xaxes(dtick=1, **bare)
    figure.update_xaxes(title_text="rank", row=len(panels))
    figure.update_yaxes(type="category", dtick=1, title_text="layer", ticklabelstandoff=5, **bare)
    figure.update_annotations(x=0, xanchor="left")
    lowest = 0.0 if value == "probability" else float(table[value].min())
    scale = {"colorscale": colour_scale(LIGHT_TO_DARK), "colorbar": colour_bar(value)}
    scale |= {"cmin": lowest, "cmax": float(table[value].max())}
    figure.update_layout(coloraxis=scale, margin={"t": LENS_TOP - 76, "b": LENS_BOTTOM})
    subtitle = f"{len(selected)} of {counted([len(available)], 'layer')}; ␣ is a space"
    title, height = "Logit lens: the likeliest tokens", LENS_TOP + inner + LENS_BOTTOM
    return styled(figure, title, subtitle, height=height)


def _lens_panels(table: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The rows of each vector or activation by title; the highest multiplier first."""
    keys = [name for name in ("prompt_id", "token_index", "multiplier") if name in table.columns]
    if table.duplicated([*keys, "layer", "rank"]).any():
        raise ValueError("plots.logit_lens: rows share their layer and rank; select those of one table.")
    ascending = [name != "multiplier" for name in keys]
    sources = table[keys].drop_duplicates().sort_values(keys, ascending=ascending).to_dict("records")
    if len(sources) > MAX_LENS_PANELS:
        raise ValueError(
            f"plots.logit_lens: {len(sources)} combinations of {keys} are too many panels: expected at most "
            f"{MAX_LENS_PANELS}. Select some rows."
        )
    names = {"prompt_id": "prompt {:.0f}", "token_index": "token {:.0f}", "multiplier": "vector × {:+g}"}
    panels = {}
    for source in sources:
        title = ", ".join(names[key].format(value) for key, value in source.items()).replace("-", "−")
        panels[title] = table[(table[keys] == list(source.values())).all(axis=1)]
    return panels


def _lens_heat_map(rows: pd.DataFrame, layers: list[int], value: str) -> go.Heatmap:
    rows = rows.assign(prompt=prompt_labels(rows)) if "prompt" in rows else rows
    ranks = sorted(rows["rank"].unique().tolist())
    return heat_map(
        rows,
        {"layer": layers, "rank": ranks},
        value,
        _lens_hover,
        text=lambda row: escape(truncated(visible(row["token"]), CELL_LENGTH)),
        x=ranks,
        y=list(map(str, layers)),
        textfont={"size": 11},
        coloraxis="coloraxis",
    )


def _lens_hover(row: dict[str, Any]) -> str:
    return hover(
        f"<b>{escape(visible(row['token']))}</b> (id {row['token_id']:.0f})",
        f"layer {row['layer']}, rank {row['rank']:.0f}",
        f"probability {number(row['probability'])}, logit {number(row['logit'], '.4g')}",
        wrapped(row["prompt"]) if "prompt" in row else "",
    )
