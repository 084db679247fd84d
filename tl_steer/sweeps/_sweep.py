"""Sweep: the same questions under every vector, operation, layer and multiplier, as one tidy table."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Literal

import pandas as pd

from .._generation import Decoding
from .._util.validation import checked
from ..directions import SteeringVectors
from ..engine import Memory
from ..engine.paths import require_unhooked
from ..engine.shared.chunking import bytes_allowed
from ..interventions import Vectors
from ..models import HookedModel, exclusive, tokenize_all
from ..positions import Positions, all_tokens
from ..prompts import ChoiceQuestions
from ..tables import validated
from .chunks import ChunkRunner, Cost, Executor, Measurement, estimated_cost, in_chunks, steered_sites
from .conditions import (
    AT,
    ChunkResult,
    Condition,
    OperationFactory,
    controls_at,
    named_vectors,
    sweep_conditions,
)
from .plans import digest, sweep_plan
from .selection import best_conditions
from .store import Checkpoints, finished_table, open_checkpoints, require_writable
from .sweep_table import assembled_table, question_table, with_draws

logger = logging.getLogger(__name__)
LONG = 60.0  # seconds
SAMPLING = ("temperature", "top_p", "repetition_penalty", "draws")
DECODING = ("max_new_tokens", "min_new_tokens", *SAMPLING)


@checked
def sweep(
    model: HookedModel,
    vectors: Vectors | Mapping[str, Vectors],
    questions: ChoiceQuestions | Sequence[str],
    *,
    layers: int | Sequence[int | Sequence[int]] | None = None,
    multipliers: Sequence[float],
    operations: Sequence[str | OperationFactory] = ("add",),
    positions: Positions | None = None,
    measure: Literal["choice", "generate"] = "choice",
    max_new_tokens: int = 30,
    min_new_tokens: int = 0,
    temperature: float = 0.0,
    top_p: float = 1.0,
    repetition_penalty: float = 1.0,
    draws: int = 1,
    controls: int | Mapping[str, SteeringVectors] = 20,
    control_layers: Literal["chosen", "all"] | Callable[[pd.DataFrame], pd.DataFrame] = "chosen",
    divide_by_layers: bool = False,
    seed: int = 0,
    out: str | Path | None = None,
    executor: Executor | None = None,
    mass: bool = True,
    allow_empty: bool = False,
    allow_zero: bool = False,
    force: bool = False,
    progress: bool = True,
    reuse: bool = True,
    memory: Memory = None,
) -> pd.DataFrame:
    """Measure answers or texts unsteered and under every vector, operation, set of layers and multiplier.

    Args:
        model: a `HookedTransformer` or a `TransformerBridge`.
        vectors: a set of vectors, a single vector, or several of these by name.
        questions: choice questions or, with "generate", also plain prompts.
        layers: single layers, or tuples of layers that are steered together; by default all with a vector.
        multipliers: factors of the vectors, signs included.
        operations: "add", "project_out" (once per layer, multiplier NaN), or a callable that makes an
            operation from a vector, a multiplier and positions.
        positions: tokens to steer; by default `all_tokens()`.
        measure: "choice" scores the two continuations, "generate" writes texts and reads the choice.
        max_new_tokens, min_new_tokens: length of the texts; each ends at the end of its turn.
        temperature, top_p, repetition_penalty: as for `generate`; greedy by default.
        draws: sampled texts per prompt and condition. A prompt's draw uses the same random numbers in every
            condition; draw 0 is the text of `generate` with this `seed`. Draws differ also without steering:
            sample several. Intervals keep the draws of a prompt together.
        controls: number of random directions of the same length per vector, or control vectors by name, which
            serve all vectors. With fewer than 19, no p value can reach .05.
        control_layers: "chosen" runs controls last, and for each vector and operation only at the condition
            that does best on the split "choose" (on all prompts, if none has that split). A random direction
            has no sign, so these controls serve the opposite multiplier too. The score is accuracy if answers
            are known, else the shift of the logit difference in the multiplier's direction, else (texts) the
            share of choices, or of texts if no choice is read, that differ from the unsteered ones. "all"
            runs controls under every condition, as `choose` needs for its p value, and multiplies the cost by
            their number. Or a function from the table without controls to the conditions (vector, operation,
            layers, hook, multiplier), such as `partial(choose, on="choose", report="report", value="shift")`.
        divide_by_layers: divide each multiplier by the number of layers that are steered together. The
            columns `multiplier` and `dose` are of the quotient.
        seed: of the random directions, the split and the samples.
        out: Parquet file to write. Finished chunks (at most 32 conditions, about ten seconds) are stored in
            the folder `out`.cells. The same call continues an interrupted sweep and gives the same table to
            the bit (on the same machine, with as many threads); of a finished sweep it returns the table.
        executor: runs the chunks, such as `ray_executor(…)`; by default this process.
        mass: `False` leaves the column mass empty, and computes only the choices' logits if possible.
        allow_empty: accept prompts in which `positions` selects nothing.
        allow_zero: also add vectors of length zero, which change nothing.
        force: accept vectors of other weights with the same shapes and processing.
        progress: show a progress bar.
        reuse: compute what conditions and prompts share once: a condition costs what it changes, from its
            first changed layer and position on. `False` runs whole forward passes: the same numbers.
        memory: for what is kept between passes, in bytes (`2 * 10**9`) or as a share of the free memory
            (0.8); by default half of it, and on a CPU at most 512 MiB. With less, more passes are run.

    Returns:
        One row per condition and prompt (with several draws, per draw): prompt_id, prompt, draw (from 0, only
        with several draws), label (the message that a prompt was rendered from, else the prompt; a factor of
        that name replaces it), the factors, vector, control, control_of (the vector that a control belongs
        to; "" for controls of all vectors, and for vectors that are not controls), operation, layers
        ("17+31"), hook, multiplier, dose (of several layers the largest), split ("choose" or "report",
        balanced over factors and answers, unless the factors have that column), answer, choice,
        logit_difference, probability, mass, text.
        `choice` is missing if a text could not be read, or neither choice is likelier.

    Raises:
        ValueError: plain prompts or sampling with "choice", several draws of greedy text, a factor with the
            name of a column, no multipliers; with `out`, a factor that Parquet cannot hold, an operation
            without a content hash, or hooks on the model, which a later call could lack.
        FileExistsError: `out` is another file, or was begun with other arguments; the message names them.
        KeyboardInterrupt: says how many conditions are kept.
        InUseError: another process writes `out`.
        OSError: the disk is full; finished chunks are kept.

    With `out` or an executor, conditions share batches only within their chunk: numbers agree with the sweep
    in one piece to rounding. Vectors that are estimated again for each call may differ in their last bits and
    then count as other vectors: save and load them.
    """
    positions = all_tokens() if positions is None else positions
    decoding = Decoding(
        max_new_tokens, min_new_tokens, temperature, top_p, repetition_penalty, draws=draws, seed=seed
    )
    prompts = with_draws(_prompt_table(questions, measure, decoding), draws)
    named = named_vectors(vectors)
    conditions = sweep_conditions(
        named,
        controls,
        layers=layers,
        multipliers=multipliers,
        operations=operations,
        positions=positions,
        seed=seed,
        divide_by_layers=divide_by_layers,
        allow_zero=allow_zero,
    )
    first = conditions if control_layers == "all" else [each for each in conditions if not each.control]
    if out is not None:
        require_writable(Path(out), prompts)
        with exclusive(model):  # hooks of another thread's `steer` are gone before a chunk runs
            require_unhooked(model)
    ids = tokenize_all(model, list(prompts["prompt"].iloc[::draws]))
    cost = estimated_cost(model, ids, first, max_new_tokens * draws * (measure == "generate"))
    n_conditions, level = _log_start(conditions, first, len(ids), cost, stored=out is not None)
    checkpoints = nullcontext()
    if out is not None:
        settings = {
            "positions": positions.label,
            "measure": measure,
            **{name: getattr(decoding, name) if measure == "generate" else None for name in DECODING},
            "mass": mass,
            "control_layers": control_layers if isinstance(control_layers, str) else digest(control_layers),
            "seed": seed,
            "reuse": reuse,
            "allow_empty": allow_empty,
            "conditions in a chunk": cost.size,
        }
        plan = sweep_plan(model, named, controls, conditions, questions, settings)
        if (table := finished_table(Path(out), plan)) is not None:
            logger.info("%s is finished", out)
            return table
        checkpoints = open_checkpoints(Path(out), plan, bytes_allowed(model, memory))
    with checkpoints as files, _explained_interrupt(files, len(prompts), n_conditions):
        if files is not None and executor is None and not isinstance(memory, int):
            memory = files.memory  # the free memory may have changed
        measurement = Measurement(
            questions,
            decoding if measure == "generate" else None,
            mass=mass,
            sites=steered_sites(model, conditions),
            options={"allow_empty": allow_empty, "force": force, "reuse": reuse, "memory": memory},
        )
        runner = ChunkRunner(model, measurement, cost.size, executor, files, progress, level)
        results = runner.run(first)
        table = _table(prompts, first, results)
        if len(first) < len(conditions):
            select = best_conditions if control_layers == "chosen" else control_layers
            if len(selected := select(table)):
                validated(selected, "vector", *AT, producer="choose", caller="sweep(control_layers=…)")
            chosen = controls_at(conditions, selected)
            logger.info("%d conditions of controls", len(chosen))
            results += runner.run(chosen, start=len(in_chunks(first, cost.size)))
            table = _table(prompts, [*first, *chosen], results)
        if files is not None:
            files.finish(table)
            logger.info("wrote %s", out)
    return table


def _prompt_table(
    questions: ChoiceQuestions | Sequence[str], measure: str, decoding: Decoding
) -> pd.DataFrame:
    """One row per prompt, with the columns that all conditions share."""
    has_choices = isinstance(questions, ChoiceQuestions)
    prompts = questions.prompts if has_choices else questions
    if not len(prompts):
        raise ValueError("questions must be ChoiceQuestions, or a list of at least one prompt.")
    if measure == "choice" and not has_choices:
        raise ValueError(
            "measure='choice' needs ChoiceQuestions; a list of prompts goes with measure='generate'."
        )
    values = {name: getattr(decoding, name) for name in SAMPLING}
    sampling = [f"{name}={value}" for name, value in values.items() if value != getattr(Decoding(), name)]
    if measure == "choice" and sampling:
        raise ValueError(
            f"{', '.join(sampling)} with measure='choice', which scores answers and samples nothing: "
            "expected measure='generate'. `sampled_choices` draws from the scores."
        )
    known = {"answers": questions.answers, "factors": questions.factors} if has_choices else {}
    return question_table(prompts, **known, seed=decoding.seed)


def _log_start(
    conditions: Sequence[Condition], first: Sequence[Condition], n_prompts: int, cost: Cost, *, stored: bool
) -> tuple[int, int]:
    """Log the work and its estimated time; as a warning if a long sweep is not stored.

    Returns the number of conditions, with an estimate of controls at chosen ones, and the messages' level.
    """
    controls = {(each.vector, each.operation) for each in conditions if each.control}
    n_controls = sum(each.control for each in first) or len(controls)
    count = len(first) + (0 if len(first) == len(conditions) else n_controls)
    seconds = cost.clean + cost.condition * count
    level = logging.WARNING if seconds > LONG and not stored else logging.INFO
    logger.log(
        level,
        "%d conditions (%.0f %% controls) of %d questions, about %.1f minutes%s",
        count,
        100 * n_controls / count,
        n_prompts,
        seconds / 60,
        "" if stored else "; without out=… nothing is kept if the sweep is interrupted",
    )
    return count, level


@contextmanager
def _explained_interrupt(files: Checkpoints | None, n_rows: int, n_conditions: int) -> Iterator[None]:
    """Say in a KeyboardInterrupt how many conditions are kept, and how to continue."""
    try:
        yield
    except KeyboardInterrupt:
        message = f"none of {n_conditions} conditions is kept: give out='sweep.parquet', with which"
        if files is not None:
            finished = sum(len(files.load(number).outcomes) // n_rows for number in files.finished())
            message = f"{finished} of {n_conditions} conditions are kept in {files.folder}:"
        raise KeyboardInterrupt(f"{message} the same call continues.") from None


def _table(
    prompts: pd.DataFrame, conditions: Sequence[Condition], results: Sequence[ChunkResult]
) -> pd.DataFrame:
    """The sweep's table; the norms come from the chunk with the unsteered condition."""
    norms = {site: norm for each in results for site, norm in each.norms.items()}
    outcomes = pd.concat([each.outcomes for each in results], ignore_index=True)
    return assembled_table(prompts, [each.labels(norms) for each in conditions], outcomes)
