"""What the model wrote, for the report: open prompts side by side, and answers with how they were read."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile

import pandas as pd

from ...plots.labels import prompt_labels
from ...sweeps.sweep_table import DRAW, UNSTEERED, rows_of, text_keys
from .report_tables import Table
from .wording import signed


@dataclass(frozen=True)
class TextLayer:
    """Texts at one layer.

    Attributes:
        layer: as the sweep names it.
        heads: what each column of texts is.
        rows: what was said, and its texts.
        plain: the place of the unsteered column.
    """

    layer: str
    heads: Sequence[str]
    rows: Sequence[tuple[str, Sequence[str]]]
    plain: int


def text_rows(texts: pd.DataFrame) -> list[TextLayer]:
    """Open prompts, or draws of them, with their texts, layer by layer: additions from lowest to highest."""
    layers = [] if texts.empty else [name for name in texts["layers"].unique() if name]
    return [_layer(texts, layer) for layer in layers]


def _layer(texts: pd.DataFrame, layer: str) -> TextLayer:
    here = texts[texts["layers"].isin(["", layer])].sort_values("multiplier", kind="stable")
    by_cell = here.groupby(["operation", "multiplier"], sort=False, dropna=False)
    sides = [rows.set_index(text_keys(rows)) for _, rows in by_cell]
    several = DRAW in texts and texts[DRAW].nunique() > 1
    said = [row["said"] + (f" (draw {place[1]})" if several else "") for place, row in sides[0].iterrows()]
    answers = [[str(side["text"][place]) for side in sides] for place in sides[0].index]
    rows = list(zip(said, answers, strict=True))
    plain = [side["vector"].iloc[0] for side in sides].index(UNSTEERED)
    return TextLayer(layer, [_head(side.iloc[0]) for side in sides], rows, plain)


def answer_table(rows: pd.DataFrame, cells: Sequence[pd.Series], *, factor: str, each: int = 2) -> Table:
    """Some answers as they were written, with what was read from them.

    Args:
        rows: a sweep's rows with texts, of the questions that had no part in choosing.
        cells: steered cells, shown beside the unsteered one.
        factor: tells the kinds of questions apart.
        each: so many questions of each kind, the first there are, and as many whose answer cannot be read in
            the first of the cells. Of several draws the first is shown.
    """
    rows = rows[rows[DRAW] == 0] if DRAW in rows else rows
    unsteered = rows[rows["vector"] == UNSTEERED].set_index("prompt_id")
    steered = [rows_of(rows, cell).set_index("prompt_id") for cell in cells]
    unread = unsteered[steered[0]["choice"].reindex(unsteered.index).isna()]
    shown = pd.concat([unsteered.groupby(factor).head(each), unread.head(each)])
    shown = shown[~shown.index.duplicated()].sort_values(factor, kind="stable")
    told = dict(zip(unsteered.index, without_shared_ends(list(prompt_labels(unsteered))), strict=True))
    answers = [
        [told[place], row[factor], *(_read(side.loc[place], row) for side in (unsteered, *steered))]
        for place, row in shown.iterrows()
    ]
    heads = ["question", factor, "unsteered", *(_head(cell) for cell in cells)]
    note = (
        f"The first {each} questions of each kind, and the first {each} whose answer at the chosen cell "
        "cannot be read; without what all prompts begin and end with. In brackets, how each text was read."
    )
    return Table(heads, answers, len(heads), [False] * len(answers), note, prose=True)


def without_shared_ends(texts: Sequence[str]) -> list[str]:
    """Texts without the beginning and the end that all of them share, as far as whole words go."""
    if len(set(texts)) < 2:
        return list(texts)
    start = re.sub(r"\w+\Z", "", _shared_start(texts))
    rests = [text.removeprefix(start) for text in texts]
    end = re.sub(r"\A\w+", "", _shared_start([text[::-1] for text in rests])[::-1])
    return [text.removesuffix(end).strip() for text in rests]


def _shared_start(texts: Sequence[str]) -> str:
    first, last = min(texts), max(texts)  # what these two share, all between them do
    return "".join(a for a, _ in takewhile(lambda pair: pair[0] == pair[1], zip(first, last, strict=False)))


def _read(answer: pd.Series, question: pd.Series) -> str:
    if pd.isna(answer["choice"]):
        return f"{answer['text']} [unreadable]"
    return f"{answer['text']} [{'right' if answer['choice'] == question['answer'] else 'wrong'}]"


def _head(cell: pd.Series) -> str:
    if cell["operation"] == "none":
        return "unsteered"
    if pd.isna(cell["multiplier"]):
        return cell["operation"].replace("_", " ")
    return f"{signed(cell['multiplier'])} (dose {cell['dose']:.2f})"
