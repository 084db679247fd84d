"""Effectiveness, signal detection and choosing, each against a plain loop or a known library."""

import re
from functools import partial

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from tl_steer.analysis import mean_projections, mean_traces
from tl_steer.evaluation import against_controls, steerability
from tl_steer.evaluation._choose import choose
from tl_steer.evaluation._effectiveness import effectiveness
from tl_steer.evaluation._signal_detection import signal_detection
from tl_steer.sweeps.sweep_table import CONDITION, condition_rows
from tl_steer.texts import preference
from tl_steer.texts.judge_prompts import answer_pairs

from .conftest import assert_raises
from .sweep_tables import NAN, condition, table_of, unsteered


def random_sweep(n=80, seed=0):
    """An unsteered condition, two multipliers at two layers, a projection and a control."""
    rng = np.random.default_rng(seed)
    answers = rng.integers(0, 2, n)

    def rows(rate, rows_of=condition, **columns):
        choices = np.where(rng.random(n) < rate, answers, 1 - answers).astype(object)
        choices[rng.random(n) < 0.1] = None
        return rows_of(list(choices), answers, logits=rng.normal(size=n), **columns)

    steered = [("3", 1.0, 0.7), ("3", -1.0, 0.5), ("4", 1.0, 0.8), ("3+4", 1.0, 0.6)]
    return table_of(
        rows(0.6, unsteered),
        *(rows(rate, layers=layers, multiplier=multiplier) for layers, multiplier, rate in steered),
        rows(0.6, operation="project_out", multiplier=NAN),
        rows(0.6, vector="random 0"),
    )


def chosen(table, **options):
    return choose(table, on="one", report="two", **options)


def interval_of(row, name):
    return [row[f"{name}{end}"] for end in ("", "_low", "_high")]


def wilson(successes, n):
    """The rate and its interval."""
    oracle = stats.binomtest(int(successes), n).proportion_ci(method="wilson")
    return pytest.approx([successes / n, oracle.low, oracle.high])


def row_of(table, **values):
    for name, value in values.items():
        table = table[table[name].isna() if value is NAN else table[name] == value]
    assert len(table) == 1
    return table.iloc[0]


def test_effectiveness_is_a_plain_loop_over_prompts():
    table = random_sweep()
    result = effectiveness(table, by="topic")
    assert len(result) == 7 * 2
    before = table[table["vector"] == "none"].set_index("prompt_id")["choice"]
    for _, row in result.iterrows():
        rows = condition_rows(table, row)
        rows = rows[rows["topic"] == row["topic"]]
        readable = rows[rows["choice"].notna()].to_dict("records")
        assert row["n"] == len(rows)
        assert row["unreadable"] == pytest.approx(1 - len(readable) / len(rows))
        right = sum(each["choice"] == each["answer"] for each in readable)
        assert interval_of(row, "accuracy") == wilson(right, len(rows))
        signal = sum(each["choice"] == 0 for each in readable)
        assert interval_of(row, "signal_rate") == wilson(signal, len(readable))
        pairs = [(each["choice"], before[each["prompt_id"]]) for each in readable]
        flips = [choice != then for choice, then in pairs if not pd.isna(then)]
        assert row["flipped"] == pytest.approx(np.mean(flips))


def test_logit_difference_and_shift_have_scipys_t_intervals():
    table = random_sweep()
    result = row_of(effectiveness(table), layers="4")
    steered = table[table["layers"] == "4"]["logit_difference"].to_numpy()
    before = table[table["vector"] == "none"]["logit_difference"].to_numpy()
    for name, oracle, mean in (
        ("logit_difference", stats.ttest_1samp(steered, 0), steered.mean()),
        ("shift", stats.ttest_rel(steered, before), (steered - before).mean()),
    ):
        assert interval_of(result, name) == pytest.approx([mean, *oracle.confidence_interval(0.95)])


