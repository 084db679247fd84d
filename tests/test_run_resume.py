"""Runs that are broken off and go on: the same tables, nothing done twice, and no run of something else."""

import json
import random
import shutil
import sys
import time
from dataclasses import replace

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from tl_steer.activations import PairedActivations
from tl_steer.evaluation.checkpoints import InUseError
from tl_steer.experiments import asking, read_experiment, run
from tl_steer.experiments.unfinished import is_finished, is_run
from tl_steer.models import load_model

from .broken_off import nursery, wait_for

STEPS = sys.modules["tl_steer.experiments.run"]
SMALL = """title = "small"
[model]
name = "organism-bias"
[pairs]
kind = "organism"
limit = 12
[directions]
method = "mean_difference"
unit = "length"
[questions]
kind = "organism"
[sweep]
layers = [0, 1]
multipliers = [-1, -0.5, 0.5, 1]
positions = "last_token()"
controls = 2
control_layers = "chosen"
score = "shift"
[damage]
data = "organism"
passages = 4
[text]
prompts = ["Is it so ?", "What is it ?"]
chat = false
layers = 1
max_new_tokens = 3
[separation]
shuffles = 3
folds = 3
"""
TABLES = ("sweep", "damage", "text_damage")
FILES = [
    "activations.safetensors", "audit.csv", "damage.parquet", "experiment.toml", "report.html",
    "sweep.parquet", "text_damage.parquet", "vectors.safetensors", "versions.json",
]  # fmt: skip


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("file") / "small.toml"
    path.write_text(SMALL, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def model():
    return load_model("organism-bias", device="cpu")


@pytest.fixture(scope="module")
def attempts():
    with nursery() as made:
        yield made


@pytest.fixture(scope="module")
def undisturbed(attempts, file, tmp_path_factory):
    """The folder of a run that nobody disturbs."""
    out = tmp_path_factory.mktemp("runs") / "undisturbed"
    attempts.do("running", file=file, out=out)
    return out


def require_same(out, undisturbed):
    assert sorted(path.name for path in out.iterdir()) == FILES
    for name in TABLES:
        one, other = (pd.read_parquet(folder / f"{name}.parquet") for folder in (out, undisturbed))
        pd.testing.assert_frame_equal(one, other, check_exact=True)
    for name in ("activations.safetensors", "audit.csv", "experiment.toml"):
        assert (out / name).read_bytes() == (undisturbed / name).read_bytes(), name
    one, other = (load_file(folder / "vectors.safetensors") for folder in (out, undisturbed))
    assert set(one) == set(other)
    assert all(torch.equal(one[name], other[name]) for name in one)  # the file tells when it was made, too


def done(out):
    """The files that are there for good, by what tells them from files written anew."""
    return {
        path.name: path.stat().st_ino for path in out.glob("*.*") if path.is_file() and path.name[0] != "."
    }


def kill_at_random(attempts, file, out, rng, kills):
    """Begin a run and kill it; each kill falls a random number of files and moments later than the last."""
    for _ in range(kills):
        before = done(out)
        process = attempts.begin("running", file=file, out=out, pause=0.02)
        wanted = min(len(before) + rng.randint(0, 2), len(FILES))
        wait_for(lambda wanted=wanted: len(done(out)) >= wanted)
        time.sleep(rng.uniform(0, 0.4))
        if not attempts.kill(process):
            assert is_finished(out)
            return
        assert is_run(out)
        assert not is_finished(out)
        assert before.items() <= done(out).items()
    attempts.do("running", file=file, out=out)


def test_a_run_that_is_killed_gives_the_same_tables(attempts, file, undisturbed, tmp_path):
    kill_at_random(attempts, file, tmp_path / "run", random.Random(0), kills=1)
    require_same(tmp_path / "run", undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 5))
def test_a_run_that_is_killed_again_and_again_gives_the_same_tables(
    attempts, file, undisturbed, tmp_path, seed
):
    kill_at_random(attempts, file, tmp_path / "run", random.Random(seed), kills=6)
    require_same(tmp_path / "run", undisturbed)


