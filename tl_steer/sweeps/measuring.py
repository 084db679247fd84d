"""Measurement of a chunk of conditions: scores of choices, or generated texts."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from .._capture import capture
from .._generation import Decoding, completion_text, write_conditions
from .._scoring import plan_choices, score_conditions
from ..engine import CleanStreams, Memory, OnProgress, RunOptions, Site, StreamNorms
from ..engine.support import no_progress
from ..interventions import edits_of
from ..models import tokenize_all
from ..prompts import ChoiceQuestions
from .conditions import UNSTEERED, Condition, Norms
from .sweep_table import written_answers


@dataclass(frozen=True, eq=False)
class ChunkResult:
    """What was measured under the conditions of a chunk.

    Attributes:
        outcomes: choice, logit_difference, probability, mass and text, one row per condition and prompt (or
            draw), all prompts of the first condition first.
        norms: empty if the chunk does not contain the unsteered condition.
    """

    outcomes: pd.DataFrame
    norms: Norms


Measure = Callable[[Any, Sequence[Condition]], ChunkResult]  # of a model and conditions


def measure_of(
    questions: ChoiceQuestions | list[str],
    measure: str,
    decoding: Decoding,
    *,
    mass: bool,
    sites: Sequence[Site],
    options: Mapping[str, Any],
) -> Measure:
    """The function that measures a chunk. It holds no model, and cloudpickle can send it to other processes.

    Args:
        sites: every layer and hook that is steered; their norms are read in the unsteered condition.
        options: fields of `RunOptions`, without `on_progress`.
    """
    if measure == "generate":
        return partial(_texts, questions=questions, decoding=decoding, sites=sites, options=options)
    starts = frozenset(layer + (hook == "resid_post") for layer, hook in sites)
    clean = CleanStreams(starts)
    return partial(_scores, questions=questions, mass=mass, sites=sites, clean=clean, options=options)


def steered_sites(model: Any, conditions: Sequence[Condition]) -> list[Site]:
    """Every layer and hook that is steered."""
    edits = [edit for each in conditions for edit in edits_of(each.operations, model.cfg.n_layers)]
    return sorted({(edit.layer, edit.hook) for edit in edits})


def typical_norms(
    model: Any,
    prompts: Sequence[Sequence[int]],
    sites: Sequence[Site],
    *,
    reuse: bool = True,
    memory: Memory = None,
) -> Norms:
    """Typical norm of the unsteered residual stream on these prompts."""
    result = {}
    for hook in sorted({hook for _, hook in sites}):
        layers = [layer for layer, other in sites if other == hook]
        norms = capture(model, prompts, layers=layers, hook=hook, reuse=reuse, memory=memory).stream_norm
        result |= {(hook, layer): norm for layer, norm in zip(layers, norms.tolist(), strict=True)}
    return result


def _scores(
    model: Any,
    conditions: Sequence[Condition],
    *,
    questions: ChoiceQuestions,
    mass: bool,
    sites: Sequence[Site],
    clean: CleanStreams,
    options: Mapping[str, Any],
    on_progress: OnProgress = no_progress,
) -> ChunkResult:
    plan = plan_choices(model, questions.prompts, questions.choices)
    norms = StreamNorms(sites, [read.question for read in plan.reads])
    operations = [each.operations for each in conditions]
    run = RunOptions(**options, on_progress=on_progress)
    scores = score_conditions(model, plan, operations, mass=mass, norms=norms, clean=clean, options=run)
    outcomes = pd.concat(scores, ignore_index=True)
    difference = outcomes["logit_difference"]
    choice = pd.array(np.where(difference > 0, 0, 1), dtype="Int64")
    choice[difference == 0] = pd.NA
    outcomes = outcomes.assign(choice=choice, text=pd.array([pd.NA] * len(outcomes), dtype="string"))
    return ChunkResult(outcomes, _norms(model, conditions, norms, plan.prompts))


def _texts(
    model: Any,
    conditions: Sequence[Condition],
    *,
    questions: ChoiceQuestions | list[str],
    decoding: Decoding,
    sites: Sequence[Site],
    options: Mapping[str, Any],
    on_progress: OnProgress = no_progress,
) -> ChunkResult:
    has_choices = isinstance(questions, ChoiceQuestions)
    prompts, draws = list(questions.prompts if has_choices else questions), decoding.draws
    ids = tokenize_all(model, prompts)
    norms = StreamNorms(sites, [row // draws for row in range(len(ids) * draws)])
    operations = [each.operations for each in conditions]
    run = RunOptions(**options, on_progress=on_progress)
    tokens = write_conditions(model, ids, operations, decoding, norms=norms, options=run)
    texts = [completion_text(model, new) for condition in tokens for new in condition]
    choices = [pair for pair in questions.choices for _ in range(draws)] if has_choices else None
    outcomes = written_answers(texts, [prompt for prompt in prompts for _ in range(draws)], choices)
    return ChunkResult(outcomes, _norms(model, conditions, norms, ids))


def _norms(
    model: Any, conditions: Sequence[Condition], norms: StreamNorms, prompts: Sequence[Sequence[int]]
) -> Norms:
    """The norms that were recorded, else measured now; none without the unsteered condition."""
    if UNSTEERED not in conditions:
        return {}
    if norms.seen:
        return {(hook, layer): norm for (layer, hook), norm in norms.typical().items()}
    return typical_norms(model, prompts, norms.sites, reuse=False)
