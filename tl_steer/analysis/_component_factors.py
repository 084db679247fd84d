"""What principal components go with: their correlation with each factor of the pairs."""

from collections.abc import Iterator, Sequence
from itertools import count, takewhile

import numpy as np
import pandas as pd
from jaxtyping import Float

from .._util.validation import checked
from ..directions.factors import MOST_LEVELS, coded_levels
from .kinds import require_kinds
from .row_labels import LABELS


@checked
def component_factors(table: pd.DataFrame, *, factors: str | Sequence[str] | None = None) -> pd.DataFrame:
    """Correlation of each component's coordinates with each factor, at every layer, with its sign.

    Args:
        table: what `pca` makes.
        factors: "side" or names of factors, one or several; by default every one that varies and can be
            counted: "group" and texts of more than six levels (topics, names) are left out.

    Returns:
        A row a layer, component and factor (or level of it):
        layer; component, from 1; explained, as in `pca`;
        factor; level, the one counted as 1 against all others (of two levels "positive", "true", the larger
        number or the first in the alphabet; of three to six texts each in turn), "" for a factor of more than
        two numbers, which is taken as it is;
        correlation: Pearson's r with Fisher's 95 % interval in correlation_low and correlation_high;
        n: prompts where the factor is known;
        units: what the interval counts as independent: their groups, or where there are none, their pairs.

    Raises:
        ValueError: no rows, missing columns, or a factor asked for that is not there, does not vary, or has
            too many levels.

    A component's sign is a convention (the positive side has the higher mean): compare signs within one.
    Both sides of a pair share their claim, and pairs of a group too, so the interval counts each group once:
    wide enough for what a group shares (truth), wider than need be for what differs within it (side, letter).
    It is of one component and layer; among many, some exclude zero by chance.

    Source of the interval: Fisher 1921, z = atanh r, with 1 / √(units − 3).
    """
    factors = [factors] if isinstance(factors, str) else factors
    components = _components(table)
    _require_rows(table, components)
    numbers = [f"{kind}{number}" for kind in ("PC", "explained_") for number in components]
    require_kinds(table, ["layer", "pair", *numbers], maker="pca(…)")
    coded = list(_coded(table, components, factors))
    unit = "group" if "group" in table.columns else "pair"
    rows = []
    for layer, place in table.groupby("layer").indices.items():
        here = table.iloc[place]
        for component in components:
            coordinates = here[f"PC{component}"].to_numpy(float)
            for factor, level, values in coded:
                known = ~np.isnan(values[place])
                r = _correlation(coordinates[known], values[place][known])
                units = here[unit][known].nunique()
                low, high = _fisher_interval(r, units)
                explained = here[f"explained_{component}"].iloc[0]
                rows.append(
                    (layer, component, explained, factor, level, r, low, high, int(known.sum()), units)
                )
    correlation = ("correlation", "correlation_low", "correlation_high")
    names = ["layer", "component", "explained", "factor", "level", *correlation, "n", "units"]
    return pd.DataFrame(rows, columns=names)


def _components(table: pd.DataFrame) -> list[int]:
    """Numbers of the components, without a gap: a factor may be named PC9."""
    return list(takewhile(lambda number: {f"PC{number}", f"explained_{number}"} <= {*table}, count(1)))


def _require_rows(table: pd.DataFrame, components: list[int]) -> None:
    missing = [name for name in LABELS if name not in table.columns]
    if missing or not components or table.empty:
        raise ValueError(
            f"the table has {len(table)} rows and the columns {list(table.columns)}: "
            "give the one that pca(…) makes, with PC1, explained_1, …"
        )


def _coded(
    table: pd.DataFrame, components: list[int], factors: Sequence[str] | None
) -> Iterator[tuple[str, str, Float[np.ndarray, " row"]]]:
    """Each factor as numbers, a row of the table each, NaN where it is missing: factor, level, values."""
    own = {*LABELS, "group", "decomposed"} - {"side"}
    own |= {f"{name}{number}" for number in components for name in ("PC", "explained_")}
    known = [each for each in table.columns if each not in own]
    pairs = zip(table["label"], table["prompt"], strict=True) if "label" in table else ()
    if all(isinstance(label, str) and label.strip() in prompt for label, prompt in pairs):
        known = [each for each in known if each != "label"]  # the prompts' messages, not a factor
    for name in known if factors is None else factors:
        if name not in table.columns or name in own:
            raise ValueError(f"{name!r} is no factor of this table; it has {known}.")
        codings = list(coded_levels(table[name]))
        if not codings and factors is not None:
            raise ValueError(
                f"{name!r} has {table[name].nunique()} levels: a correlation needs 2 or more, of texts at "
                f"most {MOST_LEVELS} (group them first)."
            )
        for level, _, values in codings:
            yield name, level, values


def _correlation(x: Float[np.ndarray, " row"], y: Float[np.ndarray, " row"]) -> float:
    """Pearson's r; NaN where one of them does not vary."""
    if len(x) < 2 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return float("nan")
    return float(np.corrcoef(x, y)[0, 1])


def _fisher_interval(r: float, units: int) -> tuple[float, float]:
    from scipy.stats import norm

    if np.isnan(r) or units <= 3:
        return float("nan"), float("nan")
    if abs(r) == 1:
        return r, r
    half = norm.ppf(0.975) / np.sqrt(units - 3)
    return float(np.tanh(np.arctanh(r) - half)), float(np.tanh(np.arctanh(r) + half))
