"""What else, besides the behaviour, differs between the two sides of contrast pairs."""

from typing import Any

import numpy as np
import pandas as pd

from .pairs import ContrastPairs

MANY_LEVELS = 20
LIMIT = 0.1  # Austin 2009: below a tenth of a standard deviation two groups count as balanced


def audit(pairs: ContrastPairs, *, tokenizer: Any = None) -> pd.DataFrame:
    """Which factors differ between the positive and the negative side, with counts.

    A vector made from the pairs may carry any factor that differs, instead of the behaviour.

    Args:
        pairs: with their factors; `letter_positive` and `letter_negative` are the letter on either side.
        tokenizer: to count tokens too.

    Returns:
        A row a factor and level: factor, level, positive, negative (counts; means for length in characters
        and tokens), difference (standardised: in pooled standard deviations), differs (|difference| > 0.1).
        Factors of more than 20 levels (a topic) describe pairs rather than sort them, and are left out.

    Source: standardised differences as a measure of balance, Austin 2009 (Statistics in Medicine 28:3083).
    """
    rows = []
    for factor, positive, negative in _factors_by_side(pairs):
        levels = sorted({*positive, *negative}, key=str)
        for level in levels if len(levels) <= MANY_LEVELS else []:
            hits = [
                np.array([value == level for value in side], dtype=float) for side in (positive, negative)
            ]
            rows.append((factor, str(level), hits[0].sum(), hits[1].sum(), _standardised(*hits)))
    counters = {"length (characters)": len}
    if tokenizer is not None:
        counters["tokens"] = lambda text: len(tokenizer(text, add_special_tokens=False)["input_ids"])
    for name, counter in counters.items():
        sizes = [
            np.array([counter(text) for text in side], dtype=float)
            for side in (pairs.positive, pairs.negative)
        ]
        rows.append((name, "mean", sizes[0].mean(), sizes[1].mean(), _standardised(*sizes)))
    table = pd.DataFrame(rows, columns=["factor", "level", "positive", "negative", "difference"])
    return table.assign(differs=table["difference"].abs() > LIMIT)


def _factors_by_side(pairs: ContrastPairs) -> list[tuple[str, list, list]]:
    found = []
    for column in pairs.factors.columns:
        name, _, side = str(column).rpartition("_")
        if side == "positive" and f"{name}_negative" in pairs.factors:
            found.append((name, list(pairs.factors[column]), list(pairs.factors[f"{name}_negative"])))
        elif side not in ("positive", "negative") and column != "group":
            found.append((str(column), list(pairs.factors[column]), list(pairs.factors[column])))
    return found


def _standardised(positive: np.ndarray, negative: np.ndarray) -> float:
    gap = positive.mean() - negative.mean()
    spread = np.sqrt((positive.var() + negative.var()) / 2)
    if spread > 0:
        return float(gap / spread)
    return 0.0 if gap == 0 else float(np.copysign(np.inf, gap))
