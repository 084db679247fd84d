"""What would make a run or its report break later, told before the model works."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from ..analysis._separation import balanced_folds
from ..analysis.row_labels import LABELS
from ..directions.controls import FEWEST
from ..models import resolve_layers, tokenize_all
from ..prompts import ChoiceQuestions
from ..prompts.pairs import sided_factors
from ..recipes import padded_prompts
from .files.experiment import Experiment
from .materials import pairs_of, passages_of, prompts_of, questions_of, said_prompts, shared_claims

MOST_UNKNOWN = 0.5  # of the tokens of neutral text; with more, nothing is predicted that means anything
COMPONENTS = (f"{name}{k}" for name in ("PC", "explained_") for k in (1, 2, 3))
MEASURED = ("projection", "cosine", "decomposed", *COMPONENTS)


def require_runnable(experiment: Experiment, model: Any) -> None:
    """Refuse an experiment that cannot come to its end, as far as file, data and the model's size tell.

    Raises:
        FileNotFoundError: data is not there.
        IndexError: a layer that the model lacks.
        ValueError: tables that do not fit each other or their data; the message names table and key.
    """
    if not experiment.has_prompts:
        factors = pairs_of(experiment, model).factors
        _require_own_names(factors)
        _require_folds(experiment, factors)
        _require_component(experiment, factors)
        _require_shuffles(experiment, factors)
    _require_captured(experiment, model.cfg.n_layers)
    if experiment.questions is not None:
        _require_other_claims(experiment)
        _require_score(experiment, questions_of(experiment, model))
        if experiment.damage.passages and not experiment.has_prompts:
            _require_readable(passages_of(experiment), model)
    if experiment.text is not None:
        prompts_of(experiment)  # for what it raises
    if experiment.has_prompts:
        _require_room(experiment, model)


def _require_room(experiment: Experiment, model: Any) -> None:
    """Every prompt has a token for each vector, of which there is one a position of the words in [pairs]."""
    count = len(padded_prompts(model, experiment.pairs.positive, experiment.pairs.negative)[0])
    asked = [("questions", questions_of(experiment, model).prompts)] if experiment.questions else []
    asked += [("text", said_prompts(experiment, model))] if experiment.text else []
    for name, prompts in asked:
        for prompt, ids in zip(prompts, tokenize_all(model, prompts), strict=True):
            if len(ids) < count:
                raise ValueError(
                    f"[{name}] the prompt {prompt!r} has {len(ids)} tokens, fewer than the {count} vectors "
                    "(one for each token of [pairs] positive, or of negative if that is longer): give a "
                    "longer prompt, or shorter ones in [pairs]."
                )


def _require_own_names(factors: pd.DataFrame) -> None:
    """The report's tables have the factors beside columns of their own, and join the two sides' columns."""
    names = {str(name) for name in factors.columns}
    joined = set(sided_factors(factors))
    taken = {*LABELS, *MEASURED} & (names | joined) | joined & names
    if taken:
        raise ValueError(
            f"[pairs] data: the columns {sorted(taken)} have names that the report's tables use: rename them."
        )


def _require_folds(experiment: Experiment, factors: pd.DataFrame) -> None:
    folds, groups = experiment.separation.folds, factors["group"].nunique(dropna=False)
    if groups < folds:
        allowed = f"set folds to 2 to {groups}, or " if groups > 1 else ""
        raise ValueError(
            f"[separation] folds = {folds} cannot be made of the {groups} groups of pairs in [pairs]: "
            f"{allowed}use more pairs."
        )


def _require_component(experiment: Experiment, factors: pd.DataFrame) -> None:
    """The component exists in every fold's training pairs, too, which are fewer than all."""
    asked, folds = experiment.directions, experiment.separation.folds
    if asked.method != "principal_component":
        return
    fold = balanced_folds(factors, folds=folds, seed=experiment.seed)
    left = int(len(factors) - np.bincount(fold).max())
    available = {"pooled": 2 * left - 1, "centred_differences": left - 1}.get(asked.of, left)
    for component in asked.components:
        if not 1 <= component <= available:
            raise ValueError(
                f"[directions] component = {component} does not exist: [separation] folds = {folds} "
                f"leaves {left} pairs to make directions of, which give 1 to {available}."
            )


