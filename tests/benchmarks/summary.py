"""Summary of the measurements: medians, ratios, and which targets were met."""

import statistics
from dataclasses import dataclass
from typing import Any

from .jobs import BRIDGE, COLUMNS, JOBS, OURS, STRONG, Job, from_values

# Least speed of tl_steer relative to others, and of a bridge relative to tl_steer; largest floor ratio.
LOOP = {"capture": 4, "choice-last": 90, "choice-all": 4.2, "generate-sweep": 4.7, "generate-one": 1}
WRITTEN_FOR_SWEEPS = {"choice-last": 2.6, "choice-all": 2.6, "generate-sweep": 2}
BRIDGE_SPEED = 0.85
FLOORS = {"choice-last": 2, "choice-all": 1.4}
MEMORY_BYTES, IMPORT_SECONDS, HELP_SECONDS = 1.5e9, 0.2, 1
MEMORY = {
    "beyond_weights_mib": "Peak memory of a job beyond the weights",
    "with_loading_mib": "The same, loading included",
}


@dataclass(frozen=True)
class Row:
    """One contender at one job: medians over the repeats; memory is the largest.

    Attributes:
        to_loop: speed per condition relative to the fastest peer that loops over the conditions.
        to_strong: relative to the sweeps written in transformers, if the job has them.
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
    to_loop: float
    to_strong: float | None
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
    """One row per contender of a job, those without tl_steer first."""
    job = from_values(part["job"])
    by_contender: dict[str, list[dict[str, Any]]] = {}
    for record in part["records"]:
        by_contender.setdefault(record["contender"], []).append(record)
    per_condition = {
        contender: statistics.median(record["seconds_per_condition"] for record in records)
        for contender, records in by_contender.items()
    }
    fastest_loop = min(per_condition[peer] for peer in job.peers)
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
            to_loop=fastest_loop / per_condition[contender],
            to_strong=per_condition[STRONG] / per_condition[contender] if STRONG in by_contender else None,
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


def speed_targets(part: dict[str, Any]) -> list[Target]:
    """The targets of one job: relative speeds and the floor."""
    row_of = {row.contender: row for row in rows(part)}
    ours, bridge = row_of[OURS], row_of[BRIDGE]
    name, title = ours.job.name, ours.job.title
    result = [at_least(f"{title}: speed relative to the fastest loop", LOOP[name], ours.to_loop)]
    if ours.to_strong is not None:
        what = f"{title}: relative to `{STRONG}`"
        result.append(at_least(what, WRITTEN_FOR_SWEEPS[name], ours.to_strong))
    what = f"{title}: `{BRIDGE}` relative to `{OURS}`"
    result.append(at_least(what, BRIDGE_SPEED, ours.per_condition / bridge.per_condition))
    if name in FLOORS:
        result.append(at_most(f"{title}: floor ratio", FLOORS[name], floor_of(part)["ratio"]))
    return result


def at_least(what: str, least: float, measured: float) -> Target:
    return Target(what, f"at least {least}", f"{measured:.3g}", measured >= least)


def at_most(what: str, most: float, measured: float, unit: str = "") -> Target:
    return Target(what, f"at most {most}{unit}", f"{measured:.2f}{unit}", measured <= most)


def targets(results: dict[str, Any]) -> list[Target]:
    """All targets that have been measured."""
    result = []
    for job in JOBS:
        if job.name in results:
            result += speed_targets(results[job.name])
    for field, what in MEMORY.items():
        if sizes := memory(results, field):
            name, size = max(sizes.items(), key=lambda item: item[1])
            text = f"{size / 1e9:.2f} GB ({name})"
            result.append(Target(what, "at most 1.5 GB", text, size <= MEMORY_BYTES))
    if "import" in results:
        times = results["import"]
        what = "`import tl_steer`, loaded, beyond `import transformer_lens`"
        result.append(at_most(what, IMPORT_SECONDS, times["difference"], " s"))
        result.append(at_most("`tl-steer --help`", HELP_SECONDS, times["help_median"], " s"))
    return result


def memory(results: dict[str, Any], field: str) -> dict[str, float]:
    """Bytes beyond the weights per job, largest of tl_steer by default and with two columns."""
    return {
        job.name: 2**20
        * max(getattr(row, field) for row in rows(results[job.name]) if row.contender in (OURS, COLUMNS))
        for job in JOBS
        if job.name in results
    }
