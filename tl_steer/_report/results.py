"""The tables of a report, from a sweep and what else was measured; each is computed when first used."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import pandas as pd

from .._util.validation import short_repr
from ..activations import PairedActivations
from ..analysis import agreement, confounds, pca, projections, separation
from ..directions import (
    Estimator,
    SteeringVectors,
    lda_direction,
    logistic_direction,
    mean_difference,
    principal_component,
)
from ..directions.controls import FEWEST as FEWEST_GROUPS
from ..directions.factors import factor_contrasts
from ..evaluation import effect_and_damage, usable_range
from ..evaluation._choose import choose
from ..evaluation._effectiveness import answer_shifts, effectiveness
from ..evaluation._prediction import FEWEST, prediction
from ..evaluation._signal_detection import signal_detection
from ..evaluation._steerability import prompt_slopes, steerability
from ..evaluation.control_tests import EFFECTS, against_controls
from ..sweeps.sweep_table import CONDITION, UNSTEERED, condition_rows

CHOOSE, REPORT, TEXT = "choose", "report", "text"  # the splits of a sweep, and of open prompts
ESTIMATORS = {
    each.__name__: each for each in (mean_difference, principal_component, logistic_direction, lda_direction)
}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a report says beyond its tables.

    Attributes:
        title, question: free text.
        factor: the column of the question types.
        noun: what the questions are about, plural: "reviews".
        signal: what choice 0 says: "positive"; "" to take the type of question whose right answer it is.
        score: by which layer and multiplier are chosen (`choose`).
        training: whether the questions are of the pairs that made the vector.
        estimator: of the vectors, to estimate them again from parts of the pairs.
        folds, shuffles: of `separation`.
        seed: of all random numbers.
        damage_positions: positions that were steered while neutral text was read.
        sampling: how the open prompts were answered.
        facts: further lines of "How it was made".
        source: the experiment file.
    """

    title: str
    question: str = ""
    factor: str = "answer"
    noun: str = "questions"
    signal: str = ""
    score: str = "shift"
    training: bool = False
    estimator: Estimator = mean_difference
    folds: int = 5
    shuffles: int = 100
    seed: int = 0
    damage_positions: str = ""
    sampling: str = ""
    facts: Mapping[str, str] = field(default_factory=dict)
    source: str = ""


