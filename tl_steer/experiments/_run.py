"""From an experiment to a run folder, step by step: what is done is there, and not done again."""

import json
import logging
import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from datetime import UTC, datetime
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
from ..sweeps.store import package_versions, write_whole
from ..sweeps.sweep_table import DRAW
from .files.experiment import Experiment
from .files.toml_reader import require_as_read
from .materials import estimator_of, in_unit, pairs_of, steered_with
from .measurements import asked_table, damage_table, text_damage_table, written_table
from .preflight import require_runnable
from .report.page import write_report
from .run_folder import (
    VERSIONS,
    begin,
    files_parts,
    is_finished,
    kept_file,
    move_aside,
    require_own,
    require_unchanged,
    with_date,
    worked_on,
)

logger = logging.getLogger(__name__)
PACKAGES = (
    "tl-steer", "torch", "transformers", "transformer-lens", "numpy", "pandas", "scipy", "scikit-learn",
    "plotly", "safetensors",
)  # fmt: skip


@checked
def run(
    experiment: Experiment,
    out: str | Path,
    *,
    fresh: bool = False,
    model: Any = None,
    progress: bool = True,
) -> Path:
    """Run an experiment and keep everything that came of it in a folder; the same call again goes on.

    Args:
        experiment: from `read_experiment`.
        out: the folder; new, empty, or of a run of this experiment, which is gone on with.
        fresh: begin anew: a run that is there is moved aside, to `out`.old-1, .old-2, …
        model: a model in hand to use instead of loading the one that [model] names.
        progress: show bars on stderr.

    Returns:
        `out`, which then holds experiment.toml (the file itself), versions.json, vectors.safetensors (in the
        experiment's unit, before any weights), report.html, of contrast pairs audit.csv and
        activations.safetensors, and, where anything was asked, sweep.parquet. There, open prompts have the
        split "text", numbers of their own, and a factor `said`: the prompt without its chat format. Beside it
        lie damage.parquet (neutral text under the sweep's cells, where there are pairs) and
        text_damage.parquet (the texts written).

    Raises:
        FileExistsError: `out` holds something else, or a run of another experiment file, of another model
            or of other data; the message says what differs.
        InUseError: another process runs it.
        ValueError, IndexError, KeyError: the experiment asks for what this model or its data does not have;
            or it was changed in Python, so that its file's text tells another one.
        OSError: a file could not be written, because the disk is full or else.
        UnfinishedRunError: the report broke.

    Each step's file is written whole or not at all, and a sweep's as `sweep` does it: killed at any moment,
    the run goes on where it was, and its tables are those of an undisturbed one. Until it has come to its end
    the folder holds `unfinished/`, which says so. A run that is finished is not run again; a report that was
    deleted is made anew. Of a finished run the model is compared where one is in hand, and the data files
    that the experiment names where they still are there.
    """
    out = Path(out)
    require_as_read(experiment)
    if fresh:
        move_aside(out)
    if is_finished(out):
        require_own(experiment, out)
        require_unchanged(experiment, model, out)
        logger.info("%s is finished: nothing is run again", out)
        return out
    started = time.monotonic()
    with worked_on(experiment, out) as work:
        if (out / VERSIONS).exists():
            require_unchanged(experiment, model, out)
        else:
            model = _loaded(experiment) if model is None else model
            experiment = with_date(experiment, model, work)
            require_runnable(experiment, model)
            packages = package_versions(PACKAGES)
            begun = begin(experiment, model, work, packages)
            files = files_parts(experiment)
            _work(experiment, model, out, work, memory=begun["memory"], progress=progress)
            described = _versions(experiment, model, packages, begun, seconds=time.monotonic() - started)
            described |= {"parts": begun["parts"], "files": files}
            described["template_variables"] = dict(experiment.model.template_variables)
            write_whole(out / VERSIONS, (json.dumps(described, indent=2) + "\n").encode("utf-8"), out)
        _report(out)
    return out


