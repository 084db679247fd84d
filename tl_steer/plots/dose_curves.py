"""What steering does as its dose grows from negative to positive, a line a layer."""

from collections.abc import Iterator

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from .._util.validation import checked
from .cells import Panel, beside_null, cell_hover, layer_looks, null_of, panels_of
from .effectiveness_curves import RANGES, VALUES, check_values, subtitle, whiskers
from .marks import UNSIZED, band, rings
from .panel_grid import PanelGrid
from .template import SEQUENTIAL, spaced, styled

LEGEND_LINES = 10  # more lines than these are told apart by a colour bar, not by a legend
X_TITLES = {
    "dose": "dose (‖multiplier · vector‖ / stream norm), signed",
    "multiplier": "multiplier of the vector",
}


@checked
def dose_response(
    table: pd.DataFrame, *, value: str = "shift", facet: str | None = None, x: str | None = None
) -> go.Figure:
    """A value against the dose with its sign, a line a layer, with 95% intervals.

    Args:
        table: what `evaluation.effectiveness` makes.
        value: "shift" (change of the logit difference on the same prompts), "logit_difference", "accuracy" or
            "signal_rate".
        facet: a factor the table is split by; each of its values gets a panel, on common axes. Where a vector
            moves a bias, all panels move the same way.
        x: "dose", or "multiplier", whose lines of different layers do not compare. By default the dose where
            any steered cell has one: recorded results have none, since the stream's norm was not kept.

    Raises:
        ValueError: no rows, columns are missing, an unknown value or x, or rows that share a cell.

    The grey band goes from the lowest to the highest control cell of any layer at a dose or its opposite,
    since a control direction has no sign. A point within those of its own layer and |multiplier| is a ring.

    Operations without a multiplier (`project_out`) have no dose and are left out. Source of the dose: the
    vector's length over the stream's typical norm, as reported by the sweep.
    """
    check_values(table, value, facet, figure="dose_response")
    table = table.reset_index(drop=True)
    places, x = _places(table, x)
    table = table[places.notna()]
    panels = [_placed(panel, places) for panel in panels_of(table, facet, figure="dose_response")]
    grid = PanelGrid(panels, x_title=X_TITLES[x], y_title=VALUES[value], y_range=RANGES.get(value))
    lines = layer_looks(panels, legend_lines=LEGEND_LINES)
    many = len(lines) > LEGEND_LINES
    for place, panel in enumerate(panels):
        null = null_of(panel, value)
        for trace in _null_bands(panel, null, value):
            grid.add(place, trace, "controls", rank=900)
        steered = beside_null(panel.steered, null)
        for (layers, operation), look in lines.items():
            chosen = steered[(steered["layers"] == layers) & (steered["operation"] == operation)]
            trace = _line(_path(chosen, panel), value, look, thin=many)
            grid.add(place, trace.update(showlegend=not (many and layers.isdigit())), look["name"])
            grid.add(place, rings(chosen, value), look["name"])
    if many:
        grid.figure.add_trace(_colour_bar([int(layers) for layers, _ in lines if layers.isdigit()]))
    else:
        grid.figure.update_layout(legend_title_text="layer")
    grid.figure.update_xaxes(zeroline=True)
    title = f"{VALUES[value].split(' (')[0].capitalize()} by {x}"
    ringed = " at any layer; ring: within its own layer's" if table["control"].any() else ""
    return styled(grid.figure, title, f"{subtitle(table)}{ringed}", height=grid.height)


def _places(table: pd.DataFrame, x: str | None) -> tuple["pd.Series[float]", str]:
    """Each row's x coordinate, NaN without one, and which axis it is of.

    Raises:
        ValueError: an unknown axis, or no steered row has a coordinate.
    """
    if x not in (None, *X_TITLES):
        raise ValueError(f"x={x!r} is unknown: use 'dose' or 'multiplier'.")
    steered = table["operation"] != "none"
    multiplier, dose = (table[name].astype(float) for name in ("multiplier", "dose"))
    if x is None:
        x = "dose" if dose[steered & multiplier.notna()].notna().any() else "multiplier"
    places = multiplier if x == "multiplier" else dose * np.sign(multiplier)
    if places[steered].isna().all():
        raise ValueError(
            f"plots.dose_response: no steered row has a {x}; operations without a multiplier have none."
        )
    return places, x


def _placed(panel: Panel, places: "pd.Series[float]") -> Panel:
    """The panel, its rows with a column `place`: once facets are split, no factor is called that."""
    parts = (panel.steered, panel.controls, panel.unsteered)
    return Panel(panel.title, *(rows.assign(place=places.loc[rows.index]) for rows in parts))


def _path(rows: pd.DataFrame, panel: Panel) -> pd.DataFrame:
    """Cells from the most negative to the most positive, the unsteered one among them."""
    return pd.concat([rows, panel.unsteered]).sort_values("place")


def _line(path: pd.DataFrame, value: str, look: dict[str, str], *, thin: bool) -> go.Scatter:
    return go.Scatter(
        x=path["place"],
        y=path[value],
        error_y=whiskers(path, value, look["colour"]),
        mode="lines+markers",
        name=look["name"],
        line={"color": look["colour"], "width": 1.2 if thin else 2, "dash": look["dash"]},
        marker={"size": 4 if thin else 6},
        hovertext=[cell_hover(row, value) for row in path.to_dict("records")],
        hoverinfo="text",
    )


def _null_bands(panel: Panel, null: pd.DataFrame, value: str) -> Iterator[go.Scatter]:
    """A band per layer from the most negative dose to the most positive, all of one opaque grey.

    So together they look like one: what the controls of any layer reach at a dose or, having no sign, at its
    opposite.
    """
    unsteered = panel.unsteered.assign(null_low=panel.unsteered[value], null_high=panel.unsteered[value])
    for _, cells in beside_null(panel.controls, null).groupby(["operation", "layers"]):
        opposite = cells.assign(place=-cells["place"])
        rows = pd.concat([cells, opposite, unsteered])[["place", "null_low", "null_high"]].dropna()
        rows = rows.drop_duplicates("place").sort_values("place")
        yield band(rows["place"], rows["null_low"], rows["null_high"], UNSIZED, name="controls")


def _colour_bar(layers: list[int]) -> go.Scatter:
    """A trace without points that carries the colour bar."""
    return go.Scatter(
        x=[None],
        y=[None],
        mode="markers",
        showlegend=False,
        hoverinfo="skip",
        marker={
            "color": [min(layers)],
            "cmin": min(layers),
            "cmax": max(layers),
            "colorscale": spaced(SEQUENTIAL),
            "colorbar": {
                "title": {"text": "layer"},
                "thickness": 14,
                "outlinewidth": 0,
                "x": 1.02,
                "y": 0,
                "yanchor": "bottom",
                "len": 0.78,
            },
        },
    )
