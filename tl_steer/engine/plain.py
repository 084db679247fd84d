"""The plain loop: whole forward passes over padded batches, one condition after another.

This is the oracle: `shared/` gives the same results with common work done once, and where it does not apply
(`paths`) the plain loop runs. A condition is the operations that steer one run of all prompts.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from .._util.logs import OnProgress
from ..interventions import Operation, steer
from ..models.backend import Start, input_device, run
from ..positions import Positions, PositionTracker, PromptTokens

# Reading on a CPU is fastest where a batch's activations stay in its cache (the embedded model on two cores:
# 17 % faster than 4096); decoding and accelerators are bound by reading weights, and want many rows.
CACHED_TOKENS = 1024
BATCH_TOKENS = 4096


Memory = int | float | None  # bytes, or a fraction of the free memory


def no_progress(conditions: float) -> None:
    """Ignore progress."""


@dataclass(frozen=True)
class RunOptions:
    """How prompts are run; the results do not depend on `reuse` and `memory`.

    Attributes:
        reuse: compute once what conditions and prompts share; `False` runs the plain loop.
        memory: what residual streams, keys and values may take; see `bytes_allowed`.
        force: accept vectors of other weights of the same shapes and processing.
        allow_empty: accept prompts of which an operation's positions select nothing.
        on_progress: called with the number of conditions done since the last call, in fractions.
    """

    reuse: bool = True
    memory: Memory = None
    force: bool = False
    allow_empty: bool = False
    on_progress: OnProgress = no_progress


DEFAULT_OPTIONS = RunOptions()


@dataclass(frozen=True)
class Row:
    """Token ids to run: a prompt, and tokens that count as generated after it."""

    ids: tuple[int, ...]
    prompt: PromptTokens

    def selected(self, positions: Positions) -> Bool[np.ndarray, " pos"]:
        """Which of the tokens `positions` selects."""
        selected = np.full(len(self.ids), positions.generated)
        selected[: self.prompt.length] = positions.select(self.prompt).numpy()
        return selected


@dataclass(frozen=True)
class Batch:
    """Some rows, padded on the left, so that all of them end in the same slot.

    Attributes:
        rows: their indices.
        tokens: ids, 0 where padded. The mask comes from lengths, since 0 may be a token too.
        mask: where there is a token.
    """

    rows: tuple[int, ...]
    tokens: Int[Tensor, "batch pos"]
    mask: Bool[Tensor, "batch pos"]


Work = Callable[[int, Batch, PositionTracker, Start | None], object]


def run_plain(
    model: Any,
    rows: Sequence[Row],
    conditions: Sequence[Sequence[Operation]],
    work: Work,
    options: RunOptions,
    *,
    new_tokens: int = 0,
    generating: bool = True,
    starts: Sequence[int] | None = None,
) -> None:
    """Call `work(condition, batch, tracker, start)` for every condition and batch of rows, inside `steer`.

    Args:
        work: runs the forward passes and keeps the results; `condition` is an index.
        new_tokens: how many tokens `work` will generate per row.
        generating: whether any row has tokens after its prompt, or will have some.
        starts: the first layer that each condition changes; layers before it run once per batch, without
            operations, and `work` gets the residual stream there. `None` runs all layers of each condition.
    """
    first = [0] * len(conditions) if starts is None else starts
    for batch in batches([row.ids for row in rows], device=input_device(model), new_tokens=new_tokens):
        prompts = [rows[row].prompt for row in batch.rows]
        start = None
        for condition in sorted(range(len(conditions)), key=lambda condition: first[condition]):
            if (layer := first[condition]) > (start.layer if start else 0):
                start = Start(layer, residual(model, batch, start=start, stop_at_layer=layer))
            operations = conditions[condition]
            with steer(
                model,
                *operations,
                prompts=[prompt.ids for prompt in prompts],
                numbers=[prompt.number for prompt in prompts],
                force=options.force,
                allow_empty=options.allow_empty,
                generating=generating,
            ) as tracker:
                work(condition, batch, tracker, start)
            options.on_progress(len(batch.rows) / len(rows))


def residual(
    model: Any,
    batch: Batch,
    *,
    start: Start | None = None,
    stop_at_layer: int | None = None,
    cache: Any = None,
) -> Float[Tensor, "batch pos d_model"]:
    """One forward pass: the residual stream after the last block, or before `stop_at_layer`; no logits."""
    return run(model, batch.tokens, batch.mask, start=start, stop_at_layer=stop_at_layer, cache=cache)


def batches(
    sequences: Sequence[Sequence[int]], *, device: Any = "cpu", new_tokens: int = 0, budget: int | None = None
) -> Iterator[Batch]:
    """Batches of sequences of similar length, of at most `budget` slots each (but at least one row).

    Args:
        new_tokens: slots per row for generated tokens.
        budget: by default what suits reading on a CPU, or decoding and accelerators.
    """
    if budget is None:
        budget = CACHED_TOKENS if str(device) == "cpu" and not new_tokens else BATCH_TOKENS
    order = sorted(range(len(sequences)), key=lambda row: len(sequences[row]))
    start = 0
    while start < len(order):
        stop = start + 1
        while stop < len(order) and (stop + 1 - start) * (len(sequences[order[stop]]) + new_tokens) <= budget:
            stop += 1
        yield left_padded(sequences, order[start:stop], device)
        start = stop


def left_padded(sequences: Sequence[Sequence[int]], rows: Sequence[int], device: Any) -> Batch:
    """Some of the sequences as one batch."""
    width = max(len(sequences[row]) for row in rows)
    tokens = torch.zeros(len(rows), width, dtype=torch.long)
    mask = torch.zeros(len(rows), width, dtype=torch.bool)
    for index, row in enumerate(rows):
        start = width - len(sequences[row])
        tokens[index, start:] = torch.tensor(list(sequences[row]))
        mask[index, start:] = True
    return Batch(tuple(rows), tokens.to(device), mask.to(device))
