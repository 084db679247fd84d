"""What else, besides the behaviour, differs between the two sides of contrast pairs."""

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from .._util.validation import checked
from ..statistics import standardised_difference
from .pairs import ContrastPairs, factors_by_side

MANY_LEVELS = 20
LAST_TOKEN = "last token"
LIMIT = 0.1  # Austin 2009: below a tenth of a standard deviation two groups count as balanced


@checked
def audit(pairs: ContrastPairs, *, tokenizer: Any = None) -> pd.DataFrame:
    """Which factors differ between the positive and the negative side, with counts.

    A vector made from the pairs may carry any factor that differs, instead of the behaviour.

    Args:
        pairs: with their factors; `letter_positive` and `letter_negative` are the letter on either side.
        tokenizer: to count tokens too, and to see which one is the last.

    Returns:
        A row a factor and level: factor, level, positive, negative (counts; means for length in characters
        and tokens), difference (standardised: in pooled standard deviations), differs (|difference| > 0.1).
        Factors of more than 20 levels (a topic) describe pairs rather than sort them, and are left out.

        Of the factor "last token" the levels are the tokens themselves: `last_token()` reads there, and the
        activations differ with the token before they differ with anything else. Without a tokenizer it is the
        last word or sign. More than 20 of them are one row, "commoner on the positive side", which counts
        the prompts on either side that end in such a token.

        "repeated text" counts the prompts whose text occurs again on the "same side" or on "both sides": such
        a prompt is positive and negative. It has no difference, and without any such prompt no row.

    Source: standardised differences as a measure of balance, Austin 2009 (Statistics in Medicine 28:3083).
    """
    rows = [
        row
        for factor, positive, negative in factors_by_side(pairs.factors)
        if len({*positive, *negative}) <= MANY_LEVELS
        for row in _levels(factor, positive, negative)
    ]
    sides = (pairs.positive, pairs.negative)
    if tokenizer is None:
        ids = None
        ends = [[(re.findall(r"\w+|[^\w\s]", text) or [""])[-1] for text in side] for side in sides]
    else:
        ids = [[tokenizer(text, add_special_tokens=False)["input_ids"] for text in side] for side in sides]
        ends = [[_shown(tokenizer.decode(each[-1:])) for each in side] for side in ids]
    rows += _last_tokens(*ends) + _repeats(sides)
    rows.append(_sizes("length (characters)", sides))
    if ids is not None:
        rows.append(_sizes("tokens", ids))
    table = pd.DataFrame(rows, columns=["factor", "level", "positive", "negative", "difference"])
    return table.assign(differs=table["difference"].abs() > LIMIT)


def _levels(factor: str, positive: Sequence, negative: Sequence) -> list[tuple]:
    """A row a level, with counts on either side."""
    levels = sorted({*positive, *negative}, key=str)
    return [
        _counted(factor, str(level), *([value == level for value in side] for side in (positive, negative)))
        for level in levels
    ]


def _last_tokens(positive: Sequence[str], negative: Sequence[str]) -> list[tuple]:
    """A row a token; of very many, one row of those that are commoner on the positive side."""
    if len({*positive, *negative}) <= MANY_LEVELS:
        return _levels(LAST_TOKEN, positive, negative)
    commoner = Counter(positive) - Counter(negative)
    hits = ([token in commoner for token in side] for side in (positive, negative))
    return [_counted(LAST_TOKEN, "commoner on the positive side", *hits)]


def _repeats(sides: Sequence[Sequence[str]]) -> list[tuple]:
    """Rows of the prompts whose text occurs again on the same side, and on the other side."""
    texts = [[" ".join(text.split()) for text in side] for side in sides]
    counts = [Counter(side) for side in texts]
    own = [[count[text] > 1 for text in side] for side, count in zip(texts, counts, strict=True)]
    other = [[text in count for text in side] for side, count in zip(texts, reversed(counts), strict=True)]
    hits = {"same side": map(sum, own), "both sides": map(sum, other)}
    rows = [("repeated text", level, *counts, np.nan) for level, counts in hits.items()]
    return [row for row in rows if row[2] or row[3]]


def _counted(factor: str, level: str, positive: Sequence[bool], negative: Sequence[bool]) -> tuple:
    hits = [np.array(side, dtype=float) for side in (positive, negative)]
    return factor, level, hits[0].sum(), hits[1].sum(), _standardised(*hits)


def _sizes(factor: str, sides: Sequence[Sequence]) -> tuple:
    """A row of mean lengths."""
    sizes = [np.array([len(each) for each in side], dtype=float) for side in sides]
    return factor, "mean", sizes[0].mean(), sizes[1].mean(), _standardised(*sizes)


def _shown(token: str) -> str:
    """A token as text; one that cannot be seen (a line's end) as Python writes it."""
    return token if token.strip() else repr(token)


def _standardised(positive: np.ndarray, negative: np.ndarray) -> float:
    gap = positive[0] - negative[0]
    if (positive == positive[0]).all() and (negative == negative[0]).all():  # in no standard deviation
        return 0.0 if gap == 0 else float(np.copysign(np.inf, gap))
    return float(standardised_difference(positive, negative))
