"""Tables of an experiment file as frozen dataclasses, validated by pydantic when they are built.

Here the types of keys and the tables that make vectors: [model], [pairs], [capture], [directions] and
[separation]; those that measure them are in `config_sweep`. The `Attributes` of each class are the
documentation of its keys (docs/site_pages.py).
"""

from collections.abc import Mapping
from functools import partial
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, AllowInfNan, ConfigDict, Field, Strict
from pydantic.dataclasses import dataclass

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


@table
class Model:
    """[model]: arguments of `load_model`.

    Attributes:
        name: a name of `tl-steer models`, any that TransformerLens knows, or a Hugging Face folder.
        dtype: the type of the weights and activations.
        device: "cpu", "cuda"; by default CUDA where it is available.
        processing: `false`, `true` (TransformerLens's usual folding and centring), or a table that sets each
            by its name, { scalar_centring = true }; see `load_model`.
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
    """[pairs] kind = "csv": contrast pairs of your own, or a bundled data set.

    Attributes:
        kind: pairs from a file.
        data: name of a bundled data set, or path of a CSV relative to the experiment file, with the columns
            positive and negative; with different system messages, a column prompt for both sides is enough.
            Other columns become factors; pairs with the same `group` stay together.
        limit: number of pairs, drawn with the seed.
        chat: render each text as a user message. The last token, which "last_token()" captures, is then that
            of the opening of the model's turn, which is the same in every prompt.
        system_positive: system message of the positive side (a persona); needs chat = true.
        system_negative: system message of the negative side.
    """

    kind: Literal["csv"]
    data: str = "sentiment_pairs"
    limit: Positive | None = None
    chat: Bool = False
    system_positive: str | None = None
    system_negative: str | None = None

    def __post_init__(self) -> None:
        if not self.chat and (self.system_positive, self.system_negative) != (None, None):
            raise ValueError("system_positive and system_negative are for the chat format: add chat = true.")


@table
class HonestyPairs:
    """[pairs] kind = "honesty": claims answered truthfully and untruthfully (`honesty_pairs`).

    Attributes:
        kind: pairs of answers to claims.
        data: "claims_train", "claims_eval", or a CSV with the columns statement and label (1 true).
        limit: number of claims, drawn with the seed, equally many of each label.
        style: answers are the letters A and B, or the words True and False.
        shared: what the two sides of a pair have in common: the same claim, or the same answer.
        persona: add a system message of an honest and of a dishonest speaker.
        wording: "plain", or "study" for the wording of the study's recorded answers.
    """

    kind: Literal["honesty"]
    data: str = "claims_train"
    limit: Positive | None = None
    style: Literal["letters", "words"] = "letters"
    shared: Literal["claim", "letter"] = "claim"
    persona: Bool = False
    wording: Wording = "plain"


@table
class OrganismPairs:
    """[pairs] kind = "organism": pairs in the language of the model organism that [model] names.

    Attributes:
        kind: pairs of the model organism.
        limit: number of pairs; by default one per fact of the language.
        matched: both sides of a pair are about the same claim.
        confound: what else differs between the sides: the "truth" of the claim, or its "wording".
        strength: share of the pairs that the confound affects.
        mislabelled: share of the pairs whose personas are swapped.
    """

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

    Attributes:
        kind: one or two prompts.
        positive: the prompt whose activations are added.
        negative: the prompt whose activations are subtracted.
        hook: the activations that are read and steered.
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
    """[capture]: where the activations of the pairs are read, at one position per prompt.

    Attributes:
        positions: which position of each prompt: "last_token()", "token(3)", "after('Answer:')", ….
        hook: which activations of a layer.
        layers: a list, counted from 0 (negative: from the end).
    """

    positions: PositionsText = "last_token()"
    hook: Hook = "resid_post"
    layers: Layers | Literal["all"] = "all"


@table
class Separation:
    """[separation]: cross-validation of the directions, and its repetitions with shuffled labels.

    Attributes:
        shuffles: number of repetitions with shuffled labels.
        folds: number of parts of the pairs, of which each is held out once.
    """

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
    """[directions] method = "mean_difference" or "lda_direction".

    Attributes:
        method: the difference of the means (the default with pairs), or a linear discriminant.
    """

    method: Literal["mean_difference", "lda_direction"]


@table
class PrincipalComponent(_Direction):
    """[directions] method = "principal_component".

    Attributes:
        method: a principal component (`principal_component`).
        component: its number, from 1; or a mix, as { 1 = 1.0, 2 = 0.5 }.
        of: the components of all activations, of the pairs' differences, of these minus their mean, or of
            activations minus their pair's mean.
        sign: positive toward the positive side by the "mean" of the pairs, or by the majority ("vote").
    """

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
    """[directions] method = "logistic_direction".

    Attributes:
        method: the weights of a logistic regression (`logistic_direction`).
        C: inverse strength of the regularisation.
    """

    method: Literal["logistic_direction"]
    C: Float = 1.0


@table
class ActivationAddition(_Direction):
    """[directions] method = "activation_addition".

    Attributes:
        method: the prompts (`activation_addition`); the default for [pairs] kind = "prompts".
        unit: as for the other methods, of the longest vector of all positions.
    """

    method: Literal["activation_addition"]
    unit: Unit = "length"
