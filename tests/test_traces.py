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
from tl_steer.directions import SteeringVectors
from tl_steer.errors import ModelMismatchError
from tl_steer.interventions import Add, ProjectOut
from tl_steer.models import identify
from tl_steer.positions import all_tokens, current_token, generated_tokens, last_token, span, token

from .conftest import make_identity
from .tiny_model import make_model, word_tokenizer

MODEL = make_model(word_tokenizer())
PROMPTS = [[0, 3, 4, 1, 5], [0, 9, 8], [0, 11, 12, 7, 2, 2]]


def made_vectors(model, *, layers=None, hook="resid_post", seed=0):
    """A random vector a layer, not of length one."""
    layers = tuple(range(model.cfg.n_layers)) if layers is None else layers
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(len(layers), model.cfg.d_model, generator=generator) * 5
    return SteeringVectors(values, layers, hook, "made", torch.ones(len(layers)), identify(model), {})


def by_hand(stream, vector):
    """Projection and cosine of each row of "pos d_model" in float64."""
    stream, vector = np.asarray(stream, float), np.asarray(vector, float)
    projection = stream @ vector / np.sqrt((vector**2).sum())
    return projection, projection / np.sqrt((stream**2).sum(-1))


def row_of(table, **where):
    for column, value in where.items():
        table = table[table[column] == value]
    return table


def require_traces_of_second_pass(table, vectors, texts, lengths, stream_of, *, close=1e-3):
    """Every row equals what `stream_of(ids, layer)`, "pos d_model", gives for the finished text alone."""
    assert len(table) == sum(len(read) for read in texts) * table["layer"].nunique()
    for prompt, (read, length) in enumerate(zip(texts, lengths, strict=True)):
        for layer in table["layer"].unique():
            rows = row_of(table, prompt_id=prompt, layer=layer)
            assert rows["position"].tolist() == list(range(-length, len(read) - length))
            assert rows["token_id"].tolist() == read
            projection, cosine = by_hand(stream_of(read, layer), vectors[int(layer)].values)
            np.testing.assert_allclose(rows["projection"], projection, rtol=1e-4, atol=close)
            np.testing.assert_allclose(rows["cosine"], cosine, rtol=0, atol=close)


# --- during generation -------------------------------------------------------------------------------------


@pytest.mark.parametrize("reuse", [True, False])
def test_traces_taken_while_the_model_writes_equal_a_second_pass_over_the_finished_text(architecture, reuse):
    """Against TransformerLens's `run_with_cache` on one unpadded text at a time."""
    model = architecture[1]
    result = capture(model, PROMPTS, positions=all_tokens(), max_new_tokens=8, reuse=reuse)
    vectors = made_vectors(model)

    def stream_of(ids, layer):
        _, cache = model.run_with_cache(torch.tensor([ids]))
        return cache["resid_post", int(layer)][0]

    texts = [
        [*ids, *new[:-1]]
        for ids, new in zip(PROMPTS, result.completion_tokens, strict=True)  # the last is never fed back
    ]
    assert [len(new) for new in result.completion_tokens] == [8, 8, 8]
    require_traces_of_second_pass(traces(result, vectors), vectors, texts, map(len, PROMPTS), stream_of)


@pytest.mark.model
def test_traces_of_the_embedded_model_equal_hugging_face_s_hidden_states(embedded, embedded_hf):
    hf_model, tokenizer = embedded_hf
    prompts = ["The capital of France is", "Once upon a time there was", "I say"]
    layers = (0, 9, 20, 28)  # the last one's hidden state is behind the final norm
    vectors = made_vectors(embedded, layers=layers)
    result = capture(embedded, prompts, positions=all_tokens(), layers=layers, max_new_tokens=6)
    lengths = [len(tokenizer(prompt)["input_ids"]) for prompt in prompts]
    assert len(set(lengths)) == 3
    texts = []
    for prompt, new in zip(prompts, result.completion_tokens, strict=True):
        ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            alone = hf_model.generate(ids, max_new_tokens=6, do_sample=False, pad_token_id=0)[0]
        assert alone[ids.shape[1] :].tolist() == list(new)
        texts.append(alone[:-1].tolist())

    def stream_of(ids, layer):
        with torch.no_grad():
            states = hf_model(torch.tensor([ids]), output_hidden_states=True).hidden_states
        return states[layer + 1][0]

    table = traces(result, vectors, tokenizer=embedded.tokenizer)
    near_start = table["position"] == table.groupby("prompt_id")["position"].transform("min")
    # the attention sink is a hundred times longer: there, within 1e-3 of its length
    sink = table.loc[near_start, "projection"].abs().max()
    assert sink > 10 * table.loc[~near_start, "projection"].abs().median()
    require_traces_of_second_pass(table, vectors, texts, lengths, stream_of, close=2e-3)
    first = row_of(table, prompt_id=0, layer=9)
    assert "".join(first["token"]) == tokenizer.decode(texts[0])


