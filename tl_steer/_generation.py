"""Generation under operations: batched, left-padded, with an explicit mask."""

import hashlib
import logging
import math
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ._util.logs import bar
from ._util.seeds import derived_seed, require_seed
from ._util.validation import checked
from .engine import Memory, Row, RunOptions, StreamNorms, residual, run_conditions
from .engine.logits import has_float64
from .engine.plain import DEFAULT_OPTIONS, Batch
from .engine.shared.chunking import Chunk
from .engine.shared.decoding import Decoder
from .interventions import Operation
from .models import HookedModel, Prompt, detected_format, tokenize_all
from .models.backend import new_cache, unembedded
from .positions import PositionTracker, PromptTokens

logger = logging.getLogger(__name__)
LOGIT_ROWS = 256  # texts whose next token is chosen at once
COMPACT_AT = 0.875  # ended texts are removed when this fraction continues: it copies keys and values


@dataclass(frozen=True)
class Decoding:
    """How next tokens are chosen: the arguments of `generate`, and the number of texts per prompt."""

    max_new_tokens: int = 64
    min_new_tokens: int = 0
    temperature: float = 0.0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    draws: int = 1
    seed: int = 0
    use_cache: bool = True

    def __post_init__(self) -> None:
        if not 0 <= self.min_new_tokens <= self.max_new_tokens or self.max_new_tokens < 1:
            raise ValueError(
                f"min_new_tokens={self.min_new_tokens}, max_new_tokens={self.max_new_tokens}: "
                "expected at least one new token, and a minimum that does not exceed the maximum."
            )
        if not 0 <= self.temperature < math.inf or not 0 < self.top_p <= 1:  # not so for NaN either
            raise ValueError(
                f"temperature={self.temperature}, top_p={self.top_p}: temperature is 0 (greedy) or more, "
                "top_p lies in (0, 1]."
            )
        if not 0 < self.repetition_penalty < math.inf:
            raise ValueError(f"repetition_penalty={self.repetition_penalty}: expected a number above 0.")
        if self.draws < 1 or (self.draws > 1 and self.temperature == 0):
            raise ValueError(
                f"draws={self.draws}, temperature={self.temperature}: expected one draw or more, and a "
                "temperature above 0 for several."
            )
        require_seed(self.seed)

    def generator(self, prompt: Sequence[int], draw: int) -> torch.Generator:
        """The random generator of one text: draw 0 is that of `generate` with the same seed."""
        seed = derived_seed(self.seed, draw) if draw else self.seed
        digest = hashlib.sha256(f"{seed}:{list(prompt)}".encode()).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


@checked
def generate(
    model: HookedModel,
    prompts: Prompt | Sequence[Prompt],
    *operations: Operation,
    max_new_tokens: int = 64,
    min_new_tokens: int = 0,
    temperature: float = 0.0,
    top_p: float = 1.0,
    repetition_penalty: float = 1.0,
    seed: int = 0,
    use_cache: bool = True,
    return_tokens: bool = False,
    allow_empty: bool = False,
    force: bool = False,
    progress: bool = False,
    reuse: bool = True,
    memory: Memory = None,
) -> list[str] | list[list[int]]:
    """Generate text under operations.

    Args:
        model: a `HookedTransformer` or a `TransformerBridge`.
        prompts: texts (a chat prompt rendered by `chat_format(model).render`) or token lists.
        operations: applied at their positions, in the order given.
        max_new_tokens, min_new_tokens: a row ends at the end of its turn, not before the minimum.
        temperature: 0 is greedy; otherwise logits are divided by it and a token is drawn.
        top_p: draw from the smallest set of tokens with this much probability.
        repetition_penalty: the logit of each token of the prompt or the new text is divided by this where it
            is positive, and multiplied by it where it is negative, before anything else. 1 changes nothing.
        seed: each row draws from its own generator, seeded by the seed and its prompt, so that a batch equals
            its rows alone. The same prompt twice gives the same text: vary the seed.
        use_cache: `False` runs the whole sequence for each token; the same tokens, slower.
        return_tokens: return the new ids instead, including the end-of-turn token.
        allow_empty: accept prompts of which an operation's positions select nothing.
        force: accept vectors of other weights of the same shapes and processing.
        progress: show a bar.
        reuse: compute what prompts share once; `False` runs the plain loop, the oracle: the same tokens.
        memory: bytes, or the fraction of the free memory, for keys and values; see `sweep`.

    Returns:
        The new text of each prompt, without special tokens.

    Raises:
        ValueError: an empty prompt, one that does not fit the context with its new tokens, or a setting out
            of its range; see `steer` for more.

    Source of the penalty: Keskar et al. 2019, "CTRL", arXiv 1909.05858, section 4.1, as in Hugging Face's
    `generate`: the prompt's tokens count, and a token counts once, however often it occurs.
    """
    decoding = Decoding(
        max_new_tokens, min_new_tokens, temperature, top_p, repetition_penalty, seed=seed, use_cache=use_cache
    )
    started, ids = time.monotonic(), tokenize_all(model, prompts)
    with bar("generating", 1, visible=progress) as on_progress:
        options = RunOptions(reuse, memory, force, allow_empty, on_progress)
        (rows,) = write_conditions(model, ids, [operations], decoding, options=options)
    log_args = (len(rows), sum(map(len, rows)), time.monotonic() - started)
    logger.info("wrote %d texts, %d tokens, in %.1f s", *log_args)
    return rows if return_tokens else [completion_text(model, row) for row in rows]


