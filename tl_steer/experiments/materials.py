"""Build what an experiment's tables describe: pairs, estimator, vectors, questions and prompts."""

from dataclasses import replace
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any

import pandas as pd

from .. import directions, organisms, prompts
from .._report.from_tables import MAX_LEVELS
from .._util.seeds import short_seed
from ..models import ChatFormat, chat_format
from .config_file import Experiment

CHOICES = ("choice_0", "choice_1")
NOT_REPORTED = ("group", "label")
READERS = {
    "sentiment": prompts.read_reviews,
    "claims": prompts.read_claims,
    "misconceptions": prompts.read_misconceptions,
}


def pairs_of(experiment: Experiment, model: Any) -> prompts.ContrastPairs:
    """The contrast pairs of [pairs], of any kind but "prompts"."""
    config = experiment.pairs
    if config.kind == "organism":
        options = _options(config, "limit", "matched", "confound", "strength", "mislabelled")
        return organisms.organism_pairs(experiment.model.name, seed=experiment.seed, **options)
    if config.kind == "csv":
        options = _options(config, "system_positive", "system_negative")
        chat = chat_of(experiment, model) if config.chat else None
        pairs = prompts.read_pairs(_data(experiment, config.data), chat=chat, **options)
        rows = pd.DataFrame(index=pairs.factors.index)
        return pairs.subset(list(_sampled(rows, config.limit, experiment.seed).index))
    options = _options(config, "style", "shared", "persona", "wording")
    return prompts.honesty_pairs(claims_of_pairs(experiment), chat_of(experiment, model), **options)


def claims_of_pairs(experiment: Experiment) -> pd.DataFrame:
    """The claims of [pairs] kind = "honesty"."""
    claims = prompts.read_claims(_data(experiment, experiment.pairs.data))
    return _sampled(claims, experiment.pairs.limit, experiment.seed).reset_index(drop=True)


def estimator_of(experiment: Experiment) -> directions.Estimator:
    """The estimator of [directions] with its options, for pairs; without unit and weights."""
    config = experiment.directions
    names = {"principal_component": ("component", "of", "sign"), "logistic_direction": ("C",)}
    estimator = getattr(directions, config.method)
    if config.method not in names:
        return estimator
    return partial(estimator, **_options(config, *names[config.method]))


def in_unit(vectors: directions.SteeringVectors, experiment: Experiment) -> directions.SteeringVectors:
    """The vectors with the length that [directions] unit names."""
    if experiment.directions.unit == "dose":
        return vectors.scaled_to(dose=1.0)
    return vectors.normalized() if experiment.directions.unit == "one" else vectors


def weighted(vectors: directions.SteeringVectors, experiment: Experiment) -> directions.SteeringVectors:
    """The vectors of the layers in [directions] weights, times their weight; all without weights."""
    weights = experiment.directions.weights
    return vectors if weights is None else vectors.weighted(weights)


def questions_of(experiment: Experiment, model: Any) -> prompts.ChoiceQuestions:
    """The questions of [questions]."""
    config = experiment.questions
    if config.kind == "organism":
        return organisms.organism_questions(seed=experiment.seed)
    if config.kind == "csv":
        return _own_questions(experiment, model)
    table = _question_rows(experiment).reset_index(drop=True)
    if config.kind == "sentiment":
        return prompts.sentiment_questions(table)
    build = prompts.claim_questions if config.kind == "claims" else prompts.misconception_questions
    free_text = experiment.sweep.is_generated
    questions = build(table, chat_of(experiment, model), free_text=free_text, wording=config.wording)
    if not config.training:
        return questions
    return replace(questions, factors=questions.factors.assign(claims="training"))


def _own_questions(experiment: Experiment, model: Any) -> prompts.ChoiceQuestions:
    """The questions of [questions] kind = "csv", with the factor `right_choice`."""
    config = experiment.questions
    chat = chat_of(experiment, model) if config.chat else None
    questions = prompts.read_questions(_data(experiment, config.data), choices=CHOICES, chat=chat)
    if questions.answers is None:
        raise ValueError(
            f"[questions] {config.data} lacks the column 'answer': expected 0 or 1, the index of the right "
            "choice, without which sensitivity and bias are unknown."
        )
    labels = pd.DataFrame({"label": questions.answers})
    questions = questions.subset(list(_sampled(labels, config.limit, experiment.seed).index))
    if questions.factors is not None and "right_choice" in questions.factors:
        return questions
    right = [pair[index].strip() for pair, index in zip(questions.choices, questions.answers, strict=True)]
    factors = pd.DataFrame(index=range(len(right))) if questions.factors is None else questions.factors
    return replace(questions, factors=factors.assign(right_choice=right))


