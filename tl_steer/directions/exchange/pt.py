"""Plain tensors in `.pt` files: read with `torch.load(weights_only=True)`, never otherwise."""

import io
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...arguments import checked
from ...models import HookedModel, Layers, resolve_layers
from ...writing import atomic
from ..vectors import SteeringVector, SteeringVectors
from .checks import OUTPUT, imported, rows_for


@checked
def load_pt(
    path: str | Path, model: HookedModel, *, layers: Layers = None, hook: str = OUTPUT
) -> SteeringVectors:
    """Vectors from a `.pt` file of tensors, for `model`.

    Args:
        path: what `torch.save` wrote: a tensor "layer d_hook", a tensor "d_hook" (then `layers` says which
            one), or a dictionary from layers (0, or "0") to tensors "d_hook".
        model: the model they are meant for.
        layers: which blocks (0-based) the rows belong to, in the file's order; by default all of the model's.
            Of a dictionary, which of its layers to take; by default all of them.
        hook: where the file's vectors belong. A file does not say: ask whoever made it.

    Returns:
        Method "imported", the identity of `model`, `stream_norm` NaN (`capture` measures it).

    Raises:
        ValueError: a file with anything but tensors (a pickle with code is refused, and not run), other
            shapes than these, layers or a width that the model does not have.

    Hugging Face's `hidden_states[i + 1]` is the output of block i, but for the last one, which is after the
    final norm: vectors that were made of `hidden_states` without the first belong to layers 0, 1, ….
    """
    held = _tensors(path)
    source = f"file {Path(path).name}"
    if isinstance(held, Mapping):
        rows = _by_layer(held, source)
        chosen = None if layers is None else resolve_layers(layers, model.cfg.n_layers)
        if chosen and (missing := [layer for layer in chosen if layer not in rows]):
            raise ValueError(f"{source} has no vector for layers {missing}; it has {sorted(rows)}.")
        return imported({layer: rows[layer] for layer in chosen or rows}, model, source, hook=hook)
    if held.ndim not in (1, 2):
        raise ValueError(f"{source}: a tensor of shape {tuple(held.shape)}; give layer d_hook, or d_hook.")
    places = resolve_layers(layers, model.cfg.n_layers)
    rows = held[None] if held.ndim == 1 else held
    if len(rows) != len(places):
        raise ValueError(
            f"{source} has {len(rows)} vectors for {len(places)} layers of {model.cfg.model_name}: say with "
            "layers=[…] which blocks they belong to."
        )
    return imported(dict(zip(places, rows, strict=True)), model, source, hook=hook)


@checked
def save_pt(vectors: SteeringVectors | SteeringVector, path: str | Path, *, force: bool = False) -> None:
    """Write a dictionary from layers (0-based) to tensors "d_model", for `torch.load(weights_only=True)`.

    Args:
        vectors: one vector a layer at "resid_post".
        path: where to; the file is there whole or not at all.
        force: also vectors of centred weights.

    Raises:
        ValueError: another hook, one vector a position, or centred weights.
        OSError: the file cannot be written.

    Nothing else is kept, not even which model they are of: for a colleague who has tl_steer use `save`.
    """
    rows = rows_for(vectors, "a plain .pt file", force=force)
    content = io.BytesIO()  # torch tells of files that it cannot write with a RuntimeError
    torch.save(rows, content)
    with atomic(path) as scratch:
        scratch.write_bytes(content.getvalue())


def _tensors(path: str | Path) -> Any:
    content = io.BytesIO(Path(path).read_bytes())  # what cannot be opened is told from what is damaged
    try:
        held = torch.load(content, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a damaged or hostile file makes of it
        held = re.search(r"GLOBAL ([\w.]+)", str(error))  # the rest is torch's advice to run it
        raise ValueError(
            f"{path} holds something else than plain tensors, or is damaged; it was not run "
            f"({held[1] if held else type(error).__name__}). Whoever made it can save tensors alone: "
            "torch.save({layer: tensor, …}, path)."
        ) from error
    if not isinstance(held, Tensor | Mapping):
        raise ValueError(f"{path} holds a {type(held).__name__}, not a tensor or a dictionary of tensors.")
    return held


def _by_layer(held: Mapping[Any, Any], source: str) -> dict[int, Any]:
    rows: dict[int, Any] = {}
    for key, row in held.items():
        number = int(key) if isinstance(key, str) and key.isdecimal() else key
        if type(number) is not int or number < 0:
            raise ValueError(f"{source}: the key {key!r} is not a layer; give 0, 1, … or '0', '1', ….")
        if number in rows:
            raise ValueError(f"{source} has two vectors for layer {number}.")
        rows[number] = row
    return rows
