"""What the package tells while it works: nothing unless asked, and what was done when asked."""

import logging
import os
import re
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

import tl_steer as ts
from tl_steer import logs

ROOT = Path(__file__).parents[1]
WORK = """
import tl_steer as ts
from pathlib import Path
folder = Path({folder!r})
model = ts.load_model("organism-bias", device="cpu")
questions = ts.organism_questions().subset(range(4))
vectors = ts.vectors_from_pairs(model, ts.organism_pairs("organism-bias", limit=4))
vectors.save(folder / "vectors.safetensors")
ts.SteeringVectors.load(folder / "vectors.safetensors")
options = dict(layers=[1], multipliers=[1.0], controls=1, progress=False)
ts.sweep(model, vectors, questions, **options, out=folder / "sweep.parquet")
ts.generate(model, list(questions.prompts), ts.Add(vectors[1]), max_new_tokens=2)
"""
AGAIN = """
import sys
print("----", file=sys.stderr)
ts.show_logs("debug")
ts.generate(model, list(questions.prompts), max_new_tokens=2)
"""


def said(code, **environment):
    """What a fresh process writes to stdout and stderr."""
    clean = {name: value for name, value in os.environ.items() if name != logs.VARIABLE}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=clean | environment
    )
    return done.stdout, done.stderr


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """stderr at info, and at debug, of the same work."""
    work = WORK.format(folder=str(tmp_path_factory.mktemp("told"))) + AGAIN
    out, error = said(work, TL_STEER_LOG=" Info ")
    assert out == ""
    return error.split("----\n")


def test_neither_importing_nor_work_says_anything_unless_asked(tmp_path):
    assert said(WORK.format(folder=str(tmp_path))) == ("", "")


def test_info_tells_what_was_done_with_time_level_and_module(told):
    for words in (
        "INFO    tl_steer.models.loading: organism-bias: 3 layers of width",
        "INFO    tl_steer.capture: captured resid_post of 8 prompts",
        "INFO    tl_steer.evaluation.sweep: 3 cells of 4 questions",
        "sweep.parquet",
        "vectors.safetensors",
        "INFO    tl_steer.generation: wrote 4 texts",
    ):
        assert words in told[0]
    assert all(line[:4].isdigit() for line in told[0].splitlines())
    assert "DEBUG" not in told[0]


def test_debug_tells_of_memory_and_passes_too(told):
    assert "DEBUG   tl_steer.engine.waves: " in told[1]
    assert "INFO    tl_steer.generation: wrote 4 texts" in told[1]


def test_no_prompt_is_told_below_debug(told):
    prompts = [*ts.organism_questions().prompts, *ts.organism_pairs("organism-bias").positive]
    assert not [prompt for prompt in prompts if prompt in told[0]]


def test_an_unknown_level_is_one_warning_that_names_the_known_ones_and_no_exception():
    code = "import warnings; warnings.simplefilter('error', UserWarning); import tl_steer; print('there')"
    out, error = said(code, TL_STEER_LOG="loud")
    assert out == "there\n"
    assert len(error.splitlines()) == 1
    assert "TL_STEER_LOG='loud' is unknown: set it to debug, info, warning, error, or unset it." in error


COMMAND = """
import logging, os, sys
from tl_steer import cli, logs
cli._list_models = lambda: logging.getLogger("tl_steer.experiments").info("asking 3 questions")
sys.argv = ["tl-steer", "models"]
for level in ("", "info", "warning"):
    os.environ[logs.VARIABLE] = level
    logs.logs_from_environment()
    try:
        cli.main()
    except SystemExit:
        print("----", file=sys.stderr)
"""


def test_the_command_line_tells_what_it_does_in_plain_words_unless_told_how():
    plain, full, none, _ = said(COMMAND)[1].split("----\n")
    assert plain == "asking 3 questions\n"
    assert full.endswith(" INFO    tl_steer.experiments: asking 3 questions\n")
    assert none == ""


@contextmanager
def alone(*handlers):
    """The logging of a program that has these handlers at the root, put back as it was afterwards."""
    logger, root = logging.getLogger("tl_steer"), logging.getLogger()
    before = logger.level, list(logger.handlers), list(root.handlers)
    root.handlers[:] = handlers
    try:
        yield
    finally:
        logger.setLevel(before[0])
        logger.handlers[:], root.handlers[:] = before[1:]


def test_showing_again_changes_the_level_and_tells_nothing_twice(capsys):
    with alone():
        ts.show_logs("info")
        ts.show_logs("debug")
        logging.getLogger("tl_steer.engine").debug("two passes")
    assert capsys.readouterr().err.count("two passes") == 1


def test_a_program_that_has_its_own_logging_hears_each_message_once_as_it_likes_it(capsys):
    with alone(logging.StreamHandler(sys.stdout)):
        ts.show_logs("info")
        logging.getLogger("tl_steer.capture").info("captured")
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("captured\n", "")


def test_a_handler_that_transformer_lens_leaves_at_the_root_tells_nothing_again(capsys):
    with alone():
        ts.show_logs("info")
        logging.info("what TransformerLens does while it loads")  # puts a handler there
        logging.getLogger("tl_steer.capture").info("captured")
        logging.getLogger("other").warning("not ours")
    told = capsys.readouterr().err
    assert told.count("captured") == 1
    assert "INFO    tl_steer.capture: captured" in told
    assert "WARNING:other:not ours" in told


def test_an_unknown_level_asked_for_in_code_is_refused():
    with pytest.raises(ValueError, match="log level 'loud' is unknown: use debug, info, warning, error"):
        ts.show_logs("loud")


def test_every_logger_is_named_like_its_module():
    for path in sorted((ROOT / "tl_steer").rglob("*.py")):
        made = re.findall(r"getLogger\((.*?)\)", path.read_text(encoding="utf-8"))
        assert set(made) <= {"__name__"} or path.name == "logs.py", path


def test_nothing_in_the_package_prints():
    """What is told goes through logging, but for the command line's own answers."""
    for path in sorted((ROOT / "tl_steer").rglob("*.py")):
        assert not re.search(r"(?<![\w.])print\(", path.read_text(encoding="utf-8")), path
