"""The report's sections on whether an effect is due to the vector, and its cost, with their sentences."""

import numpy as np
import pandas as pd

import tl_steer.plots as plots

from ..evaluation.control_tests import ONE_WAY
from ..plots.format import counted, interval, number
from ..sweeps.sweep_table import UNSTEERED, condition_rows, ends
from .report_tables import (
    ALPHA,
    EFFECTS,
    ENOUGH_CONTROLS,
    PLAIN,
    SIGNED,
    Row,
    Section,
    by_p_value,
    condition_label,
    confounds_table,
    controls_table,
    cost_table,
    prediction_table,
    sign_of,
    span,
    steered_by,
)
from .results import Results

SMALL_COSINE = 0.1  # below it, less than a hundredth of the vector's squared length
VALUES = {
    "shift": "the logit difference changes by",
    "bias": "the logit difference changes by",
    "accuracy": "the accuracy changes by",
    "d_prime": "d′ changes by",
    "shift_toward_answer": "the logit difference moves toward the right answer by",
    "criterion": "the criterion changes by",
    "flipped": "the share of answers that change is",
}
REASONS = {  # of `usable_range`, by whether any multiplier is usable
    False: {
        "no effect": "no effect is beyond zero and beyond the controls",
        "damage first": "where an effect is clear, the text suffers (upper end of the loss change above 0.1)",
        "collapse first": "the text falls apart",
    },
    True: {
        "damage": "at the next the text suffers",
        "collapse": "at the next the text falls apart",
        "no effect": "at the next the effect is not clear",
        "largest tried": "no larger one was tried on the questions",
    },
}


def evidence_sections(results: Results) -> list[Section]:
    """Controls, steerability, damage and prediction of questions; texts; agreement and confounds of pairs."""
    sections = []
    if len(results.questions):
        sections += [_controls(results), _steerability(results), _damage(results), _prediction(results)]
    if not results.text_damage.empty:
        sections.append(_texts(results))
    if results.activations is not None:
        sections += [_agreement(results), _confounds(results)]
    return [section for section in sections if section is not None]


def _agreement(results: Results) -> Section | None:
    if results.agreement is None:
        return None
    read = (
        "How well the pairs determine the vector: vectors of different pairs of the same kind should point "
        "the same way. It does not say what the vector means: pairs that all differ in a letter agree on the "
        "letter."
    )
    figure = ("agreement", plots.agreement(results.agreement))
    finding = agreement_finding(results.agreement, results.report_layer)
    return Section("agreement", "Do the pairs agree on the vector?", finding, read, [figure])


def agreement_finding(table: pd.DataFrame, layer: int) -> str:
    """How well the pairs agree at a layer, compared with shuffled labels."""
    row = table[table["layer"] == layer].iloc[0]
    null, compared, cone = row["split_half_null"], "", ""
    if pd.notna(null):
        is_above = row["split_half"] > null
        compared = f", {'above' if is_above else 'no higher than'} shuffled labels (97.5 % below "
        compared += f"{number(null, PLAIN)})" + ": these pairs do not determine a vector there" * (
            not is_above
        )
    if pd.notna(row["cone"]):
        cone = f", and 95 % of the vectors of resampled pairs lie within {row['cone']:.1f}° of it"
    return (
        f"At layer {layer} the vectors of two halves of the {int(row['pairs'])} pairs have a cosine of "
        f"{number(row['split_half'], PLAIN)}{compared}. A single pair's difference has a cosine of "
        f"{number(row['single'], PLAIN)} with the vector{cone}."
    )


def _confounds(results: Results) -> Section | None:
    table, layer = results.confounds, results.report_layer
    if table is None:
        return None
    read = (
        "Each other factor that varies among the pairs has a direction, too, estimated within either side. A "
        "vector along that direction carries the factor."
    )
    has_cosine = table["cosine"].notna().any()
    figures = [("confounds", plots.confounds(table))] if has_cosine else []
    tables = [confounds_table(table[table["layer"] == layer])]
    finding = confounds_finding(table, layer)
    return Section("confounds", "What else is in the vector?", finding, read, figures, tables)


