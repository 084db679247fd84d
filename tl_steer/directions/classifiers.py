"""Directions of linear classifiers: logistic regression and Fisher's linear discriminant."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from .._util.validation import checked
from ..activations import PairedActivations
from .estimators import estimated, mean_gap, orient, require_nonzero
from .vectors import SteeringVectors

Side = Float[np.ndarray, "row d_hook"]
Normal = Float[np.ndarray, " d_hook"]
SINGULAR = 1e-6  # smallest share of a variance, contributed by shrinkage, that can be divided by


@checked
def logistic_direction(activations: PairedActivations, *, C: float = 1.0) -> SteeringVectors:
    """Normal of a logistic regression that separates the sides, in activation space.

    Args:
        activations: as for `mean_difference`.
        C: inverse strength of the L2 penalty, on standardised activations.

    Raises:
        ValueError: `C` is not between 1e-12 and 1e12, or there are fewer than two pairs.
        NoDirectionError: as for `mean_difference`.

    The weights are transformed back from the standardised space to the residual stream.
    """
    from sklearn.linear_model import LogisticRegression

    if not 1e-12 <= C <= 1e12:  # not so for NaN either
        raise ValueError(f"C={C}: give a number from 1e-12 (hardly fitted) to 1e12 (hardly penalised).")

    def normal(positive: Side, negative: Side) -> Normal:
        rows = np.concatenate([positive, negative])
        labels = [1] * len(positive) + [0] * len(negative)
        scale = rows.std(0)
        scale[scale == 0] = 1
        fitted = LogisticRegression(C=C, max_iter=2000).fit((rows - rows.mean(0)) / scale, labels)
        return fitted.coef_[0] / scale

    return _classifier_direction(activations, normal, "logistic_direction", {"C": float(C)})


@checked
def lda_direction(activations: PairedActivations) -> SteeringVectors:
    """Fisher's linear discriminant with Ledoit-Wolf shrinkage of the within-side covariance.

    Args:
        activations: as for `mean_difference`.

    Raises:
        ValueError: values so large or so small that no direction can be computed.
        NoDirectionError: as for `mean_difference`, or at some layer nothing varies within the sides.

    Source: Ledoit & Wolf 2004; scikit-learn's `LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto")`.
    """
    return _classifier_direction(activations, discriminant_normal, "lda_direction", {})


def _classifier_direction(
    activations: PairedActivations,
    normal: Callable[[Side, Side], Normal],
    method: str,
    arguments: Mapping[str, Any],
) -> SteeringVectors:
    if len(activations) < 2:
        raise ValueError(f"{method} needs two pairs or more, and there are {len(activations)}.")
    # Where the means are equal, the classifier's weights are rounding error.
    difference, is_zero = mean_gap(activations)
    sides = [side.double().numpy() for side in activations.sides()]
    axes = torch.zeros_like(difference)
    for index in (~is_zero).nonzero().flatten().tolist():
        axes[index] = torch.from_numpy(normal(*(side[:, index].copy() for side in sides)))
    oriented, signs = orient(activations, axes)
    return require_nonzero(estimated(activations, oriented, method, arguments=arguments, sign=signs))


def discriminant_normal(positive: Side, negative: Side) -> Normal:
    """The sides' difference times the inverse of their mean covariance, each shrunk as by Ledoit and Wolf.

    As in scikit-learn, each side is standardised, shrunk towards a multiple of the identity, and scaled back.
    Such a covariance is a diagonal plus one outer product per row: as many unknowns as rows (Woodbury). With
    next to no shrinkage (of two pairs, say) it is singular, and scikit-learn's least squares decide.
    """
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

    (diagonal, rows), (other_diagonal, other_rows) = map(_shrunk_covariance, (positive, negative))
    diagonal, rows = (diagonal + other_diagonal) / 2, np.concatenate([rows, other_rows]) / np.sqrt(2)
    if (diagonal <= SINGULAR * (rows**2).sum(0)).any():
        labels = [1] * len(positive) + [0] * len(negative)
        fitted = LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto")
        return fitted.fit(np.concatenate([positive, negative]), labels).coef_[0]
    scale = np.sqrt(diagonal)  # divided by it, the diagonal is the identity
    return _solved(rows / scale, (positive.mean(0) - negative.mean(0)) / scale) / scale


def _shrunk_covariance(rows: Side) -> tuple[Normal, Side]:
    """The covariance of one side as a diagonal and a factor F: diagonal + Fᵀ · F."""
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(rows)
    standard = (rows - scaler.mean_) / scaler.scale_
    share = _shrinkage(standard)
    diagonal = share * (standard**2).mean() * scaler.scale_**2
    return diagonal, np.sqrt((1 - share) / len(rows)) * standard * scaler.scale_


def _shrinkage(centred: Side) -> float:
    """Ledoit and Wolf's share of the identity, from the smaller Gram matrix, that of rows or of columns."""
    count, width = centred.shape
    gram = centred @ centred.T if count < width else centred.T @ centred
    square = (gram**2).sum() / count**2  # of the covariance's entries
    fourth = ((centred**2).sum(1) ** 2).sum() / count
    distance = square - width * (centred**2).mean() ** 2
    error = min((fourth - square) / count, distance)
    return error / distance if error > 0 else 0.0


def _solved(factor: Side, right: Normal) -> Normal:
    """x of (1 + Fᵀ · F) x = right, through the smaller of F · Fᵀ and Fᵀ · F."""
    count, width = factor.shape
    if count >= width:
        return np.linalg.solve(np.eye(width) + factor.T @ factor, right)
    return right - factor.T @ np.linalg.solve(np.eye(count) + factor @ factor.T, factor @ right)
