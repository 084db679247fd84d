"""An experiment as one value: what a TOML file may say, a frozen dataclass a table."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from ..models import EMBEDDED, HOOKS
from ..positions import parse_positions

Layers = tuple[int, ...] | Literal["all"]
SweptLayers = tuple[int | tuple[int, ...], ...] | Literal["all"]
Unit = Literal["dose", "length"]


@dataclass(frozen=True, kw_only=True)
class Model:
    """[model]: what `load_model` is given.

    Attributes:
        name: a name of `tl-steer models`, or a local folder.
        dtype: of the weights.
        device: "cpu", "cuda"; by default CUDA where there is one.
    """

    name: str = EMBEDDED
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    device: str | None = None


@dataclass(frozen=True, kw_only=True)
class CsvPairs:
    """[pairs] kind = "csv": a table with the columns positive and negative.

    Attributes:
        data: a name of the package's data, or a path, taken from where the experiment file lies.
        limit: use so many pairs, drawn with the experiment's seed.
    """

    kind: Literal["csv"]
    data: str = "sentiment_pairs"
    limit: int | None = None

    def __post_init__(self) -> None:
        _require_positive(limit=self.limit)


@dataclass(frozen=True, kw_only=True)
class HonestyPairs:
    """[pairs] kind = "honesty": `honesty_pairs` of claims.

    Attributes:
        data, limit: as for CSV pairs; the limit counts claims and takes as many of each label.
        style, shared, persona: see `honesty_pairs`.
    """

    kind: Literal["honesty"]
    data: str = "claims_train"
    limit: int | None = None
    style: Literal["letters", "words"] = "letters"
    shared: Literal["claim", "letter"] = "claim"
    persona: bool = False

    def __post_init__(self) -> None:
        _require_positive(limit=self.limit)


@dataclass(frozen=True, kw_only=True)
class Capture:
    """[capture]: where the pairs' activations are read.

    Attributes:
        positions: one position a prompt, as `parse_positions` reads it.
        hook: short hook name.
        layers: "all", or 0-based block indices.
    """

    positions: str = "last_token()"
    hook: str = "resid_post"
    layers: Layers = "all"

    def __post_init__(self) -> None:
        parse_positions(self.positions)
        if self.hook not in HOOKS:
            raise ValueError(f"hook = {self.hook!r} is unknown; use one of {', '.join(HOOKS)}.")


@dataclass(frozen=True, kw_only=True)
class MeanDifference:
    """[directions] method = "mean_difference".

    Attributes:
        unit: "dose" scales each vector so that multiplier 1 is dose 1 (as long as the stream is at that
            layer); "length" leaves it as the estimator gives it.
    """

    method: Literal["mean_difference"]
    unit: Unit = "dose"


@dataclass(frozen=True, kw_only=True)
class PrincipalComponent:
    """[directions] method = "principal_component", with the estimator's options."""

    method: Literal["principal_component"]
    unit: Unit = "dose"
    component: int = 1
    of: Literal["pooled", "differences", "pair_centred"] = "pooled"


@dataclass(frozen=True, kw_only=True)
class LogisticDirection:
    """[directions] method = "logistic_direction", with the estimator's option."""

    method: Literal["logistic_direction"]
    unit: Unit = "dose"
    C: float = 1.0


@dataclass(frozen=True, kw_only=True)
class LdaDirection:
    """[directions] method = "lda_direction"."""

    method: Literal["lda_direction"]
    unit: Unit = "dose"


