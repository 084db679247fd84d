"""Runs that are interrupted and continued: the same tables, no step twice, and no run of something else."""

import errno
import json
import random
import re
import resource
import shutil
import sys
import time
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime, timedelta
from unittest.mock import Mock

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from tl_steer.errors import InUseError
from tl_steer.experiments import measurements, read_experiment, run
from tl_steer.experiments.run_folder import is_finished, is_run
from tl_steer.models import load_model
from tl_steer.organisms import language

from .conftest import assert_raises
from .fork_server import wait_for

STEPS = sys.modules["tl_steer.experiments._run"]  # the package attribute is the function
ALL_STEPS = """title = "all steps"
model = { name = "organism-bias" }
pairs = { kind = "organism", limit = 12 }
directions = { method = "mean_difference", unit = "length" }
questions = { kind = "organism" }
damage = { data = "organism", passages = 4 }
text = { prompts = ["Is it so ?", "What is it ?"], chat = false, layers = 1, max_new_tokens = 3 }
separation = { shuffles = 3, folds = 3 }
[sweep]
layers = [0, 1]
multipliers = [-1, -0.5, 0.5, 1]
positions = "last_token()"
controls = 2
control_layers = "chosen"
score = "shift"
"""
UNFINISHED = "run is unfinished: finished files are kept, the same call continues"
TABLES = ("sweep", "damage", "text_damage")
FILES = [
    "activations.safetensors", "audit.csv", "damage.parquet", "experiment.toml", "report.html",
    "sweep.parquet", "text_damage.parquet", "vectors.safetensors", "versions.json",
]  # fmt: skip


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("file") / "all_steps.toml"
    path.write_text(ALL_STEPS, encoding="utf-8")
    return path


@pytest.fixture
def out(tmp_path):
    return tmp_path / "run"


@pytest.fixture(scope="module")
def model():
    return load_model("organism-bias", device="cpu")


@pytest.fixture(scope="module")
def other_model():
    return load_model("organism-honesty", device="cpu")


@pytest.fixture(scope="module", autouse=True)
def no_report():
    """An empty report in this process: the real one takes longer than all other steps together."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(STEPS, "write_report", lambda folder: (folder / "report.html").touch())
        yield


def files_of(out):
    """The finished files with their inodes, which change where a file is written again."""
    return {path.name: path.stat().st_ino for path in out.glob("[!.]*.*") if path.is_file()}


@pytest.fixture(scope="module")
def uninterrupted(fork_server, file, tmp_path_factory):
    """Folder of a run in a process that is not killed."""
    out = tmp_path_factory.mktemp("runs") / "uninterrupted"
    fork_server.run("run", file=file, out=out)
    return out


def require_same(out, expected):
    assert sorted(path.name for path in out.iterdir()) == FILES
    for name in TABLES:
        tables = (pd.read_parquet(folder / f"{name}.parquet") for folder in (out, expected))
        pd.testing.assert_frame_equal(*tables, check_exact=True)
    for name in ("activations.safetensors", "audit.csv", "experiment.toml"):
        assert (out / name).read_bytes() == (expected / name).read_bytes(), name
    first, second = (load_file(folder / "vectors.safetensors") for folder in (out, expected))
    assert set(first) == set(second)
    assert all(torch.equal(first[name], second[name]) for name in first)  # the file holds a date, too


@pytest.mark.integration
@pytest.mark.parametrize(
    ("seed", "kills"), [(0, 1), *(pytest.param(seed, 6, marks=pytest.mark.slow) for seed in range(1, 5))]
)
def test_a_run_that_is_killed_gives_the_same_tables(fork_server, file, uninterrupted, out, seed, kills):
    """Each kill is a random number of files and moments after the last."""
    rng = random.Random(seed)
    for _ in range(kills):
        before = files_of(out)
        process = fork_server.start("run", file=file, out=out, pause=0.02)
        n_files = min(len(before) + rng.randint(0, 2), len(FILES))
        wait_for(lambda n_files=n_files: len(files_of(out)) >= n_files)
        time.sleep(rng.uniform(0, 0.4))
        if not fork_server.kill(process):
            assert is_finished(out)
            break
        assert is_run(out)
        assert not is_finished(out)
        assert before.items() <= files_of(out).items()
    else:
        fork_server.run("run", file=file, out=out)
    require_same(out, uninterrupted)


REPLACED = ["00000-", "begun.json", "experiment.toml", "vectors.safetensors", "00001-", "damage.parquet"]
REPLACED += ["sweep.parquet", "report.html"]
STOPS = [*(("replace", name) for name in REPLACED), ("content", "versions.json"), ("removal", "unfinished")]


@pytest.mark.integration
@pytest.mark.parametrize(
    ("step", "name"), [STOPS[0], *(pytest.param(*stop, marks=pytest.mark.slow) for stop in STOPS[1:])]
)
def test_a_run_that_is_killed_while_a_file_is_written_continues(
    fork_server, file, uninterrupted, tmp_path, out, step, name
):
    marker = tmp_path / "marker"
    process = fork_server.start("stopped_run", file=file, out=out, step=step, name=name, marker=marker)
    wait_for(marker.exists)
    for fresh in (False, True):
        with pytest.raises(InUseError, match=f"run is being written by process {process}"):
            run(read_experiment(file), out, model=object(), fresh=fresh)
    assert fork_server.kill(process)
    assert not is_finished(out)
    before = files_of(out)
    before.pop("report.html", None)  # which is written again
    fork_server.run("run", file=file, out=out)
    assert before.items() <= files_of(out).items()
    require_same(out, uninterrupted)


class BrokenError(RuntimeError):
    """Raised by a step on purpose."""


def break_at(step, file, out, model):
    """Run until a step, which raises an error."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(STEPS, step, Mock(side_effect=BrokenError))
        with pytest.raises(BrokenError):
            run(read_experiment(file), out, model=model, progress=False)


