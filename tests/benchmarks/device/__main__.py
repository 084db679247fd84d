"""The jobs, or two of the study's experiments, on an accelerator: `python -m benchmarks.device FOLDER`.

Writes `device.json` into the folder after each measurement, and prints a table. Nothing is downloaded.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from tl_steer.models import BACKENDS

from ..measuring import environment
from .bench import run_jobs
from .experiments import run_experiments
from .jobs import ALONE
from .models import SHAPES

RESULTS = "device.json"
HEADER = (
    "model, backend", "job", "contender", "seconds", "conditions", "ms per condition", "× transformers alone",
    "tokens/s", "peak GiB", "waits of the host", "difference from the plain loop", "problem",
)  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 1 if a measurement failed, or its results differ from the plain loop's."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.device", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--shape", nargs="+", choices=SHAPES, default=["llama-2-13b", "llama-3-8b"])
    parser.add_argument("--backend", nargs="+", choices=BACKENDS, default=["bridge", "hooked"])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"])
    parser.add_argument("--minutes", type=float, default=7.0, help="after these, no measurement begins")
    parser.add_argument("--experiments", action="store_true", help="in place of the jobs")
    parser.add_argument("--layers", type=int, help="of the experiments' models, to save disk")
    parser.add_argument("--limit", type=int, help="of the experiments' pairs and questions")
    args = parser.parse_args(arguments)
    args.folder.mkdir(parents=True, exist_ok=True)
    path = args.folder / RESULTS
    results = json.loads(path.read_text()) if path.exists() else {"parts": {}}
    results["environment"] = environment() | {"dtype": args.dtype, "device": device_name(args.device)}
    for part, records in (run_experiments if args.experiments else run_jobs)(args):
        results["parts"][part] = records
        path.write_text(json.dumps(results, indent=1) + "\n")
    sys.stdout.write(markdown(results))
    return int(any("problem" in record for records in results["parts"].values() for record in records))


def device_name(device: str) -> str:
    """The accelerator's name and memory; "cpu"."""
    if not device.startswith("cuda"):
        return device
    return f"{torch.cuda.get_device_name(device)}, {torch.cuda.mem_get_info(device)[1] / 2**30:.0f} GiB"


def markdown(results: dict[str, Any]) -> str:
    """A table with one row per record."""
    rows = [HEADER, ["---"] * len(HEADER)]
    for part, records in results["parts"].items():
        alone = {each["job"]: each for each in records if each["contender"] == ALONE}
        rows += [[part, *columns(each, alone.get(each["job"], {}))] for each in records]
    environment = [f"{key}: {results['environment'][key]}" for key in ("device", "dtype", "versions")]
    return "\n".join([*environment, "", *(f"| {' | '.join(row)} |" for row in rows), ""])


def columns(record: dict[str, Any], alone: dict[str, Any]) -> list[str]:
    """A record's columns, empty where it has no value."""
    per_condition = [each.get("seconds_per_condition") for each in (record, alone)]
    difference, waits, tokens = (record.get(name) for name in ("difference", "waits", "tokens_decoded"))
    own, other = per_condition
    return [
        record["job"],
        record["contender"],
        f"{record['seconds']:.2f}" if "seconds" in record else "",
        str(record.get("conditions", "")),
        f"{1000 * own:.3g}" if own else "",
        f"{other / own:.3g}" if own and other else "",
        f"{tokens / record['seconds']:.0f}" if tokens else "",
        f"{record['peak_gib']:.1f}" if "peak_gib" in record else "",
        "" if waits is None else str(sum(waits.values())),
        f"{difference['value']:.1e} ({difference['what']})" if difference else "",
        record.get("problem", ""),
    ]


if __name__ == "__main__":
    sys.exit(main())
