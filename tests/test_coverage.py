"""Intervals have their nominal coverage, and p values are uniform under the null hypothesis.

The answers are simulated with a known truth: see `coverage_table`, which prints a larger table. 2,000
simulations leave a standard error of half a point.
"""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from tl_steer import statistics
from tl_steer.analysis._separation import separation
from tl_steer.evaluation import against_baselines, choose, effectiveness, signal_detection
from tl_steer.evaluation._choose import measure_of
from tl_steer.evaluation._effectiveness import answer_shifts
from tl_steer.evaluation._signal_detection import changes, is_change_covered, is_covered, measures
from tl_steer.evaluation._steerability import _drawn, _mean

from . import coverage_table as sim
from .conftest import make_pairs
from .sweep_tables import condition, table_of, unsteered
from .test_evaluation_tables import interval_of, row_of

RESAMPLES = 500


def is_nominal(coverage, simulations=None):
    """95 %, ± two points, or ± one and three standard errors of so many simulations."""
    error = 0.01 + 3 * np.sqrt(0.05 * 0.95 / simulations) if simulations else 0.02
    return all(0.95 - error <= share <= 0.95 + error for share in coverage.values())


# inside: at least 100 prompts of each class and rates of .2 to .8, and as far as `covered` reaches


INSIDE = [(0.5, 0.5), (0.8, 0.2), (0.8, 0.5), (0.2, 0.2), (0.65, 0.35)]
FIVE = [((0.93, 0.07), 100), ((0.95, 0.3), 100), ((0.9, 0.2), 50), ((0.2, 0.2), 30), ((0.3, 0.7), 20)]


@pytest.mark.statistics
@pytest.mark.parametrize(("rates", "n"), [*((rates, n) for n in (100, 200) for rates in INSIDE), *FIVE])
def test_intervals_of_rates_d_prime_and_criterion_cover_as_they_say(rates, n):
    """Inside, and where five prompts per choice are to be expected."""
    inside = (rates, n) not in FIVE
    counts = sim.simulated(sim.answered(*rates), n, seed=0 if inside else 1)
    coverage = sim.covering(sim.now_used(counts, resamples=RESAMPLES), sim.truth_of(*rates))
    if inside:
        coverage |= {
            f"rate of {index}": sim.wilson_coverage(counts[:, index], rates[index]) for index in (0, 1)
        }
    assert is_nominal(coverage), coverage


@pytest.mark.statistics
@pytest.mark.parametrize(
    ("then", "now", "correlation"),
    [
        ((0.5, 0.5), (0.5, 0.5), 0.9),
        ((0.8, 0.2), (0.8, 0.5), 0.5),
        ((0.5, 0.5), (0.8, 0.2), 0.0),
        ((0.8, 0.2), (0.8, 0.8), 0.9),
        ((0.4, 0.4), (0.5, 0.5), 1.0),
    ],
)
def test_intervals_of_paired_changes_cover_as_they_say(then, now, correlation):
    joint = sim.simulated(sim.moved(then, now, correlation), 100)
    coverage = sim.covering(sim.now_used(joint, resamples=RESAMPLES), sim.change_of(then, now))
    intervals = sim.share_intervals(joint[:, 0], resamples=RESAMPLES)
    coverage["change of the hit rate"] = sim.share_coverage(
        (joint[:, 0], now[0] - then[0]), lambda _: intervals
    )
    assert is_nominal(coverage), coverage


@pytest.mark.statistics
@pytest.mark.parametrize("n", [20, 100])
def test_the_t_interval_of_a_mean_covers_as_it_says(n):
    assert is_nominal({"normal": sim.mean_coverage(n, lambda rng, shape: rng.normal(size=shape))})


