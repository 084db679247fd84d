"""The one language that says *where*: for capture, steering and plots.

A `Positions` value names tokens by their place in the *unpadded* prompt, so that it means the same with left
or right padding, alone or in a batch, with or without a key-value cache.

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
    """A prompt as positions see it: its unpadded ids, and the tokenizer that made them.

    Attributes:
        length: number of tokens.
        ids: the tokens, or `None` where only the length is known.
        tokenizer: needed by positions that match text.
        number: which of the caller's prompts it is, for messages.
    """

    length: int
    ids: tuple[int, ...] | None = None
    tokenizer: Any = None
    number: int | None = field(default=None, compare=False)

    @cached_property
    def spans(self) -> Int[np.ndarray, "pos 2"]:
        """First character and end of each token in the decoded prompt."""
        if getattr(self.tokenizer, "is_fast", False):
            # The tokenizer's own offsets, where the text leads back to the same tokens. They may leave out a
            # token's leading space.
            again = self.tokenizer(self.text, add_special_tokens=False, return_offsets_mapping=True)
            if tuple(again["input_ids"]) == self.ids:
                start, end = np.reshape(again["offset_mapping"], (-1, 2)).T
                before = np.maximum.accumulate(np.concatenate([[0], end[:-1]]))
                return np.column_stack([np.minimum(start, before), end])
        # A token may hold part of a character, which decodes to U+FFFD until the next tokens complete it:
        # characters that are whole, and those that are begun, after each token.
        whole, begun = [0], [0]
        for count in range(1, self.length + 1):
            text = self._decode(self.ids and self.ids[:count])
            whole.append(len(text.rstrip("\ufffd")))
            begun.append(whole[-1] + (whole[-1] < len(text)))
        spans = [(min(start, end - 1), end) for start, end in zip(whole[:-1], begun[1:], strict=True)]
        return np.reshape(spans, (-1, 2))

    @cached_property
    def text(self) -> str:
        """The decoded prompt, special tokens included."""
        return self._decode(self.ids)

    def __str__(self) -> str:
        known = self.ids is not None and self.tokenizer is not None
        return (f"{self.text[:60]!r}, " if known else "") + f"{self.length} tokens"

    def named(self, row: int | None = None) -> str:
        """For a message: its number, or else its row in the pass, and how it begins."""
        place = "the prompt" if row is None else f"row {row}"
        return f"{place if self.number is None else f'prompt {self.number}'} ({self})"

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
    """Which tokens: made by the functions of this module, combined with `|`, `&` and `~`.

    Two values are equal when they are written alike.

    Attributes:
        label: how it is written; `parse_positions` reads it back.
        generated: whether the newly generated tokens, as they are fed back, are selected.
        needs_end: whether it can only be resolved when it is known where the prompt ends.
    """

    label: str
    generated: bool
    needs_end: bool
    _mask: PromptMask = field(compare=False)

    def select(self, prompt: PromptTokens) -> Bool[Tensor, " pos"]:
        """Which tokens of the prompt are selected."""
        return self._mask(prompt)

    def require_some(self, prompt: PromptTokens, shown: str, *, generating: bool = True) -> None:
        """Raise `EmptySelectionError` where neither the prompt nor what is generated has a selected token.

        Args:
            prompt: whose tokens are looked at.
            shown: how the message names the prompt.
            generating: whether new tokens will be fed back.
        """
        if not ((generating and self.generated) or bool(self.select(prompt).any())):
            raise EmptySelectionError(
                f"{self} selects no token of {shown} ({prompt}). "
                "Look with preview(model, prompt), or pass allow_empty=True where that is meant."
            )

    @checked
    def preview(self, model: HookedModel, prompt: Any) -> Any:
        """Show the tokens of a prompt of `model` with those that are selected marked; see `preview`."""
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
    return Positions("all_tokens()", True, False, lambda prompt: torch.ones(prompt.length, dtype=torch.bool))


def prompt_tokens() -> Positions:
    """Every token of the prompt, none that is generated."""
    return Positions(
        "prompt_tokens()", False, True, lambda prompt: torch.ones(prompt.length, dtype=torch.bool)
    )


def generated_tokens() -> Positions:
    """The new tokens themselves, as they are fed back.

    The first new token is predicted at the *last prompt token*, which this does not select:
    `current_token()` does.
    """
    return Positions(
        "generated_tokens()", True, True, lambda prompt: torch.zeros(prompt.length, dtype=torch.bool)
    )


def last_token() -> Positions:
    """The prompt's last token."""
    return Positions(
        "last_token()", False, True, lambda prompt: _where(prompt, slice(prompt.length - 1, None))
    )


