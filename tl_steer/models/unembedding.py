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

Unembedding = Callable[[Float[Tensor, "row d_model"]], Float[Tensor, "row d_vocab"]]


def unembedding(model: Any, dtype: torch.dtype, *, norm: bool = True) -> Unembedding:
    """From streams to logits, in `dtype`; the model itself is not changed.

    Args:
        norm: `False` leaves out the division by the length, all biases and the soft cap: what a part of the
            stream adds to the logits, but for that division.
    """
    return (_of_bridge if is_bridge(model) else _of_hooked)(model, dtype, norm)


def _of_hooked(model: Any, dtype: torch.dtype, norm: bool) -> Unembedding:
    final, unembed = (_in(dtype, part) for part in (getattr(model, "ln_final", None), model.unembed))
    if not norm:
        weight = getattr(final, "w", torch.ones((), device=unembed.W_U.device))
        return lambda rows: _scaled(model, rows, weight) @ unembed.W_U
    cap = model.cfg.output_logits_soft_cap
    unnormed = model.cfg.normalization_type is None
    return lambda rows: apply_softcap(unembed(rows[:, None] if unnormed else final(rows[:, None]))[:, 0], cap)


def _of_bridge(model: Any, dtype: torch.dtype, norm: bool) -> Unembedding:
    final, head = (deepcopy(part.original_component).to(dtype) for part in (model.ln_final, model.unembed))
    if norm:
        return lambda rows: bridge.unembedded(model, rows, norm=final, head=head)
    weight = final.weight + 1 if getattr(model.cfg, "rmsnorm_uses_offset", False) else final.weight
    return lambda rows: _scaled(model, rows, weight) @ head.weight.T


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
