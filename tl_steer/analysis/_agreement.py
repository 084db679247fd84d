"""How far vectors of the same pairs agree: halves, single pairs, methods, draws."""

import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
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
from ._separation import balanced_folds
from .resampling import bootstrap_rows

METHODS: Mapping[str, Estimator] = {
    "mean_difference": mean_difference,
    "principal_component": partial(principal_component, of="differences"),
    "logistic_direction": logistic_direction,
    "lda_direction": lda_direction,
}
SLOW = (logistic_direction, lda_direction)
FEWEST = 20  # draws of which a percentile is taken


Vectors = Float[np.ndarray, "layer d_hook"]
Drawn = Float[np.ndarray, "draw layer"]
Layerwise = Float[np.ndarray, " layer"]
Signs = Float[np.ndarray, " pair"] | None
Estimate = Callable[..., Vectors]
Half = tuple[Int[np.ndarray, " row"], Signs]
Draw = Callable[[pd.DataFrame, int], list[Half]]
Cosine = Callable[[Vectors, Vectors], Layerwise]


@checked
def agreement(
    activations: PairedActivations,
    *,
    estimators: Mapping[str, Estimator] | None = None,
    splits: int = 20,
    resamples: int = 200,
    shuffles: int = 100,
    slow_draws: int = 5,
    seed: int = 0,
) -> pd.DataFrame:
    """What can be known of vectors before steering: how well they agree with others of the same pairs.

    Args:
        activations: both sides, one position each.
        estimators: by name; by default `mean_difference`, `principal_component` (of="differences"),
            `logistic_direction` and `lda_direction`.
        splits: random halves of the pairs, groups whole and kinds balanced as in `balanced_folds`.
        resamples: bootstrap draws for the cone, of whole groups within their kind.
        shuffles: halves with exchanged sides.
        slow_draws: at most this many draws of each type for `logistic_direction` and `lda_direction`, which
            are fitted anew for each draw; the other two are computed from inner products. Percentiles of
            fewer than 20 draws (null, cone, …_low, …_high) are NaN.
        seed: of all draws.

    Returns:
        A row a layer and method; of cosines with their sign:
        split_half: mean cosine of the vectors of two halves;
        split_half_low, split_half_high: the middle 95 % of splits. These share pairs: it is no confidence
            interval. Below 0 is chance like a little above: two halves scatter to opposite sides of the mean
            of all.
        split_half_null: the 97.5 % percentile of it, of each layer alone, where in each half the sides of
            every second group are exchanged, so that what the labels say cancels.
        reliability: of mean_difference, √(2r / (1 + r)) of r = split_half: the cosine to expect between the
            vector of all pairs and that of infinitely many such pairs. NaN where r ≤ 0.
        single: mean cosine of single pairs' differences with the vector of all;
        single_low, single_high: the middle 95 % of pairs.
        cone: degrees within which 95 % of the vectors of resampled pairs lie from the vector.
        between: mean cosine with the other methods' vectors.
        pairs.

    Raises:
        ValueError: fewer than four groups, no estimators, counts that are not positive, or an estimator that
            gives one vector a position.

    Agreement is not effect, and not meaning: pairs that differ in a letter agree perfectly about the letter.
    See `prediction` for the first and `confounds` for the second.

    Each number has a level that noise reaches by itself. Halves: the null; activations lie along few
    directions, so it is above 0. Sides are not exchanged by a coin: an unequal number of exchanges leaves
    some of the signal, and where that is strong, halves agree about it, to a cosine of ±1. Single pairs: each
    is part of the mean, so noise has 1 / √pairs. The cone: draws scatter around the vector, not around the
    truth, so where activations vary in many directions noise alone has about 45°, not 90°. A principal
    component of differences does not know the sides, only its sign does: its null is as high as itself.

    Source: 2r / (1 + r) is Spearman's and Brown's correction for halves (1910), its square root the index of
    reliability of test theory. It holds for cosines of means, since in many dimensions the noise of two
    halves is orthogonal, and twice (in squared length) that of the whole.
    """
    pairs, methods = activations, _named(estimators)
    _require(pairs, (splits, resamples, shuffles, slow_draws))
    made = {name: apply_estimator(estimator, pairs) for name, estimator in methods.items()}
    whole = {name: _values(vectors) for name, vectors in made.items()}
    others = _compared(pairs, whole).groupby(["method", "layer"])["cosine"].mean()
    difference = np.subtract(*(side.double().numpy() for side in pairs.sides()))
    tables = []
    drawn = functools.cache(lambda draw, seed: draw(pairs.factors, seed))  # the same for every method
    for name, estimator in methods.items():
        slow = getattr(estimator, "func", estimator) in SLOW
        most = slow_draws if slow else max(splits, resamples, shuffles)
        draws = partial(_draws, pairs, *_estimate(pairs, estimator), drawn=drawn, seed=seed)
        halves = draws(_halves, min(splits, most))
        singles = _cosines(difference, whole[name])
        table = {
            "layer": pairs.layers,
            "method": name,
            **_summary("split_half", halves),
            "split_half_null": _percentile(draws(_null_halves, min(shuffles, most), FEWEST), 97.5),
            "reliability": _reliability(halves.mean(0), made[name].method),
            **_summary("single", singles),
            "cone": _cone(draws(_resampled, min(resamples, most), FEWEST)),
            "between": [others.get((name, layer), np.nan) for layer in pairs.layers],
        }
        tables.append(pd.DataFrame(table))
    return pd.concat(tables, ignore_index=True).assign(pairs=len(pairs))


