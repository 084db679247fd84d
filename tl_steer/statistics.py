"""Intervals, signal detection, bootstrap and permutation: from arrays to numbers."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int, Num

Counts = Num[np.ndarray, "..."] | int | float | np.integer
Numbers = Float[np.ndarray, "..."] | float


def share(successes: Counts, n: Counts) -> Numbers:
    """`successes / n`, NaN where n is 0."""
    successes, n = np.asarray(successes, float), np.asarray(n, float)
    return np.divide(successes, n, out=np.full(np.broadcast(successes, n).shape, np.nan), where=n > 0)[()]


def wilson_interval(successes: Counts, n: Counts, confidence: float = 0.95) -> tuple[Numbers, Numbers]:
    """Wilson's score interval of a proportion, low and high; NaN where n is 0.

    Args:
        successes: of each proportion; ties may count one half.
        n: trials of each proportion; broadcast against `successes`.
        confidence: between 0 and 1.

    Raises:
        ValueError: more successes than trials, negative ones, or a confidence outside (0, 1).

    Source: Wilson 1927; recommended over the normal interval by Brown, Cai & DasGupta 2001, section 3.
    """
    successes, n = np.asarray(successes, float), np.asarray(n, float)
    if ((successes < 0) | (successes > n)).any():
        raise ValueError("successes must lie between 0 and n for every proportion.")
    z = _two_sided_z(confidence)
    rate = share(successes, n)
    shrink = 1 / (1 + z**2 * share(1, n))
    centre = shrink * (rate + z**2 / 2 * share(1, n))
    half = shrink * z * np.sqrt(rate * (1 - rate) * share(1, n) + z**2 / 4 * share(1, n) ** 2)
    return np.maximum(centre - half, 0.0), np.minimum(centre + half, 1.0)


def t_interval(
    mean: Numbers, deviation: Numbers, n: Counts, confidence: float = 0.95
) -> tuple[Numbers, Numbers]:
    """Student's t interval of means, low and high; NaN where n is below 2.

    Args:
        mean: of each sample.
        deviation: standard deviation of each sample, with n − 1 in the denominator.
        n: values in each sample.
    """
    from scipy.stats import t

    n = np.asarray(n, float)
    enough = np.where(n > 1, n, np.nan)
    half = t.ppf((1 + confidence) / 2, enough - 1) * deviation / np.sqrt(enough)
    return mean - half, mean + half


def welch_interval(
    first: Sequence[Counts], second: Sequence[Counts], confidence: float = 0.95
) -> tuple[Numbers, Numbers]:
    """Welch's interval of the difference of two independent means, low and high; NaN where an n is below 2.

    Args:
        first, second: mean, standard deviation (n − 1 in the denominator) and n of each sample.

    Where neither sample varies, the interval is the difference itself. Source: Welch 1947, Biometrika 34.
    """
    from scipy.stats import t

    means, deviations, counts = (np.array(each, float) for each in zip(first, second, strict=True))
    counts = np.where(counts > 1, counts, np.nan)
    squares = deviations**2 / counts
    error = squares.sum(0)
    parts = (squares**2 / (counts - 1)).sum(0)
    freedom = np.divide(error**2, parts, out=np.ones_like(error), where=parts != 0)
    half = t.ppf((1 + confidence) / 2, freedom) * np.sqrt(error)
    difference = means[0] - means[1]
    return difference - half, difference + half


def z_rates(hits: Counts, n: Counts) -> Numbers:
    """z of log-linear corrected rates, z((hits + ½) / (n + 1)); NaN where n is 0.

    The correction is applied always, not only at rates of 0 and 1: no rate is infinite and none jumps.

    Source: Hautus 1995, Behavior Research Methods, Instruments, & Computers 27, 46–51.
    """
    from scipy.special import ndtri

    n = np.asarray(n, float)
    return ndtri((np.asarray(hits, float) + 0.5) / (np.where(n > 0, n, np.nan) + 1))


def sensitivity(hit: Numbers, false_alarm: Numbers) -> Numbers:
    """d′ of two z values, z(H) − z(F)."""
    return hit - false_alarm


def bias(hit: Numbers, false_alarm: Numbers) -> Numbers:
    """Criterion c of two z values, −½(z(H) + z(F)): negative says "signal" more often than not.

    Source: Macmillan & Creelman 2005, chapter 2.
    """
    return -(hit + false_alarm) / 2


def d_prime(hits: Counts, n_signal: Counts, false_alarms: Counts, n_noise: Counts) -> Numbers:
    """d′ = z(H) − z(F), rates log-linear corrected: how well signal and noise are told apart.

    Args:
        hits: "signal" answers where the signal was there, of `n_signal`.
        false_alarms: "signal" answers where it was not, of `n_noise`.

    Source: Green & Swets 1966; Macmillan & Creelman 2005, chapter 1.
    """
    return sensitivity(z_rates(hits, n_signal), z_rates(false_alarms, n_noise))


def joint_counts(now: Bool[np.ndarray, " n"], then: Bool[np.ndarray, " n"]) -> Int[np.ndarray, "4"]:
    """How many prompts have something both times, only now, only then, never."""
    return np.bincount(3 - 2 * now.astype(int) - then, minlength=4)


def resampled_weights(
    counts: Num[np.ndarray, "*cell outcome"],
    added: Sequence[float],
    *,
    resamples: int,
    rng: np.random.Generator,
) -> Float[np.ndarray, "draw *cell outcome"]:
    """How much each outcome weighs when prompts are drawn anew, by the Bayesian bootstrap.

    Each prompt gets a random weight (exponential, mean 1) instead of the number of times that it is drawn
    with replacement. So k prompts of one outcome together weigh as a draw of Gamma(k) does, and an outcome's
    share of the weight is a draw of its rate.

    Args:
        counts: prompts with each outcome. Of joint ones (`joint_counts`) what a prompt did steered and
            unsteered is drawn together.
        added: prompts added to each outcome, a prior: from the bare counts 60 right of 60 would never vary,
            and the interval would claim a certainty that 60 prompts cannot give.
        resamples: draws.
        rng: the source of chance.

    Source: Rubin 1981, Annals of Statistics 9, 130–134.
    """
    if resamples < 1:
        raise ValueError(f"resamples={resamples}: an interval needs one draw or more.")
    shapes = np.asarray(counts) + np.asarray(added, float)
    return rng.standard_gamma(shapes, size=(int(resamples), *shapes.shape))


def z_of_weights(weights: Float[np.ndarray, "*cell 2"]) -> Float[np.ndarray, "*cell"]:
    """z of the first outcome's share of the weight, exact also where either is next to nothing."""
    from scipy.special import ndtri

    tail = ndtri(weights.min(-1) / weights.sum(-1))
    return np.where(weights[..., 0] < weights[..., 1], tail, -tail)


