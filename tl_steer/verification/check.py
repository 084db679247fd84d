"""What a check is, what it finds, and how far two numbers may lie apart."""

from collections.abc import Callable
from dataclasses import dataclass, field
from math import isnan
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import DoesNotApplyError

# What rounding alone may come to, by the weights' dtype. Measured on SmolLM2-135M against the same
# computation in another order: 4e-6, 0.014, 0.06 of the length; 1e-4, 0.1, 1.0 nats.
LENGTHS = {torch.float64: 1e-6, torch.float32: 1e-4, torch.float16: 0.05, torch.bfloat16: 0.2}
NATS = {torch.float64: 1e-5, torch.float32: 1e-3, torch.float16: 0.5, torch.bfloat16: 3.0}


@dataclass(frozen=True)
class Finding:
    """What a check measured, and where it was worst."""

    measured: float | int
    detail: str = ""


@dataclass(frozen=True)
class Check:
    """One promise.

    Attributes:
        name: what holds, where it holds.
        unit: of what is measured.
        meaning: what it says, and what goes wrong where it does not hold.
        run: measures it, given a `Subject`.
        allowed: the largest measurement that passes; a table by dtype, or one number for all.
    """

    name: str
    unit: str
    meaning: str
    run: Callable[[Any], Finding]
    allowed: float | dict[torch.dtype, float] = 0.0

    def limit(self, dtype: torch.dtype) -> float:
        """What is allowed of a model of this dtype."""
        if isinstance(self.allowed, dict):
            return self.allowed.get(dtype, self.allowed[torch.bfloat16])
        return self.allowed


@dataclass
class Worst:
    """The largest of some measurements, and where it was; NaN is larger than any number."""

    measured: float = 0.0
    detail: str = ""
    _any: bool = field(default=False, repr=False)

    def see(self, measured: float | int, detail: str) -> None:
        """Take another measurement."""
        measured = torch.inf if isnan(measured) else float(measured)
        if not self._any or measured > self.measured:
            self.measured, self.detail, self._any = measured, detail, True

    def finding(self) -> Finding:
        """What was worst.

        Raises:
            DoesNotApplyError: nothing was measured.
        """
        if not self._any:
            raise DoesNotApplyError("there was nothing to measure.")
        return Finding(self.measured, self.detail)


def apart(found: Float[Tensor, "*pos d"], expected: Float[Tensor, "*pos d"]) -> float:
    """The length of the difference as a share of the expected length, at the worst position."""
    found, expected = found.cpu().double(), expected.cpu().double()  # MPS has no float64
    lengths = expected.norm(dim=-1).clamp_min(torch.finfo(torch.float64).tiny)
    shares = (found - expected).norm(dim=-1) / lengths
    return float(torch.where(shares.isnan(), torch.inf, shares).max())


def logits_apart(found: Float[Tensor, "pos d_vocab"], expected: Float[Tensor, "pos d_vocab"]) -> float:
    """`apart` of logits; a number added to all of a position's, which changes no probability, is left out."""
    return apart(*(logits.double() - logits.double().mean(-1, keepdim=True) for logits in (found, expected)))
