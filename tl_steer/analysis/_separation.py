"""How well a direction separates the sides of held-out pairs, and balanced cross-validation folds."""

import numpy as np
import pandas as pd
from einops import einsum
from jaxtyping import Bool, Float, Int

from .._util.seeds import generator, short_seed
from .._util.validation import checked
from ..activations import PairedActivations
from ..directions import Estimator, apply_estimator, coin_flips, mean_difference, pair_gram
from ..prompts.pairs import group_numbers
from ..statistics import (
    auc,
    nested,
    permutation_p_value,
    rate_interval,
    simultaneous_threshold,
    standardised_difference,
)

Folds = Int[np.ndarray, " pair"]


@checked
def separation(
    activations: PairedActivations,
    *,
    estimator: Estimator = mean_difference,
    folds: int = 5,
    shuffles: int = 100,
    seed: int = 0,
) -> pd.DataFrame:
    """How well the direction of each layer separates held-out pairs, compared with chance.

    Args:
        activations: both sides, one position each.
        estimator: from pairs to one vector per layer; called on the training pairs of each fold.
        folds: parts of the cross-validation.
        shuffles: repetitions of the whole cross-validation with shuffled labels; 0 for none. 19 or more, or
            no layer can be significant.
        seed: of the folds and the shuffles.

    Returns:
        One row per layer, all of held-out pairs:
        layer;
        paired_accuracy: share of pairs whose positive side projects higher, ties one half, with Wilson's 95 %
            interval in paired_accuracy_low and _high (groups whole, `statistics.rate_interval`);
        auc: probability that a positive projects higher than a negative, of any pairs;
        d_prime: difference of the sides' mean projections over their pooled standard deviation;
        null_low, null_high, null_mean: 2.5 % and 97.5 % percentile and mean of the paired accuracy with
            shuffled labels, of each layer alone (pointwise);
        p_value: of each layer alone, (b + 1) / (m + 1), where b of the m shuffles reach its paired accuracy
            (Phipson & Smyth 2010);
        p_corrected: the same against the maximum over the layers of this table in each shuffle (Westfall &
            Young 1993, section 2.3.1): the probability that chance reaches this paired accuracy at any layer;
        null_max: the paired accuracy above which p_corrected is at most 0.05, the same in every row. NaN with
            fewer than 19 shuffles, which cannot reach 0.05;
        pairs, folds, method.

    Raises:
        ValueError: fewer than two folds, fewer groups than folds, or a negative number of shuffles.

    Folds keep groups whole and strata balanced (see `balanced_folds`). Across folds, AUC and d′ compare
    projections on the unit direction, relative to the training pairs' mean.

    The null swaps the sides of whole groups, each by a fair coin. Pairs of a group share a claim, so they
    tend to be right or wrong together: swapping them one by one would make the null too narrow, and undo
    what the pairs of a group balance (the letter, say).

    Report p_corrected: with many layers, p_value is small somewhere by chance. With m shuffles neither gets
    below 1 / (m + 1). A layer picked as the best of many still flatters itself: report its accuracy on other
    pairs.
    """
    pairs = activations
    if shuffles < 0:
        raise ValueError(f"shuffles={shuffles}: give 0 or more.")
    fold = balanced_folds(pairs.factors, folds=folds, seed=seed)
    projected, method = _held_out(pairs, estimator, fold)
    correct = _correct(projected)
    sample = np.repeat(np.arange(len(correct)), len(pairs))
    group = nested(sample, np.tile(group_numbers(pairs.factors), len(correct)))
    accuracy, low, high = rate_interval(correct.ravel(), sample, group)
    rng = generator(seed)
    null = _null(pairs, estimator, fold, [coin_flips(pairs.factors, rng) for _ in range(shuffles)])
    table = {
        "layer": pairs.layers,
        "paired_accuracy": accuracy,
        "paired_accuracy_low": low,
        "paired_accuracy_high": high,
        "auc": auc(*projected),
        "d_prime": standardised_difference(*projected),
        **_null_columns(accuracy, null),
    }
    return pd.DataFrame(table).assign(pairs=len(pairs), folds=folds, method=method)


