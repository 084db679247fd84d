"""One measurement: seconds, memory and versions of one task in this process. Shared by both sides."""

import gc
import json
import os
import resource
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch

PACKAGES = ("torch", "transformers", "transformer-lens", "tl-steer", "steering-vectors", "repeng", "numpy")


@dataclass(frozen=True)
class Task:
    """What is timed, and what is not.

    Attributes:
        warm_up: the same in small, on prompts that are not measured.
        run: what is timed.
        keep: from its result, the arrays that are compared with other runs.
        cells: by which the seconds are divided.
        tokens: new tokens that were decoded, of the result.
    """

    warm_up: Callable[[], Any]
    run: Callable[[], Any]
    keep: Callable[[Any], dict[str, np.ndarray]]
    cells: int
    tokens: Callable[[Any], int] = lambda _: 0


def measure(task: Task, model: Any, kept: Path) -> dict[str, Any]:
    """Run a task after its warm-up; its arrays go to the file `kept`.

    Memory, in MiB: the peak of the whole process, loading included; what was held when the clock started;
    and the peak from then on. What loading freed and the allocator kept is held, too.
    """
    task.warm_up()
    gc.collect()
    loaded = _peak_mib()
    _forget_peak()
    held = _peak_mib()
    start = time.perf_counter()
    result = task.run()
    seconds = time.perf_counter() - start
    running = _peak_mib()
    np.savez(kept, **task.keep(result))
    return {
        "seconds": seconds,
        "cells": task.cells,
        "seconds_per_cell": seconds / task.cells,
        "peak_mib": max(loaded, running),
        "held_mib": held,
        "running_peak_mib": running,
        "weights_mib": weights_mib(model),
        "tokens_decoded": task.tokens(result),
    }


def surroundings() -> dict[str, Any]:
    """What has to be the same on both sides, and versions."""
    return {
        "threads": torch.get_num_threads(),
        "dtype": "float32",
        "settings": {
            name: value
            for name, value in os.environ.items()
            if name.startswith(("OMP_", "MKL_", "MALLOC_", "GLIBC_TUNABLES"))
        },
        "versions": {name: found for name in PACKAGES if (found := _version(name))},
    }


def report(values: dict[str, Any]) -> None:
    """The one line that the driver reads; libraries may print before it."""
    print(json.dumps(values), flush=True)


def weights_mib(model: Any) -> float:
    """Memory of the parameters, tied ones once."""
    sizes = {each.data_ptr(): each.numel() * each.element_size() for each in model.parameters()}
    return sum(sizes.values()) / 2**20


def texts_array(texts: Sequence[Sequence[str]]) -> np.ndarray:
    """Texts by cell and prompt, as NumPy stores them without pickle."""
    return np.array([list(row) for row in texts], dtype=np.str_)


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _forget_peak() -> None:
    """Linux: from now on the peak is that of now; elsewhere it stays that of the whole process."""
    marks = Path("/proc/self/clear_refs")
    if marks.exists():
        marks.write_text("5")
