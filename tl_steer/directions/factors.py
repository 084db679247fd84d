"""Directions of factors that vary among pairs (letter, truth, length), and vectors without them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import compress

import numpy as np
import pandas as pd
import torch
from einops import einsum
from jaxtyping import Float
from pandas.api.types import is_bool_dtype, is_numeric_dtype
from torch import Tensor

from .._util.validation import checked
from ..activations import PairedActivations
from ..prompts.pairs import factors_by_side
from .estimators import estimated, unit
from .vectors import SteeringVectors

MAX_LEVELS = 6  # a text of more levels (a topic, a name) describes pairs rather than sorts them
TOKENS = "tokens"
SMALL = 1e-6  # relative length that single precision cannot distinguish from zero


@dataclass(frozen=True, eq=False)
class FactorContrast:
    """A factor's direction as weights of the activations, `None` where it varies within neither side."""

    name: str  # with the level, where there are three to six: "topic = food"
    contrast: str  # "A − B", or "per unit" of a number
    weights: Float[np.ndarray, "side pair"] | None


@checked
def factor_directions(activations: PairedActivations) -> dict[str, SteeringVectors]:
    """For each factor of the pairs, the direction in which activations vary with it, per layer.

    Args:
        activations: both sides, one position each, with their factors. Those that differ between the
            sides (letter_positive, letter_negative) are one factor (letter); the length of the prompts in
            tokens is one too ("tokens").

    Returns:
        By the factor's name, in units of the residual stream: of two levels the mean of the first (positive,
        true, the larger number, or the first in the alphabet) minus the other's; of three to six one
        direction each against the rest ("topic = food"); of numbers the least-squares slope.
        `info["contrast"]` says which. "group", texts of more than six levels, and factors that vary not at
        all or only between the sides are left out.

    Raises:
        ValueError: at some layer the activations do not vary within either side.

    Differences are taken within a side and averaged over both, so the behaviour, which distinguishes the
    sides, does not contribute. Where one side has one level only, the direction is the other side's. Where
    neither varies (A always positive, B always negative), the factor's direction is the vector itself:
    `confounds` marks such a factor, and other pairs are the only remedy.
    """
    both = np.stack([side.double().numpy() for side in activations.sides()])
    contrasts = [each for each in factor_contrasts(activations) if each.weights is not None]
    centred = both - both.mean(1, keepdims=True)
    spread, length = (np.sqrt((rows**2).sum((0, 1, 3))) for rows in (centred, both))
    layers = list(compress(activations.layers, spread <= np.finfo(np.float32).eps * length))
    if contrasts and layers:
        where = f"{activations.hook} at layers {layers}"
        raise ValueError(f"factor_directions: {where} does not vary within either side. Capture elsewhere.")
    return {
        each.name: estimated(
            activations,
            torch.from_numpy(np.tensordot(each.weights, both, axes=2)),
            f"factor: {each.name}",
            arguments={"factor": each.name},
            contrast=each.contrast,
        )
        for each in contrasts
    }


@checked
def without_factors(
    vectors: SteeringVectors,
    factors: Mapping[str, SteeringVectors] | PairedActivations,
    *,
    names: str | Sequence[str] | None = None,
) -> SteeringVectors:
    """Project the directions of factors out of vectors, per layer.

    Args:
        vectors: one vector per layer.
        factors: the result of `factor_directions`, the pairs to compute it from, or any named vectors.
        names: the factor or factors to remove; all by default.

    Returns:
        Vectors orthogonal to each of these directions. They are shorter: `scaled_to(dose=…)` gives them a
        length to compare with. `info["without"]` has the names.

    Raises:
        ModelMismatchError: directions of another model.
        ValueError: unknown or no names, another hook, a layer without a direction, one vector per position,
            or a vector that lies entirely along the factors.

    Name all at once: directions are not orthogonal to each other, so projecting out a second one afterwards
    brings some of the first back. The directions are estimates: a little of each factor stays.
    """
    directions = factor_directions(factors) if isinstance(factors, PairedActivations) else dict(factors)
    chosen = list(directions) if names is None else [names] if isinstance(names, str) else list(names)
    if unknown := [name for name in chosen if name not in directions]:
        raise ValueError(f"no direction of {unknown}; there are {list(directions)}.")
    if not chosen:
        raise ValueError("no factor to project out: these pairs have none with a direction of its own.")
    for name in chosen:
        _require_alike(vectors, directions[name], name)
    rows = [_without(vectors, layer, [directions[name] for name in chosen]) for layer in vectors.layers]
    return replace(
        vectors,
        values=torch.stack(rows).float(),
        method=f"{vectors.method} without {', '.join(chosen)}",
        info={**vectors.info, "without": [*vectors.info.get("without", []), *chosen]},
    )