def balanced_folds(factors: pd.DataFrame, *, folds: int, seed: int = 0) -> Folds:
    """The fold of each pair, stratified and with whole groups.

    Args:
        factors: one row per pair. "group", if present, names what stays together. Every other factor is
            balanced, if its levels have at least `folds` pairs on average.
        folds: number of folds.
        seed: of the order within each stratum.

    Raises:
        ValueError: fewer than two folds, or fewer groups than folds.

    In unbalanced folds, a difference between strata (a letter) would pass for one between the sides. Groups
    of a stratum are assigned to the folds in turn, which balances them exactly; scikit-learn's greedy
    StratifiedGroupKFold does not promise that. Strata of fewer than `folds` groups are assigned together.
    """
    strata = group_strata(factors, min_pairs=folds)
    if folds < 2 or len(strata) < folds:
        raise ValueError(f"folds={folds} with {len(strata)} groups of pairs: give 2 to {len(strata)} folds.")
    shuffled = strata.sample(frac=1, random_state=short_seed(seed)).sort_values(kind="stable")
    sizes = shuffled.map(shuffled.value_counts())
    common, rare = shuffled[sizes >= folds], shuffled[sizes < folds]
    numbers = pd.concat([common.groupby(common).cumcount(), pd.Series(range(len(rare)), rare.index)])
    return (numbers % folds).loc[group_numbers(factors)].to_numpy(int)


def group_strata(factors: pd.DataFrame, *, min_pairs: int) -> "pd.Series[tuple[int, ...]]":
    """The stratum of each group, by its number: the combination of factor levels of its pairs.

    Args:
        min_pairs: factors with fewer pairs per level on average (a length, a topic) are ignored.
    """
    levels = factors.drop(columns="group", errors="ignore").nunique(dropna=False)
    columns = list(levels.index[levels * min_pairs <= len(factors)])
    group = group_numbers(factors)
    level = np.zeros(len(factors), int)
    if columns:
        level = factors.groupby(columns, dropna=False, observed=True).ngroup().to_numpy()
    return pd.Series(level).groupby(group).agg(lambda levels: tuple(sorted(levels)))


def _held_out(
    pairs: PairedActivations, estimator: Estimator, fold: Folds, allow_zero: bool = False
) -> tuple[Float[np.ndarray, "side layer pair"], str]:
    """Projections of each fold's sides, minus the other folds' mean, on the other folds' unit direction."""
    both = np.stack([side.numpy() for side in pairs.sides()])
    total = both.sum((0, 1), dtype=np.float64)
    projected = np.empty((2, len(pairs.layers), len(pairs)))
    for part in range(fold.max() + 1):
        train, test = np.flatnonzero(fold != part), np.flatnonzero(fold == part)
        vectors = apply_estimator(estimator, pairs.subset(train.tolist()), allow_zero=allow_zero)
        rows = both[:, test].astype(np.float64)
        mean = (total - rows.sum((0, 1))) / (2 * len(train))
        directions = vectors.values.double().numpy()
        norms = np.linalg.norm(directions, axis=-1, keepdims=True)  # a vector of length zero makes ties
        units = np.divide(directions, norms, out=np.zeros_like(directions), where=norms > 0)
        projected[:, :, test] = einsum(
            rows - mean, units, "side pair layer d_hook, layer d_hook -> side layer pair"
        )
    return projected, vectors.method


def _null(
    pairs: PairedActivations, estimator: Estimator, fold: Folds, flips: list[Bool[np.ndarray, " pair"]]
) -> Float[np.ndarray, "shuffle layer"]:
    """Paired accuracy of the whole cross-validation, repeated with shuffled labels."""
    gram = pair_gram(pairs, estimator) if len(flips) else None
    if gram is None:
        shuffled = (pairs.swapped(each.tolist()) for each in flips)
        null = [_correct(_held_out(each, estimator, fold, allow_zero=True)[0]).mean(-1) for each in shuffled]
        return np.reshape(null, (len(flips), len(pairs.layers)))
    signs = np.where(flips, -1.0, 1.0)
    correct = np.zeros((len(pairs.layers), len(flips)))
    for part in range(fold.max() + 1):
        train, test = np.flatnonzero(fold != part), np.flatnonzero(fold == part)
        weights = np.stack([gram.weights(train, each) for each in signs], axis=1)
        projected = signs[:, test] * (weights @ gram.values[:, :, test])
        correct += ((1 + np.sign(projected)) / 2).sum(-1)
    return correct.T / len(pairs)


def _null_columns(
    accuracy: Float[np.ndarray, " layer"], null: Float[np.ndarray, "shuffle layer"]
) -> dict[str, Float[np.ndarray, " layer"]]:
    names = ("null_low", "null_high", "null_mean", "p_value", "p_corrected", "null_max")
    if not len(null):
        return {name: np.full_like(accuracy, np.nan) for name in names}
    low, high = np.quantile(null, [0.025, 0.975], axis=0)
    maxima = null.max(1)
    tests = (permutation_p_value(accuracy, each) for each in (null, maxima[:, None]))
    threshold = np.full_like(accuracy, simultaneous_threshold(maxima))
    return dict(zip(names, (low, high, null.mean(0), *tests, threshold), strict=True))


def _correct(projected: Float[np.ndarray, "side layer pair"]) -> Float[np.ndarray, "layer pair"]:
    """1 where the positive side projects higher, one half in a tie."""
    positive, negative = projected
    return (positive > negative) + (positive == negative) / 2
