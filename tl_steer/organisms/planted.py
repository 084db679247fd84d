"""The direction that is written into the weights of organism-planted."""

from .._util.validation import checked
from ..directions import SteeringVectors
from ..models import HookedModel, identify, organism_folder
from .training import PLANTED


@checked
def planted_direction(model: HookedModel) -> SteeringVectors:
    """The vector v by which organism-planted's honest persona differs from its neutral one, and −v its liar.

    At the last token and up to the last block, the honest stream minus the liar's is exactly 2v. The neutral
    one has no v at all, but is shorter, which the norms see.

    Args:
        model: `load_model("organism-planted")`.

    Returns:
        Vectors at `resid_post` of the layers before the last, with their length.

    Raises:
        ModelMismatchError: another model.
    """
    vectors = SteeringVectors.load(organism_folder("organism-planted") / PLANTED)
    vectors.identity.require(identify(model), what="the planted direction")
    return vectors
