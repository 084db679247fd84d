"""Estimators: functions from paired activations to steering vectors, and the provenance they record.

`mean_difference` keeps its length, the others return unit vectors. All are oriented so that the positive
side projects higher.
"""

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from itertools import compress
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from einops import einsum, reduce
from jaxtyping import Bool, Float
from torch import Tensor

from .._util.validation import checked
from ..activations import PairedActivations
from ..errors import NoDirectionError
from .vectors import SteeringVectors

Estimator = Callable[[PairedActivations], SteeringVectors]
MISSING = ("<NA>", "NaT")  # how files of activations write pandas's missing numbers, texts and dates


def apply_estimator(
    estimator: Estimator, activations: PairedActivations, *, allow_zero: bool = False
) -> SteeringVectors:
    """Apply an estimator to pairs and check the type of its result.

    With `allow_zero`, layers without a direction, as after shuffling labels, are zeros instead of an error.
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
        NoDirectionError: at some layer both sides are the same, pair by pair or on average.

    Source: Marks & Tegmark 2023 (arXiv 2310.06824, section 5); Rimsky et al. 2023 (arXiv 2312.06681, 3).
    """
    difference, is_zero = mean_gap(activations)
    difference[is_zero] = 0
    return require_nonzero(estimated(activations, difference, "mean_difference"))


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
            stays, and may be the first components.
            "differences": positive minus negative of each pair, *nothing* removed. Their mean is the signal:
            if it is large, it is the first component. Zou et al. 2023 (arXiv 2310.01405), section 3.1.
            "centred_differences": the same minus the mean over pairs, and with it the behaviour's. The first
            component is what varies most between pairs (the claim, the letter). The study's steering vectors
            were the *second* of these, or the second of "pooled".
            "pair_centred": both sides of each pair minus the pair's own mean, then pooled; the components
            are those of "differences". repeng's `pca_center`.
        sign: how a component is oriented. "mean": the positive side has the higher mean projection. "vote":
            the positive side projects higher in more than half of the pairs, as in the study; a tie goes by
            the mean.

    Raises:
        ValueError: a component that does not exist or (naming the layer) does not vary, or a weight of 0.

    `info["sign"]` is 1 or −1 per layer, −1 where the component with its largest entry positive was flipped; a
    weighted sum has one such list per component. `info["arguments"]` records `component`, `of` and `sign`.
    With negative weights, the positive side may project lower on the sum.
    """
    rows, available = _decomposed_rows(activations, of)
    weights = _component_weights(component, available, len(activations))
    axes = principal_axes(rows.transpose(0, 1), max(weights))
    _require_varying(activations, rows, axes, of)
    oriented = {number: orient(activations, axes[:, number - 1], sign) for number in weights}
    values = sum(weight * oriented[number][0] for number, weight in weights.items())
    if isinstance(component, Mapping):
        label = " ".join(f"{weight:+g}·PC{number}" for number, weight in weights.items())
        values = unit(values)
        argument = {str(number): float(weight) for number, weight in weights.items()}
        signs = {str(number): flips for number, (_, flips) in oriented.items()}
    else:
        label, argument, signs = component, int(component), oriented[component][1]
    arguments = {"component": argument, "of": of, "sign": sign}
    method = f"principal_component({label}, {of})"
    return estimated(activations, values, method, arguments=arguments, sign=signs)


def estimated(
    pairs: PairedActivations,
    values: Float[Tensor, "layer d_hook"],
    method: str,
    *,
    arguments: Mapping[str, Any] | None = None,
    **more: Any,
) -> SteeringVectors:
    """`SteeringVectors` at the layers and hook of the pairs; `info` has the arguments, data and `more`.

    If the model was steered during the capture, `info["under"]` names the operations of both sides.
    """
    under = {"positive": list(pairs.positive.under), "negative": list(pairs.negative.under)}
    info = {
        "arguments": dict(arguments or {}),
        "pairs": len(pairs),
        "positions": str(pairs.positive.positions),
        "data": digest(pairs),
        **({"under": under} if any(under.values()) else {}),
        **more,
    }
    norm, identity = pairs.stream_norm, pairs.identity
    return SteeringVectors(values.float(), pairs.layers, pairs.hook, method, norm, identity, info)


def digest(pairs: PairedActivations) -> str:
    """Content hash (16 hex digits) of both sides' prompts, completions' tokens and factors, order included.

    It survives saving and loading: missing values and whole numbers count the same in every dtype.
    """
    factors = {str(name): list(map(_plain, column.tolist())) for name, column in pairs.factors.items()}
    parts = [json.dumps(factors, sort_keys=True, default=str)]
    # Files of earlier versions have the completions' texts alone.
    completions = [side.completion_tokens or side.completions for side in (pairs.positive, pairs.negative)]
    if any(completions):
        parts.append(json.dumps(completions))
    return digest_of(*pairs.positive.prompts, "\x01", *pairs.negative.prompts, "\x01", *parts)


def digest_of(*texts: str) -> str:
    """Content hash (16 hex digits) of texts, order included."""
    return hashlib.sha256("\x00".join(texts).encode("utf-8", "surrogatepass")).hexdigest()[:16]


def _plain(value: Any) -> Any:
    """A factor's value as it is in a file, where a column with gaps has whole numbers as floats."""
    value = value.item() if isinstance(value, np.generic) else value
    if pd.api.types.is_scalar(value) and (pd.isna(value) or value in MISSING):
        return None
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _component_weights(component: int | Mapping[int, float], available: int, pairs: int) -> dict[int, float]:
    weights = dict(component) if isinstance(component, Mapping) else {component: 1.0}
    if not all(map(math.isfinite, weights.values())):
        raise ValueError(f"component={component!r:.200}: weights must be finite numbers.")
    if not weights or 0 in weights.values():
        raise ValueError(f"component={weights}: give one component or more, with weights other than 0.")
    if missing := [number for number in weights if not 1 <= number <= available]:
        raise ValueError(f"component {missing[0]} does not exist: {pairs} pairs give 1 to {available}.")
    return weights


