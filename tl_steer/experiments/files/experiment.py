"""An experiment as one value: what a TOML file may say, a frozen dataclass a table."""

from dataclasses import dataclass, field
from pathlib import Path

from .directions import ActivationAddition, Directions, MeanDifference
from .questions import Questions, Sweep, Text
from .vectors import Capture, CsvPairs, HonestyPairs, Model, PromptPair, Separation


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """What is asked, of which model, with which data; from `read_experiment`.

    Attributes:
        title, question: free text, for the report.
        pairs, capture, directions: how the vectors are made; by default a mean difference, or for
            kind = "prompts" an activation addition.
        questions, sweep: the choice sweep, both or neither.
        text: open prompts, or `None`.
        seed: of every random choice.
        source: the file's text, as it was read.
        folder: where it lies; data given by a path is looked for there.
    """

    title: str
    pairs: CsvPairs | HonestyPairs | PromptPair
    question: str = ""
    seed: int = 0
    model: Model = field(default_factory=Model)
    capture: Capture = field(default_factory=Capture)
    directions: Directions | None = None
    questions: Questions | None = None
    sweep: Sweep | None = None
    text: Text | None = None
    separation: Separation = field(default_factory=Separation)
    source: str = field(default="", repr=False)
    folder: Path = field(default_factory=Path)

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
        if self.has_prompts:
            self._require_no_pairs()

    @property
    def has_prompts(self) -> bool:
        """Whether the vectors come of one prompt or two, not of pairs: one vector a position."""
        return self.pairs.kind == "prompts"

    def _require_no_pairs(self) -> None:
        if self.capture != Capture() or self.separation != Separation():
            raise ValueError(
                '[capture] and [separation] are about pairs: with [pairs] kind = "prompts", leave them out.'
            )
        for name, table in (("sweep", self.sweep), ("text", self.text)):
            if table is not None and "project_out" in table.operations:
                raise ValueError(
                    f'[{name}] operations: one vector a position, as kind = "prompts" makes them, can be '
                    "added and not projected out."
                )
        if self.questions is None and self.text is None:
            raise ValueError('[pairs] kind = "prompts" needs [text], or [questions] and [sweep], to show it.')
