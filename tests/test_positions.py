"""The language of positions: each word against a table by hand, text matching, reading back, preview."""

import copy
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import processors

from tl_steer.errors import EmptySelectionError
from tl_steer.positions import (
    PromptTokens,
    after,
    all_tokens,
    current_token,
    generated_tokens,
    last_token,
    parse_positions,
    preview,
    prompt_tokens,
    span,
    token,
    tokens_matching,
)

from .tiny_model import TABLE, byte_tokenizer, make_model, word_tokenizer

WORDS = word_tokenizer()
BYTES = byte_tokenizer()


def prompt_of(text, tokenizer=BYTES):
    ids = tuple(tokenizer(text)["input_ids"])
    return PromptTokens(len(ids), ids, tokenizer)


def chosen(positions, prompt):
    return positions.select(prompt).nonzero().flatten().tolist()


def bytes_of(text, start, stop):
    """Byte numbers of the characters `start` to `stop`: in the byte tokenizer, token numbers."""
    return list(range(len(text[:start].encode()), len(text[:stop].encode())))


@pytest.mark.parametrize(
    ("positions", "selected", "generated"),
    [
        (all_tokens(), [0, 1, 2, 3, 4], True),
        (prompt_tokens(), [0, 1, 2, 3, 4], False),
        (generated_tokens(), [], True),
        (last_token(), [4], False),
        (current_token(), [4], True),
        (token(0), [0], False),
        (token(3), [3], False),
        (token(5), [], False),
        (token(-1), [4], False),
        (token(-5), [0], False),
        (token(-6), [], False),
        (span(1, 3), [1, 2], False),
        (span(None, 2), [0, 1], False),
        (span(3, None), [3, 4], False),
        (span(-2, None), [3, 4], False),
        (span(None, None), [0, 1, 2, 3, 4], False),
        (span(1, -1), [1, 2, 3], False),
        (span(3, 1), [], False),
        (span(2, 99), [2, 3, 4], False),
        (tokens_matching("c"), [2], False),
        (after("b"), [2, 3, 4], False),
        (last_token() | generated_tokens(), [4], True),
        (token(0) | span(2, 4), [0, 2, 3], False),
        (all_tokens() & span(1, 3), [1, 2], False),
        (all_tokens() & generated_tokens(), [], True),
        (~last_token(), [0, 1, 2, 3], True),
        (~generated_tokens(), [0, 1, 2, 3, 4], False),
        (~all_tokens(), [], False),
        (~~token(2), [2], False),
        (~(token(0) | generated_tokens()), [1, 2, 3, 4], False),
        (~tokens_matching("c") & prompt_tokens(), [0, 1, 3, 4], False),
    ],
    ids=repr,
)
def test_each_position_selects_what_the_table_says(positions, selected, generated):
    assert chosen(positions, prompt_of("abcde")) == selected
    assert positions.generated is generated


@pytest.mark.parametrize("written", TABLE)
@given(prompt=st.integers(3, 9), new=st.integers(0, 4))
def test_positions_agree_with_list_indexing_at_every_length(written, prompt, new):
    positions = parse_positions(written)
    fed_back = list(range(prompt, prompt + new)) if positions.generated else []
    assert chosen(positions, PromptTokens(prompt)) + fed_back == TABLE[written](prompt, prompt + new)


@pytest.mark.parametrize(
    ("positions", "needs_end"),
    [
        (all_tokens(), False),
        (token(0), False),
        (span(1, 3), False),
        (~token(2), False),
        (token(-1), True),
        (span(-2, 3), True),
        (span(0, None), True),
        (span(0, -1), True),
        (prompt_tokens(), True),
        (generated_tokens(), True),
        (last_token(), True),
        (current_token(), True),
        (tokens_matching("c"), True),
        (after("c"), True),
        (token(0) & last_token(), True),
        (~last_token(), True),
    ],
    ids=repr,
)
def test_only_positions_that_depend_on_the_prompts_end_say_so(positions, needs_end):
    assert positions.needs_end is needs_end


@given(
    before=st.text("aé€😀 ", max_size=5),
    text=st.text("aé€😀", min_size=1, max_size=3),
    behind=st.text("aé€😀 ", max_size=5),
)
def test_text_is_found_by_its_characters_whatever_bytes_they_take(before, text, behind):
    whole = before + text + behind
    occurrences = [at for at in range(len(whole)) if whole.startswith(text, at)]
    expected = sorted({byte for at in occurrences for byte in bytes_of(whole, at, at + len(text))})
    prompt = prompt_of(whole)
    assert chosen(tokens_matching(text), prompt) == expected
    assert chosen(after(text), prompt) == bytes_of(whole, occurrences[-1] + len(text), len(whole))


