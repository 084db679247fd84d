"""Selection of tokens, for capture, steering and plots.

A `Positions` value selects tokens by their index in the *unpadded* prompt, so it means the same with left or
right padding, alone or in a batch, with or without a key-value cache.

| tokens of "a b c", then generated "d e"          | a | b | c | d | e |
|---------------------------------------------------|---|---|---|---|---|
| `all_tokens()`                                    | ● | ● | ● | ● | ● |
| `prompt_tokens()`                                 | ● | ● | ● |   |   |
| `last_token()`                                    |   |   | ● |   |   |
| `generated_tokens()`                              |   |   |   | ● | ● |
| `current_token()`: wherever a token is predicted  |   |   | ● | ● | ● |
| `token(0)`                                        | ● |   |   |   |   |
"""

import ast
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from .._util.validation import checked
from ..errors import EmptySelectionError
from ..models import HookedModel


@dataclass(frozen=True)
class PromptTokens:
    """A prompt's unpadded token ids, `None` if only their `length` is known, and their tokenizer.

    `number` says which of the caller's prompts it is, for messages.
    """

    length: int
    ids: tuple[int, ...] | None = None
    tokenizer: Any = None
    number: int | None = field(default=None, compare=False)

    @cached_property
    def spans(self) -> Int[np.ndarray, "pos 2"]:
        """First character and end of each token in the decoded prompt."""
        if getattr(self.tokenizer, "is_fast", False):
            # The tokenizer's own offsets, which may omit a token's leading space, if the ids are the same.
            encoded = self.tokenizer(self.text, add_special_tokens=False, return_offsets_mapping=True)
            if tuple(encoded["input_ids"]) == self.ids:
                start, end = np.reshape(encoded["offset_mapping"], (-1, 2)).T
                before = np.maximum.accumulate(np.concatenate([[0], end[:-1]]))
                return np.column_stack([np.minimum(start, before), end])
        # A token may hold part of a character, which decodes to U+FFFD until the next tokens complete it:
        # the number of complete characters, and of started ones, after each token.
        complete, started = [0], [0]
        for count in range(1, self.length + 1):
            text = self._decode(self.ids and self.ids[:count])
            complete.append(len(text.rstrip("\ufffd")))
            started.append(complete[-1] + (complete[-1] < len(text)))
        spans = [(min(start, end - 1), end) for start, end in zip(complete[:-1], started[1:], strict=True)]
        return np.reshape(spans, (-1, 2))

    @cached_property
    def text(self) -> str:
        """The decoded prompt, special tokens included."""
        return self._decode(self.ids)

    def __str__(self) -> str:
        known = self.ids is not None and self.tokenizer is not None
        return (f"{self.text[:60]!r}, " if known else "") + f"{self.length} tokens"

    def named(self, row: int | None = None) -> str:
        """For a message: its number, or else its row in the pass, and its beginning."""
        if self.number is not None:
            return f"prompt {self.number} ({self})"
        return f"{'the prompt' if row is None else f'row {row}'} ({self})"

    def _decode(self, ids: Sequence[int] | None) -> str:
        if ids is None or self.tokenizer is None:
            raise ValueError(
                "a position that matches text needs the prompt's tokens and a tokenizer: "
                "give prompts=[…] (token ids) instead of prompt_lengths, and a model with a tokenizer."
            )
        return self.tokenizer.decode(list(ids), clean_up_tokenization_spaces=False)


PromptMask = Callable[[PromptTokens], Bool[Tensor, " pos"]]


@dataclass(frozen=True, repr=False)
class Positions:
    """Which tokens: from the functions of this module, combined with `|`, `&` and `~`.

    Two values are equal if their labels are.

    Attributes:
        label: the expression; `parse_positions` reads it.
        generated: whether new tokens, as they are fed back, are selected.
        needs_end: whether it can be resolved only if the prompt's end is known.
    """

    label: str
    generated: bool
    needs_end: bool
    _mask: PromptMask = field(compare=False)

    def select(self, prompt: PromptTokens) -> Bool[Tensor, " pos"]:
        """Which tokens of the prompt are selected."""
        return self._mask(prompt)

    def require_some(self, prompt: PromptTokens, name: str, *, generating: bool = True) -> None:
        """Raise `EmptySelectionError` if neither the prompt nor generated text has a selected token.

        Args:
            prompt: its tokens are checked.
            name: of the prompt, for the message.
            generating: whether new tokens will be fed back.
        """
        if not ((generating and self.generated) or bool(self.select(prompt).any())):
            raise EmptySelectionError(
                f"{self} selects no token of {name} ({prompt}). "
                "Look with preview(model, prompt), or pass allow_empty=True if that is intended."
            )

    @checked
    def preview(self, model: HookedModel, prompt: Any) -> Any:
        """`preview` of these positions, with the same arguments."""
        from ._preview import preview

        return preview(model, prompt, self)

    def __or__(self, other: "Positions") -> "Positions":
        return _combine(self, other, "|", torch.logical_or, self.generated or other.generated)

    def __and__(self, other: "Positions") -> "Positions":
        return _combine(self, other, "&", torch.logical_and, self.generated and other.generated)

    def __invert__(self) -> "Positions":
        return Positions(
            f"~{self.label}", not self.generated, self.needs_end, lambda prompt: ~self._mask(prompt)
        )

    def __repr__(self) -> str:
        return self.label

    def __reduce__(self) -> tuple:
        return parse_positions, (self.label,)


