"""Agreement of vectors of the same pairs: between halves, single pairs, resamples and methods."""

import itertools
from collections.abc import Callable, Mapping
from functools import partial

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from .._util.seeds import generator, require_seed
from .._util.validation import checked, require_characters
from ..activations import PairedActivations
from ..directions import (
    Estimator,
    SteeringVectors,
    apply_estimator,
    lda_direction,
    logistic_direction,
    mean_difference,
    pair_gram,
    principal_component,
)
from ..prompts.pairs import group_numbers
from ._projections import divided
from ._separation import balanced_folds, group_strata

METHODS: Mapping[str, Estimator] = {
    "mean_difference": mean_difference,
    "principal_component": partial(principal_component, of="differences"),
    "logistic_direction": logistic_direction,
    "lda_direction": lda_direction,
}
SLOW = (logistic_direction, lda_direction)
MIN_PERCENTILE = 20  # resamples that a percentile needs
MIN_STRATUM = 5  # strata of fewer groups are resampled as one

Vectors = Float[np.ndarray, "layer d_hook"]
Cosines = Float[np.ndarray, "draw layer"]
PerLayer = Float[np.ndarray, " layer"]
Signs = Float[np.ndarray, " pair"] | None
Draw = list[tuple[Int[np.ndarray, " _"], Signs]]  # two halves of the pairs, or one resample


@checked
def agreement(
    activations: PairedActivations,
    *,
    estimators: Mapping[str, Estimator] | None = None,
    splits: int = 20,
    resamples: int = 200,
    shuffles: int = 100,
    slow_resamples: int = 5,
    seed: int = 0,
) -> pd.DataFrame:
    """Agreement of vectors with others of the same pairs, as a check before steering.

    Args:
        activations: both sides, one position each.
        estimators: by name; by default `mean_difference`, `principal_component` (of="differences"),
            `logistic_direction` and `lda_direction`.
        splits: random halves of the pairs, groups whole and strata balanced as in `balanced_folds`.
        resamples: bootstrap resamples for the cone, of whole groups within their stratum.
        shuffles: halves with shuffled labels.
        slow_resamples: upper limit of each of these counts for `logistic_direction` and `lda_direction`,
            which are fitted each time. Percentiles of fewer than 20 (null, cone, …_low, …_high) are NaN.
        seed: of all resampling.

    Returns:
        One row per layer and method; cosines keep their sign:
        split_half: mean cosine of the vectors of two halves;
        split_half_low, split_half_high: the middle 95 % of splits, not a confidence interval: they share
            pairs. Below 0 is chance too: two halves scatter to opposite sides of the mean.
        split_half_null: its 97.5 % percentile, of each layer alone, where in each half the sides of
            every second group are swapped, so that the signal cancels.
        reliability: of mean_difference, √(2r / (1 + r)) of r = split_half: the expected cosine between the
            vector of all pairs and that of infinitely many such pairs. NaN where r ≤ 0.
        single: mean cosine of single pairs' differences with the vector of all;
        single_low, single_high: the middle 95 % of pairs.
        cone: degrees within which 95 % of the vectors of resampled pairs lie from the vector.
        between: mean cosine with the other methods' vectors.
        pairs.

    Raises:
        ValueError: fewer than four groups, no estimators, a count below 1, or one vector per position.

    Agreement is not effect, and not meaning: pairs that differ in a letter agree perfectly about the letter.
    See `prediction` for the first and `confounds` for the second.

    Level of noise alone: of halves the null, above 0 because activations lie along few directions; of single
    pairs 1 / √pairs, since each is part of the mean; of the cone about 45° where activations vary in many
    directions, since resamples scatter around the vector, not around the truth. The null swaps exactly half
    of the groups: coin flips would leave some of the signal. A principal component of differences ignores
    the labels but for its sign: its null is as high as itself.

    Source: 2r / (1 + r) is Spearman's and Brown's correction for halves (1910), its square root the index of
    reliability of test theory. It holds for cosines of means, since in many dimensions the noise of two
    halves is orthogonal, and twice (in squared length) that of the whole.
    """
    methods = _estimators(estimators)
    if (groups := len(set(group_numbers(activations.factors)))) < 4:
        raise ValueError(f"{groups} groups of pairs: halves with shuffled labels need at least 4.")
    counts = splits, shuffles, resamples
    if min(*counts, slow_resamples) < 1:
        numbers = (*counts, slow_resamples)
        raise ValueError(
            f"splits, shuffles, resamples, slow_resamples are {numbers}: give 1 or more of each."
        )
    seeds = np.random.SeedSequence(require_seed(seed)).generate_state(max(counts)).tolist()
    draws = [  # the same for every method
        [subsets(activations.factors, each) for each in seeds[:count]]
        for subsets, count in zip((_halves, _null_halves, _resample), counts, strict=True)
    ]
    vectors = {name: apply_estimator(estimator, activations) for name, estimator in methods.items()}
    tables = []
    for name, estimator in methods.items():
        limit = slow_resamples if getattr(estimator, "func", estimator) in SLOW else None
        measures = _measures(activations, estimator, vectors[name], *(each[:limit] for each in draws))
        tables.append(pd.DataFrame({"layer": activations.layers, "method": name, **measures}))
    compared = _compared(activations, {name: _values(each) for name, each in vectors.items()})
    between = compared.groupby(["method", "layer"])["cosine"].mean().rename("between")
    table = pd.concat(tables, ignore_index=True).join(between, on=["method", "layer"])
    return table.assign(pairs=len(activations))


