"""From which dose to which a vector can be used."""

from typing import Any

import numpy as np
import pandas as pd

from .._util.validation import checked
from ..sweeps.sweep_table import UNSTEERED, require_columns

PLACE = ("vector", "operation", "layers", "hook", "sign")
ENDINGS = {"damage": "damage first", "collapse": "collapse first"}


@checked
def usable_range(joined: pd.DataFrame) -> pd.DataFrame:
    """For each vector, operation, layer and sign of the multiplier, the doses that are usable.

    Args:
        joined: what `effect_and_damage` makes; its bounds decide.

    Returns:
        A row each: vector, operation, layers, hook, sign (+1, −1, 0 without a multiplier), and
        conditions: how many were tried; usable: how many of them are in the range.
        smallest_multiplier, largest_multiplier, smallest_dose, largest_dose: of the range, which goes from
            the usable cell of the smallest |multiplier| on as long as each next one is usable too; NaN where
            empty.
        collapse_multiplier, collapse_dose: of the first cell whose text collapsed; NaN where none did.
        reason: what ends the range: "damage", "collapse", "no effect", or "largest tried". Where it is empty:
            "no effect" in any cell, or what came before an effect was free of it: "damage first" or
            "collapse first".

    Raises:
        ValueError: columns are missing.

    Controls are left out. The range knows only the cells that were tried: between them nothing was measured.
    """
    columns = (*PLACE[:-1], "control", "multiplier", "dose", "usable", "collapsed", "reason")
    require_columns(joined, *columns, maker="effect_and_damage")
    rows = joined[(joined["vector"] != UNSTEERED) & ~joined["control"].astype(bool)]
    rows = rows.assign(sign=np.sign(rows["multiplier"]).fillna(0).astype(int), size=rows["multiplier"].abs())
    found = [
        dict(zip(PLACE, place, strict=True)) | _range(cells.sort_values("size", kind="stable"))
        for place, cells in rows.groupby(list(PLACE), sort=False)
    ]
    return pd.DataFrame(found)


def _range(cells: pd.DataFrame) -> dict[str, Any]:
    """The range of cells in the order of their size."""
    usable, reasons = cells["usable"].to_numpy(bool), cells["reason"].tolist()
    start = int(usable.argmax()) if usable.any() else len(cells)
    stop = next((place for place in range(start, len(cells)) if not usable[place]), len(cells))
    inside, collapsed = cells.iloc[start:stop], cells[cells["collapsed"].astype(bool)]
    return {
        "conditions": len(cells),
        "usable": len(inside),
        **{
            f"{end}_{name}": _at(inside, place, name)
            for name in ("multiplier", "dose")
            for end, place in (("smallest", 0), ("largest", -1))
        },
        "collapse_multiplier": _at(collapsed, 0, "multiplier"),
        "collapse_dose": _at(collapsed, 0, "dose"),
        "reason": _why(reasons, start, stop),
    }


def _at(cells: pd.DataFrame, place: int, name: str) -> float:
    return float(cells[name].iloc[place]) if len(cells) else float("nan")


def _why(reasons: list[str], start: int, stop: int) -> str:
    if start < len(reasons):
        return reasons[stop] if stop < len(reasons) else "largest tried"
    return next((ENDINGS[reason] for reason in reasons if reason in ENDINGS), "no effect")