def _report(out: Path) -> None:
    logger.info("writing the report")
    try:
        write_report(out)
    except (Exception, KeyboardInterrupt) as error:  # whatever it is, the tables are there
        raise UnfinishedRunError(
            f"the report broke ({type(error).__name__}: {error}). The run's tables, vectors and activations "
            f"are all in {out}; the same call, or tl_steer.experiments.write_report, makes a report of them."
        ) from error


def _loaded(experiment: Experiment) -> Any:
    asked = experiment.model
    logger.info("loading %s", asked.name)
    return load_model(asked.name, dtype=asked.dtype, device=asked.device, processing=asked.processing)


def _work(
    experiment: Experiment, model: Any, out: Path, work: Path, *, memory: Memory, progress: bool
) -> None:
    """Everything that needs the model; a step whose file is there is not done again."""
    options = {"memory": memory, "progress": progress}
    vectors, pairs = _estimated(experiment, model, out, **options)
    vectors = steered_with(vectors, experiment)
    tables = []
    if experiment.questions is not None:
        tables.append(asked_table(experiment, model, vectors, pairs, work=work, **options))
        if experiment.damage.passages and pairs is not None:
            _table(
                out / "damage.parquet",
                lambda: damage_table(experiment, model, vectors, pairs, tables[0], **options),
            )
    if experiment.text is not None:
        tables.append(written_table(experiment, model, vectors, tables, work=work, **options))
        _table(
            out / "text_damage.parquet",
            lambda: text_damage_table(model, tables[-1], **options),
        )
    if tables:
        _table(out / "sweep.parquet", lambda: _together(tables))


def _together(tables: list[pd.DataFrame]) -> pd.DataFrame:
    """The rows of all tables; what has one draw per prompt has draw 0 where another table has several."""
    together = pd.concat(tables, ignore_index=True)
    return together.assign(draw=together[DRAW].fillna(0).astype(int)) if DRAW in together else together


def _table(path: Path, make: Callable[[], pd.DataFrame]) -> None:
    """A table's file, made if it is not there."""
    if path.exists():
        return
    table = make()
    with kept_file(path), atomic(path) as scratch:
        table.to_parquet(scratch, index=False)


def _estimated(
    experiment: Experiment, model: Any, out: Path, *, memory: Memory, progress: bool
) -> tuple[SteeringVectors, PairedActivations | None]:
    """The vectors in the experiment's unit, and what they are made of, if it is pairs; read from their files.

    From the files in an undisturbed run too, so that it goes the same way as one that was broken off.
    """
    options = {"memory": memory, "progress": progress}
    activations = None if experiment.has_prompts else _activations(experiment, model, out, **options)
    path = out / "vectors.safetensors"
    if not path.exists():
        asked = experiment.pairs
        made = (
            activation_addition(model, asked.positive, asked.negative, hook=asked.hook, memory=memory)
            if activations is None
            else estimator_of(experiment)(activations)
        )
        with kept_file(path):
            in_unit(made, experiment).save(path)
    return SteeringVectors.load(path), activations


def _activations(experiment: Experiment, model: Any, out: Path, **options: Any) -> PairedActivations:
    """The stream at both sides of the pairs, beside what else differs between them."""
    audited, path = out / "audit.csv", out / "activations.safetensors"
    if not audited.exists():
        differing = audit(pairs_of(experiment, model), tokenizer=model.tokenizer).to_csv(index=False)
        write_whole(audited, differing.encode("utf-8"), out)
    if not path.exists():
        logger.info("reading the stream at both sides of the pairs")
        activations = _captured(experiment, model, pairs_of(experiment, model), **options)
        with kept_file(path):
            activations.save(path)
    return PairedActivations.load(path)


def _captured(experiment: Experiment, model: Any, pairs: Any, **options: Any) -> PairedActivations:
    asked = experiment.capture
    layers = None if asked.layers == "all" else asked.layers
    positions = parse_positions(asked.positions)
    return capture_pairs(model, pairs, positions=positions, layers=layers, hook=asked.hook, **options)


def _versions(
    experiment: Experiment,
    model: Any,
    packages: Mapping[str, str],
    begun: Mapping[str, Any],
    *,
    seconds: float,
) -> Mapping[str, Any]:
    """What the run was made with; `begun` is told where it was begun with other packages."""
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
    }
