"""Steerability: every slope against numpy's own line, every interval against a plain loop."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from tl_steer import plots
from tl_steer.evaluation._steerability import LINE, prompt_slopes, steerability

from .conftest import assert_raises
from .sweep_tables import NAN, condition, table_of, unsteered

MULTIPLIERS = (-2.0, -1.0, 1.0, 4.0)
VECTORS = (("honesty", "3", 0.1), ("honesty", "4+7", 0.02), ("random 1", "3", 0.1))
TOPICS = ("land", "sea", "sky")


def steered(n=41, seed=0):
    """Two layers and a control, each prompt with its own slope, and a projection; rows shuffled."""
    rng = np.random.default_rng(seed)
    before = rng.normal(size=n)
    conditions = [unsteered(logits=before), condition(logits=before, operation="project_out", multiplier=NAN)]
    for vector, layers, norm in VECTORS:
        slopes, columns = rng.normal(0.5, 1, n), {"vector": vector, "layers": layers, "norm": norm}
        for multiplier in MULTIPLIERS:
            logits = before + slopes * multiplier + rng.normal(0, 0.3, n)
            conditions.append(condition(logits=logits, multiplier=multiplier, **columns))
    table = table_of(*conditions)
    table["topic"] = np.resize(["sea", "sky", "land"], n)[table["prompt_id"]]
    return table.sample(frac=1, random_state=seed, ignore_index=True)


def own_rows(slopes, **columns):
    """The rows of vectors, without controls, with these values."""
    for name, value in ({"control": False} | columns).items():
        slopes = slopes[slopes[name] == value]
    return slopes


def points_of(table, row):
    """Multipliers, doses with their sign, and logit differences of a prompt's line."""
    own = (table[list(LINE)] == row[list(LINE)]).all(axis=1) | (table["vector"] == "none")
    rows = table[own & (table["prompt_id"] == row["prompt_id"])]
    return rows["multiplier"], rows["dose"] * np.sign(rows["multiplier"]), rows["logit_difference"]


# the slope of each prompt


def test_a_slope_is_that_of_numpys_line_through_the_unsteered_point_and_all_multipliers():
    table = steered(n=13)
    result = prompt_slopes(table)
    assert len(result) == 3 * 13
    for _, row in result.iterrows():
        multiplier, dose, logits = points_of(table, row)
        assert len(multiplier) == row["multipliers"] == 5
        assert row["slope"] == pytest.approx(np.polyfit(multiplier, logits, 1)[0])
        assert row["slope_per_dose"] == pytest.approx(np.polyfit(dose, logits, 1)[0])
        assert row["r_squared"] == pytest.approx(stats.linregress(multiplier, logits).rvalue ** 2)


def test_a_slope_has_the_columns_of_its_prompt():
    table = steered()
    result = prompt_slopes(table)
    columns = ["prompt_id", "prompt", "topic", "answer", "split"]
    numbers = ["multipliers", "slope", "r_squared", "slope_per_dose"]
    assert list(result) == [*LINE, "toward", *columns, *numbers]
    assert result[columns].merge(table[columns].drop_duplicates()).equals(result[columns])
    assert result.loc[result["control"], "vector"].unique() == ["random 1"]
    assert not result["operation"].eq("project_out").any(), "a projection has no multiplier"


def test_one_multiplier_and_the_unsteered_point_give_the_difference():
    before = np.array([0.5, -1.0, 2.0])
    moved = condition(logits=before + np.array([1.0, -3.0, 0.0]), multiplier=2.0)
    result = prompt_slopes(table_of(unsteered(logits=before), moved))
    assert result["slope"].to_list() == [0.5, -1.5, 0.0]
    assert result["slope_per_dose"].to_list() == pytest.approx([5.0, -15.0, 0.0])
    assert result["multipliers"].to_list() == [2, 2, 2]
    assert result["r_squared"].to_list() == pytest.approx([1.0, 1.0, NAN], nan_ok=True)


