"""Folder of an experiment's run while it is unfinished: its owner, its plan, and its single writer.

`RUN/unfinished/` exists until the report is written. It has the lock, `begun.json` (model, data, packages and
memory at the start), and the sweeps' tables until they are combined.
"""

import difflib
import hashlib
import itertools
import json
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from .._util.validation import checked
from ..engine.shared.chunking import bytes_allowed
from ..models import detected_format, writes_date
from ..sweeps.plans import Plan, counted, differences, model_parts, questions_parts, tokens_part
from ..sweeps.store import WRITER, Store, locked, open_store, write_atomic
from .config_file import Experiment
from .materials import files_of, pairs_of, passages_of, questions_of, rendered_prompts

logger = logging.getLogger(__name__)
UNFINISHED, BEGUN = "unfinished", "begun.json"
FILE, VERSIONS, REPORT = "experiment.toml", "versions.json", "report.html"
MAX_LINES = 3  # differing lines in a message
REMEDY = "Start again (--fresh), which keeps the old run as NAME.old-1, or give another folder (--out)."


def is_run(out: Path) -> bool:
    """Whether a folder holds a run, finished or not."""
    return (out / FILE).exists() or (out / UNFINISHED).exists()


@checked
def is_finished(out: str | Path) -> bool:
    """Whether a folder holds a finished run with its report."""
    out = Path(out)
    return all((out / name).exists() for name in (FILE, VERSIONS, REPORT)) and not (out / UNFINISHED).exists()


def require_same_experiment(experiment: Experiment, out: Path) -> None:
    """Raise FileExistsError for a folder with other files, or with a run of another experiment file."""
    if not is_run(out) and (out.is_file() or (out.is_dir() and any(out.iterdir()))):
        raise FileExistsError(f"{out} exists and is not empty: give another folder, or move this one.")
    if not (out / FILE).exists():
        return
    before = (out / FILE).read_bytes().decode("utf-8", errors="replace")
    if before != experiment.source:
        sources = (source.splitlines() for source in (before, experiment.source))
        diff = list(difflib.unified_diff(*sources, n=0, lineterm=""))[2:]  # the first two name the files
        changed = [line for line in diff if not line.startswith("@@")] or ["(only the line ends)"]
        lines = "\n".join(f"  {line}" for line in changed[:MAX_LINES])
        more = f"\n  … and {len(changed) - MAX_LINES} more" if len(changed) > MAX_LINES else ""
        raise FileExistsError(
            f"{out} already holds a run of another experiment file (- as it was, + as it is now):\n"
            f"{lines}{more}\n{REMEDY}"
        )


def move_aside(out: Path) -> Path | None:
    """Rename a run to the first free name of out.old-1, out.old-2, …, unless a process writes it."""
    if not is_run(out):
        return None
    path = out.absolute()  # "." has no name
    with locked(out / UNFINISHED, out) if (out / UNFINISHED).exists() else nullcontext():
        names = (path.with_name(f"{path.name}.old-{number}") for number in itertools.count(1))
        old = next(name for name in names if not name.exists())
        os.rename(path, old)
        (old / UNFINISHED / WRITER).unlink(missing_ok=True)
    logger.info("the earlier run in %s was moved to %s", out, old)
    return old


@contextmanager
def open_run(experiment: Experiment, out: Path) -> Iterator[Path]:
    """Begin or continue a run in `out`; yields the folder of files that are removed when it is finished.

    Raises FileExistsError as `require_same_experiment`, and InUseError if another process writes it. After
    an error, finished files are kept; if nothing was begun, nothing is left.
    """
    require_same_experiment(experiment, out)
    was_there, folder = out.exists(), out / UNFINISHED
    with open_store(folder, out):
        try:
            require_same_experiment(experiment, out)
            yield folder
        except BaseException as error:
            if (folder / BEGUN).exists() and not isinstance(error, FileExistsError):
                logger.warning("%s is unfinished: finished files are kept, the same call continues", out)
            elif not (out / FILE).exists():
                shutil.rmtree(folder, ignore_errors=True)
                if not was_there:
                    with suppress(OSError):
                        out.rmdir()
            raise
        shutil.rmtree(folder)


def with_date(experiment: Experiment, model: Any, folder: Path) -> Experiment:
    """The experiment with the date that its chat template writes: the date when the run was begun."""
    path, variables = folder / BEGUN, experiment.model.template_variables
    if path.exists():
        variables = json.loads(path.read_text("utf-8")).get("template_variables", variables)
    elif experiment.has_chat and writes_date(detected_format(model, variables)):
        now = datetime.now().isoformat(timespec="seconds")  # local time, as the template would write it
        logger.info("the chat template writes the current date: the run keeps %s", now)
        variables = {**variables, "strftime_now": now}
    return replace(experiment, model=replace(experiment.model, template_variables=variables))


def begin(experiment: Experiment, model: Any, folder: Path, packages: dict[str, str]) -> dict[str, Any]:
    """Write what the run begins with, or return what it was begun with, if model and data are the same.

    "memory", in bytes, decides what shares a batch, and so the last bits of every table.
    """
    out = folder.parent
    now = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "parts": _parts(experiment, model),
        "packages": packages,
        "template_variables": dict(experiment.model.template_variables),
        "memory": bytes_allowed(model, None),
    }
    if not (folder / BEGUN).exists() and not (out / FILE).exists():
        write_atomic(out / FILE, experiment.source.encode("utf-8"), out)
    what = "something else than is there now"
    begun = Store(out, folder).begin(BEGUN, now, plan="parts", what=what, remedy=REMEDY)
    if changes := differences(begun["packages"], packages):
        logger.warning("%s continues with other packages than it was begun with: %s", out, changes)
    return begun


def require_unchanged(experiment: Experiment, model: Any, out: Path) -> None:
    """Raise FileExistsError for a finished run of another model, if one is passed, or of other data files.

    Data files that no longer exist are not compared.
    """
    versions = json.loads((out / VERSIONS).read_text("utf-8"))  # earlier versions lack parts and files
    before, now = {}, {}
    if model is not None and (parts := versions.get("parts", {}).get("model")):
        before["model"], now["model"] = parts, json.loads(json.dumps(model_parts(model)))
    files = files_parts(experiment)
    before["data"] = {name: part for name, part in versions.get("files", {}).items() if name in files}
    now["data"] = {name: files[name] for name in before["data"]}
    if changes := differences(before, now):
        raise FileExistsError(f"{out} holds a run of something else than is there now: {changes}. {REMEDY}")


def files_parts(experiment: Experiment) -> dict[str, str]:
    """Content hash of each existing file that the experiment names."""
    return {
        name: hashlib.sha256(path.read_bytes()).hexdigest()[:16]
        for name, path in files_of(experiment).items()
        if path.is_file()
    }


def _parts(experiment: Experiment, model: Any) -> Plan:
    """The model and the data: texts and the model's tokens, whichever files they come from."""
    parts, prompts = {"model": model_parts(model)}, []
    if not experiment.has_prompts:
        pairs = pairs_of(experiment, model)
        parts["pairs"] = counted(pairs)
        prompts += [*pairs.positive, *pairs.negative]
    if experiment.questions is not None:
        questions = questions_of(experiment, model)
        parts["questions"] = questions_parts(questions)
        prompts += questions.prompts
        if experiment.damage.passages and not experiment.has_prompts:
            parts["neutral passages"] = counted(passages_of(experiment))
    if experiment.text is not None:
        open_prompts = rendered_prompts(experiment, model)
        parts["open prompts"] = counted(open_prompts)
        prompts += open_prompts
    return parts | {"tokens": tokens_part(model, prompts)}