@dataclass(frozen=True, kw_only=True)
class Questions:
    """[questions]: two-choice questions with known answers, asked in every cell of the sweep.

    Attributes:
        kind: "sentiment" (reviews), "claims", or "misconceptions".
        data: name or path; by default the package's reviews, claims_eval or misconceptions.
        limit: ask so many, as many of each label.
    """

    kind: Literal["sentiment", "claims", "misconceptions"]
    data: str | None = None
    limit: int | None = None

    DATA: ClassVar[Mapping[str, str]] = {
        "sentiment": "reviews",
        "claims": "claims_eval",
        "misconceptions": "misconceptions",
    }
    FACTORS: ClassVar[Mapping[str, str]] = {
        "sentiment": "kind",
        "claims": "truth",
        "misconceptions": "letter",
    }

    def __post_init__(self) -> None:
        _require_positive(limit=self.limit)

    @property
    def factor(self) -> str:
        """The factor that tells the kinds of questions apart."""
        return self.FACTORS[self.kind]


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """[sweep]: the cells in which the questions are asked.

    Attributes:
        multipliers: on both sides of zero; doses where the vectors' unit is "dose".
        layers: "all" captured ones, or a list, in which [17, 31] are steered together.
        operations: "add", "project_out".
        positions: steered tokens.
        controls: how many random directions of the same length.
        control_layers: "all" layers and multipliers of the sweep, or the "chosen" layer at the chosen
            multiplier and its opposite, which costs less.
        score: by which layer and multiplier are chosen on half of the questions; see `choose`.
    """

    multipliers: tuple[float, ...]
    layers: SweptLayers = "all"
    operations: tuple[Literal["add", "project_out"], ...] = ("add",)
    positions: str = "all_tokens()"
    controls: int = 5
    control_layers: Literal["all", "chosen"] = "all"
    score: Literal["accuracy", "d_prime", "shift"] = "shift"

    def __post_init__(self) -> None:
        parse_positions(self.positions)
        if not self.multipliers or 0 in self.multipliers:
            raise ValueError(
                "multipliers: give at least one, none of them 0 (the unsteered cell is always there)."
            )
        if self.controls < 0:
            raise ValueError(f"controls = {self.controls}: give 0 or more.")
        if not self.layers or not self.operations:
            raise ValueError("layers and operations must not be empty.")


@dataclass(frozen=True, kw_only=True)
class Text:
    """[text]: open prompts that the steered model answers.

    Attributes:
        prompts: what is said to the model; or
        data: "dilemmas", or a CSV with a column dilemma.
        limit: so many of `data`.
        chat: put each prompt in the model's chat format.
        layers: "chosen" by the sweep, so many best ones of it, or a list of layers.
        multipliers: one below and one above zero.
        max_new_tokens: length of each text.
    """

    prompts: tuple[str, ...] = ()
    data: str | None = None
    limit: int | None = None
    chat: bool = True
    layers: Literal["chosen"] | int | tuple[int, ...] = "chosen"
    multipliers: tuple[float, ...] = (-0.3, 0.3)
    max_new_tokens: int = 30

    def __post_init__(self) -> None:
        _require_positive(limit=self.limit, max_new_tokens=self.max_new_tokens)
        if bool(self.prompts) == (self.data is not None):
            raise ValueError('give either prompts = ["…"] or data = "dilemmas".')
        if any(not prompt.strip() for prompt in self.prompts):
            raise ValueError("prompts: one of them is empty.")
        if len(self.multipliers) != 2 or not self.multipliers[0] < 0 < self.multipliers[1]:
            raise ValueError(
                f"multipliers = {list(self.multipliers)}: give two, below and above zero, as [-0.3, 0.3]."
            )
        if isinstance(self.layers, int):
            _require_positive(layers=self.layers)


@dataclass(frozen=True, kw_only=True)
class Separation:
    """[separation]: cross-validation of the directions, with `shuffles` repetitions under exchanged labels."""

    shuffles: int = 100
    folds: int = 5

    def __post_init__(self) -> None:
        if self.shuffles < 0 or self.folds < 2:
            raise ValueError(
                f"shuffles = {self.shuffles}, folds = {self.folds}: give 0 or more, and 2 or more."
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


def _require_positive(**numbers: Any) -> None:
    for name, number in numbers.items():
        if number is not None and number < 1:
            raise ValueError(f"{name} = {number}: give 1 or more.")