# --- the table ---------------------------------------------------------------------------------------------


def planted(values, lengths, index, tokens=None):
    """Activations of one layer with given values "prompt pos d_hook" and places."""
    index = torch.tensor(index)
    values = torch.as_tensor(np.asarray(values), dtype=torch.float32)
    identity = make_identity(n_layers=8, d_model=values.shape[-1])
    return Activations(
        values=values[:, None],
        token_index=index,
        tokens=torch.where(index >= 0, index + 3, -1) if tokens is None else torch.tensor(tokens),
        prompt_lengths=torch.tensor(lengths),
        layers=(5,),
        hook="resid_post",
        positions=all_tokens(),
        prompts=tuple(f"prompt {row}" for row in range(len(lengths))),
        stream_norm=torch.ones(1),
        identity=identity,
    )


def axis_vector(result, values):
    return SteeringVectors(
        torch.tensor([values]), (5,), "resid_post", "made", torch.ones(1), result.identity, {}
    )


def test_positions_count_from_the_end_of_each_prompt():
    nan = [np.nan] * 2
    result = planted(
        [[[3.0, 4.0], [0.0, 2.0], [-5.0, 0.0]], [[1.0, 0.0], [0.0, 0.0], nan]],
        [2, 1],
        [[0, 1, 2], [0, 1, -1]],
    )
    table = traces(result, axis_vector(result, [2.0, 0.0]))
    assert table.columns.tolist() == [
        "prompt_id", "prompt", "label", "layer", "position", "token_id", "token", "projection", "cosine",
    ]  # fmt: skip
    assert table["prompt_id"].tolist() == [0, 0, 0, 1, 1]
    assert table["position"].tolist() == [-2, -1, 0, -1, 0]
    assert table["token_id"].tolist() == [3, 4, 5, 3, 4]
    assert table["projection"].tolist() == [3.0, 0.0, -5.0, 1.0, 0.0]
    np.testing.assert_allclose(table["cosine"], [0.6, 0.0, -1.0, 1.0, np.nan])
    assert table["prompt"].tolist() == ["prompt 0"] * 3 + ["prompt 1"] * 2
    assert set(table["layer"]) == {5}


def test_every_prompt_s_last_token_is_at_minus_one_and_its_first_new_one_at_zero():
    result = capture(MODEL, PROMPTS, positions=all_tokens(), max_new_tokens=4)
    table = traces(result, made_vectors(MODEL))
    assert row_of(table, layer=1, position=-1)["token_id"].tolist() == [ids[-1] for ids in PROMPTS]
    assert row_of(table, layer=1, position=0)["token_id"].tolist() == [
        text[0] for text in result.completion_tokens
    ]
    assert table["position"].max() == 2  # of four new tokens, three are fed back


def test_each_layer_may_have_positions_of_its_own():
    positions = {0: token(1) | generated_tokens(), 2: all_tokens()}
    options = {"max_new_tokens": 4}
    result = traces(capture(MODEL, PROMPTS, positions=positions, **options), made_vectors(MODEL))
    alone = [
        traces(capture(MODEL, PROMPTS, positions=each, layers=layer, **options), made_vectors(MODEL))
        for layer, each in positions.items()
    ]
    expected = pd.concat(alone).sort_values(["prompt_id", "layer", "position"], ignore_index=True)
    pd.testing.assert_frame_equal(result, expected, rtol=1e-4)
    with pytest.raises(ValueError, match=r"no token in the window \(-3, -3\) at layer 0; captured"):
        traces(capture(MODEL, PROMPTS, positions={0: token(-1)}), made_vectors(MODEL), window=(-3, -3))


