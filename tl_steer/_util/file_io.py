"""Reading UTF-8 text files and writing files atomically."""

import codecs
import logging
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

logger = logging.getLogger(__name__)
REMEDY = (
    'Save it as UTF-8: in Excel as "CSV UTF-8", in Python with '
    'path.write_text(path.read_text(encoding="{}"), encoding="utf-8").'
)


def read_text(path: Path) -> str:
    """Text of a UTF-8 file, with or without a byte order mark; line ends are not translated."""
    content = path.read_bytes()
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise ValueError(f"{path} is in UTF-16: expected UTF-8. {REMEDY.format('utf-16')}")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"{path}: byte {error.start} (0x{content[error.start]:02x}, line {line}) is not UTF-8: expected "
            f"UTF-8. {REMEDY.format('cp1252')}"
        ) from error


@contextmanager
def atomic(path: str | Path) -> Iterator[Path]:
    """Temporary path that replaces `path` only if it was written without an error.

    The temporary file `.{name}.{pid}-{random}.part` is in the same folder. It is flushed to the disk and
    renamed to `path` in one step: a reader sees the old file or the new one, also after a crash or a loss of
    power. After an error (or Ctrl-C) it is removed, and the old file is unchanged. A killed process leaves
    its `.part` file, which can be deleted. Of two writers, the later one's file stays.
    """
    path = Path(os.path.realpath(path))  # a link stays a link
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.part")
    try:
        yield temporary
        with temporary.open("r+b") as file:  # for writing: Windows cannot flush files open for reading
            os.fsync(file.fileno())
        os.replace(temporary, path)
        logger.debug("wrote %s", path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    with suppress(OSError):  # the new name too; impossible on Windows and some mounts
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
