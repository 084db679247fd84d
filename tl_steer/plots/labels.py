"""Words on figures: texts that must not become markup, numbers, factor values, missing columns."""

import html
import math
import re
import textwrap
import unicodedata
from collections.abc import Iterable, Sequence
from numbers import Real
from typing import Any

import numpy as np
import pandas as pd

from .._util.validation import holds_numbers

WRAP = 72
SIGNS = {" ": "␣", "\n": "⏎", "\t": "⇥", "\r": "␍"}
TURNING = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}  # explicit, not a script's own
# Numbers, with the ends of their intervals, where a figure is drawn of columns of these names.
NUMBERS = {
    "accuracy", "anti_steerable", "auc", "between", "blank", "change", "component", "cone", "consistent",
    "control_effect", "controls", "coordinate", "correlation", "cosine", "criterion", "criterion_change",
    "d_prime", "d_prime_change", "decided", "disagreeing", "distinct", "dose", "effect", "explained",
    "false_alarm_rate", "first_share", "flipped", "folds", "held_out_score", "high", "hit_rate",
    "identical", "in_sample_score", "kl", "kurtosis", "layer", "logit", "logit_difference", "loss",
    "loss_change", "low", "multiplier", "multipliers", "n", "n_half_energy", "n_noise", "n_signal", "null",
    "null_max", "null_mean", "optimism", "p_corrected", "p_value", "paired_accuracy", "pairs", "passages",
    "PC", "perplexity", "position", "preference", "probability", "projection", "projection_rank", "q_value",
    "r_squared", "rank", "reliability", "selection_agreement", "share", "shift", "signal_rate", "single",
    "slope", "slope_per_dose", "split_half", "split_half_null", "spread", "ties", "units", "unreadable",
    "unsteered", "value", "win_rate", "words",
}  # fmt: skip
TEXTS = {"factor", "vector", "operation", "layers", "hook", "token", "toward"}
WHOLE = {"layer", "component"}
TARGETS = {"signal": "the signal", "answer": "the right answer"}  # of a table of slopes, by `toward`
SOME = {"rank", "projection_rank"}  # whole numbers that not every row has
SPECIAL = r"<[^<>\s]{1,60}>|\[/?INST\]"  # tokens of chat formats, such as <|im_end|>
LONGEST = 600  # characters of a prompt in a hover; a longer one keeps its two ends


def escape(text: object) -> str:
    """Text as it stands, though plotly reads tags, entities, `%{…}` and (with MathJax) `$…$`.

    Controls, and signs that turn the direction of what follows them, are written out.
    """
    seen = "".join(f"<U+{ord(sign):04X}>" if _turns(sign) else sign for sign in str(text))
    return html.escape(seen, quote=False).replace("$", "&#36;").replace("%{", "%&#123;")


def _turns(sign: str) -> bool:
    control = unicodedata.category(sign) in ("Cc", "Cs") and sign not in "\n\t\r"
    return control or unicodedata.bidirectional(sign) in TURNING


def wrapped(text: object) -> str:
    """A text for a hover: escaped, broken into lines; of a long one the middle is left out."""
    text = shortened(str(text), LONGEST)
    lines = [line for part in text.splitlines() for line in textwrap.wrap(part, WRAP) or [""]]
    return "<br>".join(escape(line) for line in lines)


def shortened(text: str, longest: int) -> str:
    """The two ends of a long text, cut before or after special tokens, never within one."""
    if len(text) <= longest:
        return text
    start, stop = longest // 2, len(text) - longest // 2
    for token in re.finditer(SPECIAL, text):
        start = token.start() if token.start() < start < token.end() else start
        stop = token.end() if token.start() < stop < token.end() else stop
    return f"{text[:start].rstrip()} […] {text[stop:].lstrip()}"


def prompt_labels(rows: pd.DataFrame) -> pd.Series:
    """What to call the prompts of a table: their messages, `label`, else `prompt`.

    Older tables have no such column; where a factor has its name, the values are not part of the prompts.
    """
    pairs = zip(rows["label"], rows["prompt"], strict=True) if "label" in rows else [(None, "")]
    is_message = all(isinstance(label, str) and label.strip() in prompt for label, prompt in pairs)
    return rows["label" if is_message else "prompt"]


def number(value: Any, digits: int = 3) -> str:
    """A table's number to some significant digits, "–" where there is none."""
    return "–" if pd.isna(value) else f"{value:.{digits}g}".replace("-", "−")


def signed(value: Any) -> str:
    """A multiplier with its sign, "+8" or "−0.5"."""
    return f"{value:+g}".replace("-", "−")


def interval(value: Any, low: Any, high: Any) -> str:
    """A number with its interval, "0.87 [0.77, 0.93]"."""
    return f"{number(value)} [{number(low)}, {number(high)}]"


def counted(numbers: Iterable[Any], noun: str) -> str:
    """How many, "60 prompts", or "58 to 60 prompts" where they differ; "no prompts" of none."""
    known = [f"{count:.12g}" for count in sorted(each for each in numbers if not pd.isna(each))] or ["no"]
    low, high = known[0], known[-1]
    return f"{low if low == high else f'{low} to {high}'} {noun if high == '1' else noun + 's'}"


def controls_text(count: int, noun: str = "control direction") -> str:
    """How many controls a figure shows, for its subtitle: "; grey: 2 control directions (p ≥ 0.33)".

    With m controls no p value is below 1 / (m + 1). With 19 or more it can reach 0.05, and is left out.
    """
    if not count:
        return ""
    floor = "" if count >= 19 else f" (p ≥ {number(1 / (count + 1), 2)})"
    return f"; grey: {counted([count], noun)}{floor}"


