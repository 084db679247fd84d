"""Mean damage per condition, effect next to damage, and the usable range of doses."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float

from .._util.validation import checked
from ..statistics import mean_interval, rate_interval
from ..sweeps.selection import numbers
from ..sweeps.sweep_table import (
    CONDITION,
    UNSTEERED,
    by_condition,
    condition_means,
    ends,
    factors_of,
    require_unique_prompts,
    serves,
    validated_sweep,
)
from ..tables import validated
from ._effectiveness import renamed

COSTS = ("kl", "loss_change")
TEXT_MEASURES = ["words", "distinct_2", "unreadable", "empty"]
# Without control_of: in either table the controls may have been passed by name, for all vectors.
KEYS = [name for name in CONDITION if name != "control_of"]
AVERAGED = ("kl", "loss", "loss_change", "words", "distinct_1", "distinct_2", "distinct_3", "unreadable")
RANGE_KEYS = ("vector", "operation", "layers", "hook", "sign")
RANGE_ENDS = (
    "smallest_multiplier", "largest_multiplier", "smallest_dose", "largest_dose", "collapse_multiplier",
    "collapse_dose",
)  # fmt: skip
FIRST_FAILURES = {"damage": "damage first", "collapse": "collapse first"}


@checked
def effect_and_damage(
    effects: pd.DataFrame,
    damage_table: pd.DataFrame,
    text: pd.DataFrame | None = None,
    *,
    value: str = "shift",
    cost: str = "kl",
    directed: bool = True,
    max_loss_change: float = 0.1,
    max_kl: float | None = None,
    min_distinct: float = 0.5,
    max_unreadable: float = 0.5,
    collapse_loss: float = 2.0,
) -> pd.DataFrame:
    """Join each condition's effect with its damage, and say which conditions are usable.

    Args:
        effects: from `effectiveness`, or any table of conditions with an effect and its interval.
        damage_table: from `damage` with the same vectors; conditions that are not in both tables are left
            out.
        text: from `text_damage`, of texts written under these conditions (all, or some of them).
        value: the column of `effects` that is the effect, 0 where steering does nothing.
        cost: the damage of the Pareto set and of the figure, "kl" or "loss_change".
        directed: whether the effect has the multiplier's sign, as a shift does. `False` where more is better
            with either sign (accuracy, d′, flips): then a lower value is not an effect, and controls that
            lower it do not count.
        max_loss_change: upper bound, for a usable condition, of the upper end of the loss change's interval,
            in nats. 0.1 is 10 % more perplexity.
        max_kl: the same of the KL divergence; no bound by default, since a change is intended.
        min_distinct: a text has collapsed where the mean distinct_2 is below this share of the unsteered
            texts';
        max_unreadable: or where more than this share, and more than unsteered, of the answers is unreadable
            or of the texts without a word;
        collapse_loss: or where the mean loss change is above this, in nats: 2 is 7 times the perplexity.

    Returns:
        One row per condition: its columns, dose (of the effects), n, passages, and, with 95 % intervals,
        effect; kl; loss_change.
        control_effect: the largest |effect| (if not directed, the largest effect) of control vectors under
            the same condition, with either sign of the multiplier; NaN without controls.
        words, distinct_2, unreadable: means of the texts; NaN without.
        pareto: no other condition of the vector with a multiplier of the same sign, and not the unsteered
            one, has as much effect for as little cost. A projection (no multiplier) counts by |effect|.
        cost: the argument.
        collapsed, collapse: whether, and by which rules: "repetition", "unreadable", "empty", "loss".
        usable: the effect's interval lies beyond zero (if directed, on the multiplier's side), the effect is
            beyond that of the controls, the damage within the bounds, and the text has not collapsed. At
            least two passages.
        reason: "" where it is usable, else "unsteered", "collapse", "no effect" or "damage".

    Raises:
        ValueError: columns are missing, a condition is twice in `effects`, no steered condition is in both
            tables, or an unknown cost.

    The bounds are conventions, not findings: report them with the conditions. The best of many conditions is
    flattered; `choose` tells by how much.
    """
    if cost not in COSTS:
        raise ValueError(f"cost={cost!r}: expected one of {', '.join(COSTS)}.")
    effects = _effects(effects, value)
    table = _joined(effects, damage_table)
    texts = _texts(text, table)
    table = table.merge(texts, how="left", on=KEYS)
    table["control_effect"] = _control_effects(effects, table, directed)
    sign = np.sign(table["multiplier"]).fillna(0)
    gain, is_gain = _gains(table, sign) if directed else (table["effect"], table["effect_low"] > 0)
    table["pareto"] = _pareto(table, sign, gain, cost)
    table["cost"] = cost
    unsteered = texts[texts["vector"] == UNSTEERED]
    table["collapse"] = _collapses(table, unsteered, min_distinct, max_unreadable, collapse_loss)
    table["collapsed"] = table["collapse"] != ""
    max_kl = np.inf if max_kl is None else max_kl
    reasons = {
        "unsteered": table["vector"] == UNSTEERED,
        "collapse": table["collapsed"],
        "no effect": ~(is_gain & ~(gain <= table["control_effect"])),
        "damage": ~((table["loss_change_high"] <= max_loss_change) & (table["kl_high"] <= max_kl)),
    }
    table["reason"] = np.select(list(reasons.values()), list(reasons), "")
    table["usable"] = table["reason"] == ""
    return table.drop(columns="empty")


def _effects(effects: pd.DataFrame, value: str) -> pd.DataFrame:
    effects = validated_sweep(effects, "dose", *ends(value), producer="effectiveness", factors=["n"])
    if effects.duplicated(list(CONDITION)).any():
        raise ValueError(
            "a condition is twice in the effects, as where they are split by a factor: expected one row per "
            "condition. Select one value of the factor, or leave out by=…"
        )
    return renamed(effects, value, ends("effect"))[[*CONDITION, "dose", "n", *ends("effect")]]


def _joined(effects: pd.DataFrame, damage_table: pd.DataFrame) -> pd.DataFrame:
    validated(damage_table, *COSTS, producer="damage")
    means = mean_damage(damage_table).rename(columns={"n": "passages"})
    damages = means[[*KEYS, "passages", *(name for cost in COSTS for name in ends(cost))]]
    table = effects.merge(damages, on=KEYS, validate="one_to_one")
    if not ((table["vector"] != UNSTEERED) & ~table["control"].astype(bool)).any():
        raise ValueError(
            "no steered condition is in both tables: expected effect and damage of the same vectors (by "
            "name), operations, layers and multipliers."
        )
    return table


def _texts(text: pd.DataFrame | None, table: pd.DataFrame) -> pd.DataFrame:
    """Mean measures of the texts per condition, NaN without texts."""
    if text is None:
        return table[KEYS].assign(**dict.fromkeys(TEXT_MEASURES, np.nan))
    text = validated_sweep(text, "words", "distinct_2", producer="text_damage", factors=["unreadable"])
    rows = text.assign(empty=text["words"] == 0).astype(dict.fromkeys(TEXT_MEASURES, float))
    return by_condition(rows)[TEXT_MEASURES].mean().reset_index().drop(columns="control_of")


def _control_effects(effects: pd.DataFrame, table: pd.DataFrame, directed: bool) -> list[float]:
    """The largest |effect|, or effect, of each vector's controls under the same condition."""
    is_control = effects["control"].astype(bool)
    reach = effects["effect"].abs() if directed else effects["effect"]
    names = ["operation", "layers", "hook"]
    keys, own_keys = ([*(rows[name] for name in names), rows["multiplier"].abs().fillna(-1)]
                      for rows in (effects, table))  # fmt: skip

    def largest(chosen: pd.Series) -> dict[tuple, float]:
        return reach.where(chosen).groupby(keys).max().to_dict()

    vectors = effects.loc[~is_control, "vector"].unique()
    by_vector = {vector: largest(is_control & serves(effects, vector)) for vector in vectors}
    rows = zip(table["vector"], zip(*own_keys, strict=True), strict=True)
    of_all = largest(is_control)
    return [by_vector.get(vector, of_all).get(key, np.nan) for vector, key in rows]


