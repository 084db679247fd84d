"""How much of a vector lies along what else varies among its pairs."""

import numpy as np
import pandas as pd
from jaxtyping import Float

from .._util.seeds import generator
from .._util.validation import checked
from ..activations import PairedActivations
from ..directions import SteeringVectors
from ..directions.factors import factor_contrasts
from ..statistics import simultaneous_threshold
from .along import shared_layers
from .resampling import permuted_rows

FEWEST = 19  # shuffles with which a p value can be 0.05
ALL = "all"  # the row of the span of all factors together


@checked
def confounds(
    vectors: SteeringVectors, activations: PairedActivations, *, shuffles: int = 200, seed: int = 0
) -> pd.DataFrame:
    """How far vectors point along letter, length, truth: the audit of a direction, not of its prompts.

    Args:
        vectors: of any method, one vector a layer.
        activations: with the factors to ask about; better not those that the vectors were made from
            (see below).
        shuffles: permutations for the null; with fewer than 19 nothing can differ.
        seed: of these.

    Returns:
        A row a shared layer and factor, then one for all factors together ("all"):
        layer; factor, as `factor_directions` names it; contrast, what its direction leads from and to;
        cosine of the vector with the factor's direction; for "all" with the nearest direction in their span;
        share: its square, the part of the vector's squared length that lies along it;
        null_high: the |cosine| up to which factors that mean nothing reach (see below): in 95 % of shuffles
            none of the table's rows is above its own. NaN with fewer than 19 shuffles;
        differs: whether |cosine| is above it: the p value, corrected for all layers and factors of the table,
            is at most 0.05;
        balanced: False where the factor varies between the sides only (A always positive, B always
            negative): its direction cannot be told from the vector, and the numbers are NaN. For "all", False
            where any such factor is left out;
        pairs, method.

    Raises:
        ModelMismatchError: the vectors belong to another model.
        ValueError: no factor that varies, no layer in common, another hook, one vector a position, or fewer
            than one shuffle.

    The null makes directions of noise: what all factors do to the activations is taken out (least squares
    within each side), then each pair is given the factors of another, whole groups at a time. These are
    contrasts of the same activations, which vary along few directions, so their cosines with anything are far
    larger than those of random directions. Were the factors' effects left in, a chance contrast would hold
    some of each, most of the strongest. Each |cosine| is compared in standard deviations from its own null's
    mean, and null_high is where the maximum of these over all rows of the table has its 95 % point. So a
    table of factors that mean nothing has a row that differs in 5 % of cases, however many layers it has.

    A vector and a factor's direction of the same pairs share these pairs' noise, which gives them a cosine
    where it is larger on some prompts than on others (those that end in B, say), and the null does not have
    it. So make the vectors of one half of the pairs (`balanced_folds`) and ask with the other.

    A cosine says where the vector points, not what it does. For that, split the effect by the factor,
    `effectiveness(sweep_table, by=…)`, and sweep with the vector `without_factors`. Directions estimated from
    few pairs are partly noise, so the cosine with the true one is larger.

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
    permuted = _permuted(weights, activations.factors, shuffles, seed)
    both = np.stack([side.double().numpy() for side in activations.sides()])
    observed, drawn = [], []
    for layer in layers:
        stream = both[:, :, activations.layers.index(layer)]
        vector = vectors[layer].values.double().numpy()
        observed.append(_cosines(np.tensordot(weights, stream, axes=2)[None], vector)[0])
        drawn.append(_cosines(np.tensordot(permuted, _noise(stream, weights), axes=2), vector))
    highest = _simultaneous_bounds(np.abs(np.stack(drawn, 1)))
    rows = []
    for layer, cosines, bounds in zip(layers, observed, highest, strict=True):
        numbers = {each.name: (cosines[k], bounds[k]) for k, each in enumerate(balanced)}
        missing = (np.nan, np.nan)
        rows += [(layer, each.name, each.contrast, *numbers.get(each.name, missing)) for each in factors]
        rows.append((layer, ALL, "", *((cosines[-1], bounds[-1]) if balanced else missing)))
    table = pd.DataFrame(rows, columns=["layer", "factor", "contrast", "cosine", "null_high"])
    table.insert(4, "share", table["cosine"] ** 2)
    confounded = {each.name for each in factors if each.weights is None}
    return table.assign(
        differs=table["cosine"].abs() > table["null_high"],
        balanced=~table["factor"].isin(confounded | ({ALL} if confounded else set())),
        pairs=len(activations),
        method=vectors.method,
    )


def _simultaneous_bounds(
    null: Float[np.ndarray, "order layer cosine"],
) -> Float[np.ndarray, "layer cosine"]:
    """|cosines| that only 5 % of draws exceed at any layer, the same standard deviations above each mean."""
    count = len(null)
    if count < FEWEST:
        return np.full(null.shape[1:], np.nan)
    # Each draw is scaled by the others, as the observed cosines are by all: its own would shorten its tail.
    means = (null.sum(0) - null) / (count - 1)
    squares = ((null**2).sum(0) - null**2) / (count - 1) - means**2
    spread = np.sqrt(squares.clip(0))
    scaled = np.divide(null - means, spread, out=np.zeros_like(null), where=spread > 1e-6)
    bounds = null.mean(0) + simultaneous_threshold(scaled.max((1, 2))) * null.std(0)
    return bounds.clip(max=1.0)  # no cosine is beyond 1


def _permuted(
    weights: Float[np.ndarray, "factor side pair"], factors: pd.DataFrame, shuffles: int, seed: int
) -> Float[np.ndarray, "order factor side pair"]:
    rng = generator(seed)
    return np.stack([weights[:, :, permuted_rows(factors, rng)] for _ in range(shuffles)])


def _noise(
    stream: Float[np.ndarray, "side pair d_hook"], weights: Float[np.ndarray, "factor side pair"]
) -> Float[np.ndarray, "side pair d_hook"]:
    """What is left of each side's activations behind their mean and the factors, by least squares.

    The weights of a side are the factors' centred numbers but for their scale, so they serve as regressors.
    """
    left = []
    for rows, numbers in zip(stream, weights.transpose(1, 2, 0), strict=True):
        lengths = np.linalg.norm(numbers, axis=0)
        design = np.column_stack([np.ones(len(rows)), numbers[:, lengths > 0] / lengths[lengths > 0]])
        left.append(rows - design @ np.linalg.lstsq(design, rows, rcond=None)[0])
    return np.stack(left)


def _cosines(
    directions: Float[np.ndarray, "order factor d_hook"], vector: Float[np.ndarray, " d_hook"]
) -> Float[np.ndarray, "order cosine"]:
    """The vector's cosine with each direction, and behind them that with their span."""
    lengths = np.linalg.norm(directions, axis=-1, keepdims=True)
    rows = np.divide(directions, lengths, out=np.zeros_like(directions), where=lengths > 0)
    cosines = rows @ (vector / (np.linalg.norm(vector) or np.nan))
    # Rows may depend on each other (the levels of a factor do), so their products have no plain inverse.
    inverse = np.linalg.pinv(rows @ rows.transpose(0, 2, 1), rcond=1e-10, hermitian=True)
    spanned = np.einsum("of,ofg,og->o", cosines, inverse, cosines)
    return np.column_stack([cosines, np.sqrt(spanned.clip(0, 1))])