@pytest.mark.integration
def test_a_run_that_breaks_keeps_its_files_and_tables_and_continues(file, model, out, monkeypatch, caplog):
    break_at("damage_table", file, out, model)
    assert UNFINISHED in caplog.text
    assert not is_finished(out)
    before = files_of(out)
    assert {"audit.csv", "activations.safetensors", "vectors.safetensors"} <= set(before)
    for step in ("capture_pairs", "estimator_of"):
        monkeypatch.setattr(STEPS, step, Mock(side_effect=BrokenError))
    sweep = Mock(side_effect=measurements.sweep)
    monkeypatch.setattr(measurements, "sweep", sweep)
    run(read_experiment(file), out, model=model, progress=False)
    (call,) = sweep.call_args_list  # questions and controls are finished
    assert call.kwargs["out"].name == "texts.parquet"
    assert is_finished(out)
    assert sorted(path.name for path in out.iterdir()) == FILES
    assert before.items() <= files_of(out).items()


@pytest.mark.integration
def test_memory_is_what_it_was_when_the_run_was_begun(file, model, out, monkeypatch):
    """Free memory decides which prompts share a batch, and so the last bits; each step gets the same."""
    run_folder = sys.modules["tl_steer.experiments.run_folder"]
    monkeypatch.setattr(run_folder, "bytes_allowed", lambda *_: 10_000_000)
    break_at("capture_pairs", file, out, model)
    monkeypatch.setattr(run_folder, "bytes_allowed", lambda *_: 20_000_000)
    steps = []
    for module, name in ((STEPS, "capture_pairs"), *((measurements, name) for name in TABLES)):
        steps.append(Mock(side_effect=getattr(module, name)))
        monkeypatch.setattr(module, name, steps[-1])
    run(read_experiment(file), out, model=model, progress=False)
    for step in steps:
        calls = [call.kwargs for call in step.call_args_list]
        assert {call["memory"] for call in calls if "memory" in call} == {10_000_000}


# Pairs alone. The model's name cannot be loaded: whatever needs a model without `model=` fails.

PAIRS_ONLY = """title = "pairs only"
model = { name = "no such model" }
pairs = { kind = "csv", data = "pairs.csv" }
[separation]
folds = 3
"""
WORDS = [word for word in language.vocabulary() if word.isalpha()][:12]
ROWS = "positive,negative\n" + "".join(f"{word} honest,{word} liar\n" for word in WORDS)


def write_pairs_only(folder):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "pairs.csv").write_text(ROWS)
    (folder / "pairs_only.toml").write_text(PAIRS_ONLY)
    return folder / "pairs_only.toml"


@pytest.fixture
def pairs_only(tmp_path):
    return write_pairs_only(tmp_path / "experiment")


