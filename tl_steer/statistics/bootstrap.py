"""Bootstrap intervals, permutation p values and false discovery."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int, Num

from .intervals import Interval, Numbers, share


def joint_counts(
    now: Bool[np.ndarray, " n"], then: Bool[np.ndarray, " n"], groups: Int[np.ndarray, " n"]
) -> Int[np.ndarray, "group 4"]:
    """Prompts of each group with a property both times, only now, only then, never."""
    counts = np.zeros((groups.max(initial=-1) + 1, 4), int)
    np.add.at(counts, (groups, 3 - 2 * now.astype(int) - then), 1)
    return counts


def resampled_weights(
    counts: Num[np.ndarray, "*batch outcome"],
    prior: Sequence[float],
    *,
    resamples: int,
    rng: np.random.Generator,
    grouped: bool = False,
) -> Float[np.ndarray, "draw *drawn outcome"]:
    """Weights of each outcome in draws of the Bayesian bootstrap over prompts, or over groups of prompts.

    Each group gets a random weight (exponential, mean 1) instead of the number of times that it is drawn with
    replacement. k prompts of one outcome, each its own group, together weigh as a draw of Gamma(k) does, and
    an outcome's share of the weight is a draw of its rate.

    Args:
        counts: prompts with each outcome. With `joint_counts`, a prompt's steered and unsteered outcomes are
            drawn together.
        prior: groups added to each outcome: without them 60 right of 60 would never vary.
        resamples, rng: number of draws, and their generator.
        grouped: the first axis of `counts` is groups. An added group has the size of a prompt's group, on
            average over prompts.

    Source: Rubin 1981, Annals of Statistics 9, 130–134.
    """
    if resamples < 1:
        raise ValueError(f"resamples={resamples}: expected 1 or more draws.")
    if grouped:
        sizes = counts.sum(-1)
        if (sizes.sum(tuple(range(1, sizes.ndim))) > 1).any():
            size = share((sizes**2).sum(0), sizes.sum(0))[..., None]
            weights = rng.standard_exponential((resamples, len(counts)))
            drawn = np.tensordot(weights, counts, 1)
            return drawn + size * rng.standard_gamma(np.asarray(prior, float), drawn.shape)
        counts = counts.sum(0)
    shapes = counts + np.asarray(prior, float)
    return rng.standard_gamma(shapes, size=(resamples, *shapes.shape))


def z_of_weights(weights: Float[np.ndarray, "*batch 2"]) -> Float[np.ndarray, "*batch"]:
    """z of the first outcome's share of the weight, exact also where either is next to nothing."""
    from scipy.special import ndtri

    tail = ndtri(weights.min(-1) / weights.sum(-1))
    return np.where(weights[..., 0] < weights[..., 1], tail, -tail)


def share_change(
    joint: Int[np.ndarray, "*batch 4"], *, resamples: int, rng: np.random.Generator, grouped: bool = False
) -> Interval:
    """Share of prompts now minus then, from `joint_counts`, with its 95 % interval; NaN without prompts.

    The interval is by `resampled_weights` (which has the other arguments), with one group added to only now
    and one to only then. In simulations it contained the truth in at least 93 %, and in nearly 100 % where
    five prompts or fewer change.

    Source: the added groups, Bonett & Price 2012, Journal of Educational and Behavioral Statistics 37.
    """
    weights = resampled_weights(joint, (0.0, 1.0, 1.0, 0.0), resamples=resamples, rng=rng, grouped=grouped)
    total = joint.sum(0) if grouped else joint
    change = share(total[..., 1] - total[..., 2], total.sum(-1))
    drawn = (weights[..., 1] - weights[..., 2]) / weights.sum(-1)
    return change, *interval_around(change, drawn)


def interval_around(
    estimate: Numbers, draws: Float[np.ndarray, " draw *batch"], confidence: float = 0.95
) -> tuple[Numbers, Numbers]:
    """`percentile_interval`, widened to include the estimate: a rate of 1 is not a percentile of any draws.

    Source: Brown, Cai & DasGupta 2001, section 4.1.
    """
    low, high = percentile_interval(draws, confidence)
    return np.minimum(low, estimate), np.maximum(high, estimate)


def percentile_interval(
    draws: Float[np.ndarray, " draw *batch"], confidence: float = 0.95
) -> tuple[Numbers, Numbers]:
    """Low and high percentile of bootstrap draws (first axis); NaN where a draw is NaN.

    Source: Efron & Tibshirani 1993, chapter 13.
    """
    if not len(draws):
        raise ValueError("no draws: expected resamples of 1 or more.")
    low, high = np.quantile(draws, [(1 - confidence) / 2, (1 + confidence) / 2], axis=0)
    return low[()], high[()]


def permutation_p_value(observed: Numbers, null: Num[np.ndarray, " draw *batch"]) -> Numbers:
    """One-sided p value: how often the null reaches the observed statistic, never zero.

    Source: (b + 1) / (m + 1), Phipson & Smyth 2010, section 3: chance could have drawn the observed
    labelling, too.
    """
    return ((null >= observed).sum(0) + 1) / (len(null) + 1)


def simultaneous_threshold(maxima: Num[np.ndarray, " draw"]) -> float:
    """The value above which `permutation_p_value` against maxima over all tests (per draw) is at most 0.05.

    It is the k-th largest of the m maxima, k = (m + 1) / 20 rounded down; NaN with fewer than 19 draws.
    """
    rank = (len(maxima) + 1) // 20
    return float(np.sort(maxima)[-rank]) if rank else float("nan")


def false_discovery(p_values: Float[np.ndarray, " test"]) -> Float[np.ndarray, " test"]:
    """q values: of the tests with q below 0.05, at most 5 % are false discoveries on average. NaN stays NaN.

    The p values must be independent or positively dependent (as those of neighbouring layers are).

    Source: Benjamini & Hochberg 1995; dependence: Benjamini & Yekutieli 2001, section 2.
    """
    from scipy.stats import false_discovery_control

    known = ~np.isnan(p_values)
    result = np.full(len(p_values), np.nan)
    if known.any():
        result[known] = false_discovery_control(p_values[known], method="bh")
    return result
