"""A language model as judge of two steered texts, in both orders, and the preference per condition."""

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from .._util.seeds import generator
from .._util.validation import checked, require_characters
from ..statistics import rate_interval, share
from ..sweeps.sweep_table import CONDITION, condition_means, ends, factors_of, text_keys, validated_sweep
from .judge_clients import Judge, RetryPolicy, judge_of
from .judge_prompts import SIDES, Against, answer_pairs, comparison, read_verdict
from .judge_requests import JudgeCost, Plan, Price, cache_of

JUDGED = ("verdict", "reply", "first_shown", "cached", "other_text")
COUNTED = ["n", "unreadable", "identical", "ties", "disagreeing", "decided"]
RATES = ("preference", "win_rate", "first_share")
Client = Any  # anthropic.Anthropic, openai.OpenAI, what offers the same, or Callable[[str], str]


@checked
def judge(
    table: pd.DataFrame,
    question: str,
    *,
    client: Client,
    model: str | None = None,
    against: Against = "opposite",
    cache: str | Path | bool = True,
    max_tokens: int = 16,
    parameters: Mapping[str, object] | None = None,
    limit: int | None = None,
    max_calls: int = 2000,
    price: Price | None = None,
    max_retries: int = 6,
    seed: int = 0,
    sleep: Callable[[float], object] = time.sleep,
    progress: bool = True,
) -> pd.DataFrame:
    """Ask a judge about every pair of texts twice, each text once as answer 1 and once as answer 2.

    Args:
        table: a sweep's table with texts; select rows first to ask less, control vectors are judged too.
        question: the criterion of the comparison, "Which answer is more honest?".
        client: an `anthropic.Anthropic` or `openai.OpenAI` client, any object with `messages.create` or
            `chat.completions.create` like them, or a function from a prompt to a reply.
        model: the judging model's name; for a function, the name under which its replies are cached.
        against: "opposite" compares the text at +m with that at −m, "unsteered" each with the unsteered one.
        cache: a file of replies, by default `judge.jsonl` in `$TL_STEER_CACHE` or the user's cache folder; a
            function without a name has none. `False` stores nothing.
        max_tokens: limit of a reply; a model that reasons before it answers needs thousands.
        parameters: more fields of the request, as the interface names them: `{"temperature": 0}` for models
            that take it; `{"max_tokens": 16}` for servers that do not know OpenAI's `max_completion_tokens`.
        limit: number of prompts, drawn by `seed`; by default all.
        max_calls: raise instead of making more calls than this.
        price: dollars per million tokens, in and out, for the log.
        max_retries: per request, after rate limits, 5xx, timeouts, lost connections; with growing pauses.
        seed: of the pauses' jitter and of `limit`.
        sleep: waits for seconds.
        progress: show a bar over calls.

    Returns:
        Two rows per prompt and pair: the table's prompt_id, prompt, factors and condition (in "opposite", of
        the positive text), text, other_text, against, question, judge, and
        first_shown: which text was answer 1, "positive" or "negative" ("steered" or "unsteered").
        reply: NA where both texts are the same: a tie, for which no request is made.
        verdict: the text preferred, by the same names; "tie"; NA where the reply cannot be read.
        cached: whether the reply was in the cache before.

    Raises:
        ValueError: no texts or pairs, no question, no model's name, or more calls than `max_calls`.
        JudgeError: rejected (400, 401, 403, …), or failed after all retries. The same call continues from the
            replies in the cache.

    The cost is logged before the first call; `judge_cost` gives it without any call. Requests are made one
    after the other. The cache knows a request by interface, model, parameters and prompt, not by the server's
    address. Both texts are sent to the judge's provider.
    """
    requester = judge_of(client, model, max_tokens=max_tokens, parameters=parameters)
    plan = _plan(table, question, requester, cache, against, limit, seed)
    known = {key for key in plan.rows["key"].dropna() if key in plan.cache}
    policy = RetryPolicy(max_retries, rng=generator(seed), sleep=sleep)
    plan.send(policy, verb="judging", price=price, max_calls=max_calls, progress=progress)
    return _with_verdicts(plan, question, known)


