"""What a vector does beside what its controls do: null ranges, permutation p values, false discovery."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from .._util.validation import checked
from ..statistics import false_discovery, permutation_p_value
from ..sweeps.selection import TIE
from ..sweeps.sweep_table import CELL, UNSTEERED, factors_of, serves, sweep_table
from ._effectiveness import effectiveness, flips
from ._signal_detection import signal_detection
from .condition_scores import measure_of

EFFECT = ("effect", "effect_low", "effect_high")
TESTED = ("controls", "null_low", "null_high", "null_mean", "p_value", "q_value")
RESAMPLES = 2000  # of the accuracy's bootstrap
ONE_WAY = ("accuracy", "readable_accuracy", "d_prime")  # which any push tends to lower, whatever its sign


@checked
def against_controls(
    table: pd.DataFrame, *, by: str | Sequence[str] = (), value: str = "shift"
) -> pd.DataFrame:
    """Each steered cell's effect, beside what control vectors do there with the same multiplier.

    Args:
        table: a sweep's table with controls.
        by: factors of the prompts to split by. Cells are never pooled.
        value: what the effect is, always against the unsteered model on the same prompts:
            "shift", of the mean logit difference (t interval);
            "flipped", the share of choices that differ (Wilson interval);
            "accuracy", its change, an unreadable answer counting as wrong; "readable_accuracy", the same of
            the prompts whose answers are readable both times; "d_prime" and "criterion", theirs (paired
            bootstrap intervals).

    Returns:
        A row a cell that is no control (and within it for each combination of factors): the cell's columns,
        `dose`, the factors, and
        n: prompts; for d′ and the criterion those that are readable;
        value: its name;
        effect, effect_low, effect_high: with its 95 % interval over prompts;
        controls: its control vectors with a cell of the same operation, hook, layers and multiplier, or its
            opposite: a random direction has no sign, so both are its cells (NaN goes with NaN);
        null_low, null_high, null_mean: lowest and highest of these cells' effects, since they are few, and
            their mean;
        p_value: (b + 1) / (m + 1), where b of the m control vectors have a cell whose effect is as far from
            zero. Two-sided, since the controls have no sign. Accuracy and d′ fall under any push, so for them
            it is as far from the mean of the controls and the vector: an improvement is not beaten by damage;
        q_value: false discovery over all rows of the same vector, operation and factors.
        NaN where there is no effect, and the last five where there is no control.

    Raises:
        ValueError: no controls or no unsteered cell, no row has the value, an unknown value, columns are
            missing, or `by` names an outcome or a result.

    The range is not symmetric: an effect just outside it may be nearer to zero than its other end.

    With m controls no p value, nor q value, gets below 1 / (m + 1): 0.17 with 5, 0.05 with 19, and 0.048 with
    the 20 that `sweep` runs by default, at the chosen condition alone. Both cells of a control vector say
    nearly the same, so they count once, by the larger effect; to count them as two would call chance too
    often.

    Random, shuffled and orthogonal controls count alike: to compare with one kind, give the table without the
    others' rows. A vector is compared with the controls whose `control_of` is its name or "", which serve all
    vectors.

    Source: the p value, Phipson & Smyth 2010, section 3; false discovery, Benjamini & Hochberg 1995.
    """
    if value not in EFFECTS:
        raise ValueError(f"value={value!r} is unknown: use one of {', '.join(EFFECTS)}.")
    table = sweep_table(table)
    by = factors_of(table, by, {"n", "value", *EFFECT, *TESTED})
    _require_controls(table)
    effects = EFFECTS[value](table, by)
    effects = effects[effects["vector"] != UNSTEERED].reset_index(drop=True)
    is_control = effects["control"].astype(bool)
    if effects.loc[~is_control, "effect"].isna().all():
        raise ValueError(
            f"{value} is NaN in every steered cell: written answers have no logits (value='flipped'), and "
            "accuracy, d_prime and criterion need questions with answers, of both kinds in each level of by."
        )
    result = _beside_controls(effects, by, one_way=value in ONE_WAY).assign(value=value)
    tests = result.groupby(["vector", "operation", *by], dropna=False, sort=False, observed=True)["p_value"]
    result["q_value"] = tests.transform(lambda p_values: false_discovery(p_values.to_numpy(float)))
    return result[[*CELL, "dose", *by, "n", "value", *EFFECT, *TESTED]]


def _require_controls(table: pd.DataFrame) -> None:
    if not table["control"].astype(bool).any():
        raise ValueError(
            "the table has no controls: sweep(…, controls=20) adds random directions of the same length, and "
            "controls=control_vectors(activations) shuffled labels and an orthogonal one too."
        )
    if not (table["vector"] == UNSTEERED).any():
        raise ValueError("the table has no unsteered cell, against which effects are: give the whole sweep.")
    if (table["control"].astype(bool) | (table["vector"] == UNSTEERED)).all():
        raise ValueError("the table has no steered cell but controls: there is nothing to compare with them.")


def _beside_controls(effects: pd.DataFrame, by: Sequence[str], *, one_way: bool) -> pd.DataFrame:
    """The rows that are no controls, beside the controls in the same place."""
    keys = [effects["operation"], effects["layers"], effects["hook"], effects["multiplier"].abs()]
    keys += [effects[name] for name in by]
    place = effects.groupby(keys, dropna=False, sort=False, observed=True).ngroup()
    is_control = effects["control"].astype(bool)
    controls = dict(list(effects[is_control].groupby(place[is_control])))
    studied, nothing = effects[~is_control], effects.iloc[:0]
    beside = (controls.get(where, nothing) for where in place[~is_control])
    tested = [
        _tested(row, there[serves(there, row["vector"])], one_way=one_way)
        for row, there in zip(studied.to_dict("records"), beside, strict=True)
    ]
    return studied.reset_index(drop=True).join(pd.DataFrame(tested))


def _tested(row: Mapping[str, Any], controls: pd.DataFrame, *, one_way: bool) -> dict[str, float]:
    cells = controls.dropna(subset="effect")
    effects = cells["effect"].to_numpy(float)
    by_vector = cells["effect"].groupby(cells["vector"])
    # The vector is one of those that the mean is of: under the null it is one more control.
    middle = np.mean([*by_vector.mean(), row["effect"]]) if one_way else 0.0
    reach = (by_vector.agg(lambda each: (each - middle).abs().max())).to_numpy(float)
    result = dict.fromkeys(TESTED[1:-1], np.nan) | {"controls": len(reach)}
    if len(reach):
        result |= {"null_low": effects.min(), "null_high": effects.max(), "null_mean": effects.mean()}
    if len(reach) and not np.isnan(row["effect"]):
        result["p_value"] = permutation_p_value(abs(row["effect"] - middle) - TIE, reach)
    return result


def _shift(table: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    return _named(effectiveness(table, by=by), "shift")


def _flipped(table: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    return _named(flips(table, by), "flipped")


def _accuracy(table: pd.DataFrame, by: Sequence[str], name: str) -> pd.DataFrame:
    measure, _ = measure_of(name)
    parts = table.groupby(by, dropna=False, sort=False, observed=True) if by else [((), table)]
    changes = []
    for level, rows in parts:
        if (rows["vector"] == UNSTEERED).any():
            change = _named(measure(rows, RESAMPLES, 0), "change")[[*CELL, *EFFECT]]
            change[list(by)] = level
            changes.append(change)
    cells = effectiveness(table, by=by)[[*CELL, "dose", *by, "n"]]
    return cells.merge(pd.concat(changes), how="left", on=[*CELL, *by])


def _detected(table: pd.DataFrame, by: Sequence[str], name: str) -> pd.DataFrame:
    found = signal_detection(table, by=by)
    return _named(found.assign(n=found["n_signal"] + found["n_noise"]), f"{name}_change")


def _named(table: pd.DataFrame, name: str) -> pd.DataFrame:
    return table.rename(columns={f"{name}{end}": f"effect{end}" for end in ("", "_low", "_high")})


EFFECTS: dict[str, Callable[[pd.DataFrame, Sequence[str]], pd.DataFrame]] = {
    "shift": _shift,
    "flipped": _flipped,
    "accuracy": partial(_accuracy, name="accuracy"),
    "readable_accuracy": partial(_accuracy, name="readable_accuracy"),
    "d_prime": partial(_detected, name="d_prime"),
    "criterion": partial(_detected, name="criterion"),
}