def write_conditions(
    model: Any,
    prompts: Sequence[Sequence[int]],
    conditions: Sequence[Sequence[Operation]],
    decoding: Decoding,
    *,
    norms: StreamNorms | None = None,
    options: RunOptions = DEFAULT_OPTIONS,
) -> list[list[list[int]]]:
    """New tokens of every prompt (its draws one after another) under every condition; raises as `generate`.

    Args:
        norms: filled by the shared engine if a condition has no operations.
    """
    require_context(model, prompts, decoding.max_new_tokens)
    rows = [
        Row(tuple(ids), PromptTokens(len(ids), tuple(ids), model.tokenizer, number))
        for number, ids in enumerate(prompts)
        for _ in range(decoding.draws)
    ]
    written: list[list[list[int]]] = [[[] for _ in rows] for _ in conditions]

    def plain(condition: int, batch: Batch, _tracker: PositionTracker, _start: None) -> None:
        for row, new in zip(batch.rows, decode(model, batch, decoding), strict=True):
            written[condition][row] = new

    def shared(chunk: Chunk) -> None:
        decoder = Decoder(chunk, decoding.max_new_tokens - 1)
        with nullcontext() if norms is None else norms.of(model, chunk):
            stream = decoder.start()
        members = list(decoder.members)
        ids, numbers = zip(*((chunk.plan.rows[row].ids, chunk.rows[row]) for _, row in members), strict=True)
        texts = _Texts(model, ids, numbers, decoding)
        with decoder.running():
            _decode_together(decoder, texts, stream)
        for (condition, row), new in zip(members, texts.new, strict=True):
            written[chunk.conditions[condition]][chunk.rows[row]] = new

    options = replace(options, reuse=options.reuse and decoding.use_cache)
    n_new = decoding.max_new_tokens
    run_conditions(model, rows, conditions, options, plain=plain, shared=shared, new_tokens=n_new)
    return written


def _decode_together(decoder: Decoder, texts: "_Texts", stream: Float[Tensor, "text d_model"]) -> None:
    """Decode until every text has ended; ended texts are removed from the batch, several at a time."""
    fed = sorted(texts.alive)
    while True:
        tokens = texts.take(fed, stream)
        if not texts.alive:
            return
        if len(texts.alive) <= COMPACT_AT * len(fed):
            alive = [i for i, text in enumerate(fed) if text in texts.alive]
            decoder.keep(alive)
            fed, tokens = [fed[i] for i in alive], tokens[alive]
        stream = decoder.step(tokens)


def require_context(model: Any, prompts: Sequence[Sequence[int]], new_tokens: int) -> None:
    """Raise `ValueError` if a prompt and its new tokens exceed the model's context."""
    longest = max(len(ids) for ids in prompts)
    if longest + new_tokens > model.cfg.n_ctx:
        raise ValueError(
            f"a prompt of {longest} tokens and {new_tokens} new ones do not fit the context of "
            f"{model.cfg.n_ctx}: expected fewer. Shorten the prompt or the text."
        )


def completion_text(model: Any, new: Sequence[int]) -> str:
    """New tokens as text, without special tokens."""
    if model.tokenizer is None:
        raise ValueError("this model has no tokenizer: expected one, to decode text. Use return_tokens=True.")
    return model.tokenizer.decode(list(new), skip_special_tokens=True, clean_up_tokenization_spaces=False)


