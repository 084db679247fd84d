"""Runs prompts under operations.

Read `plain` first: padded batches and whole forward passes, one condition at a time. `shared` gives the same
results in one layerwise forward pass for many conditions, with common tokens and layers computed once:

    rows, conditions ─> Plan (prefixes) ─> Chunk (chunking) ─> LayerwisePass (forward, packing, attention)
                                                             ─> residual streams, Recorder, Decoder

`runner` chooses between the two, and is what `capture`, `choice_logits`, `generate` and `damage` call.
"""

from .logits import divergences, logits_of, losses, row_means
from .plain import Memory, OnProgress, Row, RunOptions, residual
from .recording import Site, StreamNorms
from .runner import FinalStreams, final_streams, run_conditions
from .shared.forward import CleanStreams

__all__ = [
    "CleanStreams", "FinalStreams", "Memory", "OnProgress", "Row", "RunOptions", "Site", "StreamNorms",
    "divergences", "final_streams", "logits_of", "losses", "residual", "row_means", "run_conditions",
]  # fmt: skip
