"""Conditions and rows in chunks that fit the memory; a chunk that runs out of memory is split in two."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import psutil
import torch

from ...errors import NonFiniteError
from ...interventions import Edit, steer_conditions
from ...models.backend import input_device
from ...positions import Positions
from ..plain import DEFAULT_OPTIONS, Memory, OnProgress, Row, RunOptions
from .attention import PackedModel
from .forward import MIN_TOKENS, CleanStreams, LayerwisePass, tokens_per_pass
from .packing import PADDED
from .prefixes import Plan

logger = logging.getLogger(__name__)
CPU_BYTES = 2**29  # the default's maximum on a CPU, where more is hardly faster
Indices = tuple[int, ...]


@dataclass(frozen=True)
class Chunk:
    """Some of the conditions over some of the rows, ready to run.

    Attributes:
        conditions, rows: which, as indices.
        plan: numbers them from 0.
        layerwise: the forward pass.
        on_tokens: to be called with the number of tokens that went through a layer.
    """

    conditions: Indices
    rows: Indices
    plan: Plan
    layerwise: LayerwisePass
    on_tokens: OnProgress


def run_in_chunks(
    model: Any,
    packed: PackedModel,
    rows: Sequence[Row],
    conditions: Sequence[Sequence[Edit]],
    work: Callable[[Chunk], object],
    options: RunOptions = DEFAULT_OPTIONS,
    *,
    new_tokens: int = 0,
    generating: bool = False,
    clean: CleanStreams | None = None,
) -> None:
    """Call `work` for every condition and row, as many at once as the memory allows.

    Results of finished chunks are kept. A chunk that runs out of memory is split in two and retried with
    half the memory and half as many tokens per pass.

    Args:
        packed: runs the model's blocks.
        work: runs the chunk and keeps its results.
        new_tokens: how many tokens are fed after each row.
        generating: whether any row has tokens after its prompt, or will have some.
        clean: used if it takes at most a quarter of the memory.
    """
    if not options.allow_empty:
        _require_selections(rows, conditions, generating)
    limit = bytes_allowed(model, options.memory)
    budget = tokens_per_pass(packed, limit)
    # Sorted, so that the halves of a chunk share prefixes.
    by_ids = tuple(sorted(range(len(rows)), key=lambda row: rows[row].ids))
    queue = [(tuple(range(len(conditions))), by_ids)]
    while queue:
        some, of_rows = queue.pop()
        plan = Plan([rows[row] for row in of_rows], [conditions[condition] for condition in some])
        cached = 0 if clean is None else _stream_bytes(packed, plan.prefix.stop) * len(clean.layers)
        cache = clean if cached <= limit // 4 else None
        size = plan_bytes(packed, plan, new_tokens) + (cached if cache else 0)
        halves = _halves(some, of_rows)
        if halves and size > limit:
            queue += halves
            continue
        log_args = (len(some), len(of_rows), plan.size, size / 2**20, limit / 2**20, budget)
        logger.debug("%d conditions, %d prompts, %d tokens, %.1f of %.0f MiB, passes of %d", *log_args)
        share = len(some) * len(of_rows) / len(rows) / plan_work(len(packed.layers), plan, new_tokens)
        try:
            # What a chunk holds is freed when the call returns.
            _run(
                model,
                packed,
                plan,
                some,
                of_rows,
                work,
                budget,
                cache,
                partial(_scaled, options.on_progress, share),
            )
            continue
        except NonFiniteError:
            if not halves:
                raise
            # One row's keys reach the others' sums, with weight 0: which row it is, shows when it is alone.
            queue += halves
            continue
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error) or not (halves or budget >= 2 * MIN_TOKENS):
                raise
        # After the `except` block the error is gone, and with it the tensors of its frames.
        limit, budget = min(limit, size) // 2, max(budget // 2, MIN_TOKENS)
        _report_out_of_memory(len(some), len(of_rows))
        queue += halves or [(some, of_rows)]


def _report_out_of_memory(n_conditions: int, n_rows: int) -> None:
    message = "out of memory with %d conditions of %d prompts; continuing with half as much at once"
    logger.warning(message + ". A smaller memory=… avoids this.", n_conditions, n_rows)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _run(
    model: Any,
    packed: PackedModel,
    plan: Plan,
    conditions: Indices,
    rows: Indices,
    work: Callable[[Chunk], object],
    budget: int,
    clean: CleanStreams | None,
    on_tokens: OnProgress,
) -> None:
    prompt = plan.rows[0].prompt if len(rows) == 1 else None
    with steer_conditions(model, plan.conditions, prompt) as steering:
        layerwise = LayerwisePass(packed, plan, steering, budget=budget, clean=clean)
        work(Chunk(conditions, rows, plan, layerwise, on_tokens))


def _scaled(on_progress: OnProgress, share: float, tokens: int) -> None:
    on_progress(share * tokens)


def _require_selections(rows: Sequence[Row], conditions: Sequence[Sequence[Edit]], generating: bool) -> None:
    """Raise `EmptySelectionError` if an edit's positions select nothing of a row; once per positions."""
    described: dict[Positions, str] = {}
    for edit in (edit for edits in conditions for edit in edits):
        described.setdefault(edit.positions, edit.described)
    for positions, description in described.items():
        for number, row in enumerate(rows):
            fed = generating or len(row.ids) > row.prompt.length
            positions.require_some(row.prompt, f"{description}: row {number}", generating=fed)


