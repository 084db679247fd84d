"""Conveniences that only compose what the other modules do."""

from collections.abc import Sequence
from typing import Any

from .capture import capture, capture_pairs
from .directions import Estimator, SteeringVectors, mean_difference
from .models import tokenize
from .positions import Positions, all_tokens
from .prompts import ContrastPairs


def vectors_from_pairs(
    model: Any,
    pairs: ContrastPairs,
    *,
    estimator: Estimator = mean_difference,
    positions: Positions | None = None,
    layers: int | Sequence[int] | None = None,
    hook: str = "resid_post",
) -> SteeringVectors:
    """Capture both sides of contrast pairs and estimate a vector at each layer, in one call.

    `capture_pairs`, then `estimator`: keep the activations instead where several estimators are compared.
    """
    return estimator(capture_pairs(model, pairs, positions=positions, layers=layers, hook=hook))


def activation_addition(
    model: Any,
    positive: str,
    negative: str,
    *,
    layers: int | Sequence[int] | None = None,
    hook: str = "resid_pre",
) -> SteeringVectors:
    """One vector a position: the stream on `positive` minus that on `negative`, length kept.

    The shorter prompt is padded with spaces to the other's length. `Add` puts the vectors at the first
    positions of a prompt, and refuses one that is shorter.

    Args:
        positive, negative: a word or phrase each ("Love", "Hate"); either may be empty (spaces alone).
        layers: 0-based block indices; by default all.
        hook: by default each block's input.

    Raises:
        ValueError: both prompts are empty.

    Source: Turner et al. 2023 (arXiv 2308.10248), section 3.
    """
    sides = [tokenize(model, text) if text else [] for text in (positive, negative)]
    length = max(map(len, sides))
    if not length:
        raise ValueError("positive and negative are both empty: there is nothing to add.")
    space = model.tokenizer(" ", add_special_tokens=False)["input_ids"][:1]
    padded = [ids + space * (length - len(ids)) for ids in sides]
    both = capture(model, padded, positions=all_tokens(), layers=layers, hook=hook)
    difference = both.values[0].double() - both.values[1].double()
    return SteeringVectors(
        difference.float(),
        both.layers,
        hook,
        "activation_addition",
        both.stream_norm,
        both.identity,
        {"positive": positive, "negative": negative, "positions": length},
    )
