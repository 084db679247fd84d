"""What steering does at each layer, a line a multiplier, beside the unsteered model and random directions."""

from collections.abc import Iterator, Sequence

import pandas as pd
import plotly.graph_objects as go

from .._util.validation import checked
from .cells import (
    CELL,
    UNEVEN,
    Line,
    Panel,
    beside_null,
    cell_hover,
    layer_places,
    lines_of,
    null_of,
    panels_of,
    steps_between,
)
from .labels import controls_text, counted, escape, interval, require_columns
from .marks import UNSIZED, layer_axis, layer_bands, rings, shades, to_scale
from .panel_grid import PanelGrid
from .template import INK, styled, translucent

VALUES = {
    "accuracy": "accuracy (share of prompts)",
    "signal_rate": "answers that say the signal (share)",
    "logit_difference": "logit difference, signal − other (nats)",
    "shift": "shift of the logit difference (nats)",
}
RANGES = {"accuracy": (-0.02, 1.02), "signal_rate": (-0.02, 1.02)}
MAKER = "evaluation.effectiveness(sweep_table, by=…)"


@checked
def effectiveness(table: pd.DataFrame, *, value: str = "accuracy", facet: str | None = None) -> go.Figure:
    """A value by steered layer, a line a multiplier, with 95% intervals.

    Args:
        table: what `evaluation.effectiveness` makes.
        value: "accuracy", "signal_rate", "logit_difference" or "shift" (its change on the same prompts).
        facet: a factor the table is split by; each of its values gets a panel, on common axes.

    Raises:
        ValueError: no rows, columns are missing, an unknown value, or rows that share a cell.

    The grey bands go from the lowest to the highest control cell of a layer, one band a |multiplier|, since a
    control direction has no sign: a line is to be compared with its own. A point within it is a ring.
    """
    check_values(table, value, facet, figure="effectiveness")
    panels = panels_of(table, facet, figure="effectiveness")
    places = layer_places(table)
    grid = PanelGrid(panels, x_title="steered layer", y_title=VALUES[value], y_range=RANGES.get(value))
    nulls = [null_of(panel, value) for panel in panels]
    for rank, (place, trace) in enumerate(_null_bands(nulls, places)):
        grid.add(place, trace, trace.name, rank=900 + rank)
    for place, panel in enumerate(panels):
        for trace in unsteered(panel, value, [min(places.values()) - 0.4, max(places.values()) + 0.4]):
            grid.add(place, trace, "unsteered", rank=800)
    lines = list(lines_of(panels))
    asides = _asides([line.name for _, line in lines], places)
    for place, line in lines:
        rows = beside_null(line.rows, nulls[place])
        rows = rows.assign(place=rows["layers"].map(places) + asides[line.name]).sort_values("place")
        drawn = _line(line, rows, value, to_scale=to_scale(places))
        for trace in (drawn, rings(rows, value)):
            grid.add(place, trace, line.name, rank=line.rank + 1)
    grid.figure.update_xaxes(**layer_axis(places, grid.columns))
    grid.figure.update_layout(legend_title_text="multiplier")
    title = f"{VALUES[value].split(' (')[0].capitalize()} by steered layer"
    return styled(grid.figure, title, _subtitle(table), height=grid.height)


def check_values(table: pd.DataFrame, value: str, facet: str | None, *, figure: str) -> None:
    """Refuse a value that is not in the table, or a table that `effectiveness` did not make.

    Raises:
        ValueError: which it was.
    """
    if value not in VALUES:
        raise ValueError(f"value={value!r} is unknown: use one of {', '.join(VALUES)}.")
    numbers = [f"{value}{end}" for end in ("", "_low", "_high")]
    require_columns(table, [*CELL, "dose", "n", *numbers], figure=figure, maker=MAKER, factors=[facet])
    if table[value].isna().all():
        raise ValueError(
            f"plots.{figure}: {value} is NaN in every row; it needs questions with answers or choices."
        )


def subtitle(table: pd.DataFrame) -> str:
    """How many prompts and control vectors, and what the whiskers are."""
    vectors = table.loc[table["control"].astype(bool), "vector"].nunique()
    return f"{counted(table['n'], 'prompt')} a point; whiskers: 95% intervals{controls_text(vectors)}"


def _subtitle(table: pd.DataFrame) -> str:
    rings = ", a band a |multiplier|; ring: within its own" if table["control"].any() else ""
    return f"{subtitle(table)}{rings}"


