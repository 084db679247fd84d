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
    tokens_matching,
)

from .hugging_face import padded
from .tiny_model import TABLE, all_hooks, byte_tokenizer, make_model, word_tokenizer

MODEL = make_model(word_tokenizer())
NEW = 4
GREEDY = {"do_sample": False, "stop_at_eos": False, "verbose": False}


def new_cache(rows):
    return TransformerLensKeyValueCache.init_cache(MODEL.cfg, "cpu", rows)


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
    source = {"prompts": prompts} if known else {"prompt_lengths": list(map(len, prompts))}
    run = decoding(prompts, "left", cached=cached)
    result = selected_while(run, PositionTracker(MODEL, **source), parse_positions(written))
    if not cached:  # each pass computes everything again, and selects it again
        result = {row: sorted(set(indices)) for row, indices in result.items()}
    assert result == expected(written, prompts)


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


@pytest.mark.parametrize("written", TABLE)
def test_generation_without_a_cache_is_rejected_where_the_end_is_a_guess_and_prompt_lengths_tell(written):
    prompt = [0, 3, 4, 1, 5]
    positions = parse_positions(written)

    def run():
        MODEL.generate(torch.tensor([prompt]), max_new_tokens=NEW + 1, **GREEDY, use_past_kv_cache=False)

    if positions.needs_end:
        message = r"would be a guess here: .*without a cache.*prompt_lengths=\[…\]"
        with pytest.raises(ValueError, match=message):
            selected_while(run, PositionTracker(MODEL), positions)
    else:
        result = selected_while(run, PositionTracker(MODEL), positions)
        assert set(result[0]) == set(expected(written, [prompt])[0])
    known = selected_while(run, PositionTracker(MODEL, prompt_lengths=[5]), positions)
    assert {row: sorted(set(indices)) for row, indices in known.items()} == expected(written, [prompt])


def test_a_span_beyond_the_prompt_never_takes_generated_tokens_for_the_prompt_s():
    prompt = torch.tensor([[0, 3, 4]])

    def selected(cached, positions, **known):
        run = lambda: MODEL.generate(prompt, max_new_tokens=4, **GREEDY, use_past_kv_cache=cached)  # noqa: E731
        return set(selected_while(run, PositionTracker(MODEL, **known), positions)[0])

    assert selected(True, span(1, 5)) == {1, 2}
    with pytest.raises(ValueError, match="would be a guess"):
        selected(False, span(1, 5))
    assert selected(False, span(1, 5), prompt_lengths=[3]) == selected(False, span(1, 3)) == {1, 2}


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


def passes(*prompts, **options):
    return [MODEL(torch.tensor([ids]), **options) for ids in prompts]


def in_two_passes():
    passes([0, 3, 4], [5, 6], past_kv_cache=new_cache(1))


def generations():
    for ids in ([0, 3, 4, 5], [0, 6]):
        MODEL.generate(torch.tensor([ids]), max_new_tokens=3, **GREEDY)


@pytest.mark.parametrize(
    ("run", "positions", "selected"),
    [
        (lambda: passes([0, 1, 1]), last_token(), [2]),  # one row needs no mask
        (lambda: passes([0, 3, 4, 5], [0, 3, 6, 7, 8, 9], [0, 3, 6]), last_token(), [3, 5, 2]),
        (lambda: passes([0, 3, 4, 1, 5], [0, 3, 4, 1, 5], stop_at_layer=1), last_token(), [4, 4]),
        (lambda: passes([0, 3, 4, 5], [0, 3, 4, 5, 6]), all_tokens(), [0, 1, 2, 3, 0, 1, 2, 3, 4]),
        (lambda: passes([0, 3, 4, 1, 4]), parse_positions("tokens_matching('b')"), [2, 4]),
        (lambda: MODEL.run_with_cache(torch.tensor([[0, 3, 4, 1, 5]])), token(-2), [3]),
        (generations, generated_tokens(), [4, 5, 2, 3]),
    ],
)
def test_a_bare_tracker_follows_any_passes(run, positions, selected):
    assert selected_while(run, PositionTracker(MODEL), positions) == {0: selected}


