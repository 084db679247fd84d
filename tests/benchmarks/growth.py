"""Cost of a choice sweep as one size grows: `python -m benchmarks.growth NAME FOLDER`.

One process per size and environment, its points from small to large; each is timed once. In the peers'
environment, with `--strong`, the sweeps are those of `strong`.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from . import jobs
from .jobs import Growth, Study
from .measuring import environment, report

Sweep = Callable[[list[dict[str, Any]], Study, str], Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=[growth.name for growth in jobs.GROWTHS])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--strong", action="store_true")
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args()
    growth = next(growth for growth in jobs.GROWTHS if growth.name == args.name)
    if args.quick:
        growth = replace(growth, points=growth.points[:2], plain=1)
    data = jobs.read_materials(args.folder)
    sweep = strong_sweep(data, args.folder) if args.strong else our_sweep(args.folder)
    lines = (jobs.STRONG_EVERY,) if args.strong else (jobs.SHARED_LAST, jobs.SHARED_EVERY, jobs.PLAIN_EVERY)
    sweep(data["warm_questions"], Study(layers=1, multipliers=1), jobs.SHARED_EVERY)
    report({"points": list(timed_points(sweep, data["studies"], growth, lines)), **environment()})


def timed_points(
    sweep: Sweep, questions: dict[str, list[dict[str, Any]]], growth: Growth, lines: tuple[str, ...]
) -> Iterator[dict[str, Any]]:
    """The points of each line, in turn."""
    for line in lines:
        for point in growth.points[: growth.plain if line == jobs.PLAIN_EVERY else None]:
            study = growth.study(point)
            prompts = questions[str(study.claims)][: study.prompts]
            start = time.perf_counter()
            sweep(prompts, study, line)
            seconds = time.perf_counter() - start
            tokens = statistics.mean(len(prompt["ids"]) for prompt in prompts)
            x = tokens if growth.field == "claims" else point
            yield {"growth": growth.name, "line": line, "x": x, "seconds": seconds}


def our_sweep(folder: Path) -> Sweep:
    """Choice sweeps of tl_steer."""
    import tl_steer as ts

    from .ours import positions, unit_vectors

    model = ts.load_model()
    vectors = unit_vectors(model, folder)

    def sweep(prompts: list[dict[str, Any]], study: Study, line: str) -> Any:
        layers, multipliers = study.grid(len(vectors))
        return ts.sweep(
            model,
            vectors,
            ts.ChoiceQuestions([prompt["text"] for prompt in prompts], [jobs.LETTERS] * len(prompts)),
            layers=layers,
            multipliers=multipliers,
            positions=positions("last" if line == jobs.SHARED_LAST else "every"),
            controls=0,
            progress=False,
            reuse=line != jobs.PLAIN_EVERY,
        )

    return sweep


def strong_sweep(data: dict[str, Any], folder: Path) -> Sweep:
    """Choice sweeps at every token with transformers alone, with the unsteered condition."""
    from . import peers, strong

    model, _ = peers.load(data["model"])
    vectors = torch.from_numpy(np.load(folder / jobs.VECTORS))

    def sweep(prompts: list[dict[str, Any]], study: Study, _line: str) -> Any:
        layers, multipliers = study.grid(len(vectors))
        conditions = [(layer, multiplier) for layer in layers for multiplier in multipliers]
        ids = [prompt["ids"] for prompt in prompts]
        unsteered = (len(vectors) - 1, 0.0)
        return strong.choice_every(model, ids, data["letters"], vectors, [*conditions, unsteered])

    return sweep


if __name__ == "__main__":
    main()
