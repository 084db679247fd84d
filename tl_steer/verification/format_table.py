"""The table of `verify` as text for a terminal."""

from collections.abc import Iterator
from math import isnan
from textwrap import wrap
from typing import Any

import pandas as pd

MARKS = {"failed": "FAILED", "does not apply": "–", "passed": "passed"}
MARK, NAME = 8, 36  # columns of the mark and of the check's name


def shown(table: pd.DataFrame, *, width: int = 100) -> str:
    """What `verify` gives as lines of at most `width` characters: what failed first, with what it means.

    Args:
        table: from `verify`.
        width: of the terminal.
    """
    lines = []
    for result in MARKS:
        for row in table[table["result"] == result].to_dict("records"):
            lines += _lines(row, width)
    return "\n".join(lines)


def summary(table: pd.DataFrame) -> str:
    """How many checks passed, failed, and do not apply."""
    counts = table["result"].value_counts()
    return f"{len(table)} checks: " + ", ".join(
        f"{counts.get(result, 0)} {told}"
        for result, told in (("passed", "passed"), ("failed", "failed"), ("does not apply", "not applicable"))
    )


def _lines(row: dict[str, Any], width: int) -> Iterator[str]:
    indent, failed = " " * MARK, row["result"] == "failed"
    yield f"{MARKS[row['result']]:<{MARK}}{row['check']:<{NAME}}{_measured(row)}".rstrip()
    if row["detail"]:
        yield from wrap(row["detail"], width, initial_indent=indent, subsequent_indent=indent)
    if row["result"] != "does not apply":
        yield from wrap(row["meaning"], width, initial_indent=indent, subsequent_indent=indent)
    if failed:
        yield ""


def _measured(row: dict[str, Any]) -> str:
    if isnan(row["measured"]):
        return ""
    return f"{row['measured']:.2g} {row['unit']} (at most {row['allowed']:.2g})"
