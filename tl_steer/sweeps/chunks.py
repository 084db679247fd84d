"""Chunks of a sweep's conditions: their size by estimated cost, their measurement, executors and storage."""

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass
from functools import partial
from math import ceil
from typing import Any

import numpy as np
import pandas as pd
import torch

from .._capture import capture
from .._generation import Decoding, completion_text, write_conditions
from .._scoring import plan_choices, score_conditions
from .._util.logs import bar
from ..engine import CleanStreams, Memory, OnProgress, RunOptions, Site, StreamNorms
from ..engine.plain import Row, no_progress
from ..engine.shared.chunking import plan_work
from ..engine.shared.prefixes import Plan
from ..interventions import Operation, edits_of
from ..models import tokenize_all
from ..positions import PromptTokens
from ..prompts import ChoiceQuestions
from .conditions import UNSTEERED, ChunkResult, Condition, Norms
from .store import Checkpoints
from .sweep_table import written_answers

logger = logging.getLogger(__name__)
MAX_CONDITIONS = 32  # per chunk
SECONDS = 10.0  # estimated, per chunk: the work that a kill loses
# Assumed floating-point operations per second (two cores; a large GPU). Not measured, so that a sweep has the
# same chunks on every machine.
SPEED = {"cpu": 1e11, "cuda": 1e14}

Chunks = Mapping[int, Sequence[Condition]]  # by number
Measure = Callable[[Any, Sequence[Condition]], ChunkResult]  # of a model and conditions
Executor = Callable[[Any, Measure, Chunks], Iterator[tuple[int, ChunkResult]]]


def in_order(model: Any, measure: Measure, chunks: Chunks) -> Iterator[tuple[int, ChunkResult]]:
    """Executor that runs one chunk after another in this process.

    An executor is called with the model, the function that measures a chunk, and the chunks that are left. It
    yields each chunk's number and result once, in any order.
    """
    for number, conditions in chunks.items():
        yield number, measure(model, conditions)


