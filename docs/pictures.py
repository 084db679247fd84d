"""Draw the pictures of README and pages: `python docs/pictures.py RUN`, with the folder of a demo run.

Two are figures of the committed notebooks, the third is drawn from the demo's sweep.
"""

import json
import sys
from pathlib import Path

import pandas as pd
import plotly.graph_objects as go

from tl_steer import plots
from tl_steer.evaluation import effectiveness

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
PICTURES = Path(__file__).parent / "pages" / "figures"
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


if __name__ == "__main__":
    draw(Path(sys.argv[1]))
