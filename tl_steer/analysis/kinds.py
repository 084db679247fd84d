"""What every table that comes back to analysis must be, whatever its columns are."""

from collections.abc import Iterable

import pandas as pd

from .._util.validation import holds_numbers


def require_kinds(table: pd.DataFrame, numbers: Iterable[str], *, maker: str) -> None:
    """Refuse a table with a column twice, or one of `numbers` that does not hold numbers alone.

    Args:
        table: as given back.
        numbers: names of columns; those that are not there are not looked at.
        maker: the function that makes such a table, for the message.

    Raises:
        ValueError: names the columns.
    """
    if twice := table.columns[table.columns.duplicated()].map(str).unique().tolist():
        raise ValueError(f"the table has several columns named {', '.join(twice)}: rename or drop some.")
    wrong = [name for name in numbers if name in table and not holds_numbers(table[name])]
    if wrong:
        raise ValueError(f"the columns {wrong} do not hold numbers alone: give the table that {maker} makes.")
