"""The tables of an experiment file as frozen dataclasses, validated by pydantic when they are built."""

from collections.abc import Mapping
from functools import partial
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, AllowInfNan, ConfigDict, Field, Strict
from pydantic.dataclasses import dataclass

from .._generation import Decoding
from ..models import EMBEDDED, HOOKS
from ..models.weights import PROCESSING
from ..positions import parse_positions

table = partial(dataclass, frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))


def _positions(text: str) -> str:
    parse_positions(text)
    return text


def _distinct(values: tuple[Any, ...]) -> tuple[Any, ...]:
    if len(set(values)) < len(values):
        raise ValueError("expected each once")
    return values


def _without_zero(numbers: Any) -> Any:
    if 0 in (numbers.values() if isinstance(numbers, Mapping) else numbers):
        raise ValueError("expected none of them 0 (unsteered is always there)")
    return numbers


# Strict: true is not 1, and text is not a number. TOML's integers have 64 bits, and its keys are text.
Key = Annotated[int, Field(ge=-(2**63), lt=2**63)]
Int = Annotated[Key, Strict()]
Count = Annotated[int, Strict(), Field(ge=0, lt=2**63)]
Positive = Annotated[int, Strict(), Field(ge=1, lt=2**63)]
TwoOrMore = Annotated[int, Strict(), Field(ge=2, lt=2**63)]
Float = Annotated[float, Strict(), AllowInfNan(False)]
Bool = Annotated[bool, Strict()]
Hook = Literal[tuple(HOOKS)]
PositionsText = Annotated[str, AfterValidator(_positions)]
Layers = Annotated[tuple[Int, ...], Field(min_length=1)]
LayerSets = Annotated[tuple[Int | Layers, ...], Field(min_length=1)]  # [17, 31] in the list: both together
NonZero = AfterValidator(_without_zero)
Distinct = AfterValidator(_distinct)
Multipliers = Annotated[tuple[Float, ...], Field(min_length=1), NonZero, Distinct]
Operations = Annotated[tuple[Literal["add", "project_out"], ...], Field(min_length=1), Distinct]
Weights = Annotated[Mapping[Key, Float], Field(min_length=1), NonZero]
Unit = Literal["dose", "one", "length"]
Wording = Literal["plain", "study"]
SAMPLING = ("temperature", "top_p", "repetition_penalty", "draws")  # arguments of `sweep` for generated text


@table
class Model:
    """[model]: arguments of `load_model`.

    Attributes:
        device: "cpu", "cuda"; by default CUDA where it is available.
        processing: `false`, `true` (TransformerLens's usual folding and centring), or a table that sets each
            by its name: { scalar_centring = true }.
        template_variables: values for the model's chat template, { enable_thinking = false }; see
            `chat_format`. If the template writes the current date, a run sets `strftime_now` to its start.
    """

    name: str = EMBEDDED
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    device: str | None = None
    processing: Bool | Mapping[Literal[tuple(PROCESSING)], Bool] = False
    template_variables: Mapping[str, Bool | Int | Float | str] = Field(default_factory=dict)


@table
class CsvPairs:
    """[pairs] kind = "csv": a bundled data set, or a CSV by its path relative to the experiment file.

    `limit` pairs are drawn with the experiment's seed.
    """

    kind: Literal["csv"]
    data: str = "sentiment_pairs"
    limit: Positive | None = None


@table
class HonestyPairs:
    """[pairs] kind = "honesty": `honesty_pairs` of claims; `limit` counts claims, as many of each label."""

    kind: Literal["honesty"]
    data: str = "claims_train"
    limit: Positive | None = None
    style: Literal["letters", "words"] = "letters"
    shared: Literal["claim", "letter"] = "claim"
    persona: Bool = False
    wording: Wording = "plain"


@table
class OrganismPairs:
    """[pairs] kind = "organism": `organism_pairs` of the model organism that [model] names."""

    kind: Literal["organism"]
    limit: Positive | None = None
    matched: Bool = True
    confound: Literal["truth", "wording"] | None = None
    strength: Float = 1.0
    mislabelled: Float = 0.0


@table
class PromptPair:
    """[pairs] kind = "prompts": one or two prompts for `activation_addition`, one vector per token.

    The shorter one, which may be empty, is padded with spaces; without `negative` nothing is subtracted. Such
    a run has no audit, no activations and no sections about pairs.
    """

    kind: Literal["prompts"]
    positive: str
    negative: str | None = None
    hook: Hook = "resid_pre"

    def __post_init__(self) -> None:
        if not (self.positive or self.negative):
            raise ValueError("positive is empty, and negative is empty or missing: expected a prompt.")


@table
class Capture:
    """[capture]: where the activations of the pairs are read, at one position per prompt."""

    positions: PositionsText = "last_token()"
    hook: Hook = "resid_post"
    layers: Layers | Literal["all"] = "all"