def share_change(
    joint: Int[np.ndarray, "*cell 4"], *, resamples: int, rng: np.random.Generator
) -> tuple[Numbers, Numbers, Numbers]:
    """Share of prompts now minus then, from `joint_counts`, with its 95 % interval; NaN without prompts.

    The interval is by `resampled_weights`, with a prompt added to those with only now and only then. In
    simulations it held the truth in at least 93 %, and in nearly 100 % where five prompts or fewer change.

    Source: these two prompts are Bonett & Price's, 2012, Journal of Educational and Behavioral Statistics 37.
    """
    change = share(joint[..., 1] - joint[..., 2], joint.sum(-1))
    weights = resampled_weights(joint, (0.0, 1.0, 1.0, 0.0), resamples=resamples, rng=rng)
    drawn = (weights[..., 1] - weights[..., 2]) / weights.sum(-1)
    return change, *interval_around(change, drawn)


def interval_around(
    estimate: Numbers, draws: Float[np.ndarray, " draw *cell"], confidence: float = 0.95
) -> tuple[Numbers, Numbers]:
    """`percentile_interval`, widened to hold the estimate where that lies at the edge of what is possible.

    (A rate of 1 is no percentile of any draws. Source: Brown, Cai & DasGupta 2001, section 4.1.)
    """
    low, high = percentile_interval(draws, confidence)
    return np.minimum(low, estimate), np.maximum(high, estimate)


