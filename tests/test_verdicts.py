"""Verdicts where the truth is known; areas under the ROC curve against DeLong's sums written out."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from tl_steer import statistics
from tl_steer.evaluation import signal_detection

from .conftest import assert_raises
from .coverage_table import share_within, truth_of
from .sweep_tables import condition, table_of, unsteered
from .test_evaluation_tables import row_of

SPREADS = {"equal": (1.0, 1.0), "unequal": (1.5, 0.8)}  # standard deviations of signal and noise


def sweep_of(then, now, answers):
    """A sweep's table whose choices follow the logit differences."""
    return table_of(unsteered(answers=answers, logits=then), condition(answers=answers, logits=now))


def steered_row(table, **options):
    return row_of(signal_detection(table, **{"resamples": 50} | options), vector="honesty")


def simulated(rng, n, then, now, *, spread=(1.0, 1.0), shift=0.0, noise=0.0):
    """Logit differences of n prompts of each class, whose d′ is `then` unsteered and `now` steered."""
    answers = np.repeat([0, 1], n)
    side, scale = np.where(answers == 0, 0.5, -0.5), np.where(answers == 0, *spread)
    own = rng.normal(size=2 * n)
    after = np.sqrt(1 - noise**2) * own + noise * rng.normal(size=2 * n)
    return then * side + scale * own, now * side + scale * after + shift, answers


def verdicts(repeats, n, *moved, logits=True, resamples=300, seed=0, **simulation):
    """The share of each verdict over simulated sweeps."""
    rng = np.random.default_rng(seed)
    tables = [sweep_of(*simulated(rng, n, *moved, **simulation)).assign(run=run) for run in range(repeats)]
    table = pd.concat(tables, ignore_index=True)
    if not logits:
        table["logit_difference"] = np.nan
    result = signal_detection(table, by="run", resamples=resamples).query("vector == 'honesty'")
    names = ["bias", "sensitivity", "both", "neither", "cannot tell"]
    return result["verdict"].value_counts(normalize=True).reindex(names, fill_value=0.0)


@pytest.mark.statistics
@pytest.mark.parametrize("spread", SPREADS)
@pytest.mark.parametrize("n", [20, 60, 200])
@pytest.mark.parametrize("d_prime", [1, 3, 6])
def test_a_constant_shift_is_bias_and_no_change_of_sensitivity(draws, d_prime, n, spread):
    for shift in (0.5, 1, -2, 4):
        share = verdicts(draws(40), n, d_prime, d_prime, shift=shift, spread=SPREADS[spread])
        assert share["sensitivity"] + share["both"] <= 0.05, (shift, share)
        assert share["bias"] >= 0.8, (shift, share)


@pytest.mark.statistics
@pytest.mark.parametrize("spread", SPREADS)
@pytest.mark.parametrize("moved", [(2, 1), (1, 2), (1, 0), (0, 1), (2, 3)])
def test_a_change_of_d_prime_by_one_is_found(draws, moved, spread):
    for shift in (0.0, 1.0):
        share = verdicts(draws(60), 200, *moved, shift=shift, noise=0.6, spread=SPREADS[spread])
        assert share["sensitivity"] + share["both"] >= 0.8, (shift, share)
        assert share["both"] + share["bias"] >= 0.8 if shift else share["both"] <= 0.2, share


@pytest.mark.statistics
def test_without_logit_differences_choices_decide_where_their_intervals_cover(draws):
    share = verdicts(draws(400), 100, 1, 1, shift=0.5, logits=False, resamples=3000)
    assert share["sensitivity"] + share["both"] <= 0.09
    assert share["bias"] >= 0.8
    assert verdicts(draws(100), 200, 2, 1, noise=0.6, logits=False)[["sensitivity", "both"]].sum() >= 0.8
    assert verdicts(draws(100), 100, 4, 4, shift=4, logits=False)["cannot tell"] == 1.0


