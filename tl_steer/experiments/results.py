"""Load a run folder, with the tables that its report shows."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from .._util.validation import checked, short_repr
from ..activations import PairedActivations
from ..analysis import agreement, confounds, pca, projections, separation
from ..directions import SteeringVectors
from ..directions.factors import factor_contrasts
from ..evaluation import effect_and_damage, usable_range
from ..evaluation._choose import choose, measure_of
from ..evaluation._effectiveness import answer_shifts, effectiveness
from ..evaluation._prediction import FEWEST, prediction
from ..evaluation._signal_detection import signal_detection
from ..evaluation._steerability import prompt_slopes, steerability
from ..evaluation.control_tests import against_controls
from ..evaluation.sampled_answers import sampled_choices
from ..sweeps.sweep_table import CONDITION, UNSTEERED, condition_rows, validated_sweep
from .config_file import Experiment, read_experiment
from .materials import can_be_halved, estimator_of

CHOOSE, REPORT, TEXT = "choose", "report", "text"  # the splits of a run's sweep


def best_choice(choices: pd.DataFrame, *, split: str = CHOOSE) -> pd.Series:
    """The condition of `choose` with the highest value on the choosing half; its row of `split`."""
    keys = ["vector", "operation"]
    halves = choices[choices["split"] == CHOOSE], choices[choices["split"] == split]
    chosen, returned = (half.set_index(keys, drop=False) for half in halves)
    return returned.loc[chosen["value"].idxmax()]


def with_choices(experiment: Experiment, table: pd.DataFrame) -> pd.DataFrame:
    """A sweep's table with the choices that [sweep] choices counts: the likeliest, or sampled ones."""
    if experiment.sweep.choices == "likeliest":
        return table
    return sampled_choices(table, seed=experiment.seed)


def score_of(table: pd.DataFrame, score: str) -> str:
    """The score to choose by: accuracy if some vector and operation has no d′ on the choosing half.

    `None` if all readable answers have the same right answer.
    """
    if score != "d_prime":
        return score
    half = table[(table["split"] == CHOOSE) & ~table["control"].astype(bool)]
    detection = signal_detection(half, resamples=1)
    steered = detection[detection["vector"] != UNSTEERED]
    return score if steered.groupby(["vector", "operation"])["d_prime"].count().all() else "accuracy"


def _table(path: Path) -> pd.DataFrame:
    return validated_sweep(pd.read_parquet(path)) if path.is_file() else pd.DataFrame({"split": []})


