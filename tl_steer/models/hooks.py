"""Names of layers and hooks, resolved in one place.

A *layer* is a block's 0-based index, negatives from the end. A *hook* is the short name that
TransformerLens's `get_act_name` takes.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
from transformer_lens.hook_points import HookPoint
from transformer_lens.utilities import get_act_name

Layer = int | np.integer  # what a table of layers gives, too
Layers = Layer | Iterable[Layer] | None

HOOKS = ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out", "z")


def resolve_layers(layers: Layers, n_layers: int) -> tuple[int, ...]:
    """Layers as 0-based indices in the order given; `None` means all.

    Raises:
        IndexError: a layer outside −n_layers … n_layers−1.
        ValueError: no layer, or one named twice.
    """
    if layers is None:
        return tuple(range(n_layers))
    given = (layers,) if isinstance(layers, Layer) else tuple(layers)
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
    points = model.hook_dict
    name = get_act_name(hook, layer) if hook in HOOKS else None
    if name not in points:
        known = [other for other in HOOKS if get_act_name(other, layer) in points]
        raise ValueError(
            f"hook {hook!r} does not exist at layer {layer} of {model.cfg.model_name}; "
            f"this model has {', '.join(known)}."
        )
    return points[name]


def hook_width(model: Any, hook: str) -> int:
    """Numbers a position holds at a hook: `d_model`, or `n_heads · d_head` for "z"."""
    return model.cfg.n_heads * model.cfg.d_head if hook == "z" else model.cfg.d_model