@checked
def method_agreement(
    activations: PairedActivations, *, estimators: Mapping[str, Estimator] | None = None
) -> pd.DataFrame:
    """Cosine of each method's vector with each other's, layer by layer.

    Args:
        activations: both sides, one position each.
        estimators: by name; by default those of `agreement`.

    Returns:
        A row a layer, method and other, each couple in both orders: layer, method, other, cosine.

    Raises:
        ValueError: no estimators, or one that gives one vector a position.

    A classifier's normal is not its class difference: it leans away from directions in which both sides vary
    (of the sides' means it is the difference times an inverse covariance). A low cosine with the mean
    difference says that such directions lie in the mean difference, not that either is wrong.
    """
    whole = {name: _values(apply_estimator(each, activations)) for name, each in _named(estimators).items()}
    return _compared(activations, whole)


def _named(estimators: Mapping[str, Estimator] | None) -> dict[str, Estimator]:
    methods = dict(METHODS if estimators is None else estimators)
    if not methods:
        raise ValueError("no estimators given: give a mapping of names to estimators.")
    for name in methods:
        require_characters(name, "the name")
    return methods


def _require(pairs: PairedActivations, counts: Sequence[int]) -> None:
    groups = len(set(group_numbers(pairs.factors)))
    if groups < 4:
        raise ValueError(f"{groups} groups of pairs: halves with exchanged sides need at least 4.")
    if min(counts) < 1:
        raise ValueError(
            f"splits, resamples, shuffles, slow_draws = {tuple(counts)}: give 1 or more of each."
        )


def _values(vectors: SteeringVectors) -> Vectors:
    if vectors.has_positions:
        raise ValueError(f"{vectors.method} gives one vector a position: agreement needs one a layer.")
    return vectors.values.double().numpy()


def _compared(pairs: PairedActivations, whole: Mapping[str, Vectors]) -> pd.DataFrame:
    columns = ["layer", "method", "other", "cosine"]
    rows = [
        (layer, one, two, cosine)
        for one, two in itertools.permutations(whole, 2)
        for layer, cosine in zip(pairs.layers, _cosines(whole[one], whole[two]).tolist(), strict=True)
    ]
    return pd.DataFrame(rows, columns=columns).astype({"cosine": float})