@dataclass(frozen=True, eq=False)
class Results:
    """What was measured; empty tables and `None` for what was not.

    Attributes:
        settings: see there.
        questions: rows of a sweep with right answers, of both splits.
        texts: rows of a sweep with open prompts.
        damage, text_damage: of neutral text and of generated texts.
        audit: from `audit` of the pairs.
        activations, vectors: of the pairs.
    """

    settings: Settings
    questions: pd.DataFrame
    texts: pd.DataFrame
    damage: pd.DataFrame
    text_damage: pd.DataFrame
    audit: pd.DataFrame | None = None
    activations: PairedActivations | None = None
    vectors: SteeringVectors | None = None

    __repr__ = short_repr

    @cached_property
    def rows(self) -> pd.DataFrame:
        """The questions that had no part in choosing layer and multiplier: all statements are about these."""
        return self.questions[self.questions["split"] == REPORT]

    @cached_property
    def separation(self) -> pd.DataFrame:
        """`analysis.separation` of the pairs."""
        options = {"folds": self.settings.folds, "shuffles": self.settings.shuffles}
        return separation(
            self.activations, estimator=self.settings.estimator, seed=self.settings.seed, **options
        )

    @cached_property
    def score(self) -> str:
        """By which the condition is chosen: the settings' score, or accuracy (`score_of`)."""
        return score_of(self.questions, self.settings.score)

    @cached_property
    def choices(self) -> pd.DataFrame:
        """`choose` by the score, with two rows per vector and operation."""
        return choose(self.questions, on=CHOOSE, report=REPORT, value=self.score, seed=self.settings.seed)

    @cached_property
    def chosen(self) -> pd.Series:
        """The chosen condition of the best operation, on the reporting half."""
        return best_choice(self.choices, split=REPORT)

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
        if len(self.questions):
            layer = int(self.chosen["layers"].split("+")[0])
            if self.activations is None or layer in self.activations.layers:
                return layer
        return int(self.separation.loc[self.separation["paired_accuracy"].idxmax(), "layer"])

    @cached_property
    def has_noise(self) -> bool:
        """Whether the right answer to some questions is not the signal, so that a bias is visible."""
        return self.rows["answer"].nunique() > 1

    @cached_property
    def is_generated(self) -> bool:
        """Whether answers are read from generated text."""
        return bool(self.rows["logit_difference"].isna().all())

    @cached_property
    def effects(self) -> pd.DataFrame:
        """`effectiveness` of the chosen vector and of controls by factor, with the level "all"."""
        effects = effectiveness(self.rows, by=self.settings.factor, overall=True)
        return effects[effects["control"] | effects["vector"].isin([UNSTEERED, self.chosen["vector"]])]

    @cached_property
    def class_effects(self) -> pd.DataFrame:
        """`effectiveness` of the chosen vector and of controls by `class_factor`."""
        effects = effectiveness(self.rows, by=self.class_factor)
        return effects[effects["control"] | effects["vector"].isin([UNSTEERED, self.chosen["vector"]])]

    @cached_property
    def right_answers(self) -> dict[str, int]:
        """The right answer of each value of the factor whose questions all have the same."""
        answers = self.rows.groupby(self.settings.factor)["answer"].unique()
        return {str(level): int(each[0]) for level, each in answers.items() if len(each) == 1}

    @property
    def class_factor(self) -> str:
        """The factor, if its values have one right answer each, or else the right answer itself."""
        levels = self.rows[self.settings.factor].dropna().map(str).unique()
        return self.settings.factor if set(levels) == set(self.right_answers) else "answer"

    @cached_property
    def shifts(self) -> pd.DataFrame:
        """The shift by `class_factor`: of `effectiveness`, or `answer_shifts` of generated text."""
        factor = self.class_factor
        if self.is_generated:
            return answer_shifts(self.rows, by=factor, seed=self.settings.seed)
        return effectiveness(self.rows, by=factor)

    @cached_property
    def detection(self) -> pd.DataFrame:
        """`signal_detection` of every condition."""
        return signal_detection(self.rows, seed=self.settings.seed)

    @cached_property
    def verdict(self) -> str:
        """The verdict of `signal_detection` on the chosen condition; "" if all have the same right answer."""
        return condition_rows(self.detection, self.chosen)["verdict"].iloc[0] if self.has_noise else ""

    @cached_property
    def measure(self) -> str:
        """The effect that the verdict is about: controls, damage and slopes are compared by it."""
        if self.verdict == "sensitivity":
            return self.sensitivity
        if self.verdict in ("bias", "both"):
            return "criterion" if self.is_generated else "bias"
        return "accuracy" if self.is_generated else "shift"

    @property
    def sensitivity(self) -> str:
        """The effect of a changed sensitivity; AUC is no measure of its size, since it ends at 0 and 1."""
        return "d_prime" if self.is_generated else "shift_toward_answer"

    @property
    def toward(self) -> str:
        """Direction of positive slopes: the signal, or the right answer if sensitivity changes."""
        return "answer" if self.measure == "shift_toward_answer" else "signal"

    @cached_property
    def slopes(self) -> pd.DataFrame | None:
        """`prompt_slopes`; `None` for generated text or without multipliers."""
        steered = self.rows[self.rows["vector"] != UNSTEERED]
        if self.is_generated or steered["multiplier"].isna().all():
            return None
        return prompt_slopes(self.rows, toward=self.toward)

    @cached_property
    def steerability(self) -> pd.DataFrame | None:
        """`steerability`, if there are slopes."""
        if self.slopes is None:
            return None
        return steerability(self.rows, toward=self.toward, seed=self.settings.seed)

    @cached_property
    def against_controls(self) -> pd.DataFrame | None:
        """`controls_of` the effect that the verdict is about."""
        return self.controls_of(self.measure)

    def controls_of(self, measure: str) -> pd.DataFrame | None:
        """`against_controls` by an effect; `None` without controls or without the effect."""
        if (
            not self.rows["control"].astype(bool).any()
            or EFFECTS[measure](self.rows, [])["effect"].isna().all()
        ):
            return None
        return against_controls(self.rows, value=measure)

    @cached_property
    def measured(self) -> pd.DataFrame:
        """The effect of every steered condition by `measure`, controls included."""
        effects = EFFECTS[self.measure](self.rows, [])
        return effects[effects["vector"] != UNSTEERED]

    @cached_property
    def agreement(self) -> pd.DataFrame | None:
        """`agreement` of the pairs; `None` with too few to halve."""
        if not self._can_be_halved:
            return None
        method = getattr(self.settings.estimator, "func", self.settings.estimator).__name__
        options = {"splits": 20, "resamples": 100, "shuffles": 50, "seed": self.settings.seed}
        return agreement(self.activations, estimators={method: self.settings.estimator}, **options)

    @property
    def _can_be_halved(self) -> bool:
        """Whether either half of the pairs has a vector, with and without shuffled labels."""
        component = getattr(self.settings.estimator, "keywords", {}).get("component", 1)
        largest = max(component) if isinstance(component, Mapping) else component
        if largest > 1 and largest >= len(self.activations) // 4:
            return False  # a quarter of the pairs less one: as many components as centred differences have
        return self.activations.factors["group"].nunique(dropna=False) >= FEWEST_GROUPS

    @cached_property
    def confounds(self) -> pd.DataFrame | None:
        """`confounds` of the vectors; `None` if no factor of the pairs varies."""
        if self.vectors is None or not factor_contrasts(self.activations):
            return None
        return confounds(self.vectors, self.activations, seed=self.settings.seed)

    @cached_property
    def cost(self) -> pd.DataFrame | None:
        """`effect_and_damage` at the chosen layer, by `measure`; `None` without damage there."""
        if self.damage.empty or self.measured["effect"].isna().all():
            return None
        damage = self.damage[self.damage["layers"].isin(["", self.chosen["layers"]])]
        keys = ["vector", "operation", "hook", "multiplier"]
        if damage.merge(self.chosen[keys].to_frame().T.astype(damage[keys].dtypes), on=keys).empty:
            return None
        effects = EFFECTS[self.measure](self.rows, [])
        if self._is_lowered:
            low, high = -effects["effect_high"], -effects["effect_low"]
            effects = effects.assign(effect=-effects["effect"], effect_low=low, effect_high=high)
        directed = self.measure in ("shift", "bias", "criterion")
        return effect_and_damage(effects, damage, value="effect", directed=directed)

    @property
    def _is_lowered(self) -> bool:
        """Whether the effect is a decline: the criterion falls toward the signal; sensitivity may fall."""
        if self.measure in ("shift_toward_answer", "d_prime"):
            change = "d_prime_change" if self.is_generated else "auc_change"
            return bool(condition_rows(self.detection, self.chosen)[change].iloc[0] < 0)
        return self.measure == "criterion"

    @cached_property
    def usable(self) -> pd.DataFrame:
        """`usable_range` of the chosen vector at the chosen layer, if there is a `cost`."""
        table = usable_range(self.cost)
        return table[table["vector"] == self.chosen["vector"]]

    @cached_property
    def prediction(self) -> pd.DataFrame | None:
        """`prediction` of slopes by separation and agreement, over layers; `None` with too few layers."""
        if self.slopes is None or self.activations is None:
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


