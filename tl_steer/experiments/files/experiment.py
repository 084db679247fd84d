"""An experiment as one value: what a TOML file may say, a frozen dataclass a table."""

from dataclasses import dataclass, field
from pathlib import Path

from ..._util.validation import short_repr
from ...models import ORGANISMS
from .direction_tables import ActivationAddition, Directions, MeanDifference
from .question_tables import Damage, Questions, Sweep, Text
from .vector_tables import Capture, CsvPairs, HonestyPairs, Model, OrganismPairs, PromptPair, Separation


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """What is asked, of which model, with which data; from `read_experiment`.

    Attributes:
        title, question: free text, for the report.
        pairs, capture, directions: how the vectors are made; by default a mean difference, or for
            kind = "prompts" an activation addition.
        questions, sweep: the choice sweep, both or neither.
        damage: neutral text read at the sweep's chosen layer; not for kind = "prompts", whose vectors belong
            to a prompt's first tokens.
        text: open prompts, or `None`.
        seed: of every random choice.
        source: the file's text, as it was read.
        folder: where it lies; data given by a path is looked for there.
    """

    title: str
    pairs: CsvPairs | HonestyPairs | OrganismPairs | PromptPair
    question: str = ""
    seed: int = 0
    model: Model = field(default_factory=Model)
    capture: Capture = field(default_factory=Capture)
    directions: Directions | None = None
    questions: Questions | None = None
    sweep: Sweep | None = None
    damage: Damage = field(default_factory=Damage)
    text: Text | None = None
    separation: Separation = field(default_factory=Separation)
    source: str = field(default="", repr=False)
    folder: Path = field(default_factory=Path)

    __repr__ = short_repr

    def __post_init__(self) -> None:
        if self.directions is None:
            usual = (
                ActivationAddition(method="activation_addition")
                if self.has_prompts
                else MeanDifference(method="mean_difference")
            )
            object.__setattr__(self, "directions", usual)
        if (self.questions is None) != (self.sweep is None):
            raise ValueError("[questions] and [sweep] belong together: give both, or neither.")
        if self.questions is None and self.text is not None and not isinstance(self.text.layers, tuple):
            raise ValueError("[text] layers must be a list, since without [questions] no layer is chosen.")
        if self.seed < 0:
            raise ValueError(f"seed = {self.seed}: give 0 or more.")
        if self.has_prompts != (self.directions.method == "activation_addition"):
            raise ValueError(
                '[pairs] kind = "prompts" and [directions] method = "activation_addition" go together: '
                "give both, or neither."
            )
        for name, table in (("pairs", self.pairs), ("questions", self.questions)):
            if table is not None and table.kind == "organism" and self.model.name not in ORGANISMS:
                raise ValueError(
                    f'[{name}] kind = "organism" is in the language of the organisms, which [model] name = '
                    f"{self.model.name!r} does not speak: use one of {', '.join(ORGANISMS)}."
                )
        if self.questions is not None and self.questions.training and self.pairs.kind != "honesty":
            raise ValueError(
                "[questions] training = true asks the claims of [pairs], which are there for [pairs] kind = "
                f'"honesty" only, not for "{self.pairs.kind}".'
            )
        if self.sweep is not None and self.sweep.shuffled and self.directions.method == "principal_component":
            raise ValueError(
                "[sweep] shuffled: a principal component does not see which side is which, so that exchanged "
                "pairs give the same one. Leave shuffled out, or use another [directions] method."
            )
        if self.has_prompts:
            self._require_no_pairs()

    @property
    def has_prompts(self) -> bool:
        """Whether the vectors come of one prompt or two, not of pairs: one vector a position."""
        return self.pairs.kind == "prompts"

    @property
    def has_chat(self) -> bool:
        """Whether prompts are written in the model's chat format."""
        return (
            self.pairs.kind == "honesty"
            or (self.questions is not None and self.questions.kind in ("claims", "misconceptions"))
            or (self.text is not None and self.text.chat)
        )

    def _require_no_pairs(self) -> None:
        if self.capture != Capture() or self.separation != Separation():
            raise ValueError(
                '[capture] and [separation] are about pairs: with [pairs] kind = "prompts", leave them out.'
            )
        if self.damage != Damage():
            raise ValueError(
                '[damage] adds one vector to every token, and [pairs] kind = "prompts" makes one for each of '
                "the first tokens: leave it out."
            )
        if self.sweep is not None and self.sweep.shuffled + self.sweep.orthogonal:
            raise ValueError(
                '[sweep] shuffled and orthogonal controls are made of pairs: with [pairs] kind = "prompts", '
                "use controls, which are random."
            )
        for name, table in (("sweep", self.sweep), ("text", self.text)):
            if table is not None and "project_out" in table.operations:
                raise ValueError(
                    f'[{name}] operations: one vector a position, as kind = "prompts" makes them, can be '
                    "added and not projected out."
                )
        if self.questions is None and self.text is None:
            raise ValueError('[pairs] kind = "prompts" needs [text], or [questions] and [sweep], to show it.')
