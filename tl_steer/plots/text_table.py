"""Texts side by side, as a table that a notebook also shows where it does not run."""

import re
import unicodedata
from collections.abc import Sequence
from itertools import takewhile

import pandas as pd
import plotly.graph_objects as go

from .._util.validation import checked
from .labels import SPECIAL, escape, prompt_labels, require_columns, shortened
from .template import GRID, INK, WIDTH, multiplier_colours, styled, translucent

SIZE = 11  # of the font, in pixels
LINE, PADDING = 1.3 * SIZE, 8  # what plotly makes of it, and puts around a cell's text on each side
TOP, SIDE = 66, 12  # margins
MOST_COLUMNS = 7  # texts that can be read beside each other in a notebook's column
SHARED = 40  # characters of a common beginning and end that are worth leaving out
# Widths in thousandths of the size, of Helvetica; Arial and Liberation Sans have the same.
WIDTHS = {
    character: width
    for characters, width in (
        ("ijl'’‘|", 225), (" .,:;!tfI[]/\\", 280), ("r()-`\"“”*{}", 380), ("cksvxyzJ", 500),
        ("FTZ+−<>=~^", 610), ("ABEKPSVXY&", 670), ("CDHNRUw", 725), ("GOQ", 780), ("mM", 835),
        ("W%—…@", 1020),
    )
    for character in characters
}  # fmt: skip
OTHER, WIDE = 570, 1020


@checked
def texts(table: pd.DataFrame, *, most: int = 8, longest: int = 400) -> go.Figure:
    """A table of texts: a row a prompt (or draw of it), a column a cell, as high as its lines need.

    Args:
        table: what `evaluation.side_by_side` makes; 3 to 5 columns of texts read best.
        most: rows that are shown, from the first on.
        longest: characters of a text; of a longer one the middle is left out.

    Raises:
        ValueError: no rows or no texts, more columns than can be read, `most` below 1, `longest` below 20.

    Spaces and empty lines around and within the texts are drawn together, and where all prompts begin or end
    alike, that part is left out ("…").
    """
    if most < 1 or longest < 20:
        raise ValueError(f"plots.texts: most={most} must be at least 1, and longest={longest} at least 20.")
    shown, names = _shown(table, most)
    prompts, is_short = _own_parts([_tidy(prompt) for prompt in prompt_labels(shown)])
    if "draw" in shown:
        prompts = [f"{prompt}\n(draw {draw})" for prompt, draw in zip(prompts, shown["draw"], strict=True)]
    columns = [prompts, *([_tidy(text) for text in shown[name]] for name in names)]
    room = (WIDTH - 2 * SIDE) / len(columns) - 2 * PADDING
    header = [_broken(name, room, bold=True) for name in ("prompt", *names)]
    cells = [[_broken(shortened(text, longest), room) for text in column] for column in columns]
    heights = [_height([header]), *(_height([row]) for row in zip(*cells, strict=True))]
    figure = go.Figure(
        go.Table(
            header=_header(header, ["prompt", *names]),
            cells={
                "values": [["<br>".join(map(escape, lines)) for lines in column] for column in cells],
                "align": "left",
                "font": {"size": SIZE, "color": INK},
                "fill": {"color": [["white", "#F7F8F9"] * len(shown)]},
                "line": {"color": GRID},
            },
        )
    )
    rows = "draw" if "draw" in shown else "prompt"
    figure = styled(figure, "Texts side by side", _subtitle(len(shown), len(table), rows, is_short))
    height = TOP + sum(heights) + 2 * SIDE
    figure.update_layout(height=height, margin={"l": SIDE, "r": SIDE, "t": TOP, "b": SIDE})
    return figure.update_layout(title_y=1 - SIDE / height)  # a share of a height that varies


