"""Intervals of means, rates and their differences; rows of a group are not independent."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float, Int, Num

Counts = Num[np.ndarray, "..."] | int | float | np.integer
Numbers = Float[np.ndarray, "..."] | float
Interval = tuple[Numbers, Numbers, Numbers]  # value, low, high
RowValues = Float[np.ndarray, " row"]
RowNumbers = Int[np.ndarray, " row"]


def share(successes: Counts, n: Counts) -> Numbers:
    """`successes / n`, NaN where n is 0."""
    successes, n = np.asarray(successes, float), np.asarray(n, float)
    return np.divide(successes, n, out=np.full(np.broadcast(successes, n).shape, np.nan), where=n > 0)[()]


def wilson_interval(successes: Counts, n: Counts, confidence: float = 0.95) -> tuple[Numbers, Numbers]:
    """Wilson's score interval of a proportion, low and high; NaN where n is 0.

    Ties may count as half a success. Raises `ValueError` for counts outside 0 to n, or a confidence outside
    (0, 1).

    Source: Wilson 1927; recommended over the normal interval by Brown, Cai & DasGupta 2001, section 3.
    """
    successes, n = np.asarray(successes, float), np.asarray(n, float)
    if ((successes < 0) | (successes > n)).any():
        raise ValueError(f"successes={successes} of n={n}: expected values between 0 and n.")
    return score_interval(share(successes, n), np.where(n > 0, n, np.nan), two_sided_z(confidence))


def score_interval(rate: Numbers, n: Numbers, z: Numbers) -> tuple[Numbers, Numbers]:
    """Wilson's interval with a critical value `z` of the caller's."""
    shrink = n / (n + z**2)
    centre = shrink * (rate + z**2 / (2 * n))
    half = shrink * z * np.sqrt(rate * (1 - rate) / n + z**2 / (4 * n**2))
    return np.maximum(centre - half, 0.0), np.minimum(centre + half, 1.0)


def two_sided_z(confidence: float) -> float:
    """Critical value of the normal distribution."""
    from scipy.special import ndtri

    if not 0 < confidence < 1:
        raise ValueError(f"confidence={confidence}: expected a number between 0 and 1, such as 0.95.")
    return float(ndtri((1 + confidence) / 2))


def t_interval(
    mean: Numbers, deviation: Numbers, n: Counts, confidence: float = 0.95
) -> tuple[Numbers, Numbers]:
    """Student's t interval of means, low and high; NaN where n is below 2. Deviations have ddof 1."""
    from scipy.stats import t

    n = np.asarray(n, float)
    n = np.where(n > 1, n, np.nan)
    half = t.ppf((1 + confidence) / 2, n - 1) * deviation / np.sqrt(n)
    return mean - half, mean + half


def welch_interval(
    first: Sequence[Counts], second: Sequence[Counts], confidence: float = 0.95, *, covariance: Numbers = 0.0
) -> tuple[Numbers, Numbers]:
    """Welch's interval of the difference of two means, low and high; NaN where an n is below 2.

    Args:
        first, second: mean, standard deviation (ddof 1) and n of each sample.
        covariance: of the two means; 0 for independent samples. Where it is not 0, the degrees of freedom are
            those of the smaller sample, as for paired values.

    Where neither sample varies, the interval is the difference itself. Source: Welch 1947, Biometrika 34.
    """
    from scipy.stats import t

    means, deviations, counts = (np.array(each, float) for each in zip(first, second, strict=True))
    counts = np.where(counts > 1, counts, np.nan)
    squares = deviations**2 / counts
    error = squares.sum(0)
    parts = (squares**2 / (counts - 1)).sum(0)
    freedom = np.divide(error**2, parts, out=np.ones_like(error), where=parts != 0)
    freedom = np.where(covariance == 0, freedom, counts.min(0) - 1)
    half = t.ppf((1 + confidence) / 2, freedom) * np.sqrt(np.maximum(error - 2 * covariance, 0))
    difference = means[0] - means[1]
    return difference - half, difference + half


def mean_interval(values: RowValues, sample: RowNumbers, group: RowNumbers) -> Interval:
    """Mean, low and high of each sample: 95 % cluster-robust t interval, rows of a group belong together.

    Args:
        values: NaN where a row has none; it does not count.
        sample: number of each row's sample, from 0.
        group: number of each row's group, from 0, in one sample only (`nested`). With fewer than two groups
            in a sample, low and high are NaN.

    The residuals of a group are added before they are squared, so that rows of a group may agree or differ in
    any way. A group's residuals are divided by √(1 − its share of the rows), and the degrees of freedom are
    n² / Σ (rows of the group)² − 1. With one row per group, this is Student's t interval.

    Source: Bell & McCaffrey 2002, Survey Methodology 28, 169–181 (the residuals, and degrees of freedom by
    Satterthwaite's approximation); n² / Σ … is Kish's effective number, 1965, Survey Sampling.
    """
    moments = _moments(_grouped(values, sample, group))
    return moments[0], *t_interval(*moments)


