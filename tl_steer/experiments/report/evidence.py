"""The report's sections on whether an effect is due to the vector, and its cost, with their sentences."""

import numpy as np
import pandas as pd

from ... import plots
from ...evaluation.control_tests import ONE_WAY
from ...sweeps.sweep_table import UNSTEERED, condition_rows
from ..results import Results
from .number_format import (
    ALPHA,
    ENOUGH_CONTROLS,
    Row,
    condition_label,
    counted,
    interval,
    plain,
    sign_of,
    signed,
    span,
    steered_by,
)
from .report_tables import by_p_value, confounds_table, controls_table, cost_table, prediction_table
from .sections import Section, drawn

SMALL_COSINE = 0.1  # below it, less than a hundredth of the vector's squared length
EFFECTS = {
    "shift": "shift of the logit difference (nats)",
    "accuracy": "change of the accuracy",
    "d_prime": "change of d′",
    "flipped": "answers that change (share)",
}
VALUES = {
    "shift": "the logit difference changes by",
    "accuracy": "the accuracy changes by",
    "d_prime": "d′ changes by",
    "flipped": "the share of answers that change is",
}
UNUSABLE = {
    "no effect": "no effect is beyond zero and beyond the controls",
    "damage first": "the text suffers (upper end of the loss change above 0.1) before an effect is clear",
    "collapse first": "the text falls apart before an effect is clear",
}
USABLE_UNTIL = {
    "damage": "at the next the text suffers",
    "collapse": "at the next the text falls apart",
    "no effect": "at the next the effect is not clear",
    "largest tried": "no larger one was tried on the questions",
}


def evidence_sections(results: Results) -> list[Section]:
    """Agreement and confounds of pairs; controls, steerability, damage and prediction of questions."""
    sections = [] if results.experiment.has_prompts else [_agreement(results), _confounds(results)]
    if results.experiment.questions is not None:
        sections += [_controls(results), _steerability(results), _damage(results), _prediction(results)]
    return [section for section in (*sections, _texts(results)) if section is not None]


def _agreement(results: Results) -> Section | None:
    if results.agreement is None:
        return None
    read = (
        "Vectors made of other pairs of the same kind should point the same way. This says how well the "
        "pairs determine the vector, not what it means: pairs that all differ in a letter agree about the "
        f"letter. {agreement_finding(results.agreement, results.report_layer)}"
    )
    figure = drawn("agreement", plots.agreement, results.agreement)
    return Section("agreement", "Do the pairs agree on the vector?", read, [figure])


def agreement_finding(table: pd.DataFrame, layer: int) -> str:
    """How well the pairs agree at a layer, compared with shuffled labels."""
    row = table[table["layer"] == layer].iloc[0]
    null = row["split_half_null"]
    compared = ""
    if row["split_half"] <= null:
        compared = (
            f", no more than shuffled labels give (97.5 % below {plain(null)}): these pairs do not determine "
            "a vector there"
        )
    elif pd.notna(null):
        compared = f", above what shuffled labels give (97.5 % below {plain(null)})"
    cone = ""
    if pd.notna(row["cone"]):
        cone = f", and 95 % of the vectors of resampled pairs lie within {row['cone']:.1f}° of it"
    return (
        f"At layer {layer} the vectors of two halves of the {int(row['pairs'])} pairs have a cosine of "
        f"{plain(row['split_half'])}{compared}. A single pair's difference has a cosine of "
        f"{plain(row['single'])} with the vector{cone}."
    )


def _confounds(results: Results) -> Section | None:
    table = results.confounds
    if table is None:
        return None
    read = (
        "Whatever else varies among the pairs has a direction, too, estimated from them within either side. "
        f"A vector that lies along it carries it. {confounds_finding(table, results.report_layer)}"
    )
    has_cosine = table["cosine"].notna().any()
    figures = [drawn("confounds", plots.confounds, table)] if has_cosine else []
    tables = [confounds_table(table[table["layer"] == results.report_layer])]
    return Section("confounds", "What else is in the vector?", read, figures, tables)


def confounds_finding(table: pd.DataFrame, layer: int) -> str:
    """Along which factors the vector lies at a layer, and which cannot be distinguished from it."""
    rows = table[table["layer"] == layer]
    factors, together = rows[rows["factor"] != "all"], rows[rows["factor"] == "all"]
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
            f"{row['factor']} (cosine {signed(row['cosine'])})" for row in along.to_dict("records")
        )
        is_small = along["cosine"].abs().max() < SMALL_COSINE
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