def test_a_window_keeps_both_of_its_ends():
    result = capture(MODEL, PROMPTS, positions=all_tokens(), max_new_tokens=5)
    whole = traces(result, made_vectors(MODEL))
    before = traces(result, made_vectors(MODEL), window=(-4, 1))
    expected = whole[(whole["position"] >= -4) & (whole["position"] <= 1)].reset_index(drop=True)
    pd.testing.assert_frame_equal(before, expected)
    assert sorted(before["position"].unique()) == [-4, -3, -2, -1, 0, 1]
    assert len(row_of(before, prompt_id=1, layer=0)) == 5  # a prompt of three tokens
    with pytest.raises(ValueError, match=r"no token in the window \(9, 12\); captured positions: -6 to 3"):
        traces(result, made_vectors(MODEL), window=(9, 12))


def test_factors_and_texts_of_the_tokens_stand_beside_the_numbers():
    result = capture(MODEL, ["a b", "c d e"], positions=all_tokens(), max_new_tokens=3)
    factors = pd.DataFrame({"persona": ["honest", "dishonest"], "truth": [True, False]}, index=[7, 3])
    table = traces(result, made_vectors(MODEL), factors=factors, tokenizer=MODEL.tokenizer)
    assert table.columns[3:5].tolist() == ["persona", "truth"]
    assert set(zip(table["prompt_id"], table["persona"], table["truth"], strict=True)) == {
        (0, "honest", True),
        (1, "dishonest", False),
    }
    prompt = row_of(table, prompt_id=1, layer=2)
    assert prompt["token"].tolist()[:4] == ["<s>", "c", "d", "e"]
    assert traces(result, made_vectors(MODEL))["token"].tolist()[0] == "0"


def test_layers_are_those_that_both_have():
    result = capture(MODEL, PROMPTS, positions=all_tokens(), layers=[0, 2])
    table = traces(result, made_vectors(MODEL, layers=(1, 2)))
    assert set(table["layer"]) == {2}
    projection, _ = by_hand(result.values[1, 1, :3], made_vectors(MODEL, layers=(1, 2))[2].values)
    np.testing.assert_allclose(row_of(table, prompt_id=1)["projection"], projection)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layers": (1, 2)}, "no layer in common"),
        ({"hook": "resid_pre"}, "the vectors are at resid_pre, the activations at resid_post"),
        ({"multiplier": 0.0}, "length zero"),
        ({"factors": pd.DataFrame({"a": [1]})}, "1 rows of factors for 3 prompts"),
        ({"factors": pd.DataFrame({"token": [1] * 3})}, r"the factors \['token'\] have the name"),
    ],
)
def test_what_does_not_fit_together_is_refused(changes, message):
    result = capture(MODEL, PROMPTS, positions=all_tokens(), layers=0)
    where = {"layers": changes.get("layers", (0,)), "hook": changes.get("hook", "resid_post")}
    vectors = made_vectors(MODEL, **where)
    with pytest.raises(ValueError, match=message):
        traces(result, vectors * changes.get("multiplier", 1.0), factors=changes.get("factors"))


def test_vectors_of_another_model_are_refused():
    other = make_model(word_tokenizer(), seed=9)
    with pytest.raises(ModelMismatchError, match="these vectors"):
        traces(capture(MODEL, PROMPTS, positions=all_tokens()), made_vectors(other))


# --- steered minus unsteered -------------------------------------------------------------------------------


