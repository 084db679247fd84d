"""Draw the pictures of README and pages: `python docs/pictures.py RUN`, with the folder of a demo run.

Two are figures of the committed notebooks, one is drawn from the demo's sweep, one shows the top of its
report, and those of the gallery are drawn by the calls on its page.
"""

import ast
import json
import re
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from tl_steer import plots
from tl_steer.evaluation import effectiveness

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
PAGES = Path(__file__).parent / "pages"
PICTURES = PAGES / "figures"
WIDTH, SCALE = 560, 1.0  # of the gallery's pictures
# By picture: the notebook, the first call that draws it there, and the height in pixels.
DRAWN = {
    "recorded_accuracy": ("06_recorded_llama2_13b", "plots.effect_map(plus", 430),
    "ground_truth_estimators": ("07_ground_truth", "plots.compare_estimators(compared", 800),
}


def draw(run: Path, folder: Path = PICTURES) -> list[Path]:
    """Write the pictures as PNG.

    Args:
        run: the folder of a demo run.
        folder: the output folder.
    """
    figures = {
        name: (notebook_figure(notebook, call), height) for name, (notebook, call, height) in DRAWN.items()
    }
    table = pd.read_parquet(run / "sweep.parquet")
    answered = effectiveness(table[table["answer"].notna()], by="kind")
    shifts = plots.effectiveness(answered, value="shift", facet="kind")
    finding = "The vector moves both kinds of reviews the same way, random directions far less"
    figures["demo_shift_by_kind"] = (shifts.update_layout(title_text=finding), 440)
    paths = []
    for name, (figure, height) in figures.items():
        paths.append(folder / f"{name}.png")
        figure.write_image(paths[-1], width=900, height=height, scale=1.5)
    return paths


def notebook_figure(notebook: str, call: str) -> go.Figure:
    """The figure in the output of the first notebook cell whose source contains this call."""
    cells = json.loads((NOTEBOOKS / f"{notebook}.ipynb").read_text("utf-8"))["cells"]
    cell = next(cell for cell in cells if call in "".join(cell["source"]))
    data = (output.get("data", {}).get("application/vnd.plotly.v1+json") for output in cell["outputs"])
    figure = next(each for each in data if each)
    return go.Figure({"data": figure["data"], "layout": figure["layout"]})


def draw_gallery(run: Path, folder: Path = PICTURES / "gallery") -> None:
    """Run the code of the gallery's page, and write the figure of each block that ends with one."""
    page = (PAGES / "gallery.md").read_text("utf-8").replace('"runs/demo"', repr(str(run)))
    names: dict[str, Any] = {}
    for code in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        *statements, last = ast.parse(code).body
        exec(compile(ast.Module(statements, []), "gallery.md", "exec"), names)
        if isinstance(last, ast.Expr):
            figure = eval(compile(ast.Expression(last.value), "gallery.md", "eval"), names)
            write_small(figure, folder / f"{last.value.func.attr}.png")
        else:
            exec(compile(ast.Module([last], []), "gallery.md", "exec"), names)


def write_small(figure: Any, path: Path) -> None:
    """Write a figure, or HTML, as a PNG of the gallery's width."""
    if isinstance(figure, go.Figure):
        figure.write_image(path, width=WIDTH, height=figure.layout.height or 400, scale=SCALE)
    else:
        figure.write_image(path, width=WIDTH, scale=SCALE)


def photograph(report: Path, path: Path = PICTURES / "gallery" / "report.png") -> None:
    """Write the top of a report, as a window of 1200 × 880 pixels shows it."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1200, "height": 880})
        page.goto(report.resolve().as_uri())
        page.wait_for_timeout(1500)
        page.screenshot(path=path)
        browser.close()


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    draw(folder)
    draw_gallery(folder)
    photograph(folder / "report.html")
