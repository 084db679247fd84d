"""The position tracker: the same tokens with any padding, batch, cache and call."""

from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformer_lens.cache.key_value_cache import TransformerLensKeyValueCache

from tl_steer.positions import (
    PositionTracker,
    all_tokens,
    generated_tokens,
    last_token,
    parse_positions,
    span,
    token,
    tokens_matching,
)

from .conftest import assert_raises
from .hugging_face import padded
from .tiny_model import TABLE, all_hooks, byte_tokenizer, make_model, word_tokenizer

MODEL = make_model(word_tokenizer())
NEW = 4
GREEDY = {"do_sample": False, "stop_at_eos": False, "verbose": False}


def new_cache(rows):
    return TransformerLensKeyValueCache.init_cache(MODEL.cfg, "cpu", rows)


def selected_while(run, positions, layer=0, **known):
    """Per row, the absolute positions that were selected in the passes of `run`, in order."""
    tracker, result = PositionTracker(MODEL, **known), {}

    def hook(x, hook):
        rows, slots = tracker.mask(positions).nonzero(as_tuple=True)
        for row, index in zip(rows.tolist(), tracker.index[rows, slots].tolist(), strict=True):
            result.setdefault(row, []).append(index)

    point = MODEL.blocks[layer].hook_resid_pre
    point.add_hook(hook)
    try:
        with tracker, torch.no_grad():
            run()
    finally:
        point.remove_hooks()
    return result


def decoding(prompts, side, *, cached):
    """Passes without `generate`: the prompts, then `NEW` tokens one after the other."""

    def run():
        tokens, mask = padded(prompts, side)
        cache = new_cache(len(prompts)) if cached else None
        MODEL(tokens, attention_mask=mask, past_kv_cache=cache)
        for step in range(NEW):
            column = torch.full((len(prompts), 1), 5 + step)
            tokens, mask = torch.cat([tokens, column], 1), torch.cat([mask, torch.ones_like(column)], 1)
            if cached:
                MODEL(column, attention_mask=torch.ones_like(column), past_kv_cache=cache)
            else:
                MODEL(tokens, attention_mask=mask)

    return run


def generation(prompts, *, cached=True, new=NEW):
    """TransformerLens's own."""
    ids = torch.tensor(prompts)
    return lambda: MODEL.generate(ids, max_new_tokens=new + 1, **GREEDY, use_past_kv_cache=cached)


def expected(name, prompts, new=NEW):
    rows = {row: TABLE[name](len(ids), len(ids) + new) for row, ids in enumerate(prompts)}
    return {row: indices for row, indices in rows.items() if indices}


def without_repeats(selected):
    return {row: sorted(set(indices)) for row, indices in selected.items()}


PROMPTS = st.lists(st.lists(st.integers(0, 20), min_size=3, max_size=7), min_size=1, max_size=4)


@settings(max_examples=30, deadline=None)
@given(name=st.sampled_from(list(TABLE)), prompts=PROMPTS, cached=st.booleans(), known=st.booleans())
def test_every_position_means_the_same_in_any_batch_with_and_without_a_cache(name, prompts, cached, known):
    source = {"prompts": prompts} if known else {"prompt_lengths": list(map(len, prompts))}
    run = decoding(prompts, "left", cached=cached)
    result = selected_while(run, parse_positions(name), **source)
    # Without a cache, each pass computes and selects everything again.
    assert (result if cached else without_repeats(result)) == expected(name, prompts)


SIDES = st.sampled_from(["left", "right"])


@settings(max_examples=60, deadline=None)
@given(name=st.sampled_from(list(TABLE)), prompts=PROMPTS, side=SIDES, known=st.booleans())
def test_one_pass_selects_the_same_whatever_the_padding(name, prompts, side, known):
    tokens, mask = padded(prompts, side)
    source = {"prompts": prompts} if known else {}
    result = selected_while(partial(MODEL, tokens, attention_mask=mask), parse_positions(name), **source)
    assert result == expected(name, prompts, new=0)


