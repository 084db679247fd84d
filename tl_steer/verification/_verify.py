"""`verify`: run every check on one model, and show the table."""

from collections.abc import Iterator, Sequence
from math import isnan, nan
from textwrap import wrap
from typing import Any

import pandas as pd

from .._util.logs import bar
from .._util.validation import checked
from ..errors import DoesNotApplyError
from ..models import HookedModel, Prompt, exclusive
from . import reading_checks as reading
from . import state_checks as state
from . import steering_checks as steering
from .context import Check, Context, token_ids

CHECKS: tuple[Check, ...] = (
    state.no_hooks, state.evaluation_mode, state.gradients_off, reading.repeated, reading.equal_logits,
    reading.equal_streams, reading.equal_inputs, reading.equal_alone, reading.equal_padded,
    reading.equal_sides, reading.equal_choices, steering.equal_reuse, steering.equal_reuse_texts,
    steering.equal_conditions, reading.greedy_tokens, reading.equal_cached, reading.equal_samples,
    state.plain_tokens, state.chat_tokens, state.vocabulary, steering.at_its_layer, steering.arithmetic,
    steering.zero_multiplier, steering.finite, reading.half_precision, steering.hooks_gone,
    state.weights_unchanged, state.settings_unchanged,
)  # fmt: skip

MARKS = {"failed": "FAILED", "does not apply": "–", "passed": "passed"}
MARK_WIDTH, NAME_WIDTH = 8, 36


@checked
def verify(
    model: HookedModel,
    *,
    hf_model: Any = None,
    prompts: Prompt | Sequence[Prompt] | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """Check the package's guarantees on this model; under a minute for a small one.

    Each check compares with an independent computation: the Hugging Face model, or the model's own forward on
    one unpadded prompt, recorded by torch hooks. The model is left as it was. A check does not raise: an
    exception inside it is a failure, with its message.

    Args:
        model: a `HookedTransformer` or a `TransformerBridge`, however it was loaded.
        hf_model: the same weights loaded by transformers, to compare with; `load_model` does not keep them.
            Load it in float32 if you can: in half precision only large differences exceed rounding.
        prompts: texts or token lists, of different lengths; by default three sentences and a chat prompt.
        progress: show a progress bar.

    Returns:
        One row per check: check, result ("passed", "failed" or "does not apply"), measured, allowed (the
        largest measurement that passes), unit, meaning (the guarantee, and what goes wrong without it),
        detail (prompt and layer of a failure; the reason why a check does not apply).

    Raises:
        ValueError: no prompts, or some that do not fit the model.
    """
    rows = []
    running = exclusive(model, evaluation=False)  # passes run in the modes that are reported
    with bar("verifying", len(CHECKS), visible=progress, unit="checks") as on_progress, running:
        context = Context(model, hf_model, token_ids(model, prompts), state.snapshot(model))
        for check in CHECKS:
            rows.append(_row(check, context))
            on_progress(1)
    return pd.DataFrame(rows)


def _row(check: Check, context: Context) -> dict[str, Any]:
    measured, allowed = nan, check.limit(context.dtype)
    try:
        measured, detail = check.worst(context)
        result = "passed" if measured <= allowed else "failed"
    except DoesNotApplyError as reason:
        result, detail = "does not apply", str(reason)
    except Exception as error:
        result, detail = "failed", f"{type(error).__name__}: {error}"
    return {
        "check": check.name,
        "result": result,
        "measured": measured,
        "allowed": allowed,
        "unit": check.unit,
        "meaning": check.meaning,
        "detail": "" if result == "passed" else detail,
    }


def format_table(table: pd.DataFrame, *, width: int = 100) -> str:
    """The table of `verify` as lines of at most `width` characters: failures first, with their meaning."""
    order = table["result"].map(list(MARKS).index)
    rows = table.loc[order.sort_values(kind="stable").index].to_dict("records")
    return "\n".join(line for row in rows for line in _lines(row, width))


def summary(table: pd.DataFrame) -> str:
    """The numbers of checks that passed, failed, and do not apply."""
    failed, unfit, passed = (int((table["result"] == result).sum()) for result in MARKS)
    return f"{len(table)} checks: {passed} passed, {failed} failed, {unfit} not applicable"


def _lines(row: dict[str, Any], width: int) -> Iterator[str]:
    indent = " " * MARK_WIDTH
    numbers = "" if isnan(row["measured"]) else (
        f"{row['measured']:.2g} {row['unit']} (at most {row['allowed']:.2g})"
    )  # fmt: skip
    yield f"{MARKS[row['result']]:<{MARK_WIDTH}}{row['check']:<{NAME_WIDTH}}{numbers}".rstrip()
    for text in (row["detail"], "" if row["result"] == "does not apply" else row["meaning"]):
        yield from wrap(text, width, initial_indent=indent, subsequent_indent=indent)
    if row["result"] == "failed":
        yield ""
