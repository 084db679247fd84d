"""The columns of every table: one name, type and label per concept, and the check that a table has them.

A table is tidy: one row per observation, never an index with a meaning. Columns that end in `_low` and
`_high` are the 95 % interval of the column before the suffix.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd

Type = Literal["number", "integer", "binary", "boolean", "text", "id"]
EXPECTED = {
    "number": "numbers",
    "integer": "whole numbers in every row",
    "binary": "0, 1 or missing",
    "boolean": "true or false in every row",
    "text": "text in every row",
    "id": "numbers or text, not both",
}


@dataclass(frozen=True)
class Column:
    """What a column holds.

    Attributes:
        type: "number" (may be missing), "integer", "binary" (0, 1 or missing), "boolean", "text" or "id".
        label: for axes and hovers, with the unit in parentheses.
        producers: the functions whose tables have it, comma-separated.
    """

    type: Type
    label: str
    producers: str


SCHEMA: dict[str, Column] = {}  # by name


def column(name: str) -> Column | None:
    """The definition of a column or of an interval's end; numbered columns (`cosine_2`) share one."""
    base = name.removesuffix("_low").removesuffix("_high")
    return SCHEMA.get(base) or SCHEMA.get(re.sub(r"_?\d+$", "", base))


def validated(
    table: pd.DataFrame, *columns: str, producer: str, caller: str = "", factors: Iterable[str] = ()
) -> pd.DataFrame:
    """Check the columns that a function reads, and return the table with its number columns as float64.

    Args:
        table: as passed by the user.
        columns: those that the function reads. Other columns may be missing, and may hold anything.
        producer: the function that returns such a table, for the message.
        caller: the function that reads it, for the message.
        factors: columns that the user chose, of any type.

    Raises:
        ValueError: not a table, no rows, a column missing or there twice, or values of another type.
    """
    prefix = f"{caller}: " if caller else ""
    remedy = f"Pass the table that {producer} returns."
    if not isinstance(table, pd.DataFrame):
        raise ValueError(f"{prefix}got {type(table).__name__}: expected a table. {remedy}")
    names = list(map(str, table.columns))
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(
            f"{prefix}the table has several columns named {', '.join(twice)}: rename or drop some."
        )
    if missing := [name for name in (*columns, *factors) if name not in table.columns]:
        raise ValueError(
            f"{prefix}the table lacks the columns {', '.join(missing)}; it has {', '.join(names)}. {remedy}"
        )
    if table.empty:
        raise ValueError(f"{prefix}the table has no rows. {remedy}")
    changed = {}
    for name in columns:
        if (known := column(name)) is None:
            continue
        if (wrong := _wrong(table[name], known.type)) is not None:
            raise ValueError(
                f"{prefix}the column {name!r} holds {wrong!r:.60}: expected {EXPECTED[known.type]}. {remedy}"
            )
        if known.type == "number":
            changed[name] = table[name].astype(float)
    return table.assign(**changed)


def _wrong(values: pd.Series, expected: Type) -> object:
    """The first value of another type, `None` if there is none."""
    numeric = pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values)
    if expected == "id":
        is_mixed = pd.api.types.infer_dtype(values).startswith("mixed")
        return values.iloc[0] if is_mixed else None
    if numeric and expected == "number":
        return None
    allowed = {
        "number": lambda each: isinstance(each, int | float | np.number) and not isinstance(each, bool),
        "integer": lambda each: isinstance(each, int | np.integer) and not isinstance(each, bool),
        "binary": lambda each: each in (0, 1),
        "boolean": lambda each: isinstance(each, bool | np.bool_),
        "text": lambda each: isinstance(each, str),
    }[expected]
    present = values.dropna() if expected in ("number", "binary") else values
    return next((each for each in present.unique() if not allowed(each)), None)
