"""Fisher's linear discriminant where numbers are many and rows are few, without the covariance itself."""

import numpy as np
from jaxtyping import Float

Side = Float[np.ndarray, "row d_hook"]
Normal = Float[np.ndarray, " d_hook"]
SINGULAR = 1e-6  # of a variance, the part that shrinkage gave, from which on it can be divided by


def discriminant_normal(positive: Side, negative: Side) -> Normal:
    """The sides' difference times the inverse of their mean covariance, each shrunk as by Ledoit and Wolf.

    Args:
        positive, negative: activations of either side, float64.

    Each side is standardised, shrunk towards a multiple of the identity, and scaled back, as scikit-learn's
    `LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto")` does, whose normal this is. A covariance so
    shrunk is a diagonal plus an outer product a row, so that it is solved in as many unknowns as there are
    rows (Woodbury). Where next to nothing is shrunk (of two pairs, say) it is singular, and scikit-learn's
    least squares decide.
    """
    (diagonal, rows), (other_diagonal, other_rows) = map(_shrunk, (positive, negative))
    diagonal, rows = (diagonal + other_diagonal) / 2, np.concatenate([rows, other_rows]) / np.sqrt(2)
    if (diagonal <= SINGULAR * (rows**2).sum(0)).any():
        return _least_squares(positive, negative)
    unit = np.sqrt(diagonal)  # in which the diagonal is the identity
    return _solved(rows / unit, (positive.mean(0) - negative.mean(0)) / unit) / unit


def _shrunk(rows: Side) -> tuple[Normal, Side]:
    """The covariance of one side as a diagonal and a factor F, of which it is diagonal + Fᵀ · F."""
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(rows)
    standard = (rows - scaler.mean_) / scaler.scale_
    share = _shrinkage(standard)
    diagonal = share * (standard**2).mean() * scaler.scale_**2
    return diagonal, np.sqrt((1 - share) / len(rows)) * standard * scaler.scale_


def _shrinkage(centred: Side) -> float:
    """Ledoit and Wolf's share of the identity, from the Gram matrix of rows or of columns, the smaller."""
    count, width = centred.shape
    gram = centred @ centred.T if count < width else centred.T @ centred
    square = (gram**2).sum() / count**2  # of the covariance's entries
    fourth = ((centred**2).sum(1) ** 2).sum() / count
    distance = square - width * (centred**2).mean() ** 2
    error = min((fourth - square) / count, distance)
    return error / distance if error > 0 else 0.0


def _solved(factor: Side, wanted: Normal) -> Normal:
    """x of (1 + Fᵀ · F) x = wanted, through the smaller of F · Fᵀ and Fᵀ · F."""
    count, width = factor.shape
    if count >= width:
        return np.linalg.solve(np.eye(width) + factor.T @ factor, wanted)
    return wanted - factor.T @ np.linalg.solve(np.eye(count) + factor @ factor.T, factor @ wanted)


def _least_squares(positive: Side, negative: Side) -> Normal:
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

    labels = [1] * len(positive) + [0] * len(negative)
    fitted = LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto")
    return fitted.fit(np.concatenate([positive, negative]), labels).coef_[0]
