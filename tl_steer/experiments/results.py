"""What a run folder holds, read back, with the tables that its report shows."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from ..activations import PairedActivations
from ..analysis import pca, projections, separation
from ..directions import SteeringVectors
from ..evaluation.answer_shifts import answer_shifts
from ..evaluation.choosing import choose
from ..evaluation.effectiveness import effectiveness
from ..evaluation.signal_detection import signal_detection
from ..evaluation.tables import CELL, UNSTEERED, rows_of
from .files.experiment import Experiment
from .files.reading import read_experiment
from .materials import estimator_of

CHOOSE, REPORT, TEXT = "choose", "report", "text"  # the splits of a run's sweep


def best_choice(choices: pd.DataFrame, *, split: str = CHOOSE) -> pd.Series:
    """Of the operations' chosen cells the one with the highest value on the choosing half.

    Args:
        choices: from `choose`, by one score.
        split: whose row is given back; the choice is made on the choosing half either way.
    """
    keys = ["vector", "operation"]
    halves = choices[choices["split"] == CHOOSE], choices[choices["split"] == split]
    on, wanted = (half.set_index(keys, drop=False) for half in halves)
    return wanted.loc[on["value"].idxmax()]


def score_of(table: pd.DataFrame, score: str) -> str:
    """The score to choose by: accuracy where some vector and operation has no d′ at all on the choosing half.

    There is none where the answers that can be read all have the same right answer.
    """
    if score != "d_prime":
        return score
    half = table[(table["split"] == CHOOSE) & ~table["control"].astype(bool)]
    found = signal_detection(half, resamples=1)
    steered = found[found["vector"] != UNSTEERED]
    return score if steered.groupby(["vector", "operation"])["d_prime"].count().all() else "accuracy"


@dataclass(frozen=True, eq=False)
class Results:
    """A run, as it lies on disk; its tables are computed from that when they are first asked for.

    Attributes:
        experiment: the file it was run from.
        versions: versions.json.
        audit: what differs between the sides of the pairs; `None` where there are none.
        activations, vectors: as they were saved; no activations where there are no pairs.
        sweep: cells of questions and of texts, or an empty table.
    """

    experiment: Experiment
    versions: Mapping[str, Any]
    audit: pd.DataFrame | None
    activations: PairedActivations | None
    vectors: SteeringVectors
    sweep: pd.DataFrame

    @classmethod
    def load(cls, folder: str | Path) -> "Results":
        """Read a run folder.

        Raises:
            FileNotFoundError: a file of a run is missing.
        """
        folder = Path(folder)
        sweep = folder / "sweep.parquet"
        experiment = read_experiment(folder / "experiment.toml")
        paired = not experiment.has_prompts
        return cls(
            experiment,
            json.loads((folder / "versions.json").read_text(encoding="utf-8")),
            pd.read_csv(folder / "audit.csv", keep_default_na=False) if paired else None,
            PairedActivations.load(folder / "activations.safetensors") if paired else None,
            SteeringVectors.load(folder / "vectors.safetensors"),
            pd.read_parquet(sweep) if sweep.is_file() else pd.DataFrame({"split": []}),
        )

    @cached_property
    def questions(self) -> pd.DataFrame:
        """The sweep's rows with questions that have a right answer."""
        return self.sweep[self.sweep["split"] != TEXT]

    @cached_property
    def texts(self) -> pd.DataFrame:
        """The sweep's rows with open prompts."""
        return self.sweep[self.sweep["split"] == TEXT]

    @cached_property
    def separation(self) -> pd.DataFrame:
        """`analysis.separation` of the pairs with the experiment's estimator."""
        asked = self.experiment.separation
        return separation(
            self.activations,
            estimator=estimator_of(self.experiment),
            folds=asked.folds,
            shuffles=asked.shuffles,
            seed=self.experiment.seed,
        )

    @cached_property
    def score(self) -> str:
        """By which the cell is chosen: the experiment's, unless there is none (`score_of`)."""
        return score_of(self.questions, self.experiment.sweep.score)

    @cached_property
    def choices(self) -> pd.DataFrame:
        """`choose` by the score, and by accuracy where that is another one."""
        scores = dict.fromkeys([self.score, "accuracy"])
        return pd.concat(
            [choose(self.questions, on=CHOOSE, report=REPORT, score=score) for score in scores],
            ignore_index=True,
        )

    @cached_property
    def chosen(self) -> pd.Series:
        """The chosen cell of the best operation, on the questions that had no part in the choice."""
        by_score = self.choices[self.choices["score"] == self.score]
        return best_choice(by_score, split=REPORT)

    @property
    def opposite(self) -> pd.Series | None:
        """The chosen cell with the multiplier's sign turned, where that was run."""
        if pd.isna(self.chosen["multiplier"]):
            return None
        turned = self.chosen.copy()
        turned["multiplier"] *= -1
        found = rows_of(self.questions[[*CELL, "dose"]].drop_duplicates(), turned)
        return None if found.empty else found.iloc[0]

    @cached_property
    def shown_layer(self) -> int:
        """The layer that figures show first: the chosen one, else the one that separates best."""
        if self.experiment.questions is not None:
            layer = int(self.chosen["layers"].split("+")[0])
            if layer in self.activations.layers:
                return layer
        return int(self.separation.loc[self.separation["paired_accuracy"].idxmax(), "layer"])

    @property
    def has_noise(self) -> bool:
        """Whether the right answer to some questions is not the signal, so that a bias shows."""
        return bool(self.questions["answer"].eq(1).any())

    def half(self, split: str | None) -> pd.DataFrame:
        """The questions of one split; with `None` all of them."""
        return self.questions if split is None else self.questions[self.questions["split"] == split]

    def effects(self, *, split: str | None = None, overall: bool = False) -> pd.DataFrame:
        """`effectiveness` by kind of question, of all or of one half; `overall` adds a kind "all"."""
        return effectiveness(self.half(split), by=self.experiment.questions.factor, overall=overall)

    def shifts(self, *, split: str | None = None) -> pd.DataFrame:
        """How far each kind of question moved: `effects`, or `answer_shifts` where answers are texts."""
        if not self.experiment.sweep.is_written:
            return self.effects(split=split)
        return answer_shifts(self.half(split), by=self.experiment.questions.factor, seed=self.experiment.seed)

    def accuracy(self, *, split: str | None = None) -> pd.DataFrame:
        """`effectiveness` of all kinds of questions together."""
        return effectiveness(self.half(split))

    def detection(self, *, split: str | None = None) -> pd.DataFrame:
        """`signal_detection`, of all questions or of one half."""
        return signal_detection(self.half(split), seed=self.experiment.seed)

    def components(self, layers: list[int]) -> pd.DataFrame:
        """`analysis.pca` at some layers."""
        available = min(3, 2 * len(self.activations) - 1)
        return pca(self.activations, components=available, layers=layers)

    def projected(self, layers: list[int]) -> pd.DataFrame:
        """`analysis.projections` on the run's own vectors, at some layers."""
        table = projections(self.activations, self.vectors, centred=True)
        return table[table["layer"].isin(layers)]
