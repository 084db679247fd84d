"""Coverage of 95 % intervals, by simulation: `python -m tests.coverage_table` prints Markdown.

Next to each current interval are those it replaced: the percentile bootstrap with the log-linear correction,
bare, and smoothed by one prompt that is shared among the outcomes.
"""

import itertools

import numpy as np
from scipy.special import ndtri
from scipy.stats import multivariate_normal

from tl_steer import statistics
from tl_steer.evaluation._signal_detection import changes, is_change_covered, is_covered, measures

SIMULATIONS = 2000
SIZES = (20, 50, 100, 200)
RATES = (
    (0.5, 0.5), (0.8, 0.2), (0.8, 0.5), (0.2, 0.2), (0.95, 0.5), (0.95, 0.05), (0.95, 0.95),
    (0.99, 0.5), (0.99, 0.43), (0.99, 0.01), (0.99, 0.95), (0.01, 0.01),
)  # fmt: skip
GROUP_ROWS = ((2,), (4,), (1, 2, 4))
# hit and false-alarm rate unsteered, steered, and the correlation of a prompt's two latent values
MOVES = (
    ((0.5, 0.5), (0.5, 0.5), 0.9),
    ((0.8, 0.2), (0.8, 0.5), 0.0),
    ((0.8, 0.2), (0.8, 0.5), 0.9),
    ((0.5, 0.5), (0.8, 0.2), 0.5),
    ((0.8, 0.2), (0.8, 0.8), 0.9),
    ((0.5, 0.5), (0.523, 0.523), 1.0),
    ((0.5, 0.5), (0.557, 0.557), 1.0),
    ((0.8, 0.2), (0.95, 0.5), 0.9),
    ((0.95, 0.05), (0.95, 0.95), 0.5),
    ((0.8, 0.2), (0.99, 0.43), 0.9),
    ((0.8, 0.2), (0.99, 0.01), 0.9),
    ((0.99, 0.43), (0.99, 0.95), 0.5),
)


def joint_rates(now, then, correlation):
    """Of a latent threshold model: the signal both times, only now, only then, never."""
    both = min(now, then)
    if correlation < 1:
        covariance = [[1, correlation], [correlation, 1]]
        both = multivariate_normal.cdf(ndtri([now, then]), cov=covariance)
    return np.clip([both, now - both, then - both, 1 - now - then + both], 0, 1)


def simulated(rates, n, *, simulations=SIMULATIONS, seed=0):
    """Counts "simulation class outcome" of n prompts of each class, whose outcomes have these rates."""
    rng = np.random.default_rng(seed)
    return np.stack([rng.multinomial(n, of_class, simulations) for of_class in rates], 1)


def answered(hit, false_alarm):
    return [(hit, 1 - hit), (false_alarm, 1 - false_alarm)]


def moved(then, now, correlation):
    return [joint_rates(*each, correlation) for each in zip(now, then, strict=True)]


def truth_of(hit, false_alarm):
    z_hit, z_false_alarm = ndtri([hit, false_alarm])
    return {"d_prime": z_hit - z_false_alarm, "criterion": -(z_hit + z_false_alarm) / 2}


def change_of(then, now):
    before, after = truth_of(*then), truth_of(*now)
    return {name: after[name] - before[name] for name in after}


def share_within(low, high, truth):
    return float(((low <= truth) & (truth <= high)).mean())


def covering(intervals, truth):
    """Coverage of each measure."""
    return {name: share_within(low, high, truth[name]) for name, (_, low, high) in intervals.items()}


def now_used(counts, *, resamples=1000, seed=1):
    """Current intervals of simulated counts; of changes, for joint outcomes."""
    measure = measures if counts.shape[-1] == 2 else changes
    distinct, index = np.unique(counts, axis=0, return_inverse=True)
    result = measure(distinct, resamples=resamples, seed=seed)
    return {name: tuple(each[index.ravel()] for each in result[name]) for name in result}


