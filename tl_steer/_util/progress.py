"""One bar for everything that runs cells."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tqdm.auto import tqdm

Tick = Callable[[float], object]


@contextmanager
def bar(doing: str, cells: int, *, shown: bool, unit: str = "cells") -> Iterator[Tick]:
    """A bar on stderr, or none; call what it gives with the number of cells done, in parts."""
    layout = "{desc}: {percentage:3.0f}%|{bar}| {n:.0f} of {total:.0f} " + unit + ", {elapsed}<{remaining}"
    with tqdm(total=cells, desc=doing, disable=not shown, bar_format=layout) as drawn:
        yield lambda done: drawn.update(min(done, cells - drawn.n))  # parts may add up to a little more
        drawn.update(cells - drawn.n)
