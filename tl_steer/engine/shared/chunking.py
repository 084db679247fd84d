"""Cells and rows in waves that fit the memory; a wave that does not fit after all is halved."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import psutil
import torch

from ..._util.progress import Tick
from ...errors import NonFiniteError
from ...interventions import Edit, steer_cells
from .forward import LEAST_TOKENS, CleanStreams, Walk, tokens_a_pass
from .packing import PADDED
from .prefixes import Plan, Row, require_some

logger = logging.getLogger(__name__)
Memory = int | float | None  # bytes, or a share of what is free
CPU_BYTES = 2**29  # by default at most this much on a CPU, where more is hardly faster


@dataclass(frozen=True)
class Wave:
    """Some of the cells over some of the rows, ready to be walked.

    Attributes:
        cells, rows: which, as indices into what the waves were made of.
        plan: numbers them from 0.
        count: to be called with the number of tokens that have been through a layer.
    """

    cells: tuple[int, ...]
    rows: tuple[int, ...]
    plan: Plan
    walk: Walk
    count: Tick


def in_waves(
    model: Any,
    rows: Sequence[Row],
    cells: Sequence[Sequence[Edit]],
    work: Callable[[Wave], object],
    *,
    memory: Memory = None,
    new_tokens: int = 0,
    tick: Tick = lambda cells: None,
    generating: bool = False,
    allow_empty: bool = False,
    clean: CleanStreams | None = None,
) -> None:
    """Do `work` for every cell and row, as many at once as the memory allows.

    What a wave's work has kept stays, whatever becomes of the next: a wave that runs out of memory is done
    again in halves, with passes half as large.

    Args:
        work: walks the wave and keeps what it wants of it.
        memory: bytes that what is kept between passes may take, or a share (at most 1.0) of what is free;
            by default half of what is free, and on a CPU at most 512 MiB.
        new_tokens: how many each row will be given behind it, with keys and values of all layers kept.
        tick: called with the number of cells done, in parts.
        generating: whether tokens will be fed back behind the rows.
        allow_empty: accept rows of which an edit selects nothing.
        clean: unsteered streams to keep for later calls, if they take at most a quarter of the memory.

    Raises:
        EmptySelectionError: an edit's positions select nothing of a row.
    """
    if not allow_empty:
        require_some(rows, cells, generating=generating)
    limit = bytes_allowed(model, memory)
    budget = tokens_a_pass(model, limit)
    waiting = [(tuple(range(len(cells))), _alike_together(rows))]
    while waiting:
        mine, asked = waiting.pop()
        plan = Plan([rows[row] for row in asked], [cells[cell] for cell in mine])
        streams = plan.trunk.stop * model.cfg.d_model * model.W_E.element_size()
        kept = 0 if clean is None else streams * len(clean.layers)
        keeping = clean if kept <= limit // 4 else None
        size = plan_bytes(model, plan, new_tokens) + (kept if keeping else 0)
        halves = _halves(mine, asked)
        if halves and size > limit:
            waiting += halves
            continue
        share = len(mine) * len(asked) / len(rows) / plan_work(model, plan, new_tokens)
        told = (len(mine), len(asked), plan.size, size / 2**20, limit / 2**20, budget)
        logger.debug("%d cells of %d prompts: %d tokens, %.1f of %.0f MiB kept, %d tokens a pass", *told)
        try:
            count = lambda tokens, share=share: tick(share * tokens)  # noqa: E731
            _run(model, plan, budget, work, mine, asked, count, keeping)
            continue
        except NonFiniteError:
            if not halves:
                raise
            # One row's keys reach the others' sums, though with weight 0: each by itself tells whose it was.
            waiting += halves
            continue
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error) or not (halves or budget >= 2 * LEAST_TOKENS):
                raise
        # Out here the error is gone, and with it all that its frames held.
        limit, budget = min(limit, size) // 2, max(budget // 2, LEAST_TOKENS)
        logger.warning(
            "out of memory with %d cells of %d prompts; memory=… keeps it smaller from the start; "
            "going on with half as much at once",
            len(mine),
            len(asked),
        )
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        waiting += halves or [(mine, asked)]


def _run(
    model: Any,
    plan: Plan,
    budget: int,
    work: Callable[[Wave], object],
    cells: tuple[int, ...],
    rows: tuple[int, ...],
    count: Tick,
    clean: CleanStreams | None,
) -> None:
    """One wave; what it held is free when this returns."""
    alone = plan.rows[0].prompt if len(rows) == 1 else None
    with steer_cells(model, plan.cells, alone) as steering:
        work(Wave(cells, rows, plan, Walk(model, plan, steering, budget=budget, clean=clean), count))


def bytes_allowed(model: Any, memory: Memory) -> int:
    """The `memory` argument in bytes.

    Raises:
        ValueError: it is not positive, or a fraction above 1.
    """
    if memory is not None and not (0 < memory <= 1 if isinstance(memory, float) else memory > 0):
        raise ValueError(
            f"memory={memory!r}: give a whole number of bytes, or a fraction of what is free (0.5), or None."
        )
    if isinstance(memory, int):
        return int(memory)
    device = torch.device(model.cfg.device)
    if device.type == "cuda":
        return int((memory or 0.5) * torch.cuda.mem_get_info(device)[0])
    free = psutil.virtual_memory().available
    return int(memory * free) if memory else min(CPU_BYTES, free // 2)


def plan_bytes(model: Any, plan: Plan, new_tokens: int) -> int:
    """What is kept between passes: streams, masks, a layer's keys and values, and all layers' of texts."""
    size = model.W_E.element_size()
    seen = PADDED * sum(branch.growth.seen for branch in plan.all) * (2 if model.cfg.use_local_attn else 1)
    kept = plan.size * (model.cfg.d_model * size + token_bytes(model)) + int(seen) * size
    slots = len(plan.cells) * len(plan.rows) * (max(len(row.ids) for row in plan.rows) + new_tokens)
    return kept + (slots * model.cfg.n_layers * token_bytes(model) if new_tokens else 0)


def plan_work(model: Any, plan: Plan, new_tokens: int) -> int:
    """How many tokens go through how many layers."""
    walked = sum(len(branch.growth) * (model.cfg.n_layers - branch.born) for branch in plan.all)
    return walked + len(plan.cells) * len(plan.rows) * new_tokens * model.cfg.n_layers


def token_bytes(model: Any) -> int:
    """What one token's keys and values of one layer take."""
    heads = model.cfg.n_key_value_heads or model.cfg.n_heads
    return 2 * heads * model.cfg.d_head * model.W_E.element_size()


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on whichever device."""
    told = ("not enough memory", "can't allocate memory")  # by torch, on a CPU
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(
        words in str(error) for words in told
    )


def _alike_together(rows: Sequence[Row]) -> tuple[int, ...]:
    """In an order in which halves share beginnings."""
    return tuple(sorted(range(len(rows)), key=lambda row: rows[row].ids))


def _halves(cells: tuple[int, ...], rows: tuple[int, ...]) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """The second half and the first, of the cells, or of the rows where there is one cell."""
    if len(cells) > 1:
        middle = len(cells) // 2
        return [(cells[middle:], rows), (cells[:middle], rows)]
    middle = len(rows) // 2
    return [(cells, rows[middle:]), (cells, rows[:middle])] if middle else []
