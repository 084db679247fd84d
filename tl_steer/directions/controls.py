"""Random directions and control vectors: as long as the vector under study, without its meaning."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from .._util.seeds import derived_seed, short_seed
from .._util.validation import checked
from ..activations import PairedActivations
from ..prompts.pairs import group_numbers
from .estimators import Estimator, apply_estimator, estimated, mean_difference, unit
from .vectors import SteeringVectors

Vectors = Float[Tensor, "layer *pos d_hook"]
FEWEST = 4  # groups, so that half of them can be swapped in more than one way


@checked
def random_direction(activations: PairedActivations, *, seed: int) -> SteeringVectors:
    """Directions drawn uniformly from the sphere, one per layer: a baseline.

    Args:
        activations: provide layers, hook and shapes; their values are not used.
        seed: of the draw; recorded in `info`.

    As a control of layers that are steered together use `control_vectors`, which draws one direction for all.
    """
    drawn = _random_units((len(activations.layers), activations.positive.values.shape[-1]), seed)
    return estimated(activations, drawn, "random_direction", seed=int(seed))


def random_like(vectors: SteeringVectors, *, seed: int) -> SteeringVectors:
    """One random direction (one per position) with the lengths, layers and hook of `vectors`: their control.

    It is the same at every layer. Independent directions of k layers that are steered together would add up
    as √k, those of a vector whose layers agree as k: the control would be too weak.
    """
    drawn = _random_units((1, *vectors.values.shape[1:]), seed)
    values = drawn.float() * vectors.values.norm(dim=-1, keepdim=True)
    return _control(vectors, values, "random_direction", seed)


@checked
def control_vectors(
    activations: PairedActivations,
    *,
    estimator: Estimator = mean_difference,
    vectors: SteeringVectors | None = None,
    random: int = 5,
    shuffled: int = 5,
    orthogonal: int = 1,
    seed: int = 0,
) -> dict[str, SteeringVectors]:
    """Controls by name ("random 1", "shuffled 1", "orthogonal 1", …), for `sweep(…, controls=…)`.

    Args:
        activations: both sides, one position each.
        estimator: the estimator of the vectors under study; shuffled controls use it too.
        vectors: the vectors under study, such as scaled ones; by default the estimator's.
        random: number of directions drawn uniformly from the sphere: one for all layers, so that layers that
            are steered together add up.
        shuffled: number of vectors estimated from pairs with shuffled labels: the sides of half of the groups
            are swapped. Exactly half (of an odd number, one is left out), so that the signal cancels: a
            coin flip per group would leave some of it, and scaling to the full length would restore it.
        orthogonal: number of random directions without, at each layer, their component along its vector.
        seed: each control has its own seed (in `info`), which does not depend on how many are drawn.

    Returns:
        A control has, per layer, the length of the vectors under study.

    Raises:
        ValueError: a negative number; a vector of length zero; orthogonal controls of vectors of one number;
            or, of shuffled controls, fewer than four groups, vectors at a hook or layer that the pairs do not
            have, or an estimator that ignores the labels: a principal component of swapped pairs is the
            same one; one of centred differences is the behaviour itself, whose mean becomes variance.

    Random controls show what a push of this length does; shuffled ones, what a direction does along which
    these prompts vary. Activations vary along few directions, so shuffled controls often do more.

    A p value from shuffled controls is nearly that of a permutation test: exactly half are swapped, and the
    true labels are not among these shuffles. In simulations 5 % were .13 with 4 groups, .09 with 6, .07 with
    8, and .05 from 20 on (Southworth, Kim & Owen 2009 on balanced permutations).

    `info["cosine_with_vector"]` is a shuffled vector's cosine with the vector, per layer. Where all pairs
    differ alike, swapping half leaves nothing, and a random direction is used instead. In a sweep of several
    vectors, controls given by name serve all of them (`control_of` is "").
    """
    counts = {"random": random, "shuffled": shuffled, "orthogonal": orthogonal}
    if wrong := {name: count for name, count in counts.items() if count < 0}:
        raise ValueError(f"{wrong}: give 0 or more of each.")
    studied = apply_estimator(estimator, activations) if vectors is None else vectors
    studied.normalized()  # raises where a length is zero
    if shuffled:
        _require_shuffles(activations, studied, shuffled)
    factories = {
        "random": random_like,
        "shuffled": partial(_shuffled, pairs=activations, estimator=estimator),
        "orthogonal": _orthogonal,
    }
    return {
        f"{name} {number + 1}": factories[name](studied, seed=derived_seed(seed, index, number))
        for index, (name, count) in enumerate(counts.items())
        for number in range(count)
    }


def coin_flips(factors: pd.DataFrame, rng: np.random.Generator) -> Bool[np.ndarray, " pair"]:
    """Which pairs to swap: a fair coin flip per group, whose pairs balance the letter and the like."""
    group = group_numbers(factors)
    return (rng.random(group.max() + 1) < 0.5)[group]


def _random_units(shape: Sequence[int], seed: int) -> Float[Tensor, "*batch d_hook"]:
    """Unit vectors, each uniform on the sphere."""
    generator = torch.Generator().manual_seed(short_seed(seed))
    return unit(torch.randn(tuple(shape), generator=generator, dtype=torch.float64))


def _shuffled(
    studied: SteeringVectors, *, pairs: PairedActivations, estimator: Estimator, seed: int
) -> SteeringVectors:
    rng = np.random.default_rng(seed)
    group = group_numbers(pairs.factors)
    order = rng.permutation(group.max() + 1)
    half = len(order) // 2
    swapped = np.isin(group, order[:half])
    rows = np.flatnonzero(np.isin(group, order[: 2 * half]))
    shuffled = pairs.swapped(swapped.tolist()).subset(rows.tolist())
    vectors = apply_estimator(estimator, shuffled, allow_zero=True)
    if vectors.info.get("arguments", {}).get("of") == "centred_differences":
        raise ValueError(
            f"{vectors.method} of shuffled labels is not a control: the mean difference, which centring "
            "removes, is variance where half of the sides are swapped. Give shuffled=0."
        )
    values = vectors.values[[vectors.layers.index(layer) for layer in studied.layers]].clone()
    is_zero = values.norm(dim=-1) == 0
    values[is_zero] = random_like(studied, seed=seed).values[is_zero]
    cosines = torch.nn.functional.cosine_similarity(values.double(), studied.values.double(), dim=-1)
    if bool((cosines.abs() > 0.9999).all()):
        raise ValueError(
            f"{vectors.method} does not see which side is which: of swapped pairs it gives the same vector. "
            "Give shuffled=0, or another estimator for the controls."
        )
    info = {**vectors.info, "exchanged_pairs": int(swapped.sum()), "cosine_with_vector": cosines.tolist()}
    return _control(studied, _rescaled(values, studied), f"shuffled {vectors.method}", seed, **info)


def _orthogonal(studied: SteeringVectors, *, seed: int) -> SteeringVectors:
    if studied.values.shape[-1] < 2:
        raise ValueError("nothing is orthogonal to a vector of one number: give orthogonal=0.")
    drawn, vector = random_like(studied, seed=seed).values.double(), studied.values.double()
    square = (vector**2).sum(-1, keepdim=True).clamp_min(torch.finfo(torch.float64).tiny)
    rest = drawn - (drawn * vector).sum(-1, keepdim=True) / square * vector
    return _control(studied, _rescaled(rest, studied), "orthogonal_direction", seed)


def _rescaled(values: Vectors, studied: SteeringVectors) -> Vectors:
    """The values with the lengths of the vectors under study."""
    return (unit(values.double()) * studied.values.double().norm(dim=-1, keepdim=True)).float()


def _control(
    studied: SteeringVectors, values: Vectors, method: str, seed: int, **info: Any
) -> SteeringVectors:
    info = {**info, "seed": int(seed), "length_of": studied.method}
    return replace(studied, values=values, method=method, info=info)


def _require_shuffles(pairs: PairedActivations, studied: SteeringVectors, shuffled: int) -> None:
    if (groups := len(set(group_numbers(pairs.factors)))) < FEWEST:
        raise ValueError(
            f"shuffled={shuffled}: {groups} groups of pairs are too few to swap half of them; give "
            f"{FEWEST} or more, or shuffled=0."
        )
    studied.identity.require(pairs.identity, what="these vectors")
    is_captured = studied.hook == pairs.hook and set(studied.layers) <= set(pairs.layers)
    if not is_captured or studied.values.shape[1:] != pairs.positive.values.shape[3:]:
        where = f"{studied.hook} of layers {list(studied.layers)}, shape {tuple(studied.values.shape)}"
        raise ValueError(
            f"shuffled controls are estimated from the pairs, captured at {pairs.hook} of layers "
            f"{list(pairs.layers)}, one vector per layer; the vectors are at {where}: capture there, or give "
            "shuffled=0."
        )
