"""Generated texts for the report: open prompts side by side, and answers with the choice read from them."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile

import pandas as pd

from ...plots.format import number, prompt_labels
from ...sweeps.sweep_table import DRAW, UNSTEERED, condition_rows, text_keys
from .report_tables import PLAIN, SIGNED, Table


@dataclass(frozen=True)
class TextLayer:
    """Texts at one layer: a heading per column, prompts with their texts; `plain` is the unsteered column."""

    layer: str
    heads: Sequence[str]
    rows: Sequence[tuple[str, Sequence[str]]]
    plain: int


def text_rows(texts: pd.DataFrame) -> list[TextLayer]:
    """Open prompts, or draws of them, with their texts per layer: additions from lowest to highest."""
    layers = [] if texts.empty else [name for name in texts["layers"].unique() if name]
    return [_layer(texts, layer) for layer in layers]


def _layer(texts: pd.DataFrame, layer: str) -> TextLayer:
    rows = texts[texts["layers"].isin(["", layer])].sort_values("multiplier", kind="stable")
    by_condition = rows.groupby(["operation", "multiplier"], sort=False, dropna=False)
    columns = [column.set_index(text_keys(column)) for _, column in by_condition]
    several = DRAW in texts and texts[DRAW].nunique() > 1
    prompts = [row["said"] + (f" (draw {key[1]})" if several else "") for key, row in columns[0].iterrows()]
    answers = [[str(column["text"][key]) for column in columns] for key in columns[0].index]
    plain_column = [column["vector"].iloc[0] for column in columns].index(UNSTEERED)
    heads = [_head(column.iloc[0]) for column in columns]
    return TextLayer(layer, heads, list(zip(prompts, answers, strict=True)), plain_column)


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
