"""Operations on the residual stream, as frozen values that say what changes, where and how much.

| operation | `x` at the selected positions becomes (d: the unit direction) |
|---|---|
| `Add(v, m)` | x + m·v |
| `ProjectOut(v, s)` | x − s·(x·d)d: 1 removes the direction, 2 reflects it |
| `SetProjection(v, a)` | x + (a − x·d)d: afterwards x·d = a |
| `Ablate(layer)` | zero, or the value given |
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from .._util.validation import checked, short_repr, warn
from ..activations import Activations
from ..directions import SteeringVector, SteeringVectors
from ..models import ModelIdentity, resolve_layers
from ..positions import Positions, PromptTokens, all_tokens, span

Vectors = SteeringVector | SteeringVectors
Change = Callable[
    [Float[Tensor, "batch pos d_hook"], Int[Tensor, "batch pos"]], Float[Tensor, "batch pos d_hook"]
]


@dataclass(frozen=True)
class Edit:
    """One change at one hook of one layer; an operation is a list of them.

    Attributes:
        change: from activations (float32, or float64 as they are) and each slot's absolute position to
            changed activations; slot by slot, since a pass may hold the tokens of several prompts.
        width: numbers per position, `None` for any.
        described: for messages: "Add(multiplier=8) at layer 17".
        identity: of the vector's model, if there is a vector.
        heads: only these heads, at hook "z".
    """

    layer: int
    hook: str
    positions: Positions
    change: Change
    width: int | None
    described: str
    identity: ModelIdentity | None = None
    heads: tuple[int, ...] | None = None

    def apply(
        self,
        stream: Float[Tensor, "batch pos d_hook"],
        selected: Bool[Tensor, "batch pos"],
        index: Int[Tensor, "batch pos"],
        *,
        d_head: int,
    ) -> Float[Tensor, "batch pos d_hook"]:
        """The activations, changed where selected; `index` is each slot's absolute position."""
        index = index.to(stream.device)
        if self.heads is None and selected.device.type == "cpu" and bool(selected.all()):
            return self.change(stream, index)  # without a mask, whose transfer would wait for a GPU
        mask = selected.to(stream.device)[..., None]
        if self.heads is not None:
            head = torch.arange(stream.shape[-1], device=stream.device) // d_head
            mask = mask & torch.isin(head, torch.tensor(self.heads, device=stream.device))
        return torch.where(mask, self.change(stream, index), stream)


@runtime_checkable
class Operation(Protocol):
    """Add, ProjectOut, SetProjection, Ablate, or any object with a method `edits(n_layers)`."""

    def edits(self, n_layers: int) -> list[Edit]:
        """The edits, in the order of the layers."""
        ...


def edits_of(operations: Sequence[Operation], n_layers: int) -> list[Edit]:
    """The edits of all operations, in order."""
    return [edit for operation in operations for edit in operation.edits(n_layers)]


def at_least_float32(stream: Float[Tensor, "*slots d_hook"]) -> Float[Tensor, "*slots d_hook"]:
    """The dtype in which edits are computed."""
    return stream.to(torch.promote_types(stream.dtype, torch.float32))


@checked
@dataclass(frozen=True, eq=False)
class Add:
    """Add a steering vector: x + multiplier · vector.

    Vectors with a position axis are added to the prompt's first positions, one each, where `positions`
    selects them; a shorter prompt raises ValueError.

    Args:
        vector: one vector, or one per layer.
        multiplier: its factor, sign included.
        positions: at which tokens.
        allow_zero: accept vectors of length zero; by default they raise ValueError.

    Warns if the doses of several layers sum to more than 1, where the stream norms are known.

    Source: activation addition, Turner et al. 2023 (arXiv 2308.10248), section 3.
    """

    vector: Vectors
    multiplier: float = 1.0
    positions: Positions = field(default_factory=all_tokens)
    allow_zero: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        if not self.allow_zero and (zero := self.vector.zero_layers()):
            raise ValueError(
                f"Add: the vector ({self.vector.method}) has length zero at layers {zero}: leave them "
                "out, or give allow_zero=True."
            )
        if (count := len(self.vector.layers)) == 1:
            return
        doses = abs(self.multiplier) * self.vector.norms() / self.vector.stream_norm
        if (total := float(doses.nansum())) > 1:
            warn(
                f"Add(multiplier={self.multiplier:g}) at {count} layers at once: their doses sum to "
                f"{total:.2g}, more than the residual stream's own norm. Divide the multiplier by {count}."
            )

    __repr__ = short_repr

    def edits(self, n_layers: int) -> list[Edit]:
        """One edit per layer, for a model of `n_layers`. Raises as `steer`."""
        positions = self.positions
        if self.vector.has_positions:
            positions = positions & _first_positions(self.vector.values.shape[-2])
        return _edits(self.vector, positions, f"Add(multiplier={self.multiplier:g})", self._change)

    def _change(self, vector: SteeringVector) -> Change:
        scaled = _copied_once(self.multiplier * vector.values)
        if not vector.has_positions:
            return lambda x, index: x + scaled(x)
        last = len(vector.values) - 1
        return lambda x, index: x + scaled(x)[index.clamp(0, last)]


