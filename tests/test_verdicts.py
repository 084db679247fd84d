"""Verdicts where the truth is known; areas under the ROC curve against DeLong's sums written out."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from tl_steer import statistics
from tl_steer.evaluation import signal_detection

from .sweep_tables import condition, unsteered
from .test_evaluation_tables import row_of

SPREADS = {"equal": (1.0, 1.0), "unequal": (1.5, 0.8)}  # standard deviations of signal and noise


def table_of(then, now, answers, **factors):
    """A sweep's table whose choices follow the logit differences."""
    rows = [(unsteered, then), (condition, now)]
    return pd.concat(
        [make(list((each < 0).astype(int)), answers, logits=each, **factors) for make, each in rows],
        ignore_index=True,
    )


def simulated(rng, n, then, now, *, spread=(1.0, 1.0), shift=0.0, noise=0.0):
    """Logit differences of n prompts of each kind, whose d′ is `then` unsteered and `now` steered."""
    answers = np.repeat([0, 1], n)
    side = np.where(answers == 0, 0.5, -0.5)
    scale = np.where(answers == 0, *spread)
    own = rng.normal(size=2 * n)
    after = np.sqrt(1 - noise**2) * own + noise * rng.normal(size=2 * n)
    return then * side + scale * own, now * side + scale * after + shift, answers


def verdicts(repeats, n, *moved, logits=True, resamples=300, seed=0, **simulation):
    """The share of each verdict over simulated sweeps."""
    rng = np.random.default_rng(seed)
    tables = [table_of(*simulated(rng, n, *moved, **simulation)).assign(run=run) for run in range(repeats)]
    table = pd.concat(tables, ignore_index=True)
    if not logits:
        table["logit_difference"] = np.nan
    result = signal_detection(table, by="run", resamples=resamples)
    steered = result[result["vector"] == "honesty"]
    return (
        steered["verdict"]
        .value_counts(normalize=True)
        .reindex(["bias", "sensitivity", "both", "neither", "cannot tell"], fill_value=0.0)
    )


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
        held = []
        for _ in range(draws(500)):
            logits = simulated(rng, n, then, now, spread=SPREADS[spread], noise=0.6)
            area, change = statistics.auc_intervals(np.stack(logits[1::-1]), own, np.arange(2 * n))
            held.append(
                [*((area[1] <= true) & (true <= area[2])), change[1] <= true[0] - true[1] <= change[2]]
            )
        error = 3 * np.sqrt(0.05 * 0.95 / len(held))
        assert (np.mean(held, 0) > 0.935 - error).all(), (then, now, np.mean(held, 0))
        if n > 20 and max(then, now) <= 2:
            assert (np.mean(held, 0) < 0.97 + error).all(), (then, now, np.mean(held, 0))


@pytest.mark.statistics
@pytest.mark.parametrize(
    ("groups", "size", "alike"), [(25, 4, 1.0), (25, 4, 0.5), (40, 2, 1.0), (40, 2, 0.0)]
)
def test_intervals_of_grouped_prompts_cover(draws, groups, size, alike):
    """Of 25 groups of four identical answers, taken one by one, d′'s interval covered in 69 %."""
    rng = np.random.default_rng(size)
    rates, answers = np.repeat([0.8, 0.35], groups), np.repeat([0, 1], groups * size)
    z_hit, z_false = stats.norm.ppf([0.8, 0.35])
    truth = {"d_prime": z_hit - z_false, "criterion": -(z_hit + z_false) / 2, "d_prime_change": 0.0}
    group = np.repeat(np.arange(2 * groups), size)

    def answered():
        shared = rng.random(2 * groups) < rates
        own = rng.random((2 * groups, size)) < rates[:, None]
        return (~np.where(rng.random((2 * groups, size)) < alike, shared[:, None], own)).astype(int).ravel()

    tables = []
    for run in range(draws(400)):
        then, now = answered(), answered()
        both = [make(list(each), answers) for make, each in ((unsteered, then), (condition, now))]
        tables.append(pd.concat(both).assign(run=run, group=np.tile(group, 2), logit_difference=np.nan))
    result = signal_detection(pd.concat(tables, ignore_index=True), by="run", resamples=400)
    steered = result[result["vector"] == "honesty"]
    for name, true in truth.items():
        held = ((steered[f"{name}_low"] <= true) & (true <= steered[f"{name}_high"])).mean()
        error = 3 * np.sqrt(0.05 * 0.95 / len(steered))
        assert 0.94 - error <= held <= 0.96 + error, (name, held)


