"""What the figures of a sweep share: cells told apart, placed along the layers, and given a look."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise, takewhile
from typing import Any

import pandas as pd

from .labels import escape, interval, level, levels, number, signed
from .template import DASHES, GREEN, VERMILLION, multiplier_colours, sequential_colours

CELL = ("vector", "control", "operation", "layers", "hook", "multiplier")
MOST_PANELS = 6
FEW, UNEVEN = 8, 3  # so many places need no common scale where a step is so many times another
NAMES = {
    "signal_rate": "signal rate",
    "logit_difference": "logit difference",
    "d_prime": "d′",
    "criterion": "c",
}


@dataclass(frozen=True)
class Panel:
    """The cells of one vector and one value of a factor.

    Attributes:
        title: what tells this panel from the others, escaped; "" where there is one.
        steered: cells of the vector.
        controls: cells of control vectors.
        unsteered: the cell without an operation; it may be missing.
    """

    title: str
    steered: pd.DataFrame
    controls: pd.DataFrame
    unsteered: pd.DataFrame


@dataclass(frozen=True)
class Line:
    """Cells that differ in their place only: one operation at one multiplier.

    Attributes:
        name: escaped, for the legend.
        colour, dash: by multiplier and by operation.
        rank: place in the legend: from the most positive multiplier down, then those without one.
        rows: the cells.
    """

    name: str
    colour: str
    dash: str
    rank: int
    rows: pd.DataFrame


def require_cells(table: pd.DataFrame, facet: str | None, *, figure: str) -> None:
    """Refuse a table whose cells make no lines.

    Raises:
        ValueError: a cell has several rows, or no vector was steered with.
    """
    if not ((table["operation"] != "none") & ~table["control"].astype(bool)).any():
        raise ValueError(f"plots.{figure}: the table has no steered cell, only unsteered or control ones.")
    keys = [*CELL, *([facet] if facet else [])]
    repeated = int(table.duplicated(keys, keep=False).sum())
    if repeated:
        # in the tables of `effectiveness` and `signal_detection`, factors stand between dose and the counts
        after = list(table.columns)[list(table.columns).index("dose") + 1 :]
        factors = [
            name for name in takewhile(lambda name: name not in ("n", "n_signal"), after) if name != facet
        ]
        split = (
            f", since the table is split by {factors}: select one value of each, or" if factors else ": is it"
        )
        remedy = " give facet=… where the figure has it" if factors else " several tables in one? Select one"
        raise ValueError(f"plots.{figure}: {repeated} rows share their cell{split}{remedy}.")


def panels_of(table: pd.DataFrame, facet: str | None, *, figure: str) -> list[Panel]:
    """A panel for each vector (and hook, where there are several) and each value of `facet`.

    Raises:
        ValueError: a cell has several rows, no vector was steered with, or there are too many panels.
    """
    require_cells(table, facet, figure=figure)
    is_unsteered, is_control = table["operation"] == "none", table["control"].astype(bool)
    real = table[~is_unsteered & ~is_control]
    sources = list(dict.fromkeys(zip(real["vector"], real["hook"], strict=True)))
    names: list[str | None] = [*levels(table[facet])] if facet else [None]
    if len(sources) * len(names) > MOST_PANELS:
        raise ValueError(
            f"plots.{figure}: {len(sources)} vectors × {len(names)} values of {facet!r} are too many panels, "
            f"at most {MOST_PANELS} can be read: select some rows first."
        )
    # Tables of older versions do not say which vector a control belongs to: each serves every vector.
    control_of = table["control_of"] if "control_of" in table else pd.Series("", table.index)
    found = []
    for vector, hook in sources:
        for name in names:
            here = pd.Series(True, table.index) if name is None else table[facet].map(level) == name
            mine = here & ~is_unsteered & (table["hook"] == hook)
            found.append(
                Panel(
                    _title(vector, hook, sources, facet, name),
                    table[mine & ~is_control & (table["vector"] == vector)],
                    table[mine & is_control & control_of.isin(["", vector])],
                    table[here & is_unsteered],
                )
            )
    return found


def lines_of(panels: Sequence[Panel]) -> Iterator[tuple[int, Line]]:
    """Each panel's lines, from the most negative multiplier to the most positive; panel numbers from 0."""
    steered = pd.concat([panel.steered for panel in panels])
    colours = multiplier_colours(steered["multiplier"])
    operations = list(steered["operation"].unique())
    scaled = list(steered.loc[steered["multiplier"].notna(), "operation"].unique())
    downwards = sorted(colours, reverse=True)
    for place, panel in enumerate(panels):
        # dropna: an operation without a multiplier is a line as well
        for (multiplier, operation), rows in panel.steered.groupby(["multiplier", "operation"], dropna=False):
            name = _line_name(multiplier, operation, several=len(scaled) > 1)
            dash = DASHES[operations.index(operation) % len(DASHES)]
            rank = downwards.index(multiplier) if multiplier in colours else len(downwards)
            yield place, Line(escape(name), colours.get(multiplier, GREEN), dash, rank, rows)