def test_a_bare_tracker_trusts_the_mask_it_sees():
    """TransformerLens's own `generate` takes a pad id at the end of its input for padding."""

    def run():
        MODEL.generate(torch.tensor([[0, 3, 4, 1]]), max_new_tokens=2, **GREEDY)

    assert selected_while(run, PositionTracker(MODEL), last_token()) == {0: [2]}


def test_a_prompt_in_two_passes_over_a_cache_keeps_its_end():
    tracker = PositionTracker(MODEL, prompt_lengths=[5])
    assert selected_while(in_two_passes, tracker, span(-3, None)) == {0: [2, 3, 4]}


@pytest.mark.parametrize(
    ("run", "known", "positions", "message"),
    [
        # It could be generation without a cache.
        (lambda: passes([0, 3, 4, 5], [0, 3, 4, 5, 6]), {}, last_token(), "begins with all of the previous"),
        (
            lambda: MODEL(torch.tensor([[0, 1], [0, 2]])), {"prompt_lengths": [2, 2, 2]}, last_token(),
            "3 prompts for a pass of 2 rows",
        ),
        (lambda: passes([0, 1]), {"prompt_lengths": [2]}, tokens_matching("b"), r"give prompts=\[…\]"),
        (lambda: None, {"prompt_lengths": [3, -1]}, last_token(), "prompt_lengths has -1: expected"),
    ],
)  # fmt: skip
def test_unknown_ends_and_wrong_lengths_are_rejected(run, known, positions, message):
    with pytest.raises(ValueError, match=message):
        selected_while(run, PositionTracker(MODEL, **known), positions)


def test_going_on_from_a_cache_that_was_filled_before_is_rejected_where_it_would_be_a_guess():
    cache = new_cache(1)
    with torch.no_grad():
        MODEL(torch.tensor([[0, 3, 4]]), past_kv_cache=cache)

    def run():
        cache.freeze()
        MODEL(torch.tensor([[5, 6]]), past_kv_cache=cache)

    for positions in (last_token(), span(1, 5)):
        with pytest.raises(ValueError, match="continues from a cache"):
            selected_while(run, PositionTracker(MODEL), positions)
    assert selected_while(run, PositionTracker(MODEL, prompt_lengths=[5]), last_token()) == {0: [4]}
    assert selected_while(run, PositionTracker(MODEL), all_tokens()) == {0: [3, 4]}


@pytest.mark.parametrize("side", ["left", "right"])
def test_passes_that_start_at_a_later_layer_are_followed(side):
    prompts = [[0, 3, 4, 1, 5], [0, 6, 1]]
    tokens, mask = padded(prompts, side)
    with torch.no_grad():
        residual = MODEL(tokens, attention_mask=mask, stop_at_layer=1)

    def run():
        MODEL(residual, start_at_layer=1, attention_mask=mask)

    assert selected_while(run, PositionTracker(MODEL), last_token(), layer=2) == {0: [4], 1: [2]}


def test_the_index_counts_unpadded_tokens():
    for side, second in (("left", [-1, -1, 0, 1]), ("right", [0, 1, -1, -1])):
        tokens, mask = padded([[0, 3, 4, 1], [1, 1]], side)
        with PositionTracker(MODEL) as tracker, torch.no_grad():
            MODEL(tokens, attention_mask=mask)
        assert tracker.index.tolist() == [[0, 1, 2, 3], second]
        assert [prompt.ids for prompt in tracker.prompts] == [(0, 3, 4, 1), (1, 1)]


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


def test_a_tracker_that_fails_leaves_no_hooks(monkeypatch):
    """During a pass, or while it registers its own."""
    before = all_hooks(MODEL)
    with pytest.raises(ZeroDivisionError), PositionTracker(MODEL):
        raise ZeroDivisionError
    assert all_hooks(MODEL) == before
    monkeypatch.setattr(MODEL.blocks[2], "register_forward_pre_hook", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError), PositionTracker(MODEL):
        pass
    monkeypatch.undo()
    assert all_hooks(MODEL) == before
