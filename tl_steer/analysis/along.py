"""How far activations lie along the direction of their layer: what the tables of projections share."""

import numpy as np
import pandas as pd
from jaxtyping import Float

from ..activations import Activations, PairedActivations
from ..directions import SteeringVector, SteeringVectors


def shared_layers(activations: Activations | PairedActivations, vectors: SteeringVectors) -> list[int]:
    """The layers that both have, in the activations' order.

    Raises:
        ModelMismatchError: the vectors belong to another model.
        ValueError: no layer in common, another hook, one vector a position, or of another width.
    """
    vectors.identity.require(activations.identity, what="these vectors")
    if vectors.hook != activations.hook:
        raise ValueError(
            f"the vectors are at {vectors.hook}, the activations at {activations.hook}: "
            "capture there, or place the vectors with .at(…, hook=…)."
        )
    if vectors.has_positions:
        raise ValueError("these vectors have one direction a position: projections need one a layer.")
    width = (
        activations.positive if isinstance(activations, PairedActivations) else activations
    ).values.shape[-1]
    if vectors.values.shape[-1] != width:
        raise ValueError(f"these vectors have {vectors.values.shape[-1]} numbers, the activations {width}.")
    shared = [layer for layer in activations.layers if layer in vectors.layers]
    if not shared:
        raise ValueError(
            f"no layer in common: vectors at {list(vectors.layers)}, "
            f"activations at {list(activations.layers)}."
        )
    return shared


def along(rows: Float[np.ndarray, "row d_hook"], vector: SteeringVector) -> pd.DataFrame:
    """Of each row the projection x · d on the unit direction, and the cosine (NaN of length zero)."""
    direction = vector.values.double().numpy()
    length = np.linalg.norm(direction)
    if length == 0:
        raise ValueError(f"the vector of layer {vector.layer} has length zero: it has no direction.")
    projection = rows @ (direction / length)
    norms = np.linalg.norm(rows, axis=-1)
    cosine = np.divide(projection, norms, out=np.full(len(rows), np.nan), where=norms > 0)
    return pd.DataFrame({"projection": projection, "cosine": cosine})
