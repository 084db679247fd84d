"""Projections token by token: during generation as in a second pass, aligned, averaged, compared, drawn."""

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

from tl_steer import plots
from tl_steer._capture import capture
from tl_steer.activations import Activations
from tl_steer.analysis import mean_traces, trace_difference, traces
from tl_steer.errors import ModelMismatchError
from tl_steer.interventions import Add, ProjectOut
from tl_steer.models import identify
from tl_steer.positions import all_tokens, current_token, generated_tokens, last_token, span, token

from .conftest import assert_raises, make_identity
from .test_looking import row_of, rows_of, vectors_of
from .tiny_model import make_model, word_tokenizer

MODEL = make_model(word_tokenizer())
PROMPTS = [[0, 3, 4, 1, 5], [0, 9, 8], [0, 11, 12, 7, 2, 2]]


def random_vectors(model=MODEL, *, layers=None, hook="resid_post"):
    """Random vectors, not of length one."""
    layers = tuple(range(model.cfg.n_layers)) if layers is None else layers
    values = torch.randn(len(layers), model.cfg.d_model, generator=torch.Generator().manual_seed(0)) * 5
    return vectors_of(values, layers=layers, hook=hook, identity=identify(model))


def traced(*operations, prompts=PROMPTS, **options):
    """Traces of all tokens of the small model's run, and its new tokens."""
    result = capture(MODEL, prompts, *operations, positions=all_tokens(), **options)
    return traces(result, random_vectors()), result.completion_tokens


def by_hand(stream, vector):
    """Projection and cosine of each row of "pos d_model" in float64."""
    stream, vector = np.asarray(stream, float), np.asarray(vector, float)
    projection = stream @ vector / np.sqrt((vector**2).sum())
    return projection, projection / np.sqrt((stream**2).sum(-1))


def assert_equals_second_pass(table, vectors, texts, lengths, stream_of, *, atol=1e-3):
    """Compare with what `stream_of(ids, layer)`, "pos d_model", gives for each complete text alone."""
    assert len(table) == sum(map(len, texts)) * table["layer"].nunique()
    for prompt, (ids, length) in enumerate(zip(texts, lengths, strict=True)):
        for layer in table["layer"].unique():
            rows = rows_of(table, prompt_id=prompt, layer=layer)
            assert rows["position"].tolist() == list(range(-length, len(ids) - length))
            assert rows["token_id"].tolist() == ids
            projection, cosine = by_hand(stream_of(ids, layer), vectors[int(layer)].values)
            np.testing.assert_allclose(rows["projection"], projection, rtol=1e-4, atol=atol)
            np.testing.assert_allclose(rows["cosine"], cosine, rtol=0, atol=atol)


# --- during generation -------------------------------------------------------------------------------------


@pytest.mark.parametrize("reuse", [True, False])
def test_traces_taken_while_the_model_writes_equal_a_second_pass_over_the_finished_text(architecture, reuse):
    """Against TransformerLens's `run_with_cache` on one unpadded text at a time."""
    model = architecture[1]
    result = capture(model, PROMPTS, positions=all_tokens(), max_new_tokens=8, reuse=reuse)
    vectors, new = random_vectors(model), result.completion_tokens

    def stream_of(ids, layer):
        _, cache = model.run_with_cache(torch.tensor([ids]))
        return cache["resid_post", int(layer)][0]

    assert [len(tokens) for tokens in new] == [8, 8, 8]
    texts = [[*ids, *tokens[:-1]] for ids, tokens in zip(PROMPTS, new, strict=True)]
    assert_equals_second_pass(traces(result, vectors), vectors, texts, map(len, PROMPTS), stream_of)