def confounds_finding(table: pd.DataFrame, layer: int) -> str:
    """Along which factors the vector lies at a layer, and which cannot be distinguished from it."""
    rows = table[table["layer"] == layer]
    factors, together = rows[rows["factor"] != "all"], rows[rows["factor"] == "all"]
    sided = ", ".join(factors.loc[~factors["balanced"].astype(bool), "factor"])
    along = factors[factors["differs"].astype(bool)]
    parts = []
    if sided:
        parts.append(
            f"The pairs cannot tell {sided} from the behaviour, since it varies between the sides alone: any "
            "effect of the vector may be due to it."
        )
    if len(along):
        cosines = zip(along["factor"], along["cosine"], strict=True)
        names = ", ".join(f"{factor} (cosine {number(cosine, SIGNED)})" for factor, cosine in cosines)
        advice = "Split the effect by it, or project it out (`without_factors`)."
        if along["cosine"].abs().max() < SMALL_COSINE:
            advice = "This is less than a hundredth of its squared length."
        parts.append(
            f"At layer {layer} the vector lies along {names}, more than along shuffled factors. {advice} "
            "These pairs made the vector, so some of this may be chance."
        )
    elif factors["cosine"].notna().any():
        largest, jointly = factors.loc[factors["cosine"].abs().idxmax()], ""
        if together["differs"].any():
            jointly = (
                f", but along all of them together (cosine {number(together['cosine'].iloc[0], SIGNED)})"
            )
        parts.append(
            f"At layer {layer} the vector lies along none of {'the others' if sided else 'these'} more than "
            f"along shuffled factors (the largest cosine is {number(largest['cosine'], SIGNED)}, with "
            f"{largest['factor']}){jointly}."
        )
    return " ".join(parts)


def _controls(results: Results) -> Section | None:
    table = results.against_controls
    if table is None:
        return None
    finding = " ".join(controls_finding(table, each) for each in results.reported)
    read = (
        "Any added vector of this length has some effect, which control vectors measure: random directions "
        "(“random”, or “orthogonal” to the vector), and vectors of the same pairs with the sides of half of "
        "them swapped (“shuffled”), which lie where these prompts vary anyway."
    )
    tables = [controls_table(table[table["layers"] == results.chosen["layers"]])]
    figures = [("controls", plots.against_controls(table))]
    return Section("controls", "The vector, or any vector of its length?", finding, read, figures, tables)


def controls_finding(table: pd.DataFrame, condition: pd.Series) -> str:
    """A condition's effect next to that of control vectors, with its p value.

    Args:
        table: from `against_controls`, of the reporting half.
        condition: the chosen one, or its opposite.
    """
    where, row = condition_label(condition), controls_row(table, condition)
    if row is None:
        return f"At {where} there are no controls to compare with."
    effect = number(row["effect"], SIGNED)
    compared = f"At {where} {VALUES[row['value_name']]} {effect}; {controls_compared(row)}"
    n = int(row["controls"])
    if row["p_value"] <= ALPHA:
        return f"{compared}."
    if n < ENOUGH_CONTROLS and not _as_far(row):
        floor, enough = f"{1 / (n + 1):.2g}", f"{ENOUGH_CONTROLS} or more"
        controls = counted([n], "control vector")
        return f"{compared}. With {controls} p cannot be below {floor}: {enough} can reach {ALPHA}."
    return f"{compared}, so this may be chance."


def controls_row(table: pd.DataFrame | None, condition: pd.Series) -> Row | None:
    """The row of `against_controls` for a condition; `None` without controls there."""
    if table is None:
        return None
    rows = condition_rows(table, condition).to_dict("records")
    return rows[0] if rows and rows[0]["controls"] and pd.notna(rows[0]["p_value"]) else None


def controls_compared(row: Row) -> str:
    """How many controls have as large an effect, the range of their effects, and p."""
    as_far = _as_far(row)
    controls = counted([int(row["controls"])], "control vector")
    # Any vector lowers accuracy and d′, so their reference is the controls' mean, not zero.
    far = "as far from the controls' mean" if row["value_name"] in ONE_WAY else "as far from zero"
    reached = f"under {as_far} of {controls} it is" if as_far else f"under none of {controls} is it"
    return f"{reached} {far} ({span(row['null_low'], row['null_high'])}): p = {row['p_value']:.2g}"


