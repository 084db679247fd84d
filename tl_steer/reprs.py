"""Short reprs of dataclasses: counts, shapes, the levels of factors and the first item."""

import reprlib
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
import pandas as pd
from torch import Tensor

WIDTH = 100
LINES = 10
MOST_LEVELS = 4
SHORT = reprlib.Repr()
SHORT.maxstring = SHORT.maxother = SHORT.maxlong = 80
SHORT.maxtuple = SHORT.maxlist = SHORT.maxdict = SHORT.maxlevel = 3


def short_repr(instance: Any) -> str:
    """The repr of a dataclass in at most ten lines, for its `__repr__`."""
    shown = [each.name for each in fields(instance) if each.repr]
    parts = [f"{name}={_summary(getattr(instance, name))}" for name in shown]
    name, most = type(instance).__name__, LINES - 2
    if len(line := f"{name}({', '.join(parts)})") <= WIDTH:
        return line
    if len(parts) > most:
        parts[most - 1 :] = [", ".join(parts[most - 1 :])]
    return "\n".join([f"{name}(", *(f"    {_cut(part)}," for part in parts), ")"])


def _summary(value: Any) -> str:
    if isinstance(value, Tensor | np.ndarray):
        return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
    if isinstance(value, pd.DataFrame):
        columns = ", ".join(f"{name} ({_levels(column)})" for name, column in value.items())
        return f"{len(value)} rows" + f": {columns}" * bool(columns)
    if isinstance(value, tuple | list) and len(value) > SHORT.maxtuple:
        return f"{len(value)}: {_summary(value[0])}, …"
    if is_dataclass(value) and not isinstance(value, type):
        return repr(value) if "\n" not in repr(value) else f"{type(value).__name__}(…)"
    return " ".join(SHORT.repr(value).split())


def _levels(column: pd.Series) -> str:
    texts = column.astype(str).drop_duplicates()
    return "/".join(texts) if len(texts) <= MOST_LEVELS else f"{len(texts)} levels"


def _cut(text: str) -> str:
    return text if len(text) <= WIDTH else f"{text[: WIDTH - 1]}…"