@checked
def method_agreement(
    activations: PairedActivations, *, estimators: Mapping[str, Estimator] | None = None
) -> pd.DataFrame:
    """Cosine of each method's vector with each other's, per layer.

    Args:
        activations: both sides, one position each.
        estimators: by name; by default those of `agreement`.

    Returns:
        One row per layer, method and other, each couple in both orders: layer, method, other, cosine.

    Raises:
        ValueError: no estimators, or one that gives one vector per position.

    A classifier's normal leans away from directions in which both sides vary. A low cosine with the mean
    difference says that such directions lie in the mean difference, not that either is wrong.
    """
    methods = _estimators(estimators)
    whole = {name: _values(apply_estimator(each, activations)) for name, each in methods.items()}
    return _compared(activations, whole)


def bootstrap_rows(factors: pd.DataFrame, rng: np.random.Generator) -> Int[np.ndarray, " row"]:
    """Rows of pairs resampled with replacement, whole groups within their stratum.

    Resampled over all strata (see `group_strata`), the letter's direction would count as uncertainty of the
    behaviour's, though the design balances it. Rare strata are resampled together.
    """
    group = group_numbers(factors)
    strata = group_strata(factors, min_pairs=MIN_STRATUM)
    members = [np.array(each) for each in strata.groupby(strata).groups.values()]
    sampled = [each for each in members if len(each) >= MIN_STRATUM]
    if rare := [each for each in members if len(each) < MIN_STRATUM]:
        sampled.append(np.concatenate(rare))
    drawn = np.concatenate([rng.choice(each, len(each)) for each in sampled])
    return np.concatenate([np.flatnonzero(group == number) for number in drawn])


def _estimators(estimators: Mapping[str, Estimator] | None) -> dict[str, Estimator]:
    methods = dict(METHODS if estimators is None else estimators)
    if not methods:
        raise ValueError("no estimators given: give a mapping of names to estimators.")
    for name in methods:
        require_characters(name, "the name")
    return methods


def _values(vectors: SteeringVectors) -> Vectors:
    if vectors.has_positions:
        raise ValueError(f"{vectors.method} gives one vector per position: agreement needs one per layer.")
    return vectors.values.double().numpy()


def _compared(pairs: PairedActivations, whole: Mapping[str, Vectors]) -> pd.DataFrame:
    rows = [
        (layer, one, two, cosine)
        for one, two in itertools.permutations(whole, 2)
        for layer, cosine in zip(pairs.layers, _row_cosines(whole[one], whole[two]).tolist(), strict=True)
    ]
    table = pd.DataFrame(rows, columns=["layer", "method", "other", "cosine"])
    return table.astype({"layer": int, "cosine": float})