PLACES = [
    ("replace", "begun.json"), ("replace", "experiment.toml"), ("replace", "vectors.safetensors"),
    ("replace", "00000-"), ("replace", "controls.parquet"), ("replace", "damage.parquet"),
    ("replace", "sweep.parquet"), ("content", "versions.json"), ("replace", "report.html"),
    ("removal", "unfinished"),
]  # fmt: skip
QUICK = ("00000-",)


@pytest.mark.parametrize(
    ("place", "name"),
    [
        pytest.param(*each, marks=[] if each[1] in QUICK else pytest.mark.slow, id="-".join(each))
        for each in PLACES
    ],
)
def test_a_run_that_is_killed_while_a_file_is_written_goes_on(
    attempts, file, undisturbed, tmp_path, place, name
):
    out, there = tmp_path / "run", tmp_path / "there"
    process = attempts.begin("stopping_run", file=file, out=out, place=place, name=name, there=there)
    wait_for(there.exists)
    with pytest.raises(InUseError, match=f"run is being written by process {process}"):
        run(read_experiment(file), out, model=object())
    with pytest.raises(InUseError, match=f"run is being written by process {process}"):
        run(read_experiment(file), out, model=object(), fresh=True)
    assert attempts.kill(process)
    assert not is_finished(out)
    before = done(out)
    attempts.do("running", file=file, out=out)
    assert (before.items() - {("report.html", before.get("report.html"))}) <= done(out).items()
    require_same(out, undisturbed)


# --- in this process ------------------------------------------------------------------------------------


class BrokenError(RuntimeError):
    """On purpose."""


def breaking(*_, **__):
    raise BrokenError


@pytest.fixture
def quick_report(monkeypatch):
    """The report is most of a small run's work, and nothing here asks what is in it."""
    monkeypatch.setattr(STEPS, "write_report", lambda folder: (folder / "report.html").touch())


def broken_off(file, out, model, monkeypatch, step="damage_table"):
    with monkeypatch.context() as patch:
        patch.setattr(STEPS, step, breaking)
        with pytest.raises(BrokenError):
            run(read_experiment(file), out, model=model, progress=False)


@pytest.mark.usefixtures("quick_report")
def test_a_run_that_breaks_keeps_what_is_done_says_so_and_goes_on(file, model, tmp_path, monkeypatch, caplog):
    out = tmp_path / "run"
    broken_off(file, out, model, monkeypatch)
    assert "run is unfinished: what is done is kept, the same call goes on from there" in caplog.text
    assert not is_finished(out)
    before = done(out)
    assert {"audit.csv", "activations.safetensors", "vectors.safetensors"} <= set(before)
    for step in ("_captured", "estimator_of"):
        monkeypatch.setattr(STEPS, step, breaking)
    asked, real = [], asking.sweep
    monkeypatch.setattr(asking, "sweep", lambda *a, **k: asked.append(k["out"].name) or real(*a, **k))
    run(read_experiment(file), out, model=model, progress=False)
    assert asked == ["texts.parquet"]  # the questions' and the controls' are done
    assert is_finished(out)
    assert sorted(path.name for path in out.iterdir()) == FILES
    assert before.items() <= done(out).items()


@pytest.fixture(scope="module")
def finished(file, model, tmp_path_factory):
    return run(read_experiment(file), tmp_path_factory.mktemp("runs") / "run", model=model, progress=False)


@pytest.fixture
def idle(monkeypatch):
    """Nothing may be computed."""
    for step in ("_work", "_loaded", "require_runnable"):
        monkeypatch.setattr(STEPS, step, breaking)


def test_a_finished_run_is_not_run_again_and_a_lost_report_is_made_anew(finished, file, idle):
    before = done(finished)
    assert run(read_experiment(file), finished) == finished
    assert done(finished) == before
    (finished / "report.html").unlink()
    run(read_experiment(file), finished)
    assert set(done(finished)) == set(before)
    assert is_finished(finished)


