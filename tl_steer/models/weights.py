"""A model's weights: TransformerLens's processing, the memory layout of the components, content hashes."""

import hashlib
import logging
import zlib
from collections.abc import Iterator, Mapping, MutableMapping
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary
from transformer_lens.utilities import softcap_enabled
from transformer_lens.utilities.architectures import POST_NORM_ARCHITECTURES

from .._util.validation import checked
from .backend import HookedModel, architecture_of, is_bridge

logger = logging.getLogger(__name__)

SCALAR_CENTRING = "scalar_centring"  # not one of TransformerLens's
PROCESSING = (
    "fold_ln", "center_writing_weights", "center_unembed", "fold_value_biases",
    "refactor_factored_attn_matrices", SCALAR_CENTRING,
)  # fmt: skip
USUAL_PROCESSING = dict.fromkeys(PROCESSING[:4], True)

# For each weight, the order of its axes in memory that makes the component's own rearrangement a view.
_ATTENTION = dict.fromkeys(("W_Q", "W_K", "W_V", "_W_K", "_W_V"), (0, 2, 1)) | {"W_O": (2, 0, 1)}
_GATED_MLP = dict.fromkeys(("W_gate", "W_in", "W_out"), (1, 0))
_UNEMBED = {"W_U": (1, 0)}

INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by bytes per entry

_digests = WeakIdKeyDictionary()  # by weight: its digest, and its state when it was hashed


def processing_steps(processing: bool | Mapping[str, bool]) -> dict[str, bool]:
    """Each processing step, and whether it was requested."""
    chosen = (USUAL_PROCESSING if processing else {}) if isinstance(processing, bool) else dict(processing)
    if unknown := set(chosen) - set(PROCESSING):
        raise ValueError(f"unknown processing {sorted(unknown)}: expected any of {', '.join(PROCESSING)}.")
    if chosen.get(SCALAR_CENTRING) and chosen.get("center_writing_weights"):
        raise ValueError(f"processing: {SCALAR_CENTRING} or center_writing_weights: expected at most one.")
    return {step: bool(chosen.get(step, False)) for step in PROCESSING}


def possible_steps(steps: Mapping[str, bool], cfg: Any) -> dict[str, bool]:
    """The steps without those that would change this architecture's predictions, which are logged.

    TransformerLens's `from_pretrained` leaves out the same ones.
    """
    architecture = architecture_of(cfg)
    post_norm = architecture in POST_NORM_ARCHITECTURES
    shortformer = cfg.positional_embedding_type == "shortformer"
    # A bridge's config does not have the attribute.
    has_sinks = getattr(cfg, "use_attention_sinks", False) or architecture == "GptOssForCausalLM"
    impossible = {
        "fold_ln": post_norm or shortformer,  # no norm before a sublayer to fold
        "center_writing_weights": post_norm or shortformer,
        # A soft cap is not invariant to a constant added to all logits.
        "center_unembed": shortformer or softcap_enabled(cfg.output_logits_soft_cap),
        # The weights of a head do not sum to 1, so a value bias is not added in full.
        "fold_value_biases": has_sinks,
        # Queries and keys are rotated between the two matrices.
        "refactor_factored_attn_matrices": cfg.positional_embedding_type == "rotary",
        # Only a LayerNorm removes a constant added to the residual stream.
        SCALAR_CENTRING: post_norm or shortformer or cfg.normalization_type not in ("LN", "LNPre"),
    }
    if left_out := ", ".join(sorted(step for step in impossible if impossible[step] and steps.get(step))):
        message = "%s cannot have %s: left out, since its predictions would change; see identify(model)"
        logger.warning(message, cfg.model_name, left_out)
    return {step: chosen and not impossible[step] for step, chosen in steps.items()}


def centre_by_scalars(weights: MutableMapping[str, Tensor]) -> None:
    """Subtract from each embedding, W_O, b_O, W_out and b_out its one mean over all entries, in place.

    The study did so with gpt2-xl's wte, wpe and c_proj. It adds one constant per position to all d_model
    entries of the residual stream, which every LayerNorm removes; TransformerLens's `center_writing_weights`
    subtracts a mean over d_model per row instead. The unembedding is not changed, so logits stay the same.
    (With the study's tied weights all logits of a position move by one constant.)
    """
    for name, weight in weights.items():
        if name.endswith(("embed.W_E", "pos_embed.W_pos", ".W_O", ".b_O", ".W_out", ".b_out")):
            weights[name] = (weight - weight.double().mean()).to(weight.dtype)


def optimize_layout(model: Any) -> None:
    """Store weights with the strides that components rearrange them to on every call; in place.

    `HookedTransformer` 3.9 copies W_Q, W_K, W_V, W_O, W_U and the weights of gated MLPs each time they run,
    which is most of a decode step. With these strides the copies are views; logits are equal to the bit.
    `safetensors.save_file(model.state_dict())` then needs `restore_layout(model)` first.
    `load_state_dict(assign=True)` undoes it: slower, never wrong.
    """
    for weight, order in _copied_weights(model):
        inverse = torch.tensor(order).argsort().tolist()
        weight.data = weight.data.permute(order).contiguous().permute(inverse)


@checked
def restore_layout(model: HookedModel) -> None:
    """Store every weight of `model` contiguously again, as TransformerLens loads it; in place."""
    for weight, _ in _copied_weights(model):
        weight.data = weight.data.contiguous()


def _copied_weights(model: Any) -> Iterator[tuple[nn.Parameter, tuple[int, ...]]]:
    if is_bridge(model):  # transformers' components copy nothing
        return
    from transformer_lens.components import GatedMLP, Unembed
    from transformer_lens.components.abstract_attention import AbstractAttention

    components = ((AbstractAttention, _ATTENTION), (GatedMLP, _GATED_MLP), (Unembed, _UNEMBED))
    for module in model.modules():
        orders = next((orders for component, orders in components if isinstance(module, component)), {})
        for name, weight in module.named_parameters(recurse=False):
            if name in orders and weight.is_floating_point():
                yield weight, orders[name]


def weight_digests(model: Any) -> dict[str, str]:
    """Content hash (16 hex digits) of each weight by name, whatever its memory layout; "" on device "meta".

    A weight is hashed again only if its checksum has changed. Its version counter would not do: edits through
    `.data` and NumPy do not increase it.
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
    """CRC of the bits in memory order, which needs no copy; on a GPU, of their sums by row and by column."""
    if weight.device.type != "cpu":
        rows = weight.view(INTEGERS[weight.element_size()]).reshape(len(weight) if weight.ndim else 1, -1)
        weight = torch.cat([rows.sum(0), rows.sum(1)])
    by_stride = sorted(range(weight.ndim), key=lambda axis: -weight.stride(axis))
    return zlib.crc32(_bytes(weight.permute(by_stride)))


def _bytes(weight: Tensor) -> UInt8[np.ndarray, " byte"]:
    return weight.cpu().contiguous().flatten().view(torch.uint8).numpy()
