"""How the slopes of single prompts are distributed, at any layer, and how many have the wrong sign."""

from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from jaxtyping import Float
from plotly.subplots import make_subplots

from .._util.validation import checked
from .labels import (
    controls_text,
    counted,
    escape,
    level,
    levels,
    number,
    prompt_labels,
    require_columns,
    start_of,
    target_of,
    wrapped,
)
from .marks import layer_slider, rounded
from .template import CONTROL, INK, level_colours, styled, translucent

COLUMNS = (
    "vector", "control", "operation", "hook", "layers", "toward", "prompt_id", "prompt",
    "multipliers", "slope", "r_squared", "slope_per_dose",
)  # fmt: skip
UNITS = {"slope": "nats per unit of multiplier", "slope_per_dose": "nats per unit of dose"}
MOST_BINS = 40
MOST_FACETS = 4
CONTROLS = "controls"


@checked
def slopes(
    table: pd.DataFrame, *, value: str = "slope", layer: int | str | None = None, facet: str | None = None
) -> go.Figure:
    """Histograms of the prompts' slopes, controls in grey, a slider over layers, and the prompts below them.

    Args:
        table: what `evaluation.prompt_slopes` makes.
        value: "slope" or "slope_per_dose".
        layer: the layer, or layers such as "17+31", shown at first; by default the middle one.
        facet: a factor of the prompts; each of its values gets a panel, on common axes.

    Raises:
        ValueError: no rows, columns are missing, an unknown value or layer, no vector but controls, too many
            values to tell apart, or layers of a vector that differ in their prompts.

    Above each panel stands how many prompts the vector moves the wrong way: left of the line at 0. Bars are
    shares, since there are more controls than vectors. The strip below shows each prompt as a line; its text
    is in the hover.
    """
    maker = "evaluation.prompt_slopes(sweep_table)"
    require_columns(table, COLUMNS, figure="slopes", maker=maker, factors=[facet])
    if value not in UNITS:
        raise ValueError(f"value={value!r} is unknown: use one of {', '.join(UNITS)}.")
    table = table.sort_values("prompt_id", kind="stable", ignore_index=True)
    groups = _groups(table)
    panels = {name: rows.assign(group=groups[rows.index]) for name, rows in _panels(table, facet).items()}
    table = table.assign(group=groups)
    _require_same_prompts(table)
    layers = sorted(
        table["layers"].unique(), key=lambda name: (not name.isdigit(), *map(int, name.split("+")))
    )
    start = start_of(layers, layer)
    colours = level_colours(name for name in dict.fromkeys(table["group"]) if name != CONTROLS)
    # behind the vectors, and after them in the words
    shades = {CONTROLS: CONTROL, **colours} if (table["group"] == CONTROLS).any() else colours
    figure = _empty(panels, len(colours))
    for column, rows in enumerate(panels.values(), start=1):
        for name, colour in shades.items():
            figure.add_trace(_bars(name, colour, first=column == 1), row=1, col=column)
        for name, colour in colours.items():
            figure.add_trace(_strip(rows[rows["group"] == name], colour), row=2, col=column)
    changes = [_change(panels, shades, colours, value, name) for name in layers]
    data, words = changes[start]
    for place, trace in enumerate(figure.data):
        trace.update({key: each[place] for key, each in data.items() if each[place] is not None})
    for place, note in enumerate(figure.layout.annotations):
        note.text = words[f"annotations[{place}].text"]
    figure.add_vline(x=0, line={"color": INK, "width": 1, "dash": "dash"})
    figure.update_xaxes(title_text=f"slope ({UNITS[value]})", row=2)
    figure.update_layout(
        barmode="overlay", bargap=0, legend_title_text="vector", sliders=layer_slider(layers, changes, start)
    )
    figure.update_layout(margin_t=84 + 16 * (1 + len(shades) + (facet is not None)))
    return styled(figure, "How far each prompt is moved", _subtitle(table), height=560)


def _groups(table: pd.DataFrame) -> pd.Series:
    """What has a colour: each vector (and operation and hook, where there are several), and all controls."""
    is_control = table["control"].astype(bool)
    if is_control.all():
        raise ValueError("plots.slopes: the table has controls alone; give those of a vector too.")
    told = ["vector", *(name for name in ("operation", "hook") if table[name].nunique() > 1)]
    return table[told].agg(", ".join, axis=1).mask(is_control, CONTROLS)


def _require_same_prompts(table: pd.DataFrame) -> None:
    """A slider would put one prompt's text at another's point."""
    for name, rows in table[table["group"] != CONTROLS].groupby("group"):
        sizes = rows.groupby("prompt_id")["layers"].agg(["size", "nunique"])
        if not (sizes == rows["layers"].nunique()).all(axis=None):
            raise ValueError(
                f"plots.slopes: every layer of {name!r} needs each prompt once; select whole layers, of one "
                "table."
            )


def _panels(table: pd.DataFrame, facet: str | None) -> dict[str, pd.DataFrame]:
    if facet is None:
        return {"": table}
    names = levels(table[facet])
    if len(names) > MOST_FACETS:
        raise ValueError(
            f"{facet!r} has {len(names)} values: at most {MOST_FACETS} panels fit beside each other."
        )
    return {escape(f"{facet}: {name}"): table[table[facet].map(level) == name] for name in names}


