"""Small multiples: the conditions of a sweep as panels, and the grid that they are drawn in."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import compress, cycle, takewhile
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from ..tables import column, validated
from .format import (
    at_level,
    broken,
    escape,
    hover,
    interval,
    layers_order,
    levels,
    number,
    short_label,
    signed,
)
from .style import (
    DASHES,
    GREEN,
    HEIGHT,
    LAYER_SETS,
    PANEL_TITLE_HEIGHT,
    SYMBOLS,
    Style,
    multiplier_colours,
    operation_name,
    sequential_colours,
    subplots,
    x_offsets,
)

CONDITION = ("vector", "control", "operation", "layers", "hook", "multiplier")
MAX_PANELS = 6
LINE_SPREAD = 0.36  # of the distance between two multipliers, taken by the lines at one multiplier
ROW_HEIGHT = 340  # pixels of each further row of panels
X_LENGTH, Y_LENGTH = 54, 44  # characters of an axis title that fit across a figure 420 pixels wide, and up


@dataclass(frozen=True)
class Panel:
    """The conditions of one vector and one level of a factor; `title`, escaped, says which, or is ""."""

    title: str
    steered: pd.DataFrame
    controls: pd.DataFrame
    unsteered: pd.DataFrame


def figure_table(
    table: pd.DataFrame, figure: str, *columns: str, factors: Iterable[str | None] = (), producer: str = ""
) -> pd.DataFrame:
    """The validated table of a figure, with flags as bool; by default of the function of the same name."""
    chosen = [name for name in factors if name is not None]
    table = validated(table, *columns, producer=producer or figure, caller=f"plots.{figure}", factors=chosen)
    flags = [name for name in columns if (known := column(name)) and known.type == "boolean"]
    return table.astype(dict.fromkeys(flags, bool))


def with_ends(*names: str) -> list[str]:
    """Names of columns, each with those of its interval."""
    return [f"{name}{end}" for name in names for end in ("", "_low", "_high")]


def effects_table(
    table: pd.DataFrame, figure: str, value: str, facet: str | None, *, producer: str = ""
) -> pd.DataFrame:
    """The validated table of a figure of conditions, in some of which the value is known."""
    columns = [*CONDITION, "dose", "n", *with_ends(value)]
    table = figure_table(table, figure, *columns, factors=[facet], producer=producer)
    if table[value].isna().all():
        raise ValueError(
            f"plots.{figure}: {value} is NaN in every row; it needs questions with answers or choices, and a "
            "shift needs unsteered texts."
        )
    # Without a value (open prompts have no right answer) a level is an empty panel, a multiplier no line.
    for keys in ([facet] if facet else [], ["operation", "multiplier"]):
        if keys:
            table = table[table.groupby(keys, dropna=False)[value].transform("count") > 0]
    return table


def rows_at(rows: pd.DataFrame, layers: str, operation: str) -> pd.DataFrame:
    """The conditions of one operation at these layers."""
    return rows[(rows["layers"] == layers) & (rows["operation"] == operation)]


def check_conditions(table: pd.DataFrame, facet: str | None, *, caller: str) -> None:
    """Check that a table has steered conditions, and one row for each."""
    if ((table["operation"] == "none") | table["control"]).all():
        raise ValueError(
            f"{caller}: the table has no steered condition: expected others than unsteered or control ones."
        )
    repeated = int(table.duplicated([*CONDITION, *([facet] if facet else [])], keep=False).sum())
    if repeated:
        after_dose = list(table.columns)[table.columns.get_loc("dose") + 1 :]
        # factors, then results from `n` or `n_signal` on
        factors = [*takewhile(lambda name: name not in ("n", "n_signal"), after_dose)]
        factors = [name for name in factors if name != facet]
        remedy = "select one value of each, or give facet=… where the figure has it."
        remedy = f"The table is split by {factors}: {remedy}" if factors else "Select one of several tables."
        raise ValueError(
            f"{caller}: {repeated} rows share their condition: expected one row per condition. {remedy}"
        )


def facet_parts(table: pd.DataFrame, facet: str | None) -> dict[str, pd.DataFrame]:
    """The rows of each level of a factor by title, escaped; without a factor all rows by ""."""
    if facet is None:
        return {"": table}
    return {escape(f"{facet}: {name}"): at_level(table, facet, name) for name in levels(table[facet])}


def panels_of(table: pd.DataFrame, facet: str | None, *, caller: str) -> list[Panel]:
    """A panel for each vector (and hook, if there are several) and each level of `facet`.

    Raises:
        ValueError: several rows for a condition, no steered condition, or too many panels.
    """
    check_conditions(table, facet, caller=caller)
    steered = table[(table["operation"] != "none") & ~table["control"]]
    sources = list(dict.fromkeys(zip(steered["vector"], steered["hook"], strict=True)))
    parts = facet_parts(table, facet)
    if len(sources) * len(parts) > MAX_PANELS:
        raise ValueError(
            f"{caller}: {len(sources)} vectors × {len(parts)} values of {facet!r} are too many panels: "
            f"expected at most {MAX_PANELS}. Select some rows."
        )
    has_several = [len(set(names)) > 1 for names in zip(*sources, strict=True)]  # vectors, hooks
    panels = []
    for vector, hook in sources:
        for part, rows in parts.items():
            names = [escape(name) for name in compress((vector, hook), has_several)]
            is_control = rows["control"]
            # Tables of older versions have no `control_of`: their controls belong to every vector.
            is_own = rows["control_of"].isin(["", vector]) if "control_of" in rows else is_control
            at_hook = (rows["operation"] != "none") & (rows["hook"] == hook)
            panels.append(
                Panel(
                    ", ".join(filter(None, [*names, part])),
                    rows[at_hook & ~is_control & (rows["vector"] == vector)],
                    rows[at_hook & is_control & is_own],
                    rows[rows["operation"] == "none"],
                )
            )
    return panels


class PanelGrid:
    """A figure of panels with shared axes, at most three in a row, and one legend.

    Args:
        titles: of the panels, in reading order.
        x_title, y_title: written once per row and column.
        y_range: lower and upper end; by default that of the data.
        columns: by default as many as fit.
        more: of `make_subplots`.
    """

    def __init__(
        self,
        titles: Sequence[str],
        *,
        x_title: str,
        y_title: str,
        y_range: tuple[float, float] | None = None,
        columns: int | None = None,
        **more: Any,
    ) -> None:
        n_panels = len(titles)
        self.columns = columns or (2 if n_panels == 4 else min(n_panels, 3))
        self.rows = -(-n_panels // self.columns)
        self.height = HEIGHT + ROW_HEIGHT * (self.rows - 1)
        options = {"shared_xaxes": "all", "shared_yaxes": "all"}
        options |= {"horizontal_spacing": 0.03, "vertical_spacing": 0.16 / self.rows} | more
        titles = [broken(title, X_LENGTH // self.columns) for title in titles]
        self.figure = subplots(self.rows, self.columns, titles if n_panels > 1 else None, **options)
        lines = max(len(title.split("<br>")) for title in titles[: self.columns])
        self.figure.update_layout(margin_t=PANEL_TITLE_HEIGHT * lines if n_panels > 1 else 0)
        # A long title below each of several panels would overlap the next.
        is_long = len(x_title) > X_LENGTH // self.columns
        column = 2 if is_long and self.columns == 3 else None
        x_title = broken(x_title, X_LENGTH // self.columns) if column is None else x_title
        self.figure.update_xaxes(title_text=x_title, row=self.rows, col=column)
        self.figure.update_yaxes(title_text=broken(y_title, Y_LENGTH), col=1)
        # Explicit, because plotly.js finds no range of matched axes if that of the x axes is set.
        self.figure.update_yaxes(range=y_range, autorange=y_range is None)

    def add(
        self,
        index: int,
        traces: Iterable[go.Scatter | go.Heatmap],
        group: str | None = None,
        *,
        rank: int = 500,
    ) -> None:
        """Draw into panel `index` (0-based) the traces of a legend group, by default each of its own name.

        Only the first trace of a group is in the legend, at `rank`.
        """
        row, column = divmod(index, self.columns)
        for trace in traces:
            name = trace.name if group is None else group
            is_first = not any(each.legendgroup == name and each.showlegend for each in self.figure.data)
            in_legend = trace.showlegend is not False and is_first
            trace.update(legendgroup=name, legendrank=rank, showlegend=in_legend)
            self.figure.add_trace(trace, row=row + 1, col=column + 1)


def multiplier_lines(panels: Sequence[Panel]) -> Iterator[tuple[int, Style, pd.DataFrame]]:
    """The rows of each panel that differ in `layers` only: panel index, style, rows.

    From the most negative multiplier to the most positive; the legend is in descending order.
    """
    steered = pd.concat([panel.steered for panel in panels])
    colours = multiplier_colours(steered["multiplier"])
    operations = list(steered["operation"].unique())
    has_several = steered.loc[steered["multiplier"].notna(), "operation"].nunique() > 1
    descending = sorted(colours, reverse=True)
    for index, panel in enumerate(panels):
        # dropna=False: an operation without a multiplier is a line too.
        for (multiplier, operation), rows in panel.steered.groupby(["multiplier", "operation"], dropna=False):
            name = operation_name(operation)
            if not pd.isna(multiplier):
                name = f"{escape(operation)} {signed(multiplier)}" if has_several else signed(multiplier)
            dash = DASHES[operations.index(operation) % len(DASHES)]
            rank = descending.index(multiplier) if multiplier in colours else len(descending)
            yield index, Style(name, colours.get(multiplier, GREEN), dash, rank=rank + 1), rows


def layer_styles(panels: Sequence[Panel], *, max_legend: int | None = None) -> dict[tuple[str, str], Style]:
    """The style of each (layers, operation): single layers from dark to light, layer sets dotted.

    Colours are by rank, so that layers 17, 18 and 19 of 40 differ; with more lines than `max_legend`, by
    layer number, for a colour bar.
    """
    steered = pd.concat([panel.steered for panel in panels])
    pairs = steered[["layers", "operation"]].drop_duplicates().itertuples(index=False, name=None)
    keys = sorted(pairs, key=lambda key: (layers_order(key[0]), key[1]))
    names = list(dict.fromkeys(layers for layers, _ in keys))
    operations = list(dict.fromkeys(operation for _, operation in keys))
    singles = [int(layers) for layers in names if layers.isdigit()]
    has_bar = max_legend is not None and len(keys) > max_legend
    shades = sequential_colours(singles if has_bar else range(len(singles))).values()
    colours = dict(zip(names, shades, strict=False))  # sets are after the single layers
    colours |= dict(zip(names[len(singles) :], cycle(LAYER_SETS), strict=False))
    offsets = x_offsets(keys, LINE_SPREAD / max(len(keys) - 1, 1))
    return {
        (layers, operation): Style(
            escape(f"{layers}, {operation}" if len(operations) > 1 else layers),
            colours[layers],
            "solid" if layers.isdigit() else "dot",
            SYMBOLS[operations.index(operation) % len(SYMBOLS)],
            offset,
        )
        for (layers, operation), offset in offsets.items()
    }


def control_ranges(panel: Panel, value: str) -> pd.DataFrame:
    """The range of a panel's controls per operation, `layers` and `size` (|multiplier|).

    `null_low` and `null_high` are over all control vectors and both signs of the multiplier, because a
    control direction has no sign.
    """
    controls = panel.controls.assign(size=panel.controls["multiplier"].abs())
    groups = controls.groupby(["operation", "size", "layers"], dropna=False)[value]
    return groups.agg(null_low="min", null_high="max").dropna().reset_index()


def with_control_ranges(rows: pd.DataFrame, ranges: pd.DataFrame) -> pd.DataFrame:
    """Add `null_low` and `null_high` of the controls of the same operation, layers and |multiplier|."""
    keys = ["operation", "size", "layers"]
    rows = rows.drop(columns=["null_low", "null_high"], errors="ignore").assign(size=rows["multiplier"].abs())
    return rows.merge(ranges[[*keys, "null_low", "null_high"]], how="left", on=keys)


def condition_name(row: dict[str, Any]) -> str:
    """A condition for a hover: "layer 17, add +8"."""
    if row["operation"] == "none":
        return "unsteered"
    multiplier = "" if pd.isna(row["multiplier"]) else f" {signed(row['multiplier'])}"
    return f"layer {escape(row['layers'])}, {escape(row['operation'])}{multiplier}"


def condition_hover(row: dict[str, Any], value: str, *, label: str | None = None) -> str:
    """The hover of a condition: its name, vector, dose, and the value with its interval."""
    vector = ", ".join(escape(row[name]) for name in ("vector", "hook") if row[name] not in ("", "none"))
    has_null = pd.notna(row.get("null_low"))
    return hover(
        f"<b>{condition_name(row)}</b>",
        vector,
        f"dose {number(row['dose'])}, n = {int(row['n'])}",
        f"{label or short_label(value)} {interval(row, value)}",
        f"its controls {number(row['null_low'])} to {number(row['null_high'])}" if has_null else "",
    )
