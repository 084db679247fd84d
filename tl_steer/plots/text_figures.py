"""Texts: side by side as a table, and token by token as heat maps of projections."""

import re
import unicodedata
from collections.abc import Sequence
from itertools import takewhile
from typing import Any, Literal

import pandas as pd
import plotly.graph_objects as go

from .._util.validation import checked
from .format import (
    SPECIAL_TOKEN,
    axis_title,
    counted,
    escape,
    hover,
    interval,
    level,
    number,
    prompt_labels,
    shortened,
    truncated,
    visible,
    wrapped,
)
from .heat_maps import heat_map, stacked_panels
from .marks import colour_bar, curve, layer_step, layer_ticks
from .panels import figure_table
from .style import DIVERGING, GRID, INK, WIDTH, Style, colour_scale, multiplier_colours, styled, translucent

# --- of the table of texts
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
# --- of the heat maps of tokens
TICK_LENGTH = 15  # characters of a token below the axis
PANEL, PANELS_TOP, PANELS_BOTTOM, GAP = 250, 100, 130, 34  # pixels
MAX_PANELS, MAX_NAMED_POSITIONS, MAX_NAMED_LAYERS = 6, 60, 12


@checked
def side_by_side(table: pd.DataFrame, *, limit: int = 8, max_length: int = 400) -> go.Figure:
    """A table of texts: a row per prompt (or draw of it), a column per condition.

    Args:
        table: from `texts.side_by_side`; 3 to 5 columns of texts are most legible.
        limit: number of rows, from the first on.
        max_length: characters of a text; the middle of a longer one is left out.

    Raises:
        ValueError: `limit` below 1, `max_length` below 20, no texts, or too many columns.

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
    line_counts = [max(map(len, row)) for row in (header, *zip(*cells, strict=True))]
    look = {"align": "left", "font": {"size": FONT_SIZE, "color": INK}, "line": {"color": GRID}}
    header_texts = [f"<b>{'<br>'.join(map(escape, lines))}</b>" for lines in header]
    cell_texts = [["<br>".join(map(escape, lines)) for lines in column] for column in cells]
    header = {"values": header_texts, "fill": {"color": _header_colours(["prompt", *names])}}
    cells = {"values": cell_texts, "fill": {"color": [["white", "#F7F8F9"] * len(rows)]}}
    figure = go.Figure(go.Table(header=header | look, cells=cells | look))
    count = counted([len(table)], "draw" if "draw" in rows else "prompt")
    subtitle = f"{len(rows)} of {count}" if len(rows) < len(table) else count
    subtitle += "; what they all begin and end with is left out" if is_short else ""
    height = TOP + sum(LINE_HEIGHT * count + 2 * PADDING for count in line_counts) + 2 * SIDE
    styled(figure, "Texts side by side", subtitle, height=height)
    margin = {"l": SIDE, "r": SIDE, "t": TOP, "b": SIDE}
    return figure.update_layout(margin=margin, title_y=1 - SIDE / height)  # a share of the height


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


@checked
def traces(
    table: pd.DataFrame, *, value: Literal["cosine", "projection"] = "cosine", facet: str | None = None
) -> go.Figure:
    """Heat maps of projections: layers upwards, positions from left to right, a panel per level.

    Args:
        table: from `analysis.traces` or `trace_difference`, of one prompt per panel; or from `mean_traces`.
        value: "projection" is in the residual stream's units.
        facet: the column whose values have a panel each; of means, by default their factor.

    All panels share one colour scale, centred on zero; differences have their own. The line is between the
    prompt's last token and the first new one. A token is named below the axis if it is the same in all panels
    and prompts. A dot marks a mean difference whose interval excludes zero: so does one in twenty by chance.
    """
    columns, producer = ("layer", "position", "token", value), "traces or mean_traces"
    table = figure_table(table, "traces", *columns, factors=[facet], producer=producer)
    are_means = "token_share" in table.columns
    difference = table["difference"].eq(True) if "difference" in table.columns else False
    table = table.assign(difference=difference)
    panels = _trace_panels(table, facet or (table.columns[0] if are_means else None))
    layers = sorted(table["layer"].unique().tolist())
    positions = list(range(table["position"].min(), table["position"].max() + 1))
    inner = PANEL * len(panels) + GAP * (len(panels) - 1)
    figure = stacked_panels([escape(name) * (len(panels) > 1) for name in panels], gap=GAP / inner)
    for row, (name, rows) in enumerate(panels.items(), start=1):
        figure.add_trace(_trace_heat_map(rows, name, value, layers, positions), row=row, col=1)
        if are_means and rows["difference"].any():
            clear = rows[(rows[f"{value}_low"] > 0) | (rows[f"{value}_high"] < 0)]
            clear = clear.assign(layer_name=clear["layer"].astype(str))
            dots = curve(clear, "layer_name", Style("", INK), x="position", mode="markers", size=4)
            edge = {"width": 0.7, "color": "white"}
            figure.add_trace(dots.update(marker_line=edge, showlegend=False), row=row, col=1)
    figure.update_layout(_trace_scales(figure, list(panels.values()), value))
    _set_trace_axes(figure, table, layers, positions)
    top = PANELS_TOP if len(panels) > 1 else PANELS_TOP - GAP + 10
    title = {"cosine": "Cosine with the direction", "projection": "Projection on the direction"}[value]
    subtitle = _trace_subtitle(list(panels.values()), len(layers), len(positions), are_means=are_means)
    styled(figure, f"{title}, token by token", subtitle, height=top + inner + PANELS_BOTTOM)
    return figure.update_layout(margin={"t": top, "b": PANELS_BOTTOM})


def _trace_panels(table: pd.DataFrame, facet: str | None) -> dict[str, pd.DataFrame]:
    """The rows of each level, in the order of the table, differences last."""
    ordered = table.sort_values("difference", kind="stable")
    names = pd.Series("", ordered.index) if facet is None else ordered[facet].map(level)
    panels = dict(iter(ordered.groupby(names, sort=False)))
    if len(panels) > MAX_PANELS:
        raise ValueError(
            f"plots.traces: {facet!r} has {len(panels)} values, at most {MAX_PANELS} panels fit. Select some."
        )
    for name, rows in panels.items():
        if rows.duplicated(["layer", "position"]).any():
            where = f" where {facet} is {name}" if facet else ""
            raise ValueError(
                f"plots.traces: several rows share their layer and position{where}: take their mean with "
                "mean_traces(table, by=…), select one prompt, or give facet=… (such as 'prompt_id')."
            )
    return panels


def _trace_heat_map(
    rows: pd.DataFrame, name: str, value: str, layers: list[int], positions: list[int]
) -> go.Heatmap:
    prompts = prompt_labels(rows)[~rows["prompt"].duplicated()].tolist() if "prompt" in rows else []
    prompt = f"<br>{wrapped(prompts[0])}" if len(prompts) == 1 else ""
    return heat_map(
        rows,
        {"layer": layers, "position": positions},
        value,
        lambda row: _trace_hover(row, name, value),
        x=positions,
        y=list(map(str, layers)),
        hovertemplate=f"%{{hovertext}}{prompt}<extra></extra>",
        coloraxis="coloraxis2" if rows["difference"].any() else "coloraxis",
        name=escape(name),
        xgap=0.5,
        ygap=0.5,
    )


def _trace_hover(row: dict[str, Any], name: str, value: str) -> str:
    token, text = f"token {escape(visible(row['token']))}", number(row[value])
    title = escape(name)
    if "token_share" in row:
        share = row["token_share"]
        token = token if share == 1 else f"commonest {token} ({share:.0%})"
        title, text = f"{title}, n = {row['n']}", interval(row, value)
    quantity = f"difference in {value}" if row["difference"] else value
    position = number(row["position"], "d")
    return hover(f"<b>layer {row['layer']}, position {position}</b>", title, token, f"{quantity} {text}")


def _trace_scales(figure: go.Figure, panels: list[pd.DataFrame], value: str) -> dict[str, Any]:
    """One colour scale for values and one for differences, each next to its panels."""
    domains = [axis.domain or (0, 1) for axis in figure.select_yaxes()]
    scales = {}
    for axis, of_differences in (("coloraxis", False), ("coloraxis2", True)):
        indices = [i for i, rows in enumerate(panels) if rows["difference"].any() == of_differences]
        if not indices:
            continue
        limit = float(pd.concat([panels[i][value] for i in indices]).abs().max()) or 1.0
        low, high = domains[indices[-1]][0], domains[indices[0]][1]
        title = axis_title(value).replace(" (", "<br>(")
        title = f"difference<br>in {value}" if of_differences else title
        bar = colour_bar(title, y=(low + high) / 2, len=high - low, lenmode="fraction", yanchor="middle")
        bar["title"] |= {"side": "top", "font": {"size": 12}}
        scale = colour_scale(DIVERGING)
        scales[axis] = {"colorscale": scale, "cmin": -limit, "cmax": limit, "colorbar": bar}
    return scales


def _set_trace_axes(figure: go.Figure, table: pd.DataFrame, layers: list[int], positions: list[int]) -> None:
    """Ticks, titles, and the line between the prompt and the new tokens."""
    named = layers if len(layers) <= MAX_NAMED_LAYERS else layer_ticks(layers, MAX_NAMED_LAYERS)
    figure.update_yaxes(
        type="category",
        categoryarray=[str(layer) for layer in layers],
        range=[-0.5, len(layers) - 0.5],
        tickvals=list(map(str, named)),
        title_text="layer",
        showgrid=False,
    )
    ends = [positions[0] - 0.5, positions[-1] + 0.5]
    figure.update_xaxes(range=ends, zeroline=False, showgrid=False, **_position_ticks(table, positions))
    figure.update_xaxes(title_text=axis_title("position"), row=len(list(figure.select_yaxes())))
    if positions[0] < 0 <= positions[-1]:
        figure.add_vline(x=-0.5, line={"color": INK, "width": 1.5})


def _position_ticks(table: pd.DataFrame, positions: list[int]) -> dict[str, Any]:
    """Every position with its token, if all rows have the same; of many positions, some numbers."""
    if len(positions) > MAX_NAMED_POSITIONS:
        step = layer_step(positions)
        return {"tickvals": [position for position in positions if position % step == 0]}
    is_same = table.groupby("position")["token"].nunique() == 1
    if "token_share" in table:
        is_same &= table.groupby("position")["token_share"].min() == 1
    tokens = table.drop_duplicates("position").set_index("position")["token"]
    texts = []
    for position in positions:
        has_token = is_same.get(position, False)
        token = f"{escape(truncated(visible(tokens[position]), TICK_LENGTH))} " if has_token else ""
        texts.append(f"{token}{number(position, 'd')}")
    return {"tickvals": positions, "ticktext": texts, "tickangle": -90, "tickfont_size": 10}


def _trace_subtitle(panels: list[pd.DataFrame], n_layers: int, n_positions: int, *, are_means: bool) -> str:
    layers = counted([n_layers], "layer")
    if not are_means:
        return f"{counted([n_positions], 'token')}, {layers}"
    averaged = [rows for rows in panels if not rows["difference"].any()]
    n = pd.concat(averaged or panels)["n"]
    each = " per panel" if len(averaged or panels) > 1 else ""
    fewer = "; fewer where texts have ended, see n in the hover" if n.min() < n.max() else ""
    dots = "<br>dots: the 95% interval excludes zero, as in 1 cell of 20 by chance"
    has_dots = any(rows["difference"].any() for rows in panels)
    return f"mean of {counted(n, 'prompt')}{each}, {layers}{fewer}{dots * has_dots}"
