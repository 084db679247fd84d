"""Sweeps, and what their tables say: effects with intervals, sensitivity and bias, honest choosing."""

from .choosing import choose
from .effectiveness import effectiveness
from .reading import read_choice
from .signal_detection import signal_detection
from .sweep import sweep

__all__ = ["choose", "effectiveness", "read_choice", "signal_detection", "sweep"]
