"""The columns of every table: one name, type and label per concept, and the check that a table has them.

A table is tidy: one row per observation, never an index with a meaning. Columns that end in `_low` and
`_high` are the 95 % interval of the column before the suffix.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd

Type = Literal["number", "integer", "binary", "boolean", "text", "id"]
EXPECTED = {
    "number": "numbers",
    "integer": "whole numbers in every row",
    "binary": "0, 1 or missing",
    "boolean": "true or false in every row",
    "text": "text",
    "id": "numbers or text, not both",
}


@dataclass(frozen=True)
class Column:
    """What a column holds.

    Attributes:
        type: "number", "integer", "binary" (0 or 1), "boolean", "text" or "id". Numbers, binaries and texts
            may be missing.
        label: for axes and hovers, with the unit in parentheses.
        producers: the functions whose tables have it, comma-separated.
    """

    type: Type
    label: str
    producers: str


SCHEMA: dict[str, Column] = {
    "accuracy": Column("number", "accuracy", ""),
    "answer": Column("binary", "answer", ""),
    "anti_steerable": Column("number", "anti steerable", ""),
    "auc": Column("number", "auc", ""),
    "between": Column("number", "between", ""),
    "blank": Column("number", "blank", ""),
    "change": Column("number", "change", ""),
    "choice": Column("binary", "choice", ""),
    "component": Column("integer", "component", ""),
    "cone": Column("number", "cone", ""),
    "consistent": Column("number", "consistent", ""),
    "control": Column("boolean", "control", ""),
    "control_effect": Column("number", "control effect", ""),
    "control_of": Column("text", "control of", ""),
    "controls": Column("number", "controls", ""),
    "coordinate": Column("number", "coordinate", ""),
    "correlation": Column("number", "correlation", ""),
    "cosine": Column("number", "cosine", ""),
    "cosine_negative": Column("number", "cosine negative", ""),
    "cosine_positive": Column("number", "cosine positive", ""),
    "criterion": Column("number", "criterion", ""),
    "criterion_change": Column("number", "criterion change", ""),
    "d_prime": Column("number", "d prime", ""),
    "d_prime_change": Column("number", "d prime change", ""),
    "decided": Column("number", "decided", ""),
    "disagreeing": Column("number", "disagreeing", ""),
    "distinct": Column("number", "distinct", ""),
    "dose": Column("number", "dose", ""),
    "draw": Column("number", "draw", ""),
    "effect": Column("number", "effect", ""),
    "embedding_score": Column("number", "embedding score", ""),
    "explained": Column("number", "explained", ""),
    "factor": Column("text", "factor", ""),
    "false_alarm_rate": Column("number", "false alarm rate", ""),
    "first_share": Column("number", "first share", ""),
    "first_shown": Column("text", "first shown", ""),
    "flipped": Column("number", "flipped", ""),
    "folds": Column("number", "folds", ""),
    "held_out_score": Column("number", "held out score", ""),
    "high": Column("number", "high", ""),
    "hit_rate": Column("number", "hit rate", ""),
    "hook": Column("text", "hook", ""),
    "identical": Column("number", "identical", ""),
    "in_sample_score": Column("number", "in sample score", ""),
    "kl": Column("number", "kl", ""),
    "kurtosis": Column("number", "kurtosis", ""),
    "layer": Column("integer", "layer", ""),
    "layers": Column("text", "layers", ""),
    "logit": Column("number", "logit", ""),
    "logit_difference": Column("number", "logit difference", ""),
    "loss": Column("number", "loss", ""),
    "loss_change": Column("number", "loss change", ""),
    "low": Column("number", "low", ""),
    "mass": Column("number", "mass", ""),
    "multiplier": Column("number", "multiplier", ""),
    "multipliers": Column("number", "multipliers", ""),
    "n": Column("number", "n", ""),
    "n_half_energy": Column("number", "n half energy", ""),
    "n_noise": Column("number", "n noise", ""),
    "n_signal": Column("number", "n signal", ""),
    "null": Column("number", "null", ""),
    "null_max": Column("number", "null max", ""),
    "null_mean": Column("number", "null mean", ""),
    "operation": Column("text", "operation", ""),
    "optimism": Column("number", "optimism", ""),
    "other_text": Column("text", "other text", ""),
    "p_corrected": Column("number", "p corrected", ""),
    "p_value": Column("number", "p value", ""),
    "paired_accuracy": Column("number", "paired accuracy", ""),
    "pairs": Column("number", "pairs", ""),
    "passages": Column("number", "passages", ""),
    "PC": Column("number", "PC", ""),
    "perplexity": Column("number", "perplexity", ""),
    "position": Column("number", "position", ""),
    "preference": Column("number", "preference", ""),
    "probability": Column("number", "probability", ""),
    "projection": Column("number", "projection", ""),
    "projection_rank": Column("number", "projection rank", ""),
    "prompt": Column("text", "prompt", ""),
    "prompt_id": Column("id", "prompt id", ""),
    "q_value": Column("number", "q value", ""),
    "r_squared": Column("number", "r squared", ""),
    "rank": Column("number", "rank", ""),
    "reason": Column("text", "reason", ""),
    "reliability": Column("number", "reliability", ""),
    "selection_agreement": Column("number", "selection agreement", ""),
    "share": Column("number", "share", ""),
    "shift": Column("number", "shift", ""),
    "signal_rate": Column("number", "signal rate", ""),
    "single": Column("number", "single", ""),
    "slope": Column("number", "slope", ""),
    "slope_per_dose": Column("number", "slope per dose", ""),
    "split": Column("text", "split", ""),
    "split_half": Column("number", "split half", ""),
    "split_half_null": Column("number", "split half null", ""),
    "spread": Column("number", "spread", ""),
    "text": Column("text", "text", ""),
    "ties": Column("number", "ties", ""),
    "token": Column("text", "token", ""),
    "toward": Column("text", "toward", ""),
    "units": Column("number", "units", ""),
    "unreadable": Column("number", "unreadable", ""),
    "unsteered": Column("number", "unsteered", ""),
    "value": Column("number", "value", ""),
    "vector": Column("text", "vector", ""),
    "verdict": Column("text", "verdict", ""),
    "win_rate": Column("number", "win rate", ""),
    "words": Column("number", "words", ""),
}


def column(name: str) -> Column | None:
    """The definition of a column or of an interval's end; numbered columns (`cosine_2`) share one."""
    base = name.removesuffix("_low").removesuffix("_high")
    return SCHEMA.get(base) or SCHEMA.get(re.sub(r"_?\d+$", "", base))