@checked
def judge_cost(
    table: pd.DataFrame,
    question: str,
    *,
    client: Client,
    model: str | None = None,
    against: Against = "opposite",
    cache: str | Path | bool = True,
    max_tokens: int = 16,
    parameters: Mapping[str, object] | None = None,
    limit: int | None = None,
    price: Price | None = None,
    seed: int = 0,
) -> JudgeCost:
    """Pairs, calls, tokens and dollars of `judge` with the same arguments; raises as `judge`. No call."""
    requester = judge_of(client, model, max_tokens=max_tokens, parameters=parameters)
    return _plan(table, question, requester, cache, against, limit, seed).cost(price)


def _plan(
    table: pd.DataFrame,
    question: str,
    requester: Judge,
    cache: str | Path | bool,
    against: str,
    limit: int | None,
    seed: int,
) -> Plan:
    if not question.strip():
        raise ValueError('question is blank: expected a text such as "Which answer is more honest?".')
    require_characters(question, "question")
    pairs = answer_pairs(table, against, limit=limit, seed=seed)
    requests, keys = [], []
    for prompt, text, other in pairs[["prompt", "text", "other_text"]].itertuples(index=False):
        for first, second in ((text, other), (other, text)):
            requests.append(comparison(question, prompt, first, second))
            keys.append(None if text == other else requester.key(requests[-1]))
    rows = pairs.loc[np.repeat(pairs.index, 2)].reset_index(drop=True)
    rows = rows.assign(first_shown=[*SIDES[against]] * len(pairs), request=requests, key=keys)
    return Plan(requester, cache_of(requester, cache), rows, len(pairs))


def _with_verdicts(plan: Plan, question: str, known: set[str]) -> pd.DataFrame:
    rows = plan.rows
    replies = [plan.cache[key] if isinstance(key, str) else None for key in rows["key"]]
    sides = rows["against"].map(SIDES)
    verdicts = list(map(_preferred, replies, rows["first_shown"], sides))
    columns = {
        "question": question,
        "judge": plan.judge.model or plan.judge.interface,
        "first_shown": rows["first_shown"],
        "reply": pd.array(replies, dtype="string"),
        "verdict": pd.array(verdicts, dtype="string"),
        "cached": rows["key"].isin(known),
    }
    return rows.drop(columns=["first_shown", "request", "key"]).assign(**columns)


def _preferred(reply: str | None, first: str, sides: tuple[str, str]) -> str | None:
    """The side that a reply prefers, "tie" (also without a request), or `None`."""
    if reply is None:
        return "tie"
    second = sides[1 - sides.index(first)]
    return {"first": first, "second": second, "tie": "tie"}.get(read_verdict(reply))


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
    if judged := [name for name in by if name in JUDGED]:
        raise ValueError(f"by={judged} are what the judge said: expected factors of the prompts.")
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
    """One row per prompt (or draw) and pair, and its outcomes: separate, since factors may have any name."""
    verdict = table["verdict"].astype(object).fillna("")
    studied, other = verdict.isin(["positive", "steered"]), verdict.isin(["negative", "unsteered"])
    replies = pd.DataFrame(
        {
            "first_shown": table["first_shown"],
            "value": np.select([studied, other, verdict == "tie"], [1, 0, 0.5], np.nan),
            "first": np.where(studied | other, verdict.eq(table["first_shown"]).fillna(False), np.nan),
            "identical": table["text"] == table["other_text"],
        }
    )
    labels = list(dict.fromkeys([*keys, *text_keys(table)]))
    columns = dict.fromkeys([*labels, "dose", *table.columns.intersection(["prompt", "group"])])
    pairs = table[[*columns]].groupby(labels, dropna=False, sort=False, observed=True)
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
            "some prompts lack an order: expected both orders, once each. Pass whole tables of `judge`, and "
            'by=("question", "judge") where there are several.'
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