def _controls(results: Results) -> Section | None:
    table = results.against_controls
    if table is None:
        return None
    read = (
        "Any push of this length does something. Control vectors say how much: random directions (“random”, "
        "or “orthogonal” to the vector), and vectors of the same pairs with half of them turned round "
        f"(“shuffled”), which lie where these prompts vary anyway. {controls_finding(table, results.chosen)}"
    )
    tables = [controls_table(table[table["layers"] == results.chosen["layers"]])]
    return Section("controls", "The vector, or any push?", read, tables=tables)


def controls_finding(table: pd.DataFrame, condition: pd.Series) -> str:
    """A condition's effect next to that of control vectors, with its p value.

    Args:
        table: from `against_controls`, of the reporting half.
        condition: the chosen one, or its opposite.
    """
    rows, where = condition_rows(table, condition), condition_label(condition)
    if rows.empty or not rows["controls"].iloc[0] or pd.isna(rows["p_value"].iloc[0]):
        return f"At {where} there are no controls to compare with."
    (row,) = rows.to_dict("records")
    number = int(row["controls"])
    as_far = round(row["p_value"] * (number + 1)) - 1
    controls = counted(number, "control vector")
    # Any push lowers accuracy and d′, so their reference is the controls' mean, not zero.
    far = "as far from the controls' mean" if row["value_name"] in ONE_WAY else "as far from zero"
    reached = f"under {as_far} of {controls} it is" if as_far else f"under none of {controls} is it"
    compared = (
        f"At {where} {VALUES[row['value_name']]} {signed(row['effect'])}; {reached} {far} "
        f"({signed(row['null_low'])} to {signed(row['null_high'])}): p = {row['p_value']:.2g}"
    )
    if row["p_value"] <= ALPHA:
        return f"{compared}."
    if number < ENOUGH_CONTROLS and not as_far:
        floor, enough = f"{1 / (number + 1):.2g}", f"{ENOUGH_CONTROLS} or more"
        return f"{compared}. With {controls} p cannot be below {floor}: {enough} can reach {ALPHA}."
    return f"{compared}, so this may be chance."


def _steerability(results: Results) -> Section | None:
    table, layers = results.steerability, results.chosen["layers"]
    if table is None:
        return None
    toward = "its own right answer" if results.toward == "answer" else "the signal"
    read = (
        "For every question, the slope of its logit difference over the multipliers, counted toward "
        f"{toward}. A mean hides the questions that move the other way. "
        + steerability_finding(table, layers, results.chosen["vector"])
    )
    figures = [
        drawn("steerability", plots.steerability, table),
        drawn("slopes", plots.prompt_slopes, results.slopes, layer=layers),
    ]
    return Section("steerability", "Which questions move, and which way?", read, figures)


def steerability_finding(table: pd.DataFrame, layers: str, vector: str) -> str:
    """The distribution of the prompts' slopes at the chosen layer, compared with controls."""
    rows = table[table["layers"] == layers]
    is_control = rows["control"].astype(bool)
    row = rows[(rows["vector"] == vector) & ~is_control].iloc[0]
    slope = f"At layer {layers} the mean slope is {interval(row, 'slope')} nats per unit of the multiplier"
    if is_control.any():
        largest = plain(rows.loc[is_control, "slope"].abs().max())
        slope += f" (controls, whose sign means nothing, up to ±{largest})"
    share = interval(row, "anti_steerable", show="{:.0%}".format)
    wrong = f"{share} of the {int(row['n'])} questions move the other way"
    bent = ""
    if row["r_squared"] < 0.5:
        r_squared = f"median r² {plain(row['r_squared'])}"
        bent = f" A line describes them badly ({r_squared}): the effect turns or levels off."
    if sign_of(row, "slope") == 0:
        return f"{slope}, so the questions together do not measurably move; {wrong}.{bent}"
    many = row["anti_steerable"] >= 1 / 3
    return f"{slope}; {wrong}{', so the mean does not speak for all' if many else ''}.{bent}"


