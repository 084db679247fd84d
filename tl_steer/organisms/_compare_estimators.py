"""What each estimator finds of a direction that is known: by pairs, noise and confounds."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import pandas as pd

from .._capture import capture_pairs
from .._util.validation import checked
from ..activations import PairedActivations
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
from ..models import HookedModel
from ..positions import last_token
from ..prompts import ChoiceQuestions
from ..sweeps import sweep
from .language import HONEST
from .organism_prompts import organism_pairs, organism_questions
from .planted import planted_direction

NAME = "organism-planted"
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
    """Directions of every estimator, beside the one that is written into the weights, and what each does.

    Args:
        model: `load_model("organism-planted")`.
        estimators: by name.
        conditions: arguments of `organism_pairs` by name: what noise and confounds the pairs have.
        counts: numbers of pairs; the fewer are the first of the more.
        repeats: with other pairs each time.
        layer: where activations are read and vectors are added; one before the last.
        questions: to measure the effect on; by default the first 100 of the honest persona's.
        seed: of the pairs.
        progress: show a bar.

    Returns:
        A row a condition, estimator, number of pairs and repetition: condition, method, pairs, repeat,
        cosine: with the planted direction.
        flipped: share of the questions whose answer is another one when twice the vector, with the planted
            one's length, is subtracted at the last token: the planted one makes the liar of the honest.
        shift: mean change of the logit difference of true claims minus that of false ones, in nats.

    Raises:
        ModelMismatchError: another model.
        KeyError: a layer at which the direction is not known.
    """
    planted = planted_direction(model).weighted({layer: 1.0})
    rows: list[dict[str, object]] = []
    vectors: dict[str, SteeringVectors] = {}
    for repeat in range(repeats):
        for condition, options in conditions.items():
            pairs = organism_pairs(NAME, limit=max(counts), seed=seed + repeat, **options)
            activations = capture_pairs(model, pairs, layers=layer)
            for count in counts:
                found = _directions(activations.subset(range(count)), estimators)
                for method, each in found.items():
                    vectors[str(len(rows))] = each * float(planted.norms())
                    cosine = float(each.cosine_similarity(planted))
                    rows.append(
                        {
                            "condition": condition,
                            "method": method,
                            "pairs": count,
                            "repeat": repeat,
                            "cosine": cosine,
                        }
                    )
    asked = questions or _some_questions(100)
    return pd.DataFrame(rows).join(_effects(model, vectors, asked, progress=progress))


def _directions(
    activations: PairedActivations, estimators: Mapping[str, Estimator]
) -> dict[str, SteeringVectors]:
    return {
        method: apply_estimator(estimate, activations).normalized() for method, estimate in estimators.items()
    }


def _some_questions(count: int) -> ChoiceQuestions:
    asked = organism_questions(persona=HONEST)
    return ChoiceQuestions(
        asked.prompts[:count], asked.choices[:count], asked.answers[:count], asked.factors.head(count)
    )


def _effects(
    model: Any, vectors: Mapping[str, SteeringVectors], questions: ChoiceQuestions, *, progress: bool
) -> pd.DataFrame:
    """What each vector does when twice of it is subtracted at the last token, in the vectors' order."""
    table = sweep(
        model,
        vectors,
        questions,
        multipliers=[-2.0],
        positions=last_token(),
        controls=0,
        mass=False,
        progress=progress,
    )
    all_of_them = effectiveness(table).set_index("vector")
    kinds = effectiveness(table, by="answer").set_index(["vector", "answer"])["shift"].unstack()
    effects = pd.DataFrame({"flipped": all_of_them["flipped"], "shift": kinds[0] - kinds[1]})
    return effects.loc[list(vectors)].reset_index(drop=True)
