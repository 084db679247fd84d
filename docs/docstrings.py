"""Rewrite the library's docstrings for the site: one entry per name, lists of columns."""

import re
from collections.abc import Iterator

import griffe

HEADINGS = ("Args:", "Attributes:", "Returns:", "Raises:", "Yields:")
NAMED = re.compile(r"^(\*{0,2}[A-Za-z_]\w*(?:, [A-Za-z_]\w*)*): (.*)$", re.DOTALL)
COLUMN = re.compile(r"^[\w…′]+(?:[,;] [\w…′]+)*: ")
SHORT = 60  # characters: a description up to this length is repeated for each of its names


class ReadableDocstrings(griffe.Extension):
    """Rewrites every docstring of the package before it is parsed."""

    def on_object(self, *, obj: griffe.Object, **_: object) -> None:
        if obj.docstring is not None:
            obj.docstring.value = readable(obj.docstring.value)


def readable(text: str) -> str:
    """The docstring with one entry per name, and the columns in `Returns` as a list."""
    return "\n".join(line for heading, body in sections(text) for line in _rewritten(heading, body))


def sections(text: str) -> Iterator[tuple[str, list[str]]]:
    """(heading, its lines, still indented); text outside the sections has the heading ""."""
    heading, body = "", []
    for line in text.splitlines():
        if line in HEADINGS or (heading and line and not line.startswith(" ")):
            yield heading, body
            heading, body = (line, []) if line in HEADINGS else ("", [line])
        else:
            body.append(line)
    yield heading, body


def entries(body: list[str]) -> list[str]:
    """The entries of a section, without its indentation; continuation lines are indented further."""
    text = "\n".join(line[4:] for line in body)
    return re.split(r"\n(?=\S)", text) if text else []


def names_of(entry: str) -> list[str]:
    """The names that an entry of Args, Attributes or Raises describes."""
    match = NAMED.match(entry)
    return [name.lstrip("*") for name in match[1].split(", ")] if match else []


def _rewritten(heading: str, body: list[str]) -> Iterator[str]:
    if heading in ("Args:", "Attributes:", "Raises:"):
        yield heading
        for entry in entries(body):
            yield from _one_per_name(entry)
    elif heading == "Returns:":  # free text: the word before a colon is not a type
        yield from ("**Returns:**", "")
        yield from _column_list([line[4:] for line in body])
    else:
        yield from ([heading] if heading else [])
        yield from (re.sub(r"^(Source[\w ]*): ", r"*\1:* ", line) for line in body)


def _one_per_name(entry: str) -> Iterator[str]:
    """One entry per name; a long description is given once, and the other names refer to it."""
    texts = [entry.strip("\n")]
    if names := names_of(entry):
        text = NAMED.match(entry)[2].rstrip()
        repeated = text if len(text) <= SHORT or text.startswith("as ") else f"see `{names[0]}`."
        texts = [f"{name}: {repeated if number else text}" for number, name in enumerate(names)]
    for line in "\n".join(texts).split("\n"):
        yield f"    {line}" if line else ""
    if entry.endswith("\n"):
        yield ""


def _column_list(body: list[str]) -> Iterator[str]:
    """A line that begins with a column's name begins an item; indented lines continue it."""
    inside = False
    for line in body:
        if COLUMN.match(line):
            names, _, text = line.partition(": ")
            yield from ([] if inside else [""])
            yield f"- **{names}**: {text}"
            inside = True
        elif inside and line.strip() and not line.startswith(" "):
            yield from ("", line)
            inside = False
        else:
            yield line
    yield ""
