"""Heat maps of projections, token by token."""

from typing import Any, Literal

import pandas as pd
import plotly.graph_objects as go

from .._util.characters import visible
from .._util.validation import checked
from .format import (
    axis_title,
    counted,
    escape,
    hover,
    interval,
    level,
    number,
    prompt_labels,
    truncated,
    wrapped,
)
from .heat_maps import heat_map, stacked_panels
from .marks import colour_bar, curve, layer_step, layer_ticks
from .panels import figure_table
from .style import DIVERGING, INK, Style, colour_scale, styled

TICK_LENGTH = 15  # characters of a token below the axis
PANEL, PANELS_TOP, PANELS_BOTTOM, GAP = 250, 100, 130, 34  # pixels
MAX_PANELS, MAX_NAMED_POSITIONS, MAX_NAMED_LAYERS = 6, 60, 12


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
