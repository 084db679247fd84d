"""How well measures of a vector before generating predict the size of its effect."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from .._util.validation import checked
from ..tables import validated

MEASURES = ("split_half", "reliability", "single", "cone", "between", "paired_accuracy", "auc", "d_prime")
KEYS = ("vector", "operation", "hook", "multiplier")
FEWEST = 4  # layers


@checked
def prediction(
    per_layer: pd.DataFrame | Sequence[pd.DataFrame],
    effects: pd.DataFrame,
    *,
    value: str = "shift",
    measures: Sequence[str] = MEASURES,
) -> pd.DataFrame:
    """Rank correlation over layers of each measure of a vector with the size of its later effect.

    Args:
        per_layer: tables with one row per layer, or per layer and method: of `agreement`, of `separation`.
        effects: from `effectiveness` or `steerability`, of a sweep over single layers, of one vector.
            Controls and conditions of no or several layers are left out.
        value: a column of the effects that is 0 where nothing changes ("shift", "flipped",
            "slope_per_dose"); its absolute value is used.
        measures: columns of the tables per layer; a table may lack some.

    Returns:
        One row per vector, operation, hook and multiplier of the effects, and method and measure:
        correlation: Spearman's, over the layers that both have; NaN where one of them does not vary;
        p_value: two-sided, the share of circular shifts of the layers with one as large, the unshifted order
            among them: never below 1 / n;
        n: layers;
        dose_low, dose_high: the smallest and largest dose among them, NaN where none is known.

    Raises:
        ValueError: columns are missing, a layer is twice in a table or condition, no measure, fewer than four
            layers in common, or no single-layer conditions.

    The same multiplier is another dose in another layer, so each effect is divided by its dose, if it has one
    (a projection has none). This assumes that effects grow in proportion, over the range from `dose_low` to
    `dose_high`; a sweep of `vectors.scaled_to(dose=…)` does not need the assumption.

    Circular shifts keep the smoothness over layers; free permutations would call any two smooth curves
    related. Even so, curves that both rise in the middle of the model, as most do, are correlated without one
    predicting the other. The best of several measures is flattered.

    Source: shifts for smooth series, Harris 2020 (arXiv 2012.06862); circular ones are the approximate form.
    """
    tables = [per_layer] if isinstance(per_layer, pd.DataFrame) else list(per_layer)
    conditions = _effect_sizes(effects, value)
    rows = [
        (*key, method, measure, *_correlation(by_layer, sizes), *doses)
        for key, sizes, doses in conditions
        for table in tables
        for method, measure, by_layer in _measures_by_layer(table, measures)
    ]
    if not rows:
        raise ValueError(f"the tables have no measure of {list(measures)}. Pass agreement's table.")
    keys = [name for name in KEYS if name in effects]
    columns = [*keys, "method", "measure", "correlation", "p_value", "n", "dose_low", "dose_high"]
    return pd.DataFrame(rows, columns=columns)


def _effect_sizes(effects: pd.DataFrame, value: str) -> list[tuple[tuple, pd.Series, tuple[float, float]]]:
    """Per vector, operation, hook and multiplier: the effect's size by layer, and the range of doses."""
    optional = effects.columns.intersection(["dose", "control"])
    effects = validated(effects, "vector", "layers", value, *optional, producer="effectiveness")
    effects = effects.assign(dose=effects.get("dose", np.nan), control=effects.get("control", False))
    rows = effects[effects["layers"].str.fullmatch(r"\d+") & ~effects["control"].astype(bool)]
    if rows.empty:
        raise ValueError(
            f"no condition of one layer but controls; layers are {sorted(set(effects['layers']))}: expected "
            "a sweep over single layers, layers=[10, 11, …]."
        )
    keys = [name for name in KEYS if name in rows]
    result = []
    for key, condition in rows.groupby(keys, dropna=False, sort=False, observed=True):
        dose = condition["dose"].abs()
        sizes = (condition[value].abs() / dose.where(dose > 0, 1.0)).set_axis(condition["layers"].astype(int))
        _require_unique_layers(sizes, f"the effects of {', '.join(map(str, key))}")
        result.append((key, sizes, (dose.min(), dose.max())))
    return result


def _measures_by_layer(table: pd.DataFrame, measures: Sequence[str]) -> list[tuple[str, str, pd.Series]]:
    """Each measure of each method, by layer."""
    names = [name for name in measures if name in table]
    table = validated(table, "layer", *names, producer="agreement")
    methods = table["method"] if "method" in table else pd.Series("", table.index)
    result = []
    for method, rows in table.groupby(methods, sort=False):
        by_layer = rows.set_index(rows["layer"].astype(int))
        _require_unique_layers(by_layer, f"the measures of {method}")
        result += [(str(method), name, by_layer[name].astype(float)) for name in names]
    return result


def _correlation(by_layer: pd.Series, sizes: pd.Series) -> tuple[float, float, int]:
    """Spearman's correlation over shared layers, its p value by circular shifts, and the number of layers."""
    both = pd.concat([by_layer, sizes], axis=1, join="inner").sort_index()
    shared, both = len(both), both.dropna()
    if shared < FEWEST:
        raise ValueError(
            f"{shared} layers in common (of {sorted(by_layer.index)} and {sorted(sizes.index)}): expected at "
            f"least {FEWEST}, better ten or more."
        )
    ranks = [both.iloc[:, column].rank().to_numpy() for column in (0, 1)]
    if len(both) < FEWEST or any(np.ptp(each) == 0 for each in ranks):
        return np.nan, np.nan, len(both)
    shifted = np.array([np.corrcoef(np.roll(ranks[0], shift), ranks[1])[0, 1] for shift in range(len(both))])
    reached = np.abs(shifted) >= abs(shifted[0]) - 1e-12
    return float(shifted[0]), float(reached.mean()), len(both)


def _require_unique_layers(by_layer: pd.Series | pd.DataFrame, source: str) -> None:
    if (twice := by_layer.index[by_layer.index.duplicated()]).size:
        raise ValueError(
            f"layer {twice[0]} is twice in {source}: expected one row per layer. Pass one table at a time, "
            "and of a table split by a factor one level."
        )
