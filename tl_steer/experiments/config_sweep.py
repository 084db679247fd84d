"""Tables of an experiment file that measure the vectors: [questions], [sweep], [damage] and [text]."""

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from .._generation import Decoding
from ..positions import parse_positions
from .config import (
    Bool,
    Count,
    Float,
    LayerSets,
    Multipliers,
    Operations,
    PositionsText,
    Positive,
    TwoOrMore,
    Wording,
    table,
)

SAMPLING = ("temperature", "top_p", "repetition_penalty", "draws")  # arguments of `sweep` for generated text


@table
class Questions:
    """[questions]: two-choice questions with known answers, scored under every condition of the sweep.

    Attributes:
        kind: "csv" asks questions of your own; "sentiment" whether reviews are positive; "claims" whether
            claims are true; "misconceptions" questions that many answer wrongly; "organism" all held-out
            claims of a model organism's language.
        data: name of a bundled data set, or path of a file relative to the experiment file; by default the
            bundled reviews, claims_eval or misconceptions. For "csv" a file with the columns prompt, choice_0
            (the signal), choice_1, and answer (0 or 1: the right choice, or its text). Choices are appended
            to the prompt exactly as written: begin them with a space if the prompt ends in a word. Other
            columns become factors; questions with the same `group` count as one.
        limit: number of questions, drawn with the seed, equally many of each right answer.
        wording: "plain", or "study" for the wording of the study's recorded answers; for "claims" and
            "misconceptions".
        training: ask the claims of [pairs]: the report labels their effects as in-sample, and the table has a
            factor `claims` that is "training". Without it, claims that are also in [pairs] are an error.
        chat: for "csv", render the prompt as a user message; each choice then begins the model's turn.
            "claims" and "misconceptions" always are in the chat format, "sentiment" never is.
        factor: for "csv", the column by which effects are reported; by default the first other column with 2
            to 5 values, which may be the added `right_choice`, the text of the right choice; else "answer".
    """

    kind: Literal["csv", "sentiment", "claims", "misconceptions", "organism"]
    data: str | None = None
    limit: Positive | None = None
    wording: Wording = "plain"
    training: Bool = False
    chat: Bool = False
    factor: str | None = None

    DATA: ClassVar[Mapping[str, str]] = {
        "sentiment": "reviews", "claims": "claims_eval", "misconceptions": "misconceptions",
    }  # fmt: skip
    FACTORS: ClassVar[Mapping[str, str]] = {
        "sentiment": "kind", "claims": "truth", "misconceptions": "letter", "organism": "truth",
    }  # fmt: skip
    NOUNS: ClassVar[Mapping[str, str]] = {"sentiment": "reviews", "claims": "claims", "organism": "claims"}

    def __post_init__(self) -> None:
        if self.kind == "organism" and (self.data is not None or self.limit is not None):
            raise ValueError('kind = "organism" asks all held-out claims: leave data and limit out.')
        if self.training and (self.kind != "claims" or self.data is not None):
            raise ValueError('training = true asks the claims of [pairs]: use kind = "claims" without data.')
        if self.wording != "plain" and self.kind not in ("claims", "misconceptions"):
            raise ValueError(f'wording = "{self.wording}" is for kind = "claims" or "misconceptions".')
        if self.kind == "csv":
            if self.data is None:
                raise ValueError('kind = "csv" needs data, the path of a CSV file with your questions.')
        elif self.chat or self.factor is not None:
            raise ValueError(f'chat and factor are for kind = "csv", not "{self.kind}": leave them out.')
        else:
            object.__setattr__(self, "factor", self.FACTORS[self.kind])

    @property
    def noun(self) -> str:
        """What the questions are about, in the plural: "reviews", "claims" or "questions"."""
        return self.NOUNS.get(self.kind, "questions")


@table
class _Sampling:
    """Keys of [sweep] and [text].

    Attributes:
        max_new_tokens: the largest number of tokens to generate.
        temperature: of sampling; 0 decodes greedily.
        top_p: sample from the most probable tokens with this total probability.
        repetition_penalty: divides the logits of tokens that are in the text already; 1 changes nothing.
        draws: number of texts per prompt and condition.
        operations: "add" adds multiples of the vector, "project_out" removes its direction.
    """

    max_new_tokens: Positive = 30
    temperature: Float = 0.0
    top_p: Float = 1.0
    repetition_penalty: Float = 1.0
    draws: Positive = 1
    operations: Operations = ("add",)

    def __post_init__(self) -> None:
        Decoding(self.max_new_tokens, **self.sampling)

    @property
    def sampling(self) -> dict[str, float]:
        """The sampling arguments of `sweep`."""
        return {name: getattr(self, name) for name in SAMPLING}


