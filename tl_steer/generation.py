"""Generation under operations: batched, left-padded, with an explicit mask."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm
from transformer_lens.cache.key_value_cache import TransformerLensKeyValueCache

from .engine import Batch, batches, logits_of, residual
from .interventions import Operation, steer
from .models import Prompt, chat_format, tokenize_all


@dataclass(frozen=True)
class Decoding:
    """How the next tokens are chosen; the arguments of `generate`."""

    max_new_tokens: int = 64
    min_new_tokens: int = 0
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    use_cache: bool = True

    def __post_init__(self) -> None:
        if not 0 <= self.min_new_tokens <= self.max_new_tokens or self.max_new_tokens < 1:
            raise ValueError(
                f"min_new_tokens={self.min_new_tokens}, max_new_tokens={self.max_new_tokens}: "
                "at least one token must be asked for, and the minimum may not exceed the maximum."
            )
        if self.temperature < 0 or not 0 < self.top_p <= 1:
            raise ValueError(
                f"temperature={self.temperature}, top_p={self.top_p}: temperature is 0 (greedy) or more, "
                "top_p lies in (0, 1]."
            )


def generate(
    model: Any,
    prompts: Prompt | Sequence[Prompt],
    *operations: Operation,
    max_new_tokens: int = 64,
    min_new_tokens: int = 0,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
    use_cache: bool = True,
    return_tokens: bool = False,
    allow_empty: bool = False,
    force: bool = False,
    progress: bool = False,
) -> list[str] | list[list[int]]:
    """What the model says, steered.

    Args:
        model: a `HookedTransformer`.
        prompts: texts (a chat prompt rendered by `chat_format(model).render`) or token lists.
        operations: applied at the positions they name, in the order given.
        max_new_tokens, min_new_tokens: a row ends at the end of its turn, not before the minimum.
        temperature: 0 is greedy; otherwise logits are divided by it and a token is drawn.
        top_p: draw from the smallest set of tokens that holds this much probability.
        seed: each row draws from a generator of its own, made of the seed and its prompt, so that a batch
            equals its rows alone. The same prompt twice gives the same text: vary the seed.
        use_cache: `False` runs the whole sequence for each token; the same tokens, slower.
        return_tokens: give the new ids instead, the end-of-turn token included.
        allow_empty: accept prompts of which an operation's positions select nothing.
        force: accept vectors of other weights of the same shapes and processing.
        progress: show a bar over batches.

    Returns:
        The new text of each prompt, special tokens left out.

    Raises:
        ValueError: a prompt that is empty or does not leave room for the new tokens; see `steer` for more.
    """
    decoding = Decoding(max_new_tokens, min_new_tokens, temperature, top_p, seed, use_cache)
    ids = tokenize_all(model, prompts)
    require_room(model, ids, max_new_tokens)
    new: dict[int, list[int]] = {}
    waiting = list(batches(ids, device=model.cfg.device, extra=max_new_tokens))
    for batch in tqdm(waiting, desc="generating", disable=not progress):
        asked = [ids[row] for row in batch.rows]
        fed = max_new_tokens > 1  # the last new token is never fed back
        with steer(model, *operations, prompts=asked, allow_empty=allow_empty, force=force, generating=fed):
            new |= dict(zip(batch.rows, decode(model, batch, decoding), strict=True))
    rows = [new[row] for row in range(len(ids))]
    return rows if return_tokens else [completion_text(model, row) for row in rows]


def require_room(model: Any, prompts: Sequence[Sequence[int]], new_tokens: int) -> None:
    """Raise `ValueError` where a prompt and its new tokens exceed the model's context."""
    longest = max(len(ids) for ids in prompts)
    if longest + new_tokens > model.cfg.n_ctx:
        raise ValueError(
            f"a prompt of {longest} tokens and {new_tokens} new ones do not fit the context of "
            f"{model.cfg.n_ctx}: shorten the prompt or ask for fewer."
        )


def completion_text(model: Any, new: Sequence[int]) -> str:
    """New tokens as text, without special tokens."""
    if model.tokenizer is None:
        raise ValueError("this model has no tokenizer to make text with: use return_tokens=True.")
    return model.tokenizer.decode(list(new), skip_special_tokens=True, clean_up_tokenization_spaces=False)


@torch.no_grad()
def decode(model: Any, batch: Batch, decoding: Decoding) -> list[list[int]]:
    """New tokens of each row of a left-padded batch, under whatever steers the model now.

    A row that has ended is masked from then on, so that nothing after its end is steered or captured.
    """
    stops = stop_tokens(model)
    draws = [
        _generator(decoding.seed, row[kept].tolist())
        for row, kept in zip(batch.tokens, batch.mask, strict=True)
    ]
    cache = None
    if decoding.use_cache:
        cache = TransformerLensKeyValueCache.init_cache(model.cfg, model.cfg.device, len(batch.rows))
    new: list[list[int]] = [[] for _ in batch.rows]
    alive = torch.ones(len(batch.rows), dtype=torch.bool)
    while True:
        logits = logits_of(model, residual(model, batch, cache=cache)[:, -1])
        if len(new[int(alive.int().argmax())]) < decoding.min_new_tokens:
            logits[:, stops] = -torch.inf
        chosen = _next_tokens(logits, decoding, draws)
        for row in alive.nonzero().flatten().tolist():
            new[row].append(int(chosen[row]))
            alive[row] = int(chosen[row]) not in stops and len(new[row]) < decoding.max_new_tokens
        if not alive.any():
            return new
        batch = _fed(batch, chosen, alive, keep=cache is None)


def stop_tokens(model: Any) -> list[int]:
    """Ids at which a text ends: the tokenizer's end of sequence, and the chat format's end of turn."""
    tokenizer = model.tokenizer
    if tokenizer is None:
        return []
    end = chat_format(model).end_of_turn()
    found = {tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids(end) if end else None}
    return sorted(token for token in found if token is not None)


def _fed(batch: Batch, chosen: Int[Tensor, " batch"], alive: Tensor, *, keep: bool) -> Batch:
    """The next pass's input: the new column alone, or behind all before it."""
    tokens, mask = chosen[:, None].to(batch.tokens.device), alive[:, None].to(batch.mask.device)
    if keep:
        tokens, mask = torch.cat([batch.tokens, tokens], 1), torch.cat([batch.mask, mask], 1)
    return replace(batch, tokens=tokens, mask=mask)


def _next_tokens(
    logits: Float[Tensor, "batch d_vocab"], decoding: Decoding, draws: Sequence[torch.Generator]
) -> Int[Tensor, " batch"]:
    if decoding.temperature == 0:
        return logits.argmax(-1).cpu()
    probabilities = (logits.double() / decoding.temperature).softmax(-1).cpu()
    ordered, order = probabilities.sort(dim=-1, descending=True, stable=True)
    before = ordered.cumsum(-1) - ordered
    nucleus = torch.where(before < decoding.top_p, ordered, 0).cumsum(-1)
    # One uniform number a row and step, looked up in the row's own cumulative distribution.
    uniform = torch.stack([torch.rand(1, generator=draw, dtype=torch.float64) for draw in draws])
    place = torch.searchsorted(nucleus, uniform * nucleus[:, -1:], right=True).clamp(max=logits.shape[-1] - 1)
    return order.gather(-1, place).squeeze(-1)


def _generator(seed: int, prompt: Sequence[int]) -> torch.Generator:
    digest = hashlib.sha256(f"{seed}:{list(prompt)}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
