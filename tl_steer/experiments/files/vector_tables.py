"""The tables of an experiment file that say which model, and what its vectors are made of."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from ...models import EMBEDDED, HOOKS
from ...models.processing import PROCESSING
from ...positions import parse_positions

Layers = tuple[int, ...] | Literal["all"]


@dataclass(frozen=True, kw_only=True)
class Model:
    """[model]: what `load_model` is given.

    Attributes:
        name: a name of `tl-steer models`, or a local folder.
        dtype: of the weights.
        device: "cpu", "cuda"; by default CUDA where there is one.
        processing: `false` leaves the weights as they are, `true` is TransformerLens's usual folding and
            centring, a table sets each by its name: { scalar_centring = true }.
        template_variables: values for the model's chat template, { enable_thinking = false }; see
            `chat_format`. If the template writes the current date, a run sets `strftime_now` to its start.
    """

    name: str = EMBEDDED
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    device: str | None = None
    processing: bool | Mapping[str, bool] = False
    template_variables: Mapping[str, bool | int | float | str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        unknown = [] if isinstance(self.processing, bool) else sorted(set(self.processing) - set(PROCESSING))
        if unknown:
            raise ValueError(f"processing: {unknown} is unknown: expected any of {', '.join(PROCESSING)}.")


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
        require_positive(limit=self.limit)


@dataclass(frozen=True, kw_only=True)
class HonestyPairs:
    """[pairs] kind = "honesty": `honesty_pairs` of claims.

    Attributes:
        data, limit: as for CSV pairs; the limit counts claims and takes as many of each label.
        style, shared, persona, wording: see `honesty_pairs`.
    """

    kind: Literal["honesty"]
    data: str = "claims_train"
    limit: int | None = None
    style: Literal["letters", "words"] = "letters"
    shared: Literal["claim", "letter"] = "claim"
    persona: bool = False
    wording: Literal["plain", "study"] = "plain"

    def __post_init__(self) -> None:
        require_positive(limit=self.limit)


@dataclass(frozen=True, kw_only=True)
class OrganismPairs:
    """[pairs] kind = "organism": `organism_pairs` of the organism that [model] names.

    Attributes:
        limit, matched, confound, strength, mislabelled: see `organism_pairs`.
    """

    kind: Literal["organism"]
    limit: int | None = None
    matched: bool = True
    confound: Literal["truth", "wording"] | None = None
    strength: float = 1.0
    mislabelled: float = 0.0

    def __post_init__(self) -> None:
        require_positive(limit=self.limit)


@dataclass(frozen=True, kw_only=True)
class PromptPair:
    """[pairs] kind = "prompts": one word or phrase, or one against another, for `activation_addition`.

    There is one vector for each of the first tokens, and nothing to cross-validate: such a run has no audit,
    no activations and none of the sections about pairs.

    Attributes:
        positive, negative: the prompts; the shorter is padded with spaces. Without `negative` nothing is
            subtracted. Either may be empty, not both.
        hook: short hook name, by default each block's input.
    """

    kind: Literal["prompts"]
    positive: str
    negative: str | None = None
    hook: str = "resid_pre"

    def __post_init__(self) -> None:
        _require_hook(self.hook)
        if not (self.positive or self.negative):
            raise ValueError("positive is empty, and negative too or not given: there is nothing to add.")


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
        _require_hook(self.hook)


@dataclass(frozen=True, kw_only=True)
class Separation:
    """[separation]: cross-validation of the directions, and repetitions of it under exchanged labels."""

    shuffles: int = 100
    folds: int = 5

    def __post_init__(self) -> None:
        if self.shuffles < 0 or self.folds < 2:
            raise ValueError(
                f"shuffles = {self.shuffles}, folds = {self.folds}: give 0 or more, and 2 or more."
            )


def require_positive(**numbers: Any) -> None:
    """Refuse numbers below 1, named as the file's keys are; `None` is none.

    Raises:
        ValueError: names the key.
    """
    for name, number in numbers.items():
        if number is not None and number < 1:
            raise ValueError(f"{name} = {number}: give 1 or more.")


def require_different(**lists: Sequence[Any]) -> None:
    """Refuse lists that hold something twice.

    Raises:
        ValueError: names the key.
    """
    for name, given in lists.items():
        if len(set(given)) < len(given):
            raise ValueError(f"{name} = {list(given)}: give each once.")


def _require_hook(hook: str) -> None:
    if hook not in HOOKS:
        raise ValueError(f"hook = {hook!r} is unknown; use one of {', '.join(HOOKS)}.")
