"""Principal components of both sides of contrast pairs, as coordinates to look at."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from jaxtyping import Float

from ..activations import PairedActivations
from ..arguments import checked
from ..models import resolve_layers
from .labels import a_row_an_activation, side_labels


@checked
def pca(
    pairs_activations: PairedActivations, *, components: int = 3, layers: int | Sequence[int] | None = None
) -> pd.DataFrame:
    """Coordinates of every activation on the first principal components of its layer.

    Args:
        pairs_activations: both sides, one position each.
        components: how many.
        layers: which of the captured layers, negatives from the model's end; all by default.

    Returns:
        A row a layer, pair and side: layer, pair, side ("positive", "negative"), prompt, the factors (those
        that differ between the sides as one column), PC1 … PCk in the stream's units, explained_1 …
        explained_k, each component's share of the layer's variance (the same in all its rows).

    Raises:
        ValueError: fewer components exist, or a layer was not captured.

    Both sides are pooled and centred by their common mean, so what pairs share (the topic) is there beside
    what tells the sides apart. The sign of a component is arbitrary: it is set so that the positive side has
    the higher mean, and where neither has, so that its largest coordinate is positive.
    """
    chosen = _captured(pairs_activations, layers)
    both = np.concatenate([side.double().numpy() for side in pairs_activations.sides()])
    available = min(len(both) - 1, both.shape[-1])
    if not 1 <= components <= available:
        raise ValueError(
            f"components={components} do not exist: {len(pairs_activations)} pairs give 1 to {available}."
        )
    labels = side_labels(pairs_activations)
    tables = []
    for layer in chosen:
        coordinates, explained = _components(both[:, pairs_activations.layers.index(layer)], components)
        values = {f"PC{k + 1}": coordinates[:, k] for k in range(components)}
        values |= {f"explained_{k + 1}": explained[k] for k in range(components)}
        tables.append(a_row_an_activation(labels, layer, pd.DataFrame(values)))
    return pd.concat(tables, ignore_index=True)


def _components(
    rows: Float[np.ndarray, "row d_hook"], components: int
) -> tuple[Float[np.ndarray, "row component"], Float[np.ndarray, " component"]]:
    """Coordinates and shares of variance; rows are all positive ones, then as many negative ones."""
    left, singular, _ = np.linalg.svd(rows - rows.mean(0), full_matrices=False)
    coordinates = left[:, :components] * singular[:components]
    positive, negative = np.split(coordinates, 2)
    gap = positive.mean(0) - negative.mean(0)
    largest = np.take_along_axis(coordinates, np.abs(coordinates).argmax(0)[None], 0)[0]
    signs = np.where(np.where(gap == 0, largest, gap) < 0, -1.0, 1.0)
    total = (singular**2).sum()
    return coordinates * signs, singular[:components] ** 2 / (total if total else 1.0)


def _captured(pairs: PairedActivations, layers: int | Sequence[int] | None) -> tuple[int, ...]:
    if layers is None:
        return pairs.layers
    chosen = resolve_layers(layers, pairs.identity.n_layers)
    missing = [layer for layer in chosen if layer not in pairs.layers]
    if missing:
        raise ValueError(f"layers {missing} were not captured; there are {list(pairs.layers)}.")
    return chosen
