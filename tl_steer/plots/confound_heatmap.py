"""How far a vector points along letter, length, truth, as a heatmap over layers."""

from typing import Any

import pandas as pd
import plotly.graph_objects as go

from .._util.validation import checked
from .labels import counted, escape, level, number, require_columns
from .marks import layer_step, rounded
from .template import CONTROL, DIVERGING, INK, spaced, styled, translucent

COLUMNS = (
    "layer", "factor", "contrast", "cosine", "share", "null_high", "differs", "balanced", "pairs", "method",
)  # fmt: skip
MOST_FACTORS = 20
ALL = "all"


@checked
def confounds(table: pd.DataFrame) -> go.Figure:
    """Cosines of a vector with the directions of factors (rows) by layer, with a dot where beyond chance.

    Args:
        table: what `analysis.confounds` makes of one vector.

    Raises:
        ValueError: no rows, columns are missing, repeated cells, or more factors than can be read.

    Grey rows with question marks are factors that vary between the sides only: nothing can be said of them,
    and the vector may be theirs.
    """
    require_columns(table, COLUMNS, figure="confounds", maker="analysis.confounds(vectors, activations)")
    layers = sorted(table["layer"].unique().tolist())
    factors = list(dict.fromkeys(table["factor"]))
    _require_readable(table, factors)
    cells = {(row["factor"], row["layer"]): row for row in table.to_dict("records")}
    grid = [[cells.get((factor, layer)) for layer in layers] for factor in factors]
    names = [_named(rows) for rows in grid]
    figure = go.Figure(
        go.Heatmap(
            x=layers,
            y=names,
            z=[rounded(cell and cell["cosine"] for cell in row) for row in grid],
            zmin=-1,
            zmax=1,
            colorscale=spaced(DIVERGING),
            colorbar={"title": {"text": "cosine"}, "thickness": 14, "outlinewidth": 0},
            hovertext=[["" if cell is None else _hover(cell) for cell in row] for row in grid],
            hovertemplate="%{hovertext}<extra></extra>",
            hoverongaps=False,
            xgap=1,
            ygap=2,
        )
    )
    _mark(figure, grid, names)
    figure.update_xaxes(
        title_text="layer", tick0=0, dtick=layer_step(layers), showgrid=False, zeroline=False,
        range=[layers[0] - 0.5, layers[-1] + 0.5],
    )  # fmt: skip
    figure.update_yaxes(
        type="category", categoryorder="array", categoryarray=names[::-1], showgrid=False,
        range=[-0.5, len(names) - 0.5],
    )  # fmt: skip
    methods = ", ".join(escape(level(name)) for name in table["method"].unique())
    dots = "dot: p ≤ 0.05, corrected for all layers and factors"
    if table["null_high"].isna().all() and table["cosine"].notna().any():
        dots = "19 shuffles or more are needed to reach p ≤ 0.05"
    subtitle = f"{methods}, {counted(table['pairs'], 'pair')}; {dots}"
    height = min(700, 220 + 34 * len(names))
    return styled(figure, "What else does the vector point along?", subtitle, height=height)


def _require_readable(table: pd.DataFrame, factors: list[str]) -> None:
    if table.duplicated(["layer", "factor"]).any():
        raise ValueError("plots.confounds: rows share a cell; are these several tables in one? Select one.")
    if len(factors) > MOST_FACTORS:
        raise ValueError(
            f"plots.confounds: {len(factors)} factors cannot be read, "
            f"at most {MOST_FACTORS} can: select some."
        )


def _named(row: list[dict[str, Any] | None]) -> str:
    cell = next(cell for cell in row if cell is not None)
    if cell["factor"] == ALL:
        return "all together" if cell["balanced"] else "all others together"
    told = cell["contrast"] if " = " not in cell["factor"] else ""
    return escape(f"{cell['factor']} ({told})" if told else cell["factor"])


def _mark(figure: go.Figure, grid: list[list[dict[str, Any] | None]], names: list[str]) -> None:
    """Dots where a cosine is beyond chance, question marks where none can be had."""
    known = [(cell, name) for row, name in zip(grid, names, strict=True) for cell in row if cell is not None]
    beyond = [(cell["layer"], name) for cell, name in known if cell["differs"]]
    unknown = [
        (cell["layer"], name) for cell, name in known if not cell["balanced"] and pd.isna(cell["cosine"])
    ]
    if beyond:
        x, y = zip(*beyond, strict=True)
        dots = {"size": 6, "color": INK, "line": {"width": 1, "color": "white"}}
        figure.add_scatter(x=x, y=y, mode="markers", marker=dots, hoverinfo="skip", showlegend=False)
    if unknown:
        x, y = zip(*unknown, strict=True)
        figure.add_scatter(
            x=x, y=y, mode="markers+text", text=["?"] * len(x), textfont={"size": 12, "color": INK},
            marker={"size": 18, "symbol": "square", "color": translucent(CONTROL, 0.35)},
            hovertext=[_hover(cell) for cell, name in known if (cell["layer"], name) in set(unknown)],
            hoverinfo="text", showlegend=False,
        )  # fmt: skip


def _hover(cell: dict[str, Any]) -> str:
    contrast = f" ({escape(cell['contrast'])})" if cell["contrast"] else ""
    lines = [f"<b>layer {cell['layer']}</b>, {escape(cell['factor'])}{contrast}"]
    if pd.isna(cell["cosine"]):
        return "<br>".join([*lines, "varies between the sides only: cannot be told from the vector"])
    lines.append(f"cosine {number(cell['cosine'])}, {number(100 * cell['share'])}% of the squared length")
    lines.append(f"factors that mean nothing, at any layer: up to ±{number(cell['null_high'])}")
    return "<br>".join(lines)