@pytest.mark.statistics
@pytest.mark.parametrize("spread", SPREADS)
@pytest.mark.parametrize("n", [20, 60, 200])
def test_intervals_of_the_auc_and_of_its_change_cover(draws, n, spread):
    """From 93 % up near d′ 2, wider than they need be near the ceiling."""
    rng = np.random.default_rng(n)
    own = np.repeat([True, False], n)
    for then, now in [(0, 0), (1, 1), (2, 2), (4, 4), (2, 1), (2, 3), (3, 1), (4, 3)]:
        true = stats.norm.cdf(np.array([now, then]) / np.hypot(*SPREADS[spread]))
        hits = []
        for _ in range(draws(500)):
            logits = simulated(rng, n, then, now, spread=SPREADS[spread], noise=0.6)
            area, change = statistics.auc_intervals(np.stack(logits[1::-1]), own, np.arange(2 * n))
            covered = (area[1] <= true) & (true <= area[2])
            hits.append([*covered, change[1] <= true[0] - true[1] <= change[2]])
        error, coverage = 3 * np.sqrt(0.05 * 0.95 / len(hits)), np.mean(hits, 0)
        assert (coverage > 0.935 - error).all(), (then, now, coverage)
        if n > 20 and max(then, now) <= 2:
            assert (coverage < 0.97 + error).all(), (then, now, coverage)


@pytest.mark.statistics
@pytest.mark.parametrize(
    ("groups", "size", "alike"), [(25, 4, 1.0), (25, 4, 0.5), (40, 2, 1.0), (40, 2, 0.0)]
)
def test_intervals_of_grouped_prompts_cover(draws, groups, size, alike):
    """Of 25 groups of four identical answers, taken one by one, d′'s interval covered in 69 %."""
    rng = np.random.default_rng(size)
    rates, answers = np.repeat([0.8, 0.35], groups), np.repeat([0, 1], groups * size)
    truth = truth_of(0.8, 0.35) | {"d_prime_change": 0.0}
    columns = {"group": np.repeat(np.arange(2 * groups), size), "logit_difference": np.nan}

    def answered():
        shared = rng.random(2 * groups) < rates
        own = rng.random((2 * groups, size)) < rates[:, None]
        return (~np.where(rng.random((2 * groups, size)) < alike, shared[:, None], own)).astype(int).ravel()

    tables = [rows_of(answered(), answers, run=run, **columns)
              for run in range(draws(400)) for rows_of in (unsteered, condition)]  # fmt: skip
    result = signal_detection(table_of(*tables), by="run", resamples=400).query("vector == 'honesty'")
    error = 3 * np.sqrt(0.05 * 0.95 / len(result))
    for name, true in truth.items():
        coverage = share_within(result[f"{name}_low"], result[f"{name}_high"], true)
        assert 0.94 - error <= coverage <= 0.96 + error, (name, coverage)


def placed(values, signal):
    """Of each signal prompt, the share of noise below it; of each noise prompt, of signal above it."""
    kernel = np.array([[[(a > b) + (a == b) / 2 for b in v[~signal]] for a in v[signal]] for v in values])
    return kernel.mean(2), kernel.mean(1)


def delong(values, signal):
    """Areas and their covariance by DeLong's sums, pair by pair."""
    sides = placed(values, signal)
    return sides[0].mean(1), sum(np.atleast_2d(np.cov(each)) / each.shape[1] for each in sides)


def influence_of(values, signal):
    result = np.empty(values.shape)
    for of_class, each in zip((signal, ~signal), placed(values, signal), strict=True):
        result[:, of_class] = (each - each.mean(1, keepdims=True)) / of_class.sum()
    return result


@pytest.fixture
def ranked():
    rng = np.random.default_rng(3)
    signal = np.arange(50) < 30
    then = np.round(rng.normal(size=50) + signal, 1)  # with ties
    return np.stack([then + rng.normal(size=50) * 0.5, then]), signal


def test_auc_and_covariance_are_delongs(ranked):
    values, signal = ranked
    areas, covariance = delong(values, signal)
    result, change = statistics.auc_intervals(values, signal, np.arange(50))
    np.testing.assert_allclose(result[0], areas)
    assert change[0] == pytest.approx(areas[0] - areas[1])
    ours, freedom = statistics.class_covariance(influence_of(values, signal), signal, np.arange(50))
    np.testing.assert_allclose(ours, covariance)
    parts = np.array([np.var(each, axis=1, ddof=1) / each.shape[1] for each in placed(values, signal)])
    np.testing.assert_allclose(freedom, parts.sum(0) ** 2 / (parts**2 / [[29], [19]]).sum(0))


