"""How the library's docstrings become pages: names in one line are taken apart, columns become lists."""

import re
from collections.abc import Iterator

import griffe

HEADINGS = ("Args:", "Attributes:", "Returns:", "Raises:", "Yields:")
NAMED = re.compile(r"^(\*{0,2}[A-Za-z_]\w*(?:, [A-Za-z_]\w*)*): (.*)$", re.DOTALL)
COLUMN = re.compile(r"^[\w…′]+(?:[,;] [\w…′]+)*: ")
SHORT = 60  # characters that are repeated for each of several names


class ReadableDocstrings(griffe.Extension):
    """Rewrites every docstring of the package before it is read."""

    def on_object(self, *, obj: griffe.Object, **_: object) -> None:
        if obj.docstring is not None:
            obj.docstring.value = readable(obj.docstring.value)


def readable(text: str) -> str:
    """The same docstring with an entry a name, and the columns under `Returns` as a list."""
    return "\n".join(line for heading, body in sections(text) for line in _rewritten(heading, body))


def sections(text: str) -> Iterator[tuple[str, list[str]]]:
    """(heading, lines below it, indented as they are); what stands outside has the heading ""."""
    heading, body = "", []
    for line in text.splitlines():
        if line in HEADINGS or (heading and line and not line.startswith(" ")):
            yield heading, body
            heading, body = (line, []) if line in HEADINGS else ("", [line])
        else:
            body.append(line)
    yield heading, body


def entries(body: list[str]) -> Iterator[str]:
    """The entries of a section without its indentation, each with the lines indented below it."""
    held: list[str] = []
    for line in (line[4:] for line in body):
        if line and not line.startswith(" ") and held:
            yield "\n".join(held)
            held = []
        held.append(line)
    if held:
        yield "\n".join(held)


def names_of(entry: str) -> list[str]:
    """The names that an entry of Args, Attributes or Raises is about."""
    found = NAMED.match(entry)
    return [name.lstrip("*") for name in found[1].split(", ")] if found else []


def _rewritten(heading: str, body: list[str]) -> Iterator[str]:
    if heading in ("Args:", "Attributes:", "Raises:"):
        yield heading
        for entry in entries(body):
            yield from _apart(entry)
    elif heading == "Returns:":  # free text: what comes before a colon there is no type
        yield from ("**Returns:**", "")
        yield from _listed([line[4:] for line in body])
    else:
        yield from ([heading] if heading else [])
        yield from (re.sub(r"^(Source[\w ]*): ", r"*\1:* ", line) for line in body)


def _apart(entry: str) -> Iterator[str]:
    """An entry a name: what is told of several is repeated where it is short, else it stands at the first."""
    names = names_of(entry)
    told = NAMED.match(entry)[2] if names else entry
    for name in names or [""]:
        again = told.strip() if len(told.strip()) <= SHORT or told.startswith("as ") else f"see `{names[0]}`."
        first = not name or name == names[0]
        text = entry.strip("\n") if not names else f"{name}: {told.rstrip() if first else again}"
        yield from (f"    {line}" if line else "" for line in text.split("\n"))
    if entry.endswith("\n"):
        yield ""


def _listed(body: list[str]) -> Iterator[str]:
    """A line that begins with a column's name begins an item, and what is indented below goes on with it."""
    inside = False
    for line in body:
        if COLUMN.match(line):
            names, _, told = line.partition(": ")
            yield from ([] if inside else [""])
            yield f"- **{names}**: {told}"
            inside = True
        elif inside and line.strip() and not line.startswith(" "):
            yield from ("", line)
            inside = False
        else:
            yield line
    yield ""
