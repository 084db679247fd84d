"""Where the host waits for the device while the engine runs (CUDA only)."""

import sys
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import tl_steer

PACKAGE = Path(tl_steer.__file__).parent
PHASES = {"_run_layer": "layer", "step": "decode step"}  # by function of the engine


def host_waits(call: Callable[[], object]) -> dict[str, int]:
    """How often a call waits, by phase and line: {"layer: engine/shared/forward.py:139": 40}."""
    counts: Counter[str] = Counter()

    def note(message: Warning | str, *_: Any) -> None:
        if "synchronizing" not in str(message):
            return
        phase, line, frame = "other", None, sys._getframe(1)
        while frame is not None:
            path = Path(frame.f_code.co_filename)
            if path.is_relative_to(PACKAGE):
                line = line or f"{path.relative_to(PACKAGE).as_posix()}:{frame.f_lineno}"
                phase = PHASES.get(frame.f_code.co_name, phase)
            frame = frame.f_back
        counts[f"{phase}: {line}"] += 1

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = note
        torch.cuda.set_sync_debug_mode("warn")
        try:
            call()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return dict(counts)