# one table each


def delong(values, signal):
    """Areas and their covariance by DeLong's sums, pair by pair."""
    kernels = np.array(
        [
            [[(a > b) + (a == b) / 2 for b in each[~signal]] for a in each[signal]]
            for each in np.asarray(values)
        ]
    )
    areas = kernels.mean((1, 2))
    by_signal, by_noise = kernels.mean(2), kernels.mean(1)
    covariance = sum(np.atleast_2d(np.cov(each)) / each.shape[1] for each in (by_signal, by_noise))
    return areas, covariance


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
    parts = np.array(
        [np.diag(np.atleast_2d(np.cov(each))) / each.shape[1] for each in placed(values, signal)]
    )
    np.testing.assert_allclose(freedom, parts.sum(0) ** 2 / (parts**2 / [[29], [19]]).sum(0))


def placed(values, signal):
    kernel = np.array([[[(a > b) + (a == b) / 2 for b in v[~signal]] for a in v[signal]] for v in values])
    return kernel.mean(2), kernel.mean(1)


def influence_of(values, signal):
    by_signal, by_noise = placed(values, signal)
    result = np.empty(values.shape)
    for kind, each in ((signal, by_signal), (~signal, by_noise)):
        result[:, kind] = (each - each.mean(1, keepdims=True)) / kind.sum()
    return result


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
    together = covariance[0, 1] / np.sqrt(covariance[0, 0] * covariance[1, 1])
    assert together > 0.5
    ends = []
    for now, then in ((areas[0] - low[0], high[1] - areas[1]), (high[0] - areas[0], areas[1] - low[1])):
        ends.append(np.sqrt(now**2 - 2 * together * now * then + then**2))
    difference = areas[0] - areas[1]
    np.testing.assert_allclose(change, [difference, difference - ends[0], difference + ends[1]])


def test_repeated_prompts_of_one_group_say_no_more_than_one(ranked):
    values, signal = ranked
    alone, change = statistics.auc_intervals(values, signal, np.arange(50))
    repeated, change_repeated = statistics.auc_intervals(
        np.repeat(values, 3, axis=1), np.repeat(signal, 3), np.repeat(np.arange(50), 3)
    )
    np.testing.assert_allclose(repeated, alone, atol=1e-3)
    np.testing.assert_allclose(change_repeated, change, atol=1e-3)
    single = statistics.mean_of_classes(values[0], signal, np.arange(50))
    tripled = statistics.mean_of_classes(
        np.repeat(values[0], 3), np.repeat(signal, 3), np.repeat(np.arange(50), 3)
    )
    np.testing.assert_allclose(single, tripled)


def test_the_mean_of_both_kinds_has_welchs_interval():
    rng = np.random.default_rng(0)
    values, signal = rng.normal(size=30) * np.repeat([1, 3], 15) + 1, np.arange(30) < 15
    middle, low, high = statistics.mean_of_classes(values, signal, np.arange(30))
    # the mean of both is half the difference of one and the other turned round
    welch = stats.ttest_ind(values[signal], -values[~signal], equal_var=False).confidence_interval(0.95)
    assert middle == pytest.approx((values[signal].mean() + values[~signal].mean()) / 2)
    np.testing.assert_allclose([low, high], [welch.low / 2, welch.high / 2])


