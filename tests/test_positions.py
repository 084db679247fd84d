"""The language of positions: each word against a table by hand, text matching, reading back, preview."""

import copy
import pickle
import re

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
    ("positions", "selected", "generated", "needs_end"),
    [
        (all_tokens(), [0, 1, 2, 3, 4], True, False),
        (prompt_tokens(), [0, 1, 2, 3, 4], False, True),
        (generated_tokens(), [], True, True),
        (last_token(), [4], False, True),
        (current_token(), [4], True, True),
        (token(0), [0], False, False),
        (token(5), [], False, False),
        (token(-1), [4], False, True),
        (token(-6), [], False, True),
        (span(1, 3), [1, 2], False, False),
        (span(None, 2), [0, 1], False, False),
        (span(3, None), [3, 4], False, True),
        (span(-2, None), [3, 4], False, True),
        (span(-4, 3), [1, 2], False, True),
        (span(None, None), [0, 1, 2, 3, 4], False, True),
        (span(1, -1), [1, 2, 3], False, True),
        (span(3, 1), [], False, False),
        (span(2, 99), [2, 3, 4], False, False),
        (tokens_matching("c"), [2], False, True),
        (after("b"), [2, 3, 4], False, True),
        (last_token() | generated_tokens(), [4], True, True),
        (token(0) | span(2, 4), [0, 2, 3], False, False),
        (token(0) & last_token(), [], False, True),
        (all_tokens() & generated_tokens(), [], True, True),
        (~last_token(), [0, 1, 2, 3], True, True),
        (~generated_tokens(), [0, 1, 2, 3, 4], False, True),
        (~all_tokens(), [], False, False),
        (~~token(2), [2], False, False),
        (~(token(0) | generated_tokens()), [1, 2, 3, 4], False, True),
        (~tokens_matching("c") & prompt_tokens(), [0, 1, 3, 4], False, True),
    ],
    ids=repr,
)
def test_each_position_selects_what_the_table_says(positions, selected, generated, needs_end):
    assert chosen(positions, prompt_of("abcde")) == selected
    assert (positions.generated, positions.needs_end) == (generated, needs_end)


@pytest.mark.parametrize("written", TABLE)
@given(prompt=st.integers(3, 9), new=st.integers(0, 4))
def test_positions_agree_with_list_indexing_at_every_length(written, prompt, new):
    positions = parse_positions(written)
    fed_back = list(range(prompt, prompt + new)) if positions.generated else []
    assert chosen(positions, PromptTokens(prompt)) + fed_back == TABLE[written](prompt, prompt + new)


@given(
    before=st.text("aé€😀 ", max_size=5),
    text=st.text("aé€😀", min_size=1, max_size=3),
    rest=st.text("aé€😀 ", max_size=5),
)
def test_text_is_found_by_its_characters_whatever_bytes_they_take(before, text, rest):
    whole = before + text + rest
    occurrences = [at for at in range(len(whole)) if whole.startswith(text, at)]
    expected = sorted({byte for at in occurrences for byte in bytes_of(whole, at, at + len(text))})
    prompt = prompt_of(whole)
    assert chosen(tokens_matching(text), prompt) == expected
    assert chosen(after(text), prompt) == bytes_of(whole, occurrences[-1] + len(text), len(whole))


@pytest.mark.parametrize(
    ("text", "positions", "selected"),
    [
        ("a😀b", tokens_matching("b"), [5]),
        ("a😀é", after("😀"), [5, 6]),
        # Decoded, it looks like the beginning of a character that later tokens complete.
        ("a\ufffdb", tokens_matching("\ufffd"), [1, 2, 3]),
        ("a\ufffdb", tokens_matching("b"), [4]),
        ("xaxaxy", tokens_matching("xax"), [0, 1, 2, 3, 4]),
        ("xaxaxy", after("xax"), [5]),
        ("xaxaxy", after("y"), []),
        # One token per word: <s> a b . b ( A )
        (WORDS, tokens_matching("b . b"), [2, 3, 4]),
        (WORDS, tokens_matching("."), [3]),
        (WORDS, tokens_matching("( A"), [5, 6]),
        (WORDS, tokens_matching("<s>"), [0]),
        (WORDS, tokens_matching("nowhere"), []),
        (WORDS, after("nowhere"), []),
    ],
)
def test_text_is_matched_literally_across_bytes_and_words(text, positions, selected):
    prompt = prompt_of("a b . b ( A )", WORDS) if text is WORDS else prompt_of(text)
    assert chosen(positions, prompt) == selected


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


def test_text_needs_tokens_and_a_tokenizer_and_must_not_be_empty():
    with pytest.raises(ValueError, match="needs the prompt's tokens and a tokenizer"):
        tokens_matching("a").select(PromptTokens(3, (1, 2, 3)))
    for positions in (tokens_matching(""), after("")):
        with pytest.raises(ValueError, match="not empty"):
            positions.select(prompt_of("abc"))


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
def test_positions_are_the_same_after_parsing_pickling_and_copying(positions):
    prompt = prompt_of("abcbx")
    for again in (
        parse_positions(repr(positions)),
        pickle.loads(pickle.dumps(positions)),
        copy.deepcopy(positions),
    ):
        assert again == positions
        assert hash(again) == hash(positions)
        assert chosen(again, prompt) == chosen(positions, prompt)
        assert (again.generated, again.needs_end) == (positions.generated, positions.needs_end)


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
    lines = preview(make_model(BYTES), "a\nb", token(1))
    assert str(lines).endswith("a[⏎]b")
    assert "⏎</mark><br>" in lines._repr_html_()


def test_preview_escapes_the_model_s_text_and_the_label_in_html(model):
    page = preview(model, "a b", tokens_matching("<s>"))._repr_html_()
    assert "<s>" not in page
    assert re.findall("<mark[^>]*>(.*?)</mark>", page) == ["&lt;s&gt;"]
    assert re.findall("<span[^>]*>(.*?)</span>", page) == ["a", "b"]
    assert "tokens_matching(&#x27;&lt;s&gt;&#x27;)" in page
    assert re.findall(r'title="token (.*?), id (\d+)\nindex (\d)', page) == [
        ("&lt;s&gt;", "0", "0"), ("a", "3", "1"), ("b", "4", "2"),
    ]  # fmt: skip


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
