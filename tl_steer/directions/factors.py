"""Directions of what else varies among pairs (letter, truth, length), and a vector without them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from pandas.api.types import is_bool_dtype, is_numeric_dtype
from torch import Tensor

from .._util.validation import checked
from ..activations import PairedActivations
from ..prompts.pairs import factors_by_side
from .provenance import described
from .vectors import SteeringVectors

MOST_LEVELS = 6  # a text of more levels (a topic, a name) describes pairs rather than sorts them
TOKENS = "tokens"
SMALL = 1e-6  # of a length: what single precision cannot tell from nothing


@dataclass(frozen=True, eq=False)
class FactorContrast:
    """How a factor's direction is made of the activations: one weight an activation.

    Attributes:
        name: the factor, of three to six levels with one of them ("topic = food").
        contrast: what is subtracted from what ("A − B"), or "per unit" of a number.
        weights: of both sides' activations; `None` where the factor does not vary within either side, so
            that its direction cannot be told from the vector's.
    """

    name: str
    contrast: str
    weights: Float[np.ndarray, "side pair"] | None


@checked
def factor_directions(activations: PairedActivations) -> dict[str, SteeringVectors]:
    """For each factor of the pairs, the direction in which activations differ along with it, at each layer.

    Args:
        activations: both sides, one position each, with their factors. Those that differ between the
            sides (letter_positive, letter_negative) are one factor (letter); the length of the prompts in
            tokens is one too ("tokens").

    Returns:
        By the factor's name, in the stream's units: of two levels the mean of the first (positive, true, the
        larger number, or the first in the alphabet) minus the other's; of three to six one direction each
        against the rest ("topic = food"); of numbers the least-squares slope. `info["contrast"]` says which.

        "group", texts of more than six levels, factors that do not vary, and those that vary between the
        sides only (see below) are left out.

    Raises:
        ValueError: at some layer the activations do not vary within either side; names the layers.

    Differences are taken within a side, and the mean of both sides is the direction: so the behaviour, which
    tells the sides apart, has no part in it. Nor has a factor that goes with this one on the positive side
    and against it on the other, as a claim's truth does with the letter of its right answer. Where one side
    has one level only, the direction is the other side's. Where neither varies (A always positive, B always
    negative), the factor's direction is the vector itself, and no arithmetic can part them: `confounds` marks
    such a factor, and other pairs are the only remedy.
    """
    both = np.stack([side.double().numpy() for side in activations.sides()])
    contrasts = [each for each in factor_contrasts(activations) if each.weights is not None]
    centred = both - both.mean(1, keepdims=True)
    spread, length = (np.sqrt((rows**2).sum((0, 1, 3))) for rows in (centred, both))
    constant = spread <= np.finfo(np.float32).eps * length
    if contrasts and constant.any():
        layers = [layer for layer, same in zip(activations.layers, constant, strict=True) if same]
        raise ValueError(
            f"factor_directions: {activations.hook} at layers {layers} does not vary within either "
            "side, so factors have no direction. Capture other layers or positions."
        )
    return {each.name: _as_vectors(activations, each, both) for each in contrasts}


@checked
def without_factors(
    vectors: SteeringVectors,
    factors: Mapping[str, SteeringVectors] | PairedActivations,
    *,
    names: str | Sequence[str] | None = None,
) -> SteeringVectors:
    """The vectors with the directions of factors projected out, layer by layer.

    Args:
        vectors: one vector a layer.
        factors: what `factor_directions` makes, or the pairs to make it of; any other named vectors too.
        names: which of them, or which one; all by default.

    Returns:
        What is left, orthogonal to every one of these directions. It is shorter: `scaled_to(dose=…)` gives it
        a length to compare with. `info["without"]` has the names.

    Raises:
        ModelMismatchError: directions of another model.
        ValueError: unknown names or none, another hook, a layer for which there is no direction, one vector a
            position, or a vector of which nothing is left.

    Name all at once: directions are not orthogonal to each other, so projecting out a second one afterwards
    brings some of the first back. What is projected out is an estimate from a few pairs; a little of the
    factor stays, and some of the behaviour goes where the two truly share a direction.
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
    found = []
    for name, *sides in _by_side(activations):
        codings = list(coded_levels(pd.Series(sides[0] + sides[1])))
        for level, contrast, numbers in codings:
            told = name if len(codings) == 1 else f"{name} = {level}"
            found.append(FactorContrast(told, contrast, _weights(numbers.reshape(2, -1))))
    return found


