"""A language model as judge: which of two steered texts shows more of a behaviour, asked in both orders."""

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from .._util.seeds import generator
from .._util.validation import checked, require_characters
from ..errors import JudgeError
from ..models.bundled import cache_folder
from .answer_pairs import SIDES, Against, answer_pairs
from .judge_clients import Judge, judge_of
from .judge_costs import JudgeCost, cost_of
from .judge_prompt import comparison, read_verdict
from .reply_cache import ReplyCache
from .retries import Patience, ask_patiently

logger = logging.getLogger(__name__)

Price = tuple[float | int, float | int]
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
        question: what is compared, "Which answer is more honest?".
        client: an `anthropic.Anthropic` or `openai.OpenAI` client, whatever offers `messages.create` or
            `chat.completions.create` like them, or a function from a prompt to a reply.
        model: the judging model's name; for a function, the name under which its replies are kept.
        against: "opposite" compares the text at +m with that at −m, "unsteered" each with the unsteered one.
        cache: a file of replies, by default `judge.jsonl` in `$TL_STEER_CACHE` or the user's cache folder; a
            function without a name has none. `False` keeps nothing, and asks anew.
        max_tokens: limit of a reply; a model that reasons before it answers needs thousands.
        parameters: more fields of the request, as the interface names them: `{"temperature": 0}` for models
            that take it; `{"max_tokens": 16}` for servers that do not know OpenAI's `max_completion_tokens`.
        limit: so many prompts only, drawn by `seed`.
        max_calls: refuse to make more calls than this.
        price: dollars a million tokens, in and out, for the log.
        max_retries: of one request after rate limits, 5xx, timeouts, lost connections; with growing pauses.
        seed: of the pauses' jitter and of `limit`.
        sleep: waits for seconds.
        progress: show a bar over calls.

    Returns:
        Two rows a prompt and pair: the table's prompt_id, prompt, factors and cell (in "opposite", of the
        plus text), text, other_text, against, question, judge, and
        first_shown: which text was answer 1, "positive" or "negative" ("steered" or "unsteered").
        reply: NA where both texts are the same: a tie, about which nobody is asked.
        verdict: the text preferred, by the same names; "tie"; NA where the reply cannot be read.
        cached: whether the reply was in the cache before.

    Raises:
        ValueError: no texts or pairs, no question, no model's name, or more calls than `max_calls`.
        JudgeError: refused (400, 401, 403, …), or failed after all retries. What was asked is in the cache:
            the same call goes on from there.

    The cost is logged before the first call; `judge_cost` gives it without any call. Requests are made one
    after the other. The cache knows a request by interface, model, parameters and prompt, not by the server's
    address. Both texts are shown to whoever runs the judge.
    """
    plan = _plan(table, question, client, model, against, cache, max_tokens, parameters, limit, seed)
    cost = plan.cost(price)
    logger.info("judging: %s; replies are kept in %s", cost, plan.cache.path or "memory only")
    if cost.calls > max_calls:
        raise ValueError(
            f"{cost.calls:,} calls are more than max_calls={max_calls:,} ({cost}): select rows, set limit=…, "
            "or raise max_calls."
        )
    known = {key for key in plan.rows["key"].dropna() if key in plan.cache}
    patience = Patience(max_retries, rng=generator(seed), sleep=sleep)
    send_requests(plan, patience, progress=progress)
    return _judged(plan, question, known)


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
    """What `judge` with the same arguments would take: pairs, calls, tokens, dollars; makes no call.

    Raises:
        ValueError: as `judge`.
    """
    plan = _plan(table, question, client, model, against, cache, max_tokens, parameters, limit, seed)
    return plan.cost(price)


@dataclass(frozen=True)
class Plan:
    """Requests to a language model, and the cache of its replies.

    Attributes:
        judge: answers the requests.
        cache: of its replies.
        rows: one row per request: `request`, `key` (NA where the two texts of a pair are alike), and labels.
        pairs: pairs of texts that are compared, each in both orders; 0 where nothing is compared.
    """

    judge: Judge
    cache: ReplyCache
    rows: pd.DataFrame
    pairs: int = 0

    def missing(self) -> dict[str, str]:
        """Keys and prompts that the cache lacks, each once."""
        asked = self.rows[self.rows["key"].notna()]
        requests = dict(zip(asked["key"], asked["request"], strict=True))
        return {key: prompt for key, prompt in requests.items() if key not in self.cache}

    def cost(self, price: Price | None) -> JudgeCost:
        missing = self.missing()
        return cost_of(
            list(missing.values()),
            pairs=self.pairs,
            identical=int(self.rows["key"].isna().sum()) // 2,
            cached=self.rows["key"].nunique() - len(missing),
            max_tokens=self.judge.max_tokens,
            price=price,
        )


def _plan(
    table: pd.DataFrame,
    question: str,
    client: Client,
    model: str | None,
    against: Against,
    cache: str | Path | bool,
    max_tokens: int,
    parameters: Mapping[str, object] | None,
    limit: int | None,
    seed: int,
) -> Plan:
    if not isinstance(question, str) or not question.strip():
        raise ValueError('question must be a text such as "Which answer is more honest?".')
    require_characters(question, "question")
    require_characters(model or "", "model")
    asked = judge_of(client, model, max_tokens=max_tokens, parameters=parameters)
    pairs = answer_pairs(table, against, limit=limit, seed=seed)
    return Plan(asked, cache_of(asked, cache), _in_both_orders(pairs, question, asked), len(pairs))


def cache_of(client: Judge, cache: str | Path | bool) -> ReplyCache:
    """The cache that `cache=…` names.

    Raises:
        ValueError: a cache for a function without a name.
    """
    if cache is False or (cache is True and client.model is None):
        return ReplyCache(None)
    if client.model is None:
        raise ValueError('a function\'s replies are kept under its name: give model="…" beside cache.')
    return ReplyCache(cache_folder() / "judge.jsonl" if cache is True else Path(cache))


def _in_both_orders(pairs: pd.DataFrame, question: str, asked: Judge) -> pd.DataFrame:
    sides = SIDES[pairs["against"].iloc[0]]
    requests, keys = [], []
    for prompt, text, other in zip(pairs["prompt"], pairs["text"], pairs["other_text"], strict=True):
        for first, second in ((text, other), (other, text)):
            requests.append(comparison(question, prompt, first, second))
            keys.append(None if text == other else asked.key(requests[-1]))
    rows = pairs.iloc[np.repeat(np.arange(len(pairs)), 2)].reset_index(drop=True)
    return rows.assign(first_shown=[*sides] * len(pairs), request=requests, key=keys)


def send_requests(plan: Plan, patience: Patience, *, progress: bool, verb: str = "judging") -> None:
    """Make every request that the cache lacks, and keep each reply.

    Raises:
        JudgeError: with where the finished replies are.
    """
    missing = plan.missing()
    requests = plan.rows["key"].nunique()
    with tqdm(total=len(missing), desc=verb, unit="call", disable=not (progress and missing)) as bar:
        for done, (key, prompt) in enumerate(missing.items()):
            try:
                plan.cache.keep(key, ask_patiently(plan.judge, prompt, patience))
            except JudgeError as error:
                where = _where(plan.cache, requests - len(missing) + done, requests)
                raise JudgeError(f"{error}. {where}") from None
            bar.update()


def _where(cache: ReplyCache, done: int, requests: int) -> str:
    if cache.path is None:
        return f"{done} of {requests} replies are lost, since there is no cache: give cache=…"
    return f"{done} of {requests} replies are in {cache.path}; the same call goes on from there"


def _judged(plan: Plan, question: str, known: set[str]) -> pd.DataFrame:
    rows = plan.rows
    replies = [plan.cache[key] if isinstance(key, str) else None for key in rows["key"]]
    verdicts = [
        "tie" if reply is None else _verdict(reply, first, SIDES[against])
        for reply, first, against in zip(replies, rows["first_shown"], rows["against"], strict=True)
    ]
    columns = {
        "question": question,
        "judge": plan.judge.model or plan.judge.kind,
        "reply": pd.array(replies, dtype="string"),
        "verdict": pd.array(verdicts, dtype="string"),
        "cached": rows["key"].isin(known),
    }
    found = rows.drop(columns=["request", "key"]).assign(**columns)
    last = ["question", "judge", "first_shown", "reply", "verdict", "cached"]
    return found[[*(name for name in found if name not in last), *last]]


def _verdict(reply: str, first_shown: str, sides: tuple[str, str]) -> str | None:
    """The side that a reply prefers, "tie", or `None`."""
    chosen = read_verdict(reply)
    if chosen in (None, "tie"):
        return chosen
    (second_shown,) = set(sides) - {first_shown}
    return first_shown if chosen == "first" else second_shown
