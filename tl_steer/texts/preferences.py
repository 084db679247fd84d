"""What a judge's replies say of each cell: its preference, and how far the order of showing made it."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from .._util.validation import checked
from ..statistics import rate_interval, share
from ..sweeps.sweep_table import CELL, factors_of, samples_and_groups, sweep_table, text_keys

VERDICTS = ("verdict", "reply", "first_shown", "cached")


@checked
def preference(table: pd.DataFrame, *, by: str | Sequence[str] = ()) -> pd.DataFrame:
    """A row for each cell of a judge's table, and within it for each combination of factors.

    Args:
        table: what `judge` makes; several of them beside each other with by=("question",) or ("judge",).
        by: factors of the prompts, "split", "question" or "judge" to split by. Cells are never pooled.

    Returns:
        The cell's columns, `dose`, `against`, the factors, and, with 95 % intervals in `…_low`, `…_high`:
        n: prompts (with several draws per prompt, draws) whose two replies can both be read.
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
        Prompts of one `group`, and draws of one prompt, are taken together in the intervals, as in
        `effectiveness`.

    Raises:
        ValueError: columns are missing, or a prompt is not there in both orders once.
    """
    if not {*VERDICTS, "against", "text", "other_text"} <= {*table.columns}:
        raise ValueError(
            f"this is no judge's table, it has {', '.join(map(str, table))}: give what judge makes."
        )
    table = sweep_table(table, "prompt_id", "dose")
    by = [name for name in factors_of(table, by, {*COUNTED, *RATES, "consistent"}) if name != "against"]
    if wrong := [name for name in by if name in (*VERDICTS, "other_text")]:
        raise ValueError(f"by={wrong} are what the judge said: split by factors of the prompts.")
    keys = [*CELL, "against", *by]
    prompts, outcomes = _prompts(table, keys)
    result = _measured(prompts.groupby(keys, dropna=False, sort=False, observed=True), outcomes)
    return result.reset_index()[[*CELL, "dose", "against", *by, *(name for name in result if name != "dose")]]


COUNTED = ("n", "unreadable", "identical", "ties", "disagreeing", "decided")
RATES = ("preference", "win_rate", "first_share")


def _prompts(table: pd.DataFrame, keys: list[str]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """A row per prompt (or draw of it) and pair, and apart, since factors may have any name, its outcomes."""
    ours, theirs = (
        table["verdict"].isin(["positive", "steered"]),
        table["verdict"].isin(["negative", "unsteered"]),
    )
    picks = (ours | theirs).to_numpy()
    texts = text_keys(table)
    known = dict.fromkeys([*keys, *texts, "dose", *table.columns.intersection(["prompt", "group"])])
    prompts = table[[*known]].groupby(
        list(dict.fromkeys([*keys, *texts])), dropna=False, sort=False, observed=True
    )
    replies = pd.DataFrame(
        {
            "first_shown": table["first_shown"],
            # 1 the plus text, 0 the other, ½ a tie
            "value": np.select([ours, theirs, table["verdict"].eq("tie").fillna(False)], [1, 0, 0.5], np.nan),
            "first": np.where(picks, table["verdict"].eq(table["first_shown"]).fillna(False), np.nan),
            "alike": table["text"] == table["other_text"],
        }
    )
    pairs = replies.groupby(prompts.ngroup().to_numpy()).agg(
        orders=("first_shown", "nunique"),
        replies=("first_shown", "size"),
        read=("value", "count"),
        low=("value", "min"),
        high=("value", "max"),
        alike=("alike", "all"),
        first_share=("first", "mean"),
    )
    if not (pairs[["orders", "replies"]] == 2).all(axis=None):
        raise ValueError(
            "every prompt of a cell must be there in both orders, once each: give whole tables of `judge`, "
            'and by=("question", "judge") where there are several.'
        )
    return prompts.head(1).reset_index(drop=True), _counted(pairs)


def _counted(pairs: pd.DataFrame) -> pd.DataFrame:
    """What is counted and averaged, prompt by prompt; NaN in prompts that do not count."""
    readable, agreed = pairs["read"] == 2, pairs["low"] == pairs["high"]
    decided = readable & agreed & (pairs["low"] != 0.5)
    return pairs.assign(
        n=readable,
        unreadable=~readable,
        identical=readable & pairs["alike"],
        ties=readable & agreed & ~decided,
        disagreeing=readable & ~agreed,
        decided=decided,
        preference=pairs["low"].where(decided, 0.5).where(readable),
        win_rate=pairs["low"].where(decided),
    )


def _measured(cells: "pd.api.typing.DataFrameGroupBy", outcomes: pd.DataFrame) -> pd.DataFrame:
    result = cells.agg(dose=("dose", "first"))
    samples = samples_and_groups(cells)
    result[[*COUNTED]] = outcomes[[*COUNTED]].groupby(samples[0]).sum().to_numpy()
    for name in RATES:
        ends = rate_interval(outcomes[name].to_numpy(float), *samples)
        result[[name, f"{name}_low", f"{name}_high"]] = np.stack(ends, 1)
    different = (result["n"] - result["identical"]).to_numpy()
    consistent = share(different - result["disagreeing"].to_numpy(), different)
    result.insert(result.columns.get_loc("first_share"), "consistent", consistent)
    return result
