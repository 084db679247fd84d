"""Capture against TransformerLens's `run_with_cache` on each prompt alone, and against Hugging Face."""

import functools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tl_steer._capture import capture, capture_pairs
from tl_steer.activations import PairedActivations
from tl_steer.directions import mean_difference
from tl_steer.engine import plain
from tl_steer.engine.paths import path_of
from tl_steer.engine.recording import Recorder
from tl_steer.errors import EmptySelectionError, NonFiniteError
from tl_steer.interventions import Add, ProjectOut
from tl_steer.positions import (
    all_tokens,
    current_token,
    generated_tokens,
    last_token,
    parse_positions,
    prompt_tokens,
    token,
)
from tl_steer.prompts import contrast_pairs

from .conftest import assert_raises
from .tiny_model import (
    D_HEAD,
    D_MODEL,
    N_HEADS,
    N_LAYERS,
    NAMES,
    TABLE,
    Change,
    all_hooks,
    favouring,
    greedy_alone,
    hook_name,
    made_vector,
    make_model,
    run_alone,
    word_tokenizer,
)

# Ids are drawn at random, and may look padded.
pytestmark = pytest.mark.filterwarnings("ignore:row . of the token ids")

MODEL = make_model(word_tokenizer())
path_of(MODEL)  # its probe is not counted below
PROMPTS = st.lists(st.lists(st.integers(0, 20), min_size=3, max_size=7), min_size=1, max_size=5)
PROMPT_IDS = [[0, 3, 4, 5, 6], [0, 7, 8], [0, 1, 1, 9]]
UNEQUAL = [[0, 3, 4, 1, 5], [0, 9, 8], [0, 1, 1, 7, 2, 2]]


def activations_alone(ids, hook, layer, changes=(), prompt_length=None):
    """Activations at a hook of one prompt alone, "pos d_hook"."""
    name = hook_name(hook, layer)
    return run_alone(MODEL, ids, prompt_length or len(ids), changes, [name])[1][name].flatten(1)


def selected(row):
    """The values of a row without its padding."""
    return [int(value) for value in row if value >= 0]


@settings(max_examples=20, deadline=None)
@given(
    prompts=PROMPTS,
    positions=st.sampled_from([name for name in TABLE if name != "generated_tokens()"]),
    layers=st.lists(st.integers(0, N_LAYERS - 1), min_size=1, unique=True),
    hook=st.sampled_from(list(NAMES)),
)
def test_capture_equals_each_prompt_alone(prompts, positions, layers, hook):
    result = capture(MODEL, prompts, positions=parse_positions(positions), layers=layers, hook=hook)
    indices = [TABLE[positions](len(ids), len(ids)) for ids in prompts]
    width = N_HEADS * D_HEAD if hook == "z" else D_MODEL
    assert result.values.shape == (len(prompts), len(layers), max(map(len, indices)), width)
    assert result.values.dtype is torch.float32
    assert result.layers == tuple(layers)
    for row, (ids, where) in enumerate(zip(prompts, indices, strict=True)):
        padding = [-1] * (result.values.shape[2] - len(where))
        assert result.token_index[row].tolist() == where + padding
        assert result.tokens[row].tolist() == [ids[index] for index in where] + padding
        assert result.prompt_lengths[row] == len(ids)
        assert result.values[row, :, len(where) :].isnan().all()
        for index, layer in enumerate(layers):
            alone = activations_alone(ids, hook, layer)[where]
            torch.testing.assert_close(result.values[row, index, : len(where)], alone, rtol=1e-4, atol=1e-4)


def test_layers_may_be_one_negative_or_all():
    ids = [0, 3, 4]
    assert capture(MODEL, [ids], layers=-1).layers == (2,)
    assert capture(MODEL, [ids]).layers == (0, 1, 2)
    result = capture(MODEL, [ids], layers=[-1, 0]).single()[0, 0]
    torch.testing.assert_close(result, activations_alone(ids, "resid_post", 2)[-1])


