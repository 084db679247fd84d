"""Numbers in words: with signs, with intervals, and which cell of a sweep they are of."""

from collections.abc import Callable, Mapping

import pandas as pd

Row = pd.Series | Mapping
ALPHA = 0.05  # the largest p value that counts as significant, in every sentence and table


def direction(row: Row, name: str) -> int:
    """+1 or −1 where the interval lies on one side of zero, else 0; so too where there is no interval."""
    return int(row[f"{name}_low"] > 0) - int(row[f"{name}_high"] < 0)


def interval(row: Row, name: str, *, show: Callable[[float], str] | None = None) -> str:
    """A number with its interval: "+0.95 [+0.89, +0.98]"; `show` writes each, by default with a sign."""
    show = show or signed
    return f"{show(row[name])} [{show(row[f'{name}_low'])}, {show(row[f'{name}_high'])}]"


def signed(number: float, digits: int = 2) -> str:
    """Two decimals with a sign; a dash where there is no number."""
    return "–" if pd.isna(number) else f"{number:+.{digits}f}".replace("-", "−")


def plain(number: float, digits: int = 2) -> str:
    """Two decimals; a dash where there is no number."""
    return "–" if pd.isna(number) else f"{number:.{digits}f}".replace("-", "−")


def place(cell: pd.Series) -> str:
    """Where and how strongly a cell steers."""
    if pd.isna(cell["multiplier"]):
        return f"layer {cell['layers']} ({cell['operation']})"
    return f"layer {cell['layers']}, multiplier {signed(cell['multiplier'])} (dose {cell['dose']:.2f})"