def bytes_allowed(model: Any, memory: Memory) -> int:
    """The `memory` argument in bytes: an `int` is bytes, a `float` a fraction of the free memory.

    `None` is half of the free memory, on a CPU at most 512 MiB.

    Raises:
        ValueError: it is not positive, or a fraction above 1.
    """
    if memory is not None and not (0 < memory <= 1 if isinstance(memory, float) else memory > 0):
        raise ValueError(
            f"memory={memory!r}: expected a whole number of bytes, a fraction of the free memory (0.5), or "
            "None."
        )
    if isinstance(memory, int):
        return int(memory)
    device = input_device(model)
    if device.type == "cuda":
        return int((memory or 0.5) * torch.cuda.mem_get_info(device)[0])
    free = psutil.virtual_memory().available
    return int(memory * free) if memory else min(CPU_BYTES, free // 2)


def plan_bytes(model: PackedModel, plan: Plan, new_tokens: int) -> int:
    """Memory between passes: streams, masks, keys and values of one layer, of texts those of all layers."""
    masks = int(PADDED * sum(part.trie.n_masked for part in plan.parts) * len(model.windows))
    used = (
        _stream_bytes(model, plan.size) + plan.size * model.token_bytes + masks * model.weight.element_size()
    )
    n_layers, n_texts = len(model.layers), len(plan.conditions) * len(plan.rows)
    starts = [plan.steered_from(condition, n_layers) for condition in range(len(plan.conditions))]
    # Before its first layer, a condition has the unsteered prompts.
    prompts = len(plan.rows) * (n_layers + sum(max(n_layers - start, 0) for start in starts))
    slots = prompts * max(len(row.ids) for row in plan.rows) + n_texts * n_layers * new_tokens
    return used + (slots * model.token_bytes if new_tokens else 0)


def plan_work(n_layers: int, plan: Plan, new_tokens: int) -> int:
    """How many tokens go through how many layers."""
    read = sum(len(part.trie) * (n_layers - part.start_layer) for part in plan.parts)
    return read + len(plan.conditions) * len(plan.rows) * new_tokens * n_layers


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on any device."""
    texts = ("not enough memory", "can't allocate memory")  # torch's, on a CPU
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(
        text in str(error) for text in texts
    )


def _stream_bytes(model: PackedModel, n_tokens: int) -> int:
    return n_tokens * model.d_model * model.weight.element_size()


def _halves(conditions: Indices, rows: Indices) -> list[tuple[Indices, Indices]]:
    """The second half and the first, of the conditions, or of the rows of a single condition."""
    if len(conditions) > 1:
        middle = len(conditions) // 2
        return [(conditions[middle:], rows), (conditions[:middle], rows)]
    middle = len(rows) // 2
    return [(conditions, rows[middle:]), (conditions, rows[:middle])] if middle else []
