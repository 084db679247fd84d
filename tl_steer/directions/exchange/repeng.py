"""repeng's `ControlVector`, in memory: `directions[N]` is added to the output of block N, from 0."""

from typing import Any

from ..._util.validation import checked
from ...models import HookedModel
from ..vectors import SteeringVector, SteeringVectors
from .exchange_checks import imported, missing, rows_for


@checked
def to_repeng(
    vectors: SteeringVectors | SteeringVector, *, model_type: str | None = None, force: bool = False
) -> Any:
    """A `repeng.ControlVector` with these vectors.

    Args:
        vectors: one vector a layer at "resid_post".
        model_type: the Hugging Face model's `config.model_type`, which repeng keeps; by default the model's
            name.
        force: also vectors of centred weights.

    Raises:
        ImportError: repeng is not installed, or cannot be imported with this numpy.
        ValueError: another hook, one vector a position, or centred weights.

    `ControlModel(hf_model, layer_ids)` wants a direction for each of its layers: give it `vectors.layers`.
    The coefficient of `set_control` is the multiplier here.
    """
    rows = rows_for(vectors, "repeng", force=force)
    control = _control_vector()
    directions = {layer: row.numpy() for layer, row in rows.items()}
    return control(model_type=model_type or vectors.identity.name, directions=directions)


@checked
def from_repeng(control_vector: Any, model: HookedModel) -> SteeringVectors:
    """The vectors of a `repeng.ControlVector`, for `model`.

    Args:
        control_vector: anything with `directions`, a mapping from a block's index to an array "d_model".
        model: the model they are meant for.

    Returns:
        Method "imported", the identity of `model`, `stream_norm` NaN (repeng keeps none; `capture` measures
        it). repeng's directions have length 1 where it trained them: `scaled_to(dose=…)` gives them another.

    Raises:
        TypeError: something without directions.
        ValueError: layers or a width that the model does not have.
    """
    directions = getattr(control_vector, "directions", None)
    if not isinstance(directions, dict):
        raise TypeError(f"a ControlVector of repeng is needed, not {type(control_vector).__name__}.")
    model_type = str(getattr(control_vector, "model_type", ""))
    rows = {int(layer): row for layer, row in directions.items()}
    return imported(rows, model, "repeng ControlVector", model_type=model_type)


def _control_vector() -> Any:
    try:
        from repeng import ControlVector
    except ImportError as error:
        raise missing("to_repeng", "repeng") from error
    except AttributeError as error:
        raise ImportError(
            f"repeng cannot be imported here ({error}). repeng 0.4 asks for numpy.float_, which numpy 2 no "
            "longer has: set `numpy.float_ = numpy.float64` before the first import of repeng, or give it an "
            "environment with numpy 1.26 and a file from save_gguf."
        ) from error
    return ControlVector
