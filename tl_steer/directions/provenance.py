"""What is kept of how vectors were made: the arguments, the positions, the data, the seed."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from ..activations import PairedActivations


def described(
    pairs: PairedActivations, *, arguments: Mapping[str, Any] | None = None, **more: Any
) -> dict[str, Any]:
    """The `info` of vectors that were estimated from pairs; plain JSON values.

    Args:
        arguments: what the method was called with besides the pairs; keys of mappings among them as text.
        more: anything else worth knowing, `seed` where one was used.
    """
    return {
        "arguments": dict(arguments or {}),
        "pairs": len(pairs),
        "positions": pairs.positive.positions.label,
        "data": digest(pairs),
        **more,
    }


def digest(pairs: PairedActivations) -> str:
    """16 hexadecimal digits of the prompts of both sides and their factors, order included.

    Vectors with the same digest are of the same data, whatever the model, the layers or the method.
    """
    factors = pairs.factors.to_dict(orient="list")
    told = json.dumps(factors, sort_keys=True, default=str)
    return digest_of(*pairs.positive.prompts, "\x01", *pairs.negative.prompts, "\x01", told)


def digest_of(*texts: str) -> str:
    """16 hexadecimal digits of some texts, order included."""
    return hashlib.sha256("\x00".join(texts).encode("utf-8", "surrogatepass")).hexdigest()[:16]