def formerly_used(counts, *, smoothing=1, resamples=1000, seed=1):
    """The multinomial bootstrap with the log-linear correction, as `now_used`; bare with `smoothing=0`."""
    n, outcomes = counts[0, 0].sum(), counts.shape[-1]
    rates = (counts + smoothing / outcomes) / (n + smoothing)
    draws = np.random.default_rng(seed).multinomial(n, rates, (resamples, *counts.shape[:2]))
    z = ndtri((draws[..., 0] + (draws[..., 1] if outcomes == 4 else 0) + 0.5) / (n + 1))
    if outcomes == 4:
        z -= ndtri((draws[..., 0] + draws[..., 2] + 0.5) / (n + 1))
    measured = {"d_prime": z[..., 0] - z[..., 1], "criterion": -(z[..., 0] + z[..., 1]) / 2}
    return {name: (None, *np.percentile(values, [2.5, 97.5], axis=0)) for name, values in measured.items()}


def share_change_formerly_used(joint, *, resamples=1000, seed=1):
    n = joint[0].sum()
    draws = np.random.default_rng(seed).multinomial(n, (joint + 1 / 4) / (n + 1), (resamples, len(joint)))
    return None, *np.percentile((draws[..., 1] - draws[..., 2]) / n, [2.5, 97.5], axis=0)


def wilson_coverage(counts, rate):
    return share_within(*statistics.wilson_interval(counts[:, 0], counts.sum(1)), rate)


def share_coverage(joint, intervals):
    """Coverage of the true change of the share, from joint counts of one class."""
    counts, truth = joint
    return share_within(*intervals(counts)[1:], truth)


def share_intervals(joint, *, resamples=1000, seed=1):
    return statistics.share_change(joint, resamples=resamples, rng=np.random.default_rng(seed))


def mean_coverage(n, draw, *, simulations=SIMULATIONS, seed=0):
    """Student's t interval of a mean of n values; `draw(rng, shape)` has mean 0."""
    values = draw(np.random.default_rng(seed), (simulations, n))
    return share_within(*statistics.t_interval(values.mean(1), values.std(1, ddof=1), n), 0)


def grouped_values(sizes, agreement, *, rate=None, simulations=SIMULATIONS, seed=0):
    """Values "simulation row" of groups with so many rows, and each row's group.

    Normal values with mean 0, or 0 and 1 with this rate. Two rows of a group correlate by `agreement`.
    """
    rng = np.random.default_rng(seed)
    group = np.repeat(np.arange(len(sizes)), sizes)
    shape = (simulations, len(group))
    shared, own = rng.normal(size=(simulations, len(sizes)))[:, group], rng.normal(size=shape)
    if rate is None:
        return np.sqrt(agreement) * shared + np.sqrt(1 - agreement) * own, group
    drawn = np.where(rng.random(shape) < np.sqrt(agreement), shared, own)
    return (drawn < ndtri(rate)).astype(float), group


def grouped_coverage(sizes, agreement, *, rate=None, whole=True, simulations=SIMULATIONS, seed=0):
    """Of `mean_interval`, or with a rate of `rate_interval`; with `whole=False` rows are independent."""
    values, group = grouped_values(sizes, agreement, rate=rate, simulations=simulations, seed=seed)
    sample = np.repeat(np.arange(simulations), len(group))
    group = statistics.nested(sample, np.tile(group if whole else np.arange(len(group)), simulations))
    interval = statistics.mean_interval if rate is None else statistics.rate_interval
    return share_within(*interval(values.ravel(), sample, group)[1:], rate or 0)


def bootstrapped_mean_coverage(n, *, simulations=SIMULATIONS, resamples=1000, seed=0):
    """The bootstrap over rows, as for scores that are functions, of a mean of n normal values."""
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(simulations, n))
    drawn = np.stack([values[:, rng.integers(0, n, n)].mean(1) for _ in range(resamples)])
    return share_within(*statistics.percentile_interval(drawn), 0)


def _percent(*shares):
    return " / ".join(f"{100 * share:.1f}" for share in shares)


def rate_rows():
    """n per class, rates, hit and false-alarm rate, d′ and c by three intervals, share marked as covered."""
    for n, rates in itertools.product(SIZES, RATES):
        counts = simulated(answered(*rates), n)
        methods = formerly_used(counts, smoothing=0), formerly_used(counts), now_used(counts)
        result = [covering(intervals, truth_of(*rates)) for intervals in methods]
        wilson = _percent(*(wilson_coverage(counts[:, index], rates[index]) for index in (0, 1)))
        measured = (_percent(*(each[name] for each in result)) for name in ("d_prime", "criterion"))
        yield [f"{n}", "{:g} / {:g}".format(*rates), wilson, *measured, f"{is_covered(counts).mean():.0%}"]


