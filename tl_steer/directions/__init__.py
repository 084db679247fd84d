"""Estimators, from paired activations to steering vectors, and the vectors as values."""

from .controls import coin_flips, control_vectors
from .estimators import (
    Estimator,
    NoDirectionError,
    apply_estimator,
    lda_direction,
    logistic_direction,
    mean_difference,
    principal_component,
    random_direction,
    random_like,
)
from .exchange import (
    from_repeng,
    from_steering_vectors,
    load_gguf,
    load_pt,
    save_gguf,
    save_pt,
    to_repeng,
    to_steering_vectors,
)
from .factors import factor_directions, without_factors
from .gram import PairGram, pair_gram
from .provenance import digest, digest_of
from .vectors import SteeringVector, SteeringVectors

__all__ = [
    "Estimator",
    "NoDirectionError",
    "PairGram",
    "SteeringVector",
    "SteeringVectors",
    "apply_estimator",
    "coin_flips",
    "control_vectors",
    "digest",
    "digest_of",
    "factor_directions",
    "from_repeng",
    "from_steering_vectors",
    "lda_direction",
    "load_gguf",
    "load_pt",
    "logistic_direction",
    "mean_difference",
    "pair_gram",
    "principal_component",
    "random_direction",
    "random_like",
    "save_gguf",
    "save_pt",
    "to_repeng",
    "to_steering_vectors",
    "without_factors",
]
