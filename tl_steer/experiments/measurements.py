"""The tables of a run: questions in every condition, neutral text and open prompts at the best layers."""

import logging
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from .._report.results import CHOOSE, REPORT, TEXT, best_choice, score_of
from ..activations import PairedActivations
from ..directions import SteeringVectors, control_vectors, random_like
from ..evaluation._choose import choose
from ..positions import parse_positions
from ..sweeps import damage
from ..sweeps._sweep import sweep
from ..sweeps.sweep_table import UNSTEERED
from ..texts import text_damage
from .config_file import Experiment
from .config_sweep import Sweep, Text
from .materials import estimator_of, passages_of, prompts_of, questions_of, rendered_prompts
from .run_report import with_choices

logger = logging.getLogger(__name__)


def question_table(
    experiment: Experiment,
    model: Any,
    vectors: SteeringVectors,
    pairs: PairedActivations | None,
    *,
    work: Path | None = None,
    **options: Any,
) -> pd.DataFrame:
    """The sweep of the questions, with controls at all layers or at the chosen condition.

    `work` is the folder where the sweep is saved as it runs; a finished sweep there is read. `options` are
    `memory` and `progress`.
    """
    config, questions = experiment.sweep, questions_of(experiment, model)
    logger.info("asking %d questions", len(questions))
    # Without its folder: part of the sweep's digest, and a run may go on after its file was moved.
    select = partial(_chosen_conditions, replace(experiment, folder=Path()))
    counts = {"random": config.controls, "shuffled": config.shuffled, "orthogonal": config.orthogonal}
    return _swept(
        experiment,
        config,
        work and work / "questions.parquet",
        model,
        vectors,
        questions,
        layers=None if config.layers == "all" else config.layers,
        controls=_controls(experiment, vectors, pairs, **counts),
        control_layers="all" if config.control_layers == "all" else select,
        positions=parse_positions(config.positions),
        measure=config.measure,
        **options,
    )


def _swept(
    experiment: Experiment, config: Sweep | Text, out: Path | None, *arguments: Any, **options: Any
) -> pd.DataFrame:
    """`sweep`, resumed from `out`, or read from there if it is finished."""
    if out is not None and out.exists():
        return pd.read_parquet(out)
    shared = {"multipliers": config.multipliers, "operations": config.operations, **config.sampling}
    shared |= {"max_new_tokens": config.max_new_tokens, "seed": experiment.seed}
    return sweep(*arguments, out=out, **shared, **options)


def _chosen_conditions(experiment: Experiment, table: pd.DataFrame) -> pd.DataFrame:
    return _best(experiment, with_choices(experiment, table)).to_frame().T


def _best(experiment: Experiment, table: pd.DataFrame) -> pd.Series:
    """The best condition on the choosing half."""
    score = score_of(table, experiment.sweep.score)
    return best_choice(choose(table, on=CHOOSE, report=REPORT, value=score, splits=0))


def _controls(
    experiment: Experiment, vectors: SteeringVectors, pairs: PairedActivations | None, **counts: int
) -> dict[str, SteeringVectors]:
    """Controls by name, the same direction in every table; without pairs random ones only."""
    if pairs is None:
        seed = 1000 * experiment.seed
        return {f"random {k + 1}": random_like(vectors, seed=seed + k) for k in range(counts["random"])}
    estimator = estimator_of(experiment)
    return control_vectors(pairs, estimator=estimator, vectors=vectors, seed=experiment.seed, **counts)


def damage_table(
    experiment: Experiment,
    model: Any,
    vectors: SteeringVectors,
    pairs: PairedActivations,
    questions: pd.DataFrame,
    **options: Any,
) -> pd.DataFrame:
    """Damage to neutral text at the layer chosen in `question_table`, with every multiplier of the sweep."""
    config, passages = experiment.damage, passages_of(experiment)
    best = _best(experiment, with_choices(experiment, questions))
    logger.info("reading %d neutral passages at layer %s", len(passages), best["layers"])
    return damage(
        model,
        vectors,
        passages,
        layers=[_layers(best["layers"])],
        multipliers=experiment.sweep.multipliers,
        operations=[best["operation"]],
        positions=parse_positions(config.positions),
        # "random 1" is the sweep's, so that the effect and the damage in the report are of one direction.
        controls=_controls(experiment, vectors, pairs, random=config.controls, shuffled=0, orthogonal=0),
        seed=experiment.seed,
        max_tokens=config.max_tokens,
        **options,
    )


def text_damage_table(model: Any, texts: pd.DataFrame, **options: Any) -> pd.DataFrame:
    """Repetition, length and perplexity under the unsteered model of generated texts.

    Without perplexity if a text, tokenized again, exceeds the context: a run must not fail at this step.
    """
    logger.info("reading %d texts with the unsteered model", len(texts))
    try:
        return text_damage(texts, model, **options)
    except ValueError as error:
        logger.warning("the texts' likelihood is left out: %s Generate shorter texts to have it.", error)
        return text_damage(texts)


def text_table(
    experiment: Experiment,
    model: Any,
    vectors: SteeringVectors,
    tables: list[pd.DataFrame],
    *,
    work: Path | None = None,
    **options: Any,
) -> pd.DataFrame:
    """Generated texts at the chosen layers; prompt ids continue those of `tables`. `work` as above."""
    config, prompts = experiment.text, prompts_of(experiment)
    layers = list(config.layers) if isinstance(config.layers, tuple) else _best_layers(experiment, tables[0])
    positions = config.positions or (experiment.sweep.positions if experiment.sweep else "all_tokens()")
    logger.info("writing %d texts at each of the layers %s", len(prompts), layers)
    table = _swept(
        experiment,
        config,
        work and work / "texts.parquet",
        model,
        vectors,
        rendered_prompts(experiment, model),
        layers=layers,
        positions=parse_positions(positions),
        measure="generate",
        controls=0,
        **options,
    )
    first = 1 + max((table["prompt_id"].max() for table in tables), default=-1)
    table.insert(2, "said", table["prompt_id"].map(dict(enumerate(prompts))))
    return table.assign(split=TEXT, prompt_id=table["prompt_id"] + first)


def _best_layers(experiment: Experiment, table: pd.DataFrame) -> list[int | tuple[int, ...]]:
    """The best layers on the choosing half, best first; each is removed before the next is chosen."""
    best: list[str] = []
    table = with_choices(experiment, table)
    table = table[~table["control"].astype(bool)]
    for _ in range(1 if experiment.text.layers == "chosen" else experiment.text.layers):
        rest = table[~table["layers"].isin(best)]
        if (rest["vector"] != UNSTEERED).any():
            best.append(_best(experiment, rest)["layers"])
    return [_layers(name) for name in best]


def _layers(name: str) -> int | tuple[int, ...]:
    layers = tuple(int(part) for part in name.split("+"))
    return layers if len(layers) > 1 else layers[0]
