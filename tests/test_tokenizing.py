"""`tokenize`: the tokenizer's own ids, one BOS where the model has one, and messages for what cannot be."""

import functools
from contextlib import nullcontext
from types import SimpleNamespace

import pandas as pd
import pytest
import torch

from tl_steer import Add, capture, choice_logits, generate, steer, steering_vector
from tl_steer.models import as_prompts, chat_format, load_model, token_strings, tokenize, tokenize_all

from .tiny_model import make_model, word_tokenizer

BOS = 1


def tokenizing(tokenizer):
    """A model, as far as tokenizing goes."""
    return SimpleNamespace(tokenizer=tokenizer, cfg=SimpleNamespace(n_ctx=8, d_vocab=20), run_with_hooks=None)


@pytest.fixture
def with_bos(make_tokenizer):
    """Its tokenizer puts a BOS in front."""
    return tokenizing(make_tokenizer(bos=True))


@pytest.fixture
def without_bos(make_tokenizer):
    return tokenizing(make_tokenizer(bos=False))


def test_a_string_gets_the_ids_that_huggingface_gives_with_at_most_one_bos(with_bos, without_bos):
    for model in (with_bos, without_bos):
        assert tokenize(model, "the cat is blue") == model.tokenizer("the cat is blue")["input_ids"]
    ids = tokenize(with_bos, "the cat")
    assert [index for index, token in enumerate(ids) if token == BOS] == [0]
    assert tokenize(with_bos, "<s> the cat") == ids
    assert BOS not in tokenize(without_bos, "the cat")


@pytest.mark.parametrize("text", ["the cat", "<s> the cat"])
def test_bos_can_be_asked_for_and_refused(with_bos, without_bos, text):
    for model in (with_bos, without_bos):
        cat = [model.tokenizer.convert_tokens_to_ids(word) for word in ("the", "cat")]
        assert tokenize(model, text, bos=True) == [BOS, *cat]
        assert tokenize(model, text, bos=False) == cat


@pytest.mark.parametrize("ids", [[5, 6, 2], (5, 6, 2)])
def test_ids_pass_through_as_a_new_list(with_bos, ids):
    assert tokenize(with_bos, ids) == [5, 6, 2]
    assert tokenize(with_bos, ids) is not ids


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("", "the prompt '' is empty: it has no tokens"),
        ([], "the prompt .* is empty: it has no tokens"),
        ("cat " * 9, "a prompt of 9 tokens does not fit the context of 8 tokens: 'cat cat"),
        ([3] * 9, r"a prompt of 9 tokens.*ids \[3, 3"),
        ([3, -1], "must lie in 0 to 19; got -1 to 3"),
        ([3, 20], "must lie in 0 to 19; got 3 to 20"),
    ],
)
def test_invalid_prompts_are_rejected(without_bos, prompt, message):
    assert len(tokenize(without_bos, "cat " * 8)) == 8
    with pytest.raises(ValueError, match=message):
        tokenize(without_bos, prompt)


def test_a_bos_or_tokenizer_that_does_not_exist_is_rejected(without_bos):
    without_bos.tokenizer.bos_token = None
    with pytest.raises(ValueError, match="bos=True, but this tokenizer has no BOS"):
        tokenize(without_bos, "the cat", bos=True)
    without_bos.tokenizer = None
    assert tokenize(without_bos, [3, 4]) == [3, 4]
    assert token_strings(without_bos, [3, 4]) == ["3", "4"]
    with pytest.raises(ValueError, match="has no tokenizer: give token ids"):
        tokenize(without_bos, "cat")


def test_prompts_are_tokenized_one_by_one_and_a_single_one_is_a_list_of_one(with_bos):
    prompts = ["the cat", [3, 4], "<s> dog"]
    assert tokenize_all(with_bos, prompts) == [tokenize(with_bos, prompt) for prompt in prompts]
    assert tokenize_all(with_bos, "the cat") == [tokenize(with_bos, "the cat")]
    assert tokenize_all(with_bos, [3, 4]) == [[3, 4]]
    column = pd.DataFrame({"prompt": ["a", "b", "c"]})["prompt"].iloc[1:]
    assert as_prompts(column) == ["b", "c"]
    with pytest.raises(ValueError, match="no prompts given"):
        tokenize_all(with_bos, [])


