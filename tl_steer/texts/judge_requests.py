"""Requests to a language model: their cost, the cache of replies, and sending the missing ones."""

import json
import logging
import os
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from tqdm.auto import tqdm

from ..errors import JudgeError
from ..models.sources import cache_folder
from .judge_clients import Judge, RetryPolicy, ask_with_retries

logger = logging.getLogger(__name__)

Price = tuple[float | int, float | int]
CHARACTERS_PER_TOKEN = 4  # of English prose, roughly; other scripts take more tokens
LINE_START = b'{"key": '


@dataclass(frozen=True)
class JudgeCost:
    """Number of requests to a language model, and their cost.

    Attributes:
        pairs: pairs of texts to compare; 0 for exemplars, which are written one by one.
        identical: of these, pairs of the same text, for which no request is made.
        requests: different requests: two for each other pair, or one per exemplar.
        cached: of these, those answered in the cache.
        calls: requests that are left to make; retries come on top.
        characters: in the prompts of these calls.
        tokens_in: estimated at four characters each.
        tokens_out: at most, the limit of a reply times the calls.
        dollars: of these tokens, at most about; `None` without prices.
    """

    pairs: int
    identical: int
    requests: int
    cached: int
    calls: int
    characters: int
    tokens_in: int
    tokens_out: int
    dollars: float | None

    def __str__(self) -> str:
        identical = f", {self.identical} of them alike" if self.identical else ""
        dollars = "" if self.dollars is None else f", at most about ${self.dollars:,.2f}"
        pairs = f"{self.pairs:,} pairs of texts{identical}, " if self.pairs else ""
        return (
            f"{pairs}{self.requests:,} requests, {self.cached:,} in the cache: {self.calls:,} calls, "
            f"{self.characters:,} characters (about {self.tokens_in:,} tokens) in, at most "
            f"{self.tokens_out:,} tokens out{dollars}"
        )


class ReplyCache:
    """Replies by digest of their request, in memory and, where a path is given, in a file of JSON lines.

    Raises:
        ValueError: the file has other content.

    Each reply is one write to the end of the file, flushed to the disk before the next request is made. A
    process may be killed at any moment, and two may write to one file: an unfinished line is skipped, and
    damages no other, since each begins with a line break. The file contains digests and replies, neither
    prompts nor keys.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._replies = {} if path is None else _read(path)

    def __contains__(self, key: str) -> bool:
        return key in self._replies

    def __getitem__(self, key: str) -> str:
        return self._replies[key]

    def add(self, key: str, reply: str) -> None:
        """Store a reply, on the disk too when this returns. Raises `OSError` if it cannot be written."""
        self._replies[key] = reply
        if self.path is None:
            return
        line = b"\n" + json.dumps({"key": key, "reply": reply}).encode() + b"\n"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "ab", buffering=0) as file:
            if file.write(line) != len(line):
                raise OSError(f"{self.path}: a reply was written in part only. Is the disk full?")
            os.fsync(file.fileno())


def _read(path: Path) -> dict[str, str]:
    content = path.read_bytes() if path.exists() else b""
    lines = [line for line in content.split(b"\n") if line]
    entries = [entry for line in lines if (entry := _entry(line))]
    # A single unfinished line is the beginning of an entry.
    if lines and not entries and not any(line.startswith(LINE_START[: len(line)]) for line in lines):
        raise ValueError(f"{path} is not a file of a judge's replies. Pass another file as cache=…")
    if len(entries) < len(lines):
        logger.info("%s: %d unfinished lines are skipped", path, len(lines) - len(entries))
    return dict(entries)


def _entry(line: bytes) -> tuple[str, str] | None:
    try:
        entry = json.loads(line)
        key, reply = entry["key"], entry["reply"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    return (key, reply) if isinstance(key, str) and isinstance(reply, str) else None


def cache_of(judge: Judge, cache: str | Path | bool) -> ReplyCache:
    """The cache that the argument `cache` of `judge` and `write_exemplars` names."""
    if cache is False or (cache is True and judge.model is None):
        return ReplyCache(None)
    if judge.model is None:
        raise ValueError('a function\'s replies are cached under its name: pass model="…" too.')
    return ReplyCache(cache_folder() / "judge.jsonl" if cache is True else Path(cache))


@dataclass(frozen=True)
class Plan:
    """Requests to a language model, and the cache of its replies."""

    judge: Judge
    cache: ReplyCache
    rows: pd.DataFrame  # of each request: `request`, `key` (NA where a pair's texts are identical), labels
    pairs: int = 0  # pairs of texts, each compared in both orders

    def missing(self) -> dict[str, str]:
        """Keys and prompts that the cache lacks, each once."""
        rows = self.rows.dropna(subset="key")
        requests = zip(rows["key"], rows["request"], strict=True)
        return {key: prompt for key, prompt in requests if key not in self.cache}

    def cost(self, price: Price | None) -> JudgeCost:
        """The cost of the missing replies, at a price in dollars per million tokens, in and out."""
        if price is not None and min(price) < 0:
            raise ValueError(f"price={price}: expected dollars per million tokens, in and out, not negative.")
        missing, requests = self.missing(), self.rows["key"].nunique()
        calls, characters = len(missing), sum(map(len, missing.values()))
        tokens = (-(-characters // CHARACTERS_PER_TOKEN), self.judge.max_tokens * calls)
        dollars = None if price is None else (tokens[0] * price[0] + tokens[1] * price[1]) / 1e6
        identical = int(self.rows["key"].isna().sum()) // 2
        return JudgeCost(
            self.pairs, identical, requests, requests - calls, calls, characters, *tokens, dollars
        )

    def send(
        self, policy: RetryPolicy, *, verb: str, price: Price | None, max_calls: int, progress: bool
    ) -> None:
        """Log the cost, then make every request that the cache lacks, and store each reply.

        Raises `ValueError` for more calls than `max_calls`, `JudgeError` with the location of the replies.
        """
        cost = self.cost(price)
        logger.info("%s: %s; replies are stored in %s", verb, cost, self.cache.path or "memory only")
        if cost.calls > max_calls:
            raise ValueError(
                f"{cost.calls:,} calls are more than max_calls={max_calls:,} ({cost}): select rows or "
                "prompts, set limit=…, or raise max_calls."
            )
        missing = self.missing()
        with tqdm(total=len(missing), desc=verb, unit="call", disable=not (progress and missing)) as bar:
            for done, (key, prompt) in enumerate(missing.items()):
                try:
                    self.cache.add(key, ask_with_retries(self.judge, prompt, policy))
                except JudgeError as error:
                    location = "lost: there is no cache. Pass cache=…"
                    if self.cache.path is not None:
                        location = f"in {self.cache.path}; the same call continues from there"
                    finished = f"{cost.cached + done} of {cost.requests} replies are {location}"
                    raise JudgeError(f"{error}. {finished}") from None
                bar.update()