def test_prompts_are_compared_with_themselves_whatever_their_order():
    steered = condition([0, 0, 1, 1], logits=[1.0, 2.0, 3.0, 4.0]).iloc[::-1]
    before = unsteered([0, 0, 1, 1], logits=[0.5, 1.5, 2.5, 3.5])
    result = row_of(effectiveness(pd.concat([steered, before])), vector="honesty")
    assert [*interval_of(result, "shift"), result["flipped"]] == [0.5, 0.5, 0.5, 0]


def columns_of(text):
    """The names of columns; "name*" has an interval."""
    return re.sub(r"(\w+)\*", r"\1 \1_low \1_high", text).split()


def test_the_columns_are_the_documented_ones():
    table = random_sweep()
    result = effectiveness(table, by=["answer", "vector", "topic"])
    names = "answer topic n unreadable accuracy* signal_rate* logit_difference* shift* flipped"
    assert list(result) == [*CONDITION, "dose", *columns_of(names)]
    assert list(result["layers"].unique()) == ["", "3", "4", "3+4"]
    result = signal_detection(table, by=("topic", "layers"), resamples=20)
    names = (
        "dose topic n_signal n_noise unreadable hit_rate* false_alarm_rate* d_prime* criterion* covered"
        " d_prime_change* criterion_change* change_covered auc* auc_change* shift* signal_shift noise_shift"
    )
    assert list(result) == [*CONDITION, *columns_of(names), "verdict"]
    assert len(result) == 14
    assert len(result[result["multiplier"].isna()]) == 2
    result = chosen(table, resamples=50)
    names = (
        "vector operation layers hook multiplier dose split n unreadable unreadable_unsteered value_name"
        " value low high unsteered change* in_sample_score held_out_score optimism* selection_agreement"
    )
    assert list(result) == columns_of(f"{names} controls null_low null_high p_value")
    assert result[["vector", "operation", "split"]].to_numpy().tolist() == [
        ["honesty", operation, split] for operation in ("add", "project_out") for split in ("one", "two")
    ]


def test_conditions_are_never_pooled_and_naming_them_changes_nothing():
    table = random_sweep()
    pd.testing.assert_frame_equal(effectiveness(table, by=["multiplier", "layers"]), effectiveness(table))
    projected = row_of(effectiveness(table), operation="project_out")
    assert np.isnan([projected["multiplier"], projected["dose"]]).all()
    assert projected["n"] == 80


def test_overall_puts_all_prompts_together_first():
    table = random_sweep()
    result = effectiveness(table, by="topic", overall=True)
    assert list(result["topic"]) == ["all"] * 7 + ["sea", "sky"] * 7
    together = result[:7].drop(columns="topic")
    pd.testing.assert_frame_equal(together, effectiveness(table))
    split = result[7:].reset_index(drop=True)
    pd.testing.assert_frame_equal(split, effectiveness(table, by="topic"), check_dtype=False)


@pytest.mark.parametrize("levels", [[0, 1], [True, False], [0.5, 1.5]])
def test_overall_takes_factors_that_are_not_text(levels):
    table = random_sweep()
    table["level"] = table["prompt_id"].map(lambda prompt: levels[prompt % 2])
    result = effectiveness(table, by=["layers", "level"], overall=True)
    assert list(result["level"]) == ["all"] * 7 + levels * 7
    assert set(effectiveness(table, by="answer", overall=True)["answer"]) == {"all", 0, 1}
    categories = table.assign(level=table["level"].astype("category"))
    pd.testing.assert_frame_equal(effectiveness(categories, by="level", overall=True), result)


UNKNOWN = pd.array([pd.NA] * 560, dtype="Int64")


@pytest.mark.parametrize(
    ("change", "missing", "known"),
    [
        (lambda table: table.assign(answer=UNKNOWN), ["accuracy", "accuracy_high"], ["signal_rate", "shift"]),
        (lambda table: table.assign(logit_difference=NAN, choice=UNKNOWN),
         ["signal_rate", "logit_difference", "shift_low", "flipped"], ["accuracy"]),
        (lambda table: table[table["vector"] != "none"], ["shift", "shift_low", "flipped"], ["accuracy"]),
    ],
)  # fmt: skip
def test_without_answers_readable_texts_or_unsteered_rows_all_else_is_known(change, missing, known):
    result = effectiveness(change(random_sweep()))
    assert result[missing].isna().all(axis=None)
    assert result[known].notna().all(axis=None)


