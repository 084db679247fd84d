"""How far activations lie along steering vectors."""

import numpy as np
import pandas as pd

from .._util.validation import checked
from ..activations import PairedActivations
from ..directions import SteeringVectors
from .along import along, shared_layers
from .row_labels import a_row_an_activation, side_labels


@checked
def projections(
    activations: PairedActivations, vectors: SteeringVectors, *, centred: bool = False
) -> pd.DataFrame:
    """Projection and cosine of every activation on the vector of its layer.

    Args:
        activations: both sides, one position each.
        vectors: for some of the same layers, at the same hook. Their length does not matter.
        centred: subtract each layer's mean activation, over both sides, first.

    Returns:
        A row a shared layer, pair and side: layer, pair, side ("positive", "negative"), prompt, label
        (its message, where it was rendered from one), the factors
        (those that differ between the sides as one column), projection (x · d, d the unit direction, in the
        stream's units) and cosine.

    Raises:
        ModelMismatchError: the vectors belong to another model.
        ValueError: no pairs, no layer in common, another hook, one vector a position, or a vector of length
            zero.

    As it is (not centred), a row speaks of one activation alone, whatever else is in the table, and its
    projection is the number that `SetProjection` takes. What all activations share moves both sides alike, so
    that they can be compared within a layer. It dominates the cosines, though, and moves from layer to layer:
    to compare layers, or to read cosines, pass centred=True.

    Projections of the pairs that the vectors were made from are flattering: `separation` holds pairs out.
    """
    shared = shared_layers(activations, vectors)
    if not len(activations):
        raise ValueError("no pairs to project: the activations are of none.")
    both = np.concatenate([side.double().numpy() for side in activations.sides()])
    directions = vectors.normalized()
    labels = side_labels(activations)
    tables = []
    for layer in shared:
        rows = both[:, activations.layers.index(layer)]
        rows = rows - rows.mean(0) if centred else rows
        tables.append(a_row_an_activation(labels, layer, along(rows, directions[layer])))
    return pd.concat(tables, ignore_index=True)