class Measurement:
    """Measures a chunk of conditions. It has no model, and cloudpickle can send it to other processes.

    Args:
        decoding: of the texts; `None` scores choices.
        sites: where the norms are read in the unsteered condition.
        options: fields of `RunOptions`, without `on_progress`.
    """

    def __init__(
        self,
        questions: ChoiceQuestions | Sequence[str],
        decoding: Decoding | None,
        *,
        mass: bool,
        sites: Sequence[Site],
        options: Mapping[str, Any],
    ) -> None:
        self.questions, self.decoding, self.mass = questions, decoding, mass
        self.sites, self.options = sites, options
        self.clean = CleanStreams(frozenset(layer + (hook == "resid_post") for layer, hook in sites))

    def __call__(
        self, model: Any, conditions: Sequence[Condition], on_progress: OnProgress = no_progress
    ) -> ChunkResult:
        """The outcomes and, if there is the unsteered condition, the norms that were read or are read now."""
        operations = [each.operations for each in conditions]
        options = RunOptions(**self.options, on_progress=on_progress)
        measured = self._scores if self.decoding is None else self._texts
        outcomes, norms, prompts = measured(model, operations, options)
        if UNSTEERED not in conditions:
            return ChunkResult(outcomes, {})
        if not norms.seen:
            return ChunkResult(outcomes, typical_norms(model, prompts, self.sites, reuse=False))
        return ChunkResult(outcomes, {(hook, layer): norm for (layer, hook), norm in norms.typical().items()})

    def _scores(
        self, model: Any, operations: Sequence[Sequence[Operation]], options: RunOptions
    ) -> tuple[pd.DataFrame, StreamNorms, Sequence[Sequence[int]]]:
        plan = plan_choices(model, self.questions.prompts, self.questions.choices)
        norms = StreamNorms(self.sites, [read.question for read in plan.reads])
        extra = {"mass": self.mass, "norms": norms, "clean": self.clean, "options": options}
        outcomes = pd.concat(score_conditions(model, plan, operations, **extra), ignore_index=True)
        difference = outcomes["logit_difference"]
        choice = pd.array(np.where(difference > 0, 0, 1), dtype="Int64")
        choice[difference == 0] = pd.NA
        text = pd.array([pd.NA] * len(outcomes), dtype="string")
        return outcomes.assign(choice=choice, text=text), norms, plan.prompts

    def _texts(
        self, model: Any, operations: Sequence[Sequence[Operation]], options: RunOptions
    ) -> tuple[pd.DataFrame, StreamNorms, Sequence[Sequence[int]]]:
        has_choices, draws = isinstance(self.questions, ChoiceQuestions), self.decoding.draws
        prompts = list(self.questions.prompts if has_choices else self.questions)
        ids = tokenize_all(model, prompts)
        norms = StreamNorms(self.sites, [row // draws for row in range(len(ids) * draws)])
        tokens = write_conditions(model, ids, operations, self.decoding, norms=norms, options=options)
        texts = [completion_text(model, new) for condition in tokens for new in condition]
        choices = [pair for pair in self.questions.choices for _ in range(draws)] if has_choices else None
        repeated = [prompt for prompt in prompts for _ in range(draws)]
        return written_answers(texts, repeated, choices), norms, ids


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


@dataclass(frozen=True)
class Cost:
    """Estimated seconds of a chunk's passes, the same on every machine.

    Attributes:
        clean: without operations, repeated in each chunk.
        condition: mean per condition.
    """

    clean: float
    condition: float

    @property
    def size(self) -> int:
        """Conditions per chunk: ten seconds of work, or as long as the clean pass."""
        seconds = max(SECONDS - self.clean, self.clean)
        return max(1, min(MAX_CONDITIONS, int(seconds / self.condition)))


def estimated_cost(
    model: Any, ids: Sequence[Sequence[int]], conditions: Sequence[Condition], new_tokens: int
) -> Cost:
    """Cost by the size of the model and the tokens and layers that each condition changes.

    `new_tokens` are generated per prompt, over all draws.
    """
    n_layers = model.cfg.n_layers
    prompts = [PromptTokens(len(each), tuple(each), model.tokenizer, row) for row, each in enumerate(ids)]
    rows = [Row(prompt.ids, prompt) for prompt in prompts]
    plan = Plan(rows, [edits_of(each.operations, n_layers) for each in conditions])
    clean = len(plan.prefix.trie) * n_layers
    changed = (plan_work(model.cfg.n_layers, plan, new_tokens) - clean) / len(conditions)
    per_layer = sum(weight.numel() for weight in model.blocks.parameters()) / n_layers
    seconds = 2 * per_layer / SPEED.get(torch.device(model.cfg.device).type, SPEED["cuda"])
    return Cost(seconds * clean, seconds * changed)


def in_chunks(conditions: Sequence[Condition], size: int) -> dict[int, tuple[Condition, ...]]:
    """The conditions in chunks of about equal size, by number.

    The same when a sweep is resumed: which conditions share a batch decides the last bits of a number.
    """
    parts = np.array_split(np.arange(len(conditions)), ceil(len(conditions) / size))
    return {number: tuple(conditions[index] for index in part) for number, part in enumerate(parts)}


@dataclass(frozen=True)
class ChunkRunner:
    """Runs a sweep's conditions in chunks, and stores or loads the chunks' results."""

    model: Any
    measure: Measure
    size: int  # conditions per chunk
    executor: Executor | None  # `None` for this process
    files: Checkpoints | None  # `None` if nothing is stored
    progress: bool
    level: int  # of the log message about the remaining time

    def run(self, conditions: Sequence[Condition], start: int = 0) -> list[ChunkResult]:
        """Results of the conditions' chunks, which are numbered from `start`."""
        is_whole = self.files is None and self.executor is None
        parts = {0: conditions} if is_whole else in_chunks(conditions, self.size)
        chunks = {start + number: part for number, part in parts.items() if part}
        finished = set() if self.files is None else self.files.finished() & set(chunks)
        left = {number: chunk for number, chunk in chunks.items() if number not in finished}
        results = {}
        with bar("sweeping", len(conditions), visible=self.progress) as on_progress:
            if finished:
                count = sum(len(chunks[number]) for number in finished)
                on_progress(count)
                logger.info("%s: %d of %d conditions are finished", self.files.out, count, len(conditions))
            on_progress = _logging_remaining(on_progress, sum(map(len, left.values())), self.level)
            for number, result in self._results(left, on_progress):
                if self.files is None:
                    results[number] = result
                else:
                    self.files.save(number, result)
        return [results[number] if self.files is None else self.files.load(number) for number in chunks]

    def _results(self, chunks: Chunks, on_progress: OnProgress) -> Iterator[tuple[int, ChunkResult]]:
        """Results as they arrive; in this process, progress is reported within a chunk.

        Raises:
            RuntimeError: the executor yielded a chunk twice or an unknown one, or omitted some.
        """
        if not chunks:
            return
        missing = set(chunks)
        is_local = self.executor is None
        measure = partial(self.measure, on_progress=on_progress) if is_local else self.measure
        results = (self.executor or in_order)(self.model, measure, chunks)
        with closing(results) if hasattr(results, "close") else nullcontext():
            for number, result in results:
                if number not in missing:
                    raise RuntimeError(f"the executor answered chunk {number}, which is done or unknown.")
                missing.remove(number)
                if not is_local:
                    on_progress(len(chunks[number]))
                yield number, result
        if missing:
            raise RuntimeError(f"the executor left the chunks {sorted(missing)} out.")


def _logging_remaining(on_progress: OnProgress, n_conditions: int, level: int) -> OnProgress:
    """`on_progress`, which also logs the remaining time once, after the first seconds."""
    started, done, is_logged = time.monotonic(), 0.0, False

    def with_log(conditions: float) -> None:
        nonlocal done, is_logged
        on_progress(conditions)
        done, elapsed = done + conditions, time.monotonic() - started
        if elapsed > SECONDS and not is_logged:
            remaining = elapsed * (n_conditions / done - 1) / 60
            logger.log(level, "%.0f of %d conditions: %.1f minutes remain", done, n_conditions, remaining)
            is_logged = True

    return with_log
