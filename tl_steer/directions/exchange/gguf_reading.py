"""The keys and float32 tensors of a GGUF file, read with every length checked against the file's.

The package `gguf` reads such files too, but believes an array's length: a damaged one keeps it counting for
hours. Format: ggml's docs/gguf.md, versions 2 and 3, little-endian.
"""

import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

LARGEST = 1 << 28  # bytes: control vectors are a few megabytes
ALIGNMENT = 32
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY, F32 = 8, 9, 0


@dataclass
class GGUFFile:
    """What a file holds.

    Attributes:
        keys: metadata by key.
        tensors: those of float32, by name.
        others: names of the tensors of other types, which are not read.
    """

    keys: dict[str, Any] = field(default_factory=dict)
    tensors: dict[str, np.ndarray] = field(default_factory=dict)
    others: list[str] = field(default_factory=list)


def read_gguf(path: str | Path) -> GGUFFile:
    """Everything a GGUF file holds.

    Raises:
        ValueError: not such a file, a damaged one, or one of more than 256 MiB.
    """
    path = Path(path)
    if path.stat().st_size > LARGEST:
        raise ValueError(f"{path} is larger than 256 MiB: a model, not control vectors.")
    data = path.read_bytes()
    if data[:4] != b"GGUF":
        raise ValueError(f"{path} is not a GGUF file.")
    try:
        return _Cursor(data).file()
    except (RecursionError, UnicodeDecodeError, ValueError, struct.error) as error:
        raise ValueError(f"{path} is damaged, or not a GGUF file that can be read here ({error}).") from error


class _Cursor:
    """A place in the file, going forward."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 4

    def file(self) -> GGUFFile:
        version, n_tensors, n_keys = self.number("I"), self.number("Q"), self.number("Q")
        if version not in (2, 3):
            raise ValueError(f"version {version}; 2 and 3 are known")
        found = GGUFFile()
        for _ in range(n_keys):
            key = self.text()
            if key in found.keys:
                raise ValueError(f"two keys {key!r}")
            found.keys[key] = self.value(self.number("I"))
        heads = [self.head() for _ in range(n_tensors)]
        alignment = found.keys.get("general.alignment", ALIGNMENT)
        if not isinstance(alignment, int) or alignment <= 0:
            raise ValueError(f"alignment {alignment!r}")
        start = -(-self.at // alignment) * alignment
        for name, shape, kind, offset in heads:
            if name in found.tensors or name in found.others:
                raise ValueError(f"two tensors {name!r}")
            if kind == F32:
                found.tensors[name] = self.tensor(shape, start + offset)
            else:
                found.others.append(name)
        return found

    def take(self, size: int) -> bytes:
        if size > len(self.data) - self.at:
            raise ValueError("it ends too early")
        self.at += size
        return self.data[self.at - size : self.at]

    def number(self, code: str) -> Any:
        (value,) = struct.unpack(f"<{code}", self.take(struct.calcsize(f"<{code}")))
        return value

    def text(self) -> str:
        return self.take(self.number("Q")).decode("utf-8")

    def value(self, kind: int) -> Any:
        if kind in SCALARS:
            return self.number(SCALARS[kind])
        if kind == STRING:
            return self.text()
        if kind == ARRAY:
            item, count = self.number("I"), self.number("Q")
            if code := SCALARS.get(item):
                return list(struct.unpack(f"<{count}{code}", self.take(count * struct.calcsize(f"<{code}"))))
            return [self.value(item) for _ in range(count)]
        raise ValueError(f"a value of unknown type {kind}")

    def head(self) -> tuple[str, tuple[int, ...], int, int]:
        name, axes = self.text(), self.number("I")
        if axes > 4:
            raise ValueError(f"{name!r} has {axes} axes")
        # The first axis is the one that varies fastest.
        shape = tuple(self.number("Q") for _ in range(axes))[::-1]
        return name, shape, self.number("I"), self.number("Q")

    def tensor(self, shape: tuple[int, ...], start: int) -> np.ndarray:
        count = int(np.prod(shape, dtype=object))
        if start + 4 * count > len(self.data):
            raise ValueError("it ends too early")
        values = np.frombuffer(self.data, dtype="<f4", count=count, offset=start)
        return values.astype(np.float32).reshape(shape)
