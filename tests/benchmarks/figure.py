"""The figure of growth, as a PNG."""

from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from tl_steer.plots.template import BLUE, GREEN, ORANGE, styled

from .things import PLAIN_EVERY, SHARED_EVERY, SHARED_LAST, THINGS, Study

LOOKS = {
    SHARED_LAST: (GREEN, "diamond", "solid"),
    SHARED_EVERY: (BLUE, "circle", "solid"),
    PLAIN_EVERY: (ORANGE, "square-open", "dot"),
}
SECONDS = [step * 10.0**power for power in range(-2, 4) for step in (1, 2, 5)]


def growth_figure(points: list[dict[str, Any]]) -> go.Figure:
    """Seconds a sweep against what grows, a panel each, both axes logarithmic.

    Args:
        points: with `thing`, `line`, `x` and `seconds`.
    """
    figure = make_subplots(
        rows=2,
        cols=2,
        shared_yaxes="all",
        horizontal_spacing=0.06,
        vertical_spacing=0.2,
        subplot_titles=[thing.title for thing in THINGS],
    )
    for place, thing in enumerate(THINGS):
        mine = [point for point in points if point["thing"] == thing.name]
        where = {"row": place // 2 + 1, "col": place % 2 + 1}
        for line, (colour, symbol, dash) in LOOKS.items():
            figure.add_trace(curve(mine, line, colour, symbol, dash, first=place == 0), **where)
        places = sorted({point["x"] for point in mine})
        texts = [f"{place:.0f}" for place in places]
        figure.update_xaxes(type="log", tickvals=places, ticktext=texts, **where)
    figure.update_yaxes(type="log", tickvals=SECONDS, ticktext=[f"{tick:g}" for tick in SECONDS])
    figure.update_annotations(font_size=13)  # the panels' titles
    figure.update_yaxes(title_text="seconds a sweep", col=1)
    usual = Study()
    return styled(
        figure,
        "What a choice sweep costs as one thing grows",
        f"Otherwise {usual.layers} layers, {usual.multipliers} multipliers, {usual.prompts} prompts of one "
        "claim (4 prompts where length grows); both axes logarithmic",
        height=620,
    ).update_layout(
        margin={"t": 100, "b": 90}, legend={"orientation": "h", "x": 0.5, "xanchor": "center", "y": -0.14}
    )


def curve(
    points: list[dict[str, Any]], line: str, colour: str, symbol: str, dash: str, *, first: bool
) -> go.Scatter:
    mine = sorted((point for point in points if point["line"] == line), key=lambda point: point["x"])
    return go.Scatter(
        x=[point["x"] for point in mine],
        y=[point["seconds"] for point in mine],
        name=line,
        legendgroup=line,
        showlegend=first,
        mode="lines+markers",
        line={"color": colour, "dash": dash},
        marker={"symbol": symbol, "size": 8},
    )


def write_figure(points: list[dict[str, Any]], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    growth_figure(points).write_image(path, scale=2)
