"""Committed notebooks: they use only the package, and show their figures without a run."""

import ast
import json
import re
from pathlib import Path

import pandas as pd
import pytest

from .test_evaluation_tables import random_sweep

ROOT = Path(__file__).parents[1]
# Judges are functions that the user writes.
OWN_FUNCTIONS = {"05_reading_free_text": {"small_judge", "counting_judge"}}
IMPORTS = {"tl_steer", "pandas", "os", "pathlib", "re"}
OWN_IMPORTS = {"08_own_data": {"signal"}}  # interrupts a sweep


class Notebook:
    def __init__(self, path):
        self.name = path.stem
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        self.code, self.text = (
            "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == cell_type)
            for cell_type in ("code", "markdown")
        )
        self.nodes = list(ast.walk(ast.parse(self.code)))
        self.outputs = [output for cell in cells for output in cell.get("outputs", ())]

    @property
    def imports(self):
        names = [alias.name for node in self.nodes if isinstance(node, ast.Import) for alias in node.names]
        names += [node.module for node in self.nodes if isinstance(node, ast.ImportFrom)]
        return {name.split(".")[0] for name in names}


@pytest.fixture(scope="module")
def notebooks():
    return [Notebook(path) for path in sorted((ROOT / "notebooks").glob("*.ipynb"))]


def test_notebooks_import_the_package_and_pandas_only_and_define_no_functions(notebooks):
    types = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    defined = {each.name: {node.name for node in each.nodes if isinstance(node, types)} for each in notebooks}
    assert {name: functions for name, functions in defined.items() if functions} == OWN_FUNCTIONS

    others = {each.name: each.imports - IMPORTS for each in notebooks if "tl_steer" in each.imports}
    assert others == {each.name: OWN_IMPORTS.get(each.name, set()) for each in notebooks}


def test_notebooks_are_committed_with_outputs_and_a_picture_of_every_figure(notebooks):
    failures = []
    for each in notebooks:
        data = [output.get("data", {}) for output in each.outputs]
        figures = [formats for formats in data if "application/vnd.plotly.v1+json" in formats]
        wrong = [output for output in each.outputs if output["output_type"] == "error"]
        wrong += [output for output in each.outputs if output.get("name") == "stderr"]
        if wrong or not figures or not all("image/png" in formats for formats in figures):
            failures.append((each.name, wrong, len(figures)))
    assert failures == []


def test_notebooks_state_question_limits_and_a_fuller_setting(notebooks):
    for each in notebooks:
        assert "The question." in each.text, each.name
        assert "What it does not show" in each.text, each.name
        # The first is short, and the sixth runs no model.
        assert "FULL = False  # True: " in each.code or each.name[:2] in ("01", "06"), each.name


def test_the_recorded_notebook_shows_the_study_s_own_answers(notebooks):
    (recorded,) = (each for each in notebooks if each.name.startswith("06"))
    printed = "".join("".join(output.get("text", "")) for output in recorded.outputs)
    assert "the study's recorded answers" in printed
    assert "MADE UP" not in printed


@pytest.mark.integration
def test_one_command_draws_every_picture_of_the_documentation(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "docs")
    import pictures

    table = random_sweep().rename(columns={"topic": "kind"})
    table.to_parquet(tmp_path / "sweep.parquet")
    written = {path.relative_to(tmp_path).name for path in pictures.draw(tmp_path, tmp_path)}
    pages = [ROOT / "README.md", *(ROOT / "docs" / "pages").glob("*.md")]
    text = "".join(path.read_text(encoding="utf-8") for path in pages)
    assert written == set(re.findall(r"figures/(\w+\.png)\)", text))
    assert all((tmp_path / name).read_bytes().startswith(b"\x89PNG") for name in written)


@pytest.mark.integration
@pytest.mark.model
def test_the_notebook_of_own_data_runs_twice_and_reads_its_finished_sweep(embedded, tmp_path):
    """In the second run every cell runs again in the same folder, and no sweep is interrupted."""
    import nbformat
    from nbclient import NotebookClient

    printed = []
    for _ in range(2):
        notebook = nbformat.read(ROOT / "notebooks" / "08_own_data.ipynb", as_version=4)
        NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
        outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
        printed.append("".join(output["text"] for output in outputs if output.get("name") == "stdout"))
    assert len(pd.read_parquet(tmp_path / "runs" / "own_data" / "sweep.parquet")) == 16 * (1 + 10 * 4 + 20)
    assert "conditions" in printed[0]  # the message of the interruption
    assert "the same call continues" not in printed[1]