@pytest.mark.parametrize("reuse", [True, False])
@pytest.mark.parametrize(
    ("positions", "first"),
    [
        (all_tokens(), -6),
        (current_token(), -1),
        (generated_tokens(), 0),
        (last_token(), -1),
        (span(-2, None), -2),
        (token(1) | generated_tokens(), None),
    ],
    ids=str,
)
def test_steered_minus_unsteered_is_the_vector_where_it_was_added_and_nothing_before(positions, first, reuse):
    """At the steered layer the difference is multiplier · length on the vector's own direction."""
    vectors = made_vectors(MODEL)
    options = {"positions": all_tokens(), "reuse": reuse}
    steered = capture(MODEL, PROMPTS, Add(vectors[1], -1.5, positions), max_new_tokens=6, **options)
    plain = capture(MODEL, PROMPTS, completions=steered.completion_tokens, **options)
    table = trace_difference(traces(steered, vectors), traces(plain, vectors))
    assert table["difference"].all()
    added = -1.5 * float(np.linalg.norm(vectors[1].values.double()))
    for prompt, ids in enumerate(PROMPTS):
        rows = row_of(table, prompt_id=prompt)
        clean = row_of(rows, layer=0)[["projection", "cosine"]]
        # plainly, one run decodes token by token and the other reads all at once: not the same to the bit
        assert (clean.abs() <= (0 if reuse else 1e-5)).all(axis=None)
        row_index = [int(index) + len(ids) for index in row_of(rows, layer=1)["position"]]
        chosen = positions_by_hand(positions, len(ids), len(row_index))
        expected = np.where(np.isin(row_index, chosen), added, 0.0)
        np.testing.assert_allclose(row_of(rows, layer=1)["projection"], expected, rtol=1e-5, atol=1e-4)
        start = min(chosen) - len(ids)
        assert first is None or start == max(first, -len(ids))
        before = row_of(rows, layer=2)
        np.testing.assert_allclose(before.loc[before["position"] < start, "projection"], 0, atol=1e-5)
        assert (before.loc[before["position"] >= start, "projection"].abs() > 0.01).any()


def positions_by_hand(positions, prompt, length):
    return {
        "all_tokens()": range(length),
        "current_token()": range(prompt - 1, length),
        "generated_tokens()": range(prompt, length),
        "last_token()": [prompt - 1],
        "span(-2, None)": [prompt - 2, prompt - 1],
        "(token(1) | generated_tokens())": [1, *range(prompt, length)],
    }[str(positions)]


def test_before_the_first_steered_token_nothing_at_all_differs():
    vectors = made_vectors(MODEL)
    steer = Add(vectors[0], 2.0, current_token())
    steered = capture(MODEL, PROMPTS[:1], steer, positions=all_tokens(), max_new_tokens=6)
    plain = capture(MODEL, PROMPTS[:1], positions=all_tokens(), completions=steered.completion_tokens)
    table = trace_difference(traces(steered, vectors), traces(plain, vectors))
    early = table[table["position"] < -1]
    assert len(early) == 4 * 3
    assert (early[["projection", "cosine"]] == 0).all(axis=None)


def test_a_direction_projected_out_leaves_minus_the_projection():
    vectors = made_vectors(MODEL)
    steered = capture(MODEL, PROMPTS, ProjectOut(vectors[1]), positions=all_tokens())
    plain = capture(MODEL, PROMPTS, positions=all_tokens())
    table = trace_difference(traces(steered, vectors), traces(plain, vectors))
    before = row_of(traces(plain, vectors), layer=1)
    np.testing.assert_allclose(row_of(table, layer=1)["projection"], -before["projection"], atol=1e-4)


def test_tables_over_other_tokens_or_places_have_no_difference():
    vectors = made_vectors(MODEL)
    table = traces(capture(MODEL, PROMPTS, positions=all_tokens()), vectors)
    other = [PROMPTS[0], [0, 9, 7], PROMPTS[2]]
    with pytest.raises(
        ValueError,
        match=r"different tokens: at position -1 of prompt 1, '8' and '7'. .* completions=.*tokens",
    ):
        trace_difference(table, traces(capture(MODEL, other, positions=all_tokens()), vectors))
    with pytest.raises(ValueError, match=r"differ in their prompts, layers or positions \(42 and 28 rows\)"):
        trace_difference(table, table[table["layer"] > 0])
    with pytest.raises(ValueError, match="prompt 0 is twice at layer 0, position -5"):
        trace_difference(pd.concat([table, table]), table)


