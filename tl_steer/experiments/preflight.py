"""Find what would make a run or its report fail later, before the model works."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd

from ..analysis._projections import LABELS
from ..analysis._separation import balanced_folds
from ..directions.controls import FEWEST
from ..models import resolve_layers, tokenize_all
from ..prompts import ChoiceQuestions
from ..prompts.pairs import sided_factors
from ..recipes import padded_prompts
from ..tables import SCHEMA
from .config_file import Experiment
from .materials import (
    MAX_LEVELS,
    factor_of,
    pairs_of,
    passages_of,
    prompts_of,
    questions_of,
    rendered_prompts,
    shared_claims,
)

MOST_UNKNOWN = 0.5  # share of unknown tokens in neutral text from which its loss means nothing
COMPONENTS = (f"{name}{k}" for name in ("PC", "explained_") for k in (1, 2, 3))
REPORT_COLUMNS = {*LABELS, "projection", "cosine", "decomposed", *COMPONENTS}

TABLE_COLUMNS = {name.rpartition(".")[2] for name in SCHEMA}


def require_runnable(experiment: Experiment, model: Any) -> None:
    """Raise an error for an experiment that cannot finish, as far as file, data and model size tell.

    Raises:
        FileNotFoundError: data is missing.
        IndexError: a layer that the model lacks.
        ValueError: tables that do not fit each other or their data; the message names table and key.
    """
    for problem in _problems(experiment, model):
        raise ValueError(problem)


def _problems(experiment: Experiment, model: Any) -> Iterator[str]:
    if not experiment.has_prompts:
        yield from _pair_problems(experiment, pairs_of(experiment, model).factors)
    yield from _layer_problems(experiment, model.cfg.n_layers)
    if experiment.questions is not None:
        yield from _question_problems(experiment, model)
        if experiment.damage.passages and not experiment.has_prompts:
            yield from _passage_problems(passages_of(experiment), model)
    if experiment.text is not None:
        prompts_of(experiment)  # raises if the data is missing
    if experiment.has_prompts:
        yield from _length_problems(experiment, model)


def _pair_problems(experiment: Experiment, factors: pd.DataFrame) -> Iterator[str]:
    names, joined = {str(name) for name in factors.columns}, set(sided_factors(factors))
    if taken := REPORT_COLUMNS & (names | joined) | joined & names:
        yield f"[pairs] data: the columns {sorted(taken)} have names of the report's tables: rename them."
    folds, groups = experiment.separation.folds, factors["group"].nunique(dropna=False)
    if groups < folds:
        allowed = f"set folds to 2 to {groups}, or " if groups > 1 else ""
        yield f"[separation] folds = {folds}: [pairs] has {groups} groups of pairs; {allowed}use more pairs."
    directions = experiment.directions
    if directions.method == "principal_component":
        # Components must exist in the training pairs of every fold, which are fewer than all pairs.
        fold = balanced_folds(factors, folds=folds, seed=experiment.seed)
        n = int(len(factors) - np.bincount(fold).max())
        available = {"pooled": 2 * n - 1, "centred_differences": n - 1}.get(directions.of, n)
        for component in directions.components:
            if not 1 <= component <= available:
                yield (
                    f"[directions] component = {component} does not exist: [separation] folds = {folds} "
                    f"leaves {n} pairs, which have components 1 to {available}."
                )
    if experiment.sweep is not None and experiment.sweep.shuffled and groups < FEWEST:
        yield (
            f"[sweep] shuffled = {experiment.sweep.shuffled} swaps the sides of half of the groups of pairs, "
            f"and [pairs] has {groups}: give {FEWEST} or more, or shuffled = 0."
        )


def _layer_problems(experiment: Experiment, n_layers: int) -> Iterator[str]:
    """Steered layers without a vector, or without a weight where there are weights."""
    layers, weights = experiment.capture.layers, experiment.directions.weights
    vectors = set(_resolved("[capture] layers", None if layers == "all" else layers, n_layers))
    reason = f"since [capture] layers are {sorted(vectors)}"
    if weights is not None:
        weighted = set(_resolved("[directions] weights", tuple(weights), n_layers))
        if missing := sorted(weighted - vectors):
            yield f"[directions] weights: there is no vector at {missing}, {reason}."
        vectors, reason = weighted, f"since [directions] weights are of {sorted(weighted)} only"
    for key, table in (("[sweep] layers", experiment.sweep), ("[text] layers", experiment.text)):
        if table is None or not isinstance(table.layers, tuple):
            continue
        sets = [_resolved(key, each, n_layers) for each in table.layers]
        if len(set(sets)) < len(sets):
            yield f"{key}: one is named twice (negatives count from the end)."
        if missing := sorted({layer for each in sets for layer in each} - vectors):
            yield f"{key}: there is no vector at {missing}, {reason}: add them there, or use those."


def _resolved(key: str, layers: int | Sequence[int] | None, n_layers: int) -> tuple[int, ...]:
    try:
        return resolve_layers(layers, n_layers)
    except (IndexError, ValueError) as error:
        raise type(error)(f"{key}: {error}") from error


def _question_problems(experiment: Experiment, model: Any) -> Iterator[str]:
    if shared := shared_claims(experiment):
        yield (
            f"[questions] asks {len(shared)} claims that are also in [pairs], such as {shared[0]!r:.80}: "
            "give data with other claims, or training = true, so that the report labels them."
        )
    questions = questions_of(experiment, model)
    if experiment.questions.kind == "csv":
        yield from _factor_problems(experiment, questions)
    if len(questions) < 2:
        yield "[questions] limit: give 2 or more, one to choose on and one to report on."
    counts = [list(questions.answers).count(answer) for answer in (0, 1)]
    if not counts[0]:
        yield "[questions] data: no question has the answer 0 (choice_0, the signal): exchange the choices."
    if experiment.sweep.score == "d_prime" and min(counts) < 2:
        others = "'accuracy'" if experiment.sweep.is_generated else "'accuracy' or 'shift'"
        yield (
            "[sweep] score = 'd_prime' needs both right answers in both halves of the questions, and there "
            f"are {counts[0]} with the one, {counts[1]} with the other: use {others}, or ask more."
        )


def _factor_problems(experiment: Experiment, questions: ChoiceQuestions) -> Iterator[str]:
    """Columns of questions from a file that the tables or figures of the report cannot have."""
    factors = pd.DataFrame(index=range(len(questions))) if questions.factors is None else questions.factors
    factors = factors.assign(answer=questions.answers)
    if taken := sorted(set(factors) & TABLE_COLUMNS - {"label", "answer"}):
        yield f"[questions] data: the columns {taken} have names of the report's tables: rename them."
    name = factor_of(experiment, factors)
    if name not in factors:
        yield f"[questions] factor = {name!r}: expected 'answer' or a column of the data, {list(factors)}."
    levels = set(factors[name])
    if len(levels) > MAX_LEVELS or "all" in levels:
        yield (
            f"[questions] factor = {name!r} has {len(levels)} values: expected at most {MAX_LEVELS}, none of "
            "them 'all'. Give another column, or 'answer'."
        )


def _passage_problems(passages: Sequence[str], model: Any) -> Iterator[str]:
    """Neutral text that the tokenizer does not know, or that exceeds the model's context."""
    if model.tokenizer is None:
        return
    ids = [model.tokenizer(passage)["input_ids"] for passage in passages]
    unknown = np.mean(np.concatenate(ids) == model.tokenizer.unk_token_id)
    if unknown > MOST_UNKNOWN:
        yield (
            f"[damage] data: of the tokens of the passages {unknown:.0%} are unknown to the tokenizer: "
            'give a CSV with text that it knows ("organism" for model organisms), or passages = 0.'
        )
    if (longest := max(map(len, ids))) > (context := model.cfg.n_ctx):
        yield f"[damage] data: a passage has {longest} tokens, and the context {context}: give shorter ones."


def _length_problems(experiment: Experiment, model: Any) -> Iterator[str]:
    """Prompts with fewer tokens than there are vectors, one per position of the prompts in [pairs]."""
    count = len(padded_prompts(model, experiment.pairs.positive, experiment.pairs.negative)[0])
    prompts = {"questions": questions_of(experiment, model).prompts} if experiment.questions else {}
    prompts |= {"text": rendered_prompts(experiment, model)} if experiment.text else {}
    for name, each in prompts.items():
        for prompt, ids in zip(each, tokenize_all(model, each), strict=True):
            if len(ids) < count:
                yield (
                    f"[{name}] the prompt {prompt!r} has {len(ids)} tokens, fewer than the {count} vectors "
                    "(one per token of the longer prompt in [pairs])."
                )