@torch.no_grad()
def decode(model: Any, batch: Batch, decoding: Decoding) -> list[list[int]]:
    """New tokens of each row of a left-padded batch, by whole forward passes, in a `steer` block or not.

    A row that has ended is masked from then on, so that nothing after its end is steered or captured.
    """
    prompts = [row[mask].tolist() for row, mask in zip(batch.tokens, batch.mask, strict=True)]
    texts = _Texts(model, prompts, batch.rows, decoding)
    cache = new_cache(model, len(batch.rows)) if decoding.use_cache else None
    rows = list(range(len(batch.rows)))
    while True:
        tokens = texts.take(rows, residual(model, batch, cache=cache)[:, -1])
        if not texts.alive:
            return texts.new
        tokens = tokens[:, None].to(batch.tokens.device)
        mask = torch.tensor([[row in texts.alive] for row in rows]).to(batch.mask.device)
        if cache is None:  # the whole text again
            tokens, mask = torch.cat([batch.tokens, tokens], 1), torch.cat([batch.mask, mask], 1)
        batch = replace(batch, tokens=tokens, mask=mask)


class _Texts:
    """The new tokens of each text, and which texts continue; the number of a row is prompt · draws + draw."""

    def __init__(
        self, model: Any, prompts: Sequence[Sequence[int]], rows: Sequence[int], decoding: Decoding
    ) -> None:
        self.model, self.decoding, self.stops = model, decoding, stop_tokens(model)
        pairs = zip(prompts, rows, strict=True)
        self.generators = [decoding.generator(prompt, row % decoding.draws) for prompt, row in pairs]
        self.new: list[list[int]] = [[] for _ in prompts]
        self.alive = set(range(len(prompts)))
        self.seen = [set(prompt) for prompt in prompts]  # tokens of the prompt and the new text

    def take(self, fed: Sequence[int], stream: Float[Tensor, "fed d_model"]) -> Int[Tensor, " fed"]:
        """Choose each fed text's next token, and append those of the texts that continue."""
        parts = (slice(start, start + LOGIT_ROWS) for start in range(0, len(fed), LOGIT_ROWS))
        tokens = torch.cat([self._next(fed[part], stream[part]) for part in parts])
        for text, token in zip(fed, tokens.tolist(), strict=True):
            if text in self.alive:
                self.new[text].append(token)
                self.seen[text].add(token)
                if token in self.stops or len(self.new[text]) == self.decoding.max_new_tokens:
                    self.alive.remove(text)
        return tokens

    def _next(self, fed: Sequence[int], stream: Float[Tensor, "fed d_model"]) -> Int[Tensor, " fed"]:
        # In the model's own precision, like Hugging Face's `generate`.
        logits = unembedded(self.model, stream).float()
        if (penalty := self.decoding.repetition_penalty) != 1:
            _penalize(logits, [self.seen[text] for text in fed], penalty)
        if len(self.new[fed[0]]) < self.decoding.min_new_tokens:  # before that, no text has ended
            for stop in self.stops:
                logits[:, stop] = -torch.inf
        return _next_tokens(logits, self.decoding, [self.generators[text] for text in fed])


def stop_tokens(model: Any) -> list[int]:
    """Ids at which a text ends: the tokenizer's end of sequence, and the chat format's end of turn."""
    tokenizer = model.tokenizer
    if tokenizer is None:
        return []
    stops = {tokenizer.eos_token_id}
    if end := detected_format(model).end_of_turn():
        token = tokenizer.convert_tokens_to_ids(end)
        if token is not None and tokenizer.convert_ids_to_tokens(token) == end:  # one token, and known
            stops.add(token)
    return sorted(stops - {None})


def _penalize(logits: Float[Tensor, "batch d_vocab"], seen: Sequence[set[int]], penalty: float) -> None:
    """Change, in place, the logits of each row's earlier tokens."""
    entries = torch.tensor([(row, token) for row, tokens in enumerate(seen) for token in tokens])
    rows, tokens = entries.T.to(logits.device)
    before = logits[rows, tokens]
    logits[rows, tokens] = torch.where(before < 0, before * penalty, before / penalty)


def _next_tokens(
    logits: Float[Tensor, "batch d_vocab"], decoding: Decoding, generators: Sequence[torch.Generator]
) -> Int[Tensor, " batch"]:
    if decoding.temperature == 0:
        return logits.argmax(-1).cpu()
    logits = logits if has_float64(logits.device) else logits.cpu()
    probabilities = (logits.double() / decoding.temperature).softmax(-1)
    ordered, order = probabilities.sort(dim=-1, descending=True, stable=True)
    before = ordered.cumsum(-1) - ordered
    nucleus = torch.where(before < decoding.top_p, ordered, 0).cumsum(-1)
    # One uniform number per row and step, looked up in the row's own cumulative distribution.
    uniform = torch.stack([torch.rand(1, generator=each, dtype=torch.float64) for each in generators])
    uniform = uniform.to(logits.device)
    rank = torch.searchsorted(nucleus, uniform * nucleus[:, -1:], right=True).clamp(max=logits.shape[-1] - 1)
    return order.gather(-1, rank).squeeze(-1).cpu()