def _require_shuffles(experiment: Experiment, factors: pd.DataFrame) -> None:
    groups = factors["group"].nunique(dropna=False)
    if experiment.sweep is not None and experiment.sweep.shuffled and groups < FEWEST:
        raise ValueError(
            f"[sweep] shuffled = {experiment.sweep.shuffled} exchanges the sides of half of the groups of "
            f"pairs, and [pairs] has {groups}: give {FEWEST} or more, or shuffled = 0."
        )


def _require_readable(passages: Sequence[str], model: Any) -> None:
    """The neutral text is in a language of which the tokenizer knows most, and fits the model's context."""
    if model.tokenizer is None:
        return
    ids = [model.tokenizer(passage)["input_ids"] for passage in passages]
    tokens = [token for passage in ids for token in passage]
    unknown = tokens.count(model.tokenizer.unk_token_id) / len(tokens)
    if unknown > MOST_UNKNOWN:
        raise ValueError(
            f"[damage] data: of the tokens of the neutral passages {unknown:.0%} are unknown to this model's "
            'tokenizer. Give data = a CSV with text that it knows ("organism" for the organisms), or '
            "passages = 0."
        )
    if (longest := max(map(len, ids))) > model.cfg.n_ctx:
        raise ValueError(
            f"[damage] data: a passage has {longest} tokens, and the model's context {model.cfg.n_ctx}: give "
            "a CSV with shorter ones, or passages = 0."
        )


def _require_captured(experiment: Experiment, n_layers: int) -> None:
    """Every layer that is steered has a vector, and a weight where there are weights."""
    asked, weights = experiment.capture.layers, experiment.directions.weights
    vectors = set(_resolved("capture", None if asked == "all" else asked, n_layers))
    since = f"[capture] layers are {sorted(vectors)}"
    if weights is not None:
        weighted = set(_resolved("directions", tuple(weights), n_layers, key="weights"))
        if weighted - vectors:
            raise ValueError(
                f"[directions] weights: there is no vector at {sorted(weighted - vectors)}, since {since}."
            )
        vectors, since = weighted, f"[directions] weights are of {sorted(weighted)} alone"
    for table, asked in (("sweep", experiment.sweep), ("text", experiment.text)):
        if asked is None or not isinstance(asked.layers, tuple):
            continue
        places = [_resolved(table, each, n_layers) for each in asked.layers]
        if len(set(places)) < len(places):
            raise ValueError(f"[{table}] layers: one is named twice (negatives count from the end).")
        if missing := sorted({layer for place in places for layer in place} - vectors):
            raise ValueError(
                f"[{table}] layers: there is no vector at {missing}, since {since}: "
                "add them there, or use those."
            )


def _resolved(
    table: str, layers: int | Sequence[int] | None, n_layers: int, *, key: str = "layers"
) -> tuple[int, ...]:
    try:
        return resolve_layers(layers, n_layers)
    except (IndexError, ValueError) as error:
        raise type(error)(f"[{table}] {key}: {error}") from error


def _require_other_claims(experiment: Experiment) -> None:
    """Effects on the claims that made a vector do not pass for effects on new ones."""
    if shared := shared_claims(experiment):
        raise ValueError(
            f"[questions] asks {len(shared)} claims of which the vectors are made, such as "
            f"{shared[0]!r:.80}: give data with other claims, or training = true, so that the report labels "
            "them."
        )


def _require_score(experiment: Experiment, questions: ChoiceQuestions) -> None:
    """Both halves of the questions can be scored."""
    kind, score = experiment.questions.kind, experiment.sweep.score
    if len(questions) < 2:
        raise ValueError("[questions] limit: give 2 or more, one to choose on and one to report on.")
    first, second = (list(questions.answers).count(answer) for answer in (0, 1))
    if score == "d_prime" and min(first, second) < 2:
        raise ValueError(
            f"[sweep] score = 'd_prime' needs both right answers in both halves of the questions, and "
            f"[questions] kind = {kind!r} has {first} with the one, {second} with the other: "
            + ("use 'accuracy'" if experiment.sweep.is_written else "use 'accuracy' or 'shift'")
            + (", or ask more." if min(first, second) else ".")
        )