@table
class Sweep(_Sampling):
    """[sweep]: the conditions under which the questions are scored.

    Attributes:
        multipliers: factors of the vector, on both sides of zero; doses where [directions] unit is "dose".
        measure: "choice" scores the two answers; "generate" reads the answer from generated text, without
            logits, hence without a shift. The sampling keys are for "generate".
        layers: the layers that are steered, one at a time; [17, 31] in the list steers both together.
        positions: the steered positions: "all_tokens()", "last_token()", "current_token()", ….
        choices: "likeliest" counts the more probable choice, "sampled" draws one with its probability
            (`sampled_choices`), which shows biases that flip no likeliest choice.
        controls: number of random directions of the same length. With fewer than 19 controls in all no p
            value can reach .05.
        shuffled: number of control vectors of the same pairs with the sides of half of them swapped.
        orthogonal: number of random directions of the same length that are orthogonal to the vector.
        control_layers: "all" layers and multipliers of the sweep, or the "chosen" layer and operation, at the
            chosen multiplier and its opposite.
        score: by which layer and multiplier are chosen on half of the questions (`choose`); by default
            "shift", and "accuracy" for "generate". Without any "d_prime", "accuracy" chooses.
    """

    multipliers: Multipliers
    measure: Literal["choice", "generate"] = "choice"
    layers: LayerSets | Literal["all"] = "all"
    positions: PositionsText = "all_tokens()"
    choices: Literal["likeliest", "sampled"] = "likeliest"
    controls: Count = 20
    shuffled: Count = 0
    orthogonal: Count = 0
    control_layers: Literal["all", "chosen"] = "chosen"
    score: Literal["accuracy", "d_prime", "shift", "flipped"] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.is_generated and any(getattr(Decoding, name) != self.sampling[name] for name in SAMPLING):
            raise ValueError(f"{', '.join(SAMPLING)} are for generated text: use measure = 'generate'.")
        if self.score is None:
            object.__setattr__(self, "score", "accuracy" if self.is_generated else "shift")
        if self.is_generated and self.score == "shift":
            raise ValueError("score = 'shift' needs logits: use 'accuracy', or measure = 'choice'.")
        if self.is_generated and self.choices == "sampled":
            raise ValueError("choices = 'sampled' needs probabilities: use measure = 'choice'.")

    @property
    def is_generated(self) -> bool:
        """Whether answers are read from generated text."""
        return self.measure == "generate"


@table
class Damage:
    """[damage]: the effect of steering at the chosen layer on unrelated text.

    Attributes:
        data: "neutral", a CSV with a column passage, or "organism": true claims of its language.
        passages: number of passages; 0 skips the measurement.
        max_tokens: the largest number of tokens that are read per passage.
        positions: by default all, whatever [sweep] steers: the upper bound of the damage.
        controls: number of random directions. No p value is computed, so few are enough.
    """

    data: str = "neutral"
    passages: Count = 24
    max_tokens: TwoOrMore = 48
    positions: PositionsText = "all_tokens()"
    controls: Count = 2

    def __post_init__(self) -> None:
        if not parse_positions(self.positions).generated:
            raise ValueError(
                f"positions = {self.positions!r} leaves generated tokens unsteered, which passages are read "
                "as: use all_tokens(), current_token() or generated_tokens()."
            )


@table
class Text(_Sampling):
    """[text]: open prompts that the model answers, unsteered and steered.

    Attributes:
        prompts: the prompts, as a list.
        data: instead of `prompts`, the bundled "dilemmas", or the path of a CSV with a column prompt, or of a
            .txt file with one prompt per line.
        limit: number of prompts from `data`, drawn with the seed.
        chat: render each prompt as a user message.
        layers: "chosen" by the sweep, a number of its best layers, or a list.
        multipliers: factors of the vector. Open answers usually need more than choices do.
        positions: by default those of [sweep], else all.
    """

    prompts: tuple[Annotated[str, Field(pattern=r"\S")], ...] = ()
    data: str | None = None
    limit: Positive | None = None
    chat: Bool = True
    layers: Literal["chosen"] | Positive | LayerSets = "chosen"
    multipliers: Multipliers = (-0.3, 0.3)
    positions: PositionsText | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if bool(self.prompts) == (self.data is not None):
            raise ValueError('give either prompts = ["…"] or data = "dilemmas".')
