"""`verify`: every check on one model, as a table."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from .._util.validation import checked
from ..engine import bar
from ..models import HookedModel, Prompt, exclusive
from . import generation_checks, reading_checks, state_checks, steering_checks
from .check import Check, DoesNotApplyError
from .context import Subject, asked
from .model_state import State

CHECKS: tuple[Check, ...] = (
    *state_checks.FIRST,
    *steering_checks.CHECKS[:1],
    *reading_checks.CHECKS,
    *generation_checks.CHECKS,
    *steering_checks.CHECKS[1:],
    *state_checks.LAST,
)


@checked
def verify(
    model: HookedModel,
    *,
    hf_model: Any = None,
    prompts: Prompt | Sequence[Prompt] | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """Whether what this package promises holds on this model; under a minute for a small one.

    Each check compares with an oracle of its own: the Hugging Face model, or the model's own forward on one
    unpadded prompt, read with torch's hooks. The model is left as it was. Nothing is raised by a check: an
    exception inside one is a failure, with its message.

    Args:
        model: a `HookedTransformer` or a `TransformerBridge`, however it was loaded.
        hf_model: the same weights loaded by transformers, to compare with; `load_model` keeps none. In
            float32, where you can: in half precision only large differences can be told from rounding.
        prompts: texts or token lists, of different lengths; by default three sentences and a chat prompt.
        progress: show a bar.

    Returns:
        A row a check: check, result ("passed", "failed" or "does not apply"), measured, allowed (the largest
        measurement that passes), unit, meaning (what it says, and what goes wrong where it fails), detail
        (which prompt and layer, where it failed; why, where it does not apply).

    Raises:
        ValueError: no prompts, or some that do not fit the model.
    """
    rows = []
    running = exclusive(model, evaluation=False)  # its own passes run in the modes that they report
    with bar("verifying", len(CHECKS), shown=progress, unit="checks") as tick, running:
        subject = Subject(model, hf_model, asked(model, prompts), State.of(model))
        for check in CHECKS:
            rows.append(_row(check, subject))
            tick(1)
    return pd.DataFrame(rows)


def _row(check: Check, subject: Subject) -> dict[str, Any]:
    measured, detail = np.nan, ""
    allowed = check.limit(subject.dtype)
    try:
        finding = check.run(subject)
    except DoesNotApplyError as reason:
        result, detail = "does not apply", str(reason)
    except Exception as error:
        result, detail = "failed", f"{type(error).__name__}: {error}"
    else:
        measured = float(finding.measured)
        result = "passed" if measured <= allowed else "failed"
        detail = "" if result == "passed" else finding.detail
    return {
        "check": check.name,
        "result": result,
        "measured": measured,
        "allowed": allowed,
        "unit": check.unit,
        "meaning": check.meaning,
        "detail": detail,
    }
