"""Heat maps of conditions: effects by layers and multiplier, and where they exceed the controls."""

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import pandas as pd
import plotly.graph_objects as go

from .._util.validation import checked
from ..tables import column
from .format import (
    axis_title,
    broken,
    capitalized,
    counted,
    escape,
    hover,
    interval,
    layers_order,
    number,
    short_label,
    signed,
)
from .heat_maps import heat_map
from .marks import Hover, colour_bar, curve
from .panels import (
    CONDITION,
    PanelGrid,
    condition_hover,
    condition_name,
    effects_table,
    figure_table,
    panels_of,
    with_ends,
)
from .style import DIVERGING, INK, Style, colour_scale, operation_name, styled

ALPHA = 0.05
SHARES = ("accuracy", "signal_rate")
LEAST = 0.25  # end of the colours of a share's difference: smaller ones look small
TESTED = ("n", "value_name", *with_ends("effect"), "controls", "null_low", "null_high", "p_value")
ROW, FRAME = 34, 210  # pixels of each row of cells, and around them
MARK = (0.36, 0.26)  # of a dot, from the centre of its cell


@checked
def against_controls(table: pd.DataFrame, *, facet: str | None = None) -> go.Figure:
    """Heat map of effects by layers and multiplier, with a dot where the controls are exceeded (p ≤ 0.05).

    Args:
        table: from `evaluation.against_controls`.
        facet: a factor by which the table is split; a panel for each of its values.

    Layer sets ("17+31") are above the single layers, operations without a multiplier (`project_out`) to the
    right. Each p value is of one condition, not corrected for their number.
    """
    columns = [*CONDITION, "dose", *TESTED]
    table = figure_table(table, "against_controls", *columns, factors=[facet]).dropna(subset="effect")
    name = table["value_name"].iloc[0]
    if table["value_name"].nunique() > 1:
        raise ValueError("plots.against_controls: the table has several effects: select one `value_name`.")
    panels = panels_of(table, facet, caller="plots.against_controls")
    tested = table.dropna(subset="p_value")
    noun = "condition" if len(tested) == len(table) else "tested condition"
    exceeding = int((tested["p_value"] <= ALPHA).sum())
    verb = "exceeds" if exceeding == 1 or len(tested) == 1 else "exceed"
    title = f"{exceeding} of {counted([len(tested)], noun)} {verb} the controls"
    score = "shift" if name == "bias" else name
    label = axis_title(score) if column(score) else escape(score.replace("_", " "))
    label = label if score.startswith("shift") else f"change of {label}"
    lowest = 1 / (1 + tested["controls"].max())
    floor = f"; lowest possible p {number(lowest, '.2g')}" if lowest > ALPHA else ""
    subtitle = (
        f"{label}, {counted(table['n'], 'prompt')}; dot: p ≤ {ALPHA} each, against "
        f"{counted(tested['controls'], 'control direction')}{floor}"
    )
    maps = [(each.title, each.steered.assign(marked=each.steered["p_value"] <= ALPHA)) for each in panels]
    return _effect_panels(maps, "effect", _effect_text, _tested_hover, title, subtitle)


@checked
def effect_map(
    table: pd.DataFrame,
    *,
    value: Literal["accuracy", "signal_rate", "logit_difference", "shift"] = "accuracy",
    facet: str | None = None,
) -> go.Figure:
    """Heat map of a value by layers and multiplier, coloured by its difference from unsteered.

    Args:
        table: from `evaluation.effectiveness`, with the unsteered condition.
        value: written into the cells.
        facet: a factor by which the table is split; a panel for each of its values.

    A dot marks values whose 95% interval does not overlap with the unsteered one: a strict criterion for a
    difference of one condition. It compares with no random direction; `against_controls` does.
    """
    table = effects_table(table, "effect_map", value, facet, producer="effectiveness")
    panels = panels_of(table, facet, caller="plots.effect_map")
    if any(panel.unsteered.empty for panel in panels):
        raise ValueError("plots.effect_map: the table has no unsteered condition to compare with.")
    text, maps = partial(_value_text, value=value), []
    for panel in panels:
        base, rows = panel.unsteered.iloc[0], panel.steered
        low, high = (rows[f"{value}{end}"] for end in ("_low", "_high"))
        is_distinct = (low > base[high.name]) | (high < base[low.name])
        title = "<br>".join(filter(None, [panel.title, f"unsteered {text(base)}"]))
        maps.append((title, rows.assign(difference=rows[value] - base[value], marked=is_distinct)))
    subtitle = (
        f"{counted(table['n'], 'prompt')} per cell; colour: difference from unsteered; "
        "dot: the 95% intervals do not overlap"
    )
    title = f"{capitalized(short_label(value))} by steered layer and multiplier"
    hover_of, least = partial(condition_hover, value=value), LEAST if value in SHARES else 0.0
    return _effect_panels(maps, "difference", text, hover_of, title, subtitle, least)


