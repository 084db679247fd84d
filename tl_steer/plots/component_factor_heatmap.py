"""Which factors principal components go with, as a heatmap at any layer."""

from typing import Any

import pandas as pd
import plotly.graph_objects as go

from .._util.validation import checked
from .labels import counted, escape, interval, number, require_columns, start_of
from .marks import layer_slider, rounded
from .template import DIVERGING, spaced, styled

COLUMNS = (
    "layer", "component", "explained", "factor", "level", "correlation", "correlation_low",
    "correlation_high", "n", "units",
)  # fmt: skip
MOST_CELLS = 14  # factors beside each other, and components below each other, that can be read


@checked
def component_factors(table: pd.DataFrame, *, layer: int | None = None) -> go.Figure:
    """Correlations of components (rows) with factors (columns), numbers in the cells, a slider over layers.

    Args:
        table: what `analysis.component_factors` makes.
        layer: the layer shown at first; by default the middle one.

    Raises:
        ValueError: no rows, columns are missing, an unknown layer, repeated cells, or more than can be read.

    A number in bold has an interval that excludes zero; among many cells, some do by chance.
    """
    maker = "analysis.component_factors(pca_table)"
    require_columns(table, COLUMNS, figure="component_factors", maker=maker)
    factors = list(dict.fromkeys(_named(row) for row in table.to_dict("records")))
    components = sorted(table["component"].unique().tolist())
    _require_readable(table, factors, components)
    layers = [str(value) for value in sorted(table["layer"].unique())]
    start = start_of(layers, layer)
    shown = [_at(table[table["layer"] == int(value)], components, factors) for value in layers]
    changes = [[{name: [each] for name, each in drawn.items()}, {}] for drawn in shown]
    figure = go.Figure(
        go.Heatmap(
            x=[escape(name) for name in factors],
            **shown[start],
            zmin=-1,
            zmax=1,
            colorscale=spaced(DIVERGING),
            colorbar={"title": {"text": "Pearson’s r"}, "thickness": 14, "outlinewidth": 0},
            texttemplate="%{text}",
            textfont={"size": 13},
            hovertemplate="%{hovertext}<extra></extra>",
            xgap=2,
            ygap=2,
        )
    )
    figure.update_xaxes(type="category", title_text="factor (the level counted as 1)", showgrid=False)
    figure.update_yaxes(
        type="category", autorange="reversed", title_text="component (share of variance)", showgrid=False
    )
    figure.update_layout(sliders=layer_slider(layers, changes, start))
    count = f"{counted(table['n'], 'prompt')}, {counted(table['units'], 'independent unit')}"
    height = min(560, max(420, 230 + 60 * len(components)))
    title = "What the components go with"
    return styled(
        figure, title, f"{count}; bold: the 95% interval of that cell alone excludes 0", height=height
    )


def _require_readable(table: pd.DataFrame, factors: list[str], components: list[int]) -> None:
    if table.duplicated(["layer", "component", "factor", "level"]).any():
        raise ValueError("plots.component_factors: rows share a cell; are these several tables in one?")
    if max(len(factors), len(components)) > MOST_CELLS:
        raise ValueError(
            f"plots.component_factors: {len(components)} components × {len(factors)} factors cannot be read, "
            f"at most {MOST_CELLS} of each can: select some."
        )


def _named(row: dict[str, Any]) -> str:
    return f"{row['factor']} = {row['level']}" if row["level"] else str(row["factor"])


def _at(rows: pd.DataFrame, components: list[int], factors: list[str]) -> dict[str, Any]:
    """What the slider changes: one layer's numbers, texts and names of components."""
    cells = {(row["component"], _named(row)): row for row in rows.to_dict("records")}
    grid = [[cells.get((component, factor)) for factor in factors] for component in components]
    explained = dict(zip(rows["component"], rows["explained"], strict=True))
    return {
        "y": [f"PC{each} ({number(100 * explained.get(each, float('nan')))}%)" for each in components],
        "z": [rounded(cell and cell["correlation"] for cell in line) for line in grid],
        "text": [["" if cell is None else _text(cell) for cell in line] for line in grid],
        "hovertext": [["" if cell is None else _hover(cell) for cell in line] for line in grid],
    }


def _text(cell: dict[str, Any]) -> str:
    if pd.isna(cell["correlation"]):
        return "–"
    text = f"{cell['correlation']:+.2f}".replace("-", "−")
    text = "0.00" if text[1:] == "0.00" else text
    return f"<b>{text}</b>" if cell["correlation_low"] * cell["correlation_high"] > 0 else text


def _hover(cell: dict[str, Any]) -> str:
    r = interval(*(cell[f"correlation{end}"] for end in ("", "_low", "_high")))
    return "<br>".join(
        (
            f"<b>layer {cell['layer']}, PC{cell['component']}</b>, {escape(_named(cell))}",
            f"r {r}",
            f"n = {cell['n']} prompts, {cell['units']} independent units",
        )
    )
