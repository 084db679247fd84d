"""What a judge's replies say of each cell: its preference, and how far the order of showing made it."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from ...arguments import checked
from ...statistics import share, wilson_interval
from ..tables import CELL, factors_of, sweep_table

VERDICTS = ("verdict", "reply", "first_shown", "cached")


@checked
def preference(table: pd.DataFrame, *, by: str | Sequence[str] = ()) -> pd.DataFrame:
    """A row for each cell of a judge's table, and within it for each combination of factors.

    Args:
        table: what `judge` makes; several of them beside each other with by=("question",) or ("judge",).
        by: factors of the prompts, "split", "question" or "judge" to split by. Cells are never pooled.

    Returns:
        The cell's columns, `dose`, `against`, the factors, and, with 95 % intervals in `…_low`, `…_high`:
        n: prompts whose two replies can both be read.
        unreadable: prompts of which a reply cannot; the other one counts in `first_share` only.
        identical: of n, prompts whose two texts are the same.
        ties: of n, prompts with a tie in both orders, identical texts among them.
        disagreeing: of n, prompts whose two orders disagree.
        decided: of n, prompts for which both orders prefer the same text.
        preference: share preferring the plus (steered) text; ties and prompts whose orders disagree count one
            half. Wilson interval, of n prompts (halves vary less: it is wider than it need be).
        win_rate: of the decided, the share preferring the plus (steered) text. Wilson interval.
        consistent: share of prompts, those of identical texts left out, whose two orders agree.
        first_share: share of the replies preferring some answer that prefer the first shown; 0.5 shows no
            bias of position. Wilson interval, of prompts and not replies, two of which depend on each other.

    Raises:
        ValueError: columns are missing, or a prompt is not there in both orders once.
    """
    if not {*VERDICTS, "against", "text", "other_text"} <= {*table.columns}:
        raise ValueError(
            f"this is no judge's table, it has {', '.join(map(str, table))}: give what judge makes."
        )
    table = sweep_table(table, "prompt_id", "dose")
    by = [name for name in factors_of(table, by) if name != "against"]
    if wrong := [name for name in by if name in (*VERDICTS, "other_text")]:
        raise ValueError(f"by={wrong} are what the judge said: split by factors of the prompts.")
    keys = [*CELL, "against", *by]
    prompts = _prompts(table, keys)
    cells = prompts.groupby(keys, dropna=False, sort=False, observed=True)
    sums = cells.agg(dose=("dose", "first"), **{name: (name, "sum") for name in COUNTED})
    result = _measured(sums)
    return result.reset_index()[[*CELL, "dose", "against", *by, *(name for name in result if name != "dose")]]


COUNTED = ("n", "unreadable", "identical", "ties", "disagreeing", "wins", "losses", "biased", "first")


def _prompts(table: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    """A row a prompt and pair, from its two replies."""
    ours, theirs = (
        table["verdict"].isin(["positive", "steered"]),
        table["verdict"].isin(["negative", "unsteered"]),
    )
    picks = (ours | theirs).to_numpy()
    rows = table[[*keys, "prompt_id", "dose", "first_shown"]].assign(
        # 1 the plus text, 0 the other, ½ a tie
        value=np.select([ours, theirs, table["verdict"].eq("tie").fillna(False)], [1, 0, 0.5], np.nan),
        first=np.where(picks, table["verdict"].eq(table["first_shown"]).fillna(False), np.nan),
        alike=table["text"] == table["other_text"],
    )
    pairs = rows.groupby([*keys, "prompt_id"], dropna=False, sort=False, observed=True).agg(
        dose=("dose", "first"),
        orders=("first_shown", "nunique"),
        replies=("first_shown", "size"),
        read=("value", "count"),
        low=("value", "min"),
        high=("value", "max"),
        alike=("alike", "all"),
        first=("first", "mean"),
    )
    if not (pairs[["orders", "replies"]] == 2).all(axis=None):
        raise ValueError(
            "every prompt of a cell must be there in both orders, once each: give whole tables of `judge`, "
            'and by=("question", "judge") where there are several.'
        )
    return _counted(pairs.reset_index())


def _counted(pairs: pd.DataFrame) -> pd.DataFrame:
    """What is counted, prompt by prompt."""
    readable, agreed = pairs["read"] == 2, pairs["low"] == pairs["high"]
    return pairs.assign(
        n=readable,
        unreadable=~readable,
        identical=readable & pairs["alike"],
        ties=readable & agreed & (pairs["low"] == 0.5),
        disagreeing=readable & ~agreed,
        wins=readable & (pairs["low"] == 1),
        losses=readable & (pairs["high"] == 0),
        biased=pairs["first"].notna(),
        first=pairs["first"].fillna(0),
    )


def _measured(sums: pd.DataFrame) -> pd.DataFrame:
    n, wins = sums["n"].to_numpy(float), sums["wins"].to_numpy(float)
    decided = wins + sums["losses"].to_numpy()
    result = sums[["dose", "n", "unreadable", "identical", "ties", "disagreeing"]].assign(
        decided=decided.astype(int)
    )
    shares = {
        "preference": (wins + (n - decided) / 2, n),
        "win_rate": (wins, decided),
        "first_share": (sums["first"].to_numpy(float), sums["biased"].to_numpy(float)),
    }
    for name, (successes, trials) in shares.items():
        result[name] = share(successes, trials)
        result[f"{name}_low"], result[f"{name}_high"] = wilson_interval(successes, trials)
    asked = n - sums["identical"].to_numpy()
    consistent = share(asked - sums["disagreeing"].to_numpy(), asked)
    result.insert(result.columns.get_loc("first_share"), "consistent", consistent)
    return result