def best_choice(choices: pd.DataFrame, *, split: str = CHOOSE) -> pd.Series:
    """The condition of `choose` with the highest value on the choosing half; its row of `split`."""
    keys = ["vector", "operation"]
    halves = choices[choices["split"] == CHOOSE], choices[choices["split"] == split]
    chosen, returned = (half.set_index(keys, drop=False) for half in halves)
    return returned.loc[chosen["value"].idxmax()]


def score_of(table: pd.DataFrame, score: str) -> str:
    """The score to choose by: accuracy if some vector and operation has no d′ on the choosing half.

    d′ is missing if all readable answers have the same right answer.
    """
    if score != "d_prime":
        return score
    half = table[(table["split"] == CHOOSE) & ~table["control"].astype(bool)]
    detection = signal_detection(half, resamples=1)
    steered = detection[detection["vector"] != UNSTEERED]
    return score if steered.groupby(["vector", "operation"])["d_prime"].count().all() else "accuracy"


def estimator_of_vectors(vectors: SteeringVectors | None) -> Estimator:
    """The estimator recorded in the vectors, with its arguments; `mean_difference` for other methods."""
    if vectors is None or vectors.method not in ESTIMATORS:
        return mean_difference
    arguments: dict[str, Any] = dict(vectors.info.get("arguments", {}))
    if isinstance(component := arguments.get("component"), Mapping):  # JSON's keys are text
        arguments["component"] = {int(name): weight for name, weight in component.items()}
    return partial(ESTIMATORS[vectors.method], **arguments)