def _as_far(row: Row) -> int:
    """The number of controls that are as far."""
    return round(row["p_value"] * (int(row["controls"]) + 1)) - 1


def _steerability(results: Results) -> Section | None:
    table, layers = results.steerability, results.chosen["layers"]
    if table is None:
        return None
    toward = "its own right answer" if results.toward == "answer" else "the signal"
    read = (
        "For every question, the slope of its logit difference over the multipliers, positive toward "
        f"{toward}. A mean hides the questions that move the other way."
    )
    finding = steerability_finding(table, results.chosen)
    figures = [
        ("steerability", plots.steerability(table)),
        ("slopes", plots.prompt_slopes(results.slopes, layer=layers)),
    ]
    return Section("steerability", "Which questions move, and which way?", finding, read, figures)


def steerability_finding(table: pd.DataFrame, condition: pd.Series) -> str:
    """The distribution of the prompts' slopes at a condition's layer, compared with controls."""
    layers = condition["layers"]
    rows = table[(table["layers"] == layers) & (table["hook"] == condition["hook"])]
    is_control = rows["control"].astype(bool)
    row = rows[(rows["vector"] == condition["vector"]) & ~is_control].iloc[0].to_dict()
    if row["slope"] < 0:  # the other way is up
        shares = {end: 1 - row[f"anti_steerable{end}"] for end in ("", "_low", "_high")}
        row |= dict(zip(ends("anti_steerable"), (shares[""], shares["_high"], shares["_low"]), strict=True))
    slope, bent = interval(row, "slope", SIGNED), ""
    slope = f"At layer {layers} the mean slope is {slope} nats per unit of the multiplier"
    if is_control.any():
        largest = number(rows.loc[is_control, "slope"].abs().max(), PLAIN)
        slope += f" (controls, whose sign means nothing, up to ±{largest})"
    wrong = f"{interval(row, 'anti_steerable', '.0%')} of the {int(row['n'])} questions move the other way"
    if row["r_squared"] < 0.5:
        r_squared = f"median r² {number(row['r_squared'], PLAIN)}"
        bent = f" A line describes them badly ({r_squared}): the effect turns or levels off."
    if sign_of(row, "slope") == 0:
        return f"{slope}, so the questions together do not measurably move; {wrong}.{bent}"
    many = row["anti_steerable"] >= 1 / 3
    return f"{slope}; {wrong}{', so the mean does not speak for all' if many else ''}.{bent}"


def _damage(results: Results) -> Section | None:
    cost, effect = results.cost, EFFECTS[results.measure]
    if cost is None:
        return None
    positions = results.settings.damage_positions
    where = "every token" if positions == "all_tokens()" else positions
    read = (
        f"Text unrelated to the behaviour, read{f' with {where}' * bool(where)} steered: how far the "
        "predictions move (KL divergence) and how much less likely the text becomes (loss, in nats per "
        "token; +0.1 is a tenth more perplexity)."
    )
    finding = damage_finding(cost, results.usable, results.chosen)
    has_damage = (cost["kl"] > 0).any()
    figures = [("damage", plots.effect_and_damage(cost, label=effect))] if has_damage else []
    return Section("damage", "What does it cost?", finding, read, figures, [cost_table(cost, effect=effect)])


def damage_finding(cost: pd.DataFrame, usable: pd.DataFrame, chosen: pd.Series) -> str:
    """The cost of the chosen condition, and the usable range of multipliers at that layer."""
    row = condition_rows(cost, chosen).iloc[0]
    controls, among = cost[cost["control"].astype(bool)], ""
    controls = controls[np.isclose(controls["multiplier"].abs(), abs(row["multiplier"]), equal_nan=True)]
    if len(controls):
        among = f" (random controls {span(controls['kl'].min(), controls['kl'].max(), PLAIN)})"
    cautious = "" if sign_of(row, "loss_change") else ", which may be nothing"
    return (
        f"In the chosen condition the KL divergence is {interval(row, 'kl', PLAIN)} nats{among}, and "
        f"the loss changes by {interval(row, 'loss_change', SIGNED)}{cautious}. "
        + " ".join(_usable_range(each) for each in usable.to_dict("records"))
    )


