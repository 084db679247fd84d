"""What estimators find of a known direction, by number of pairs, a panel a condition."""

from typing import Any

import pandas as pd
import plotly.graph_objects as go

from .._util.validation import checked
from .cells import Panel
from .labels import escape, require_columns
from .panel_grid import PanelGrid
from .template import CONTROL, DASHES, QUALITATIVE, SYMBOLS, styled, translucent

VALUES = {
    "cosine": "cosine with the planted direction",
    "flipped": "answers flipped by subtracting it (share)",
    "shift": "change of the gap between true and false claims (nats)",
}
RANGES = {"cosine": (-0.15, 1.05), "flipped": (-0.05, 1.05)}
MAKER = "compare_estimators(model)"


@checked
def estimators(table: pd.DataFrame, *, value: str = "cosine") -> go.Figure:
    """A value by number of pairs, a line an estimator, a panel a condition; whiskers span the repetitions.

    Args:
        table: what `compare_estimators` makes.
        value: "cosine", "flipped" or "shift".

    Raises:
        ValueError: no rows, columns are missing, or an unknown value.
    """
    if value not in VALUES:
        raise ValueError(f"value={value!r} is unknown: use one of {', '.join(VALUES)}.")
    needed = ["condition", "method", "pairs", "repeat", value]
    require_columns(table, needed, figure="estimators", maker=MAKER)
    conditions, methods = (list(table[name].unique()) for name in ("condition", "method"))
    nothing = table.head(0)
    panels = [Panel(escape(each), nothing, nothing, nothing) for each in conditions]
    grid = PanelGrid(panels, x_title="pairs (log scale)", y_title=VALUES[value], y_range=RANGES.get(value))
    for place, condition in enumerate(conditions):
        for rank, method in enumerate(methods):
            rows = table[(table["condition"] == condition) & (table["method"] == method)]
            grid.add(place, _line(rows, value, method, rank), method, rank=rank)
    counts = sorted(table["pairs"].unique())
    grid.figure.update_xaxes(type="log", tickvals=counts, ticktext=[str(count) for count in counts])
    grid.figure.update_layout(legend_title_text="estimator")
    repeats = table["repeat"].nunique()
    subtitle = f"mean of {repeats} draws of pairs; whiskers: their lowest and highest"
    return styled(grid.figure, f"{VALUES[value].split(' (')[0].capitalize()}", subtitle, height=grid.height)


def _line(rows: pd.DataFrame, value: str, method: str, rank: int) -> go.Scatter:
    found = rows.groupby("pairs")[value].agg(["mean", "min", "max"]).reset_index()
    colour = CONTROL if method == "random" else QUALITATIVE[rank % len(QUALITATIVE)]
    return go.Scatter(
        x=found["pairs"],
        y=found["mean"],
        error_y={
            "type": "data",
            "symmetric": False,
            "array": found["max"] - found["mean"],
            "arrayminus": found["mean"] - found["min"],
            "thickness": 1,
            "width": 0,
            "color": translucent(colour, 0.6),
        },
        mode="lines+markers",
        name=escape(method),
        line={"color": colour, "width": 1.5, "dash": DASHES[rank % len(DASHES)]},
        marker={"size": 7, "symbol": SYMBOLS[rank % len(SYMBOLS)]},
        hovertext=[_hover(row, method, value) for row in found.to_dict("records")],
        hoverinfo="text",
    )


def _hover(row: dict[str, Any], method: str, value: str) -> str:
    return (
        f"{escape(method)}, {int(row['pairs'])} pairs<br>{VALUES[value]}: "
        f"{row['mean']:.2f} ({row['min']:.2f} to {row['max']:.2f})"
    )
