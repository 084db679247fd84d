"""A judge's replies on disk, so that nothing is paid for twice: a line a reply, by its request's digest."""

import json
import logging
import os
from pathlib import Path

logger = logging.getLogger(__name__)

START = b'{"key": '


class ReplyCache:
    """Replies by digest, in memory and, where a path is given, in a file of JSON lines.

    Args:
        path: the file; `None` keeps replies in memory only.

    Raises:
        ValueError: the file holds something else.

    Each reply is one write to the end of the file, brought to the disk before the next request is made. A
    process may be killed at any moment, and two may write to one file: a line that was not finished is
    skipped, and spoils no other, since each brings the line break in front of it. The file holds digests
    and replies, neither prompts nor keys.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._replies = {} if path is None else _read(path)

    def __contains__(self, key: str) -> bool:
        return key in self._replies

    def __getitem__(self, key: str) -> str:
        return self._replies[key]

    def keep(self, key: str, reply: str) -> None:
        """Remember a reply, and have it on the disk when this returns.

        Raises:
            OSError: it could not be written, or not whole.
        """
        self._replies[key] = reply
        if self.path is None:
            return
        line = b"\n" + json.dumps({"key": key, "reply": reply}).encode() + b"\n"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "ab", buffering=0) as file:
            if file.write(line) != len(line):
                raise OSError(f"{self.path}: a reply was written in part only; is the disk full?")
            os.fsync(file.fileno())


def _read(path: Path) -> dict[str, str]:
    content = path.read_bytes() if path.exists() else b""
    lines = [line for line in content.split(b"\n") if line]
    found = [entry for line in lines if (entry := _entry(line))]
    # an unfinished line that is alone is its beginning
    if lines and not found and not any(line.startswith(START[: len(line)]) for line in lines):
        raise ValueError(f"{path} is not a file of a judge's replies: give cache=… another name.")
    if len(found) < len(lines):
        logger.info("%s: %d unfinished lines are skipped", path, len(lines) - len(found))
    return dict(found)


def _entry(line: bytes) -> tuple[str, str] | None:
    try:
        entry = json.loads(line)
        key, reply = entry["key"], entry["reply"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    return (key, reply) if isinstance(key, str) and isinstance(reply, str) else None
