"""A sweep's cells in chunks: what one chunk answers, and who answers them."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any

import numpy as np
import pandas as pd
import torch

from ..engine.plain import Row
from ..engine.shared.chunking import plan_work
from ..engine.shared.prefixes import Plan
from ..interventions import edits_of
from ..positions import PromptTokens
from .conditions import Cell

Norms = Mapping[tuple[str, int], float]  # the unsteered stream's typical norm by hook and layer
CELLS = 32  # in a chunk, at most
SECONDS = 10.0  # estimated, per chunk: what a kill loses
# Assumed floating-point operations per second (two cores; a large GPU). Not measured, so that a sweep has the
# same chunks on every machine.
SPEED = {"cpu": 1e11, "cuda": 1e14}


@dataclass(frozen=True, eq=False)
class Answers:
    """What a chunk's cells were answered.

    Attributes:
        outcomes: a row a prompt and cell, all prompts of the first cell first: choice, logit_difference,
            probability, mass, text.
        norms: the unsteered stream's typical norm by hook and layer; empty where the chunk does not hold the
            unsteered cell.
    """

    outcomes: pd.DataFrame
    norms: Norms


Ask = Callable[[Any, Sequence[Cell]], Answers]  # (model, cells); can be sent to another process
Executor = Callable[[Any, Ask, Mapping[int, Sequence[Cell]]], Iterator[tuple[int, Answers]]]


def in_order(model: Any, ask: Ask, chunks: Mapping[int, Sequence[Cell]]) -> Iterator[tuple[int, Answers]]:
    """The executor without any other machine: one chunk after another, here.

    An executor is called with the model, with what answers a chunk's cells (it holds no model, and
    cloudpickle can send it), and with the chunks that are left to do, by number. It gives each chunk's
    number and answers as soon as they are there, in any order, each once.
    """
    for number, cells in chunks.items():
        yield number, ask(model, cells)


@dataclass(frozen=True)
class Cost:
    """Estimated seconds of a chunk's passes, the same on every machine.

    Attributes:
        clean: without any operation, which each chunk repeats.
        cell: for each cell, on average.
    """

    clean: float
    cell: float

    @property
    def size(self) -> int:
        """Cells in a chunk: as many as take ten seconds, and enough to take as long as the clean pass."""
        seconds = max(SECONDS - self.clean, self.clean)
        return max(1, min(CELLS, int(seconds / self.cell)))


def estimated_cost(model: Any, ids: Sequence[Sequence[int]], cells: Sequence[Cell], new: int) -> Cost:
    """The cost of conditions by the size of the model and the tokens that each of them changes.

    Args:
        ids: token ids of each prompt.
        cells: the unsteered one first.
        new: tokens that are generated per prompt, over all draws.
    """
    n_layers = model.cfg.n_layers
    prompts = [PromptTokens(len(each), tuple(each), model.tokenizer, row) for row, each in enumerate(ids)]
    rows = [Row(prompt.ids, prompt) for prompt in prompts]
    plan = Plan(rows, [edits_of(cell.operations, n_layers) for cell in cells])
    clean = len(plan.prefix.trie) * n_layers
    changed = (plan_work(model, plan, new) - clean) / len(plan.conditions)
    per_layer = sum(weight.numel() for weight in model.blocks.parameters()) / n_layers
    speed = SPEED.get(torch.device(model.cfg.device).type, SPEED["cuda"])
    return Cost(*(2 * per_layer * layers_and_tokens / speed for layers_and_tokens in (clean, changed)))


def in_chunks(cells: Sequence[Cell], size: int) -> dict[int, tuple[Cell, ...]]:
    """The cells by chunk, in their order, of about equal size: the same when a sweep is resumed.

    Which cells share a batch decides the last bits of a number; hence the same chunks, the same table.
    """
    parts = np.array_split(np.arange(len(cells)), ceil(len(cells) / size))
    return {number: tuple(cells[place] for place in part) for number, part in enumerate(parts)}


def answered(
    model: Any, ask: Ask, chunks: Mapping[int, Sequence[Cell]], executor: Executor
) -> Iterator[tuple[int, Answers]]:
    """Each chunk's answers as they come; what an executor holds is let go of when this is left.

    Raises:
        RuntimeError: the executor gave a chunk that nobody asked for, or left some out.
    """
    if not chunks:
        return
    waiting = set(chunks)
    given = executor(model, ask, chunks)
    try:
        for number, answers in given:
            if number not in waiting:
                raise RuntimeError(f"the executor answered chunk {number}, which was not asked for or done.")
            waiting.remove(number)
            yield number, answers
    finally:
        getattr(given, "close", lambda: None)()  # generators have it, other iterators need not
    if waiting:
        raise RuntimeError(f"the executor left the chunks {sorted(waiting)} out.")
