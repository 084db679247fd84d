"""Checks of what is written, and of the way from text to tokens."""

from contextlib import suppress
from typing import Any

import torch
from jinja2 import TemplateError

from .._capture import capture
from .._generation import generate
from ..models import detected_format, tokenize
from ..positions import generated_tokens
from .check import LENGTHS, NATS, Check, DoesNotApplyError, Finding, Worst, apart
from .context import QUESTION, SENTENCES, Subject, alone, shortfall


def greedy_tokens(subject: Subject) -> Finding:
    """Greedy texts, with a cache and without, against the best next tokens of whole passes over them."""
    worst = Worst()
    for use_cache in (True, False):
        options = {"max_new_tokens": subject.new_tokens, "return_tokens": True, "reuse": False}
        written = generate(subject.model, subject.ids, use_cache=use_cache, **options)
        for row, (ids, new) in enumerate(zip(subject.ids, written, strict=True)):
            logits = alone(subject.model, [*ids, *new[:-1]]).logits
            how = "with a cache" if use_cache else "without a cache"
            worst.see(shortfall(logits, len(ids), new), f"{how}, {subject.named(row)}")
    return worst.finding()


def cached_streams(subject: Subject) -> Finding:
    """Streams of tokens that are fed back one by one, from a cache, against a whole pass over the text."""
    options = {"positions": generated_tokens(), "layers": subject.layers, "allow_empty": True, "reuse": False}
    captured = capture(subject.model, subject.ids, max_new_tokens=subject.new_tokens, **options)
    worst = Worst()
    for row, (ids, new) in enumerate(zip(subject.ids, captured.completion_tokens, strict=True)):
        if len(new) < 2:
            continue
        streams = alone(subject.model, [*ids, *new[:-1]]).streams
        for place, layer in enumerate(subject.layers):
            found = captured.values[row, place, : len(new) - 1]
            share = apart(found, streams[layer][len(ids) :].float())
            worst.see(share, f"layer {layer}, {subject.named(row)}")
    return worst.finding()


def sampling(subject: Subject) -> Finding:
    """Sampled twice with one seed."""
    options = {"max_new_tokens": subject.new_tokens, "temperature": 1.0, "seed": 1, "return_tokens": True}
    first, second = (generate(subject.model, subject.ids, **options) for _ in range(2))
    rows = [row for row in range(len(subject.ids)) if first[row] != second[row]]
    return Finding(len(rows), subject.named(rows[0]) if rows else "")


def plain_tokens(subject: Subject) -> Finding:
    """Sentences through `tokenize` against the tokenizer itself, and how many BOS are in front."""
    tokenizer, worst = _tokenizer(subject), Worst()
    for text in SENTENCES:
        if len(tokenizer(text)["input_ids"]) > subject.model.cfg.n_ctx:
            continue
        ids = tokenize(subject.model, text)
        extra = _extra(ids, tokenizer.bos_token_id) + _unlike(ids, tokenizer(text)["input_ids"])
        worst.see(extra, repr(text))
    return worst.finding()


def chat_tokens(subject: Subject) -> Finding:
    """A question through `chat_format` and `tokenize` against the tokenizer's own chat template."""
    tokenizer, worst = _tokenizer(subject), Worst()
    if not getattr(tokenizer, "chat_template", None):
        raise DoesNotApplyError("the tokenizer has no chat template.")
    prompt = detected_format(subject.model).render(QUESTION)  # raises if the template is broken
    for content in (QUESTION, [{"type": "text", "text": QUESTION}]):
        turns, options = [{"role": "user", "content": content}], {"add_generation_prompt": True}
        with suppress(TemplateError, TypeError):  # a template of the other content type
            if QUESTION in tokenizer.apply_chat_template(turns, tokenize=False, **options):
                break
    whole = tokenizer.apply_chat_template(turns, tokenize=True, return_dict=True, **options)
    if len(whole["input_ids"]) > subject.model.cfg.n_ctx:
        raise DoesNotApplyError("a chat prompt does not fit the context.")
    ids = tokenize(subject.model, prompt)
    extra = _extra(ids, tokenizer.bos_token_id)
    worst.see(extra + _unlike(ids, whole["input_ids"]), repr(tokenizer.decode(ids[:8])))
    return worst.finding()


def vocabulary(subject: Subject) -> Finding:
    """Tokens that the tokenizer has and the model has not."""
    tokenizer = _tokenizer(subject)
    # A placeholder of another kind of input, Gemma 3's <image_soft_token>, is never embedded.
    special = {id_ for id_, added in getattr(tokenizer, "added_tokens_decoder", {}).items() if added.special}
    beyond = [
        text
        for text, id_ in tokenizer.get_vocab().items()
        if id_ >= subject.model.cfg.d_vocab and id_ not in special
    ]
    return Finding(len(beyond), ", ".join(map(repr, sorted(beyond)[:5])))


def _tokenizer(subject: Subject) -> Any:
    if subject.model.tokenizer is None:
        raise DoesNotApplyError("the model has no tokenizer.")
    return subject.model.tokenizer


def _extra(ids: list[int], bos: int | None) -> int:
    """BOS tokens in front beyond the first."""
    leading = next((place for place, token in enumerate(ids) if token != bos), len(ids))
    return max(0, leading - 1)


def _unlike(ids: list[int], expected: list[int]) -> int:
    """Places in which two token lists differ, and what one has more."""
    shared = min(len(ids), len(expected))
    differing = torch.tensor(ids[:shared]) != torch.tensor(list(expected)[:shared])
    return int(differing.sum()) + abs(len(ids) - len(expected))


CHECKS = (
    Check(
        "greedy tokens are the best ones",
        "nats below the best token",
        "generate, with a cache and without, chooses what whole passes over the same text rank first. "
        "Where not, the cache is wrong, or the text is another model's.",
        greedy_tokens,
        NATS,
    ),
    Check(
        "a cache changes nothing",
        "of the stream's length",
        "The streams of generated tokens are the same from a cache as in one pass over the whole text. "
        "Where not, what is read or steered while generating is not what the text shows.",
        cached_streams,
        LENGTHS,
    ),
    Check(
        "the same seed, the same text",
        "prompts",
        "Sampling twice with one seed writes the same. Where not, nobody can run it again.",
        sampling,
    ),
    Check(
        "one BOS before text",
        "tokens",
        "Text becomes the ids that its tokenizer gives, with at most one BOS. A second BOS moves logit "
        "differences by several nats, and capture reads another stream.",
        plain_tokens,
    ),
    Check(
        "one BOS before chat",
        "tokens",
        "A rendered chat prompt becomes the ids that the chat template gives, with at most one BOS. "
        "Where not, the model is asked something it was not trained on.",
        chat_tokens,
    ),
    Check(
        "every token has an embedding",
        "tokens",
        "The tokenizer has no token that the model lacks. Where it has, it is another model's tokenizer.",
        vocabulary,
    ),
)
