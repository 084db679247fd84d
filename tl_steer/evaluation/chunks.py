"""A sweep's cells in chunks: what one chunk answers, and who answers them."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from .cells import Cell

Norms = Mapping[tuple[str, int], float]  # the unsteered stream's typical norm by hook and layer
CELLS = 32  # a chunk: what is lost by a kill, and how often the clean passes below the cells are done again


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


def in_chunks(cells: Sequence[Cell]) -> dict[int, tuple[Cell, ...]]:
    """The cells by chunk, in their order: by their number alone, so that a resumed sweep cuts them alike.

    Which cells share a batch decides the last bits of a number; hence the same chunks, the same table.
    """
    starts = range(0, len(cells), CELLS)
    return {number: tuple(cells[start : start + CELLS]) for number, start in enumerate(starts)}


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