def test_half_an_emoji_s_bytes_all_count_as_the_emoji():
    assert chosen(tokens_matching("😀"), prompt_of("a😀b")) == [1, 2, 3, 4]
    assert chosen(tokens_matching("b"), prompt_of("a😀b")) == [5]
    assert chosen(after("😀"), prompt_of("a😀é")) == [5, 6]


def test_a_replacement_character_that_was_written_belongs_to_its_own_tokens():
    """Decoded, it looks like the beginning of a character that later tokens complete."""
    assert chosen(tokens_matching("\ufffd"), prompt_of("a\ufffdb")) == [1, 2, 3]
    assert chosen(tokens_matching("b"), prompt_of("a\ufffdb")) == [4]


def test_a_token_s_leading_space_belongs_to_it_where_the_tokenizer_s_offsets_leave_it_out():
    tokenizer = byte_tokenizer([("Ġ", "b")])
    tokenizer.backend_tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    prompt = prompt_of("a b", tokenizer)
    assert prompt.length == 2
    assert chosen(tokens_matching(" "), prompt) == [1]


def test_tokens_that_the_text_does_not_lead_back_to_have_spans_of_their_own():
    merged = byte_tokenizer([("a", "b")])
    separate = PromptTokens(3, tuple(merged.convert_tokens_to_ids(["a", "b", "c"])), merged)
    assert chosen(tokens_matching("b"), separate) == [1]
    assert chosen(after("b"), separate) == [2]


def test_a_token_with_the_end_of_one_character_and_the_next_overlaps_both():
    last_byte, exclamation = BYTES.convert_ids_to_tokens(BYTES("é!")["input_ids"])[1:]
    tokenizer = byte_tokenizer([(last_byte, exclamation)])
    prompt = prompt_of("aé!", tokenizer)
    assert prompt.length == 3
    assert prompt.spans.tolist() == [[0, 1], [1, 2], [1, 3]]
    assert chosen(tokens_matching("é"), prompt) == [1, 2]
    assert chosen(tokens_matching("!"), prompt) == [2]
    assert chosen(after("a"), prompt) == [1, 2]


def test_repeated_and_overlapping_text_is_matched_everywhere_but_after_starts_at_the_last():
    prompt = prompt_of("xaxaxy")
    assert chosen(tokens_matching("xax"), prompt) == [0, 1, 2, 3, 4]
    assert chosen(after("xax"), prompt) == [5]
    assert chosen(after("y"), prompt) == []


def test_text_across_word_tokens_is_matched_and_special_characters_are_literal():
    prompt = prompt_of("a b . b ( A )", WORDS)
    assert WORDS.convert_ids_to_tokens(prompt.ids) == ["<s>", "a", "b", ".", "b", "(", "A", ")"]
    assert chosen(tokens_matching("b . b"), prompt) == [2, 3, 4]
    assert chosen(tokens_matching("."), prompt) == [3]
    assert chosen(tokens_matching("( A"), prompt) == [5, 6]
    assert chosen(tokens_matching("<s>"), prompt) == [0]
    assert chosen(tokens_matching("nowhere"), prompt) == []
    assert chosen(after("nowhere"), prompt) == []


def test_text_needs_tokens_and_a_tokenizer_and_must_not_be_empty():
    with pytest.raises(ValueError, match="needs the prompt's tokens and a tokenizer"):
        tokens_matching("a").select(PromptTokens(3, (1, 2, 3)))
    with pytest.raises(ValueError, match="not empty"):
        tokens_matching("").select(prompt_of("abc"))
    with pytest.raises(ValueError, match="not empty"):
        after("").select(prompt_of("abc"))


ATOMS = st.sampled_from(
    [
        all_tokens(), prompt_tokens(), generated_tokens(), last_token(), current_token(), token(0), token(-2),
        span(None, 2), span(-3, None), span(1, -1), tokens_matching("b'\"c\\"), tokens_matching("é\n😀"),
        after("b"),
    ]
)  # fmt: skip
EXPRESSIONS = st.recursive(
    ATOMS,
    lambda inner: st.one_of(
        inner.map(lambda x: ~x),
        st.tuples(inner, inner).map(lambda pair: pair[0] | pair[1]),
        st.tuples(inner, inner).map(lambda pair: pair[0] & pair[1]),
    ),
    max_leaves=6,
)


