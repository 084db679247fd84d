"""The tables of an experiment file that say how vectors are made."""

from dataclasses import dataclass
from typing import Any, Literal

from ..models import EMBEDDED, HOOKS
from ..positions import parse_positions

Layers = tuple[int, ...] | Literal["all"]
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
        require_positive(limit=self.limit)


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
        require_positive(limit=self.limit)


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