def layer_looks(
    panels: Sequence[Panel], *, legend_lines: int | None = None
) -> dict[tuple[str, str], dict[str, str]]:
    """The look of each (layers, operation): single layers from dark to light, sets of layers dotted.

    Args:
        panels: of one figure.
        legend_lines: more lines than these are shaded to the scale of a colour bar; fewer, or all where it is
            `None`, as far apart as can be.
    """
    steered = pd.concat([panel.steered for panel in panels])
    keys = sorted(
        steered.groupby(["layers", "operation"]).groups,
        key=lambda key: (not key[0].isdigit(), _numbers(key[0]), key[1]),
    )
    several = steered["operation"].nunique() > 1
    singles = sorted({int(layers) for layers, _ in keys if layers.isdigit()})
    barred = legend_lines is not None and len(keys) > legend_lines
    shades = sequential_colours(singles if barred else range(len(singles)))
    shades = dict(zip(singles, shades.values(), strict=True))
    return {
        (layers, operation): {
            "name": escape(f"{layers}, {operation}" if several else layers),
            "colour": shades[int(layers)] if layers.isdigit() else VERMILLION,
            "dash": "solid" if layers.isdigit() else "dot",
        }
        for layers, operation in keys
    }


def null_of(panel: Panel, value: str) -> pd.DataFrame:
    """What a panel's controls reach, a row an operation, `layers` and `size` (the |multiplier|).

    `null_low` and `null_high` are the lowest and highest of all control vectors' cells, those of the opposite
    multiplier among them, since a control direction has no sign.
    """
    cells = panel.controls.assign(size=panel.controls["multiplier"].abs())
    places = cells.groupby(["operation", "size", "layers"], dropna=False)[value]
    return places.agg(null_low="min", null_high="max").dropna().reset_index()


def beside_null(rows: pd.DataFrame, null: pd.DataFrame) -> pd.DataFrame:
    """A panel's cells with `null_low` and `null_high` of their own operation, layers and |multiplier|."""
    keys = ["operation", "size", "layers"]
    sized = rows.assign(size=rows["multiplier"].abs())
    return sized.merge(null[[*keys, "null_low", "null_high"]], how="left", on=keys)


def layer_places(table: pd.DataFrame) -> dict[str, float]:
    """Where each `layers` stands on an axis: one layer at its number, sets of layers one by one after.

    A few layers that lie unevenly (17, 18, 19, 31) stand one by one too, so that each can be read.
    """
    names = [name for name in table["layers"].unique() if name]
    singles = sorted((name for name in names if name.isdigit()), key=int)
    sets = sorted((name for name in names if not name.isdigit()), key=_numbers)
    steps = steps_between(singles)
    if len(names) <= FEW and steps and max(steps) > UNEVEN * min(steps):
        return {name: float(rank) for rank, name in enumerate([*singles, *sets])}
    last = int(singles[-1]) if singles else 0
    # far enough apart that the names of sets can be read
    gap = max(1.0, (last - int(singles[0])) / 4) if singles else 1.0
    places = {name: float(name) for name in singles}
    return {**places, **{name: last + gap * (rank + 1) for rank, name in enumerate(sets)}}


def steps_between(layers: Sequence[str]) -> list[int]:
    """From each layer to the next."""
    return [int(upper) - int(lower) for lower, upper in pairwise(layers)]


def cell_hover(row: dict[str, Any], value: str) -> str:
    """What a cell was, and its number with its interval."""
    if row["operation"] == "none":
        where = "<b>unsteered</b>"
    else:
        multiplier = "" if pd.isna(row["multiplier"]) else f" {signed(row['multiplier'])}"
        where = f"<b>layer {escape(row['layers'])}, {escape(row['operation'])}{multiplier}</b>"
    numbers = interval(*(row[f"{value}{end}"] for end in ("", "_low", "_high")))
    dose = f"dose {number(row['dose'])}, n = {int(row['n'])}"
    vector = ", ".join(escape(row[name]) for name in ("vector", "hook") if row[name] not in ("", "none"))
    told = f"{NAMES.get(value, value)} {numbers}"
    null = f"its controls {number(row['null_low'])} to {number(row['null_high'])}" if _has_null(row) else ""
    return "<br>".join(part for part in (where, vector, dose, told, null) if part)


def _has_null(row: dict[str, Any]) -> bool:
    return "null_low" in row and not pd.isna(row["null_low"])


def _numbers(layers: str) -> tuple[int, ...]:
    return tuple(int(part) for part in layers.split("+"))


def _line_name(multiplier: float, operation: str, *, several: bool) -> str:
    if pd.isna(multiplier):
        return operation.replace("project_out", "project out")
    return f"{operation} {signed(multiplier)}" if several else signed(multiplier)


def _title(
    vector: str, hook: str, sources: list[tuple[str, str]], facet: str | None, name: str | None
) -> str:
    vectors, hooks = ({source[which] for source in sources} for which in (0, 1))
    parts = [vector] if len(vectors) > 1 else []
    parts += [hook] if len(hooks) > 1 else []
    parts += [f"{facet}: {name}"] if facet else []
    return escape(", ".join(parts))