def test_groups_of_d_prime_and_criterion_count_as_one_prompt_each():
    rng = np.random.default_rng(1)
    answers = np.repeat([0, 1], 40)
    choices = np.where(rng.random(80) < 0.75, answers, 1 - answers)
    alone = pd.concat([unsteered(list(answers), answers), condition(list(choices), answers)])
    repeated = pd.concat([alone.assign(group=alone["prompt_id"], prompt_id=alone["prompt_id"] + 80 * k)
                          for k in range(4)])  # fmt: skip
    one, four = (
        row_of(signal_detection(each, resamples=4000), vector="honesty") for each in (alone, repeated)
    )
    for name in ("d_prime", "criterion", "d_prime_change", "criterion_change"):
        width, widths = (row[f"{name}_high"] - row[f"{name}_low"] for row in (one, four))
        assert widths == pytest.approx(width, rel=0.1), name
    own_texts = repeated.assign(prompt=repeated["prompt_id"].map("prompt {}".format)).drop(columns="group")
    ungrouped = row_of(signal_detection(own_texts, resamples=1000), vector="honesty")
    assert ungrouped["d_prime_high"] - ungrouped["d_prime_low"] < 0.6 * (
        four["d_prime_high"] - four["d_prime_low"]
    )
    assert one["covered"]
    assert four["covered"]


