"""Agreement of vectors of the same pairs: between halves, single pairs, resamples and methods."""

import functools
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
Subset = tuple[Int[np.ndarray, " row"], Signs]
Estimate = Callable[..., Vectors]
Resample = Callable[[pd.DataFrame, int], list[Subset]]
Cosine = Callable[[Vectors, Vectors], PerLayer]


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
            which are fitted for each; the other two are computed from inner products. Percentiles of
            fewer than 20 (null, cone, …_low, …_high) are NaN.
        seed: of all resampling.

    Returns:
        One row per layer and method; of cosines with their sign:
        split_half: mean cosine of the vectors of two halves;
        split_half_low, split_half_high: the middle 95 % of splits. These share pairs: it is not a confidence
            interval. Below 0 is chance like a little above: two halves scatter to opposite sides of the mean.
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
        ValueError: fewer than four groups, no estimators, counts that are not positive, or an estimator that
            gives one vector per position.

    Agreement is not effect, and not meaning: pairs that differ in a letter agree perfectly about the letter.
    See `prediction` for the first and `confounds` for the second.

    Level of noise alone: of halves the null, above 0 because activations lie along few directions; of single
    pairs 1 / √pairs, since each is part of the mean; of the cone about 45° where activations vary in many
    directions, not 90°, since resamples scatter around the vector, not around the truth. The null swaps
    exactly half of the groups: coin flips would leave some of the signal, and halves would agree about it. A
    principal component of differences ignores the labels but for its sign: its null is as high as itself.

    Source: 2r / (1 + r) is Spearman's and Brown's correction for halves (1910), its square root the index of
    reliability of test theory. It holds for cosines of means, since in many dimensions the noise of two
    halves is orthogonal, and twice (in squared length) that of the whole.
    """
    methods = _estimators(estimators)
    if (groups := len(set(group_numbers(activations.factors)))) < 4:
        raise ValueError(f"{groups} groups of pairs: halves with shuffled labels need at least 4.")
    counts = {"splits": splits, "shuffles": shuffles, "resamples": resamples}
    counts["slow_resamples"] = slow_resamples
    if min(counts.values()) < 1:
        raise ValueError(f"{', '.join(counts)} = {tuple(counts.values())}: give 1 or more of each.")
    subsets = functools.cache(lambda resample, seed: resample(activations.factors, seed))
    vectors = {name: apply_estimator(estimator, activations) for name, estimator in methods.items()}
    tables = [
        _method_table(activations, name, estimator, vectors[name], counts, partial(_cosines, subsets, seed))
        for name, estimator in methods.items()
    ]
    compared = _compared(activations, {name: _values(each) for name, each in vectors.items()})
    between = compared.groupby(["method", "layer"], as_index=False)["cosine"].mean()
    table = pd.concat(tables, ignore_index=True)
    table = table.merge(between.rename(columns={"cosine": "between"}), how="left", on=["method", "layer"])
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

    A classifier's normal is not its class difference: it leans away from directions in which both sides vary
    (of the sides' means it is the difference times an inverse covariance). A low cosine with the mean
    difference says that such directions lie in the mean difference, not that either is wrong.
    """
    methods = _estimators(estimators)
    whole = {name: _values(apply_estimator(each, activations)) for name, each in methods.items()}
    return _compared(activations, whole)


def bootstrap_rows(factors: pd.DataFrame, rng: np.random.Generator) -> Int[np.ndarray, " row"]:
    """Rows of pairs resampled with replacement, whole groups within their stratum.

    Resampled over all strata, the letter's direction would count as uncertainty of the behaviour's, though
    the design balances it. A stratum is a combination of factor levels of a group's pairs, as in
    `balanced_folds`; rare ones are resampled together.
    """
    group = group_numbers(factors)
    members = [np.flatnonzero(group == number) for number in range(group.max() + 1)]
    strata = group_strata(factors, min_pairs=MIN_STRATUM)
    numbers = [np.array(each) for each in strata.groupby(strata).groups.values()]
    rare = [each for each in numbers if len(each) < MIN_STRATUM]
    numbers = [each for each in numbers if len(each) >= MIN_STRATUM]
    numbers += [np.concatenate(rare)] if rare else []
    drawn = [rng.choice(each, len(each)) for each in numbers]
    return np.concatenate([members[number] for number in np.concatenate(drawn)])


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
    return pd.DataFrame(rows, columns=["layer", "method", "other", "cosine"]).astype(
        {"layer": int, "cosine": float}
    )