@pytest.mark.statistics
@pytest.mark.parametrize("n", [12, 50, 200])
@pytest.mark.parametrize(
    ("distribution", "spread"), [("normal", 1), ("uniform", 12**-0.5), ("modes", 5**0.5)]
)
def test_the_interval_of_a_spread_covers_as_it_says(n, distribution, spread, draws):
    rng, shape = np.random.default_rng(0), (draws(8000), n)
    modes = rng.choice([-2, 2], shape) if distribution == "modes" else 0
    values = rng.random(shape) if distribution == "uniform" else modes + rng.normal(size=shape)
    sample = np.repeat(np.arange(len(values)), n)
    _, low, high = statistics.spread_interval(values.ravel(), sample, np.arange(values.size))
    assert is_nominal({"spread": sim.share_within(low, high, spread)})


@pytest.mark.statistics
@pytest.mark.parametrize("baselines", [1, 11])
@pytest.mark.parametrize("change", [0.0, 0.6])
def test_changes_against_several_unsteered_draws_cover_as_they_say(baselines, change, draws):
    """100 prompts of each class, each with a probability of its own, changed by a bias of `change`."""
    rng = np.random.default_rng(0)
    answer = np.arange(200) % 2
    ability = np.where(answer == 0, 0.8, -0.8)
    grid = stats.norm.ppf((np.arange(2000) + 0.5) / 2000)
    now, then = (
        [stats.norm.cdf(mean + shift + grid).mean() for mean in (0.8, -0.8)] for shift in (change, 0)
    )
    truth, rows = sim.change_of(then, now), []
    for run in range(draws(400)):
        logits = ability + rng.normal(size=200)
        probabilities = [stats.norm.cdf(logits + each) for each in (change, *[0.0] * baselines)]
        now, *then = ((rng.random(200) > each).astype(int) for each in probabilities)
        many = table_of(*(unsteered(each, answer, draw=draw) for draw, each in enumerate(then)))
        rows.append(against_baselines(condition(now, answer), many, resamples=300, seed=run))
    result = pd.concat(rows)
    coverage = {
        name: sim.share_within(result[f"{name}_change_low"], result[f"{name}_change_high"], truth[name])
        for name in truth
    }
    assert is_nominal(coverage, len(rows)), coverage


@pytest.mark.statistics
@pytest.mark.parametrize("groups", [20, 50])
@pytest.mark.parametrize("rows", [(1,), (2,), (4,), (1, 2, 4)])
@pytest.mark.parametrize("agreement", [0, 0.3, 1])
def test_intervals_cover_as_they_say_whatever_the_rows_of_a_group_share(groups, rows, agreement, draws):
    sizes = sim.sized(groups, rows)
    coverage = {
        str(rate): sim.grouped_coverage(sizes, agreement, rate=rate, simulations=draws(8000))
        for rate in (None, 0.2, 0.35, 0.5, 0.65, 0.8)
    }
    # of 20 groups of 1, 2 and 4 identical rows, 15 count, and rates of .2 and .8 come to 92 %
    fewest = 0.91 if groups == 20 and len(rows) > 1 and agreement == 1 else 0.93
    assert is_nominal({"mean": coverage.pop("None")})
    assert all(fewest <= share <= 0.975 for share in coverage.values()), coverage


@pytest.mark.statistics
@pytest.mark.parametrize(("agreement", "rows", "groups"), [(1, 0.66, 0.95), (0.3, 0.85, 0.95)])
def test_independent_rows_cover_too_little_where_four_of_a_group_agree(agreement, rows, groups, draws):
    sizes = sim.sized(25, (4,))
    for whole, expected in ((False, rows), (True, groups)):
        result = sim.grouped_coverage(sizes, agreement, whole=whole, simulations=draws(8000))
        assert result == pytest.approx(expected, abs=0.03)


@pytest.mark.statistics
@pytest.mark.parametrize("agreement", [0, 0.3, 1])
def test_the_bootstrap_of_groups_covers_as_it_says(agreement, draws):
    """As `steerability` draws them."""
    values, group = sim.grouped_values(sim.sized(25, (1, 2, 4)), agreement, simulations=draws(2000))
    counts = _drawn(25, 1000, 0)
    _, low, high = np.transpose([_mean(row, group, counts) for row in values])
    assert is_nominal({"mean": sim.share_within(low, high, 0)}, len(values))


# outside: what the printed table says of d′ there


