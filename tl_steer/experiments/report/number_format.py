"""Format numbers with signs and intervals, and conditions of a sweep, for sentences and tables."""

from collections.abc import Callable, Mapping

import pandas as pd

Row = pd.Series | Mapping
Format = Callable[[float], str]
ALPHA = 0.05  # the largest p value that counts as significant, in every sentence and table
ENOUGH_CONTROLS = 19  # with which a p value can reach ALPHA


def sign_of(row: Row, name: str) -> int:
    """+1 or −1 if the interval of a column excludes zero, else 0; also 0 without an interval."""
    return int(row[f"{name}_low"] > 0) - int(row[f"{name}_high"] < 0)


def signed(number: float, digits: int = 2) -> str:
    """A number with its sign; a dash for NaN."""
    return "–" if pd.isna(number) else f"{number:+.{digits}f}".replace("-", "−")


def plain(number: float, digits: int = 2) -> str:
    """A number without a plus sign; a dash for NaN."""
    return "–" if pd.isna(number) else f"{number:.{digits}f}".replace("-", "−")


def interval(row: Row, name: str, *, show: Format = signed) -> str:
    """A column's value with its interval: "+0.95 [+0.89, +0.98]"."""
    return f"{show(row[name])} [{show(row[f'{name}_low'])}, {show(row[f'{name}_high'])}]"


def span(low: float, high: float, show: Format = signed) -> str:
    """A range, "+0.10 to +0.20", or one number if both look the same."""
    return " to ".join(dict.fromkeys([show(low), show(high)]))


def counted(count: int, noun: str) -> str:
    """A number with its noun: "1 measure", "2 measures"."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def steered_by(multiplier: float) -> str:
    """A multiplier, or that the vector is projected out."""
    return "projected out" if pd.isna(multiplier) else signed(multiplier)


def condition_label(condition: pd.Series) -> str:
    """Layer, multiplier and dose of a condition."""
    if pd.isna(condition["multiplier"]):
        return f"layer {condition['layers']} ({condition['operation']})"
    multiplier, dose = signed(condition["multiplier"]), plain(condition["dose"])
    return f"layer {condition['layers']}, multiplier {multiplier} (dose {dose})"
