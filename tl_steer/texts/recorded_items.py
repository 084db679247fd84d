"""The files in which the study's scripts recorded answers: parsed item by item, and checked."""

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
CELL_NAME = re.compile(rf"layer([0-9]{{1,5}}(?:,[0-9]{{1,5}})*)_mult({NUMBER})", re.I)
SPACE = re.compile(r"[ \t\r\n]*")


class RecordedCell(NamedTuple):
    """A recorded condition, as the file distinguishes them."""

    operation: str
    layers: str
    multiplier: float

    @property
    def is_removal(self) -> bool:
        """Whether the answers were "zeroed out": written with the projection on the direction removed."""
        return self.operation.startswith("zeroedout")

    def __str__(self) -> str:
        return f"{self.operation} {self.multiplier:+g} at layer {self.layers}"


UNSTEERED_CELL = RecordedCell("none", "", 0.0)
Item = tuple[str, dict[RecordedCell, str]]  # a prompt, and its text in each cell


@contextmanager
def naming_item(file: str, row: int) -> Iterator[None]:
    """Put the file and the item (counted from 0) in front of what a ValueError says."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{file}, item {row} (counted from 0): {error}") from error


def recorded_items(text: str, file: str) -> Iterator[Item]:
    """The items of a recorded file, one by one.

    Args:
        text: what is in the file.
        file: its name, for messages.

    Raises:
        ValueError: what is wrong, and in which item.
    """
    place = _after_space(text, 0)
    if not text.startswith("[", place):
        found = f"begins with {text[place : place + 20]!r}" if text[place:] else "is empty"
        raise ValueError(f"{file} must be a list in JSON, but {found}.")
    if text.startswith("]", _after_space(text, place + 1)):
        raise ValueError(f"{file} is an empty list: there are no items.")
    for row in itertools.count():
        with naming_item(file, row):
            parsed, place = _decoded(text, _after_space(text, place + 1))
            item = _item(parsed)
        yield item
        place = _after_space(text, place)
        if text.startswith("]", place):
            break
        if not text.startswith(",", place):
            found = f"{text[place : place + 20]!r}" if place < len(text) else "the file breaks off"
            raise ValueError(f"{file} is not JSON: behind item {row} comes ',' or ']', but here {found}.")
    place = _after_space(text, place + 1)
    if place < len(text):
        raise ValueError(f"{file} is not JSON: {text[place : place + 20]!r} follows the end of the list.")


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


def _texts(values: Any, name: str) -> list[str]:
    if not isinstance(values, list):
        raise ValueError(f"{name} must be a list of texts, not {_kind(values)}.")
    return [_text({name: value}, name, f"entry {row}") for row, value in enumerate(values)]


def _decoded(text: str, place: int) -> tuple[Any, int]:
    try:
        return DECODER.raw_decode(text, place)
    except json.JSONDecodeError as error:
        where = f"{error.msg}, line {error.lineno}, column {error.colno}"
        # The file ends within a string, or where the parser stopped (a broken escape: 5 characters more).
        if error.msg.startswith("Unterminated string") or len(text) - error.pos <= 5:
            raise ValueError(f"the file breaks off in it ({where}).") from error
        raise ValueError(f"it is not JSON: {where}.") from error
    except RecursionError as error:
        raise ValueError("it is nested too deeply.") from error


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; of doubled keys `json` would keep the last and say nothing."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"it has the key {next(name for name in names if names.count(name) > 1)!r} twice.")
    return found


DECODER = json.JSONDecoder(object_pairs_hook=_object)


def _item(parsed: Any) -> Item:
    _require_object(parsed, "it", KEYS)
    texts = {UNSTEERED_CELL: _text(parsed, "answer_neut", "it")}
    steered = parsed.get("steered", {})
    _require_object(steered, "'steered'")
    for name, answers in steered.items():
        layers, multiplier = _layers_and_multiplier(name)
        _require_object(answers, repr(name), ANSWERS)
        if not answers:
            raise ValueError(f"{name!r} holds no answers; known are {', '.join(ANSWERS)}.")
        for key in [key for key in ANSWERS if key in answers]:
            operation, sign = ANSWERS[key]
            cell = RecordedCell(operation, layers, sign * multiplier)
            if cell in texts:
                raise ValueError(f"it has the same cell twice: {cell}.")
            texts[cell] = _text(answers, key, repr(name))
    return _text(parsed, "sentence", "it"), texts


def _layers_and_multiplier(name: str) -> tuple[str, float]:
    """ "layer17,31_mult4" as ("17+31", 4.0)."""
    found = CELL_NAME.fullmatch(name)
    try:
        layers, multiplier = sorted(map(int, found[1].split(","))), float(found[2])
    except (TypeError, ValueError):  # no match, or a number like "1.2.3"
        raise ValueError(f"the cell {name!r} cannot be read; write it like 'layer17,31_mult4'.") from None
    if not math.isfinite(multiplier):
        raise ValueError(f"the cell {name!r} has a multiplier that is not finite.")
    if len(set(layers)) < len(layers):
        raise ValueError(f"the cell {name!r} names a layer twice.")
    return "+".join(map(str, layers)), multiplier


def _require_object(value: Any, name: str, known: Mapping[str, Any] | tuple[str, ...] | None = None) -> None:
    if not isinstance(value, dict):
        raise ValueError(f"{name} must be an object, not {_kind(value)}.")
    if unknown := [key for key in value if known is not None and key not in known]:
        raise ValueError(f"{name} has the unknown key {unknown[0]!r}; known are {', '.join(known)}.")


def _text(holder: Mapping[str, Any], key: str, name: str) -> str:
    if key not in holder:
        raise ValueError(f"{name} lacks {key!r}.")
    text = holder[key]
    if not isinstance(text, str):
        raise ValueError(f"{name} has {key!r} that must be text, not {_kind(text)}.")
    require_characters(text, f"{name} in {key!r}:")
    return text


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")


def _after_space(text: str, place: int) -> int:
    found = SPACE.match(text, place)
    return found.end() if found else place
