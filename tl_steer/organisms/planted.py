"""The direction in the weights of organism-planted, and how well estimators recover it."""

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import product
from typing import Any

import pandas as pd

from .._capture import capture_pairs
from .._util.validation import checked
from ..directions import (
    Estimator,
    SteeringVectors,
    apply_estimator,
    lda_direction,
    logistic_direction,
    mean_difference,
    principal_component,
    random_direction,
)
from ..evaluation import effectiveness
from ..models import HookedModel, identify, organism_folder
from ..positions import last_token
from ..prompts import ChoiceQuestions
from ..sweeps import sweep
from .language import HONEST, organism_pairs, organism_questions

NAME = "organism-planted"
PLANTED_FILE = "planted.safetensors"
ESTIMATORS: Mapping[str, Estimator] = {
    "mean difference": mean_difference,
    "PCA of differences": partial(principal_component, of="differences"),
    "PCA of all": principal_component,
    "logistic": logistic_direction,
    "LDA": lda_direction,
    "random": partial(random_direction, seed=0),
}
CONDITIONS: Mapping[str, Mapping[str, Any]] = {
    "same claim": {},
    "other claims": {"matched": False},
    "a quarter mislabelled": {"matched": False, "mislabelled": 0.25},
    "truth confounded": {"confound": "truth"},
    "half confounded": {"confound": "truth", "strength": 0.5},
    "wording confounded": {"confound": "wording"},
}


@checked
def planted_direction(model: HookedModel) -> SteeringVectors:
    """The vector v in the weights of organism-planted.

    At the last token, at every layer before the last, the residual stream of the honest persona minus that of
    the liar is exactly 2v. The neutral persona has no v, but a smaller norm.

    Args:
        model: from `load_model("organism-planted")`.

    Returns:
        Vectors at `resid_post` of the layers before the last, with their length.

    Raises:
        ModelMismatchError: another model.
    """
    vectors = SteeringVectors.load(organism_folder(NAME) / PLANTED_FILE)
    vectors.identity.require(identify(model), what="the planted direction")
    return vectors


@checked
def compare_estimators(
    model: HookedModel,
    *,
    estimators: Mapping[str, Estimator] = ESTIMATORS,
    conditions: Mapping[str, Mapping[str, Any]] = CONDITIONS,
    counts: Sequence[int] = (5, 10, 20, 40, 80, 160),
    repeats: int = 3,
    layer: int = 1,
    questions: ChoiceQuestions | None = None,
    seed: int = 0,
    progress: bool = True,
) -> pd.DataFrame:
    """Compare the direction of every estimator with the planted one, by cosine and by effect.

    Args:
        model: `load_model("organism-planted")`.
        estimators: by name.
        conditions: arguments of `organism_pairs` by name: noise and confounds of the pairs.
        counts: numbers of pairs; smaller sets are the first pairs of larger ones.
        repeats: with other pairs each time.
        layer: where activations are read and vectors are added; before the last.
        questions: to measure the effect; by default the first 100 of the honest persona.
        seed: of the pairs.
        progress: show a bar.

    Returns:
        One row per condition, estimator, number of pairs and repetition: condition, method, pairs, repeat,
        cosine: with the planted direction.
        flipped: share of the questions whose answer changes when twice the vector, with the planted one's
            length, is subtracted at the last token. The planted vector turns honest answers into lies.
        shift: mean change of the logit difference of true claims minus that of false ones, in nats.

    Raises:
        ModelMismatchError: another model.
        KeyError: a layer without a planted direction.
    """
    planted = planted_direction(model).weighted({layer: 1.0})
    rows: list[tuple[object, ...]] = []
    vectors: dict[str, SteeringVectors] = {}
    for repeat, (condition, options) in product(range(repeats), conditions.items()):
        pairs = organism_pairs(NAME, limit=max(counts), seed=seed + repeat, **options)
        activations = capture_pairs(model, pairs, layers=layer)
        for count in counts:
            subset = activations.subset(range(count))
            for method, estimator in estimators.items():
                direction = apply_estimator(estimator, subset).normalized()
                vectors[str(len(rows))] = direction * float(planted.norms())
                cosine = float(direction.cosine_similarity(planted))
                rows.append((condition, method, count, repeat, cosine))
    questions = questions or organism_questions(persona=HONEST).subset(range(100))
    effects = _effects(model, vectors, questions, progress=progress)
    return pd.DataFrame(rows, columns=["condition", "method", "pairs", "repeat", "cosine"]).join(effects)


def _effects(
    model: Any, vectors: Mapping[str, SteeringVectors], questions: ChoiceQuestions, *, progress: bool
) -> pd.DataFrame:
    """The effect of subtracting twice each vector at the last token, in the vectors' order."""
    options = {"positions": last_token(), "controls": 0, "mass": False, "progress": progress}
    table = sweep(model, vectors, questions, multipliers=[-2.0], **options)
    overall = effectiveness(table).set_index("vector")
    shifts = effectiveness(table, by="answer").set_index(["vector", "answer"])["shift"].unstack()
    effects = pd.DataFrame({"flipped": overall["flipped"], "shift": shifts[0] - shifts[1]})
    return effects.loc[list(vectors)].reset_index(drop=True)