def _empty(panels: dict[str, pd.DataFrame], strips: int) -> go.Figure:
    figure = make_subplots(
        rows=2,
        cols=len(panels),
        row_heights=[0.86, 0.14],
        shared_xaxes=True,
        shared_yaxes=True,
        vertical_spacing=0.03,
        horizontal_spacing=0.04,
        column_titles=[title or " " for title in panels],
    )
    figure.update_xaxes(matches="x", zeroline=False)
    figure.update_annotations(font_size=12)  # the panels' titles
    figure.update_yaxes(title_text="share of prompts", row=1, col=1)
    figure.update_yaxes(tickformat=".0%", rangemode="tozero", row=1)
    figure.update_yaxes(visible=False, fixedrange=True, range=[strips - 0.4, -0.6], row=2)
    return figure


def _bars(name: str, colour: str, *, first: bool) -> go.Bar:
    opacity = 0.3 if name == CONTROLS else 0.55
    return go.Bar(
        name=escape(name),
        legendgroup=name,
        showlegend=first,
        legendrank=900 if name == CONTROLS else 500,
        marker={"color": translucent(colour, opacity), "line": {"color": colour, "width": 1}},
        textposition="none",
        hovertemplate="%{text}<extra></extra>",
    )


def _strip(rows: pd.DataFrame, colour: str) -> go.Scatter:
    first = rows.drop_duplicates("prompt_id")
    return go.Scatter(
        mode="markers",
        showlegend=False,
        marker={"symbol": "line-ns-open", "size": 10, "color": colour, "line": {"width": 1.2}},
        hovertext=[wrapped(prompt) for prompt in prompt_labels(first)],
        hovertemplate="%{hovertext}<br><b>slope %{x:.4g}</b>, r² %{customdata:.2f}<extra></extra>",
    )


def _change(
    panels: dict[str, pd.DataFrame], shades: dict[str, str], colours: dict[str, str], value: str, layers: str
) -> list[dict[str, Any]]:
    """What the slider changes: bars, prompts, and the words above the panels."""
    here = {title: rows[rows["layers"] == layers] for title, rows in panels.items()}
    edges = _edges(pd.concat(list(here.values()))[value])
    data: dict[str, list[Any]] = {key: [] for key in ("x", "y", "width", "text", "customdata")}
    words = {}
    for place, (title, rows) in enumerate(here.items()):
        told = []
        for name in shades:
            known = rows.loc[rows["group"] == name, value].dropna().to_numpy(float)
            bars = _counted(known, edges, name)
            for key in data:
                data[key].append(bars.get(key))
            told.append(_wrong(known, name))
        for strip, name in enumerate(colours):
            mine = rows[rows["group"] == name]
            # None would take away what a trace has of its own
            points = {
                "x": rounded(mine[value]),
                "y": [strip] * len(mine),
                "customdata": rounded(mine["r_squared"]),
            }
            for key in data:
                data[key].append(points.get(key))
        behind = CONTROLS in shades
        lines = [
            *([f"<b>{title}</b>"] if title else []),
            "moved the wrong way:",
            *told[behind:],
            *told[:behind],
        ]
        words[f"annotations[{place}].text"] = "<br>".join(lines)
    return [data, words]


def _edges(values: pd.Series) -> Float[np.ndarray, " edge"]:
    """Bins of a round width, one of whose edges is 0, so that none holds both signs."""
    low, high = min(values.min(), 0.0), max(values.max(), 0.0)
    span = high - low
    if not span > 0:
        return np.array([-1.0, 0.0, 1.0])
    power = 10.0 ** np.floor(np.log10(span / MOST_BINS))
    width = next(step * power for step in (1, 2, 5, 10) if span <= MOST_BINS * step * power)
    return width * np.arange(np.floor(low / width), np.floor(high / width) + 2)


def _counted(values: Float[np.ndarray, " n"], edges: Float[np.ndarray, " edge"], name: str) -> dict[str, Any]:
    counts, _ = np.histogram(values, bins=edges)
    filled = np.flatnonzero(counts)
    middle, width = (edges[:-1] + edges[1:]) / 2, edges[1] - edges[0]
    hover = [
        f"{escape(name)}: {count} of {len(values)}<br>from {number(low)} to {number(high)}"
        for count, low, high in zip(counts[filled], edges[filled], edges[filled + 1], strict=True)
    ]
    return {
        "x": rounded(middle[filled]),
        "y": rounded(counts[filled] / max(len(values), 1)),
        "width": float(f"{width:.5g}"),
        "text": hover,
    }


def _wrong(values: Float[np.ndarray, " n"], name: str) -> str:
    count = int((values < 0).sum())
    share = f"{count / len(values):.0%}" if len(values) else "–"
    return f"{escape(name)} {share}" + ("" if name == CONTROLS else f" ({count} of {len(values)})")


def _subtitle(table: pd.DataFrame) -> str:
    is_control = table["control"].astype(bool)
    controls = table.loc[is_control, "vector"].nunique()
    prompts = counted([table["prompt_id"].nunique()], "prompt")
    target = target_of(table, figure="slopes")
    points = counted(table["multipliers"], "multiplier")
    return f"{prompts}, each a line over {points}; positive: toward {target}{controls_text(controls)}"