@pytest.mark.statistics
@pytest.mark.parametrize(
    ("n", "rates", "bare", "before", "now"),
    [
        (100, (0.99, 0.43), 0.78, 0.97, 0.98),
        (50, (0.99, 0.43), 0.93, 0.91, 0.98),
        (20, (0.99, 0.43), 0.65, 0.61, 0.98),
        (20, (0.99, 0.01), 0.00, 0.00, 0.97),
        (50, (0.99, 0.01), 0.61, 0.93, 0.99),
        (50, (0.95, 0.5), 0.90, 0.96, 0.94),
        (200, (0.99, 0.95), 0.87, 0.96, 0.93),
    ],
)
def test_outside_the_interval_is_too_wide_rather_than_too_narrow(n, rates, bare, before, now):
    """Bare: the percentile bootstrap with the log-linear correction, 78 % at rates .99 and .43 of 100."""
    counts = sim.simulated(sim.answered(*rates), n, seed=3)
    truth = sim.truth_of(*rates)
    methods = [sim.formerly_used(counts, smoothing=each, resamples=RESAMPLES) for each in (0, 1)]
    methods.append(sim.now_used(counts, resamples=RESAMPLES))
    result = [sim.covering(intervals, truth)["d_prime"] for intervals in methods]
    assert result == pytest.approx([bare, before, now], abs=0.03)
    assert result[2] > 0.92
    assert abs(result[2] - 0.95) < abs(result[0] - 0.95)
    assert is_covered(counts).mean() < 0.2


@pytest.mark.statistics
@pytest.mark.parametrize(
    ("n", "then", "now", "correlation", "before"),
    [
        (20, (0.8, 0.2), (0.99, 0.01), 0.9, 0.32),
        (50, (0.5, 0.5), (0.5, 0.55), 1.0, 0.91),
        (50, (0.8, 0.2), (0.99, 0.43), 0.9, 0.90),
    ],
)
def test_outside_intervals_of_changes_are_not_too_narrow_either(n, then, now, correlation, before):
    joint = sim.simulated(sim.moved(then, now, correlation), n, seed=3)
    truth = sim.change_of(then, now)
    assert sim.covering(sim.formerly_used(joint), truth)["d_prime"] == pytest.approx(before, abs=0.03)
    assert min(sim.covering(sim.now_used(joint, resamples=RESAMPLES), truth).values()) > 0.94


@pytest.mark.statistics
@pytest.mark.parametrize(
    ("n", "up", "down", "before"), [(20, 0.077, 0, 0.81), (50, 0.027, 0, 0.78), (50, 0.04, 0.01, 0.86)]
)
def test_where_few_prompts_change_the_interval_of_the_change_still_holds_the_truth(n, up, down, before):
    joint = sim.simulated([(0.5 - down, up, down, 0.5 - up)], n, seed=3)[:, 0]
    old, new = sim.share_change_formerly_used, sim.share_intervals
    assert sim.share_coverage((joint, up - down), old) == pytest.approx(before, abs=0.03)
    assert sim.share_coverage((joint, up - down), new) > 0.95


@pytest.mark.statistics
def test_what_is_marked_as_covered_is_whatever_the_truth():
    """4,000 conditions of 20 to 200 prompts per class, 200 for each of 20 truths."""
    rng = np.random.default_rng(0)
    rows = []
    for number in range(20):
        n = (20, 30, 50, 100, 200)[number % 5]
        then, now = rng.uniform(0.03, 0.97, (2, 2))
        moves = sim.moved(then, now, rng.choice([0, 0.5, 0.9]))
        joint = sim.simulated(moves, n, simulations=200, seed=number)
        counts = np.stack([joint[..., :2].sum(-1), joint[..., 2:].sum(-1)], -1)
        for time, marked, measure, answers, truth in (
            ("now", is_covered(counts), measures, counts, sim.truth_of(*now)),
            ("change", is_change_covered(joint), changes, joint, sim.change_of(then, now)),
        ):
            for each, (_, low, high) in measure(answers, resamples=RESAMPLES, seed=1).items():
                hit = (low <= truth[each]) & (truth[each] <= high)
                rows.append(pd.DataFrame({"time": time, "marked": marked, "hit": hit}))
    for _, result in pd.concat(rows).groupby("time"):
        assert 0.2 < result["marked"].mean() < 0.9
        assert is_nominal({"marked": result.loc[result["marked"], "hit"].mean()})


