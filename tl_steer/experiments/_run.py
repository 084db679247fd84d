"""Run an experiment step by step into a folder; finished steps are not repeated."""

import json
import logging
import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from .._capture import capture_pairs
from .._util.file_io import atomic
from .._util.validation import checked
from ..activations import PairedActivations
from ..directions import SteeringVectors
from ..engine import Memory
from ..errors import UnfinishedRunError
from ..models import identify, load_model
from ..positions import parse_positions
from ..prompts import audit
from ..recipes import activation_addition
from ..sweeps.store import package_versions, write_atomic, write_errors
from ..sweeps.sweep_table import DRAW
from .config_file import Experiment, require_as_read
from .materials import estimator_of, in_unit, pairs_of, weighted
from .measurements import damage_table, question_table, text_damage_table, text_table
from .preflight import require_runnable
from .run_folder import (
    VERSIONS,
    begin,
    files_parts,
    is_finished,
    move_aside,
    open_run,
    require_same_experiment,
    require_unchanged,
    with_date,
)
from .run_report import write_report

logger = logging.getLogger(__name__)
PACKAGES = (
    "tl-steer", "torch", "transformers", "transformer-lens", "numpy", "pandas", "scipy", "scikit-learn",
    "plotly", "safetensors",
)  # fmt: skip


@checked
def run(
    experiment: Experiment, out: str | Path, *, fresh: bool = False, model: Any = None, progress: bool = True
) -> Path:
    """Run an experiment into a folder with its data, tables and report, or resume such a run.

    Args:
        experiment: from `read_experiment`.
        out: the folder; new, empty, or of a run of this experiment, which is resumed.
        fresh: start again: an existing run is moved to `out`.old-1, .old-2, …
        model: a loaded model, instead of the one that [model] names.
        progress: show bars on stderr.

    Returns:
        `out`, with experiment.toml (a copy), versions.json, vectors.safetensors (in the experiment's unit,
        without weights), report.html; for contrast pairs audit.csv and activations.safetensors; with [sweep]
        or [text] sweep.parquet, in which open prompts have the split "text" and a column `said`: the prompt
        without its chat format; with pairs and [sweep] damage.parquet; with [text] text_damage.parquet.

    Raises:
        FileExistsError: `out` holds something else, or a run of another experiment file, model or data.
        InUseError: another process runs it.
        ValueError, IndexError, KeyError: the experiment does not fit model or data, or was changed in Python.
        OSError: a file could not be written.
        UnfinishedRunError: the report failed.

    Every file is written whole or not at all: an interrupted run resumes, with the tables of an undisturbed
    one. Until it is finished, the folder holds `unfinished/`. A finished run is not repeated.
    """
    out = Path(out)
    require_as_read(experiment)
    if fresh:
        move_aside(out)
    if is_finished(out):
        require_same_experiment(experiment, out)
        require_unchanged(experiment, model, out)
        logger.info("%s is finished: nothing is run again", out)
        return out
    started = time.monotonic()
    with open_run(experiment, out) as work:
        if (out / VERSIONS).exists():
            require_unchanged(experiment, model, out)
        else:
            model = _loaded(experiment) if model is None else model
            experiment = with_date(experiment, model, work)
            require_runnable(experiment, model)
            packages, files = package_versions(PACKAGES), files_parts(experiment)
            begun = begin(experiment, model, work, packages)
            _work(experiment, model, out, work, memory=begun["memory"], progress=progress)
            versions = _versions(experiment, model, begun, packages, seconds=time.monotonic() - started)
            versions["files"] = files
            write_atomic(out / VERSIONS, (json.dumps(versions, indent=2) + "\n").encode("utf-8"), out)
        _report(out)
    return out


def _report(out: Path) -> None:
    logger.info("writing the report")
    try:
        write_report(out)
    except (Exception, KeyboardInterrupt) as error:  # the tables exist, whatever the error
        raise UnfinishedRunError(
            f"the report failed ({type(error).__name__}: {error}). The run's tables, vectors and activations "
            f"are all in {out}; the same call, or tl_steer.experiments.write_report, writes a report of them."
        ) from error