def _method_table(
    pairs: PairedActivations,
    name: str,
    estimator: Estimator,
    vectors: SteeringVectors,
    counts: Mapping[str, int],
    resampled_cosines: Callable[..., Cosines],
) -> pd.DataFrame:
    """One row per layer: everything that `agreement` measures of one method alone."""
    if getattr(estimator, "func", estimator) in SLOW:
        counts = {key: min(count, counts["slow_resamples"]) for key, count in counts.items()}
    cosines = partial(resampled_cosines, pairs, *_estimate(pairs, estimator))
    halves = cosines(_halves, counts["splits"])
    difference = np.subtract(*(side.double().numpy() for side in pairs.sides()))
    table = {
        "layer": pairs.layers,
        "method": name,
        **_summary("split_half", halves),
        "split_half_null": _percentile(cosines(_null_halves, counts["shuffles"]), 97.5),
        "reliability": _reliability(halves.mean(0), vectors.method),
        **_summary("single", _row_cosines(difference, _values(vectors))),
        "cone": _cone(cosines(_bootstrap, counts["resamples"])),
    }
    return pd.DataFrame(table)


def _estimate(pairs: PairedActivations, estimator: Estimator) -> tuple[Estimate, Cosine]:
    """Functions for the vector of a subset of pairs, and for the cosine of two such vectors.

    Vectors are weights of the rows of a Gram matrix where the estimator allows it.
    """
    gram = pair_gram(pairs, estimator)
    if gram is None:

        def estimate(rows: Int[np.ndarray, " row"], signs: Signs = None) -> Vectors:
            swapped = pairs if signs is None else pairs.swapped((signs < 0).tolist())
            return _values(apply_estimator(estimator, swapped.subset(rows.tolist()), allow_zero=True))

        return estimate, _row_cosines

    def product(one: Vectors, other: Vectors) -> PerLayer:
        return np.einsum("lr,lr->l", (one[:, None] @ gram.values)[:, 0], other)

    def cosine(one: Vectors, other: Vectors) -> PerLayer:
        return divided(product(one, other), np.sqrt(product(one, one) * product(other, other)))

    return gram.weights, cosine


def _cosines(
    subsets: Callable[[Resample, int], list[Subset]],
    seed: int,
    pairs: PairedActivations,
    estimate: Estimate,
    cosine: Cosine,
    resample: Resample,
    count: int,
) -> Cosines:
    """Cosines of `count` resamples, the same pairs for every method; none if no percentile can be taken."""
    count = count if resample is _halves or count >= MIN_PERCENTILE else 0
    seeds = np.random.SeedSequence(require_seed(seed)).generate_state(count)
    cosines = np.empty((count, len(pairs.layers)))
    whole = functools.cache(lambda: estimate(np.arange(len(pairs))))
    for row, each in enumerate(seeds):
        first, *second = (estimate(*subset) for subset in subsets(resample, int(each)))
        cosines[row] = cosine(first, second[0] if second else whole())
    return cosines


def _halves(factors: pd.DataFrame, seed: int) -> list[Subset]:
    half = balanced_folds(factors, folds=2, seed=seed)
    return [(np.flatnonzero(half == each), None) for each in (0, 1)]


def _null_halves(factors: pd.DataFrame, seed: int) -> list[Subset]:
    """Two halves, in each of which the sides of half the groups of each stratum are swapped."""
    quarter = balanced_folds(factors, folds=4, seed=seed)
    signs = np.where(quarter % 2 == 1, -1.0, 1.0)
    return [(np.flatnonzero(quarter // 2 == each), signs) for each in (0, 1)]


def _bootstrap(factors: pd.DataFrame, seed: int) -> list[Subset]:
    """Resampled pairs, to be compared with all pairs."""
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


def _cone(cosines: Cosines) -> PerLayer:
    return _percentile(np.degrees(np.arccos(cosines.clip(-1, 1))), 95.0)


def _reliability(halves: PerLayer, method: str) -> PerLayer:
    known = np.where((halves > 0) & (method == "mean_difference"), halves, np.nan)
    return np.sqrt(2 * known / (1 + known))
