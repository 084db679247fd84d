"""Estimators, from paired activations to steering vectors, and the vectors as values."""

from .estimators import (
    Estimator,
    lda_direction,
    logistic_direction,
    mean_difference,
    principal_component,
    random_direction,
    random_like,
)
from .vectors import SteeringVector, SteeringVectors

__all__ = [
    "Estimator",
    "SteeringVector",
    "SteeringVectors",
    "lda_direction",
    "logistic_direction",
    "mean_difference",
    "principal_component",
    "random_direction",
    "random_like",
]
