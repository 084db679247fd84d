"""Sentences on controls, steerability, damage, agreement and confounds, no more certain than the numbers."""

import numpy as np
import pandas as pd

from ...evaluation.control_tests import ONE_WAY
from ...sweeps.sweep_table import UNSTEERED, rows_of
from .wording import ALPHA, Row, direction, interval, place, plain, signed

FEWEST = 19  # controls with which a p value can reach ALPHA
ALONG = 0.1  # a cosine below this is a hundredth of the vector, whether chance or not
VALUES = {
    "shift": "the logit difference changes by",
    "accuracy": "the accuracy changes by",
    "d_prime": "d′ changes by",
    "flipped": "the share of answers that change is",
}
WHY = {
    "no effect": "no effect is beyond zero and beyond the controls",
    "damage first": "the text suffers (upper end of the loss change above 0.1) before an effect is clear",
    "collapse first": "the text falls apart before an effect is clear",
}
UNTIL = {
    "damage": "at the next the text suffers",
    "collapse": "at the next the text falls apart",
    "no effect": "at the next the effect is not clear",
    "largest tried": "no larger one was tried on the questions",
}


def controls_finding(table: pd.DataFrame, cell: pd.Series) -> str:
    """A cell's effect next to that of control vectors, with its p value.

    Args:
        table: from `against_controls`, of the questions that had no part in choosing.
        cell: the chosen cell, or its opposite.
    """
    rows = rows_of(table, cell)
    if rows.empty or not rows["controls"].iloc[0] or pd.isna(rows["p_value"].iloc[0]):
        return f"At {place(cell)} there are no controls to compare with."
    (row,) = rows.to_dict("records")
    number = int(row["controls"])
    as_far = round(row["p_value"] * (number + 1)) - 1
    of, span = _many(number, "control vector"), f"{signed(row['null_low'])} to {signed(row['null_high'])}"
    what = f"At {place(cell)} {VALUES[row['value']]} {signed(row['effect'])}"
    # Any push lowers accuracy and d′, so there the controls' mean stands for nothing done.
    far = "as far from the controls' mean" if row["value"] in ONE_WAY else "as far from zero"
    reached = f"under {as_far} of {of} it is" if as_far else f"under none of {of} is it"
    compared = f"{what}; {reached} {far} ({span}): p = {row['p_value']:.2g}"
    if row["p_value"] <= ALPHA:
        return f"{compared}."
    if number < FEWEST and not as_far:
        few = f"With {of} p cannot be below {1 / (number + 1):.2g}: {FEWEST} or more can reach {ALPHA}."
        return f"{compared}. {few}"
    return f"{compared}, so this may be chance."


def steerability_finding(table: pd.DataFrame, layers: str, vector: str) -> str:
    """How the prompts' slopes lie at the chosen layer, beside the controls'."""
    here = table[table["layers"] == layers]
    row = here[(here["vector"] == vector) & ~here["control"].astype(bool)].iloc[0]
    controls = here[here["control"].astype(bool)]
    slope = f"At layer {layers} the mean slope is {interval(row, 'slope')} nats per unit of the multiplier"
    if len(controls):
        slope += f" (controls, whose sign means nothing, up to ±{plain(controls['slope'].abs().max())})"
    share = f"{row['anti_steerable']:.0%} [{row['anti_steerable_low']:.0%}, {row['anti_steerable_high']:.0%}]"
    wrong = f"{share} of the {int(row['n'])} questions move the other way"
    bent = ""
    if row["r_squared"] < 0.5:
        r_squared = f"median r² {plain(row['r_squared'])}"
        bent = f" A line describes them badly ({r_squared}): the effect turns or levels off."
    if direction(row, "slope") == 0:
        return f"{slope}, so the questions together do not measurably move; {wrong}.{bent}"
    many = row["anti_steerable"] >= 1 / 3
    return f"{slope}; {wrong}{', so the mean does not speak for all' if many else ''}.{bent}"


def damage_finding(cost: pd.DataFrame, usable: pd.DataFrame, chosen: pd.Series) -> str:
    """What the chosen cell costs, and from which to which multiplier the vector can be used at that layer."""
    row = rows_of(cost, chosen).iloc[0]
    controls = cost[cost["control"].astype(bool)]
    sizes = controls["multiplier"].abs().fillna(-1)
    controls = controls[np.isclose(sizes, -1 if pd.isna(row["multiplier"]) else abs(row["multiplier"]))]
    told = f"At the chosen cell the KL divergence is {interval(row, 'kl', show=plain)} nats"
    if len(controls):
        ends = dict.fromkeys(plain(end) for end in (controls["kl"].min(), controls["kl"].max()))
        told += f" (random controls {' to '.join(ends)})"
    loss = f"the loss changes by {interval(row, 'loss_change')}"
    cautious = "" if direction(row, "loss_change") else ", which may be nothing"
    return f"{told}, and {loss}{cautious}. {' '.join(_range(each) for each in usable.to_dict('records'))}"


def _range(row: Row) -> str:
    """One side of the multipliers, in words."""
    side = {1: "Added", -1: "Subtracted", 0: "Projected out"}[int(row["sign"])]
    if row["sign"] == 0:
        return f"{side}, it is {'usable.' if row['usable'] else 'not usable: ' + WHY[row['reason']] + '.'}"
    if not row["usable"]:
        return f"{side}, no multiplier tried is usable: {WHY[row['reason']]}."
    ends = dict.fromkeys(signed(row[f"{end}_multiplier"]) for end in ("smallest", "largest"))
    reach = f"multiplier {' to '.join(ends)} (dose {plain(row['largest_dose'])})"
    return f"{side}, the vector is usable at {reach}; {UNTIL[row['reason']]}."