def factor_contrasts(activations: PairedActivations) -> list[FactorContrast]:
    """Every factor that varies and can be counted, in the order of the columns, then the prompts' length."""
    factors = list(factors_by_side(activations.factors))
    if TOKENS not in {name for name, *_ in factors}:
        lengths = (side.prompt_lengths.tolist() for side in (activations.positive, activations.negative))
        factors.append((TOKENS, *lengths))
    contrasts = []
    for name, positive, negative in factors:
        codings = list(coded_levels(pd.Series(positive + negative)))
        for level, contrast, numbers in codings:
            full_name = name if len(codings) == 1 else f"{name} = {level}"
            contrasts.append(FactorContrast(full_name, contrast, _slope_weights(numbers.reshape(2, -1))))
    return contrasts


def coded_levels(column: pd.Series) -> Iterator[tuple[str, str, Float[np.ndarray, " row"]]]:
    """A factor as numbers, NaN where it is missing; nothing if it does not vary or has too many levels.

    Yields level, contrast and numbers: of more than two numbers "", "per unit" and the numbers; else a 1 at
    the rows of the level, of two levels for the first, of up to six for each in turn.
    """
    levels = sorted(column.dropna().unique().tolist(), key=_level_order)
    is_numeric = is_numeric_dtype(column) and not is_bool_dtype(column)
    if is_numeric and len(levels) > 2:
        yield "", "per unit", column.to_numpy(float, na_value=np.nan)
    elif 2 <= len(levels) <= MAX_LEVELS:
        for level in levels[:1] if len(levels) == 2 else levels:
            other = levels[1] if len(levels) == 2 else "rest"
            hits = np.where(column.isna(), np.nan, column == level).astype(float)
            yield str(level), f"{level} − {other}", hits


def _level_order(level: object) -> tuple[bool, float, str]:
    """Positive and true before the rest, the larger number before the smaller, else the alphabet."""
    number = -float(level) if isinstance(level, int | float) else 0.0
    return (str(level).lower() not in ("positive", "true"), number, str(level))


def _slope_weights(numbers: Float[np.ndarray, "side pair"]) -> Float[np.ndarray, "side pair"] | None:
    """Weights of the slope within a side (of zeros and ones a difference of means), averaged over sides."""
    slopes = []
    for side in numbers:
        known = ~np.isnan(side)
        centred = np.where(known, side - side[known].mean() if known.any() else 0.0, 0.0)
        slopes.append(centred / square if (square := centred @ centred) > 0 else np.zeros(len(side)))
    varying = sum(bool(side.any()) for side in slopes)
    return np.stack(slopes) / varying if varying else None


def _require_alike(vectors: SteeringVectors, direction: SteeringVectors, name: str) -> None:
    vectors.identity.require(direction.identity, what="these vectors")
    if vectors.hook != direction.hook:
        raise ValueError(f"the vectors are at {vectors.hook}, the direction of {name!r} at {direction.hook}.")
    if vectors.has_positions or vectors.values.shape[1:] != direction.values.shape[1:]:
        shapes = f"{tuple(vectors.values.shape)} and {tuple(direction.values.shape)}"
        raise ValueError(f"vectors and direction of {name!r} of shapes {shapes}: not one per position.")
    if missing := [layer for layer in vectors.layers if layer not in direction.layers]:
        raise ValueError(f"no direction of {name!r} at layers {missing}: capture the pairs there.")


def _without(
    vectors: SteeringVectors, layer: int, directions: list[SteeringVectors]
) -> Float[Tensor, " d_hook"]:
    """The layer's vector minus its projection on the span, in which dependent directions count once."""
    vector = vectors[layer].values.double()
    rows = unit(torch.stack([direction[layer].values.double() for direction in directions]))
    _, lengths, basis = torch.linalg.svd(rows, full_matrices=False)
    basis = basis[lengths > SMALL * lengths[0]]
    coordinates = einsum(basis, vector, "factor d_hook, d_hook -> factor")
    rest = vector - einsum(coordinates, basis, "factor, factor d_hook -> d_hook")
    if rest.norm() <= SMALL * vector.norm():
        raise ValueError(f"nothing is left of the vector at layer {layer}: it lies along these factors.")
    return rest