@pytest.mark.parametrize("name", TABLE)
def test_a_bare_tracker_follows_generation_with_a_cache_by_itself(name):
    prompts = [[0, 3, 4, 1, 5], [0, 6, 1, 1, 7], [1, 1, 9, 10, 2]]
    assert selected_while(generation(prompts), parse_positions(name)) == expected(name, prompts)


@pytest.mark.parametrize("name", TABLE)
def test_generation_without_a_cache_is_rejected_where_the_end_is_a_guess_and_prompt_lengths_tell(name):
    prompts, positions = [[0, 3, 4, 1, 5]], parse_positions(name)
    run = generation(prompts, cached=False)
    if positions.needs_end:
        message = r"would be a guess here: .*without a cache.*prompt_lengths=\[…\]"
        assert_raises(message, selected_while, run, positions)
    else:
        assert without_repeats(selected_while(run, positions)) == expected(name, prompts)
    assert without_repeats(selected_while(run, positions, prompt_lengths=[5])) == expected(name, prompts)


def test_a_span_beyond_the_prompt_never_takes_generated_tokens_for_the_prompt_s():
    cached, uncached = (generation([[0, 3, 4]], cached=cached, new=3) for cached in (True, False))
    assert selected_while(cached, span(1, 5)) == {0: [1, 2]}
    assert_raises("would be a guess", selected_while, uncached, span(1, 5))
    for positions, known in ((span(1, 5), {"prompt_lengths": [3]}), (span(1, 3), {})):
        assert without_repeats(selected_while(uncached, positions, **known)) == {0: [1, 2]}


def test_a_batch_without_a_mask_is_rejected_where_the_end_would_be_a_guess():
    tokens = torch.tensor([[0, 3, 4, 1, 5], [0, 6, 1, 1, 7]])
    run = partial(MODEL, tokens)
    assert_raises("several rows and no attention mask", selected_while, run, last_token())
    assert selected_while(run, token(1)) == {0: [1], 1: [1]}
    assert selected_while(run, last_token(), prompt_lengths=[3, 5]) == {0: [2], 1: [4]}
    masked = partial(run, attention_mask=torch.ones_like(tokens))
    assert selected_while(masked, last_token()) == {0: [4], 1: [4]}


def passes(*prompts, **options):
    return [MODEL(torch.tensor([ids]), **options) for ids in prompts]


TWO_ROWS = torch.tensor([[0, 1], [0, 2]])


def two_generations():
    for ids in ([0, 3, 4, 5], [0, 6]):
        generation([ids], new=2)()


@pytest.mark.parametrize(("run", "positions", "selected"), [
    (lambda: passes([0, 1, 1]), last_token(), [2]),  # one row needs no mask
    (lambda: passes([0, 3, 4, 5], [0, 3, 6, 7, 8, 9], [0, 3, 6]), last_token(), [3, 5, 2]),
    (lambda: passes([0, 3, 4, 1, 5], [0, 3, 4, 1, 5], stop_at_layer=1), last_token(), [4, 4]),
    (lambda: passes([0, 3, 4, 5], [0, 3, 4, 5, 6]), all_tokens(), [0, 1, 2, 3, 0, 1, 2, 3, 4]),
    (lambda: passes([0, 3, 4, 1, 4]), parse_positions("tokens_matching('b')"), [2, 4]),
    (lambda: MODEL.run_with_cache(torch.tensor([[0, 3, 4, 1, 5]])), token(-2), [3]),
    (two_generations, generated_tokens(), [4, 5, 2, 3]),
])  # fmt: skip
def test_a_bare_tracker_follows_any_passes(run, positions, selected):
    assert selected_while(run, positions) == {0: selected}


def test_a_bare_tracker_trusts_the_mask_it_sees():
    """TransformerLens's own `generate` takes a pad id at the end of its input for padding."""
    assert selected_while(generation([[0, 3, 4, 1]], new=1), last_token()) == {0: [2]}


