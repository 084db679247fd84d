"""The command line: what it says, and that what is wrong is one message without a traceback."""

import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tl_steer import cli, experiments, models
from tl_steer.evaluation.checkpoints import InUseError
from tl_steer.experiments import UnfinishedRunError
from tl_steer.interventions.steering import HookDidNotFireError, NonFiniteError
from tl_steer.models import ModelMismatchError
from tl_steer.models.loading import ModelUnavailableError
from tl_steer.positions import EmptySelectionError


def command(monkeypatch, capsys, *arguments):
    """Run `tl-steer` as its entry point does: exit status, output, errors."""
    monkeypatch.setattr(sys, "argv", ["tl-steer", *arguments])
    with pytest.raises(SystemExit) as exit_:
        cli.main()
    captured = capsys.readouterr()
    return exit_.value.code or 0, captured.out, captured.err


def test_help_teaches_what_it_is_for_with_examples():
    shown = CliRunner().invoke(cli.app, ["--help"])
    assert shown.exit_code == 0
    for words in ("residual stream", "tl-steer demo", "tl-steer run my.toml", "tl-steer models"):
        assert words in shown.output


def test_the_command_line_itself_loads_no_model_library():
    code = (
        "import importlib.util, sys\n"
        f"spec = importlib.util.spec_from_file_location('cli_alone', {cli.__file__!r})\n"
        "spec.loader.exec_module(importlib.util.module_from_spec(spec))\n"
        "print(' '.join(sorted({name.split('.')[0] for name in sys.modules})))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert "typer" in loaded
    assert not loaded & {"torch", "transformer_lens", "transformers", "plotly", "sklearn", "pandas"}


def test_help_names_every_experiment_there_is():
    assert experiments.own_experiments() == cli.OWN
    shown = CliRunner().invoke(cli.app, ["run", "--help"])
    words = shown.output.replace(",", " ").replace(".", " ").split()
    assert set(experiments.own_experiments()) <= set(words)


def test_an_unknown_experiment_is_one_message(monkeypatch, capsys):
    status, _, error = command(monkeypatch, capsys, "run", "nowhere.toml")
    assert status == 1
    assert error.startswith("tl-steer: nowhere.toml is neither a file nor one of")
    assert "Traceback" not in error


def test_a_misspelt_key_is_one_message(monkeypatch, capsys, tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text("title = 'a'\n[pairs]\nknd = 'csv'\n")
    status, _, error = command(monkeypatch, capsys, "run", str(file))
    assert status == 1
    assert "mine.toml: [pairs]" in error
    assert "Traceback" not in error


def test_a_folder_that_holds_a_run_is_one_message(monkeypatch, capsys, tmp_path):
    (tmp_path / "experiment.toml").write_text("old")
    status, _, error = command(monkeypatch, capsys, "run", "demo", "--out", str(tmp_path))
    assert status == 1
    assert "already holds a run" in error


def test_a_missing_argument_is_told_with_status_2(monkeypatch, capsys):
    status, _, error = command(monkeypatch, capsys, "run")
    assert status == 2
    assert "FILE" in error


def test_a_key_error_is_told_without_quotes(monkeypatch, capsys):
    def breaking(*_arguments, **_options):
        raise KeyError("no vector at layer 40")

    monkeypatch.setattr(sys.modules["tl_steer.experiments.run"], "run", breaking)
    status, _, error = command(monkeypatch, capsys, "run", "demo", "--out", "/nowhere/run")
    assert (status, error) == (1, "tl-steer: no vector at layer 40\n")


@pytest.mark.parametrize(
    "error",
    [
        NonFiniteError("Add(multiplier=1e+39) at layer 17 made the stream infinite"),
        HookDidNotFireError("no hook"),
        EmptySelectionError("nothing selected"),
        ModelMismatchError("another model"),
        ModelUnavailableError("not here"),
        UnfinishedRunError("the report broke"),
        InUseError("runs/a is being written by process 123"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_every_error_of_ours_is_one_message(monkeypatch, capsys, error):
    def breaking(*_arguments, **_options):
        raise error

    monkeypatch.setattr(sys.modules["tl_steer.experiments.run"], "run", breaking)
    status, _, told = command(monkeypatch, capsys, "run", "demo", "--out", "/nowhere/run")
    assert (status, told) == (1, f"tl-steer: {error}\n")


def test_run_says_where_the_report_is(monkeypatch, capsys, tmp_path):
    asked = {}

    def running(experiment, out, *, fresh):
        asked.update(title=experiment.title, out=out, fresh=fresh)
        return Path(out)

    monkeypatch.setattr(sys.modules["tl_steer.experiments.run"], "run", running)
    status, output, _ = command(monkeypatch, capsys, "run", "honesty", "--out", str(tmp_path / "x"))
    assert status == 0
    assert asked["title"] == experiments.read_experiment("honesty").title
    assert str(tmp_path / "x" / "report.html") in output
    assert asked["fresh"] is False
    command(monkeypatch, capsys, "run", "honesty", "--out", str(tmp_path / "x"), "--fresh")
    assert asked["fresh"] is True


def test_without_out_the_same_command_means_the_same_folder(monkeypatch, capsys, tmp_path):
    asked = []

    def running(experiment, out, **_options):
        asked.append(out)
        return Path(out)

    monkeypatch.setattr(sys.modules["tl_steer.experiments.run"], "run", running)
    for _ in range(2):
        command(monkeypatch, capsys, "run", "honesty")
    assert asked == [Path("runs/honesty")] * 2


def test_a_run_that_is_finished_is_said_to_be(monkeypatch, capsys, tmp_path):
    for name in ("experiment.toml", "report.html"):
        (tmp_path / name).write_bytes(experiments.read_experiment("demo").source.encode())
    (tmp_path / "versions.json").write_text("{}")
    status, output, _ = command(monkeypatch, capsys, "run", "demo", "--out", str(tmp_path))
    assert status == 0
    assert f"{tmp_path} was finished already; --fresh begins anew." in output
    assert str(tmp_path / "report.html") in output


def test_demo_fetches_the_model_after_saying_so(monkeypatch, capsys, tmp_path):
    told = []
    monkeypatch.setattr(models, "embedded_folder", lambda: None)
    monkeypatch.setattr(models, "get_model", lambda: told.append(capsys.readouterr().out))
    monkeypatch.setattr(
        sys.modules["tl_steer.experiments.run"], "run", lambda experiment, out, **_: Path(out)
    )
    monkeypatch.chdir(tmp_path)
    status, output, _ = command(monkeypatch, capsys, "demo")
    assert status == 0
    assert "93 MB" in told[0]
    assert f"{tmp_path}/runs/demo/report.html" in output


def test_models_are_listed_with_whether_they_are_here(monkeypatch, capsys):
    monkeypatch.setattr(models, "embedded_folder", lambda: Path("/somewhere"))
    status, output, _ = command(monkeypatch, capsys, "models")
    assert status == 0
    lines = {line.split()[0]: line for line in output.splitlines() if line}
    assert set(models.MODELS) <= set(lines)
    assert " here " in lines[models.EMBEDDED]
    assert "not here" not in lines[models.EMBEDDED]


@pytest.mark.parametrize("arguments", [("fetch", "gpt2-xl"), ("get",)])
def test_an_unknown_word_after_models_is_told(monkeypatch, capsys, arguments):
    status, _, error = command(monkeypatch, capsys, "models", *arguments)
    assert status == 1
    assert f"models {' '.join(arguments)} is unknown" in error


def test_a_model_that_no_wheel_carries_is_told(monkeypatch, capsys):
    status, _, error = command(monkeypatch, capsys, "models", "get", "gpt2-xl")
    assert status == 1
    assert "loaded from the Hub by load_model" in error