def current_token() -> Positions:
    """Wherever a next token is predicted: the prompt's last token and every generated one."""
    both = last_token() | generated_tokens()
    return Positions("current_token()", True, True, both.select)


@checked
def token(i: int) -> Positions:
    """One token of the prompt, by its index `i`: `token(0)` is the first id, BOS included.

    Negatives count from the prompt's end.

    Raises:
        ValueError: `i` is no whole number.
    """
    i = _place(i)
    index = slice(i, i + 1 or None)
    return Positions(f"token({i})", False, i < 0, lambda prompt: _where(prompt, index))


@checked
def span(start: int | None, stop: int | None) -> Positions:
    """Tokens of the prompt like `ids[start:stop]`.

    Raises:
        ValueError: `start` or `stop` is neither a whole number nor `None`.
    """
    start, stop = (None if each is None else _place(each) for each in (start, stop))
    needs_end = (start or 0) < 0 or stop is None or stop < 0
    return Positions(
        f"span({start}, {stop})", False, needs_end, lambda prompt: _where(prompt, slice(start, stop))
    )


@checked
def tokens_matching(text: str) -> Positions:
    """Tokens of the prompt whose characters overlap an occurrence of `text`.

    Raises:
        ValueError: `text` is empty; or, when they are resolved, the model has no tokenizer.
    """
    return Positions(f"tokens_matching({text!r})", False, True, lambda prompt: _matching(prompt, text))


@checked
def after(text: str) -> Positions:
    """From behind the *last* occurrence of `text` to the prompt's end.

    Nothing is selected where it does not occur, which is an error unless allow_empty=True.

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
    begun = np.searchsorted(starts, end)  # occurrences that start before the token ends
    over = np.searchsorted(starts, first - len(text), side="right")  # those that end before it starts
    return torch.from_numpy(begun > over)


def _after(prompt: PromptTokens, text: str) -> Bool[Tensor, " pos"]:
    begins = prompt.text.rfind(_not_empty(text))
    return torch.from_numpy((begins >= 0) & (prompt.spans[:, 0] >= begins + len(text)))


def _place(index: int) -> int:
    """A whole number that a slice takes: 1.5 is none, and "1" neither."""
    if not isinstance(index, bool) and hasattr(index, "__index__") and abs(int(index)) < 2**62:
        return int(index)
    raise ValueError(
        f"positions are counted in whole numbers, like token(0) or span(1, -1); got {index!r:.60}."
    )


def _not_empty(text: str) -> str:
    if not isinstance(text, str) or not text:
        raise ValueError("positions that match text need a text that is not empty.")
    return text


_WORDS: dict[str, Callable[..., Positions]] = {
    function.__name__: function
    for function in (
        all_tokens, prompt_tokens, generated_tokens, last_token, current_token,
        token, span, tokens_matching, after,
    )
}  # fmt: skip


@checked
def parse_positions(text: str) -> Positions:
    """Read positions as they are written, for experiment files: `"last_token() | generated_tokens()"`.

    Args:
        text: calls of this module's functions with literal arguments, combined with `|`, `&`, `~`.

    Raises:
        ValueError: anything but this module's functions with literal arguments, `|`, `&` and `~`.
    """
    try:
        return _evaluate(ast.parse(text, mode="eval").body)
    except (SyntaxError, ValueError, TypeError, KeyError, RecursionError, MemoryError) as error:
        raise ValueError(
            f"positions {text!r:.200} cannot be read: write {', '.join(f'{word}(…)' for word in _WORDS)}, "
            "combined with | & ~."
        ) from error


def _evaluate(node: ast.expr) -> Positions:
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and not node.keywords:
        return _WORDS[node.func.id](*(ast.literal_eval(argument) for argument in node.args))
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        return _evaluate(node.left) | _evaluate(node.right)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitAnd):
        return _evaluate(node.left) & _evaluate(node.right)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Invert):
        return ~_evaluate(node.operand)
    raise ValueError(ast.unparse(node))