@settings(max_examples=10, deadline=None)
@given(prompts=PROMPTS, hook=st.sampled_from(["resid_pre", "resid_post", "z"]))
def test_the_stream_norm_is_the_median_of_medians_after_the_first_token(prompts, hook):
    result = capture(MODEL, prompts, hook=hook).stream_norm.numpy()
    for layer in range(N_LAYERS):
        norms = [activations_alone(ids, hook, layer).double().norm(dim=-1)[1:].numpy() for ids in prompts]
        np.testing.assert_allclose(result[layer], np.median([np.median(row) for row in norms]), rtol=1e-4)


def test_the_stream_norm_does_not_depend_on_what_is_captured():
    prompts = PROMPT_IDS[:2]
    everywhere, first = (capture(MODEL, prompts, positions=each) for each in (all_tokens(), token(0)))
    assert torch.equal(everywhere.stream_norm, first.stream_norm)
    generating = capture(MODEL, prompts, max_new_tokens=4)
    torch.testing.assert_close(generating.stream_norm, first.stream_norm)


def test_a_prompt_of_one_token_has_no_norm_and_does_not_count():
    assert capture(MODEL, [[5]]).stream_norm.isnan().all()
    longer = [0, 3, 4, 1]
    both, alone = (capture(MODEL, prompts).stream_norm for prompts in ([[5], longer], [longer]))
    torch.testing.assert_close(both, alone)


def test_vectors_of_a_steered_model_record_its_operations():
    vector, pairs = made_vector(MODEL, 1), contrast_pairs(["a b", "c"], ["d", "e f"])
    unsteered = capture_pairs(MODEL, pairs)
    assert "under" not in mean_difference(unsteered).info
    steered = capture_pairs(MODEL, pairs, Add(vector, -2.0, last_token()), ProjectOut(vector.at(layers=[0])))
    operations = [
        "Add(multiplier=-2) at layer 1, resid_post, last_token()",
        "ProjectOut(strength=1) at layer 0, resid_post, all_tokens()",
    ]
    assert mean_difference(steered).info["under"] == {"positive": operations, "negative": operations}
    one_side = PairedActivations(steered.positive, unsteered.negative, steered.factors)
    assert mean_difference(one_side).info["under"] == {"positive": operations, "negative": []}


@pytest.mark.parametrize("hook", list(NAMES))
def test_a_steered_layer_shows_exactly_the_added_vector(hook):
    vector, prompts = made_vector(MODEL, 1, hook, scale=2.0), ["a b c", "d"]
    clean = capture(MODEL, prompts, hook=hook).single()
    steered = capture(MODEL, prompts, Add(vector, 3.0), hook=hook).single()
    assert torch.equal(steered[:, 0], clean[:, 0])
    assert torch.equal(steered[:, 1], clean[:, 1] + 3.0 * vector.values)
    assert (steered[:, 2] - clean[:, 2]).abs().max() > 0.01


@pytest.mark.parametrize("name", TABLE)
def test_positions_during_generation_equal_a_second_pass_over_the_finished_text(name):
    vector, positions = made_vector(MODEL, 1, scale=6.0), parse_positions(name)
    result = capture(MODEL, UNEQUAL, Add(vector, 1.0, positions), positions=positions, max_new_tokens=5)
    changes = [Change(1, "resid_post", lambda x: x + vector.values, TABLE[name])]
    expected = [tuple(greedy_alone(MODEL, ids, 5, changes, stops=[1])) for ids in UNEQUAL]
    assert result.completion_tokens == tuple(expected)
    for row, ids in enumerate(UNEQUAL):
        text = [*ids, *expected[row][:-1]]
        where = TABLE[name](len(ids), len(text))
        assert selected(result.token_index[row]) == where
        assert selected(result.tokens[row]) == [text[index] for index in where]
        for layer in range(N_LAYERS):
            second = activations_alone(text, "resid_post", layer, changes, prompt_length=len(ids))[where]
            torch.testing.assert_close(result.values[row, layer, : len(where)], second, rtol=1e-3, atol=1e-3)


