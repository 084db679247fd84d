"""The position tracker: the same tokens with any padding, batch, cache and call."""

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
)

from .tiny_model import TABLE, all_hooks, byte_tokenizer, make_model, word_tokenizer

MODEL = make_model(word_tokenizer())
NEW = 4
GREEDY = {"do_sample": False, "stop_at_eos": False, "verbose": False}


def new_cache(rows):
    return TransformerLensKeyValueCache.init_cache(MODEL.cfg, "cpu", rows)


def padded(prompts, side):
    """Tokens and mask, padded with 1, which is a token of its own."""
    width = max(map(len, prompts))
    tokens, mask = torch.ones(len(prompts), width, dtype=torch.long), torch.zeros(len(prompts), width).long()
    for row, prompt in enumerate(prompts):
        index = slice(width - len(prompt), None) if side == "left" else slice(None, len(prompt))
        tokens[row, index], mask[row, index] = torch.tensor(prompt), 1
    return tokens, mask


def selected_while(run, tracker, positions, layer=0):
    """For each row, the absolute positions that were selected in any pass of `run`, and must not be twice."""
    result = {}

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
    """Passes by hand: the prompts, then `NEW` tokens one after the other."""

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


def expected(written, prompts, new=NEW):
    rows = {row: TABLE[written](len(ids), len(ids) + new) for row, ids in enumerate(prompts)}
    return {row: indices for row, indices in rows.items() if indices}


PROMPTS = st.lists(st.lists(st.integers(0, 20), min_size=3, max_size=7), min_size=1, max_size=4)


@settings(max_examples=30, deadline=None)
@given(written=st.sampled_from(list(TABLE)), prompts=PROMPTS, cached=st.booleans(), known=st.booleans())
def test_every_position_means_the_same_in_any_batch_with_and_without_a_cache(written, prompts, cached, known):
    tracker = (
        PositionTracker(MODEL, prompts=prompts)
        if known
        else PositionTracker(MODEL, prompt_lengths=list(map(len, prompts)))
    )
    result = selected_while(decoding(prompts, "left", cached=cached), tracker, parse_positions(written))
    if cached:
        assert result == expected(written, prompts)
    else:  # each pass computes everything again, and selects it again
        assert {row: sorted(set(indices)) for row, indices in result.items()} == expected(written, prompts)


@settings(max_examples=60, deadline=None)
@given(
    written=st.sampled_from(list(TABLE)),
    prompts=PROMPTS,
    side=st.sampled_from(["left", "right"]),
    known=st.booleans(),
)
def test_one_pass_selects_the_same_whatever_the_padding(written, prompts, side, known):
    tokens, mask = padded(prompts, side)
    tracker = PositionTracker(MODEL, prompts=prompts if known else None)
    result = selected_while(lambda: MODEL(tokens, attention_mask=mask), tracker, parse_positions(written))
    assert result == expected(written, prompts, new=0)


@pytest.mark.parametrize("written", TABLE)
def test_a_bare_tracker_follows_generation_with_a_cache_by_itself(written):
    prompts = [[0, 3, 4, 1, 5], [0, 6, 1, 1, 7], [1, 1, 9, 10, 2]]

    def run():
        MODEL.generate(torch.tensor(prompts), max_new_tokens=NEW + 1, **GREEDY, use_past_kv_cache=True)

    assert selected_while(run, PositionTracker(MODEL), parse_positions(written)) == expected(written, prompts)


def test_a_bare_tracker_trusts_the_mask_it_sees():
    """TransformerLens's own `generate` takes a pad id at the end of its input for padding."""

    def run():
        MODEL.generate(torch.tensor([[0, 3, 4, 1]]), max_new_tokens=2, **GREEDY)

    assert selected_while(run, PositionTracker(MODEL), last_token()) == {0: [2]}


@pytest.mark.parametrize("written", TABLE)
def test_generation_without_a_cache_is_rejected_where_the_end_is_a_guess_and_prompt_lengths_tell(written):
    prompt = [0, 3, 4, 1, 5]
    positions = parse_positions(written)

    def run():
        MODEL.generate(torch.tensor([prompt]), max_new_tokens=NEW + 1, **GREEDY, use_past_kv_cache=False)

    if positions.needs_end:
        with pytest.raises(
            ValueError, match=r"would be a guess here: .*without a cache.*prompt_lengths=\[…\]"
        ):
            selected_while(run, PositionTracker(MODEL), positions)
    else:
        assert set(selected_while(run, PositionTracker(MODEL), positions)[0]) == set(
            expected(written, [prompt])[0]
        )
    known = selected_while(run, PositionTracker(MODEL, prompt_lengths=[5]), positions)
    assert {row: sorted(set(indices)) for row, indices in known.items()} == expected(written, [prompt])