def test_the_order_of_rows_does_not_matter_and_no_table_is_changed():
    vectors = made_vectors(MODEL)
    table = traces(capture(MODEL, PROMPTS, positions=all_tokens()), vectors)
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
    rows = []
    for prompt in range(11):
        persona = "honest" if prompt < 5 else "dishonest"
        for layer in layers:
            for position in range(-2, 3 + prompt % 3):
                rows.append(
                    {
                        "prompt_id": prompt, "prompt": f"prompt {prompt}", "persona": persona,
                        "question": prompt % 5 if prompt < 10 else 99, "layer": layer, "position": position,
                        "token_id": 7, "token": "x" if position < 0 else f"t{prompt % 3}",
                        "projection": rng.normal(3, 2), "cosine": rng.uniform(-1, 1),
                    }
                )  # fmt: skip
    return pd.DataFrame(rows).sample(frac=1, random_state=seed)


def values_at(table, value="projection", **where):
    return row_of(table, **where).sort_values("prompt_id")[value].to_numpy()


def test_means_and_intervals_are_scipy_s():
    table = trace_table()
    means = mean_traces(table, by="persona")
    assert means.columns.tolist() == [
        "persona", "layer", "position", "difference", "n", "token", "token_share", "projection",
        "projection_low", "projection_high", "cosine", "cosine_low", "cosine_high",
    ]  # fmt: skip
    assert not means["difference"].any()
    assert len(means) == 2 * 2 * 7
    for row in means.to_dict("records"):
        where = {name: row[name] for name in ("persona", "layer", "position")}
        for value in ("projection", "cosine"):
            values = values_at(table, value, **where)
            assert row["n"] == len(values)
            assert row[value] == pytest.approx(values.mean())
            if len(values) > 1:
                error = stats.sem(values)
                expected = stats.t.interval(0.95, len(values) - 1, loc=values.mean(), scale=error)
                assert [row[f"{value}_low"], row[f"{value}_high"]] == pytest.approx(list(expected))


def test_a_position_that_one_prompt_reaches_has_a_mean_and_no_interval():
    means = mean_traces(trace_table(), by="persona")
    alone = row_of(means, persona="honest", position=4)
    assert alone["n"].tolist() == [1, 1]
    assert alone["projection"].notna().all()
    assert alone[["projection_low", "projection_high", "cosine_low", "cosine_high"]].isna().all(axis=None)
    full = row_of(means, persona="honest", position=2)
    assert full["n"].tolist() == [5, 5]


def test_the_difference_of_independent_levels_has_welch_s_interval():
    table = trace_table()
    means = mean_traces(table, by="persona", difference=("honest", "dishonest"))
    result = means[means["difference"]]
    assert set(result["persona"]) == {"honest − dishonest"}
    assert len(result) == 2 * 7
    for row in result.to_dict("records"):
        where = {"layer": row["layer"], "position": row["position"]}
        for value in ("projection", "cosine"):
            honest, dishonest = (
                values_at(table, value, persona=side, **where) for side in ("honest", "dishonest")
            )
            assert row["n"] == min(len(honest), len(dishonest))
            assert row[value] == pytest.approx(honest.mean() - dishonest.mean())
            bounds = [row[f"{value}_low"], row[f"{value}_high"]]
            if len(honest) > 1:
                test = stats.ttest_ind(honest, dishonest, equal_var=False)
                assert bounds == pytest.approx(list(test.confidence_interval(0.95)))
            else:
                assert np.isnan(bounds).all()
    pd.testing.assert_frame_equal(
        means[~means["difference"]].reset_index(drop=True), mean_traces(table, by="persona")
    )


def test_the_difference_within_pairs_has_the_paired_interval():
    table = trace_table()
    table = table[table["prompt_id"] < 10]
    result = mean_traces(table, by="persona", difference=("honest", "dishonest"), pair="question")
    result = result[result["difference"]]
    for row in result.to_dict("records"):
        where = {"layer": row["layer"], "position": row["position"]}
        sides = [row_of(table, persona=side, **where) for side in ("honest", "dishonest")]
        honest, dishonest = (side.set_index("question")["projection"] for side in sides)
        both = sorted(set(honest.index) & set(dishonest.index))
        assert row["n"] == len(both)
        assert row["projection"] == pytest.approx((honest[both] - dishonest[both]).mean())
        if len(both) > 1:
            test = stats.ttest_rel(honest[both], dishonest[both])
            bounds = [row["projection_low"], row["projection_high"]]
            assert bounds == pytest.approx(list(test.confidence_interval(0.95)))
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


