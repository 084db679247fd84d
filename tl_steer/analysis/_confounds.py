"""Share of a vector that lies along factors that vary among its pairs."""

import numpy as np
import pandas as pd
import torch
from einops import einsum
from jaxtyping import Float, Int

from .._util.seeds import generator
from .._util.validation import checked
from ..activations import PairedActivations
from ..directions import SteeringVectors
from ..directions.factors import FactorContrast, factor_contrasts
from ..prompts.pairs import group_numbers
from ..statistics import simultaneous_threshold
from ._projections import shared_layers

MIN_SHUFFLES = 19  # for a p value of 0.05
ALL = "all"  # the row of the span of all factors together


@checked
def confounds(
    vectors: SteeringVectors, activations: PairedActivations, *, shuffles: int = 200, seed: int = 0
) -> pd.DataFrame:
    """How far vectors point along letter, length, truth: the audit of a direction, not of its prompts.

    Args:
        vectors: one vector per layer.
        activations: with the factors to test; better not those that the vectors were made from (see below).
        shuffles: permutations for the null; with fewer than 19 nothing can differ.
        seed: of the permutations.

    Returns:
        One row per shared layer and factor, then one for all factors together ("all"):
        layer; factor, as `factor_directions` names it; contrast, what its direction leads from and to;
        cosine of the vector with the factor's direction; for "all" with the nearest direction in their span;
        share: its square, the part of the vector's squared length that lies along it;
        null_high: the |cosine| that meaningless factors reach (see below): in 95 % of shuffles
            none of the table's rows is above its own. NaN with fewer than 19 shuffles;
        differs: whether |cosine| is above it: the p value, corrected for all layers and factors of the table,
            is at most 0.05;
        balanced: False where the factor varies between the sides only (A always positive, B always
            negative): its direction cannot be separated from the vector, and the numbers are NaN. For "all",
            False where any such factor is left out;
        pairs, method.

    Raises:
        ModelMismatchError: the vectors belong to another model.
        ValueError: no factor that varies, no layer in common, another hook, or one vector per position.

    The null makes directions of noise: the factors' effects are removed from the activations (least squares
    within each side; they would leak into a chance contrast), then each pair is given the factors of another,
    whole groups at a time. Activations vary along few directions, so these cosines are far larger than those
    of random directions. Each |cosine| is compared in standard deviations from its own null's mean, and
    null_high is where the maximum of these over all rows of the table has its 95 % point. So a table of
    meaningless factors has a row that differs in 5 % of cases, however many layers it has.

    A vector and a factor's direction of the same pairs share these pairs' noise, and so have a cosine that
    the null lacks: make the vectors from one half of the pairs (`balanced_folds`) and test with the other.

    A cosine says where the vector points, not what it does. For that, split the effect by the factor,
    `effectiveness(sweep_table, by=…)`, and sweep with the vector `without_factors`.

    Source: permuted residuals, Freedman & Lane 1983 (Journal of Business & Economic Statistics 1:292); the
    maximum over tests, Westfall & Young 1993, chapter 2.
    """
    layers = shared_layers(activations, vectors)
    factors = factor_contrasts(activations)
    if not factors:
        raise ValueError("no factor varies among these pairs: give contrast_pairs(…, factors=…) some.")
    if shuffles < 1:
        raise ValueError(f"shuffles={shuffles}: give 1 or more.")
    balanced = [each for each in factors if each.weights is not None]
    weights = np.reshape([each.weights for each in balanced], (len(balanced), 2, len(activations)))
    rng = generator(seed)
    orders = [permuted_rows(activations.factors, rng) for _ in range(shuffles)]
    permuted = np.stack([weights[:, :, order] for order in orders])
    both = torch.stack(activations.sides()).double().numpy()
    observed, null = [], []
    for layer in layers:
        rows = both[:, :, activations.layers.index(layer)]
        vector = vectors[layer].values.double().numpy()
        observed.append(_cosines(np.tensordot(weights, rows, axes=2)[None], vector)[0])
        null.append(_cosines(np.tensordot(permuted, _residuals(rows, weights), axes=2), vector))
    bounds = _simultaneous_bounds(np.abs(np.stack(null, 1)))
    table = _table(layers, factors, np.stack([np.stack(observed), bounds], axis=-1))
    return table.assign(pairs=len(activations), method=vectors.method)


