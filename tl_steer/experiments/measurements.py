"""What a run asks: its questions in every cell, neutral text and open prompts at the layers that do best."""

import logging
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from ..activations import PairedActivations
from ..directions import SteeringVectors, control_vectors, random_like
from ..engine import Memory
from ..evaluation._choose import choose
from ..positions import parse_positions
from ..sweeps import damage
from ..sweeps._sweep import sweep
from ..sweeps.sweep_table import UNSTEERED
from ..texts import text_damage
from .files.experiment import Experiment
from .files.question_tables import sampling_of
from .materials import estimator_of, passages_of, prompts_of, questions_of, said_prompts
from .results import CHOOSE, REPORT, TEXT, answered, best_choice, score_of

logger = logging.getLogger(__name__)


def asked_table(
    experiment: Experiment,
    model: Any,
    vectors: SteeringVectors,
    pairs: PairedActivations | None,
    *,
    work: Path | None = None,
    memory: Memory = None,
    progress: bool,
) -> pd.DataFrame:
    """The sweep of the questions, with controls at all layers or at the chosen condition.

    `work` is the folder where the sweep is kept as it goes; what is there is not asked again. `memory` is
    that of `sweep`, here and in the other tables.
    """
    asked = experiment.sweep
    questions = questions_of(experiment, model)
    logger.info("asking %d questions", len(questions))
    # A run goes on wherever its file lies now.
    select = partial(_chosen_conditions, replace(experiment, folder=Path()))
    return _swept(
        work and work / "questions.parquet",
        model,
        vectors,
        questions,
        layers=None if asked.layers == "all" else asked.layers,
        multipliers=asked.multipliers,
        operations=asked.operations,
        controls=_controls(experiment, vectors, pairs),
        control_layers="all" if asked.control_layers == "all" else select,
        positions=parse_positions(asked.positions),
        measure=asked.measure,
        max_new_tokens=asked.max_new_tokens,
        **sampling_of(asked),
        seed=experiment.seed,
        memory=memory,
        progress=progress,
    )


def _chosen_conditions(experiment: Experiment, table: pd.DataFrame) -> pd.DataFrame:
    return chosen_cell(experiment, table).to_frame().T


def _swept(out: Path | None, *arguments: Any, **options: Any) -> pd.DataFrame:
    """`sweep`, gone on with where it was broken off, or read where it is done."""
    if out is not None and out.exists():
        return pd.read_parquet(out)
    return sweep(*arguments, out=out, **options)


def chosen_cell(experiment: Experiment, table: pd.DataFrame) -> pd.Series:
    """The cell that does best on the choosing half."""
    table = answered(experiment, table)
    score = score_of(table, experiment.sweep.score)
    return best_choice(choose(table, on=CHOOSE, report=REPORT, score=score, splits=0))


def _controls(
    experiment: Experiment, vectors: SteeringVectors, pairs: PairedActivations | None
) -> dict[str, SteeringVectors]:
    """The controls that [sweep] asks for; without pairs random ones alone."""
    asked = experiment.sweep
    if pairs is None:
        return {
            f"random {place + 1}": random_like(vectors, seed=1000 * experiment.seed + place)
            for place in range(asked.controls)
        }
    counts = {"random": asked.controls, "shuffled": asked.shuffled, "orthogonal": asked.orthogonal}
    return _made(experiment, vectors, pairs, **counts)


def _made(
    experiment: Experiment, vectors: SteeringVectors, pairs: PairedActivations, **counts: int
) -> dict[str, SteeringVectors]:
    """Controls of each kind; those of one name are one direction, whatever they are for."""
    estimator = estimator_of(experiment)
    return control_vectors(pairs, estimator=estimator, vectors=vectors, seed=experiment.seed, **counts)


