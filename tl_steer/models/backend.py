"""One interface to TransformerLens's two model classes: hooks, passes without logits, unembedding.

A `HookedTransformer` (TransformerLens 3) has converted weights, and can start and stop at a layer, which the
shared engine needs. A `TransformerBridge` (3.9 and 4) puts hooks into the Hugging Face model and runs whole
passes: of any model that transformers loads, also in 4 bits or over several devices. Hook names are the same.
"""

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformer_lens.hook_points import HookPoint
from transformer_lens.utilities import get_act_name
from transformer_lens.utilities.activation_functions import apply_softcap

from . import bridge

try:
    from transformer_lens import HookedTransformer
except ImportError:  # TransformerLens 4
    HookedTransformer = None

BACKENDS = ("hooked", "bridge")
DEFAULT_BACKEND = "bridge" if HookedTransformer is None else "hooked"
HOOKS = ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out", "z")


@dataclass(frozen=True)
class Start:
    """Where a pass starts: at a layer, with the residual stream "batch pos d_model" before it."""

    layer: int
    stream: Tensor


Layers = int | Sequence[int] | None
Unembedding = Callable[[Float[Tensor, "row d_model"]], Float[Tensor, "row d_vocab"]]


@runtime_checkable
class HookedModel(Protocol):
    """`HookedTransformer` or `TransformerBridge`."""

    cfg: Any
    tokenizer: Any
    run_with_hooks: Any


def is_hooked(model: Any) -> bool:
    """Whether a model is a `HookedTransformer`; False for subclasses, which may compute something else."""
    return HookedTransformer is not None and type(model) is HookedTransformer


def is_bridge(model: Any) -> bool:
    """Whether a model runs a Hugging Face model."""
    return getattr(model, "original_model", None) is not None


def architecture_of(cfg: Any) -> str | None:
    """The Hugging Face class name, from the config of either model class."""
    return getattr(cfg, "architecture", None) or getattr(cfg, "original_architecture", None)


def resolve_layers(layers: Layers, n_layers: int) -> tuple[int, ...]:
    """Layers as 0-based indices in the order given; `None` means all.

    Raises IndexError for a layer outside −n_layers … n_layers−1, ValueError for none or one given twice.
    """
    if layers is None:
        return tuple(range(n_layers))
    requested = (layers,) if isinstance(layers, int) else tuple(layers)
    if not requested:
        raise ValueError("no layers given: expected at least one. Pass None for all.")
    for layer in requested:
        if not -n_layers <= layer < n_layers:
            raise IndexError(
                f"layer {layer} is out of range: this model has {n_layers} layers, "
                f"0 to {n_layers - 1} (or {-n_layers} to -1 from the end)."
            )
    resolved = tuple(int(layer) % n_layers for layer in requested)
    if len(set(resolved)) < len(resolved):
        raise ValueError(f"layers {requested} name the same block twice (negatives count from the end).")
    return resolved


def hook_point(model: Any, hook: str, layer: int) -> HookPoint:
    """The model's `HookPoint` of a short hook name at a resolved layer.

    Raises ValueError if this architecture lacks the hook, with the hooks it has.
    """
    point = find_hook_point(model, hook, layer) if hook in HOOKS else None
    if point is None:
        known = [other for other in HOOKS if find_hook_point(model, other, layer) is not None]
        raise ValueError(
            f"hook {hook!r} does not exist at layer {layer} of {model.cfg.model_name}; "
            f"this model has {', '.join(known)}."
        )
    return point


def require_changeable(model: Any, hook: str, layer: int) -> None:
    """Raise `ValueError` if a hook does not exist, or can be read but not changed."""
    hook_point(model, hook, layer)
    if is_bridge(model) and hook in bridge.READ_ONLY:
        raise ValueError(
            f"hook {hook!r} can be read but not changed on a TransformerBridge: a change would reach the MLP "
            f"but not the residual stream. {bridge.READ_ONLY[hook]}; or load with backend='hooked'."
        )


def hook_width(model: Any, hook: str) -> int:
    """Size of an activation at a hook: `d_model`, or `n_heads · d_head` for "z"."""
    return model.cfg.n_heads * model.cfg.d_head if hook == "z" else model.cfg.d_model


