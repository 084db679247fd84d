"""Token lists to padded batches with an explicit mask, and the plain forward pass over one."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformer_lens.utilities.activation_functions import apply_softcap

from ..models.backend import can_unembed_in_float32, final_norm, run, unembedded, unembedding

# Reading on a CPU is fastest where a batch's activations stay in its cache (the embedded model on two cores:
# 17 % faster than 4096); decoding and accelerators are bound by reading weights, and want many rows.
CACHED_TOKENS = 1024
BATCH_TOKENS = 4096
HALVES = (torch.float16, torch.bfloat16)
VOCABULARY_PART = 4096  # tokens whose logits are summed over at once: what stays in a CPU's cache


@dataclass(frozen=True)
class Batch:
    """Some rows of a list of prompts, padded on the left: every row ends in the same slot.

    Attributes:
        rows: which prompts, as indices into the list.
        tokens: ids, 0 where padded; the mask, made from lengths, is what counts.
        mask: where there is a token.
    """

    rows: tuple[int, ...]
    tokens: Int[Tensor, "batch pos"]
    mask: Bool[Tensor, "batch pos"]


def batches(
    prompts: Sequence[Sequence[int]], *, device: Any = "cpu", extra: int = 0, budget: int | None = None
) -> Iterator[Batch]:
    """Batches of prompts of similar length, in all at most `budget` slots each (but at least one row).

    Args:
        extra: slots a row will need besides its prompt, for what is generated.
        budget: by default what suits reading on a CPU, or decoding and accelerators.
    """
    if budget is None:
        budget = CACHED_TOKENS if str(device) == "cpu" and not extra else BATCH_TOKENS
    order = sorted(range(len(prompts)), key=lambda row: len(prompts[row]))
    start = 0
    while start < len(order):
        stop = start + 1
        while stop < len(order) and (stop + 1 - start) * (len(prompts[order[stop]]) + extra) <= budget:
            stop += 1
        yield left_padded(prompts, order[start:stop], device)
        start = stop


def left_padded(prompts: Sequence[Sequence[int]], rows: Sequence[int], device: Any) -> Batch:
    """The given rows as one batch."""
    width = max(len(prompts[row]) for row in rows)
    tokens = torch.zeros(len(rows), width, dtype=torch.long)
    mask = torch.zeros(len(rows), width, dtype=torch.bool)
    for place, row in enumerate(rows):
        length = len(prompts[row])
        tokens[place, width - length :] = torch.tensor(list(prompts[row]))
        mask[place, width - length :] = True
    return Batch(tuple(rows), tokens.to(device), mask.to(device))


def residual(
    model: Any, batch: Batch, *, stop_at_layer: int | None = None, cache: Any = None
) -> Float[Tensor, "batch pos d_model"]:
    """The stream after the last block (or before `stop_at_layer`); no logits are computed."""
    return run(model, batch.tokens, batch.mask, stop_at_layer=stop_at_layer, cache=cache)


def logits_of(model: Any, stream: Float[Tensor, "batch d_model"]) -> Float[Tensor, "batch d_vocab"]:
    """Final norm and unembedding of chosen positions alone, in float32.

    Of a half-precision stream too: rounded to bfloat16, logits near 38 lie 0.25 apart, and those of two
    choices are often the same.
    """
    if stream.dtype in HALVES and can_unembed_in_float32(model):
        return unembedding(model, torch.float32)(stream.float())
    return unembedded(model, stream).float()


def log_normaliser(model: Any, stream: Float[Tensor, "batch d_model"]) -> Float[Tensor, " batch"]:
    """The log-sum-exp of each position's logits, over a part of the vocabulary at a time; as `logits_of`."""
    normed = _normed(model, stream)
    columns = zip(model.W_U.split(VOCABULARY_PART, 1), model.b_U.split(VOCABULARY_PART), strict=True)
    cap = model.cfg.output_logits_soft_cap
    parts = [
        apply_softcap(normed @ weight.to(normed) + bias.to(normed), cap).float().logsumexp(-1)
        for weight, bias in columns
    ]
    return torch.stack(parts).logsumexp(0)


def logits_at(
    model: Any, stream: Float[Tensor, "batch d_model"], tokens: Int[Tensor, "batch choice"]
) -> Float[Tensor, "batch choice"]:
    """A few tokens' logits at each position, without computing the others; as `logits_of`."""
    tokens = tokens.to(stream.device)
    normed = _normed(model, stream)
    weight, bias = model.W_U.T[tokens].to(normed), model.b_U[tokens].to(normed)
    logits = (weight @ normed[:, :, None])[:, :, 0] + bias
    return apply_softcap(logits, model.cfg.output_logits_soft_cap).float()


def _normed(model: Any, stream: Float[Tensor, "batch d_model"]) -> Float[Tensor, "batch d_model"]:
    """Behind the final norm: in float32 where the model is in half precision."""
    if stream.dtype in HALVES:
        stream = stream.float()
    return final_norm(model, stream.dtype)(stream)
