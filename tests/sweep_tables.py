"""Rows of a sweep's table with outcomes that a test chooses."""

import numpy as np
import pandas as pd

NAN = float("nan")


def condition(
    choices=None, answers=None, *, logits=None, vector="honesty", operation="add", layers="3", multiplier=1.0,
    norm=0.1, **columns,
):  # fmt: skip
    """One row per prompt of a condition, as `sweep` returns it.

    Args:
        choices: index of each choice, None if unreadable; by default the sign of the logit differences.
        answers: index of each correct choice; by default 0, 0, 1, 1, …
        logits: differences of the logits, NaN if unreadable; by default 0.
        vector: "none" is the unsteered condition; "random …" and "shuffled …" are controls.
        norm: length of the vector relative to the residual stream; `dose` is norm · |multiplier|.
        columns: replaced or added.
    """
    n = len(logits if choices is None else choices)
    logits = np.zeros(n) if logits is None else np.asarray(logits, dtype=float)
    if choices is None:
        choices = [None if np.isnan(each) else int(each <= 0) for each in logits]
    steered = vector != "none"
    values = {
        "prompt_id": range(n),
        "prompt": [f"prompt {row}" for row in range(n)],
        "topic": (["sea", "sky"] * n)[:n],
        "vector": vector,
        "control": vector.startswith(("random", "shuffled")),
        "control_of": "",
        "operation": operation if steered else "none",
        "layers": layers if steered else "",
        "hook": "resid_post" if steered else "",
        "multiplier": multiplier if steered else 0.0,
        "dose": norm * abs(multiplier) if steered else 0.0,
        "split": ["one"] * (n // 2) + ["two"] * (n - n // 2),
        "answer": pd.array((([0, 0, 1, 1] * n)[:n]) if answers is None else answers, dtype="Int64"),
        "choice": pd.array(choices, dtype="Int64"),
        "logit_difference": logits,
        "probability": 0.5,
        "mass": 0.9,
        "text": "",
    }
    return pd.DataFrame(values | columns)


def unsteered(choices=None, answers=None, **columns):
    """The rows without steering."""
    return condition(choices, answers, vector="none", **columns)


def table_of(*conditions):
    """The conditions as one table."""
    return pd.concat(conditions, ignore_index=True)