def test_a_prompt_that_does_not_move_has_a_slope_of_exactly_zero_and_is_not_anti_steerable():
    before = np.array([0.1, 0.7, 1 / 3])
    conditions = [condition(logits=before, multiplier=multiplier) for multiplier in (0.1, 0.2, 0.3)]
    table = table_of(unsteered(logits=before), *conditions)
    assert prompt_slopes(table)["slope"].to_list() == [0.0, 0.0, 0.0]
    assert steerability(table)["anti_steerable"].to_list() == [0.0]


def test_a_multiplier_of_zero_is_the_unsteered_point_and_counts_once():
    table = steered()
    labels = {"vector": "honesty", "operation": "add", "layers": "3", "hook": "resid_post"}
    zero = table[table["vector"] == "none"].assign(**labels)
    pd.testing.assert_frame_equal(prompt_slopes(pd.concat([table, zero])), prompt_slopes(table))


def test_toward_the_answer_turns_the_slopes_of_prompts_whose_answer_is_the_other():
    table = steered()
    signal, answer = (prompt_slopes(table, toward=each) for each in ("signal", "answer"))
    sign = np.where(signal["answer"] == 1, -1, 1)
    assert answer["slope"].to_list() == (signal["slope"] * sign).to_list()
    assert answer["r_squared"].to_list() == pytest.approx(signal["r_squared"].to_list())
    table.loc[table["prompt_id"] == 1, "answer"] = pd.NA
    unknown = prompt_slopes(table, toward="answer").set_index("prompt_id")["slope"]
    assert unknown[1].isna().all()
    assert unknown.drop(1).notna().all()


def test_unscored_points_are_left_out():
    table = steered()
    lost = (table["prompt_id"] == 3) & (table["multiplier"] == 4.0) & (table["vector"] == "honesty")
    result = prompt_slopes(table.assign(logit_difference=table["logit_difference"].mask(lost)))
    rest = prompt_slopes(table[table["multiplier"] != 4.0])
    for layers in ("3", "4+7"):
        one, other = (own_rows(each, prompt_id=3, layers=layers).iloc[0] for each in (result, rest))
        assert one["multipliers"] == other["multipliers"] == 4
        assert one["slope"] == pytest.approx(other["slope"])


def test_an_operation_without_a_dose_has_no_slope_per_dose():
    table = steered()
    result = prompt_slopes(table.assign(dose=table["dose"].where(table["vector"] == "none")))
    assert result["slope_per_dose"].isna().all()
    pd.testing.assert_series_equal(result["slope"], prompt_slopes(table)["slope"])


def test_the_table_is_not_modified():
    table = steered()
    before = table.copy(deep=True)
    steerability(table, by="topic")
    pd.testing.assert_frame_equal(table, before)


# over prompts


@pytest.mark.parametrize("by", [(), "topic"])
def test_steerability_is_a_plain_loop_over_prompts(by):
    table = steered()
    slopes = prompt_slopes(table)
    result = steerability(table, by=by)
    keys = [*LINE, *([by] if by else [])]
    assert len(result) == 3 * (3 if by else 1)
    for _, row in result.iterrows():
        own = slopes[(slopes[keys] == row[keys]).all(axis=1)]
        wrong = sum(slope < 0 for slope in own["slope"])
        interval = stats.binomtest(wrong, len(own)).proportion_ci(method="wilson")
        expected = {
            "n": len(own),
            "slope": sum(own["slope"]) / len(own),
            "slope_per_dose": sum(own["slope_per_dose"]) / len(own),
            "anti_steerable": wrong / len(own),
            "anti_steerable_low": interval.low,
            "anti_steerable_high": interval.high,
            "spread": stats.tstd(own["slope"]),
            "r_squared": np.median(own["r_squared"]),
        }
        assert row[list(expected)].to_dict() == pytest.approx(expected)


