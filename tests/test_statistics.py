"""Every number against scipy, scikit-learn, a published value or plain arithmetic."""

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import roc_auc_score

from tl_steer import statistics as ours

from .conftest import assert_raises


@pytest.mark.parametrize(("successes", "n"), [(0, 10), (3, 10), (10, 10), (57, 60), (1, 1)])
@pytest.mark.parametrize("confidence", [0.95, 0.8])
def test_wilson_interval_is_scipys(successes, n, confidence):
    low, high = ours.wilson_interval(successes, n, confidence)
    oracle = stats.binomtest(successes, n).proportion_ci(confidence, method="wilson")
    assert low == pytest.approx(oracle.low, abs=1e-12)
    assert high == pytest.approx(oracle.high, abs=1e-12)
    lows, highs = ours.wilson_interval(np.array([successes, 0]), np.array([n, 0]), confidence)
    assert (lows[0], highs[0]) == (low, high)
    assert np.isnan([lows[1], highs[1]]).all(), "no trials"


def test_wilson_interval_rejects_impossible_counts():
    assert_raises("between 0 and n", ours.wilson_interval, 11, 10)
    assert_raises(r"such as 0\.95", ours.wilson_interval, 1, 10, 95.0)


def criterion(hits, n_signal, false_alarms, n_noise):
    return ours.bias(ours.z_rates(hits, n_signal), ours.z_rates(false_alarms, n_noise))


def test_the_interval_of_a_mean_is_scipys_and_of_too_few_values_nan():
    values = np.random.default_rng(0).normal(size=17)
    oracle = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    ends = ours.t_interval(values.mean(), values.std(ddof=1), 17)
    assert ends == pytest.approx((oracle.low, oracle.high))
    assert np.isnan(ours.t_interval(2.0, np.nan, np.array([0, 1]))).all()


def test_a_standardised_difference_is_scipys_t_without_the_counts_and_nan_where_nothing_varies():
    rng = np.random.default_rng(0)
    positive, negative = rng.normal(1, 2, (3, 9)), rng.normal(0, 1, (3, 5))
    oracle = stats.ttest_ind(positive, negative, axis=-1).statistic * np.sqrt(1 / 9 + 1 / 5)
    assert ours.standardised_difference(positive, negative) == pytest.approx(oracle)
    assert ours.standardised_difference(positive[0], negative[0]) == pytest.approx(oracle[0])
    assert np.isnan(ours.standardised_difference(np.ones(4), np.zeros(3)))


def test_log_linear_correction_is_hautus():
    hit, false_alarm = stats.norm.ppf(20.5 / 26), stats.norm.ppf(10.5 / 26)
    assert ours.z_rates(20, 25) == pytest.approx(hit)
    assert ours.d_prime(20, 25, 10, 25) == pytest.approx(hit - false_alarm)
    assert criterion(20, 25, 10, 25) == pytest.approx(-(hit + false_alarm) / 2)


def test_d_prime_and_criterion_of_textbook_rates():
    # H = .84, F = .16 gives d′ = 2 and c = 0; H = .84, F = .5 gives d′ = 1, c = −.5 (large n: no correction).
    n = 10**7
    assert ours.d_prime(0.84134 * n, n, 0.15866 * n, n) == pytest.approx(2, abs=1e-3)
    assert criterion(0.84134 * n, n, 0.15866 * n, n) == pytest.approx(0, abs=1e-3)
    assert ours.d_prime(0.84134 * n, n, 0.5 * n, n) == pytest.approx(1, abs=1e-3)
    assert criterion(0.84134 * n, n, 0.5 * n, n) == pytest.approx(-0.5, abs=1e-3)
    assert np.isfinite(ours.d_prime(10, 10, 0, 10)), "perfect rates"
    assert np.isnan(ours.d_prime(0, 0, 0, 10)), "no trials"


def test_joint_counts_are_counted_one_by_one():
    now, then = np.random.default_rng(0).random((2, 50)) < 0.4
    pairs = list(zip(now.tolist(), then.tolist(), strict=True))
    outcomes = [(True, True), (True, False), (False, True), (False, False)]
    groups = np.arange(len(now)) % 3
    for group, counts in enumerate(ours.joint_counts(now, then, groups)):
        assert counts.tolist() == [pairs[group::3].count(outcome) for outcome in outcomes]
    assert ours.joint_counts(now[:0], then[:0], groups[:0]).shape == (0, 4)