def factor_of(experiment: Experiment, factors: pd.DataFrame | None) -> str:
    """The factor by which effects are reported: that of [questions], or the first with few values.

    `factors` has one row per question, or per question and condition.
    """
    if experiment.questions.factor is not None:
        return experiment.questions.factor
    names = [] if factors is None else [name for name in factors if name not in NOT_REPORTED]
    return next((name for name in names if 2 <= factors[name].nunique() <= MAX_LEVELS), "answer")


def shared_claims(experiment: Experiment) -> list[str]:
    """Claims that are in both [questions] and [pairs], unless `training` allows it."""
    config = experiment.questions
    if config.kind != "claims" or config.training or experiment.pairs.kind != "honesty":
        return []
    in_pairs = set(claims_of_pairs(experiment)["statement"])
    return [claim for claim in _question_rows(experiment)["statement"] if claim in in_pairs]


def _question_rows(experiment: Experiment) -> pd.DataFrame:
    config = experiment.questions
    if config.training:
        return _sampled(claims_of_pairs(experiment), config.limit, experiment.seed)
    data = _data(experiment, config.data or config.DATA[config.kind])
    return _sampled(READERS[config.kind](data), config.limit, experiment.seed)


def passages_of(experiment: Experiment) -> list[str]:
    """The neutral text of [damage]."""
    config = experiment.damage
    if config.data == "organism":
        return organisms.organism_passages(config.passages, seed=experiment.seed)
    table = prompts.read_neutral(_data(experiment, config.data))
    return list(_sampled(table, min(config.passages, len(table)), experiment.seed)["passage"])


def prompts_of(experiment: Experiment) -> list[str]:
    """The prompts of [text], without a chat format."""
    config = experiment.text
    if config.prompts:
        return list(config.prompts)
    table = prompts.read_prompts(_data(experiment, config.data)).filter(["prompt"])
    return list(_sampled(table, config.limit, experiment.seed)["prompt"])


def rendered_prompts(experiment: Experiment, model: Any) -> list[str]:
    """The prompts of [text], in the model's chat format if [text] chat is true."""
    texts = prompts_of(experiment)
    return list(map(chat_of(experiment, model).render, texts)) if experiment.text.chat else texts


def chat_of(experiment: Experiment, model: Any) -> ChatFormat:
    """The model's chat format, with the template variables of [model]."""
    return chat_format(model, **experiment.model.template_variables)


def files_of(experiment: Experiment) -> dict[str, Path]:
    """Paths of the data files that the experiment names, by that name; without bundled data."""
    tables = (experiment.pairs, experiment.questions, experiment.damage, experiment.text)
    names = [data for table in tables if (data := getattr(table, "data", None)) is not None]
    paths = {data: _data(experiment, data) for data in names if data != "organism"}
    return {data: path for data, path in paths.items() if isinstance(path, Path)}


def _options(config: Any, *names: str) -> dict[str, Any]:
    return {name: getattr(config, name) for name in names}


def _data(experiment: Experiment, data: str) -> str | Path:
    """The name of a bundled data set unchanged; a path relative to the experiment file."""
    is_bundled = "/" not in data and (resources.files("tl_steer.data") / f"{data}.csv").is_file()
    return data if is_bundled else experiment.folder / Path(data).expanduser()


def _sampled(table: pd.DataFrame, limit: int | None, seed: int) -> pd.DataFrame:
    """`limit` random rows, equally many of each label, in the table's order."""
    if limit is None:
        return table
    strata = list(table.groupby("label").indices.values()) if "label" in table else [range(len(table))]
    if limit % len(strata) or any(len(rows) < limit // len(strata) for rows in strata):
        sizes = " and ".join(str(len(rows)) for rows in strata)
        equally = ", of which equally many of each label are taken" * (len(strata) > 1)
        raise ValueError(f"limit = {limit} cannot be drawn: there are {sizes} rows{equally}.")
    count, state = limit // len(strata), short_seed(seed)
    return pd.concat(table.iloc[rows].sample(count, random_state=state) for rows in strata).sort_index()