def _usable_range(row: Row) -> str:
    side = {1: "Added", -1: "Subtracted", 0: "Projected out"}[int(row["sign"])]
    reason = REASONS[bool(row["usable"])].get(row["reason"])
    if row["sign"] == 0:
        return f"{side}, it is usable." if row["usable"] else f"{side}, it is not usable: {reason}."
    if not row["usable"]:
        return f"{side}, no multiplier tried is usable: {reason}."
    multipliers = span(row["smallest_multiplier"], row["largest_multiplier"])
    reach = f"multiplier {multipliers} (dose {number(row['largest_dose'], PLAIN)})"
    return f"{side}, the vector is usable at {reach}; {reason}."


def _prediction(results: Results) -> Section | None:
    if results.prediction is None:
        return None
    read = (
        "Whether measures known before steering correlate with the effect over the steered layers. "
        "Neighbouring layers are alike, so chance is measured by shifting the whole curve along the layers."
    )
    finding, tables = prediction_finding(results.prediction), [prediction_table(results.prediction)]
    return Section("prediction", "Could the effect have been predicted?", finding, read, tables=tables)


def prediction_finding(table: pd.DataFrame) -> str:
    """Whether any measure correlates with the effect, and how many were tried."""
    known = by_p_value(table)
    if known.empty:
        return "No measure varies over the layers."
    first, n = known.iloc[0], int(known["n"].iloc[0])
    ties = int((known["p_value"] == first["p_value"]).sum())
    least = "The smallest p is"
    if ties > 1:
        least = f"{ties} measures tie at the smallest p, the most correlated is"
    correlation = f"rank correlation {number(first['correlation'], SIGNED)}"
    named = f"{least} {first['measure'].replace('_', ' ')} ({correlation}, p = {first['p_value']:.2g})"
    tried = f"{counted([len(known)], 'measure')} {'was' if len(known) == 1 else 'were'} tried over {n} layers"
    if 1 / n > ALPHA:
        return f"{named}. {tried}, with which no p can be below {1 / n:.2g}: 20 layers can reach {ALPHA}."
    if first["p_value"] > ALPHA:
        return f"No measurable correlation. {named}. {tried}."
    return f"{named}. {tried}{', so the best of them is overestimated' * (len(known) > 1)}."


def _texts(results: Results) -> Section:
    read = "Repetition, and low likelihood under the unsteered model, are signs of broken text."
    return Section("text-damage", "Are the texts still texts?", texts_finding(results.text_damage), read)


def texts_finding(table: pd.DataFrame) -> str:
    """Repetition and likelihood of the texts, unsteered and in the conditions where they are worst."""
    measures = ["distinct_2", "loss"]
    is_steered = table["vector"] != UNSTEERED
    before = table.loc[~is_steered, measures].mean()
    keys = ["layers", "operation", "multiplier"]
    means = table[is_steered].groupby(keys, dropna=False)[measures].mean().reset_index()
    parts = []
    if pd.notna(before["distinct_2"]) and means["distinct_2"].notna().any():
        row = means.loc[means["distinct_2"].idxmin()]
        is_broken = row["distinct_2"] < before["distinct_2"] / 2
        parts.append(
            f"Of their word pairs {before['distinct_2']:.0%} are different unsteered, and "
            f"{row['distinct_2']:.0%} where that is lowest ({_where(row)})"
            + (": there the text has collapsed." if is_broken else ".")
        )
    if pd.notna(before["loss"]) and means["loss"].notna().any():
        row = means.loc[means["loss"].idxmax()]
        own, others = number(before["loss"], PLAIN), number(row["loss"], PLAIN)
        parts.append(
            f"The unsteered model gives its own texts a loss of {own} nats per token, and at most {others} "
            f"to the steered ones ({_where(row)})."
        )
    return " ".join(parts) or "They are too short to tell."


def _where(condition: pd.Series) -> str:
    how = "multiplier " * pd.notna(condition["multiplier"]) + steered_by(condition["multiplier"])
    return f"layer {condition['layers']}, {how}"
