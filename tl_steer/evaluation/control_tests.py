"""What a vector does compared with its controls: null ranges, permutation p values, false discovery."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from .._util.validation import checked
from ..statistics import false_discovery, permutation_p_value
from ..sweeps.selection import TIE
from ..sweeps.sweep_table import CONDITION, UNSTEERED, ends, factors_of, serves, validated_sweep
from ._choose import measure_of
from ._effectiveness import effectiveness, flips, renamed
from ._signal_detection import signal_detection

TESTED = ("controls", "null_low", "null_high", "null_mean", "p_value", "q_value")
RESAMPLES = 2000  # of the accuracy's bootstrap
# Any vector tends to lower these, whatever its sign.
ONE_WAY = ("shift_toward_answer", "accuracy", "readable_accuracy", "d_prime")


@checked
def against_controls(
    table: pd.DataFrame, *, by: str | Sequence[str] = (), value: str = "shift"
) -> pd.DataFrame:
    """Each steered condition's effect, and the effects of control vectors with the same multiplier.

    Args:
        table: a sweep's table with controls.
        by: factors of the prompts to split by. Conditions are never pooled.
        value: the effect, always against the unsteered model on the same prompts: "shift" of the mean logit
            difference (t interval); "bias", the `shift` of `signal_detection`, in which both right answers
            have equal weight; "shift_toward_answer", the shift toward each prompt's right answer;
            "flipped", the share of choices that differ (Wilson interval); or the change (paired bootstrap
            interval) of "accuracy", in which an unreadable answer is wrong, of "readable_accuracy" on the
            prompts readable both times, of "d_prime" or of "criterion".

    Returns:
        One row per condition that is not a control (and combination of factors): the condition's columns,
        `dose`, the factors, and
        n: prompts; for d′ and the criterion those that are readable;
        value_name: the argument `value`;
        effect, effect_low, effect_high: with its 95 % interval over prompts;
        controls: its control vectors (`control_of` is its name or "") with a condition of the same operation,
            hook, layers and multiplier, or its opposite, since a random direction has no sign;
        null_low, null_high, null_mean: lowest, highest and mean effect of these conditions. The range is not
            symmetric: an effect just outside it may be nearer to zero than its other end;
        p_value: (b + 1) / (m + 1), where b of the m control vectors have a condition whose effect is as far
            from zero. Two-sided, since the controls have no sign. Accuracy, d′ and the shift toward the
            answer fall under any push, so for them it is as far from the mean of the controls and the vector:
            an improvement is not beaten by damage;
        q_value: false discovery over all rows of the same vector, operation and factors.
        NaN where there is no effect, and the last five where there is no control.

    Raises:
        ValueError: no controls or no unsteered condition, no row has the value, an unknown value, columns are
            missing, or `by` names an outcome or a result.

    With m controls no p or q value gets below 1 / (m + 1): 0.17 with 5, 0.05 with 19, and 0.048 with the 20
    that `sweep` runs by default, at the chosen condition alone. Random, shuffled and orthogonal controls
    count alike: to compare with one type, leave out the rows of the others.

    Source: the p value, Phipson & Smyth 2010, section 3; false discovery, Benjamini & Hochberg 1995.
    """
    if value not in EFFECTS:
        raise ValueError(f"value={value!r}: expected one of {', '.join(EFFECTS)}.")
    table = validated_sweep(table)
    by = factors_of(table, by, {"n", "value_name", "effect", *TESTED})
    _require_controls(table)
    effects = EFFECTS[value](table, by)
    effects = effects[effects["vector"] != UNSTEERED].reset_index(drop=True)
    if effects.loc[~effects["control"].astype(bool), "effect"].isna().all():
        raise ValueError(
            f"{value} is NaN in every steered condition: written answers have no logits (value='flipped'), "
            "and accuracy, d_prime and criterion need answers of both classes in each level of by."
        )
    result = _with_controls(effects, by, one_way=value in ONE_WAY).assign(value_name=value)
    tests = result.groupby(["vector", "operation", *by], dropna=False, sort=False, observed=True)["p_value"]
    result["q_value"] = tests.transform(lambda p_values: false_discovery(p_values.to_numpy(float)))
    return result[[*CONDITION, "dose", *by, "n", "value_name", *ends("effect"), *TESTED]]


def _require_controls(table: pd.DataFrame) -> None:
    is_control, is_unsteered = table["control"].astype(bool), table["vector"] == UNSTEERED
    if not is_control.any():
        raise ValueError(
            "the table has no controls: sweep(…, controls=20) adds random directions of the same length, and "
            "controls=control_vectors(activations) shuffled labels and an orthogonal one too."
        )
    if not is_unsteered.any():
        raise ValueError("the table has no unsteered condition to compare with. Pass the whole sweep.")
    if (is_control | is_unsteered).all():
        raise ValueError("all steered conditions are controls: expected conditions of a vector to test.")


def _with_controls(effects: pd.DataFrame, by: Sequence[str], *, one_way: bool) -> pd.DataFrame:
    """The rows that are not controls, with the columns `TESTED` from the controls of the same condition."""
    keys = [effects["operation"], effects["layers"], effects["hook"], effects["multiplier"].abs()]
    keys += [effects[name] for name in by]
    condition = effects.groupby(keys, dropna=False, sort=False, observed=True).ngroup()
    is_control = effects["control"].astype(bool)
    controls = dict(list(effects[is_control].groupby(condition[is_control])))
    studied = effects[~is_control].reset_index(drop=True)
    rows = zip(studied.to_dict("records"), condition[~is_control], strict=True)
    matched = ((row, controls.get(number, effects.iloc[:0])) for row, number in rows)
    tested = [_tested(row, each[serves(each, row["vector"])], one_way=one_way) for row, each in matched]
    return studied.join(pd.DataFrame(tested))


def _tested(row: Mapping[str, Any], controls: pd.DataFrame, *, one_way: bool) -> dict[str, float]:
    controls = controls.dropna(subset="effect")
    effects = controls["effect"].to_numpy(float)
    by_vector = controls["effect"].groupby(controls["vector"])
    # The mean includes the vector: under the null it is one more control.
    middle = np.mean([*by_vector.mean(), row["effect"]]) if one_way else 0.0
    distance = by_vector.agg(lambda each: (each - middle).abs().max()).to_numpy(float)
    result = dict.fromkeys(TESTED[1:-1], np.nan) | {"controls": len(distance)}
    if controls.empty:
        return result
    result |= {"null_low": effects.min(), "null_high": effects.max(), "null_mean": effects.mean()}
    if not np.isnan(row["effect"]):
        result["p_value"] = permutation_p_value(abs(row["effect"] - middle) - TIE, distance)
    return result


def _accuracy(table: pd.DataFrame, by: Sequence[str], name: str) -> pd.DataFrame:
    measure, _ = measure_of(name)
    changes = []
    for level, rows in table.groupby(by, dropna=False, sort=False, observed=True) if by else [((), table)]:
        if (rows["vector"] == UNSTEERED).any():
            # Renamed before the factors are added, which may be called "change".
            change = renamed(measure(rows, RESAMPLES, 0), "change", ends("effect"))
            change = change[[*CONDITION, *ends("effect")]]
            change[list(by)] = level
            changes.append(change)
    conditions = effectiveness(table, by=by)[[*CONDITION, "dose", *by, "n"]]
    return conditions.merge(pd.concat(changes), how="left", on=[*CONDITION, *by])


def _detected(table: pd.DataFrame, by: Sequence[str], name: str) -> pd.DataFrame:
    result = signal_detection(table, by=by)
    result["n"] = result["n_signal"] + result["n_noise"]
    return renamed(result, f"{name}_change", ends("effect"))


def _toward_answer(table: pd.DataFrame) -> pd.DataFrame:
    """The answered rows with logit differences toward each prompt's right answer instead of choice 0."""
    table = validated_sweep(table, "answer").dropna(subset="answer")
    sign = table["answer"].map({0: 1.0, 1: -1.0}).astype(float)
    return table.assign(logit_difference=table["logit_difference"] * sign)


def _shift(table: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    return renamed(effectiveness(table, by=by), "shift", ends("effect"))


def _bias(table: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    result = signal_detection(table, by=by, resamples=1)  # no bootstrap in its shift
    result["n"] = result["n_signal"] + result["n_noise"]
    return renamed(result, "shift", ends("effect"))


EFFECTS: dict[str, Callable[[pd.DataFrame, Sequence[str]], pd.DataFrame]] = {
    "shift": _shift,
    "bias": _bias,
    "shift_toward_answer": lambda table, by: _shift(_toward_answer(table), by),
    "flipped": lambda table, by: renamed(flips(table, by), "flipped", ends("effect")),
    **{name: partial(_accuracy, name=name) for name in ("accuracy", "readable_accuracy")},
    **{name: partial(_detected, name=name) for name in ("d_prime", "criterion")},
}