def questions(joint):
    """A sweep's table whose answers have these joint counts; classes "signal" and "noise"."""
    answers, now, then = np.repeat(np.indices((2, 2, 2)).reshape(3, 8), np.ravel(joint), axis=1)
    table = table_of(unsteered(then, answers), condition(now, answers))
    return table.assign(type=table["answer"].map({0: "signal", 1: "noise"}))


JOINT = np.array([[40, 15, 3, 22], [11, 14, 2, 43]])


def test_signal_detection_gives_the_simulated_intervals():
    row = row_of(signal_detection(questions(JOINT), resamples=300, seed=4), vector="honesty")
    counts = np.stack([JOINT[:, :2].sum(1), JOINT[:, 2:].sum(1)], 1)
    for suffix, results in (
        ("", measures(counts, resamples=300, seed=4)), ("_change", changes(JOINT, resamples=300, seed=4)),
    ):  # fmt: skip
        for name, result in results.items():
            assert interval_of(row, name + suffix) == list(result)


def test_many_conditions_at_once_are_each_alone_but_for_chance():
    conditions = np.stack([JOINT, JOINT[::-1], JOINT + 20])
    together = changes(conditions, resamples=20000, seed=0)
    for index, joint in enumerate(conditions):
        alone = changes(joint, resamples=20000, seed=1)
        for name in alone:
            np.testing.assert_allclose([each[index] for each in together[name]], alone[name], atol=0.03)


def test_answer_shifts_and_choosing_by_accuracy_give_the_simulated_interval():
    def expected(joint):
        result = statistics.share_change(joint, resamples=300, rng=np.random.default_rng(4))
        return pytest.approx(list(result), abs=1e-12)

    table = questions(JOINT)
    result = answer_shifts(table, by="type", resamples=300, seed=4)
    for name, joint in zip(("signal", "noise"), JOINT, strict=True):
        assert interval_of(row_of(result, vector="honesty", type=name), "shift") == expected(joint)
    still = result[result["vector"] == "none"]
    assert (still[["shift", "shift_low", "shift_high"]] == 0).all(axis=None)
    assert list(still["compared"]) == [80, 70]
    other = table.assign(split="b", prompt_id=table["prompt_id"] + 1000, prompt="other " + table["prompt"])
    halves = pd.concat([table.assign(split="a"), other])
    row = choose(halves, on="a", report="b", resamples=300, seed=4).iloc[1]
    # noise is right where choice 0 was not taken
    assert interval_of(row, "change") == expected(JOINT[0] + JOINT[1][::-1])


def test_an_interval_is_marked_from_five_prompts_a_choice_and_five_changes_on():
    for joint, marks in (
        (JOINT, [True, True]),
        ([[5, 3, 0, 5], [5, 0, 2, 5]], [True, True]),
        ([[5, 3, 0, 5], [5, 0, 1, 5]], [True, False]),  # four changed
        ([[4, 0, 9, 5], [9, 0, 0, 9]], [False, False]),  # four hits
        ([[4, 9, 0, 5], [9, 0, 0, 9]], [True, False]),  # four hits before
    ):
        result = signal_detection(questions(joint), resamples=10)[["covered", "change_covered"]]
        assert result.dtypes.eq(bool).all()
        assert result.iloc[1].to_list() == marks
    itself, alone = (signal_detection(questions(JOINT).query(f"vector {each} 'none'"), resamples=10)
                     for each in ("==", "!="))  # fmt: skip
    assert itself["change_covered"].all()
    assert not alone["change_covered"].any()


def uniform(p_values, shuffles):
    """Whether each of the p values that m shuffles can give is as frequent as the others."""
    ranks = np.rint(np.ravel(p_values) * (shuffles + 1)).astype(int)
    return stats.chisquare(np.bincount(ranks, minlength=shuffles + 2)[1:]).pvalue > 0.001