def _table(
    layers: list[int], factors: list[FactorContrast], numbers: Float[np.ndarray, "layer cosine 2"]
) -> pd.DataFrame:
    """One row per layer and factor; `numbers` are cosine and bound of each balanced factor, then of all."""
    is_balanced = [each.weights is not None for each in factors]
    columns = np.flatnonzero([*is_balanced, any(is_balanced)])
    full = np.full((len(layers), len(factors) + 1, 2), np.nan)
    full[:, columns] = numbers[:, : len(columns)]
    cosine, bound = full.reshape(-1, 2).T
    return pd.DataFrame(
        {
            "layer": np.repeat(layers, len(factors) + 1),
            "factor": [*(each.name for each in factors), ALL] * len(layers),
            "contrast": [*(each.contrast for each in factors), ""] * len(layers),
            "cosine": cosine,
            "share": cosine**2,
            "null_high": bound,
            "differs": np.abs(cosine) > bound,
            "balanced": [*is_balanced, all(is_balanced)] * len(layers),
        }
    )


def permuted_rows(factors: pd.DataFrame, rng: np.random.Generator) -> Int[np.ndarray, " pair"]:
    """An order of the pairs that permutes groups of one size, and the pairs within each group."""
    group = group_numbers(factors)
    sizes = np.bincount(group)
    members = [rng.permutation(np.flatnonzero(group == number)) for number in range(len(sizes))]
    order = np.empty(len(group), int)
    for size in np.unique(sizes):
        numbers = np.flatnonzero(sizes == size)
        for target, source in zip(numbers, rng.permutation(numbers), strict=True):
            order[np.flatnonzero(group == target)] = members[source]
    return order


def _simultaneous_bounds(null: Float[np.ndarray, "draw layer cosine"]) -> Float[np.ndarray, "layer cosine"]:
    """|cosines| that only 5 % of draws exceed at any layer, the same standard deviations above each mean."""
    count = len(null)
    if count < MIN_SHUFFLES:
        return np.full(null.shape[1:], np.nan)
    # Each draw is scaled by the others, as the observed cosines are by all: its own would shorten its tail.
    means = (null.sum(0) - null) / (count - 1)
    squares = ((null**2).sum(0) - null**2) / (count - 1) - means**2
    spread = np.sqrt(squares.clip(0))
    scaled = np.divide(null - means, spread, out=np.zeros_like(null), where=spread > 1e-6)
    bounds = null.mean(0) + simultaneous_threshold(scaled.max((1, 2))) * null.std(0)
    return bounds.clip(max=1.0)


def _residuals(
    rows: Float[np.ndarray, "side pair d_hook"], weights: Float[np.ndarray, "factor side pair"]
) -> Float[np.ndarray, "side pair d_hook"]:
    """Each side's activations minus their mean and the factors' effects, by least squares.

    The weights of a side are the factors' centred numbers up to scale, so they serve as regressors.
    """
    residuals = []
    for side, numbers in zip(rows, weights.transpose(1, 2, 0), strict=True):
        lengths = np.linalg.norm(numbers, axis=0)
        design = np.column_stack([np.ones(len(side)), numbers[:, lengths > 0] / lengths[lengths > 0]])
        residuals.append(side - design @ np.linalg.lstsq(design, side, rcond=None)[0])
    return np.stack(residuals)


def _cosines(
    directions: Float[np.ndarray, "draw factor d_hook"], vector: Float[np.ndarray, " d_hook"]
) -> Float[np.ndarray, "draw cosine"]:
    """The vector's cosine with each direction, then that with their span."""
    lengths = np.linalg.norm(directions, axis=-1, keepdims=True)
    rows = np.divide(directions, lengths, out=np.zeros_like(directions), where=lengths > 0)
    cosines = rows @ (vector / (np.linalg.norm(vector) or np.nan))
    # Rows may depend on each other (the levels of a factor do), so their products have no plain inverse.
    inverse = np.linalg.pinv(rows @ rows.transpose(0, 2, 1), rcond=1e-10, hermitian=True)
    spanned = einsum(cosines, inverse, cosines, "draw one, draw one two, draw two -> draw")
    return np.column_stack([cosines, np.sqrt(spanned.clip(0, 1))])