def test_pairs_without_a_common_position_are_refused():
    table = trace_table()
    prompt, new = table[table["position"] < 0].assign(run="prompt"), table[table["position"] >= 0]
    both = pd.concat([prompt, new.assign(run="new")])
    both = both[both["prompt_id"].isin(set(prompt["prompt_id"]) & set(new["prompt_id"]))]
    with pytest.raises(ValueError, match="no pair has a layer and position in both"):
        mean_traces(both, by="run", difference=("new", "prompt"), pair="prompt_id")


def test_levels_that_are_no_text_are_named_as_text():
    table = trace_table().assign(truth=lambda rows: (rows["prompt_id"] % 2).astype(int))
    means = mean_traces(table, by="truth", difference=(1, 0))
    assert set(means["truth"]) == {"0", "1", "1 − 0"}


def test_where_nothing_varies_the_interval_is_the_value_itself():
    table = trace_table().assign(projection=lambda rows: np.where(rows["persona"] == "honest", 2.0, 0.5))
    means = mean_traces(table, by="persona", difference=("honest", "dishonest"))
    result = means[means["difference"] & (means["position"] <= 2)]
    assert (result[["projection", "projection_low", "projection_high"]] == 1.5).all(axis=None)


def test_the_commonest_token_is_named_with_its_share():
    means = mean_traces(trace_table(), by="persona", difference=("honest", "dishonest"))
    honest = row_of(means, persona="honest", layer=4).set_index("position")
    assert honest.loc[[-2, -1], "token"].tolist() == ["x", "x"]
    assert honest.loc[[-2, -1], "token_share"].tolist() == [1.0, 1.0]
    assert (honest.loc[0, "token"], honest.loc[0, "token_share"]) == ("t0", 0.4)  # t0, t1, t2, t0, t1
    assert (honest.loc[4, "token"], honest.loc[4, "token_share"]) == ("t2", 1.0)
    both = row_of(means, persona="honest − dishonest", layer=4).set_index("position")
    assert both.loc[0, "token_share"] == pytest.approx(4 / 11)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"by": "sex"}, "lacks the columns sex"),
        ({"by": "persona", "pair": "twin"}, "lacks the columns twin"),
        ({"by": "persona", "difference": ("honest", "shy")}, "'persona' has no level 'shy'; it has"),
        ({"by": "persona", "difference": ("honest",)}, "name two levels, the first minus the second"),
        (
            {"by": "persona", "difference": ("honest", "dishonest"), "pair": "question"},
            "'question' does not pair the prompts: a value of it is in one level only",
        ),
        (
            {"by": "persona", "difference": ("honest", "dishonest"), "pair": "token_id"},
            "'token_id' does not pair the prompts: a level has several prompts of one value",
        ),
    ],
)
def test_means_of_what_is_not_there_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        mean_traces(trace_table(), **options)


def test_two_tables_in_one_need_a_column_that_tells_them_apart():
    table = trace_table()
    with pytest.raises(ValueError, match=r"is twice at layer .* need a column that tells them apart"):
        mean_traces(pd.concat([table, table]), by="persona")


# --- the figure --------------------------------------------------------------------------------------------


def drawn(trace):
    """What a heatmap shows at each layer and position."""
    return {
        (int(layer), position): trace.z[row][column]
        for row, layer in enumerate(trace.y)
        for column, position in enumerate(trace.x)
        if not np.isnan(trace.z[row][column])
    }


def heatmaps(figure):
    return [trace for trace in figure.data if trace.type == "heatmap"]


@pytest.mark.parametrize("value", ["cosine", "projection"])
def test_a_figure_of_means_has_a_panel_a_level_and_the_difference_last(value):
    means = mean_traces(trace_table(), by="persona", difference=("dishonest", "honest"))
    figure = plots.traces(means.sample(frac=1, random_state=3), value=value)
    names = {trace.name for trace in heatmaps(figure)}
    assert names == {"honest", "dishonest", "dishonest − honest"}
    assert heatmaps(figure)[-1].name == "dishonest − honest"
    for trace in heatmaps(figure):
        rows = row_of(means, persona=trace.name)
        assert drawn(trace) == {
            (row["layer"], row["position"]): row[value] for row in rows.to_dict("records")
        }
    assert [note.text for note in figure.layout.annotations] == [trace.name for trace in heatmaps(figure)]


