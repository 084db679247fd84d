"""How far one run's results are from the plain loop's."""

from pathlib import Path
from typing import Any

import numpy as np

from .jobs import Job


def distance(job: Job, mine: Path, plain: Path) -> dict[str, Any] | None:
    """What was compared, and how far apart it is; `None` where a peer gives something else.

    capture: the largest length of a difference of activations, relative to the activation's. Where a peer
    gives only the mean difference of the sides, that of this.
    choice: the largest absolute difference of a logit difference, over the cells that both did.
    generate: the share of texts that are equal.
    """
    found, expected = (dict(np.load(path)) for path in (mine, plain))
    if job.kind == "capture":
        return _capture(found, expected["values"].astype(np.float64))
    left, right = _shared(found, expected)
    if job.kind == "choice":
        return {"what": "logit difference", "value": float(np.abs(left - right).max()), "of": left.size}
    return {"what": "equal texts", "value": float((left == right).mean()), "of": left.size}


def _capture(found: dict[str, np.ndarray], expected: np.ndarray) -> dict[str, Any] | None:
    if "values" in found:
        what, mine = "activations, relative", found["values"].astype(np.float64)
    elif "differences" in found:
        what, mine = "mean difference, relative", found["differences"].astype(np.float64)
        expected = expected[0].mean(0) - expected[1].mean(0)
    else:
        return None
    apart = np.linalg.norm(mine - expected, axis=-1) / np.linalg.norm(expected, axis=-1)
    return {"what": what, "value": float(apart.max()), "of": apart.size}


def _shared(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Both values of the cells that both did, in one order."""
    places = [
        {tuple(cell): row for row, cell in enumerate(values["cells"].tolist())}
        for values in (found, expected)
    ]
    cells = [cell for cell in places[1] if cell in places[0]]
    if not cells:
        raise ValueError("the two runs have no cell in common.")
    left, right = (
        values["values"][[place[cell] for cell in cells]]
        for values, place in zip((found, expected), places, strict=True)
    )
    return left, right
