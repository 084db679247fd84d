"""Selection on many halves and for controls: each number against a plain loop over `choose`."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from tl_steer import plots
from tl_steer.evaluation._choose import choose, measure_of
from tl_steer.sweeps import sweep_table
from tl_steer.sweeps.selection import SELECTION_COLUMNS, best, candidates, halvings

from .conftest import assert_raises
from .sweep_tables import NAN, condition, table_of

PLAN = [("add", layers, multiplier) for layers in ("3", "4", "3+4") for multiplier in (-1.0, 1.0, 2.0)]
PLAN += [("project_out", layers, NAN) for layers in ("3", "4")]
UNSTEERED = [("none", "", 0.0)]
BETTER = 4  # of these conditions, the one with an effect: layer 4, multiplier 1
SCORES = ("accuracy", "readable_accuracy", "d_prime", "shift")


def conditions(vector, logits, answers, plan=PLAN, **columns):
    """A vector's rows; `logits` are the differences in each condition, NaN where unreadable."""
    n = len(answers)
    labels = {"prompt_id": range(50, 50 + n), "split": np.resize(["one", "two"], n)} | columns
    tables = []
    for each, (operation, layers, multiplier) in zip(logits, plan, strict=True):
        values = {"operation": operation, "layers": layers, "multiplier": multiplier}
        tables.append(condition(answers=answers, logits=each, vector=vector, **values, **labels))
    return table_of(*tables)


def chosen_on_one(table, **options):
    return choose(table, on="one", report="two", **options)


def reported(result):
    return result[result["split"] == "two"]