def test_the_bootstrap_is_that_of_a_plain_loop_at_the_percentiles_of_hesterberg():
    table = steered(n=12)
    result = steerability(table, resamples=8000).iloc[0]
    slopes = prompt_slopes(table)
    own = slopes[(slopes[list(LINE)] == result[list(LINE)]).all(axis=1)]
    rng = np.random.default_rng(1)
    # Hesterberg's equation: the normal quantile at the t quantile, multiplied by √(n / (n − 1))
    outer = stats.norm.cdf(-stats.t.ppf(0.975, 11) * (12 / 11) ** 0.5)
    for name in ("slope", "slope_per_dose"):
        means = [rng.choice(own[name], 12).mean() for _ in range(8000)]
        low, high = np.quantile(means, [outer, 1 - outer])
        interval = result[[f"{name}_low", f"{name}_high"]].to_list()
        assert interval == pytest.approx([low, high], abs=0.04 * (high - low))


def test_intervals_of_a_mean_slope_have_their_nominal_coverage():
    """Twenty prompts, where the percentile interval without expansion covers in 92 %."""
    rng = np.random.default_rng(0)
    conditions = [condition(logits=rng.normal(1.0, 2.0, 20), layers=str(layer)) for layer in range(500)]
    result = steerability(table_of(unsteered(logits=np.zeros(20)), *conditions), resamples=500)
    assert 0.93 <= result["slope_low"].le(1.0).mul(result["slope_high"].ge(1.0)).mean() <= 0.97


def test_a_row_does_not_depend_on_the_other_rows():
    table = steered()
    alone = steerability(table[table["layers"].isin(["", "3"]) & ~table["control"]])
    together, other_seed = steerability(table), steerability(table, seed=1)
    pd.testing.assert_frame_equal(alone, own_rows(together, layers="3").reset_index(drop=True))
    assert other_seed["slope_low"].to_list() != together["slope_low"].to_list()


def test_one_prompt_has_no_interval_and_an_unknown_answer_no_slope():
    row = steerability(table_of(unsteered(logits=[0.5]), condition(logits=[-0.5]))).iloc[0]
    assert (row["n"], row["slope"], row["anti_steerable"]) == (1, -1.0, 1.0)
    assert row[["slope_low", "slope_high", "spread"]].isna().all()
    twelve = steered(n=12)
    twelve["answer"] = twelve["answer"].mask(twelve["topic"] == "sea")
    by_topic = steerability(twelve, by="topic", toward="answer").set_index("topic")
    assert by_topic.loc["sea", "n"].to_list() == [0, 0, 0]
    assert by_topic.loc["sea", "anti_steerable"].isna().all()
    assert by_topic.loc["sky", "n"].to_list() == [4, 4, 4]


def test_toward_the_answer_finds_the_bias_that_looks_like_steering():
    """All prompts move toward the signal: for half of them that is away from their answer."""
    rng = np.random.default_rng(0)
    before = rng.normal(size=40)
    table = table_of(unsteered(logits=before), condition(logits=before + 2 + rng.normal(0, 0.1, 40)))
    assert steerability(table)["anti_steerable"].to_list() == [0.0]
    row = steerability(table, toward="answer").iloc[0]
    assert row["anti_steerable"] == 0.5
    assert row["slope_low"] < 0 < row["slope_high"]


# errors


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda table: table[table["operation"].isin(["none", "project_out"])], "projection has none"),
        (lambda table: table[table["vector"] == "none"], "no steered row has a multiplier"),
        (lambda table: table.assign(logit_difference=NAN), "logit differences are NaN"),
        (lambda table: table[(table["vector"] != "none") | (table["prompt_id"] != 4)], "prompt_id 4 has no"),
        (lambda table: pd.concat([table, table.iloc[:1]]), "is twice in the condition"),
        (lambda table: table.drop(columns="dose"), "lacks the columns dose"),
        (lambda table: table.assign(answer=pd.NA), "no row has one"),
        (lambda table: table.assign(slope=1), r"\['slope'\] have names of results"),
    ],
)
def test_tables_without_slopes_are_rejected(change, message):
    assert_raises(message, prompt_slopes, change(steered(n=12)), toward="answer")


# the figures


def named(figure, name):
    (trace,) = [trace for trace in figure.data if trace.name == name and trace.showlegend is not False]
    return trace


