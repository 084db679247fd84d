"""What a sweep has done, kept as it goes in a folder beside its table: chunk by chunk, each whole or absent.

`table.parquet.cells/` holds `plan.json` (all that the numbers depend on), a file a finished chunk, and the
lock. It is removed when `table.parquet` is written.
"""

import hashlib
import io
import json
import os
import shutil
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pandas as pd

from .._util.file_io import atomic
from .._util.validation import warn
from ..errors import InUseError
from .chunks import Answers
from .content_hash import digest
from .plans import Plan, differences

PACKAGES = ("tl-steer", "torch", "transformer-lens", "transformers")
LOCK, WRITER, PLAN = "lock", "writer.json", "plan.json"
OTHER_KINDS = (".csv", ".tsv", ".json", ".jsonl", ".xlsx", ".pkl")


@dataclass(frozen=True)
class Checkpoints:
    """The finished chunks of one sweep; `checkpoints` opens them.

    Attributes:
        out: where the table will be.
        folder: where the chunks are.
        plan: the plan's digest, which each chunk's file repeats.
        memory: bytes that the engine may take, as when the sweep was begun: they decide what shares a batch.
    """

    out: Path
    folder: Path
    plan: str
    memory: int

    def finished(self) -> set[int]:
        """The chunks whose files are whole and of this plan; any other file is removed, to be done again."""
        numbers = [self._number(path) for path in sorted(self.folder.glob("*.parquet"))]
        return {number for number in numbers if number is not None}

    def keep(self, number: int, answers: Answers) -> None:
        """Write a chunk's answers, whole or not at all.

        Raises:
            OSError: it could not be written; all that was finished before is as it was.
        """
        described = {
            "plan": self.plan,
            "chunk": number,
            "norms": [[*at, norm] for at, norm in answers.norms.items()],
        }
        content = _parquet(answers.outcomes, described)
        write_whole(self.folder / f"{number:05d}-{_content_digest(content)}.parquet", content, self.folder)

    def answers(self, number: int) -> Answers:
        """A finished chunk's answers."""
        (path,) = self.folder.glob(f"{number:05d}-*.parquet")
        outcomes, described = _read(path.read_bytes())
        return Answers(outcomes, {(hook, layer): norm for hook, layer, norm in described["norms"]})

    def finish(self, table: pd.DataFrame) -> None:
        """Write the table, and remove the chunks.

        Raises:
            OSError: the table could not be written; the chunks are all there.
        """
        begun = json.loads((self.folder / PLAN).read_text("utf-8"))
        write_whole(self.out, _parquet(table, begun), self.folder)
        _removed(self.folder)

    def _number(self, path: Path) -> int | None:
        """Which chunk a file is; `None`, and the file is gone, where it is torn or of another plan."""
        content = path.read_bytes()
        number, _, told = path.stem.partition("-")
        if told == _content_digest(content) and number.isdecimal():
            described = _read(content)[1]
            if (described.get("plan"), described.get("chunk")) == (self.plan, int(number)):
                return int(number)
        path.unlink(missing_ok=True)
        return None


@contextmanager
def checkpoints(out: Path, plan: Plan, memory: int) -> Iterator[Checkpoints]:
    """Begin a sweep that writes to `out`, or go on with it; nobody else may meanwhile.

    Raises:
        FileExistsError: `out` is there, or it was begun with another plan; the message says what differs.
        InUseError: another process writes it.
    """
    folder = out.with_name(f"{out.name}.cells")
    folder.mkdir(parents=True, exist_ok=True)
    plan = json.loads(json.dumps(plan))
    with only_writer(folder, out):
        try:
            if out.exists():
                raise FileExistsError(f"{out} exists: give another name, or move it away first.")
            for scratch in [*folder.glob(".*.part"), *out.parent.glob(f".{out.name}.*.part")]:
                scratch.unlink(missing_ok=True)  # of a process that was killed while it wrote
            memory = _begun(folder, out, plan, memory)
            yield Checkpoints(out, folder, digest(plan), memory)
        finally:
            if not any(folder.glob("*.parquet")):  # nothing is finished, or all is
                _removed(folder)


def _begun(folder: Path, out: Path, plan: Plan, memory: int) -> int:
    """The plan's file, made or compared; the memory it was begun with."""
    path, packages = folder / PLAN, package_versions(PACKAGES)
    begun = json.loads(path.read_text("utf-8")) if path.exists() else None
    done = any(folder.glob("*.parquet"))
    if begun is None or not done:
        described = {"plan": plan, "memory": memory, "packages": packages}
        write_whole(path, json.dumps(described, indent=1).encode(), folder)
        return memory
    if told := differences(begun["plan"], plan):
        raise FileExistsError(
            f"{out} was begun with another sweep, part of which is done: {told} now. Give what it was begun "
            f"with to go on, write this one elsewhere, or delete {folder} to begin anew."
        )
    _warn_of_packages(out, begun["packages"])
    return begun["memory"]


def _warn_of_packages(out: Path, begun: Mapping[str, str]) -> None:
    if message := differences(begun, package_versions(PACKAGES)):
        warn(
            f"{out} was begun with other packages: {message} now. Where numbers must not depend on them, "
            "install those again, or begin anew elsewhere."
        )