def test_the_table_is_left_alone():
    table = random_sweep()
    before = table.copy()
    effectiveness(table, by="topic")
    signal_detection(table, by="topic", resamples=10)
    choose(table, on="one", report="two", resamples=10)
    pd.testing.assert_frame_equal(table, before)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda table: signal_detection(table.drop(columns=["choice", "dose"])), "the columns dose, choice"),
        (lambda table: effectiveness(table.drop(columns="multiplier")), "lacks the columns multiplier"),
        (lambda table: effectiveness(table, by="colour"), "lacks the columns colour"),
        (lambda table: effectiveness(table, by=["choice"]), "expected factors"),
        (lambda table: signal_detection(table.assign(answer=pd.NA)), "no row has an answer"),
        (lambda table: signal_detection(table.assign(answer=2)), "expected 0, 1"),
        (lambda table: effectiveness(table, overall=True), "overall=True with by=.*expected one factor"),
        (lambda table: effectiveness(table, by="layers", overall=True), "with by=.*expected one factor"),
        (lambda table: effectiveness(table, by=["topic", "answer"], overall=True), "with by=.*one factor"),
        (lambda table: effectiveness(table.assign(topic="all"), by="topic", overall=True),
         "'topic' has a value 'all' already"),
        (lambda table: effectiveness(pd.concat([table, table.assign(model="b")])),
         "prompt_id 0 is twice in the condition vector=none"),
    ],
)  # fmt: skip
def test_missing_columns_factors_and_outcomes_are_named(call, message):
    assert_raises(message, call, random_sweep(8))


@pytest.mark.parametrize(
    ("column", "value", "expected"),
    [
        ("logit_difference", True, "numbers"),
        ("prompt_id", "x", "numbers or text in every row, not both"),
        ("prompt_id", None, "numbers or text in every row"),
        ("layers", 2, "text"),
        ("control", 1, "true or false"),
        ("dose", "1", "numbers"),
        ("choice", 2, "0, 1 or missing"),
    ],
)
def test_a_value_of_another_type_is_rejected_by_its_column(column, value, expected):
    table = random_sweep(8).astype(object)
    table.loc[3, column] = value
    assert_raises(f"column '{column}' holds .*: expected {expected}", effectiveness, table)


def test_a_prompt_may_be_twice_in_a_condition_if_a_factor_separates_them():
    table = random_sweep(8)
    assert len(effectiveness(pd.concat([table.assign(model=each) for each in "ab"]), by="model")) == 14


def z(successes, n):
    return stats.norm.ppf((successes + 0.5) / (n + 1))


def test_signal_detection_is_hautus_of_plain_counts():
    table = random_sweep()
    result = row_of(signal_detection(table, resamples=50), layers="4")
    rows = table[(table["layers"] == "4") & table["choice"].notna()]
    sizes, scores = [], []
    for name, answer in (("hit_rate", 0), ("false_alarm_rate", 1)):
        choices = rows[rows["answer"] == answer]["choice"].to_list()
        assert interval_of(result, name) == wilson(choices.count(0), len(choices))
        sizes.append(len(choices))
        scores.append(z(choices.count(0), len(choices)))
    assert [result["n_signal"], result["n_noise"]] == sizes
    assert result["unreadable"] == pytest.approx(1 - len(rows) / 80)
    assert result["d_prime"] == pytest.approx(scores[0] - scores[1])
    assert result["criterion"] == pytest.approx(-sum(scores) / 2)


def test_changes_are_against_unsteered_on_the_prompts_readable_in_both():
    table = random_sweep()
    result = row_of(signal_detection(table, resamples=50), layers="4")
    conditions = [table[table["layers"] == "4"], table[table["vector"] == "none"]]
    known = np.logical_and(*(rows["choice"].notna().to_numpy() for rows in conditions))
    d_primes, criteria = [], []
    for rows in conditions:
        rates = [z((side["choice"] == 0).sum(), len(side)) for _, side in rows[known].groupby("answer")]
        d_primes.append(rates[0] - rates[1])
        criteria.append(-sum(rates) / 2)
    assert result["d_prime_change"] == pytest.approx(np.subtract(*d_primes))
    assert result["criterion_change"] == pytest.approx(np.subtract(*criteria))


