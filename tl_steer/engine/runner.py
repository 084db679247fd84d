"""Run rows under conditions: the only place that chooses between the plain loop and the shared engine."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from ..interventions import Operation, checked_edits
from ..models import exclusive
from ..models.backend import Start
from ..positions import PositionTracker
from .paths import SHORTER, WHOLE, Path, path_of
from .plain import Batch, Row, RunOptions, Work, residual, run_plain
from .recording import StreamNorms
from .shared.chunking import Chunk, run_in_chunks
from .shared.forward import CleanStreams


@torch.no_grad()
def run_conditions(
    model: Any,
    rows: Sequence[Row],
    conditions: Sequence[Sequence[Operation]],
    options: RunOptions,
    *,
    plain: Work,
    shared: Callable[[Chunk], object],
    new_tokens: int = 0,
    can_start_late: bool = False,
    clean: CleanStreams | None = None,
) -> None:
    """Run every row under every condition, with exclusive use of the model.

    Args:
        plain: called as plain(condition, batch, tracker, start) inside `steer`; see `run_plain`.
        shared: called with each chunk of conditions and rows; see `run_in_chunks`. After out of memory it is
            called again for the same conditions and rows.
        new_tokens: how many tokens are generated per row.
        can_start_late: whether `plain` runs passes from `start` on.
        clean: keeps unsteered residual streams from call to call.
    """
    # The last new token is never fed back.
    generating = new_tokens > 1 or any(len(row.ids) > row.prompt.length for row in rows)
    with exclusive(model):
        path = path_of(model) if options.reuse else Path(WHOLE)
        if path.packed is not None:
            edits = checked_edits(model, conditions, options.force)
            counts = {"new_tokens": max(new_tokens - 1, 0), "generating": generating}
            run_in_chunks(model, path.packed, rows, edits, shared, options, clean=clean, **counts)
        else:
            starts = None
            if can_start_late and path.name == SHORTER:
                edits = checked_edits(model, conditions, options.force)
                starts = [min((edit.layer for edit in each), default=0) for each in edits]
            counts = {"new_tokens": new_tokens, "generating": generating}
            run_plain(model, rows, conditions, plain, options, starts=starts, **counts)


@dataclass(frozen=True)
class FinalStreams:
    """Residual streams after the last block, from which next tokens are predicted.

    Attributes:
        conditions, rows: which, as indices.
        stream: of every token that ran.
        slots: indices into `stream` of each condition's tokens that are read, row after row.
        is_plain: whether the plain loop made them.
    """

    conditions: tuple[int, ...]
    rows: tuple[int, ...]
    stream: Float[Tensor, "slot d_model"]
    slots: Int[Tensor, "condition pos"]
    is_plain: bool


def final_streams(
    model: Any,
    rows: Sequence[Row],
    counts: Sequence[int],
    conditions: Sequence[Sequence[Operation]],
    work: Callable[[FinalStreams], object],
    options: RunOptions,
    *,
    norms: StreamNorms | None = None,
    clean: CleanStreams | None = None,
) -> None:
    """Run every row under every condition, and call `work` with the final residual streams.

    Args:
        counts: how many of each row's last tokens are read, at least one.
        work: keeps results; called with as many conditions and rows at once as the memory allows, and after
            out of memory again for the same ones.
        norms, clean: filled by the shared engine; see there.
    """

    def plain(condition: int, batch: Batch, _tracker: PositionTracker, start: Start | None) -> None:
        stream = residual(model, batch, start=start)
        ends = torch.arange(1, len(batch.rows) + 1) * stream.shape[1]
        read = zip(ends.tolist(), batch.rows, strict=True)
        slots = torch.cat([torch.arange(end - counts[row], end) for end, row in read])
        stream = rearrange(stream, "batch pos d_model -> (batch pos) d_model")
        work(FinalStreams((condition,), batch.rows, stream, slots[None], is_plain=True))

    def shared(chunk: Chunk) -> None:
        slots = np.stack(
            [_last_tokens(chunk, condition, counts) for condition in range(len(chunk.conditions))]
        )
        layerwise = chunk.layerwise
        with nullcontext() if norms is None else norms.of(model, chunk):
            layerwise.run(len(layerwise.model.layers), needed=slots.flatten(), on_tokens=chunk.on_tokens)
        layerwise.require_finite()
        slots = torch.from_numpy(slots)
        work(FinalStreams(chunk.conditions, chunk.rows, layerwise.stream, slots, is_plain=False))

    works = {"plain": plain, "shared": shared}
    run_conditions(model, rows, conditions, options, **works, can_start_late=True, clean=clean)


def _last_tokens(chunk: Chunk, condition: int, counts: Sequence[int]) -> Int[np.ndarray, " pos"]:
    """The numbers of a condition's tokens that are read, row after row."""
    paths = (chunk.plan.path(condition, row) for row in range(len(chunk.rows)))
    return np.concatenate([path[-counts[row] :] for path, row in zip(paths, chunk.rows, strict=True)])
