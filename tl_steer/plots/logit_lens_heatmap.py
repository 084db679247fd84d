"""What a vector says in the model's vocabulary: the likeliest tokens, layer by layer."""

import math
from collections.abc import Sequence
from typing import Any

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from .._util.validation import checked
from .labels import counted, escape, number, prompt_labels, require_columns, signed, visible, wrapped
from .template import BLUE, spaced, styled

COLUMNS = ("layer", "rank", "token_id", "token", "logit", "probability")
MOST_PANELS = 4
MOST_RANKS = 10
FEW_LAYERS = 12
LONGEST = 11  # characters of a token in its cell
ROW = 25  # pixels of a layer
TOP, BOTTOM, GAP = 100, 60, 40  # pixels above, below and between panels
LIGHT_TO_DARK = ("#FFFFFF", "#BBDDF1", "#56A5D3", BLUE, "#08355C")


@checked
def logit_lens(
    table: pd.DataFrame, *, value: str = "probability", layers: Sequence[int] | None = None
) -> go.Figure:
    """Tokens by layer (rows) and rank (columns), coloured by probability, a panel a multiplier.

    Args:
        table: what `analysis.logit_lens` makes: of vectors at one to four multipliers; of activations, or of
            one vector a position, the rows of as few prompts and positions.
        value: what the colour says: "probability" or "logit".
        layers: those to show, any number; by default all up to twelve. Of more, every second, or third, …
            counted from the last, so that at most twelve are left: the last layers speak clearest.

    Raises:
        ValueError: no rows, columns are missing, an unknown value or layer, too many panels, or rows that
            share a cell.

    Spaces are written ␣, line ends ⏎; long tokens are cut, and whole in the hover. Ranks beyond ten are left
    out. All panels share one scale of colours.
    """
    if value not in ("probability", "logit"):
        raise ValueError(f"value={value!r} is unknown: use 'probability' or 'logit'.")
    require_columns(table, COLUMNS, figure="logit_lens", maker="analysis.logit_lens(model, vectors)")
    available = sorted(table["layer"].unique().tolist())
    chosen = _layers(available, layers)
    table = table[table["layer"].isin(chosen) & (table["rank"] <= MOST_RANKS)]
    if table.empty:
        raise ValueError(f"plots.logit_lens: no row has a rank of at most {MOST_RANKS}.")
    panels = _panels(table)
    each = len(chosen) * ROW
    height = TOP + BOTTOM + len(panels) * each + (len(panels) - 1) * GAP
    figure = make_subplots(
        rows=len(panels),
        cols=1,
        shared_xaxes=True,
        vertical_spacing=GAP / (height - TOP - BOTTOM) if len(panels) > 1 else 0,
        subplot_titles=list(panels),
    )
    for place, rows in enumerate(panels.values(), start=1):
        figure.add_trace(_heatmap(rows, chosen, value), row=place, col=1)
    bare = {"showgrid": False, "zeroline": False, "ticks": "", "showline": False}
    figure.update_xaxes(dtick=1, **bare)
    figure.update_xaxes(title_text="rank", row=len(panels))
    figure.update_yaxes(type="category", dtick=1, title_text="layer", ticklabelstandoff=5, **bare)
    figure.update_annotations(font_size=13, x=0, xanchor="left")
    figure.update_layout(coloraxis=_scale(table, value), margin={"t": TOP, "b": BOTTOM})
    subtitle = f"{len(chosen)} of {counted([len(available)], 'layer')}; ␣ is a space"
    return styled(figure, "Logit lens: the likeliest tokens", subtitle, height=height)


def _layers(available: list[int], layers: Sequence[int] | None) -> list[int]:
    """Those asked for, or every k-th from the last, so that at most `FEW_LAYERS` are left."""
    if layers is None:
        step = math.ceil(len(available) / FEW_LAYERS)
        return available[::-step][::-1]
    missing = [layer for layer in layers if layer not in available]
    if missing or not len(layers):
        raise ValueError(f"no layers {missing} in the table; it has {', '.join(map(str, available))}.")
    return sorted({int(layer) for layer in layers})


def _panels(table: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Each vector or activation that was read, by its title; the highest multiplier first."""
    keys = [name for name in ("prompt_id", "token_index", "multiplier") if name in table.columns]
    if table.duplicated([*keys, "layer", "rank"]).any():
        raise ValueError("plots.logit_lens: rows share their layer and rank; select those of one table.")
    ascending = [name != "multiplier" for name in keys]
    cells = table[keys].drop_duplicates().sort_values(keys, ascending=ascending).to_dict("records")
    if len(cells) > MOST_PANELS:
        raise ValueError(
            f"plots.logit_lens: {len(cells)} combinations of {keys} are too many panels, "
            f"at most {MOST_PANELS} can be read: select some rows first."
        )
    return {_title(cell): table[(table[keys] == list(cell.values())).all(axis=1)] for cell in cells}


def _title(cell: dict[str, Any]) -> str:
    parts = [f"prompt {cell['prompt_id']:.0f}"] if "prompt_id" in cell else []
    parts += [f"token {cell['token_index']:.0f}"] if "token_index" in cell else []
    parts += [f"vector × {signed(cell['multiplier'])}"] if "multiplier" in cell else []
    return ", ".join(parts)


def _heatmap(rows: pd.DataFrame, layers: list[int], value: str) -> go.Heatmap:
    rows = rows.assign(prompt=prompt_labels(rows)) if "prompt" in rows else rows
    cells = {(row["layer"], row["rank"]): row for row in rows.to_dict("records")}
    ranks = sorted(rows["rank"].unique().tolist())
    grid = [[cells.get((layer, rank)) for rank in ranks] for layer in layers]
    return go.Heatmap(
        x=ranks,
        y=[str(layer) for layer in layers],
        z=[[None if cell is None else float(f"{cell[value]:.5g}") for cell in line] for line in grid],
        text=[
            ["" if cell is None else escape(_cut(visible(cell["token"]))) for cell in line] for line in grid
        ],
        hovertext=[["" if cell is None else _hover(cell) for cell in line] for line in grid],
        texttemplate="%{text}",
        textfont={"size": 11},
        hovertemplate="%{hovertext}<extra></extra>",
        coloraxis="coloraxis",
        xgap=1,
        ygap=1,
    )


def _hover(cell: dict[str, Any]) -> str:
    lines = [
        f"<b>{escape(visible(cell['token']))}</b> (id {cell['token_id']})",
        f"layer {cell['layer']}, rank {cell['rank']}",
        f"probability {number(cell['probability'])}, logit {number(cell['logit'], 4)}",
    ]
    return "<br>".join([*lines, wrapped(cell["prompt"])] if "prompt" in cell else lines)


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"


def _scale(table: pd.DataFrame, value: str) -> dict[str, Any]:
    low = 0.0 if value == "probability" else float(table[value].min())
    return {
        "colorscale": spaced(LIGHT_TO_DARK),
        "cmin": low,
        "cmax": float(table[value].max()),
        "colorbar": {"title": {"text": value}, "thickness": 14, "outlinewidth": 0},
    }
