"""Log messages and progress bars. By default nothing is logged; `TL_STEER_LOG` sets a level.

Each module logs under its own name. "info" reports the work done (model loaded, prompts captured, files
written), "debug" adds memory and passes, "warning" what differs from what was requested. Prompts appear at
"debug" only, API keys never.
"""

import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tqdm.auto import tqdm

from .validation import checked

VARIABLE = "TL_STEER_LOG"
LEVELS = ("debug", "info", "warning", "error")
FULL = "%(asctime)s %(levelname)-7s %(name)s: %(message)s"
PLAIN = "%(message)s"  # for commands

OnProgress = Callable[[float], object]  # called with the number of conditions done, which may be a fraction
logger = logging.getLogger("tl_steer")


@checked
def show_logs(level: str = "info", *, form: str = FULL) -> None:
    """Write the package's log messages to stderr, from a level on; a second call changes the level.

    Args:
        level: "debug", "info", "warning" or "error", in any case.
        form: a format of `logging`; by default time, level, module and message.

    Raises:
        ValueError: an unknown level.

    If your program has handlers on the root logger, these show the messages instead.
    """
    name = level.strip().lower()
    if name not in LEVELS:
        raise ValueError(f"log level {level!r} is unknown: use {', '.join(LEVELS)}.")
    handler = _Stderr()
    handler.setFormatter(logging.Formatter(form))
    logger.handlers[:] = [*(each for each in logger.handlers if not isinstance(each, _Stderr)), handler]
    logger.setLevel(name.upper())


def logs_from_environment() -> bool:
    """Apply `TL_STEER_LOG`; return whether it is set. An unknown value gives a warning."""
    if not any(isinstance(each, logging.NullHandler) for each in logger.handlers):
        logger.addHandler(logging.NullHandler())
    level = os.environ.get(VARIABLE, "").strip()
    if not level:
        return False
    try:
        show_logs(level)
    except ValueError:
        show_logs("warning")
        logger.warning("%s=%.40r is unknown: set it to %s, or unset it.", VARIABLE, level, ", ".join(LEVELS))
    return True


@contextmanager
def bar(description: str, total: int, *, visible: bool, unit: str = "conditions") -> Iterator[OnProgress]:
    """Progress bar on stderr, or none; yields the function that advances it."""
    layout = "{desc}: {percentage:3.0f}%|{bar}| {n:.0f} of {total:.0f} " + unit + ", {elapsed}<{remaining}"
    with tqdm(total=total, desc=description, disable=not visible, bar_format=layout) as progress_bar:
        # fractions may add up to slightly more than the total
        yield lambda done: progress_bar.update(min(done, total - progress_bar.n))
        progress_bar.update(total - progress_bar.n)


class _Stderr(logging.StreamHandler):
    """Handler for the current `sys.stderr`, which notebooks and tests replace."""

    def __init__(self) -> None:
        super().__init__(sys.stderr)

    def emit(self, record: logging.LogRecord) -> None:
        root_handlers = logging.getLogger().handlers
        if not all(map(_is_basic, root_handlers)):
            return
        for handler in root_handlers:  # they come after this one and would repeat the message
            handler.addFilter(_is_of_others)
        self.setStream(sys.stderr)
        super().emit(record)


def _is_basic(handler: logging.Handler) -> bool:
    """Whether a root handler was added by a bare `logging.info(…)`, such as TransformerLens's."""
    form = handler.formatter and handler.formatter._fmt
    return type(handler) is logging.StreamHandler and form == logging.BASIC_FORMAT


def _is_of_others(record: logging.LogRecord) -> bool:
    return record.name.split(".")[0] != "tl_steer"
