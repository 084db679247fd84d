"""A run folder while it is worked on: whose it is, what it was begun with, and who writes it now.

`RUN/unfinished/` marks a run that has not come to its end. It holds the lock, `begun.json` (model, data,
packages and memory, as they were), and the sweeps' tables until all of them are one. It goes when the report
is written.
"""

import difflib
import hashlib
import itertools
import json
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from .._util.validation import checked
from ..engine.shared.chunking import bytes_allowed
from ..models import detected_format, writes_date
from ..sweeps.content_hash import counted, digest
from ..sweeps.plans import Plan, differences, model_parts, questions_parts, tokens_part
from ..sweeps.store import not_written, only_writer, write_whole
from .config_file import Experiment
from .materials import files_of, pairs_of, passages_of, questions_of, rendered_prompts

logger = logging.getLogger(__name__)
UNFINISHED, BEGUN, FILE, VERSIONS, REPORT = (
    "unfinished", "begun.json", "experiment.toml", "versions.json", "report.html",
)  # fmt: skip
SHOWN = 3  # differing lines
REMEDY = "Give another folder (--out), or begin anew (--fresh), which moves the old run aside."


def is_run(out: Path) -> bool:
    """Whether a folder holds a run, finished or not."""
    return (out / FILE).exists() or (out / UNFINISHED).exists()


@checked
def is_finished(out: str | Path) -> bool:
    """Whether a folder holds a run that has come to its end, with its report."""
    out = Path(out)
    return all((out / name).exists() for name in (FILE, VERSIONS, REPORT)) and not (out / UNFINISHED).exists()


def require_own(experiment: Experiment, out: Path) -> None:
    """Refuse a folder that holds something else, or a run of another experiment file.

    Raises:
        FileExistsError: says what it holds, the first lines that differ, and what to do.
    """
    if not is_run(out):
        if out.is_file() or (out.is_dir() and any(out.iterdir())):
            raise FileExistsError(
                f"{out} exists and is not empty: give another folder, or move or delete this one first."
            )
        return
    if not (out / FILE).exists():
        return
    held = (out / FILE).read_bytes().decode("utf-8", errors="replace")
    if held != experiment.source:
        lines = (text.splitlines() for text in (held, experiment.source))
        told = list(difflib.unified_diff(*lines, n=0, lineterm=""))[2:]  # the first two name the files
        changed = [line for line in told if not line.startswith("@@")]
        shown = "\n".join(f"  {line}" for line in changed[:SHOWN] or ["(ends of lines alone)"])
        more = f"\n  … and {len(changed) - SHOWN} more" if len(changed) > SHOWN else ""
        raise FileExistsError(
            f"{out} already holds a run of another experiment file (- as it was, + as it is now):\n"
            f"{shown}{more}\n{REMEDY}"
        )


def move_aside(out: Path) -> Path | None:
    """Give a run the first free name of out.old-1, out.old-2, …; nothing is deleted.

    Raises:
        InUseError: a process writes it.
    """
    if not is_run(out):
        return None
    whole = out.absolute()  # "." has no name
    names = (whole.with_name(f"{whole.name}.old-{number}") for number in itertools.count(1))
    if (out / UNFINISHED).exists():
        with only_writer(out / UNFINISHED, out):
            old = next(place for place in names if not place.exists())
            os.rename(whole, old)
            (old / UNFINISHED / "writer.json").unlink(missing_ok=True)
    else:
        old = next(place for place in names if not place.exists())
        os.rename(whole, old)
    logger.info("the run that was in %s is in %s", out, old)
    return old


@contextmanager
def worked_on(experiment: Experiment, out: Path) -> Iterator[Path]:
    """Begin a run in `out` or go on with it; gives the folder of what is only there until it is finished.

    Raises:
        FileExistsError: as `require_own`.
        InUseError: another process writes it.

    On an error what is finished stays; where nothing was begun, nothing does.
    """
    require_own(experiment, out)
    was_there = out.exists()
    work = out / UNFINISHED
    work.mkdir(parents=True, exist_ok=True)
    with only_writer(work, out):
        try:
            require_own(experiment, out)
            for scratch in out.glob(".*.part"):
                scratch.unlink(missing_ok=True)  # of a process that was killed while it wrote
            yield work
        except BaseException as error:
            if (work / BEGUN).exists() and not isinstance(error, FileExistsError):
                logger.warning(
                    "%s is unfinished: what is done is kept, the same call goes on from there", out
                )
            elif not (out / FILE).exists():
                shutil.rmtree(work, ignore_errors=True)
                if not was_there:
                    with suppress(OSError):
                        out.rmdir()
            raise
        shutil.rmtree(work)