def validated(
    table: pd.DataFrame, *columns: str, producer: str, caller: str = "", factors: Iterable[str] = ()
) -> pd.DataFrame:
    """Check the columns that a function reads, and return the table with its number columns as float64.

    Args:
        table: as passed by the user.
        columns: those that the function reads. Other columns may be missing, and may hold anything.
        producer: the function that returns such a table, for the message.
        caller: the function that reads it, for the message.
        factors: columns that the user chose, of any type.

    Raises:
        ValueError: not a table, no rows, a column missing or there twice, or values of another type.
    """
    prefix = f"{caller}: " if caller else ""
    remedy = f"Pass the table that {producer} returns."
    if not isinstance(table, pd.DataFrame):
        raise ValueError(f"{prefix}got {type(table).__name__}: expected a table. {remedy}")
    names = list(map(str, table.columns))
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(
            f"{prefix}the table has several columns named {', '.join(twice)}: rename or drop some."
        )
    if missing := [name for name in (*columns, *factors) if name not in table.columns]:
        raise ValueError(
            f"{prefix}the table lacks the columns {', '.join(missing)}; it has {', '.join(names)}. {remedy}"
        )
    if table.empty:
        raise ValueError(f"{prefix}the table has no rows. {remedy}")
    changed = {}
    for name in columns:
        if (known := column(name)) is None:
            continue
        if (wrong := _wrong(table[name], known.type)) is not None:
            raise ValueError(
                f"{prefix}the column {name!r} holds {wrong!r:.60}: expected {EXPECTED[known.type]}. {remedy}"
            )
        if known.type == "number":
            changed[name] = table[name].astype(float)
    return table.assign(**changed)


def _wrong(values: pd.Series, expected: Type) -> object:
    """The first value of another type, `None` if there is none."""
    numeric = pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values)
    if expected == "id":
        is_mixed = pd.api.types.infer_dtype(values).startswith("mixed")
        return values.iloc[0] if is_mixed else None
    if numeric and expected == "number":
        return None
    allowed = {
        "number": lambda each: isinstance(each, int | float | np.number) and not isinstance(each, bool),
        "integer": lambda each: isinstance(each, int | np.integer) and not isinstance(each, bool),
        "binary": lambda each: each in (0, 1),
        "boolean": lambda each: isinstance(each, bool | np.bool_),
        "text": lambda each: isinstance(each, str),
    }[expected]
    present = values.dropna() if expected in ("number", "binary", "text") else values
    return next((each for each in present.unique() if not allowed(each)), None)
