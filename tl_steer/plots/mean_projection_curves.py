"""Mean and spread of the projections of both sides by layer, and the difference of the same pairs below."""

from typing import Any

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from .._util.validation import checked
from .labels import counted, escape, interval, level, levels, number, require_columns
from .marks import band, layer_step
from .template import DASHES, INK, level_colours, styled, translucent

MAKER = "analysis.mean_projections(projections_table, by=…)"
NUMBERS = ("projection", "cosine", "spread", "effect", "rank", "projection_rank")
TITLES = {"projection": "projection (stream units)", "cosine": "cosine"}
RANKED = 3  # layers whose rank is written at their point


@checked
def mean_projections(table: pd.DataFrame, *, value: str = "projection") -> go.Figure:
    """Means by layer with 95% bands, a line per level; below, the spread, and the difference of the pairs.

    Args:
        table: what `analysis.mean_projections` makes, by "side" (colours) and at most one factor (dashes), or
            by one factor.
        value: "projection" in the residual stream's units, or "cosine", which has no panel of the spread.

    Raises:
        ValueError: no rows, columns are missing, an unknown value, several factors, or too many levels.

    The numbers at the differences are the first ranks by effect (the difference in standard deviations of the
    pairs), which need not be the highest points: projections grow with the stream.
    """
    if value not in TITLES:
        raise ValueError(f"value={value!r} is unknown: use 'projection' or 'cosine'.")
    shown = [value, "spread"] if value == "projection" else [value]
    columns = ["layer", "n", *(f"{name}{end}" for name in shown for end in ("", "_low", "_high"))]
    require_columns(table, columns, figure="mean_projections", maker=MAKER)
    by = _factors(table)
    has_sides = "side" in by
    other = next((name for name in by if name != "side"), None)
    difference = table["side"] == "difference" if has_sides else pd.Series(False, table.index)
    figure = _empty(shown, with_differences=bool(difference.any()))
    for row, name in enumerate(shown, start=1):
        colour, dash = ("side", other) if has_sides else (by[0], None)
        _draw(figure, table[~difference], name, colour, dash, row)
    if difference.any():
        _draw_differences(figure, table[difference], value, other, len(shown) + 1)
    ends = [table["layer"].min() - 0.5, table["layer"].max() + 0.5]
    figure.update_xaxes(range=ends, zeroline=False, tick0=0, dtick=layer_step(table["layer"]))
    figure.update_layout(legend_title_text=escape(", ".join(by)))
    n = table["n"][difference] if difference.any() else table["n"]
    noun = "pair" if difference.any() else "prompt"
    ranks = "; 1, 2, 3: the largest effects" if difference.any() and value == "projection" else ""
    subtitle = f"{counted(n, noun)} a point; bands: 95% intervals{ranks}"
    title = f"Mean {value} and spread by layer" if value == "projection" else f"Mean {value} by layer"
    return styled(figure, title, subtitle, height=460 + 140 * (len(shown) - 1) + 100 * int(difference.any()))


def _factors(table: pd.DataFrame) -> list[str]:
    """The columns that the table is split by: those that are no number of its own."""
    own = {"layer", "n", *NUMBERS}
    own |= {f"{name}_{end}" for name in (*TITLES, "spread") for end in ("low", "high")}
    by = [name for name in table.columns if name not in own]
    if not by or len(set(by) - {"side"}) > 1:
        raise ValueError(
            f"plots.mean_projections shows 'side' and one factor at most; the table is split by {by}: "
            "select one value of the others and drop their columns."
        )
    return by


def _empty(shown: list[str], *, with_differences: bool) -> go.Figure:
    heights = [0.62, 0.3][: len(shown)] + [0.38] * with_differences
    figure = make_subplots(
        rows=len(heights),
        cols=1,
        shared_xaxes=True,
        vertical_spacing=0.05,
        row_heights=[height / sum(heights) for height in heights],
    )
    figure.update_xaxes(title_text="layer", row=len(heights))
    figure.update_yaxes(title_text=f"mean {TITLES[shown[0]]}", row=1)
    if len(shown) > 1:
        figure.update_yaxes(title_text="spread (SD)", rangemode="tozero", row=2)
    if with_differences:
        figure.update_yaxes(title_text="positive − negative", row=len(heights), zeroline=False)
        figure.add_hline(y=0, line={"color": INK, "width": 1, "dash": "dash"}, row=len(heights), col=1)
    return figure


def _draw(
    figure: go.Figure, table: pd.DataFrame, value: str, colour: str, dash: str | None, row: int
) -> None:
    for name, shade in level_colours(levels(table[colour])).items():
        rows = table[table[colour].map(level) == name]
        for part, style in _dashes(table, dash).items():
            chosen = rows if part is None else rows[rows[dash].map(level) == part]
            label = name if part is None else f"{name}, {part}"
            around, line = _curve(chosen, value, label, shade, style)
            figure.add_traces([around, line.update(showlegend=row == 1)], rows=row, cols=1)


def _draw_differences(figure: go.Figure, table: pd.DataFrame, value: str, dash: str | None, row: int) -> None:
    for part, style in _dashes(table, dash).items():
        rows = table if part is None else table[table[dash].map(level) == part]
        label = "difference" if part is None else f"difference, {part}"
        around, line = _curve(rows, value, label, INK, style)
        if value == "projection" and "rank" in rows:
            line.mode = "lines+markers+text"
            line.text = [_rank(rank) for rank in rows.sort_values("layer")["rank"]]
            line.textposition = "top center"
            line.textfont = {"size": 12, "color": INK}
        figure.add_traces([around, line], rows=row, cols=1)


def _rank(rank: Any) -> str:
    return str(int(rank)) if not pd.isna(rank) and rank <= RANKED else ""


def _dashes(table: pd.DataFrame, dash: str | None) -> dict[str | None, str]:
    if dash is None:
        return {None: "solid"}
    names = levels(table[dash])
    if len(names) > len(DASHES):
        raise ValueError(f"{dash!r} has {len(names)} values, at most {len(DASHES)} dashes can be told apart.")
    return dict(zip(names, DASHES, strict=False))


def _curve(rows: pd.DataFrame, value: str, name: str, colour: str, dash: str) -> list[go.Scatter]:
    rows = rows.sort_values("layer")
    low, high = rows[f"{value}_low"], rows[f"{value}_high"]
    shared = {"legendgroup": escape(name), "name": escape(name)}
    around = band(rows["layer"], low, high, translucent(colour, 0.15), showlegend=False, **shared)
    line = go.Scatter(
        x=rows["layer"],
        y=rows[value],
        mode="lines+markers",
        line={"color": colour, "width": 2, "dash": dash},
        marker={"size": 5},
        hovertext=[_hover(row, value, name) for row in rows.to_dict("records")],
        hoverinfo="text",
        **shared,
    )
    return [around, line]


def _hover(row: dict[str, Any], value: str, name: str) -> str:
    lines = [
        f"<b>layer {row['layer']}</b>, {escape(name)}, n = {row['n']}",
        f"{value} {interval(row[value], row[f'{value}_low'], row[f'{value}_high'])}",
    ]
    if {"rank", "projection_rank"} <= set(row) and not pd.isna(row.get("effect")):
        lines.append(
            f"effect {number(row['effect'])} (rank {row['rank']}; by projection {row['projection_rank']})"
        )
    return "<br>".join(lines)
