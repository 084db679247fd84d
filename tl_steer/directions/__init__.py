"""Estimators, from paired activations to steering vectors, and the vectors as values."""

from . import exchange
from .controls import coin_flips, control_vectors
from .estimators import (
    Estimator,
    apply_estimator,
    lda_direction,
    logistic_direction,
    mean_difference,
    principal_component,
    random_direction,
    random_like,
)
from .factors import factor_directions, without_factors
from .gram import PairGram, pair_gram
from .provenance import digest, digest_of
from .vectors import SteeringVector, SteeringVectors

__all__ = [
    "Estimator",
    "PairGram",
    "SteeringVector",
    "SteeringVectors",
    "apply_estimator",
    "coin_flips",
    "control_vectors",
    "digest",
    "digest_of",
    "exchange",
    "factor_directions",
    "lda_direction",
    "logistic_direction",
    "mean_difference",
    "pair_gram",
    "principal_component",
    "random_direction",
    "random_like",
    "without_factors",
]
