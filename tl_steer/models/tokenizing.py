"""Tokenize text exactly as the Hugging Face tokenizer does.

TransformerLens's `prepend_bos` is never used: it adds a BOS to text whose tokenizer adds none, and a second
one to a chat prompt that begins with it.
"""

import itertools
from collections.abc import Iterable, Sequence
from numbers import Integral
from typing import Any

from .._util.validation import checked, require_characters, warn
from .backend import HookedModel

Prompt = str | Sequence[int]


@checked
def tokenize(model: HookedModel, text: Prompt, *, bos: bool | None = None) -> list[int]:
    """Token ids of `text`, as the Hugging Face tokenizer returns them.

    Special tokens are added as the tokenizer does by default, except to text that already begins with BOS
    (a rendered chat prompt). Lists of ids are checked and returned.

    Args:
        model: of `load_model`; loaded by TransformerLens, its tokenizer adds a BOS to everything.
        text: a string, or token ids.
        bos: `None` leaves it to the tokenizer; `True` puts exactly one BOS in front, `False` none.

    Raises:
        ValueError: no tokens, more than the context, an id outside the vocabulary, or no tokenizer.
    """
    ids = encode(model, text, bos) if isinstance(text, str) else [int(token) for token in text]
    if not ids:
        raise ValueError(f"the prompt {text!r} is empty: it has no tokens. Give it at least one.")
    if len(ids) > model.cfg.n_ctx:
        start = repr(text[:60] + "…") if isinstance(text, str) else f"ids {ids[:8]}…"
        raise ValueError(
            f"a prompt of {len(ids)} tokens does not fit the context of {model.cfg.n_ctx} tokens: {start}. "
            "Shorten it."
        )
    if not 0 <= min(ids) <= max(ids) < model.cfg.d_vocab:
        raise ValueError(f"token ids must lie in 0 to {model.cfg.d_vocab - 1}; got {min(ids)} to {max(ids)}.")
    return ids


def encode(model: Any, text: str, bos: bool | None = None) -> list[int]:
    """`tokenize` of a string of any length."""
    tokenizer = model.tokenizer
    if tokenizer is None:
        raise ValueError("this model has no tokenizer: give token ids, or load it with tokenizer=…")
    require_characters(text, "the text")
    begins = bool(tokenizer.bos_token) and text.startswith(tokenizer.bos_token)
    ids = tokenizer(text, add_special_tokens=bos is None and not begins)["input_ids"]
    if bos is None or bos == begins:
        return ids
    if not bos:
        return ids[1:]
    if tokenizer.bos_token_id is None:
        raise ValueError("bos=True, but this tokenizer has no BOS token.")
    return [tokenizer.bos_token_id, *ids]


def as_prompts(prompts: Prompt | Iterable[Prompt]) -> list[Prompt]:
    """A list of prompts; a single prompt, as text or as ids, becomes a list of one."""
    if isinstance(prompts, str):
        return [prompts]
    prompts = list(prompts)
    return [prompts] if prompts and isinstance(prompts[0], Integral) else prompts


def tokenize_all(model: Any, prompts: Prompt | Iterable[Prompt]) -> list[list[int]]:
    """`tokenize` for a list of prompts, or for a single one; warns if rows of ids seem to be padded."""
    prompts = as_prompts(prompts)
    if not prompts:
        raise ValueError("no prompts given; pass a list with at least one.")
    ids = [tokenize(model, prompt) for prompt in prompts]
    if not any(isinstance(prompt, str) for prompt in prompts):
        warn_of_padding(model, ids)
    return ids


def warn_of_padding(model: Any, rows: Sequence[Sequence[int]], *, completions: bool = False) -> None:
    """Warn if rows of one length begin or end with padding, which would be read as text.

    One pad token is enough. If it is the BOS or EOS: two, or (not in completions) runs of unequal length.
    """
    tokenizer = model.tokenizer
    pad = getattr(tokenizer, "pad_token_id", None)
    if pad is None or len(set(map(len, rows))) != 1:
        return
    allowed = int(pad in (tokenizer.bos_token_id, tokenizer.eos_token_id))
    for side, order, cut in (("begins", 1, "row[-length:]"), ("ends", -1, "row[:length]")):
        runs = [sum(1 for _ in itertools.takewhile(pad.__eq__, row[::order])) for row in rows]
        if max(runs) > allowed or (allowed and not completions and len(set(runs)) > 1):
            warn(
                f"row {runs.index(max(runs))} of the token ids {side} with {max(runs)} times the pad token "
                f"{pad}, which is read as text: expected unpadded ids. Give a list of rows, each cut to its "
                f"own length: [{cut} for row, length in zip(ids.tolist(), lengths)]."
            )


def token_strings(model: Any, ids: Sequence[int]) -> list[str]:
    """Each token decoded alone, for labels; its number without a tokenizer."""
    if model.tokenizer is None:
        return [str(token) for token in ids]
    return [model.tokenizer.decode([token], clean_up_tokenization_spaces=False) for token in ids]
