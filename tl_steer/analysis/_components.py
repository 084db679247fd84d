"""Principal components of activations, the factors they correlate with, and the coordinates of a vector."""

from collections.abc import Iterator, Sequence
from itertools import count, product, takewhile
from typing import Literal

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float

from .._util.validation import checked
from ..activations import PairedActivations
from ..directions import SteeringVector, SteeringVectors
from ..directions.factors import MAX_LEVELS, coded_levels
from ..tables import validated
from ._projections import LABELS, chosen_layers, divided, labelled


@checked
def pca(
    activations: PairedActivations,
    *,
    components: int = 3,
    layers: int | Sequence[int] | None = None,
    of: Literal["pooled", "differences", "centred_differences"] = "pooled",
) -> pd.DataFrame:
    """Coordinates of every activation on the first principal components of its layer.

    Args:
        activations: both sides, one position each.
        components: number of components.
        layers: which of the captured layers, negatives from the model's end; all by default.
        of: the rows that are decomposed, as for `principal_component`: both sides pooled, minus their common
            mean; or the differences of the pairs, as they are or (as in the study) minus their mean.

    Returns:
        One row per layer, pair and side: layer, pair, side ("positive", "negative"), prompt, label (its
        message, where it was rendered from one), the factors (those that differ between the sides as one
        column), decomposed (`of`), PC1 … PCk, explained_1 … explained_k. PC1 … are the coordinates of the
        activation minus the common mean of both sides, in units of the residual stream.
        explained_1 … are each component's share of the sum of squares of the decomposed rows (of centred
        rows, of their variance), the same in all rows of a layer.

    Raises:
        ValueError: fewer components exist, a layer was not captured, or activations vary in fewer directions.

    Pooled components may show what pairs share (the topic). The sign of a component is arbitrary: the
    positive side has the higher mean, or, in a tie, the largest coordinate is positive.
    """
    chosen = chosen_layers(activations, layers)
    sides = torch.stack(activations.sides()).double().numpy()
    both = np.concatenate(sides)
    rows = both if of == "pooled" else sides[0] - sides[1]
    rows = rows if of == "differences" else rows - rows.mean(0)
    available = min(len(rows) - (of != "differences"), rows.shape[-1])
    if not 1 <= components <= available:
        raise ValueError(
            f"components={components} do not exist: {len(activations)} pairs give 1 to {available}."
        )
    tables = {}
    for layer in chosen:
        index = activations.layers.index(layer)
        _, singular, axes = np.linalg.svd(rows[:, index], full_matrices=False)
        rounding = np.finfo(np.float32).eps * np.linalg.norm(both[:, index])
        squares = np.where(singular > rounding, singular**2, 0.0)
        name, needed = ("activations", 1) if of == "pooled" else ("differences", components)
        if not squares[needed - 1]:
            raise ValueError(
                f"the {name} at layer {layer} vary in fewer than {needed} directions: capture other "
                "layers or positions, or give fewer components."
            )
        coordinates = _oriented((both[:, index] - both[:, index].mean(0)) @ axes[:components].T)
        explained = squares / squares.sum()
        values = {"decomposed": of} | {f"PC{k + 1}": coordinates[:, k] for k in range(components)}
        values |= {f"explained_{k + 1}": explained[k] for k in range(components)}
        tables[layer] = pd.DataFrame(values)
    return labelled(activations, tables)


def _oriented(coordinates: Float[np.ndarray, "point component"]) -> Float[np.ndarray, "point component"]:
    """Coordinates with the positive side, which is the first half, higher on average."""
    positive, negative = np.split(coordinates, 2)
    gap = positive.mean(0) - negative.mean(0)
    largest = np.take_along_axis(coordinates, np.abs(coordinates).argmax(0)[None], 0)[0]
    return coordinates * np.where(np.where(gap == 0, largest, gap) < 0, -1.0, 1.0)


@checked
def component_factors(table: pd.DataFrame, *, factors: str | Sequence[str] | None = None) -> pd.DataFrame:
    """Correlation of each component's coordinates with each factor, per layer, with its sign.

    Args:
        table: from `pca`.
        factors: "side" or names of factors, one or several; by default every one that varies and can be
            counted: "group" and texts of more than six levels (topics, names) are left out.

    Returns:
        One row per layer, component and factor (or level of it):
        layer; component, from 1; explained, as in `pca`;
        factor; level, the one counted as 1 against all others (of two levels "positive", "true", the larger
        number or the first in the alphabet; of three to six texts each in turn), "" for a factor of more than
        two numbers, which is taken as it is;
        correlation: Pearson's r with Fisher's 95 % interval in correlation_low and correlation_high;
        n: prompts where the factor is known;
        units: independent units of the interval: the prompts' groups, or without groups their pairs.

    Raises:
        ValueError: no rows, or a factor that is missing, does not vary, or has too many levels.

    A component's sign is a convention (the positive side has the higher mean): compare signs within one.
    The interval counts each group once: right for what a group shares (truth), too wide for what differs
    within it (side, letter). Among many components and layers, some exclude zero by chance.

    Source of the interval: Fisher 1921, z = atanh r, with 1 / √(units − 3).
    """
    factors = [factors] if isinstance(factors, str) else factors
    # Numbered without a gap: a factor may be named PC9.
    numbers = list(takewhile(lambda k: {f"PC{k}", f"explained_{k}"} <= {*table}, count(1))) or [1]
    columns = [f"{name}{number}" for name in ("PC", "explained_") for number in numbers]
    table = validated(table, *LABELS, *columns, producer="pca", caller="component_factors")
    codings = list(_coded(table, {*columns, "decomposed"}, factors))
    unit = table["group" if "group" in table else "pair"]
    rows = []
    layers = table.groupby("layer").indices.items()
    for (layer, index), component, (factor, level, values) in product(layers, numbers, codings):
        explained = table[f"explained_{component}"].iloc[index[0]]
        index = index[~np.isnan(values[index])]
        r = _correlation(table[f"PC{component}"].to_numpy(float)[index], values[index])
        units = unit.iloc[index].nunique()
        interval = _fisher_interval(r, units)
        rows.append((layer, component, explained, factor, level, r, *interval, len(index), units))
    correlation = ("correlation", "correlation_low", "correlation_high")
    names = ["layer", "component", "explained", "factor", "level", *correlation, "n", "units"]
    return pd.DataFrame(rows, columns=names)