def points(trace):
    """Coordinates without the gaps between lines."""
    return [(x, y) for x, y in zip(trace.x, trace.y, strict=True) if x is not None and x == x]


@pytest.mark.parametrize("value", ["slope", "slope_per_dose", "anti_steerable"])
def test_a_vector_is_a_line_by_layer_and_its_controls_a_band_of_either_sign(value):
    table = steered()
    single = table[table["layers"] == "3"].assign(layers="5")
    second = single[single["control"]].assign(vector="random 2")
    second["logit_difference"] *= -2
    result = steerability(table_of(table, single, second))
    figure = plots.steerability(result, value=value)
    own = own_rows(result).set_index("layers").loc[["3", "5", "4+7"]]
    line = named(figure, "honesty")
    assert points(line) == list(zip((3.0, 5.0, 6.0), own[value], strict=True))
    assert line.x[2] is None or line.x[2] != line.x[2], "nothing lies between a layer and a set of layers"
    high = [each for each in line.error_y.array if each]
    assert high == pytest.approx([each for each in own[f"{value}_high"] - own[value] if each])
    band = named(figure, "controls, ±")
    for layer in ("3", "5"):
        numbers = own_rows(result, control=True, layers=layer)[value]
        both = [*numbers, *(1 - numbers if value == "anti_steerable" else -numbers)]
        heights = [y for x, y in zip(band.x, band.y, strict=True) if x == float(layer)]
        assert sorted(heights) == pytest.approx([min(both), max(both)])
    title = "prompts with" if value == "anti_steerable" else "mean slope"
    assert figure.layout.yaxis.title.text.startswith(title)
    assert figure.layout.title.text.endswith("the signal")


def test_a_steerability_figure_has_a_panel_for_each_value_of_a_factor():
    result = steerability(steered(), by="topic", toward="answer")
    figure = plots.steerability(result, facet="topic")
    assert [note.text for note in figure.layout.annotations][:3] == [f"topic: {topic}" for topic in TOPICS]
    lines = [trace for trace in figure.data if trace.name == "honesty"]
    for trace, topic in zip(lines, TOPICS, strict=True):
        assert sorted(y for _, y in points(trace)) == sorted(own_rows(result, topic=topic)["slope"])
    assert figure.layout.title.text.endswith("the right answer")


def test_vectors_with_controls_of_their_own_have_a_band_each():
    table = steered()
    other = table[table["vector"] == "honesty"].assign(vector="tone")
    owned = table.assign(control_of=table["control"].map({True: "honesty", False: ""}))
    matched = table[table["vector"] == "random 1"].assign(vector="random 2", control_of="tone")
    figure = plots.steerability(steerability(pd.concat([owned, other, matched])))
    bands = [trace for trace in figure.data if trace.name == "controls, ±"]
    assert len({trace.line.color for trace in bands}) == 2
    assert len({trace.name for trace in figure.data if trace.showlegend}) == 3


def test_a_slope_histogram_counts_the_prompts_of_its_layer_and_says_how_many_go_the_wrong_way():
    table = prompt_slopes(steered())
    figure = plots.prompt_slopes(table, layer=3)
    for name, is_control in (("honesty", False), ("controls", True)):
        own = own_rows(table, layers="3", control=is_control)["slope"]
        (bars,) = [trace for trace in figure.data if trace.type == "bar" and trace.name == name]
        for middle, share in zip(bars.x, bars.y, strict=True):
            inside = (own >= middle - bars.width / 2) & (own < middle + bars.width / 2)
            assert share == pytest.approx(inside.mean(), abs=1e-4)
            assert abs(middle / bars.width % 1 - 0.5) < 1e-6, "0 is an edge of the bins"
        assert sum(bars.y) == pytest.approx(1, abs=1e-3)
    own = own_rows(table, layers="3")["slope"]
    assert f"({(own < 0).sum()} of 41)" in figure.layout.annotations[0].text
    strip = next(trace for trace in figure.data if trace.type == "scatter")
    assert sorted(strip.x) == pytest.approx(sorted(own), rel=1e-4)


