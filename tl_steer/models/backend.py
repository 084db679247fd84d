"""The two things that TransformerLens calls a model, behind one set of functions.

A `HookedTransformer` (TransformerLens 3) is TransformerLens's own implementation, with weights converted; it
can start and stop at a layer, which is what the engine's shortcuts are made of. A `TransformerBridge` (3.9
and 4) runs the Hugging Face model itself, with hooks put into it: whatever transformers loads, 4-bit and
spread over devices too, in whole passes. Hook names are the same; what differs is here and in `bridge`.
"""

from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from . import bridge

try:
    from transformer_lens import HookedTransformer
except ImportError:  # TransformerLens 4
    HookedTransformer = None

BACKENDS = ("hooked", "bridge")
DEFAULT_BACKEND = "bridge" if HookedTransformer is None else "hooked"


@runtime_checkable
class HookedModel(Protocol):
    """`HookedTransformer` or `TransformerBridge`."""

    cfg: Any
    tokenizer: Any
    run_with_hooks: Any


def is_hooked(model: Any) -> bool:
    """Whether it is a `HookedTransformer`, and not of a class derived from it."""
    return HookedTransformer is not None and type(model) is HookedTransformer


def is_bridge(model: Any) -> bool:
    """Whether it runs a Hugging Face model below it."""
    return getattr(model, "original_model", None) is not None


def input_device(model: Any) -> torch.device:
    """Where tokens and masks go: where the embedding is. Later layers may be elsewhere."""
    return model.W_E.device


def new_cache(model: Any, rows: int) -> Any:
    """An empty cache of keys and values for `run`."""
    if is_bridge(model):
        return bridge.new_cache(model, rows)
    from transformer_lens.cache.key_value_cache import TransformerLensKeyValueCache

    return TransformerLensKeyValueCache.init_cache(model.cfg, input_device(model), rows)


def run(
    model: Any,
    tokens: Int[Tensor, "batch pos"],
    mask: Bool[Tensor, "batch pos"],
    *,
    stop_at_layer: int | None = None,
    cache: Any = None,
) -> Float[Tensor, "batch pos d_model"]:
    """The stream after the last block, or before `stop_at_layer`, of a left-padded batch; no logits.

    Args:
        tokens, mask: of the new tokens alone, where there is a cache.
        stop_at_layer: at least 1.
        cache: from `new_cache`; keeps the keys, values and mask of what has run, and is added to.
    """
    stop = model.cfg.n_layers if stop_at_layer is None else stop_at_layer
    if is_bridge(model):
        return bridge.run(model, tokens, mask, stop, cache)
    return model(tokens, attention_mask=mask.long(), stop_at_layer=stop, past_kv_cache=cache)


def unembedded(model: Any, stream: Float[Tensor, "batch d_model"]) -> Float[Tensor, "batch d_vocab"]:
    """Logits of streams behind the last block: final norm, unembedding and what the model does after it."""
    if is_bridge(model):
        return bridge.unembedded(model, stream)
    return model(stream[:, None], start_at_layer=model.cfg.n_layers)[:, 0]
