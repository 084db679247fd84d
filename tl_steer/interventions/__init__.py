"""Operations as values, and `steer`, which applies them."""

from .operations import Ablate, Add, Edit, Operation, ProjectOut, SetProjection
from .steering import HookDidNotFireError, NonFiniteError, steer

__all__ = [
    "Ablate",
    "Add",
    "Edit",
    "HookDidNotFireError",
    "NonFiniteError",
    "Operation",
    "ProjectOut",
    "SetProjection",
    "steer",
]
