"""How far vectors of the same pairs agree, by layer: halves, single pairs, methods, draws."""

from typing import Any

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from .._util.validation import checked
from .labels import counted, escape, interval, level, number, require_columns
from .marks import band, layer_step
from .template import CONTROL, level_colours, styled, translucent

PANELS = {
    "split_half": "vectors of two halves",
    "single": "single pairs with the vector",
    "between": "with the other methods’ vectors",
    "cone": "95% of resampled vectors lie within",
}
COLUMNS = (
    "layer", "method", "split_half", "split_half_low", "split_half_high", "split_half_null", "reliability",
    "single", "single_low", "single_high", "cone", "between", "pairs",
)  # fmt: skip


@checked
def agreement(table: pd.DataFrame) -> go.Figure:
    """Four panels by layer, a line a method: halves over their null, single pairs, methods, the cone.

    Args:
        table: what `analysis.agreement` makes.

    Raises:
        ValueError: no rows, columns are missing, or a layer and method is there twice.

    Below the dotted line, halves agree no better than with exchanged sides. Of one method it is shaded below,
    and bands show the middle 95 % of splits and of pairs; of several these are in the hover. A panel of which
    the table knows nothing (one method has none to agree with) is left out.
    """
    require_columns(table, COLUMNS, figure="agreement", maker="analysis.agreement(activations)")
    if table.duplicated(["layer", "method"]).any():
        raise ValueError(
            "plots.agreement: a layer and method is there twice; are these several tables in one?"
        )
    colours = level_colours(dict.fromkeys(table["method"].map(level)))
    shown = [name for name in PANELS if table[name].notna().any()]
    columns = 3 if len(shown) == 3 else 2
    figure = _empty(shown, columns)
    for place, name in enumerate(shown):
        for method, colour in colours.items():
            rows = table[table["method"].map(level) == method].sort_values("layer")
            traces = _curve(rows, name, escape(method), colour, alone=len(colours) == 1)
            traces[-1].showlegend = place == 0
            figure.add_traces(traces, rows=place // columns + 1, cols=place % columns + 1)
    ends = [table["layer"].min() - 0.5, table["layer"].max() + 0.5]
    figure.update_xaxes(range=ends, zeroline=False, tick0=0, dtick=layer_step(table["layer"], most=10))
    tall = len(shown) > columns
    legend = {"orientation": "h", "x": 0, "y": -0.13 if tall else -0.22, "yanchor": "top"}
    figure.update_layout(legend=legend, margin={"t": 104, "r": 24})
    bands = "; bands: the middle 95% of splits and of pairs" * (len(colours) == 1)
    dotted = f"{counted(table['pairs'], 'pair')}; dotted: 97.5% with shuffled labels, at each layer alone"
    return styled(figure, "Do vectors of these pairs agree?", dotted + bands, height=660 if tall else 420)


def _empty(shown: list[str], columns: int) -> go.Figure:
    figure = make_subplots(
        rows=-(-len(shown) // columns),
        cols=min(len(shown), columns),
        horizontal_spacing=0.09,
        vertical_spacing=0.13,
        subplot_titles=[PANELS[name] for name in shown],
    )
    figure.update_annotations(font_size=13)
    for place, name in enumerate(shown):
        where = {"row": place // columns + 1, "col": place % columns + 1}
        figure.update_yaxes(title_text="degrees" if name == "cone" else "cosine", **where)
        figure.update_yaxes(rangemode="tozero", **where)
        if place >= len(shown) - columns:
            figure.update_xaxes(title_text="layer", **where)
    return figure


def _curve(rows: pd.DataFrame, name: str, method: str, colour: str, *, alone: bool) -> list[go.Scatter]:
    """The bands and the line of one method in one panel; the line is the last."""
    layers, around = rows["layer"], []
    if name == "split_half" and rows["split_half_null"].notna().any():
        around += _null(rows, colour, alone)
    if alone and f"{name}_low" in rows and rows[f"{name}_low"].notna().all():
        ends = rows[f"{name}_low"], rows[f"{name}_high"]
        around.append(band(layers, *ends, translucent(colour, 0.15)))
    for each in around:
        each.update(legendgroup=method, showlegend=False)
    line = go.Scatter(
        x=layers,
        y=rows[name],
        mode="lines+markers",
        name=method,
        legendgroup=method,
        line={"color": colour, "width": 2},
        marker={"size": 4},
        hovertext=[_hover(row, method) for row in rows.to_dict("records")],
        hoverinfo="text",
    )
    return [*around, line]


def _null(rows: pd.DataFrame, colour: str, alone: bool) -> list[go.Scatter]:
    edge = go.Scatter(
        x=rows["layer"],
        y=rows["split_half_null"],
        mode="lines",
        line={"color": colour, "width": 1.5, "dash": "dot"},
        hoverinfo="skip",
    )
    floor = [min(0.0, rows["split_half_null"].min())] * len(rows)
    shade = band(rows["layer"], floor, rows["split_half_null"], translucent(CONTROL, 0.2))
    return [shade, edge] if alone else [edge]


def _hover(row: dict[str, Any], method: str) -> str:
    halves = interval(*(row[f"split_half{end}"] for end in ("", "_low", "_high")))
    lines = [
        f"<b>layer {row['layer']}</b>, {method}, {row['pairs']} pairs",
        f"halves {halves}, exchanged sides {number(row['split_half_null'])}",
        f"single pairs {interval(*(row[f'single{end}'] for end in ('', '_low', '_high')))}",
        f"other methods {number(row['between'])}, cone {number(row['cone'])}°",
    ]
    if not pd.isna(row["reliability"]):
        lines.append(f"expected with that of all such pairs {number(row['reliability'])}")
    return "<br>".join(lines)
