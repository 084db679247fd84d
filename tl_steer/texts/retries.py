"""Patience with servers: again after what passes by itself, with growing pauses; at once an error else."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import numpy as np

from ..errors import CutOffError, JudgeError, UnusableResponseError
from .judge_clients import Judge

logger = logging.getLogger(__name__)

PASSING = (408, 409, 429)  # and all from 500: timeout, conflict, rate limit
# by name, so that the errors of all libraries are known without importing one
PASSING_NAMES = {"ConnectionError", "TimeoutError", "APIConnectionError", "Timeout", "TransportError",
                 "JSONDecodeError", "APIResponseValidationError"}  # fmt: skip
SPENT = "insufficient_quota"  # OpenAI's 429 that waiting does not mend
MOST_PATIENCE = 600.0  # seconds; a server that asks for more is not waited for
HINTS = {401: "check the client's API key", 403: "check what the client's API key may use",
         404: "check the model's name and the client's base_url"}  # fmt: skip


@dataclass(frozen=True)
class Patience:
    """How often and how long to wait.

    Attributes:
        max_retries: of one request, beside the first attempt.
        first, longest: seconds before the first retry, and at most; they double in between.
        rng: of the jitter, which takes off up to half, so that many who wait do not come back at once.
        sleep: waits for seconds.
    """

    max_retries: int = 6
    first: float = 1.0
    longest: float = 60.0
    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0), repr=False)
    sleep: Callable[[float], object] = field(default=time.sleep, repr=False)

    def __post_init__(self) -> None:
        if self.max_retries < 0:
            raise ValueError(f"max_retries={self.max_retries}: give 0 or more.")

    def pause(self, retry: int, asked_for: float | None) -> float:
        """Seconds before retry 0, 1, …: never less than the server asked for."""
        wait = min(self.first * 2**retry, self.longest) * (1 - self.rng.random() / 2)
        return wait if asked_for is None else asked_for + wait / 4


def ask_patiently(judge: Judge, prompt: str, patience: Patience) -> str:
    """One reply, with as many attempts as it may take.

    Raises:
        JudgeError: refused, or failed once more than `max_retries` times. Its message has no key in it, and
            it has no cause, whose message might.
        Exception: a function's own error that is none of a connection, as it is.
    """
    for retry in range(patience.max_retries + 1):
        reply, failure = _attempt(judge, prompt)
        if failure is None:
            return reply
        _require_passing(judge, failure)
        asked_for = retry_after(failure)
        if retry == patience.max_retries or (asked_for or 0) > MOST_PATIENCE:
            break
        wait = patience.pause(retry, asked_for)
        logger.info("%s: retry %d in %.1f s", _kind(failure), retry + 1, wait)
        patience.sleep(wait)
    waited = f"; the server asks to wait {asked_for:.0f} s" if asked_for else ""
    raise JudgeError(f"the judge failed {retry + 1} times, last with {_told(judge, failure)}{waited}")


def is_passing(error: Exception) -> bool:
    """Whether an error may be gone next time: rate limits, 5xx, timeouts, connections, broken responses."""
    status = _status(error)
    if status is not None:
        return (status in PASSING or status >= 500) and getattr(error, "code", None) != SPENT
    names = {base.__name__ for base in type(error).__mro__}
    return isinstance(error, UnusableResponseError) or bool(names & PASSING_NAMES)


def retry_after(error: Exception) -> float | None:
    """Seconds that the server asks to wait, from `retry-after-ms` or `retry-after` (seconds, or a date)."""
    headers = getattr(getattr(error, "response", None), "headers", None) or {}
    for name, unit in (("retry-after-ms", 1000), ("retry-after", 1)):
        try:
            seconds = float(headers[name]) / unit
        except (KeyError, ValueError):
            continue
        if seconds >= 0:  # not so for NaN either
            return seconds
    try:
        date = parsedate_to_datetime(headers["retry-after"])
    except (KeyError, ValueError):
        return None
    return max((date.astimezone(UTC) - datetime.now(UTC)).total_seconds(), 0.0)


def _attempt(judge: Judge, prompt: str) -> tuple[str, Exception | None]:
    """The reply, or what failed: handed on, so that our own error does not carry it along."""
    try:
        return judge.ask(prompt), None
    except Exception as error:
        return "", error


def _require_passing(judge: Judge, failure: Exception) -> None:
    if is_passing(failure):
        return
    if judge.kind == "function":
        raise failure
    hint = HINTS.get(_status(failure) or 0)
    raise JudgeError(f"the judge cannot be asked: {_told(judge, failure)}" + (f"; {hint}" if hint else ""))


def _told(judge: Judge, failure: Exception) -> str:
    """An error in words, keys left out."""
    cause = f" ({failure.__cause__})" if failure.__cause__ else ""
    name = "" if isinstance(failure, CutOffError | UnusableResponseError) else f"{type(failure).__name__}: "
    return judge.without_secrets(f"{name}{failure}{cause}")


def _kind(failure: Exception) -> str:
    status = _status(failure)
    return type(failure).__name__ + (f" {status}" if status else "")


def _status(error: Any) -> int | None:
    """The HTTP status, where clients (`status_code`) and plain HTTP libraries (`response`) keep it."""
    for holder in (error, getattr(error, "response", None)):
        status = getattr(holder, "status_code", None)
        if isinstance(status, int):
            return status
    return None