def test_a_prompt_in_two_passes_over_a_cache_keeps_its_end():
    run = partial(passes, [0, 3, 4], [5, 6], past_kv_cache=new_cache(1))
    assert selected_while(run, span(-3, None), prompt_lengths=[5]) == {0: [2, 3, 4]}


@pytest.mark.parametrize(("run", "known", "positions", "message"), [
    # It could be generation without a cache.
    (lambda: passes([0, 3, 4, 5], [0, 3, 4, 5, 6]), {}, last_token(), "begins with all of the previous"),
    (partial(MODEL, TWO_ROWS), {"prompt_lengths": [2, 2, 2]}, last_token(), "3 prompts for a pass of 2 rows"),
    (lambda: passes([0, 1]), {"prompt_lengths": [2]}, tokens_matching("b"), r"give prompts=\[…\]"),
    (lambda: None, {"prompt_lengths": [3, -1]}, last_token(), "prompt_lengths has -1: expected"),
])  # fmt: skip
def test_unknown_ends_and_wrong_lengths_are_rejected(run, known, positions, message):
    assert_raises(message, selected_while, run, positions, **known)


def test_continuing_from_a_filled_cache_is_rejected_where_the_end_would_be_a_guess():
    cache = new_cache(1)
    with torch.no_grad():
        passes([0, 3, 4], past_kv_cache=cache)
    cache.freeze()
    run = partial(passes, [5, 6], past_kv_cache=cache)
    for positions in (last_token(), span(1, 5)):
        assert_raises("continues from a cache", selected_while, run, positions)
    assert selected_while(run, last_token(), prompt_lengths=[5]) == {0: [4]}
    assert selected_while(run, all_tokens()) == {0: [3, 4]}


@pytest.mark.parametrize("side", ["left", "right"])
def test_passes_that_start_at_a_later_layer_are_followed(side):
    prompts = [[0, 3, 4, 1, 5], [0, 6, 1]]
    tokens, mask = padded(prompts, side)
    with torch.no_grad():
        residual = MODEL(tokens, attention_mask=mask, stop_at_layer=1)
    run = partial(MODEL, residual, start_at_layer=1, attention_mask=mask)
    assert selected_while(run, last_token(), layer=2) == {0: [4], 1: [2]}


def test_the_index_counts_unpadded_tokens():
    for side, second in (("left", [-1, -1, 0, 1]), ("right", [0, 1, -1, -1])):
        tokens, mask = padded([[0, 3, 4, 1], [1, 1]], side)
        with PositionTracker(MODEL) as tracker, torch.no_grad():
            MODEL(tokens, attention_mask=mask)
        assert tracker.index.tolist() == [[0, 1, 2, 3], second]
        assert [prompt.ids for prompt in tracker.prompts] == [(0, 3, 4, 1), (1, 1)]


@pytest.mark.parametrize("side", ["left", "right"])
def test_emoji_are_matched_in_padded_rows(side):
    model = make_model(tokenizer := byte_tokenizer())
    prompts = [tokenizer(text)["input_ids"] for text in ("a😀b", "😀")]
    tokens, mask = padded(prompts, side)
    with PositionTracker(model) as tracker, torch.no_grad():
        model(tokens, attention_mask=mask)
        result = tracker.index[tracker.mask(parse_positions("tokens_matching('😀')"))].tolist()
    assert result == [1, 2, 3, 4, 0, 1, 2, 3]


def test_a_tracker_that_fails_leaves_no_hooks(monkeypatch):
    """During a pass, or while its own are registered."""
    before = all_hooks(MODEL)
    with pytest.raises(ZeroDivisionError), PositionTracker(MODEL):
        raise ZeroDivisionError
    assert all_hooks(MODEL) == before
    monkeypatch.setattr(MODEL.blocks[2], "register_forward_pre_hook", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError), PositionTracker(MODEL):
        pass
    monkeypatch.undo()
    assert all_hooks(MODEL) == before
