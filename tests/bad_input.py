"""What counts as refusing bad input, and bytes and values that are bad in telling ways.

A target is a strategy of inputs and a call. For every input the call either gives something that the target's
check holds to be right, or refuses it: `refused` says exactly what that means.
"""

import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import hypothesis
from hypothesis import strategies as st

import tl_steer

PACKAGE = Path(tl_steer.__file__).parent
REFUSALS = (TypeError, ValueError, IndexError, KeyError, OSError, tl_steer.JudgeError)


class RaisedInsideError(AssertionError):
    """Bad input was not refused by the package: the error came from within something else."""


def refused(error: Exception) -> bool:
    """Whether an error is a refusal: a plain kind, raised by a line of the package, in words.

    Errors of the operating system that name a file ("No such file or directory: 'x'") are as good. Those of
    the run-time checks of types are not, since only tests have them.
    """
    if isinstance(error, OSError) and error.filename:
        return True
    innermost = traceback.extract_tb(error.__traceback__)[-1].filename
    ours = Path(innermost).is_relative_to(PACKAGE)
    return isinstance(error, REFUSALS) and ours and len(str(error).split()) > 2


def outcome(call: Callable[[], Any]) -> Any:
    """What a call gives, or `None` where it refuses.

    Raises:
        RaisedInsideError: what was raised is no refusal.
    """
    try:
        return call()
    except Exception as error:
        if not refused(error):
            raise RaisedInsideError(f"no refusal, but {type(error).__name__}: {error}") from error
        return None


@dataclass(frozen=True)
class Target:
    """Something that takes what others made.

    Attributes:
        inputs: of the call; a file's content is bytes.
        call: a file's path, or a value, to what is read.
        check: raises where something read is wrong; takes the result and the input.
    """

    inputs: st.SearchStrategy[Any]
    call: Callable[[Any], Any]
    check: Callable[[Any, Any], None] = field(default=lambda result, given: None)


def tried(target: Target, examples: int, folder: Path | None = None) -> None:
    """Try so many inputs; with a folder, each lies in a file there, and nothing else is there afterwards."""

    @hypothesis.settings(
        max_examples=examples,
        print_blob=True,
        database=None,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(target.inputs)
    def one(given):
        if folder is None:
            handed = given
        else:
            handed = folder / "given"
            handed.write_bytes(given)
        result = outcome(lambda: target.call(handed))
        if folder is not None:
            assert [each.name for each in folder.iterdir()] == ["given"], "there is a new file"
            assert handed.read_bytes() == given, "the file was changed"
        if result is not None:
            target.check(result, given)

    one()


STRANGE = [
    "",
    " ",
    "\x00",
    "\x1b[31m",
    "\u202e",
    "\ufeff",
    "\ud800",
    "\n",
    "\r",
    '"',
    "'",
    ",",
    "NA",
    "nan",
    "é",
    "🙂",
    "<b>",
    "{",
    "\\",
    "a" * 3000,
]


def texts() -> st.SearchStrategy[str]:
    """Short texts of ordinary and of strange pieces: control characters, halves of surrogates, quotes."""
    return st.lists(st.sampled_from([*STRANGE, "a", "word", "1", "0"]), max_size=4).map("".join)


def numbers() -> st.SearchStrategy[Any]:
    """Numbers of any size, not all of them numbers."""
    named = [
        0,
        1,
        2,
        -1,
        3,
        10**6,
        -(10**9),
        2**63,
        10**400,
        0.0,
        0.5,
        -0.5,
        1e308,
        5e-324,
        float("nan"),
        float("inf"),
        float("-inf"),
        True,
    ]
    return st.sampled_from(named)


def plain_values() -> st.SearchStrategy[Any]:
    """What JSON and TOML can say, nested a little or, seldom, far too deep."""
    leaves = st.one_of(numbers(), texts(), st.none())
    nested = st.recursive(
        leaves,
        lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(texts(), inner, max_size=3)),
        max_leaves=6,
    )
    deep = st.sampled_from([50, 300, 1200]).map(_nested)
    return st.one_of(leaves, nested, nested, deep)


def _nested(depth: int) -> list:
    value: list = []
    for _ in range(depth):
        value = [value]
    return value


@st.composite
def one_changed(draw: st.DrawFn, value: Any, changes: st.SearchStrategy[Any] | None = None) -> Any:
    """A value of dictionaries and lists with one thing in it left out, put in or exchanged for another."""
    place: tuple = ()
    inside = value
    while isinstance(inside, dict | list) and inside and draw(st.integers(0, 5)):
        key = draw(st.sampled_from(sorted(inside) if isinstance(inside, dict) else range(len(inside))))
        place, inside = (*place, key), inside[key]
    kind = draw(st.sampled_from(["exchange", "exchange", "leave out", "put in"]))
    names = (
        texts()
        if not isinstance(inside, dict)
        else st.one_of(texts(), st.sampled_from(sorted(inside) or ["a"]))
    )
    return _with(value, place, kind, draw(plain_values() if changes is None else changes), draw(names))


def _with(value: Any, place: tuple, kind: str, new: Any, key: str) -> Any:
    if not place:
        if kind == "put in" and isinstance(value, dict):
            return {**value, key: new}
        return [*value, new] if kind == "put in" and isinstance(value, list) else new
    first, rest = place[0], place[1:]
    copy = dict(value) if isinstance(value, dict) else list(value)
    if kind == "leave out" and not rest:
        del copy[first]
    else:
        copy[first] = _with(value[first], rest, kind, new, key)
    return copy


def damaged(content: bytes) -> st.SearchStrategy[bytes]:
    """Bytes with up to three places flipped, left out, doubled or filled, or cut off."""
    places = st.floats(0, 1, exclude_max=True)
    filling = st.one_of(
        st.binary(min_size=1, max_size=8),
        st.sampled_from(
            [b"\x00", b"\xff" * 8, b"\xff\xfe", b"[" * 3000, b'"', b"\xed\xa0\x80", b"\x7f" + b"\xff" * 7]
        ),
    )
    edits = st.tuples(
        places, st.sampled_from(["put in", "over", "cut", "double", "end"]), st.integers(1, 12), filling
    )
    return st.lists(edits, min_size=1, max_size=3).map(lambda each: _edited(content, each))


def _edited(content: bytes, edits: list[tuple[float, str, int, bytes]]) -> bytes:
    for where, kind, size, filling in edits:
        place = int(where * len(content))
        before, after = content[:place], content[place:]
        content = {
            "put in": before + filling + after,
            "over": before + filling + after[len(filling) :],
            "cut": before + after[size:],
            "double": before + after[:size] + after,
            "end": before,
        }[kind]
    return content
