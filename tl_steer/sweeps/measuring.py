"""Questions under some cells: scores of their choices, or texts, a row a prompt (or draw of it) and cell."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from .._capture import capture
from .._generation import Decoding, completion_text, write_conditions
from .._scoring import plan_choices, score_conditions
from ..engine import CleanStreams, Memory, OnProgress, Site, StreamNorms
from ..interventions import edits_of
from ..models import tokenize_all
from ..prompts import ChoiceQuestions
from .chunks import Answers, Ask, Norms
from .conditions import UNSTEERED, Cell
from .sweep_table import written_answers


def asker(
    questions: ChoiceQuestions | list[str],
    measure: str,
    decoding: Decoding,
    *,
    mass: bool,
    sites: Sequence[Site],
    options: Mapping[str, Any],
) -> Ask:
    """What answers the questions under a chunk's cells.

    Args:
        sites: every layer and hook that any chunk steers, whose norms the unsteered cell tells.
        options: of `score_cells` and `write_cells`.

    Raises:
        ValueError: plain prompts with "choice", an unknown measure.
    """
    if measure == "choice":
        if not isinstance(questions, ChoiceQuestions):
            raise ValueError(
                "measure='choice' needs ChoiceQuestions; a list of prompts goes with measure='generate'."
            )
        starts = frozenset(layer + (hook == "resid_post") for layer, hook in sites)
        options = {**options, "clean": CleanStreams(starts)}
        return partial(_scores, questions=questions, mass=mass, sites=sites, options=options)
    if measure == "generate":
        return partial(_texts, questions=questions, decoding=decoding, sites=sites, options=options)
    raise ValueError(f"measure={measure!r} is unknown: use 'choice' or 'generate'.")


def steered_sites(model: Any, cells: Sequence[Cell]) -> list[Site]:
    """Every layer and hook that is steered."""
    edits = [edit for cell in cells for edit in edits_of(cell.operations, model.cfg.n_layers)]
    return sorted({(edit.layer, edit.hook) for edit in edits})


def typical_norms(
    model: Any,
    prompts: Sequence[Sequence[int]],
    sites: Sequence[Site],
    *,
    reuse: bool = True,
    memory: Memory = None,
) -> Norms:
    """The unsteered stream's typical norm on these prompts, by hook and layer."""
    found = {}
    for hook in sorted({hook for _, hook in sites}):
        layers = [layer for layer, other in sites if other == hook]
        norms = capture(model, prompts, layers=layers, hook=hook, reuse=reuse, memory=memory).stream_norm
        found |= {(hook, layer): norm for layer, norm in zip(layers, norms.tolist(), strict=True)}
    return found


def _unseen(cells: float) -> None:
    """Nobody looks at the progress of a chunk that is answered elsewhere."""


def _scores(
    model: Any,
    cells: Sequence[Cell],
    *,
    questions: ChoiceQuestions,
    mass: bool,
    sites: Sequence[Site],
    options: Mapping[str, Any],
    tick: OnProgress = _unseen,
) -> Answers:
    plan = plan_choices(model, questions.prompts, questions.choices)
    norms = StreamNorms(sites, [read.question for read in plan.reads])
    operations = [cell.operations for cell in cells]
    scores = score_conditions(model, plan, operations, mass=mass, norms=norms, tick=tick, **options)
    outcomes = _scored(pd.concat(scores, ignore_index=True))
    return Answers(outcomes, _typical(model, cells, norms, plan.prompts))


def _texts(
    model: Any,
    cells: Sequence[Cell],
    *,
    questions: ChoiceQuestions | list[str],
    decoding: Decoding,
    sites: Sequence[Site],
    options: Mapping[str, Any],
    tick: OnProgress = _unseen,
) -> Answers:
    ids = tokenize_all(model, questions.prompts if isinstance(questions, ChoiceQuestions) else questions)
    norms = StreamNorms(sites, [row // decoding.draws for row in range(len(ids) * decoding.draws)])
    operations = [cell.operations for cell in cells]
    written = write_conditions(model, ids, operations, decoding, norms=norms, tick=tick, **options)
    texts = [completion_text(model, new) for cell in written for new in cell]
    return Answers(_written(texts, questions, decoding.draws), _typical(model, cells, norms, ids))


def _written(texts: list[str], questions: ChoiceQuestions | list[str], draws: int) -> pd.DataFrame:
    if isinstance(questions, ChoiceQuestions):
        prompts, choices = ([each for each in part for _ in range(draws)] for part in
                            (questions.prompts, questions.choices))  # fmt: skip
        return written_answers(texts, prompts, choices)
    return written_answers(texts, [prompt for prompt in questions for _ in range(draws)], None)


def _scored(scores: pd.DataFrame) -> pd.DataFrame:
    difference = scores["logit_difference"]
    preferred = pd.array(np.where(difference > 0, 0, 1), dtype="Int64")
    preferred[difference == 0] = pd.NA  # neither is
    missing = pd.array([pd.NA] * len(scores), dtype="string")
    return scores.assign(choice=preferred, text=missing)


def _typical(
    model: Any, cells: Sequence[Cell], norms: StreamNorms, prompts: Sequence[Sequence[int]]
) -> Norms:
    """The unsteered stream's typical norm on these prompts by hook and layer, measured if it was not seen.

    Only where the unsteered cell is among the chunk's: one chunk tells the norms for all.
    """
    if UNSTEERED not in cells:
        return {}
    if norms.seen:
        return {(hook, layer): norm for (layer, hook), norm in norms.typical().items()}
    return typical_norms(model, prompts, norms.sites, reuse=False)