def test_a_span_beyond_the_prompt_never_takes_generated_tokens_for_the_prompt_s():
    prompt = torch.tensor([[0, 3, 4]])

    def generation(cached):
        return lambda: MODEL.generate(prompt, max_new_tokens=4, **GREEDY, use_past_kv_cache=cached)

    assert selected_while(generation(True), PositionTracker(MODEL), span(1, 5)) == {0: [1, 2]}
    with pytest.raises(ValueError, match="would be a guess"):
        selected_while(generation(False), PositionTracker(MODEL), span(1, 5))
    assert set(
        selected_while(generation(False), PositionTracker(MODEL, prompt_lengths=[3]), span(1, 5))[0]
    ) == {1, 2}
    assert set(selected_while(generation(False), PositionTracker(MODEL), span(1, 3))[0]) == {1, 2}


def test_a_batch_without_a_mask_is_rejected_where_the_end_would_be_a_guess():
    tokens = torch.tensor([[0, 3, 4, 1, 5], [0, 6, 1, 1, 7]])
    tracker = PositionTracker(MODEL)
    with pytest.raises(ValueError, match="several rows and no attention mask"):
        selected_while(lambda: MODEL(tokens), tracker, last_token())
    assert selected_while(lambda: MODEL(tokens), tracker, token(1)) == {0: [1], 1: [1]}
    known = PositionTracker(MODEL, prompt_lengths=[3, 5])
    assert selected_while(lambda: MODEL(tokens), known, last_token()) == {0: [2], 1: [4]}
    masked = selected_while(
        lambda: MODEL(tokens, attention_mask=torch.ones_like(tokens)), PositionTracker(MODEL), last_token()
    )
    assert masked == {0: [4], 1: [4]}


def test_one_row_needs_no_mask():
    assert selected_while(lambda: MODEL(torch.tensor([[0, 1, 1]])), PositionTracker(MODEL), last_token()) == {
        0: [2]
    }


def test_two_prompts_one_after_the_other_are_two_prompts():
    def run():
        MODEL(torch.tensor([[0, 3, 4, 5]]))
        MODEL(torch.tensor([[0, 3, 6, 7, 8, 9]]))
        MODEL(torch.tensor([[0, 3, 6]]))

    assert selected_while(run, PositionTracker(MODEL), last_token()) == {0: [3, 5, 2]}


def test_a_generation_after_another_begins_anew():
    def run():
        for prompt in ([[0, 3, 4, 5]], [[0, 6]]):
            MODEL.generate(torch.tensor(prompt), max_new_tokens=3, **GREEDY)

    assert selected_while(run, PositionTracker(MODEL), generated_tokens()) == {0: [4, 5, 2, 3]}


def test_a_prompt_that_continues_from_the_previous_one_could_be_generation_so_it_is_rejected():
    def run():
        MODEL(torch.tensor([[0, 3, 4, 5]]))
        MODEL(torch.tensor([[0, 3, 4, 5, 6]]))

    with pytest.raises(ValueError, match="begins with all of the previous one's input"):
        selected_while(run, PositionTracker(MODEL), last_token())
    assert selected_while(run, PositionTracker(MODEL), all_tokens()) == {0: [0, 1, 2, 3, 0, 1, 2, 3, 4]}


def test_going_on_from_a_cache_that_was_filled_before_is_rejected_where_it_would_be_a_guess():
    cache = new_cache(1)
    with torch.no_grad():
        MODEL(torch.tensor([[0, 3, 4]]), past_kv_cache=cache)

    def run():
        cache.freeze()
        MODEL(torch.tensor([[5, 6]]), past_kv_cache=cache)

    with pytest.raises(ValueError, match="continues from a cache"):
        selected_while(run, PositionTracker(MODEL), last_token())
    with pytest.raises(ValueError, match="continues from a cache"):
        selected_while(run, PositionTracker(MODEL), span(1, 5))
    assert selected_while(run, PositionTracker(MODEL, prompt_lengths=[5]), last_token()) == {0: [4]}
    assert selected_while(run, PositionTracker(MODEL), all_tokens()) == {0: [3, 4]}


