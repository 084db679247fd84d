"""The same weights, stored with the strides that `HookedTransformer` (3.9) asks for on every call.

Its components transpose and copy `W_Q`, `W_K`, `W_V`, `W_O`, `W_U` and a gated MLP's weights each time they
run, which is most of a decode step. Where a weight already lies in memory the way the copy would, the copy
vanishes: shapes, names and values stay, logits are equal to the bit.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from .._util.validation import checked
from .backend import HookedModel, is_bridge

# For each weight, the order of its axes in memory that makes the component's own rearrangement a view.
_ATTENTION = {
    "W_Q": (0, 2, 1),
    "W_K": (0, 2, 1),
    "W_V": (0, 2, 1),
    "_W_K": (0, 2, 1),
    "_W_V": (0, 2, 1),
    "W_O": (2, 0, 1),
}
_GATED_MLP = {"W_gate": (1, 0), "W_in": (1, 0), "W_out": (1, 0)}
_UNEMBED = {"W_U": (1, 0)}


def optimize_layout(model: Any) -> None:
    """Re-store the weights that components copy on every call; in place, done by `load_model`.

    `safetensors.save_file(model.state_dict())` then needs `.contiguous()` on each tensor, or
    `restore_layout(model)` first. `load_state_dict(assign=True)` undoes it: slower, never wrong.
    """
    for weight, order in _copied_weights(model):
        weight.data = _stored_as(weight.data, order)


@checked
def restore_layout(model: HookedModel) -> None:
    """Store every weight of `model` contiguously again, as TransformerLens loads it; in place."""
    for weight, _ in _copied_weights(model):
        weight.data = weight.data.contiguous()


def _copied_weights(model: Any) -> Iterator[tuple[nn.Parameter, tuple[int, ...]]]:
    if is_bridge(model):  # its weights lie as transformers wants them
        return
    from transformer_lens.components import GatedMLP, Unembed
    from transformer_lens.components.abstract_attention import AbstractAttention

    kinds = ((AbstractAttention, _ATTENTION), (GatedMLP, _GATED_MLP), (Unembed, _UNEMBED))
    for module in model.modules():
        for kind, orders in kinds:
            if isinstance(module, kind):
                own = dict(module.named_parameters(recurse=False))
                found = ((own.get(name), order) for name, order in orders.items())
                yield from (
                    (weight, order)
                    for weight, order in found
                    if weight is not None and weight.is_floating_point()
                )


def _stored_as(weight: Tensor, order: tuple[int, ...]) -> Tensor:
    back = torch.tensor(order).argsort().tolist()
    return weight.permute(order).contiguous().permute(back)