def test_the_slider_of_a_slope_histogram_shows_every_layer_with_its_title():
    table = prompt_slopes(steered())
    figure = plots.prompt_slopes(table, value="slope_per_dose")
    (slider,) = figure.layout.sliders
    assert [step.label for step in slider.steps] == ["3", "4+7"]
    assert slider.active == 1
    strip = [trace.type for trace in figure.data].index("scatter")
    for step in slider.steps:
        data, titles = step.args
        own = own_rows(table, layers=step.label)["slope_per_dose"]
        assert len(data["x"]) == len(figure.data)
        assert sorted(data["x"][strip]) == pytest.approx(sorted(own), rel=1e-4)
        assert f"({(own < 0).sum()} of 41)" in titles["annotations[0].text"]
        assert all(heights is not None for heights in data["y"])


def test_a_slope_histogram_has_a_panel_for_each_value_of_a_factor_and_hovers_with_the_prompt():
    table = prompt_slopes(steered()).replace({"prompt": {"prompt 2": "<b>loud</b> prompt"}})
    figure = plots.prompt_slopes(table, facet="topic")
    for note, topic in zip(figure.layout.annotations, TOPICS, strict=True):
        own = own_rows(table, topic=topic, layers="4+7")["slope"]
        assert f"topic: {topic}" in note.text
        assert f"({(own < 0).sum()} of {len(own)})" in note.text
    hovers = [text for trace in figure.data if trace.type == "scatter" for text in trace.hovertext]
    assert len(hovers) == 41
    assert "&lt;b&gt;loud&lt;/b&gt; prompt" in hovers


def test_rows_of_several_tables_put_together_are_drawn_as_those_of_one():
    result = steerability(steered(n=12))
    again = result.set_index(pd.Index([0] * len(result)))
    assert plots.steerability(again).to_json() == plots.steerability(result).to_json()


def test_arguments_and_tables_that_do_not_fit_are_rejected():
    table = steered(n=12)
    result, slopes = steerability(table), prompt_slopes(table)
    one_missing = slopes.drop(index=slopes.index[~slopes["control"]][0])
    for function, rows, options, message in (
        (prompt_slopes, table, {"toward": "truth"}, "toward='truth': expected 'signal' or 'answer'"),
        (steerability, table.assign(spread=1), {"by": "spread"}, r"\['spread'\].* names of results"),
        (steerability, table, {"by": "choice"}, r"by=\['choice'\]: expected factors"),
        (steerability, table, {"resamples": -1}, "resamples=-1: expected 1 or more"),
        (plots.steerability, result.drop(columns="anti_steerable_low"), {}, r"lacks the columns anti_steer"),
        (plots.steerability, result.assign(toward="x"), {}, r"one of signal, answer.*it has \['x'\]"),
        (plots.steerability, result, {"value": "spread"}, "got 'spread'"),
        (plots.steerability, steerability(table, by="topic"), {}, "give facet=… if the table is split"),
        (plots.steerability, result.assign(slope_per_dose=NAN), {"value": "slope_per_dose"}, "NaN in every"),
        (plots.prompt_slopes, slopes.drop(columns="toward"), {}, "lacks the columns toward.*prompt_slopes"),
        (plots.prompt_slopes, slopes.assign(toward="x"), {}, r"one of signal, answer.*it has \['x'\]"),
        (plots.prompt_slopes, slopes, {"value": "anti_steerable"}, "got 'anti_steerable'"),
        (plots.prompt_slopes, slopes, {"layer": 9}, r"no layer 9 in the table; it has 3, 4\+7"),
        (plots.prompt_slopes, slopes[slopes["control"]], {}, "has controls alone"),
        (plots.prompt_slopes, one_missing, {}, "every layer of 'honesty' needs each prompt once"),
        (plots.prompt_slopes, slopes, {"facet": "prompt_id"}, "has 12 values: at most 4 panels"),
    ):
        assert_raises(message, function, rows, **options)