def _measures(
    pairs: PairedActivations,
    estimator: Estimator,
    vectors: SteeringVectors,
    halves: list[Draw],
    null_halves: list[Draw],
    resamples: list[Draw],
) -> dict[str, PerLayer | float]:
    """Everything that `agreement` measures of one method alone."""
    whole, estimate, cosine = _vector_space(pairs, estimator, vectors)

    def cosines(draws: list[Draw]) -> Cosines:
        """Of the vectors of two halves, or of a resample and all pairs."""
        result = np.empty((len(draws), len(pairs.layers)))
        for row, draw in enumerate(draws):
            first, second, *_ = (*(estimate(*subset) for subset in draw), whole)
            result[row] = cosine(first, second)
        return result

    # The null and the cone are percentiles only: nothing is estimated for too few draws.
    enough = (each if len(each) >= MIN_PERCENTILE else [] for each in (null_halves, resamples))
    split, null, resampled = map(cosines, (halves, *enough))
    r = np.where(split.mean(0) > 0, split.mean(0), np.nan)
    difference = np.subtract(*(side.double().numpy() for side in pairs.sides()))
    return {
        **_summary("split_half", split),
        "split_half_null": _percentile(null, 97.5),
        "reliability": np.sqrt(2 * r / (1 + r)) if vectors.method == "mean_difference" else np.nan,
        **_summary("single", _row_cosines(difference, _values(vectors))),
        "cone": _percentile(np.degrees(np.arccos(resampled.clip(-1, 1))), 95.0),
    }


def _vector_space(
    pairs: PairedActivations, estimator: Estimator, vectors: SteeringVectors
) -> tuple[Vectors, Callable[..., Vectors], Callable[[Vectors, Vectors], PerLayer]]:
    """The vector of all pairs, and functions for that of a subset and for the cosine of two.

    Vectors are weights of the rows of a Gram matrix where the estimator allows it.
    """
    gram = pair_gram(pairs, estimator)
    if gram is None:

        def estimate(rows: Int[np.ndarray, " row"], signs: Signs = None) -> Vectors:
            swapped = pairs if signs is None else pairs.swapped((signs < 0).tolist())
            return _values(apply_estimator(estimator, swapped.subset(rows.tolist()), allow_zero=True))

        return _values(vectors), estimate, _row_cosines

    def product(one: Vectors, other: Vectors) -> PerLayer:
        return np.einsum("lr,lr->l", (one[:, None] @ gram.values)[:, 0], other)

    def cosine(one: Vectors, other: Vectors) -> PerLayer:
        return divided(product(one, other), np.sqrt(product(one, one) * product(other, other)))

    return gram.weights(np.arange(len(pairs))), gram.weights, cosine


def _halves(factors: pd.DataFrame, seed: int) -> Draw:
    half = balanced_folds(factors, folds=2, seed=seed)
    return [(np.flatnonzero(half == each), None) for each in (0, 1)]


def _null_halves(factors: pd.DataFrame, seed: int) -> Draw:
    """Two halves, in each of which the sides of half the groups of each stratum are swapped."""
    quarter = balanced_folds(factors, folds=4, seed=seed)
    signs = np.where(quarter % 2 == 1, -1.0, 1.0)
    return [(np.flatnonzero(quarter // 2 == each), signs) for each in (0, 1)]


def _resample(factors: pd.DataFrame, seed: int) -> Draw:
    return [(bootstrap_rows(factors, generator(seed)), None)]


def _row_cosines(
    one: Float[np.ndarray, "*draw layer d_hook"], other: Vectors
) -> Float[np.ndarray, "*draw layer"]:
    """Cosines over the last axis, NaN of a vector of length zero."""
    lengths = np.linalg.norm(one, axis=-1) * np.linalg.norm(other, axis=-1)
    return divided((one * other).sum(-1), lengths)


def _summary(name: str, cosines: Cosines) -> dict[str, PerLayer]:
    low, high = (_percentile(cosines, percent) for percent in (2.5, 97.5))
    return {name: cosines.mean(0), f"{name}_low": low, f"{name}_high": high}


def _percentile(draws: Cosines, percent: float) -> PerLayer:
    if len(draws) < MIN_PERCENTILE:
        return np.full(draws.shape[1], np.nan)
    return np.percentile(draws, percent, axis=0)
