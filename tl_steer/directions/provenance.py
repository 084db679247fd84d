"""What is kept of how vectors were made: the arguments, the positions, the data, the seed."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from ..activations import PairedActivations

MISSING = ("<NA>", "NaT")  # what files of activations say where pandas has no number, text or date


def described(
    pairs: PairedActivations, *, arguments: Mapping[str, Any] | None = None, **more: Any
) -> dict[str, Any]:
    """The `info` of vectors that were estimated from pairs; plain JSON values.

    Args:
        arguments: what the method was called with besides the pairs; keys of mappings among them as text.
        more: anything else worth knowing, `seed` where one was used.

    Where the model was steered while it was read, `under` says so for both sides.
    """
    under = {"positive": list(pairs.positive.under), "negative": list(pairs.negative.under)}
    return {
        "arguments": dict(arguments or {}),
        "pairs": len(pairs),
        "positions": str(pairs.positive.positions),
        "data": digest(pairs),
        **({"under": under} if any(under.values()) else {}),
        **more,
    }


def digest(pairs: PairedActivations) -> str:
    """16 hexadecimal digits of both sides' prompts, their completions and their factors, order included.

    Completions count by their tokens. A file changes no digest: what is missing is the same however a column
    holds it, and so is a whole number.

    Vectors with the same digest are of the same data, whatever the model, the layers or the method.
    """
    columns = pairs.factors.items()
    factors = {str(name): [_plain(value) for value in column.tolist()] for name, column in columns}
    told = [json.dumps(factors, sort_keys=True, default=str)]
    # Files of earlier versions have the completions' texts alone.
    completions = [side.completion_tokens or side.completions for side in (pairs.positive, pairs.negative)]
    if any(completions):
        told.append(json.dumps(completions))
    return digest_of(*pairs.positive.prompts, "\x01", *pairs.negative.prompts, "\x01", *told)


def digest_of(*texts: str) -> str:
    """16 hexadecimal digits of some texts, order included."""
    return hashlib.sha256("\x00".join(texts).encode("utf-8", "surrogatepass")).hexdigest()[:16]


def _plain(value: Any) -> Any:
    """A factor's value as it is after a file too, where a column with gaps has whole numbers as floats."""
    if isinstance(value, np.generic):
        value = value.item()
    if pd.api.types.is_scalar(value) and (pd.isna(value) or value in MISSING):
        return None
    return int(value) if isinstance(value, float) and value.is_integer() else value
