"""Clients of a judge: the Anthropic and OpenAI interfaces, or a function, with retries."""

import hashlib
import inspect
import json
import logging
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import partial, reduce
from typing import Any

import numpy as np

from .._util.validation import require_characters
from ..errors import CutOffError, JudgeError, UnusableResponseError

logger = logging.getLogger(__name__)

SECRET_HEADERS = "auth|key|token|cookie|secret"
TRANSIENT = (408, 409, 429)  # and all from 500: timeout, conflict, rate limit
# By name, so that the errors of all libraries are known without importing one.
TRANSIENT_NAMES = {"ConnectionError", "TimeoutError", "APIConnectionError", "Timeout", "TransportError",
                   "JSONDecodeError", "APIResponseValidationError"}  # fmt: skip
NO_QUOTA = "insufficient_quota"  # OpenAI's 429 that a retry does not help
LONGEST_WAIT = 600.0  # seconds; a server that asks for more gets no retry
HINTS = {401: "check the client's API key", 403: "check what the client's API key may use",
         404: "check the model's name and the client's base_url"}  # fmt: skip


@dataclass(frozen=True)
class Judge:
    """A language model that replies to prompts."""

    interface: str  # "anthropic", "openai" or "function"
    model: str | None  # `None` for a function without a name
    parameters: Mapping[str, object]  # fields of the request besides model and prompt
    max_tokens: int
    ask: Callable[[str], str] = field(repr=False)
    secrets: tuple[str, ...] = field(default=(), repr=False)  # removed from messages

    def key(self, prompt: str) -> str:
        """A digest of the whole request, without the server's address and the client's key."""
        request = {"kind": self.interface, "model": self.model, "parameters": self.parameters,
                   "prompt": prompt}  # fmt: skip
        return hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()

    def without_secrets(self, text: str) -> str:
        """A text to be shown: servers do repeat keys in their error messages."""
        for secret in self.secrets:
            text = text.replace(secret, "…")
        return text


def judge_of(
    client: Any, model: str | None, *, max_tokens: int, parameters: Mapping[str, object] | None
) -> Judge:
    """Recognize a client by the methods it has, so that compatible ones and test doubles work."""
    fields = dict(parameters or {})
    require_characters(model or "", "model")
    if callable(_attribute(client, "messages.create")):
        return _client_judge("anthropic", client, model, {"max_tokens": max_tokens} | fields)
    if callable(_attribute(client, "chat.completions.create")):
        # "max_tokens" is rejected by some models, the newer name ignored by some servers: the caller's wins
        limit = {} if "max_tokens" in fields else {"max_completion_tokens": max_tokens}
        return _client_judge("openai", client, model, limit | fields)
    if not callable(client):
        raise TypeError(
            f"client is {type(client).__name__}: expected an anthropic.Anthropic or openai.OpenAI client, or "
            "a function from a prompt to a reply."
        )
    if fields:
        raise ValueError(f"parameters={fields} have no effect on a function. Set them inside it.")
    return Judge("function", model, {}, max_tokens, partial(_ask_function, client))


def _attribute(value: Any, path: str) -> Any:
    """The attribute at a dotted path, or `None`."""
    return reduce(lambda each, name: getattr(each, name, None), path.split("."), value)


def _client_judge(interface: str, client: Any, model: str | None, fields: dict[str, Any]) -> Judge:
    if not model:
        raise ValueError('a client needs the name of its model: pass model="…".')
    secrets = _secrets(client)
    # Retries of the library would be invisible: every request is to be counted.
    client = client.with_options(max_retries=0) if hasattr(client, "with_options") else client
    max_tokens = int(fields.get("max_tokens", fields.get("max_completion_tokens")))
    # Parameters are a part of the body, since versions of the libraries differ in those they name.
    if interface == "anthropic":
        body = {name: value for name, value in fields.items() if name != "max_tokens"}
        send = partial(client.messages.create, max_tokens=fields["max_tokens"], extra_body=body)
        read = _read_anthropic
    else:
        send, read = partial(client.chat.completions.create, extra_body=dict(fields)), _read_openai
    ask = partial(_ask_client, partial(send, model=model), read, fields)
    return Judge(interface, model, fields, max_tokens, ask, secrets)


def _ask_client(
    send: Callable[..., Any],
    read: Callable[[Any], tuple[str, bool]],
    fields: Mapping[str, Any],
    prompt: str,
) -> str:
    response = send(messages=[{"role": "user", "content": prompt}])
    if inspect.isawaitable(response):
        response.close()
        raise TypeError("the client is asynchronous: expected anthropic.Anthropic or openai.OpenAI.")
    text, is_cut_off = read(response)
    if is_cut_off and not text.strip():
        raise CutOffError(
            f"no text within {dict(fields)}: a model that reasons before it answers needs more max_tokens"
        )
    return text


def _read_anthropic(response: Any) -> tuple[str, bool]:
    """The text of a response, and whether it was cut off."""
    blocks = getattr(response, "content", None)
    if not isinstance(blocks, list):
        raise UnusableResponseError(f"no list of content in a response of type {type(response).__name__}")
    text = "".join(block.text for block in blocks if getattr(block, "type", None) == "text")
    return text, getattr(response, "stop_reason", None) == "max_tokens"


