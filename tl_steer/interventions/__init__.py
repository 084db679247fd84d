"""Operations as values, and `steer`, which applies them."""

from .cells import CellSteering, Part, steer_cells
from .operations import Ablate, Add, Edit, Operation, ProjectOut, SetProjection, Vectors, edits_of
from .steering import HookDidNotFireError, NonFiniteError, checked_edits, raise_non_finite, steer

__all__ = [
    "Ablate",
    "Add",
    "CellSteering",
    "Edit",
    "HookDidNotFireError",
    "NonFiniteError",
    "Operation",
    "Part",
    "ProjectOut",
    "SetProjection",
    "Vectors",
    "checked_edits",
    "edits_of",
    "raise_non_finite",
    "steer",
    "steer_cells",
]
