"""What committed notebooks promise: the package does the work, and figures can be seen without running."""

import ast
import json
from pathlib import Path

import pytest

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))
# A judge is any function from a prompt to a reply: the reader's own part.
OWN = {"05_reading_free_text": {"small_judge", "counting_judge"}}
IMPORTED = {"tl_steer", "pandas", "os", "pathlib", "re"}


def cells(path, kind):
    return [
        cell for cell in json.loads(path.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == kind
    ]


def code(path):
    return ast.parse("\n\n".join("".join(cell["source"]) for cell in cells(path, "code")))


def outputs(path):
    return [output for cell in cells(path, "code") for output in cell["outputs"]]


def test_there_are_notebooks_from_the_first_steps_to_the_recorded_answers():
    numbers = [path.stem.split("_")[0] for path in NOTEBOOKS]
    assert numbers[:6] == ["01", "02", "03", "04", "05", "06"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_defines_nothing_that_the_package_should_have(path):
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    defined = {node.name for node in ast.walk(code(path)) if isinstance(node, kinds)}
    assert defined == OWN.get(path.stem, set())


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_imports_the_package_and_what_reads_tables(path):
    found = set()
    for node in ast.walk(code(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module.split(".")[0])
    assert "tl_steer" in found
    assert found <= IMPORTED


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_committed_with_outputs_and_every_figure_as_a_picture_too(path):
    shown = [output.get("data", {}) for output in outputs(path)]
    figures = [data for data in shown if "application/vnd.plotly.v1+json" in data]
    assert figures
    assert all("image/png" in data for data in figures)
    assert not [output for output in outputs(path) if output["output_type"] == "error"]
    assert not [output for output in outputs(path) if output.get("name") == "stderr"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_names_a_fuller_setting_and_says_what_it_does_not_show(path):
    text = "\n".join("".join(cell["source"]) for cell in cells(path, "markdown"))
    assert "The question." in text
    assert "What it does not show" in text or path.stem in ("04_steering_sweeps",)
    source = "\n".join("".join(cell["source"]) for cell in cells(path, "code"))
    if path.stem not in (
        "01_quickstart",
        "06_recorded_llama2_13b",
    ):  # the one is short, the other runs no model
        assert "FULL = False  # True: " in source


def test_the_recorded_notebook_is_committed_with_the_study_s_own_answers():
    (path,) = (path for path in NOTEBOOKS if path.stem.startswith("06"))
    said = "".join("".join(output.get("text", "")) for output in outputs(path))
    assert "the study's recorded answers" in said
    assert "MADE UP" not in said