def test_the_last_new_token_has_no_activation_and_nothing_after_the_end_has():
    ending = favouring(MODEL, 1, 2.5)  # `</s>` soon comes
    prompts = [[0, 3, 4, 5], [0, 9], [0, 7, 7, 7, 3]]
    result = capture(ending, prompts, positions=generated_tokens(), max_new_tokens=6, allow_empty=True)
    expected = [greedy_alone(ending, ids, 6, stops=[1]) for ids in prompts]
    assert len(set(map(len, expected))) > 1  # one row ends while the others continue
    for row, new in enumerate(expected):
        assert selected(result.tokens[row]) == new[:-1]
        assert result.completions[row] == ending.tokenizer.decode(new, skip_special_tokens=True)


def test_single_gives_the_one_position_and_rejects_where_there_are_others():
    result = capture(MODEL, ["a b c", "d"])
    assert torch.equal(result.single(), result.values[:, :, 0])
    two = capture(MODEL, ["a b c", "d"], positions=token(1) | last_token())
    assert two.token_index.tolist() == [[1, 3], [1, -1]]
    assert_raises(r"single\(\) needs one position per prompt, but .* selected 2 of prompt 0", two.single)


def test_a_position_that_selects_nothing_names_the_prompt():
    prompts, message = ["a b c", "d"], r"token\(3\) selects no token of prompt 1 \('<s> d', 2 tokens\)"
    assert_raises(message, capture, MODEL, prompts, error=EmptySelectionError, positions=token(3))
    result = capture(MODEL, prompts, positions=token(3), allow_empty=True)
    assert result.token_index.tolist() == [[3], [-1]]
    assert result.values[1].isnan().all()
    nothing = capture(MODEL, ["a"], positions=token(3), allow_empty=True)
    assert nothing.values.shape == (1, 3, 0, D_MODEL)
    for options in ({}, {"max_new_tokens": 1}):  # the last new token is not fed back
        options = {"positions": generated_tokens(), **options}
        message = r"generated_tokens\(\) selects no token of prompt 0"
        assert_raises(message, capture, MODEL, ["a b"], error=EmptySelectionError, **options)
    result = capture(MODEL, ["a b"], positions=current_token(), max_new_tokens=1)
    assert result.token_index.tolist() == [[2]]


def test_only_the_selected_positions_are_stored_while_it_runs(monkeypatch):
    sizes = []

    def assembled(self, *args, original=Recorder.assembled):
        sizes.extend(tensor.untyped_storage().nbytes() for each in self.values.values() for tensor in each)
        return original(self, *args)

    monkeypatch.setattr(Recorder, "assembled", assembled)
    capture(MODEL, [list(range(40)), list(range(30))], layers=[0, 1])
    assert sum(sizes) == 2 * 2 * D_MODEL * 4


@pytest.mark.parametrize("reuse", [True, False])
@pytest.mark.parametrize("new", [0, 4])
@pytest.mark.parametrize("small", [True, False])
def test_positions_by_layer_are_one_capture_per_layer_joined(reuse, new, small, monkeypatch):
    if small:
        monkeypatch.setattr(plain, "batches", functools.partial(plain.batches, budget=12))
    positions = {2: token(1) | token(-1), 0: current_token(), 1: token(1) | token(-1)}
    operations = [Add(made_vector(MODEL, 0), 2.0, token(0)), Add(made_vector(MODEL, 1), 1.0, current_token())]
    options = {"max_new_tokens": new, "reuse": reuse, **({"memory": 1} if small and reuse else {})}
    result = capture(MODEL, PROMPT_IDS, *operations, positions=positions, **options)
    assert (result.layers, result.positions) == (tuple(positions), positions)
    assert result.values.shape[:3] == result.token_index.shape == result.tokens.shape
    widths = set()
    for index, (layer, each) in enumerate(positions.items()):
        alone = capture(MODEL, PROMPT_IDS, *operations, positions=each, layers=layer, **options)
        own, values = alone.values.shape[2], result.values[:, index]
        torch.testing.assert_close(values[:, :own], alone.values[:, 0], rtol=1e-4, atol=1e-4, equal_nan=True)
        assert values[:, own:].isnan().all()
        for name, at_layer in zip(("token_index", "tokens"), result.at_layer(index), strict=True):
            assert torch.equal(at_layer, getattr(result, name)[:, index])
            assert torch.equal(at_layer[:, :own], getattr(alone, name))
            assert (at_layer[:, own:] == -1).all()
        torch.testing.assert_close(result.stream_norm[index], alone.stream_norm[0], rtol=1e-4, atol=1e-4)
        assert result.completion_tokens == alone.completion_tokens
        widths.add(own)
    assert result.values.shape[2] == max(widths)


