"""What an experiment's tables stand for: its pairs, estimator, questions and prompts."""

from dataclasses import replace
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any

import pandas as pd

from .._util.seeds import short_seed
from ..directions import (
    Estimator,
    SteeringVectors,
    lda_direction,
    logistic_direction,
    mean_difference,
    principal_component,
)
from ..directions.controls import FEWEST
from ..models import ChatFormat, chat_format
from ..organisms import organism_pairs, organism_passages, organism_questions
from ..prompts import (
    ChoiceQuestions,
    ContrastPairs,
    claim_questions,
    honesty_pairs,
    misconception_questions,
    read_claims,
    read_dilemmas,
    read_misconceptions,
    read_neutral,
    read_pairs,
    read_reviews,
    sentiment_questions,
)
from .files.experiment import Experiment


def pairs_of(experiment: Experiment, model: Any) -> ContrastPairs:
    """The contrast pairs of [pairs]; it must speak of pairs."""
    asked = experiment.pairs
    if asked.kind == "organism":
        options = {
            name: getattr(asked, name) for name in ("limit", "matched", "confound", "strength", "mislabelled")
        }
        return organism_pairs(experiment.model.name, seed=experiment.seed, **options)
    data = _place(experiment, asked.data)
    if asked.kind == "csv":
        pairs = read_pairs(data)
        rows = _drawn(pairs.factors.drop(columns=list(pairs.factors)), asked.limit, experiment.seed)
        return pairs.subset(list(rows.index))
    claims = claims_of_pairs(experiment)
    options = {name: getattr(asked, name) for name in ("style", "shared", "persona", "wording")}
    return honesty_pairs(claims, chat_of(experiment, model), **options)


def claims_of_pairs(experiment: Experiment) -> pd.DataFrame:
    """The claims of [pairs]; it must be of kind "honesty"."""
    asked = experiment.pairs
    claims = read_claims(_place(experiment, asked.data))
    return _drawn(claims, asked.limit, experiment.seed).reset_index(drop=True)


def estimator_of(experiment: Experiment) -> Estimator:
    """The estimator of [directions] with its options, without unit and weights; it must be one of pairs."""
    asked = experiment.directions
    if asked.method == "principal_component":
        return partial(principal_component, component=asked.component, of=asked.of, sign=asked.sign)
    if asked.method == "logistic_direction":
        return partial(logistic_direction, C=asked.C)
    return {"mean_difference": mean_difference, "lda_direction": lda_direction}[asked.method]


def can_be_halved(experiment: Experiment, factors: pd.DataFrame) -> bool:
    """Whether vectors can be made of either half of the pairs, with and without sides exchanged."""
    groups = factors["group"].nunique(dropna=False)
    if groups < FEWEST:
        return False
    asked = experiment.directions
    # A quarter of the pairs less one: as many components as centred differences have.
    return asked.method != "principal_component" or max(asked.components) < len(factors) // 4


def in_unit(vectors: SteeringVectors, experiment: Experiment) -> SteeringVectors:
    """The vectors with the length that the experiment asks for."""
    if experiment.directions.unit == "dose":
        return vectors.scaled_to(dose=1.0)
    return vectors.normalized() if experiment.directions.unit == "one" else vectors


def steered_with(vectors: SteeringVectors, experiment: Experiment) -> SteeringVectors:
    """The vectors as they are added: of the layers that have a weight, times that."""
    weights = experiment.directions.weights
    return vectors if weights is None else vectors.weighted(weights)


def questions_of(experiment: Experiment, model: Any) -> ChoiceQuestions:
    """The questions of [questions]; there must be such a table."""
    asked = experiment.questions
    if asked.kind == "organism":
        return organism_questions(seed=experiment.seed)
    table = _questions_table(experiment).reset_index(drop=True)
    if asked.kind == "sentiment":
        return sentiment_questions(table)
    make = {"claims": claim_questions, "misconceptions": misconception_questions}[asked.kind]
    options = {"free_text": experiment.sweep.is_written, "wording": asked.wording}
    questions = make(table, chat_of(experiment, model), **options)
    if not asked.training:
        return questions
    return replace(questions, factors=questions.factors.assign(claims="training"))


