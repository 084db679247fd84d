"""From paired activations to steering vectors: plain functions of one shape, `Estimator`.

`mean_difference` keeps its length, the others return unit vectors. All are oriented so that the positive
side projects higher.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from numbers import Real
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from .._util.seeds import short_seed
from .._util.validation import checked
from ..activations import PairedActivations
from ..errors import NoDirectionError
from .discriminant import Normal, Side, discriminant_normal
from .provenance import described
from .vectors import SteeringVectors

Estimator = Callable[[PairedActivations], SteeringVectors]


def apply_estimator(
    estimator: Estimator, activations: PairedActivations, *, allow_zero: bool = False
) -> SteeringVectors:
    """Apply an estimator to pairs and check the type of its result.

    Args:
        estimator, activations: as for `separation`.
        allow_zero: accept zeros at layers where nothing distinguishes the sides, as shuffled labels may make
            them; otherwise NoDirectionError is raised.

    Raises:
        TypeError: if the estimator does not return SteeringVectors.
    """
    try:
        vectors = estimator(activations)
    except NoDirectionError as error:
        if not allow_zero:
            raise
        vectors = error.vectors
    if not isinstance(vectors, SteeringVectors):
        name = getattr(estimator, "__name__", str(estimator))
        raise TypeError(
            f"{name} returned {type(vectors).__name__}: an estimator must return SteeringVectors."
        )
    return vectors


@checked
def mean_difference(activations: PairedActivations) -> SteeringVectors:
    """Mean of positive minus negative activations, accumulated in float64; its length is kept.

    Args:
        activations: both sides of contrast pairs, one position each; from `capture_pairs`.

    Raises:
        NoDirectionError: at some layer both sides are the same, pair by pair or on average;
            names the layers.

    Source: difference-in-means, e.g. Marks & Tegmark 2023 (arXiv 2310.06824), section 5; Rimsky et al. 2023
    (arXiv 2312.06681), section 3.
    """
    difference, alike = _mean_gap(activations)
    difference[alike] = 0
    return with_direction(_vectors(activations, difference, "mean_difference"))


@checked
def principal_component(
    activations: PairedActivations,
    *,
    component: int | Mapping[int, float] = 1,
    of: Literal["pooled", "differences", "centred_differences", "pair_centred"] = "pooled",
    sign: Literal["mean", "vote"] = "mean",
) -> SteeringVectors:
    """A principal component of the activations, or a weighted sum of several, as a unit vector.

    Args:
        activations: as for `mean_difference`.
        component: 1 for the component of largest variance, 2 for the next, …; or weights of several,
            `{1: 1.0, 2: -0.5}`: each component is oriented, then weighted; the sum is scaled to length 1.
        of: the rows that are decomposed, and what is removed from them:
            "pooled": all activations of both sides, minus their common mean. What pairs share (the topic)
            stays, so the first components may show that instead of the behaviour.
            "differences": positive minus negative of each pair, *nothing* removed. Their mean is the signal:
            if it is large, it is the first component. Zou et al. 2023 (arXiv 2310.01405), section 3.1.
            "centred_differences": the same minus the mean over pairs, so that the behaviour's mean is removed
            as far as it is the same in every pair. The first component is what varies most between pairs
            (the claim, the letter). The study's steering vectors were the *second* of these, or the second
            of "pooled".
            "pair_centred": both sides of each pair minus the pair's own mean, then pooled. These rows are
            ± half the differences, so the components are those of "differences"; repeng's `pca_center`.
        sign: how a component is oriented. "mean": the positive side has the higher mean projection. "vote":
            the positive side projects higher in more than half of the pairs, as in the study; a tie goes by
            the mean.

    Raises:
        ValueError: fewer components exist than asked for (at a layer, which is named, where the rows do not
            vary in as many directions), or a weighted sum without weights other than 0.

    `info["sign"]` is 1 or −1 per layer, −1 where the component with its largest entry positive was flipped; a
    weighted sum has one such list per component. `info["arguments"]` records `component`, `of` and `sign`.
    With negative weights, the positive side may project lower on the sum.
    """
    rows, available = _rows(activations, of)
    weights = dict(component) if isinstance(component, Mapping) else {component: 1.0}
    if not all(isinstance(each, Real) and math.isfinite(each) for each in weights.values()):
        raise ValueError(f"component={component!r:.200}: weights must be finite numbers.")
    if not weights or 0 in weights.values():
        raise ValueError(f"component={weights}: give one component or more, with weights other than 0.")
    if missing := [number for number in weights if not 1 <= number <= available]:
        given = f"{len(activations)} pairs give 1 to {available}"
        raise ValueError(f"component {missing[0]} does not exist: {given}.")
    axes = _axes(rows.transpose(0, 1), max(weights))
    _require_varying(activations, rows, axes, of)
    oriented = {number: _oriented(activations, axes[:, number - 1], sign) for number in weights}
    signs = {str(number): flips for number, (_, flips) in oriented.items()}
    arguments = {"component": {str(number): float(weight) for number, weight in weights.items()}, "of": of}
    arguments["sign"] = sign
    mixed = sum(weight * oriented[number][0] for number, weight in weights.items())
    if not isinstance(component, Mapping):
        arguments["component"] = int(component)
        method = f"principal_component({component}, {of})"
        return _vectors(activations, mixed, method, arguments=arguments, sign=signs[str(component)])
    shown = " ".join(f"{weight:+g}·PC{number}" for number, weight in weights.items())
    method = f"principal_component({shown}, {of})"
    return _vectors(activations, _unit(mixed), method, arguments=arguments, sign=signs)


@checked
def logistic_direction(activations: PairedActivations, *, C: float = 1.0) -> SteeringVectors:
    """Normal of a logistic regression that tells the sides apart, in activation space.

    Args:
        activations: as for `mean_difference`.
        C: inverse strength of the L2 penalty, on standardised activations.

    Raises:
        ValueError: `C` is not between 1e-12 and 1e12.
        NoDirectionError: as for `mean_difference`.

    The regression is fitted on standardised activations; its weights are brought back, so that the direction
    is one of the stream, not of the scaler's space.
    """
    from sklearn.linear_model import LogisticRegression

    if not 1e-12 <= C <= 1e12:  # not so for NaN either
        raise ValueError(f"C={C}: give a number from 1e-12 (hardly fitted) to 1e12 (hardly penalised).")

    def normal(positive: Side, negative: Side) -> Normal:
        rows = np.concatenate([positive, negative])
        labels = [1] * len(positive) + [0] * len(negative)
        scale = rows.std(0)
        scale[scale == 0] = 1
        fitted = LogisticRegression(C=C, max_iter=2000).fit((rows - rows.mean(0)) / scale, labels)
        return fitted.coef_[0] / scale

    return _classifier_direction(activations, normal, "logistic_direction", {"C": float(C)})


@checked
def lda_direction(activations: PairedActivations) -> SteeringVectors:
    """Fisher's linear discriminant with Ledoit-Wolf shrinkage of the within-side covariance.

    Args:
        activations: as for `mean_difference`.

    Raises:
        ValueError: values so large or so small that no direction can be computed.
        NoDirectionError: as for `mean_difference`, or at some layer nothing varies within the
            sides.

    Source: Ledoit & Wolf 2004; the direction is that of scikit-learn's
    `LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto")`, found as `discriminant_normal` says.
    """
    return _classifier_direction(activations, discriminant_normal, "lda_direction", {})


@checked
def random_direction(activations: PairedActivations, *, seed: int) -> SteeringVectors:
    """Directions drawn uniformly from the sphere, with the shapes of `activations`: a baseline.

    Args:
        activations: give layers, hook and shapes; their values are not looked at.
        seed: of the draw; recorded in `info`.

    Drawn anew for each layer. As a control of layers that are steered together use `control_vectors`, which
    draws one direction for all of them.
    """
    drawn = _drawn((len(activations.layers), activations.positive.values.shape[-1]), seed)
    return _vectors(activations, drawn, "random_direction", seed=int(seed))


def random_like(vectors: SteeringVectors, *, seed: int) -> SteeringVectors:
    """One random direction with the lengths, layers and hook of given vectors: the control for those.

    It is the same at every layer (one for each position, where the vectors have positions). Directions drawn
    anew for each of k layers that are steered together add up as √k, those of a vector whose layers agree
    as k: such a control would be too weak.
    """
    drawn = _drawn((1, *vectors.values.shape[1:]), seed)
    values = drawn.float() * vectors.values.norm(dim=-1, keepdim=True)
    return SteeringVectors(
        values,
        vectors.layers,
        vectors.hook,
        "random_direction",
        vectors.stream_norm,
        vectors.identity,
        {"seed": int(seed), "length_of": vectors.method},
    )


def _drawn(shape: Sequence[int], seed: int) -> Float[Tensor, "*batch d_hook"]:
    """Unit vectors, each uniform on the sphere."""
    generator = torch.Generator().manual_seed(short_seed(seed))
    return _unit(torch.randn(tuple(shape), generator=generator, dtype=torch.float64))


def _classifier_direction(
    activations: PairedActivations,
    normal: Callable[[Side, Side], Normal],
    method: str,
    arguments: Mapping[str, Any],
) -> SteeringVectors:
    if len(activations) < 2:
        raise ValueError(f"{method} needs two pairs or more, and there are {len(activations)}.")
    difference, alike = _mean_gap(activations)  # where the means are equal, the weights are rounding error
    sides = [side.double().numpy() for side in activations.sides()]
    axes = [
        torch.zeros_like(difference[index])
        if alike[index]
        else torch.from_numpy(normal(*(side[:, index].copy() for side in sides)))
        for index in range(len(activations.layers))
    ]
    oriented, signs = _oriented(activations, torch.stack(axes))
    return with_direction(_vectors(activations, oriented, method, arguments=arguments, sign=signs))


def _axes(rows: Float[Tensor, "layer row d_hook"], count: int) -> Float[Tensor, "layer count d_hook"]:
    """The first principal axes of each layer's rows, each with its largest entry positive.

    From the smaller of rows · rowsᵀ and rowsᵀ · rows: for 672 rows of 5,120 numbers eleven times faster than
    a singular value decomposition. Its eigenvalues are squares, so where they span more than six digits the
    axes are taken from the decomposition after all.
    """
    wide = rows.shape[1] < rows.shape[2]
    other = rows.transpose(1, 2)
    values, vectors = torch.linalg.eigh(rows @ other if wide else other @ rows)
    values, axes = values[:, -count:].flip(-1), vectors[:, :, -count:].flip(-1).transpose(1, 2)
    if bool((values[:, -1] <= 1e-6 * values[:, 0]).any()):
        axes = torch.linalg.svd(rows, full_matrices=False).Vh[:, :count]
    elif wide:
        axes = axes @ rows / values.sqrt()[..., None]
    largest = axes.gather(-1, axes.abs().argmax(-1, keepdim=True))
    return torch.where(largest < 0, -axes, axes)


def _rows(activations: PairedActivations, of: str) -> tuple[Float[Tensor, "row layer d_hook"], int]:
    """The rows to decompose, and how many components they have; any further one would be arbitrary."""
    positive, negative = (side.double() for side in activations.sides())
    if of == "pooled":
        rows = torch.cat([positive, negative])
        rows, available = rows - rows.mean(0), len(rows) - 1
    elif of == "differences":
        rows, available = positive - negative, len(activations)
    elif of == "centred_differences":
        rows = positive - negative
        rows, available = rows - rows.mean(0), len(activations) - 1
    elif of == "pair_centred":
        middle = (positive + negative) / 2
        rows, available = torch.cat([positive - middle, negative - middle]), len(activations)
    else:
        raise ValueError(
            f"of={of!r} is unknown: use 'pooled', 'differences', 'centred_differences' or 'pair_centred'."
        )
    return rows, min(available, rows.shape[-1])


def _mean_gap(
    activations: PairedActivations,
) -> tuple[Float[Tensor, "layer d_hook"], Bool[Tensor, " layer"]]:
    """Difference of the sides' means, and where it is no more than float32 rounds the activations."""
    sides = activations.sides()
    gap = sides[0].mean(0, dtype=torch.float64) - sides[1].mean(0, dtype=torch.float64)
    length = torch.stack([side.double().square().sum(-1).mean(0) for side in sides]).mean(0).sqrt()
    return gap, gap.norm(dim=-1) <= torch.finfo(torch.float32).eps * length