def _coded(
    table: pd.DataFrame, results: set[str], factors: Sequence[str] | None
) -> Iterator[tuple[str, str, Float[np.ndarray, " row"]]]:
    """Each factor as numbers, one per row of the table, NaN where it is missing: factor, level, values."""
    fixed = results | {*LABELS, "group"} - {"side"}
    known = [each for each in table.columns if each not in fixed]
    pairs = zip(table["label"], table["prompt"], strict=True) if "label" in table else ()
    if all(isinstance(label, str) and label.strip() in prompt for label, prompt in pairs):
        known = [each for each in known if each != "label"]  # the prompts' messages, not a factor
    for name in known if factors is None else factors:
        if name not in table.columns or name in fixed:
            raise ValueError(f"{name!r} is not a factor of this table; it has {known}.")
        codings = list(coded_levels(table[name]))
        if not codings and factors is not None:
            raise ValueError(
                f"{name!r} has {table[name].nunique()} levels: a correlation needs 2 or more, of texts at "
                f"most {MAX_LEVELS} (group them first)."
            )
        yield from ((name, level, values) for level, _, values in codings)


def _correlation(x: Float[np.ndarray, " row"], y: Float[np.ndarray, " row"]) -> float:
    """Pearson's r; NaN where one of them does not vary."""
    if len(x) < 2 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return float("nan")
    return float(np.corrcoef(x, y)[0, 1])


def _fisher_interval(r: float, units: int) -> tuple[float, float]:
    from scipy.stats import norm

    if units <= 3:
        return float("nan"), float("nan")
    half = norm.ppf(0.975) / np.sqrt(units - 3)
    with np.errstate(divide="ignore"):  # of r = 1
        z = np.arctanh(r)
    return float(np.tanh(z - half)), float(np.tanh(z + half))


@checked
def vector_components(vectors: SteeringVectors | SteeringVector) -> pd.DataFrame:
    """Every coordinate of the vector of each layer, with its share of the squared length.

    Args:
        vectors: one vector per layer, at any hook.

    Returns:
        One row per layer and coordinate:
        layer; coordinate, its index (0-based); value, in units of the residual stream;
        share, of the vector's squared length; rank, 1 for the coordinate of largest size;
        and of the whole vector, the same in all its rows:
        spread, the root mean square of its coordinates;
        kurtosis, the excess over a normal distribution's (0);
        n_half_energy, how many coordinates carry half of the squared length.

    Raises:
        ValueError: one vector per position, or a vector of length zero.

    A random direction's coordinates are normal with kurtosis 0, and an eighth of them carries half of its
    squared length. Many models have *outlier dimensions*, large in every activation: a vector along a few of
    them may show the model rather than the behaviour.

    Source: Timkey & van Schijndel 2021 (arXiv 2109.04404), section 3.
    """
    vectors = vectors.as_vectors()
    if vectors.has_positions:
        raise ValueError("these vectors have one per position: vector_components needs one per layer.")
    if zero := vectors.zero_layers():
        raise ValueError(f"a vector of length zero (layers {zero}) has no coordinates to compare.")
    values = vectors.values.double().numpy()
    count, width = values.shape
    squares = values**2
    share = squares / squares.sum(1, keepdims=True)
    order = np.argsort(-share, axis=1, kind="stable")
    energy = np.take_along_axis(share, order, axis=1).cumsum(1)
    centred = values - values.mean(1, keepdims=True)
    variance = (centred**2).mean(1)
    kurtosis = divided((centred**4).mean(1), variance**2) - 3
    per_layer = {
        "spread": np.sqrt(squares.mean(1)),
        "kurtosis": kurtosis,
        "n_half_energy": (energy < 0.5 * (1 - 1e-12)).sum(1) + 1,
    }
    return pd.DataFrame(
        {
            "layer": np.repeat(vectors.layers, width),
            "coordinate": np.tile(np.arange(width), count),
            "value": values.ravel(),
            "share": share.ravel(),
            "rank": order.argsort(1).ravel() + 1,
            **{name: np.repeat(each, width) for name, each in per_layer.items()},
        }
    )
