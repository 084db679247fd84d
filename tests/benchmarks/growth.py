"""How a choice sweep's cost grows with one thing at a time: `python -m benchmarks.growth THING`.

One process for each thing that grows, its points from small to large; each is timed once.
"""

import argparse
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

import tl_steer as ts

from .jobs import LETTERS
from .materials import questions
from .measuring import report, surroundings
from .ours import positions, unit_vectors
from .things import PLAIN_EVERY, SHARED_EVERY, SHARED_LAST, THINGS, Growth, Study


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("thing", choices=[thing.name for thing in THINGS])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--quick", action="store_true")
    given = parser.parse_args()
    thing = next(thing for thing in THINGS if thing.name == given.thing)
    if given.quick:
        thing = replace(thing, points=thing.points[:2], plain=1)
    model = ts.load_model()
    vectors = unit_vectors(model, given.folder)
    swept(model, vectors, Study(layers=1, multipliers=1, prompts=2, claims=2), SHARED_EVERY)
    report({"points": list(timed(model, vectors, thing)), **surroundings()})


def timed(model: Any, vectors: ts.SteeringVectors, thing: Growth) -> Iterator[dict[str, Any]]:
    """A point after the other, of each line."""
    for line in (SHARED_LAST, SHARED_EVERY, PLAIN_EVERY):
        for point in thing.points[: thing.plain if line == PLAIN_EVERY else None]:
            study = replace(base(thing), **{thing.field: point})
            start = time.perf_counter()
            swept(model, vectors, study, line)
            seconds = time.perf_counter() - start
            yield {"thing": thing.name, "line": line, "x": along(model, thing, study), "seconds": seconds}


def base(thing: Growth) -> Study:
    """Where nothing else is said; long prompts are fewer, as there are only so many claims."""
    return Study(prompts=4) if thing.field == "claims" else Study()


def along(model: Any, thing: Growth, study: Study) -> float:
    """The point's place on the axis."""
    if thing.field != "claims":
        return getattr(study, thing.field)
    asked = questions(model, study.prompts, claims_each=study.claims)
    return statistics.mean(len(ts.tokenize(model, prompt)) for prompt in asked)


def swept(model: Any, vectors: ts.SteeringVectors, study: Study, line: str) -> None:
    """One sweep of the size asked for."""
    prompts = questions(model, study.prompts, claims_each=study.claims)
    ts.sweep(
        model,
        vectors,
        ts.ChoiceQuestions(prompts, [LETTERS] * len(prompts)),
        layers=spread(study.layers, len(vectors)),
        multipliers=np.linspace(-8, 8, study.multipliers + 1)[1:].tolist(),
        positions=positions("last" if line == SHARED_LAST else "every"),
        controls=0,
        progress=False,
        reuse=line != PLAIN_EVERY,
    )


def spread(count: int, n_layers: int) -> Sequence[int]:
    """So many layers, evenly over the model's depth."""
    return [(2 * place + 1) * n_layers // (2 * count) for place in range(count)]


if __name__ == "__main__":
    main()
