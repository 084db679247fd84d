"""How steerable prompts are at each layer, a line a vector, beside what control directions do."""

from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from .._util.validation import checked
from .cells import Panel, layer_places, panels_of
from .effectiveness_curves import whiskers
from .labels import (
    controls_text,
    counted,
    escape,
    interval,
    level,
    levels,
    number,
    require_columns,
    target_of,
)
from .marks import layer_axis, layer_bands, rings
from .panel_grid import PanelGrid
from .template import CONTROL, INK, level_colours, styled, translucent

LINE = ("vector", "control", "operation", "hook", "layers")
VALUES = {
    "slope": "mean slope (nats per unit of multiplier)",
    "slope_per_dose": "mean slope (nats per unit of dose)",
    "anti_steerable": "prompts with a negative slope (share)",
}
TITLES = {
    "slope": "How far a unit of multiplier moves the answers toward {target}",
    "slope_per_dose": "How far a unit of dose moves the answers toward {target}",
    "anti_steerable": "How many answers are moved away from {target}",
}
MAKER = "evaluation.steerability(sweep_table, by=…)"


@checked
def steerability(table: pd.DataFrame, *, value: str = "slope", facet: str | None = None) -> go.Figure:
    """A value by steered layer, a line a vector, with 95% intervals, over what the controls do.

    Args:
        table: what `evaluation.steerability` makes.
        value: "slope", "slope_per_dose" (to compare layers or vectors) or "anti_steerable", the share of
            prompts whose slope is negative.
        facet: a factor the table is split by; each of its values gets a panel, on common axes.

    Raises:
        ValueError: no rows, columns are missing, an unknown value, rows that share their line and layers, or
            more panels than fit.

    A control's sign is arbitrary, so the grey band is symmetric: to the largest mean slope of a control on
    either side of 0; for "anti_steerable", over the shares p and 1 − p of all controls. A
    point within it is a ring.
    """
    _check(table, value, facet)
    table = table.reset_index(drop=True)  # rows are known by their number
    places = layer_places(table[table["layers"] != ""])
    panels = _panels(table, facet)
    names = _names(table)
    colours = level_colours(dict.fromkeys(names[~table["control"].astype(bool)]))
    titled = [Panel(title, table, table, table) for title in panels]
    grid = PanelGrid(titled, x_title="steered layer", y_title=VALUES[value])
    asides = _asides(list(colours), places)
    for place, parts in enumerate(panels.values()):
        for part, shared in _owners(parts):
            outline = None if shared else colours[names[part.steered.index[0]]]
            for trace in _null(part.controls, value, places, outline):
                grid.add(place, trace, "controls", rank=900)
    for place, parts in enumerate(panels.values()):
        for part in parts:
            reach = _reach(part.controls, value)
            for name, rows in part.steered.groupby(names, sort=False):
                rows = rows.join(reach, on="layers")
                rows = rows.assign(place=rows["layers"].map(places) + asides[name]).sort_values("place")
                for trace in (_line(rows, name, value, colours[name]), rings(rows, value)):
                    grid.add(place, trace, name)
    middle = 0.5 if value == "anti_steerable" else 0.0
    grid.figure.add_hline(y=middle, layer="below", line={"color": INK, "width": 1, "dash": "dash"})
    grid.figure.update_xaxes(**layer_axis(places, grid.columns))
    if value == "anti_steerable":
        grid.figure.update_yaxes(range=(-0.02, 1.02), autorange=False)
    grid.figure.update_layout(legend_title_text="vector")
    title = TITLES[value].format(target=target_of(table, figure="steerability"))
    return styled(grid.figure, title, _subtitle(table), height=grid.height)


def _check(table: pd.DataFrame, value: str, facet: str | None) -> None:
    if value not in VALUES:
        raise ValueError(f"value={value!r} is unknown: use one of {', '.join(VALUES)}.")
    numbers = [f"{name}{end}" for name in VALUES for end in ("", "_low", "_high")]
    columns = [*LINE, "toward", "n", *numbers, "spread", "r_squared"]
    require_columns(table, columns, figure="steerability", maker=MAKER, factors=[facet])
    if table.loc[~table["control"].astype(bool), value].isna().all():
        raise ValueError(f"plots.steerability: {value} is NaN in every row; some operations have no dose.")
    if table.duplicated([*LINE, *([facet] if facet else [])]).any():
        raise ValueError(
            "plots.steerability: rows share their vector, operation, hook and layers: give facet=… if the "
            "table is split by a factor, or select one value of it."
        )