def test_positions_by_layer_run_the_model_once(monkeypatch):
    passes, forward = [], MODEL.blocks[0].forward
    monkeypatch.setattr(MODEL.blocks[0], "forward", lambda *x, **y: passes.append(1) or forward(*x, **y))
    positions = {1: token(1), -1: all_tokens()}
    capture(MODEL, PROMPT_IDS, positions=positions, reuse=False)
    assert len(passes) == 1
    assert capture(MODEL, PROMPT_IDS, positions=positions, layers=[1, 2]).layers == (1, 2)


def test_a_single_position_by_layer_makes_vectors_of_pairs():
    pairs = contrast_pairs(["a b good", "c good"], ["d b bad", "d bad"])
    positions = {0: token(-2), 2: last_token()}
    result = capture_pairs(MODEL, pairs, positions=positions)
    for layer, each in positions.items():
        alone = capture_pairs(MODEL, pairs, positions=each, layers=layer)
        both = (mean_difference(each)[layer].values for each in (result, alone))
        torch.testing.assert_close(*both)
    assert result.subset([1]).positive.token_index.tolist() == [[[1], [2]]]
    swapped = result.swapped([True, False])
    assert torch.equal(swapped.positive.single()[0], result.negative.single()[0])
    assert torch.equal(swapped.positive.token_index[0], result.negative.token_index[0])
    wide = capture_pairs(MODEL, pairs, positions={0: token(1) | token(2), 2: last_token()})
    message = r"but \(token\(1\) \| token\(2\)\) at layer 0 selected 2 of prompt 0"
    assert_raises(message, wide.positive.single)
    other = capture(MODEL, ["a", "b"], layers=[0, 2])
    assert_raises("only one of the two sides", PairedActivations, result.positive, other, result.factors)


def test_no_logits_are_computed_and_no_block_after_the_last_layer_runs(monkeypatch):
    before = capture(MODEL, ["a b"], layers=[0, 1]).values
    for module in (MODEL.unembed, MODEL.ln_final, MODEL.blocks[2]):
        monkeypatch.setattr(module, "forward", lambda *_, **__: pytest.fail("it is not read"))
    assert torch.equal(capture(MODEL, ["a b"], layers=[0, 1]).values, before)


def test_activations_that_overflow_are_named():
    broken = make_model(word_tokenizer())
    broken.blocks[1].mlp.b_out[:] = torch.inf
    message = r"layer 1, prompt 0 \('<s> a b', 3 tokens\): the activation is NaN"
    assert_raises(message, capture, broken, ["a b"], error=NonFiniteError, layers=1)


BY_LAYER, TEXTS = {0: token(0), 1: token(4)}, ["a b c", "d"]


