"""The numbers that a vector is made of, and how few of them carry it."""

import numpy as np
import pandas as pd
from jaxtyping import Float

from .._util.validation import checked
from ..directions import SteeringVector, SteeringVectors


@checked
def vector_components(vectors: SteeringVectors | SteeringVector) -> pd.DataFrame:
    """Every coordinate of the vector of each layer, with its share of the squared length.

    Args:
        vectors: one vector a layer, at any hook.

    Returns:
        A row a layer and coordinate:
        layer; coordinate, its place in the stream (0-based); value, in the stream's units;
        share, of the vector's squared length; rank, 1 for the coordinate of largest size;
        and of the whole vector, the same in all its rows:
        spread, the root mean square of its coordinates;
        kurtosis, the excess over a normal distribution's (0);
        n_half_energy, how many coordinates carry half of the squared length.

    Raises:
        ValueError: one vector a position, or a vector of length zero.

    A random direction's coordinates are normal with mean 0 and this spread, kurtosis 0, and an eighth of them
    carries half of its squared length. A vector far from that lies along a few coordinates of the stream.
    Many models have such *outlier dimensions*, large in every activation: a vector along one of them may show
    the model rather than the behaviour, and a cosine with it is high for anything.
    Source: Timkey & van Schijndel 2021 (arXiv 2109.04404), section 3.
    """
    vectors = vectors.as_vectors()
    if vectors.has_positions:
        raise ValueError("these vectors have one a position: vector_components needs one a layer.")
    values = vectors.values.double().numpy()
    zero = [layer for layer, row in zip(vectors.layers, values, strict=True) if not row.any()]
    if zero:
        raise ValueError(f"a vector of length zero (layers {zero}) has no coordinates to compare.")
    tables = [_described(layer, row) for layer, row in zip(vectors.layers, values, strict=True)]
    return pd.concat(tables, ignore_index=True)


def _described(layer: int, values: Float[np.ndarray, " d_hook"]) -> pd.DataFrame:
    squares = values**2
    share = squares / squares.sum()
    order = np.argsort(-share, kind="stable")
    place = np.empty(len(values), int)
    place[order] = np.arange(1, len(values) + 1)
    centred = values - values.mean()
    variance = (centred**2).mean()
    return pd.DataFrame(
        {
            "layer": layer,
            "coordinate": np.arange(len(values)),
            "value": values,
            "share": share,
            "rank": place,
            "spread": np.sqrt(squares.mean()),
            "kurtosis": (centred**4).mean() / variance**2 - 3 if variance > 0 else np.nan,
            "n_half_energy": int(np.searchsorted(share[order].cumsum(), 0.5 * (1 - 1e-12)) + 1),
        }
    )
