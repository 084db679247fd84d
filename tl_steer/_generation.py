"""Generation under operations: batched, left-padded, with an explicit mask."""

import hashlib
import logging
import math
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ._util.seeds import derived_seed, require_seed
from ._util.validation import checked
from .engine import (
    Batch,
    Decoder,
    Memory,
    Row,
    StreamNorms,
    Tick,
    Wave,
    bar,
    batches,
    in_waves,
    residual,
    shares,
)
from .interventions import Edit, Operation, checked_edits, steer
from .models import HookedModel, Prompt, detected_format, exclusive, tokenize_all
from .models.backend import input_device, new_cache, unembedded
from .positions import PromptTokens

logger = logging.getLogger(__name__)
LOGIT_ROWS = 256  # texts whose next token is chosen at once
LEAVING = 0.875  # texts that have ended leave when so small a share goes on: leaving copies what is kept


@dataclass(frozen=True)
class Decoding:
    """How the next tokens are chosen: the arguments of `generate`, and the number of texts per prompt."""

    max_new_tokens: int = 64
    min_new_tokens: int = 0
    temperature: float = 0.0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    draws: int = 1
    seed: int = 0
    use_cache: bool = True

    @property
    def feeds(self) -> bool:
        """Whether any new token is fed back: the last never is."""
        return self.max_new_tokens > 1

    def __post_init__(self) -> None:
        if not 0 <= self.min_new_tokens <= self.max_new_tokens or self.max_new_tokens < 1:
            raise ValueError(
                f"min_new_tokens={self.min_new_tokens}, max_new_tokens={self.max_new_tokens}: "
                "at least one token must be asked for, and the minimum may not exceed the maximum."
            )
        if not 0 <= self.temperature < math.inf or not 0 < self.top_p <= 1:  # not so for NaN either
            raise ValueError(
                f"temperature={self.temperature}, top_p={self.top_p}: temperature is 0 (greedy) or more, "
                "top_p lies in (0, 1]."
            )
        if not 0 < self.repetition_penalty < math.inf:
            raise ValueError(
                f"repetition_penalty={self.repetition_penalty}: expected a number above 0. "
                "1 changes nothing, above 1 makes repetition less likely."
            )
        if self.draws < 1 or (self.draws > 1 and self.temperature == 0):
            raise ValueError(
                f"draws={self.draws}, temperature={self.temperature}: expected one draw or more, and a "
                "temperature above 0 for several, since greedy texts are all the same."
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
    """What the model says, steered.

    Args:
        model: a `HookedTransformer` or a `TransformerBridge`.
        prompts: texts (a chat prompt rendered by `chat_format(model).render`) or token lists.
        operations: applied at the positions they name, in the order given.
        max_new_tokens, min_new_tokens: a row ends at the end of its turn, not before the minimum.
        temperature: 0 is greedy; otherwise logits are divided by it and a token is drawn.
        top_p: draw from the smallest set of tokens that holds this much probability.
        repetition_penalty: the logit of each token of the prompt or the new text is divided by this where it
            is positive, and multiplied by it where it is negative, before anything else. 1 changes nothing.
        seed: each row draws from a generator of its own, made of the seed and its prompt, so that a batch
            equals its rows alone. The same prompt twice gives the same text: vary the seed.
        use_cache: `False` runs the whole sequence for each token; the same tokens, slower.
        return_tokens: give the new ids instead, the end-of-turn token included.
        allow_empty: accept prompts of which an operation's positions select nothing.
        force: accept vectors of other weights of the same shapes and processing.
        progress: show a bar.
        reuse: compute what prompts share once; `False` runs the plain loop, the oracle: the same tokens.
        memory: bytes, or the share of what is free, that keys and values may take; see `sweep`.

    Returns:
        The new text of each prompt, special tokens left out.

    Raises:
        ValueError: a prompt that is empty or does not leave room for the new tokens, or a setting out of its
            range; see `steer` for more.

    Source of the penalty: Keskar et al. 2019, "CTRL", arXiv 1909.05858, section 4.1, as Hugging Face's
    `generate` has it: the prompt's tokens count, and a token counts once, however often it occurs.
    """
    decoding = Decoding(
        max_new_tokens,
        min_new_tokens,
        temperature,
        top_p,
        repetition_penalty,
        seed=seed,
        use_cache=use_cache,
    )
    begun = time.monotonic()
    with bar("generating", 1, shown=progress) as tick:
        (rows,) = write_cells(
            model,
            tokenize_all(model, prompts),
            [operations],
            decoding,
            allow_empty=allow_empty,
            force=force,
            reuse=reuse,
            memory=memory,
            tick=tick,
        )
    told = (len(rows), sum(map(len, rows)), time.monotonic() - begun)
    logger.info("wrote %d texts, %d tokens, in %.1f s", *told)
    return rows if return_tokens else [completion_text(model, row) for row in rows]


@torch.no_grad()
def write_cells(
    model: Any,
    prompts: Sequence[Sequence[int]],
    cells: Sequence[Sequence[Operation]],
    decoding: Decoding,
    *,
    norms: StreamNorms | None = None,
    allow_empty: bool = False,
    force: bool = False,
    reuse: bool = True,
    memory: Memory = None,
    tick: Tick = lambda cells: None,
) -> list[list[list[int]]]:
    """New tokens of every prompt under every cell's operations; raises as `generate`.

    With `decoding.draws`, each prompt has so many rows, one after another.

    Args:
        norms: filled on the way, if tokens are shared and some cell has no operations.
        tick: called with the number of cells done, in parts.
    """
    require_room(model, prompts, decoding.max_new_tokens)
    options = {"allow_empty": allow_empty, "force": force}
    with exclusive(model):
        if decoding.use_cache and shares(model, reuse):
            edits = checked_edits(model, cells, force)
            return _written_together(model, prompts, edits, decoding, norms, allow_empty, memory, tick)
        return _written_plainly(model, prompts, cells, decoding, tick, options)


def _written_plainly(
    model: Any,
    prompts: Sequence[Sequence[int]],
    cells: Sequence[Sequence[Operation]],
    decoding: Decoding,
    tick: Tick,
    options: Mapping[str, bool],
) -> list[list[list[int]]]:
    """One cell after another by whole forward passes: the oracle."""
    written = []
    for operations in cells:
        new: dict[int, list[int]] = {}
        rows = _drawn(prompts, decoding)
        for batch in batches(rows, device=input_device(model), extra=decoding.max_new_tokens):
            asked = [rows[row] for row in batch.rows]
            numbers = [row // decoding.draws for row in batch.rows]
            known = {"prompts": asked, "numbers": numbers, "generating": decoding.feeds}
            with steer(model, *operations, **known, **options):
                new |= dict(zip(batch.rows, decode(model, batch, decoding), strict=True))
            tick(len(batch.rows) / len(rows))
        written.append([new[row] for row in range(len(rows))])
    return written


def _drawn(prompts: Sequence[Sequence[int]], decoding: Decoding) -> list[Sequence[int]]:
    """Each prompt as often as it is answered; row r is draw r % draws."""
    return [ids for ids in prompts for _ in range(decoding.draws)]


def _written_together(
    model: Any,
    prompts: Sequence[Sequence[int]],
    cells: Sequence[Sequence[Edit]],
    decoding: Decoding,
    norms: StreamNorms | None,
    allow_empty: bool,
    memory: Memory,
    tick: Tick,
) -> list[list[list[int]]]:
    """All cells' texts at once: one walk through the prompts, then a token at a time for those not ended."""
    rows = [
        Row(tuple(ids), PromptTokens(len(ids), tuple(ids), model.tokenizer, row // decoding.draws))
        for row, ids in enumerate(_drawn(prompts, decoding))
    ]
    written: list[list[list[int]]] = [[[] for _ in rows] for _ in cells]
    room = decoding.max_new_tokens - 1

    def write(wave: Wave) -> None:
        decoder = Decoder(model, wave, room)
        with nullcontext() if norms is None else norms.of(model, wave):
            stream = decoder.start()
        members = [row for _, row in decoder.members]
        numbers = [wave.rows[row] for row in members]
        texts = _Texts(model, [wave.plan.rows[row].ids for row in members], numbers, decoding)
        _go_on(decoder, texts, stream)
        for (cell, row), new in zip(product(wave.cells, wave.rows), texts.new, strict=True):
            written[cell][row] = new

    in_waves(
        model,
        rows,
        cells,
        write,
        memory=memory,
        new_tokens=room,
        tick=tick,
        generating=decoding.feeds,
        allow_empty=allow_empty,
    )
    return written


def _go_on(decoder: Decoder, texts: "_Texts", stream: Float[Tensor, "text d_model"]) -> None:
    """Token by token until every text has ended; those that have leave, a few at a time."""
    fed = sorted(texts.alive)
    while True:
        chosen = texts.take(fed, stream)
        if not texts.alive:
            return
        if len(texts.alive) <= LEAVING * len(fed):
            places = [place for place, text in enumerate(fed) if text in texts.alive]
            decoder.leave(places)
            fed, chosen = [fed[place] for place in places], chosen[places]
        stream = decoder.step(chosen)


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
    """New tokens of each row of a left-padded batch, under whatever steers the model now: the plain loop.

    A row that has ended is masked from then on, so that nothing after its end is steered or captured.
    """
    pairs = zip(batch.tokens, batch.mask, strict=True)
    texts = _Texts(model, [row[kept].tolist() for row, kept in pairs], batch.rows, decoding)
    cache = new_cache(model, len(batch.rows)) if decoding.use_cache else None
    everyone = list(range(len(batch.rows)))
    while True:
        chosen = texts.take(everyone, residual(model, batch, cache=cache)[:, -1])
        if not texts.alive:
            return texts.new
        batch = _fed(
            batch, chosen, torch.tensor([row in texts.alive for row in everyone]), keep=cache is None
        )


class _Texts:
    """What has been written of each prompt, and which go on.

    Args:
        rows: the number of each text's row, as `_drawn` numbers them.
    """

    def __init__(
        self, model: Any, prompts: Sequence[Sequence[int]], rows: Sequence[int], decoding: Decoding
    ) -> None:
        self.model, self.decoding = model, decoding
        self.stops = stop_tokens(model)
        self.generators = [
            decoding.generator(prompt, row % decoding.draws)
            for prompt, row in zip(prompts, rows, strict=True)
        ]
        self.new: list[list[int]] = [[] for _ in prompts]
        self.alive = set(range(len(prompts)))
        self.seen = [set(prompt) for prompt in prompts]  # tokens of the prompt and the new text

    def take(self, fed: Sequence[int], stream: Float[Tensor, "fed d_model"]) -> Int[Tensor, " fed"]:
        """Choose each fed text's next token, and keep those of the texts that go on."""
        chosen = torch.cat(
            [
                self._chosen(fed[i : i + LOGIT_ROWS], stream[i : i + LOGIT_ROWS])
                for i in range(0, len(fed), LOGIT_ROWS)
            ]
        )
        for text, token in zip(fed, chosen.tolist(), strict=True):
            if text in self.alive:
                self.new[text].append(token)
                self.seen[text].add(token)
                if token in self.stops or len(self.new[text]) == self.decoding.max_new_tokens:
                    self.alive.remove(text)
        return chosen

    def _chosen(self, fed: Sequence[int], stream: Float[Tensor, "fed d_model"]) -> Int[Tensor, " fed"]:
        # The model's own, rounded as it rounds them: what Hugging Face's `generate` chooses from.
        logits = unembedded(self.model, stream).float()
        if self.decoding.repetition_penalty != 1:
            _penalize(logits, [self.seen[text] for text in fed], self.decoding.repetition_penalty)
        for place, text in enumerate(fed):
            if len(self.new[text]) < self.decoding.min_new_tokens:
                logits[place, self.stops] = -torch.inf
        return _next_tokens(logits, self.decoding, [self.generators[text] for text in fed])


def stop_tokens(model: Any) -> list[int]:
    """Ids at which a text ends: the tokenizer's end of sequence, and the chat format's end of turn."""
    tokenizer = model.tokenizer
    if tokenizer is None:
        return []
    end = detected_format(model).end_of_turn()
    token = tokenizer.convert_tokens_to_ids(end) if end else None
    if token is not None and tokenizer.convert_ids_to_tokens(token) != end:
        token = None  # several tokens, or the unknown one
    return sorted({tokenizer.eos_token_id, token} - {None})


def _fed(batch: Batch, chosen: Int[Tensor, " batch"], alive: Tensor, *, keep: bool) -> Batch:
    """The next pass's input: the new column alone, or behind all before it."""
    tokens, mask = chosen[:, None].to(batch.tokens.device), alive[:, None].to(batch.mask.device)
    if keep:
        tokens, mask = torch.cat([batch.tokens, tokens], 1), torch.cat([batch.mask, mask], 1)
    return replace(batch, tokens=tokens, mask=mask)


def _penalize(logits: Float[Tensor, "batch d_vocab"], seen: Sequence[set[int]], penalty: float) -> None:
    """Change, in place, the logits of the tokens that each row has seen."""
    places = torch.tensor([(row, token) for row, tokens in enumerate(seen) for token in tokens])
    rows, tokens = places.T.to(logits.device)
    before = logits[rows, tokens]
    logits[rows, tokens] = torch.where(before < 0, before * penalty, before / penalty)


def _next_tokens(
    logits: Float[Tensor, "batch d_vocab"], decoding: Decoding, generators: Sequence[torch.Generator]
) -> Int[Tensor, " batch"]:
    if decoding.temperature == 0:
        return logits.argmax(-1).cpu()
    # On the CPU: MPS has no float64.
    probabilities = (logits.cpu().double() / decoding.temperature).softmax(-1)
    ordered, order = probabilities.sort(dim=-1, descending=True, stable=True)
    before = ordered.cumsum(-1) - ordered
    nucleus = torch.where(before < decoding.top_p, ordered, 0).cumsum(-1)
    # One uniform number a row and step, looked up in the row's own cumulative distribution.
    uniform = torch.stack(
        [torch.rand(1, generator=generator, dtype=torch.float64) for generator in generators]
    )
    place = torch.searchsorted(nucleus, uniform * nucleus[:, -1:], right=True).clamp(max=logits.shape[-1] - 1)
    return order.gather(-1, place).squeeze(-1)