def find_hook_point(model: Any, hook: str, layer: int) -> HookPoint | None:
    """Look up by name: a bridge's `hook_dict` is rebuilt on each access, which takes milliseconds."""
    name = get_act_name(hook, layer)
    return model.get_hook_point(name) if is_bridge(model) else model.hook_dict.get(name)


def input_device(model: Any) -> torch.device:
    """Device of the embedding, for tokens and masks; later layers may be on other devices."""
    return model.W_E.device


def new_cache(model: Any, rows: int) -> Any:
    """An empty key-value cache for `run`."""
    if is_bridge(model):
        return bridge.new_cache(model, rows)
    from transformer_lens.cache.key_value_cache import TransformerLensKeyValueCache

    return TransformerLensKeyValueCache.init_cache(model.cfg, input_device(model), rows)


def run(
    model: Any,
    tokens: Int[Tensor, "batch pos"],
    mask: Bool[Tensor, "batch pos"],
    *,
    start: "Start | None" = None,
    stop_at_layer: int | None = None,
    cache: Any = None,
) -> Float[Tensor, "batch pos d_model"]:
    """Residual stream of a left-padded batch after the last block, or before `stop_at_layer` (at least 1).

    Args:
        tokens, mask: of the new tokens only, if there is a cache.
        start: layers before it do not run; without a cache only.
        cache: from `new_cache`, appended to.
    """
    stop = model.cfg.n_layers if stop_at_layer is None else stop_at_layer
    if is_bridge(model):
        return bridge.run(model, tokens, mask, stop, cache, start)
    options = {"attention_mask": mask.long(), "stop_at_layer": stop, "past_kv_cache": cache}
    if start is not None:
        return model(start.stream, start_at_layer=start.layer, **options)
    return model(tokens, **options)


def unembedded(model: Any, stream: Float[Tensor, "batch d_model"]) -> Float[Tensor, "batch d_vocab"]:
    """Logits of the residual stream after the last block: final norm, unembedding, scaling and soft cap."""
    if is_bridge(model):
        return bridge.unembedded(model, stream)
    return model(stream[:, None], start_at_layer=model.cfg.n_layers)[:, 0]


def unembedding(model: Any, dtype: torch.dtype, *, norm: bool = True) -> Unembedding:
    """Function from residual streams to logits, computed in `dtype`; the model is not changed.

    Without `norm` it is linear, for the contribution of one part of the residual stream: no division by the
    length, no biases, no soft cap.
    """
    if is_bridge(model):
        return bridge.unembedding(model, dtype, norm)
    unembed = _in_dtype(model.unembed, dtype)
    if norm:
        final, cap = final_norm(model, dtype), model.cfg.output_logits_soft_cap
        return lambda rows: apply_softcap(unembed(final(rows)[:, None])[:, 0], cap)
    final = _in_dtype(getattr(model, "ln_final", None), dtype)
    weight = getattr(final, "w", torch.ones((), device=unembed.W_U.device))
    centres = str(model.cfg.normalization_type).startswith("LN")
    return lambda rows: bridge.scaled(rows, weight, centres) @ unembed.W_U


def final_norm(model: Any, dtype: torch.dtype) -> Callable[[Tensor], Float[Tensor, "row d_model"]]:
    """The final norm of a `HookedTransformer`, from rows in `dtype` to rows in `dtype`."""
    if model.cfg.normalization_type is None:
        return lambda rows: rows
    final = _in_dtype(model.ln_final, dtype)
    return lambda rows: final(rows[:, None])[:, 0]


def can_unembed_in_float32(model: Any) -> bool:
    """Whether the unembedding has floating-point weights; a bridge's may be packed in 4 or 8 bits."""
    if not is_bridge(model):
        return True
    return all(weight.is_floating_point() for weight in model.unembed.original_component.parameters())


def _in_dtype(module: Any, dtype: torch.dtype) -> Any:
    """The module, or a copy in `dtype` whose output is not rounded to the model's dtype either."""
    if module is None or module.cfg.dtype == dtype:
        return module
    module = deepcopy(module).to(dtype)
    module.cfg.dtype = dtype
    return module
