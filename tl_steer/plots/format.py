"""Text on figures: escaping, wrapping, numbers, factor levels."""

import html
import math
import re
import textwrap
from collections.abc import Iterable
from typing import Any

import pandas as pd

from .._util.characters import without_controls
from ..tables import column

HOVER_WIDTH = 72  # characters per line
HOVER_LENGTH = 600  # characters of a prompt in a hover
SPECIAL_TOKEN = r"<[^<>\s]{1,60}>|\[/?INST\]"  # chat format tokens, such as <|im_end|>


def escape(text: object) -> str:
    """Escape what plotly would interpret: tags, entities, `%{…}` and (with MathJax) `$…$`.

    Control and directional formatting characters are replaced by their code points.
    """
    return (
        html.escape(without_controls(str(text)), quote=False).replace("$", "&#36;").replace("%{", "%&#123;")
    )


def wrapped(text: object) -> str:
    """Escape a text and break it into the lines of a hover; the middle of a long text is left out."""
    text = shortened(str(text), HOVER_LENGTH)
    lines = [line for part in text.splitlines() for line in textwrap.wrap(part, HOVER_WIDTH) or [""]]
    return "<br>".join(escape(line) for line in lines)


def broken(text: str, max_length: int) -> str:
    """Break an escaped text into lines, at spaces only."""
    wrapper = textwrap.TextWrapper(max_length, break_long_words=False, break_on_hyphens=False)
    return "<br>".join("<br>".join(wrapper.wrap(each)) for each in text.split("<br>"))


def shortened(text: str, max_length: int) -> str:
    """Keep both ends of a long text; special tokens are never cut."""
    if len(text) <= max_length:
        return text
    start, stop = max_length // 2, len(text) - max_length // 2
    for token in re.finditer(SPECIAL_TOKEN, text):
        start = token.start() if token.start() < start < token.end() else start
        stop = token.end() if token.start() < stop < token.end() else stop
    return f"{text[:start].rstrip()} […] {text[stop:].lstrip()}"


def truncated(text: str, max_length: int) -> str:
    """At most so many characters of a text, the last an ellipsis if it is longer."""
    return text if len(text) <= max_length else f"{text[: max_length - 1]}…"


def hover(*lines: str) -> str:
    """The hover text of a point; empty lines are left out."""
    return "<br>".join(line for line in lines if line)


def number(value: Any, spec: str = ".3g") -> str:
    """Format a number, with a minus sign; "–" if it is missing."""
    return "–" if pd.isna(value) else format(value, spec).replace("-", "−")


def rounded(values: Iterable[float | None]) -> list[float | None]:
    """Five significant digits, to keep figures with many layers small; `None` for missing values."""
    return [None if pd.isna(value) else float(f"{value:.5g}") for value in values]


def signed(value: Any) -> str:
    """A multiplier with its sign: "+8", "−0.5"."""
    return number(value, "+g")


def interval(row: Any, column: str, spec: str = ".3g") -> str:
    """A row's value of a column with its interval: "0.87 [0.77, 0.93]"."""
    value, low, high = (number(row[f"{column}{end}"], spec) for end in ("", "_low", "_high"))
    return f"{value} [{low}, {high}]"


def counted(counts: Iterable[Any], noun: str) -> str:
    """A count or the range of several, with the noun: "60 prompts", "58 to 60 prompts", "no prompts"."""
    known = [f"{count:.12g}" for count in sorted(each for each in counts if not pd.isna(each))] or ["no"]
    low, high = known[0], known[-1]
    return f"{low if low == high else f'{low} to {high}'} {noun if high == '1' else noun + 's'}"


def controls_text(controls: int | pd.DataFrame, noun: str = "control direction") -> str:
    """The number of controls, or of a table's control vectors: "; grey: 2 control directions (p ≥ 0.33)".

    With m controls no p value is below 1 / (m + 1); that bound is included where it exceeds 0.05.
    """
    if isinstance(controls, pd.DataFrame):
        controls = controls.loc[controls["control"], "vector"].nunique()
    if not controls:
        return ""
    floor = "" if controls >= 19 else f" (p ≥ {number(1 / (controls + 1), '.2g')})"
    return f"; grey: {counted([controls], noun)}{floor}"


def levels(values: pd.Series) -> list[str]:
    """The distinct levels of a factor as text: "all", then positive and true, then the others, sorted."""
    return list(dict.fromkeys(level(value) for value in sorted(values.unique().tolist(), key=_level_order)))


def level(value: object) -> str:
    """A value of a factor as text."""
    return "missing" if pd.isna(value) else str(value)


def at_level(table: pd.DataFrame, factor: str, name: str) -> pd.DataFrame:
    """The rows of one of `levels`."""
    return table[table[factor].map(level) == name]


def _level_order(value: object) -> tuple[bool, int, float, str]:
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and not math.isnan(value)
    lead = {"all": 0, "positive": 1, "true": 1}.get(str(value).lower(), 2)
    return (pd.isna(value), lead, float(value) if is_number else math.inf, str(value))


def layers_order(layers: str) -> tuple[bool, list[int]]:
    """Sort key of `layers` values: single layers ascending, then layer sets ("17+31")."""
    return (not layers.isdigit(), [int(layer) for layer in layers.split("+")])


def prompt_labels(rows: pd.DataFrame) -> pd.Series:
    """The prompts' messages, from the column `label`, or else the prompts.

    A factor may also be named "label"; its values are not part of the prompts.
    """
    pairs = zip(rows["label"], rows["prompt"], strict=True) if "label" in rows else [(None, "")]
    is_message = all(isinstance(label, str) and label.strip() in prompt for label, prompt in pairs)
    return rows["label" if is_message else "prompt"]


def axis_title(name: str, producer: str = "") -> str:
    """The label of a column, with its unit; `producer` where other functions' tables use the name too."""
    return column(name, producer).label


def short_label(name: str, producer: str = "") -> str:
    """The label of a column without unit and details, for a hover or a title."""
    return re.split(r" \(|, ", axis_title(name, producer))[0]


def capitalized(text: str) -> str:
    """The text with an upper-case first letter."""
    return text[:1].upper() + text[1:]