@pytest.mark.parametrize("gap", [0.0, 2.5])
def test_the_interval_of_an_auc_is_wilsons_of_the_prompts_that_have_its_variance(ranked, gap):
    """At most as many as there are: 50, which near the ceiling (a gap of 2.5) is fewer."""
    values, signal = ranked
    values = values + gap * signal
    areas, covariance = delong(values, signal)
    (_, low, high), _ = statistics.auc_intervals(values, signal, np.arange(50))
    _, freedom = statistics.class_covariance(influence_of(values, signal), signal, np.arange(50))
    for time, area in enumerate(areas):
        n = area * (1 - area) / covariance[time, time]
        assert (n > 50) == (gap > 0)
        z = stats.t.ppf(0.975, freedom[time])
        for end in (low[time], high[time]):  # the score equation, of which both ends are roots
            assert (end - area) ** 2 == pytest.approx(z**2 * end * (1 - end) / min(n, 50))


def test_the_interval_of_the_change_joins_both_as_zou_and_donner_do(ranked):
    values, signal = ranked
    areas, covariance = delong(values, signal)
    (_, low, high), change = statistics.auc_intervals(values, signal, np.arange(50))
    correlation = covariance[0, 1] / np.sqrt(covariance[0, 0] * covariance[1, 1])
    assert correlation > 0.5
    below, above = areas - low, high - areas
    ends = [
        np.sqrt(now**2 - 2 * correlation * now * then + then**2)
        for now, then in ((below[0], above[1]), (above[0], below[1]))
    ]
    difference = areas[0] - areas[1]
    np.testing.assert_allclose(change, [difference, difference - ends[0], difference + ends[1]])


def test_repeated_prompts_of_one_group_say_no_more_than_one(ranked):
    values, signal = ranked
    alone = values, signal, np.arange(50)
    repeated = [np.repeat(each, 3, axis=-1) for each in alone]
    for one, three in zip(*(statistics.auc_intervals(*each) for each in (alone, repeated)), strict=True):
        np.testing.assert_allclose(three, one, atol=1e-3)
    one, three = (statistics.mean_of_classes(each[0][0], *each[1:]) for each in (alone, repeated))
    np.testing.assert_allclose(one, three)


def test_the_mean_of_both_classes_has_welchs_interval():
    rng = np.random.default_rng(0)
    values, signal = rng.normal(size=30) * np.repeat([1, 3], 15) + 1, np.arange(30) < 15
    middle, low, high = statistics.mean_of_classes(values, signal, np.arange(30))
    # the mean of both is half the difference of one and the negated other
    welch = stats.ttest_ind(values[signal], -values[~signal], equal_var=False).confidence_interval(0.95)
    assert middle == pytest.approx((values[signal].mean() + values[~signal].mean()) / 2)
    np.testing.assert_allclose([low, high], [welch.low / 2, welch.high / 2])


def test_groups_of_d_prime_and_criterion_count_as_one_prompt_each():
    rng = np.random.default_rng(1)
    answers = np.repeat([0, 1], 40)
    choices = np.where(rng.random(80) < 0.75, answers, 1 - answers)
    alone = table_of(unsteered(answers, answers), condition(choices, answers))
    alone = alone.assign(group=alone["prompt_id"])
    repeated = pd.concat([alone.assign(prompt_id=alone["prompt_id"] + 80 * k) for k in range(4)])
    own_texts = repeated.assign(prompt=repeated["prompt_id"].map("prompt {}".format)).drop(columns="group")
    one, four, own = (steered_row(each, resamples=4000) for each in (alone, repeated, own_texts))
    for name in ("d_prime", "criterion", "d_prime_change", "criterion_change"):
        width, widths = (row[f"{name}_high"] - row[f"{name}_low"] for row in (one, four))
        assert widths == pytest.approx(width, rel=0.1), name
    assert own["d_prime_high"] - own["d_prime_low"] < 0.6 * (four["d_prime_high"] - four["d_prime_low"])
    assert one["covered"]
    assert four["covered"]