def with_direction(vectors: SteeringVectors) -> SteeringVectors:
    """The vectors; raises NoDirectionError where one has length zero."""
    if zero := vectors.zero_layers():
        raise NoDirectionError(
            f"{vectors.method}: {vectors.hook} at layers {zero} is the same on both sides, pair by pair or "
            "on average, or does not vary within them, so there is no direction. Capture other layers or "
            "positions.",
            vectors,
        )
    return vectors


def _require_varying(
    activations: PairedActivations,
    rows: Float[Tensor, "row layer d_hook"],
    axes: Float[Tensor, "layer count d_hook"],
    of: str,
) -> None:
    """Refuse layers whose rows do not vary along the last axis: it would be arbitrary.

    Not more than float32 rounds the activations counts as nothing.
    """
    length = torch.stack([side.double() for side in activations.sides()]).square().sum((0, 1, 3)).sqrt()
    along = torch.einsum("rld,ld->rl", rows, axes[:, -1]).norm(dim=0)
    constant = along <= torch.finfo(torch.float32).eps * length
    if bool(constant.any()):
        layers = [layer for layer, same in zip(activations.layers, constant.tolist(), strict=True) if same]
        raise ValueError(
            f"principal_component(of={of!r}): {activations.hook} at layers {layers} varies in fewer than "
            f"{axes.shape[1]} directions, so that component {axes.shape[1]} is arbitrary. Capture other "
            "layers or positions, or use a lower component."
        )


