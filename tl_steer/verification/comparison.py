"""How far results are from what they should be, and what rounding alone may come to."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

# What rounding alone may come to, by the weights' dtype. Measured on SmolLM2-135M against the same
# computation in another order: 4e-6, 0.014, 0.06 of the length; 1e-4, 0.1, 1.0 nats.
LENGTHS = {torch.float64: 1e-6, torch.float32: 1e-4, torch.float16: 0.05, torch.bfloat16: 0.2}
NATS = {torch.float64: 1e-5, torch.float32: 1e-3, torch.float16: 0.5, torch.bfloat16: 3.0}
LAST_BITS = {dtype: 4 * torch.finfo(dtype).eps for dtype in LENGTHS}  # between passes of one shape


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


def choice_scores(logits: Float[Tensor, " d_vocab"], ids: tuple[int, int]) -> dict[str, float]:
    """The expected result of `choice_logits` for these next-token logits."""
    first, second = logits.double().log_softmax(-1)[list(ids)].tolist()
    return {"logit_difference": first - second, "log mass": float(np.logaddexp(first, second))}


def greedy_shortfall(logits: Float[Tensor, "pos d_vocab"], prompt_length: int, new: Sequence[int]) -> float:
    """By how much a new token's logit is below the best one, at the worst step; 0 for greedy tokens."""
    steps = logits[prompt_length - 1 : prompt_length - 1 + len(new)]
    chosen = steps[torch.arange(len(new)), torch.tensor(list(new))]
    return float((steps.amax(-1) - chosen).max())
