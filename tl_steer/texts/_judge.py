"""A language model as judge: which of two steered texts shows more of a behaviour, in both orders."""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from .._util.seeds import generator
from .._util.validation import checked, require_characters
from .judge_clients import Judge, RetryPolicy, judge_of
from .judge_prompts import SIDES, Against, answer_pairs, comparison, read_verdict
from .judge_requests import JudgeCost, Plan, Price, cache_of

Client = Any  # anthropic.Anthropic, openai.OpenAI, what offers the same, or Callable[[str], str]
ADDED = ["question", "judge", "first_shown", "reply", "verdict", "cached"]


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
    """Pairs, calls, tokens and dollars of `judge` with the same arguments; makes no call.

    Raises:
        ValueError: as `judge`.
    """
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
    require_characters(requester.model or "", "model")
    pairs = answer_pairs(table, against, limit=limit, seed=seed)
    requests, keys = [], []
    for prompt, text, other in zip(pairs["prompt"], pairs["text"], pairs["other_text"], strict=True):
        for first, second in ((text, other), (other, text)):
            requests.append(comparison(question, prompt, first, second))
            keys.append(None if text == other else requester.key(requests[-1]))
    rows = pairs.iloc[np.repeat(np.arange(len(pairs)), 2)].reset_index(drop=True)
    rows = rows.assign(first_shown=[*SIDES[against]] * len(pairs), request=requests, key=keys)
    return Plan(requester, cache_of(requester, cache), rows, len(pairs))


def _with_verdicts(plan: Plan, question: str, known: set[str]) -> pd.DataFrame:
    rows = plan.rows
    replies = [plan.cache[key] if isinstance(key, str) else None for key in rows["key"]]
    verdicts = [
        "tie" if reply is None else _preferred(reply, first, SIDES[against])
        for reply, first, against in zip(replies, rows["first_shown"], rows["against"], strict=True)
    ]
    columns = {
        "question": question,
        "judge": plan.judge.model or plan.judge.interface,
        "reply": pd.array(replies, dtype="string"),
        "verdict": pd.array(verdicts, dtype="string"),
        "cached": rows["key"].isin(known),
    }
    result = rows.drop(columns=["request", "key"]).assign(**columns)
    return result[[*(name for name in result if name not in ADDED), *ADDED]]


def _preferred(reply: str, first: str, sides: tuple[str, str]) -> str | None:
    """The side that a reply prefers, "tie", or `None`."""
    verdict = read_verdict(reply)
    if verdict in (None, "tie"):
        return verdict
    (second,) = set(sides) - {first}
    return first if verdict == "first" else second
