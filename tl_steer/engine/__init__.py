"""Runs prompts under operations: the plain loop, and everything that is alike computed once.

The plain loop (`batches`) is padded batches and whole forward passes, a cell at a time: the oracle. The rest
is one walk up the layers for all cells of a wave:

    rows, cells ─> Plan (sharing) ─> Wave (waves) ─> Walk.up (walk, attention) ─> streams, Reading, Decoder
"""

from .batches import Batch, batches, log_normaliser, logits_at, logits_of, residual
from .decoding import Decoder
from .progress import Tick, bar
from .reading import Reading, Site, StreamNorms
from .sharing import Plan, Row
from .support import shares
from .walk import CleanStreams, Walk
from .waves import Memory, Wave, in_waves

__all__ = [
    "Batch",
    "CleanStreams",
    "Decoder",
    "Memory",
    "Plan",
    "Reading",
    "Row",
    "Site",
    "StreamNorms",
    "Tick",
    "Walk",
    "Wave",
    "bar",
    "batches",
    "in_waves",
    "log_normaliser",
    "logits_at",
    "logits_of",
    "residual",
    "shares",
]