def test_groups_share_a_scale_around_zero_and_the_difference_has_its_own():
    means = mean_traces(trace_table(), by="persona", difference=("honest", "dishonest"))
    figure = plots.traces(means, value="projection")
    assert [trace.coloraxis for trace in heatmaps(figure)] == ["coloraxis", "coloraxis", "coloraxis2"]
    for axis, is_difference in (("coloraxis", False), ("coloraxis2", True)):
        limit = means.loc[means["difference"] == is_difference, "projection"].abs().max()
        assert (figure.layout[axis].cmin, figure.layout[axis].cmax) == (-limit, limit)
    assert figure.layout.coloraxis.colorbar.title.text == "projection<br>(residual stream units)"
    assert figure.layout.coloraxis2.colorbar.title.text == "difference<br>in projection"
    bars = [figure.layout[axis].colorbar for axis in ("coloraxis", "coloraxis2")]
    assert bars[0].y - bars[0].len / 2 > bars[1].y + bars[1].len / 2  # beside their own panels


def test_dots_mark_the_differences_whose_interval_leaves_zero_out():
    means = mean_traces(trace_table(seed=5), by="persona", difference=("honest", "dishonest"))
    (dots,) = [trace for trace in plots.traces(means).data if trace.type == "scatter"]
    rows = means[means["difference"] & ((means["cosine_low"] > 0) | (means["cosine_high"] < 0))]
    assert 0 < len(rows) < means["difference"].sum()
    assert set(zip(dots.y, dots.x, strict=True)) == {
        (str(row["layer"]), row["position"]) for row in rows.to_dict("records")
    }
    assert "dots" in plots.traces(means).layout.title.subtitle.text
    assert "dots" not in plots.traces(means[~means["difference"]]).layout.title.subtitle.text


def test_layers_lie_upwards_as_integers_beside_each_other_however_far_apart():
    table = trace_table(layers=(31, 2, 17))
    figure = plots.traces(row_of(table, prompt_id=2))
    (trace,) = heatmaps(figure)
    assert list(trace.y) == ["2", "17", "31"]
    axis = figure.layout.yaxis
    assert (axis.type, axis.title.text) == ("category", "layer")
    assert list(axis.categoryarray) == list(axis.tickvals) == ["2", "17", "31"]
    assert list(axis.range) == [-0.5, 2.5]  # the first at the bottom


def test_a_line_stands_between_the_prompt_and_the_new_tokens():
    one = row_of(trace_table(), prompt_id=2)
    figure = plots.traces(one)
    (line,) = figure.layout.shapes
    assert (line.x0, line.x1) == (-0.5, -0.5)
    assert "relative to the end of the prompt" in figure.layout.xaxis.title.text
    assert len(plots.traces(one[one["position"] < 0]).layout.shapes) == 0
    three = plots.traces(mean_traces(trace_table(), by="persona", difference=("honest", "dishonest")))
    assert len(three.layout.shapes) == 3
    assert [axis.title.text for axis in three.select_xaxes()][:2] == [None, None]


def test_positions_without_a_token_stay_empty():
    one = row_of(trace_table(), prompt_id=0)
    figure = plots.traces(one[one["position"] != 0])
    (trace,) = heatmaps(figure)
    assert list(trace.x) == [-2, -1, 0, 1, 2]
    assert np.isnan(np.array(trace.z, float)[:, 2]).all()
    assert trace.hoverongaps is False


def test_tokens_are_named_where_all_panels_have_the_same():
    one = row_of(trace_table(), prompt_id=2)
    assert list(plots.traces(one).layout.xaxis.ticktext) == [
        "x −2", "x −1", "t2 0", "t2 1", "t2 2", "t2 3", "t2 4",
    ]  # fmt: skip
    means = mean_traces(trace_table(), by="persona")
    shown = list(list(plots.traces(means).select_xaxes())[-1].ticktext)
    assert shown[:5] == ["x −2", "x −1", "0", "1", "2"]


