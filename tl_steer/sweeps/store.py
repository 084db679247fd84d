"""Resumable work: a folder with one writer, the plan of the work, and files that are whole or absent.

Sweeps and experiment runs use it. A sweep's folder, `table.parquet.cells/`, has `plan.json` (everything that
the numbers depend on), a Parquet file per finished chunk and the lock. It is removed when `table.parquet` is
written.
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
from .conditions import ChunkResult
from .plans import Plan, differences, digest

PACKAGES = ("tl-steer", "torch", "transformer-lens", "transformers")
LOCK, WRITER, PLAN = "lock", "writer.json", "plan.json"
OTHER_TYPES = (".csv", ".tsv", ".json", ".jsonl", ".xlsx", ".pkl")


@dataclass(frozen=True)
class Store:
    """The `folder` of unfinished work on `out`, which only this process writes to; `open_store` opens it."""

    out: Path
    folder: Path

    def begin(
        self, file: str, begun: Mapping[str, Any], *, plan: str, what: str, remedy: str
    ) -> dict[str, Any]:
        """Write what the work begins with (JSON) or, if it was begun before, compare and return that.

        Raises:
            FileExistsError: the work was begun with another plan; the message names the differences.
        """
        path = self.folder / file
        if not path.exists():
            existing = self.out if self.out.is_dir() else self.folder
            write_atomic(path, json.dumps(begun, indent=1).encode(), existing)
            return dict(begun)
        before = json.loads(path.read_text("utf-8"))
        if changes := differences(before[plan], begun[plan]):
            raise FileExistsError(f"{self.out} was begun with {what}: {changes} now. {remedy}")
        return before


@contextmanager
def open_store(folder: Path, out: Path) -> Iterator[Store]:
    """Create or reopen a folder of unfinished work, lock it, and remove files of killed writers."""
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder, out):
        for path in [*folder.glob(".*.part"), *out.glob(".*.part"), *out.parent.glob(f".{out.name}.*.part")]:
            path.unlink(missing_ok=True)
        yield Store(out, folder)


@contextmanager
def locked(folder: Path, out: Path) -> Iterator[None]:
    """Hold a folder's lock, which is released on leaving and when the process ends.

    Raises:
        InUseError: another process holds it; the message names the process.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise InUseError(
            f"{out} is being written by {_writer(folder)}: wait for it to end, or write elsewhere."
        ) from None
    try:
        writer = {"process": os.getpid(), "machine": socket.gethostname()}
        write_atomic(folder / WRITER, json.dumps(writer).encode(), folder)
        yield
    finally:
        with suppress(OSError):
            (folder / WRITER).unlink(missing_ok=True)
        lock.release()


def _writer(folder: Path) -> str:
    try:
        writer = json.loads((folder / WRITER).read_text("utf-8"))
        is_local = writer["machine"] == socket.gethostname()
        return f"process {writer['process']}" + ("" if is_local else f" on {writer['machine']}")
    except (OSError, ValueError, KeyError):  # it has just begun, or is about to end
        return "another process"


def write_atomic(path: Path, content: bytes, finished: Path) -> None:
    """Write a file whole or not at all.

    Raises:
        OSError: the disk is full, or the folder cannot be written to; the message says where finished work
            is kept and how to continue.
    """
    with write_errors(path, finished, f" ({len(content):,} bytes)"), atomic(path) as temporary:
        temporary.write_bytes(content)


@contextmanager
def write_errors(path: Path, finished: Path | None = None, size: str = "") -> Iterator[None]:
    """Say in an error of writing `path` where finished work is kept (by default in its folder)."""
    try:
        yield
    except OSError as error:
        explained = OSError(
            f"{path}{size} could not be written: {error.strerror or error}. All that was finished before is "
            f"kept in {finished or path.parent}; free some space, or correct the cause, and call again."
        )
        explained.errno = error.errno
        raise explained from error


def package_versions(packages: tuple[str, ...]) -> dict[str, str]:
    """Installed version of each package."""
    versions = dict.fromkeys(packages, "not installed")
    for package in packages:
        with suppress(PackageNotFoundError):
            versions[package] = version(package)
    return versions


@dataclass(frozen=True)
class Checkpoints(Store):
    """The finished chunks of a sweep; `open_checkpoints` opens them."""

    plan: str  # content hash; each chunk's file has it too
    memory: int  # bytes for the engine, as when the sweep was begun: they decide what shares a batch

    def finished(self) -> set[int]:
        """Numbers of the finished chunks; damaged files and files of other plans are removed."""
        numbers = set()
        for path in self.folder.glob("*.parquet"):
            number, _, expected = path.stem.partition("-")
            content = path.read_bytes()
            metadata = _read_parquet(content)[1] if expected == _file_digest(content) else {}
            if metadata.get("plan") == self.plan and number == f"{metadata['chunk']:05d}":
                numbers.add(int(number))
            else:
                path.unlink(missing_ok=True)
        return numbers

    def save(self, number: int, result: ChunkResult) -> None:
        """Write a chunk's result."""
        norms = [[*site, norm] for site, norm in result.norms.items()]
        content = _parquet(result.outcomes, {"plan": self.plan, "chunk": number, "norms": norms})
        write_atomic(self.folder / f"{number:05d}-{_file_digest(content)}.parquet", content, self.folder)

    def load(self, number: int) -> ChunkResult:
        """A finished chunk's result."""
        (path,) = self.folder.glob(f"{number:05d}-*.parquet")
        outcomes, metadata = _read_parquet(path.read_bytes())
        return ChunkResult(outcomes, {(hook, layer): norm for hook, layer, norm in metadata["norms"]})

    def finish(self, table: pd.DataFrame) -> None:
        """Write the table, then remove the chunks, which remain after an error."""
        begun = json.loads((self.folder / PLAN).read_text("utf-8"))
        write_atomic(self.out, _parquet(table, begun), self.folder)
        _remove(self.folder)


