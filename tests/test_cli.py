"""The command line: output, and errors as one message without a traceback."""

import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from tl_steer import cli, errors, experiments, models


def command(monkeypatch, capsys, *arguments):
    """Run `tl-steer` through its entry point; return exit status, stdout and stderr."""
    monkeypatch.setattr(sys, "argv", ["tl-steer", *arguments])
    with pytest.raises(SystemExit) as raised:
        cli.main()
    captured = capsys.readouterr()
    return raised.value.code or 0, captured.out, captured.err


@pytest.fixture
def replaced_run(monkeypatch):
    """Replace `experiments.run`: record its arguments, or raise the error in `raises`."""

    def run(experiment, out, **options):
        if record.raises:
            raise record.raises
        record.calls.append({"title": experiment.title, "out": out, **options})
        return Path(out)

    record = SimpleNamespace(calls=[], raises=None)
    monkeypatch.setattr(sys.modules["tl_steer.experiments._run"], "run", run)
    return record


def test_help_has_examples_and_names_every_experiment():
    result = CliRunner().invoke(cli.app, ["--help"])
    assert result.exit_code == 0
    for text in ("residual stream", "tl-steer demo", "tl-steer new NAME", "tl-steer models"):
        assert text in result.output
    assert experiments.own_experiments() == cli.OWN
    result = CliRunner().invoke(cli.app, ["run", "--help"])
    assert set(cli.OWN) <= set(result.output.replace(",", " ").replace(".", " ").split())


