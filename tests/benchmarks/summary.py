"""Summary of the measurements: medians, ratios, and which targets were met."""

import statistics
from dataclasses import dataclass
from typing import Any

from .jobs import COLUMNS, JOBS, OURS, Job, from_values

FASTER = {"capture": 4, "choice-last": 60, "choice-all": 4, "generate-sweep": 3, "generate-one": 1}
FLOOR, MEMORY_BYTES, IMPORT_SECONDS = 1.6, 1.5e9, 0.2
MEMORY = {
    "beyond_weights_mib": "Peak memory of a job beyond the weights",
    "with_loading_mib": "The same, loading included",
}


@dataclass(frozen=True)
class Row:
    """One contender at one job: medians over the repeats; memory is the largest.

    Attributes:
        ratio: speed per condition relative to the fastest peer.
        peak_mib, beyond_weights_mib: after loading.
        with_loading_mib: beyond the weights, of the whole process.
    """

    job: Job
    contender: str
    seconds: float
    fastest: float
    slowest: float
    repeats: int
    conditions: int
    per_condition: float
    ratio: float
    peak_mib: float
    beyond_weights_mib: float
    with_loading_mib: float
    tokens: int
    distance: dict[str, Any] | None


@dataclass(frozen=True)
class Target:
    """A target and its measurement."""

    what: str
    target: str
    measured: str
    is_met: bool


def rows(part: dict[str, Any]) -> list[Row]:
    """One row per contender of a job, peers first."""
    job = from_values(part["job"])
    by_contender = {
        contender: [record for record in part["records"] if record["contender"] == contender]
        for contender in job.contenders()
    }
    per_condition = {
        contender: statistics.median(record["seconds_per_condition"] for record in records)
        for contender, records in by_contender.items()
    }
    fastest_peer = min(per_condition[peer] for peer in job.peers)
    result = []
    for contender, records in by_contender.items():
        seconds = [record["seconds"] for record in records]
        row = Row(
            job=job,
            contender=contender,
            seconds=statistics.median(seconds),
            fastest=min(seconds),
            slowest=max(seconds),
            repeats=len(seconds),
            conditions=records[0]["conditions"],
            per_condition=per_condition[contender],
            ratio=fastest_peer / per_condition[contender],
            peak_mib=max(record["running_peak_mib"] for record in records),
            beyond_weights_mib=max(each["running_peak_mib"] - each["weights_mib"] for each in records),
            with_loading_mib=max(each["peak_mib"] - each["weights_mib"] for each in records),
            tokens=records[0]["tokens_decoded"],
            distance=part["distances"].get(contender),
        )
        result.append(row)
    return result


def floor_of(part: dict[str, Any]) -> dict[str, float]:
    """Medians over the repeats of tl_steer by default."""
    floors = [record["floor"] for record in part["records"] if record["contender"] == OURS]
    return {key: statistics.median(each[key] for each in floors) for key in floors[0]}


def targets(results: dict[str, Any]) -> list[Target]:
    """All targets that have been measured."""
    result = []
    for job in JOBS:
        if job.name in results:
            (row,) = (row for row in rows(results[job.name]) if row.contender == OURS)
            least = FASTER[job.name]
            target = "no slower" if least == 1 else f"{least} times faster"
            what = f"{job.title}, against the fastest peer"
            result.append(Target(what, target, f"{row.ratio:.3g} times", row.ratio >= least))
    if "choice-all" in results:
        ratio = floor_of(results["choice-all"])["ratio"]
        what = "Floor ratio, choice sweep at every token"
        result.append(Target(what, f"at most {FLOOR}", f"{ratio:.2f}", ratio <= FLOOR))
    for field, what in MEMORY.items():
        if sizes := memory(results, field):
            name, size = max(sizes.items(), key=lambda item: item[1])
            text = f"{size / 1e9:.2f} GB ({name})"
            result.append(Target(what, "at most 1.5 GB", text, size <= MEMORY_BYTES))
    if "import" in results:
        cost = results["import"]["difference"]
        what = "`import tl_steer` beyond `import transformer_lens`"
        result.append(Target(what, f"at most {IMPORT_SECONDS} s", f"{cost:.2f} s", cost <= IMPORT_SECONDS))
    return result


def memory(results: dict[str, Any], field: str) -> dict[str, float]:
    """Bytes beyond the weights per job, largest of tl_steer by default and with two columns."""
    return {
        job.name: 2**20
        * max(getattr(row, field) for row in rows(results[job.name]) if row.contender in (OURS, COLUMNS))
        for job in JOBS
        if job.name in results
    }