def levels(values: pd.Series) -> list[str]:
    """The different values of a factor as text: all, then positive and true, then the others in order."""
    return list(dict.fromkeys(level(value) for value in sorted(values.unique().tolist(), key=_order)))


def level(value: object) -> str:
    """One value of a factor as text."""
    return "missing" if pd.isna(value) else str(value)


def visible(token: str) -> str:
    """A token whose every character can be seen: spaces, line ends, controls, accents that stand alone."""
    return "".join(
        f"<U+{ord(sign):04X}>" if _is_unseen(sign, first=place == 0) else SIGNS.get(sign, sign)
        for place, sign in enumerate(token)
    )


def _is_unseen(sign: str, *, first: bool) -> bool:
    kind = unicodedata.category(sign)[0]
    return sign not in SIGNS and (kind in "CZ" or (kind == "M" and first))


def require_columns(
    table: Any, columns: Sequence[str], *, figure: str, maker: str, factors: Iterable[str | None] = ()
) -> None:
    """Refuse a table that the figure cannot be drawn from.

    Args:
        figure: the plot's name, for the message.
        maker: the function that makes such a table.
        factors: columns that the caller chose; `None` is none.

    Raises:
        ValueError: no table, no rows, or columns are missing.
    """
    if not isinstance(table, pd.DataFrame):
        raise ValueError(
            f"plots.{figure} draws a table, not {type(table).__name__}: give it the one that {maker} makes."
        )
    if twice := table.columns[table.columns.duplicated()].map(str).unique().tolist():
        raise ValueError(f"plots.{figure}: the table has several columns of the name {', '.join(twice)}.")
    if wrong := [name for name in table.columns if not isinstance(name, str)]:
        raise ValueError(f"plots.{figure}: the names of columns must be text, and {wrong[0]!r:.60} is none.")
    missing = [column for column in columns if column not in table.columns]
    if missing:
        raise ValueError(
            f"plots.{figure} needs the columns {missing}, but the table has {list(table.columns)}: "
            f"give it the table that {maker} makes."
        )
    if wrong := [name for name in factors if name is not None and name not in table.columns]:
        raise ValueError(
            f"plots.{figure}: the table has no column {', '.join(map(repr, wrong))}; it has "
            f"{', '.join(map(str, table.columns))}."
        )
    if table.empty:
        raise ValueError(
            f"plots.{figure} was given a table without rows: give it the table that {maker} makes."
        )
    for name in TEXTS & set(columns):
        if not table[name].map(lambda each: isinstance(each, str)).all():
            raise ValueError(f"plots.{figure}: the column {name!r} must be text in every row.")
    if (
        "control" in columns
        and not table["control"].map(lambda each: isinstance(each, bool | np.bool_)).all()
    ):
        raise ValueError(f"plots.{figure}: the column 'control' must be true or false in every row.")
    if "prompt_id" in columns and pd.api.types.infer_dtype(table["prompt_id"]).startswith("mixed"):
        raise ValueError(f"plots.{figure}: the column 'prompt_id' must be numbers or texts, not both.")
    for name in WHOLE & set(columns):
        if not pd.api.types.is_integer_dtype(table[name]) or table[name].isna().any():
            raise ValueError(
                f"plots.{figure}: the column {name!r} must be whole numbers in every row, and is "
                f"{table[name].dtype}: give it as table.astype({{{name!r}: int}})."
            )
    for name in columns:
        plain = name.removesuffix("_low").removesuffix("_high").rstrip("0123456789").removesuffix("_")
        if plain in NUMBERS and (
            wrong := _no_numbers(table[name].dropna() if plain in SOME else table[name])
        ):
            raise ValueError(
                f"plots.{figure}: the column {name!r} has {wrong[0]!r:.60} where numbers belong: "
                f"give it the table that {maker} makes."
            )


def _no_numbers(column: pd.Series) -> list[object]:
    """What in a column is no number; NaN is one, other words for what is missing are not."""
    if holds_numbers(column) and not (pd.api.types.is_extension_array_dtype(column) and column.isna().any()):
        return []
    return [each for each in column if isinstance(each, bool | np.bool_) or not isinstance(each, Real)]


def target_of(table: pd.DataFrame, *, figure: str) -> str:
    """Where the slopes of a table lead, in words.

    Raises:
        ValueError: nowhere, or to several targets.
    """
    toward = table["toward"].unique().tolist()
    if len(toward) != 1 or toward[0] not in TARGETS:
        raise ValueError(
            f"plots.{figure}: the column 'toward' must be one of {', '.join(TARGETS)}, the same in every "
            f"row; it has {toward!r:.60}."
        )
    return TARGETS[toward[0]]


def start_of(available: Sequence[str], layer: int | str | None) -> int:
    """Where a slider over layers begins: at `layer`, else in the middle.

    Raises:
        ValueError: no such layer.
    """
    if layer is None:
        return len(available) // 2
    if str(layer) not in available:
        raise ValueError(f"no layer {layer} in the table; it has {', '.join(available)}.")
    return list(available).index(str(layer))


def require_same_rows(table: pd.DataFrame, *, figure: str) -> None:
    """Refuse a table whose layers differ in rows: a slider would put one prompt's text at another's point.

    Raises:
        ValueError: a layer lacks a pair's side, or has it twice.
    """
    rows = table.groupby(["pair", "side"])["layer"].agg(["size", "nunique"])
    if not (rows == table["layer"].nunique()).all(axis=None):
        raise ValueError(
            f"plots.{figure}: every layer needs each pair and side once; select whole layers, of one table."
        )


def _order(value: object) -> tuple[bool, int, float, str]:
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and not math.isnan(value)
    lead = {"all": 0, "positive": 1, "true": 1}.get(str(value).lower(), 2)
    return (pd.isna(value), lead, float(value) if is_number else math.inf, str(value))