def _estimate(pairs: PairedActivations, estimator: Estimator) -> tuple[Estimate, Cosine]:
    """Functions for the vector of some pairs, and for the cosine of two such vectors.

    Vectors are weights of the rows of a Gram matrix where the estimator allows it.
    """
    gram = pair_gram(pairs, estimator)
    if gram is None:

        def estimate(rows: Int[np.ndarray, " row"], signs: Signs = None) -> Vectors:
            drawn = pairs if signs is None else pairs.swapped((signs < 0).tolist())
            return _values(apply_estimator(estimator, drawn.subset(rows.tolist()), allow_zero=True))

        return estimate, _cosines

    def cosine(one: Vectors, other: Vectors) -> Layerwise:
        products = [
            np.einsum("lr,lr->l", (left[:, None] @ gram.values)[:, 0], right)
            for left, right in ((one, other), (one, one), (other, other))
        ]
        lengths = np.sqrt(products[1] * products[2])
        return np.divide(products[0], lengths, out=np.full(lengths.shape, np.nan), where=lengths > 0)

    return gram.weights, cosine


def _draws(
    pairs: PairedActivations,
    estimate: Estimate,
    cosine: Cosine,
    draw: Draw,
    count: int,
    least: int = 1,
    *,
    drawn: Callable[[Draw, int], list[Half]],
    seed: int,
) -> Drawn:
    """Cosines of `count` draws, the same pairs for every method; none if `count` is below `least`."""
    seeds = np.random.SeedSequence(require_seed(seed)).generate_state(count if count >= least else 0)
    cosines = np.empty((len(seeds), len(pairs.layers)))
    everything = functools.cache(lambda: estimate(np.arange(len(pairs))))
    for row, each in enumerate(seeds):
        first, *second = (estimate(*half) for half in drawn(draw, int(each)))
        cosines[row] = cosine(first, second[0] if second else everything())
    return cosines


def _halves(factors: pd.DataFrame, seed: int) -> list[Half]:
    half = balanced_folds(factors, folds=2, seed=seed)
    return [(np.flatnonzero(half == each), None) for each in (0, 1)]


def _null_halves(factors: pd.DataFrame, seed: int) -> list[Half]:
    """Two halves, in each of which the sides of half the groups of each kind are exchanged."""
    quarter = balanced_folds(factors, folds=4, seed=seed)
    signs = np.where(quarter % 2 == 1, -1.0, 1.0)
    return [(np.flatnonzero(quarter // 2 == each), signs) for each in (0, 1)]


def _resampled(factors: pd.DataFrame, seed: int) -> list[Half]:
    """Resampled pairs, to be compared with all pairs."""
    return [(bootstrap_rows(factors, generator(seed)), None)]


def _cosines(
    one: Float[np.ndarray, "*draw layer d_hook"], other: Vectors
) -> Float[np.ndarray, "*draw layer"]:
    """Cosines over the last axis, NaN of a vector of length zero."""
    lengths = np.linalg.norm(one, axis=-1) * np.linalg.norm(other, axis=-1)
    products = (one * other).sum(-1)
    return np.divide(products, lengths, out=np.full(lengths.shape, np.nan), where=lengths > 0)


def _summary(name: str, cosines: Drawn) -> dict[str, Layerwise]:
    low, high = (_percentile(cosines, percent) for percent in (2.5, 97.5))
    return {name: cosines.mean(0), f"{name}_low": low, f"{name}_high": high}


def _percentile(draws: Drawn, percent: float) -> Layerwise:
    if len(draws) < FEWEST:
        return np.full(draws.shape[1], np.nan)
    return np.percentile(draws, percent, axis=0)


def _cone(cosines: Drawn) -> Layerwise:
    return _percentile(np.degrees(np.arccos(cosines.clip(-1, 1))), 95.0)


def _reliability(halves: Layerwise, method: str) -> Layerwise:
    if method != "mean_difference":
        return np.full(len(halves), np.nan)
    known = np.where(halves > 0, halves, np.nan)
    return np.sqrt(2 * known / (1 + known))
