"""Sensitivity against bias: does steering make the model better, or only readier to say one answer?"""

from typing import Any

import pandas as pd
import plotly.graph_objects as go

from .._util.validation import checked
from .cells import CELL, cell_hover, layer_places, require_cells
from .labels import counted, escape, interval, require_columns, signed, start_of
from .marks import layer_slider
from .template import CONTROL, GREEN, INK, SYMBOLS, multiplier_colours, styled, translucent

COLUMNS = (
    *CELL, "dose", "n_signal", "n_noise", "hit_rate", "false_alarm_rate",
    "d_prime", "d_prime_low", "d_prime_high", "criterion", "criterion_low", "criterion_high",
)  # fmt: skip


@checked
def signal_detection(table: pd.DataFrame, *, layer: int | str | None = None) -> go.Figure:
    """Path of d′ and criterion as the multiplier grows from negative through unsteered to positive.

    Args:
        table: what `evaluation.signal_detection` makes.
        layer: the layer, or set of layers ("17+31"), shown at first; by default the middle one.

    Raises:
        ValueError: no rows, columns are missing, an unknown layer, or rows that share a cell.

    Sideways is a change of bias, upwards of sensitivity, but a strong bias takes d′ toward 0 as well, since
    it makes all answers alike. The hover has the AUC, which a mere bias does not move, and the verdict. All
    layers have the same axes.

    Source of d′ and c: Macmillan & Creelman 2005, "Detection Theory", chapters 1 and 2.
    """
    maker = "evaluation.signal_detection(sweep_table)"
    require_columns(table, COLUMNS, figure="signal_detection", maker=maker)
    require_cells(table, None, figure="signal_detection")
    if table["d_prime"].isna().all():
        raise ValueError("plots.signal_detection: d′ is NaN in every row; it needs signal and noise prompts.")
    table = table.assign(n=table["n_signal"] + table["n_noise"])
    layers = list(layer_places(table[~table["control"].astype(bool)]))
    start = start_of(layers, layer)
    figure = go.Figure()
    owners: list[str | None] = []  # the layer each trace belongs to; None is always seen
    for name in layers:
        traces = [*_controls(table, name), *_paths(table, name)]
        figure.add_traces(traces)
        owners += [name] * len(traces)
    unsteered = _unsteered(table)
    figure.add_traces(unsteered)
    owners += [None] * len(unsteered)
    changes = [[{"visible": [owner in (None, name) for owner in owners]}] for name in layers]
    for trace, visible in zip(figure.data, changes[start][0]["visible"], strict=True):
        trace.visible = visible
    figure.update_xaxes(
        title_text="criterion c (negative: says the signal more often)", range=_reach(table, "criterion")
    )
    figure.update_yaxes(title_text="sensitivity d′", range=_reach(table, "d_prime"))
    figure.add_vline(x=0, layer="below", line={"color": INK, "width": 1, "dash": "dot"})
    figure.update_layout(sliders=layer_slider(layers, changes, start))
    counts = (
        f"{counted(table['n_signal'], 'signal prompt')}, {counted(table['n_noise'], 'noise prompt')} a point"
    )
    return styled(figure, "Sensitivity or bias?", f"{counts}; crosses: 95% intervals", height=560)


def _paths(table: pd.DataFrame, layers: str) -> list[go.Scatter]:
    real = table[~table["control"].astype(bool)]
    unsteered = real[real["operation"] == "none"]
    colours = multiplier_colours(real["multiplier"])
    lines = list(real.loc[real["operation"] != "none"].groupby(["vector", "operation", "hook"]).groups)
    found = []
    for place, key in enumerate(lines):
        matches = (real[["vector", "operation", "hook"]] == list(key)).all(axis=1)
        rows = real[matches & (real["layers"] == layers)]
        if rows.empty:
            continue
        scaled = rows["multiplier"].notna().any()
        path = pd.concat([rows, unsteered]) if scaled else rows
        found.append(
            _path(path.sort_values("multiplier"), _name(key, lines), colours, SYMBOLS[place % len(SYMBOLS)])
        )
    return found