@pytest.mark.parametrize(
    ("prompts", "options", "error", "message"),
    [
        ([], {}, ValueError, "no prompts given"),
        ([[]], {}, ValueError, "is empty"),
        ([[0] * 49], {}, ValueError, "49 tokens does not fit the context of 48"),
        ([[0] * 45], {"max_new_tokens": 4}, ValueError, "45 tokens and 4 new ones do not fit the .* 48"),
        (["a"], {"layers": 3}, IndexError, "layer 3 is out of range: this model has 3 layers"),
        (["a"], {"layers": [0, -3]}, ValueError, "name the same block twice"),
        (["a"], {"hook": "resid_end"}, ValueError, "'resid_end' does not exist at layer 0 of tiny; .* has"),
        (TEXTS, {"positions": BY_LAYER}, EmptySelectionError, r"token\(4\) selects no token of prompt 0"),
        (TEXTS, {"positions": BY_LAYER, "layers": [0, 2]}, ValueError, r"\[0, 2\] and .* layers \[0, 1\]"),
        (TEXTS, {"positions": {2: token(0), -1: token(1)}}, ValueError, "name the same block twice"),
        (TEXTS, {"positions": {7: token(0)}}, IndexError, "layer 7 is out of range"),
        (TEXTS, {"positions": {}}, ValueError, "no layers given"),
        (TEXTS, {"positions": {0: 3}}, TypeError, "positions must be"),
        (TEXTS, {"completions": ["c"]}, ValueError, "1 completions for 2 prompts: expected one for each"),
        (TEXTS, {"completions": ["c", "d", "e"]}, ValueError, "3 completions for 2 prompts"),
        (TEXTS, {"completions": "c"}, ValueError, "1 completions for 2 prompts"),
        (TEXTS, {"completions": TEXTS, "max_new_tokens": 3}, ValueError, "max_new_tokens=3: expected one of"),
        (
            TEXTS,
            {"completions": [[3] * 45, [4]]},
            ValueError,
            "4 tokens and 45 new ones do not fit",
        ),
        (TEXTS, {"completions": [[3], [999]]}, ValueError, "token ids must lie in 0 to"),
    ],
)
def test_bad_input_is_rejected(prompts, options, error, message):
    assert_raises(message, capture, MODEL, prompts, error=error, **options)


def test_pairs_are_captured_together_and_share_the_stream_s_norm():
    pairs, layers = contrast_pairs(["a b c", "d e"], ["a b x y", "d"]), [0, 2]
    result = capture_pairs(MODEL, pairs, layers=layers)
    for side, prompts in ((result.positive, pairs.positive), (result.negative, pairs.negative)):
        alone = capture(MODEL, list(prompts), layers=layers)
        torch.testing.assert_close(side.values, alone.values, rtol=1e-4, atol=1e-4)
        assert side.prompts == prompts
    together = capture(MODEL, [*pairs.positive, *pairs.negative], layers=layers).stream_norm
    assert torch.equal(result.stream_norm, together)
    assert result.factors["group"].tolist() == [0, 1]


def test_capture_leaves_model_prompts_and_hooks_alone():
    prompts, texts, before = [[0, 3, 4], [0, 5]], [[5, 6, 7], [8]], all_hooks(MODEL)
    capture(MODEL, prompts, Add(made_vector(MODEL, 1)), max_new_tokens=2)
    capture(MODEL, prompts, completions=texts)
    assert texts == [[5, 6, 7], [8]]
    assert prompts == [[0, 3, 4], [0, 5]]
    assert all_hooks(MODEL) == before


def test_batches_hold_every_row_once_of_like_lengths_within_their_budget():
    prompts = [[1] * length for length in (9, 2, 30, 4, 4, 8, 1)]
    batches = list(plain.batches(prompts, budget=20, new_tokens=1))
    assert sorted(row for batch in batches for row in batch.rows) == list(range(7))
    for batch in batches:
        assert len(batch.rows) == 1 or len(batch.rows) * (batch.tokens.shape[1] + 1) <= 20
        for row, mask in zip(batch.rows, batch.mask, strict=True):
            assert mask.tolist() == [False] * (len(mask) - len(prompts[row])) + [True] * len(prompts[row])


@pytest.mark.parametrize("reuse", [True, False])
@pytest.mark.parametrize("name", TABLE)
def test_reading_a_generated_text_gives_the_activations_of_its_generation(name, reuse):
    positions = parse_positions(name)
    steer = Add(made_vector(MODEL, 1, scale=6.0), 1.0, positions)
    generation = capture(MODEL, UNEQUAL, steer, positions=positions, max_new_tokens=5, reuse=reuse)
    assert [len(text) for text in generation.completion_tokens] == [5, 5, 5]
    options = {"positions": positions, "completions": generation.completion_tokens, "reuse": reuse}
    result = capture(MODEL, UNEQUAL, steer, **options)
    torch.testing.assert_close(result.values, generation.values, rtol=0, atol=1e-4, equal_nan=True)
    torch.testing.assert_close(result.stream_norm, generation.stream_norm)
    for name in ("token_index", "tokens", "prompt_lengths"):
        assert torch.equal(getattr(result, name), getattr(generation, name)), name
    for name in ("layers", "hook", "prompts", "completions", "completion_tokens"):
        assert getattr(result, name) == getattr(generation, name), name


