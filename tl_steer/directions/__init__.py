"""Estimators, from paired activations to steering vectors, and the vectors as values."""

from .controls import coin_flips, control_vectors
from .estimators import (
    Estimator,
    lda_direction,
    logistic_direction,
    mean_difference,
    principal_component,
    random_direction,
    random_like,
)
from .factors import factor_directions, without_factors
from .vectors import SteeringVector, SteeringVectors

__all__ = [
    "Estimator",
    "SteeringVector",
    "SteeringVectors",
    "coin_flips",
    "control_vectors",
    "factor_directions",
    "lda_direction",
    "logistic_direction",
    "mean_difference",
    "principal_component",
    "random_direction",
    "random_like",
    "without_factors",
]
