"""An experiment as one value: what a TOML file may say, a frozen dataclass a table."""

from dataclasses import dataclass, field
from pathlib import Path

from .question_tables import Questions, Sweep, Text
from .vector_tables import (
    Capture,
    CsvPairs,
    HonestyPairs,
    LdaDirection,
    LogisticDirection,
    MeanDifference,
    Model,
    PrincipalComponent,
    Separation,
)


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """What is asked, of which model, with which data; from `read_experiment`.

    Attributes:
        title, question: free text, for the report.
        pairs, capture, directions: how the vectors are made.
        questions, sweep: the choice sweep, both or neither.
        text: open prompts, or `None`.
        seed: of every random choice.
        source: the file's text, as it was read.
        folder: where it lies; data given by a path is looked for there.
    """

    title: str
    pairs: CsvPairs | HonestyPairs
    question: str = ""
    seed: int = 0
    model: Model = field(default_factory=Model)
    capture: Capture = field(default_factory=Capture)
    directions: MeanDifference | PrincipalComponent | LogisticDirection | LdaDirection = field(
        default_factory=lambda: MeanDifference(method="mean_difference")
    )
    questions: Questions | None = None
    sweep: Sweep | None = None
    text: Text | None = None
    separation: Separation = field(default_factory=Separation)
    source: str = field(default="", repr=False)
    folder: Path = field(default_factory=Path)

    def __post_init__(self) -> None:
        if (self.questions is None) != (self.sweep is None):
            raise ValueError("[questions] and [sweep] belong together: give both, or neither.")
        if self.questions is None and self.text is not None and not isinstance(self.text.layers, tuple):
            raise ValueError("[text] layers must be a list, since without [questions] no layer is chosen.")
        if self.seed < 0:
            raise ValueError(f"seed = {self.seed}: give 0 or more.")
