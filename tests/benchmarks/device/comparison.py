"""Differences between a contender's output and the plain loop's, to be judged by the dtype's rounding."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

import tl_steer as ts
from tl_steer._scoring import ChoicePlan, Read, score_conditions
from tl_steer.engine import RunOptions

from .. import driver, ours
from ..jobs import Condition, Job

Arrays = dict[str, np.ndarray]
GAP = 2  # times the allowed relative error: the logits have a standard deviation of about 1


@torch.no_grad()
def difference(bench: Any, job: Job, output: Arrays, plain: Arrays) -> dict[str, Any]:
    """What differs, its value and the largest allowed one.

    capture: the largest relative error of an activation. choice: the relative error of all logit differences
    together. generate: texts part where two tokens are almost equally likely, which rounding decides; the
    largest difference of two such tokens' logits, in nats.
    """
    if job.measure == "capture":
        return driver.distance(job, output, plain) | {"allowed": bench.allowed}
    conditions, values, expected = in_common(output, plain)
    if job.measure == "choice":
        error = float(np.linalg.norm(values - expected) / np.linalg.norm(expected))
        return {"what": "logit differences, relative", "value": error, "allowed": bench.allowed}
    gaps = [largest_gap(bench, job, *each) for each in zip(conditions, values, expected, strict=True)]
    return {
        "what": "logits where texts part",
        "value": max(gaps),
        "allowed": GAP * bench.allowed,
        "equal_texts": float((values == expected).mean()),
    }


def in_common(output: Arrays, plain: Arrays) -> tuple[list[Condition], np.ndarray, np.ndarray]:
    """The conditions of both runs, and the values of each."""
    rows = [{tuple(each): i for i, each in enumerate(run["conditions"].tolist())} for run in (output, plain)]
    conditions = [each for each in rows[1] if each in rows[0]]
    values = (
        run["values"][[row[each] for each in conditions]]
        for run, row in zip((output, plain), rows, strict=True)
    )
    return conditions, *values


def largest_gap(
    bench: Any, job: Job, condition: Condition, texts: Sequence[str], expected: Sequence[str]
) -> float:
    """Largest difference of two tokens' logits where texts part; 0 if none does."""
    reads = []
    for entry, *pair in zip(bench.data["questions"], texts, expected, strict=False):
        new, other = (tuple(map(int, text.split())) for text in pair)
        if new != other:
            index = next(i for i, (a, b) in enumerate(zip(new, other, strict=True)) if a != b)
            ids = (*entry["ids"], *new[:index])
            reads.append(Read(len(reads), ids, ((new[index], other[index]),), (0, 1)))
    if not reads:
        return 0.0
    layer, multiplier = condition
    vectors = ours.unit_vectors(bench.model, bench.folder)
    operations = [ts.Add(vectors[int(layer)], multiplier)] if job.layers else []
    plan, options = ChoicePlan(tuple(read.ids for read in reads), tuple(reads)), RunOptions(reuse=False)
    (scores,) = score_conditions(bench.model, plan, [operations], options=options)
    return float(scores["logit_difference"].abs().max())
