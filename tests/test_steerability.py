"""Steerability: every slope against numpy's own line, every interval against a plain loop."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

import tl_steer as ts
from tl_steer import plots
from tl_steer.evaluation._steerability import LINE, prompt_slopes, steerability

NAN = float("nan")
MULTIPLIERS = (-2.0, -1.0, 1.0, 4.0)


def condition(logits, *, vector="honesty", layers="3", multiplier=1.0, norm=0.1, **more):
    """Rows of a condition, a prompt each; `norm` is the vector's length as a share of the stream's."""
    n = len(logits)
    values = {
        "prompt_id": range(100, 100 + n),
        "prompt": [f"prompt {row}" for row in range(n)],
        "topic": ["sea", "sky", "land"] * (n // 3) + ["sea"] * (n % 3),
        "vector": vector,
        "control": vector.startswith("random"),
        "control_of": "",
        "operation": "add",
        "layers": layers,
        "hook": "resid_post",
        "multiplier": multiplier,
        "dose": abs(multiplier) * norm,
        "split": ["choose", "report"] * (n // 2) + ["choose"] * (n % 2),
        "answer": pd.array([0, 0, 1, 1] * (n // 4) + [0] * (n % 4), dtype="Int64"),
        "choice": pd.array(np.where(np.asarray(logits) > 0, 0, 1), dtype="Int64"),
        "logit_difference": logits,
        "probability": 0.5,
        "mass": 0.9,
        "text": None,
    }
    return pd.DataFrame(values | more)


def unsteered(logits):
    return condition(logits, vector="none", operation="none", layers="", hook="", multiplier=0.0)


def steered(n=41, seed=0):
    """Two layers and a control, each prompt with a slope of its own, and a projection; rows shuffled."""
    rng = np.random.default_rng(seed)
    before = rng.normal(size=n)
    conditions = [unsteered(before), condition(before, operation="project_out", multiplier=NAN)]
    for vector, layers, norm in (("honesty", "3", 0.1), ("honesty", "4+7", 0.02), ("random 1", "3", 0.1)):
        own = rng.normal(0.5, 1, n)
        for multiplier in MULTIPLIERS:
            logits = before + own * multiplier + rng.normal(0, 0.3, n)
            conditions.append(
                condition(logits, vector=vector, layers=layers, multiplier=multiplier, norm=norm)
            )
    return pd.concat(conditions).sample(frac=1, random_state=seed).reset_index(drop=True)


def points_of(table, row):
    """Multipliers, doses with their sign, and logit differences of a prompt's line, the plain way."""
    result = []
    for each in table.to_dict("records"):
        if each["prompt_id"] != row["prompt_id"] or each["operation"] == "project_out":
            continue
        if each["vector"] == "none" or all(each[name] == row[name] for name in LINE):
            dose = each["dose"] if each["multiplier"] > 0 else -each["dose"]
            result.append((each["multiplier"], dose, each["logit_difference"]))
    return np.array(result).T


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


def test_a_slope_keeps_what_is_known_of_its_prompt():
    table = steered()
    result = prompt_slopes(table)
    assert list(result.columns) == [
        *LINE, "toward", "prompt_id", "prompt", "topic", "answer", "split",
        "multipliers", "slope", "r_squared", "slope_per_dose",
    ]  # fmt: skip
    asked = table.drop_duplicates("prompt_id").set_index("prompt_id")
    for _, row in result.iterrows():
        for name in ("prompt", "topic", "answer", "split"):
            assert row[name] == asked.loc[row["prompt_id"], name]
    assert result.loc[result["control"], "vector"].unique() == ["random 1"]
    assert not result["operation"].eq("project_out").any(), "a projection has no multiplier"


def test_one_multiplier_beside_the_unsteered_gives_the_difference():
    before = np.array([0.5, -1.0, 2.0])
    result = prompt_slopes(
        pd.concat([unsteered(before), condition(before + np.array([1.0, -3.0, 0.0]), multiplier=2.0)])
    )
    assert result["slope"].to_list() == [0.5, -1.5, 0.0]
    assert result["slope_per_dose"].to_list() == pytest.approx([5.0, -15.0, 0.0])
    assert result["multipliers"].to_list() == [2, 2, 2]
    assert result["r_squared"].to_list()[:2] == [1.0, 1.0]
    assert np.isnan(result["r_squared"][2]), "nothing moves"


