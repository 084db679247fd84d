"""Chunks of a sweep's conditions: their size by estimated cost, executors, and runs that store each chunk."""

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass
from functools import partial
from math import ceil
from typing import Any

import numpy as np
import torch

from .._util.logs import bar
from ..engine import OnProgress
from ..engine.plain import Row
from ..engine.shared.chunking import plan_work
from ..engine.shared.prefixes import Plan
from ..interventions import edits_of
from ..positions import PromptTokens
from .conditions import Condition
from .measuring import ChunkResult, Measure
from .store import Checkpoints

logger = logging.getLogger(__name__)
MAX_CONDITIONS = 32  # per chunk
SECONDS = 10.0  # estimated, per chunk: the work that a kill loses
# Assumed floating-point operations per second (two cores; a large GPU). Not measured, so that a sweep has the
# same chunks on every machine.
SPEED = {"cpu": 1e11, "cuda": 1e14}

Chunks = Mapping[int, Sequence[Condition]]  # by number
Executor = Callable[[Any, Measure, Chunks], Iterator[tuple[int, ChunkResult]]]


def in_order(model: Any, measure: Measure, chunks: Chunks) -> Iterator[tuple[int, ChunkResult]]:
    """Executor that runs one chunk after another in this process.

    An executor is called with the model, the function that measures a chunk, and the chunks that are left. It
    yields each chunk's number and result once, in any order.
    """
    for number, conditions in chunks.items():
        yield number, measure(model, conditions)


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

    Args:
        ids: token ids of each prompt.
        conditions: the unsteered one first.
        new_tokens: generated per prompt, over all draws.
    """
    n_layers = model.cfg.n_layers
    prompts = [PromptTokens(len(each), tuple(each), model.tokenizer, row) for row, each in enumerate(ids)]
    rows = [Row(prompt.ids, prompt) for prompt in prompts]
    plan = Plan(rows, [edits_of(each.operations, n_layers) for each in conditions])
    clean = len(plan.prefix.trie) * n_layers
    changed = (plan_work(model, plan, new_tokens) - clean) / len(conditions)
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
    """Runs a sweep's conditions in chunks, and stores or loads the chunks' results.

    Attributes:
        size: conditions per chunk.
        executor: `None` for this process.
        files: `None` if nothing is stored.
        level: of the log message about the remaining time.
    """

    model: Any
    measure: Measure
    size: int
    executor: Executor | None
    files: Checkpoints | None
    progress: bool
    level: int

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