def noise_sweep(n=40, seed=0, *, effect=0.0, controls=0, unreadable=0.1, vectors=("honesty",), plan=PLAN):
    """Answers by chance in every condition; `effect` raises the right answer's logit in one of them.

    Controls are called "random 1", or where there are several vectors "random 1 (vector)", as in a sweep.
    """
    rng = np.random.default_rng(seed)
    answers = np.array([0, 0, 1, 1] * (n // 4))
    right = np.where(answers == 0, 1.0, -1.0)

    def drawn(strength):
        logits = rng.normal(size=(len(plan), n))
        logits[BETTER % len(plan)] += strength * right
        logits[rng.random(logits.shape) < unreadable] = NAN
        return logits

    tables = [conditions("none", rng.normal(size=(1, n)), answers, UNSTEERED)]
    for vector in vectors:
        tables.append(conditions(vector, drawn(effect), answers, plan))
        for number in range(controls):
            name = f"random {number + 1}" + f" ({vector})" * (len(vectors) > 1)
            tables.append(conditions(name, drawn(0.0), answers, plan, control_of=vector))
    return table_of(*tables)


def on_halves(table, half, score):
    """What `choose` itself gives where the splits are these halves: chosen on one, reported on both."""
    relabelled = table.assign(split=np.where(table["prompt_id"].map(half), "first", "second"))
    result = choose(relabelled, on="first", report="second", value=score, resamples=1, splits=0)
    return result.set_index(["operation", "split"]).sort_index()


def condition_of(row):
    return row["layers"], None if np.isnan(row["multiplier"]) else row["multiplier"]


@pytest.mark.parametrize("score", SCORES)
def test_held_out_scores_and_optimism_are_a_plain_loop_of_choose_over_relabelled_halves(score):
    table = noise_sweep(effect=1.0)
    result = chosen_on_one(table, value=score, resamples=1, splits=4, seed=3)
    prompts = table[table["vector"] == "none"]
    halves = [pd.Series(half, prompts["prompt_id"]) for half in halvings(prompts, 4, 3)]
    turns = [on_halves(table, each, score) for half in halves for each in (half, ~half)]
    for operation, rows in result.groupby("operation"):
        repeats, row = [turn.loc[operation] for turn in turns], rows.iloc[0]
        inside, outside = ([turn.loc[half, "value"] for turn in repeats] for half in ("first", "second"))
        optimism = np.subtract(inside, outside)
        assert row["held_out_score"] == pytest.approx(np.mean(outside))
        assert row["optimism"] == pytest.approx(optimism.mean())
        ends = np.quantile(optimism.reshape(-1, 2).mean(1), [0.025, 0.975])
        assert (row["optimism_low"], row["optimism_high"]) == pytest.approx(tuple(ends))
        same = [condition_of(turn.iloc[0]) == condition_of(row) for turn in repeats]
        assert row["selection_agreement"] == np.mean(same)


@pytest.mark.parametrize("splits", [0, 5])
def test_a_function_is_scored_on_the_same_halves_as_the_named_score(splits):
    def my_accuracy(rows):
        return rows["choice"].eq(rows["answer"]).fillna(False).mean()

    table, options = noise_sweep(n=24), {"resamples": 2, "splits": splits}
    own, named = (chosen_on_one(table, value=score, **options) for score in (my_accuracy, "accuracy"))
    columns = list(SELECTION_COLUMNS)
    pd.testing.assert_frame_equal(own[columns], named[columns], check_dtype=False)


@pytest.mark.parametrize("score", SCORES)
def test_the_in_sample_score_is_the_highest_score_of_all_prompts_together(score):
    table = noise_sweep(effect=0.5)
    highest = measure_of(score)[0](table, 1, 0).groupby("operation")["value"].max()
    result = chosen_on_one(table, value=score, resamples=1, splits=0)
    expected = highest[result["operation"]].to_list()
    assert result["in_sample_score"].to_list() == pytest.approx(expected)


@pytest.mark.parametrize("score", SCORES)
def test_scores_of_many_sets_are_those_of_the_tables(score):
    """The fast scores against those that are reported, condition by condition and set by set."""
    table = noise_sweep(unreadable=0.3).sample(frac=1, random_state=0)
    before = table[table["vector"] == "none"]
    rows = table[table["operation"] == "add"]
    sets = np.random.default_rng(0).random((4, 40)) < 0.6
    conditions = candidates(rows, before, score)
    labels = pd.MultiIndex.from_frame(conditions.labels[["layers", "multiplier"]])
    for chosen, scores in zip(sets, conditions.scores(sets), strict=True):
        own = pd.concat([before, rows])
        own = own[own["prompt_id"].isin(before.loc[chosen, "prompt_id"])]
        oracle = measure_of(score)[0](own, 1, 0).set_index(["layers", "multiplier"])["value"]
        assert list(scores) == pytest.approx(oracle[labels].to_list())


@pytest.mark.statistics
def test_pure_noise_looks_good_in_sample_and_not_held_out():
    table = noise_sweep(n=40, unreadable=0, vectors=[f"vector {k}" for k in range(30)], plan=PLAN[:9])
    result = reported(chosen_on_one(table, resamples=1, splits=20))
    errors = result[["held_out_score", "value"]].std() / len(result) ** 0.5
    assert errors["held_out_score"] < 0.015, "or the test could not tell"
    assert (abs(result[errors.index].mean() - 0.5) < 3 * errors).all()
    assert result["in_sample_score"].mean() > 0.58
    assert result["optimism"].min() > 0
    assert result["optimism"].mean() > 0.1


def test_a_better_condition_is_chosen_in_every_half_without_optimism():
    table = noise_sweep(n=80, effect=2.5, unreadable=0)
    row = chosen_on_one(table).iloc[1]
    assert (row["layers"], row["multiplier"]) == ("4", 1.0)
    assert row["selection_agreement"] == 1.0
    assert row["optimism"] == row["optimism_low"] == row["optimism_high"] == 0.0
    assert row["held_out_score"] == pytest.approx(row["in_sample_score"]) == pytest.approx(0.99, abs=0.02)


@pytest.mark.statistics
@pytest.mark.parametrize("score", SCORES)
def test_optimism_is_never_negative(score):
    table = noise_sweep(vectors=("a", "b", "c", "d", "e", "f"), unreadable=0)
    result = chosen_on_one(table, value=score, resamples=1, splits=30)
    assert (result["optimism_low"] >= 0).all()
    assert (result["optimism"] > 0).all()


@pytest.mark.parametrize("turn", range(4))
def test_halves_break_ties_as_the_choice_itself_does(turn):
    """Equal conditions: the same one is chosen everywhere, by dose, then by layer, then by position."""
    answers = np.tile([0, 0, 1, 1], 5)
    alike = np.tile(np.random.default_rng(0).normal(size=20), (4, 1))
    plan = [("add", "10", -1.0), ("add", "9+11", 1.0), ("add", "9", 1.0), ("add", "2", 3.0)]
    plan = plan[turn:] + plan[:turn]
    none = conditions("none", alike[:1] - 1, answers, UNSTEERED)
    table = table_of(none, conditions("honesty", alike, answers, plan))
    first = next(layers for _, layers, _ in plan if layers in ("9", "9+11"))
    for score in ("accuracy", "d_prime"):
        result = chosen_on_one(table, value=score, resamples=1, splits=10)
        assert set(result["layers"]) == {first}
        assert result["selection_agreement"].to_list() == [1.0, 1.0]


def test_the_first_of_the_highest_is_best_also_if_they_differ_by_rounding_and_nan_never():
    scores = np.array([[0.1, 0.5, 0.5], [NAN, -2.0, -3.0], [NAN, NAN, NAN], [-np.inf, NAN, NAN]])
    assert best(scores).tolist() == [1, 1, -1, 0]
    assert best(np.array([[0.1 + 0.2 - 0.3, 0.0, 1e-12], [0.5, 0.7 - 1e-15, 0.7]])).tolist() == [0, 1]


def test_halves_hold_as_many_prompts_of_each_answer_and_keep_groups_together():
    prompts = pd.DataFrame(
        {"prompt_id": range(30), "answer": pd.array([0] * 11 + [1] * 14 + [None] * 5, "Int64")}
    )
    halves = halvings(prompts, 50, 0)
    assert halves.shape == (50, 30)
    for within in np.split(halves, [11, 25], axis=1):
        assert (abs(2 * within.sum(1) - within.shape[1]) <= 1).all()
    assert (halves.sum(1) == 15).all()
    assert len({half.tobytes() for half in halves}) == 50
    assert 0.3 < halves.mean(0).min() < halves.mean(0).max() < 0.7, "each prompt is in both halves in turn"
    group = prompts["prompt_id"] // 3
    together = halvings(prompts.assign(group=group), 50, 0)
    assert (together.reshape(50, 10, 3) == together.reshape(50, 10, 3)[:, :, :1]).all()
    assert (halvings(prompts.assign(prompt=group.map("prompt {}".format)), 50, 0) == together).all()


def test_without_halvings_their_columns_are_nan_and_the_others_unchanged():
    table, columns = noise_sweep(controls=2), list(SELECTION_COLUMNS[1:])
    with_splits, without = (chosen_on_one(table, resamples=5, splits=each) for each in (7, 0))
    assert without[columns].isna().all(axis=None)
    pd.testing.assert_frame_equal(without.drop(columns=columns), with_splits.drop(columns=columns))
    assert_raises(r"splits=-1 is negative: .* 0 for never", chosen_on_one, table, splits=-1)


def test_halves_without_a_score_are_left_out():
    """One prompt alone has an answer: in each halving one half has no accuracy."""
    table = noise_sweep(unreadable=0)
    table["answer"] = table["answer"].where(table["prompt_id"] == 50)
    result = chosen_on_one(table, resamples=5, splits=5)
    assert result["held_out_score"].isna().all()
    assert result["in_sample_score"].eq(1.0).any()


def test_accuracy_rewards_readable_answers_and_the_result_says_so():
    """Unsteered, half of the answers are unreadable and the others right at chance; steered, all are readable
    and right at chance: accuracy doubles, that of readable answers does not change."""
    answers = np.array([0, 0, 1, 1] * 20)
    right = np.where(answers == 0, 1.0, -1.0)
    chance = np.where(np.arange(80) % 8 < 4, right, -right)
    half = np.where(np.arange(80) % 16 < 8, chance, NAN)
    table = table_of(
        conditions("none", [half], answers, UNSTEERED),
        conditions("honesty", [chance], answers, [("add", "3", 1.0)]),
    )
    all_answers, readable = (
        chosen_on_one(table, value=score, splits=0, resamples=200).iloc[1]
        for score in ("accuracy", "readable_accuracy")
    )
    names = ["unreadable", "unreadable_unsteered", "unsteered", "value", "change"]
    assert all_answers[names].to_list() == [0.0, 0.5, 0.25, 0.5, 0.25]
    assert all_answers["change_low"] > 0
    assert readable[names].to_list() == [0.0, 0.5, 0.5, 0.5, 0.0]
    assert readable["change_low"] <= 0 <= readable["change_high"]


def test_readable_accuracy_its_interval_and_change_are_those_of_a_plain_count():
    table = noise_sweep(unreadable=0.3, effect=1.0)
    result = measure_of("readable_accuracy")[0](table, 200, 0)
    before = table[table["vector"] == "none"].set_index("prompt_id")["choice"]
    for _, row in result.iterrows():
        rows = sweep_table.condition_rows(table, row)
        rows = rows[rows["choice"].notna()]
        right = rows["choice"].eq(rows["answer"])
        oracle = stats.binomtest(int(right.sum()), len(rows)).proportion_ci(method="wilson")
        assert [row["value"], row["low"], row["high"]] == pytest.approx([right.mean(), *oracle])
        then = before.loc[rows["prompt_id"]].to_numpy()
        gained = right.astype(float) - pd.array(then == rows["answer"]).astype("Float64")
        assert row["change"] == pytest.approx(gained.mean())
        assert row["change_low"] < row["change"] < row["change_high"]


def test_a_condition_without_a_readable_answer_has_no_readable_accuracy_and_is_not_chosen():
    table = noise_sweep()
    table["choice"] = table["choice"].mask((table["vector"] == "honesty") & (table["layers"] != "4"))
    result = chosen_on_one(table, value="readable_accuracy", splits=2, resamples=5)
    assert set(result["layers"]) == {"4"}
    silent = measure_of("readable_accuracy")[0](table, 20, 0).query("layers != '4'")
    assert silent[["value", "change", "change_low"]].isna().all(axis=None)


@pytest.mark.parametrize("score", SCORES)
def test_every_control_is_put_through_choose_as_if_it_were_the_vector(score):
    table, options = noise_sweep(controls=4, effect=0.7), {"value": score, "resamples": 1, "splits": 0}
    result = chosen_on_one(table, **options)
    null = []
    for number in range(4):
        control = table[table["vector"].isin(["none", f"random {number + 1}"])].assign(control=False)
        null.append(reported(chosen_on_one(control, **options)).set_index("operation")["value"])
    null = pd.concat(null, axis=1)
    for operation, rows in result.groupby("operation"):
        own, value = null.loc[operation], reported(rows)["value"].item()
        p_value = ((own >= value - 1e-12).sum() + 1) / 5
        for _, row in rows.iterrows():
            ends = row[["controls", "null_low", "null_high", "p_value"]].to_list()
            assert ends == pytest.approx([4, own.min(), own.max(), p_value])


@pytest.mark.statistics
def test_the_p_value_of_a_vector_that_is_one_more_control_is_uniform():
    """Nine controls of its own to each of forty vectors by chance: p is one of ten tenths, each as often."""
    names = [f"vector {number}" for number in range(40)]
    table = noise_sweep(n=24, vectors=names, controls=9, plan=PLAN[:3])
    p_values = reported(chosen_on_one(table, value="shift", resamples=1, splits=0))["p_value"]
    assert set((10 * p_values).round(9)) <= set(range(1, 11))
    assert p_values.mean() == pytest.approx(0.55, abs=3 * 0.287 / 40**0.5)
    assert (p_values <= 0.3).mean() == pytest.approx(0.3, abs=3 * (0.21 / 40) ** 0.5)


def test_controls_that_were_not_swept_everywhere_are_no_null():
    table = noise_sweep(controls=3)
    other = table["vector"] != "random 2"
    one_condition = table[other | (table["layers"] != "4") | (table["multiplier"] != 1.0)]
    one_prompt, alone = table[other | (table["prompt_id"] != 60)], table[~table["control"]]
    for rows, controls in ((one_condition, [2, 2, 3, 3]), (one_prompt, [2] * 4), (alone, [0] * 4)):
        result = chosen_on_one(rows, resamples=1)
        assert result["controls"].to_list() == controls
    assert result[["null_low", "null_high", "p_value"]].isna().all(axis=None)


def test_a_vector_without_a_score_on_the_reported_half_has_no_p_value():
    table = noise_sweep(controls=3)
    table["choice"] = table["choice"].mask((table["vector"] == "honesty") & (table["split"] == "two"))
    result = chosen_on_one(table, value="d_prime", resamples=5, splits=0)
    assert result["controls"].to_list() == [3] * 4
    assert result["p_value"].isna().all()
    assert result["null_high"].notna().all()


def test_conditions_that_only_a_control_has_do_not_count():
    table = noise_sweep(controls=3, effect=1.0)
    extra = table[table["control"] & (table["multiplier"] == 2.0)].assign(multiplier=8.0)
    extra["choice"] = extra["answer"]
    results = (chosen_on_one(each, resamples=5) for each in (pd.concat([table, extra]), table))
    pd.testing.assert_frame_equal(*results)


def test_each_of_several_vectors_is_compared_with_its_own_controls_and_those_that_are_for_all():
    table = noise_sweep(vectors=("honesty", "tone"), controls=2, plan=PLAN[:3])
    for_all = table["vector"] == "random 2 (tone)"
    shared = table.assign(control_of=table["control_of"].mask(for_all, ""))
    older = table.drop(columns="control_of")  # of an older version: every control is for every vector
    for each, controls in ((shared, [3, 3, 2, 2]), (older, [4] * 4)):
        result = chosen_on_one(each, resamples=1, splits=0)
        assert result["vector"].to_list() == ["honesty"] * 2 + ["tone"] * 2
        assert result["controls"].to_list() == controls


def test_the_order_of_rows_decides_only_ties():
    table = noise_sweep(controls=2, unreadable=0)
    results = (
        chosen_on_one(each, value="shift", splits=0).sort_values(["operation", "split"], ignore_index=True)
        for each in (table, table.sample(frac=1, random_state=1))
    )
    pd.testing.assert_frame_equal(*results)


@pytest.fixture
def chosen():
    return chosen_on_one(noise_sweep(controls=4, effect=0.7, vectors=("<b>one</b>",)), splits=9)


def test_the_figure_shows_each_number_of_the_choice_with_what_it_was_made_on(chosen):
    figure = plots.choose(chosen)
    on, report = chosen[chosen["split"] == "one"], reported(chosen)
    for (_, where), (_, elsewhere), traces in zip(
        on.iterrows(), report.iterrows(), np.array(figure.data, dtype=object).reshape(2, 6), strict=True
    ):
        unsteered, chose, other, in_sample, held_out, null = traces
        assert list(in_sample.x) == [elsewhere["in_sample_score"]]
        assert list(held_out.x) == [elsewhere["held_out_score"]]
        for row, trace in ((where, chose), (elsewhere, other)):
            assert list(trace.x) == [row["value"]]
            assert list(trace.error_x.array) == pytest.approx([row["high"] - row["value"]])
            assert list(trace.error_x.arrayminus) == pytest.approx([row["value"] - row["low"]])
        assert list(null.x) == [elsewhere["null_low"], elsewhere["null_high"]]
        assert set(unsteered.x) == {elsewhere["unsteered"]}
        rows = [trace.y[0] for trace in traces[1:]]
        assert len(set(rows)) == 5
        assert set(rows) < set(figure.layout.yaxis.tickvals), "each row has its name"
    left, right = figure.layout.xaxis.range
    assert left < chosen[["low", "null_low"]].min(axis=None)
    assert right > chosen[["high", "null_high"]].max(axis=None)
    headings = [text for text in figure.layout.yaxis.ticktext if text.startswith("<b>")]
    assert [heading.partition(": ")[0] for heading in headings] == [
        "<b>&lt;b&gt;one&lt;/b&gt;, add", "<b>&lt;b&gt;one&lt;/b&gt;, project_out",
    ]  # fmt: skip


def test_the_figure_stands_without_controls_and_without_halvings():
    table = chosen_on_one(noise_sweep(), splits=0)
    figure = plots.choose(table)
    assert "controls" not in [trace.name for trace in figure.data]
    assert np.isfinite(figure.layout.xaxis.range).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda table: table.drop(columns="in_sample_score"), "lacks the columns in_sample_score.*choose"),
        (
            lambda table: pd.concat([table, table.assign(value_name="shift")]),
            "no common axis: select one",
        ),
        (lambda table: table.iloc[:3], "needs two rows"),
    ],
)
def test_the_figure_needs_pairs_of_one_score(chosen, change, message):
    assert_raises(message, plots.choose, change(chosen))


