"""Conveniences that only compose what the other modules do."""

from typing import Any

from .arguments import checked
from .capture import capture, capture_pairs
from .directions import Estimator, SteeringVectors, apply_estimator, digest_of, mean_difference
from .engine import Memory
from .models import HookedModel, Layers, tokenize
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
    """Capture both sides of contrast pairs and estimate a vector at each layer, in one call.

    `capture_pairs`, then `estimator`: keep the activations instead where several estimators are compared.

    Args:
        model, positions, layers, hook, reuse, memory: as for `capture`.
        pairs: from `contrast_pairs`, `honesty_pairs` or `read_pairs`.
        estimator: from paired activations to vectors; by default `mean_difference`. One with arguments is
            `functools.partial(principal_component, of="differences")`.

    Raises what `capture` and the estimator do.
    """
    options = {"positions": positions, "layers": layers, "hook": hook, "reuse": reuse, "memory": memory}
    return apply_estimator(estimator, capture_pairs(model, pairs, **options))


@checked
def activation_addition(
    model: HookedModel,
    positive: str,
    negative: str,
    *,
    layers: Layers = None,
    hook: str = "resid_pre",
    reuse: bool = True,
    memory: Memory = None,
) -> SteeringVectors:
    """One vector a position: the stream on `positive` minus that on `negative`, length kept.

    The shorter prompt is padded with spaces to the other's length. `Add` puts the vectors at the first
    positions of a prompt, and refuses one that is shorter.

    Args:
        model: a model with a tokenizer.
        positive, negative: a word or phrase each ("Love", "Hate"); either may be empty (spaces alone).
        layers: 0-based block indices; by default all.
        hook: by default each block's input.
        reuse, memory: as in `capture`.

    Raises:
        ValueError: both prompts are empty, or of unequal length and the tokenizer has no space.

    Source: Turner et al. 2023 (arXiv 2308.10248), section 3.
    """
    padded = padded_sides(model, positive, negative)
    where = {"positions": all_tokens(), "layers": layers, "hook": hook}
    both = capture(model, padded, **where, reuse=reuse, memory=memory)
    difference = both.values[0].double() - both.values[1].double()
    return SteeringVectors(
        difference.float(),
        both.layers,
        hook,
        "activation_addition",
        both.stream_norm,
        both.identity,
        {
            "arguments": {"positive": positive, "negative": negative},
            "positions": len(padded[0]),
            "data": digest_of(positive, negative),
        },
    )


def padded_sides(model: Any, positive: str, negative: str) -> list[list[int]]:
    """The token ids of both sides of an `activation_addition`, the shorter padded with spaces to the other's.

    Raises what `activation_addition` does.
    """
    if not (positive or negative):
        raise ValueError("positive and negative are both empty: there is nothing to add.")
    # An empty side is spaces behind the BOS, if the other side has one: its position must not differ.
    sides = [
        tokenize(model, text) if text else model.tokenizer("")["input_ids"] for text in (positive, negative)
    ]
    length = max(map(len, sides))
    space = model.tokenizer(" ", add_special_tokens=False)["input_ids"][:1]
    if not space and min(map(len, sides)) < length:
        raise ValueError(
            f"{positive!r} and {negative!r} have {len(sides[0])} and {len(sides[1])} tokens, and this "
            "tokenizer has no token for a space to pad with: give prompts of as many tokens."
        )
    return [ids + space * (length - len(ids)) for ids in sides]
