"""The table [directions] of an experiment file: how vectors are made, how long they are, and their weights.

Every method has two keys beside its own:
unit: what multiplier 1 stands for. "dose": each vector is as long as the stream at its layer; "one": it has
    length 1, so that multipliers are lengths, as the study's are; "length": as the estimator gives it.
weights: {17 = 1.0, 31 = -0.5} steers with these layers' vectors alone, each times its weight, which comes
    after the unit. The vectors that are kept and looked at have no weights.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Unit = Literal["dose", "one", "length"]
Weights = Mapping[int, float]


class _Weighted:
    weights: Weights | None

    def __post_init__(self) -> None:
        require_weights(weights=self.weights)


@dataclass(frozen=True, kw_only=True)
class MeanDifference(_Weighted):
    """[directions] method = "mean_difference"."""

    method: Literal["mean_difference"]
    unit: Unit = "dose"
    weights: Weights | None = None


@dataclass(frozen=True, kw_only=True)
class PrincipalComponent(_Weighted):
    """[directions] method = "principal_component".

    Attributes:
        component: 1 for the first, or a mix of several, as {1 = 1.0, 2 = 0.5}.
        of, sign: see the estimator. The study's are "centred_differences", component 2, and "vote".
    """

    method: Literal["principal_component"]
    unit: Unit = "dose"
    weights: Weights | None = None
    component: int | Weights = 1
    of: Literal["pooled", "differences", "centred_differences", "pair_centred"] = "pooled"
    sign: Literal["mean", "vote"] = "mean"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.component, int):
            require_weights(component=self.component)

    @property
    def components(self) -> tuple[int, ...]:
        """Which components there must be."""
        return (self.component,) if isinstance(self.component, int) else tuple(self.component)


@dataclass(frozen=True, kw_only=True)
class LogisticDirection(_Weighted):
    """[directions] method = "logistic_direction", with the estimator's option."""

    method: Literal["logistic_direction"]
    unit: Unit = "dose"
    weights: Weights | None = None
    C: float = 1.0


@dataclass(frozen=True, kw_only=True)
class LdaDirection(_Weighted):
    """[directions] method = "lda_direction"."""

    method: Literal["lda_direction"]
    unit: Unit = "dose"
    weights: Weights | None = None


@dataclass(frozen=True, kw_only=True)
class ActivationAddition(_Weighted):
    """[directions] method = "activation_addition", which goes with [pairs] kind = "prompts".

    Of its vectors, one a position, the longest is the one that a unit speaks of.
    """

    method: Literal["activation_addition"]
    unit: Unit = "length"
    weights: Weights | None = None


Directions = MeanDifference | PrincipalComponent | LogisticDirection | LdaDirection | ActivationAddition


def require_weights(**tables: Weights | None) -> None:
    """Refuse weights of nothing, and weights of 0; `None` is none.

    Raises:
        ValueError: names the key.
    """
    for name, weights in tables.items():
        if weights is not None and (not weights or 0 in weights.values()):
            raise ValueError(f"{name} = {dict(weights)}: give one or more, none of them 0 (leave those out).")