def _oriented(
    activations: PairedActivations, axes: Float[Tensor, "layer d_hook"], rule: str = "mean"
) -> tuple[Float[Tensor, "layer d_hook"], list[int]]:
    """Unit axes on which the positive side projects higher, and the sign each was multiplied by.

    A tie of votes goes by the mean; a tie of means makes the largest entry positive.
    """
    positive, negative = (side.double() for side in activations.sides())
    axes = _unit(axes.double())
    gap = ((positive - negative).mean(0) * axes).sum(-1)
    largest = axes.gather(-1, axes.abs().argmax(-1, keepdim=True)).squeeze(-1)
    signs = torch.where(gap == 0, largest, gap).sign()
    if rule == "vote":
        votes = torch.einsum("pld,ld->pl", positive - negative, axes).sign().sum(0)
        signs = torch.where(votes == 0, signs, votes.sign())
    return axes * signs[:, None], [int(sign) for sign in signs]


def _unit(axes: Float[Tensor, "*batch d_hook"]) -> Float[Tensor, "*batch d_hook"]:
    return axes / axes.norm(dim=-1, keepdim=True).clamp_min(torch.finfo(axes.dtype).tiny)


def _vectors(
    activations: PairedActivations, values: Float[Tensor, "layer d_hook"], method: str, **info: Any
) -> SteeringVectors:
    return SteeringVectors(
        values.float(), activations.layers, activations.hook, method, activations.stream_norm,
        activations.identity, described(activations, **info),
    )  # fmt: skip
