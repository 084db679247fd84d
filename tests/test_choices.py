"""Choices against full-sequence log-probabilities of Hugging Face, and of whole passes under operations."""

import numpy as np
import pytest
import torch
from scipy.special import logsumexp

from tl_steer import _scoring
from tl_steer._scoring import choice_logits, plan_choices
from tl_steer.errors import EmptySelectionError
from tl_steer.interventions import Add
from tl_steer.models import load_model, tokenize
from tl_steer.positions import generated_tokens, parse_positions

from .conftest import assert_raises
from .tiny_model import (
    TABLE,
    Change,
    made_vector,
    make_model,
    run_alone,
    score,
    sentence_tokenizer,
    word_tokenizer,
)

MODEL = make_model(word_tokenizer())
PROMPTS = ["a b c :", "d :", "e f g h i j :"]
PAIRS = [("True", "False"), ("(A)", "(B)"), ("good", "bad yes no"), ("(A", "(B b b")]


def log_probability(logits, ids, start):
    """Summed log-probability of `ids[start:]` after what comes before, in float64."""
    rows = logits.double().numpy()
    rows = rows - logsumexp(rows, axis=-1, keepdims=True)
    return sum(rows[index - 1, ids[index]] for index in range(start, len(ids)))


def by_hand(prompt, pair, logits_of, tokenizer=MODEL.tokenizer):
    """Both scores: the log-probability of every token that a choice adds to the prompt."""
    length = len(tokenizer(prompt)["input_ids"])
    both = [tokenizer(prompt + " " + choice)["input_ids"] for choice in pair]
    return [log_probability(logits_of(ids), ids, length) for ids in both]


def require(row, scores):
    first, second = scores
    assert row["logit_difference"] == pytest.approx(first - second, abs=1e-3)
    assert row["probability"] == pytest.approx(1 / (1 + np.exp(second - first)), abs=1e-3)
    assert row["mass"] == pytest.approx(np.exp(first) + np.exp(second), abs=1e-4, rel=1e-3)


@pytest.mark.parametrize("pair", PAIRS, ids=str)
@pytest.mark.parametrize(
    "written", ["all_tokens()", "generated_tokens()", "last_token()", "current_token()", "token(0)"]
)
def test_scores_under_an_operation_equal_whole_passes_by_hand(pair, written):
    """The tokens of a choice that have to be fed count as generated ones."""
    vector = made_vector(MODEL, 1, scale=8.0)
    if (written, pair) == ("generated_tokens()", PAIRS[0]):
        with pytest.raises(EmptySelectionError, match="selects no token"):  # no token of a choice is fed
            choice_logits(MODEL, PROMPTS, (" True", " False"), Add(vector, 1.0, generated_tokens()))
        return
    changes = [Change(1, "resid_post", lambda x: x + vector.values, TABLE[written])]
    choices = [tuple(" " + choice for choice in pair)] * 3
    table = choice_logits(MODEL, PROMPTS, choices, Add(vector, 1.0, parse_positions(written)))
    assert list(table) == ["prompt", "logit_difference", "probability", "mass"]
    assert table["prompt"].tolist() == PROMPTS
    for prompt, (_, row) in zip(PROMPTS, table.iterrows(), strict=True):
        length = len(MODEL.tokenizer(prompt)["input_ids"])
        require(row, by_hand(prompt, pair, lambda ids, n=length: run_alone(MODEL, ids, n, changes)[0]))


def test_scores_equal_hugging_face(make_hf_model, make_tokenizer):
    hf_model, tokenizer = make_hf_model("gpt2"), make_tokenizer()
    model = load_model("tiny-gpt2", hf_model=hf_model, tokenizer=tokenizer, device="cpu")
    prompts = ["the sky is", "dog : ( a ) cat :", "b"]
    pairs = [("blue", "not"), ("(a)", "(b)"), ("cat dog", "dog")]
    table = choice_logits(model, prompts, [tuple(" " + choice for choice in pair) for pair in pairs])

    def logits(ids):
        with torch.no_grad():
            return hf_model(torch.tensor([ids])).logits[0]

    for prompt, pair, (_, row) in zip(prompts, pairs, table.iterrows(), strict=True):
        require(row, by_hand(prompt, pair, logits, tokenizer))


@pytest.mark.model
def test_reviews_and_letters_of_the_embedded_model_equal_hugging_face(embedded, embedded_hf):
    hf_model, tokenizer = embedded_hf
    prompts = ["Review: A waste of an evening.\nSentiment:", "Is the sky blue? Answer:"]
    pairs = [(" positive", " negative"), (" (A)", " (B)")]
    table = choice_logits(embedded, prompts, pairs)
    for prompt, pair, (_, row) in zip(prompts, pairs, table.iterrows(), strict=True):
        both = [tokenizer(prompt + choice)["input_ids"] for choice in pair]
        length = len(tokenizer(prompt)["input_ids"])
        with torch.no_grad():
            logits = [hf_model(torch.tensor([ids])).logits[0] for ids in both]
        require(row, [log_probability(each, ids, length) for each, ids in zip(logits, both, strict=True)])


