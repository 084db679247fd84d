"""The tables of an experiment file that say what a steered model is asked."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from ..._generation import Decoding
from ...positions import parse_positions
from .vector_tables import require_different, require_positive

Operation = Literal["add", "project_out"]
Layers = tuple[int | tuple[int, ...], ...] | Literal["all"]
SAMPLING = {"temperature": 0.0, "top_p": 1.0, "repetition_penalty": 1.0, "draws": 1}  # the defaults


@dataclass(frozen=True, kw_only=True)
class Questions:
    """[questions]: two-choice questions with known answers, asked in every cell of the sweep.

    Attributes:
        kind: "sentiment" (reviews), "claims", "misconceptions", or "organism": the held-out claims of an
            organism's language, which has no data of its own.
        data: name or path; by default the package's reviews, claims_eval or misconceptions.
        limit: ask so many, as many of each label.
        wording: of "claims" and "misconceptions"; see `claim_questions`.
        training: ask the claims of [pairs] themselves, of which the vectors are made. The report labels their
            effects as in-sample, and the table has a factor `claims` that says "training". Without it, claims
            that are also in [pairs] are an error.
    """

    kind: Literal["sentiment", "claims", "misconceptions", "organism"]
    data: str | None = None
    limit: int | None = None
    wording: Literal["plain", "study"] = "plain"
    training: bool = False

    DATA: ClassVar[Mapping[str, str]] = {
        "sentiment": "reviews",
        "claims": "claims_eval",
        "misconceptions": "misconceptions",
    }
    FACTORS: ClassVar[Mapping[str, str]] = {
        "sentiment": "kind",
        "claims": "truth",
        "misconceptions": "letter",
        "organism": "truth",
    }

    def __post_init__(self) -> None:
        require_positive(limit=self.limit)
        if self.kind == "organism" and (self.data is not None or self.limit is not None):
            raise ValueError('kind = "organism" asks all held-out claims: leave data and limit out.')
        if self.training and (self.kind != "claims" or self.data is not None):
            raise ValueError(
                'training = true asks the claims of [pairs]: give kind = "claims", and leave data out.'
            )
        if self.wording != "plain" and self.kind not in ("claims", "misconceptions"):
            raise ValueError(
                f'wording = "{self.wording}" is for kind = "claims" or "misconceptions": leave it out.'
            )

    @property
    def factor(self) -> str:
        """The factor that tells the kinds of questions apart."""
        return self.FACTORS[self.kind]


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """[sweep]: the cells in which the questions are asked.

    Attributes:
        multipliers: on both sides of zero; doses where the vectors' unit is "dose".
        measure: "choice" scores the two answers; "generate" lets the model write and reads the answer from
            its words, which costs more and may find none. Then there are no logits, hence no shift.
        max_new_tokens: length of the texts of "generate".
        temperature, top_p, repetition_penalty: how texts of "generate" are sampled; greedily by default.
        draws: how many texts are sampled per question and condition.
        layers: "all" captured ones, or a list, in which [17, 31] are steered together.
        operations: "add", "project_out".
        positions: steered tokens.
        choices: "likeliest" counts the more probable choice, "sampled" draws one with the model's own
            probabilities (`sampled_choices`), which shows biases too soft to tip the scale.
        controls: how many random directions of the same length. With fewer than 19 controls of all three
            kinds no p value can be below .05.
        shuffled: how many vectors of the same pairs with the sides of half of them exchanged.
        orthogonal: how many random directions at right angles to the vector.
        control_layers: "all" layers and multipliers of the sweep, or the "chosen" layer with the chosen
            operation, at the chosen multiplier and its opposite, which costs less.
        score: by which layer and multiplier are chosen on half of the questions; see `choose`. By default
            "shift", and "accuracy" for "generate". Where too few answers can be read for any "d_prime",
            "accuracy" chooses, and the report says so.
    """

    multipliers: tuple[float, ...]
    measure: Literal["choice", "generate"] = "choice"
    max_new_tokens: int = 30
    temperature: float = 0.0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    draws: int = 1
    layers: Layers = "all"
    operations: tuple[Operation, ...] = ("add",)
    positions: str = "all_tokens()"
    choices: Literal["likeliest", "sampled"] = "likeliest"
    controls: int = 20
    shuffled: int = 0
    orthogonal: int = 0
    control_layers: Literal["all", "chosen"] = "chosen"
    score: Literal["accuracy", "d_prime", "shift", "flipped"] | None = None

    def __post_init__(self) -> None:
        parse_positions(self.positions)
        require_positive(max_new_tokens=self.max_new_tokens, draws=self.draws)
        if not self.is_written and sampling_of(self) != SAMPLING:
            raise ValueError(
                "temperature, top_p, repetition_penalty and draws are of texts, which measure = 'choice' "
                "does not write: leave them out, or use measure = 'generate'."
            )
        Decoding(self.max_new_tokens, **sampling_of(self))
        if self.score is None:
            object.__setattr__(self, "score", "accuracy" if self.is_written else "shift")
        if self.is_written and self.score == "shift":
            raise ValueError(
                "score = 'shift' is the change of a logit difference, which measure = 'generate' does not "
                "have: use 'accuracy' or 'd_prime', or measure = 'choice'."
            )
        if not self.multipliers or 0 in self.multipliers:
            raise ValueError(
                "multipliers: give at least one, none of them 0 (the unsteered cell is always there)."
            )
        if self.is_written and self.choices == "sampled":
            raise ValueError(
                "choices = 'sampled' draws with the probabilities of scored answers, which measure = "
                "'generate' does not have."
            )
        for name in ("controls", "shuffled", "orthogonal"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} = {getattr(self, name)}: give 0 or more.")
        if not self.layers or not self.operations:
            raise ValueError("layers and operations must not be empty.")
        require_different(multipliers=self.multipliers, operations=self.operations)

    @property
    def is_written(self) -> bool:
        """Whether answers are read from texts."""
        return self.measure == "generate"


@dataclass(frozen=True, kw_only=True)
class Damage:
    """[damage]: what steering at the chosen layer costs on text that has nothing to do with the behaviour.

    Attributes:
        data: "neutral", a CSV with a column passage, or "organism": true claims of its language.
        passages: so many, drawn with the experiment's seed; 0 for no such measure.
        max_tokens: of each passage.
        positions: steered tokens; by default every one, whatever [sweep] steers, since that is the most that
            a vector can do.
        controls: random directions of the same length beside it. No p value is computed of damage, so that a
            few are enough.
    """

    data: str = "neutral"
    passages: int = 24
    max_tokens: int = 48
    positions: str = "all_tokens()"
    controls: int = 2

    def __post_init__(self) -> None:
        if not parse_positions(self.positions).generated:
            raise ValueError(
                f"positions = {self.positions!r} leaves generated tokens alone, and passages are read as if "
                "the model were writing them: use all_tokens(), current_token() or generated_tokens()."
            )
        if self.max_tokens < 2:
            raise ValueError(
                f"max_tokens = {self.max_tokens}: give 2 or more, the first predicts the second."
            )
        for name in ("passages", "controls"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} = {getattr(self, name)}: give 0 or more.")


@dataclass(frozen=True, kw_only=True)
class Text:
    """[text]: open prompts that the model answers, unsteered and steered.

    Attributes:
        prompts: what is said to the model; or
        data: "dilemmas", or a CSV with a column dilemma.
        limit: so many of `data`.
        chat: put each prompt in the model's chat format.
        layers: "chosen" by the sweep, so many best ones of it, or a list, in which [17, 31] are steered
            together.
        multipliers: any but 0; the report shows their texts beside each other, from lowest to highest.
        operations: "add", "project_out".
        positions: steered tokens; by default those of [sweep], else all.
        max_new_tokens: length of each text.
        temperature, top_p, repetition_penalty: how texts are sampled; greedily by default.
        draws: how many texts are sampled per prompt and condition.
    """

    prompts: tuple[str, ...] = ()
    data: str | None = None
    limit: int | None = None
    chat: bool = True
    layers: Literal["chosen"] | int | tuple[int | tuple[int, ...], ...] = "chosen"
    multipliers: tuple[float, ...] = (-0.3, 0.3)
    operations: tuple[Operation, ...] = ("add",)
    positions: str | None = None
    max_new_tokens: int = 30
    temperature: float = 0.0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    draws: int = 1

    def __post_init__(self) -> None:
        require_positive(limit=self.limit, max_new_tokens=self.max_new_tokens, draws=self.draws)
        Decoding(self.max_new_tokens, **sampling_of(self))
        if bool(self.prompts) == (self.data is not None):
            raise ValueError('give either prompts = ["…"] or data = "dilemmas".')
        if any(not prompt.strip() for prompt in self.prompts):
            raise ValueError("prompts: one of them is empty.")
        if not self.multipliers or 0 in self.multipliers or not self.operations:
            raise ValueError(
                f"multipliers = {list(self.multipliers)}, operations = {list(self.operations)}: give one or "
                "more of each, no multiplier of 0 (the unsteered text is always there)."
            )
        require_different(multipliers=self.multipliers, operations=self.operations)
        if self.positions is not None:
            parse_positions(self.positions)
        if isinstance(self.layers, int):
            require_positive(layers=self.layers)
        if self.layers == ():
            raise ValueError('layers must not be empty; without a list, it is "chosen".')


def sampling_of(table: Sweep | Text) -> dict[str, float]:
    """How [sweep] or [text] samples texts, as arguments of `sweep`."""
    return {name: getattr(table, name) for name in SAMPLING}
