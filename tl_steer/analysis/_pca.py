"""Principal components of both sides of contrast pairs, as coordinates to look at."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import pandas as pd
from jaxtyping import Float

from .._util.validation import checked
from ..activations import PairedActivations
from ..models import resolve_layers
from .row_labels import a_row_an_activation, side_labels

Side = Float[np.ndarray, "pair layer d_hook"]


@checked
def pca(
    activations: PairedActivations,
    *,
    components: int = 3,
    layers: int | Sequence[int] | None = None,
    of: Literal["pooled", "differences", "centred_differences"] = "pooled",
) -> pd.DataFrame:
    """Coordinates of every activation on the first principal components of its layer.

    Args:
        activations: both sides, one position each.
        components: how many.
        layers: which of the captured layers, negatives from the model's end; all by default.
        of: the rows that are decomposed, as for `principal_component`: both sides pooled, minus their common
            mean; or the differences of the pairs, as they are or minus their mean. The study's figure of
            layer 17 has the components of the centred differences.

    Returns:
        One row per layer, pair and side: layer, pair, side ("positive", "negative"), prompt, label
        (its message, where it was rendered from one), the factors
        (those that differ between the sides as one column), decomposed (`of`), PC1 … PCk, explained_1 …
        explained_k. PC1 … are the coordinates of the activation minus the common mean of both sides, in the
        residual stream's units.
        explained_1 … are each component's share of the sum of squares of the decomposed rows (of centred
        rows, of their variance), the same in all rows of a layer.

    Raises:
        ValueError: fewer components exist, a layer was not captured, or the differences of a layer, which is
            named, vary in fewer directions.

    Both sides of every pair are projected, whatever is decomposed. Pooled components are also those of what
    pairs share (the topic); components of differences are not fitted to it. The sign of a component is
    arbitrary: it is set so that the positive side has the higher mean, or, in a tie, so that the largest
    coordinate is positive.
    """
    chosen = _captured(activations, layers)
    sides = [side.double().numpy() for side in activations.sides()]
    both, rows = np.concatenate(sides), _rows(*sides, of)
    available = min(len(rows) - (of != "differences"), rows.shape[-1])
    if not 1 <= components <= available:
        raise ValueError(
            f"components={components} do not exist: {len(activations)} pairs give 1 to {available}."
        )
    labels = side_labels(activations)
    tables = []
    for layer in chosen:
        index = activations.layers.index(layer)
        points = both[:, index] - both[:, index].mean(0)
        rounding = np.finfo(np.float32).eps * np.linalg.norm(both[:, index])
        axes, explained = _components(rows[:, index], components, rounding)
        what, needed = ("activations", 1) if of == "pooled" else ("differences", components)
        if not explained[needed - 1]:
            raise ValueError(
                f"the {what} at layer {layer} vary in fewer than {needed} directions: capture other "
                "layers or positions, or give fewer components."
            )
        coordinates = _oriented(points @ axes.T)
        values = {"decomposed": of} | {f"PC{k + 1}": coordinates[:, k] for k in range(components)}
        values |= {f"explained_{k + 1}": explained[k] for k in range(components)}
        tables.append(a_row_an_activation(labels, layer, pd.DataFrame(values)))
    return pd.concat(tables, ignore_index=True)


def _rows(positive: Side, negative: Side, of: str) -> Float[np.ndarray, "row layer d_hook"]:
    """What is decomposed."""
    rows = np.concatenate([positive, negative]) if of == "pooled" else positive - negative
    return rows if of == "differences" else rows - rows.mean(0)


def _components(
    rows: Float[np.ndarray, "row d_hook"], components: int, rounding: float
) -> tuple[Float[np.ndarray, "component d_hook"], Float[np.ndarray, " component"]]:
    """Axes of the rows as they are, and their shares of the sum of squares; up to `rounding` is 0."""
    _, singular, axes = np.linalg.svd(rows, full_matrices=False)
    squares = np.where(singular > rounding, singular**2, 0.0)
    total = squares.sum()
    return axes[:components], squares[:components] / (total if total else 1.0)


def _oriented(
    coordinates: Float[np.ndarray, "point component"],
) -> Float[np.ndarray, "point component"]:
    """Coordinates with the positive side, which is the first half, higher on average."""
    positive, negative = np.split(coordinates, 2)
    gap = positive.mean(0) - negative.mean(0)
    largest = np.take_along_axis(coordinates, np.abs(coordinates).argmax(0)[None], 0)[0]
    return coordinates * np.where(np.where(gap == 0, largest, gap) < 0, -1.0, 1.0)


def _captured(pairs: PairedActivations, layers: int | Sequence[int] | None) -> tuple[int, ...]:
    if layers is None:
        return pairs.layers
    chosen = resolve_layers(layers, pairs.identity.n_layers)
    missing = [layer for layer in chosen if layer not in pairs.layers]
    if missing:
        raise ValueError(f"layers {missing} were not captured; there are {list(pairs.layers)}.")
    return chosen