@pytest.mark.model
def test_traces_of_the_embedded_model_equal_hugging_face_s_hidden_states(embedded, embedded_hf):
    hf_model, tokenizer = embedded_hf
    prompts = ["The capital of France is", "Once upon a time there was", "I say"]
    layers = (0, 9, 20, 28)  # the last one's hidden state is after the final norm
    vectors = random_vectors(embedded, layers=layers)
    result = capture(embedded, prompts, positions=all_tokens(), layers=layers, max_new_tokens=6)
    lengths = [len(tokenizer(prompt)["input_ids"]) for prompt in prompts]
    assert len(set(lengths)) == 3
    texts = []
    for prompt, length, new in zip(prompts, lengths, result.completion_tokens, strict=True):
        ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            alone = hf_model.generate(ids, max_new_tokens=6, do_sample=False, pad_token_id=0)[0].tolist()
        assert alone[length:] == list(new)
        texts.append(alone[:-1])

    def stream_of(ids, layer):
        with torch.no_grad():
            return hf_model(torch.tensor([ids]), output_hidden_states=True).hidden_states[layer + 1][0]

    table = traces(result, vectors, tokenizer=embedded.tokenizer)
    near_start = table["position"] == table.groupby("prompt_id")["position"].transform("min")
    # the attention sink is a hundred times longer: there, within 1e-3 of its length
    sink = table.loc[near_start, "projection"].abs().max()
    assert sink > 10 * table.loc[~near_start, "projection"].abs().median()
    assert_equals_second_pass(table, vectors, texts, lengths, stream_of, atol=2e-3)
    assert "".join(rows_of(table, prompt_id=0, layer=9)["token"]) == tokenizer.decode(texts[0])


# --- the table ---------------------------------------------------------------------------------------------


def test_positions_count_from_the_end_of_each_prompt():
    values = [[[3.0, 4.0], [0.0, 2.0], [-5.0, 0.0]], [[1.0, 0.0], [0.0, 0.0], [np.nan, np.nan]]]
    index = torch.tensor([[0, 1, 2], [0, 1, -1]])
    result = Activations(
        torch.tensor(values)[:, None], token_index=index, tokens=torch.where(index >= 0, index + 3, -1),
        prompt_lengths=torch.tensor([2, 1]), layers=(5,), hook="resid_post", positions=all_tokens(),
        prompts=("prompt 0", "prompt 1"), stream_norm=torch.ones(1),
        identity=make_identity(n_layers=8, d_model=2),
    )  # fmt: skip
    table = traces(result, vectors_of([[2.0, 0.0]], layers=(5,)))
    columns = ["prompt_id", "prompt", "layer", "position", "token_id", "projection", "cosine"]
    rows = [
        (0, "prompt 0", 5, -2, 3, 3.0, 0.6), (0, "prompt 0", 5, -1, 4, 0.0, 0.0),
        (0, "prompt 0", 5, 0, 5, -5.0, -1.0), (1, "prompt 1", 5, -1, 3, 1.0, 1.0),
        (1, "prompt 1", 5, 0, 4, 0.0, np.nan),
    ]  # fmt: skip
    pd.testing.assert_frame_equal(table[columns], pd.DataFrame(rows, columns=columns), check_dtype=False)
    assert table.columns.drop(columns).tolist() == ["label", "token"]


def test_each_layer_may_have_positions_of_its_own():
    positions = {0: token(1) | generated_tokens(), 2: all_tokens()}
    together, *alone = (
        traces(capture(MODEL, PROMPTS, positions=each, layers=layer, max_new_tokens=4), random_vectors())
        for layer, each in [(None, positions), *positions.items()]
    )
    expected = pd.concat(alone).sort_values(["prompt_id", "layer", "position"], ignore_index=True)
    pd.testing.assert_frame_equal(together, expected, rtol=1e-4)


def test_a_window_includes_both_of_its_ends():
    result = capture(MODEL, PROMPTS, positions=all_tokens(), max_new_tokens=5)
    whole, window = (traces(result, random_vectors(), window=each) for each in (None, (-4, 1)))
    pd.testing.assert_frame_equal(window, whole[whole["position"].between(-4, 1)].reset_index(drop=True))
    assert sorted(window["position"].unique()) == [-4, -3, -2, -1, 0, 1]
    assert len(rows_of(window, prompt_id=1, layer=0)) == 5  # a prompt of three tokens


