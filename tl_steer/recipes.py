"""Conveniences that only compose other functions."""

import math
from collections.abc import Sequence
from dataclasses import replace
from numbers import Real
from typing import Any

import numpy as np
from torch import Tensor

from ._capture import capture, capture_pairs
from ._util.validation import checked
from .directions import (
    Estimator,
    SteeringVector,
    SteeringVectors,
    apply_estimator,
    digest_of,
    mean_difference,
)
from .directions.estimators import require_nonzero
from .directions.exchange.in_memory import imported
from .directions.vectors import Norms, norms_at
from .engine import Memory
from .models import HookedModel, Layers, Prompt, identify, resolve_layers, tokenize
from .positions import Positions, all_tokens
from .prompts import ContrastPairs


@checked
def vectors_from_pairs(
    model: HookedModel,
    pairs: ContrastPairs,
    *,
    estimator: Estimator = mean_difference,
    positions: Positions | None = None,
    layers: Layers = None,
    hook: str = "resid_post",
    reuse: bool = True,
    memory: Memory = None,
) -> SteeringVectors:
    """Capture both sides of contrast pairs and estimate a vector per layer, in one call.

    To compare estimators, keep the activations of `capture_pairs` instead.

    Args:
        pairs: from `contrast_pairs`, `honesty_pairs` or `read_pairs`.
        estimator: from paired activations to vectors; by default `mean_difference`. One with arguments is
            `functools.partial(principal_component, of="differences")`.

    The other arguments, and errors, are those of `capture`.
    """
    options = {"positions": positions, "layers": layers, "hook": hook, "reuse": reuse, "memory": memory}
    return apply_estimator(estimator, capture_pairs(model, pairs, **options))


@checked
def steering_vector(
    model: HookedModel,
    tensor: Any,
    *,
    layer: int,
    hook: str = "resid_post",
    name: str | None = None,
    stream_norm: float | Norms | None = None,
    prompts: Prompt | Sequence[Prompt] | None = None,
) -> SteeringVector:
    """A steering vector from a tensor, an array or a list of numbers, for one layer of a model.

    For several layers use `load_pt`, or place one vector with `.at(layers=…)`.

    Args:
        model: the model that the vector is meant for.
        tensor: one vector "d_hook" of any dtype, on any device; copied to float32 on the CPU.
        layer: 0-based block index, negatives from the end.
        hook: short hook name.
        name: `method` of the vector, by which tables name it; by default "steering_vector".
        stream_norm: the residual stream's typical norm there; a mapping `{layer: norm}`, activations or
            vectors are looked up by layer.
        prompts: measure the typical norm on these. Without either it is NaN: so is the dose, and `scaled_to`
            raises.

    Raises:
        IndexError, ValueError: a layer, hook or width that the model does not have; more than one axis;
            values that are not finite numbers; both `stream_norm` and `prompts`, or a norm not above 0.
        KeyError: `stream_norm` has no norm of the layer.
    """
    if stream_norm is not None and prompts is not None:
        raise ValueError("stream_norm and prompts: expected one of them. Leave out the other.")
    (layer,) = resolve_layers(layer, model.cfg.n_layers)
    if isinstance(tensor, Tensor):
        tensor = (tensor.float() if tensor.is_floating_point() else tensor).detach().cpu().numpy()
    values = np.asarray(tensor)
    if values.ndim != 1 or values.dtype.kind not in "iuf":
        raise ValueError(
            f"a tensor of shape {values.shape}, {values.dtype}: expected real numbers, one axis d_hook. Give "
            "one row of it (tensor[layer], or tensor.squeeze())."
        )
    identity = identify(model)
    if prompts is not None:
        stream_norm = capture(model, prompts, layers=layer, hook=hook)
    norms = [stream_norm] if isinstance(stream_norm, Real) else stream_norm
    norm = float(norms_at(norms, (layer,), hook, identity))
    if norm <= 0 or math.isinf(norm):
        raise ValueError(f"stream_norm={norm:g} at layer {layer}: expected a number above 0.")
    vector = imported({layer: values.astype(np.float32)}, model, "the tensor", hook=hook)[layer]
    return replace(vector, method=name or "steering_vector", stream_norm=norm, info={"from": "tensor"})


@checked
def activation_addition(
    model: HookedModel,
    positive: str,
    negative: str | None = None,
    *,
    layers: Layers = None,
    hook: str = "resid_pre",
    reuse: bool = True,
    memory: Memory = None,
) -> SteeringVectors:
    """One vector per position: the residual stream on `positive`, minus that on `negative` if given.

    The length is kept. The shorter prompt is padded with spaces to the other's length. `Add` puts the vectors
    at the first positions of a prompt, and raises if the prompt is shorter.

    Args:
        model: a model with a tokenizer.
        positive: a word or phrase ("Love", "Shopping"); may be empty (spaces alone) next to a `negative`.
        negative: the text to subtract ("Hate", or "" for spaces alone); `None` subtracts nothing, as in the
            study's "Shopping".
        layers: 0-based block indices; by default all.
        hook: by default each block's input.
        reuse, memory: as in `capture`.

    Raises:
        NoDirectionError: at some layer the activations on both prompts are the same.
        ValueError: empty prompts, the same tokens twice, or prompts of unequal length and no token for a
            space.

    Without `negative`, a tokenizer's BOS is the first position of the vectors, and added to the first token
    of a steered prompt, usually the BOS itself, where activations are often much longer than elsewhere. The
    dose, which is that of the longest position, is then that of the BOS.

    Source: Turner et al. 2023 (arXiv 2308.10248), section 3.
    """
    prompts = padded_prompts(model, positive, negative)
    where = {"positions": all_tokens(), "layers": layers, "hook": hook}
    read = capture(model, prompts, **where, reuse=reuse, memory=memory)
    values = read.values.double()
    values = (values[0] if negative is None else values[0] - values[1]).float()
    info = {
        "arguments": {"positive": positive, "negative": negative},
        "positions": len(prompts[0]),
        "data": digest_of(*(text for text in (positive, negative) if text is not None)),
    }
    about = (read.layers, hook, "activation_addition", read.stream_norm, read.identity, info)
    return require_nonzero(SteeringVectors(values, *about))


def padded_prompts(model: Any, positive: str, negative: str | None) -> list[list[int]]:
    """Token ids of the one or two prompts of an `activation_addition`, the shorter padded with spaces."""
    if not positive and not negative:
        raise ValueError("positive is empty, and negative too or not given: there is nothing to add.")
    texts = [positive] if negative is None else [positive, negative]
    # An empty side is spaces after the BOS, if the other side has one: its position must not differ.
    prompts = [tokenize(model, text) if text else model.tokenizer("")["input_ids"] for text in texts]
    length = max(map(len, prompts))
    space = model.tokenizer(" ", add_special_tokens=False)["input_ids"][:1]
    if not space and min(map(len, prompts)) < length:
        raise ValueError(
            f"{positive!r} and {negative!r} have {len(prompts[0])} and {len(prompts[1])} tokens, and there "
            "is no token for a space to pad with: give prompts of as many tokens."
        )
    padded = [ids + space * (length - len(ids)) for ids in prompts]
    if len(padded) == 2 and padded[0] == padded[1]:
        raise ValueError(f"{positive!r} and {negative!r} are the same tokens: there is nothing to add.")
    return padded