def percentile_interval(
    draws: Float[np.ndarray, " draw *cell"], confidence: float = 0.95
) -> tuple[Numbers, Numbers]:
    """Low and high percentile of bootstrap draws (first axis); NaN where a draw is NaN.

    Source: Efron & Tibshirani 1993, chapter 13.
    """
    if not len(draws):
        raise ValueError("an interval needs one draw or more: give resamples of 1 or more.")
    low, high = np.quantile(draws, [(1 - confidence) / 2, (1 + confidence) / 2], axis=0)
    return low[()], high[()]


def auc(positive: Num[np.ndarray, "*cell n"], negative: Num[np.ndarray, "*cell m"]) -> Numbers:
    """Probability that a positive value exceeds a negative one, ties one half; over the last axis.

    Source: the area under the ROC curve as the Mann-Whitney U (Hanley & McNeil 1982).
    """
    from scipy.stats import rankdata

    n, m = positive.shape[-1], negative.shape[-1]
    ranks = rankdata(np.concatenate([positive, negative], -1), axis=-1)[..., :n].sum(-1)
    return (ranks - n * (n + 1) / 2) / (n * m)


def standardised_difference(
    positive: Num[np.ndarray, "*cell n"], negative: Num[np.ndarray, "*cell m"]
) -> Numbers:
    """Difference of the means in pooled standard deviations, over the last axis; NaN where nothing varies.

    Source: d′ of two samples with their common variance, Macmillan & Creelman 2005, chapter 1.
    """
    n, m = positive.shape[-1], negative.shape[-1]
    pooled = np.sqrt(((n - 1) * positive.var(-1, ddof=1) + (m - 1) * negative.var(-1, ddof=1)) / (n + m - 2))
    gap = positive.mean(-1) - negative.mean(-1)
    return np.divide(gap, pooled, out=np.full(np.shape(gap), np.nan), where=pooled > 0)[()]


def permutation_p_value(observed: Numbers, null: Num[np.ndarray, " draw *cell"]) -> Numbers:
    """One-sided p value: how often the null reaches what was observed, never zero.

    Args:
        observed: the statistic, one or one a cell.
        null: the same under shuffled labels; draws along the first axis.

    Source: (b + 1) / (m + 1), Phipson & Smyth 2010, section 3: the observed labelling is one of those that
    chance could have drawn.
    """
    reached = (null >= observed).sum(0)
    return (reached + 1) / (len(null) + 1)


def simultaneous_threshold(maxima: Num[np.ndarray, " draw"]) -> float:
    """The value above which a statistic's p value against a null of maxima is at most 0.05.

    Args:
        maxima: of each draw of the null, the maximum over all tests.

    Returns:
        The k-th largest of the m maxima, k = (m + 1) / 20 rounded down, which the p value (b + 1) / (m + 1)
        of `permutation_p_value` makes so. NaN with fewer than 19 draws, which cannot reach 0.05.
    """
    rank = (len(maxima) + 1) // 20
    return float(np.sort(maxima)[-rank]) if rank else float("nan")


def false_discovery(p_values: Float[np.ndarray, " test"]) -> Float[np.ndarray, " test"]:
    """q values: the share of false discoveries among all tests with a p value as small, controlled.

    Tests with q below 0.05 are, on average, at most 5 % false ones, if the p values are independent or
    positively dependent (as those of neighbouring layers are). NaN is no test, and stays NaN.

    Source: Benjamini & Hochberg 1995; dependence: Benjamini & Yekutieli 2001, section 2.
    """
    from scipy.stats import false_discovery_control

    p_values = np.asarray(p_values, float)
    known = ~np.isnan(p_values)
    result = np.full(len(p_values), np.nan)
    if known.any():
        result[known] = false_discovery_control(p_values[known], method="bh")
    return result


def _two_sided_z(confidence: float) -> float:
    from scipy.special import ndtri

    if not 0 < confidence < 1:
        raise ValueError(f"confidence={confidence} must lie between 0 and 1, such as 0.95.")
    return float(ndtri((1 + confidence) / 2))