def shared_claims(experiment: Experiment) -> list[str]:
    """Claims that are asked although the pairs are made of them; none where that is what was asked for."""
    asked = experiment.questions
    if asked.kind != "claims" or asked.training or experiment.pairs.kind != "honesty":
        return []
    made_of = set(claims_of_pairs(experiment)["statement"])
    return [claim for claim in _questions_table(experiment)["statement"] if claim in made_of]


def _questions_table(experiment: Experiment) -> pd.DataFrame:
    """The rows of [questions]: its data, or with `training` the claims of [pairs]."""
    asked = experiment.questions
    if asked.training:
        return _drawn(claims_of_pairs(experiment), asked.limit, experiment.seed)
    read = {"sentiment": read_reviews, "claims": read_claims, "misconceptions": read_misconceptions}
    data = _place(experiment, asked.data or asked.DATA[asked.kind])
    return _drawn(read[asked.kind](data), asked.limit, experiment.seed)


def passages_of(experiment: Experiment) -> list[str]:
    """The neutral text of [damage]."""
    asked = experiment.damage
    if asked.data == "organism":
        return organism_passages(asked.passages, seed=experiment.seed)
    table = read_neutral(_place(experiment, asked.data))
    return list(_drawn(table, min(asked.passages, len(table)), experiment.seed)["passage"])


def said_prompts(experiment: Experiment, model: Any) -> list[str]:
    """The prompts of [text] as the model is given them, in its chat format where that was asked for."""
    prompts = prompts_of(experiment)
    if not experiment.text.chat:
        return prompts
    chat = chat_of(experiment, model)
    return [chat.render(prompt) for prompt in prompts]


def chat_of(experiment: Experiment, model: Any) -> ChatFormat:
    """The model's chat format, with the template variables of [model]."""
    return chat_format(model, **experiment.model.template_variables)


def prompts_of(experiment: Experiment) -> list[str]:
    """The prompts of [text], without a chat format; there must be such a table."""
    asked = experiment.text
    if asked.prompts:
        return list(asked.prompts)
    return list(
        _drawn(read_dilemmas(_place(experiment, asked.data)), asked.limit, experiment.seed)["dilemma"]
    )


def files_of(experiment: Experiment) -> dict[str, Path]:
    """The data files that the experiment names, by that name; without the package's own data."""
    tables = (experiment.pairs, experiment.questions, experiment.damage, experiment.text)
    named = [data for table in tables if (data := getattr(table, "data", None)) is not None]
    places = {data: _place(experiment, data) for data in named if data != "organism"}
    return {data: place for data, place in places.items() if isinstance(place, Path)}


def _place(experiment: Experiment, data: str) -> str | Path:
    """A name of the package's data as it is, a path from where the experiment file lies."""
    own = (resources.files("tl_steer.data") / f"{data}.csv").is_file() if "/" not in data else False
    return data if own else experiment.folder / Path(data).expanduser()


def _drawn(table: pd.DataFrame, limit: int | None, seed: int) -> pd.DataFrame:
    """`limit` rows drawn at random, as many of each label where there are labels, in the table's order.

    Raises:
        ValueError: there are fewer.
    """
    if limit is None:
        return table
    kinds = list(table.groupby("label").indices.values()) if "label" in table else [range(len(table))]
    if limit % len(kinds) or any(len(rows) < limit // len(kinds) for rows in kinds):
        sizes = " and ".join(str(len(rows)) for rows in kinds)
        raise ValueError(
            f"limit = {limit} cannot be drawn: there are {sizes} rows"
            + (" with either label, of which equally many are taken." if len(kinds) > 1 else ".")
        )
    drawn = [table.iloc[rows].sample(limit // len(kinds), random_state=short_seed(seed)) for rows in kinds]
    return pd.concat(drawn).sort_index()