def with_date(experiment: Experiment, model: Any, work: Path) -> Experiment:
    """The experiment with the date that its chat template writes: that on which the run was begun."""
    path, variables = work / BEGUN, experiment.model.template_variables
    if path.exists():
        variables = json.loads(path.read_text("utf-8")).get("template_variables", variables)
    elif experiment.has_chat and writes_date(detected_format(model, variables)):
        now = datetime.now().isoformat(timespec="seconds")  # local time, as the template would write it
        logger.info("the chat template writes the current date: the run keeps %s", now)
        variables = {**variables, "strftime_now": now}
    return replace(experiment, model=replace(experiment.model, template_variables=variables))


def begin(experiment: Experiment, model: Any, work: Path, packages: dict[str, str]) -> dict[str, Any]:
    """Write down what the run is begun with, or compare it; gives what it was begun with.

    `memory` is among it, in bytes: it decides what shares a batch, and so the last bits of every table.

    Raises:
        FileExistsError: the model or the data are others than when the run was begun.
    """
    out, path = work.parent, work / BEGUN
    parts = json.loads(json.dumps(_parts(experiment, model)))
    if path.exists():
        begun = json.loads(path.read_text("utf-8"))
        if told := differences(begun["parts"], parts):
            raise FileExistsError(f"{out} was begun with something else than is there now: {told}. {REMEDY}")
        if told := differences(begun["packages"], packages):
            logger.warning("%s goes on with other packages than it was begun with: %s", out, told)
        return begun
    begun = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "parts": parts,
        "packages": packages,
        "template_variables": dict(experiment.model.template_variables),
        "memory": bytes_allowed(model, None),
    }
    if not (out / FILE).exists():
        write_whole(out / FILE, experiment.source.encode("utf-8"), out)
    write_whole(path, json.dumps(begun, indent=1).encode("utf-8"), out)
    return begun


def require_unchanged(experiment: Experiment, model: Any, out: Path) -> None:
    """Refuse a finished run of another model (where one is in hand), or of data files that changed since.

    Raises:
        FileExistsError: says what differs, and what to do.

    Files that are no longer there are not asked for: a run outlives its data.
    """
    kept = json.loads((out / VERSIONS).read_text("utf-8"))  # of earlier versions without parts and files
    then, now = {}, {}
    if model is not None and (begun := kept.get("parts", {}).get("model")):
        then["model"], now["model"] = begun, json.loads(json.dumps(model_parts(model)))
    found = files_parts(experiment)
    then["data"] = {name: told for name, told in kept.get("files", {}).items() if name in found}
    now["data"] = {name: found[name] for name in then["data"]}
    if told := differences(then, now):
        raise FileExistsError(f"{out} holds a run of something else than is there now: {told}. {REMEDY}")


def files_parts(experiment: Experiment) -> dict[str, str]:
    """The digest of each file that the experiment names, by its name there; of those that are there."""
    return {
        name: hashlib.sha256(path.read_bytes()).hexdigest()[:16]
        for name, path in files_of(experiment).items()
        if path.is_file()
    }


@contextmanager
def kept_file(path: Path) -> Iterator[None]:
    """Around the writing of a file: where that fails, what is kept and how to go on is told."""
    try:
        yield
    except OSError as error:
        raise not_written(path, error, path.parent) from error


def _parts(experiment: Experiment, model: Any) -> Plan:
    """The model and the data, whatever files they lie in, as text and as the model's tokens."""
    parts, prompts = {"model": model_parts(model)}, []
    if not experiment.has_prompts:
        pairs = pairs_of(experiment, model)
        parts["pairs"] = f"{len(pairs)} ({digest(pairs)})"
        prompts += [*pairs.positive, *pairs.negative]
    if experiment.questions is not None:
        questions = questions_of(experiment, model)
        parts["questions"] = questions_parts(questions)
        prompts += questions.prompts
        if experiment.damage.passages and not experiment.has_prompts:
            parts["neutral passages"] = counted(passages_of(experiment))
    if experiment.text is not None:
        said = rendered_prompts(experiment, model)
        parts["open prompts"] = counted(said)
        prompts += said
    return parts | {"tokens": tokens_part(model, prompts)}
