"""Steering vectors from and for other libraries, one module a format.

All of them hold one vector a layer, added to the output of that block at every position: `Add` at hook
"resid_post". Blocks are counted from 0, as everywhere here.
"""

from .gguf import load_gguf, save_gguf
from .pt import load_pt, save_pt
from .repeng import from_repeng, to_repeng
from .steering_vectors import from_steering_vectors, to_steering_vectors

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