def test_four_prompts_of_one_group_do_not_make_an_interval_covered():
    answers = np.repeat([0, 1], 40)
    choices = np.where(np.arange(80) % 40 < 8, 1 - answers, answers)  # eight wrong of each kind
    table = pd.concat([unsteered(list(answers), answers), condition(list(choices), answers)])
    assert row_of(signal_detection(table, resamples=10), vector="honesty")["covered"]
    grouped = table.assign(group=table["prompt_id"] // 4)  # two groups
    assert not row_of(signal_detection(grouped, resamples=10), vector="honesty")["covered"]
    before = np.where(np.arange(80) % 40 >= 32, 1 - answers, answers)  # another eight
    table = pd.concat([unsteered(list(before), answers), condition(list(choices), answers)])
    for rows, is_covered in ((table, True), (table.assign(group=table["prompt_id"] // 4), False)):
        assert row_of(signal_detection(rows, resamples=10), vector="honesty")["change_covered"] == is_covered


def test_a_constant_leaves_the_auc_and_moves_both_kinds():
    rng = np.random.default_rng(0)
    then, now, answers = simulated(rng, 100, 4, 4, shift=4)
    row = row_of(signal_detection(table_of(then, now, answers), resamples=500), vector="honesty")
    assert row["d_prime_change_high"] < 0  # what d′ says
    assert row["auc_change"] == 0
    assert [row["shift"], row["shift_low"], row["shift_high"]] == pytest.approx([4, 4, 4])
    assert row["verdict"] == "bias"
    assert row_of(signal_detection(table_of(then, now, answers), resamples=5), vector="none")["verdict"] == ""


@pytest.mark.parametrize(
    ("move", "verdict"),
    [
        (lambda then, side: then, "neither"),
        (lambda then, side: then + 1, "bias"),
        (lambda then, side: then - 3 * side, "sensitivity"),
        (lambda then, side: then - 3 * side + 4, "both"),
        (lambda then, side: then - 4 * side + 1, "sensitivity"),  # the kinds move apart, by 1 on average
    ],
)
def test_what_moved_is_what_the_verdict_says(move, verdict):
    then, _, answers = simulated(np.random.default_rng(0), 60, 1, 1)
    noise = np.random.default_rng(1).normal(size=120) * 0.3
    side = np.where(answers == 0, 0.5, -0.5)
    row = row_of(
        signal_detection(table_of(then, move(then, side) + noise, answers), resamples=50), vector="honesty"
    )
    assert row["verdict"] == verdict


def test_where_one_kind_or_the_unsteered_rows_are_missing_nothing_can_be_told():
    then, now, answers = simulated(np.random.default_rng(0), 40, 1, 2)
    table = table_of(then, now, answers)
    for part in (table[table["answer"] == 0], table[table["vector"] != "none"]):
        row = row_of(signal_detection(part, resamples=20), vector="honesty")
        assert row["verdict"] == "cannot tell"
        assert np.isnan([row["auc_change"], row["shift"], row["d_prime_change"]]).all()


def test_at_a_perfect_ranking_a_covered_loss_of_d_prime_cannot_be_told():
    """Drawn choices: all logit differences halve, so that more are wrong and none changes its rank."""
    answers = np.repeat([0, 1], 100)
    then = np.where(answers == 0, 2.0, -2.0)
    wrong, more = np.arange(200) % 100 < 8, np.arange(200) % 100 < 30
    table = table_of(then, then / 2, answers)
    drawn = [np.where(each, 1 - answers, answers) for each in (wrong, more)]
    table["choice"] = pd.array(np.concatenate(drawn), dtype="Int64")
    row = row_of(signal_detection(table, resamples=300), vector="honesty")
    assert (row["auc"], row["auc_change"], row["verdict"]) == (1.0, 0.0, "cannot tell")
    assert row["d_prime_change_high"] < 0
    still = row_of(signal_detection(table_of(then, then / 2, answers), resamples=20), vector="honesty")
    assert still["verdict"] == "neither"


# any factor as the signal


def misconceptions(said, letters):
    """Questions whose right answer (choice 0) has these letters, answered with those."""
    choices = [int(one != right) for one, right in zip(said, letters, strict=True)]
    zeros = [0] * len(letters)
    table = pd.concat([unsteered(zeros, zeros), condition(choices, zeros)], ignore_index=True)
    wrong = table["choice"].astype(float)
    return table.assign(letter=np.tile(letters, 2), logit_difference=1 - 2 * wrong)


def test_always_saying_a_is_a_bias_toward_a_and_no_sensitivity():
    letters = np.array(list("AB") * 20)
    row = row_of(
        signal_detection(misconceptions(["A"] * 40, letters), signal="letter", resamples=50), vector="honesty"
    )
    assert (row["n_signal"], row["n_noise"]) == (20, 20)
    assert (row["hit_rate"], row["false_alarm_rate"]) == (1.0, 1.0)
    assert row["d_prime"] == 0
    assert row["criterion"] < -1.5
    assert row["auc"] == 0.5
    assert row["signal_shift"] == 0
    assert row["noise_shift"] == 2
    right = row_of(
        signal_detection(misconceptions(letters, letters), signal="letter", resamples=50), vector="honesty"
    )
    assert right["d_prime"] > 3
    assert right["criterion"] == 0
    assert right["auc"] == 1
    without = signal_detection(misconceptions(letters, letters), resamples=50)
    assert without["d_prime"].isna().all()  # all answers are the same


def test_the_label_as_the_signal_is_the_answer():
    then, now, answers = simulated(np.random.default_rng(2), 40, 1, 1, shift=1)
    table = table_of(then, now, answers)
    table["label"] = pd.Categorical(np.where(table["answer"] == 0, "true", "false"), ["true", "false"])
    pd.testing.assert_frame_equal(
        signal_detection(table, signal="label", resamples=50), signal_detection(table, resamples=50)
    )


def test_a_signal_needs_two_levels():
    table = misconceptions(list("AB") * 2, list("AB") * 2)
    with pytest.raises(ValueError, match="expected two, signal and noise"):
        signal_detection(table.assign(letter="A"), signal="letter")
    with pytest.raises(ValueError, match="lacks the columns language"):
        signal_detection(table, signal="language")
    with pytest.raises(ValueError, match=r"verdict.* names of results"):
        signal_detection(table.assign(verdict="right"), by="verdict")
