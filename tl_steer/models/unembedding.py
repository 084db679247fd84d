"""Final norm and unembedding apart from a pass, in a precision of one's choice: for the logit lens."""

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens.utilities.activation_functions import apply_softcap

from . import bridge
from .backend import is_bridge

PROBE = 2.0**12

Unembedding = Callable[[Float[Tensor, "row d_model"]], Float[Tensor, "row d_vocab"]]


def unembedding(model: Any, dtype: torch.dtype, *, norm: bool = True) -> Unembedding:
    """From streams to logits, in `dtype`; the model itself is not changed.

    Args:
        norm: `False` leaves out the division by the length, all biases and the soft cap: what a part of the
            stream adds to the logits, but for that division.
    """
    return (_of_bridge if is_bridge(model) else _of_hooked)(model, dtype, norm)


def final_norm(model: Any, dtype: torch.dtype) -> Callable[[Tensor], Float[Tensor, "row d_model"]]:
    """The final norm of a `HookedTransformer`, from rows in `dtype` to rows in `dtype`."""
    if model.cfg.normalization_type is None:
        return lambda rows: rows
    final = _in(dtype, model.ln_final)
    return lambda rows: final(rows[:, None])[:, 0]


def can_unembed_in_float32(model: Any) -> bool:
    """Not where a bridge's unembedding is in whole numbers, of 4 or 8 bits."""
    if not is_bridge(model):
        return True
    return all(weight.is_floating_point() for weight in model.unembed.original_component.parameters())


def _of_hooked(model: Any, dtype: torch.dtype, norm: bool) -> Unembedding:
    unembed = _in(dtype, model.unembed)
    if not norm:
        final = _in(dtype, getattr(model, "ln_final", None))
        weight = getattr(final, "w", torch.ones((), device=unembed.W_U.device))
        return lambda rows: _scaled(model, rows, weight) @ unembed.W_U
    final, cap = final_norm(model, dtype), model.cfg.output_logits_soft_cap
    return lambda rows: apply_softcap(unembed(final(rows)[:, None])[:, 0], cap)


def _of_bridge(model: Any, dtype: torch.dtype, norm: bool) -> Unembedding:
    final, head = (deepcopy(part.original_component).to(dtype) for part in (model.ln_final, model.unembed))
    if norm:
        return lambda rows: bridge.unembedded(model, rows, norm=final, head=head)
    scaled = _linear_norm(final, model.cfg.d_model, dtype)
    linear = _linear_head(model, head, dtype)
    return lambda rows: linear(scaled(rows))


def _linear_norm(norm: Any, d_model: int, dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    """A norm without its division and biases, told from what it does: weights are w, 1 + w or not there."""
    device = next((weight.device for weight in norm.parameters()), torch.device("cpu"))
    # A power of two, so that sums of it are exact, and so large that the norm's epsilon is nothing beside it.
    level = torch.full((d_model,), PROBE, dtype=dtype, device=device)
    probe = level.clone()
    probe[1::2] *= -1
    probe -= probe.mean()
    weight = _odd_part(norm, probe) * probe.pow(2).mean().sqrt() / probe
    centres = bool(_odd_part(norm, level).abs().max() < 1e-2 * weight.abs().max())

    def scaled(rows: Float[Tensor, "row d_model"]) -> Float[Tensor, "row d_model"]:
        rows = rows - rows.mean(-1, keepdim=True) if centres else rows
        return rows * weight.to(rows.device)

    return scaled


@torch.no_grad()
def _odd_part(function: Callable[[Tensor], Tensor], probe: Float[Tensor, " d_model"]) -> Tensor:
    """What changes its sign with the input: without biases."""
    there, back = function(torch.stack([probe, -probe])[:, None])[:, 0]
    return (there - back) / 2


def _linear_head(model: Any, head: Any, dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    """The head and what the model makes of its logits, without a bias; where it caps them, the head alone."""
    device = head.weight.device

    def logits(rows: Tensor) -> Tensor:
        return bridge.unembedded(model, rows.to(device), norm=lambda hidden: hidden, head=head)

    probe = torch.full((1, model.cfg.d_model), PROBE, dtype=dtype, device=device)
    bias = logits(0 * probe)
    once, twice = logits(probe) - bias, logits(2 * probe) - bias
    if (twice - 2 * once).norm() > 1e-2 * twice.norm():
        return lambda rows: rows.to(device) @ head.weight.T
    return lambda rows: logits(rows) - bias


def _scaled(model: Any, rows: Float[Tensor, "row d_model"], weight: Tensor) -> Float[Tensor, "row d_model"]:
    """The final norm's linear part: its centring and its weights."""
    if str(model.cfg.normalization_type).startswith("LN"):
        rows = rows - rows.mean(-1, keepdim=True)
    return rows * weight


def _in(dtype: torch.dtype, part: Any) -> Any:
    """The module itself, or a copy in this precision, which does not round what it gives either."""
    if part is None or part.cfg.dtype == dtype:
        return part
    part = deepcopy(part).to(dtype)
    part.cfg.dtype = dtype
    return part