def test_a_prompt_that_nothing_moves_has_a_slope_of_exactly_zero_and_is_not_counted_as_wrong():
    before = np.array([0.1, 0.7, 1 / 3])
    conditions = [condition(before, multiplier=multiplier) for multiplier in (0.1, 0.2, 0.3)]
    table = pd.concat([unsteered(before), *conditions])
    assert prompt_slopes(table)["slope"].to_list() == [0.0, 0.0, 0.0]
    assert steerability(table)["anti_steerable"].to_list() == [0.0]


def test_a_multiplier_of_zero_is_the_unsteered_point_and_counts_once():
    table = steered()
    zero = table[table["vector"] == "none"].assign(vector="honesty", operation="add", layers="3")
    zero["hook"] = "resid_post"
    pd.testing.assert_frame_equal(prompt_slopes(pd.concat([table, zero])), prompt_slopes(table))


def test_toward_the_answer_turns_the_slopes_of_prompts_whose_answer_is_the_other():
    table = steered()
    signal, answer = (prompt_slopes(table, toward=each) for each in ("signal", "answer"))
    turned = signal["answer"].eq(1)
    assert (answer.loc[~turned, "slope"] == signal.loc[~turned, "slope"]).all()
    assert (answer.loc[turned, "slope"] == -signal.loc[turned, "slope"]).all()
    assert answer["r_squared"].to_list() == pytest.approx(signal["r_squared"].to_list())
    table.loc[table["prompt_id"] == 101, "answer"] = pd.NA
    unknown = prompt_slopes(table, toward="answer").set_index("prompt_id")["slope"]
    assert unknown[101].isna().all()
    assert unknown.drop(101).notna().all()


def test_a_line_leaves_out_the_points_that_were_not_scored():
    table = steered()
    lost = (table["prompt_id"] == 103) & (table["multiplier"] == 4.0) & (table["vector"] == "honesty")
    result = prompt_slopes(table.assign(logit_difference=table["logit_difference"].mask(lost)))
    rest = prompt_slopes(table[table["multiplier"] != 4.0])
    for layers in ("3", "4+7"):
        one, other = (
            each[(each["prompt_id"] == 103) & (each["layers"] == layers) & ~each["control"]].iloc[0]
            for each in (result, rest)
        )
        assert one["multipliers"] == other["multipliers"] == 4
        assert one["slope"] == pytest.approx(other["slope"])


def test_an_operation_without_a_dose_has_a_slope_and_none_by_dose():
    table = steered()
    result = prompt_slopes(table.assign(dose=table["dose"].where(table["vector"] == "none")))
    assert result["slope_per_dose"].isna().all()
    pd.testing.assert_series_equal(result["slope"], prompt_slopes(table)["slope"])


def test_neither_table_nor_order_is_touched():
    table = steered()
    before = table.copy(deep=True)
    prompt_slopes(table)
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
        assert row["n"] == len(own)
        assert row["slope"] == pytest.approx(sum(own["slope"]) / len(own))
        assert row["slope_per_dose"] == pytest.approx(sum(own["slope_per_dose"]) / len(own))
        wrong = sum(slope < 0 for slope in own["slope"])
        assert row["anti_steerable"] == wrong / len(own)
        oracle = stats.binomtest(wrong, len(own)).proportion_ci(method="wilson")
        assert (row["anti_steerable_low"], row["anti_steerable_high"]) == pytest.approx(
            (oracle.low, oracle.high)
        )
        assert row["spread"] == pytest.approx(stats.tstd(own["slope"]))
        assert row["r_squared"] == pytest.approx(np.median(own["r_squared"]))


def test_the_bootstrap_is_that_of_a_plain_loop_at_the_percentiles_of_hesterberg():
    table = steered(n=12)
    result = steerability(table, resamples=8000).iloc[0]
    slopes = prompt_slopes(table)
    own = slopes[(slopes[list(LINE)] == result[list(LINE)]).all(axis=1)]
    rng = np.random.default_rng(1)
    # his equation: the quantile of a normal distribution at the t quantile, stretched by √(n / (n − 1))
    outer = stats.norm.cdf(-stats.t.ppf(0.975, 11) * (12 / 11) ** 0.5)
    for name in ("slope", "slope_per_dose"):
        means = [rng.choice(own[name], 12).mean() for _ in range(8000)]
        low, high = np.quantile(means, [outer, 1 - outer])
        narrow = 0.04 * (high - low)
        assert result[f"{name}_low"] == pytest.approx(low, abs=narrow)
        assert result[f"{name}_high"] == pytest.approx(high, abs=narrow)


