"""Names of layers and hooks, resolved in one place.

A *layer* is a block's 0-based index, negatives from the end. A *hook* is the short name that
TransformerLens's `get_act_name` takes.
"""

from collections.abc import Sequence
from typing import Any

from transformer_lens.hook_points import HookPoint
from transformer_lens.utilities import get_act_name

from .backend import is_bridge
from .bridge import READ_ONLY

Layers = int | Sequence[int] | None

HOOKS = ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out", "z")


def resolve_layers(layers: Layers, n_layers: int) -> tuple[int, ...]:
    """Layers as 0-based indices in the order given; `None` means all.

    Raises:
        IndexError: a layer outside −n_layers … n_layers−1.
        ValueError: no layer, or one named twice.
    """
    if layers is None:
        return tuple(range(n_layers))
    given = (layers,) if isinstance(layers, int) else tuple(layers)
    for layer in given:
        if not -n_layers <= layer < n_layers:
            raise IndexError(
                f"layer {layer} is out of range: this model has {n_layers} layers, "
                f"0 to {n_layers - 1} (or {-n_layers} to -1 from the end)."
            )
    resolved = tuple(int(layer) % n_layers for layer in given)
    if not resolved:
        raise ValueError("no layers given; pass at least one, or None for all.")
    if len(set(resolved)) < len(resolved):
        raise ValueError(f"layers {given} name the same block twice (negatives count from the end).")
    return resolved


def hook_point(model: Any, hook: str, layer: int) -> HookPoint:
    """The model's own `HookPoint` for a short hook name at a resolved layer.

    Raises:
        ValueError: the hook is unknown, or this architecture lacks it; lists those it has.
    """
    found = _point(model, hook, layer) if hook in HOOKS else None
    if found is None:
        known = [other for other in HOOKS if _point(model, other, layer) is not None]
        raise ValueError(
            f"hook {hook!r} does not exist at layer {layer} of {model.cfg.model_name}; "
            f"this model has {', '.join(known)}."
        )
    return found


def require_changeable(model: Any, hook: str, layer: int) -> None:
    """Raise `ValueError` where a hook does not exist, or can be read but not changed."""
    hook_point(model, hook, layer)
    if is_bridge(model) and hook in READ_ONLY:
        raise ValueError(
            f"hook {hook!r} can be read but not changed on a TransformerBridge: a change would reach the MLP "
            f"and not the stream beside it. {READ_ONLY[hook]}; for the rest load with backend='hooked'."
        )


def hook_width(model: Any, hook: str) -> int:
    """Numbers a position holds at a hook: `d_model`, or `n_heads · d_head` for "z"."""
    return model.cfg.n_heads * model.cfg.d_head if hook == "z" else model.cfg.d_model


def _point(model: Any, hook: str, layer: int) -> HookPoint | None:
    """Looked up by name: of a bridge, making the whole dictionary each time would take milliseconds."""
    name = get_act_name(hook, layer)
    return model.get_hook_point(name) if is_bridge(model) else model.hook_dict.get(name)