def test_a_prompt_in_two_passes_over_a_cache_keeps_its_end():
    def run():
        cache = new_cache(1)
        MODEL(torch.tensor([[0, 3, 4]]), past_kv_cache=cache)
        MODEL(torch.tensor([[5, 6]]), past_kv_cache=cache)

    assert selected_while(run, PositionTracker(MODEL, prompt_lengths=[5]), span(-3, None)) == {0: [2, 3, 4]}


@pytest.mark.parametrize("side", ["left", "right"])
def test_passes_that_start_at_a_later_layer_are_followed(side):
    prompts = [[0, 3, 4, 1, 5], [0, 6, 1]]
    tokens, mask = padded(prompts, side)
    with torch.no_grad():
        residual = MODEL(tokens, attention_mask=mask, stop_at_layer=1)

    def run():
        MODEL(residual, start_at_layer=1, attention_mask=mask)

    assert selected_while(run, PositionTracker(MODEL), last_token(), layer=2) == {0: [4], 1: [2]}


def test_run_with_cache_and_passes_that_stop_early_are_followed():
    tokens = torch.tensor([[0, 3, 4, 1, 5]])
    assert selected_while(lambda: MODEL.run_with_cache(tokens), PositionTracker(MODEL), token(-2)) == {0: [3]}

    def twice():
        MODEL(tokens, stop_at_layer=1)
        MODEL(tokens, stop_at_layer=1)

    tracker = PositionTracker(MODEL)
    assert selected_while(twice, tracker, last_token()) == {0: [4, 4]}
    assert tracker.passes == 2


def test_the_index_counts_unpadded_places():
    tokens, mask = padded([[0, 3, 4, 1], [1, 1]], "left")
    with PositionTracker(MODEL) as tracker, torch.no_grad():
        MODEL(tokens, attention_mask=mask)
        assert tracker.index.tolist() == [[0, 1, 2, 3], [-1, -1, 0, 1]]
        assert [prompt.ids for prompt in tracker.prompts] == [(0, 3, 4, 1), (1, 1)]
        tokens, mask = padded([[0, 3, 4, 1], [1, 1]], "right")
        MODEL(tokens, attention_mask=mask)
        assert tracker.index.tolist() == [[0, 1, 2, 3], [0, 1, -1, -1]]
        assert [prompt.ids for prompt in tracker.prompts] == [(0, 3, 4, 1), (1, 1)]


def test_a_prompt_of_fewer_tokens_than_none_is_rejected():
    with pytest.raises(ValueError, match=r"prompt_lengths has -1: expected"):
        PositionTracker(MODEL, prompt_lengths=[3, -1])


def test_other_numbers_of_prompts_than_rows_are_rejected():
    with pytest.raises(ValueError, match="3 prompts for a pass of 2 rows"):
        selected_while(
            lambda: MODEL(torch.tensor([[0, 1], [0, 2]])),
            PositionTracker(MODEL, prompt_lengths=[2, 2, 2]),
            last_token(),
        )


def test_text_is_matched_in_what_a_bare_pass_brings_and_refused_where_only_lengths_are_told():
    tokens = torch.tensor([[0, 3, 4, 1, 4]])
    positions = parse_positions("tokens_matching('b')")
    assert selected_while(lambda: MODEL(tokens), PositionTracker(MODEL), positions) == {0: [2, 4]}
    with pytest.raises(ValueError, match=r"give prompts=\[…\]"):
        selected_while(lambda: MODEL(tokens), PositionTracker(MODEL, prompt_lengths=[5]), positions)


@pytest.mark.parametrize("side", ["left", "right"])
def test_emoji_are_found_in_padded_rows(side):
    tokenizer = byte_tokenizer()
    model = make_model(tokenizer)
    prompts = [tokenizer(text)["input_ids"] for text in ("a😀b", "😀")]
    tokens, mask = padded(prompts, side)
    with PositionTracker(model) as tracker, torch.no_grad():
        model(tokens, attention_mask=mask)
        result = tracker.index[tracker.mask(parse_positions("tokens_matching('😀')"))].tolist()
    assert result == [1, 2, 3, 4, 0, 1, 2, 3]


def test_the_tracker_leaves_no_hook_behind_even_where_the_pass_fails():
    before = all_hooks(MODEL)

    def fails():
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), PositionTracker(MODEL):
        fails()
    assert all_hooks(MODEL) == before


def test_a_tracker_that_cannot_be_set_leaves_no_hook_behind(monkeypatch):
    before = all_hooks(MODEL)
    monkeypatch.setattr(MODEL.blocks[2], "register_forward_pre_hook", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError), PositionTracker(MODEL):
        pass
    monkeypatch.undo()
    assert all_hooks(MODEL) == before
