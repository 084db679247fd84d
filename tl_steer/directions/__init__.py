"""Steering vectors as values, the estimators that make them, their controls and files."""

from . import exchange
from .classifiers import lda_direction, logistic_direction
from .controls import coin_flips, control_vectors, random_direction, random_like
from .estimators import Estimator, apply_estimator, digest, digest_of, mean_difference, principal_component
from .factors import factor_directions, without_factors
from .gram import PairGram, pair_gram
from .vectors import SteeringVector, SteeringVectors

__all__ = [
    "Estimator", "PairGram", "SteeringVector", "SteeringVectors", "apply_estimator", "coin_flips",
    "control_vectors", "digest", "digest_of", "exchange", "factor_directions", "lda_direction",
    "logistic_direction", "mean_difference", "pair_gram", "principal_component", "random_direction",
    "random_like", "without_factors",
]  # fmt: skip
