"""What the package tells while it works: nothing by default, on stderr where `TL_STEER_LOG` asks for it.

Each module logs to the logger of its own name, `tl_steer._capture`, and the package puts no handler on
them but an empty one, so that a program decides for itself. `info` says what is done (a model loaded, prompts
captured, cells asked, files written), `debug` with how much memory and in how many passes, `warning` what
went otherwise than asked. Texts of prompts are logged at `debug` alone, keys of judges never.
"""

import logging
import os
import sys

from .validation import checked

VARIABLE = "TL_STEER_LOG"
LEVELS = ("debug", "info", "warning", "error")
FULL = "%(asctime)s %(levelname)-7s %(name)s: %(message)s"
PLAIN = "%(message)s"  # of a command, whose user did not write the program

logger = logging.getLogger("tl_steer")


@checked
def show_logs(level: str = "info", *, form: str = FULL) -> None:
    """Write the package's messages to stderr, from a level on; called again, it changes the level.

    Args:
        level: "debug", "info", "warning" or "error", in capitals or not.
        form: a format of `logging`; by default time, level, module and message.

    Raises:
        ValueError: another level.

    Where your program has handlers at the root logger, they show the messages, and none is shown twice.
    """
    wanted = level.strip().lower()
    if wanted not in LEVELS:
        raise ValueError(f"log level {level!r} is unknown: use {', '.join(LEVELS)}.")
    for handler in [each for each in logger.handlers if isinstance(each, _Stderr)]:
        logger.removeHandler(handler)
    handler = _Stderr()
    handler.setFormatter(logging.Formatter(form))
    logger.addHandler(handler)
    logger.setLevel(wanted.upper())


def logs_from_environment() -> bool:
    """Do what `TL_STEER_LOG` says, and whether it says anything; an unknown value is one warning."""
    if not any(isinstance(each, logging.NullHandler) for each in logger.handlers):
        logger.addHandler(logging.NullHandler())
    asked = os.environ.get(VARIABLE, "").strip()
    if not asked:
        return False
    try:
        show_logs(asked)
    except ValueError:
        show_logs("warning")
        logger.warning("%s=%.40r is unknown: set it to %s, or unset it.", VARIABLE, asked, ", ".join(LEVELS))
    return True


class _Stderr(logging.StreamHandler):
    """Writes to what stderr is at the moment, so that notebooks and tests can exchange it."""

    def __init__(self) -> None:
        super().__init__(sys.stderr)

    def emit(self, record: logging.LogRecord) -> None:
        above = logging.getLogger().handlers
        if not all(map(_is_nobody_s, above)):
            return
        for handler in above:  # they come after this one, and would tell it again
            handler.addFilter(_not_ours)
        self.setStream(sys.stderr)
        super().emit(record)


def _is_nobody_s(handler: logging.Handler) -> bool:
    """Whether a root handler is what a bare `logging.info(…)`, TransformerLens's too, leaves behind."""
    told = handler.formatter and handler.formatter._fmt
    return type(handler) is logging.StreamHandler and told == logging.BASIC_FORMAT


def _not_ours(record: logging.LogRecord) -> bool:
    return record.name.split(".")[0] != "tl_steer"