def test_a_control_that_ties_up_to_rounding_has_done_as_well():
    answers = np.array([0] * 40 + [1] * 40)
    ranks = np.arange(40) // 2  # prompts of a stratum alternate between the two splits

    def answered(hits, false_alarms):
        yes = np.concatenate([ranks < hits, ranks < false_alarms])
        return [np.where(yes, 1.0, -1.0)]

    plan = [("add", "3", 1.0)]
    tables = [conditions(f"random {k}", answered(20, 15), answers, plan) for k in range(19)]
    tables += [conditions("none", answered(10, 10), answers, UNSTEERED)]
    tables += [conditions("honesty", answered(5, 0), answers, plan)]
    result = chosen_on_one(table_of(*tables), value="d_prime", splits=0, resamples=50)
    assert (result["controls"] == 19).all()
    assert (result["p_value"] == 1).all()


def test_the_result_has_a_summary_that_a_notebook_shows_and_parquet_keeps(tmp_path, capsys):
    table = noise_sweep(effect=3.0, controls=4, vectors=("honesty", "<b>"))
    chosen = chosen_on_one(table, resamples=50, splits=0)
    lines = chosen.attrs["summary"].splitlines()
    assert lines[0].startswith("honesty, add × 1 at resid_post of layer 4: ")
    assert lines[1].startswith(f"honesty, project_out at resid_post of layer {chosen['layers'][2]}: ")
    assert [line.split(",")[0] for line in lines] == ["honesty", "honesty", "<b>", "<b>"]
    on, report = chosen.to_dict("records")[:2]
    assert lines[0].partition(": ")[2] == (
        f"best accuracy on 20 prompts (one), {on['value']:.3g}; on 20 others (two) {report['value']:.3g} "
        f"[{report['low']:.3g}, {report['high']:.3g}], change {report['change']:+.3g} "
        f"[{report['change_low']:.3g}, {report['change_high']:.3g}]; p = 0.2 against 4 controls"
    )
    assert "&lt;b&gt;, add × 1 at" in chosen._repr_html_()
    assert type(chosen.query("split == 'two'")) is pd.DataFrame
    chosen.to_parquet(tmp_path / "chosen.parquet")
    again = pd.read_parquet(tmp_path / "chosen.parquet")
    assert again.attrs == chosen.attrs
    pd.testing.assert_frame_equal(again, pd.DataFrame(chosen))
    shift = chosen_on_one(table, value="shift", splits=0).attrs["summary"]
    assert "change" not in shift
    without = chosen_on_one(table.query("~control"), splits=0).attrs["summary"]
    assert "no p value (it needs controls at all these conditions)" in without
    assert capsys.readouterr() == ("", "")