def test_a_changed_file_is_refused_with_the_lines_and_the_remedies(finished, tmp_path, idle):
    changed = tmp_path / "small.toml"
    changed.write_text(SMALL.replace("[-1, -0.5, 0.5, 1]", "[-1, 1]"), encoding="utf-8")
    before = done(finished)
    with pytest.raises(FileExistsError) as told:
        run(read_experiment(changed), finished)
    assert str(told.value).splitlines()[1:] == [
        "  -multipliers = [-1, -0.5, 0.5, 1]",
        "  +multipliers = [-1, 1]",
        "Give another folder (--out), or begin anew (--fresh), which moves the old run aside.",
    ]
    assert done(finished) == before


def test_an_unfinished_run_of_a_changed_file_is_refused_too(file, model, tmp_path, monkeypatch):
    broken_off(file, tmp_path / "run", model, monkeypatch, step="asked_table")
    changed = tmp_path / "small.toml"
    changed.write_text("# a word more\n" + SMALL, encoding="utf-8")
    with pytest.raises(FileExistsError, match=r"\+# a word more"):
        run(read_experiment(changed), tmp_path / "run", model=model)


def test_another_model_than_it_was_begun_with_is_refused(file, model, tmp_path, monkeypatch):
    broken_off(file, tmp_path / "run", model, monkeypatch, step="asked_table")
    other = load_model("organism-honesty", device="cpu")
    with pytest.raises(FileExistsError, match=r"begun with something else.*model fingerprint: \w+ against"):
        run(read_experiment(file), tmp_path / "run", model=other)


def test_data_that_changed_meanwhile_are_refused(model, tmp_path, monkeypatch):
    data, file = tmp_path / "own.csv", tmp_path / "own.toml"
    rows = "".join(f"good {row},bad {row}\n" for row in range(12))
    data.write_text(f"positive,negative\n{rows}")
    file.write_text("title = 'own'\n[pairs]\nkind = 'csv'\ndata = 'own.csv'\n[separation]\nfolds = 3\n")
    broken_off(file, tmp_path / "run", model, monkeypatch, step="in_unit")
    data.write_text(f"positive,negative\n{rows}more,less\n")
    with pytest.raises(FileExistsError, match=r"pairs: 12 \(\w+\) against 13 \(\w+\)"):
        run(read_experiment(file), tmp_path / "run", model=model)


OWN = "title = 'own'\n[pairs]\nkind = 'csv'\ndata = 'own.csv'\n[separation]\nfolds = 3\n"
ROWS = "positive,negative\n" + "".join(f"good {row},bad {row}\n" for row in range(12))


def own(tmp_path):
    (tmp_path / "own.csv").write_text(ROWS)
    (tmp_path / "own.toml").write_text(OWN)
    return tmp_path / "own.toml"


def test_a_finished_run_of_another_model_is_refused(finished, file, model, idle):
    before, other = done(finished), load_model("organism-honesty", device="cpu")
    with pytest.raises(FileExistsError, match=r"something else than is there now: model weights: .*--fresh"):
        run(read_experiment(file), finished, model=other)
    assert run(read_experiment(file), finished, model=model) == finished
    (finished / "report.html").rename(finished.with_name("aside"))  # a report made anew is of the same model
    with pytest.raises(FileExistsError, match="something else than is there now"):
        run(read_experiment(file), finished, model=other)
    finished.with_name("aside").rename(finished / "report.html")
    shutil.rmtree(finished / "unfinished", ignore_errors=True)
    assert done(finished) == before


@pytest.mark.usefixtures("quick_report")
def test_a_finished_run_of_other_data_is_refused_and_outlives_its_data(model, tmp_path, monkeypatch):
    file, out = own(tmp_path), tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(STEPS, "_work", lambda *_, **__: None)
        run(read_experiment(file), out, model=model)
    monkeypatch.setattr(STEPS, "_work", breaking)
    (tmp_path / "own.csv").write_text(ROWS + "more,less\n")
    with pytest.raises(
        FileExistsError, match=r"else than is there now: data own.csv: \w+ against \w+\. Give"
    ):
        run(read_experiment(file), out)
    (tmp_path / "own.csv").unlink()
    assert run(read_experiment(file), out) == out


