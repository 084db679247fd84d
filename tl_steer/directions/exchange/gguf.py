"""Control vectors of llama.cpp and repeng: GGUF files with a tensor `direction.N` per layer.

`direction.N` is added to the output of block N, blocks counted from 0: it is `resid_post` of layer N here.
llama.cpp adds it to `l_out` (src/llama-adapter.cpp) and rejects block 0; repeng has the same N, an index into
the list of blocks (repeng/extract.py). llama.cpp's own cvector-generator writes as `direction.N` what it read
at the output of block N − 1, but it is *added* at N all the same.

Files are read here rather than by the package `gguf`, which believes an array's length: a damaged one keeps
it counting for hours. Format: ggml's docs/gguf.md, versions 2 and 3, little-endian.
"""

import re
import struct
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..._util.file_io import atomic
from ..._util.validation import checked, require_characters
from ...models import HookedModel, identify
from ..vector_files import describe, parse_description, restore
from ..vectors import SteeringVector, SteeringVectors
from .in_memory import imported, rows_for

Contents = tuple[dict[str, Any], dict[str, np.ndarray | None]]
ARCHITECTURE = "controlvector"
DESCRIPTION = "tl_steer.description"  # our own key
MAX_BYTES = 1 << 28  # control vectors are a few megabytes
ALIGNMENT = 32
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY, F32 = 8, 9, 0


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
        vectors, path, force: as for `save_pt`; no vector at layer 0.
        model_hint: the architecture, as llama.cpp names it ("llama", "qwen2"); by default the model's name.
            Neither llama.cpp nor repeng checks it.

    Raises as `save_pt`, and ValueError for layer 0.

    The scale there is the multiplier here. llama.cpp adds the vectors at every position, and nothing at
    layers that the file does not name. A key of our own keeps the model's identity, method and norms.
    """
    from gguf import GGUFWriter

    require_characters(model_hint or "", "model_hint")
    rows = rows_for(vectors, "a GGUF control vector", force=force)
    if 0 in rows:
        raise ValueError(
            "a GGUF control vector cannot hold layer 0: llama.cpp steers the blocks from 1 on. Leave layer 0 "
            "out: vectors.weighted({layer: 1.0, …})."
        )
    with atomic(path) as scratch:
        writer = GGUFWriter(scratch, ARCHITECTURE)
        try:
            writer.add_string(f"{ARCHITECTURE}.model_hint", model_hint or vectors.identity.name or "unknown")
            writer.add_uint32(f"{ARCHITECTURE}.layer_count", len(rows))
            writer.add_string(DESCRIPTION, describe(vectors.as_vectors()))
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
        path, model: the file, and the model they are meant for.
        force: accept a file of `save_gguf` from other weights of the same shapes and processing.

    Returns:
        Of a file of `save_gguf` the same vectors, with their own identity. Of other files, which name only
        the architecture, vectors as `load_pt` returns them, with `info["model_hint"]`.

    Raises:
        ValueError: not a control vector, a damaged one, layers or a width that the model does not have.
        ModelMismatchError: a file of `save_gguf` from another model.
    """
    keys, tensors = read_gguf(path)
    if (architecture := keys.get("general.architecture")) != ARCHITECTURE:
        raise ValueError(f"{path} holds no control vector: its general.architecture is {architecture!r}.")
    rows = _directions(tensors, path)
    if DESCRIPTION not in keys:
        hint = str(keys.get(f"{ARCHITECTURE}.model_hint", ""))
        return imported(rows, model, f"GGUF control vector {Path(path).name}", model_hint=hint)
    description = parse_description(keys[DESCRIPTION], str(path))
    if set(description["layers"]) != set(rows):
        raise ValueError(
            f"{path} has directions for layers {sorted(rows)}, but its own description says "
            f"{description['layers']}: the file was changed afterwards."
        )
    values = torch.stack([rows[layer] for layer in description["layers"]])
    vectors = restore(description, values, str(path))
    vectors.identity.require(identify(model), force=force, what=str(path))
    return vectors


