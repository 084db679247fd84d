"""The tables of an experiment file that say what a steered model is asked."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from ..positions import parse_positions
from .vector_tables import require_positive

Layers = tuple[int | tuple[int, ...], ...] | Literal["all"]


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
        require_positive(limit=self.limit)

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
        control_layers: "all" layers and multipliers of the sweep, or the "chosen" layer with the chosen
            operation, at the chosen multiplier and its opposite, which costs less.
        score: by which layer and multiplier are chosen on half of the questions; see `choose`.
    """

    multipliers: tuple[float, ...]
    layers: Layers = "all"
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
        for name in ("multipliers", "operations"):
            given = getattr(self, name)
            if len(set(given)) < len(given):
                raise ValueError(f"{name} = {list(given)}: give each once.")


@dataclass(frozen=True, kw_only=True)
class Text:
    """[text]: open prompts that the model answers, with the vector added.

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
        require_positive(limit=self.limit, max_new_tokens=self.max_new_tokens)
        if bool(self.prompts) == (self.data is not None):
            raise ValueError('give either prompts = ["…"] or data = "dilemmas".')
        if any(not prompt.strip() for prompt in self.prompts):
            raise ValueError("prompts: one of them is empty.")
        if len(self.multipliers) != 2 or not self.multipliers[0] < 0 < self.multipliers[1]:
            raise ValueError(
                f"multipliers = {list(self.multipliers)}: give two, below and above zero, as [-0.3, 0.3]."
            )
        if isinstance(self.layers, int):
            require_positive(layers=self.layers)
        if self.layers == ():
            raise ValueError('layers must not be empty; without a list, it is "chosen".')