def finished_table(out: Path, plan: Plan) -> pd.DataFrame | None:
    """The table of a finished sweep with this plan, `None` where `out` does not exist.

    Raises:
        FileExistsError: `out` is something else; the message says what differs.
    """
    if not out.exists():
        return None
    try:
        table, begun = _read(out.read_bytes())
        differing = differences(begun["plan"], json.loads(json.dumps(plan)))
    except Exception as error:  # whatever pyarrow makes of another file
        raise FileExistsError(
            f"{out} exists, and is not the table of a sweep ({error!r:.80}): give another name, or move it "
            "away first."
        ) from error
    if differing:
        raise FileExistsError(
            f"{out} exists, with the table of another sweep: {differing} now. Give another name, or move it "
            "away first."
        )
    _warn_of_packages(out, begun["packages"])
    _remove_outlived(begun["plan"], out.with_name(f"{out.name}.cells"))
    return table


@contextmanager
def only_writer(folder: Path, what: Path) -> Iterator[None]:
    """Hold a folder's lock, or refuse; it is let go of when this is left, or the process dies however.

    Raises:
        InUseError: another process holds it; says which.
        OSError: the disk is full, or the folder may not be written to.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise InUseError(
            f"{what} is being written by {_writer(folder)}: wait for it to end, or write elsewhere."
        ) from None
    try:
        told = {"process": os.getpid(), "machine": socket.gethostname()}
        write_whole(folder / WRITER, json.dumps(told).encode(), folder)
        yield
    finally:
        with suppress(OSError):
            (folder / WRITER).unlink(missing_ok=True)
        lock.release()


def _writer(folder: Path) -> str:
    try:
        told = json.loads((folder / WRITER).read_text("utf-8"))
        here = told["machine"] == socket.gethostname()
        return f"process {told['process']}" + ("" if here else f" on {told['machine']}")
    except (OSError, ValueError, KeyError):  # it has just begun, or is about to end
        return "another process"


def write_whole(path: Path, content: bytes, kept: Path) -> None:
    """Write a file whole or not at all; where it cannot be written, say so, what is kept, and how to go on.

    Raises:
        OSError: the disk is full, a limit is reached, or the folder may not be written to.
    """
    try:
        with atomic(path) as scratch:
            scratch.write_bytes(content)
    except OSError as error:
        raise not_written(path, error, kept, f" ({len(content):,} bytes)") from error


def not_written(path: Path, error: Exception, kept: Path, size: str = "") -> OSError:
    """The error that says which file could not be written and why, and that what is done is kept."""
    told = OSError(
        f"{path}{size} could not be written: {getattr(error, 'strerror', None) or error}. All that was "
        f"finished before is kept in {kept}; make room, or mend what is wrong, and call again to go on."
    )
    told.errno = getattr(error, "errno", None)
    return told


def require_parquet_name(out: Path) -> None:
    """Before anything is run: a table that cannot be kept is lost work.

    Raises:
        ValueError: a folder, or a name that says another kind of file.
    """
    if out.is_dir() or out.suffix in OTHER_KINDS:
        raise ValueError(f"out={str(out)!r}: give the name of a Parquet file, such as 'sweep.parquet'.")


def _remove_outlived(plan: Plan, folder: Path) -> None:
    """Remove the chunks of a finished sweep whose process was killed before it did."""
    from filelock import FileLock, Timeout

    if not (folder / PLAN).exists():
        return
    with suppress(OSError, ValueError, KeyError, Timeout), FileLock(folder / LOCK, blocking=False):
        if json.loads((folder / PLAN).read_text("utf-8"))["plan"] == plan:
            _removed(folder)


def _removed(folder: Path) -> None:
    """The folder goes, what says whose chunks they are last."""
    for path in folder.glob("*.parquet"):
        path.unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)


def package_versions(packages: tuple[str, ...]) -> dict[str, str]:
    """The versions that are installed."""
    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def require_writable(table: pd.DataFrame) -> None:
    """Before anything is run: refuse columns that Parquet cannot hold.

    Raises:
        ValueError: names the column, and says what to do.
    """
    for name in table:
        try:
            _read(_parquet(table[[name]]))
        except Exception as error:  # whatever pyarrow or pandas make of it
            raise ValueError(
                f"the column {name!r} cannot be written to a Parquet file ({error}). Give it values of one "
                f"kind, text, numbers or true and false (factors[{name!r}].astype(str)), or leave out=… away."
            ) from error


def _parquet(table: pd.DataFrame, described: Mapping[str, Any] | None = None) -> bytes:
    import pyarrow
    from pyarrow import parquet

    content = io.BytesIO()
    arrow = pyarrow.Table.from_pandas(table, preserve_index=False)
    if described is not None:
        arrow = arrow.replace_schema_metadata({**arrow.schema.metadata, b"tl_steer": json.dumps(described)})
    parquet.write_table(arrow, content)
    return content.getvalue()


def _read(content: bytes) -> tuple[pd.DataFrame, dict[str, Any]]:
    from pyarrow import parquet

    described = json.loads(parquet.read_schema(io.BytesIO(content)).metadata.get(b"tl_steer", b"{}"))
    return pd.read_parquet(io.BytesIO(content)), described


def _content_digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]
