"""Exchange in memory, with repeng and steering-vectors, and the checks that all formats share.

repeng's `directions[N]` and steering-vectors' `layer_activations[N]` are added to the output of block N.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ..._util.validation import checked
from ...models import HookedModel, hook_point, hook_width, identify
from ..vectors import SteeringVector, SteeringVectors

OUTPUT = "resid_post"  # a block's output, the one hook that all of them know
BLOCK = "decoder_block"


@checked
def to_repeng(
    vectors: SteeringVectors | SteeringVector, *, model_type: str | None = None, force: bool = False
) -> Any:
    """A `repeng.ControlVector` with these vectors.

    Args:
        vectors, force: as for `save_pt`.
        model_type: the Hugging Face model's `config.model_type`; by default the model's name.

    Raises as `save_pt`, and ImportError if repeng cannot be imported.

    `ControlModel(hf_model, layer_ids)` needs a direction for each of its layers: give it `vectors.layers`.
    The coefficient of `set_control` is the multiplier here.
    """
    rows = rows_for(vectors, "repeng", force=force)
    try:
        from repeng import ControlVector
    except (ImportError, AttributeError) as error:
        raise ImportError(
            f"to_repeng needs the package 'repeng': pip install repeng ({error}). repeng 0.4 needs "
            "numpy.float_, which numpy 2 lacks: set `numpy.float_ = numpy.float64` before its first import."
        ) from error
    directions = {layer: row.numpy() for layer, row in rows.items()}
    return ControlVector(model_type=model_type or vectors.identity.name, directions=directions)


@checked
def from_repeng(control_vector: Any, model: HookedModel) -> SteeringVectors:
    """The vectors of a `repeng.ControlVector`, for `model`.

    Args:
        control_vector: anything with `directions`, a mapping from a block's index to an array "d_model".
        model: the model they are meant for.

    Returns:
        Vectors as `load_pt` returns them. Directions trained by repeng have length 1: `scaled_to(dose=…)`
        gives them another.

    Raises TypeError for an object without directions, and as `load_pt` for those of another model.
    """
    rows = _mapping(control_vector, "directions", "a ControlVector of repeng")
    model_type = str(getattr(control_vector, "model_type", ""))
    return imported(rows, model, "repeng ControlVector", model_type=model_type)


@checked
def to_steering_vectors(vectors: SteeringVectors | SteeringVector, *, force: bool = False) -> Any:
    """A `steering_vectors.SteeringVector` with these vectors, of layer type "decoder_block".

    Args:
        vectors, force: as for `save_pt`.

    Raises as `save_pt`, and ImportError if steering-vectors is not installed.

    The multiplier of its `apply` is the multiplier here; by default it adds at every token, padding included.
    """
    rows = rows_for(vectors, "steering-vectors", force=force)
    try:
        import steering_vectors
    except ImportError as error:
        raise ImportError("to_steering_vectors needs: pip install steering-vectors") from error
    return steering_vectors.SteeringVector(layer_activations=rows, layer_type=BLOCK)


@checked
def from_steering_vectors(steering_vector: Any, model: HookedModel) -> SteeringVectors:
    """The vectors of a `steering_vectors.SteeringVector`, for `model`, as `load_pt` returns them.

    Args:
        steering_vector: anything with `layer_activations`, a mapping from a block's index to a tensor
            "d_model", and `layer_type`.
        model: the model they are meant for.

    Raises TypeError for an object without layer activations, ValueError for another layer type than
    "decoder_block", and as `load_pt`.
    """
    rows = _mapping(steering_vector, "layer_activations", "a SteeringVector of steering-vectors")
    layer_type = getattr(steering_vector, "layer_type", None)
    if layer_type != BLOCK:
        raise ValueError(
            f"layer type {layer_type!r} is not a block's output: expected {BLOCK!r} (resid_post)."
        )
    return imported(rows, model, "steering-vectors SteeringVector")


def rows_for(
    vectors: SteeringVectors | SteeringVector, target: str, *, force: bool = False
) -> dict[int, Float[Tensor, " d_model"]]:
    """The vectors by layer, float32, for the library or format `target`. Raises as `save_pt`."""
    if vectors.hook != OUTPUT:
        raise ValueError(
            f"{target} adds to a block's output; these vectors are at {vectors.hook}. Where a vector may be "
            f'written elsewhere than it was read, place it: vectors[layer].at(layers=…, hook="{OUTPUT}").'
        )
    if vectors.has_positions:
        raise ValueError(f"{target} has one vector per layer; these are one per position ({vectors.method}).")
    if vectors.identity.centred and not force:
        raise ValueError(
            f"these vectors are of {vectors.identity.name} with centred weights: added in {target} they give "
            "the same logits, projected out there they do not. Load the model with processing=False and "
            "estimate them again, or pass force."
        )
    rows = vectors.values.detach().float().cpu().reshape(len(vectors.layers), -1)
    return {layer: row.clone() for layer, row in zip(vectors.layers, rows, strict=True)}


def imported(
    rows: Mapping[int, Any], model: Any, source: str, *, hook: str = OUTPUT, **info: Any
) -> SteeringVectors:
    """Vectors of another library or file, as vectors of `model`.

    Args:
        rows: one vector per layer, 0-based (negatives count from the model's end), tensors or arrays.
        source: where they come from, for messages and `info["from"]`.

    Returns:
        Layers ascending, method "imported", `stream_norm` NaN: no other format stores it.

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
    values = {layer % n_layers: _row(row, layer, source) for layer, row in rows.items()}
    if len(values) < len(rows):
        raise ValueError(f"{source} names the same block twice (negatives count from the end): {list(rows)}.")
    layers = tuple(sorted(values))
    for layer in layers:
        hook_point(model, hook, layer)  # raises if it does not exist
    width = hook_width(model, hook)
    if wrong := [len(row) for row in values.values() if len(row) != width]:
        raise ValueError(
            f"{source} has vectors of {wrong[0]} numbers; {hook} of {name} has {width}: they are of another "
            "model."
        )
    stacked, norms = torch.stack([values[layer] for layer in layers]), torch.full((len(layers),), torch.nan)
    info = {"from": source, **info}
    return SteeringVectors(stacked, layers, hook, "imported", norms, identify(model), info)


def _mapping(source: Any, attribute: str, expected: str) -> dict[int, Any]:
    rows = getattr(source, attribute, None)
    if not isinstance(rows, dict):
        raise TypeError(f"{expected} is needed, not {type(source).__name__}.")
    return {int(layer): row for layer, row in rows.items()}


def _row(row: Any, layer: int, source: str) -> Float[Tensor, " d_hook"]:
    if isinstance(row, np.ndarray) and row.dtype.kind == "f":
        row = torch.from_numpy(np.array(row, dtype=np.float32))
    if not isinstance(row, Tensor) or not row.is_floating_point():
        dtype = getattr(row, "dtype", type(row).__name__)
        raise ValueError(f"{source}, layer {layer}: {dtype}, not floating-point numbers.")
    if row.ndim != 1 or row.layout is not torch.strided:
        raise ValueError(f"{source}, layer {layer}: shape {tuple(row.shape)}; one axis is allowed, dense.")
    row = row.detach().float().cpu().clone()
    if not bool(torch.isfinite(row).all()):
        raise ValueError(f"{source}, layer {layer}: holds NaN or infinite numbers.")
    return row
