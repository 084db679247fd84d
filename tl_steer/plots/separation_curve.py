"""How well held-out pairs separate along a direction, by layer."""

from typing import Any

import pandas as pd
import plotly.graph_objects as go

from .._util.validation import checked
from .labels import counted, escape, interval, level, number, require_columns
from .marks import band, layer_step
from .template import CONTROL, INK, level_colours, styled, translucent

COLUMNS = (
    "layer", "paired_accuracy", "paired_accuracy_low", "paired_accuracy_high", "auc", "d_prime",
    "null_low", "null_high", "null_mean", "p_value", "p_corrected", "null_max", "pairs", "folds", "method",
)  # fmt: skip
LEVEL = 0.05  # of p_corrected


@checked
def separation(table: pd.DataFrame) -> go.Figure:
    """Held-out paired accuracy by layer with its interval, over what shuffled labels give.

    The grey band is pointwise: at each layer the middle 95 % of shuffles. The dotted line is simultaneous:
    only 5 % of shuffles have any layer above it. The subtitle says how many layers lie above the dotted line,
    which is where p_corrected is at most 0.05.

    Args:
        table: what `analysis.separation` makes; several in one (`pandas.concat`) give a line a `method`, or a
            `vector` where there is such a column.

    Raises:
        ValueError: no rows, or columns are missing.
    """
    require_columns(table, COLUMNS, figure="separation", maker="analysis.separation(activations)")
    by = "vector" if "vector" in table.columns else "method"
    colours = level_colours(dict.fromkeys(table[by].map(level)))
    parts = {name: table[table[by].map(level) == name].sort_values("layer") for name in colours}
    figure = go.Figure()
    for place, rows in enumerate(parts.values()):
        if rows["null_low"].notna().any():  # a table made with shuffles=0 has no null
            figure.add_traces(_null(rows, share=len(parts), first=place == 0))
    for name, rows in parts.items():
        if rows["null_max"].notna().any():
            figure.add_trace(_threshold(rows, CONTROL if len(parts) == 1 else colours[name]))
        figure.add_traces(_curve(rows, escape(name), colours[name]))
    figure.add_hline(y=0.5, line={"color": INK, "width": 1, "dash": "dash"})
    figure.add_annotation(
        x=1, xref="paper", y=0.5, text="chance", showarrow=False, xanchor="right", yanchor="bottom"
    )
    lowest = min(0.3, table[["paired_accuracy_low", "null_low"]].min(axis=None))
    ends = [table["layer"].min() - 0.5, table["layer"].max() + 0.5]
    figure.update_xaxes(
        range=ends, zeroline=False, title_text="layer", tick0=0, dtick=layer_step(table["layer"])
    )
    figure.update_yaxes(title_text="paired accuracy (share of held-out pairs)", range=[lowest - 0.03, 1.02])
    return styled(figure, "Do held-out pairs separate?", _subtitle(table, parts))


def _curve(rows: pd.DataFrame, name: str, colour: str) -> list[go.Scatter]:
    low, high = rows["paired_accuracy_low"], rows["paired_accuracy_high"]
    around = band(rows["layer"], low, high, translucent(colour, 0.18), legendgroup=name, showlegend=False)
    line = go.Scatter(
        x=rows["layer"],
        y=rows["paired_accuracy"],
        mode="lines+markers",
        name=name,
        legendgroup=name,
        line={"color": colour, "width": 2},
        marker={"size": 5},
        hovertext=[_hover(row, name) for row in rows.to_dict("records")],
        hoverinfo="text",
    )
    return [around, line]


def _null(rows: pd.DataFrame, *, share: int, first: bool) -> list[go.Scatter]:
    shown = {"legendgroup": "null", "showlegend": first, "name": "shuffled labels, 95%<br>at each layer"}
    around = band(
        rows["layer"], rows["null_low"], rows["null_high"], translucent(CONTROL, 0.5 / (share + 0.5)), **shown
    )
    mean = go.Scatter(
        x=rows["layer"],
        y=rows["null_mean"],
        mode="lines",
        line={"color": CONTROL, "width": 1},
        name="their mean",
        legendgroup="null",
        showlegend=False,
        hoverinfo="skip",
    )
    return [around, mean]


def _threshold(rows: pd.DataFrame, colour: str) -> go.Scatter:
    """The paired accuracy that shuffled labels exceed at any layer in 5 % of shuffles."""
    return go.Scatter(
        x=[rows["layer"].min() - 0.5, rows["layer"].max() + 0.5],
        y=[rows["null_max"].iloc[0]] * 2,
        mode="lines",
        line={"color": colour, "width": 1.5, "dash": "dot"},
        name="shuffled labels, 95%<br>at all layers together",
        hoverinfo="skip",
    )


def _hover(row: dict[str, Any], name: str) -> str:
    accuracy = interval(row["paired_accuracy"], row["paired_accuracy_low"], row["paired_accuracy_high"])
    return "<br>".join(
        (
            f"<b>layer {row['layer']}</b>, {name}",
            f"paired accuracy {accuracy}",
            f"AUC {number(row['auc'])}, d′ {number(row['d_prime'])}",
            f"shuffled labels {interval(row['null_mean'], row['null_low'], row['null_high'])}, "
            f"p = {number(row['p_value'], 2)} for this layer alone",
            f"corrected for all layers p = {number(row['p_corrected'], 2)}",
        )
    )


def _subtitle(table: pd.DataFrame, parts: dict[str, pd.DataFrame]) -> str:
    names = list(parts)
    what = f"{escape(names[0])}, " if len(names) == 1 else ""
    folds = counted(table["folds"], "fold")
    return f"{what}{counted(table['pairs'], 'pair')}, {folds}; band: 95% interval{_significant(parts)}"


def _significant(parts: dict[str, pd.DataFrame]) -> str:
    """At how many layers of each line p_corrected is at most 0.05; nothing without a null."""
    tested = [rows for rows in parts.values() if rows["p_corrected"].notna().any()]
    if not tested:
        return ""
    if any(rows["null_max"].isna().all() for rows in tested):
        return f"; 19 shuffles or more are needed to reach p ≤ {LEVEL}"
    counts = [str(int((rows["p_corrected"] <= LEVEL).sum())) for rows in tested]
    text = " and ".join((", ".join(counts[:-1]), counts[-1])) if len(counts) > 1 else counts[0]
    in_order = ", line by line" if len(counts) > 1 else ""
    layers = counted(map(len, tested), "layer")
    return f"; p ≤ {LEVEL}, corrected for all layers, at {text} of {layers}{in_order}"
