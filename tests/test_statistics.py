"""Every number against scipy, scikit-learn, a published value or plain arithmetic."""

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import roc_auc_score

from tl_steer import statistics as ours


@pytest.mark.parametrize(("successes", "n"), [(0, 10), (3, 10), (10, 10), (57, 60), (1, 1)])
@pytest.mark.parametrize("confidence", [0.95, 0.8])
def test_wilson_interval_is_scipys(successes, n, confidence):
    low, high = ours.wilson_interval(successes, n, confidence)
    oracle = stats.binomtest(successes, n).proportion_ci(confidence, method="wilson")
    assert low == pytest.approx(oracle.low, abs=1e-12)
    assert high == pytest.approx(oracle.high, abs=1e-12)


def test_wilson_interval_works_on_arrays_and_knows_nothing_of_no_trials():
    low, high = ours.wilson_interval(np.array([0, 5, 0]), np.array([10, 10, 0]))
    assert low[1] == ours.wilson_interval(5, 10)[0]
    assert np.isnan([low[2], high[2]]).all()
    assert not np.isnan([low[:2], high[:2]]).any()


def test_wilson_interval_refuses_impossible_counts():
    with pytest.raises(ValueError, match="between 0 and n"):
        ours.wilson_interval(11, 10)
    with pytest.raises(ValueError, match=r"such as 0\.95"):
        ours.wilson_interval(1, 10, 95.0)


def test_mean_interval_is_scipys_and_ignores_nan():
    values = np.random.default_rng(0).normal(size=17)
    mean, low, high = ours.mean_interval(np.append(values, np.nan))
    oracle = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert (mean, low, high) == pytest.approx((values.mean(), oracle.low, oracle.high))


def test_mean_interval_of_too_few_values_is_nan():
    assert np.isnan(ours.mean_interval(np.array([np.nan]))).all()
    mean, low, high = ours.mean_interval(np.array([2.0]))
    assert mean == 2.0
    assert np.isnan([low, high]).all()


def test_log_linear_correction_is_hautus():
    hit, false_alarm = stats.norm.ppf(20.5 / 26), stats.norm.ppf(10.5 / 26)
    assert ours.z_rates(20, 25) == pytest.approx(hit)
    assert ours.d_prime(20, 25, 10, 25) == pytest.approx(hit - false_alarm)
    assert ours.criterion(20, 25, 10, 25) == pytest.approx(-(hit + false_alarm) / 2)


def test_d_prime_and_criterion_of_textbook_rates():
    # H = .84, F = .16 gives d′ = 2 and c = 0; H = .84, F = .5 gives d′ = 1, c = −.5 (large n: no correction).
    n = 10**7
    assert ours.d_prime(0.84134 * n, n, 0.15866 * n, n) == pytest.approx(2, abs=1e-3)
    assert ours.criterion(0.84134 * n, n, 0.15866 * n, n) == pytest.approx(0, abs=1e-3)
    assert ours.d_prime(0.84134 * n, n, 0.5 * n, n) == pytest.approx(1, abs=1e-3)
    assert ours.criterion(0.84134 * n, n, 0.5 * n, n) == pytest.approx(-0.5, abs=1e-3)


def test_criterion_is_negative_where_signal_is_said_more_often():
    assert ours.criterion(19, 20, 15, 20) < 0 < ours.criterion(5, 20, 1, 20)


def test_perfect_rates_are_finite_and_no_trials_are_nan():
    assert np.isfinite(ours.d_prime(10, 10, 0, 10))
    assert np.isnan(ours.d_prime(0, 0, 0, 10))


def test_resampled_counts_are_draws_of_prompts():
    """Moments against prompts drawn one by one; the smoothing (one prompt of 41) is within tolerance."""
    rng = np.random.default_rng(0)
    draws = ours.resampled_counts(np.array([10, 20, 5, 5]), resamples=20000, rng=rng)
    prompts = np.repeat(range(4), [10, 20, 5, 5])
    loop = np.array([np.bincount(rng.choice(prompts, 40), minlength=4) for _ in range(5000)])
    assert (draws.sum(1) == 40).all()
    np.testing.assert_allclose(draws.mean(0), loop.mean(0), atol=0.5)
    np.testing.assert_allclose(np.cov(draws.T), np.cov(loop.T), atol=0.7)


def test_an_outcome_never_seen_is_sometimes_drawn():
    draws = ours.resampled_counts(np.array([60, 0]), resamples=4000, rng=np.random.default_rng(0))
    assert draws[:, 1].mean() == pytest.approx(60 * 0.5 / 61, abs=0.05)


def test_percentile_interval_is_numpys_and_spreads_nan():
    draws = np.random.default_rng(0).normal(size=(1000, 2))
    draws[0, 1] = np.nan
    low, high = ours.percentile_interval(draws)
    assert (low[0], high[0]) == pytest.approx(np.percentile(draws[:, 0], [2.5, 97.5]))
    assert np.isnan([low[1], high[1]]).all()


def test_bootstrap_intervals_of_d_prime_cover_as_often_as_they_say():
    """1500 simulated cells of 60 and 60 prompts, H = .9, F = .3."""
    rng = np.random.default_rng(0)
    truth = stats.norm.ppf(0.9) - stats.norm.ppf(0.3)
    covered = 0
    for hits, false_alarms in rng.binomial(60, [0.9, 0.3], (1500, 2)):
        drawn = [
            ours.resampled_counts(np.array([k, 60 - k]), resamples=300, rng=rng)[:, 0]
            for k in (hits, false_alarms)
        ]
        low, high = ours.percentile_interval(ours.d_prime(drawn[0], 60, drawn[1], 60))
        covered += low <= truth <= high
    assert covered / 1500 == pytest.approx(0.945, abs=0.025)


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
    assert ours.permutation_p_value(values.mean(), (signs * values).mean(1)) == pytest.approx(
        oracle, abs=0.05
    )


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