def test_four_prompts_of_one_group_do_not_make_an_interval_covered():
    answers, index = np.repeat([0, 1], 40), np.arange(80) % 40
    now, then = (np.where(wrong, 1 - answers, answers) for wrong in (index < 8, index >= 32))  # eight of 40
    for before, name in ((answers, "covered"), (then, "change_covered")):
        table = table_of(unsteered(before, answers), condition(now, answers))
        assert steered_row(table)[name]
        assert not steered_row(table.assign(group=table["prompt_id"] // 4))[name]


def test_a_constant_leaves_the_auc_and_moves_both_kinds():
    table = sweep_of(*simulated(np.random.default_rng(0), 100, 4, 4, shift=4))
    before, row = signal_detection(table, resamples=500).iloc
    assert row["d_prime_change_high"] < 0  # although nothing but the bias changed
    assert row["auc_change"] == 0
    assert [row["shift"], row["shift_low"], row["shift_high"]] == pytest.approx([4, 4, 4])
    assert (before["verdict"], row["verdict"]) == ("", "bias")


@pytest.mark.parametrize(
    ("move", "verdict"),
    [
        (lambda then, side: then, "neither"),
        (lambda then, side: then + 1, "bias"),
        (lambda then, side: then - 3 * side, "sensitivity"),
        (lambda then, side: then - 3 * side + 4, "both"),
        (lambda then, side: then - 4 * side + 1, "sensitivity"),  # the classes move apart, by 1 on average
    ],
)
def test_the_verdict_names_what_moved(move, verdict):
    then, _, answers = simulated(np.random.default_rng(0), 60, 1, 1)
    noise = np.random.default_rng(1).normal(size=120) * 0.3
    side = np.where(answers == 0, 0.5, -0.5)
    assert steered_row(sweep_of(then, move(then, side) + noise, answers))["verdict"] == verdict


@pytest.mark.parametrize("part", ["answer == 0", "vector != 'none'"])
def test_without_one_class_or_the_unsteered_rows_the_verdict_is_cannot_tell(part):
    row = steered_row(sweep_of(*simulated(np.random.default_rng(0), 40, 1, 2)).query(part))
    assert row["verdict"] == "cannot tell"
    assert row[["auc_change", "shift", "d_prime_change"]].isna().all()


def test_at_a_perfect_ranking_a_covered_loss_of_d_prime_cannot_be_told():
    """Drawn choices: all logit differences halve, so that more are wrong and none changes its rank."""
    answers = np.repeat([0, 1], 100)
    then = np.where(answers == 0, 2.0, -2.0)
    wrong, more = np.arange(200) % 100 < 8, np.arange(200) % 100 < 30
    table = sweep_of(then, then / 2, answers)
    drawn = [np.where(each, 1 - answers, answers) for each in (wrong, more)]
    table["choice"] = pd.array(np.concatenate(drawn), dtype="Int64")
    row = steered_row(table, resamples=300)
    assert (row["auc"], row["auc_change"], row["verdict"]) == (1.0, 0.0, "cannot tell")
    assert row["d_prime_change_high"] < 0
    assert steered_row(sweep_of(then, then / 2, answers))["verdict"] == "neither"


def lettered(choices, letters):
    """Questions whose right answer (choice 0) has these letters, answered with the chosen ones."""
    wrong = (np.asarray(choices) != letters).astype(int)
    zeros = np.zeros(len(letters), int)
    table = table_of(unsteered(zeros, zeros), condition(wrong, zeros))
    return table.assign(letter=np.tile(letters, 2), logit_difference=1.0 - 2 * table["choice"].astype(float))


def test_always_saying_a_is_a_bias_toward_a_and_no_sensitivity():
    letters = np.array(list("AB") * 20)
    row = steered_row(lettered(["A"] * 40, letters), signal="letter")
    assert row[["n_signal", "n_noise", "hit_rate", "false_alarm_rate"]].to_list() == [20, 20, 1, 1]
    assert row[["d_prime", "auc", "signal_shift", "noise_shift"]].to_list() == [0, 0.5, 0, 2]
    assert row["criterion"] < -1.5
    right = steered_row(lettered(letters, letters), signal="letter")
    assert right["d_prime"] > 3
    assert right[["criterion", "auc"]].to_list() == [0, 1]
    without = signal_detection(lettered(letters, letters), resamples=50)
    assert without["d_prime"].isna().all()  # all answers are the same


def test_the_label_as_the_signal_is_the_answer():
    table = sweep_of(*simulated(np.random.default_rng(2), 40, 1, 1, shift=1))
    table["label"] = pd.Categorical(np.where(table["answer"] == 0, "true", "false"), ["true", "false"])
    results = (signal_detection(table, resamples=50, **each) for each in ({"signal": "label"}, {}))
    pd.testing.assert_frame_equal(*results)


def test_a_signal_needs_two_levels_and_a_factor_its_own_name():
    table = lettered(list("ABAB"), np.array(list("ABAB")))
    for column, value, argument, message in (
        ("letter", "A", "signal", "expected two, signal and noise"),
        ("verdict", "right", "by", r"verdict.* names of results"),
    ):
        assert_raises(message, signal_detection, table.assign(**{column: value}), **{argument: column})
    assert_raises("lacks the columns language", signal_detection, table, signal="language")