def _effect_panels(
    maps: Sequence[tuple[str, pd.DataFrame]],
    value: str,
    text: Hover,
    hover: Hover,
    title: str,
    subtitle: str,
    least: float = 0.0,
) -> go.Figure:
    """A heat map per title and rows, with a dot where `marked`.

    All are on one colour scale centred on zero, which reaches at least to `least`.
    """
    rows = pd.concat([rows for _, rows in maps])
    layers = sorted(rows["layers"].unique(), key=layers_order)
    columns = _columns(rows)
    grid = PanelGrid([title for title, _ in maps], x_title="multiplier", y_title="steered layer")
    for index, (_, part) in enumerate(maps):
        part = part.assign(column=_column_names(part, rows), y=part["layers"].map(layers.index))
        part = part.assign(x=part["column"].map(columns.index))
        axes = {"layers": layers, "column": columns}
        places = {"x": list(range(len(columns))), "y": list(range(len(layers)))}
        cells = heat_map(part, axes, value, hover, text, coloraxis="coloraxis", showlegend=False, **places)
        at = part.assign(x=part["x"] + MARK[0], y=part["y"] + MARK[1])[part["marked"]]
        edge = {"width": 1, "color": "white"}
        dots = curve(at, "y", Style("dot", INK), mode="markers", size=7, marker_line=edge)
        grid.add(index, [cells, dots.update(showlegend=False)])
    _draw_axes(grid, rows, layers, columns)
    height = FRAME + grid.rows * (ROW * max(len(layers), 4) + 60)
    bound = max(rows[value].abs().max(), least) or 1.0
    scale = {"colorscale": colour_scale(DIVERGING), "cmin": -bound, "cmax": bound}
    grid.figure.update_layout(coloraxis=scale | {"colorbar": colour_bar("", len=0.9)})
    if len(maps) == 1 and maps[0][0]:  # a single panel has no title
        subtitle = f"{maps[0][0]}; {subtitle}"
    return styled(grid.figure, title, subtitle, height=height)


def _column_names(rows: pd.DataFrame, table: pd.DataFrame) -> pd.Series:
    """The column of each condition: its multiplier, with the operation where several have one."""
    has_several = table.loc[table["multiplier"].notna(), "operation"].nunique() > 1

    def name(operation: str, multiplier: float) -> str:
        if pd.isna(multiplier):
            return broken(operation_name(operation), 8)
        return f"{escape(operation)}<br>{signed(multiplier)}" if has_several else signed(multiplier)

    return pd.Series(map(name, rows["operation"], rows["multiplier"]), index=rows.index, dtype=object)


def _columns(rows: pd.DataFrame) -> list[str]:
    """Columns in the order of operations and multipliers; those without a multiplier last."""
    rows = rows.assign(is_last=rows["multiplier"].isna()).sort_values(["is_last", "operation", "multiplier"])
    return list(dict.fromkeys(_column_names(rows, rows)))


def _draw_axes(grid: PanelGrid, rows: pd.DataFrame, layers: list[str], columns: list[str]) -> None:
    """Names of rows and columns; a white line apart from single layers and from multipliers."""
    bare = {"showgrid": False, "zeroline": False, "ticks": "", "showline": False}
    for update, names in ((grid.figure.update_xaxes, columns), (grid.figure.update_yaxes, layers)):
        ticks = {"tickvals": list(range(len(names))), "ticktext": names}
        update(**bare, **ticks, range=[-0.5, len(names) - 0.5], autorange=False)
    line = {"color": "white", "width": 7}
    n_single = sum(name.isdigit() for name in layers)
    n_scaled = len(_columns(rows.dropna(subset="multiplier")))
    if 0 < n_single < len(layers):
        grid.figure.add_hline(y=n_single - 0.5, line=line)
    if 0 < n_scaled < len(columns):
        grid.figure.add_vline(x=n_scaled - 0.5, line=line)


def _effect_text(row: dict[str, Any]) -> str:
    return number(row["effect"], "+.2f")


def _value_text(row: Any, value: str) -> str:
    return number(row[value], ".0%" if value in SHARES else "+.2f")


def _tested_hover(row: dict[str, Any]) -> str:
    tested = pd.notna(row["p_value"])
    null = f"{counted([row['controls']], 'control')}: {number(row['null_low'])} to {number(row['null_high'])}"
    return hover(
        f"<b>{condition_name(row)}</b>",
        escape(row["vector"]),
        f"dose {number(row['dose'])}, n = {int(row['n'])}",
        f"effect {interval(row, 'effect')}",
        f"{null}, p = {number(row['p_value'], '.2g')}" if tested else "no controls",
    )