def spread_interval(values: RowValues, sample: RowNumbers, group: RowNumbers) -> Interval:
    """Standard deviation (ddof 1) of each sample, with its 95 % interval; arguments as `mean_interval`.

    The variance is the mean of the squared deviations, so that `mean_interval` gives its standard error,
    groups whole, whatever the kurtosis. The interval is that of the logarithm, with Bonett's correction for
    small samples. In simulations of 12 to 300 rows it contained the truth in 94 to 95 % for normal, uniform
    and bimodal values, in 91 to 94 % for Laplace's and in 85 to 93 % for exponential ones. Low and high are
    NaN with two groups or fewer, or where nothing varies.

    Source: Bonett 2006, Computational Statistics & Data Analysis 50, 775–782.
    """
    mean = mean_interval(values, sample, group)[0]
    counts = np.bincount(sample[~np.isnan(values)], minlength=len(mean))
    squares = (values - mean[sample]) ** 2 * share(counts, counts - 1)[sample]
    variance, deviation, groups = _moments(_grouped(squares, sample, group))
    low, high = t_interval(variance, deviation, groups)
    correction = np.where(groups > 2, share(groups, groups - two_sided_z(0.95)), np.nan)
    half = share(high - low, variance) / 4 * correction
    spread, middle = np.sqrt(variance), np.sqrt(correction * variance)
    low, high = middle * np.exp(-half), middle * np.exp(half)
    return spread, np.minimum(low, spread), np.maximum(high, spread)


def rate_interval(values: RowValues, sample: RowNumbers, group: RowNumbers) -> Interval:
    """Rate, low and high of each sample: 95 % Wilson interval where rows of a group belong together.

    Args:
        values: 0 or 1, one half for a tie, NaN where a row has none; it does not count.
        sample, group: as for `mean_interval`.

    Wilson's interval takes the number of independent rows that would leave as much uncertainty: n times the
    squared ratio of the widths of two t intervals of the mean, rows independent over `mean_interval`. It is
    at most n. At rates of 0 and 1 and with one group, where the ratio is undefined, it is
    n² / Σ (rows of the group)². With one row per group, it is n.

    In simulations of 20 to 50 groups the interval covered rates of .2 to .8 in 93 to 97 %, and in 92 % where
    20 groups had 1, 2 or 4 identical rows each.

    Source: Korn & Graubard 1998, Survey Methodology 24, 193–201; with Wilson's interval, Franco, Little,
    Louis & Slud 2019, Journal of Survey Statistics and Methodology 7, 334–364.
    """
    rows = np.arange(len(values))
    independent, grouped = (_moments(_grouped(values, sample, number)) for number in (rows, group))
    narrow, wide = (high - low for low, high in (t_interval(*each) for each in (independent, grouped)))
    (rate, _, n), groups = independent, grouped[2]
    ratio = np.divide(narrow, wide, out=np.ones_like(rate), where=wide > narrow)
    effective = np.where((narrow > 0) & ~np.isnan(wide), n * ratio**2, groups)
    return rate, *wilson_interval(rate * effective, effective)


def difference_interval(
    first: RowValues, second: RowValues, sample: RowNumbers, group: RowNumbers
) -> Interval:
    """Mean of `first` minus mean of `second` in each sample, with its 95 % interval: Welch's, groups whole.

    Args:
        first, second: values of the rows of each side, NaN in those of the other.
        sample, group: as for `mean_interval`. A group may have rows on both sides.

    With one row per group, this is Welch's interval of independent samples.
    """
    one, other = (_grouped(values, sample, group) for values in (first, second))
    covariance = np.bincount(one.sample, one.part * other.part, _count(sample))
    interval = welch_interval(_moments(one), _moments(other), covariance=covariance)
    return one.mean - other.mean, *interval


def nested(sample: RowNumbers, group: RowNumbers) -> RowNumbers:
    """Number of each row's group within its sample, from 0: the same group in two samples has two numbers."""
    return pd.factorize(sample * _count(group) + group)[0]  # by hashing: np.unique would sort


def _count(numbers: RowNumbers) -> int:
    return int(numbers.max(initial=-1)) + 1


class _Grouped(NamedTuple):
    mean: Float[np.ndarray, " sample"]
    part: Float[np.ndarray, " group"]  # of the error of the mean: their squares add up to its variance
    size: Int[np.ndarray, " group"]
    sample: Int[np.ndarray, " group"]  # of each group


def _grouped(values: RowValues, sample: RowNumbers, group: RowNumbers) -> _Grouped:
    samples, groups = _count(sample), _count(group)
    sample_of_group = np.zeros(groups, int)
    sample_of_group[group] = sample
    known = ~np.isnan(values)
    values, sample, group = values[known], sample[known], group[known]
    n = np.bincount(sample, minlength=samples)
    mean = share(np.bincount(sample, values, samples), n)
    size = np.bincount(group, minlength=groups)
    residual = np.bincount(group, values - mean[sample], groups)
    n = n[sample_of_group]
    return _Grouped(mean, share(residual, n * np.sqrt(1 - share(size, n))), size, sample_of_group)


def _moments(grouped: _Grouped) -> Interval:
    """Mean of each sample, standard deviation and number of its groups: the arguments of `t_interval`."""
    mean, part, size, sample = grouped
    groups = share(np.bincount(sample, size, len(mean)) ** 2, np.bincount(sample, size**2, len(mean)))
    return mean, np.sqrt(np.bincount(sample, part**2, len(mean)) * groups), groups
