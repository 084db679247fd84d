"""The sweeps of a run: its questions in every cell, and its open prompts at the layers that do best."""

import logging
from typing import Any

import pandas as pd

from ..directions import SteeringVectors, random_like
from ..evaluation.choosing import choose
from ..evaluation.sweep import sweep
from ..evaluation.tables import UNSTEERED
from ..positions import parse_positions
from .files.experiment import Experiment
from .materials import prompts_of, questions_of, said_prompts
from .results import CHOOSE, REPORT, TEXT, best_choice, score_of

logger = logging.getLogger(__name__)


def asked_table(
    experiment: Experiment, model: Any, vectors: SteeringVectors, *, progress: bool
) -> pd.DataFrame:
    """The sweep of the questions, and where it was asked for, controls at the chosen cell alone."""
    asked = experiment.sweep
    questions = questions_of(experiment, model)
    common = {
        "positions": parse_positions(asked.positions),
        "measure": asked.measure,
        "max_new_tokens": asked.max_new_tokens,
        "seed": experiment.seed,
        "progress": progress,
    }
    everywhere = asked.control_layers == "all"
    logger.info("asking %d questions", len(questions))
    table = sweep(
        model,
        vectors,
        questions,
        layers=None if asked.layers == "all" else asked.layers,
        multipliers=asked.multipliers,
        operations=asked.operations,
        controls=asked.controls if everywhere else 0,
        **common,
    )
    if everywhere or not asked.controls:
        return table
    best = best_choice(choose(table, on=CHOOSE, report=REPORT, score=score_of(table, asked.score)))
    sizes = [
        each
        for each in asked.multipliers
        if pd.isna(best["multiplier"]) or abs(each) == abs(best["multiplier"])
    ]
    logger.info("asking under random directions")
    controls = sweep(
        model,
        {
            f"random {place + 1}": random_like(vectors, seed=1000 * experiment.seed + place)
            for place in range(asked.controls)
        },
        questions,
        layers=[_layers(best["layers"])],
        multipliers=sizes,
        operations=[best["operation"]],
        controls=0,
        **common,
    )
    return pd.concat(
        [table, controls[controls["vector"] != UNSTEERED].assign(control=True)], ignore_index=True
    )


def written_table(
    experiment: Experiment,
    model: Any,
    vectors: SteeringVectors,
    tables: list[pd.DataFrame],
    *,
    progress: bool,
) -> pd.DataFrame:
    """Texts at the chosen layers; their prompts are numbered after the questions."""
    asked = experiment.text
    prompts = prompts_of(experiment)
    layers = list(asked.layers) if isinstance(asked.layers, tuple) else _best_layers(experiment, tables[0])
    logger.info("writing %d texts at each of the layers %s", len(prompts), layers)
    table = sweep(
        model,
        vectors,
        said_prompts(experiment, model),
        layers=layers,
        multipliers=asked.multipliers,
        operations=asked.operations,
        positions=parse_positions(_text_positions(experiment)),
        measure="generate",
        max_new_tokens=asked.max_new_tokens,
        controls=0,
        seed=experiment.seed,
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
        left = table[~table["layers"].isin(found) & ~table["control"].astype(bool)]
        if set(left["vector"]) == {UNSTEERED}:
            break
        score = score_of(left, experiment.sweep.score)
        choices = choose(left, on=CHOOSE, report=REPORT, score=score)
        found.append(best_choice(choices)["layers"])
    return [_layers(name) for name in found]


def _layers(name: str) -> int | tuple[int, ...]:
    places = tuple(int(part) for part in name.split("+"))
    return places if len(places) > 1 else places[0]