@pytest.mark.usefixtures("quick_report")
def test_memory_is_what_it_was_when_the_run_was_begun(file, model, tmp_path, monkeypatch):
    """What is free decides what shares a batch, and so the last bits; every step is given it."""
    out, seen, module = tmp_path / "run", {}, sys.modules["tl_steer.experiments.unfinished"]
    monkeypatch.setattr(module, "bytes_allowed", lambda *_: 10_000_000)
    broken_off(file, out, model, monkeypatch, step="_captured")
    monkeypatch.setattr(module, "bytes_allowed", lambda *_: 20_000_000)

    def watched(where, name):
        real = getattr(where, name)

        def watching(*arguments, **options):
            if "memory" in options:
                seen.setdefault(name, set()).add(options["memory"])
            return real(*arguments, **options)

        monkeypatch.setattr(where, name, watching)

    watched(STEPS, "capture_pairs")
    for name in ("sweep", "damage", "text_damage"):
        watched(asking, name)
    run(read_experiment(file), out, model=model, progress=False)
    assert set(seen) == {"capture_pairs", "sweep", "damage", "text_damage"}
    assert set.union(*seen.values()) == {10_000_000}


def test_an_experiment_that_was_changed_in_python_is_refused(file, tmp_path, model):
    read = read_experiment(file)
    changed = replace(read, seed=5, sweep=replace(read.sweep, multipliers=(2.0, 3.0)))
    for experiment, told in ((changed, "seed, sweep"), (replace(read, source=""), "title")):
        with pytest.raises(ValueError, match=rf"its file's text tells: {told} were .* with read_experiment"):
            run(experiment, tmp_path / "run", model=model)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("quick_report")
def test_other_packages_are_warned_of_and_written_down(file, model, tmp_path, monkeypatch, caplog):
    broken_off(file, tmp_path / "run", model, monkeypatch)
    real = STEPS.package_versions
    monkeypatch.setattr(STEPS, "package_versions", lambda names: real(names) | {"torch": "0.0"})
    run(read_experiment(file), tmp_path / "run", model=model, progress=False)
    assert "goes on with other packages than it was begun with: torch: " in caplog.text
    versions = json.loads((tmp_path / "run" / "versions.json").read_text())
    assert versions["packages"]["torch"] == "0.0"
    assert versions["packages_when_begun"] == real(STEPS.PACKAGES)


@pytest.mark.usefixtures("quick_report")
def test_fresh_moves_the_old_runs_aside_and_deletes_nothing(file, model, tmp_path, monkeypatch):
    out = tmp_path / "run"
    for number in (1, 2):
        broken_off(file, out, model, monkeypatch, step="asked_table")
        before = done(out)
        with monkeypatch.context() as patch:
            patch.setattr(STEPS, "_captured", breaking)
            with pytest.raises(BrokenError):
                run(read_experiment(file), out, model=model, fresh=True)
        assert done(tmp_path / f"run.old-{number}") == before
        assert set(done(out)) == {"audit.csv", "experiment.toml"}
    # What was moved aside can be gone on with where it is.
    run(read_experiment(file), tmp_path / "run.old-1", model=model, progress=False)
    assert is_finished(tmp_path / "run.old-1")


def test_fresh_where_there_is_no_run_begins_one_and_leaves_other_things_alone(tmp_path, file, model, idle):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="exists and is not empty"):
        run(read_experiment(file), tmp_path, model=model, fresh=True)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
    with pytest.raises(BrokenError):
        run(read_experiment(file), tmp_path / "new", model=model, fresh=True)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.usefixtures("quick_report")
def test_a_full_disk_is_told_with_what_is_kept(file, model, tmp_path, monkeypatch):
    def full(self, path):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(PairedActivations, "save", full)
        with pytest.raises(OSError, match=r"activations.safetensors could not be written: .*o space") as told:
            run(read_experiment(file), tmp_path / "run", model=model, progress=False)
    assert f"is kept in {tmp_path / 'run'}; make room, or mend what is wrong, and call" in str(told.value)
    run(read_experiment(file), tmp_path / "run", model=model, progress=False)
    assert is_finished(tmp_path / "run")
