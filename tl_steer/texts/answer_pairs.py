"""Which two texts a judge is to compare: those of opposite multipliers, or each beside the unsteered one."""

from typing import Any, Literal

import pandas as pd

from .._util.seeds import generator
from .._util.validation import warn
from ..sweeps.sweep_table import CELL, OUTCOMES, UNSTEERED, sweep_table, text_keys

Against = Literal["opposite", "unsteered"]
# The text under study comes first, the one it is compared with second.
SIDES = {"opposite": ("positive", "negative"), "unsteered": ("steered", "unsteered")}
TAKEN = (
    "other_text", "against", "question", "judge", "first_shown", "request", "key", "reply", "verdict",
    "cached",
)  # fmt: skip


def answer_pairs(
    table: pd.DataFrame, against: str, *, limit: int | None = None, seed: int = 0
) -> pd.DataFrame:
    """A row a prompt (or draw) and pair of texts: prompt, factors, cell, dose, against, text, other_text.

    Args:
        table: a sweep's table with texts.
        against: "opposite" pairs the text at +m with that at −m, "unsteered" each steered text with the
            unsteered one, of the same draw. Cells without a multiplier (`project_out`) have no opposite.
        limit: so many prompts, drawn by `seed`, the same ones for every cell; by default all.

    Raises:
        ValueError: an unknown `against`, no texts, a prompt twice in a cell, nothing to pair, a column that
            `judge` adds.

    Rows without a text are left out. In "opposite" the cell's multiplier and dose are those of the plus text.
    """
    if against not in SIDES:
        raise ValueError(f"against={against!r} is unknown: use {' or '.join(map(repr, SIDES))}.")
    rows = _with_texts(table)
    if limit is not None:
        rows = rows[rows["prompt_id"].isin(_some(list(rows["prompt_id"].unique()), limit, seed))]
    pairs = _opposites(rows) if against == "opposite" else _beside_unsteered(rows)
    outcomes = [name for name in OUTCOMES if name != "text" and name in pairs]
    labels = [name for name in pairs if name not in (*outcomes, "text", "other_text")]
    return pairs[[*labels, "text", "other_text"]].assign(against=against).reset_index(drop=True)


def _with_texts(table: pd.DataFrame) -> pd.DataFrame:
    table = sweep_table(table, "prompt_id", "prompt", "dose", "text")
    if clash := [name for name in TAKEN if name in table]:
        raise ValueError(f"the columns {clash} have names that judging uses: rename them first.")
    rows = table[table["text"].notna()]
    if rows.empty:
        raise ValueError("the table has no texts to judge: make it with sweep(…, measure='generate').")
    twice = rows.duplicated([*text_keys(rows), *CELL])
    if twice.any():
        raise ValueError(
            f"prompt_id {rows.loc[twice, 'prompt_id'].iloc[0]} is twice in a cell: judge one sweep at a time."
        )
    return rows


def _some(prompt_ids: list[Any], limit: int, seed: int) -> list[Any]:
    if limit < 1:
        raise ValueError(f"limit={limit} must be at least one prompt, or None for all.")
    drawn = generator(seed).permutation(len(prompt_ids))[:limit]
    return [prompt_ids[place] for place in drawn]


def _opposites(rows: pd.DataFrame) -> pd.DataFrame:
    steered = rows[(rows["vector"] != UNSTEERED) & rows["multiplier"].notna() & (rows["multiplier"] != 0)]
    keys = [*text_keys(steered), *CELL]
    minus = steered.loc[steered["multiplier"] < 0, [*keys, "text"]].rename(columns={"text": "other_text"})
    minus["multiplier"] *= -1
    plus = steered[steered["multiplier"] > 0]
    pairs = plus.merge(minus, on=keys, validate="one_to_one")
    if pairs.empty:
        raise ValueError(
            "no cell has an opposite, +m beside −m: sweep with multipliers of both signs, or compare "
            "against='unsteered'."
        )
    if alone := len(steered) - 2 * len(pairs):
        warn(
            f"{alone} texts have no opposite of the same size and are not judged: sweep both signs of each "
            'multiplier, or use against="unsteered".',
        )
    return pairs


def _beside_unsteered(rows: pd.DataFrame) -> pd.DataFrame:
    keys = text_keys(rows)
    unsteered = rows.loc[rows["vector"] == UNSTEERED, [*keys, "text"]]
    steered = rows[rows["vector"] != UNSTEERED]
    pairs = steered.merge(unsteered.rename(columns={"text": "other_text"}), on=keys, validate="many_to_one")
    if pairs.empty:
        raise ValueError("no prompt has both a steered and an unsteered text: give the whole sweep's table.")
    if alone := len(steered) - len(pairs):
        warn(
            f"{alone} texts have no unsteered one beside them and are not judged: keep the sweep's unsteered "
            "rows in the table.",
        )
    return pairs
