"""What `import tl_steer` costs beyond `import transformer_lens`, in fresh processes, one after the other."""

import statistics
import subprocess
import sys
from typing import Any

TIMED = "import time; start = time.perf_counter(); import {name}; print(time.perf_counter() - start)"
AFTER = "import transformer_lens; " + TIMED


def measured(repeats: int) -> dict[str, Any]:
    """Both in turn, so that each difference is of neighbours; and the one after the other in one process."""
    base, whole, after = [], [], []
    seconds(TIMED.format(name="transformer_lens"))  # once, to have the files in memory
    for _ in range(repeats):
        base.append(seconds(TIMED.format(name="transformer_lens")))
        whole.append(seconds(TIMED.format(name="tl_steer")))
        after.append(seconds(AFTER.format(name="tl_steer")))
    differences = [mine - theirs for mine, theirs in zip(whole, base, strict=True)]
    return {
        "transformer_lens": base,
        "tl_steer": whole,
        "differences": differences,
        "difference": statistics.median(differences),
        "after": after,
        "after_median": statistics.median(after),
    }


def seconds(code: str) -> float:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])