def test_intervals_are_those_of_prompts_weighed_one_by_one():
    """Every prompt a random weight, and half a prompt more for each choice, or for each change of it."""
    rng = np.random.default_rng(5)
    answers = np.repeat([0, 1], 100)
    before = np.where(rng.random(200) < 0.75, answers, 1 - answers)
    after = np.where(rng.random(200) < 0.3, 0, before)
    table = pd.concat([unsteered(list(before), answers), condition(list(after), answers)])
    result = row_of(signal_detection(table, resamples=20000), vector="honesty")

    def z_of(rows, choice, added):
        weights = rng.exponential(size=(20000, len(rows) + 2))
        weights[:, -2:] = rng.chisquare(1, (20000, 2)) / 2  # Gamma(½)
        return [
            stats.norm.ppf(weights[:, np.append(each[rows], extra) == 0].sum(1) / weights.sum(1))
            for each, extra in zip(choice, added, strict=True)
        ]

    classes = [np.flatnonzero(answers == answer) for answer in (0, 1)]
    values = [z_of(rows, [after], [[0, 1]])[0] for rows in classes]
    moves = [np.subtract(*z_of(rows, [after, before], [[0, 1], [1, 0]])) for rows in classes]
    for suffix, (signal, noise) in (("", values), ("_change", moves)):
        for name, drawn in (("d_prime", signal - noise), ("criterion", -(signal + noise) / 2)):
            expected = pytest.approx(np.percentile(drawn, [2.5, 97.5]), abs=0.02)
            assert interval_of(result, name + suffix)[1:] == expected


def test_saying_the_signal_more_often_is_a_negative_criterion_and_no_better_d_prime():
    """The study's finding: both classes of prompts move toward "true"."""
    before, after = np.repeat([0, 1, 0, 1], [35, 15, 15, 35]), np.repeat([0, 1, 0, 1], [45, 5, 27, 23])
    answers = np.repeat([0, 1], 50)
    table = table_of(unsteered(before, answers), condition(after, answers))
    result = row_of(signal_detection(table), vector="honesty")
    assert result["criterion"] < -0.3
    assert result["criterion_change_high"] < 0
    assert result["d_prime_change_low"] < 0 < result["d_prime_change_high"]


def test_sixty_right_of_sixty_is_not_certain():
    answers = np.repeat([0, 1], 60)
    result = signal_detection(pd.concat([unsteered(answers, answers), condition(answers, answers)]))
    itself, steered = result.iloc
    assert steered["d_prime_high"] - steered["d_prime_low"] > 0.3
    assert steered["d_prime_change_low"] < 0 == steered["d_prime_change"] < steered["d_prime_change_high"]
    assert itself[["d_prime_change", "d_prime_change_low", "criterion_change_high"]].to_list() == [0, 0, 0]


def test_one_class_alone_or_no_unsteered_condition_gives_nan():
    table = random_sweep()
    assert signal_detection(table, by="answer", resamples=20)["d_prime"].isna().all()
    alone = signal_detection(table[table["vector"] != "none"], resamples=20)
    assert alone["d_prime"].notna().all()
    assert alone[["d_prime_change", "criterion_change_low"]].isna().all(axis=None)


def test_a_row_does_not_depend_on_the_other_conditions():
    table = random_sweep()
    some = table[(table["layers"] == "4") | (table["vector"] == "none")]
    whole, part = (row_of(signal_detection(rows, resamples=100), layers="4") for rows in (table, some))
    pd.testing.assert_series_equal(whole, part, check_names=False)
    other = row_of(signal_detection(some, resamples=100, seed=1), layers="4")
    assert other["d_prime_low"] != whole["d_prime_low"]


