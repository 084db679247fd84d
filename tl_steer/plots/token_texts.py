"""Coloured text: tokens with their projections as background, as HTML."""

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pandas as pd
from plotly.colors import sample_colorscale

from .._util.characters import without_controls
from .._util.html_output import Html, fragment
from .._util.token_html import (
    SCALE_SCRIPT,
    SCALE_STYLE,
    STEPS,
    TIP,
    TOKEN_SCRIPT,
    TOKEN_STYLE,
    ends_line,
    running_text,
    token_line,
    token_span,
)
from .._util.validation import checked
from .format import escape, level, number, prompt_labels, rounded, shortened
from .panels import figure_table
from .style import DIVERGING, DIVERGING_ON_BLACK, colour_scale, ink_on

LIMIT = 0.99  # quantile of |value| at the end of the scale
MAX_PROMPTS, MAX_TEXTS = 30, 6
NO_TOKEN, BREAK = '<span class="tls-name"></span>', '<span class="tls-break"></span>'
HEADING = 160  # characters of a prompt


@dataclass(frozen=True)
class Scale:
    """A quantity, and the value at the end of its colours."""

    name: str
    limit: float

    def step(self, value: float | None) -> str:
        """The colour of a value, from −STEPS to STEPS; "" if it is missing."""
        if value is None:
            return ""
        return str(math.floor(max(-1.0, min(1.0, value / self.limit)) * STEPS + 0.5))


@dataclass(frozen=True)
class Token:
    """A token of one of the texts; `row` numbers the texts, `values` are per layer."""

    text: str
    token_id: str
    position: int
    name: str
    row: int
    scale: Scale
    values: list[float | None]