@pytest.mark.parametrize(("yes", "no"), [(7, 33), (60, 0), (0, 5)])
def test_drawn_shares_are_those_of_jeffreys_prior(yes, no):
    weights = ours.resampled_weights(
        np.array([yes, no]), (0.5, 0.5), resamples=40000, rng=np.random.default_rng(0)
    )
    drawn = np.quantile(weights[:, 0] / weights.sum(1), [0.025, 0.5, 0.975])
    expected = stats.beta.ppf([0.025, 0.5, 0.975], yes + 0.5, no + 0.5)
    np.testing.assert_allclose(drawn, expected, atol=0.006)


def test_joint_outcomes_weigh_as_prompts_do_that_are_weighed_one_by_one():
    """Every prompt a weight, half a prompt more where the two answers differ; both rates are Jeffreys'."""
    counts = np.array([10, 6, 2, 22])
    rng = np.random.default_rng(0)
    conditions, added = np.array([counts, counts[::-1]]), (0.0, 0.5, 0.5, 0.0)
    weights = ours.resampled_weights(conditions, added, resamples=20000, rng=rng)[:, 0]
    prompts = rng.exponential(size=(20000, 40))
    loop = np.stack([part.sum(1) for part in np.split(prompts, np.cumsum(counts)[:-1], axis=1)], 1)
    loop[:, 1:3] += rng.chisquare(1, (20000, 2)) / 2  # Gamma(½), half an exponential weight
    quantiles = np.linspace(0.05, 0.95, 7)
    for outcomes in ([0, 1], [0, 2], [1], [2]):
        drawn, expected = (each[:, outcomes].sum(1) / each.sum(1) for each in (weights, loop))
        np.testing.assert_allclose(*(np.quantile(each, quantiles) for each in (drawn, expected)), atol=0.006)
    jeffreys = stats.beta.ppf(quantiles, 16.5, 24.5)
    now = weights[:, :2].sum(1) / weights.sum(1)
    np.testing.assert_allclose(np.quantile(now, quantiles), jeffreys, atol=0.006)


def test_z_of_weights_is_exact_in_both_tails():
    weights = np.array([[1e-40, 1.0], [1.0, 1e-40], [3.0, 1.0], [1.0, 1.0]])
    tail = stats.norm.isf(1e-40)
    np.testing.assert_allclose(ours.z_of_weights(weights), [-tail, tail, stats.norm.ppf(0.75), 0], rtol=1e-12)


@pytest.mark.parametrize("joint", [(0, 9, 0, 0), (0, 0, 9, 0), (4, 0, 0, 5), (3, 1, 4, 1)])
def test_an_interval_of_a_changed_share_holds_it_and_is_never_a_point(joint):
    change, low, high = ours.share_change(np.array(joint), resamples=500, rng=np.random.default_rng(0))
    assert change == pytest.approx((joint[1] - joint[2]) / 9)
    assert -1 <= low <= change <= high <= 1
    assert high - low > 0.1
    nothing = ours.share_change(np.zeros(4, int), resamples=9, rng=np.random.default_rng(0))
    assert np.isnan(nothing).all()


def test_interval_around_is_the_percentiles_unless_the_estimate_lies_outside():
    draws = np.random.default_rng(0).normal(size=500)
    low, high = ours.percentile_interval(draws)
    assert ours.interval_around(0.0, draws) == (low, high)
    assert ours.interval_around(9.0, draws) == (low, 9.0)
    assert ours.interval_around(-9.0, draws) == (-9.0, high)
    assert np.isnan(ours.interval_around(np.nan, draws)).all()


def test_percentile_interval_is_numpys_and_spreads_nan():
    draws = np.random.default_rng(0).normal(size=(1000, 2))
    draws[0, 1] = np.nan
    low, high = ours.percentile_interval(draws)
    assert (low[0], high[0]) == pytest.approx(np.percentile(draws[:, 0], [2.5, 97.5]))
    assert np.isnan([low[1], high[1]]).all()


