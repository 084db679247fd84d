"""Words of a text, and which of them repeat what the text has said before."""

import re
from collections.abc import Iterator

UNIT = re.compile(r"\w+(?:['’]\w+)*|[^\w\s]|\n")  # a word, a punctuation mark, or the end of a line


def repeated_parts(text: str, n: int) -> Iterator[tuple[str, bool]]:
    """Consecutive parts of a text, and whether each repeats.

    A part repeats if it is within an n-gram of `UNIT`s that occurred before in the text; case is ignored.
    """
    units = list(UNIT.finditer(text))
    names = [unit[0].casefold() for unit in units]
    seen: set[tuple[str, ...]] = set()
    spans: list[list[int]] = []  # start and end, in characters
    for first in range(len(units) - n + 1):
        gram = tuple(names[first : first + n])
        start, end = units[first].start(), units[first + n - 1].end()
        if gram in seen and spans and start <= spans[-1][1]:
            spans[-1][1] = end
        elif gram in seen:
            spans.append([start, end])
        seen.add(gram)
    position = 0
    for start, end in spans:
        yield text[position:start], False
        yield text[start:end], True
        position = end
    yield text[position:], False
