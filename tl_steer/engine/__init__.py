"""Runs prompts under operations: the plain loop, and everything that is alike computed once.

The plain loop (`batches`) is padded batches and whole forward passes, a cell at a time: the oracle. The rest
is one walk up the layers for all cells of a wave:

    rows, cells ─> Plan (sharing) ─> Wave (waves) ─> Walk.up (walk, attention) ─> streams, Reading, Decoder
"""

from .._util.progress import Tick, bar
from .batches import Batch, batches, log_normaliser, logits_at, logits_of, residual
from .shared.chunking import Memory, Wave, in_waves
from .shared.decoding import Decoder
from .shared.forward import CleanStreams, Walk
from .shared.prefixes import Plan, Row
from .shared.recording import Reading, Site, StreamNorms
from .support import shares

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
