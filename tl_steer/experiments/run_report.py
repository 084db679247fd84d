"""The results of a run folder, and its report."""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from .._report import Results, Settings
from .._report.page import report_page
from .._report.results import TEXT
from .._util.file_io import atomic
from .._util.validation import checked
from ..activations import PairedActivations
from ..directions import SteeringVectors
from ..evaluation.sampled_answers import sampled_choices
from ..sweeps.sweep_table import DRAW, FIXED, validated_sweep
from .config_file import Experiment, read_experiment
from .materials import estimator_of, factor_of

logger = logging.getLogger(__name__)


@checked
def write_report(folder: str | Path) -> Path:
    """Write `report.html` into a run folder, from the folder's files.

    Raises:
        FileNotFoundError: a file of a run is missing.
    """
    path = Path(folder) / "report.html"
    report = report_page(read_results(folder))
    with atomic(path) as scratch:
        scratch.write_text(report.page, encoding="utf-8")
    logger.info("%s", report.verdict)
    return path


@checked
def read_results(folder: str | Path) -> Results:
    """The tables of a run folder, and those that its report computes from them."""
    folder = Path(folder)
    experiment = read_experiment(folder / "experiment.toml")
    versions = json.loads((folder / "versions.json").read_text(encoding="utf-8"))
    sweep, damage, text_damage = (
        _table(folder / f"{name}.parquet") for name in ("sweep", "damage", "text_damage")
    )
    is_text = sweep["split"] == TEXT
    questions = sweep[~is_text]
    audit, activations = None, None
    if not experiment.has_prompts:
        audit = pd.read_csv(folder / "audit.csv", keep_default_na=False)
        activations = PairedActivations.load(folder / "activations.safetensors")
    return Results(
        settings_of(experiment, versions, questions),
        questions if questions.empty else with_choices(experiment, questions),
        _open_prompts(sweep[is_text]),
        damage,
        text_damage,
        audit,
        activations,
        SteeringVectors.load(folder / "vectors.safetensors"),
    )


def settings_of(experiment: Experiment, versions: Mapping[str, Any], questions: pd.DataFrame) -> Settings:
    """What the experiment file says about the report; `questions` are the rows of its sweep."""
    names: dict[str, Any] = {}
    if (config := experiment.questions) is not None:
        factor = factor_of(experiment, questions.drop(columns=[*FIXED, DRAW], errors="ignore"))
        names = {"factor": factor, "noun": config.noun, "training": config.training}
        names["score"] = experiment.sweep.score
    if not experiment.has_prompts:
        names["estimator"] = estimator_of(experiment)
    return Settings(
        title=experiment.title,
        question=experiment.question,
        folds=experiment.separation.folds,
        shuffles=experiment.separation.shuffles,
        seed=experiment.seed,
        damage_positions=experiment.damage.positions,
        sampling=_sampling(experiment),
        facts=_facts(versions),
        source=experiment.source,
        **names,
    )


def _sampling(experiment: Experiment) -> str:
    text = experiment.text
    if text is None:
        return ""
    how = f"sampled at temperature {text.temperature:g}" if text.temperature else "greedy"
    return f"{how}, at most {text.max_new_tokens} tokens"


def _facts(versions: Mapping[str, Any]) -> dict[str, str]:
    model = versions["model"]
    revision = f", revision {model['revision']}" if model["revision"] else ""
    packages = ", ".join(f"{name} {number}" for name, number in versions["packages"].items())
    return {
        "model": f"{model['name']}{revision}; {model['n_layers']} layers, d_model {model['d_model']}, "
        f"{versions['dtype']} on {versions['device']}",
        "date": f"{versions['date']}, {versions['seconds']} s",
        "versions": f"python {versions['python']}, {packages}",
    }


def with_choices(experiment: Experiment, table: pd.DataFrame) -> pd.DataFrame:
    """A sweep's table with the choices that [sweep] choices counts: the likeliest, or sampled ones."""
    if experiment.sweep.choices == "likeliest":
        return table
    return sampled_choices(table, seed=experiment.seed)


def _open_prompts(texts: pd.DataFrame) -> pd.DataFrame:
    """The texts with their prompts as in the experiment file, without the chat format."""
    return texts.assign(prompt=texts["said"]).drop(columns="label", errors="ignore") if len(texts) else texts


def _table(path: Path) -> pd.DataFrame:
    return validated_sweep(pd.read_parquet(path)) if path.is_file() else pd.DataFrame({"split": []})
