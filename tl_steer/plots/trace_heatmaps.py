"""Projections on a direction, layer by position, while a model reads the end of a prompt and writes on."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from .._util.validation import checked
from .labels import counted, escape, interval, level, number, prompt_labels, require_columns, visible, wrapped
from .marks import layer_step, layer_ticks
from .template import DIVERGING, INK, spaced, styled

COLUMNS = ("layer", "position", "token")
MAKER = "analysis.traces(activations, vectors) or analysis.mean_traces(table, by=…)"
NAMES = {"cosine": "cosine", "projection": "projection<br>(stream units)"}
MOST_PANELS = 6
PANEL, GAP = 250, 34  # pixels of each panel, and between two
ABOVE, BELOW = 100, 130  # pixels above the panels, and below them
MOST_NAMED = 60  # positions that can each be named
LONGEST = 14  # characters of a token below the axis


@checked
def traces(table: pd.DataFrame, *, value: str = "cosine", facet: str | None = None) -> go.Figure:
    """Heatmaps of projections: layers upwards, positions from left to right, a panel for each kind.

    Args:
        table: what `analysis.traces` or `trace_difference` makes, of one prompt a panel; or what
            `mean_traces` makes.
        value: "cosine", or "projection" in the stream's units.
        facet: the column whose values get a panel each, below one another; of means, by default their factor.

    Raises:
        ValueError: no rows, columns are missing, an unknown value, several prompts in a panel, or too many
            panels.

    All panels share one scale of colours, centred on zero, but differences have their own. The line stands
    between the prompt's last token and the first new one. A token is named below the axis where it is the
    same in all panels and prompts; the others are in the hover. A dot marks a mean difference whose interval
    leaves zero out: where nothing differs, so does one cell in twenty.
    """
    if value not in NAMES:
        raise ValueError(f"value={value!r} is unknown: use 'cosine' or 'projection'.")
    require_columns(table, [*COLUMNS, value], figure="traces", maker=MAKER, factors=[facet])
    are_means = "token_share" in table.columns
    is_difference = table["difference"].eq(True) if "difference" in table.columns else False
    panels = _panels(
        table.assign(difference=is_difference), facet or (table.columns[0] if are_means else None)
    )
    grid = _Grid.of(table)
    figure = _empty(panels)
    for row, (name, rows) in enumerate(panels.items(), start=1):
        figure.add_trace(_heatmap(rows, name, value, grid), row=row, col=1)
        if are_means and rows["difference"].any():
            figure.add_trace(_dots(rows, value), row=row, col=1)
    figure.update_layout(_colours(figure, panels, value))
    _label(figure, table, grid)
    above = ABOVE if len(panels) > 1 else ABOVE - GAP + 10
    height = above + BELOW + PANEL * len(panels) + GAP * (len(panels) - 1)
    title = {"cosine": "Cosine with the direction", "projection": "Projection on the direction"}[value]
    styled(figure, f"{title}, token by token", _subtitle(panels, grid, are_means), height=height)
    return figure.update_layout(margin={"t": above, "b": BELOW})


@dataclass(frozen=True)
class _Grid:
    """The layers there are, and every position from the first to the last."""

    layers: list[int]
    positions: list[int]

    @classmethod
    def of(cls, table: pd.DataFrame) -> "_Grid":
        first, last = int(table["position"].min()), int(table["position"].max())
        return cls(sorted(table["layer"].unique().tolist()), list(range(first, last + 1)))

    @property
    def names(self) -> list[str]:
        """Layers as categories: those that were asked for lie together, however far apart they are."""
        return [str(layer) for layer in self.layers]

    def spread(self, rows: pd.DataFrame, cells: Any) -> np.ndarray:
        """Something of each row as "layer position", missing where there is no row."""
        wide = rows.assign(_cell=cells).pivot(index="layer", columns="position", values="_cell")
        return wide.reindex(index=self.layers, columns=self.positions).to_numpy()


def _panels(table: pd.DataFrame, facet: str | None) -> dict[str, pd.DataFrame]:
    """In the order of the table, differences last."""
    ordered = table.sort_values("difference", kind="stable")
    names = pd.Series("", ordered.index) if facet is None else ordered[facet].map(level)
    panels = {name: ordered[names == name] for name in names.unique()}
    if len(panels) > MOST_PANELS:
        raise ValueError(
            f"plots.traces: {facet!r} has {len(panels)} values, at most {MOST_PANELS} panels can be read: "
            "select some first."
        )
    for name, rows in panels.items():
        if rows.duplicated(["layer", "position"]).any():
            where = f" where {facet} is {name}" if facet else ""
            raise ValueError(
                f"plots.traces: several rows share their layer and position{where}: take their mean with "
                "mean_traces(table, by=…), select one prompt, or give facet=… (such as 'prompt_id')."
            )
    return panels


def _empty(panels: dict[str, pd.DataFrame]) -> go.Figure:
    figure = make_subplots(
        rows=len(panels),
        cols=1,
        shared_xaxes=True,
        vertical_spacing=GAP / (PANEL * len(panels) + GAP * (len(panels) - 1)),
        subplot_titles=[escape(name) for name in panels] if len(panels) > 1 else None,
    )
    return figure.update_annotations(font_size=13)  # the panels' titles


def _heatmap(rows: pd.DataFrame, name: str, value: str, grid: _Grid) -> go.Heatmap:
    prompts = prompt_labels(rows)[~rows["prompt"].duplicated()].tolist() if "prompt" in rows else []
    below = f"<br>{wrapped(prompts[0])}" if len(prompts) == 1 else ""
    return go.Heatmap(
        x=grid.positions,
        y=grid.names,
        z=grid.spread(rows, rows[value]),
        text=grid.spread(rows, [_hover(row, name, value) for row in rows.to_dict("records")]),
        hovertemplate=f"%{{text}}{below}<extra></extra>",
        hoverongaps=False,
        coloraxis="coloraxis2" if rows["difference"].any() else "coloraxis",
        name=escape(name),
        xgap=0.5,
        ygap=0.5,
    )


def _dots(rows: pd.DataFrame, value: str) -> go.Scatter:
    """A dot on each difference whose interval leaves zero out."""
    clear = rows[(rows[f"{value}_low"] > 0) | (rows[f"{value}_high"] < 0)]
    return go.Scatter(
        x=clear["position"],
        y=clear["layer"].astype(str),
        mode="markers",
        marker={"size": 4, "color": INK, "line": {"width": 0.7, "color": "white"}},
        hoverinfo="skip",
        showlegend=False,
    )


def _hover(row: dict[str, Any], name: str, value: str) -> str:
    where = f"<b>layer {row['layer']}, position {_place(row['position'])}</b>"
    what = f"difference in {value}" if row["difference"] else value
    token = f"token {escape(visible(row['token']))}"
    kind = escape(name)
    numbers = number(row[value])
    if "token_share" in row:
        share = row["token_share"]
        token = token if share == 1 else f"commonest {token} ({share:.0%})"
        kind = f"{kind}, n = {row['n']}"
        numbers = interval(*(row[f"{value}{end}"] for end in ("", "_low", "_high")))
    return "<br>".join(part for part in (where, kind, token, f"{what} {numbers}") if part)


def _colours(figure: go.Figure, panels: dict[str, pd.DataFrame], value: str) -> dict[str, Any]:
    """A scale for what is no difference, and one for what is, each beside its panels."""
    domains = [axis.domain or (0, 1) for axis in figure.select_yaxes()]
    found = {}
    for axis, wanted in (("coloraxis", False), ("coloraxis2", True)):
        places = [place for place, rows in enumerate(panels.values()) if rows["difference"].any() == wanted]
        if places:
            shown = pd.concat([list(panels.values())[place][value] for place in places])
            low, high = domains[places[-1]][0], domains[places[0]][1]
            found[axis] = _scale(shown, f"difference<br>in {value}" if wanted else NAMES[value], low, high)
    return found


def _scale(values: pd.Series, title: str, low: float, high: float) -> dict[str, Any]:
    limit = float(values.abs().max()) or 1.0
    return {
        "colorscale": spaced(DIVERGING),
        "cmin": -limit,
        "cmax": limit,
        "colorbar": {
            "title": {"text": title, "side": "top", "font": {"size": 12}},
            "thickness": 14,
            "y": (low + high) / 2,
            "len": high - low,
            "lenmode": "fraction",
            "yanchor": "middle",
            "outlinewidth": 0,
        },
    }


def _label(figure: go.Figure, table: pd.DataFrame, grid: _Grid) -> None:
    """Ticks, titles, and the line between the prompt and what is new."""
    named = grid.layers if len(grid.layers) <= 12 else layer_ticks(grid.layers, 12)
    figure.update_yaxes(
        type="category",
        categoryarray=grid.names,
        range=[-0.5, len(grid.names) - 0.5],
        tickvals=list(map(str, named)),
        title_text="layer",
        showgrid=False,
    )
    ends = [grid.positions[0] - 0.5, grid.positions[-1] + 0.5]
    figure.update_xaxes(range=ends, zeroline=False, showgrid=False, **_ticks(table, grid))
    title = "position relative to the end of the prompt (0: the first new token)"
    figure.update_xaxes(title_text=title, row=len(list(figure.select_yaxes())))
    if grid.positions[0] < 0 <= grid.positions[-1]:
        figure.add_vline(x=-0.5, line={"color": INK, "width": 1.5})


def _ticks(table: pd.DataFrame, grid: _Grid) -> dict[str, Any]:
    """Every position with its token, where there is one for all; of many positions, some numbers."""
    if len(grid.positions) > MOST_NAMED:
        step = layer_step(grid.positions)
        return {"tickvals": [place for place in grid.positions if place % step == 0]}
    same = table.groupby("position")["token"].nunique() == 1
    if "token_share" in table:
        same &= table.groupby("position")["token_share"].min() == 1
    tokens = table.drop_duplicates("position").set_index("position")["token"]
    texts = [
        f"{_short(tokens[place])} {_place(place)}" if same.get(place, False) else _place(place)
        for place in grid.positions
    ]
    return {"tickvals": grid.positions, "ticktext": texts, "tickangle": -90, "tickfont_size": 10}


def _short(token: str) -> str:
    text = visible(token)
    return escape(text if len(text) <= LONGEST else f"{text[:LONGEST]}…")


def _place(position: int) -> str:
    return f"{position}".replace("-", "−")


def _subtitle(panels: dict[str, pd.DataFrame], grid: _Grid, are_means: bool) -> str:
    layers = counted([len(grid.layers)], "layer")
    if not are_means:
        return f"{counted([len(grid.positions)], 'token')}, {layers}"
    kinds = [rows for rows in panels.values() if not rows["difference"].any()] or list(panels.values())
    n = pd.concat(kinds)["n"]
    each = " a panel" if len(kinds) > 1 else ""
    fewer = "; fewer where texts have ended, see n in the hover" if n.min() < n.max() else ""
    dots = any(rows["difference"].any() for rows in panels.values())
    told = "<br>dots: the 95% interval leaves zero out, as it does in 1 cell of 20 by chance" if dots else ""
    return f"mean of {counted(n, 'prompt')}{each}, {layers}{fewer}{told}"