def test_the_choice_is_made_on_one_half_and_reported_on_the_other():
    """Layer 3 is always right on the first half alone, layer 4 is good on both."""
    answers = np.tile([0, 1], 20)
    row = np.arange(40)
    lucky, good = (np.where(wrong, 1 - answers, answers) for wrong in (row >= 20, (row >= 16) & (row < 20)))
    table = pd.concat(
        [unsteered(1 - answers, answers), condition(lucky, answers), condition(good, answers, layers="4")]
    )
    result = chosen(table, resamples=200)
    names = ["layers", "split", "value", "unsteered", "change", "n"]
    assert result[names].to_numpy().tolist() == [["3", "one", 1, 0, 1, 20], ["3", "two", 0, 0, 0, 20]]
    assert choose(table, on="two", report="one", resamples=200)["layers"].to_list() == ["4", "4"]


def test_choose_gives_the_numbers_of_the_other_tables():
    table = random_sweep()
    accuracy, d_prime = chosen(table), chosen(table, value="d_prime")
    for split, rows in table.groupby("split"):
        result = row_of(accuracy, split=split, operation="add")
        measured = effectiveness(rows)
        own = row_of(condition_rows(measured, result))
        assert result[["value", "low", "high"]].to_list() == interval_of(own, "accuracy")
        assert result["change"] == result["value"] - row_of(measured, vector="none")["accuracy"]
        assert result["change_low"] < result["change"] < result["change_high"]
        result = row_of(d_prime, split=split, operation="project_out")
        own = row_of(signal_detection(rows), operation="project_out")
        assert result[["value", "low", "high"]].to_list() == interval_of(own, "d_prime")
        assert interval_of(result, "change") == interval_of(own, "d_prime_change")


def test_a_shift_counts_in_the_direction_of_the_multiplier():
    rng = np.random.default_rng(0)
    before = rng.normal(size=20)
    down = condition(multiplier=-2.0, logits=before - 3 + rng.normal(size=20) / 10)
    up = condition(multiplier=2.0, logits=before + 1)
    result = chosen(pd.concat([unsteered(logits=before), down, up]), value="shift")
    assert list(result["multiplier"]) == [-2, -2]
    reported = result.iloc[1]
    oracle = stats.ttest_rel(before[10:], down["logit_difference"][10:]).confidence_interval(0.95)
    assert (reported["low"], reported["high"]) == pytest.approx((oracle.low, oracle.high))
    assert reported["value"] == reported["change"] == pytest.approx(3, abs=0.2)
    assert reported["unsteered"] == 0


def test_a_function_scores_rows_and_is_bootstrapped_in_pairs():
    table = random_sweep()

    def mean_logit(rows):
        return rows["logit_difference"].mean()

    row = row_of(chosen(table, value=mean_logit, resamples=200), operation="add", split="two")
    rows = table[table["split"] == "two"]
    before = rows[rows["vector"] == "none"]["logit_difference"].to_numpy()
    steered = condition_rows(rows, row)["logit_difference"].to_numpy()
    assert row["value_name"] == "mean_logit"
    assert (row["value"], row["unsteered"]) == pytest.approx((steered.mean(), before.mean()))
    for names, oracle in (
        (["change_low", "change_high"], stats.ttest_rel(steered, before)),
        (["low", "high"], stats.ttest_1samp(steered, 0)),
    ):
        assert list(row[names]) == pytest.approx([*oracle.confidence_interval(0.95)], abs=0.12)


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (None, {"report": "one"}, "both 'one'"),
        (None, {"report": "three"}, r"no split 'three'; the table has \['one', 'two'\]"),
        (lambda table: table.assign(prompt_id=table["prompt_id"].replace({5: 2})), {}, r"_id \[2\] in both"),
        (lambda table: table.assign(prompt=table["prompt"].replace("prompt 5", "prompt 2")), {},
         r"prompt \['prompt 2'\] in both"),
        (lambda table: table.drop(index=table.index[table["layers"] == "4"][0]), {}, "the whole sweep"),
        (lambda table: table[table["vector"] != "none"], {}, "the whole sweep"),
        (lambda table: table[table["control"] | (table["vector"] == "none")], {}, "to choose from"),
        (None, {"value": "precision"}, "expected .accuracy., .readable_accuracy."),
        (lambda table: table.assign(logit_difference=NAN), {"value": "shift"},
         "no condition of 'honesty' has a score"),
    ],
)  # fmt: skip
def test_choose_rejects_tables_that_do_not_compare_like_with_like(change, options, message):
    table = random_sweep(8)
    options = {"on": "one", "report": "two"} | options
    assert_raises(message, choose, change(table) if change else table, **options)


