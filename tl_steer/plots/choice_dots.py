"""How good the chosen cell looks on the prompts it was chosen on, and on others."""

from dataclasses import dataclass
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from .._util.validation import checked
from .effectiveness_curves import whiskers
from .labels import controls_text, counted, escape, interval, number, require_columns, signed
from .template import BLUE, CONTROL, INK, VERMILLION, styled, translucent

COLUMNS = (
    "vector", "operation", "layers", "multiplier", "split", "n", "score", "value", "low", "high", "unsteered",
    "in_sample_score", "held_out_score", "optimism", "optimism_low", "optimism_high", "selection_agreement",
    "controls", "null_low", "null_high", "p_value",
)  # fmt: skip
SCORES = {
    "accuracy": "accuracy (share of prompts)",
    "d_prime": "d′ (sensitivity)",
    "shift": "shift of the logit difference in the multiplier's direction (nats)",
}
ROW = 84  # pixels of each vector and operation
HALF = 0.36  # of a row, taken by its marks


@dataclass(frozen=True)
class Mark:
    """One of a row's marks: its name in the legend, its number's column, its look, and its place.

    Attributes:
        reported: whether the number is of the reported half, else of the choosing one.
        aside: above the middle of the row.
    """

    name: str
    column: str
    reported: bool
    colour: str
    symbol: str
    aside: float


MARKS = (
    Mark("all prompts, chosen on them (naive)", "in_sample_score", True, VERMILLION, "circle-open", 0.27),
    Mark("this choice, where it was made", "value", False, VERMILLION, "diamond-open", 0.09),
    Mark("this choice, on the other prompts", "value", True, BLUE, "diamond", -0.09),
    Mark("halves, chosen on the other (honest)", "held_out_score", True, BLUE, "circle", -0.27),
)


@checked
def choices(table: pd.DataFrame) -> go.Figure:
    """The score of each chosen cell, flattered by the choice and not, with 95% intervals.

    Args:
        table: what `evaluation.choose` makes, by one score.

    Raises:
        ValueError: no rows, columns are missing, several scores, or rows that are not in pairs.

    Open red marks are flattered, filled blue ones are not. The grey bar goes from the lowest to the highest
    control that was chosen the same way, on prompts that had no part in it: compare the filled diamond.
    """
    require_columns(table, COLUMNS, figure="choices", maker="evaluation.choose(sweep_table, on=…, report=…)")
    rows = _in_pairs(table)
    reported = rows[rows["reported"]]
    figure = go.Figure([_null(reported.dropna(subset="null_low")), _unsteered(reported)])
    for mark in MARKS:
        figure.add_trace(_dots(rows[rows["reported"] == mark.reported], mark))
    figure.update_yaxes(
        tickvals=list(reported["place"]),
        ticktext=[escape(name) for name in reported["name"]],
        range=[-0.55, len(reported) - 0.45],
        showgrid=False,
        zeroline=False,
    )
    score = table["score"].iloc[0]
    numbers = rows[
        ["value", "low", "high", "unsteered", "in_sample_score", "held_out_score", "null_low", "null_high"]
    ]
    low, high = numbers.min(axis=None), numbers.max(axis=None)
    # said outright: plotly leaves lines at the edge, where they cannot be seen
    figure.update_xaxes(range=[low - 0.04 * (high - low), high + 0.04 * (high - low)])
    figure.update_xaxes(title_text=SCORES.get(score, escape(score)), zeroline=False)
    title = "What was chosen, where it was chosen and elsewhere"
    return styled(figure, title, _subtitle(rows), height=max(300, 160 + ROW * len(reported)))


def _in_pairs(table: pd.DataFrame) -> pd.DataFrame:
    """The rows with `name`, `place` (from below) and whether they are the reported half."""
    if table["score"].nunique() != 1:
        raise ValueError(
            f"plots.choices: the scores {list(table['score'].unique())} have no common axis: select one."
        )
    keys = ["vector", "operation"]
    if not (table.groupby(keys, sort=False).size() == 2).all():
        raise ValueError(
            "plots.choices: each vector and operation needs two rows, as evaluation.choose gives them."
        )
    told = keys if table["operation"].nunique() > 1 else keys[:1]
    order = table.groupby(keys, sort=False).ngroup()
    return table.assign(
        name=table[told].agg(", ".join, axis=1),
        place=float(order.max()) - order,
        reported=table.groupby(keys).cumcount() == 1,
    )


def _null(rows: pd.DataFrame) -> go.Scatter:
    """From the lowest to the highest control on the reported half, behind the mark of that half."""
    place = next(mark.aside for mark in MARKS if mark.reported and mark.column == "value")
    ends = [(row["null_low"], row["null_high"], row["place"] + place) for row in rows.to_dict("records")]
    return go.Scatter(
        x=[end for low, high, _ in ends for end in (low, high, None)],
        y=[end for *_, place in ends for end in (place, place, None)],
        mode="lines",
        name="controls, chosen alike",
        line={"color": translucent(CONTROL, 0.3), "width": 0.5 * HALF * ROW},
        hoverinfo="skip",
        showlegend=bool(ends),
    )


def _unsteered(rows: pd.DataFrame) -> go.Scatter:
    """The unsteered score on the reported half, a line across each row."""
    return go.Scatter(
        x=[end for value in rows["unsteered"] for end in (value, value, None)],
        y=[end for place in rows["place"] for end in (place - HALF, place + HALF, None)],
        mode="lines",
        name="unsteered",
        line={"color": INK, "width": 1.5, "dash": "dash"},
        hoverinfo="skip",
    )


def _dots(rows: pd.DataFrame, mark: Mark) -> go.Scatter:
    ends = rows.rename(columns={"low": "value_low", "high": "value_high"})
    bars = {"error_x": whiskers(ends, "value", mark.colour)} if mark.column == "value" else {}
    return go.Scatter(
        x=rows[mark.column],
        y=rows["place"] + mark.aside,
        mode="markers",
        name=mark.name,
        marker={
            "symbol": mark.symbol,
            "size": 10,
            "color": mark.colour,
            "line": {"width": 2, "color": mark.colour},
        },
        hovertext=[_hover(row, mark) for row in rows.to_dict("records")],
        hoverinfo="text",
        **bars,
    )


def _hover(row: dict[str, Any], mark: Mark) -> str:
    if mark.column == "value":
        multiplier = "" if pd.isna(row["multiplier"]) else f" {signed(row['multiplier'])}"
        told = [
            f"layer {escape(row['layers'])}, {escape(row['operation'])}{multiplier}",
            f"{interval(row['value'], row['low'], row['high'])}, n = {int(row['n'])}",
            f"unsteered {number(row['unsteered'])}",
        ]
        null = f"p = {number(row['p_value'])} against {counted([row['controls']], 'control')}"
        told += [null] if mark.reported and row["controls"] else []
    else:
        optimism = interval(row["optimism"], row["optimism_low"], row["optimism_high"])
        told = [
            number(row[mark.column]),
            f"optimism {optimism}",
            f"same cell in {row['selection_agreement']:.0%} of halves",
        ]
    return "<br>".join([f"<b>{escape(row['name'])}</b>, {escape(mark.name)}", *told])


def _subtitle(rows: pd.DataFrame) -> str:
    chosen, reported = (counted(rows.loc[rows["reported"] == half, "n"], "prompt") for half in (False, True))
    controls = int(rows["controls"].max())
    grey = controls_text(controls, "control")
    return f"chosen on {chosen}, reported on {reported}; whiskers: 95% intervals{grey}"