def _asides(names: Sequence[str], places: dict[str, float]) -> dict[str, float]:
    """How far each line stands aside, so that whiskers can be told apart; not at all on an axis to scale."""
    names = list(dict.fromkeys(names))
    width = 0.0 if to_scale(places) else min(0.08, 0.5 / len(names))
    return {name: width * (rank - (len(names) - 1) / 2) for rank, name in enumerate(names)}


def _line(line: Line, rows: pd.DataFrame, value: str, *, to_scale: bool) -> go.Scatter:
    singles = [layers for layers in rows["layers"] if layers.isdigit()]
    steps = steps_between(singles)
    # A gap before each set of layers, since nothing lies between layer 31 and "17+31", and where layers that
    # stand one by one leave others out.
    apart = {
        upper
        for upper, step in zip(singles[1:], steps, strict=True)
        if step > UNEVEN * min(steps) and not to_scale
    }
    pieces = [
        pd.DataFrame([{"place": None}, row])
        if row["layers"] in apart or not row["layers"].isdigit()
        else pd.DataFrame([row])
        for row in rows.to_dict("records")
    ]
    spread = pd.concat(pieces, ignore_index=True)
    return go.Scatter(
        x=spread["place"],
        y=spread[value],
        error_y=whiskers(spread, value, line.colour),
        mode="lines+markers",
        name=line.name,
        line={"color": line.colour, "width": 2, "dash": line.dash},
        marker={"size": 6},
        hovertext=[
            cell_hover(row, value) if row["layers"] == row["layers"] else ""
            for row in spread.to_dict("records")
        ],
        hoverinfo="text",
    )


def whiskers(rows: pd.DataFrame, value: str, colour: str) -> dict[str, object]:
    """Interval bars that stay behind their line."""
    return {
        "type": "data",
        "symmetric": False,
        # a NaN in here, even at a gap, makes plotly give up finding the axis's range
        "array": (rows[f"{value}_high"] - rows[value]).fillna(0),
        "arrayminus": (rows[value] - rows[f"{value}_low"]).fillna(0),
        "thickness": 1.2,
        "width": 0,
        "color": translucent(colour, 0.55),
    }


def unsteered(panel: Panel, value: str, ends: list[float]) -> list[go.Scatter]:
    """A panel's unsteered cell from one end of the axis to the other: a line and its interval."""
    if panel.unsteered.empty:
        return []
    row = panel.unsteered.iloc[0]
    low, high = ([row[f"{value}{end}"]] * 2 for end in ("_low", "_high"))
    line = go.Scatter(
        x=ends,
        y=[row[value]] * 2,
        mode="lines",
        name="unsteered",
        line={"color": INK, "width": 1.5, "dash": "dash"},
        hovertext=f"unsteered: {interval(row[value], low[0], high[0])}, n = {row['n']}",
        hoverinfo="text",
    )
    if low == high:  # a shift against itself
        return [line]
    # dotted, not filled: its interval must not pass for one of the controls' grey bands
    around = go.Scatter(
        x=[*ends, None, *ends],
        y=[*low, None, *high],
        mode="lines",
        line={"color": translucent(INK, 0.55), "width": 1, "dash": "dot"},
        hoverinfo="skip",
        showlegend=False,
    )
    return [around, line]


def _null_bands(nulls: Sequence[pd.DataFrame], places: dict[str, float]) -> Iterator[tuple[int, go.Scatter]]:
    """Each panel's bands, those of the largest |multiplier| first and so behind; panel numbers from 0."""
    together = pd.concat(nulls)
    kinds = together[["operation", "size"]].drop_duplicates()
    several = kinds.dropna()["operation"].nunique() > 1
    greys = shades(kinds["size"].dropna())
    for operation, size in kinds.sort_values("size", ascending=False, na_position="first").to_numpy():
        for place, null in enumerate(nulls):
            reach = null.merge(pd.DataFrame({"operation": [operation], "size": [size]}))
            name = escape(f"controls, {_size_name(operation, size, several=several)}")
            for trace in layer_bands(reach.set_index("layers"), places, greys.get(size, UNSIZED), name=name):
                yield place, trace


def _size_name(operation: str, size: float, *, several: bool) -> str:
    if pd.isna(size):
        return operation.replace("project_out", "project out")
    return f"{operation} ±{size:g}" if several else f"±{size:g}"
