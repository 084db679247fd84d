"""The model that is verified, and the slow ways of computing what the package computes.

Nothing here uses what is verified: one unpadded prompt a pass, through the model's own forward, without
cache or mask, read with torch's hooks on its blocks.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..directions import SteeringVector
from ..models import Prompt, detected_format, identify, tokenize_all
from .check import DoesNotApplyError
from .model_state import State

NEW_TOKENS = 6
SENTENCES = (
    "The sky is blue today.",
    "Paris",
    "She opened the old book, read a few lines aloud, and everybody in the room began to laugh.",
)
QUESTION = "What is the capital of France?"
CHOICES = (" yes", " no", " the", " a", "yes", "no", "A", "B", "a", "b")


@dataclass(frozen=True)
class Pass:
    """One prompt's pass.

    Attributes:
        logits: of every position, in float32 on the CPU.
        streams: what each block gives, by layer, in the stream's dtype on the CPU.
    """

    logits: Float[Tensor, "pos d_vocab"]
    streams: dict[int, Float[Tensor, "pos d_model"]]


@dataclass(frozen=True, eq=False)
class Subject:
    """What the checks are given.

    Attributes:
        model: what is verified.
        hf_model: the Hugging Face model that it should equal, if there is one.
        ids: the prompts' tokens.
        before: what the model was like before any check.
    """

    model: Any
    hf_model: Any
    ids: tuple[tuple[int, ...], ...]
    before: State

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return next(weight.dtype for weight in self.model.parameters() if weight.is_floating_point())

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers that are steered: the first, the last, and two between."""
        last = self.model.cfg.n_layers - 1
        return tuple(sorted({0, last // 3, 2 * last // 3, last}))

    @property
    def new_tokens(self) -> int:
        """How many tokens there is room for behind the prompts."""
        room = min(NEW_TOKENS, self.model.cfg.n_ctx - max(map(len, self.ids)))
        if room < 2:
            raise DoesNotApplyError("the prompts fill the context: give shorter ones.")
        return room

    @cached_property
    def alone(self) -> tuple[Pass, ...]:
        """Each prompt by itself, unsteered."""
        return tuple(alone(self.model, ids) for ids in self.ids)

    def vector(self, layer: int, *, dose: float = 1.0, hook: str = "resid_post") -> SteeringVector:
        """A fixed random vector, as long as `dose` times the stream is there."""
        drawn = torch.randn(self.model.cfg.d_model, generator=torch.Generator().manual_seed(layer))
        norm = self._norm(layer)
        values = dose * norm * drawn / drawn.norm()
        return SteeringVector(values, layer, hook, "verify", norm, identify(self.model))

    def named(self, row: int) -> str:
        """A prompt, for a detail."""
        ids = list(self.ids[row])
        tokenizer = self.model.tokenizer
        return f"prompt {row} ({ids[:8] if tokenizer is None else repr(tokenizer.decode(ids)[:40])})"

    def require_lengths(self) -> None:
        """Refuse prompts that all have the same length: nothing would be padded."""
        if len(set(map(len, self.ids))) < 2:
            raise DoesNotApplyError("all prompts have the same length: give some of different lengths.")

    def _norm(self, layer: int) -> float:
        streams = [each.streams[layer][1:] for each in self.alone if len(each.logits) > 1]
        if not streams:
            raise DoesNotApplyError("every prompt is a single token: give a longer one.")
        return float(torch.cat(streams).float().norm(dim=-1).median())


def asked(model: Any, prompts: Prompt | Sequence[Prompt] | None) -> tuple[tuple[int, ...], ...]:
    """The prompts' tokens; by default a few sentences and a chat prompt, shortened to what fits."""
    if prompts is not None:
        return tuple(map(tuple, tokenize_all(model, prompts)))
    most = max(2, model.cfg.n_ctx - NEW_TOKENS)
    if model.tokenizer is None:
        lengths = (min(length, most) for length in (7, 2, 19))
        return tuple(tuple((7 * i + 3) % model.cfg.d_vocab for i in range(length)) for length in lengths)
    chat = model.tokenizer(detected_format(model).render(QUESTION), add_special_tokens=False)
    texts = [*map(model.tokenizer, SENTENCES), chat]
    return tuple(tuple(text["input_ids"][:most]) for text in texts)


def alone(model: Any, ids: Sequence[int]) -> Pass:
    """One unpadded prompt through the model's own forward."""
    with torch.no_grad(), reading(model.blocks) as streams:
        logits = model(as_batch(model, [ids]))[0]
    return Pass(logits.float().cpu(), streams)


@contextmanager
def reading(blocks: torch.nn.ModuleList) -> Iterator[dict[int, Tensor]]:
    """While this is entered, what each block gives for the first row is kept, by layer."""
    streams: dict[int, Tensor] = {}

    def keeping(layer: int) -> Callable:
        def keep(_module: Any, _inputs: tuple, output: Any) -> None:
            stream = output[0] if isinstance(output, tuple) else output
            streams[layer] = stream.detach().reshape(-1, stream.shape[-1]).cpu()

        return keep

    with ExitStack() as stack:
        for layer, block in enumerate(blocks):
            stack.callback(block.register_forward_hook(keeping(layer)).remove)
        yield streams


def as_batch(model: Any, rows: Sequence[Sequence[int]]) -> Int[Tensor, "batch pos"]:
    """Token lists of one length, where the model's embedding is."""
    return torch.tensor([list(row) for row in rows], device=next(model.parameters()).device)


def choices(subject: Subject) -> tuple[tuple[str, str], tuple[int, int]]:
    """Two continuations of one token each, and their ids."""
    tokenizer = subject.model.tokenizer
    if tokenizer is None:
        raise DoesNotApplyError("the model has no tokenizer to make choices with.")
    found: dict[int, str] = {}
    for text in CHOICES:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        if len(ids) == 1 and ids[0] != tokenizer.unk_token_id:
            found.setdefault(ids[0], text)
    if len(found) < 2:
        raise DoesNotApplyError(f"fewer than two of {', '.join(map(repr, CHOICES))} are one token.")
    (first, a), (second, b) = list(found.items())[:2]
    return (a, b), (first, second)


def scored(logits: Float[Tensor, " d_vocab"], pair: tuple[int, int]) -> dict[str, float]:
    """What `choice_logits` should say of the next token's logits."""
    first, second = logits.double().log_softmax(-1)[list(pair)].tolist()
    return {"logit_difference": first - second, "log mass": float(np.logaddexp(first, second))}


def shortfall(logits: Float[Tensor, "pos d_vocab"], prompt: int, new: Sequence[int]) -> float:
    """How far a chosen token lay below the best one, at the worst step; 0 of greedy tokens.

    Args:
        logits: of a pass over the prompt and the new tokens.
        prompt: how many tokens the prompt has.
    """
    steps = logits[prompt - 1 : prompt - 1 + len(new)]
    chosen = steps[torch.arange(len(new)), torch.tensor(list(new))]
    return float((steps.amax(-1) - chosen).max())
