"""Control vectors of llama.cpp and repeng: GGUF files with a tensor `direction.N` for each layer.

`direction.N` is added to the output of block N, blocks counted from 0: it is our `resid_post` of layer N.
llama.cpp keeps it as tensor N of its blocks and adds it where the block's output is done (`l_out`;
src/llama-adapter.cpp); repeng writes and reads the same N, its index in the list of blocks
(repeng/extract.py; what it learns there is `hidden_states[N + 1]`). llama.cpp has no place for block 0 and
refuses a file that names it. Each tensor is one-dimensional float32. llama.cpp's own cvector-generator writes
as `direction.N` what it read at the output of block N − 1: where it is *added* is N all the same.
"""

import re
from pathlib import Path

import torch

from ..._util.file_io import atomic
from ..._util.validation import checked, require_characters
from ...models import HookedModel, identify
from ..metadata import describe, parsed, restore
from ..vectors import SteeringVector, SteeringVectors
from .exchange_checks import imported, rows_for
from .gguf_reading import GGUFFile, read_gguf

ARCHITECTURE = "controlvector"
OURS = "tl_steer.description"


@checked
def save_gguf(
    vectors: SteeringVectors | SteeringVector,
    path: str | Path,
    *,
    model_hint: str | None = None,
    force: bool = False,
) -> None:
    """Write a control vector for llama.cpp (`--control-vector-scaled FILE SCALE`), repeng and the like.

    Args:
        vectors: one vector a layer at "resid_post", not at layer 0.
        path: where to; the file is there whole or not at all.
        model_hint: the architecture, as llama.cpp names it ("llama", "qwen2"); by default the model's name.
            llama.cpp and repeng refuse nothing for it.
        force: also vectors of centred weights.

    Raises:
        ValueError: layer 0, another hook, one vector a position, or centred weights.
        OSError: the file cannot be written.

    The scale there is the multiplier here, and it is added at every position. llama.cpp adds nothing at
    layers that the file does not name. What GGUF has no place for (the model's identity, method, norms) is
    kept under a key of our own, which others ignore and `load_gguf` reads.
    """
    from gguf import GGUFWriter

    require_characters(model_hint or "", "model_hint")
    rows = rows_for(vectors, "a GGUF control vector", force=force)
    if 0 in rows:
        raise ValueError(
            "a GGUF control vector cannot hold layer 0: llama.cpp steers the blocks from 1 on and refuses a "
            "file that names direction.0. Leave layer 0 out: vectors.weighted({layer: 1.0, …})."
        )
    with atomic(path) as scratch:
        writer = GGUFWriter(scratch, ARCHITECTURE)
        try:
            writer.add_string(f"{ARCHITECTURE}.model_hint", model_hint or vectors.identity.name or "unknown")
            writer.add_uint32(f"{ARCHITECTURE}.layer_count", len(rows))
            writer.add_string(OURS, describe(vectors.as_vectors()))
            for layer, row in sorted(rows.items()):
                writer.add_tensor(f"direction.{layer}", row.numpy())
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
        finally:
            writer.close()


@checked
def load_gguf(path: str | Path, model: HookedModel, *, force: bool = False) -> SteeringVectors:
    """Read a control vector that llama.cpp, repeng or `save_gguf` wrote, for `model`.

    Args:
        path: the file.
        model: the model they are meant for.
        force: accept a file of ours that was made on other weights of the same shapes and processing.

    Returns:
        Of a file of ours the same vectors, with the identity they were made with. Of others' files vectors
        with the identity of `model`, method "imported", `stream_norm` NaN (nobody else keeps it; `capture`
        measures it), `info["model_hint"]` as written.

    Raises:
        ValueError: not a control vector, a damaged one, layers or a width that the model does not have.
        ModelMismatchError: a file of ours, made on another model.

    Others' files say only the architecture: whether they are of this very model cannot be checked.
    """
    found = read_gguf(path)
    if (kind := found.keys.get("general.architecture")) != ARCHITECTURE:
        raise ValueError(f"{path} holds no control vector: its general.architecture is {kind!r}.")
    rows = _directions(found, path)
    if OURS not in found.keys:
        hint = str(found.keys.get(f"{ARCHITECTURE}.model_hint", ""))
        return imported(rows, model, f"GGUF control vector {Path(path).name}", model_hint=hint)
    description = parsed(found.keys[OURS], str(path))
    if set(description["layers"]) != set(rows):
        raise ValueError(
            f"{path} has directions for layers {sorted(rows)}, but its own description says "
            f"{description['layers']}: something changed it since."
        )
    values = torch.stack([rows[layer] for layer in description["layers"]])
    vectors = restore(description, values, str(path))
    vectors.identity.require(identify(model), force=force, what=f"{path}")
    return vectors


def _directions(found: GGUFFile, path: str | Path) -> dict[int, torch.Tensor]:
    if found.others:
        raise ValueError(f"{path}: {found.others[0]!r} is not float32; directions must be.")
    rows = {}
    for name, values in found.tensors.items():
        number = re.fullmatch(r"direction\.(\d{1,6})", name)
        if not number or values.ndim != 1:
            raise ValueError(
                f"{path}: tensor {name!r} of shape {values.shape} is not a direction; a control vector has "
                "tensors direction.N with one axis."
            )
        rows[int(number[1])] = torch.from_numpy(values)
    if 0 in rows:
        raise ValueError(
            f"{path} names direction.0, which llama.cpp refuses: it cannot be told which block is meant. If "
            "repeng wrote it, read it there: from_repeng(ControlVector.import_gguf(path), model)."
        )
    if len({len(row) for row in rows.values()}) > 1:
        raise ValueError(f"{path}: its directions have unequal lengths.")
    return rows
