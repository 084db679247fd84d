"""`SteeringVector` of the library steering-vectors: `layer_activations[N]` is added to block N's output."""

from typing import Any

from ..._util.validation import checked
from ...models import HookedModel
from ..vectors import SteeringVector, SteeringVectors
from .exchange_checks import imported, missing, rows_for

BLOCK = "decoder_block"


@checked
def to_steering_vectors(vectors: SteeringVectors | SteeringVector, *, force: bool = False) -> Any:
    """A `steering_vectors.SteeringVector` with these vectors, of layer type "decoder_block".

    Args:
        vectors: one vector a layer at "resid_post".
        force: also vectors of centred weights.

    Raises:
        ImportError: steering-vectors is not installed.
        ValueError: another hook, one vector a position, or centred weights.

    The multiplier of its `apply` is the multiplier here; by default it adds at every token, padding included.
    """
    rows = rows_for(vectors, "steering-vectors", force=force)
    try:
        from steering_vectors import SteeringVector as Theirs
    except ImportError as error:
        raise missing("to_steering_vectors", "steering-vectors") from error
    return Theirs(layer_activations=rows, layer_type=BLOCK)


@checked
def from_steering_vectors(steering_vector: Any, model: HookedModel) -> SteeringVectors:
    """The vectors of a `steering_vectors.SteeringVector`, for `model`.

    Args:
        steering_vector: anything with `layer_activations`, a mapping from a block's index to a tensor
            "d_model", and `layer_type`.
        model: the model they are meant for.

    Returns:
        Method "imported", the identity of `model`, `stream_norm` NaN (none is kept there; `capture` measures
        it).

    Raises:
        TypeError: something without layer activations.
        ValueError: another layer type than "decoder_block"; layers or a width that the model does not have.
    """
    activations = getattr(steering_vector, "layer_activations", None)
    if not isinstance(activations, dict):
        raise TypeError(
            f"a SteeringVector of steering-vectors is needed, not {type(steering_vector).__name__}."
        )
    kind = getattr(steering_vector, "layer_type", None)
    if kind != BLOCK:
        raise ValueError(
            f"layer type {kind!r} is not a block's output: only {BLOCK!r} has its place here (resid_post)."
        )
    rows = {int(layer): row for layer, row in activations.items()}
    return imported(rows, model, "steering-vectors SteeringVector")
