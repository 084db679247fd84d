"""Run every measurement in a fresh process, one at a time, and store the results."""

import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

from .jobs import GROWTHS, JOBS, PLAIN, STRONG, Job, quick_job, write_job

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
PEERS = ROOT / ".peers" / "bin" / "python"
RESULTS = "results.json"
IMPORT = "import time; start = time.perf_counter(); {statements}; print(time.perf_counter() - start)"
BASE, WHOLE = "import transformer_lens", "import tl_steer; tl_steer.load_model"  # loaded on first use


def measure(parts: list[str], target: Path, *, quick: bool) -> None:
    """Measure the parts in turn; each result is saved at once, so that a later failure loses nothing."""
    with tempfile.TemporaryDirectory(prefix="benchmarks-") as scratch:
        folder = Path(scratch)
        run_module(sys.executable, "ours", "all", "prepare", folder)
        for part in parts:
            log(part)
            record = {"date": date.today().isoformat(), **machine(), **measured(part, folder, quick=quick)}
            results = read_results(target) | {part: record}
            (target / RESULTS).write_text(json.dumps(results, indent=1) + "\n")


def measured(part: str, folder: Path, *, quick: bool) -> dict[str, Any]:
    """The measurements of one part."""
    if part == "import":
        return import_times(2 if quick else 5)
    if part == "growth":
        options = ["--quick"] if quick else []
        environments = ((sys.executable, options), (PEERS, [*options, "--strong"]))
        runs = [
            run_module(python, "growth", growth.name, folder, *flags)
            for growth in GROWTHS
            for python, flags in environments
        ]
        return {"points": [point for run in runs for point in run["points"]]}
    job = next(job for job in JOBS if job.name == part)
    return job_records(quick_job(job) if quick else job, folder)


def job_records(job: Job, folder: Path) -> dict[str, Any]:
    """Run the contenders in turn, repeatedly, so that a slow minute of the machine affects all of them."""
    write_job(job, folder)
    records, outputs = [], {}
    for repeat in range(job.repeats):
        for contender in job.contenders():
            if repeat < job.repeats_of(contender):
                is_peer = contender in (*job.peers, STRONG)
                python, module = (PEERS, "peers") if is_peer else (sys.executable, "ours")
                outputs[contender] = folder / f"{job.name}-{len(records)}.npz"
                record = run_module(python, module, job.name, contender, folder, outputs[contender])
                log(f"  {contender}: {record['seconds']:.2f} s, {record['conditions']} conditions")
                records.append({"contender": contender, **record})
    require_same(records)
    plain = dict(np.load(outputs[PLAIN]))
    distances = {
        contender: distance(job, dict(np.load(output)), plain) for contender, output in outputs.items()
    }
    return {"job": asdict(job), "records": records, "distances": distances}


def require_same(records: list[dict[str, Any]]) -> None:
    """Stop unless all contenders ran with the same threads, dtype, environment and version of torch."""
    for name in ("threads", "dtype", "settings"):
        if any(record[name] != records[0][name] for record in records):
            raise SystemExit(f"{name} differ: {[record[name] for record in records]}")
    if len({record["versions"]["torch"] for record in records}) > 1:
        raise SystemExit("the two environments have different versions of torch.")


def distance(job: Job, output: dict[str, np.ndarray], plain: dict[str, np.ndarray]) -> dict | None:
    """Difference of a run from the plain loop; `None` where a peer's result is not comparable.

    capture: the largest norm of a difference of activations, relative to the activation's. For a peer that
    returns only the mean difference of the sides, that of the mean difference.
    choice: the largest absolute difference of a logit difference, over the conditions of both runs.
    generate: the share of equal texts.
    """
    if job.measure == "capture":
        return _capture_distance(output, plain["values"].astype(np.float64))
    rows = [
        {tuple(each): row for row, each in enumerate(run["conditions"].tolist())} for run in (output, plain)
    ]
    shared = [condition for condition in rows[1] if condition in rows[0]]
    if not shared:
        raise ValueError("the two runs have no condition in common.")
    left, right = (
        run["values"][[row[condition] for condition in shared]]
        for run, row in zip((output, plain), rows, strict=True)
    )
    if job.measure == "choice":
        return {"what": "logit difference", "value": float(np.abs(left - right).max()), "of": left.size}
    return {"what": "equal texts", "value": float((left == right).mean()), "of": left.size}


def _capture_distance(output: dict[str, np.ndarray], expected: np.ndarray) -> dict[str, Any] | None:
    if "values" in output:
        what, values = "activations, relative", output["values"]
    elif "differences" in output:
        what, values = "mean difference, relative", output["differences"]
        expected = expected[0].mean(0) - expected[1].mean(0)
    else:
        return None
    errors = np.linalg.norm(values.astype(np.float64) - expected, axis=-1) / np.linalg.norm(expected, axis=-1)
    return {"what": what, "value": float(errors.max()), "of": errors.size}


def import_times(repeats: int) -> dict[str, Any]:
    """Seconds of `BASE` and `WHOLE` and of `tl-steer --help`, in fresh processes, alternating."""

    def seconds(statements: str, before: str = "") -> float:
        code = before + IMPORT.format(statements=statements)
        result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        return float(result.stdout.split()[-1])

    def help_seconds() -> float:
        command = [Path(sys.executable).with_name("tl-steer"), "--help"]
        start = time.perf_counter()
        subprocess.run(command, capture_output=True, check=True)
        return time.perf_counter() - start

    seconds(WHOLE)  # fills the file cache
    base, whole, after, helped = [], [], [], []
    for _ in range(repeats):
        base.append(seconds(BASE))
        whole.append(seconds(WHOLE))
        after.append(seconds(WHOLE, BASE + "; "))
        helped.append(help_seconds())
    differences = np.subtract(whole, base).tolist()
    return {
        "transformer_lens": base,
        "tl_steer": whole,
        "differences": differences,
        "difference": statistics.median(differences),
        "after": after,
        "after_median": statistics.median(after),
        "help": helped,
        "help_median": statistics.median(helped),
    }


def machine() -> dict[str, Any]:
    """Processor, cores, memory, load, and the commit of the source."""
    cpuinfo = Path("/proc/cpuinfo")
    name = re.search(r"model name\s*:\s*(.+)", cpuinfo.read_text()) if cpuinfo.exists() else None
    git = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return {
        "machine": {
            "processor": name[1].strip() if name else platform.processor(),
            "cores": os.cpu_count(),
            "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
            "system": f"{platform.system()} {platform.machine()}",
            "python": platform.python_version(),
        },
        "load": os.getloadavg()[0],
        "commit": git.stdout.strip() or "unknown",
    }


def run_module(python: Path | str, module: str, *arguments: Any) -> dict[str, Any]:
    """One measurement in a fresh process, which prints its result as JSON in its last line."""
    command = [str(python), "-m", f"benchmarks.{module}", *map(str, arguments)]
    environment = os.environ | {"PYTHONWARNINGS": "ignore"}
    result = subprocess.run(
        command, cwd=HERE.parent, env=environment, capture_output=True, text=True, check=False
    )
    if result.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{result.stderr[-3000:]}")
    return json.loads(result.stdout.strip().splitlines()[-1])


def read_results(target: Path) -> dict[str, Any]:
    path = target / RESULTS
    return json.loads(path.read_text()) if path.exists() else {}


def log(line: str) -> None:
    sys.stderr.write(line + "\n")
