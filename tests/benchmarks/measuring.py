"""Time, memory and versions of one task in this process. Used in both environments."""

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
    """A timed task.

    Attributes:
        warm_up: a small version of it, on other prompts.
        run: the timed call.
        arrays: from its result, the arrays to compare with other runs.
        conditions: their number, by which the seconds are divided.
        tokens: from its result, the number of decoded tokens.
    """

    warm_up: Callable[[], Any]
    run: Callable[[], Any]
    arrays: Callable[[Any], dict[str, np.ndarray]]
    conditions: int
    tokens: Callable[[Any], int] = lambda _: 0


def measure(task: Task, model: Any, output: Path) -> dict[str, Any]:
    """Run a task after its warm-up; its arrays are saved in the file `output`.

    Memory in MiB: the peak of the whole process, including loading; the resident memory before the timed
    call, including memory that the allocator did not return; and the peak during the call.
    """
    task.warm_up()
    gc.collect()
    loaded = _peak_mib()
    _reset_peak()
    resident = _peak_mib()
    start = time.perf_counter()
    result = task.run()
    seconds = time.perf_counter() - start
    running = _peak_mib()
    np.savez(output, **task.arrays(result))
    return {
        "seconds": seconds,
        "conditions": task.conditions,
        "seconds_per_condition": seconds / task.conditions,
        "peak_mib": max(loaded, running),
        "resident_mib": resident,
        "running_peak_mib": running,
        "weights_mib": weights_mib(model),
        "tokens_decoded": task.tokens(result),
    }


def environment() -> dict[str, Any]:
    """Threads, dtype and settings, which must be the same for all contenders, and versions."""
    return {
        "threads": torch.get_num_threads(),
        "dtype": "float32",
        "settings": {
            name: value
            for name, value in os.environ.items()
            if name.startswith(("OMP_", "MKL_", "MALLOC_", "GLIBC_TUNABLES"))
        },
        "versions": {name: text for name in PACKAGES if (text := _version(name))},
    }


def report(values: dict[str, Any]) -> None:
    """Print the result in the last line, where the driver reads it."""
    print(json.dumps(values), flush=True)


def weights_mib(model: Any) -> float:
    """Memory of the parameters; tied ones count once."""
    sizes = {each.data_ptr(): each.numel() * each.element_size() for each in model.parameters()}
    return sum(sizes.values()) / 2**20


def texts_array(texts: Sequence[Sequence[str]]) -> np.ndarray:
    """Texts by condition and prompt, as an array that NumPy stores without pickle."""
    return np.array([list(row) for row in texts], dtype=np.str_)


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _reset_peak() -> None:
    """Reset the process's peak memory (Linux only)."""
    marks = Path("/proc/self/clear_refs")
    if marks.exists():
        marks.write_text("5")
