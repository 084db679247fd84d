"""Intervals, signal detection, bootstrap and permutation: from arrays to numbers."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int, Num

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


def mean_interval(values: Num[np.ndarray, " n"], confidence: float = 0.95) -> tuple[float, float, float]:
    """Mean of the values that are not NaN, with Student's t interval: mean, low, high.

    No value gives three NaN; a single one has a mean and no interval (NaN).
    """
    known = np.asarray(values, float)[~np.isnan(values)]
    mean = float(known.mean()) if len(known) else np.nan
    deviation = known.std(ddof=1) if len(known) > 1 else np.nan
    low, high = t_interval(mean, float(deviation), len(known), confidence)
    return mean, float(low), float(high)


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


def d_prime(hits: Counts, n_signal: Counts, false_alarms: Counts, n_noise: Counts) -> Numbers:
    """d′ = z(H) − z(F), rates log-linear corrected: how well signal and noise are told apart.

    Args:
        hits: "signal" answers where the signal was there, of `n_signal`.
        false_alarms: "signal" answers where it was not, of `n_noise`.

    Source: Green & Swets 1966; Macmillan & Creelman 2005, chapter 1.
    """
    return z_rates(hits, n_signal) - z_rates(false_alarms, n_noise)


def criterion(hits: Counts, n_signal: Counts, false_alarms: Counts, n_noise: Counts) -> Numbers:
    """c = −½(z(H) + z(F)), arguments as for `d_prime`: negative says "signal" more often than not.

    Source: Macmillan & Creelman 2005, chapter 2.
    """
    return -(z_rates(hits, n_signal) + z_rates(false_alarms, n_noise)) / 2


def resampled_counts(
    counts: Num[np.ndarray, " outcome"], *, resamples: int, rng: np.random.Generator
) -> Int[np.ndarray, "draw outcome"]:
    """How often each outcome occurs when prompts are drawn anew, as many as there were.

    Drawing prompts with replacement is a multinomial over their outcomes. Where an outcome is a joint one
    (what a prompt did steered and unsteered), the draw is paired.

    Args:
        counts: prompts with each outcome.
        resamples: draws.
        rng: the source of chance.

    The proportions drawn from are smoothed as in `z_rates`, one prompt shared among the outcomes: from the
    bare ones, 60 right answers of 60 would never vary, and the interval would claim a certainty that 60
    prompts cannot give. Either margin of four joint outcomes is then (k + ½) / (n + 1).
    """
    counts = np.asarray(counts)
    n = int(counts.sum())
    return rng.multinomial(n, (counts + 1 / len(counts)) / (n + 1), size=resamples)


def percentile_interval(
    draws: Float[np.ndarray, " draw *cell"], confidence: float = 0.95
) -> tuple[Numbers, Numbers]:
    """Low and high percentile of bootstrap draws (first axis); NaN where a draw is NaN.

    Source: Efron & Tibshirani 1993, chapter 13.
    """
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


def _two_sided_z(confidence: float) -> float:
    from scipy.special import ndtri

    if not 0 < confidence < 1:
        raise ValueError(f"confidence={confidence} must lie between 0 and 1, such as 0.95.")
    return float(ndtri((1 + confidence) / 2))