def principal_axes(
    rows: Float[Tensor, "layer row d_hook"], count: int
) -> Float[Tensor, "layer count d_hook"]:
    """The first principal axes of each layer's rows, each with its largest entry positive.

    From the smaller of rows · rowsᵀ and rowsᵀ · rows, much faster than a singular value decomposition, which
    is used only where the eigenvalues span more than six digits.
    """
    is_wide = rows.shape[1] < rows.shape[2]
    transposed = rows.transpose(1, 2)
    values, vectors = torch.linalg.eigh(rows @ transposed if is_wide else transposed @ rows)
    values, axes = values[:, -count:].flip(-1), vectors[:, :, -count:].flip(-1).transpose(1, 2)
    if bool((values[:, -1] <= 1e-6 * values[:, 0]).any()):
        axes = torch.linalg.svd(rows, full_matrices=False).Vh[:, :count]
    elif is_wide:
        axes = axes @ rows / values.sqrt()[..., None]
    return torch.where(_largest_entry(axes) < 0, -axes, axes)


def _decomposed_rows(pairs: PairedActivations, of: str) -> tuple[Float[Tensor, "row layer d_hook"], int]:
    """The rows to decompose, and how many components they have at most."""
    positive, negative = (side.double() for side in pairs.sides())
    available = len(pairs)
    if of == "pooled":
        rows, available = torch.cat([positive, negative]), 2 * available
    elif of == "pair_centred":
        middle = (positive + negative) / 2
        rows = torch.cat([positive - middle, negative - middle])
    else:
        rows = positive - negative
    if of in ("pooled", "centred_differences"):
        rows, available = rows - rows.mean(0), available - 1
    return rows, min(available, rows.shape[-1])


def mean_gap(activations: PairedActivations) -> tuple[Float[Tensor, "layer d_hook"], Bool[Tensor, " layer"]]:
    """Difference of the sides' means, and where it is within float32 rounding of the activations."""
    sides = activations.sides()
    gap = sides[0].mean(0, dtype=torch.float64) - sides[1].mean(0, dtype=torch.float64)
    length = torch.stack([side.double().square().sum(-1).mean(0) for side in sides]).mean(0).sqrt()
    return gap, gap.norm(dim=-1) <= torch.finfo(torch.float32).eps * length


def require_nonzero(vectors: SteeringVectors) -> SteeringVectors:
    """The vectors; raises NoDirectionError where one has length zero."""
    if zero := vectors.zero_layers():
        raise NoDirectionError(
            f"{vectors.method}: {vectors.hook} at layers {zero} is the same on both sides, pair by pair or "
            "on average, or does not vary within them. Capture other layers or positions.",
            vectors,
        )
    return vectors


def _require_varying(
    activations: PairedActivations,
    rows: Float[Tensor, "row layer d_hook"],
    axes: Float[Tensor, "layer count d_hook"],
    of: str,
) -> None:
    """Raise for layers whose rows do not vary, beyond float32 rounding, along the last axis."""
    both = torch.stack(activations.sides()).double()
    length = reduce(both.square(), "side pair layer d_hook -> layer", "sum").sqrt()
    projections = einsum(rows, axes[:, -1], "row layer d_hook, layer d_hook -> row layer")
    constant = (projections.norm(dim=0) <= torch.finfo(torch.float32).eps * length).tolist()
    if layers := list(compress(activations.layers, constant)):
        raise ValueError(
            f"principal_component(of={of!r}): {activations.hook} at layers {layers} varies in fewer than "
            f"{axes.shape[1]} directions. Capture other layers or positions, or use a lower component."
        )


def orient(
    activations: PairedActivations, axes: Float[Tensor, "layer d_hook"], rule: str = "mean"
) -> tuple[Float[Tensor, "layer d_hook"], list[int]]:
    """Unit axes on which the positive side projects higher, and the sign each was multiplied by.

    A tie of votes goes by the mean; a tie of means makes the largest entry positive.
    """
    positive, negative = (side.double() for side in activations.sides())
    axes, differences = unit(axes.double()), positive - negative
    gap = (differences.mean(0) * axes).sum(-1)
    signs = torch.where(gap == 0, _largest_entry(axes).squeeze(-1), gap).sign()
    if rule == "vote":
        projected = einsum(differences, axes, "pair layer d_hook, layer d_hook -> pair layer")
        votes = projected.sign().sum(0)
        signs = torch.where(votes == 0, signs, votes.sign())
    return axes * signs[:, None], [int(sign) for sign in signs]


def _largest_entry(axes: Float[Tensor, "*batch d_hook"]) -> Float[Tensor, "*batch 1"]:
    return axes.gather(-1, axes.abs().argmax(-1, keepdim=True))


def unit(axes: Float[Tensor, "*batch d_hook"]) -> Float[Tensor, "*batch d_hook"]:
    """Rows divided by their lengths; zeros stay zero."""
    return axes / axes.norm(dim=-1, keepdim=True).clamp_min(torch.finfo(axes.dtype).tiny)