def test_the_table_has_factors_and_texts_of_the_tokens():
    result = capture(MODEL, ["a b", "c d e"], positions=all_tokens(), max_new_tokens=3)
    factors = pd.DataFrame({"persona": ["honest", "dishonest"], "truth": [True, False]}, index=[7, 3])
    table = traces(result, random_vectors(), factors=factors, tokenizer=MODEL.tokenizer)
    assert table.columns[3:5].tolist() == ["persona", "truth"]
    columns = table[["prompt_id", "persona", "truth"]].drop_duplicates()
    assert columns.to_numpy().tolist() == [[0, "honest", True], [1, "dishonest", False]]
    assert rows_of(table, prompt_id=1, layer=2)["token"].tolist()[:4] == ["<s>", "c", "d", "e"]
    assert traces(result, random_vectors())["token"].iloc[0] == "0"


def test_layers_are_those_that_both_have():
    result = capture(MODEL, PROMPTS, positions=all_tokens(), layers=[0, 2])
    vectors = random_vectors(layers=(1, 2))
    table = traces(result, vectors)
    assert set(table["layer"]) == {2}
    projection, _ = by_hand(result.values[1, 1, :3], vectors[2].values)
    np.testing.assert_allclose(rows_of(table, prompt_id=1)["projection"], projection)


OTHER = make_model(word_tokenizer(), seed=9)


@pytest.mark.parametrize(
    ("vectors", "options", "message"),
    [
        (random_vectors(layers=(1, 2)), {}, "no layer in common"),
        (random_vectors(hook="resid_pre"), {}, "the vectors are at resid_pre, the activations at resid_post"),
        (random_vectors() * 0.0, {}, "length zero"),
        (random_vectors(), {"factors": pd.DataFrame({"a": [1]})}, "1 rows of factors for 3 prompts"),
        (random_vectors(), {"factors": pd.DataFrame({"token": [1] * 3})}, r"\['token'\] have the name"),
        (random_vectors(), {"window": (9, 12)}, r"no token in the window \(9, 12\) at layer 0; .*: -6 to -1"),
        (random_vectors(OTHER), {"error": ModelMismatchError}, "these vectors"),
    ],
)
def test_wrong_vectors_factors_and_windows_are_rejected(vectors, options, message):
    result = capture(MODEL, PROMPTS, positions={0: all_tokens()})
    assert_raises(message, traces, result, vectors, **options)


# --- steered minus unsteered -------------------------------------------------------------------------------


@pytest.mark.parametrize("reuse", [True, False])
@pytest.mark.parametrize(
    ("positions", "indices_of"),
    [
        (all_tokens(), lambda prompt, length: range(length)),
        (current_token(), lambda prompt, length: range(prompt - 1, length)),
        (generated_tokens(), lambda prompt, length: range(prompt, length)),
        (last_token(), lambda prompt, length: [prompt - 1]),
        (span(-2, None), lambda prompt, length: [prompt - 2, prompt - 1]),
        (token(1) | generated_tokens(), lambda prompt, length: [1, *range(prompt, length)]),
    ],
    ids=["all", "current", "generated", "last", "span", "union"],
)
def test_steered_minus_unsteered_is_the_vector_where_it_was_added(positions, indices_of, reuse):
    """At the steered layer the difference is multiplier · length on the vector's own direction."""
    vectors = random_vectors()
    steered, new = traced(Add(vectors[1], -1.5, positions), max_new_tokens=6, reuse=reuse)
    table = trace_difference(steered, traced(completions=new, reuse=reuse)[0])
    assert table["difference"].all()
    added = -1.5 * float(np.linalg.norm(vectors[1].values.double()))
    # Without reuse, one run decodes token by token and the other reads all at once: not equal to the bit.
    tolerance = 0 if reuse else 1e-5
    for prompt, ids in enumerate(PROMPTS):
        rows = rows_of(table, prompt_id=prompt)
        at_layer, later = rows_of(rows, layer=1), rows_of(rows, layer=2)
        indices = list(indices_of(len(ids), len(at_layer)))
        expected = np.where(np.isin(at_layer["position"] + len(ids), indices), added, 0.0)
        np.testing.assert_allclose(at_layer["projection"], expected, rtol=1e-5, atol=1e-4)
        start = min(indices) - len(ids)
        clean = rows[(rows["layer"] == 0) | (rows["position"] < start)]
        assert (clean[["projection", "cosine"]].abs() <= tolerance).all(axis=None)
        assert (later.loc[later["position"] >= start, "projection"].abs() > 0.01).any()


