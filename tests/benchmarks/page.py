"""The page `README.md`, from its template and the results."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from .jobs import BRIDGE, COLUMNS, JOBS, OURS, PARTS, PEER_BATCH, PLAIN, STRONG, from_values
from .summary import Row, floor_of, rows, targets

TEMPLATE = "README.md.jinja"


def rendered(results: dict[str, Any], figure: str) -> str:
    """The page; parts that were not measured are listed as missing."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,
    )
    measured = [job for job in JOBS if job.name in results]
    environment.filters |= {"distance": distance_text, "seconds": seconds_text}
    return environment.get_template(TEMPLATE).render(
        results=results,
        parts={name: results[name] for name in PARTS if name in results},
        missing=[name for name in PARTS if name not in results],
        jobs=[from_values(results[job.name]["job"]) for job in measured],
        rows=[row for job in measured for row in rows(results[job.name])],
        targets=targets(results),
        floors={job.title: floor_of(results[job.name]) for job in measured},
        settings=common_settings(results),
        figure=figure,
        batch=PEER_BATCH,
        ours=OURS,
        columns=COLUMNS,
        plain=PLAIN,
        strong=STRONG,
        bridge=BRIDGE,
    )


def common_settings(results: dict[str, Any]) -> dict[str, Any]:
    """Machine, threads, environment and versions; a list where the measurements differ."""
    records = [record for job in JOBS for record in results.get(job.name, {}).get("records", [])]
    names = sorted({name for record in records for name in record["versions"]})
    versions = {
        name: sorted({record["versions"][name] for record in records if name in record["versions"]})
        for name in names
    }
    return {
        "machines": unique(part["machine"] for part in results.values()),
        "threads": unique(record["threads"] for record in records),
        "environment": unique(record["settings"] for record in records),
        "versions": {name: " and ".join(texts) for name, texts in versions.items()},
    }


def unique(values: Iterable[Any]) -> list[Any]:
    """Distinct values (not hashable) in order of first appearance."""
    values = list(values)
    return [value for index, value in enumerate(values) if value not in values[:index]]


def seconds_text(row: Row) -> str:
    """The median, and the range over repeats."""
    if row.repeats == 1:
        return f"{row.seconds:.2f} (once)"
    return f"{row.seconds:.2f} ({row.fastest:.2f}–{row.slowest:.2f})"


def distance_text(row: Row) -> str:
    """Difference from the plain loop."""
    if row.contender == PLAIN:
        return "0"
    if row.distance is None:
        return "not comparable"
    if row.distance["what"] == "equal texts":
        return f"{row.distance['value']:.1%} of {row.distance['of']} texts equal"
    unit = {"logit difference": " nats"}.get(row.distance["what"], f" ({row.distance['what']})")
    return f"{row.distance['value']:.1e}{unit}"