def test_spaces_and_line_breaks_of_a_token_can_be_seen_and_nothing_becomes_markup():
    one = row_of(trace_table(), prompt_id=2, layer=4)
    nasty = "<b>loud</b> & $5"
    one = one.assign(
        prompt=nasty, token=[" the", "\n", "<b>", "averyveryverylongtoken", "a$b", "%{x}", "é"][::1]
    )
    figure = plots.traces(one)
    texts = dict(zip(figure.layout.xaxis.tickvals, figure.layout.xaxis.ticktext, strict=True))
    shown = [texts[position] for position in one["position"]]
    assert shown[0].startswith("␣the ")
    assert shown[1].startswith("⏎ ")
    assert shown[2].startswith("&lt;b&gt; ")
    assert shown[3].startswith("averyveryveryl… ")
    (trace,) = heatmaps(figure)
    assert "&lt;b&gt;loud&lt;/b&gt; &amp; &#36;5" in trace.hovertemplate
    everything = "".join(text for row in trace.hovertext for text in row) + "".join(shown)
    assert "<b>" not in everything.replace("<b>layer", "")
    assert "$" not in everything.replace("&#36;", "")
    assert "averyveryverylongtoken" in everything


def test_the_hover_says_token_number_and_interval():
    means = mean_traces(trace_table(), by="persona")
    figure = plots.traces(means)
    honest = next(trace for trace in heatmaps(figure) if trace.name == "honest")
    (row,) = row_of(means, persona="honest", layer=9, position=0).to_dict("records")
    text = honest.hovertext[list(honest.y).index("9")][list(honest.x).index(0)]
    assert "<b>layer 9, position 0</b>" in text
    assert "honest, n = 5" in text
    assert "commonest token t0 (40%)" in text
    low, high = (f"{row[f'cosine_{end}']:.3g}".replace("-", "−") for end in ("low", "high"))
    assert f"[{low}, {high}]" in text
    assert "n in the hover" in figure.layout.title.subtitle.text
    assert "1 to 6 prompts per panel" in figure.layout.title.subtitle.text


def test_a_steered_an_unsteered_run_and_their_difference_in_one_figure():
    first, second = (row_of(trace_table(seed=seed), prompt_id=4) for seed in (1, 2))
    difference = trace_difference(first, second)
    runs = pd.concat(
        [difference.assign(run="difference"), first.assign(run="steered"), second.assign(run="plain")]
    )
    figure = plots.traces(runs, facet="run")
    assert [trace.name for trace in heatmaps(figure)] == ["steered", "plain", "difference"]
    assert [trace.coloraxis for trace in heatmaps(figure)] == ["coloraxis", "coloraxis", "coloraxis2"]
    alone = plots.traces(difference)
    assert heatmaps(alone)[0].coloraxis == "coloraxis2"
    assert "difference in cosine" in heatmaps(alone)[0].hovertext[0][0]


@pytest.mark.parametrize(
    ("table", "options", "message"),
    [
        (trace_table(), {}, "several rows share their layer and position: take their mean with mean_traces"),
        (trace_table(), {"facet": "persona"}, "layer and position where persona is"),
        (trace_table(), {"facet": "prompt_id"}, "'prompt_id' has 11 values, at most 6 panels"),
        (trace_table(), {"value": "length"}, "got 'length'"),
        (trace_table(), {"facet": "sex"}, r"plots.traces: the table lacks the columns sex"),
        (trace_table()[:0], {}, "has no rows"),
    ],
)
def test_tables_that_make_no_heatmap_are_refused(table, options, message):
    with pytest.raises(ValueError, match=message):
        plots.traces(table, **options)


def test_a_long_text_is_numbered_now_and_then():
    one = row_of(trace_table(), prompt_id=0, layer=4)
    long = pd.concat([one[:1].assign(position=position) for position in range(-90, 30)])
    axis = plots.traces(long).layout.xaxis
    assert axis.ticktext is None
    assert list(axis.tickvals) == list(range(-80, 30, 20))
    figure = plots.traces(pd.concat([one[:1].assign(layer=layer) for layer in range(1, 27, 2)]))
    assert figure.layout.yaxis.tickvals == ("5", "15", "25")  # none is a multiple of 2
    figure = plots.traces(pd.concat([one[:1].assign(position=position) for position in range(3000)]))
    assert len(figure.layout.xaxis.tickvals) == 6
