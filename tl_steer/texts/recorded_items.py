"""Files in which the study's scripts recorded answers, parsed and checked item by item."""

import itertools
import json
import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

from .._util.validation import require_characters

# The operation of each recorded answer, and the sign of its multiplier.
ANSWERS = {
    "answer_pos": ("add", 1),
    "answer_neg": ("add", -1),
    "answer_zeroedout_pos": ("zeroedout_pos", 1),
    "answer_zeroedout_neg": ("zeroedout_neg", 1),
    "answer_zeroedout": ("zeroedout", 1),
}
KEYS = ("sentence", "answer_neut", "steered")
DRAWS_KEYS = ("prompts", "answers")
NUMBER = r"[-+]?(?:[.0-9]+(?:e[-+]?[0-9]+)?|nan|inf(?:inity)?)"
CONDITION_NAME = re.compile(rf"layer([0-9]{{1,5}}(?:,[0-9]{{1,5}})*)_mult({NUMBER})", re.I)
SPACE = re.compile(r"[ \t\r\n]*")
JSON_TYPES = {dict: "an object", list: "a list", str: "text", bool: "true or false", type(None): "null"}


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
Item = tuple[str, dict[RecordedCondition, str]]  # a prompt, and its text under each condition


@contextmanager
def naming_item(file: str, row: int) -> Iterator[None]:
    """Prefix ValueErrors with the file and the item (counted from 0)."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{file}, item {row} (counted from 0): {error}") from error


def recorded_items(text: str, file: str) -> Iterator[Item]:
    """The items of a recorded file, one by one.

    Args:
        text: content of the file.
        file: its name, for messages.

    Raises:
        ValueError: names the item and the error in it.
    """
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
    position = _after_space(text, position + 1)
    if position < len(text):
        rest = text[position : position + 20]
        raise ValueError(f"{file} is not JSON: {rest!r} follows the end of the list.")


def recorded_draws(text: str, file: str) -> tuple[list[str], dict[str, list[str]]] | None:
    """The prompts and, per recording, the unsteered answers of a file of several draws; `None` for a list.

    Args:
        text: content of the file.
        file: its name, for messages.

    Raises:
        ValueError: the layout differs, or a recording has more or fewer answers than there are prompts.
    """
    if not re.match(r'[ \t\r\n]*\{[ \t\r\n]*"(prompts|answers)"', text):
        return None
    try:
        parsed = json.loads(text, object_pairs_hook=_object)
        _require_object(parsed, "it", DRAWS_KEYS)
        prompts = _texts(parsed.get("prompts"), "'prompts'")
        _require_object(parsed.get("answers"), "'answers'")
        answers = {name: _texts(texts, repr(name)) for name, texts in parsed["answers"].items()}
        if not prompts or not answers:
            raise ValueError("it has no prompts or no recordings.")
        for name, texts in answers.items():
            if len(texts) != len(prompts):
                raise ValueError(
                    f"the recording {name!r} has {len(texts)} answers to {len(prompts)} prompts."
                )
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file}: {error}") from error
    return prompts, answers


def _decoded(text: str, position: int) -> tuple[Any, int]:
    try:
        return DECODER.raw_decode(text, position)
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


DECODER = json.JSONDecoder(object_pairs_hook=_object)


def _item(parsed: Any) -> Item:
    _require_object(parsed, "it", KEYS)
    texts = {UNSTEERED_CONDITION: _text(parsed, "answer_neut", "it")}
    steered = parsed.get("steered", {})
    _require_object(steered, "'steered'")
    for name, answers in steered.items():
        layers, multiplier = _layers_and_multiplier(name)
        _require_object(answers, repr(name), ANSWERS)
        if not answers:
            raise ValueError(f"{name!r} contains no answers; known are {', '.join(ANSWERS)}.")
        for key in [key for key in ANSWERS if key in answers]:
            operation, sign = ANSWERS[key]
            condition = RecordedCondition(operation, layers, sign * multiplier)
            if condition in texts:
                raise ValueError(f"it has the same condition twice: {condition}.")
            texts[condition] = _text(answers, key, repr(name))
    return _text(parsed, "sentence", "it"), texts


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


def _require_object(value: Any, name: str, known: Mapping[str, Any] | tuple[str, ...] | None = None) -> None:
    if not isinstance(value, dict):
        raise ValueError(f"{name} must be an object, not {_json_type(value)}.")
    if unknown := [key for key in value if known is not None and key not in known]:
        raise ValueError(f"{name} has the unknown key {unknown[0]!r}; known are {', '.join(known)}.")


def _texts(values: Any, name: str) -> list[str]:
    if not isinstance(values, list):
        raise ValueError(f"{name} must be a list of texts, not {_json_type(values)}.")
    return [_text({name: value}, name, f"entry {row}") for row, value in enumerate(values)]


def _text(values: Mapping[str, Any], key: str, name: str) -> str:
    if key not in values:
        raise ValueError(f"{name} lacks {key!r}.")
    text = values[key]
    if not isinstance(text, str):
        raise ValueError(f"{name} has {key!r} that must be text, not {_json_type(text)}.")
    require_characters(text, f"{name} in {key!r}:")
    return text


def _json_type(value: Any) -> str:
    return JSON_TYPES.get(type(value), "a number")


def _after_space(text: str, position: int) -> int:
    return SPACE.match(text, position).end()