def test_auc_is_scikit_learns_with_ties():
    rng = np.random.default_rng(0)
    positive, negative = rng.integers(0, 6, (3, 20)) + 1.0, rng.integers(0, 6, (3, 30)) + 0.0
    labels = [1] * 20 + [0] * 30
    oracle = [roc_auc_score(labels, [*a, *b]) for a, b in zip(positive, negative, strict=True)]
    np.testing.assert_allclose(ours.auc(positive, negative), oracle)
    assert ours.auc(np.ones(4), np.ones(3)) == 0.5


def test_permutation_p_value_counts_the_observed_one():
    assert ours.permutation_p_value(1.0, np.zeros(99)) == pytest.approx(0.01)
    assert ours.permutation_p_value(0.5, np.array([0.1, 0.5, 0.9])) == pytest.approx(3 / 4)
    np.testing.assert_allclose(ours.permutation_p_value(np.array([1.0, 0.0]), np.zeros((9, 2))), [0.1, 1.0])


def test_permutation_p_value_is_scipys():
    values = np.random.default_rng(1).normal(0.3, 1, 12)
    signs = np.random.default_rng(2).choice([-1, 1], (499, 12))
    oracle = stats.permutation_test(
        (values,), np.mean, permutation_type="samples", n_resamples=4000, alternative="greater"
    ).pvalue
    p_value = ours.permutation_p_value(values.mean(), (signs * values).mean(1))
    assert p_value == pytest.approx(oracle, abs=0.05)


def test_welch_s_interval_is_scipy_s():
    rng = np.random.default_rng(0)
    samples = [rng.normal(3, 2, 9), rng.normal(1, 0.5, 23)]
    moments = [(sample.mean(), sample.std(ddof=1), len(sample)) for sample in samples]
    expected = stats.ttest_ind(*samples, equal_var=False).confidence_interval(0.9)
    np.testing.assert_allclose(ours.welch_interval(*moments, confidence=0.9), expected, rtol=1e-12)
    both = [[np.array([value, value]) for value in sample] for sample in moments]
    both[0][2][1] = 1  # a single value has no spread
    low, high = ours.welch_interval(*both)
    assert low[0] < 2 < high[0]
    assert np.isnan([low[1], high[1]]).all()
    assert ours.welch_interval((3.0, 0.0, 4), (1.0, 0.0, 5)) == (2.0, 2.0)


def benjamini_hochberg(p_values):
    """The least level at which the step-up procedure rejects each test."""
    known = sorted(p for p in p_values if not np.isnan(p))
    return [
        min(min(1, len(known) * bar / (rank + 1)) for rank, bar in enumerate(known) if bar >= p)
        if p == p
        else np.nan
        for p in p_values
    ]


@pytest.mark.parametrize("seed", range(5))
def test_false_discovery_is_a_plain_loop_of_benjamini_and_hochberg(seed):
    rng = np.random.default_rng(seed)
    p_values = np.round(rng.random(30) ** 2, 2) + 0.001  # with ties
    p_values[rng.random(30) < 0.2] = np.nan
    p_values[np.nanargmax(p_values)] = 1.0
    np.testing.assert_allclose(ours.false_discovery(p_values), benjamini_hochberg(p_values))
    assert np.isnan(ours.false_discovery(np.full(3, np.nan))).all()


@pytest.mark.statistics
@pytest.mark.parametrize("shared", [0.0, 0.7])
def test_of_what_is_discovered_at_most_five_percent_is_false(shared):
    """2,000 families of 40 one-sided tests, 12 with an effect; independent, then positively dependent."""
    rng = np.random.default_rng(0)
    noise = np.sqrt(1 - shared) * rng.normal(size=(2000, 40)) + np.sqrt(shared) * rng.normal(size=(2000, 1))
    p_values = stats.norm.sf(noise + np.where(np.arange(40) < 12, 2.5, 0.0))
    result = np.array([ours.false_discovery(family) for family in p_values]) < 0.05
    share_false = result[:, 12:].sum(1) / np.maximum(result.sum(1), 1)
    assert share_false.mean() < 0.05 + 3 * share_false.std() / np.sqrt(2000)
    assert result[:, :12].mean() > 0.3
    if not shared:  # then it is known exactly: 5 % of the share of tests without effect
        assert share_false.mean() == pytest.approx(0.05 * 28 / 40, abs=0.006)
