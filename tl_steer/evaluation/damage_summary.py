"""Damage per condition: means with intervals, and from which dose to which a vector can be used."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from .._util.validation import checked
from ..statistics import mean_interval, rate_interval
from ..sweeps.scores import numbers
from ..sweeps.sweep_table import (
    UNSTEERED,
    by_condition,
    condition_means,
    factors_of,
    require_unique_prompts,
    validated_sweep,
)
from ..tables import validated

AVERAGED = ("kl", "loss", "loss_change", "words", "distinct_1", "distinct_2", "distinct_3", "unreadable")
RANGE_KEYS = ("vector", "operation", "layers", "hook", "sign")
FIRST_FAILURES = {"damage": "damage first", "collapse": "collapse first"}


@checked
def mean_damage(table: pd.DataFrame, *, by: str | Sequence[str] = ()) -> pd.DataFrame:
    """Mean damage per condition.

    Args:
        table: from `damage` or `text_damage`.
        by: columns of the passages to split by, such as "topic". Conditions are never pooled.

    Returns:
        The condition's columns, `dose`, the factors, n (passages or texts), and of each measure that the
        table has (kl, loss, loss_change; words, distinct_1, distinct_2, distinct_3, unreadable) the mean,
        with its 95 % interval in `…_low` and `…_high`: Student's t, and Wilson's for the share `unreadable`;
        passages of one `group`, and draws of one prompt, are taken together, as in `effectiveness`. Where
        there is a `loss`, perplexity too: exp of the mean loss.

    Raises:
        ValueError: columns are missing, or a prompt is in a condition twice.

    A passage counts once, however long it is, and one without a value (NaN) not at all.
    """
    measures = [name for name in AVERAGED if name in table]
    columns = [name for name in measures if name != "unreadable"]  # true or false
    table = validated_sweep(table, "prompt_id", "dose", *columns, producer="damage or text_damage")
    by = factors_of(table, by, {"n", "perplexity", *AVERAGED})
    if not measures:
        raise ValueError("the table has no measure of damage. Pass the table of damage or text_damage.")
    require_unique_prompts(table, by)
    values = pd.DataFrame({name: numbers(table[name]) for name in measures})
    intervals = {name: rate_interval if name == "unreadable" else mean_interval for name in measures}
    result = condition_means(by_condition(table, by), values, intervals)
    return result.assign(perplexity=np.exp(result["loss"])) if "loss" in measures else result


@checked
def usable_range(table: pd.DataFrame) -> pd.DataFrame:
    """For each vector, operation, layer and sign of the multiplier, the doses that are usable.

    Args:
        table: from `effect_and_damage`; its bounds decide.

    Returns:
        One row each: vector, operation, layers, hook, sign (+1, −1, 0 without a multiplier), and
        conditions: how many were tried; usable: how many of them are in the range.
        smallest_multiplier, largest_multiplier, smallest_dose, largest_dose: of the range, which goes from
            the usable condition of the smallest |multiplier| on as long as each next one is usable too; NaN
            where empty.
        collapse_multiplier, collapse_dose: of the first condition whose text collapsed; NaN where none did.
        reason: what ends the range: "damage", "collapse", "no effect", or "largest tried". Where it is empty:
            "no effect" in any condition, or the first failure: "damage first" or "collapse first".

    Raises:
        ValueError: columns are missing.

    Controls are left out. The range knows only the conditions that were tried: between them nothing was
    measured.
    """
    columns = (*RANGE_KEYS[:-1], "control", "multiplier", "dose", "usable", "collapsed", "reason")
    table = validated(table, *columns, producer="effect_and_damage")
    rows = table[(table["vector"] != UNSTEERED) & ~table["control"].astype(bool)]
    rows = rows.assign(sign=np.sign(rows["multiplier"]).fillna(0).astype(int), size=rows["multiplier"].abs())
    return pd.DataFrame(
        dict(zip(RANGE_KEYS, keys, strict=True)) | _range(conditions.sort_values("size", kind="stable"))
        for keys, conditions in rows.groupby(list(RANGE_KEYS), sort=False)
    )


def _range(conditions: pd.DataFrame) -> dict[str, Any]:
    """The range of conditions in the order of their |multiplier|."""
    usable, reasons = conditions["usable"].to_numpy(bool), conditions["reason"].tolist()
    count = len(conditions)
    start = int(usable.argmax()) if usable.any() else count
    stop = next((index for index in range(start, count) if not usable[index]), count)
    inside, collapsed = conditions.iloc[start:stop], conditions[conditions["collapsed"].astype(bool)]
    if start < count:
        reason = reasons[stop] if stop < count else "largest tried"
    else:
        reason = next((FIRST_FAILURES[each] for each in reasons if each in FIRST_FAILURES), "no effect")
    return {
        "conditions": count,
        "usable": len(inside),
        "smallest_multiplier": _at(inside, 0, "multiplier"),
        "largest_multiplier": _at(inside, -1, "multiplier"),
        "smallest_dose": _at(inside, 0, "dose"),
        "largest_dose": _at(inside, -1, "dose"),
        "collapse_multiplier": _at(collapsed, 0, "multiplier"),
        "collapse_dose": _at(collapsed, 0, "dose"),
        "reason": reason,
    }


def _at(conditions: pd.DataFrame, index: int, name: str) -> float:
    return float(conditions[name].iloc[index]) if len(conditions) else float("nan")