@dataclass(frozen=True, eq=False)
class Results:
    """A finished run. Its tables are computed when they are first used.

    Attributes:
        experiment: as it was run.
        versions: versions.json.
        audit: from `audit` of the pairs; `None` without pairs.
        activations, vectors: as saved; no activations without pairs.
        sweep: questions and texts, or an empty table.
        damage, text_damage: of neutral text and of generated texts, or empty tables.
    """

    experiment: Experiment
    versions: Mapping[str, Any]
    audit: pd.DataFrame | None
    activations: PairedActivations | None
    vectors: SteeringVectors
    sweep: pd.DataFrame
    damage: pd.DataFrame
    text_damage: pd.DataFrame

    __repr__ = short_repr

    @classmethod
    @checked
    def load(cls, folder: str | Path) -> "Results":
        """Read a run folder."""
        folder = Path(folder)
        experiment = read_experiment(folder / "experiment.toml")
        paired = not experiment.has_prompts
        return cls(
            experiment,
            json.loads((folder / "versions.json").read_text(encoding="utf-8")),
            pd.read_csv(folder / "audit.csv", keep_default_na=False) if paired else None,
            PairedActivations.load(folder / "activations.safetensors") if paired else None,
            SteeringVectors.load(folder / "vectors.safetensors"),
            *(_table(folder / f"{name}.parquet") for name in ("sweep", "damage", "text_damage")),
        )

    @cached_property
    def questions(self) -> pd.DataFrame:
        """The sweep's rows with questions that have a right answer."""
        rows = self.sweep[self.sweep["split"] != TEXT]
        return rows if rows.empty else with_choices(self.experiment, rows)

    @cached_property
    def texts(self) -> pd.DataFrame:
        """The sweep's rows with open prompts."""
        return self.sweep[self.sweep["split"] == TEXT]

    @cached_property
    def separation(self) -> pd.DataFrame:
        """`analysis.separation` of the pairs with the experiment's estimator."""
        config, seed = self.experiment.separation, self.experiment.seed
        options = {"folds": config.folds, "shuffles": config.shuffles, "seed": seed}
        return separation(self.activations, estimator=estimator_of(self.experiment), **options)

    @cached_property
    def score(self) -> str:
        """By which the condition is chosen: the experiment's score, or accuracy (`score_of`)."""
        return score_of(self.questions, self.experiment.sweep.score)

    @cached_property
    def choices(self) -> pd.DataFrame:
        """`choose` by the score, and by accuracy if that is another one."""
        scores = dict.fromkeys([self.score, "accuracy"])
        tables = [choose(self.questions, on=CHOOSE, report=REPORT, value=score) for score in scores]
        return pd.concat(tables, ignore_index=True)

    @cached_property
    def chosen(self) -> pd.Series:
        """The chosen condition of the best operation, on the reporting half."""
        return best_choice(self.choices[self.choices["value_name"] == self.score], split=REPORT)

    @property
    def opposite(self) -> pd.Series | None:
        """The chosen condition with the opposite multiplier, if it was run."""
        if pd.isna(self.chosen["multiplier"]):
            return None
        opposite = pd.Series({**self.chosen, "multiplier": -self.chosen["multiplier"]})
        rows = condition_rows(self.questions[[*CONDITION, "dose"]].drop_duplicates(), opposite)
        return None if rows.empty else rows.iloc[0]

    @property
    def reported(self) -> list[pd.Series]:
        """The chosen condition, and its opposite if it was run."""
        return [self.chosen] if self.opposite is None else [self.chosen, self.opposite]

    @cached_property
    def report_layer(self) -> int:
        """The layer that figures show first: the chosen one, else the one that separates best."""
        if self.experiment.questions is not None:
            layer = int(self.chosen["layers"].split("+")[0])
            if layer in self.activations.layers:
                return layer
        return int(self.separation.loc[self.separation["paired_accuracy"].idxmax(), "layer"])

    @property
    def has_noise(self) -> bool:
        """Whether the right answer to some questions is not the signal, so that a bias is visible."""
        return bool(self.questions["answer"].eq(1).any())

    @property
    def factor(self) -> str:
        """The factor by which effects are reported."""
        return self.experiment.questions.factor

    @property
    def is_generated(self) -> bool:
        """Whether answers are read from generated text."""
        return self.experiment.sweep.is_generated

    def half(self, split: str | None) -> pd.DataFrame:
        """The questions of one split; with `None` all of them."""
        return self.questions if split is None else self.questions[self.questions["split"] == split]

    def effects(self, *, split: str | None = None, overall: bool = False) -> pd.DataFrame:
        """`effectiveness` by factor; `overall` adds the level "all"."""
        return effectiveness(self.half(split), by=self.factor, overall=overall)

    def shifts(self, *, split: str | None = None) -> pd.DataFrame:
        """The shift by factor: `effects`, or `answer_shifts` of generated text."""
        if not self.is_generated:
            return self.effects(split=split)
        return answer_shifts(self.half(split), by=self.factor, seed=self.experiment.seed)

    def detection(self, *, split: str | None = None) -> pd.DataFrame:
        """`signal_detection`, of all questions or of one half."""
        return signal_detection(self.half(split), seed=self.experiment.seed)

    @property
    def toward(self) -> str:
        """Direction of positive slopes: the right answer, if the condition is chosen by right answers."""
        return "signal" if self.score == "shift" or not self.has_noise else "answer"

    @cached_property
    def slopes(self) -> pd.DataFrame | None:
        """`prompt_slopes` of all questions; `None` for generated text or without multipliers."""
        steered = self.questions[self.questions["vector"] != UNSTEERED]
        if self.is_generated or steered["multiplier"].isna().all():
            return None
        return prompt_slopes(self.questions, toward=self.toward)

    @cached_property
    def steerability(self) -> pd.DataFrame | None:
        """`steerability` of all questions, if there are slopes."""
        if self.slopes is None:
            return None
        return steerability(self.questions, toward=self.toward, seed=self.experiment.seed)

    @cached_property
    def against_controls(self) -> pd.DataFrame | None:
        """`against_controls` by the score, on the reporting half; `None` without controls."""
        rows = self.half(REPORT)
        if not rows["control"].astype(bool).any():
            return None
        value = self.score
        if value == "d_prime" and self.detection(split=REPORT)["d_prime_change"].fillna(0).eq(0).all():
            value = "accuracy"  # the choosing half has d′, this one has none
        return against_controls(rows, value=value)

    @cached_property
    def agreement(self) -> pd.DataFrame | None:
        """`agreement` of the pairs with the experiment's estimator; `None` with too few to halve."""
        if not can_be_halved(self.experiment, self.activations.factors):
            return None
        estimators = {self.vectors.method: estimator_of(self.experiment)}
        options = {"splits": 20, "resamples": 100, "shuffles": 50, "seed": self.experiment.seed}
        return agreement(self.activations, estimators=estimators, **options)

    @cached_property
    def confounds(self) -> pd.DataFrame | None:
        """`confounds` of the run's own vectors; `None` if no factor of the pairs varies."""
        if not factor_contrasts(self.activations):
            return None
        return confounds(self.vectors, self.activations, seed=self.experiment.seed)

    @cached_property
    def cost(self) -> pd.DataFrame | None:
        """`effect_and_damage` at the chosen layer, by the score; `None` without damage."""
        if self.damage.empty:
            return None
        rows = self.half(REPORT)
        if self.score == "shift":
            return effect_and_damage(effectiveness(rows), self.damage)
        effects = measure_of(self.score)[0](rows, 2000, self.experiment.seed)
        return effect_and_damage(effects, self.damage, value="change", directed=False)

    @cached_property
    def usable(self) -> pd.DataFrame:
        """`usable_range` at the chosen layer, if there is a `cost`."""
        return usable_range(self.cost)

    @cached_property
    def prediction(self) -> pd.DataFrame | None:
        """`prediction` of slopes by separation and agreement, over layers; `None` with too few layers."""
        if self.slopes is None or self.experiment.has_prompts:
            return None
        table = self.steerability
        single = table[~table["control"].astype(bool) & table["layers"].str.fullmatch(r"\d+")]
        layers = set(single["layers"].astype(int)) & set(self.activations.layers)
        if len(layers) < FEWEST:
            return None
        per_layer = [table for table in (self.agreement, self.separation) if table is not None]
        return prediction(per_layer, single, value="slope_per_dose")

    def components(self, layers: list[int]) -> pd.DataFrame:
        """`analysis.pca` at some layers."""
        available = min(3, 2 * len(self.activations) - 1)
        return pca(self.activations, components=available, layers=layers)

    def projected(self, layers: list[int]) -> pd.DataFrame:
        """`analysis.projections` on the run's own vectors, at some layers."""
        table = projections(self.activations, self.vectors, centred=True)
        return table[table["layer"].isin(layers)]