def test_a_direction_projected_out_leaves_minus_the_projection():
    plain, _ = traced()
    table = trace_difference(traced(ProjectOut(random_vectors()[1]))[0], plain)
    expected = -rows_of(plain, layer=1)["projection"]
    np.testing.assert_allclose(rows_of(table, layer=1)["projection"], expected, atol=1e-4)


def test_tables_over_other_tokens_or_positions_have_no_difference():
    table, _ = traced()
    other, _ = traced(prompts=[PROMPTS[0], [0, 9, 7], PROMPTS[2]])
    for one, two, message in (
        (table, other, r"different tokens: at position -1 of prompt 1, '8' and '7'. .* completions=.*tokens"),
        (table, table[table["layer"] > 0], r"in their prompts, layers or positions \(42 and 28 rows\)"),
        (pd.concat([table, table]), table, "prompt 0 is twice at layer 0, position -5"),
    ):
        assert_raises(message, trace_difference, one, two)


def test_the_order_of_rows_does_not_matter_and_no_table_is_changed():
    table, _ = traced()
    shuffled = table.sample(frac=1, random_state=0)
    before = shuffled.copy()
    difference = trace_difference(shuffled, table)
    assert (difference[["projection", "cosine"]] == 0).all(axis=None)
    assert difference["prompt_id"].tolist() == table["prompt_id"].tolist()
    mean_traces(shuffled, by="prompt")
    pd.testing.assert_frame_equal(shuffled, before)


# --- means -------------------------------------------------------------------------------------------------


def trace_table(seed=0, layers=(4, 9)):
    """Eleven prompts, five honest; texts end at different positions."""
    rng = np.random.default_rng(seed)
    rows = [
        (prompt, layer, position, rng.normal(3, 2), rng.uniform(-1, 1))
        for prompt in range(11) for layer in layers for position in range(-2, 3 + prompt % 3)
    ]  # fmt: skip
    table = pd.DataFrame(rows, columns=["prompt_id", "layer", "position", "projection", "cosine"])
    prompt, in_prompt = table["prompt_id"], table["position"] < 0
    table = table.assign(
        prompt="prompt " + prompt.astype(str), persona=np.where(prompt < 5, "honest", "dishonest"),
        question=(prompt % 5).where(prompt < 10, 99), token_id=7,
        token=("t" + (prompt % 3).astype(str)).mask(in_prompt, "x"),
    )  # fmt: skip
    return table.sample(frac=1, random_state=seed)


DIFFERENCE = {"by": "persona", "difference": ("honest", "dishonest")}
TABLE = trace_table()
ONE = rows_of(TABLE, prompt_id=2)
MEANS = mean_traces(TABLE, **DIFFERENCE)


def test_means_and_differences_of_levels_have_student_s_and_welch_s_intervals():
    assert MEANS.columns.tolist() == [
        "persona", "layer", "position", "difference", "n", "token", "token_share", "projection",
        "projection_low", "projection_high", "cosine", "cosine_low", "cosine_high",
    ]  # fmt: skip
    assert len(MEANS) == 3 * 2 * 7
    for row in MEANS.to_dict("records"):
        levels = row["persona"].split(" − ")
        assert row["difference"] == (len(levels) == 2)
        for value in ("projection", "cosine"):
            where = {"layer": row["layer"], "position": row["position"]}
            samples = [rows_of(TABLE, persona=level, **where)[value].to_numpy() for level in levels]
            assert row["n"] == min(map(len, samples))
            assert row[value] == pytest.approx(samples[0].mean() - sum(each.mean() for each in samples[1:]))
            bounds = [np.nan, np.nan]
            if row["n"] > 1:
                welch = row["difference"] and stats.ttest_ind(*samples, equal_var=False)
                bounds = list((welch or stats.ttest_1samp(samples[0], 0)).confidence_interval(0.95))
            assert [row[f"{value}_low"], row[f"{value}_high"]] == pytest.approx(bounds, nan_ok=True)
    assert set(rows_of(MEANS, persona="honest", position=4)["n"]) == {1}


