"""Steering vectors from and for other libraries.

All of them hold one vector per layer, added to the output of that block at every position: `Add` at hook
"resid_post". Blocks are counted from 0, as everywhere here.
"""

from .gguf import load_gguf, save_gguf
from .in_memory import from_repeng, from_steering_vectors, to_repeng, to_steering_vectors
from .pt import load_pt, save_pt

__all__ = [
    "from_repeng",
    "from_steering_vectors",
    "load_gguf",
    "load_pt",
    "save_gguf",
    "save_pt",
    "to_repeng",
    "to_steering_vectors",
]