def read_gguf(path: str | Path) -> Contents:
    """Metadata and tensors of a GGUF file; tensors of other types than float32 are `None`.

    Every length is checked against the file's, which may have up to 256 MiB.
    """
    if Path(path).stat().st_size > MAX_BYTES:
        raise ValueError(f"{path} is larger than 256 MiB: a model, not control vectors.")
    data = Path(path).read_bytes()
    if data[:4] != b"GGUF":
        raise ValueError(f"{path} is not a GGUF file.")
    try:
        return _Reader(data).contents()
    except (RecursionError, UnicodeDecodeError, ValueError, struct.error) as error:
        raise ValueError(f"{path} is damaged, or not a GGUF file that can be read here ({error}).") from error


class _Reader:
    """Sequential reader of GGUF bytes."""

    def __init__(self, data: bytes) -> None:
        self.data, self.offset = data, 4

    def contents(self) -> Contents:
        version, n_tensors, n_keys = self.number("I"), self.number("Q"), self.number("Q")
        if version not in (2, 3):
            raise ValueError(f"version {version}; 2 and 3 are known")
        keys: dict[str, Any] = {}
        for _ in range(n_keys):
            if (key := self.text()) in keys:
                raise ValueError(f"two keys {key!r}")
            keys[key] = self.value(self.number("I"))
        headers = [self.header() for _ in range(n_tensors)]
        alignment = keys.get("general.alignment", ALIGNMENT)
        if not isinstance(alignment, int) or alignment <= 0:
            raise ValueError(f"alignment {alignment!r}")
        start = -(-self.offset // alignment) * alignment
        tensors: dict[str, np.ndarray | None] = {}
        for name, shape, dtype, offset in headers:
            if name in tensors:
                raise ValueError(f"two tensors {name!r}")
            tensors[name] = self.tensor(shape, start + offset) if dtype == F32 else None
        return keys, tensors

    def take(self, size: int) -> bytes:
        if size > len(self.data) - self.offset:
            raise ValueError("it ends too early")
        self.offset += size
        return self.data[self.offset - size : self.offset]

    def number(self, code: str) -> Any:
        (value,) = struct.unpack(f"<{code}", self.take(struct.calcsize(f"<{code}")))
        return value

    def text(self) -> str:
        return self.take(self.number("Q")).decode("utf-8")

    def value(self, value_type: int) -> Any:
        if value_type in SCALARS:
            return self.number(SCALARS[value_type])
        if value_type == STRING:
            return self.text()
        if value_type == ARRAY:
            item, count = self.number("I"), self.number("Q")
            if code := SCALARS.get(item):
                return list(struct.unpack(f"<{count}{code}", self.take(count * struct.calcsize(f"<{code}"))))
            return [self.value(item) for _ in range(count)]
        raise ValueError(f"a value of unknown type {value_type}")

    def header(self) -> tuple[str, tuple[int, ...], int, int]:
        """Name, shape, type and offset of a tensor."""
        name, axes = self.text(), self.number("I")
        if axes > 4:
            raise ValueError(f"{name!r} has {axes} axes")
        shape = tuple(self.number("Q") for _ in range(axes))[::-1]  # the file's first axis varies fastest
        return name, shape, self.number("I"), self.number("Q")

    def tensor(self, shape: tuple[int, ...], start: int) -> np.ndarray:
        count = int(np.prod(shape, dtype=object))
        if start + 4 * count > len(self.data):
            raise ValueError("it ends too early")
        values = np.frombuffer(self.data, dtype="<f4", count=count, offset=start)
        return values.astype(np.float32).reshape(shape)


def _directions(tensors: dict[str, np.ndarray | None], path: str | Path) -> dict[int, torch.Tensor]:
    rows = {}
    for name, values in tensors.items():
        if values is None:
            raise ValueError(f"{path}: {name!r} is not float32; directions must be.")
        number = re.fullmatch(r"direction\.(\d{1,6})", name)
        if not number or values.ndim != 1:
            shape = f"{name!r} of shape {values.shape}"
            raise ValueError(f"{path}: {shape} is not a direction: expected direction.N with one axis.")
        rows[int(number[1])] = torch.from_numpy(values)
    if 0 in rows:
        raise ValueError(
            f"{path} names direction.0, which llama.cpp rejects: the block is ambiguous. If "
            "repeng wrote it, read it there: from_repeng(ControlVector.import_gguf(path), model)."
        )
    if len({len(row) for row in rows.values()}) > 1:
        raise ValueError(f"{path}: its directions have unequal lengths.")
    return rows
