"""Signal detection: d′, criterion, AUC, and their intervals where prompts of a group belong together."""

import numpy as np
from jaxtyping import Bool, Float, Int, Num

from .intervals import Counts, Numbers, score_interval, share


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
    """d′ = z(H) − z(F), rates log-linear corrected: how well signal and noise are distinguished.

    Source: Green & Swets 1966; Macmillan & Creelman 2005, chapter 1.
    """
    return sensitivity(z_rates(hits, n_signal), z_rates(false_alarms, n_noise))


def standardised_difference(
    positive: Num[np.ndarray, "*batch n"], negative: Num[np.ndarray, "*batch m"]
) -> Numbers:
    """Difference of the means in pooled standard deviations, over the last axis; NaN where nothing varies.

    Source: d′ of two samples with their common variance, Macmillan & Creelman 2005, chapter 1.
    """
    n, m = positive.shape[-1], negative.shape[-1]
    pooled = np.sqrt(((n - 1) * positive.var(-1, ddof=1) + (m - 1) * negative.var(-1, ddof=1)) / (n + m - 2))
    return share(positive.mean(-1) - negative.mean(-1), pooled)


def auc(positive: Num[np.ndarray, "*batch n"], negative: Num[np.ndarray, "*batch m"]) -> Numbers:
    """Probability that a positive value exceeds a negative one, ties one half; over the last axis.

    Source: the area under the ROC curve as the Mann-Whitney U (Hanley & McNeil 1982).
    """
    from scipy.stats import rankdata

    n, m = positive.shape[-1], negative.shape[-1]
    ranks = rankdata(np.concatenate([positive, negative], -1), axis=-1)[..., :n].sum(-1)
    return (ranks - n * (n + 1) / 2) / (n * m)


def auc_intervals(
    values: Float[np.ndarray, "time n"], signal: Bool[np.ndarray, " n"], groups: Int[np.ndarray, " n"]
) -> tuple[Float[np.ndarray, "3 time"], Float[np.ndarray, "3"]]:
    """AUC, low, high at each time; change (first minus last time), low, high: 95 % intervals.

    Args:
        values: of each prompt, steered and unsteered.
        signal: which prompts are signal; the others are noise.
        groups: group number of each prompt. With fewer than two of either class, the result is NaN.

    The variance is DeLong's, of groups Obuchowski's. The interval of an AUC is Wilson's of as many prompts as
    have this variance, at most as many as there are, with Student's t in place of z. That of the change joins
    both by their covariance, as Zou & Donner do: it stays within the possible, and has a width where both
    AUCs are 1. In simulations (d′ 0 to 6, equal and unequal variances, 20 to 200 prompts per class) it
    contained the truth in 94 to 100 %.

    Source: DeLong, DeLong & Clarke-Pearson 1988, Biometrics 44; Obuchowski 1997, Biometrics 53; Zou & Donner
    2008, Statistics in Medicine 27; effective sample size: Korn & Graubard 1998, Survey Methodology 24.
    """
    from scipy.stats import t

    if _has_few_groups(signal, groups):
        return np.full((3, len(values)), np.nan), np.full(3, np.nan)
    placement = np.empty(values.shape)  # share of the other class on the expected side of each prompt
    placement[:, signal] = _placements(values[:, signal], values[:, ~signal])
    placement[:, ~signal] = 1 - _placements(values[:, ~signal], values[:, signal])
    area = placement[:, signal].mean(-1)
    influence = (placement - area[:, None]) / np.where(signal, signal.sum(), (~signal).sum())
    covariance, freedom = class_covariance(influence, signal, groups)
    variance = np.diag(covariance)
    simple = np.diag(class_covariance(influence, signal, np.arange(len(signal)))[0])
    with np.errstate(divide="ignore", invalid="ignore"):
        size = np.fmin(area * (1 - area) / simple, len(signal)) * simple / variance
        correlation = covariance[0, -1] / np.sqrt(variance[0] * variance[-1])
    size = np.where(variance > 0, size, len(np.unique(groups)))
    low, high = score_interval(area, size, t.ppf(0.975, freedom))
    change = area[0] - area[-1]
    correlation = np.clip(np.nan_to_num(correlation), -1, 1)
    widths = []
    for now, then in ((low[0], high[-1]), (high[0], low[-1])):
        now, then = now - area[0], then - area[-1]
        widths.append(np.sqrt(max(now**2 + then**2 + 2 * correlation * now * then, 0.0)))
    return np.stack([area, low, high]), np.array([change, change - widths[0], change + widths[1]])


def mean_of_classes(
    values: Float[np.ndarray, " n"], signal: Bool[np.ndarray, " n"], groups: Int[np.ndarray, " n"]
) -> tuple[float, float, float]:
    """Mean of the signal's and the noise's mean, with its 95 % t interval (Welch's degrees of freedom).

    NaN with fewer than two groups of either class.
    """
    from scipy.stats import t

    if _has_few_groups(signal, groups):
        return np.nan, np.nan, np.nan
    means = [values[each].mean() for each in (signal, ~signal)]
    influence = np.where(signal, values - means[0], values - means[1]) / 2
    influence = influence / np.where(signal, signal.sum(), (~signal).sum())
    covariance, freedom = class_covariance(influence[None], signal, groups)
    middle, half = np.mean(means), t.ppf(0.975, freedom[0]) * np.sqrt(covariance[0, 0])
    return float(middle), float(middle - half), float(middle + half)


def _has_few_groups(signal: Bool[np.ndarray, " n"], groups: Int[np.ndarray, " n"]) -> bool:
    return min(len(np.unique(groups[each])) for each in (signal, ~signal)) < 2


def class_covariance(
    influence: Float[np.ndarray, "time n"], signal: Bool[np.ndarray, " n"], groups: Int[np.ndarray, " n"]
) -> tuple[Float[np.ndarray, "time time"], Float[np.ndarray, " time"]]:
    """Covariance over times of estimates that are sums of each prompt's influence, and degrees of freedom.

    Groups are independent, prompts of one are not; a group may contain prompts of both classes. The degrees
    of freedom are Welch's. Source: Obuchowski 1997, Biometrics 53, section 3; Welch 1947, Biometrika 34.
    """
    sums, parts, freedoms = np.zeros((groups.max() + 1, len(influence))), [], []
    for of_class in (signal, ~signal):
        count = len(np.unique(groups[of_class]))
        class_sums = np.zeros_like(sums)
        np.add.at(class_sums, groups[of_class], influence[:, of_class].T * np.sqrt(count / (count - 1)))
        sums += class_sums
        parts.append((class_sums**2).sum(0))
        freedoms.append(count - 1)
    parts, freedoms = np.array(parts), np.array(freedoms)
    below = (parts**2 / freedoms[:, None]).sum(0)
    freedom = np.divide(
        parts.sum(0) ** 2, below, out=np.full(len(influence), float(freedoms.sum())), where=below > 0
    )
    return sums.T @ sums, freedom


def _placements(
    values: Float[np.ndarray, "time n"], others: Float[np.ndarray, "time m"]
) -> Float[np.ndarray, "time n"]:
    """Share of the others that each value exceeds, ties one half."""
    from scipy.stats import rankdata

    ranks = rankdata(np.concatenate([values, others], -1), axis=-1)[:, : values.shape[-1]]
    return (ranks - rankdata(values, axis=-1)) / others.shape[-1]