def test_the_difference_within_pairs_has_the_paired_interval():
    table = TABLE[TABLE["prompt_id"] < 10]
    result = mean_traces(table, **DIFFERENCE, pair="question")
    result = result[result["difference"]]
    for row in result.to_dict("records"):
        rows = rows_of(table, layer=row["layer"], position=row["position"])
        sides = rows.pivot(index="question", columns="persona", values="projection").dropna()
        assert row["n"] == len(sides)
        assert row["projection"] == pytest.approx((sides["honest"] - sides["dishonest"]).mean())
        if len(sides) > 1:
            interval = stats.ttest_rel(sides["honest"], sides["dishonest"]).confidence_interval(0.95)
            assert [row["projection_low"], row["projection_high"]] == pytest.approx(list(interval))
    assert len(set(result["n"])) > 1
    assert 4 not in set(result["position"])  # where no pair has both


def test_the_same_prompts_run_twice_are_paired_by_their_number():
    first, second = trace_table(seed=1), trace_table(seed=2)
    runs = pd.concat([first.assign(run="steered"), second.assign(run="plain")], ignore_index=True)
    means = mean_traces(runs, by="run", difference=("steered", "plain"), pair="prompt_id")
    by_rows = mean_traces(trace_difference(first, second).assign(run="each"), by="run")
    assert by_rows["difference"].all()
    within = means[means["difference"]].drop(columns="run").reset_index(drop=True)
    pd.testing.assert_frame_equal(within, by_rows.drop(columns="run"))


def test_levels_that_are_not_text_are_named_as_text():
    table = TABLE.assign(truth=TABLE["prompt_id"] % 2)
    assert set(mean_traces(table, by="truth", difference=(1, 0))["truth"]) == {"0", "1", "1 − 0"}


def test_where_nothing_varies_the_interval_is_the_value_itself():
    table = TABLE.assign(projection=np.where(TABLE["persona"] == "honest", 2.0, 0.5))
    means = mean_traces(table, **DIFFERENCE)
    result = means[means["difference"] & (means["position"] <= 2)]
    assert (result[["projection", "projection_low", "projection_high"]] == 1.5).all(axis=None)


def test_the_commonest_token_is_named_with_its_share():
    honest = rows_of(MEANS, persona="honest", layer=4).set_index("position")[["token", "token_share"]]
    expected = [["x", 1.0], ["x", 1.0], ["t0", 0.4], ["t2", 1.0]]  # at 0: t0, t1, t2, t0, t1
    assert honest.loc[[-2, -1, 0, 4]].to_numpy().tolist() == expected
    both = rows_of(MEANS, persona="honest − dishonest", layer=4, position=0)
    assert both["token_share"].item() == pytest.approx(4 / 11)


RUNS = TABLE.assign(run=np.where(TABLE["position"] < 0, "prompt", "new"))  # without a common position
BY_RUN = {"by": "run", "difference": ("new", "prompt")}


@pytest.mark.parametrize(
    ("table", "options", "message"),
    [
        (TABLE, {"by": "sex"}, "lacks the columns sex"),
        (TABLE, {"by": "persona", "pair": "twin"}, "lacks the columns twin"),
        (TABLE, DIFFERENCE | {"difference": ("honest", "shy")}, "'persona' has no level 'shy'; it has"),
        (TABLE, DIFFERENCE | {"difference": ("honest",)}, "name two levels, the first minus the second"),
        (TABLE, DIFFERENCE | {"pair": "question"}, "'question' does not pair .* in one level only"),
        (TABLE, DIFFERENCE | {"pair": "token_id"}, "'token_id' does not pair .* several prompts of one"),
        (RUNS, BY_RUN | {"pair": "prompt_id"}, "no pair has a layer and"),
        (pd.concat([TABLE, TABLE]), {"by": "persona"}, "is twice at layer .* need a column that tells them"),
    ],
)
def test_means_of_missing_levels_and_pairs_are_rejected(table, options, message):
    assert_raises(message, mean_traces, table, **options)


# --- the figure --------------------------------------------------------------------------------------------


