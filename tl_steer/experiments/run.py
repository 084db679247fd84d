"""From an experiment to a run folder, whole or not at all."""

import itertools
import json
import logging
import os
import platform
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from ..activations import PairedActivations
from ..capture import capture_pairs
from ..directions import SteeringVectors
from ..models import identify, load_model
from ..positions import parse_positions
from ..prompts import audit
from ..recipes import activation_addition
from .asking import asked_table, damage_table, text_damage_table, written_table
from .checks import require_room, require_runnable
from .files.experiment import Experiment
from .materials import estimator_of, in_unit, pairs_of, steered_with
from .report.page import write_report

logger = logging.getLogger(__name__)
PACKAGES = (
    "tl-steer", "torch", "transformers", "transformer-lens", "numpy", "pandas", "scipy", "scikit-learn",
    "plotly", "safetensors",
)  # fmt: skip


class UnfinishedRunError(RuntimeError):
    """All was computed, but the folder could not be finished; the message says where its tables are."""


def run(experiment: Experiment, out: str | Path, *, model: Any = None, progress: bool = True) -> Path:
    """Run an experiment and keep everything that came of it in a folder.

    Args:
        experiment: from `read_experiment`.
        out: the folder to make; it may not hold anything yet.
        model: a `HookedTransformer` to use instead of loading the one that [model] names.
        progress: show bars on stderr.

    Returns:
        `out`, which then holds experiment.toml (the file itself), versions.json, vectors.safetensors (in the
        experiment's unit, before any weights), report.html, of contrast pairs audit.csv and
        activations.safetensors, and, where anything was asked, sweep.parquet. There, open prompts have the
        split "text", numbers of their own, and a factor `said`: the prompt without its chat format. Beside it
        lie damage.parquet (neutral text under the sweep's cells, where there are pairs) and
        text_damage.parquet (the texts written).

    Raises:
        FileExistsError: `out` holds something.
        ValueError, IndexError, KeyError: the experiment asks for what this model or its data does not have.
        UnfinishedRunError: the report broke.

    The folder is made beside its place and moved there at the end: a run that breaks leaves nothing. Only
    where it breaks after the last sweep, in the report, is what there is kept beside `out`, as `out`.failed.
    """
    out = Path(out)
    _require_free(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as scratch:
        folder = Path(scratch) / "run"
        folder.mkdir()
        model = _loaded(experiment) if model is None else model
        _work(experiment, model, folder, progress=progress)
        try:
            described = _versions(experiment, model, seconds=time.monotonic() - started)
            _write(folder / "versions.json", json.dumps(described, indent=2) + "\n")
            logger.info("writing the report")
            write_report(folder)
            _require_free(out)
            os.replace(folder, out)
        except (Exception, KeyboardInterrupt) as error:  # whatever it is, it may not cost the sweep
            kept = _kept(folder, out)
            raise UnfinishedRunError(
                f"the run's last step broke ({type(error).__name__}: {error}). Its tables, vectors and "
                f"activations are in {kept}; tl_steer.experiments.write_report makes the report of them."
            ) from error
    return out


def _kept(folder: Path, out: Path) -> Path:
    """Move what there is beside `out`, to the first free name of out.failed, out.failed-2, …"""
    whole = out.absolute()  # "." has no name
    endings = itertools.chain(["failed"], (f"failed-{number}" for number in itertools.count(2)))
    places = (whole.with_name(f"{whole.name}.{ending}") for ending in endings)
    kept = next(place for place in places if not place.exists())
    os.replace(folder, kept)
    return kept


def _require_free(out: Path) -> None:
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        what = "already holds a run" if (out / "experiment.toml").exists() else "exists and is not empty"
        raise FileExistsError(f"{out} {what}: give another folder, or move or delete this one first.")


def _loaded(experiment: Experiment) -> Any:
    asked = experiment.model
    logger.info("loading %s", asked.name)
    return load_model(asked.name, dtype=asked.dtype, device=asked.device, processing=asked.processing)


def _work(experiment: Experiment, model: Any, folder: Path, *, progress: bool) -> None:
    """Everything that needs the model, each step's result written as it is there."""
    require_runnable(experiment, model)
    _write(folder / "experiment.toml", experiment.source)
    estimated, pairs = _estimated(experiment, model, folder, progress=progress)
    vectors = in_unit(estimated, experiment)
    vectors.save(folder / "vectors.safetensors")
    vectors = steered_with(vectors, experiment)
    require_room(experiment, model, vectors)
    tables = []
    if experiment.questions is not None:
        tables.append(asked_table(experiment, model, vectors, pairs, progress=progress))
        if experiment.damage.passages and pairs is not None:
            damage = damage_table(experiment, model, vectors, pairs, tables[0], progress=progress)
            damage.to_parquet(folder / "damage.parquet", index=False)
    if experiment.text is not None:
        tables.append(written_table(experiment, model, vectors, tables, progress=progress))
        damage = text_damage_table(model, tables[-1], progress=progress)
        damage.to_parquet(folder / "text_damage.parquet", index=False)
    if tables:
        pd.concat(tables, ignore_index=True).to_parquet(folder / "sweep.parquet", index=False)


def _estimated(
    experiment: Experiment, model: Any, folder: Path, *, progress: bool
) -> tuple[SteeringVectors, PairedActivations | None]:
    """The vectors as their estimator gives them, and what they are made of, which is kept, if it is pairs."""
    logger.info("reading the stream at both sides of the pairs")
    if experiment.has_prompts:
        asked = experiment.pairs
        return activation_addition(model, asked.positive, asked.negative, hook=asked.hook), None
    pairs = pairs_of(experiment, model)
    audit(pairs, tokenizer=model.tokenizer).to_csv(folder / "audit.csv", index=False)
    activations = _captured(experiment, model, pairs, progress=progress)
    activations.save(folder / "activations.safetensors")
    return estimator_of(experiment)(activations), activations


def _captured(experiment: Experiment, model: Any, pairs: Any, *, progress: bool) -> PairedActivations:
    asked = experiment.capture
    layers = None if asked.layers == "all" else asked.layers
    positions = parse_positions(asked.positions)
    return capture_pairs(model, pairs, positions=positions, layers=layers, hook=asked.hook, progress=progress)


def _versions(experiment: Experiment, model: Any, *, seconds: float) -> Mapping[str, Any]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(seconds, 1),
        "seed": experiment.seed,
        "python": platform.python_version(),
        "packages": found,
        "model": asdict(identify(model)),
        "device": str(model.cfg.device),
        "dtype": str(model.cfg.dtype),
        "threads": torch.get_num_threads(),
    }


def _write(path: Path, text: str) -> None:
    path.write_bytes(text.encode("utf-8"))  # bytes: the same on every system, line ends as they were