def test_the_intervals_of_a_mean_slope_hold_it_about_as_often_as_they_say():
    """Twenty prompts, where the bare percentile interval would hold the mean in 92 of 100."""
    rng = np.random.default_rng(0)
    conditions = [condition(rng.normal(1.0, 2.0, 20), layers=str(layer)) for layer in range(500)]
    result = steerability(pd.concat([unsteered(np.zeros(20)), *conditions]), resamples=500)
    held = (result["slope_low"] <= 1.0) & (result["slope_high"] >= 1.0)
    assert 0.93 <= held.mean() <= 0.97


def test_a_row_does_not_depend_on_the_other_rows():
    table = steered()
    alone = steerability(table[table["layers"].isin(["", "3"]) & ~table["control"]])
    together = steerability(table)
    together = together[(together["layers"] == "3") & ~together["control"]].reset_index(drop=True)
    pd.testing.assert_frame_equal(alone, together)
    other = steerability(table, seed=1)
    assert other["slope_low"].to_list() != steerability(table)["slope_low"].to_list()


def test_one_prompt_has_a_slope_and_no_interval_and_an_unknown_answer_none():
    before = np.array([0.5])
    table = pd.concat([unsteered(before), condition(before - 1)])
    row = steerability(table).iloc[0]
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
    table = pd.concat([unsteered(before), condition(before + 2 + rng.normal(0, 0.1, 40), multiplier=1.0)])
    assert steerability(table)["anti_steerable"].to_list() == [0.0]
    honest = steerability(table, toward="answer").iloc[0]
    assert honest["anti_steerable"] == 0.5
    assert honest["slope_low"] < 0 < honest["slope_high"]


# errors


def test_slopes_need_multipliers_scores_and_the_unsteered_model():
    table = steered(n=12)
    with pytest.raises(ValueError, match=r"no steered row has a multiplier.*projection has none"):
        prompt_slopes(table[table["operation"].isin(["none", "project_out"])])
    with pytest.raises(ValueError, match="no steered row has a multiplier"):
        prompt_slopes(table[table["vector"] == "none"])
    with pytest.raises(ValueError, match=r"logit differences are NaN"):
        prompt_slopes(table.assign(logit_difference=NAN))
    with pytest.raises(ValueError, match="prompt_id 104 has no unsteered row"):
        prompt_slopes(table[(table["vector"] != "none") | (table["prompt_id"] != 104)])
    with pytest.raises(ValueError, match="is twice in the condition"):
        prompt_slopes(pd.concat([table, table.iloc[:1]]))
    with pytest.raises(ValueError, match="lacks the columns dose"):
        prompt_slopes(table.drop(columns="dose"))


def test_words_are_checked():
    table = steered(n=12)
    with pytest.raises(ValueError, match="toward='truth': expected 'signal' or 'answer'"):
        prompt_slopes(table, toward="truth")
    with pytest.raises(ValueError, match="no row has one"):
        prompt_slopes(table.assign(answer=pd.NA), toward="answer")
    with pytest.raises(ValueError, match=r"\['slope'\] have names of results"):
        prompt_slopes(table.assign(slope=1))
    with pytest.raises(ValueError, match=r"by=\['spread'\].* names of results"):
        steerability(table.assign(spread=1), by="spread")
    with pytest.raises(ValueError, match=r"by=\['choice'\]: expected factors"):
        steerability(table, by="choice")


def test_the_functions_are_public():
    assert ts.evaluation.prompt_slopes is prompt_slopes
    assert ts.steerability is steerability


# the figures


def named(figure, name):
    (trace,) = [trace for trace in figure.data if trace.name == name and trace.showlegend is not False]
    return trace


def points(trace):
    """Places and heights, without the gaps between lines."""
    return [(x, y) for x, y in zip(trace.x, trace.y, strict=True) if x is not None and x == x]


