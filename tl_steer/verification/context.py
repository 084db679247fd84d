"""What a check is, and the context that all checks share: the model, its prior state, reference computations.

The reference computations use nothing that is verified: one unpadded prompt per pass through the model's own
forward, without cache or mask, recorded by torch hooks on its blocks.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from math import inf, isnan
from operator import itemgetter
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..directions import SteeringVector
from ..errors import DoesNotApplyError
from ..models import Prompt, detected_format, identify, tokenize_all

NEW_TOKENS = 6
SENTENCES = (
    "The sky is blue today.",
    "Paris",
    "She opened the old book, read a few lines aloud, and everybody in the room began to laugh.",
)
QUESTION = "What is the capital of France?"
CHOICES = (" yes", " no", " the", " a", "yes", "no", "A", "B", "a", "b")

Measurements = Iterator[tuple[float, str]]  # each with its detail, such as prompt and layer


@dataclass(frozen=True)
class Check:
    """One guarantee of the package, and what goes wrong without it (`meaning`).

    `measure` raises `DoesNotApplyError` where there is nothing to measure; `allowed` is the largest
    measurement that passes, or a table of it by dtype.
    """

    name: str
    unit: str
    meaning: str
    measure: Callable[["Context"], Measurements]
    allowed: float | dict[torch.dtype, float]

    def limit(self, dtype: torch.dtype) -> float:
        """The largest measurement that passes for a model of this dtype."""
        if isinstance(self.allowed, dict):
            return self.allowed.get(dtype, self.allowed[torch.bfloat16])
        return self.allowed

    def worst(self, context: "Context") -> tuple[float, str]:
        """The largest measurement and its detail; NaN counts as infinite."""
        measurements = [
            (inf if isnan(value) else float(value), detail) for value, detail in self.measure(context)
        ]
        if not measurements:
            raise DoesNotApplyError("there was nothing to measure.")
        return max(measurements, key=itemgetter(0))


def check(name: str, unit: str, allowed: float | dict[torch.dtype, float] = 0.0) -> Callable[..., Check]:
    """Decorator: make a generator of measurements a `Check`, whose meaning is the docstring."""
    return lambda measure: Check(name, unit, " ".join((measure.__doc__ or "").split()), measure, allowed)


@dataclass(frozen=True)
class Pass:
    """One prompt's pass, on the CPU: logits in float32, and each block's output in the model's dtype."""

    logits: Float[Tensor, "pos d_vocab"]
    streams: dict[int, Float[Tensor, "pos d_model"]]