@pytest.mark.model
def test_a_chat_prompt_is_not_given_a_second_bos_on_the_embedded_model(embedded, embedded_hf):
    tokenizer = embedded_hf[1]
    text = chat_format(embedded).render("Hello there")
    expected = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hello there"}], add_generation_prompt=True, return_dict=False
    )
    ids = tokenize(embedded, text)
    assert ids == expected == embedded.to_tokens(text)[0].tolist()
    assert ids[0] == tokenizer.bos_token_id != ids[1]
    plain = tokenize(embedded, "The sea, of course")
    assert plain == tokenizer("The sea, of course")["input_ids"]
    assert tokenizer.bos_token_id not in plain
    assert token_strings(embedded, plain) == ["The", " sea", ",", " of", " course"]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([[0, 5, 6, 1, 1], [0, 5, 6, 7, 8]], r"row 0 .* ends with 2 times the pad token 1"),
        ([[0, 5, 6, 7, 1], [0, 5, 6, 7, 8]], "row 0 .* ends with 1 times"),
        ([[0, 5, 6, 1], [0, 5, 1, 1]], "row 1 .* ends with 2 times"),
        ([[0, 5, 1, 1], [0, 6, 1, 1]], "row 0 .* ends with 2 times"),
        ([[0, 5, 6, 7], [1, 1, 0, 5]], r"row 1 .* begins with 2 times .*row\[-length:\]"),
        ([[0, 5, 1, 1]], r"row 0 .* ends with 2 times .*row\[:length\]"),
        ([[0, 5, 1], [0, 6, 1]], None),  # the pad token is the EOS, too
        ([[0, 1, 1, 5], [0, 6, 6, 5]], None),
        ([[0, 5], [0, 6, 7]], None),
    ],
)
def test_padded_rows_of_ids_warn(rows, message):
    """Pad and EOS are token 1."""
    model = make_model(word_tokenizer())
    ids = torch.tensor(rows) if len(set(map(len, rows))) == 1 else rows
    for call in (
        lambda: capture(model, ids, layers=0),
        lambda: generate(model, ids, max_new_tokens=1),
        lambda: choice_logits(model, ids, (" a", " b")),
    ):
        with pytest.warns(UserWarning, match=message) if message else nullcontext():
            call()


def test_padded_completions_warn_and_those_that_end_in_an_eos_or_not_do_not():
    read = functools.partial(capture, make_model(word_tokenizer()), ["a", "b"], layers=0)
    with pytest.warns(UserWarning, match="row 1 .* ends with 2 times the pad token 1"):
        read(completions=torch.tensor([[5, 6, 7], [5, 1, 1]]))
    read(completions=[(5, 6, 7), (5, 6, 1)])


def test_a_pad_token_that_is_nothing_else_warns_wherever_it_stands(without_bos):
    without_bos.tokenizer.add_special_tokens({"pad_token": "d"})
    pad = without_bos.tokenizer.pad_token_id
    with pytest.warns(UserWarning, match=f"ends with 1 times the pad token {pad}"):
        tokenize_all(without_bos, [[4, 5, pad], [7, 8, pad]])
    without_bos.tokenizer.pad_token = None
    assert tokenize_all(without_bos, [[4, 5, 5], [6, 7, 7]]) == [[4, 5, 5], [6, 7, 7]]


def chat_model(backend, make_hf_model, tokenizer):
    tokenizer.chat_template = "{{ bos_token }}{% for m in messages %}{{ m['content'] }} : {% endfor %}"
    return load_model("tiny", backend=backend, hf_model=make_hf_model("llama"), tokenizer=tokenizer)


@pytest.mark.parametrize("backend", ["hooked", "bridge"])
def test_to_tokens_adds_no_bos_to_a_chat_prompt_that_has_one(backend, make_hf_model, make_tokenizer):
    model = chat_model(backend, make_hf_model, make_tokenizer(bos=False))
    text = chat_format(model).render("the cat")
    for written in (text, "the cat"):
        assert model.to_tokens(written).tolist() == [tokenize(model, written)]
    assert tokenize(model, text).count(BOS) == 1


@pytest.mark.parametrize("backend", ["hooked", "bridge"])
def test_two_bos_under_steer_warn(backend, make_hf_model, make_tokenizer):
    """A tokenizer that adds a BOS to plain text adds a second one to this chat prompt."""
    model = chat_model(backend, make_hf_model, make_tokenizer(bos=True))
    text = chat_format(model).render("the cat")
    assert model.to_tokens("the cat").tolist() == [tokenize(model, "the cat")]
    twice = model.to_tokens(text)
    assert twice[0, :2].tolist() == [BOS, BOS]
    operation = Add(steering_vector(model, torch.ones(model.cfg.d_model), layer=1))
    with steer(model, operation):
        with pytest.warns(UserWarning, match="row 0 begins with two BOS tokens"):
            model(twice)
        model(twice)  # once per block
    with steer(model, operation):
        model(torch.tensor([tokenize(model, text)]))
