"""The same questions under every vector, layer and multiplier, as one tidy table."""

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from .._generation import Decoding
from .._util.progress import bar
from .._util.validation import checked
from ..directions import SteeringVectors
from ..engine import Memory, OnProgress
from ..engine.shared.chunking import bytes_allowed
from ..engine.support import require_unhooked
from ..interventions import Vectors
from ..models import HookedModel, exclusive, tokenize_all
from ..positions import Positions, all_tokens
from ..prompts import ChoiceQuestions
from .chunks import SECONDS, Answers, Ask, Cost, Executor, answered, estimated_cost, in_chunks, in_order
from .conditions import Cell, OperationMaker, controls_at, named_vectors, sweep_cells
from .content_hash import digest
from .measuring import asker, steered_sites
from .plans import sweep_plan
from .selection import best_conditions
from .store import Checkpoints, checkpoints, finished_table, require_parquet_name, require_writable
from .sweep_table import asked_table, assembled, repeated, require_columns

logger = logging.getLogger(__name__)
LONG = 60.0  # seconds


@checked
def sweep(
    model: HookedModel,
    vectors: Vectors | Mapping[str, Vectors],
    questions: ChoiceQuestions | Sequence[str],
    *,
    layers: int | Sequence[int | Sequence[int]] | None = None,
    multipliers: Sequence[float],
    operations: Sequence[str | OperationMaker] = ("add",),
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
    """Ask questions under every cell: vector × operation × layers × multiplier, and unsteered.

    Args:
        model: a `HookedTransformer` or a `TransformerBridge`.
        vectors: one set, or one vector, or several of these by name.
        questions: choice questions, or (with "generate") plain prompts.
        layers: single layers, or tuples of layers that are steered together; by default each layer there is.
        multipliers: numbers in front of the vectors, signs included.
        operations: "add", "project_out" (once a layer, multiplier NaN), or a callable that makes an operation
            of a vector, a multiplier and positions.
        positions: at which tokens; by default `all_tokens()`.
        measure: "choice" scores the two continuations, "generate" writes text and reads it.
        max_new_tokens, min_new_tokens: length of the texts; each ends at the end of its turn.
        temperature, top_p, repetition_penalty: how texts are sampled, as for `generate`; by default greedily.
        draws: how many texts are sampled per prompt and condition. The same draw of the same prompt uses the
            same random numbers in every condition, and draw 0 is the text of `generate` with this `seed`.
            One draw compared with another differs where nothing is steered: sample several, since intervals
            are over both prompts and draws, with all draws of a prompt taken together.
        controls: how many random directions of the same length for each vector, or control vectors by name,
            which serve all vectors. With fewer than 19, no p value can reach .05.
        control_layers: "chosen" runs controls after everything else, and for each vector and operation only
            at the condition that does best on the split "choose" (on all prompts, where none has that split).
            A random direction has no sign, so these controls serve the opposite multiplier too. The score is
            accuracy where answers are known, else the shift of the logit difference in the multiplier's
            direction, else (texts) the share of choices, or of texts where no choice is read, that differ
            from the unsteered ones. "all" runs them under every condition, as `choose` needs for its p value,
            and costs as many times the rest as there are controls. Or a function that is given the table
            without controls and returns the conditions (vector, operation, layers, hook, multiplier), such as
            `partial(choose, on="choose", report="report", score="shift")`.
        divide_by_layers: divide each multiplier by the number of layers that are steered together. The
            table's `multiplier` and `dose` are of the quotient: what was added at each layer is `multiplier`
            times its vector.
        seed: of the random directions, of the split and of the samples.
        out: a Parquet file to write. Finished cells are kept next to it in `out`.cells, in chunks of at most
            32 that take about ten seconds by the size of the model and the prompts, or twice as long as the
            clean pass that each chunk repeats. The same call continues where a killed one was, and gives the
            same table to the bit (on the same machine, with as many threads); of a finished table it returns
            the table.
        executor: who answers the chunks of cells, `ray_executor(…)`; by default this process.
        mass: `False` leaves the column mass empty, and does not compute the whole vocabulary's logits where
            the choices' own are enough.
        allow_empty: accept prompts of which `positions` selects nothing.
        allow_zero: add vectors of length zero too, which change nothing at their layer.
        force: accept vectors of other weights of the same shapes and processing.
        progress: show a bar over cells.
        reuse: compute what cells and prompts share once: a cell costs what it changes, from its first changed
            layer and position on. `False` runs whole forward passes, the oracle: the same numbers.
        memory: what may be kept between passes, in bytes (`2 * 10**9`) or as a share of what is free (0.8);
            by default half of what is free, and on a CPU at most 512 MiB. With less, more passes are made.

    Returns:
        A row a prompt and cell (with several draws, one per draw): prompt_id, prompt, draw (from 0, only with
        several draws), label (the message that a prompt was rendered from, else the prompt; a factor of that
        name takes its place), the factors, vector, control, control_of (the vector that
        a control belongs to; "" for one that serves all vectors, and for what is no control), operation,
        layers ("17+31"), hook, multiplier, dose (of several layers the largest), split ("choose" or "report",
        balanced over factors and answers, unless the factors have a column of that name), answer, choice,
        logit_difference, probability, mass, text.
        `choice` is missing where a text could not be read, or neither choice is likelier.

    Raises:
        ValueError: plain prompts or settings of sampling with "choice", several draws of greedy text, a
            factor that has one of the table's names, no multipliers;
            with `out`, a factor that Parquet cannot hold, an operation that cannot be told from another, or
            hooks of your own on the model, which a later call could lack.
        FileExistsError: `out` is another file, or was begun with other arguments; the message says which.
        KeyboardInterrupt: says how many cells are kept.
        InUseError: another process writes `out`.
        OSError: the disk is full; what is finished is kept.

    With `out` or an executor, cells share batches with those of their chunk alone: numbers agree with the
    sweep in one piece to rounding, as batches do. Vectors that are made anew for each call may differ in
    their last bits and are then other vectors: save and load them.
    """
    positions = all_tokens() if positions is None else positions
    sampling = {
        "temperature": temperature, "top_p": top_p, "repetition_penalty": repetition_penalty, "draws": draws,
    }  # fmt: skip
    decoding = Decoding(max_new_tokens, min_new_tokens, **sampling, seed=seed)
    if measure == "choice":
        _require_no_sampling(sampling)
    named = named_vectors(vectors)
    cells = sweep_cells(
        named,
        controls,
        layers=layers,
        multipliers=[float(each) for each in multipliers],
        operations=operations,
        positions=positions,
        seed=seed,
        divide_by_layers=divide_by_layers,
        allow_zero=allow_zero,
    )
    if out is not None:
        require_parquet_name(Path(out))
        with exclusive(model):  # another thread's steer is gone before a chunk runs
            require_unhooked(model)
    asked = repeated(_asked(questions, seed), draws)
    if out is not None:
        require_writable(asked)
    sites = steered_sites(model, cells)

    def asking(memory: Memory) -> Ask:
        options = {"allow_empty": allow_empty, "force": force, "reuse": reuse, "memory": memory}
        return asker(questions, measure, decoding, mass=mass, sites=sites, options=options)

    ask = asking(memory)
    first = cells if control_layers == "all" else [cell for cell in cells if not cell.control]
    ids = tokenize_all(model, list(asked["prompt"].iloc[::draws]))
    cost = estimated_cost(model, ids, first, max_new_tokens * draws * (measure == "generate"))
    n_conditions, level = _log_start(cells, first, len(ids), cost, kept=out is not None)
    opening = nullcontext()
    if out is not None:
        settings = {
            "positions": positions.label,
            "measure": measure,
            "max_new_tokens": max_new_tokens if measure == "generate" else None,
            "min_new_tokens": min_new_tokens if measure == "generate" else None,
            **{name: value if measure == "generate" else None for name, value in sampling.items()},
            "mass": mass,
            "control_layers": control_layers if isinstance(control_layers, str) else digest(control_layers),
            "seed": seed,
            "reuse": reuse,
            "allow_empty": allow_empty,
            "conditions in a chunk": cost.size,
        }
        plan = sweep_plan(model, named, controls, cells, questions, settings)
        if (table := finished_table(Path(out), plan)) is not None:
            logger.info("%s is finished", out)
            return table
        opening = checkpoints(Path(out), plan, bytes_allowed(model, memory))
    with opening as files, _interruption(files, len(asked), n_conditions):
        if files is not None and executor is None and not isinstance(memory, int):
            ask = asking(files.memory)  # what is free is no longer what it was
        answer = partial(
            _answered,
            model,
            ask,
            size=cost.size,
            executor=executor,
            files=files,
            progress=progress,
            level=level,
        )
        answers = answer(first)
        table = _table(asked, first, answers)
        if len(first) < len(cells):
            select = best_conditions if control_layers == "chosen" else control_layers
            chosen = controls_at(cells, _conditions(select(table)))
            logger.info("%d conditions of controls", len(chosen))
            answers += answer(chosen, start=len(in_chunks(first, cost.size)))
            table = _table(asked, [*first, *chosen], answers)
        if files is not None:
            files.finish(table)
            logger.info("wrote %s", out)
    return table


def _log_start(
    cells: Sequence[Cell], first: Sequence[Cell], n_prompts: int, cost: Cost, *, kept: bool
) -> tuple[int, int]:
    """Log what a sweep will run and for about how long; a long one that keeps nothing as a warning.

    Returns:
        The number of conditions, of controls at chosen conditions about as many as there will be; and the
        level of the messages.
    """
    controls = {(cell.vector, cell.operation) for cell in cells if cell.control}
    n_controls = sum(cell.control for cell in first) or len(controls)
    count = len(first) + (0 if len(first) == len(cells) else n_controls)
    seconds = cost.clean + cost.cell * count
    level = logging.WARNING if seconds > LONG and not kept else logging.INFO
    logger.log(
        level,
        "%d conditions (%.0f %% controls) of %d questions, about %.1f minutes%s",
        count,
        100 * n_controls / count,
        n_prompts,
        seconds / 60,
        "" if kept else "; without out=… nothing is kept where the sweep is interrupted",
    )
    return count, level


@contextmanager
def _interruption(files: Checkpoints | None, n_rows: int, n_conditions: int) -> Iterator[None]:
    """Say in a KeyboardInterrupt how many conditions are kept, and how to continue."""
    try:
        yield
    except KeyboardInterrupt:
        if files is None:
            raise KeyboardInterrupt(
                f"none of {n_conditions} conditions is kept: give out='sweep.parquet' to keep finished ones "
                "and to continue with the same call."
            ) from None
        finished = sum(len(files.answers(number).outcomes) // n_rows for number in files.finished())
        raise KeyboardInterrupt(
            f"{finished} of {n_conditions} conditions are kept in {files.folder}: the same call continues."
        ) from None


def _require_no_sampling(sampling: Mapping[str, float]) -> None:
    usual = Decoding()
    given = [f"{name}={value}" for name, value in sampling.items() if value != getattr(usual, name)]
    if given:
        raise ValueError(
            f"{', '.join(given)} with measure='choice', which scores answers and samples nothing: expected "
            "measure='generate'. `sampled_choices` draws from the scores."
        )


def _conditions(selected: pd.DataFrame) -> pd.DataFrame:
    columns = ("vector", "operation", "layers", "hook", "multiplier")
    require_columns(selected, *columns, maker="choose, or conditions of the table that control_layers gets")
    return selected


def _answered(
    model: Any,
    ask: Ask,
    cells: Sequence[Cell],
    *,
    size: int,
    executor: Executor | None,
    files: Checkpoints | None,
    progress: bool,
    level: int,
    start: int = 0,
) -> list[Answers]:
    """The answers of each chunk, in order, numbered from `start`; read where their file is there."""
    whole = files is None and executor is None
    parts = {0: cells} if whole else in_chunks(cells, size)
    chunks = {start + number: part for number, part in parts.items() if part}
    done = set() if files is None else files.finished() & set(chunks)
    left = {number: chunk for number, chunk in chunks.items() if number not in done}
    results = {}
    with bar("sweeping", len(cells), shown=progress) as tick:
        if done:
            before = sum(len(chunks[number]) for number in done)
            tick(before)
            logger.info("%s was begun before: %d of %d conditions are done", files.out, before, len(cells))
        tick = _logging_remaining(tick, sum(map(len, left.values())), level)
        for number, answers in _answers(model, ask, left, executor, tick):
            if files is None:
                results[number] = answers
            else:
                files.keep(number, answers)
    return [results[number] if files is None else files.answers(number) for number in chunks]


def _logging_remaining(tick: OnProgress, n_conditions: int, level: int) -> OnProgress:
    """`tick`, which once logs the remaining time, after the first conditions that took a few seconds."""
    started, done, is_logged = time.monotonic(), 0.0, False

    def logging_tick(conditions: float) -> None:
        nonlocal done, is_logged
        tick(conditions)
        done, elapsed = done + conditions, time.monotonic() - started
        if elapsed > SECONDS and not is_logged:
            remaining = elapsed * (n_conditions / done - 1) / 60
            logger.log(level, "%.0f of %d conditions: %.1f minutes remain", done, n_conditions, remaining)
            is_logged = True

    return logging_tick


def _answers(
    model: Any, ask: Ask, chunks: Mapping[int, Sequence[Cell]], executor: Executor | None, tick: OnProgress
) -> Iterator[tuple[int, Answers]]:
    """Each chunk's answers as they come; the bar moves within a chunk where it is answered here."""
    if executor is None:
        yield from answered(model, partial(ask, tick=tick), chunks, in_order)
        return
    for number, answers in answered(model, ask, chunks, executor):
        tick(len(chunks[number]))
        yield number, answers


def _table(asked: pd.DataFrame, cells: Sequence[Cell], answers: Sequence[Answers]) -> pd.DataFrame:
    """The table, cells in their order; the norms are the unsteered cell's chunk's."""
    norms = {at: norm for each in answers for at, norm in each.norms.items()}
    outcomes = pd.concat([each.outcomes for each in answers], ignore_index=True)
    return assembled(asked, [cell.labels(norms) for cell in cells], outcomes)


def _asked(questions: ChoiceQuestions | Sequence[str], seed: int) -> pd.DataFrame:
    prompts = questions.prompts if isinstance(questions, ChoiceQuestions) else questions
    if isinstance(prompts, str) or not len(prompts):
        raise ValueError("questions must be ChoiceQuestions, or a list of at least one prompt.")
    if isinstance(questions, ChoiceQuestions):
        return asked_table(prompts, answers=questions.answers, factors=questions.factors, seed=seed)
    return asked_table(prompts, seed=seed)
