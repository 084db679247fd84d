"""Logits of chosen positions in float32, and losses and KL divergences a few positions at a time."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens.utilities.activation_functions import apply_softcap

from ..models.backend import can_unembed_in_float32, final_norm, unembedded, unembedding
from .runner import FinalStreams

HALF_PRECISION = (torch.float16, torch.bfloat16)
VOCABULARY_PART = 4096  # tokens whose logits are summed over at once: they stay in a CPU's cache
ROWS = 128  # positions whose distributions are in memory at once, a few times each


def logits_of(model: Any, stream: Float[Tensor, "batch d_model"]) -> Float[Tensor, "batch d_vocab"]:
    """Final norm and unembedding of residual streams after the last block, in float32.

    Also for a model in half precision: in bfloat16, logits near 38 are 0.25 apart, and those of two choices
    are often equal.
    """
    if stream.dtype in HALF_PRECISION and can_unembed_in_float32(model):
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
    """The logits of a few tokens at each position, without computing the others; as `logits_of`."""
    tokens = tokens.to(stream.device)
    normed = _normed(model, stream)
    weight, bias = model.W_U.T[tokens].to(normed), model.b_U[tokens].to(normed)
    logits = (weight @ normed[:, :, None])[:, :, 0] + bias
    return apply_softcap(logits, model.cfg.output_logits_soft_cap).float()


@torch.no_grad()
def losses(
    model: Any, stream: Float[Tensor, "pos d_model"], targets: Int[Tensor, " pos"]
) -> Float[np.ndarray, " pos"]:
    """Cross-entropy of the next token at each position, in nats."""
    parts = [_loss(_log_probs(model, stream[part]), targets[part]) for part in _parts(len(targets))]
    return torch.cat(parts).double().numpy()


@torch.no_grad()
def divergences(
    model: Any, streams: FinalStreams, clean: Float[Tensor, "pos d_model"], targets: Int[Tensor, " pos"]
) -> tuple[Float[np.ndarray, "condition pos"], Float[np.ndarray, "condition pos"]]:
    """Per condition and position, KL(clean ‖ steered) and the steered cross-entropy of the target, in nats.

    Args:
        clean: the unsteered residual streams of the same positions.
        targets: the next tokens.

    Log-probabilities in float32, sums over the vocabulary in float64.
    """
    kl, loss = (np.empty(tuple(streams.slots.shape)) for _ in range(2))
    for part in _parts(len(targets)):
        before = _log_probs(model, clean[part])
        weights = before.exp()
        for condition, slots in enumerate(streams.slots[:, part].to(streams.stream.device)):
            after = _log_probs(model, streams.stream[slots])
            loss[condition, part] = _loss(after, targets[part])
            differences = torch.sub(before, after, out=after).mul_(weights)
            kl[condition, part] = _vocabulary_sum(differences).cpu()
    return kl, loss


def row_means(
    values: Float[np.ndarray, "*condition pos"], counts: Int[np.ndarray, " row"]
) -> Float[np.ndarray, "*condition row"]:
    """Means over each row's positions, where `counts` positions per row follow one another."""
    return np.add.reduceat(values, np.cumsum(counts) - counts, axis=-1) / counts


def has_float64(device: torch.device) -> bool:
    """Whether a device computes in float64: Apple's does not."""
    return device.type != "mps"


def _normed(model: Any, stream: Float[Tensor, "batch d_model"]) -> Float[Tensor, "batch d_model"]:
    """After the final norm: in float32 where the model is in half precision."""
    if stream.dtype in HALF_PRECISION:
        stream = stream.float()
    return final_norm(model, stream.dtype)(stream)


def _parts(count: int) -> Iterator[slice]:
    return (slice(start, start + ROWS) for start in range(0, count, ROWS))


def _log_probs(model: Any, stream: Float[Tensor, "pos d_model"]) -> Float[Tensor, "pos d_vocab"]:
    return logits_of(model, stream).log_softmax(-1)


def _loss(log_probs: Float[Tensor, "pos d_vocab"], targets: Int[Tensor, " pos"]) -> Float[Tensor, " pos"]:
    return -log_probs.gather(1, targets[:, None].to(log_probs.device))[:, 0].cpu()


def _vocabulary_sum(values: Float[Tensor, "pos d_vocab"]) -> Float[Tensor, " pos"]:
    """In float64; on the CPU where the device has none."""
    values = values if has_float64(values.device) else values.cpu()
    return values.sum(-1, dtype=torch.float64)