@checked
def tokens(
    table: pd.DataFrame,
    *,
    value: Literal["cosine", "projection"] = "cosine",
    facet: str | None = None,
    layer: int | None = None,
) -> Html:
    """Texts whose tokens have their projection as background, with a slider for the layer.

    Args:
        table: from `analysis.traces` or `trace_difference`, or several of them in one (`pandas.concat`).
        value: "projection" is in the residual stream's units.
        facet: a column whose values distinguish several texts of one prompt, such as steered and unsteered.
            They are below each other, equal positions at the same x; tokens that differ from the first
            text's are underlined.
        layer: shown first; by default the middle one.

    Returns:
        `Html`, displayed in notebooks. `.save(path)` writes a page, `.write_image(path)` a PNG of the layer
        shown first.

    Raises:
        ValueError: the table lacks the layer, has more than 30 prompts or 6 texts of one prompt, or has
            several rows for a token at a layer.

    All layers and texts share one colour scale, centred on zero; differences have their own. It ends at the
    99% quantile of |value| over all tokens but the first of each text, whose norm is often a hundred times
    larger; values beyond the ends have their colour. A line is between the prompt and the new tokens.
    """
    table = _validated_table(table, facet)
    layers = sorted(table["layer"].unique().tolist())
    if layer is not None and layer not in layers:
        known = ", ".join(map(str, layers))
        raise ValueError(f"plots.tokens: there is no layer {layer}; the table has the layers {known}.")
    layer = layers[len(layers) // 2] if layer is None else layer
    scales = {
        flag: Scale(f"difference in {value}" if flag else value, _limit(rows, value))
        for flag, rows in table.groupby("difference")
    }
    texts = _texts(table, layers, value, scales)
    groups, index = {heading: _columns(each) for heading, each in texts.items()}, layers.index(layer)
    ordered = [token for columns in groups.values() for column in columns for token in column if token]
    title = f"{'Cosine with' if value == 'cosine' else 'Projection on'} the direction, token by token"
    controls = f'<div class="tls-controls">{_slider(layers, index)}{_legend(scales.values())}</div>'
    content = "".join(_group(heading, columns, index) for heading, columns in groups.items())
    content = f'<p class="tls-title">{title}</p>{controls}{content}{TIP}'
    return fragment(
        content,
        title=title,
        style=TOKEN_STYLE + SCALE_STYLE,
        script=f"const data = {_data(ordered, layers, list(scales.values()))};\n{TOKEN_SCRIPT}{SCALE_SCRIPT}",
        colours=_step_colours(),
    )


def _validated_table(table: pd.DataFrame, facet: str | None) -> pd.DataFrame:
    """The table with `difference`, and the name of each row's text in `text_name`."""
    columns = ("prompt_id", "prompt", "layer", "position", "token_id", "token", "cosine", "projection")
    table = figure_table(table, "tokens", *columns, factors=[facet], producer="traces")
    difference = table["difference"].eq(True) if "difference" in table.columns else False
    table = table.assign(difference=difference, text_name="" if facet is None else table[facet].map(level))
    if (count := table["prompt_id"].nunique()) > MAX_PROMPTS:
        raise ValueError(f"plots.tokens: {count} prompts, at most {MAX_PROMPTS} can be read. Select some.")
    if (count := table.groupby("prompt_id")["text_name"].nunique().max()) > MAX_TEXTS:
        raise ValueError(
            f"plots.tokens: {facet!r} has {count} values for one prompt, at most {MAX_TEXTS}. Select some."
        )
    if table.duplicated(["prompt_id", "text_name", "layer", "position"]).any():
        raise ValueError(
            "plots.tokens: several rows have the same prompt, layer and position: name the column that "
            "distinguishes them with facet=…."
        )
    return table


def _limit(table: pd.DataFrame, value: str) -> float:
    """The end of a scale: see `tokens`."""
    first = table.groupby(["prompt_id", "text_name"])["position"].transform("min")
    sizes = table[value].abs()
    later = sizes[table["position"] > first].dropna()
    limit = float((later if len(later) else sizes).quantile(LIMIT))
    return limit if limit > 0 else 1.0


def _texts(
    table: pd.DataFrame, layers: Sequence[int], value: str, scales: dict[bool, Scale]
) -> dict[str, list[list[Token]]]:
    """The texts of each prompt, by its heading."""
    groups: dict[str, list[list[Token]]] = {}
    for row, ((prompt, name), rows) in enumerate(table.groupby(["prompt_id", "text_name"], sort=False)):
        heading = _heading(prompt, rows)
        values = rows.pivot(index="position", columns="layer", values=value).reindex(columns=layers)
        labels = rows.drop_duplicates("position").set_index("position").sort_index()
        groups.setdefault(heading, []).append(
            [
                Token(
                    str(token["token"]),
                    number(token["token_id"], ".0f"),
                    position,
                    name,
                    row,
                    scales[token["difference"]],
                    rounded(values.loc[position]),
                )
                for position, token in labels.to_dict("index").items()
            ]
        )
    return groups


def _heading(prompt: Any, rows: pd.DataFrame) -> str:
    """The prompt's number and message; the prompt itself where none of its tokens are shown."""
    label = str(prompt_labels(rows).iloc[0])
    has_prompt = (rows["position"] < 0).any() and label == str(rows["prompt"].iloc[0])
    return f"prompt {prompt}" if has_prompt else f"prompt {prompt}: {shortened(label, HEADING)}"


def _columns(texts: list[list[Token]]) -> list[list[Token | None]]:
    """Per position, the tokens of the texts; None where a text has none."""
    by_position = [{token.position: token for token in tokens} for tokens in texts]
    positions = sorted(set().union(*by_position))
    return [[tokens.get(position) for tokens in by_position] for position in positions]


def _group(heading: str, columns: list[list[Token | None]], index: int) -> str:
    """The texts of a prompt below its heading, coloured at a layer."""
    name = next(token.name for token in columns[0] if token)
    if len(columns[0]) > 1:
        content = _aligned(columns, index)
    else:
        heading = f"{heading} ({name})" if name else heading
        content = _running([token for (token,) in columns if token], index)
    return f'<p class="tls-heading">{escape(heading)}</p>{content}'


def _running(tokens: list[Token], index: int) -> str:
    new = _first_new(token.position for token in tokens)
    spans = [_span(token, index, ["tls-new"] * (token.position == new)) for token in tokens]
    return running_text(spans, [token.text for token in tokens])


def _aligned(columns: list[list[Token | None]], index: int) -> str:
    """Texts below each other, a column per position; columns are wrapped together."""
    known = [[token for token in column if token] for column in columns]
    names = {token.row: token.name for column in known for token in column}
    labels = "".join(f'<span class="tls-name">{escape(name)}</span>' for _, name in sorted(names.items()))
    new = _first_new(token.position for column in known for token in column)
    parts = [f"<span>{labels}</span>"]
    for column, present in zip(columns, known, strict=True):
        first = present[0].token_id
        spans = [
            _span(token, index, ["tls-differs"] * (token.token_id != first)) if token else NO_TOKEN
            for token in column
        ]
        is_new = present[0].position == new
        parts += [BREAK, f"<span>{labels}</span>"] * is_new
        opening = '<span class="tls-new">' if is_new else "<span>"
        parts.append(f"{opening}{''.join(spans)}</span>")
        parts += [BREAK] * all(ends_line(token.text) for token in present)
    return f'<div class="tls-columns">{"".join(parts)}</div>'


def _first_new(positions: Iterable[int]) -> int | None:
    """The first position from 0 on, if there are earlier ones."""
    positions = sorted(set(positions))
    new = [position for position in positions if position >= 0]
    return new[0] if new and positions[0] < 0 else None


def _span(token: Token, index: int, classes: list[str]) -> str:
    value = token.values[index]
    name = f", {without_controls(token.name)}" if token.name else ""
    details = (
        token_line(token.text, token.token_id),
        f"position {number(token.position, 'd')}{name}",
        f"{token.scale.name} {number(value)}",
    )
    step = token.scale.step(value)
    return token_span(token.text, details, step=step, row=token.row, classes=" ".join(classes))


def _slider(layers: list[int], index: int) -> str:
    """The slider, or the name of the only layer."""
    output = f"<output>{layers[index]}</output>"
    if len(layers) == 1:
        return f'<span class="tls-layer">layer {output}</span>'
    slider = (
        f'<input type="range" min="0" max="{len(layers) - 1}" step="1" value="{index}" '
        f'aria-valuetext="layer {layers[index]}">'
    )
    return f'<label class="tls-layer">layer {output}{slider}</label>'


def _legend(scales: Iterable[Scale]) -> str:
    """The colours of each scale between the numbers at its ends."""
    steps = "".join(f'<span data-step="{step}"></span>' for step in range(-STEPS, STEPS + 1))
    return "".join(
        f'<div class="tls-scale">{scale.name} <span>≤ {number(-scale.limit)}</span>'
        f'<span class="tls-steps" aria-hidden="true">{steps}</span><span>≥ {number(scale.limit)}</span></div>'
        for scale in scales
    )


def _data(ordered: list[Token], layers: list[int], scales: list[Scale]) -> str:
    """What the script needs, as JSON; tokens in the order of the document."""
    values = [[token.values[index] for token in ordered] for index in range(len(layers))]
    ends = [[scale.name, scale.limit] for scale in scales]
    data = {
        "layers": layers,
        "scales": ends,
        "scale": [scales.index(token.scale) for token in ordered],
        "values": values,
    }
    return json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")


def _step_colours() -> dict[str, str]:
    """Background and legible ink of each step, for light and dark pages."""
    shares = [rank / (2 * STEPS) for rank in range(2 * STEPS + 1)]
    rules = {}
    for scheme, colours in (("light", DIVERGING), ("dark", DIVERGING_ON_BLACK)):
        sampled = sample_colorscale(colour_scale(colours), shares)
        named = zip(range(-STEPS, STEPS + 1), sampled, strict=True)
        rules[scheme] = " ".join(f"--step{step}: {each}; --on{step}: {ink_on(each)};" for step, each in named)
    return rules
