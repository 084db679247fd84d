"""Whoever judges: a client of the Anthropic or OpenAI interface, or a function, behind one call."""

import hashlib
import inspect
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from ..errors import CutOffError, UnusableResponseError

HIDDEN = ("auth", "key", "token", "cookie", "secret")  # parts of the names of headers not to be shown


@dataclass(frozen=True)
class Judge:
    """A judge that can be asked.

    Attributes:
        kind: "anthropic", "openai" or "function": the interface spoken.
        model: its name; `None` for a function without one.
        parameters: fields of the request beside model and prompt.
        max_tokens: limit of a reply.
        ask: one request: a prompt to a reply.
        secrets: what must never be shown.
    """

    kind: str
    model: str | None
    parameters: Mapping[str, object]
    max_tokens: int
    ask: Callable[[str], str] = field(repr=False)
    secrets: tuple[str, ...] = field(default=(), repr=False)

    def key(self, prompt: str) -> str:
        """A digest of the whole request; the server's address and the client's key are not in it."""
        request = {"kind": self.kind, "model": self.model, "parameters": self.parameters, "prompt": prompt}
        return hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()

    def without_secrets(self, text: str) -> str:
        """A text to be shown: servers do repeat keys in their error messages."""
        for secret in self.secrets:
            text = text.replace(secret, "…")
        return text


def judge_of(
    client: Any, model: str | None, *, max_tokens: int, parameters: Mapping[str, object] | None
) -> Judge:
    """Recognize a client by what it offers, so that compatible ones and stand-ins work.

    Raises:
        ValueError: no model's name for a client; parameters for a function.
        TypeError: neither a client nor a function.
    """
    extra = dict(parameters or {})
    if _offers(client, "messages.create"):
        return _client_judge("anthropic", client, model, {"max_tokens": max_tokens} | extra, _ask_anthropic)
    if _offers(client, "chat.completions.create"):
        # "max_tokens" is refused by some models, the newer name ignored by some servers: the caller's wins
        limit = {} if "max_tokens" in extra else {"max_completion_tokens": max_tokens}
        return _client_judge("openai", client, model, limit | extra, _ask_openai)
    if not callable(client):
        raise TypeError(
            f"client is {type(client).__name__}: give an anthropic.Anthropic or openai.OpenAI client, or a "
            "function from a prompt to a reply."
        )
    if extra:
        raise ValueError(f"parameters={extra} have no effect on a function: set them inside it.")
    return Judge("function", model, {}, max_tokens, partial(_ask_function, client))


def _client_judge(kind: str, client: Any, model: str | None, fields: dict[str, Any], ask: Any) -> Judge:
    if not model:
        raise ValueError('a client needs the name of the model that judges: give model="…".')
    secrets = _secrets(client)
    # its own retries are hidden ones: every request is to be counted
    client = client.with_options(max_retries=0) if hasattr(client, "with_options") else client
    max_tokens = int(fields.get("max_tokens", fields.get("max_completion_tokens")))
    return Judge(kind, model, fields, max_tokens, partial(ask, client, model, fields), secrets)


def _ask_anthropic(client: Any, model: str, fields: Mapping[str, Any], prompt: str) -> str:
    # as a part of the body, since versions of the library differ in the parameters they name
    others = {name: value for name, value in fields.items() if name != "max_tokens"}
    response = _answered(
        client.messages.create(
            model=model,
            max_tokens=fields["max_tokens"],
            messages=[{"role": "user", "content": prompt}],
            extra_body=others,
        )
    )
    blocks = getattr(response, "content", None)
    if not isinstance(blocks, list):
        raise UnusableResponseError(f"no list of content in a response of type {type(response).__name__}")
    text = "".join(block.text for block in blocks if getattr(block, "type", None) == "text")
    return _unless_cut_off(text, getattr(response, "stop_reason", None) == "max_tokens", fields)


def _ask_openai(client: Any, model: str, fields: Mapping[str, Any], prompt: str) -> str:
    messages = [{"role": "user", "content": prompt}]
    response = _answered(
        client.chat.completions.create(model=model, messages=messages, extra_body=dict(fields))
    )
    choices = getattr(response, "choices", None)
    if not isinstance(choices, list) or not choices or getattr(choices[0], "message", None) is None:
        raise UnusableResponseError(f"no message in a response of type {type(response).__name__}")
    cut_off = getattr(choices[0], "finish_reason", None) == "length"
    return _unless_cut_off(choices[0].message.content or "", cut_off, fields)


def _ask_function(function: Callable[[str], str], prompt: str) -> str:
    reply = function(prompt)
    if not isinstance(reply, str):
        raise TypeError(f"the judging function gave {type(reply).__name__}, not text.")
    return reply


def _answered(response: Any) -> Any:
    if inspect.isawaitable(response):
        response.close()
        raise TypeError("the client is an asynchronous one: give anthropic.Anthropic or openai.OpenAI.")
    return response


def _unless_cut_off(text: str, cut_off: bool, fields: Mapping[str, Any]) -> str:
    if cut_off and not text.strip():
        raise CutOffError(
            f"it said nothing within {dict(fields)}: a model that reasons needs more max_tokens"
        )
    return text


def _offers(client: Any, path: str) -> bool:
    for name in path.split("."):
        client = getattr(client, name, None)
    return callable(client)


def _secrets(client: Any) -> tuple[str, ...]:
    """Keys and tokens of a client, longest first, so that no rest of one stays."""
    headers = getattr(client, "default_headers", None)
    headers = dict(headers) if isinstance(headers, Mapping) else {}
    values = [value for name, value in headers.items() if any(part in name.lower() for part in HIDDEN)]
    values += [getattr(client, name, None) for name in ("api_key", "auth_token")]
    words = {word for value in values if isinstance(value, str) for word in value.split()}
    return tuple(sorted(words - {"Bearer", "Basic"}, key=len, reverse=True))