def heatmaps(figure):
    return list(figure.select_traces({"type": "heatmap"}))


def figure_of(means=MEANS, **options):
    """A figure of two levels and their difference."""
    return plots.traces(means.sample(frac=1, random_state=3), **options)


@pytest.mark.parametrize("value", ["cosine", "projection"])
def test_a_figure_of_means_has_a_panel_per_level_and_the_difference_last(value):
    figure = figure_of(value=value)
    names = [trace.name for trace in heatmaps(figure)]
    assert set(names) == {"honest", "dishonest", "honest − dishonest"}
    assert names[-1] == "honest − dishonest"
    assert [note.text for note in figure.layout.annotations] == names
    for trace in heatmaps(figure):
        rows = rows_of(MEANS, persona=trace.name).set_index(["layer", "position"])
        shown = pd.DataFrame(trace.z, list(map(int, trace.y)), trace.x).stack().dropna()
        assert shown.to_dict() == rows[value].to_dict()


def test_levels_share_a_scale_around_zero_and_the_difference_has_its_own():
    figure = figure_of(value="projection")
    assert [trace.coloraxis for trace in heatmaps(figure)] == ["coloraxis", "coloraxis", "coloraxis2"]
    axes = figure.layout.coloraxis, figure.layout.coloraxis2
    titles = "projection<br>(residual stream units)", "difference<br>in projection"
    for axis, title, is_difference in zip(axes, titles, (False, True), strict=True):
        limit = rows_of(MEANS, difference=is_difference)["projection"].abs().max()
        assert (axis.cmin, axis.cmax, axis.colorbar.title.text) == (-limit, limit, title)
    upper, lower = (axis.colorbar for axis in axes)
    assert upper.y - upper.len / 2 > lower.y + lower.len / 2  # next to their own panels


def test_dots_mark_the_differences_whose_interval_excludes_zero():
    means = mean_traces(trace_table(seed=5), **DIFFERENCE)
    figure = figure_of(means)
    (dots,) = figure.select_traces({"type": "scatter"})
    rows = means[means["difference"] & ((means["cosine_low"] > 0) | (means["cosine_high"] < 0))]
    assert 0 < len(rows) < means["difference"].sum()
    marked = set(zip(rows["layer"].astype(str), rows["position"], strict=True))
    assert set(zip(dots.y, dots.x, strict=True)) == marked
    assert "dots" in figure.layout.title.subtitle.text
    assert "dots" not in plots.traces(means[~means["difference"]]).layout.title.subtitle.text


def test_layers_are_categories_from_the_bottom():
    figure = plots.traces(rows_of(trace_table(layers=(31, 2, 17)), prompt_id=2))
    (trace,) = heatmaps(figure)
    axis = figure.layout.yaxis
    assert (axis.type, axis.title.text) == ("category", "layer")
    assert list(trace.y) == list(axis.categoryarray) == list(axis.tickvals) == ["2", "17", "31"]
    assert list(axis.range) == [-0.5, 2.5]  # the first at the bottom


def test_a_line_separates_the_prompt_from_the_new_tokens():
    figure = plots.traces(ONE)
    (line,) = figure.layout.shapes
    assert (line.x0, line.x1) == (-0.5, -0.5)
    assert "relative to the end of the prompt" in figure.layout.xaxis.title.text
    assert len(plots.traces(ONE[ONE["position"] < 0]).layout.shapes) == 0
    three = figure_of()
    assert len(three.layout.shapes) == 3
    assert [axis.title.text for axis in three.select_xaxes()][:2] == [None, None]


def test_positions_without_a_token_stay_empty():
    (trace,) = heatmaps(plots.traces(ONE[ONE["position"] != 0]))
    assert list(trace.x) == [-2, -1, 0, 1, 2, 3, 4]
    assert np.isnan(np.array(trace.z, float)[:, 2]).all()
    assert trace.hoverongaps is False


def test_tokens_are_named_where_all_panels_have_the_same():
    ticks = list(plots.traces(ONE).layout.xaxis.ticktext)
    assert ticks == ["x −2", "x −1", "t2 0", "t2 1", "t2 2", "t2 3", "t2 4"]
    *_, axis = plots.traces(mean_traces(TABLE, by="persona")).select_xaxes()
    assert list(axis.ticktext)[:5] == ["x −2", "x −1", "0", "1", "2"]


