"""Log messages: none by default, and at each level those that are documented."""

import logging
import os
import re
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

import tl_steer as ts
from tl_steer import cli
from tl_steer._util import logs
from tl_steer.experiments import read_experiment

from .conftest import assert_raises

ROOT = Path(__file__).parents[1]


def short_work(folder):
    """Load, capture, save, sweep and generate."""
    model = ts.load_model("organism-bias", device="cpu")
    questions = ts.organisms.organism_questions().subset(range(4))
    vectors = ts.vectors_from_pairs(model, ts.organisms.organism_pairs("organism-bias", limit=4))
    vectors.save(folder / "vectors.safetensors")
    ts.SteeringVectors.load(folder / "vectors.safetensors")
    options = {"layers": [1], "multipliers": [1.0], "controls": 1, "progress": False}
    ts.sweep(model, vectors, questions, **options, out=folder / "sweep.parquet")
    ts.generate(model, list(questions.prompts), ts.Add(vectors[1]), max_new_tokens=2)


@contextmanager
def root_handlers(*handlers):
    """The logging of a program with these handlers at the root."""
    root = logging.getLogger()
    before, root.handlers[:] = list(root.handlers), handlers
    try:
        yield
    finally:
        root.handlers[:] = before


@pytest.mark.integration
def test_import_logs_one_warning_for_an_unknown_level_and_nothing_else():
    code = "import warnings; warnings.simplefilter('error', UserWarning); import tl_steer; print('imported')"
    environment = os.environ | {logs.VARIABLE: "loud"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.stdout == "imported\n"
    assert len(done.stderr.splitlines()) == 1
    assert "'loud' is unknown: set it to debug, info, warning, error, or unset it." in done.stderr


@pytest.mark.integration
def test_work_in_a_new_process_logs_nothing_by_default(fork_server, tmp_path):
    fork_server.run("short_work", folder=tmp_path, output=tmp_path / "output")
    assert (tmp_path / "sweep.parquet").exists()
    assert (tmp_path / "output").read_text() == ""


@pytest.fixture
def logged(monkeypatch, capfd, tmp_path):
    """stderr of `short_work` with TL_STEER_LOG set to a level; stdout is empty."""

    def work(level):
        monkeypatch.setenv(logs.VARIABLE, level)
        with root_handlers():
            assert logs.logs_from_environment()
            short_work(tmp_path)
        captured = capfd.readouterr()
        assert captured.out == ""
        return captured.err

    return work


def test_info_lists_the_work_with_time_level_and_module_and_no_prompt(logged):
    text = logged(" Info ")
    for message in (
        "INFO    tl_steer.models.loading: organism-bias: 3 layers of width",
        "INFO    tl_steer._capture: captured resid_post of 8 prompts",
        "INFO    tl_steer.sweeps._sweep: 3 conditions (33 % controls) of 4 questions, about 0.0 minutes\n",
        "INFO    tl_steer.sweeps._sweep: 1 conditions of controls",
        "sweep.parquet",
        "vectors.safetensors",
        "INFO    tl_steer._generation: wrote 4 texts",
    ):
        assert message in text
    assert all(line[:4].isdigit() for line in text.splitlines())
    assert "DEBUG" not in text
    questions, pairs = ts.organisms.organism_questions(), ts.organisms.organism_pairs("organism-bias")
    assert not any(prompt in text for prompt in (*questions.prompts, *pairs.positive))


def test_debug_adds_memory_and_passes(logged):
    text = logged("debug")
    assert "DEBUG   tl_steer.engine.shared.chunking: " in text
    assert "INFO    tl_steer._generation: wrote 4 texts" in text


@pytest.mark.parametrize(
    ("level", "pattern"),
    [("", "{message}\n"), ("info", r".* INFO    tl_steer\.experiments\._run: {message}\n"), ("warning", "")],
)
def test_the_command_line_logs_plain_messages_unless_a_level_is_set(
    monkeypatch, capsys, tmp_path, level, pattern
):
    for name in ("experiment.toml", "report.html"):
        (tmp_path / name).write_text(read_experiment("demo").source)
    (tmp_path / "versions.json").write_text("{}")
    monkeypatch.setattr(sys, "argv", ["tl-steer", "run", "demo", "--out", str(tmp_path)])
    monkeypatch.setenv(logs.VARIABLE, level)
    with root_handlers():
        logs.logs_from_environment()
        with pytest.raises(SystemExit):
            cli.main()
    message = re.escape(f"{tmp_path} is finished: nothing is run again")
    assert re.fullmatch(pattern.format(message=message), capsys.readouterr().err)


def test_a_second_call_changes_the_level_and_shows_each_message_once(capsys):
    with root_handlers():
        ts.show_logs("info")
        ts.show_logs("debug")
        logging.getLogger("tl_steer.engine").debug("two passes")
        logging.info("as TransformerLens does while it loads")  # adds a handler to the root
        logging.getLogger("tl_steer._capture").info("captured")
        logging.getLogger("other").warning("another library")
    text = capsys.readouterr().err
    assert [text.count(each) for each in ("two passes", "captured")] == [1, 1]
    assert "INFO    tl_steer._capture: captured" in text
    assert "WARNING:other:another library" in text
    assert_raises("log level 'loud' is unknown: use debug, info, warning, error", ts.show_logs, "loud")


def test_a_program_with_its_own_logging_gets_each_message_once_in_its_own_form(capsys):
    with root_handlers(logging.StreamHandler(sys.stdout)):
        ts.show_logs("info")
        logging.getLogger("tl_steer._capture").info("captured")
    assert capsys.readouterr() == ("captured\n", "")


def test_modules_log_under_their_own_names_and_print_nothing():
    for path in sorted((ROOT / "tl_steer").rglob("*.py")):
        source = path.read_text(encoding="utf-8")
        loggers = re.findall(r"getLogger\((.*?)\)", source)
        assert set(loggers) <= {"__name__"} or path.name == "logs.py", path
        assert not re.search(r"(?<![\w.])print\(", source), path


WARNING = """
import dataclasses, warnings
import torch
import tl_steer as ts
from tests.tiny_model import make_model, made_vector, word_tokenizer

model = make_model(word_tokenizer())
vector = made_vector(model, 1)
unknown = dataclasses.replace(vector, identity=dataclasses.replace(vector.identity, fingerprint=()))
warnings.simplefilter("always")
warnings.showwarning = lambda message, category, file, line, *_: print(file == __file__, line)
ts.Add(vector.at(layers=[0, 1], stream_norm=[1.0, 1.0]))  # warns
ts.capture(model, torch.tensor([[0, 5, 1, 1], [0, 5, 6, 7]]), layers=0)  # warns
with ts.steer(model, ts.Add(vector)):
    model(torch.tensor([[0, 0, 5]]))  # warns
with ts.steer(model, ts.Add(unknown)):  # warns
    model(torch.tensor([[0, 5]]))
list(ts.generate(model, ["a b"], ts.Add(unknown), max_new_tokens=1))  # warns
model.tokenizer.chat_template = "{{ strftime_now('%d') }}{{ messages[0]['content'] }}"
ts.chat_format(model)  # warns
"""


@pytest.mark.integration
def test_warnings_point_at_the_user_s_line(tmp_path):
    """In another process: the run-time checks of the tests would be between."""
    script, environment = tmp_path / "script.py", os.environ | {"PYTHONPATH": str(ROOT)}
    script.write_text(WARNING)
    run = subprocess.run([sys.executable, script], capture_output=True, text=True, env=environment)
    assert run.returncode == 0, run.stderr
    expected = [number for number, line in enumerate(WARNING.split("\n"), 1) if line.endswith("# warns")]
    assert list(dict.fromkeys(run.stdout.split("\n")[:-1])) == [f"True {number}" for number in expected]