@pytest.mark.parametrize("value", ["slope", "slope_per_dose", "anti_steerable"])
def test_a_vector_is_a_line_by_layer_and_its_controls_a_band_of_either_sign(value):
    table = steered()
    extra = table[table["vector"] == "random 1"]
    layers = pd.concat([table, extra.assign(layers="5", vector="random 2"), extra.assign(layers="5")])
    layers = pd.concat(
        [layers, table[(table["vector"] == "honesty") & (table["layers"] == "3")].assign(layers="5")]
    )
    layers.loc[layers["vector"] == "random 2", "logit_difference"] *= -2
    result = steerability(layers)
    figure = plots.steerability(result, value=value)
    own = result[~result["control"]].set_index("layers")
    line = named(figure, "honesty")
    assert points(line) == [
        (3.0, own.loc["3", value]),
        (5.0, own.loc["5", value]),
        (6.0, own.loc["4+7", value]),
    ]
    assert line.x[2] is None or line.x[2] != line.x[2], "nothing lies between a layer and a set of layers"
    high = [each for each in line.error_y.array if each]
    expected = (own[f"{value}_high"] - own[value]).loc[["3", "5", "4+7"]]
    assert high == pytest.approx([each for each in expected if each])
    band = named(figure, "controls, ±")
    controls = result[result["control"]]
    for layer in ("3", "5"):
        numbers = controls.loc[controls["layers"] == layer, value]
        mirrored = 1 - numbers if value == "anti_steerable" else -numbers
        both = [*numbers, *mirrored]
        heights = [y for x, y in zip(band.x, band.y, strict=True) if x == float(layer)]
        assert sorted(heights) == pytest.approx([min(both), max(both)])
    assert figure.layout.yaxis.title.text.startswith(
        "prompts with" if value == "anti_steerable" else "mean slope"
    )
    assert figure.layout.title.text.endswith("the signal")


def test_a_steerability_figure_has_a_panel_for_each_value_of_a_factor():
    result = steerability(steered(), by="topic", toward="answer")
    figure = plots.steerability(result, facet="topic")
    assert [note.text for note in figure.layout.annotations][:3] == [
        "topic: land",
        "topic: sea",
        "topic: sky",
    ]
    lines = [trace for trace in figure.data if trace.name == "honesty"]
    for trace, topic in zip(lines, ("land", "sea", "sky"), strict=True):
        own = result[(result["topic"] == topic) & ~result["control"]]
        assert sorted(y for _, y in points(trace)) == sorted(own["slope"])
    assert figure.layout.title.text.endswith("the right answer")


def test_vectors_with_controls_of_their_own_have_a_band_each():
    table = steered()
    other = table[table["vector"] == "honesty"].assign(vector="tone")
    owned = table.assign(control_of=table["control"].map({True: "honesty", False: ""}))
    mate = table[table["vector"] == "random 1"].assign(vector="random 2", control_of="tone")
    figure = plots.steerability(steerability(pd.concat([owned, other, mate])))
    bands = [trace for trace in figure.data if trace.name == "controls, ±"]
    assert len({trace.line.color for trace in bands}) == 2
    assert len({trace.name for trace in figure.data if trace.showlegend}) == 3


def shares_of(figure, name):
    """Each panel's heights of a group's bars at their places."""
    return [
        dict(zip(trace.x, trace.y, strict=True))
        for trace in figure.data
        if trace.type == "bar" and trace.name == name
    ]


def test_a_slope_histogram_counts_the_prompts_of_its_layer_and_says_how_many_go_the_wrong_way():
    table = prompt_slopes(steered())
    figure = plots.prompt_slopes(table, layer=3)
    for name, is_control in (("honesty", False), ("controls", True)):
        own = table[(table["layers"] == "3") & (table["control"] == is_control)]["slope"]
        (bars,) = shares_of(figure, name)
        (width,) = {trace.width for trace in figure.data if trace.name == name}
        for middle, share in bars.items():
            inside = (own >= middle - width / 2) & (own < middle + width / 2)
            assert share == pytest.approx(inside.mean(), abs=1e-4)
        assert sum(bars.values()) == pytest.approx(1, abs=1e-3)
        assert all(abs(middle / width % 1 - 0.5) < 1e-6 for middle in bars), "0 is an edge of the bins"
    wrong = (table[(table["layers"] == "3") & ~table["control"]]["slope"] < 0).sum()
    assert f"({wrong} of 41)" in figure.layout.annotations[0].text
    strip = next(trace for trace in figure.data if trace.type == "scatter")
    assert sorted(strip.x) == pytest.approx(
        sorted(table[(table["layers"] == "3") & ~table["control"]]["slope"]), rel=1e-4
    )


