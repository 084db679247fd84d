"""The cells of a sweep: one vector, operation, set of layers and multiplier each."""

import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import isnan

import pandas as pd

from .._util.seeds import derived_seed
from ..directions import SteeringVector, SteeringVectors, random_like
from ..interventions import Add, Operation, ProjectOut, Vectors
from ..models import resolve_layers
from ..positions import Positions

OperationMaker = Callable[[SteeringVector, float, Positions], Operation]
NAN = float("nan")


@dataclass(frozen=True)
class Cell:
    """What is done to the model in one cell, and how the table names it.

    Attributes:
        vector: name of the vector.
        control: whether it is a control, not the vector under study.
        control_of: name of the studied vector that a control belongs to; "" for a control that serves all
            vectors, and for what is no control.
        operation: "add", "project_out", a callable's name, or "none".
        layers: steered together.
        hook: short hook name.
        multiplier: NaN where the operation has none.
        operations: one a layer.
    """

    vector: str
    control: bool
    control_of: str
    operation: str
    layers: tuple[int, ...]
    hook: str
    multiplier: float
    operations: tuple[Operation, ...]

    def labels(self, stream_norm: Mapping[tuple[str, int], float]) -> dict[str, object]:
        """The table's columns of this cell; `stream_norm` is the stream's typical norm by hook and layer."""
        return {
            "vector": self.vector,
            "control": self.control,
            "control_of": self.control_of,
            "operation": self.operation,
            "layers": layers_label(self.layers),
            "hook": self.hook,
            "multiplier": self.multiplier,
            "dose": max((_dose(operation, stream_norm) for operation in self.operations), default=0.0),
        }


UNSTEERED = Cell("none", False, "", "none", (), "", 0.0, ())


def layers_label(layers: Sequence[int]) -> str:
    """Layers as a table names them, such as "17+31"."""
    return "+".join(map(str, layers))


def controls_at(cells: Sequence[Cell], conditions: pd.DataFrame) -> list[Cell]:
    """Those cells of controls that are at the chosen condition of a vector that they serve.

    Args:
        cells: of a sweep.
        conditions: vector, operation, layers, hook and multiplier, a row each.
    """
    vectors: dict[tuple[object, ...], set[str]] = {}
    for row in conditions.to_dict("records"):
        place = _place(row["operation"], row["layers"], row["hook"], row["multiplier"])
        vectors.setdefault(place, {""}).add(row["vector"])
    return [
        cell
        for cell in cells
        if cell.control
        and cell.control_of
        in vectors.get(_place(cell.operation, layers_label(cell.layers), cell.hook, cell.multiplier), ())
    ]


def _place(operation: str, layers: str, hook: str, multiplier: float) -> tuple[object, ...]:
    return operation, layers, hook, None if isnan(multiplier) else multiplier


def named_vectors(vectors: Vectors | Mapping[str, Vectors]) -> dict[str, SteeringVectors]:
    """Each set of vectors by its name; one without a name has that of its method."""
    named = vectors if isinstance(vectors, Mapping) else {vectors.method: vectors}
    return {name: each.as_vectors() for name, each in named.items()}


