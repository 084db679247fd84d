"""Control vectors: as long as the vector under study, without what it is thought to mean."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from .._util.seeds import derived_seed
from .._util.validation import checked
from ..activations import PairedActivations
from ..prompts.pairs import group_numbers
from .estimators import Estimator, apply_estimator, mean_difference, random_like
from .vectors import SteeringVectors

FEWEST = 4  # groups, of which a half is exchanged in more than one way


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
        estimator: what made the vectors under study; shuffled ones are made by it too.
        vectors: those under study, such as scaled ones; by default what `estimator` makes of the pairs.
        random: how many drawn uniformly from the sphere: one direction for all layers, so that layers that
            are steered together add up.
        shuffled: how many estimated from the pairs with the sides of half of the groups exchanged. Exactly
            half (of an odd number, one is left out), so that what the labels say cancels: a coin for each
            would leave some of it, and the length that is then given back would make the vector of it again.
        orthogonal: how many random ones without, at each layer, their component along its vector.
        seed: each control has a stream of its own, from the seed, its kind and its number: the first is the
            same however many are asked for. `info` keeps the stream's seed.

    Returns:
        A control has, layer by layer, the length of the vectors under study.

    Raises:
        ValueError: a negative number; a vector of length zero; an orthogonal one of vectors of one number;
            or, of shuffled ones, fewer than four groups, vectors at a hook or layer that the pairs do not
            have, or an estimator that does not see which side is which: a principal component of exchanged
            pairs is the same one, not a control; one of centred differences is the behaviour itself, whose
            mean becomes variance.

    They answer different questions: random ones, what a push of this length does; shuffled ones, what a
    direction does along which these prompts vary, whatever it means. The stream varies along few directions,
    so shuffled ones often do more. Where several layers are steered at once, random ones agree fully over
    the layers, shuffled ones as an estimate does.

    A p value from shuffled controls is nearly that of a permutation test: exactly half are exchanged, and
    the labels as they are do not count among these exchanges. In simulations 5 % were .13 with 4 groups, .09
    with 6, .07 with 8, and .05 from 20 on (Southworth, Kim & Owen 2009 on balanced permutations).

    `info["cosine_with_vector"]` says how far a shuffled vector lies along the vector, by layer. Where the
    pairs' differences are all exactly alike, nothing is left when half are exchanged, and a random direction
    takes its place.

    In a sweep of several vectors, controls given by name serve all of them (`control_of` is "").
    """
    counts = {"random": random, "shuffled": shuffled, "orthogonal": orthogonal}
    if wrong := {kind: count for kind, count in counts.items() if count < 0}:
        raise ValueError(f"{wrong}: give 0 or more of each.")
    studied = apply_estimator(estimator, activations) if vectors is None else vectors
    studied.normalized()  # raises where a length is zero
    if shuffled and studied.values.shape[-1] != (width := activations.positive.values.shape[-1]):
        raise ValueError(
            f"the vectors have {studied.values.shape[-1]} numbers and the activations {width}: give the "
            "pairs they were made of, or shuffled=0."
        )
    if shuffled:
        _require_shuffles(activations, studied, shuffled)

    def made(kind: str, seed: int) -> SteeringVectors:
        if kind == "random":
            return random_like(studied, seed=seed)
        if kind == "orthogonal":
            return _orthogonal(studied, seed)
        return _shuffled(studied, activations, estimator, seed)

    return {
        f"{kind} {number + 1}": made(kind, derived_seed(seed, place, number))
        for place, (kind, count) in enumerate(counts.items())
        for number in range(count)
    }


def coin_flips(factors: pd.DataFrame, rng: np.random.Generator) -> Bool[np.ndarray, " pair"]:
    """Which pairs exchange their sides: whole groups, each by a fair coin.

    Args:
        factors: a row a pair; "group", where there is one, names what is exchanged together.

    Pairs of a group share a claim, and balance what else tells their sides apart (the letter, say).
    """
    group = group_numbers(factors)
    return (rng.random(group.max() + 1) < 0.5)[group]


def _shuffled(
    studied: SteeringVectors, pairs: PairedActivations, estimator: Estimator, seed: int
) -> SteeringVectors:
    rng = np.random.default_rng(seed)
    group = group_numbers(pairs.factors)
    order = rng.permutation(group.max() + 1)
    half = len(order) // 2
    exchanged = np.isin(group, order[:half])
    kept = np.flatnonzero(np.isin(group, order[: 2 * half]))
    made = apply_estimator(
        estimator, pairs.swapped(exchanged.tolist()).subset(kept.tolist()), allow_zero=True
    )
    if made.info.get("arguments", {}).get("of") == "centred_differences":
        raise ValueError(
            f"{made.method} of shuffled labels is not a control: the mean difference, which centring "
            "removes, is variance where half of the sides are exchanged. Give shuffled=0."
        )
    values = made.values[[made.layers.index(layer) for layer in studied.layers]].clone()
    nothing = values.norm(dim=-1) == 0
    values[nothing] = random_like(studied, seed=seed).values[nothing]
    along = torch.nn.functional.cosine_similarity(values.double(), studied.values.double(), dim=-1)
    if bool((along.abs() > 0.9999).all()):
        raise ValueError(
            f"{made.method} does not see which side is which: of exchanged pairs it makes the same vector. "
            "Give shuffled=0, or another estimator for the controls."
        )
    info = {**made.info, "exchanged_pairs": int(exchanged.sum()), "cosine_with_vector": along.tolist()}
    return _as_long(studied, values, f"shuffled {made.method}", seed, info)


def _orthogonal(studied: SteeringVectors, seed: int) -> SteeringVectors:
    if studied.values.shape[-1] < 2:
        raise ValueError("nothing is orthogonal to a vector of one number: give orthogonal=0.")
    drawn, along = random_like(studied, seed=seed).values.double(), studied.values.double()
    square = (along**2).sum(-1, keepdim=True).clamp_min(torch.finfo(torch.float64).tiny)
    rest = drawn - (drawn * along).sum(-1, keepdim=True) / square * along
    return _as_long(studied, rest, "orthogonal_direction", seed, {})


def _as_long(
    studied: SteeringVectors,
    values: Float[Tensor, "layer *pos d_hook"],
    method: str,
    seed: int,
    info: Mapping[str, object],
) -> SteeringVectors:
    values = values.double()
    lengths, wanted = (each.norm(dim=-1, keepdim=True) for each in (values, studied.values.double()))
    return SteeringVectors(
        (values / lengths.clamp_min(torch.finfo(torch.float64).tiny) * wanted).float(),
        studied.layers,
        studied.hook,
        method,
        studied.stream_norm,
        studied.identity,
        {**info, "seed": seed, "length_of": studied.method},
    )


def _require_shuffles(pairs: PairedActivations, studied: SteeringVectors, shuffled: int) -> None:
    groups = len(set(group_numbers(pairs.factors)))
    if groups < FEWEST:
        raise ValueError(
            f"shuffled={shuffled}: {groups} groups of pairs are too few to exchange half of them; give "
            f"{FEWEST} or more, or shuffled=0."
        )
    studied.identity.require(pairs.identity, what="these vectors")
    missing = sorted(set(studied.layers) - set(pairs.layers))
    if studied.hook != pairs.hook or missing or studied.has_positions:
        where = f"{studied.hook} of layers {list(studied.layers)}, shape {tuple(studied.values.shape)}"
        raise ValueError(
            f"shuffled controls are estimated from the pairs, captured at {pairs.hook} of layers "
            f"{list(pairs.layers)}, one vector a layer; the vectors are at {where}: capture there, or give "
            "shuffled=0."
        )