def test_help_loads_no_model_library():
    code = (
        "import atexit, sys\n"
        "atexit.register(lambda: print(*{name.split('.')[0] for name in sys.modules}, file=sys.stderr))\n"
        "from tl_steer.cli import main; main()"
    )
    for arguments in (["--help"], ["run", "--help"]):
        command = [sys.executable, "-c", code, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        loaded = set(done.stderr.split())
        assert "Usage: " in done.stdout
        assert "tl_steer" in loaded
        assert not loaded & {"torch", "transformer_lens", "transformers", "plotly", "sklearn", "pandas"}


def test_bad_input_is_one_message(monkeypatch, capsys, tmp_path):
    (tmp_path / "own.toml").write_text("title = 'a'\n[pairs]\nknd = 'csv'\n")
    (tmp_path / "experiment.toml").write_text("old")
    for arguments, status, message in (
        (
            ["run", "nowhere.toml"],
            1,
            "^tl-steer: nowhere.toml is neither a file nor .*: expected one of",
        ),
        (["run", str(tmp_path / "own.toml")], 1, r"own.toml: \[pairs\]"),
        (["run", "demo", "--out", str(tmp_path)], 1, "already holds a run"),
        (["new", str(tmp_path)], 1, "exists and is not empty: give the name of a new folder"),
        (["new", str(tmp_path / "own.toml")], 1, "own.toml exists and is not empty"),
        (["run"], 2, "FILE"),
        (["models", "fetch", "gpt2-xl"], 1, "models fetch gpt2-xl is unknown"),
        (["models", "get"], 1, "models get is unknown"),
        (["models", "get", "gpt2-xl"], 1, "loaded from the Hub by load_model"),
    ):
        result, _, error = command(monkeypatch, capsys, *arguments)
        assert result == status
        assert re.search(message, error)
        assert "Traceback" not in error


@pytest.mark.parametrize(
    "error",
    # str() of a KeyError is quoted
    [getattr(errors, name) for name in errors.__all__ if name != "NoDirectionError"] + [KeyError],
)
def test_every_error_of_the_package_is_one_message(monkeypatch, capsys, replaced_run, error):
    replaced_run.raises = error("no vector at layer 40")
    status, _, text = command(monkeypatch, capsys, "run", "demo", "--out", "/nowhere/run")
    assert (status, text) == (1, "tl-steer: no vector at layer 40\n")


def test_run_passes_its_options_and_prints_the_report_s_path(monkeypatch, capsys, tmp_path, replaced_run):
    out = tmp_path / "x"
    status, output, _ = command(monkeypatch, capsys, "run", "honesty", "--out", str(out))
    assert status == 0
    assert str(out / "report.html") in output
    command(monkeypatch, capsys, "run", "honesty", "--out", str(out), "--fresh")
    for _ in range(2):
        command(monkeypatch, capsys, "run", "honesty")
    title = experiments.read_experiment("honesty").title
    calls = [(out, False), (out, True), *[(Path("runs/honesty"), False)] * 2]
    assert replaced_run.calls == [{"title": title, "out": to, "fresh": fresh} for to, fresh in calls]


def test_a_finished_run_is_announced(monkeypatch, capsys, tmp_path):
    for name in ("experiment.toml", "report.html"):
        (tmp_path / name).write_bytes(experiments.read_experiment("demo").source.encode())
    (tmp_path / "versions.json").write_text("{}")
    status, output, _ = command(monkeypatch, capsys, "run", "demo", "--out", str(tmp_path))
    assert status == 0
    assert f"{tmp_path} was finished already; `tl-steer run demo --out {tmp_path} --fresh`" in output
    assert str(tmp_path / "report.html") in output


def test_new_writes_an_experiment_and_prints_the_command_that_runs_it(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    status, output, _ = command(monkeypatch, capsys, "new", "my formality")
    assert status == 0
    assert "tl-steer run 'my formality/experiment.toml'" in output
    experiment = experiments.read_experiment("my formality/experiment.toml")
    data = {experiment.pairs.data, experiment.questions.data}
    assert {file.name for file in (tmp_path / "my formality").iterdir()} == {"experiment.toml", *data}


def test_a_run_is_named_after_the_folder_of_an_experiment_toml(monkeypatch, capsys, tmp_path, replaced_run):
    monkeypatch.chdir(tmp_path)
    command(monkeypatch, capsys, "new", "formality")
    command(monkeypatch, capsys, "run", "formality/experiment.toml")
    monkeypatch.chdir(tmp_path / "formality")
    command(monkeypatch, capsys, "run", "experiment.toml")
    assert [call["out"] for call in replaced_run.calls] == [Path("runs/formality")] * 2
    monkeypatch.chdir(tmp_path)
    _, _, error = command(monkeypatch, capsys, "run", "formality")
    assert error.endswith(": did you mean formality/experiment.toml?\n")


def test_a_run_of_a_changed_file_prints_the_command_that_starts_again(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    command(monkeypatch, capsys, "new", "formality")
    (tmp_path / "runs" / "formality").mkdir(parents=True)
    (tmp_path / "runs" / "formality" / "experiment.toml").write_text("title = 'before'\n")
    status, _, error = command(monkeypatch, capsys, "run", "formality/experiment.toml")
    assert status == 1
    assert re.search(
        r"-title = 'before'\n(?s:.*)\n  tl-steer run formality/experiment.toml --fresh\n$", error
    )
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("x")
    _, _, error = command(monkeypatch, capsys, "run", "demo", "--out", "other")
    assert "not empty" in error
    assert "--fresh" not in error


def test_demo_downloads_the_model_after_a_message(monkeypatch, capsys, tmp_path, replaced_run):
    messages = []
    monkeypatch.setattr(models, "embedded_folder", lambda: None)
    monkeypatch.setattr(models, "get_model", lambda: messages.append(capsys.readouterr().out))
    monkeypatch.chdir(tmp_path)
    status, output, _ = command(monkeypatch, capsys, "demo")
    assert status == 0
    assert "93 MB" in messages[0]
    assert f"{tmp_path}/runs/demo/report.html" in output


def test_models_are_listed_with_whether_they_are_on_disk(monkeypatch, capsys):
    monkeypatch.setattr(models, "embedded_folder", lambda: Path("/somewhere"))
    status, output, _ = command(monkeypatch, capsys, "models")
    assert status == 0
    lines = {line.split()[0]: line for line in output.splitlines() if line}
    assert set(models.MODELS) <= set(lines)
    assert all(description and description in output for description in models.MODELS.values())
    assert " here " in lines[models.EMBEDDED]
    assert "not here" not in lines[models.EMBEDDED]
