"""From measurements to what the page says: medians, ratios, and whether the reach was met."""

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
        ratio: how many times as fast a cell as the fastest peer's.
        peak_mib, beyond_weights_mib: once the model was loaded.
        with_loading_mib: beyond the weights, of the whole process.
    """

    job: Job
    who: str
    seconds: float
    fastest: float
    slowest: float
    repeats: int
    cells: int
    per_cell: float
    ratio: float
    peak_mib: float
    beyond_weights_mib: float
    with_loading_mib: float
    tokens: int
    distance: dict[str, Any] | None


@dataclass(frozen=True)
class Reach:
    """One line of what was aimed at."""

    what: str
    wanted: str
    measured: str
    reached: bool


def rows(part: dict[str, Any]) -> list[Row]:
    """A row for each contender of one job, peers first."""
    job = from_values(part["job"])
    by_who = {who: [each for each in part["records"] if each["who"] == who] for who in job.contenders()}
    per_cell = {
        who: statistics.median(each["seconds_per_cell"] for each in found) for who, found in by_who.items()
    }
    fastest_peer = min(per_cell[peer] for peer in job.peers)
    return [
        _row(job, who, found, per_cell[who], fastest_peer / per_cell[who], part["distances"].get(who))
        for who, found in by_who.items()
    ]


def _row(
    job: Job, who: str, found: list[dict], per_cell: float, ratio: float, distance: dict[str, Any] | None
) -> Row:
    seconds = [each["seconds"] for each in found]
    return Row(
        job,
        who,
        statistics.median(seconds),
        min(seconds),
        max(seconds),
        len(seconds),
        found[0]["cells"],
        per_cell,
        ratio,
        max(each["running_peak_mib"] for each in found),
        max(each["running_peak_mib"] - each["weights_mib"] for each in found),
        max(each["peak_mib"] - each["weights_mib"] for each in found),
        found[0]["tokens_decoded"],
        distance,
    )


def floor_of(part: dict[str, Any]) -> dict[str, float]:
    """Medians over the repeats of ours, as it comes."""
    found = [each["floor"] for each in part["records"] if each["who"] == OURS]
    return {key: statistics.median(each[key] for each in found) for key in found[0]}


def reaches(results: dict[str, Any]) -> list[Reach]:
    """Everything that was aimed at and has been measured."""
    found = []
    for job in JOBS:
        if job.name in results:
            (mine,) = (row for row in rows(results[job.name]) if row.who == OURS)
            least = FASTER[job.name]
            wanted = "no slower" if least == 1 else f"{least} times faster"
            measured = f"{mine.ratio:.3g} times"
            found.append(
                Reach(f"{job.title}, against the fastest peer", wanted, measured, mine.ratio >= least)
            )
    if "choice-all" in results:
        ratio = floor_of(results["choice-all"])["ratio"]
        what = "Floor ratio, choice sweep at every token"
        found.append(Reach(what, f"at most {FLOOR}", f"{ratio:.2f}", ratio <= FLOOR))
    for field, what in MEMORY.items():
        if sizes := memory(results, field):
            name, size = max(sizes.items(), key=lambda item: item[1])
            measured = f"{size / 1e9:.2f} GB ({name})"
            found.append(Reach(what, "at most 1.5 GB", measured, size <= MEMORY_BYTES))
    if "import" in results:
        cost = results["import"]["difference"]
        what = "`import tl_steer` beyond `import transformer_lens`"
        found.append(Reach(what, f"at most {IMPORT_SECONDS} s", f"{cost:.2f} s", cost <= IMPORT_SECONDS))
    return found


def memory(results: dict[str, Any], field: str) -> dict[str, float]:
    """Bytes beyond the weights by job, of what is claimed of ours."""
    return {
        name: max(getattr(row, field) for row in rows(results[name]) if row.who in (OURS, COLUMNS)) * 2**20
        for name in (job.name for job in JOBS)
        if name in results
    }
