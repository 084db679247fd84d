"""Small multiples: the conditions of a sweep as panels, and the grid that they are drawn in."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from textwrap import wrap
from typing import Any

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from ..tables import validated
from .format import escape, hover, interval, layers_order, level, levels, number, short_label, signed
from .style import (
    DASHES,
    GREEN,
    HEIGHT,
    LAYER_SETS,
    PANEL_TITLE_SIZE,
    SYMBOLS,
    Style,
    multiplier_colours,
    operation_name,
    sequential_colours,
)

CONDITION = ("vector", "control", "operation", "layers", "hook", "multiplier")
MAX_PANELS = 6
LINE_SPREAD = 0.36  # of the distance between two multipliers, taken by the lines at one multiplier
ROW_HEIGHT = 340  # pixels of each further row of panels
TITLE_LENGTH = 78  # characters of an axis title across the figure


@dataclass(frozen=True)
class Panel:
    """The conditions of one vector and one level of a factor.

    Attributes:
        title: what distinguishes this panel, escaped; "" if there is only one.
        steered, controls: conditions of the vector, and of its control vectors.
        unsteered: the unsteered condition; may be empty.
    """

    title: str
    steered: pd.DataFrame
    controls: pd.DataFrame
    unsteered: pd.DataFrame


def figure_table(
    table: pd.DataFrame, figure: str, *columns: str, factors: Iterable[str | None] = (), producer: str = ""
) -> pd.DataFrame:
    """The validated table of a figure; by default that of the function of the same name."""
    chosen = [name for name in factors if name is not None]
    return validated(table, *columns, producer=producer or figure, caller=f"plots.{figure}", factors=chosen)


def with_ends(*names: str) -> list[str]:
    """Names of columns, each with those of its interval."""
    return [f"{name}{end}" for name in names for end in ("", "_low", "_high")]


def effects_table(
    table: pd.DataFrame, figure: str, value: str, facet: str | None, *, producer: str = ""
) -> pd.DataFrame:
    """The validated table of a figure of conditions.

    Raises:
        ValueError: another table, or the value is missing in every row.
    """
    columns = [*CONDITION, "dose", "n", *with_ends(value)]
    table = figure_table(table, figure, *columns, factors=[facet], producer=producer)
    if table[value].isna().all():
        raise ValueError(
            f"plots.{figure}: {value} is NaN in every row; it needs questions with answers or choices, and a "
            "shift needs unsteered texts."
        )
    return table


def rows_at(rows: pd.DataFrame, layers: str, operation: str) -> pd.DataFrame:
    """The conditions of one operation at these layers."""
    return rows[(rows["layers"] == layers) & (rows["operation"] == operation)]


def check_conditions(table: pd.DataFrame, facet: str | None, *, caller: str) -> None:
    """Check that a table has steered conditions, and one row for each.

    Raises:
        ValueError: several rows for a condition, or no steered condition.
    """
    if not ((table["operation"] != "none") & ~table["control"].astype(bool)).any():
        raise ValueError(
            f"{caller}: the table has no steered condition: expected others than unsteered or control ones."
        )
    keys = [*CONDITION, *([facet] if facet else [])]
    if repeated := int(table.duplicated(keys, keep=False).sum()):
        names = list(table.columns)
        after_dose = names[names.index("dose") + 1 :]  # factors, then results from `n` or `n_signal` on
        factors = [*takewhile(lambda name: name not in ("n", "n_signal"), after_dose)]
        factors = [name for name in factors if name != facet]
        remedy = "Select one of several tables."
        if factors:
            remedy = (
                f"The table is split by {factors}: select one value of each, or give facet=… where the "
                "figure has it."
            )
        raise ValueError(
            f"{caller}: {repeated} rows share their condition: expected one row per condition. {remedy}"
        )


def panels_of(table: pd.DataFrame, facet: str | None, *, caller: str) -> list[Panel]:
    """A panel for each vector (and hook, if there are several) and each level of `facet`.

    Raises:
        ValueError: as `check_conditions`, or too many panels.
    """
    check_conditions(table, facet, caller=caller)
    is_unsteered, is_control = table["operation"] == "none", table["control"].astype(bool)
    steered = table[~is_unsteered & ~is_control]
    sources = list(dict.fromkeys(zip(steered["vector"], steered["hook"], strict=True)))
    names: list[str | None] = [*levels(table[facet])] if facet else [None]
    if len(sources) * len(names) > MAX_PANELS:
        raise ValueError(
            f"{caller}: {len(sources)} vectors × {len(names)} values of {facet!r} are too many panels: "
            f"expected at most {MAX_PANELS}. Select some rows."
        )
    # Tables of older versions have no `control_of`: their controls belong to every vector.
    control_of = table["control_of"] if "control_of" in table else pd.Series("", table.index)
    panels = []
    for vector, hook in sources:
        for name in names:
            in_facet = pd.Series(True, table.index) if name is None else table[facet].map(level) == name
            at_hook = in_facet & ~is_unsteered & (table["hook"] == hook)
            panels.append(
                Panel(
                    _title(vector, hook, sources, facet, name),
                    table[at_hook & ~is_control & (table["vector"] == vector)],
                    table[at_hook & is_control & control_of.isin(["", vector])],
                    table[in_facet & is_unsteered],
                )
            )
    return panels


def _title(
    vector: str, hook: str, sources: list[tuple[str, str]], facet: str | None, name: str | None
) -> str:
    vectors, hooks = (set(each) for each in zip(*sources, strict=True))
    parts = [vector] * (len(vectors) > 1) + [hook] * (len(hooks) > 1)
    return escape(", ".join([*parts, *([f"{facet}: {name}"] if facet else [])]))


class PanelGrid:
    """A figure of panels with shared axes, at most three in a row, and one legend.

    Args:
        titles: of the panels, in reading order.
        x_title, y_title: written once per row and column.
        y_range: lower and upper end; by default that of the data.
    """

    def __init__(
        self, titles: Sequence[str], *, x_title: str, y_title: str, y_range: tuple[float, float] | None = None
    ) -> None:
        n_panels = len(titles)
        self.columns = min(n_panels, 3) if n_panels != 4 else 2
        self.rows = -(-n_panels // self.columns)
        self.height = HEIGHT + ROW_HEIGHT * (self.rows - 1)
        self.figure = make_subplots(
            rows=self.rows,
            cols=self.columns,
            shared_xaxes="all",
            shared_yaxes="all",
            horizontal_spacing=0.03,
            vertical_spacing=0.16 / self.rows,
            subplot_titles=titles if n_panels > 1 else None,
        )
        self.figure.update_annotations(font_size=PANEL_TITLE_SIZE)
        self.figure.update_layout(margin_t=76 if n_panels == 1 else 100)
        # A long title below each of several panels would overlap the next.
        is_long = len(x_title) > TITLE_LENGTH // self.columns
        column = 2 if is_long and self.columns == 3 else None
        lines = wrap(x_title, TITLE_LENGTH // 2) if is_long and self.columns == 2 else [x_title]
        self.figure.update_xaxes(title_text="<br>".join(lines), row=self.rows, col=column)
        self.figure.update_yaxes(title_text=y_title, col=1)
        # Explicit, because plotly.js finds no range of matched axes if that of the x axes is set.
        self.figure.update_yaxes(range=y_range, autorange=y_range is None)

    def add(self, index: int, trace: go.Scatter, group: str, *, rank: int = 500) -> None:
        """Draw into panel `index` (0-based); the first trace of each group is in the legend, by `rank`."""
        row, column = divmod(index, self.columns)
        add_grouped(self.figure, trace, group, row=row + 1, column=column + 1, rank=rank)


def add_grouped(
    figure: go.Figure, trace: go.Scatter, group: str, *, row: int, column: int, rank: int = 500
) -> None:
    """Add a trace of a legend group, of which only the first trace is in the legend."""
    is_first = not any(each.legendgroup == group and each.showlegend for each in figure.data)
    trace.update(legendgroup=group, legendrank=rank, showlegend=trace.showlegend is not False and is_first)
    figure.add_trace(trace, row=row, col=column)


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
    keys = sorted(
        steered.groupby(["layers", "operation"]).groups, key=lambda key: (layers_order(key[0]), key[1])
    )
    operations = list(dict.fromkeys(operation for _, operation in keys))
    singles = sorted({int(layers) for layers, _ in keys if layers.isdigit()})
    sets = list(dict.fromkeys(layers for layers, _ in keys if not layers.isdigit()))
    has_bar = max_legend is not None and len(keys) > max_legend
    shades = sequential_colours(singles if has_bar else range(len(singles))).values()
    colours = dict(zip(map(str, singles), shades, strict=True))
    colours |= {layers: LAYER_SETS[rank % len(LAYER_SETS)] for rank, layers in enumerate(sets)}
    step = LINE_SPREAD / max(len(keys) - 1, 1)
    return {
        (layers, operation): Style(
            escape(f"{layers}, {operation}" if len(operations) > 1 else layers),
            colours[layers],
            "solid" if layers.isdigit() else "dot",
            SYMBOLS[operations.index(operation) % len(SYMBOLS)],
            (rank - (len(keys) - 1) / 2) * step,
        )
        for rank, (layers, operation) in enumerate(keys)
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
    null = ""
    if not pd.isna(row.get("null_low")):
        null = f"its controls {number(row['null_low'])} to {number(row['null_high'])}"
    return hover(
        f"<b>{condition_name(row)}</b>",
        vector,
        f"dose {number(row['dose'])}, n = {int(row['n'])}",
        f"{label or short_label(value)} {interval(row, value)}",
        null,
    )
