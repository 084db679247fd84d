"""From activations to tables: how directions separate, what varies, how far activations lie along vectors."""

from .pca import pca
from .projections import projections
from .separation import balanced_folds, separation

__all__ = ["balanced_folds", "pca", "projections", "separation"]