def _read_openai(response: Any) -> tuple[str, bool]:
    choices = getattr(response, "choices", None)
    if not isinstance(choices, list) or not choices or getattr(choices[0], "message", None) is None:
        raise UnusableResponseError(f"no message in a response of type {type(response).__name__}")
    return choices[0].message.content or "", getattr(choices[0], "finish_reason", None) == "length"


def _ask_function(function: Callable[[str], str], prompt: str) -> str:
    reply = function(prompt)
    if not isinstance(reply, str):
        raise TypeError(f"the judging function returned {type(reply).__name__}: expected text.")
    return reply


def _secrets(client: Any) -> tuple[str, ...]:
    """Keys and tokens of a client, longest first, so that none is replaced in part."""
    headers = getattr(client, "default_headers", None)
    headers = headers if isinstance(headers, Mapping) else {}
    values = [value for name, value in headers.items() if re.search(SECRET_HEADERS, name, re.I)]
    values += [getattr(client, name, None) for name in ("api_key", "auth_token")]
    parts = {part for value in values if isinstance(value, str) for part in value.split()}
    return tuple(sorted(parts - {"Bearer", "Basic"}, key=len, reverse=True))


@dataclass(frozen=True)
class RetryPolicy:
    """Exponential backoff: pauses double, from 1 to at most 60 seconds; `rng` takes off up to half."""

    max_retries: int  # per request, after the first attempt
    rng: np.random.Generator
    sleep: Callable[[float], object]

    def __post_init__(self) -> None:
        if self.max_retries < 0:
            raise ValueError(f"max_retries={self.max_retries}: expected 0 or more.")

    def pause(self, retry: int, minimum: float | None) -> float:
        """Seconds before retry 0, 1, …: never less than the server's `minimum`."""
        wait = min(2.0**retry, 60.0) * (1 - self.rng.random() / 2)
        return wait if minimum is None else minimum + wait / 4


def ask_with_retries(judge: Judge, prompt: str, policy: RetryPolicy) -> str:
    """One reply. Retry transient errors with exponential backoff; raise all others immediately.

    Raises:
        JudgeError: rejected, or failed once more than `max_retries` times. Its message contains no key, and
            it has no cause, whose message might.
        Exception: a function's own error that is not one of a connection, unchanged.
    """
    for retry in range(policy.max_retries + 1):
        reply, error = _attempt(judge, prompt)
        if error is None:
            return reply
        status = _status(error)
        if not is_transient(error):
            if judge.interface == "function":
                raise error
            hint = f"; {HINTS[status]}" if status in HINTS else ""
            raise JudgeError(f"the judge cannot be called: {_described(judge, error)}{hint}")
        minimum = retry_after(error)
        if retry == policy.max_retries or (minimum or 0) > LONGEST_WAIT:
            break
        wait = policy.pause(retry, minimum)
        logger.info("%s %s: retry %d in %.1f s", type(error).__name__, status or "", retry + 1, wait)
        policy.sleep(wait)
    waiting = f"; the server asks to wait {minimum:.0f} s" if minimum else ""
    raise JudgeError(f"the judge failed {retry + 1} times, last with {_described(judge, error)}{waiting}")


def is_transient(error: Exception) -> bool:
    """Whether a retry may help: rate limits, 5xx, timeouts, connections, broken responses."""
    status = _status(error)
    if status is not None:
        return (status in TRANSIENT or status >= 500) and getattr(error, "code", None) != NO_QUOTA
    names = {base.__name__ for base in type(error).__mro__}
    return isinstance(error, UnusableResponseError) or bool(names & TRANSIENT_NAMES)


def retry_after(error: Exception) -> float | None:
    """Seconds that the server asks to wait, from `retry-after-ms` or `retry-after` (seconds, or a date)."""
    headers = _attribute(error, "response.headers") or {}
    for name, unit in (("retry-after-ms", 1000), ("retry-after", 1)):
        try:
            seconds = float(headers[name]) / unit
        except (KeyError, ValueError):
            continue
        if seconds >= 0:  # false for NaN too
            return seconds
    try:
        date = parsedate_to_datetime(headers["retry-after"])
    except (KeyError, ValueError):
        return None
    return max((date.astimezone(UTC) - datetime.now(UTC)).total_seconds(), 0.0)


def _attempt(judge: Judge, prompt: str) -> tuple[str, Exception | None]:
    """The reply, or the error: returned, so that it is not the context of ours."""
    try:
        return judge.ask(prompt), None
    except Exception as error:
        return "", error


def _described(judge: Judge, error: Exception) -> str:
    """The error's message and its cause, without keys."""
    cause = f" ({error.__cause__})" if error.__cause__ else ""
    name = "" if isinstance(error, CutOffError | UnusableResponseError) else f"{type(error).__name__}: "
    return judge.without_secrets(f"{name}{error}{cause}".rstrip("."))


def _status(error: Any) -> int | None:
    """The HTTP status: clients have `status_code`, plain HTTP libraries a `response` with one."""
    statuses = (_attribute(error, path) for path in ("status_code", "response.status_code"))
    return next((status for status in statuses if isinstance(status, int)), None)