def test_one_pair_serves_all_prompts_and_token_lists_are_prompts():
    ids = [MODEL.tokenizer(prompt)["input_ids"] for prompt in PROMPTS]
    one, each = (
        choice_logits(MODEL, PROMPTS, (" yes", " no")),
        choice_logits(MODEL, ids, [(" yes", " no")] * 3),
    )
    np.testing.assert_array_equal(one.drop(columns="prompt"), each.drop(columns="prompt"))
    alone = choice_logits(MODEL, PROMPTS[1], (" yes", " no"))
    np.testing.assert_allclose(alone.iloc[0, 1:].astype(float), one.iloc[1, 1:].astype(float), rtol=1e-4)


@pytest.mark.parametrize("prompt", ["a b (", "a b:"])
def test_a_choice_behind_token_ids_is_the_choice_behind_their_text(prompt):
    """SentencePiece puts a "▁" before a text; before a choice alone it would be part of it."""
    tokenizer = sentence_tokenizer()
    model = make_model(tokenizer)
    ids = tokenizer(prompt)["input_ids"]
    letters = tokenizer.convert_tokens_to_ids(["A", "B"])
    assert letters != [tokenizer(letter)["input_ids"][0] for letter in "AB"]
    for each in (prompt, ids, [1, *ids]):  # the last are the ids of no text: they begin with an end
        (read,) = plan_choices(model, [each], [("A", "B")]).reads
        assert read.ids == tuple(ids if each == prompt else each)
        assert read.targets == (tuple(letters),)


def test_a_large_difference_does_not_overflow():
    vector = made_vector(MODEL, 2, scale=5000.0)
    table = choice_logits(MODEL, PROMPTS, ("yes yes yes yes yes yes yes yes", "no"), Add(vector))
    assert table["probability"].between(0, 1).all()
    assert np.isfinite(table["logit_difference"]).all()


def test_logits_are_read_in_parts_without_a_difference(monkeypatch):
    whole = choice_logits(MODEL, PROMPTS, (" (A) a", " (B) b"))
    monkeypatch.setattr(_scoring, "LOGIT_ROWS", 2)
    parts = choice_logits(MODEL, PROMPTS, (" (A) a", " (B) b"))
    np.testing.assert_allclose(parts.iloc[:, 1:], whole.iloc[:, 1:], rtol=1e-5)


@pytest.mark.parametrize("reuse", [True, False])
def test_only_the_positions_that_are_read_get_logits(monkeypatch, reuse):
    rows = []
    forward = MODEL.ln_final.forward  # once for each position whose logits are wanted
    counting = lambda x: rows.append(x.shape[0] * x.shape[1]) or forward(x)  # noqa: E731
    monkeypatch.setattr(MODEL.ln_final, "forward", counting)
    choice_logits(MODEL, PROMPTS, (" yes", " no"), reuse=reuse)
    assert rows == ([3, 3] if reuse else [3])  # those of the two choices, and of all that normalises them


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ((" yes", "  yes"), "question 0: the choices ' yes' and '  yes' tokenize alike"),
        ((" yes", " yes no"), "begin alike, and one ends where the other continues"),
        ([(" yes", " no")], "1 pairs of choices for 3 prompts: expected one for each"),
        ((" yes", " "), "the choice ' ' has no tokens"),
    ],
)
def test_choices_that_nothing_tells_apart_are_rejected(choices, message):
    assert_raises(message, choice_logits, MODEL, PROMPTS, choices)


def test_no_prompts_and_no_tokenizer_are_rejected():
    assert_raises("no prompts given", choice_logits, MODEL, [], (" yes", " no"))
    model = make_model(word_tokenizer())
    model.tokenizer = None
    assert_raises("no tokenizer", choice_logits, model, [[3, 4]], ("True", "False"))


def test_a_plan_is_scored_again_and_again():
    plan = plan_choices(MODEL, PROMPTS, [(" (A)", " (B)")] * 3)
    vector = made_vector(MODEL, 1)
    (clean,) = score(MODEL, plan, [()])
    (steered,) = score(MODEL, plan, [(Add(vector, 3.0),)])
    assert (clean - steered).abs()["logit_difference"].min() > 1e-4
    assert clean.equals(score(MODEL, plan, [()])[0])


def test_a_prompt_that_does_not_fit_the_context_with_its_choices_is_rejected():
    n_ctx = MODEL.cfg.n_ctx
    fits, over = [5] * (n_ctx - 1), [5] * n_ctx
    pair = ("True False", "False True")  # the first token of each is fed
    assert len(choice_logits(MODEL, [fits], pair)) == 1
    message = rf"question 1: {n_ctx + 1} tokens .* context of {n_ctx}"
    assert_raises(message, choice_logits, MODEL, [fits, over], pair)
    assert len(choice_logits(MODEL, [over], ("True", "False"))) == 1


def test_a_text_that_fills_the_context_can_be_scored():
    """The last token of a choice is never fed."""
    n_ctx = MODEL.cfg.n_ctx
    text = "a " * (n_ctx - 2) + "b"  # a BOS, too
    assert len(tokenize(MODEL, text)) == n_ctx
    result = choice_logits(MODEL, text, (" yes", " no"))
    same = choice_logits(MODEL, [tokenize(MODEL, text)], (" yes", " no"))
    assert result["logit_difference"].item() == same["logit_difference"].item()
    with pytest.raises(ValueError, match=rf"question 0: {n_ctx + 1} tokens .* context of {n_ctx}"):
        choice_logits(MODEL, text, (" yes no", " no yes"))
