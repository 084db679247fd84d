"""How well what is known of vectors before generating predicts what they do."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from .._util.validation import checked, holds_numbers
from ..sweeps.sweep_table import require_columns

MEASURES = (
    "split_half", "reliability", "single", "cone", "between", "paired_accuracy", "auc", "d_prime",
)  # fmt: skip
KEYS = ("vector", "operation", "hook", "multiplier")
FEWEST = 4  # layers


@checked
def prediction(
    cards: pd.DataFrame | Sequence[pd.DataFrame],
    effects: pd.DataFrame,
    *,
    effect: str = "shift",
    measures: Sequence[str] = MEASURES,
) -> pd.DataFrame:
    """Rank correlation over layers of each measure of a vector with the size of its later effect.

    Args:
        cards: tables with a row a layer, or a layer and method: of `agreement`, of `separation`.
        effects: what `effectiveness` or `steerability` makes of a sweep over single layers, of one vector: a
            card does not say whose it is. Controls, the unsteered cell and cells of several layers are left
            out.
        effect: a column of it that is 0 where nothing changes ("shift", "flipped", "slope_per_dose"); its
            size is taken, without the sign.
        measures: columns of the cards; those that a card lacks are passed over.

    Returns:
        A row a vector, operation, hook and multiplier of the effects, and method and measure of the cards:
        correlation: Spearman's, over the layers that both have; NaN where one of them does not vary;
        p_value: two-sided, the share of circular shifts of the layers with one as large, the unshifted order
            among them: never below 1 / n;
        n: layers;
        dose_low, dose_high: the smallest and largest dose among them, NaN where none is known.

    Raises:
        ValueError: columns are missing, a layer is twice in a card or a cell (a table split by a factor:
            select a level), no measure, fewer than four layers in common, or no single-layer cells.

    Effects at different layers compare at one dose, and the same multiplier is another dose in another layer.
    So each effect is divided by its dose, where it has one (a projection has none). That is right as far as
    effects grow in proportion; a sweep of `vectors.scaled_to(dose=…)` needs no such belief, and `dose_low`
    and `dose_high` say how much was believed.

    Neighbouring layers are alike in both, so a free permutation would call every two smooth curves related;
    shifts keep their smoothness. Even so, curves that both rise in the middle of the model, as most do, are
    related without the one telling anything of the other. All measures are tried on one sweep: the best of
    them is flattered.

    Source: shifts for smooth series, Harris 2020 (arXiv 2012.06862); circular ones are the approximate form.
    """
    cards = [cards] if isinstance(cards, pd.DataFrame) else list(cards)
    cells = list(_cells(effects, effect))
    rows = [
        (*key, method, measure, *_compared(known, sizes), *doses)
        for key, sizes, doses in cells
        for card in cards
        for method, measure, known in _measured(card, measures)
    ]
    if not rows:
        raise ValueError(f"the cards have none of the measures {list(measures)}: give agreement(…)'s table.")
    keys = [name for name in KEYS if name in effects]
    columns = [*keys, "method", "measure", "correlation", "p_value", "n", "dose_low", "dose_high"]
    return pd.DataFrame(rows, columns=columns)


def _cells(effects: pd.DataFrame, effect: str) -> list[tuple[tuple, pd.Series, tuple[float, float]]]:
    """Of each vector, operation, hook and multiplier: the effect's size by layer, and the range of doses."""
    _require_numbers(effects, ("vector", "layers", effect), "effectiveness(sweep_table)")
    single = effects["layers"].astype(str).str.fullmatch(r"\d+")
    rows = effects[single & ~effects["control"].astype(bool)] if "control" in effects else effects[single]
    if rows.empty:
        raise ValueError(
            f"no cell of one layer but controls; layers are {sorted(set(effects['layers'].map(str)))}: "
            "sweep over single layers, layers=[10, 11, …]."
        )
    keys = [name for name in KEYS if name in rows]
    found = []
    for key, cell in rows.groupby(keys, dropna=False, sort=False, observed=True):
        layers = pd.Index(cell["layers"].astype(int), name="layer")
        _require_once(layers, f"the effects of {', '.join(map(str, key))}")
        dose = cell["dose"].abs() if "dose" in cell else pd.Series(np.nan, cell.index)
        sizes = cell[effect].abs() / dose.where(dose > 0, 1.0)
        found.append((key, pd.Series(sizes.to_numpy(float), layers), (dose.min(), dose.max())))
    return found


def _measured(card: pd.DataFrame, measures: Sequence[str]) -> list[tuple[str, str, pd.Series]]:
    """Each measure of each method of a card, by layer."""
    _require_numbers(card, ("layer",), "agreement(activations)")
    methods = card["method"] if "method" in card else pd.Series("", card.index)
    found = []
    for method, rows in card.groupby(methods, sort=False):
        layers = pd.Index(rows["layer"].astype(int), name="layer")
        _require_once(layers, f"the card of {method}")
        found += [
            (str(method), name, pd.Series(rows[name].to_numpy(float), layers))
            for name in measures
            if name in rows
        ]
    return found


def _compared(known: pd.Series, sizes: pd.Series) -> tuple[float, float, int]:
    """Spearman's correlation over shared layers, its p value by circular shifts, and how many layers."""
    both = pd.concat([known, sizes], axis=1, join="inner").sort_index()
    shared, both = len(both), both.dropna()
    if shared < FEWEST:
        raise ValueError(
            f"{shared} layers in common (of {sorted(known.index)} and {sorted(sizes.index)}): "
            f"a rank correlation needs at least {FEWEST}, and says little below ten."
        )
    ranks = [both.iloc[:, column].rank().to_numpy() for column in (0, 1)]
    if len(both) < FEWEST or any(np.ptp(each) == 0 for each in ranks):
        return np.nan, np.nan, len(both)
    shifted = np.array([np.corrcoef(np.roll(ranks[0], shift), ranks[1])[0, 1] for shift in range(len(both))])
    reached = np.abs(shifted) >= abs(shifted[0]) - 1e-12
    return float(shifted[0]), float(reached.mean()), len(both)


def _require_numbers(table: pd.DataFrame, names: Sequence[str], maker: str) -> None:
    require_columns(table, *names, maker=maker)
    numbers = [name for name in table if name in {*names, *MEASURES, "layer"} - {"vector", "layers"}]
    if wrong := [name for name in numbers if not holds_numbers(table[name])]:
        raise ValueError(f"the columns {wrong} do not hold numbers alone. Give the table of {maker}.")
    if "layer" in table and not (table["layer"] % 1 == 0).all():
        raise ValueError(
            f"the column 'layer' must be a whole number in every row. Give the table of {maker}."
        )


def _require_once(layers: pd.Index, what: str) -> None:
    if (twice := layers[layers.duplicated()]).size:
        raise ValueError(
            f"layer {twice[0]} is twice in {what}: give one table at a time, "
            "and of a table split by a factor one level."
        )
