"""Steering vectors: immutable values that carry their model, hook and layers."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import compress
from numbers import Integral, Real
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from .._util.validation import checked
from ..activations import Activations, PairedActivations
from ..models import HookedModel, Layers, ModelIdentity, resolve_layers

# Not `Self`: run-time checks of a method outside a dataclass cannot resolve it.
VectorT = TypeVar("VectorT", bound="VectorAlgebra")


class VectorAlgebra:
    """Arithmetic, placement and saving of `SteeringVector` and `SteeringVectors`; the last axis is d_hook."""

    values: Tensor
    hook: str
    method: str
    layers: Any
    identity: ModelIdentity
    stream_norm: Any
    axes: ClassVar[int]  # of values without positions
    __array_ufunc__ = None  # so that NumPy leaves `np.float64(2) * vectors` to `__rmul__`

    def __post_init__(self) -> None:
        if resolve_layers(self.layers, self.identity.n_layers) != self.layers:
            raise ValueError(
                f"layers {self.layers}: expected indices from 0 to {self.identity.n_layers - 1}."
            )
        if not bool(torch.isfinite(self.values).all()):
            raise ValueError(f"the vector ({self.method}, {self.hook}) holds NaN or infinite numbers.")

    def __repr__(self) -> str:
        lengths = self.norms().reshape(-1)
        span = dict.fromkeys(f"{float(each):.3g}" for each in (lengths.min(), lengths.max()))
        layers = f"layer {self.layers[0]}" if self.axes == 1 else f"layers {list(self.layers)}"
        summary = f"{self.method} at {self.hook}, length {' to '.join(span)}"
        return f"{type(self).__name__}({summary}, {layers}, {self.identity.name})"

    @property
    def has_positions(self) -> bool:
        """Whether there is (per layer) one vector for each of the first positions."""
        return self.values.ndim > self.axes

    def norms(self) -> Tensor:
        """Length of each vector; with one vector per position, the largest length per layer."""
        lengths = self.values.double().norm(dim=-1).float()  # squares of small numbers underflow in float32
        return lengths.amax(-1) if self.has_positions else lengths

    def normalized(self: VectorT) -> VectorT:
        """The direction: each vector divided by its length. Raises ValueError for one of length zero."""
        return self._scaled(1 / self._nonzero_norms())

    @checked
    def scaled_to(self: VectorT, *, dose: Real) -> VectorT:
        """Scale to length `dose · stream_norm`, so that multiplier 1 has this dose.

        Raises:
            ValueError: the stream norm of a layer is unknown (NaN), or a vector has length zero.
        """
        norm = torch.as_tensor(self.stream_norm)
        if unknown := self._layers_where(norm.isnan()):
            raise ValueError(
                f"the stream norm at layers {unknown} is not known: expected a number. Measure it with "
                "steering_vector(…, prompts=…), or give .at(layers=…, stream_norm=…) one."
            )
        return self._scaled(dose * norm / self._nonzero_norms())

    def cosine_similarity(self: VectorT, other: VectorT) -> Tensor:
        """Cosine with `other`, per layer. Raises ValueError if the models, hooks or layers differ."""
        self._require_alike(other)
        one, two = self.values.double(), other.values.double()
        if self.has_positions:
            one, two = (rearrange(each, "... pos d_hook -> ... (pos d_hook)") for each in (one, two))
        return torch.nn.functional.cosine_similarity(one, two, dim=-1).float()

    @checked
    def at(
        self, *, layers: Layers, hook: str | None = None, stream_norm: "Norms | None" = None
    ) -> "SteeringVectors":
        """Place a single vector at other layers or another hook: read at layer 15 and write at 20, say.

        Args:
            layers, hook: 0-based block indices, and a short hook name (by default the vector's own).
            stream_norm: the typical norm per layer: `{20: 175.0}`, activations or vectors that have it for
                these layers and this hook, or a list in the order of `layers`; by default NaN.

        Raises:
            KeyError: `stream_norm` lacks one of the layers.
            ValueError: vectors of several layers, norms of another hook, or a list of another length.

        `info["read_at"]` keeps the original layer and hook, however often the vector is placed.
        """
        source = self.as_vectors()
        if len(source) != 1:
            raise ValueError(f"vectors at layers {list(self.layers)}: say which one, vectors[layer].at(…).")
        hook = hook or self.hook
        layers = resolve_layers(layers, self.identity.n_layers)
        return replace(
            source,
            values=source.values.repeat_interleave(len(layers), dim=0),
            layers=layers,
            hook=hook,
            stream_norm=norms_at(stream_norm, layers, hook, self.identity),
            info={"read_at": {"layer": source.layers[0], "hook": self.hook}, **source.info},
        )

    @checked
    def save(self, path: str | Path) -> None:
        """Write a `.safetensors` file at `path`, atomically, with model, method, units, … as metadata.

        `vectors.schema.json` in this package describes the metadata; `SteeringVectors.load` reads the file.

        Raises:
            ValueError: `info` contains values that are not plain JSON.
            OSError: the file cannot be written; an existing one stays as it was.
        """
        from .vector_files import save

        save(self.as_vectors(), path)

    def zero_layers(self) -> list[int]:
        """The layers at which the vector has length zero."""
        return self._layers_where(~self.values.reshape(len(self.layers), -1).any(-1))

    def __add__(self: VectorT, other: VectorT) -> VectorT:
        return self._combined(other, "+", torch.add)

    def __sub__(self: VectorT, other: VectorT) -> VectorT:
        return self._combined(other, "-", torch.sub)

    def __mul__(self: VectorT, factor: Any) -> VectorT:  # `_number` raises for anything but a number
        return replace(self, values=self.values * _number(factor))

    __rmul__ = __mul__

    def __truediv__(self: VectorT, divisor: Any) -> VectorT:
        return self * (1 / _number(divisor))

    def __neg__(self: VectorT) -> VectorT:
        return self * -1.0

    def _combined(
        self: VectorT, other: VectorT, sign: str, combine: Callable[[Tensor, Tensor], Tensor]
    ) -> VectorT:
        self._require_alike(other)
        info = self.info if self.info == other.info else {"of": [dict(self.info), dict(other.info)]}
        method = f"({self.method} {sign} {other.method})"
        return replace(self, values=combine(self.values, other.values), method=method, info=info)

    def _scaled(self: VectorT, factors: Tensor) -> VectorT:
        shape = (*factors.shape, *[1] * (self.values.ndim - factors.ndim))
        return replace(self, values=self.values * factors.reshape(shape))

    def _nonzero_norms(self) -> Tensor:
        norms = self.norms()
        if zero := self._layers_where(norms == 0):
            raise ValueError(
                f"a vector of length zero has no direction: {self.method} at {self.hook} of layers {zero}."
            )
        return norms

    def _layers_where(self, mask: Tensor) -> list[int]:
        return list(compress(self.layers, mask.reshape(-1).tolist()))

    def _require_alike(self: VectorT, other: VectorT) -> None:
        if type(self) is not type(other):
            raise TypeError(f"cannot combine {type(self).__name__} with {type(other).__name__}.")
        self.identity.require(other.identity, what="the first vector")
        for name in ("hook", "layers"):
            one, two = getattr(self, name), getattr(other, name)
            if one != two:
                raise ValueError(
                    f"vectors with different {name} do not mix: {one} and {two}. Use .at(…) to move one."
                )
        if (one := tuple(self.values.shape)) != (two := tuple(other.values.shape)):
            raise ValueError(f"vectors of shapes {one} and {two} do not mix.")


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"vectors are scaled by a number, not by {type(value).__name__}.")
    return float(value)


@checked
@dataclass(frozen=True, eq=False, repr=False)
class SteeringVector(VectorAlgebra):
    """One vector at one layer and hook: a direction times a length.

    Attributes:
        values: the vector; with a leading axis, one for each of the first positions.
        layer: 0-based block index.
        hook: short hook name.
        method: name of the estimator or source.
        stream_norm: typical norm of the residual stream at this layer and hook, NaN where unknown.
        identity: the model that the vector belongs to.
        info: provenance (arguments, data, seed); plain JSON values.
    """

    values: Float[Tensor, " d_hook"] | Float[Tensor, "pos d_hook"]
    layer: int
    hook: str
    method: str
    stream_norm: float
    identity: ModelIdentity
    info: Mapping[str, Any] = field(default_factory=dict)
    axes: ClassVar[int] = 1
    # Read by argument validation, for numbers passed instead of a vector.
    from_numbers: ClassVar[str] = " From a tensor, use steering_vector(model, tensor, layer=…)."

    @property
    def layers(self) -> tuple[int, ...]:
        """The layer as a tuple, as `SteeringVectors` has it."""
        return (self.layer,)

    def as_vectors(self) -> "SteeringVectors":
        """`SteeringVectors` of this one layer."""
        values, norm = self.values[None].clone(), torch.tensor([self.stream_norm], dtype=torch.float32)
        return SteeringVectors(values, self.layers, self.hook, self.method, norm, self.identity, self.info)


@checked
@dataclass(frozen=True, eq=False, repr=False)
class SteeringVectors(VectorAlgebra):
    """One vector per layer.

    Attributes:
        values: one vector per layer; with a middle axis, one for each of the first positions.
        layers: 0-based block indices, in the order of the axis.
        hook, method, identity, info: as for `SteeringVector`.
        stream_norm: typical norm of the residual stream per layer, NaN where unknown.
    """

    values: Float[Tensor, "layer d_hook"] | Float[Tensor, "layer pos d_hook"]
    layers: tuple[int, ...]
    hook: str
    method: str
    stream_norm: Float[Tensor, " layer"]
    identity: ModelIdentity
    info: Mapping[str, Any] = field(default_factory=dict)
    axes: ClassVar[int] = 2

    def __post_init__(self) -> None:
        if not len(self.values) == len(self.layers) == len(self.stream_norm):
            raise ValueError(
                f"{len(self.values)} vectors and {len(self.stream_norm)} norms for {len(self.layers)} layers."
            )
        super().__post_init__()

    def __len__(self) -> int:
        return len(self.layers)

    def __contains__(self, layer: object) -> bool:
        """Whether there is a vector at a layer; negative indices count from the model's end."""
        n_layers = self.identity.n_layers
        is_index = isinstance(layer, Integral) and not isinstance(layer, bool)
        return is_index and -n_layers <= layer < n_layers and layer % n_layers in self.layers

    def __iter__(self) -> Iterator[SteeringVector]:
        return (self[layer] for layer in self.layers)

    @checked
    def __getitem__(self, layer: int) -> SteeringVector:
        """The vector at a block index (not at a row of `values`); negatives count from the model's end."""
        row = self._row(layer)
        values, layer, norm = self.values[row].clone(), self.layers[row], float(self.stream_norm[row])
        return SteeringVector(values, layer, self.hook, self.method, norm, self.identity, self.info)

    @checked
    def weighted(self, weights: Mapping[int, float]) -> "SteeringVectors":
        """Only the layers named in `weights`, each vector times its weight (`{17: 1.0, 31: -0.5}`).

        Raises:
            IndexError, KeyError: a layer that the model does not have, or without a vector.
            ValueError: no layers, a layer named twice, or a weight that is not finite.
        """
        rows = [self._row(layer) for layer in resolve_layers(tuple(weights), self.identity.n_layers)]
        if not all(map(math.isfinite, weights.values())):
            raise ValueError(f"weights={weights!r:.200}: expected finite numbers. Give 0.0 for no vector.")
        layers = tuple(self.layers[row] for row in rows)
        chosen = replace(self, values=self.values[rows], layers=layers, stream_norm=self.stream_norm[rows])
        return chosen._scaled(torch.tensor(list(map(float, weights.values()))))

    def as_vectors(self) -> "SteeringVectors":
        """These vectors themselves."""
        return self

    @classmethod
    @checked
    def load(
        cls, path: str | Path, *, model: HookedModel | None = None, force: bool = False
    ) -> "SteeringVectors":
        """Read a file that `save` wrote, of this or an earlier version of tl_steer; never a pickle.

        Args:
            path: the file.
            model: check that the vectors belong to this model.
            force: accept other weights of the same shapes and processing. The vectors keep their saved
                identity, so that steering needs `force=True` too.

        Raises:
            ValueError: not a file of steering vectors, damaged, or of a newer version.
            ModelMismatchError: vectors of another model; says what differs.
        """
        from .vector_files import load

        return load(path, model=model, force=force)

    def _row(self, layer: int) -> int:
        (resolved,) = resolve_layers(layer, self.identity.n_layers)
        if resolved not in self.layers:
            raise KeyError(f"no vector at layer {layer}; there are vectors at layers {list(self.layers)}.")
        return self.layers.index(resolved)


Norms = Mapping[int, float] | Activations | PairedActivations | SteeringVectors | Sequence[float]


def norms_at(
    norms: Norms | None, layers: Sequence[int], hook: str, identity: ModelIdentity
) -> Float[Tensor, " layer"]:
    """Stream norms at the layers, looked up by layer; NaN for `None`. Raises as `SteeringVector.at`."""
    if norms is None:
        return torch.full((len(layers),), torch.nan)
    if isinstance(norms, Activations | PairedActivations | SteeringVectors):
        identity.require(norms.identity, what="the vector")
        if norms.hook != hook:
            raise ValueError(f"stream_norm of {norms.hook}: expected norms of {hook}. Capture there.")
        known, numbers = norms.layers, norms.stream_norm.tolist()
    elif isinstance(norms, Mapping):
        known, numbers = resolve_layers(tuple(norms), identity.n_layers), norms.values()
    else:
        known, numbers = layers, norms
    if len(known) != len(numbers):
        raise ValueError(
            f"stream_norm has {len(numbers)} numbers: expected one for each of layers {list(layers)}. Give "
            "{layer: norm}, or the activations that have them."
        )
    by_layer = dict(zip(known, numbers, strict=True))
    if missing := [layer for layer in layers if layer not in by_layer]:
        raise KeyError(f"stream_norm has layers {list(known)}: expected layers {missing} too.")
    return torch.tensor([by_layer[layer] for layer in layers], dtype=torch.float32)
