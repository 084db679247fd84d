"""Next-token distributions compared, a few positions at a time: the whole of them would not fit."""

from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..engine import logits_of
from .final_streams import Streams

ROWS = 128  # positions whose distributions are held at once, a few times each


@torch.no_grad()
def divergences(
    model: Any, streams: Streams, clean: Float[Tensor, "pos d_model"], targets: Int[Tensor, " pos"]
) -> tuple[Float[np.ndarray, "cell pos"], Float[np.ndarray, "cell pos"]]:
    """For each cell and position KL(clean ‖ steered), and the target's cross-entropy when steered, in nats.

    Args:
        clean: the unsteered streams of the same positions.
        targets: the tokens that come next.

    Log-probabilities in float32, sums over the vocabulary in float64.
    """
    kl, loss = (np.empty(tuple(streams.slots.shape)) for _ in range(2))
    for start in range(0, len(targets), ROWS):
        here = slice(start, start + ROWS)
        before = log_probabilities(model, clean[here])
        weights = before.exp()
        for place, slots in enumerate(streams.slots[:, here].to(streams.stream.device)):
            after = log_probabilities(model, streams.stream[slots])
            loss[place, here] = -_of(after, targets[here]).cpu()
            differences = torch.sub(before, after, out=after).mul_(weights)
            kl[place, here] = _summed(differences).cpu()
    return kl, loss


@torch.no_grad()
def losses(
    model: Any, stream: Float[Tensor, "pos d_model"], targets: Int[Tensor, " pos"]
) -> Float[np.ndarray, " pos"]:
    """The cross-entropy of the token that comes next at each position, in nats."""
    found = [
        -_of(log_probabilities(model, stream[start : start + ROWS]), targets[start : start + ROWS]).cpu()
        for start in range(0, len(targets), ROWS)
    ]
    return torch.cat(found).double().numpy()


def log_probabilities(model: Any, stream: Float[Tensor, "pos d_model"]) -> Float[Tensor, "pos d_vocab"]:
    """Of every next token, in float32."""
    return logits_of(model, stream).log_softmax(-1)


def _summed(differences: Float[Tensor, "pos d_vocab"]) -> Float[Tensor, " pos"]:
    """Over the vocabulary, in float64; on the CPU where the device has none."""
    if not has_float64(differences.device):
        differences = differences.cpu()
    return differences.sum(-1, dtype=torch.float64)


def has_float64(device: torch.device) -> bool:
    """Whether a device computes in float64: Apple's does not."""
    return device.type != "mps"


def _of(log_probs: Float[Tensor, "pos d_vocab"], targets: Int[Tensor, " pos"]) -> Float[Tensor, " pos"]:
    return log_probs.gather(1, targets[:, None].to(log_probs.device))[:, 0]


def row_means(
    values: Float[np.ndarray, "*cell pos"], counts: Int[np.ndarray, " row"]
) -> Float[np.ndarray, "*cell row"]:
    """The mean over each row's positions, where rows of so many positions stand one behind the other."""
    starts = np.cumsum(counts) - counts
    return np.add.reduceat(values, starts, axis=-1) / counts