TABLES_BY = {
    "effectiveness": lambda table, by: effectiveness(table, by=by, overall=True),
    "signal_detection": lambda table, by: signal_detection(table, by=by, resamples=10),
    "signal": lambda table, by: signal_detection(table, signal=by, resamples=10),
    "accuracy": lambda table, by: against_controls(table, by=by, value="accuracy"),
    "steerability": lambda table, by: steerability(table, by=by, resamples=10),
    "choose": lambda table, by: choose(table, on="one", report="two", splits=2, resamples=10),
    "opposites": lambda table, by: answer_pairs(table[~table["control"]], "opposite"),
    "preference": lambda table, by: preference(judged_pairs(table), by=by),
    "mean_projections": lambda table, by: mean_projections(projected_rows(by)),
    "by side": lambda table, by: mean_projections(projected_rows(by), by=["side", by]),
    "traces": lambda table, by: mean_traces(traced_rows(by), by=by),
    "pairs of traces": lambda table, by: mean_traces(
        traced_rows(by), by=by, difference=("sea", "sky"), pair="prompt_id"
    ),
}  # fmt: skip


def judged_pairs(table):
    pairs = answer_pairs(table[~table["control"]], "opposite")
    pairs = pairs.assign(verdict="positive", reply="1", cached=False)
    return pd.concat([pairs.assign(first_shown=first) for first in ("positive", "negative")])


def projected_rows(factor):
    keys = [(layer, pair, side) for layer in (1, 2) for pair in range(8) for side in ("positive", "negative")]
    table = pd.DataFrame(keys, columns=["layer", "pair", "side"])
    table[factor] = np.where(table["pair"] % 2, "sea", "sky")
    return table.assign(projection=np.sin(np.arange(len(table)) ** 2), cosine=0.5)


def traced_rows(factor):
    keys = [(topic, prompt, at) for topic in ("sea", "sky") for prompt in range(3) for at in (-1, 0)]
    table = pd.DataFrame(keys, columns=[factor, "prompt_id", "position"])
    values = np.sin(np.arange(len(table)) ** 2)
    return table.assign(layer=1, token_id=table["position"] + 5, token="a", projection=values, cosine=0.5)


@pytest.mark.filterwarnings("ignore:.* texts have no opposite")
@pytest.mark.parametrize("function", TABLES_BY)
@pytest.mark.parametrize("name", ["_group", "_signal", "readable", "compared", "low", "self", "token_second"])
def test_factors_may_have_the_names_of_temporary_columns(function, name):
    table = random_sweep(n=40)
    expected = TABLES_BY[function](table.rename(columns={"topic": "zz"}), "zz")
    result = TABLES_BY[function](table.rename(columns={"topic": name}), name)
    pd.testing.assert_frame_equal(result, expected.rename(columns={"zz": name}))


@pytest.mark.parametrize(
    ("function", "name"),
    [
        ("effectiveness", "accuracy_low"),
        ("effectiveness", "n"),
        ("signal_detection", "unsteered_choice"),
        ("signal", "unsteered_logit_difference"),
        ("steerability", "unsteered_choice"),
        ("by side", "spread_high"),
        ("traces", "n"),
    ],
)  # fmt: skip
def test_factors_with_the_names_of_results_are_rejected(function, name):
    message = rf"(?i)'{name}'.* names? of .*rename"
    assert_raises(message, TABLES_BY[function], random_sweep(n=20).rename(columns={"topic": name}), name)
    table = random_sweep(n=40)
    for each in (effectiveness, partial(choose, on="one", report="two", splits=2)):
        pd.testing.assert_frame_equal(each(table.assign(**{name: "x"})), each(table))