@given(EXPRESSIONS)
def test_what_is_written_is_read_back_the_same(positions):
    again = parse_positions(repr(positions))
    assert again == positions
    assert hash(again) == hash(positions)
    prompt = prompt_of("abcbx")
    assert chosen(again, prompt) == chosen(positions, prompt)
    assert (again.generated, again.needs_end) == (positions.generated, positions.needs_end)


@given(EXPRESSIONS)
def test_positions_survive_pickling_and_copying(positions):
    prompt = prompt_of("abcbx")
    for again in (pickle.loads(pickle.dumps(positions)), copy.deepcopy(positions)):
        assert again == positions
        assert chosen(again, prompt) == chosen(positions, prompt)


@given(EXPRESSIONS, EXPRESSIONS)
def test_the_combinators_obey_de_morgan(first, second):
    prompt = prompt_of("abcbx")
    for left, right in ((~(first | second), ~first & ~second), (~(first & second), ~first | ~second)):
        assert chosen(left, prompt) == chosen(right, prompt)
        assert left.generated is right.generated


@pytest.mark.parametrize(
    "written",
    [
        "", "last_token", "last_tokn()", "token('a')", "token()", "token(1, 2)", "token(i=1)", "span(0)",
        "last_token() + token(0)", "last_token() or token(0)", "not last_token()", "-token(0)", "token(0)[0]",
        "__import__('os').getcwd()", "token(len('a'))", "tokens_matching(f'{1}')", "(lambda: 0)()",
        "token(0); token(1)",
    ],
)  # fmt: skip
def test_what_is_not_positions_is_rejected_and_the_words_are_listed(written):
    with pytest.raises(ValueError, match=r"cannot be read: expected all_tokens\(…\).*combined with \| & ~"):
        parse_positions(written)


def test_a_selection_of_nothing_names_prompt_and_remedy():
    prompt = prompt_of("abc")
    message = r"token\(7\) selects no token of prompt 4 \('abc', 3 tokens\).*allow_empty=True"
    with pytest.raises(EmptySelectionError, match=message):
        token(7).require_some(prompt, "prompt 4")
    token(2).require_some(prompt, "prompt 4")
    (token(7) | generated_tokens()).require_some(prompt, "prompt 4")
    with pytest.raises(EmptySelectionError, match=r"of row 0 \(3 tokens\)"):
        generated_tokens().require_some(PromptTokens(3), "row 0", generating=False)


@pytest.fixture(scope="module")
def model():
    return make_model(WORDS)


def test_preview_marks_the_selected_tokens_as_plain_text(model):
    shown = preview(model, "a b c", token(1) | last_token())
    assert shown.tokens == ("<s>", "a", "b", "c")
    assert shown.selected == (False, True, False, True)
    assert str(shown) == repr(shown) == "(token(1) | last_token()): 2 of 4 tokens\n<s>[a]b[c]"
    assert "and every generated token" in str(preview(model, "a b c", all_tokens()))
    assert str(current_token().preview(model, [3, 4])).endswith("a[b]")


def test_preview_escapes_the_model_s_text_and_the_label_in_html(model):
    page = preview(model, "a b", tokens_matching("<s>"))._repr_html_()
    assert "<s>" not in page
    assert ">&lt;s&gt;</span>" in page
    assert "tokens_matching(&#x27;&lt;s&gt;&#x27;)" in page
    assert page.count("background:") == 1
    assert page.count("<span") == 3


def test_preview_shows_line_breaks():
    lines = make_model(BYTES)
    assert str(preview(lines, "a\nb", token(1))).endswith("a[⏎]b")
    assert "⏎</span><br>" in preview(lines, "a\nb", token(1))._repr_html_()


def test_selecting_leaves_ids_and_masks_alone():
    prompt = prompt_of("abcde")
    first, second = all_tokens().select(prompt), all_tokens().select(prompt)
    first[0] = False
    assert bool(second.all())
    inner = span(1, 3)
    outer = ~inner
    outer.select(prompt)[:] = False
    assert chosen(inner, prompt) == [1, 2]
    assert torch.equal(outer.select(prompt), torch.tensor([True, False, False, True, True]))