def _gains(table: pd.DataFrame, sign: pd.Series) -> tuple[pd.Series, pd.Series]:
    """The effect in the multiplier's direction, and whether its interval lies beyond zero there."""
    gain = (table["effect"] * sign).where(sign != 0, table["effect"].abs())
    up, down = table["effect_low"] > 0, table["effect_high"] < 0
    return gain, up.where(sign > 0, down).where(sign != 0, up | down)


def _pareto(
    table: pd.DataFrame, sign: pd.Series, gain: pd.Series, cost: str
) -> Bool[np.ndarray, " condition"]:
    """Undominated conditions of each vector and sign; not to steer is one of the choices."""
    result = (table["vector"] == UNSTEERED).to_numpy(copy=True)
    for rows in table.groupby([table["vector"], sign]).indices.values():
        points = np.stack([gain.to_numpy()[rows], -table[cost].to_numpy()[rows]], 1)
        result[rows] |= _undominated(points, np.vstack([points, [0.0, 0.0]]))
    return result


def _undominated(
    points: Float[np.ndarray, "point 2"], rivals: Float[np.ndarray, "rival 2"]
) -> Bool[np.ndarray, " point"]:
    """Points that no rival equals or exceeds in both, and exceeds in one; NaN is not a point."""
    at_least = (rivals[None] >= points[:, None]).all(-1)
    better = (rivals[None] > points[:, None]).any(-1)
    return ~(at_least & better).any(1) & ~np.isnan(points).any(1)


def _collapses(
    table: pd.DataFrame, unsteered: pd.DataFrame, min_distinct: float, max_unreadable: float, loss: float
) -> list[str]:
    """Names of the rules by which each condition's text has collapsed, compared with the unsteered texts."""
    before = unsteered.iloc[0] if len(unsteered) else dict.fromkeys(TEXT_MEASURES, np.nan)
    rules = {"repetition": table["distinct_2"] < min_distinct * before["distinct_2"]}
    for name in ("unreadable", "empty"):
        rules[name] = (table[name] > max_unreadable) & ~(table[name] <= before[name])
    rules["loss"] = table["loss_change"] > loss
    broken = pd.DataFrame(rules).mul(table["vector"] != UNSTEERED, axis=0)
    return [", ".join(name for name in rules if row[name]) for row in broken.to_dict("records")]


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
        collapse_multiplier, collapse_dose: of the first condition whose text collapsed; NaN without one.
        reason: what ends the range: "damage", "collapse", "no effect", or "largest tried". Where it is empty:
            "no effect" in any condition, or the first failure: "damage first" or "collapse first".

    Raises:
        ValueError: columns are missing.

    Controls are left out. Between the conditions that were tried nothing was measured.
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
    inside, collapsed = conditions[start:stop], conditions[conditions["collapsed"].astype(bool)]
    if start < count:
        reason = reasons[stop] if stop < count else "largest tried"
    else:
        reason = next((FIRST_FAILURES[each] for each in reasons if each in FIRST_FAILURES), "no effect")
    result = {"conditions": count, "usable": len(inside)}
    rows = {"smallest": inside[:1], "largest": inside[-1:], "collapse": collapsed[:1]}
    for column in RANGE_ENDS:
        end, _, name = column.partition("_")
        result[column] = float(rows[end][name].sum(min_count=1))  # NaN without a row
    return result | {"reason": reason}
