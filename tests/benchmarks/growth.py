"""Cost of a choice sweep as one size grows: `python -m benchmarks.growth NAME FOLDER`.

One process per size, its points from small to large; each is timed once.
"""

import argparse
import statistics
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

import tl_steer as ts

from .jobs import GROWTHS, LETTERS, PLAIN_EVERY, SHARED_EVERY, SHARED_LAST, Growth, Study
from .measuring import environment, report
from .ours import positions, questions, unit_vectors


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=[growth.name for growth in GROWTHS])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args()
    growth = next(growth for growth in GROWTHS if growth.name == args.name)
    if args.quick:
        growth = replace(growth, points=growth.points[:2], plain=1)
    model = ts.load_model()
    vectors = unit_vectors(model, args.folder)
    run_sweep(model, vectors, Study(layers=1, multipliers=1, prompts=2, claims=2), SHARED_EVERY)
    report({"points": list(timed_points(model, vectors, growth)), **environment()})


def timed_points(model: Any, vectors: ts.SteeringVectors, growth: Growth) -> Iterator[dict[str, Any]]:
    """The points of each line, in turn."""
    base = Study(prompts=4) if growth.field == "claims" else Study()  # the number of claims is limited
    for line in (SHARED_LAST, SHARED_EVERY, PLAIN_EVERY):
        for point in growth.points[: growth.plain if line == PLAIN_EVERY else None]:
            study = replace(base, **{growth.field: point})
            start = time.perf_counter()
            run_sweep(model, vectors, study, line)
            seconds = time.perf_counter() - start
            x = mean_tokens(model, study) if growth.field == "claims" else point
            yield {"growth": growth.name, "line": line, "x": x, "seconds": seconds}


def mean_tokens(model: Any, study: Study) -> float:
    prompts = questions(model, study.prompts, claims_each=study.claims)
    return statistics.mean(len(ts.tokenize(model, prompt)) for prompt in prompts)


def run_sweep(model: Any, vectors: ts.SteeringVectors, study: Study, line: str) -> None:
    """One sweep of the given size; its layers are spread evenly over the model's depth."""
    prompts = questions(model, study.prompts, claims_each=study.claims)
    count = study.layers
    ts.sweep(
        model,
        vectors,
        ts.ChoiceQuestions(prompts, [LETTERS] * len(prompts)),
        layers=[(2 * index + 1) * len(vectors) // (2 * count) for index in range(count)],
        multipliers=np.linspace(-8, 8, study.multipliers + 1)[1:].tolist(),
        positions=positions("last" if line == SHARED_LAST else "every"),
        controls=0,
        progress=False,
        reuse=line != PLAIN_EVERY,
    )


if __name__ == "__main__":
    main()