@table
class Separation:
    """[separation]: cross-validation of the directions, and its repetitions with shuffled labels."""

    shuffles: Count = 100
    folds: TwoOrMore = 5


@table
class _Direction:
    """Keys of every [directions] table.

    Attributes:
        unit: length at multiplier 1. "dose": the typical norm of the layer; "one": 1, as in the study;
            "length": the estimator's.
        weights: {17 = 1.0, 31 = -0.5} steers with these layers only, each vector times its weight. Saved
            vectors have no weights.
    """

    unit: Unit = "dose"
    weights: Weights | None = None


@table
class MeanOrLda(_Direction):
    """[directions] method = "mean_difference" or "lda_direction"."""

    method: Literal["mean_difference", "lda_direction"]


@table
class PrincipalComponent(_Direction):
    """[directions] method = "principal_component"; `component` may be a mix, as {1 = 1.0, 2 = 0.5}."""

    method: Literal["principal_component"]
    component: Int | Weights = 1
    of: Literal["pooled", "differences", "centred_differences", "pair_centred"] = "pooled"
    sign: Literal["mean", "vote"] = "mean"

    @property
    def components(self) -> tuple[int, ...]:
        """The components that are used."""
        return (self.component,) if isinstance(self.component, int) else tuple(self.component)


@table
class LogisticDirection(_Direction):
    """[directions] method = "logistic_direction"."""

    method: Literal["logistic_direction"]
    C: Float = 1.0


@table
class ActivationAddition(_Direction):
    """[directions] method = "activation_addition"; its unit refers to the longest vector of all positions."""

    method: Literal["activation_addition"]
    unit: Unit = "length"


@table
class Questions:
    """[questions]: two-choice questions with known answers, scored under every condition of the sweep.

    Attributes:
        kind: "organism" asks all held-out claims of a model organism's language.
        data: name or path; by default the bundled reviews, claims_eval or misconceptions.
        limit: number of questions, equally many of each label.
        training: ask the claims of [pairs]: the report labels their effects as in-sample, and the table has a
            factor `claims` that is "training". Without it, claims that are also in [pairs] are an error.
    """

    kind: Literal["sentiment", "claims", "misconceptions", "organism"]
    data: str | None = None
    limit: Positive | None = None
    wording: Wording = "plain"
    training: Bool = False

    DATA: ClassVar[Mapping[str, str]] = {
        "sentiment": "reviews", "claims": "claims_eval", "misconceptions": "misconceptions",
    }  # fmt: skip
    FACTORS: ClassVar[Mapping[str, str]] = {
        "sentiment": "kind", "claims": "truth", "misconceptions": "letter", "organism": "truth",
    }  # fmt: skip
    NOUNS: ClassVar[Mapping[str, str]] = {"sentiment": "reviews", "claims": "claims", "organism": "claims"}
    SIGNALS: ClassVar[Mapping[str, str]] = {"sentiment": "positive", "claims": "true", "organism": "true"}

    def __post_init__(self) -> None:
        if self.kind == "organism" and (self.data is not None or self.limit is not None):
            raise ValueError('kind = "organism" asks all held-out claims: leave data and limit out.')
        if self.training and (self.kind != "claims" or self.data is not None):
            raise ValueError('training = true asks the claims of [pairs]: use kind = "claims" without data.')
        if self.wording != "plain" and self.kind not in ("claims", "misconceptions"):
            raise ValueError(f'wording = "{self.wording}" is for kind = "claims" or "misconceptions".')

    @property
    def factor(self) -> str:
        """The factor by which effects are reported."""
        return self.FACTORS[self.kind]

    @property
    def noun(self) -> str:
        """What the questions are about, in the plural."""
        return self.NOUNS.get(self.kind, "questions")

    @property
    def signal(self) -> str:
        """What choice 0 says."""
        return self.SIGNALS.get(self.kind, "choice 0")


@table
class _Sampling:
    """Keys of [sweep] and [text]; `draws` texts per prompt and condition, greedy by default."""

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
        multipliers: on both sides of zero; doses where the vectors' unit is "dose".
        measure: "choice" scores the two answers; "generate" reads the answer from generated text, without
            logits, hence without a shift.
        choices: "likeliest" counts the more probable choice, "sampled" draws one with its probability
            (`sampled_choices`), which shows biases that flip no likeliest choice.
        controls, shuffled, orthogonal: number of random directions of the same length, of vectors of the same
            pairs with the sides of half of them swapped, and of random directions orthogonal to the vector.
            With fewer than 19 in all no p value can reach .05.
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
        data: instead of `prompts`, "dilemmas" or a CSV with a column dilemma.
        layers: "chosen" by the sweep, a number of its best layers, or a list.
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
