"""Conditions of a sweep (vector, operation, layers, multiplier), and what is measured under some of them."""

import itertools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import isnan

import pandas as pd

from .._util.seeds import derived_seed
from ..directions import SteeringVector, SteeringVectors, random_like
from ..interventions import Add, Operation, ProjectOut, Vectors
from ..models import resolve_layers
from ..positions import Positions
from .sweep_table import CONDITION

OperationFactory = Callable[[SteeringVector, float, Positions], Operation]
Norms = Mapping[tuple[str, int], float]  # typical norm of the unsteered residual stream by hook and layer
NAN = float("nan")
AT = ("operation", "layers", "hook", "multiplier")  # shared by a condition and its controls


@dataclass(frozen=True)
class Condition:
    """What is done to the model, and how the table names it.

    Attributes:
        control_of: name of the vector that a control belongs to; "" for controls of all vectors, and for
            vectors that are not controls.
        operation: "add", "project_out", a callable's name, or "none".
        layers: steered together.
        multiplier: NaN if the operation has none.
        operations: one per layer.
    """

    vector: str
    control: bool
    control_of: str
    operation: str
    layers: tuple[int, ...]
    hook: str
    multiplier: float
    operations: tuple[Operation, ...]

    @property
    def layers_label(self) -> str:
        """The layers as tables name them, such as "17+31"."""
        return "+".join(map(str, self.layers))

    def labels(self, norms: Norms) -> dict[str, object]:
        """The condition's columns and dose."""
        dose = max((_dose(operation, norms) for operation in self.operations), default=0.0)
        return {name: getattr(self, name) for name in CONDITION} | {"layers": self.layers_label, "dose": dose}


UNSTEERED = Condition("none", False, "", "none", (), "", 0.0, ())


@dataclass(frozen=True, eq=False)
class ChunkResult:
    """What was measured under the conditions of a chunk.

    Attributes:
        outcomes: choice, logit_difference, probability, mass and text, one row per condition and prompt (or
            draw), all prompts of the first condition first.
        norms: empty if the chunk does not contain the unsteered condition.
    """

    outcomes: pd.DataFrame
    norms: Norms


def _dose(operation: Operation, norms: Norms) -> float:
    """‖multiplier · vector‖ divided by the typical norm; NaN for operations other than `Add`."""
    if not isinstance(operation, Add):
        return NAN
    return max(
        abs(operation.multiplier) * float(vector.norms()) / norms[vector.hook, vector.layer]
        for vector in operation.vector.as_vectors()
    )


def controls_at(conditions: Sequence[Condition], chosen: pd.DataFrame) -> list[Condition]:
    """Conditions of the controls that belong to a chosen condition's vector, at that condition."""

    def key(owner: str, operation: str, layers: str, hook: str, multiplier: float) -> tuple[object, ...]:
        return owner, operation, layers, hook, None if isnan(multiplier) else multiplier

    keys = {
        key(owner, *(row[name] for name in AT))
        for row in chosen.to_dict("records")
        for owner in ("", row["vector"])
    }

    def is_chosen(each: Condition) -> bool:
        at = key(each.control_of, each.operation, each.layers_label, each.hook, each.multiplier)
        return each.control and at in keys

    return list(filter(is_chosen, conditions))


def named_vectors(vectors: Vectors | Mapping[str, Vectors]) -> dict[str, SteeringVectors]:
    """Vectors by name; without a name, that of their method."""
    named = vectors if isinstance(vectors, Mapping) else {vectors.method: vectors}
    return {name: each.as_vectors() for name, each in named.items()}


