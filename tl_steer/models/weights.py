"""A model's weights in a few digits, so that two moments, or two models, can be told apart."""

import hashlib
import zlib
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by bytes per entry

_digests = WeakIdKeyDictionary()  # by weight: its state when it was hashed, and its digest


def weight_digests(model: Any) -> dict[str, str]:
    """16 hexadecimal digits of the bits of each weight, by its name; whatever the memory layout.

    Of weights that hold no numbers (on the "meta" device) there are none. A weight is hashed again where its
    checksum has changed. Its version counter would not do: edits through `.data` and NumPy leave it.
    """
    return {name: _digest(weight) for name, weight in model.named_parameters()}


def _digest(weight: Tensor) -> str:
    if weight.is_meta:
        return ""
    state = (weight.data_ptr(), weight.dtype, weight.shape, weight.stride(), _checksum(weight.detach()))
    if _digests.get(weight, ("", None))[1] != state:
        _digests[weight] = (hashlib.sha256(_bytes(weight.detach())).hexdigest()[:16], state)
    return _digests[weight][0]


def _checksum(weight: Tensor) -> int:
    """Of the bits in memory order, which needs no copy; on a GPU of their sums by row and by column."""
    if weight.device.type != "cpu":
        rows = weight.view(INTEGERS[weight.element_size()]).reshape(len(weight) if weight.ndim else 1, -1)
        weight = torch.cat([rows.sum(0), rows.sum(1)])
    by_stride = sorted(range(weight.ndim), key=lambda axis: -weight.stride(axis))
    return zlib.crc32(_bytes(weight.permute(by_stride)))


def _bytes(weight: Tensor) -> UInt8[np.ndarray, " byte"]:
    return weight.cpu().contiguous().flatten().view(torch.uint8).numpy()