def change_rows():
    """n per class, the move, changes of d′, c and the hit rate by two intervals each, share marked."""
    for n, (then, now, correlation) in itertools.product(SIZES, MOVES):
        joint = simulated(moved(then, now, correlation), n)
        methods = formerly_used(joint), now_used(joint)
        result = [covering(intervals, change_of(then, now)) for intervals in methods]
        measured = (_percent(*(each[name] for each in result)) for name in ("d_prime", "criterion"))
        hits = joint[:, 0], now[0] - then[0]
        of_hits = (share_coverage(hits, each) for each in (share_change_formerly_used, share_intervals))
        rates = "{:g} / {:g} → {:g} / {:g}".format(*then, *now)
        marked = f"{is_change_covered(joint).mean():.0%}"
        yield [f"{n}", rates, f"{correlation:g}", *measured, _percent(*of_hits), marked]


def mean_rows():
    """n, t interval of normal, of skewed values, and the bootstrap over rows."""
    for n in SIZES:
        skewed = mean_coverage(n, lambda rng, shape: rng.exponential(size=shape) - 1)
        normal = mean_coverage(n, lambda rng, shape: rng.normal(size=shape))
        yield [str(n), *map(_percent, (normal, skewed, bootstrapped_mean_coverage(n)))]


def verdict_rows(repeats=400):
    """What happened, spread and n of each class, and the share of each verdict, from `test_verdicts`."""
    from .test_verdicts import SPREADS, verdicts

    shifted = [(d, d, shift) for d in (1, 2, 4, 6) for shift in (1, 4)]
    changes = [*shifted, (2, 1, 0), (1, 2, 0), (2, 3, 0), (2, 1, 1)]
    for logits, move, spread, n in itertools.product((True, False), changes, SPREADS, (20, 60, 200)):
        then, now, shift = move
        shares = verdicts(
            repeats if logits else repeats // 2, n, then, now, shift=shift,
            noise=0.6 if then != now else 0.0, spread=SPREADS[spread], logits=logits,
        )  # fmt: skip
        known = "logits" if logits else "choices"
        yield [known, f"{then} → {now}", f"{shift}", spread, f"{n}", *(f"{each:.0%}" for each in shares)]


def group_rows():
    """Groups, their rows and correlation, coverage of means and rates (rows / groups whole)."""
    for groups, rows, agreement in itertools.product((20, 50), GROUP_ROWS, (0, 0.3, 1)):
        sizes = sized(groups, rows)
        shares = (
            _percent(*(grouped_coverage(sizes, agreement, rate=rate, whole=whole) for whole in (False, True)))
            for rate in (None, 0.2, 0.5, 0.8)
        )
        yield [f"{groups}", "/".join(map(str, rows)), f"{agreement:g}", *shares]


def sized(groups, rows):
    """Rows of each of so many groups, by turns."""
    return np.resize(rows, groups)


def markdown(columns, rows):
    lines = [columns, ["--:"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main():
    rates = ["n per class", "H / F", "H / F (Wilson)", "d′: bare / before / now", "c: bare / before / now",
             "marked"]  # fmt: skip
    moves = ["n per class", "H / F", "correlation", "d′ change: before / now", "c change: before / now",
             "change of H: before / now", "marked"]  # fmt: skip
    means = ["n", "t, normal", "t, exponential", "bootstrap of rows, normal"]
    groups = ["groups", "rows", "correlation", "mean: rows / groups", "rate .2", "rate .5", "rate .8"]
    verdicts = ["known", "d′", "shift", "variances", "n of each class", "bias", "sensitivity", "both",
                "neither", "cannot tell"]  # fmt: skip
    for columns, rows in (
        (verdicts, verdict_rows()), (rates, rate_rows()), (moves, change_rows()), (means, mean_rows()),
        (groups, group_rows()),
    ):  # fmt: skip
        print(markdown(columns, rows), end="\n\n", flush=True)


if __name__ == "__main__":
    main()