def damage_table(
    experiment: Experiment,
    model: Any,
    vectors: SteeringVectors,
    pairs: PairedActivations,
    table: pd.DataFrame,
    *,
    memory: Memory = None,
    progress: bool,
) -> pd.DataFrame:
    """Neutral text read at the chosen layer, with every multiplier of the sweep.

    "random 1" is the sweep's, so that the effect of one direction is never put beside another's damage.
    """
    asked, best = experiment.damage, chosen_cell(experiment, table)
    passages = passages_of(experiment)
    logger.info("reading %d neutral passages at layer %s", len(passages), best["layers"])
    return damage(
        model,
        vectors,
        passages,
        layers=[_layers(best["layers"])],
        multipliers=experiment.sweep.multipliers,
        operations=[best["operation"]],
        positions=parse_positions(asked.positions),
        controls=_made(experiment, vectors, pairs, random=asked.controls, shuffled=0, orthogonal=0),
        seed=experiment.seed,
        max_tokens=asked.max_tokens,
        memory=memory,
        progress=progress,
    )


def text_damage_table(
    model: Any, texts: pd.DataFrame, *, memory: Memory = None, progress: bool
) -> pd.DataFrame:
    """Repetition, length and perplexity under the unsteered model of what was written.

    Without the last where a text, tokenized anew, no longer fits behind its prompt: a run may not break here.
    """
    logger.info("reading %d texts with the unsteered model", len(texts))
    try:
        return text_damage(texts, model, memory=memory, progress=progress)
    except ValueError as error:
        logger.warning("the texts' likelihood is left out: %s Write shorter texts to have it.", error)
        return text_damage(texts)


def written_table(
    experiment: Experiment,
    model: Any,
    vectors: SteeringVectors,
    tables: list[pd.DataFrame],
    *,
    work: Path | None = None,
    memory: Memory = None,
    progress: bool,
) -> pd.DataFrame:
    """Texts at the chosen layers; their prompts are numbered after the questions. `work` as for the sweep."""
    asked = experiment.text
    prompts = prompts_of(experiment)
    layers = list(asked.layers) if isinstance(asked.layers, tuple) else _best_layers(experiment, tables[0])
    logger.info("writing %d texts at each of the layers %s", len(prompts), layers)
    table = _swept(
        work and work / "texts.parquet",
        model,
        vectors,
        said_prompts(experiment, model),
        layers=layers,
        multipliers=asked.multipliers,
        operations=asked.operations,
        positions=parse_positions(_text_positions(experiment)),
        measure="generate",
        max_new_tokens=asked.max_new_tokens,
        **sampling_of(asked),
        controls=0,
        seed=experiment.seed,
        memory=memory,
        progress=progress,
    )
    first = 1 + max((table["prompt_id"].max() for table in tables), default=-1)
    said = dict(enumerate(prompts))
    table.insert(2, "said", table["prompt_id"].map(said))
    return table.assign(split=TEXT, prompt_id=table["prompt_id"] + first)


def _text_positions(experiment: Experiment) -> str:
    if experiment.text.positions is not None:
        return experiment.text.positions
    return "all_tokens()" if experiment.sweep is None else experiment.sweep.positions


def _best_layers(experiment: Experiment, table: pd.DataFrame) -> list[int | tuple[int, ...]]:
    """The layers that do best on the choosing half, best first, each taken out before the next is chosen."""
    wanted = 1 if experiment.text.layers == "chosen" else experiment.text.layers
    found: list[str] = []
    while len(found) < wanted:
        left = answered(experiment, table)
        left = left[~left["layers"].isin(found) & ~left["control"].astype(bool)]
        if set(left["vector"]) == {UNSTEERED}:
            break
        score = score_of(left, experiment.sweep.score)
        choices = choose(left, on=CHOOSE, report=REPORT, score=score, splits=0)
        found.append(best_choice(choices)["layers"])
    return [_layers(name) for name in found]


def _layers(name: str) -> int | tuple[int, ...]:
    places = tuple(int(part) for part in name.split("+"))
    return places if len(places) > 1 else places[0]
