"""What a check is, and the context that all checks share: the model, its prior state, reference computations.

The reference computations use nothing that is verified: one unpadded prompt per pass through the model's own
forward, without cache or mask, recorded by torch hooks on its blocks.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from math import isnan
from operator import itemgetter
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..directions import SteeringVector
from ..errors import DoesNotApplyError
from ..models import Prompt, detected_format, identify, tokenize_all

# What rounding alone may come to, by the weights' dtype. Measured on SmolLM2-135M against the same
# computation in another order: 4e-6, 0.014, 0.06 of the length; 1e-4, 0.1, 1.0 nats.
LENGTHS = {torch.float64: 1e-6, torch.float32: 1e-4, torch.float16: 0.05, torch.bfloat16: 0.2}
NATS = {torch.float64: 1e-5, torch.float32: 1e-3, torch.float16: 0.5, torch.bfloat16: 3.0}
LAST_BITS = {dtype: 4 * torch.finfo(dtype).eps for dtype in LENGTHS}  # between passes of one shape

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
    """One guarantee of the package.

    Attributes:
        name: what holds if it passes.
        unit: of the measurements.
        meaning: the guarantee, and what goes wrong without it.
        measure: yields measurements of a `Context`, or raises `DoesNotApplyError`.
        allowed: the largest measurement that passes, or a table of it by dtype.
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
            (torch.inf if isnan(measured) else float(measured), detail)
            for measured, detail in self.measure(context)
        ]
        if not measurements:
            raise DoesNotApplyError("there was nothing to measure.")
        return max(measurements, key=itemgetter(0))


def check(name: str, unit: str, allowed: float | dict[torch.dtype, float] = 0.0) -> Callable[..., Check]:
    """Decorator: make a generator of measurements a `Check`, whose meaning is the docstring."""
    return lambda measure: Check(name, unit, " ".join((measure.__doc__ or "").split()), measure, allowed)


@dataclass(frozen=True)
class Pass:
    """One prompt's pass.

    Attributes:
        logits: at every position, in float32 on the CPU.
        streams: the output of each block, by layer, in the model's dtype on the CPU.
    """

    logits: Float[Tensor, "pos d_vocab"]
    streams: dict[int, Float[Tensor, "pos d_model"]]


@dataclass(frozen=True, eq=False)
class Context:
    """The input of every check.

    Attributes:
        model: the model to verify.
        hf_model: the Hugging Face model that it should equal, if there is one.
        ids: the prompts' tokens.
        before: hooks, weights and settings of the model before any check, each by name.
    """

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


def relative_error(values: Float[Tensor, "*pos d"], expected: Float[Tensor, "*pos d"]) -> float:
    """Norm of the difference relative to the norm of `expected`, at the worst position."""
    values, expected = values.cpu().double(), expected.cpu().double()  # MPS has no float64
    norms = expected.norm(dim=-1).clamp_min(torch.finfo(torch.float64).tiny)
    errors = (values - expected).norm(dim=-1) / norms
    return float(torch.where(errors.isnan(), torch.inf, errors).max())


def logits_error(logits: Float[Tensor, "pos d_vocab"], expected: Float[Tensor, "pos d_vocab"]) -> float:
    """`relative_error` of centred logits: a constant added to all of a position changes no probability."""
    both = (each.double() for each in (logits, expected))
    return relative_error(*(each - each.mean(-1, keepdim=True) for each in both))


def choices(context: Context) -> tuple[tuple[str, str], tuple[int, int]]:
    """Two continuations of one token each, and their ids."""
    by_id: dict[int, str] = {}
    for text in CHOICES:
        ids = context.tokenizer(text, add_special_tokens=False)["input_ids"]
        if len(ids) == 1 and ids[0] != context.tokenizer.unk_token_id:
            by_id.setdefault(ids[0], text)
    if len(by_id) < 2:
        raise DoesNotApplyError(f"fewer than two of {', '.join(map(repr, CHOICES))} are one token.")
    (first, a), (second, b) = list(by_id.items())[:2]
    return (a, b), (first, second)


def choice_scores(logits: Float[Tensor, " d_vocab"], ids: tuple[int, int]) -> dict[str, float]:
    """The expected result of `choice_logits` for these next-token logits."""
    first, second = logits.double().log_softmax(-1)[list(ids)].tolist()
    return {"logit_difference": first - second, "log mass": float(np.logaddexp(first, second))}


def greedy_shortfall(logits: Float[Tensor, "pos d_vocab"], prompt_length: int, new: Sequence[int]) -> float:
    """By how much a chosen token is below the best one, at the worst step; 0 for greedy tokens.

    Args:
        logits: of a pass over the prompt and the new tokens.
    """
    steps = logits[prompt_length - 1 : prompt_length - 1 + len(new)]
    chosen = steps[torch.arange(len(new)), torch.tensor(list(new))]
    return float((steps.amax(-1) - chosen).max())
