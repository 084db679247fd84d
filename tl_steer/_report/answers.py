"""Generated answers with the choice read from each, for the report."""

import re
from collections.abc import Sequence
from itertools import takewhile

import pandas as pd

from ..plots.format import number, prompt_labels
from ..sweeps.sweep_table import DRAW, UNSTEERED, condition_rows
from .report_tables import PLAIN, SIGNED, Table


def answer_table(rows: pd.DataFrame, conditions: Sequence[pd.Series], *, factor: str, each: int = 2) -> Table:
    """Some answers as generated, with the choice read from each.

    Args:
        rows: a sweep's rows with texts, of the reporting half.
        conditions: steered conditions, shown next to the unsteered one.
        factor: column of the question types.
        each: number of questions per type, the first in the table, and of questions whose answer cannot be
            read in the first condition. Of several draws the first is shown.
    """
    rows = rows[rows[DRAW] == 0] if DRAW in rows else rows
    unsteered = rows[rows["vector"] == UNSTEERED].set_index("prompt_id")
    steered = [condition_rows(rows, condition).set_index("prompt_id") for condition in conditions]
    unread = unsteered[steered[0]["choice"].reindex(unsteered.index).isna()]
    selected = pd.concat([unsteered.groupby(factor).head(each), unread.head(each)])
    selected = selected[~selected.index.duplicated()].sort_values(factor, kind="stable")
    labels = pd.Series(without_shared_ends(list(prompt_labels(unsteered))), unsteered.index)
    answers = [
        [labels[index], row[factor], *(_answer(table.loc[index], row) for table in (unsteered, *steered))]
        for index, row in selected.iterrows()
    ]
    heads = ["question", factor, "unsteered", *map(_head, conditions)]
    note = (
        f"The first {each} questions of each kind, and the first {each} whose answer in the chosen condition "
        "cannot be read; without what all prompts begin and end with. In brackets, how each text was read."
    )
    return Table(heads, answers, len(heads), [False] * len(answers), note, prose=True)


def without_shared_ends(texts: Sequence[str]) -> list[str]:
    """Texts without their common beginning and end, to whole words."""
    if len(set(texts)) < 2:
        return list(texts)
    start = re.sub(r"\w+\Z", "", _common_prefix(texts))
    rests = [text.removeprefix(start) for text in texts]
    end = re.sub(r"\A\w+", "", _common_prefix([text[::-1] for text in rests])[::-1])
    return [text.removesuffix(end).strip() for text in rests]


def _common_prefix(texts: Sequence[str]) -> str:
    pairs = zip(min(texts), max(texts), strict=False)  # all others share what these two share
    return "".join(a for a, _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


def _answer(answer: pd.Series, question: pd.Series) -> str:
    if pd.isna(answer["choice"]):
        return f"{answer['text']} [unreadable]"
    return f"{answer['text']} [{'right' if answer['choice'] == question['answer'] else 'wrong'}]"


def _head(condition: pd.Series) -> str:
    if condition["operation"] == "none":
        return "unsteered"
    if pd.isna(condition["multiplier"]):
        return condition["operation"].replace("_", " ")
    return f"{number(condition['multiplier'], SIGNED)} (dose {number(condition['dose'], PLAIN)})"
