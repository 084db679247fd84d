"""Read text files in UTF-8, and write files as a whole or not at all."""

import codecs
import logging
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

logger = logging.getLogger(__name__)


def read_text(path: Path) -> str:
    """The text of a UTF-8 file, with or without a byte order mark; line ends are kept.

    Raises:
        ValueError: another encoding; names the byte, and says how to save the file.
    """
    content = path.read_bytes()
    how = 'Save it as UTF-8: in Excel as "CSV UTF-8", in Python with path.write_text(path.read_text('
    how += 'encoding="{}"), encoding="utf-8").'
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise ValueError(f"{path} is in UTF-16: expected UTF-8. {how.format('utf-16')}")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"{path}: byte {error.start} (0x{content[error.start]:02x}, line {line}) is not UTF-8: expected "
            f"UTF-8. {how.format('cp1252')}"
        ) from error


@contextmanager
def atomic(path: str | Path) -> Iterator[Path]:
    """A scratch path to write to, which takes the place of `path` only when it was written without an error.

    The scratch file `.{name}.{pid}-{random}.part` lies in the same folder. On leaving it is flushed to the
    disk and renamed over `path` in one step, so that a reader sees the old file or the new one, also after a
    crash or a loss of power. On an error (also Ctrl-C) it is removed and the old file stays as it was.

    Raises:
        OSError: the folder does not exist, cannot be written to, or the disk is full; and
            FileNotFoundError where nothing was written to the scratch path.

    A process killed while writing leaves its `.part` file behind; nothing reads it, and it can be deleted.
    Two writers do not mix their contents: the later one's file stays.
    """
    path = Path(os.path.realpath(path))  # through a link: it stays one
    scratch = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.part")
    try:
        yield scratch
        _flush(scratch)
        os.replace(scratch, path)
        logger.debug("wrote %s, whole", path)
    except BaseException:
        with suppress(OSError):
            scratch.unlink(missing_ok=True)
        raise
    _flush_folder(path.parent)


def _flush(path: Path) -> None:
    # For writing: Windows flushes no file that is open for reading.
    with path.open("r+b") as file:
        os.fsync(file.fileno())


def _flush_folder(folder: Path) -> None:
    """So that the new name reaches the disk too; not possible on Windows and some mounts."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