def _combine(left: Positions, right: Positions, sign: str, join: Callable, generated: bool) -> Positions:
    return Positions(
        f"({left.label} {sign} {right.label})",
        generated,
        left.needs_end or right.needs_end,
        lambda prompt: join(left.select(prompt), right.select(prompt)),
    )


def all_tokens() -> Positions:
    """Every token, BOS and template tokens included; padding never."""
    return Positions("all_tokens()", True, False, lambda prompt: _where(prompt, slice(None)))


def prompt_tokens() -> Positions:
    """Every token of the prompt, no generated one."""
    return Positions("prompt_tokens()", False, True, lambda prompt: _where(prompt, slice(None)))


def generated_tokens() -> Positions:
    """The new tokens, as they are fed back.

    The first new token is predicted at the *last prompt token*, which this does not select:
    `current_token()` does.
    """
    return Positions("generated_tokens()", True, True, lambda prompt: _where(prompt, slice(0)))


def last_token() -> Positions:
    """The prompt's last token."""
    return Positions("last_token()", False, True, lambda prompt: _where(prompt, slice(-1, None)))


def current_token() -> Positions:
    """Wherever a next token is predicted: the prompt's last token and every generated one."""
    return Positions("current_token()", True, True, last_token().select)


@checked
def token(i: int) -> Positions:
    """The prompt's token at index `i`: `token(0)` is the first id, BOS included; −1 is the last.

    Raises:
        ValueError: `i` is not a whole number.
    """
    i = _whole_number(i)
    index = slice(i, i + 1 or None)
    return Positions(f"token({i})", False, i < 0, lambda prompt: _where(prompt, index))


@checked
def span(start: int | None, stop: int | None) -> Positions:
    """Tokens of the prompt like `ids[start:stop]`.

    Raises:
        ValueError: `start` or `stop` is neither a whole number nor `None`.
    """
    start, stop = (None if each is None else _whole_number(each) for each in (start, stop))
    needs_end = (start or 0) < 0 or stop is None or stop < 0
    index = slice(start, stop)
    return Positions(f"span({start}, {stop})", False, needs_end, lambda prompt: _where(prompt, index))


@checked
def tokens_matching(text: str) -> Positions:
    """Tokens of the prompt whose characters overlap an occurrence of `text`.

    Raises:
        ValueError: when resolved, `text` is empty or the model has no tokenizer.
    """
    return Positions(f"tokens_matching({text!r})", False, True, lambda prompt: _matching(prompt, text))


@checked
def after(text: str) -> Positions:
    """Tokens after the *last* occurrence of `text`, to the prompt's end.

    Selects nothing where it does not occur, which is an error unless allow_empty=True.

    Raises:
        ValueError: as `tokens_matching`.
    """
    return Positions(f"after({text!r})", False, True, lambda prompt: _after(prompt, text))


def _where(prompt: PromptTokens, index: slice) -> Bool[Tensor, " pos"]:
    mask = torch.zeros(prompt.length, dtype=torch.bool)
    mask[index] = True
    return mask


def _matching(prompt: PromptTokens, text: str) -> Bool[Tensor, " pos"]:
    matches = re.finditer(f"(?={re.escape(_not_empty(text))})", prompt.text)
    starts = np.array([match.start() for match in matches], dtype=int)
    first, end = prompt.spans.T
    started = np.searchsorted(starts, end)  # occurrences that start before the token ends
    ended = np.searchsorted(starts, first - len(text), side="right")  # those that end before it starts
    return torch.from_numpy(started > ended)


def _after(prompt: PromptTokens, text: str) -> Bool[Tensor, " pos"]:
    start = prompt.text.rfind(_not_empty(text))
    return torch.from_numpy((start >= 0) & (prompt.spans[:, 0] >= start + len(text)))


def _whole_number(index: int) -> int:
    """An index that a slice takes: not 1.5, "1" or True."""
    if not isinstance(index, bool) and hasattr(index, "__index__") and abs(int(index)) < 2**62:
        return int(index)
    raise ValueError(f"position {index!r:.60}: expected whole numbers, as in token(0) or span(1, -1).")


def _not_empty(text: str) -> str:
    if not text:
        raise ValueError(f"positions that match {text!r}: expected a text that is not empty.")
    return text


_FUNCTIONS: dict[str, Callable[..., Positions]] = {
    function.__name__: function
    for function in (
        all_tokens, prompt_tokens, generated_tokens, last_token, current_token,
        token, span, tokens_matching, after,
    )
}  # fmt: skip


@checked
def parse_positions(text: str) -> Positions:
    """Parse positions from `text`: `"last_token() | generated_tokens()"`, with literal arguments.

    Raises:
        ValueError: anything else.
    """
    try:
        return _evaluate(ast.parse(text, mode="eval").body)
    except (SyntaxError, ValueError, TypeError, KeyError, RecursionError, MemoryError) as error:
        functions = ", ".join(f"{name}(…)" for name in _FUNCTIONS)
        raise ValueError(
            f"positions {text!r:.200} cannot be read: expected {functions}, combined with | & ~."
        ) from error


def _evaluate(node: ast.expr) -> Positions:
    match node:
        case ast.Call(ast.Name(name), arguments, []):
            return _FUNCTIONS[name](*map(ast.literal_eval, arguments))
        case ast.BinOp(left, ast.BitOr(), right):
            return _evaluate(left) | _evaluate(right)
        case ast.BinOp(left, ast.BitAnd(), right):
            return _evaluate(left) & _evaluate(right)
        case ast.UnaryOp(ast.Invert(), operand):
            return ~_evaluate(operand)
    raise ValueError(ast.unparse(node))