def texts_finding(table: pd.DataFrame) -> str:
    """Repetition and likelihood of the texts, unsteered and in the cells where they are worst."""
    table = table.assign(steered=table["vector"] != UNSTEERED)
    measures = ["distinct_2", "loss"]
    before = table.loc[~table["steered"], measures].mean()
    cells = ["layers", "operation", "multiplier"]
    means = table[table["steered"]].groupby(cells, dropna=False)[measures].mean().reset_index()
    parts = []
    if pd.notna(before["distinct_2"]) and means["distinct_2"].notna().any():
        row = means.loc[means["distinct_2"].idxmin()]
        broken = row["distinct_2"] < before["distinct_2"] / 2
        parts.append(
            f"Of their word pairs {before['distinct_2']:.0%} are different unsteered, and "
            f"{row['distinct_2']:.0%} where that is lowest ({_where(row)})"
            + (": there the text has collapsed." if broken else ".")
        )
    if pd.notna(before["loss"]) and means["loss"].notna().any():
        row = means.loc[means["loss"].idxmax()]
        parts.append(
            f"The unsteered model gives its own texts a loss of {plain(before['loss'])} nats a token, and at "
            f"most {plain(row['loss'])} to the steered ones ({_where(row)})."
        )
    return " ".join(parts) or "They are too short to tell."


def _where(cell: pd.Series) -> str:
    how = "projected out" if pd.isna(cell["multiplier"]) else f"multiplier {signed(cell['multiplier'])}"
    return f"layer {cell['layers']}, {how}"


def agreement_finding(table: pd.DataFrame, layer: int) -> str:
    """How well the pairs agree at a layer, beside chance."""
    row = table[table["layer"] == layer].iloc[0]
    found = (
        f"At layer {layer} the vectors of two halves of the {int(row['pairs'])} pairs have a cosine of "
        f"{plain(row['split_half'])}"
    )
    null = row["split_half_null"]
    if row["split_half"] <= null:
        found += (
            f", no more than exchanged sides give (97.5 % below {plain(null)}): these pairs do not determine "
            "a vector there"
        )
    elif pd.notna(null):
        found += f", above what exchanged sides give (97.5 % below {plain(null)})"
    found += f". A single pair's difference has a cosine of {plain(row['single'])} with the vector"
    if pd.notna(row["cone"]):
        found += f", and 95 % of the vectors of resampled pairs lie within {row['cone']:.1f}° of it"
    return f"{found}."


def confounds_finding(table: pd.DataFrame, layer: int) -> str:
    """Along which factors the vector lies at a layer, and which cannot be told from it."""
    here = table[table["layer"] == layer]
    factors, together = here[here["factor"] != "all"], here[here["factor"] == "all"]
    sided = ", ".join(factors.loc[~factors["balanced"].astype(bool), "factor"])
    along = factors[factors["differs"].astype(bool)]
    parts = []
    if sided:
        parts.append(
            f"The pairs cannot tell {sided} from the behaviour, since it varies between the sides alone: "
            "whatever the vector does may be its doing."
        )
    if len(along):
        cosines = ", ".join(
            f"{row['factor']} (cosine {signed(row['cosine'])})" for _, row in along.iterrows()
        )
        is_small = along["cosine"].abs().max() < ALONG
        parts.append(
            f"At layer {layer} the vector lies along {cosines}, farther than along factors that mean "
            + ("nothing, but by less than a hundredth of its squared length." if is_small else "nothing: ")
            + "split the effect by it, or project it out (`without_factors`)." * (not is_small)
            + " These pairs made the vector, so some of this may be chance."
        )
    elif factors["cosine"].notna().any():
        others = "the others" if sided else "these"
        largest, jointly = factors.loc[factors["cosine"].abs().idxmax()], ""
        if together["differs"].any():
            jointly = f", but along all of them together (cosine {signed(together['cosine'].iloc[0])})"
        parts.append(
            f"At layer {layer} the vector lies along none of {others} farther than along factors that mean "
            f"nothing (the largest cosine is {signed(largest['cosine'])}, with {largest['factor']}){jointly}."
        )
    return " ".join(parts)


def prediction_finding(table: pd.DataFrame) -> str:
    """Whether any measure goes with the effect, and how many were tried."""
    known = by_p_value(table)
    if known.empty:
        return "No measure varies over the layers."
    first = known.iloc[0]
    n = int(first["n"])
    ties = int((known["p_value"] == first["p_value"]).sum())
    least = (
        "The smallest p is" if ties == 1 else f"{ties} measures tie at the smallest p, the most correlated is"
    )
    named = f"{least} {first['measure'].replace('_', ' ')} (rank correlation {signed(first['correlation'])}, "
    named += f"p = {first['p_value']:.2g})"
    tried = f"{_many(len(known), 'measure')} {'was' if len(known) == 1 else 'were'} tried over {n} layers"
    if 1 / n > ALPHA:
        return f"{named}. {tried}, with which no p can be below {1 / n:.2g}: 20 layers can reach {ALPHA}."
    if first["p_value"] > ALPHA:
        return f"None does so measurably. {named}. {tried}."
    flattered = "" if len(known) == 1 else ", so the best of them is flattered"
    return f"{named}. {tried}{flattered}."


def by_p_value(table: pd.DataFrame) -> pd.DataFrame:
    """The measures of `prediction` that have a p value, smallest first, of equal ones the most correlated."""
    known = table.dropna(subset="p_value")
    known = known.assign(size=known["correlation"].abs())
    return known.sort_values(["p_value", "size"], ascending=[True, False], kind="stable")


def _many(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"