@dataclass(frozen=True, eq=False)
class Context:
    """The input of every check: `ids` of the prompts, and the model's state `before` any check, by name."""

    model: Any
    hf_model: Any
    ids: tuple[tuple[int, ...], ...]
    before: dict[str, dict[str, Any]]

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return next(weight.dtype for weight in self.model.parameters() if weight.is_floating_point())

    @property
    def layers(self) -> tuple[int, ...]:
        """The steered layers: the first, the last, and two between."""
        last = self.model.cfg.n_layers - 1
        return tuple(sorted({0, last // 3, 2 * last // 3, last}))

    @property
    def new_tokens(self) -> int:
        """Number of tokens to generate that fit the context."""
        fitting = min(NEW_TOKENS, self.model.cfg.n_ctx - max(map(len, self.ids)))
        if fitting < 2:
            raise DoesNotApplyError("the prompts fill the context: give shorter ones.")
        return fitting

    @property
    def tokenizer(self) -> Any:
        """The model's tokenizer."""
        if self.model.tokenizer is None:
            raise DoesNotApplyError("the model has no tokenizer.")
        return self.model.tokenizer

    @cached_property
    def passes(self) -> tuple[Pass, ...]:
        """Each prompt alone, unsteered."""
        return tuple(run_alone(self.model, ids) for ids in self.ids)

    @cached_property
    def longest(self) -> int:
        """Index of the longest prompt."""
        return max(range(len(self.ids)), key=lambda row: len(self.ids[row]))

    def vector(self, layer: int, *, dose: float = 1.0) -> SteeringVector:
        """A fixed random vector of this dose."""
        streams = [each.streams[layer][1:] for each in self.passes if len(each.logits) > 1]
        if not streams:
            raise DoesNotApplyError("every prompt is a single token: give a longer one.")
        norm = float(torch.cat(streams).float().norm(dim=-1).median())
        drawn = torch.randn(self.model.cfg.d_model, generator=torch.Generator().manual_seed(layer))
        values = dose * norm * drawn / drawn.norm()
        return SteeringVector(values, layer, "resid_post", "verify", norm, identify(self.model))

    def choices(self) -> tuple[tuple[str, str], tuple[int, int]]:
        """Two continuations of one token each, and their ids."""
        by_id: dict[int, str] = {}
        for text in CHOICES:
            ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
            if len(ids) == 1 and ids[0] != self.tokenizer.unk_token_id:
                by_id.setdefault(ids[0], text)
        if len(by_id) < 2:
            raise DoesNotApplyError(f"fewer than two of {', '.join(map(repr, CHOICES))} are one token.")
        (first, a), (second, b) = list(by_id.items())[:2]
        return (a, b), (first, second)

    def label(self, row: int) -> str:
        """A prompt's label in details."""
        ids = list(self.ids[row])
        tokenizer = self.model.tokenizer
        return f"prompt {row} ({ids[:8] if tokenizer is None else repr(tokenizer.decode(ids)[:40])})"

    def require_padding(self) -> None:
        """Raise `DoesNotApplyError` if all prompts have the same length, since nothing would be padded."""
        if len(set(map(len, self.ids))) < 2:
            raise DoesNotApplyError("all prompts have the same length: give some of different lengths.")


def token_ids(model: Any, prompts: Prompt | Sequence[Prompt] | None) -> tuple[tuple[int, ...], ...]:
    """The prompts' tokens; by default of a few sentences and a chat prompt, cut to the context."""
    if prompts is not None:
        return tuple(map(tuple, tokenize_all(model, prompts)))
    longest = max(2, model.cfg.n_ctx - NEW_TOKENS)
    if model.tokenizer is None:
        lengths = (min(length, longest) for length in (7, 2, 19))
        return tuple(tuple((7 * i + 3) % model.cfg.d_vocab for i in range(length)) for length in lengths)
    chat = model.tokenizer(detected_format(model).render(QUESTION), add_special_tokens=False)
    texts = [*map(model.tokenizer, SENTENCES), chat]
    return tuple(tuple(text["input_ids"][:longest]) for text in texts)


def run_alone(model: Any, ids: Sequence[int]) -> Pass:
    """One unpadded prompt through the model's own forward."""
    with torch.no_grad(), recording(model.blocks) as streams:
        logits = model(as_batch(model, [ids]))[0]
    return Pass(logits.float().cpu(), streams)


@contextmanager
def recording(blocks: nn.ModuleList) -> Iterator[dict[int, Tensor]]:
    """Record the output of each block for the first row, by layer, until exit."""
    streams: dict[int, Tensor] = {}

    def record(layer: int) -> Callable:
        def hook(_module: Any, _inputs: tuple, output: Any) -> None:
            stream = output[0] if isinstance(output, tuple) else output
            streams[layer] = stream.detach().reshape(-1, stream.shape[-1]).cpu()

        return hook

    with ExitStack() as stack:
        for layer, block in enumerate(blocks):
            stack.callback(block.register_forward_hook(record(layer)).remove)
        yield streams


def as_batch(model: Any, rows: Sequence[Sequence[int]]) -> Int[Tensor, "batch pos"]:
    """Token lists of one length as a tensor on the embedding's device."""
    return torch.tensor([list(row) for row in rows], device=next(model.parameters()).device)
