"""Plain tensors in `.pt` files: read with `torch.load(weights_only=True)`, never otherwise."""

import io
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..._util.file_io import atomic
from ..._util.validation import checked
from ...models import HookedModel, Layers, resolve_layers
from ..vectors import SteeringVector, SteeringVectors
from .in_memory import OUTPUT, imported, rows_for

HIDDEN_STATES = {"resid_pre": 0, OUTPUT: 1}  # index of hidden_states that is block 0's at this hook
# Names of blocks in modules and in common use; "hidden_states_13" is the output of block 12.
BLOCK_NAME = re.compile(
    r"(?!.*hidden)(?:[a-z_.]*[._ -])?(?:layers?|blocks?|h|l)[._ -]?(\d+)(?:\.hook_(\w+))?", re.I
)


@checked
def load_pt(
    path: str | Path,
    model: HookedModel,
    *,
    layers: Layers = None,
    hook: str = OUTPUT,
    position: int | None = None,
) -> SteeringVectors:
    """Vectors from a `.pt` file of tensors, for `model`.

    Args:
        path: a file of `torch.save`: a tensor "layer d_hook", "pos layer d_hook" (with `position`) or
            "d_hook" (then `layers` says which one), or a dictionary from layers (0, "0", "layer_13",
            "model.layers.13") to tensors "d_hook".
        model: the model they are meant for.
        layers: the blocks (0-based) that the rows belong to, in the file's order; by default all of the
            model's. Of a dictionary or of hidden states, which of their layers to take; by default all.
        hook: where the file's vectors belong. The file does not say: ask its author.
        position: index into the first axis of a tensor "pos layer d_hook", negatives from its end.

    Returns:
        Method "imported", the identity of `model`, `stream_norm` NaN (`capture` measures it).

    Raises:
        IndexError: a position that the tensor does not have.
        ValueError: a file with anything but tensors (a pickle with code is not run), other shapes than
            these, layers or a width that the model does not have.

    A tensor of one row more than the model has layers is taken for vectors of Hugging Face's `hidden_states`.
    Its first row is the input of block 0, and row i + 1 the output of block i; the last row is after the
    final norm and is not used. So at hook "resid_post" the vectors are of all layers but the last, at
    "resid_pre" of all. Without the embedding's row the file has as many rows as the model has layers: leave
    the last one out yourself.
    """
    tensors = _load_tensors(path)
    source, n_layers = f"file {Path(path).name}", model.cfg.n_layers
    chosen = None if layers is None else resolve_layers(layers, n_layers)
    if isinstance(tensors, Tensor):
        tensors = _rows(tensors, position, source)
        if len(tensors) == n_layers + 1 and hook in HIDDEN_STATES:
            tensors = dict(enumerate(list(tensors)[HIDDEN_STATES[hook] : -1]))
    elif position is not None:
        raise ValueError(f"{source} is a dictionary, which takes no position={position}. Leave it out.")
    if isinstance(tensors, Mapping):
        rows = _by_layer(tensors, source, hook)
        if chosen and (missing := [layer for layer in chosen if layer not in rows]):
            raise ValueError(f"{source} has no vector for layers {missing}; it has {sorted(rows)}.")
        return imported({layer: rows[layer] for layer in chosen or rows}, model, source, hook=hook)
    chosen = chosen or tuple(range(n_layers))
    if len(tensors) != len(chosen):
        raise ValueError(
            f"{source} has {len(tensors)} vectors for {len(chosen)} layers of {model.cfg.model_name}: say "
            "with layers=[…] which blocks they belong to."
        )
    return imported(dict(zip(chosen, tensors, strict=True)), model, source, hook=hook)


@checked
def save_pt(vectors: SteeringVectors | SteeringVector, path: str | Path, *, force: bool = False) -> None:
    """Write a dictionary from layers (0-based) to tensors "d_model", for `torch.load(weights_only=True)`.

    Args:
        vectors, path: one vector per layer at "resid_post", and the file, written atomically.
        force: also vectors of centred weights.

    Raises:
        ValueError: another hook, one vector per position, or centred weights.
        OSError: the file cannot be written.

    Nothing else is kept, not even the model's identity: for users of tl_steer use `save`.
    """
    rows = rows_for(vectors, "a plain .pt file", force=force)
    content = io.BytesIO()  # torch raises a RuntimeError for files that it cannot write
    torch.save(rows, content)
    with atomic(path) as scratch:
        scratch.write_bytes(content.getvalue())


def _load_tensors(path: str | Path) -> Any:
    content = io.BytesIO(Path(path).read_bytes())  # files that cannot be opened raise their own error
    try:
        loaded = torch.load(content, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged or hostile file may raise anything
        name = re.search(r"GLOBAL ([\w.]+)", str(error))  # the rest is torch's advice to run it
        reason = name[1] if name else type(error).__name__
        raise ValueError(
            f"{path} holds something else than plain tensors, or is damaged; it was not run ({reason}). Its "
            "author can save tensors alone: torch.save({layer: tensor, …}, path)."
        ) from error
    if not isinstance(loaded, Tensor | Mapping):
        raise ValueError(f"{path} holds a {type(loaded).__name__}, not a tensor or a dictionary of tensors.")
    return loaded


def _rows(tensor: Tensor, position: int | None, source: str) -> Tensor:
    """The tensor as rows "layer d_hook"."""
    shape = tuple(tensor.shape)
    if tensor.ndim not in (1, 2, 3):
        raise ValueError(f"{source}: a tensor of shape {shape}; give layer d_hook, or d_hook.")
    if (tensor.ndim == 3) != (position is not None):
        expected = "an index of the first axis" if tensor.ndim == 3 else "None"
        raise ValueError(f"{source}: a tensor of shape {shape} and position={position}: expected {expected}.")
    if position is not None and not -shape[0] <= position < shape[0]:
        raise IndexError(f"{source}: position={position}, but its first axis has {shape[0]} positions.")
    return tensor[None] if tensor.ndim == 1 else tensor if position is None else tensor[position]


def _by_layer(tensors: Mapping[Any, Any], source: str, hook: str) -> dict[int, Any]:
    rows: dict[int, Any] = {}
    for key, row in tensors.items():
        number = int(key) if isinstance(key, str) and key.isdecimal() else key
        if isinstance(key, str) and (name := BLOCK_NAME.fullmatch(key)) and name[2] in (None, hook):
            number = int(name[1])
        if type(number) is not int or number < 0:
            raise ValueError(
                f"{source}: the key {key!r} is not a layer at {hook}; give 0, '0', 'layer_0', …."
            )
        if number in rows:
            raise ValueError(f"{source} has two vectors for layer {number}.")
        rows[number] = row
    return rows