@pytest.mark.statistics
def test_permutation_p_values_are_uniform_under_the_null():
    """5,000 experiments of 30 values around nothing, their signs exchanged 19 times."""
    rng = np.random.default_rng(0)
    values = rng.normal(size=(5000, 30))
    null = np.stack([(rng.choice([-1, 1], (5000, 30)) * values).mean(1) for _ in range(19)])
    p_values = statistics.permutation_p_value(values.mean(1), null)
    assert p_values.min() == 1 / 20
    assert uniform(p_values, 19)
    assert (p_values <= 0.05).mean() == pytest.approx(0.05, abs=0.01)
    assert (p_values <= 0.5).mean() == pytest.approx(0.5, abs=0.025)
    assert not uniform(statistics.permutation_p_value(values.mean(1) + 0.1, null), 19)


@pytest.mark.statistics
def test_separation_of_noise_has_uniform_p_values():
    """Six captures of 300 pairs, 60 layers of noise each; ties of two accuracies cost the p values little."""
    p_values = []
    for seed in range(6):
        noise = np.random.default_rng(seed).normal(size=(2, 300, 60, 4))
        p_values.append(separation(make_pairs(*noise), shuffles=19, folds=3, seed=seed)["p_value"])
    p_values = np.array(p_values)
    assert uniform(p_values, 19)
    assert 0.02 <= (p_values <= 0.05).mean() <= 0.08
    assert 0.42 <= (p_values <= 0.5).mean() <= 0.56


def sampled_twice(worlds, prompts=40, draws=4):
    """A sweep per world, in which steering changes nothing. Each prompt has its own probability of a right
    answer, .5 on average."""
    rng = np.random.default_rng(0)
    world, prompt, draw = (each.ravel() for each in np.indices((worlds, prompts, draws)))
    right = rng.beta(1.5, 1.5, (worlds, prompts))[world, prompt]
    answers = prompt % 2
    columns = {"prompt_id": world * prompts + prompt, "draw": draw, "world": world, "split": "one"}

    def sampled(rows_of):
        choices = np.where(rng.random(len(world)) < right, answers, 1 - answers)
        return rows_of(choices, answers, logit_difference=np.nan, **columns)

    return table_of(sampled(unsteered), sampled(condition))


def coverage_of(table, name, truth):
    rows = table[table["vector"] != "none"]
    return sim.share_within(rows[f"{name}_low"], rows[f"{name}_high"], truth)


@pytest.mark.statistics
def test_with_several_draws_nothing_is_found_where_nothing_was_steered(draws):
    table = sampled_twice(draws(1000))
    right = table["choice"].eq(table["answer"]).groupby([table["world"], table["vector"]]).mean().unstack()
    assert (right["honesty"] != right["none"]).mean() > 0.9  # two samples differ
    coverage = coverage_of(effectiveness(table, by="world"), "accuracy", 0.5)
    assert is_nominal({"accuracy": coverage}), coverage
    alone = table.drop(columns="draw").assign(prompt_id=4 * table["prompt_id"] + table["draw"])
    assert coverage_of(effectiveness(alone, by="world"), "accuracy", 0.5) < 0.9
    # Of changes at least what they say: the prior is of whole prompts, whose draws agree less than that.
    some = table[table["world"] < draws(200)]
    assert coverage_of(answer_shifts(some, by="world", resamples=RESAMPLES), "shift", 0) >= 0.93
    measure, _ = measure_of("accuracy")
    result = pd.concat([measure(rows, RESAMPLES, 0) for _, rows in some.groupby("world")])
    assert coverage_of(result, "change", 0) >= 0.93
    detected = signal_detection(some, by="world", resamples=RESAMPLES)
    for name in ("d_prime_change", "criterion_change"):
        assert coverage_of(detected, name, 0) >= 0.93
    assert detected["verdict"].isin(["", "neither", "cannot tell"]).mean() >= 0.93