def _shown(table: pd.DataFrame, most: int) -> tuple[pd.DataFrame, list[str]]:
    """The rows to show, and the names of the columns of texts."""
    require_columns(table, ["prompt"], figure="texts", maker="evaluation.side_by_side(sweep_table)")
    names = [name for name in table.columns if name not in ("prompt_id", "draw", "prompt", "label")]
    if not names:
        raise ValueError("plots.texts: the table has no column of texts.")
    if "multiplier" in names:
        raise ValueError(
            "plots.texts: put the texts of a sweep's table side by side first, side_by_side(table)."
        )
    if len(names) > MOST_COLUMNS:
        raise ValueError(
            f"plots.texts: {len(names)} columns of texts cannot be read beside each other, at most "
            f"{MOST_COLUMNS} can: choose layers=… and multipliers=… in side_by_side."
        )
    return table.head(most), names


def _header(header: list[list[str]], names: Sequence[str]) -> dict[str, object]:
    """In the colours that the multipliers have in the other figures, but light, so that they can be read."""
    signs = [re.search(r"([+−][\d.e+-]+)$", name) for name in names]
    multipliers = [float(sign[1].replace("−", "-")) if sign else None for sign in signs]
    colours = multiplier_colours(each for each in multipliers if each is not None)
    fills = [GRID if each is None else translucent(colours[each], 0.35) for each in multipliers]
    return {
        "values": [f"<b>{'<br>'.join(map(escape, lines))}</b>" for lines in header],
        "align": "left",
        "font": {"size": SIZE, "color": INK},
        "fill": {"color": fills},
        "line": {"color": GRID},
    }


def _subtitle(shown: int, there: int, rows: str, is_short: bool) -> str:
    count = f"{shown} of {there} {rows}s" if shown < there else f"{there} {rows}{'s' * (there > 1)}"
    return count + ("; what they all begin and end with is left out" if is_short else "")


def _tidy(text: object) -> str:
    """Lines without the space around them, "–" where there is no text."""
    if pd.isna(text):
        return "–"
    lines = [" ".join(line.split()) for line in str(text).splitlines()]
    return "\n".join(line for line in lines if line)


def _own_parts(prompts: list[str]) -> tuple[list[str], bool]:
    """The prompts without the whole words they all begin and end with; whether that was worth it."""
    start, stop = _common(prompts), _common([prompt[::-1] for prompt in prompts])
    own = [prompt[start : len(prompt) - stop].strip() for prompt in prompts]
    if start + stop < SHARED or len(prompts) < 2 or not all(own):
        return prompts, False
    return [f"{'… ' * bool(start)}{part}{' …' * bool(stop)}" for part in own], True


def _common(prompts: list[str]) -> int:
    """With how many characters all begin, up to a whole word: as many as the first and last by letter."""
    pairs = zip(min(prompts), max(prompts), strict=False)
    same = "".join(one for one, _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
    return len(re.sub(r"\S*$", "", same))


def _broken(text: str, room: float, *, bold: bool = False) -> list[str]:
    """A text in lines of at most `room` pixels; a word that is longer is broken, but not
    within a special token."""
    scale = SIZE * (1.1 if bold else 1.0) / 1000
    found = []
    for paragraph in text.split("\n"):
        line, used = "", 0.0
        for piece in re.findall(r"\S+\s*", paragraph):
            fits = _width(piece) * scale <= room
            for part in [piece] if fits else re.findall(f"{SPECIAL}|.", piece):
                width = _width(part) * scale
                if line and used + _width(part.rstrip()) * scale > room:
                    found.append(line.rstrip())
                    line, used = "", 0.0
                line, used = line + part, used + width
        found.append(line.rstrip())
    return found


def _width(text: str) -> int:
    return sum(
        WIDTHS.get(character, WIDE if unicodedata.east_asian_width(character) in "WF" else OTHER)
        for character in text
    )


def _height(rows: Sequence[Sequence[list[str]]]) -> float:
    """Of a row, in pixels: its longest cell's."""
    return max(len(lines) for row in rows for lines in row) * LINE + 2 * PADDING