@checked
@dataclass(frozen=True, eq=False)
class ProjectOut:
    """Remove the projection on a direction: x − strength·(x·d)d, with d the unit direction.

    Args:
        vector: its length does not matter, but for zero, which raises ValueError.
        strength: 1 removes, 2 reflects.
        positions: at which tokens.

    Source: directional ablation, Arditi et al. 2024 (arXiv 2406.11717), section 2.4.
    """

    vector: Vectors
    strength: float = 1.0
    positions: Positions = field(default_factory=all_tokens)

    __repr__ = short_repr

    def __post_init__(self) -> None:
        self.vector.normalized()

    def edits(self, n_layers: int) -> list[Edit]:
        """One edit per layer, for a model of `n_layers`. Raises as `steer`."""
        return _edits(self.vector, self.positions, f"ProjectOut(strength={self.strength:g})", self._change)

    def _change(self, vector: SteeringVector) -> Change:
        unit = _unit(vector)
        return lambda x, index: x - self.strength * _projection(x, unit(x)) * unit(x)


@checked
@dataclass(frozen=True, eq=False)
class SetProjection:
    """Set the projection on a direction: afterwards x·d = value, with d the unit direction.

    Args:
        vector: its length does not matter, but for zero, which raises ValueError.
        value: in the residual stream's units.
        positions: at which tokens.
    """

    vector: Vectors
    value: float
    positions: Positions = field(default_factory=all_tokens)

    __repr__ = short_repr

    def __post_init__(self) -> None:
        self.vector.normalized()

    def edits(self, n_layers: int) -> list[Edit]:
        """One edit per layer, for a model of `n_layers`. Raises as `steer`."""
        return _edits(self.vector, self.positions, f"SetProjection(value={self.value:g})", self._change)

    def _change(self, vector: SteeringVector) -> Change:
        unit = _unit(vector)
        return lambda x, index: x + (self.value - _projection(x, unit(x))) * unit(x)


@checked
@dataclass(frozen=True, eq=False)
class Ablate:
    """Replace a hook's activations, all of them or some heads.

    Args:
        layer, hook: block index (negatives from the end) and short hook name.
        heads: only these heads; with hook "z" only.
        to: "zero", a vector "d_hook", or activations whose mean over prompts and positions is taken.
        positions: at which tokens.
    """

    layer: int
    hook: str = "resid_post"
    heads: Sequence[int] | None = field(default=None, kw_only=True)
    to: Literal["zero"] | Float[Tensor, " d_hook"] | Activations = field(default="zero", kw_only=True)
    positions: Positions = field(default_factory=all_tokens, kw_only=True)

    __repr__ = short_repr

    def __post_init__(self) -> None:
        if self.heads is not None and (self.hook != "z" or not len(self.heads)):
            raise ValueError(
                f"hook={self.hook!r}, heads={list(self.heads)}: expected hook 'z', and one head or more."
            )

    def edits(self, n_layers: int) -> list[Edit]:
        """One edit, for a model of `n_layers`. Raises as `steer`."""
        (layer,) = resolve_layers(self.layer, n_layers)
        target = self._target(layer)
        width, copied = target.shape[-1] if target.ndim else None, _copied_once(target)
        described = f"Ablate(hook={self.hook!r}) at layer {layer}"
        identity = self.to.identity if isinstance(self.to, Activations) else None
        heads = None if self.heads is None else tuple(self.heads)

        def change(x: Tensor, index: Tensor) -> Tensor:
            return copied(x).expand_as(x)

        return [Edit(layer, self.hook, self.positions, change, width, described, identity, heads)]

    def _target(self, layer: int) -> Tensor:
        """A number or a vector "d_hook"."""
        if isinstance(self.to, Activations):
            if layer not in self.to.layers or self.to.hook != self.hook:
                raise ValueError(
                    f"Ablate(to=…) has activations of {self.to.hook} at layers {list(self.to.layers)}: "
                    f"expected {self.hook} at layer {layer}."
                )
            return self.to.values[:, self.to.layers.index(layer)].double().nanmean(dim=(0, 1))
        return torch.tensor(0.0) if isinstance(self.to, str) else self.to


def _edits(
    vectors: Vectors, positions: Positions, described: str, change: Callable[[SteeringVector], Change]
) -> list[Edit]:
    """One edit per layer of the vectors."""

    def edit(vector: SteeringVector) -> Edit:
        width, where = vector.values.shape[-1], f"{described} at layer {vector.layer}"
        return Edit(vector.layer, vector.hook, positions, change(vector), width, where, vector.identity)

    return list(map(edit, vectors.as_vectors()))


def _unit(vector: SteeringVector) -> Callable[[Tensor], Tensor]:
    if vector.has_positions:
        raise ValueError("vectors with a position axis: a projection needs one direction per layer.")
    return _copied_once(vector.normalized().values)


def _copied_once(values: Tensor) -> Callable[[Tensor], Tensor]:
    """`values.to(x)` as a function of x, copied once per device and dtype: each copy waits for a GPU."""
    copies: dict[tuple[torch.device, torch.dtype], Tensor] = {}

    def like(x: Tensor) -> Tensor:
        key = x.device, x.dtype
        if key not in copies:
            copies[key] = values.to(x)
        return copies[key]

    return like


def _projection(x: Float[Tensor, "*slots d_hook"], unit: Float[Tensor, " d_hook"]) -> Tensor:
    return (x @ unit)[..., None]


def _first_positions(count: int) -> Positions:
    """The prompt's first `count` tokens; raises ValueError for a shorter prompt."""
    positions = span(0, count)

    def mask(prompt: PromptTokens) -> Bool[Tensor, " pos"]:
        if prompt.length < count:
            raise ValueError(
                f"the vectors are for the first {count} positions, but a prompt is shorter: {prompt}."
            )
        return positions.select(prompt)

    # A label of its own: the tracker caches masks by label, and a plain span does not raise.
    return replace(positions, label=f"first({count})", _mask=mask)
