"""Measures everything, one fresh process at a time, and writes results, figure and page: `make bench`.

By hand, from `tests/`: python -m benchmarks [--quick] [--only JOB …] [--page].
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

from . import comparing, imports, page
from .jobs import JOBS, PARTS, PLAIN, Job, quick, write_job
from .machine import described
from .things import THINGS

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
PEERS = ROOT / ".peers" / "bin" / "python"
RESULTS, FIGURE, PAGE = "results.json", "figures/growth.png", "README.md"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="into the results there are")
    parser.add_argument("--quick", action="store_true", help="a trial, into build/benchmarks/: no numbers")
    parser.add_argument("--page", action="store_true", help="measure nothing, write the page anew")
    given = parser.parse_args()
    target = ROOT / "build" / "benchmarks" if given.quick else HERE
    target.mkdir(parents=True, exist_ok=True)
    if not given.page:
        measure(given.only, target, trial=given.quick)
    results = read_results(target)
    if "growth" in results:
        from . import figure  # heavy, and a process's peak of memory begins with its parent's

        figure.write_figure(results["growth"]["points"], target / FIGURE)
    (target / PAGE).write_text(page.rendered(results, FIGURE))
    say(f"{target / PAGE} is written")


def measure(names: list[str], target: Path, *, trial: bool) -> None:
    """Each part in turn; what is done is kept at once, so that a later failure costs nothing."""
    with tempfile.TemporaryDirectory(prefix="benchmarks-") as scratch:
        folder = Path(scratch)
        run_module(sys.executable, "ours", "all", "prepare", folder)
        for name in names:
            say(name)
            part = part_of(name, folder, trial=trial)
            found = {"date": date.today().isoformat(), **described(ROOT), **part()}
            results = read_results(target)
            results[name] = found
            (target / RESULTS).write_text(json.dumps(results, indent=1) + "\n")


def part_of(name: str, folder: Path, *, trial: bool) -> Callable[[], dict[str, Any]]:
    """What measures one part."""
    if name == "import":
        return partial(imports.measured, 2 if trial else 5)
    if name == "growth":
        return partial(growth_points, folder, trial=trial)
    job = next(job for job in JOBS if job.name == name)
    return partial(job_records, quick(job) if trial else job, folder)


def job_records(job: Job, folder: Path) -> dict[str, Any]:
    """All contenders in turn, again and again, so that a slow minute of the machine hits both sides."""
    write_job(job, folder)
    records, kept = [], {}
    for repeat in range(job.repeats):
        for who in job.contenders():
            if repeat < job.repeats_of(who):
                kept[who] = folder / f"{job.name}-{len(records)}.npz"
                python = PEERS if who in job.peers else sys.executable
                module = "peers" if who in job.peers else "ours"
                found = run_module(python, module, job.name, who, folder, kept[who])
                say(f"  {who}: {found['seconds']:.2f} s, {found['cells']} cells")
                records.append({"who": who, **found})
    require_same(records)
    distances = {who: comparing.distance(job, kept[who], kept[PLAIN]) for who in kept}
    return {"job": asdict(job), "records": records, "distances": distances}


def require_same(records: list[dict[str, Any]]) -> None:
    """Both sides ran with the same threads, dtype, environment and torch."""
    for name in ("threads", "dtype", "settings"):
        if any(record[name] != records[0][name] for record in records):
            raise SystemExit(f"{name} differ: {[record[name] for record in records]}")
    if len({record["versions"]["torch"] for record in records}) > 1:
        raise SystemExit("the two environments have different versions of torch.")


def growth_points(folder: Path, *, trial: bool) -> dict[str, Any]:
    """The points of everything that grows, a process for each."""
    points = []
    for thing in THINGS:
        found = run_module(sys.executable, "growth", thing.name, folder, *(["--quick"] if trial else []))
        points += found["points"]
    return {"points": points}


def run_module(python: Path | str, module: str, *given: Any) -> dict[str, Any]:
    """One measurement in a fresh process: what its last line says."""
    command = [str(python), "-m", f"benchmarks.{module}", *map(str, given)]
    environment = os.environ | {"PYTHONWARNINGS": "ignore"}
    done = subprocess.run(
        command, cwd=HERE.parent, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def read_results(target: Path) -> dict[str, Any]:
    path = target / RESULTS
    return json.loads(path.read_text()) if path.exists() else {}


def say(line: str) -> None:
    sys.stderr.write(line + "\n")


if __name__ == "__main__":
    main()