def _path(path: pd.DataFrame, name: str, colours: dict[float, str], symbol: str) -> go.Scatter:
    shades = [colours.get(multiplier, GREEN) for multiplier in path["multiplier"]]
    # The unsteered point is drawn once, above all paths.
    sizes = [0 if operation == "none" else 10 for operation in path["operation"]]
    return go.Scatter(
        x=path["criterion"],
        y=path["d_prime"],
        error_x=_cross(path, "criterion"),
        error_y=_cross(path, "d_prime"),
        mode="lines+markers+text",
        name=name,
        line={"color": translucent(INK, 0.45), "width": 1.5},
        marker={
            "color": shades,
            "size": sizes,
            "symbol": symbol,
            "opacity": 1,
            "line": {"color": "white", "width": 1},
        },
        text=_labels(path),
        # in turn above and below, since neighbours lie close
        textposition=["top right" if place % 2 else "bottom right" for place in range(len(path))],
        textfont={"size": 11},
        hovertext=[_hover(row) for row in path.to_dict("records")],
        hoverinfo="text",
    )


def _labels(path: pd.DataFrame) -> list[str]:
    """Each point's multiplier; of points in the same place, one label for all ("+6 to +16")."""
    steered = path[path["multiplier"].notna() & (path["multiplier"] != 0)]
    names = pd.Series("", path.index)
    for _, same in steered.groupby(["criterion", "d_prime"], sort=False)["multiplier"]:
        ends = list(dict.fromkeys([signed(same.min()), signed(same.max())]))
        names[same.index[-1]] = " to ".join(ends)
    return names.tolist()


def _controls(table: pd.DataFrame, layers: str) -> list[go.Scatter]:
    rows = table[table["control"].astype(bool) & (table["layers"] == layers)]
    if rows.empty:
        return []
    return [
        go.Scatter(
            x=rows["criterion"],
            y=rows["d_prime"],
            mode="markers",
            name="control directions",
            legendrank=2000,
            marker={"color": translucent(CONTROL, 0.55), "size": 6},
            hovertext=[_hover(row) for row in rows.to_dict("records")],
            hoverinfo="text",
        )
    ]


def _unsteered(table: pd.DataFrame) -> list[go.Scatter]:
    rows = table[table["operation"] == "none"].head(1)
    if rows.empty:
        return []
    return [
        go.Scatter(
            x=rows["criterion"],
            y=rows["d_prime"],
            mode="markers",
            name="unsteered",
            marker={"color": INK, "size": 12, "symbol": "diamond"},
            hovertext=[_hover(row) for row in rows.to_dict("records")],
            hoverinfo="text",
        )
    ]


def _cross(rows: pd.DataFrame, value: str) -> dict[str, object]:
    return {
        "type": "data",
        "symmetric": False,
        "array": rows[f"{value}_high"] - rows[value],
        "arrayminus": rows[value] - rows[f"{value}_low"],
        "thickness": 1,
        "width": 0,
        "color": translucent(INK, 0.3),
    }


def _hover(row: dict[str, Any]) -> str:
    criterion = cell_hover(row, "criterion").rsplit("<br>", 1)[1]
    rates = f"hits {row['hit_rate']:.0%}, false alarms {row['false_alarm_rate']:.0%}"
    lines = [cell_hover(row, "d_prime"), criterion, rates]
    auc = [row.get(f"auc{end}") for end in ("", "_low", "_high")]
    if all(map(pd.notna, auc)):
        lines.append(f"AUC {interval(*auc)}")
    if row.get("verdict"):
        lines.append(f"verdict: {escape(row['verdict'])}")
    return "<br>".join(lines)


def _name(key: tuple[str, ...], lines: list[tuple[str, ...]]) -> str:
    """What tells a path from the others; the vector's name where there is one path."""
    parts = [part for part, *others in zip(key, *lines, strict=True) if len(set(others)) > 1]
    return escape(", ".join(parts or [key[0]]).replace("project_out", "project out"))


def _reach(table: pd.DataFrame, value: str) -> list[float]:
    real = table[~table["control"].astype(bool)]
    low = min(real[f"{value}_low"].min(), table[value].min())
    high = max(real[f"{value}_high"].max(), table[value].max())
    margin = 0.06 * (high - low) or 1.0
    return [float(low - margin), float(high + margin)]
