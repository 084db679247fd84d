"""Files in which the study's scripts recorded answers, parsed and checked item by item."""

import itertools
import json
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any, ClassVar, Literal, NamedTuple, TypeVar

from .._util.validation import require_characters

# The operation of each recorded answer, and the sign of its multiplier.
ANSWERS = {
    "answer_pos": ("add", 1),
    "answer_neg": ("add", -1),
    "answer_zeroedout_pos": ("zeroedout_pos", 1),
    "answer_zeroedout_neg": ("zeroedout_neg", 1),
    "answer_zeroedout": ("zeroedout", 1),
}
NUMBER = r"[-+]?(?:[.0-9]+(?:e[-+]?[0-9]+)?|nan|inf(?:inity)?)"
CONDITION_NAME = re.compile(rf"layer([0-9]{{1,5}}(?:,[0-9]{{1,5}})*)_mult({NUMBER})", re.I)
SPACE = re.compile(r"[ \t\r\n]*")


class RecordedCondition(NamedTuple):
    """A recorded condition, as the file names it."""

    operation: str
    layers: str
    multiplier: float

    @property
    def is_removal(self) -> bool:
        """Whether the answers were "zeroed out": written with the projection on the direction removed."""
        return self.operation.startswith("zeroedout")

    def __str__(self) -> str:
        return f"{self.operation} {self.multiplier:+g} at layer {self.layers}"


UNSTEERED_CONDITION = RecordedCondition("none", "", 0.0)
Layout = TypeVar("Layout")
Item = tuple[str, dict[RecordedCondition, str]]  # a prompt, and its text under each condition


@dataclass(frozen=True)
class RecordedItem:
    """An item of a file: a prompt, and its answers unsteered and by condition."""

    sentence: str
    answer_neut: str
    steered: dict[str, dict[Literal[tuple(ANSWERS)], str]] = field(default_factory=dict)
    __pydantic_config__: ClassVar = {"extra": "forbid"}


@dataclass(frozen=True)
class RecordedDraws:
    """A file of unsteered answers to the same prompts, by recording."""

    prompts: list[str]
    answers: dict[str, list[str]]
    __pydantic_config__: ClassVar = {"extra": "forbid"}


@contextmanager
def naming_item(file: str, row: int) -> Iterator[None]:
    """Prefix ValueErrors with the file and the item (counted from 0)."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{file}, item {row} (counted from 0): {error}") from error


def recorded_items(text: str, file: str) -> Iterator[Item]:
    """The items of a recorded file, one by one; a ValueError names the file, the item and its error."""
    position = _after_space(text, 0)
    if not text.startswith("[", position):
        start = f"begins with {text[position : position + 20]!r}" if text[position:] else "is empty"
        raise ValueError(f"{file} must be a list in JSON, but {start}.")
    if text.startswith("]", _after_space(text, position + 1)):
        raise ValueError(f"{file} is an empty list: there are no items.")
    for row in itertools.count():
        with naming_item(file, row):
            parsed, position = _decoded(text, _after_space(text, position + 1))
            item = _item(parsed)
        yield item
        position = _after_space(text, position)
        if text.startswith("]", position):
            break
        if not text.startswith(",", position):
            rest = f"{text[position : position + 20]!r}" if position < len(text) else "the file breaks off"
            raise ValueError(f"{file} is not JSON: expected ',' or ']' after item {row}, but {rest}.")
    if rest := text[_after_space(text, position + 1) :]:
        raise ValueError(f"{file} is not JSON: {rest[:20]!r} follows the end of the list.")


def recorded_draws(text: str, file: str) -> RecordedDraws | None:
    """The content of a file of several draws; `None` for a list."""
    if not re.match(r'[ \t\r\n]*\{[ \t\r\n]*"(prompts|answers)"', text):
        return None
    try:
        draws = _validated(RecordedDraws, json.loads(text, object_pairs_hook=_object))
        if not draws.prompts or not draws.answers:
            raise ValueError("it has no prompts or no recordings.")
        for name, texts in draws.answers.items():
            if (n := len(texts)) != len(draws.prompts):
                raise ValueError(f"the recording {name!r} has {n} answers to {len(draws.prompts)} prompts.")
        for each in itertools.chain(draws.prompts, *draws.answers.values()):
            require_characters(each, "the text")
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file}: {error}") from error
    return draws


def _decoded(text: str, position: int) -> tuple[Any, int]:
    try:
        return json.JSONDecoder(object_pairs_hook=_object).raw_decode(text, position)
    except json.JSONDecodeError as error:
        location = f"{error.msg}, line {error.lineno}, column {error.colno}"
        # The file ends within a string, or where the parser stopped (a broken escape: 5 characters more).
        if error.msg.startswith("Unterminated string") or len(text) - error.pos <= 5:
            raise ValueError(f"the file breaks off in it ({location}).") from error
        raise ValueError(f"it is not JSON: {location}.") from error
    except RecursionError as error:
        raise ValueError("it is nested too deeply.") from error


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object without repeated keys, of which `json` would keep the last without a warning."""
    names = [name for name, _ in pairs]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"it has the key {twice[0]!r} twice.")
    return dict(pairs)


@cache
def _adapter(layout: type) -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(layout)


def _validated(layout: type[Layout], parsed: Any) -> Layout:
    """The parsed JSON in its layout; the error names the key of the first wrong value."""
    from pydantic import ValidationError

    try:
        return _adapter(layout).validate_python(parsed)
    except ValidationError as error:
        first = error.errors()[0]
        where = ", ".join(map(repr, first["loc"])) or "it"
        raise ValueError(f"{where}: {first['msg']}.") from error


def _item(parsed: Any) -> Item:
    item = _validated(RecordedItem, parsed)
    texts = {UNSTEERED_CONDITION: item.answer_neut}
    for name, answers in item.steered.items():
        layers, multiplier = _layers_and_multiplier(name)
        if not answers:
            raise ValueError(f"{name!r} contains no answers; known are {', '.join(ANSWERS)}.")
        for key in [key for key in ANSWERS if key in answers]:
            operation, sign = ANSWERS[key]
            condition = RecordedCondition(operation, layers, sign * multiplier)
            if condition in texts:
                raise ValueError(f"it has the same condition twice: {condition}.")
            texts[condition] = answers[key]
    for text in (item.sentence, *texts.values()):
        require_characters(text, "the text")
    return item.sentence, texts


def _layers_and_multiplier(name: str) -> tuple[str, float]:
    """ "layer17,31_mult4" as ("17+31", 4.0)."""
    match = CONDITION_NAME.fullmatch(name)
    try:
        layers, multiplier = sorted(map(int, match[1].split(","))), float(match[2])
    except (TypeError, ValueError):  # no match, or a number like "1.2.3"
        raise ValueError(f"the condition {name!r}: expected a name like 'layer17,31_mult4'.") from None
    if not math.isfinite(multiplier):
        raise ValueError(f"the condition {name!r} has a multiplier that is not finite.")
    if len(set(layers)) < len(layers):
        raise ValueError(f"the condition {name!r} names a layer twice.")
    return "+".join(map(str, layers)), multiplier


def _after_space(text: str, position: int) -> int:
    return SPACE.match(text, position).end()