@pytest.mark.parametrize("reuse", [True, False])
def test_completions_are_read_as_generated_tokens_after_their_prompts(reuse):
    """Against each whole text alone; the steering sees where the prompt ends."""
    texts, vector = [[5, 6, 7, 8], [10], [11, 12]], made_vector(MODEL, 1, scale=6.0)
    steer = Add(vector, -1.0, generated_tokens())
    result = capture(MODEL, UNEQUAL, steer, positions=all_tokens(), completions=texts, reuse=reuse)
    changes = [Change(1, "resid_post", lambda x: x - vector.values, TABLE["generated_tokens()"])]
    for row, (ids, text) in enumerate(zip(UNEQUAL, texts, strict=True)):
        read = ids + text[:-1]
        assert selected(result.tokens[row]) == read
        for layer in range(N_LAYERS):
            alone = activations_alone(read, "resid_post", layer, changes, prompt_length=len(ids))
            torch.testing.assert_close(result.values[row, layer, : len(read)], alone, rtol=1e-4, atol=1e-4)
    assert result.completion_tokens == tuple(map(tuple, texts))
    torch.testing.assert_close(result.stream_norm, capture(MODEL, UNEQUAL, reuse=reuse).stream_norm)


def test_a_text_is_tokenized_alone_and_recorded_unchanged():
    read = functools.partial(capture, MODEL, ["a b", "c"], positions=generated_tokens())
    result, ids = read(completions=["d e f", "</s> g h"]), MODEL.tokenizer.convert_tokens_to_ids
    assert result.completion_tokens == (tuple(ids(["d", "e", "f"])), tuple(ids(["</s>", "g", "h"])))
    assert result.tokens.tolist() == [ids(["d", "e"]), ids(["</s>", "g"])]
    assert result.completions == ("d e f", "</s> g h")
    by_ids = read(completions=result.completion_tokens)
    assert torch.equal(by_ids.values, result.values)
    assert by_ids.completions == ("d e f", "g h")  # as generated text is shown


def test_one_prompt_takes_one_text_or_one_list_of_ids():
    ids, one = [0, 3, 4], capture(MODEL, [0, 3, 4])
    assert torch.equal(one.values, capture(MODEL, [ids]).values)
    assert one.completions == one.completion_tokens == ()
    result = capture(MODEL, ids, completions=[5, 6], positions=all_tokens())
    assert result.tokens.tolist() == [[0, 3, 4, 5]]
    assert capture(MODEL, "a b", completions="c d").completions == ("c d",)


def test_an_empty_completion_leaves_the_prompt_alone():
    result = capture(MODEL, ["a b", "c"], completions=["", [4, 5, 6]], positions=current_token())
    assert result.token_index.tolist() == [[2, -1, -1], [1, 2, 3]]
    assert result.completion_tokens == ((), (4, 5, 6))
    without = capture(MODEL, ["a b"], completions=[[]], positions=prompt_tokens())
    assert torch.equal(without.values, capture(MODEL, ["a b"], positions=prompt_tokens()).values)
    for nothing in ("", [4]):  # of one token, nothing is fed back
        message = r"generated_tokens\(\) selects no token of prompt 1"
        options = {"completions": ["d e", nothing], "positions": generated_tokens()}
        assert_raises(message, capture, MODEL, ["a b", "c"], error=EmptySelectionError, **options)


def test_a_model_without_a_tokenizer_reads_ids_and_shows_them():
    silent = make_model(word_tokenizer())
    silent.tokenizer = None
    result = capture(silent, [[0, 3]], completions=[[4, 5]], positions=all_tokens())
    assert result.completions == ("[4, 5]",)
    assert result.tokens.tolist() == [[0, 3, 4]]
    assert_raises("no tokenizer: give token ids", capture, silent, [[0, 3]], completions=["d e"])
