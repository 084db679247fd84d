"""Steering vectors as immutable values that know which model, hook and layers they belong to."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from numbers import Integral, Real
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from .._util.validation import checked
from ..activations import Activations, PairedActivations
from ..models import HookedModel, Layers, ModelIdentity, resolve_layers

# Not `Self`: run-time checks of a method outside a dataclass cannot tell what that is.
VectorT = TypeVar("VectorT", bound="_Algebra")


class _Algebra:
    """What one vector and a set of them have in common; the last axis is always d_hook."""

    values: Tensor
    hook: str
    method: str
    layers: Any
    identity: ModelIdentity
    stream_norm: Any
    has_positions: Any
    __array_ufunc__ = None  # so that NumPy leaves `np.float64(2) * vectors` to `__rmul__`

    def norms(self) -> Tensor:
        """Length of each vector; where there is one a position, that of the longest."""
        lengths = self.values.double().norm(dim=-1).float()  # squares of small numbers vanish in float32
        return lengths.amax(-1) if self.has_positions else lengths

    def normalized(self: VectorT) -> VectorT:
        """The direction: the same divided by its length.

        Raises:
            ValueError: a vector of length zero; names its layer.
        """
        return self._scaled(1 / self._nonzero_norms())

    @checked
    def scaled_to(self: VectorT, *, dose: Real) -> VectorT:
        """The same with the length that makes `dose` at multiplier 1: `dose · stream_norm`.

        Raises:
            ValueError: a layer whose stream norm is not known (NaN), or a vector of length zero.
        """
        norm = torch.as_tensor(self.stream_norm)
        if unknown := self._layers_where(norm.isnan()):
            raise ValueError(
                f"the stream norm at layers {unknown} is not known: expected a number. Measure it with "
                "steering_vector(…, prompts=…), or give .at(layers=…, stream_norm=…) one."
            )
        return self._scaled(dose * norm / self._nonzero_norms())

    def cosine_similarity(self: VectorT, other: VectorT) -> Tensor:
        """Cosine with another one, `other`, layer by layer.

        Raises:
            ValueError: another model, hook or other layers.
        """
        self._require_alike(other)
        flat = 1 if self.values.ndim - self.has_positions == 2 else 0
        mine, theirs = (vectors.values.double().flatten(flat) for vectors in (self, other))
        return torch.nn.functional.cosine_similarity(mine, theirs, dim=-1).float()

    def __add__(self: VectorT, other: VectorT) -> VectorT:
        self._require_alike(other)
        return self._joined(other, self.values + other.values, "+")

    def __sub__(self: VectorT, other: VectorT) -> VectorT:
        self._require_alike(other)
        return self._joined(other, self.values - other.values, "-")

    def __mul__(self: VectorT, factor: Any) -> VectorT:  # by a number; `_number` refuses others
        return replace(self, values=self.values * _number(factor))

    __rmul__ = __mul__

    def __truediv__(self: VectorT, divisor: Any) -> VectorT:
        return self * (1 / _number(divisor))

    def __neg__(self: VectorT) -> VectorT:
        return self * -1.0

    def _told(self) -> str:
        lengths = self.norms().reshape(-1)
        span = dict.fromkeys(f"{float(each):.3g}" for each in (lengths.min(), lengths.max()))
        return f"{self.method} at {self.hook}, length {' to '.join(span)}"

    def _joined(self: VectorT, other: VectorT, values: Tensor, sign: str) -> VectorT:
        # What is only true of one of the two is not true of both.
        info = self.info if self.info == other.info else {"of": [dict(self.info), dict(other.info)]}
        return replace(self, values=values, method=f"({self.method} {sign} {other.method})", info=info)

    def _scaled(self: VectorT, factors: Tensor) -> VectorT:
        shape = (*factors.shape, *[1] * (self.values.ndim - factors.ndim))
        return replace(self, values=self.values * factors.reshape(shape))

    def zero_layers(self) -> list[int]:
        """The layers at which the vector has length zero."""
        return self._layers_where(~self.values.reshape(len(self.layers), -1).any(-1))

    def _nonzero_norms(self) -> Tensor:
        norms = self.norms()
        if zero := self._layers_where(norms == 0):
            raise ValueError(
                f"a vector of length zero has no direction: {self.method} at {self.hook} of layers {zero}."
            )
        return norms

    def _layers_where(self, mask: Tensor) -> list[int]:
        return [layer for layer, true in zip(self.layers, mask.reshape(-1).tolist(), strict=True) if true]

    def _require_finite(self) -> None:
        if not bool(torch.isfinite(self.values).all()):
            raise ValueError(f"the vector ({self.method}, {self.hook}) holds NaN or infinite numbers.")

    def _require_placed(self) -> None:
        if resolve_layers(self.layers, self.identity.n_layers) != self.layers:
            raise ValueError(
                f"layers {self.layers}: give each by its index, 0 to {self.identity.n_layers - 1}."
            )

    def _require_alike(self: VectorT, other: VectorT) -> None:
        if type(self) is not type(other):
            raise TypeError(f"cannot combine {type(self).__name__} with {type(other).__name__}.")
        self.identity.require(other.identity, what="the first vector")
        for name in ("hook", *self._axes):
            mine, theirs = getattr(self, name), getattr(other, name)
            if mine != theirs:
                raise ValueError(
                    f"vectors with different {name} do not mix: {mine} and {theirs}. Use .at(…) to move one."
                )
        if self.values.shape != other.values.shape:
            raise ValueError(
                f"vectors of shapes {tuple(self.values.shape)} and {tuple(other.values.shape)} do not mix."
            )


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"vectors are scaled by a number, not by {type(value).__name__}.")
    return float(value)


@checked
@dataclass(frozen=True, eq=False)
class SteeringVector(_Algebra):
    """One vector at one layer and hook: a direction times a length.

    Attributes:
        values: the vector; with a leading axis, one for each of the first positions.
        layer: 0-based block index.
        hook: short hook name.
        method: how it was made.
        stream_norm: the stream's typical norm there, NaN where unknown.
        identity: the model it belongs to.
        info: how it was made, in more detail; plain JSON values.
    """

    values: Float[Tensor, " d_hook"] | Float[Tensor, "pos d_hook"]
    layer: int
    hook: str
    method: str
    stream_norm: float
    identity: ModelIdentity
    info: Mapping[str, Any] = field(default_factory=dict)
    _axes = ("layer",)
    # Read by `arguments`, where numbers are given instead of a vector.
    from_numbers: ClassVar[str] = " From a tensor, use steering_vector(model, tensor, layer=…)."

    def __post_init__(self) -> None:
        self._require_placed()
        self._require_finite()

    def __repr__(self) -> str:
        return f"SteeringVector({self._told()}, layer {self.layer}, {self.identity.name})"

    @property
    def layers(self) -> tuple[int, ...]:
        """Its one layer, so that one vector can stand where several can."""
        return (self.layer,)

    @checked
    def at(
        self,
        *,
        layers: Layers,
        hook: str | None = None,
        stream_norm: "Norms | None" = None,
    ) -> "SteeringVectors":
        """The same vector placed elsewhere, to read at layer 15 and write at 20, or to remove everywhere.

        Args:
            layers: 0-based block indices.
            hook: short name; by default the one it has.
            stream_norm: the typical norm, looked up by layer: `{20: 175.0}`, or activations or vectors that
                have the norms of these layers at this hook; or a list in the order of `layers`; by default
                NaN.

        Raises:
            KeyError: a layer for which `stream_norm` has no norm.
            ValueError: activations or vectors of another hook, or a list of another length than `layers`.

        `info["read_at"]` keeps where it was read, also when it is placed once more.
        """
        places = resolve_layers(layers, self.identity.n_layers)
        norms = norms_at(stream_norm, places, hook or self.hook, self.identity)
        return SteeringVectors(
            self.values.expand(len(places), *self.values.shape).clone(),
            places,
            hook or self.hook,
            self.method,
            norms,
            self.identity,
            {"read_at": {"layer": self.layer, "hook": self.hook}, **self.info},
        )

    def as_vectors(self) -> "SteeringVectors":
        """The same as a set of one, at the layer it is at."""
        return SteeringVectors(
            self.values[None].clone(),
            self.layers,
            self.hook,
            self.method,
            torch.tensor([self.stream_norm], dtype=torch.float32),
            self.identity,
            self.info,
        )

    @checked
    def save(self, path: str | Path) -> None:
        """Write a file at `path`, as `SteeringVectors.save` does, that `SteeringVectors.load` reads."""
        self.as_vectors().save(path)

    @property
    def has_positions(self) -> bool:
        """Whether it holds a vector for each of the first positions."""
        return self.values.ndim == 2


@checked
@dataclass(frozen=True, eq=False)
class SteeringVectors(_Algebra):
    """A vector for each of some layers.

    Attributes:
        values: one vector a layer; with a middle axis, one for each of the first positions.
        layers: 0-based block indices, in the order of the axis.
        hook, method, identity, info: as for `SteeringVector`.
        stream_norm: the stream's typical norm at each layer, NaN where unknown.
    """

    values: Float[Tensor, "layer d_hook"] | Float[Tensor, "layer pos d_hook"]
    layers: tuple[int, ...]
    hook: str
    method: str
    stream_norm: Float[Tensor, " layer"]
    identity: ModelIdentity
    info: Mapping[str, Any] = field(default_factory=dict)
    _axes = ("layers",)

    def __post_init__(self) -> None:
        if not len(self.values) == len(self.layers) == len(self.stream_norm):
            raise ValueError(
                f"{len(self.values)} vectors and {len(self.stream_norm)} norms for {len(self.layers)} layers."
            )
        self._require_placed()
        self._require_finite()

    @property
    def has_positions(self) -> bool:
        """Whether there is, at each layer, a vector for each of the first positions."""
        return self.values.ndim == 3

    def __len__(self) -> int:
        return len(self.layers)

    def __repr__(self) -> str:
        return f"SteeringVectors({self._told()}, layers {list(self.layers)}, {self.identity.name})"

    def __contains__(self, layer: object) -> bool:
        """Whether there is a vector at a layer; negatives count from the model's end."""
        n_layers = self.identity.n_layers
        counts = isinstance(layer, Integral) and not isinstance(layer, bool)
        return counts and -n_layers <= layer < n_layers and layer % n_layers in self.layers

    def __iter__(self) -> Iterator[SteeringVector]:
        return (self[layer] for layer in self.layers)

    @checked
    def __getitem__(self, layer: int) -> SteeringVector:
        """The vector of a layer (not of a place in the list); negatives count from the model's end."""
        row = self._row(layer)
        return SteeringVector(
            self.values[row].clone(),
            self.layers[row],
            self.hook,
            self.method,
            float(self.stream_norm[row]),
            self.identity,
            self.info,
        )

    @checked
    def weighted(self, weights: Mapping[int, float]) -> "SteeringVectors":
        """Only the layers named in `weights`, each vector times its weight (`{17: 1.0, 31: -0.5}`).

        Raises:
            IndexError: a layer that the model does not have.
            KeyError: a layer that has no vector here.
            TypeError: a weight that is not a number.
            ValueError: no layers, one named twice, or a weight that is not finite.
        """
        rows = [self._row(layer) for layer in resolve_layers(tuple(weights), self.identity.n_layers)]
        if not all(map(math.isfinite, weights.values())):
            raise ValueError(f"weights={weights!r:.200}: expected finite numbers. Give 0.0 for no vector.")
        factors = torch.tensor([_number(weight) for weight in weights.values()])
        layers = tuple(self.layers[row] for row in rows)
        chosen = replace(self, values=self.values[rows], layers=layers, stream_norm=self.stream_norm[rows])
        return chosen._scaled(factors)

    @checked
    def at(
        self,
        *,
        layers: Layers,
        hook: str | None = None,
        stream_norm: "Norms | None" = None,
    ) -> "SteeringVectors":
        """`SteeringVector.at` of the only vector there is.

        Args:
            layers, hook, stream_norm: as for `SteeringVector.at`.

        Raises:
            ValueError: several layers: it would not be clear which vector is meant.
        """
        if len(self) != 1:
            raise ValueError(
                f"vectors at layers {list(self.layers)}: say which to place, vectors[layer].at(…)."
            )
        return self[self.layers[0]].at(layers=layers, hook=hook, stream_norm=stream_norm)

    def as_vectors(self) -> "SteeringVectors":
        """Itself, so that one vector and several can be taken alike."""
        return self

    @checked
    def save(self, path: str | Path) -> None:
        """Write a `.safetensors` file at `path`; as metadata the model, hook, layers, how made, units, when.

        The metadata are described by `vectors.schema.json` in this package. The file is there whole or not at
        all: where writing fails, one that was there before stays as it was.

        Raises:
            ValueError: `info` holds something that is not plain JSON.
            OSError: the file cannot be written.
        """
        from .vector_files import save

        save(self, path)

    @classmethod
    @checked
    def load(
        cls, path: str | Path, *, model: HookedModel | None = None, force: bool = False
    ) -> "SteeringVectors":
        """Read what `save` wrote, also an earlier version of tl_steer's; never a pickle.

        Args:
            path: the file.
            model: the model they are meant for; vectors of another one are refused right here.
            force: accept other weights of the same shapes and processing. The vectors keep the identity they
                were saved with, so that steering needs `force=True` too.

        Raises:
            ValueError: another kind of file, a damaged one, or one of a newer version.
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
        norms = dict(zip(norms.layers, norms.stream_norm.tolist(), strict=True))
    elif isinstance(norms, Mapping):
        norms = dict(zip(resolve_layers(tuple(norms), identity.n_layers), norms.values(), strict=True))
    elif len(norms) != len(layers):
        raise ValueError(
            f"stream_norm has {len(norms)} numbers: expected one for each of layers {list(layers)}. Give "
            "{layer: norm}, or the activations that have them."
        )
    else:
        norms = dict(zip(layers, norms, strict=True))
    if missing := [layer for layer in layers if layer not in norms]:
        raise KeyError(f"stream_norm has layers {list(norms)}: expected layers {missing} too.")
    return torch.tensor([norms[layer] for layer in layers], dtype=torch.float32)