def sweep_conditions(
    vectors: Mapping[str, SteeringVectors],
    controls: int | Mapping[str, SteeringVectors],
    *,
    layers: int | Sequence[int | Sequence[int]] | None,
    multipliers: Sequence[int | float],
    operations: Sequence[str | OperationFactory],
    positions: Positions,
    seed: int,
    divide_by_layers: bool = False,
    allow_zero: bool = False,
) -> list[Condition]:
    """All conditions of a sweep, the unsteered one first, then vectors, then controls.

    Raises:
        ValueError: no vectors, layers, operations or multipliers, an unknown operation, a name used twice,
            a condition requested twice, or a vector of length zero to add.
        KeyError: a layer without a vector.
    """
    layers = [layers] if isinstance(layers, int) else layers
    for name, values in {"vectors": vectors, "layers": layers, "operations": operations}.items():
        if values is not None and not len(values):
            raise ValueError(f"no {name} given: expected at least one.")
    if UNSTEERED.vector in vectors:
        raise ValueError(f"{UNSTEERED.vector!r} is the name of the unsteered condition: rename the vector.")
    with_owners = _control_vectors(vectors, controls, seed)
    if twice := sorted({UNSTEERED.vector, *vectors} & set(with_owners)):
        raise ValueError(f"controls named {twice}: a vector or the unsteered condition has that name.")
    named = [(name, each, False, "") for name, each in vectors.items()]
    named += [(name, each, True, owner) for name, (each, owner) in with_owners.items()]
    conditions = [UNSTEERED]
    for (name, each, control, owner), operation in itertools.product(named, operations):
        factory, label = _factory(operation, allow_zero)
        values = [NAN] if operation == "project_out" else list(multipliers)
        if not values:
            raise ValueError(f"operation {label!r} needs multipliers; none given.")
        layer_sets = [resolve_layers(one, each.identity.n_layers) for one in layers or each.layers]
        for layer_set, multiplier in itertools.product(layer_sets, values):
            if operation == "add" and not allow_zero:
                _require_length(name, each, layer_set)
            multiplier = float(multiplier) / (len(layer_set) if divide_by_layers else 1)
            steps = tuple(factory(each[layer], multiplier, positions) for layer in layer_set)
            conditions.append(Condition(name, control, owner, label, layer_set, each.hook, multiplier, steps))
    _require_different(conditions)
    return conditions


def _require_length(name: str, vectors: SteeringVectors, layers: Sequence[int]) -> None:
    """Reject vectors of length zero: adding them gives the unsteered condition under other names."""
    if zero := [layer for layer in vectors.zero_layers() if layer in layers]:
        raise ValueError(
            f"the vectors {name!r} have length zero at layers {zero}: adding them changes nothing. Leave "
            "these layers out, or give allow_zero=True."
        )


def _require_different(conditions: Sequence[Condition]) -> None:
    """Reject conditions with equal labels, which tables cannot tell apart."""
    labels = Counter(
        str((each.vector, each.operation, tuple(sorted(each.layers)), each.multiplier)) for each in conditions
    )
    if repeated := sorted(label for label, count in labels.items() if count > 1):
        raise ValueError(
            f"requested twice (vector, operation, layers, multiplier): {'; '.join(repeated)}. "
            "Name callables differently, and each layer and multiplier once."
        )


def _control_vectors(
    vectors: Mapping[str, SteeringVectors], controls: int | Mapping[str, SteeringVectors], seed: int
) -> dict[str, tuple[SteeringVectors, str]]:
    """Control vectors by name, each with the vector that it belongs to ("" for all)."""
    if isinstance(controls, Mapping):
        return {name: (each, "") for name, each in controls.items()}
    if controls < 0:
        raise ValueError(f"controls={controls}: give how many random directions, 0 for none.")
    return {
        f"random {number + 1}" + (f" ({name})" if len(vectors) > 1 else ""): (
            random_like(each, seed=derived_seed(seed, index, number)),
            name,
        )
        for index, (name, each) in enumerate(vectors.items())
        for number in range(controls)
    }


def _factory(operation: str | OperationFactory, allow_zero: bool) -> tuple[OperationFactory, str]:
    if callable(operation):
        return operation, getattr(operation, "__name__", type(operation).__name__)
    if operation == "add":
        return partial(Add, allow_zero=allow_zero), "add"
    if operation == "project_out":
        return lambda vector, _, positions: ProjectOut(vector, positions=positions), "project_out"
    raise ValueError(f"operation {operation!r} is unknown: use 'add', 'project_out' or a callable.")
