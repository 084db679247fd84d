"""Audit of contrast pairs: factors other than the behaviour that differ between the sides."""

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from .._util.validation import checked
from ..statistics import standardised_difference
from .pairs import ContrastPairs, factors_by_side

MAX_LEVELS = 20
LAST_TOKEN = "last token"
LIMIT = 0.1  # Austin 2009: below a tenth of a standard deviation two groups count as balanced


@checked
def audit(pairs: ContrastPairs, *, tokenizer: Any = None) -> pd.DataFrame:
    """Which factors differ between the positive and the negative side, and so may enter a vector.

    Args:
        pairs: with their factors; `letter_positive` and `letter_negative` are the letter on either side.
        tokenizer: to count tokens too, and to compare the last ones.

    Returns:
        One row per factor and level: factor, level, positive, negative (counts; means for length in
        characters and tokens), difference (standardised: in pooled standard deviations), differs
        (|difference| > 0.1). Factors of more than 20 levels (a topic) are left out.

        Of the factor "last token" the levels are the tokens at which `last_token()` reads; without a
        tokenizer, the last words or punctuation marks. More than 20 of them are one row, "commoner on the
        positive side", which counts the prompts on either side that end in such a token.

        "repeated text" counts the prompts whose text occurs again on the "same side" or on "both sides".
        It has no difference, and without any such prompt no row.

    Source: standardised differences as a measure of balance, Austin 2009 (Statistics in Medicine 28:3083).
    """
    rows = [
        row
        for factor, positive, negative in factors_by_side(pairs.factors)
        if len({*positive, *negative}) <= MAX_LEVELS
        for row in _level_rows(factor, positive, negative)
    ]
    sides = (pairs.positive, pairs.negative)
    if tokenizer is None:
        last = [[(re.findall(r"\w+|[^\w\s]", text) or [""])[-1] for text in side] for side in sides]
    else:
        ids = [[tokenizer(text, add_special_tokens=False)["input_ids"] for text in side] for side in sides]
        last = [[_visible(tokenizer.decode(each[-1:])) for each in side] for side in ids]
    rows += _last_token_rows(*last) + _repeat_rows(sides)
    rows.append(_length_row("length (characters)", sides))
    if tokenizer is not None:
        rows.append(_length_row("tokens", ids))
    table = pd.DataFrame(rows, columns=["factor", "level", "positive", "negative", "difference"])
    return table.assign(differs=table["difference"].abs() > LIMIT)


def _level_rows(factor: str, positive: Sequence, negative: Sequence) -> list[tuple]:
    levels = sorted({*positive, *negative}, key=str)
    sides = (positive, negative)
    return [
        _count_row(factor, str(level), *([value == level for value in side] for side in sides))
        for level in levels
    ]


def _last_token_rows(positive: Sequence[str], negative: Sequence[str]) -> list[tuple]:
    if len({*positive, *negative}) <= MAX_LEVELS:
        return _level_rows(LAST_TOKEN, positive, negative)
    commoner = Counter(positive) - Counter(negative)
    hits = ([token in commoner for token in side] for side in (positive, negative))
    return [_count_row(LAST_TOKEN, "commoner on the positive side", *hits)]


def _repeat_rows(sides: Sequence[Sequence[str]]) -> list[tuple]:
    texts = [[" ".join(text.split()) for text in side] for side in sides]
    counts = [Counter(side) for side in texts]
    same = [sum(count[text] > 1 for text in side) for side, count in zip(texts, counts, strict=True)]
    both = [sum(text in count for text in side) for side, count in zip(texts, counts[::-1], strict=True)]
    rows = [("repeated text", "same side", *same, np.nan), ("repeated text", "both sides", *both, np.nan)]
    return [row for row in rows if row[2] or row[3]]


def _count_row(factor: str, level: str, positive: Sequence[bool], negative: Sequence[bool]) -> tuple:
    hits = [np.array(side, dtype=float) for side in (positive, negative)]
    return factor, level, hits[0].sum(), hits[1].sum(), _difference(*hits)


def _length_row(factor: str, sides: Sequence[Sequence]) -> tuple:
    lengths = [np.array(list(map(len, side)), dtype=float) for side in sides]
    return factor, "mean", lengths[0].mean(), lengths[1].mean(), _difference(*lengths)


def _visible(token: str) -> str:
    """A token as text; white space as Python writes it."""
    return token if token.strip() else repr(token)


def _difference(positive: np.ndarray, negative: np.ndarray) -> float:
    """Standardised difference; of two constants 0 or ± infinity."""
    gap = positive[0] - negative[0]
    if (positive == positive[0]).all() and (negative == negative[0]).all():
        return 0.0 if gap == 0 else float(np.copysign(np.inf, gap))
    return float(standardised_difference(positive, negative))
