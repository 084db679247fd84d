"""A model's weights in a few digits, so that two moments, or two models, can be told apart."""

import hashlib
from typing import Any

import torch
from torch import Tensor


def weight_digests(model: Any) -> dict[str, str]:
    """16 hexadecimal digits of the bits of each weight, by its name; whatever the memory layout.

    Of weights that hold no numbers (on the "meta" device) there are none.
    """
    return {name: _digest(weight) for name, weight in model.named_parameters()}


def _digest(weight: Tensor) -> str:
    if weight.is_meta:
        return ""
    content = weight.detach().cpu().contiguous().flatten().view(torch.uint8)
    return hashlib.sha256(content.numpy()).hexdigest()[:16]