@contextmanager
def open_checkpoints(out: Path, plan: Plan, memory: int) -> Iterator[Checkpoints]:
    """Begin or continue a sweep that writes to `out`; raises as `open_store` and `Store.begin`."""
    folder = out.with_name(f"{out.name}.cells")
    with open_store(folder, out) as store:
        try:
            if out.exists():
                raise FileExistsError(f"{out} exists: give another name, or move it away first.")
            if not any(folder.glob("*.parquet")):
                (folder / PLAN).unlink(missing_ok=True)
            begun = store.begin(
                PLAN,
                {"plan": plan, "memory": memory, "packages": package_versions(PACKAGES)},
                plan="plan",
                what="another sweep, part of which is done",
                remedy="Give what it was begun with to go on, write this one elsewhere, or delete "
                f"{folder} to start again.",
            )
            _warn_of_packages(out, begun["packages"])
            yield Checkpoints(out, folder, digest(plan), begun["memory"])
        finally:
            if not any(folder.glob("*.parquet")):  # nothing is finished, or everything is
                _remove(folder)


def finished_table(out: Path, plan: Plan) -> pd.DataFrame | None:
    """The table of a finished sweep with this plan; `None` if `out` does not exist, else FileExistsError."""
    if not out.exists():
        return None
    remedy = "Give another name, or move it away first."
    try:
        table, begun = _read_parquet(out.read_bytes())
        changes = differences(begun["plan"], plan)
    except Exception as error:  # pyarrow's errors for other files are many
        raise FileExistsError(
            f"{out} exists, and is not the table of a sweep ({error!r:.80}). {remedy}"
        ) from error
    if changes:
        raise FileExistsError(f"{out} exists, with the table of another sweep: {changes} now. {remedy}")
    _warn_of_packages(out, begun["packages"])
    _remove_leftovers(begun["plan"], out.with_name(f"{out.name}.cells"))
    return table


def _warn_of_packages(out: Path, before: Plan) -> None:
    if changes := differences(before, package_versions(PACKAGES)):
        warn(
            f"{out} was begun with other packages: {changes} now. If numbers must not depend on them, "
            "install the earlier ones, or start again elsewhere."
        )


def _remove_leftovers(plan: Plan, folder: Path) -> None:
    """Remove the chunks of a finished sweep that was killed before it removed them."""
    from filelock import FileLock, Timeout

    if not folder.exists():
        return
    with suppress(OSError, ValueError, KeyError, Timeout), FileLock(folder / LOCK, blocking=False):
        if json.loads((folder / PLAN).read_text("utf-8"))["plan"] == plan:
            _remove(folder)


def _remove(folder: Path) -> None:
    """Remove the folder, chunks first: the plan says whose they are."""
    for path in folder.glob("*.parquet"):
        path.unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)


def require_writable(out: Path, table: pd.DataFrame) -> None:
    """Reject folders, names of other file types, and columns that Parquet cannot hold, before any work."""
    if out.is_dir() or out.suffix in OTHER_TYPES:
        raise ValueError(f"out={str(out)!r}: give the name of a Parquet file, such as 'sweep.parquet'.")
    for name in table:
        try:
            _read_parquet(_parquet(table[[name]]))
        except Exception as error:  # pyarrow's and pandas's errors are many
            raise ValueError(
                f"the column {name!r} cannot be written to a Parquet file ({error}). Give it values of one "
                f"type, text, numbers or true and false (factors[{name!r}].astype(str)), or leave out=… away."
            ) from error


def _parquet(table: pd.DataFrame, metadata: Mapping[str, Any] | None = None) -> bytes:
    import pyarrow
    from pyarrow import parquet

    content = io.BytesIO()
    arrow = pyarrow.Table.from_pandas(table, preserve_index=False)
    if metadata is not None:
        arrow = arrow.replace_schema_metadata({**arrow.schema.metadata, b"tl_steer": json.dumps(metadata)})
    parquet.write_table(arrow, content)
    return content.getvalue()


def _read_parquet(content: bytes) -> tuple[pd.DataFrame, dict[str, Any]]:
    from pyarrow import parquet

    metadata = json.loads(parquet.read_schema(io.BytesIO(content)).metadata.get(b"tl_steer", b"{}"))
    return pd.read_parquet(io.BytesIO(content)), metadata


def _file_digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]
