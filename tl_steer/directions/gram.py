"""Mean differences and principal components of many subsets of pairs, from one Gram matrix per layer.

Both depend on activations through inner products only: the vector of a subset is a weighted sum of rows, and
its cosines and projections follow from the weights and the Gram matrix.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from ..activations import PairedActivations
from .estimators import Estimator, apply_estimator, mean_difference, principal_component

ROUNDING = 2 * np.finfo(np.float32).eps  # relative length of a vector that may be rounding error

Weights = Float[np.ndarray, "layer row"]


@dataclass(frozen=True)
class PairGram:
    """Gram matrices of pairs, in float64, and the estimator they serve.

    The rows are the difference of each pair; for pooled components then the midpoint of each pair, minus the
    mean of all midpoints.
    """

    pairs: PairedActivations
    values: Float[np.ndarray, "layer row row"]
    estimator: Estimator
    squares: Float[np.ndarray, "layer pair"]  # squared length of the activations, the mean of both sides
    arguments: dict[str, Any] | None  # keywords of `principal_component`; `None` for `mean_difference`

    def weights(
        self, rows: Int[np.ndarray, " drawn"], signs: Float[np.ndarray, " pair"] | None = None
    ) -> Weights:
        """Weights of the rows whose sum is the estimator's vector of a subset, up to a positive factor.

        They are 0 at layers where the sides of these pairs do not differ.

        Args:
            rows: the pairs; a repeated one counts as often.
            signs: −1 for each pair whose sides are swapped.
        """
        count = np.bincount(rows, minlength=len(self.pairs)).astype(float)
        signs = np.ones_like(count) if signs is None else signs
        mean = np.resize(count * signs, self.values.shape[1])
        mean[len(count) :] = 0
        if self.arguments is None:
            weights = np.tile(mean, (len(self.values), 1))
            smallest = (mean @ self.values @ mean) / len(rows) ** 2
        else:
            layers = [_component(gram, count, signs, mean, **self.arguments) for gram in self.values]
            weights, smallest = (np.stack(each) for each in zip(*layers, strict=True))
        if (smallest <= ROUNDING**2 * (self.squares @ count) / len(rows)).any():
            # The estimator itself decides whether there is a direction.
            drawn = self.pairs.swapped((signs < 0).tolist()).subset(rows.tolist())
            vectors = apply_estimator(self.estimator, drawn, allow_zero=True)
            weights[(vectors.values == 0).all(-1).numpy()] = 0
        return weights


def pair_gram(pairs: PairedActivations, estimator: Estimator) -> PairGram | None:
    """Gram matrices for an estimator; `None` where it needs more than inner products."""
    function, arguments = estimator, {}
    if isinstance(estimator, partial) and not estimator.args:
        function, arguments = estimator.func, estimator.keywords
    if function is mean_difference:
        arguments = None
    elif function is not principal_component or not isinstance(arguments.get("component", 1), int):
        return None
    is_pooled = arguments is not None and arguments.get("of", "pooled") == "pooled"
    values, squares = [], []
    sides = (side.transpose(0, 1).double().numpy() for side in pairs.sides())
    for positive, negative in zip(*sides, strict=True):
        rows = positive - negative
        if is_pooled:
            middle = (positive + negative) / 2
            rows = np.concatenate([rows, middle - middle.mean(0)])
        values.append(rows @ rows.T)
        squares.append(np.square([positive, negative]).sum(-1).mean(0))
    return PairGram(pairs, np.stack(values), estimator, np.stack(squares), arguments)


def _component(
    gram: Float[np.ndarray, "row row"],
    count: Float[np.ndarray, " pair"],
    signs: Float[np.ndarray, " pair"],
    mean: Float[np.ndarray, " row"],
    *,
    component: int = 1,
    of: str = "pooled",
    sign: str = "mean",
) -> tuple[Float[np.ndarray, " row"], float]:
    """Row weights of one principal axis, oriented as in `principal_component`, and its eigenvalue.

    The decomposed rows are scale · (row − centred · Σ share · rows). Pooled rows, midpoint ± half a
    difference, have the same covariance as the midpoints times √2 and the differences divided by √2.
    """
    from scipy.linalg import eigh

    pairs = len(count)
    scale, centred, share = np.sqrt(count), np.zeros(pairs), count / count.sum()
    if of == "centred_differences":
        centred, share = signs, signs * share
    if of == "pooled":
        scale = np.concatenate([scale / np.sqrt(2), scale * np.sqrt(2)])
        centred, share = np.repeat([0.0, 1.0], pairs), np.concatenate([0 * share, share])
    used = np.flatnonzero(scale)
    if component > len(used):
        return np.zeros(len(gram)), 0.0
    rows = gram[np.ix_(used, used)]
    if centred.any():
        # Without the mean's own square, which changes only the smallest eigenvalue, that of the constant row.
        with_mean, shift = (gram @ share)[used], centred[used]
        rows = rows - np.outer(shift, with_mean) - np.outer(with_mean, shift)
    last = len(used) - component
    rows = rows * scale[used] * scale[used, None]
    eigenvalues, vectors = eigh(rows, subset_by_index=[last, last], check_finite=False)
    weights = np.zeros(len(gram))
    weights[used] = scale[used] * vectors[:, 0]
    weights -= share * (centred @ weights)
    projected = gram[:pairs] @ weights
    gap = mean[:pairs] @ projected
    votes = (count * np.sign(signs * projected)).sum() if sign == "vote" else 0
    return weights * (np.sign(votes or gap) or 1.0), eigenvalues[0] / count.sum()