def _damage(results: Results) -> Section | None:
    cost, effect = results.cost, EFFECTS[results.score]
    if cost is None:
        return None
    positions = results.experiment.damage.positions
    where = "every token" if positions == "all_tokens()" else positions
    read = (
        f"Text that has nothing to do with the behaviour, read with {where} steered: how far the "
        "predictions move (KL divergence) and how much less likely the text becomes (loss, in nats per "
        "token; +0.1 is a tenth more perplexity). " + damage_finding(cost, results.usable, results.chosen)
    )
    has_damage = (cost["kl"] > 0).any()
    figures = [drawn("damage", plots.effect_and_damage, cost, label=effect)] if has_damage else []
    return Section("damage", "What does it cost?", read, figures, [cost_table(cost, effect=effect)])


def damage_finding(cost: pd.DataFrame, usable: pd.DataFrame, chosen: pd.Series) -> str:
    """The cost of the chosen condition, and the usable range of multipliers at that layer."""
    row = condition_rows(cost, chosen).iloc[0]
    controls = cost[cost["control"].astype(bool)]
    size = -1 if pd.isna(row["multiplier"]) else abs(row["multiplier"])
    controls = controls[np.isclose(controls["multiplier"].abs().fillna(-1), size)]
    among = ""
    if len(controls):
        among = f" (random controls {span(controls['kl'].min(), controls['kl'].max(), plain)})"
    cautious = "" if sign_of(row, "loss_change") else ", which may be nothing"
    return (
        f"In the chosen condition the KL divergence is {interval(row, 'kl', show=plain)} nats{among}, and "
        f"the loss changes by {interval(row, 'loss_change')}{cautious}. "
        + " ".join(_usable_range(each) for each in usable.to_dict("records"))
    )


def _usable_range(row: Row) -> str:
    side = {1: "Added", -1: "Subtracted", 0: "Projected out"}[int(row["sign"])]
    reason = (USABLE_UNTIL if row["usable"] else UNUSABLE).get(row["reason"])
    if row["sign"] == 0:
        return f"{side}, it is usable." if row["usable"] else f"{side}, it is not usable: {reason}."
    if not row["usable"]:
        return f"{side}, no multiplier tried is usable: {reason}."
    multipliers = span(row["smallest_multiplier"], row["largest_multiplier"])
    reach = f"multiplier {multipliers} (dose {plain(row['largest_dose'])})"
    return f"{side}, the vector is usable at {reach}; {reason}."


def _prediction(results: Results) -> Section | None:
    if results.prediction is None:
        return None
    read = (
        "Over the steered layers, does what was known of a vector before steering go with what it did? "
        "Neighbouring layers are alike, so chance is what the whole curve gives when it is shifted along the "
        f"layers. {prediction_finding(results.prediction)}"
    )
    tables = [prediction_table(results.prediction)]
    return Section("prediction", "Could the effect have been foreseen?", read, tables=tables)


def prediction_finding(table: pd.DataFrame) -> str:
    """Whether any measure goes with the effect, and how many were tried."""
    known = by_p_value(table)
    if known.empty:
        return "No measure varies over the layers."
    first, n = known.iloc[0], int(known.iloc[0]["n"])
    ties = int((known["p_value"] == first["p_value"]).sum())
    least = (
        "The smallest p is" if ties == 1 else f"{ties} measures tie at the smallest p, the most correlated is"
    )
    named = (
        f"{least} {first['measure'].replace('_', ' ')} (rank correlation {signed(first['correlation'])}, "
        f"p = {first['p_value']:.2g})"
    )
    tried = f"{counted(len(known), 'measure')} {'was' if len(known) == 1 else 'were'} tried over {n} layers"
    if 1 / n > ALPHA:
        return f"{named}. {tried}, with which no p can be below {1 / n:.2g}: 20 layers can reach {ALPHA}."
    if first["p_value"] > ALPHA:
        return f"None does so measurably. {named}. {tried}."
    return f"{named}. {tried}{', so the best of them is flattered' * (len(known) > 1)}."


def _texts(results: Results) -> Section | None:
    if results.text_damage.empty:
        return None
    read = "A text that repeats itself, or that the unsteered model would hardly write, has come apart. "
    return Section("text-damage", "Are the texts still texts?", read + texts_finding(results.text_damage))


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
        parts.append(
            f"The unsteered model gives its own texts a loss of {plain(before['loss'])} nats per token, and "
            f"at most {plain(row['loss'])} to the steered ones ({_where(row)})."
        )
    return " ".join(parts) or "They are too short to tell."


def _where(condition: pd.Series) -> str:
    how = "multiplier " * pd.notna(condition["multiplier"]) + steered_by(condition["multiplier"])
    return f"layer {condition['layers']}, {how}"
