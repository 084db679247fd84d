"""What a judge's replies say of each condition: its preference, and how far the order of showing made it."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from .._util.validation import checked
from ..statistics import rate_interval, share
from ..sweeps.sweep_table import CONDITION, condition_means, ends, factors_of, text_keys, validated_sweep

VERDICTS = ("verdict", "reply", "first_shown", "cached")
COUNTED = ["n", "unreadable", "identical", "ties", "disagreeing", "decided"]
RATES = ("preference", "win_rate", "first_share")


@checked
def preference(table: pd.DataFrame, *, by: str | Sequence[str] = ()) -> pd.DataFrame:
    """Preference, consistency and position bias of a judge per condition.

    Args:
        table: from `judge`; several of them concatenated with by=("question",) or ("judge",).
        by: factors of the prompts, "split", "question" or "judge" to split by. Conditions are never pooled.

    Returns:
        The condition's columns, `dose`, `against`, the factors, and, with 95 % intervals in `…_low`,
        `…_high`:
        n: prompts (with several draws per prompt, draws) whose two replies can both be read.
        unreadable: prompts of which a reply cannot; the other one counts in `first_share` only.
        identical: of n, prompts whose two texts are the same.
        ties: of n, prompts with a tie in both orders, identical texts among them.
        disagreeing: of n, prompts whose two orders disagree.
        decided: of n, prompts for which both orders prefer the same text.
        preference: share preferring the positive (steered) text; ties and prompts whose orders disagree count
            one half. Wilson interval, of n prompts (halves vary less: it is wider than it need be).
        win_rate: of the decided, the share preferring the positive (steered) text. Wilson interval.
        consistent: share of prompts, those of identical texts left out, whose two orders agree.
        first_share: share of the replies with a preference that prefer the first shown; 0.5 shows no
            bias of position. Wilson interval, of prompts and not replies, two of which depend on each other.
        Prompts of one `group`, and draws of one prompt, are taken together in the intervals, as in
        `effectiveness`.

    Raises:
        ValueError: columns are missing, or a prompt is not there in both orders once.
    """
    columns = ("prompt_id", "dose", "first_shown", "verdict", "text", "other_text")
    table = validated_sweep(table, *columns, producer="judge", factors=["against", "reply", "cached"])
    by = [name for name in factors_of(table, by, {*COUNTED, *RATES, "consistent"}) if name != "against"]
    if verdicts := [name for name in by if name in (*VERDICTS, "other_text")]:
        raise ValueError(f"by={verdicts} are what the judge said: expected factors of the prompts.")
    keys = [*CONDITION, "against", *by]
    prompts, outcomes = _per_prompt(table, keys)
    conditions = prompts.groupby(keys, dropna=False, sort=False, observed=True)
    result = condition_means(conditions, outcomes, dict.fromkeys(RATES, rate_interval))
    counts = outcomes[COUNTED].groupby(conditions.ngroup().to_numpy()).sum()
    different = counts["n"] - counts["identical"]
    result["consistent"] = share((different - counts["disagreeing"]).to_numpy(), different.to_numpy())
    result[COUNTED] = counts.astype(int)
    intervals = [*ends("preference"), *ends("win_rate"), "consistent", *ends("first_share")]
    return result[[*CONDITION, "dose", *keys[len(CONDITION) :], *COUNTED, *intervals]]


def _per_prompt(table: pd.DataFrame, keys: list[str]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """One row per prompt (or draw) and pair, and apart, since factors may have any name, its outcomes."""
    studied = table["verdict"].isin(["positive", "steered"])
    other = table["verdict"].isin(["negative", "unsteered"])
    tie = table["verdict"].eq("tie").fillna(False)
    first = table["verdict"].eq(table["first_shown"]).fillna(False)
    replies = pd.DataFrame(
        {
            "first_shown": table["first_shown"],
            "value": np.select([studied, other, tie], [1, 0, 0.5], np.nan),
            "first": np.where(studied | other, first, np.nan),
            "identical": table["text"] == table["other_text"],
        }
    )
    texts = text_keys(table)
    columns = dict.fromkeys([*keys, *texts, "dose", *table.columns.intersection(["prompt", "group"])])
    pairs = table[[*columns]].groupby(
        list(dict.fromkeys([*keys, *texts])), dropna=False, sort=False, observed=True
    )
    both = replies.groupby(pairs.ngroup().to_numpy()).agg(
        orders=("first_shown", "nunique"),
        replies=("first_shown", "size"),
        read=("value", "count"),
        low=("value", "min"),
        high=("value", "max"),
        identical=("identical", "all"),
        first_share=("first", "mean"),
    )
    if not (both[["orders", "replies"]] == 2).all(axis=None):
        raise ValueError(
            "some prompts lack an order: expected both orders, once each. Pass whole tables "
            'of `judge`, and by=("question", "judge") where there are several.'
        )
    return pairs.head(1).reset_index(drop=True), _outcomes(both)


def _outcomes(both: pd.DataFrame) -> pd.DataFrame:
    """Counts and rates, prompt by prompt; NaN in prompts that do not count."""
    readable, agreed = both["read"] == 2, both["low"] == both["high"]
    decided = readable & agreed & (both["low"] != 0.5)
    return both.assign(
        n=readable,
        unreadable=~readable,
        identical=readable & both["identical"],
        ties=readable & agreed & ~decided,
        disagreeing=readable & ~agreed,
        decided=decided,
        preference=both["low"].where(decided, 0.5).where(readable),
        win_rate=both["low"].where(decided),
    )
