"""Right answers and factors of recorded items, from a table of claims or of items."""

import re
from collections.abc import Sequence

import pandas as pd

from ..prompts.pairs import truth_labels
from .recorded_items import naming_item

QUOTATION_MARKS = "\"'“”‘’"


def labels_of_items(
    prompts: Sequence[str], labels: pd.DataFrame, file: str
) -> tuple[list[int], pd.DataFrame]:
    """The right answer of each item, and the factors, a row an item.

    Args:
        prompts: what the items ask.
        labels: claims (`statement`, `label`), or a row an item (`answer`).
        file: the items' file, for messages.

    Raises:
        ValueError: neither kind, too few or too many rows, an item with no claim or several, answers or
            labels other than 0 and 1.
    """
    if {"statement", "label"} <= set(labels):
        rows = _claims_of(prompts, labels["statement"].tolist(), file)
        claims = labels.iloc[rows].reset_index(drop=True)
        known = claims["label"].astype(object)
        known = truth_labels(known).where(truth_labels(known).notna(), known)
        answers = [1 - label for label in _zeros_and_ones(known, file)]
        truth = pd.Series(["false" if answer else "true" for answer in answers], name="truth")
        further = claims.drop(columns=["statement", "label"])
        if "truth" in further:
            raise ValueError("the claims have a column 'truth': rename it, the table makes its own of label.")
        return answers, pd.concat([truth, further], axis=1)
    if "answer" not in labels:
        raise ValueError(
            f"labels need the columns statement and label, or answer; they have {list(labels.columns)}."
        )
    if len(labels) != len(prompts):
        raise ValueError(f"{file} has {len(prompts)} items, but there are {len(labels)} rows of labels.")
    return _zeros_and_ones(labels["answer"], file), labels.drop(columns="answer").reset_index(drop=True)


def _claims_of(prompts: Sequence[str], statements: Sequence[str], file: str) -> list[int]:
    """The row of each item's claim: the longest statement in its sentence."""
    patterns = [_pattern(statement) for statement in statements]
    rows = []
    for item, prompt in enumerate(prompts):
        with naming_item(file, item):
            rows.append(_claim_in(prompt, patterns, statements))
    return rows


def _claim_in(prompt: str, patterns: Sequence[re.Pattern[str]], statements: Sequence[str]) -> int:
    spans = {row: found.span() for row, pattern in enumerate(patterns) if (found := pattern.search(prompt))}
    # A statement within another is not what is asked ("Ice floats." in "Nobody knows that ice floats.").
    whole = [
        row
        for row, (start, end) in spans.items()
        if not any(
            low <= start and end <= high and (low, high) != (start, end) for low, high in spans.values()
        )
    ]
    if not whole:
        raise ValueError(f"no statement of the labels is in its sentence {prompt!r}.")
    if len(whole) > 1:
        several = "; ".join(f"row {row}, {statements[row]!r}" for row in whole[:3])
        raise ValueError(f"{len(whole)} statements of the labels are in its sentence ({several}).")
    return whole[0]


def _pattern(statement: str) -> re.Pattern[str]:
    """The statement as whole words, with or without the quotation marks that may stand around it."""
    if not isinstance(statement, str) or not (bare := statement.strip().strip(QUOTATION_MARKS)):
        raise ValueError(f"labels: the statement {statement!r} must be text that is not empty.")
    before, after = (r"(?<!\w)" if bare[0].isalnum() else "", r"(?!\w)" if bare[-1].isalnum() else "")
    return re.compile(before + re.escape(bare) + after)


def _zeros_and_ones(values: pd.Series, file: str) -> list[int]:
    for item, value in enumerate(values):
        with naming_item(file, item):
            if pd.isna(value) or value not in (0, 1):
                raise ValueError(f"its {values.name} is {value!r}; it must be 0 or 1.")
    return [int(value) for value in values]
