"""What every exchange checks: that the other side can hold these vectors, and that they are of this model."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ...models import hook_point, hook_width, identify
from ..vectors import SteeringVector, SteeringVectors

OUTPUT = "resid_post"  # a block's output: the one place that all of them know


def rows_for(
    vectors: SteeringVectors | SteeringVector, to: str, *, force: bool = False
) -> dict[int, Float[Tensor, " d_model"]]:
    """The vectors by layer, float32, as another library can hold them.

    Args:
        to: the other side, for messages.
        force: also those of centred weights.

    Raises:
        ValueError: another hook, one vector a position, or centred weights.
    """
    if vectors.hook != OUTPUT:
        raise ValueError(
            f"{to} adds to a block's output; these vectors are at {vectors.hook}. Where a vector may be "
            f'written elsewhere than it was read, place it: vectors[layer].at(layers=…, hook="{OUTPUT}").'
        )
    if vectors.has_positions:
        raise ValueError(
            f"{to} has one vector a layer; these are one a position ({vectors.method}). Give the mean over "
            "positions, or keep them in tl_steer."
        )
    if vectors.identity.centred and not force:
        raise ValueError(
            f"these vectors are of {vectors.identity.name} with centred weights, whose stream lacks a mean "
            f"that it has in {to}. Added there they give the same logits; projected out there they do "
            "not. Load the model with processing=False and make them anew, or give force=True."
        )
    rows = vectors.values.detach().float().cpu().reshape(len(vectors.layers), -1)
    return {layer: row.clone() for layer, row in zip(vectors.layers, rows, strict=True)}


def imported(
    rows: Mapping[int, Any], model: Any, source: str, *, hook: str = OUTPUT, **info: Any
) -> SteeringVectors:
    """Vectors that came from elsewhere, as those of `model`.

    Args:
        rows: a vector a layer, 0-based (negatives count from the model's end), tensors or arrays.
        source: where they came from, for messages and `info["from"]`.

    Returns:
        Layers ascending, method "imported", `stream_norm` NaN: nobody else keeps it. For doses give the norm
        that `capture(model, prompts, layers=vectors.layers).stream_norm` measures.

    Raises:
        ValueError: no vectors, layers that the model does not have, another width, or not finite numbers.
    """
    n_layers, name = model.cfg.n_layers, model.cfg.model_name
    if not rows:
        raise ValueError(f"{source} holds no vectors.")
    if outside := sorted(layer for layer in rows if not -n_layers <= layer < n_layers):
        raise ValueError(
            f"{source} has vectors for layers {outside}; {name} has layers 0 to {n_layers - 1}: they are of "
            "another model."
        )
    found = {layer % n_layers: _row(row, layer, source) for layer, row in rows.items()}
    if len(found) < len(rows):
        raise ValueError(f"{source} names the same block twice (negatives count from the end): {list(rows)}.")
    layers = tuple(sorted(found))
    for layer in layers:
        hook_point(model, hook, layer)
        if len(found[layer]) != (width := hook_width(model, hook)):
            raise ValueError(
                f"{source} has vectors of {len(found[layer])} numbers; {hook} of {name} has {width}: they "
                "are of another model."
            )
    return SteeringVectors(
        torch.stack([found[layer] for layer in layers]),
        layers,
        hook,
        "imported",
        torch.full((len(layers),), float("nan")),
        identify(model),
        {"from": source, **info},
    )


def missing(name: str, package: str) -> ImportError:
    """The error to raise where another library is not there."""
    return ImportError(f"{name} needs the package {package!r}: pip install {package}")


def _row(row: Any, layer: int, source: str) -> Float[Tensor, " d_hook"]:
    if isinstance(row, np.ndarray):
        if row.dtype.kind != "f":
            raise ValueError(f"{source}, layer {layer}: {row.dtype} numbers, not floating-point ones.")
        row = torch.from_numpy(np.array(row, dtype=np.float32))
    if not isinstance(row, Tensor) or not row.is_floating_point():
        kind = row.dtype if isinstance(row, Tensor) else type(row).__name__
        raise ValueError(f"{source}, layer {layer}: {kind}, not a tensor of floating-point numbers.")
    if row.ndim != 1 or row.layout is not torch.strided:
        raise ValueError(f"{source}, layer {layer}: shape {tuple(row.shape)}; one axis is allowed, dense.")
    row = row.detach().float().cpu().clone()
    if not bool(torch.isfinite(row).all()):
        raise ValueError(f"{source}, layer {layer}: holds NaN or infinite numbers.")
    return row