def test_the_slider_of_a_slope_histogram_shows_every_layer_with_its_own_words():
    table = prompt_slopes(steered())
    figure = plots.prompt_slopes(table, value="slope_per_dose")
    (slider,) = figure.layout.sliders
    assert [step.label for step in slider.steps] == ["3", "4+7"]
    assert slider.active == 1
    for step in slider.steps:
        data, words = step.args
        own = table[(table["layers"] == step.label) & ~table["control"]]["slope_per_dose"]
        assert len(data["x"]) == len(figure.data)
        indices = [index for index, trace in enumerate(figure.data) if trace.type == "scatter"]
        assert sorted(data["x"][indices[0]]) == pytest.approx(sorted(own), rel=1e-4)
        assert f"({(own < 0).sum()} of 41)" in words["annotations[0].text"]
        assert all(data["y"][index] is not None for index in range(len(figure.data)))


def test_a_slope_histogram_has_a_panel_for_each_value_of_a_factor_and_hovers_with_the_prompt():
    table = prompt_slopes(steered()).replace({"prompt": {"prompt 2": "<b>loud</b> prompt"}})
    figure = plots.prompt_slopes(table, facet="topic")
    notes = [note.text for note in figure.layout.annotations]
    for note, topic in zip(notes, ("land", "sea", "sky"), strict=True):
        own = table[(table["topic"] == topic) & (table["layers"] == "4+7") & ~table["control"]]["slope"]
        assert f"topic: {topic}" in note
        assert f"({(own < 0).sum()} of {len(own)})" in note
    hovers = [text for trace in figure.data if trace.type == "scatter" for text in trace.hovertext]
    assert len(hovers) == 41
    assert "&lt;b&gt;loud&lt;/b&gt; prompt" in hovers


def test_an_interval_of_no_draws_is_rejected():
    with pytest.raises(ValueError, match=r"resamples=-1: expected 1 or more"):
        steerability(steered(n=12), resamples=-1)


def test_rows_of_several_tables_put_together_are_drawn_as_those_of_one():
    result = steerability(steered(n=12))
    again = result.set_index(pd.Index([0] * len(result)))
    assert plots.steerability(again).to_json() == plots.steerability(result).to_json()


def test_figures_reject_what_they_cannot_show():
    table = steered(n=12)
    result, lines = steerability(table), prompt_slopes(table)
    with pytest.raises(
        ValueError, match=r"plots\.steerability.*lacks the columns anti_steerable_low.*steerability"
    ):
        plots.steerability(result.drop(columns="anti_steerable_low"))
    for draw, given in ((plots.steerability, result), (plots.prompt_slopes, lines)):
        with pytest.raises(ValueError, match=r"'toward' must be one of signal, answer.*it has \['x'\]"):
            draw(given.assign(toward="x"))
    with pytest.raises(ValueError, match="got 'spread'"):
        plots.steerability(result, value="spread")
    with pytest.raises(ValueError, match=r"give facet=… if the table is split"):
        plots.steerability(steerability(table, by="topic"))
    with pytest.raises(ValueError, match="slope_per_dose is NaN in every row"):
        plots.steerability(result.assign(slope_per_dose=NAN), value="slope_per_dose")
    with pytest.raises(ValueError, match=r"plots\.prompt_slopes.*lacks the columns toward.*prompt_slopes"):
        plots.prompt_slopes(lines.drop(columns="toward"))
    with pytest.raises(ValueError, match="got 'anti_steerable'"):
        plots.prompt_slopes(lines, value="anti_steerable")
    with pytest.raises(ValueError, match=r"no layer 9 in the table; it has 3, 4\+7"):
        plots.prompt_slopes(lines, layer=9)
    with pytest.raises(ValueError, match="has controls alone"):
        plots.prompt_slopes(lines[lines["control"]])
    with pytest.raises(ValueError, match="every layer of 'honesty' needs each prompt once"):
        plots.prompt_slopes(lines.drop(index=lines.index[~lines["control"]][0]))
    with pytest.raises(ValueError, match="'prompt_id' has 12 values: at most 4 panels"):
        plots.prompt_slopes(lines, facet="prompt_id")
