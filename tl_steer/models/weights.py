"""A model's weights in a few numbers, so that two moments, or two models, can be told apart."""

from typing import Any

import torch
from torch import Tensor

_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def weight_sums(model: Any) -> dict[str, int]:
    """A sum over the bits of every weight: alike only where no single number has changed.

    Numbers that change places within a weight are not seen. One pass, whatever the memory layout. Of weights
    that hold no numbers (on the "meta" device) it is 0.
    """
    return {name: _sum_of_bits(weight) for name, weight in model.named_parameters()}


def _sum_of_bits(weight: Tensor) -> int:
    weight = weight.detach()
    if weight.is_meta:
        return 0
    if weight.is_complex():
        weight = torch.view_as_real(weight)
    return int(weight.view(_BITS[weight.element_size()]).sum(dtype=torch.int64))
