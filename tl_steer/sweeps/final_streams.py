"""What next tokens are predicted from: the stream behind the last block, of rows under cells."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..engine import Memory, Row, Tick, Wave, batches, in_waves, residual, shares
from ..interventions import Operation, checked_edits, steer
from ..models import exclusive
from ..models.backend import input_device


@dataclass(frozen=True)
class Streams:
    """The streams of some rows under some cells.

    Attributes:
        cells, rows: which.
        stream: of every token that ran.
        slots: where in it each cell's tokens are that somebody reads, row behind row.
    """

    cells: tuple[int, ...]
    rows: tuple[int, ...]
    stream: Float[Tensor, "slot d_model"]
    slots: Int[Tensor, "cell pos"]


@torch.no_grad()
def read_streams(
    model: Any,
    rows: Sequence[Row],
    counts: Sequence[int],
    cells: Sequence[Sequence[Operation]],
    work: Callable[[Streams], object],
    *,
    force: bool = False,
    reuse: bool = True,
    memory: Memory = None,
    tick: Tick = lambda cells: None,
) -> None:
    """Run every row under every cell, and do `work` with the streams, as many at once as the memory allows.

    Args:
        counts: how many of each row's last tokens are read, at least one.
        work: keeps what it wants of the streams, and may be asked again for the same cells and rows.
        tick: called with the number of cells done, in parts.

    Positions that select nothing of a row change nothing there.
    """
    with exclusive(model):
        run = _together if shares(model, reuse) else _plainly
        run(model, rows, counts, cells, work, force, memory, tick)


def _together(
    model: Any,
    rows: Sequence[Row],
    counts: Sequence[int],
    cells: Sequence[Sequence[Operation]],
    work: Callable[[Streams], object],
    force: bool,
    memory: Memory,
    tick: Tick,
) -> None:
    """All cells at once, in one walk a wave."""

    def read(wave: Wave) -> None:
        slots = np.stack([_slots(wave, cell, counts) for cell in range(len(wave.cells))])
        wave.walk.up(model.cfg.n_layers, wanted=slots.flatten(), count=wave.count)
        wave.walk.require_finite()
        work(Streams(wave.cells, wave.rows, wave.walk.stream, torch.from_numpy(slots)))

    edits = checked_edits(model, cells, force)
    in_waves(model, rows, edits, read, memory=memory, tick=tick, generating=True, allow_empty=True)


def _slots(wave: Wave, cell: int, counts: Sequence[int]) -> Int[np.ndarray, " pos"]:
    """A cell's tokens that are read, by their numbers in the wave."""
    return np.concatenate(
        [wave.plan.path(cell, place)[-counts[row] :] for place, row in enumerate(wave.rows)]
    )


def _plainly(
    model: Any,
    rows: Sequence[Row],
    counts: Sequence[int],
    cells: Sequence[Sequence[Operation]],
    work: Callable[[Streams], object],
    force: bool,
    memory: Memory,
    tick: Tick,
) -> None:
    """Cell by cell and batch by batch, in whole forward passes: the oracle."""
    for cell, operations in enumerate(cells):
        for batch in batches([row.ids for row in rows], device=input_device(model)):
            prompts = [rows[row].prompt.ids for row in batch.rows]
            options = {"prompts": prompts, "numbers": batch.rows, "force": force, "allow_empty": True}
            with steer(model, *operations, **options):
                stream = residual(model, batch)
            ends = (torch.arange(len(batch.rows)) + 1) * stream.shape[1]
            slots = [
                torch.arange(int(end) - counts[row], int(end))
                for end, row in zip(ends, batch.rows, strict=True)
            ]
            work(Streams((cell,), batch.rows, stream.flatten(0, 1), torch.cat(slots)[None]))
            tick(len(batch.rows) / len(rows))
