"""Texts side by side, as a table that a notebook shows without running."""

import re
import unicodedata
from collections.abc import Sequence
from itertools import takewhile

import pandas as pd
import plotly.graph_objects as go

from .._util.validation import checked
from .format import SPECIAL_TOKEN, counted, escape, prompt_labels, shortened
from .panels import figure_table
from .style import GRID, INK, WIDTH, multiplier_colours, styled, translucent

FONT_SIZE = 11  # pixels
LINE_HEIGHT, PADDING = 1.3 * FONT_SIZE, 8  # as plotly draws them
TOP, SIDE = 66, 12  # margins
MAX_COLUMNS = 7
MIN_SHARED = 40  # characters of a common beginning and end that are worth leaving out
# Widths of Helvetica, Arial and Liberation Sans, in thousandths of the font size.
CHARACTER_WIDTHS = {
    character: width
    for characters, width in (
        ("ijl'’‘|", 225), (" .,:;!tfI[]/\\", 280), ("r()-`\"“”*{}", 380), ("cksvxyzJ", 500),
        ("FTZ+−<>=~^", 610), ("ABEKPSVXY&", 670), ("CDHNRUw", 725), ("GOQ", 780), ("mM", 835),
        ("W%—…@", 1020),
    )
    for character in characters
}  # fmt: skip
NARROW, WIDE = 570, 1020  # of other characters


@checked
def side_by_side(table: pd.DataFrame, *, limit: int = 8, max_length: int = 400) -> go.Figure:
    """A table of texts: a row per prompt (or draw of it), a column per condition.

    Args:
        table: from `texts.side_by_side`; 3 to 5 columns of texts are most legible.
        limit: number of rows, from the first on.
        max_length: characters of a text; the middle of a longer one is left out.

    Raises:
        ValueError: another table, no texts, too many columns, `limit` below 1, `max_length` below 20.

    Runs of spaces and empty lines are collapsed. Where all prompts begin or end alike, that part is left out
    ("…").
    """
    if limit < 1 or max_length < 20:
        raise ValueError(
            f"plots.side_by_side: limit={limit} must be at least 1, and max_length={max_length} at least 20."
        )
    rows, names = _text_columns(table, limit)
    prompts, is_short = _without_shared_parts([_collapsed(prompt) for prompt in prompt_labels(rows)])
    if "draw" in rows:
        prompts = [f"{prompt}\n(draw {draw})" for prompt, draw in zip(prompts, rows["draw"], strict=True)]
    columns = [prompts, *([_collapsed(text) for text in rows[name]] for name in names)]
    width = (WIDTH - 2 * SIDE) / len(columns) - 2 * PADDING
    header = [_lines(name, width, is_bold=True) for name in ("prompt", *names)]
    cells = [[_lines(shortened(text, max_length), width) for text in column] for column in columns]
    heights = [_row_height(row) for row in (header, *zip(*cells, strict=True))]
    look = {"align": "left", "font": {"size": FONT_SIZE, "color": INK}, "line": {"color": GRID}}
    header_texts = [f"<b>{'<br>'.join(map(escape, lines))}</b>" for lines in header]
    cell_texts = [["<br>".join(map(escape, lines)) for lines in column] for column in cells]
    stripes = {"color": [["white", "#F7F8F9"] * len(rows)]}
    figure = go.Figure(
        go.Table(
            header={"values": header_texts, "fill": {"color": _header_colours(["prompt", *names])}, **look},
            cells={"values": cell_texts, "fill": stripes, **look},
        )
    )
    count = counted([len(table)], "draw" if "draw" in rows else "prompt")
    subtitle = f"{len(rows)} of {count}" if len(rows) < len(table) else count
    subtitle += "; what they all begin and end with is left out" if is_short else ""
    height = TOP + sum(heights) + 2 * SIDE
    styled(figure, "Texts side by side", subtitle).update_layout(height=height)
    figure.update_layout(margin={"l": SIDE, "r": SIDE, "t": TOP, "b": SIDE})
    return figure.update_layout(title_y=1 - SIDE / height)  # a share of the height


def _text_columns(table: pd.DataFrame, limit: int) -> tuple[pd.DataFrame, list[str]]:
    """The first rows, and the names of the columns of texts."""
    caller = "plots.side_by_side"
    table = figure_table(table, "side_by_side", "prompt")
    names = [name for name in table.columns if name not in ("prompt_id", "draw", "prompt", "label")]
    if not names:
        raise ValueError(f"{caller}: the table has no column of texts: expected at least one.")
    if "multiplier" in names:
        raise ValueError(f"{caller}: got a sweep's table: put its texts side by side first.")
    if len(names) > MAX_COLUMNS:
        raise ValueError(
            f"{caller}: {len(names)} columns of texts cannot be read side by side, at most {MAX_COLUMNS}: "
            "choose layers=… and multipliers=… in side_by_side."
        )
    return table.head(limit), names


def _header_colours(names: Sequence[str]) -> list[str]:
    """Light versions of the colours that the multipliers have in the other figures."""
    signs = [re.search(r"([+−][\d.e+-]+)$", name) for name in names]
    multipliers = [float(sign[1].replace("−", "-")) if sign else None for sign in signs]
    colours = multiplier_colours(each for each in multipliers if each is not None)
    return [GRID if each is None else translucent(colours[each], 0.35) for each in multipliers]


def _collapsed(text: object) -> str:
    """The text's lines without runs of spaces and without empty ones; "–" if it is missing."""
    if pd.isna(text):
        return "–"
    lines = [" ".join(line.split()) for line in str(text).splitlines()]
    return "\n".join(line for line in lines if line)


def _without_shared_parts(prompts: list[str]) -> tuple[list[str], bool]:
    """The prompts without the words that all begin and end with, and whether those were long enough."""
    start, stop = _shared_prefix(prompts), _shared_prefix([prompt[::-1] for prompt in prompts])
    parts = [prompt[start : len(prompt) - stop].strip() for prompt in prompts]
    if start + stop < MIN_SHARED or len(prompts) < 2 or not all(parts):
        return prompts, False
    return [f"{'… ' * bool(start)}{part}{' …' * bool(stop)}" for part in parts], True


def _shared_prefix(prompts: list[str]) -> int:
    """Length of the common prefix, in whole words: that of the first and last in alphabetical order."""
    pairs = zip(min(prompts), max(prompts), strict=False)
    same = "".join(one for one, _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
    return len(re.sub(r"\S*$", "", same))


def _lines(text: str, width: float, *, is_bold: bool = False) -> list[str]:
    """A text in lines of at most `width` pixels; long words are broken, but not within a special token."""
    scale = FONT_SIZE * (1.1 if is_bold else 1.0) / 1000
    lines = []
    for paragraph in text.split("\n"):
        line, used = "", 0.0
        for word in re.findall(r"\S+\s*", paragraph):
            fits = _text_width(word) * scale <= width
            for part in [word] if fits else re.findall(f"{SPECIAL_TOKEN}|.", word):
                if line and used + _text_width(part.rstrip()) * scale > width:
                    lines.append(line.rstrip())
                    line, used = "", 0.0
                line, used = line + part, used + _text_width(part) * scale
        lines.append(line.rstrip())
    return lines


def _text_width(text: str) -> int:
    return sum(
        CHARACTER_WIDTHS.get(character, WIDE if unicodedata.east_asian_width(character) in "WF" else NARROW)
        for character in text
    )


def _row_height(cells: Sequence[list[str]]) -> float:
    """Height of a table's row, in pixels."""
    return max(map(len, cells)) * LINE_HEIGHT + 2 * PADDING