def _by_side(pairs: PairedActivations) -> Iterator[tuple[str, list, list]]:
    known = list(factors_by_side(pairs.factors))
    yield from known
    if TOKENS not in {name for name, *_ in known}:
        yield TOKENS, *(side.prompt_lengths.tolist() for side in (pairs.positive, pairs.negative))


def coded_levels(column: pd.Series) -> Iterator[tuple[str, str, Float[np.ndarray, " row"]]]:
    """A factor as numbers, NaN where it is missing; nothing of one that does not vary or cannot be counted.

    Yields:
        Level, contrast, numbers: of more than two numbers "", "per unit" and themselves; else a 1 where the
        level is, of two levels one, of up to six each in turn.
    """
    levels = sorted(column.dropna().unique().tolist(), key=_first_counted)
    numeric = is_numeric_dtype(column) and not is_bool_dtype(column)
    if numeric and len(levels) > 2:
        yield "", "per unit", column.to_numpy(float, na_value=np.nan)
    elif 2 <= len(levels) <= MOST_LEVELS:
        for level in levels[:1] if len(levels) == 2 else levels:
            other = levels[1] if len(levels) == 2 else "rest"
            hits = np.where(column.isna(), np.nan, column == level).astype(float)
            yield str(level), f"{level} − {other}", hits


def _first_counted(level: object) -> tuple[bool, float, str]:
    """Positive and true before the rest, the larger number before the smaller, else the alphabet."""
    number = -float(level) if isinstance(level, int | float) else 0.0
    return (str(level).lower() not in ("positive", "true"), number, str(level))


def _weights(numbers: Float[np.ndarray, "side pair"]) -> Float[np.ndarray, "side pair"] | None:
    """Those of the slope within a side, which of zeros and ones is a difference of means; mean over sides."""
    slopes = []
    for side in numbers:
        known = ~np.isnan(side)
        centred = np.where(known, side - side[known].mean() if known.any() else 0.0, 0.0)
        slopes.append(centred / square if (square := centred @ centred) > 0 else np.zeros(len(side)))
    varying = sum(bool(side.any()) for side in slopes)
    return np.stack(slopes) / varying if varying else None


def _as_vectors(
    pairs: PairedActivations, factor: FactorContrast, both: Float[np.ndarray, "side pair layer d_hook"]
) -> SteeringVectors:
    values = np.tensordot(factor.weights, both, axes=2)
    info = described(pairs, arguments={"factor": factor.name}, contrast=factor.contrast)
    return SteeringVectors(
        torch.from_numpy(values).float(),
        pairs.layers,
        pairs.hook,
        f"factor: {factor.name}",
        pairs.stream_norm,
        pairs.identity,
        info,
    )


def _require_alike(vectors: SteeringVectors, direction: SteeringVectors, name: str) -> None:
    vectors.identity.require(direction.identity, what="these vectors")
    if vectors.hook != direction.hook:
        raise ValueError(f"the vectors are at {vectors.hook}, the direction of {name!r} at {direction.hook}.")
    if vectors.has_positions or direction.has_positions:
        raise ValueError("these vectors have one a position: projecting out needs one a layer.")
    if (mine := vectors.values.shape[-1]) != (other := direction.values.shape[-1]):
        raise ValueError(f"the vectors have {mine} numbers each, the direction of {name!r} {other}.")
    if missing := [layer for layer in vectors.layers if layer not in direction.layers]:
        raise ValueError(
            f"no direction of {name!r} at layers {missing}: capture the pairs there, or leave these layers "
            "out of the vectors."
        )


def _without(
    vectors: SteeringVectors, layer: int, directions: list[SteeringVectors]
) -> Float[Tensor, " d_hook"]:
    """The layer's vector minus its part in the span, of which dependent directions count once."""
    vector = vectors[layer].values.double()
    rows = torch.stack([direction[layer].values.double() for direction in directions])
    rows = rows / rows.norm(dim=-1, keepdim=True).clamp_min(torch.finfo(rows.dtype).tiny)
    _, lengths, basis = torch.linalg.svd(rows, full_matrices=False)
    basis = basis[lengths > SMALL * lengths[0]]
    left = vector - (vector @ basis.T) @ basis
    if left.norm() <= SMALL * vector.norm():
        raise ValueError(f"nothing is left of the vector at layer {layer}: it lies along these factors.")
    return left
