"""Figure of the cost of a sweep as one size grows."""

from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from tl_steer.plots.style import BLUE, GREEN, ORANGE, PURPLE, styled

from .jobs import GROWTHS, LONG_PROMPTS, PLAIN_EVERY, SHARED_EVERY, SHARED_LAST, STRONG_EVERY, Study

STYLES = {
    SHARED_LAST: (GREEN, "diamond", "solid"),
    SHARED_EVERY: (BLUE, "circle", "solid"),
    STRONG_EVERY: (PURPLE, "triangle-up-open", "dash"),
    PLAIN_EVERY: (ORANGE, "square-open", "dot"),
}
SECONDS = [step * 10.0**power for power in range(-2, 4) for step in (1, 2, 5)]


def growth_figure(points: list[dict[str, Any]]) -> go.Figure:
    """Seconds per sweep against each size, one panel per size, logarithmic axes.

    Args:
        points: with `growth`, `line`, `x` and `seconds`.
    """
    figure = make_subplots(
        rows=2,
        cols=2,
        shared_yaxes="all",
        horizontal_spacing=0.06,
        vertical_spacing=0.2,
        subplot_titles=[growth.title for growth in GROWTHS],
    )
    for index, growth in enumerate(GROWTHS):
        panel = {"row": index // 2 + 1, "col": index % 2 + 1}
        panel_points = [point for point in points if point["growth"] == growth.name]
        for line in STYLES:
            figure.add_trace(curve(panel_points, line, showlegend=index == 0), **panel)
        ticks = sorted({point["x"] for point in panel_points})
        figure.update_xaxes(type="log", tickvals=ticks, ticktext=[f"{x:.0f}" for x in ticks], **panel)
    figure.update_yaxes(type="log", tickvals=SECONDS, ticktext=[f"{value:g}" for value in SECONDS])
    figure.update_annotations(font_size=13)  # the panels' titles
    figure.update_yaxes(title_text="seconds per sweep", col=1)
    usual = Study()
    return styled(
        figure,
        "Cost of a choice sweep as one size grows",
        f"Otherwise {usual.layers} layers, {usual.multipliers} multipliers, {usual.prompts} prompts of one "
        f"claim ({LONG_PROMPTS} prompts where length grows); both axes logarithmic",
        height=620,
    ).update_layout(
        margin={"t": 100, "b": 90}, legend={"orientation": "h", "x": 0.5, "xanchor": "center", "y": -0.14}
    )


def curve(points: list[dict[str, Any]], line: str, *, showlegend: bool) -> go.Scatter:
    colour, symbol, dash = STYLES[line]
    points = sorted((point for point in points if point["line"] == line), key=lambda point: point["x"])
    return go.Scatter(
        x=[point["x"] for point in points],
        y=[point["seconds"] for point in points],
        name=line,
        legendgroup=line,
        showlegend=showlegend,
        mode="lines+markers",
        line={"color": colour, "dash": dash},
        marker={"symbol": symbol, "size": 8},
    )


def write_figure(points: list[dict[str, Any]], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    growth_figure(points).write_image(path, scale=2)