def _panels(table: pd.DataFrame, facet: str | None) -> dict[str, list[Panel]]:
    """For each value of the facet, each vector with its own controls."""
    table = table.assign(multiplier=np.nan, dose=np.nan)
    if facet is None:
        return {"": panels_of(table, None, figure="steerability")}
    return {
        escape(f"{facet}: {name}"): panels_of(
            table[table[facet].map(level) == name], None, figure="steerability"
        )
        for name in levels(table[facet])
    }


def _names(table: pd.DataFrame) -> pd.Series:
    """What tells the lines apart, escaped."""
    steered = table[~table["control"].astype(bool)]
    told = ["vector", *(name for name in ("operation", "hook") if steered[name].nunique() > 1)]
    return table[told].agg(", ".join, axis=1).map(escape)


def _asides(names: list[str], places: dict[str, float]) -> dict[str, float]:
    """How far each line stands aside, so that whiskers can be told apart."""
    width = 0.004 * (max(places.values()) - min(places.values()) + 1)
    return {name: width * (rank - (len(names) - 1) / 2) for rank, name in enumerate(names)}


def _line(rows: pd.DataFrame, name: str, value: str, colour: str) -> go.Scatter:
    gap = pd.DataFrame([{"place": None}])
    # Nothing lies between layer 31 and "17+31".
    alone = [not layers.isdigit() for layers in rows["layers"]]
    pieces = [[gap] * apart + [rows.iloc[[place]]] for place, apart in enumerate(alone)]
    spread = pd.concat([piece for pair in pieces for piece in pair], ignore_index=True)
    return go.Scatter(
        x=spread["place"],
        y=spread[value],
        error_y=whiskers(spread, value, colour),
        mode="lines+markers",
        name=name,
        line={"color": colour, "width": 2},
        marker={"size": 6},
        hovertext=["" if pd.isna(row["place"]) else _hover(row, value) for row in spread.to_dict("records")],
        hoverinfo="text",
    )


def _hover(row: dict[str, Any], value: str) -> str:
    told = {"slope": "slope", "slope_per_dose": "per dose", "anti_steerable": "wrong way"}
    numbers = [
        f"{word} {interval(*(row[f'{name}{end}'] for end in ('', '_low', '_high')))}"
        for name, word in told.items()
    ]
    where = f"<b>layer {escape(row['layers'])}, {escape(row['operation'])}</b>"
    vector = escape(f"{row['vector']}, {row['hook']}, n = {int(row['n'])}")
    fit = f"spread of slopes {number(row['spread'])}, median r² {number(row['r_squared'])}"
    has_null = not pd.isna(row["null_low"])
    null = [f"controls' {told[value]} {number(row['null_low'])} to {number(row['null_high'])}"] * has_null
    return "<br>".join((where, vector, *numbers, fit, *null))


def _owners(parts: list[Panel]) -> list[tuple[Panel, bool]]:
    """A vector for each set of controls there is, and whether it is the only set."""
    first = {tuple(sorted(part.controls["vector"].unique())): part for part in reversed(parts)}
    return [(part, len(first) == 1) for part in first.values() if len(part.controls)]


def _null(
    controls: pd.DataFrame, value: str, places: dict[str, float], outline: str | None
) -> list[go.Scatter]:
    bands = layer_bands(_reach(controls, value), places, translucent(CONTROL, 0.25), name="controls, ±")
    return [trace.update(line_color=translucent(outline, 0.6)) if outline else trace for trace in bands]


def _reach(controls: pd.DataFrame, value: str) -> pd.DataFrame:
    """How far controls of either sign reach at each layer."""
    other = 1 - controls[value] if value == "anti_steerable" else -controls[value]
    either = pd.concat([controls[value], other]).groupby(pd.concat([controls["layers"]] * 2))
    return either.agg(null_low="min", null_high="max")


def _subtitle(table: pd.DataFrame) -> str:
    vectors = table.loc[table["control"].astype(bool), "vector"].nunique()
    sign = ", either sign" if vectors else ""
    return f"{counted(table['n'], 'prompt')} a point; whiskers: 95% intervals{controls_text(vectors)}{sign}"