@pytest.fixture(scope="module")
def finished(model, tmp_path_factory):
    """(experiment file, its finished run)."""
    folder = tmp_path_factory.mktemp("finished")
    file = write_pairs_only(folder)
    return file, run(read_experiment(file), folder / "run", model=model, progress=False)


def interrupt(file, out, model, **options):
    """Interrupt a run at its first large file, the activations, as on a full disk; return the error."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (15_000, hard))  # bytes per file of this process
    try:
        with pytest.raises(OSError, match=r"activations.safetensors could not") as raised:
            run(read_experiment(file), out, model=model, progress=False, **options)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert set(files_of(out)) == {"audit.csv", "experiment.toml"}
    return raised.value


def test_a_full_disk_is_an_error_with_where_the_rest_is_and_the_run_continues(pairs_only, model, out, caplog):
    error = interrupt(pairs_only, out, model)
    assert error.errno == errno.EFBIG
    assert re.search(rf"be written: File too large.* is kept in {out}; free some space", str(error))
    assert UNFINISHED in caplog.text
    before = files_of(out)
    run(read_experiment(pairs_only), out, model=model, progress=False)
    assert is_finished(out)
    assert before.items() <= files_of(out).items()


def test_a_finished_run_is_not_run_again_and_a_missing_report_is_written_again(finished):
    file, out = finished
    before = files_of(out)
    assert run(read_experiment(file), out) == out
    assert files_of(out) == before
    (out / "report.html").unlink()
    run(read_experiment(file), out)
    assert before.items() - files_of(out).items() <= {("report.html", before["report.html"])}
    assert is_finished(out)


def test_a_changed_file_is_rejected_with_the_lines_that_differ(finished, model, out, pairs_only):
    pairs_only.write_text(PAIRS_ONLY.replace("folds = 3", "folds = 2"))
    before = files_of(finished[1])
    message = r"\n  -folds = 3\n  \+folds = 2\n(.|\n)*--fresh"
    assert_raises(message, run, read_experiment(pairs_only), finished[1], error=FileExistsError)
    assert files_of(finished[1]) == before
    interrupt(pairs_only, out, model)
    message = r"\n  -folds = 2\n  \+folds = 3\n"
    assert_raises(message, run, read_experiment(finished[0]), out, model=model, error=FileExistsError)


def test_a_run_does_not_continue_with_another_model_or_other_data(pairs_only, model, other_model, out):
    interrupt(pairs_only, out, model)
    message = r"begun with something else.*model fingerprint: \w+ against"
    assert_raises(message, run, read_experiment(pairs_only), out, model=other_model, error=FileExistsError)
    pairs_only.with_name("pairs.csv").write_text(ROWS + "more,less\n")
    message = r"pairs: 12 \(\w+\) against 13 \(\w+\)"
    assert_raises(message, run, read_experiment(pairs_only), out, model=model, error=FileExistsError)


@contextmanager
def on_a_later_day():
    """The date of chat templates and of runs, 40 days later."""

    class Later(datetime):
        @classmethod
        def now(cls, tz=None):
            return datetime.now(tz) + timedelta(days=40)

    with pytest.MonkeyPatch.context() as patch:
        for name in ("tl_steer.experiments.run_folder", "transformers.utils.chat_template_utils"):
            patch.setattr(sys.modules[name], "datetime", Later)
        yield


def templated(tmp_path, template, variables=""):
    """A model with this chat template, and the file of an experiment that uses it."""
    model, file = load_model("organism-bias", device="cpu"), tmp_path / "chat.toml"
    model.tokenizer.chat_template = template
    text = ALL_STEPS.replace("chat = false", "chat = true").replace('bias" }', f'bias"{variables} }}')
    file.write_text(text, encoding="utf-8")
    return model, file


@pytest.mark.parametrize(
    "variables", ["", ", template_variables = { strftime_now = '2026-01-31' }"], ids=["today", "file"]
)
def test_a_run_continues_with_the_date_of_its_start_in_its_prompts(tmp_path, out, variables):
    template = "{{ strftime_now('%Y-%m-%d') }} {{ messages[0].content }}"
    model, file = templated(tmp_path, template, variables)
    break_at("capture_pairs", file, out, model)
    day = "2026-01-31" if variables else f"{datetime.now():%Y-%m-%d}"
    with on_a_later_day():
        later = model.tokenizer.apply_chat_template([{"role": "user", "content": "a"}], tokenize=False)
        assert not later.startswith(day)
        run(read_experiment(file), out, model=model, progress=False)
        run(read_experiment(file), out, model=model, progress=False)  # finished
    table = pd.read_parquet(out / "sweep.parquet").query("split == 'text'")
    assert set(table["prompt"]) == {f"{day} Is it so ?", f"{day} What is it ?"}
    stored = json.loads((out / "versions.json").read_text())["template_variables"]
    assert stored["strftime_now"].startswith(day)


def test_a_broken_chat_template_stops_a_run_before_it_starts(tmp_path, out):
    model, file = templated(tmp_path, "{{ persona.name }}")
    message = r"chat template is broken \(UndefinedError: 'persona' is undefined\)"
    assert_raises(message, run, read_experiment(file), out, model=model)
    assert not out.exists()


def test_a_finished_run_of_another_model_is_rejected(finished, model, other_model):
    file, out = finished
    before = files_of(out)
    message = r"something else than is there now: model weights: .*--fresh"
    assert_raises(message, run, read_experiment(file), out, model=other_model, error=FileExistsError)
    assert run(read_experiment(file), out, model=model) == out
    (out / "report.html").rename(out.with_name("moved"))  # a report written again is of the same model
    assert_raises(message, run, read_experiment(file), out, model=other_model, error=FileExistsError)
    out.with_name("moved").rename(out / "report.html")
    shutil.rmtree(out / "unfinished")
    assert files_of(out) == before


def test_a_finished_run_of_other_data_is_rejected_and_no_longer_needs_its_data(pairs_only, model, out):
    data = pairs_only.with_name("pairs.csv")
    run(read_experiment(pairs_only), out, model=model, progress=False)
    data.write_text(ROWS + "more,less\n")
    message = r"else than is there now: data pairs.csv: \w+ against \w+\. Start again"
    assert_raises(message, run, read_experiment(pairs_only), out, error=FileExistsError)
    data.unlink()
    assert run(read_experiment(pairs_only), out) == out


def test_an_experiment_that_was_changed_in_python_is_rejected(file, tmp_path, model):
    read = read_experiment(file)
    changed = replace(read, seed=5, sweep=replace(read.sweep, multipliers=(2.0, 3.0)))
    for experiment, names in ((changed, "seed, sweep"), (replace(read, source=""), "title")):
        message = rf"differs from its file in {names}: .* with read_experiment"
        assert_raises(message, run, experiment, tmp_path / "run", model=model)
    assert list(tmp_path.iterdir()) == []


def test_other_package_versions_are_a_warning_and_recorded(pairs_only, model, out, caplog):
    interrupt(pairs_only, out, model)
    begun_file = out / "unfinished" / "begun.json"
    begun = json.loads(begun_file.read_text())
    now = begun["packages"]
    begun["packages"] = now | {"torch": "0.0"}
    begun_file.write_text(json.dumps(begun))
    run(read_experiment(pairs_only), out, model=model, progress=False)
    assert "continues with other packages than it was begun with: torch: 0.0 against" in caplog.text
    versions = json.loads((out / "versions.json").read_text())
    assert (versions["packages"], versions["packages_when_begun"]) == (now, begun["packages"])


def test_fresh_moves_the_old_runs_and_deletes_nothing(pairs_only, model, out):
    interrupt(pairs_only, out, model)
    old = [out.with_name("run.old-1"), out.with_name("run.old-2")]
    for folder in old:
        before = files_of(out)
        interrupt(pairs_only, out, model, fresh=True)
        assert files_of(folder) == before
    # A run that was moved can be continued where it is.
    run(read_experiment(pairs_only), old[0], model=model, progress=False)
    assert is_finished(old[0])


def test_fresh_without_a_run_starts_one_and_leaves_other_files_unchanged(pairs_only, model):
    folder, experiment = pairs_only.parent, read_experiment(pairs_only)
    before = files_of(folder)
    message, options = "exists and is not empty", {"fresh": True, "model": model}
    assert_raises(message, run, experiment, folder, **options, error=FileExistsError)
    run(experiment, folder / "new", **options, progress=False)
    assert is_finished(folder / "new")
    assert files_of(folder) == before
