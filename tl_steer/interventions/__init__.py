"""Operations as values, and `steer`, which applies them."""

from .condition_steering import ConditionSlots, ConditionSteering, steer_conditions
from .operations import Ablate, Add, Edit, Operation, ProjectOut, SetProjection, Vectors, edits_of
from .steering import checked_edits, raise_non_finite, steer

__all__ = [
    "Ablate", "Add", "ConditionSlots", "ConditionSteering", "Edit", "Operation", "ProjectOut",
    "SetProjection", "Vectors", "checked_edits", "edits_of", "raise_non_finite", "steer",
    "steer_conditions",
]  # fmt: skip