def sweep_cells(
    vectors: Mapping[str, SteeringVectors],
    controls: int | Mapping[str, SteeringVectors],
    *,
    layers: int | Sequence[int | Sequence[int]] | None,
    multipliers: Sequence[float],
    operations: Sequence[str | OperationMaker],
    positions: Positions,
    seed: int,
    divide_by_layers: bool = False,
    allow_zero: bool = False,
) -> list[Cell]:
    """Every cell of a sweep, the unsteered one first, controls at every layer and multiplier last.

    Raises:
        ValueError: no vectors, no multipliers for an operation that needs them, an unknown operation, a
            control named like a vector, a cell that is asked for twice, or a vector of length zero to add.
        KeyError: a layer for which there is no vector.
    """
    if not vectors:
        raise ValueError("no vectors given; pass SteeringVectors, or a mapping of names to them.")
    layers = [layers] if isinstance(layers, int) else layers
    if layers is not None and not len(layers):
        raise ValueError("no layers given; leave layers out for all that have vectors.")
    if not operations:
        raise ValueError("no operations given; pass at least one, such as 'add'.")
    if UNSTEERED.vector in vectors:
        raise ValueError(f"{UNSTEERED.vector!r} is the name of the unsteered cell: give the vector another.")
    made = _control_vectors(vectors, controls, seed)
    if taken := sorted({UNSTEERED.vector, *vectors} & set(made)):
        raise ValueError(f"controls named {taken}: a vector, or the unsteered cell, has that name already.")
    named = [(name, each, False, "") for name, each in vectors.items()]
    named += [(name, each, True, control_of) for name, (each, control_of) in made.items()]
    cells = [UNSTEERED]
    for (name, each, control, control_of), operation in itertools.product(named, operations):
        maker, label = _maker(operation, allow_zero)
        doses = [NAN] if operation == "project_out" else list(multipliers)
        if not doses:
            raise ValueError(f"operation {label!r} needs multipliers; none given.")
        for places, multiplier in itertools.product(_layer_sets(each, layers), doses):
            if operation == "add" and not allow_zero:
                _require_length(name, each, places)
            multiplier = float(multiplier) / (len(places) if divide_by_layers else 1)
            steps = tuple(maker(each[layer], multiplier, positions) for layer in places)
            cells.append(Cell(name, control, control_of, label, places, each.hook, multiplier, steps))
    _require_different(cells)
    return cells


def _require_length(name: str, vectors: SteeringVectors, layers: Sequence[int]) -> None:
    """Refuse to add a vector of length zero: its conditions would be the unsteered one under other names."""
    if zero := [layer for layer in vectors.zero_layers() if layer in layers]:
        raise ValueError(
            f"the vectors {name!r} have length zero at layers {zero}: adding them changes nothing. Leave "
            "these layers out, or give allow_zero=True."
        )


def _require_different(cells: Sequence[Cell]) -> None:
    """Tables tell cells apart by their labels alone."""
    labels = Counter(
        str((cell.vector, cell.operation, tuple(sorted(cell.layers)), cell.multiplier)) for cell in cells
    )
    if repeated := sorted(label for label, count in labels.items() if count > 1):
        raise ValueError(
            f"asked for twice (vector, operation, layers, multiplier): {'; '.join(repeated)}. "
            "Name callables differently, and each layer and multiplier once."
        )


def _control_vectors(
    vectors: Mapping[str, SteeringVectors], controls: int | Mapping[str, SteeringVectors], seed: int
) -> dict[str, tuple[SteeringVectors, str]]:
    """Controls by name, each with the vector that it belongs to; "" for those that the caller gave."""
    if isinstance(controls, Mapping):
        return {name: (each, "") for name, each in controls.items()}
    if controls < 0:
        raise ValueError(f"controls={controls}: give how many random directions, 0 for none.")
    several = len(vectors) > 1
    return {
        f"random {number + 1}" + (f" ({name})" if several else ""): (
            random_like(each, seed=derived_seed(seed, place, number)),
            name,
        )
        for place, (name, each) in enumerate(vectors.items())
        for number in range(controls)
    }


def _layer_sets(
    vectors: SteeringVectors, layers: int | Sequence[int | Sequence[int]] | None
) -> Iterator[tuple[int, ...]]:
    n_layers = vectors.identity.n_layers
    for places in vectors.layers if layers is None else layers:
        yield resolve_layers(places, n_layers)


def _maker(operation: str | OperationMaker, allow_zero: bool) -> tuple[OperationMaker, str]:
    if callable(operation):
        return operation, getattr(operation, "__name__", type(operation).__name__)
    if operation == "add":
        return partial(Add, allow_zero=allow_zero), "add"
    if operation == "project_out":
        return lambda vector, _, positions: ProjectOut(vector, positions=positions), "project_out"
    raise ValueError(f"operation {operation!r} is unknown: use 'add', 'project_out' or a callable.")


def _dose(operation: Operation, stream_norm: Mapping[tuple[str, int], float]) -> float:
    """‖multiplier · vector‖ over the stream's typical norm; NaN for what is not an addition."""
    if not isinstance(operation, Add):
        return NAN
    return max(
        abs(operation.multiplier) * float(vector.norms()) / stream_norm[vector.hook, vector.layer]
        for vector in operation.vector.as_vectors()
    )