def test_spaces_and_line_breaks_of_a_token_can_be_seen_and_nothing_becomes_markup():
    one = rows_of(ONE, layer=4).assign(prompt="<b>loud</b> & $5")
    one["token"] = [" the", "\n", "<b>", "averyveryverylongtoken", "a$b", "%{x}", "é"]
    figure = plots.traces(one)
    texts = dict(zip(figure.layout.xaxis.tickvals, figure.layout.xaxis.ticktext, strict=True))
    shown = [texts[position] for position in one["position"]]
    for text, start in zip(shown, ("␣the ", "⏎ ", "&lt;b&gt; ", "averyveryveryl… "), strict=False):
        assert text.startswith(start)
    (trace,) = heatmaps(figure)
    assert "&lt;b&gt;loud&lt;/b&gt; &amp; &#36;5" in trace.hovertemplate
    everything = "".join(text for row in trace.hovertext for text in row) + "".join(shown)
    assert "<b>" not in everything.replace("<b>layer", "")
    assert "$" not in everything.replace("&#36;", "")
    assert "averyveryverylongtoken" in everything


def test_the_hover_has_token_count_and_interval():
    means = mean_traces(TABLE, by="persona")
    figure = plots.traces(means)
    (honest,) = figure.select_traces({"type": "heatmap", "name": "honest"})
    row = row_of(means, persona="honest", layer=9, position=0)
    text = honest.hovertext[list(honest.y).index("9")][list(honest.x).index(0)]
    low, high = (f"{row[f'cosine_{end}']:.3g}".replace("-", "−") for end in ("low", "high"))
    expected = ("<b>layer 9, position 0</b>", "honest, n = 5", "commonest token t0 (40%)", f"[{low}, {high}]")
    assert [part for part in expected if part not in text] == []
    assert "1 to 6 prompts per panel" in figure.layout.title.subtitle.text


def test_a_steered_an_unsteered_run_and_their_difference_in_one_figure():
    first, second = (rows_of(trace_table(seed=seed), prompt_id=4) for seed in (1, 2))
    difference = trace_difference(first, second)
    runs = {"difference": difference, "steered": first, "plain": second}
    figure = plots.traces(pd.concat([table.assign(run=name) for name, table in runs.items()]), facet="run")
    axes = {trace.name: trace.coloraxis for trace in heatmaps(figure)}
    assert list(axes.items()) == [
        ("steered", "coloraxis"), ("plain", "coloraxis"), ("difference", "coloraxis2"),
    ]  # fmt: skip
    (alone,) = heatmaps(plots.traces(difference))
    assert alone.coloraxis == "coloraxis2"
    assert "difference in cosine" in alone.hovertext[0][0]


@pytest.mark.parametrize(
    ("table", "options", "message"),
    [
        (TABLE, {}, "several rows share their layer and position: take their mean with mean_traces"),
        (TABLE, {"facet": "persona"}, "layer and position where persona is"),
        (TABLE, {"facet": "prompt_id"}, "'prompt_id' has 11 values, at most 6 panels"),
        (TABLE, {"value": "length"}, "got 'length'"),
        (TABLE, {"facet": "sex"}, r"plots.traces: the table lacks the columns sex"),
        (TABLE[:0], {}, "has no rows"),
    ],
)
def test_tables_without_one_value_per_square_are_rejected(table, options, message):
    assert_raises(message, plots.traces, table, **options)


def test_long_axes_have_few_numbers():
    def layout_of(column, values):
        return plots.traces(pd.concat([ONE[:1].assign(**{column: value}) for value in values])).layout

    axis = layout_of("position", range(-90, 30)).xaxis
    assert (axis.ticktext, list(axis.tickvals)) == (None, list(range(-80, 30, 20)))
    assert layout_of("layer", range(1, 27, 2)).yaxis.tickvals == ("5", "15", "25")  # no layer is even
    assert len(layout_of("position", range(3000)).xaxis.tickvals) == 6