def _loaded(experiment: Experiment) -> Any:
    config = experiment.model
    logger.info("loading %s", config.name)
    return load_model(config.name, dtype=config.dtype, device=config.device, processing=config.processing)


def _work(experiment: Experiment, model: Any, out: Path, work: Path, **options: Any) -> None:
    """Every step that needs the model, if its file does not exist; `options` are `memory` and `progress`."""
    activations = None if experiment.has_prompts else _activations(experiment, model, out, **options)
    vectors = weighted(_vectors(experiment, model, out, activations, options["memory"]), experiment)
    tables = []
    if experiment.questions is not None:
        tables.append(question_table(experiment, model, vectors, activations, work=work, **options))
        if experiment.damage.passages and activations is not None:
            compute = partial(damage_table, experiment, model, vectors, activations, tables[0], **options)
            _save_table(out / "damage.parquet", compute)
    if experiment.text is not None:
        tables.append(text_table(experiment, model, vectors, tables, work=work, **options))
        _save_table(out / "text_damage.parquet", partial(text_damage_table, model, tables[-1], **options))
    if tables:
        _save_table(out / "sweep.parquet", partial(_concatenated, tables))


def _concatenated(tables: list[pd.DataFrame]) -> pd.DataFrame:
    """The rows of all tables; without several draws, draw is 0 if another table has several."""
    rows = pd.concat(tables, ignore_index=True)
    return rows.assign(draw=rows[DRAW].fillna(0).astype(int)) if DRAW in rows else rows


def _save_table(path: Path, compute: Callable[[], pd.DataFrame]) -> None:
    if not path.exists():
        table = compute()
        with write_errors(path), atomic(path) as scratch:
            table.to_parquet(scratch, index=False)


# Activations and vectors are read back from their files: a resumed run computes with the same numbers.


def _activations(experiment: Experiment, model: Any, out: Path, **options: Any) -> PairedActivations:
    """The activations of both sides of the pairs; also writes the audit of the pairs."""
    audit_path, path = out / "audit.csv", out / "activations.safetensors"
    config, pairs = experiment.capture, pairs_of(experiment, model)
    if not audit_path.exists():
        differing = audit(pairs, tokenizer=model.tokenizer).to_csv(index=False)
        write_atomic(audit_path, differing.encode("utf-8"), out)
    if not path.exists():
        logger.info("capturing activations of both sides of the pairs")
        layers = None if config.layers == "all" else config.layers
        positions = parse_positions(config.positions)
        activations = capture_pairs(
            model, pairs, positions=positions, layers=layers, hook=config.hook, **options
        )
        with write_errors(path):
            activations.save(path)
    return PairedActivations.load(path)


def _vectors(
    experiment: Experiment, model: Any, out: Path, activations: PairedActivations | None, memory: Memory
) -> SteeringVectors:
    """The vectors in the experiment's unit."""
    path, config = out / "vectors.safetensors", experiment.pairs
    if not path.exists():
        if activations is None:
            prompts = config.positive, config.negative
            vectors = activation_addition(model, *prompts, hook=config.hook, memory=memory)
        else:
            vectors = estimator_of(experiment)(activations)
        with write_errors(path):
            in_unit(vectors, experiment).save(path)
    return SteeringVectors.load(path)


def _versions(
    experiment: Experiment,
    model: Any,
    begun: Mapping[str, Any],
    packages: Mapping[str, str],
    *,
    seconds: float,
) -> dict[str, Any]:
    """The contents of versions.json."""
    others = {} if begun["packages"] == packages else {"packages_when_begun": begun["packages"]}
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "begun": begun["date"],
        "seconds": round(seconds, 1),
        "seed": experiment.seed,
        "python": platform.python_version(),
        "packages": packages,
        **others,
        "model": asdict(identify(model)),
        "device": str(model.cfg.device),
        "dtype": str(model.cfg.dtype),
        "threads": torch.get_num_threads(),
        "parts": begun["parts"],
        "template_variables": dict(experiment.model.template_variables),
    }
