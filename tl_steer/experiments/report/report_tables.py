"""Tables of the report as text cells: numbers with intervals, and what each column means."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import pandas as pd

from ...evaluation._signal_detection import FEWEST
from ...evaluation.control_tests import ONE_WAY
from ...sweeps.sweep_table import UNSTEERED
from .evidence_findings import FEWEST as CONTROLS
from .evidence_findings import by_p_value
from .wording import ALPHA, interval, plain, signed

DAGGER = "†"
EFFECTS = {
    "shift": "shift (nats)",
    "accuracy": "change of accuracy",
    "d_prime": "change of d′",
    "flipped": "answers that change",
}
WHY = {
    "": "usable",
    "damage": "the text suffers",
    "collapse": "the text falls apart",
    "no effect": "no clear effect",
}


@dataclass(frozen=True)
class Table:
    """Cells as text; the first `labels` columns are words, the others numbers, which are set to the right.

    In a table of `prose` the words are long, and keep their line ends.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    labels: int
    marked: Sequence[bool]
    note: str = ""
    prose: bool = False


def audit_table(audit: pd.DataFrame) -> Table:
    """Factors and levels with counts on either side."""
    marked = [str(value) == "True" for value in audit["differs"]]
    rows = [
        [
            row["factor"],
            row["level"],
            _count(row["positive"]),
            _count(row["negative"]),
            signed(row["difference"]),
        ]
        for row in audit.to_dict("records")
    ]
    note = "Counts of prompts, means for lengths; difference in pooled standard deviations."
    return Table(["factor", "level", "positive side", "negative side", "difference"], rows, 2, marked, note)


def detection_table(detection: pd.DataFrame, accuracy: pd.DataFrame) -> Table:
    """Unsteered beside steered: accuracy, d′ and criterion with their changes.

    Args:
        detection: from `signal_detection`.
        accuracy: from `effectiveness` of the same rows, for the accuracies.
    """
    keys = ["vector", "layers", "operation", "multiplier"]
    both = detection.merge(accuracy[[*keys, "accuracy", "accuracy_low", "accuracy_high"]], on=keys)
    both = both.sort_values(["operation", "multiplier", "vector"], kind="stable")
    is_control = both["control"].astype(bool)
    own = both[~is_control].sort_values(["multiplier", "vector"], kind="stable").to_dict("records")
    cells = both[is_control].groupby(["operation", "multiplier"], dropna=False)
    rows = [_detected(row) for row in own] + [_controls_detected(rows) for _, rows in cells]
    columns = [
        "vector", "verdict", "multiplier", "accuracy", "AUC", "change of AUC", "d′", "criterion c",
        "change of d′", "change of c",
    ]  # fmt: skip
    first = both.iloc[0] if len(both) else {"n_signal": 0, "n_noise": 0}
    note = (
        f"{first['n_signal']} questions whose right answer is the signal, {first['n_noise']} whose is not; "
        "95 % intervals. A negative criterion says the signal more often. Verdict: where logit differences "
        "are known, their AUC decides about sensitivity and their change about bias; else d′ and c do, where "
        "their intervals are known to cover."
    )
    if len(cells):
        note += " Of control vectors: the lowest and the highest value."
    if any(DAGGER in cell for row in rows for cell in row):
        note += (
            f" {DAGGER} Fewer than {FEWEST} answers of some kind: the interval is not known to cover, and is "
            "not used for the verdict."
        )
    marked = [row["vector"] == UNSTEERED for row in own]
    return Table(columns, rows, 2, marked + [False] * len(cells), note)


def _detected(row: Mapping[str, Any]) -> list[str]:
    """A cell that is no control; a dagger where an interval is not known to cover."""
    steered = row["vector"] != UNSTEERED
    now, then = ("" if row[name] else DAGGER for name in ("covered", "change_covered"))
    return [
        row["vector"] if steered else "unsteered",
        row["verdict"],
        _how(row["multiplier"]) if steered else "",
        interval(row, "accuracy", show=plain),
        _auc_of(row, "auc", show=partial(plain, digits=3)),
        _auc_of(row, "auc_change", show=partial(signed, digits=3)) if steered else "",
        interval(row, "d_prime", show=plain) + now,
        interval(row, "criterion") + now,
        interval(row, "d_prime_change") + then if steered else "",
        interval(row, "criterion_change") + then if steered else "",
    ]


def _auc_of(row: Mapping[str, Any], name: str, *, show: Callable[[float], str]) -> str:
    return "–" if pd.isna(row[name]) else interval(row, name, show=show)


def _controls_detected(rows: pd.DataFrame) -> list[str]:
    """All controls of an operation and multiplier, from the lowest to the highest value."""
    shown = {"accuracy": plain, "d_prime": plain, "auc": partial(plain, digits=3)}
    shown["auc_change"] = partial(signed, digits=3)
    names = ["accuracy", "auc", "auc_change", "d_prime", "criterion", "d_prime_change", "criterion_change"]
    count = rows["vector"].nunique()
    return [
        f"{count} control{'s' if count > 1 else ''}",
        "",
        _how(rows["multiplier"].iloc[0]),
        *(_range(rows[name], shown.get(name, signed)) for name in names),
    ]


def _range(values: pd.Series, show: Callable[[float], str]) -> str:
    ends = dict.fromkeys(show(each) for each in (values.min(), values.max()))
    return " to ".join(ends)


def _how(multiplier: float) -> str:
    return "projected out" if pd.isna(multiplier) else signed(multiplier)


def optimism_table(choices: pd.DataFrame) -> Table:
    """What choosing and reporting on the same questions would have claimed, and the controls' choices."""
    reported = choices[choices["split"] == "report"].to_dict("records")
    rows = [
        [
            row["score"],
            row["operation"].replace("_", " "),
            plain(row["in_sample_score"]),
            plain(row["held_out_score"]),
            f"{plain(row['optimism'])} ({plain(row['optimism_low'])} to {plain(row['optimism_high'])})",
            "–" if pd.isna(row["selection_agreement"]) else f"{row['selection_agreement']:.0%}",
            f"{plain(row['null_low'])} to {plain(row['null_high'])}" if row["controls"] else "–",
            f"{row['p_value']:.2g} ({int(row['controls'])})" if row["controls"] else "–",
        ]
        for row in reported
    ]
    columns = [
        "chosen by", "operation", "in sample", "held out", "optimism", "same again", "controls' choices", "p",
    ]  # fmt: skip
    note = (
        "Naive: chosen and reported on the same questions. Honest: chosen on one half, reported on the "
        "other, mean of repeated halvings. Optimism: how much better a choice looks where it was made; in "
        "brackets the middle 95 % of halvings. Controls' choices: control vectors put through the same "
        "choice, where they were tried at all the same cells; p: the share that does as well, the vector "
        f"itself counted, which takes {CONTROLS} controls or more to reach {ALPHA}."
    )
    return Table(columns, rows, 2, [False] * len(rows), note)


def choice_table(choices: pd.DataFrame) -> Table:
    """What was chosen on one split, and what it does on the other."""
    rows = [
        [
            row["score"],
            f"{row['split']} (n = {row['n']})",
            row["layers"],
            signed(row["multiplier"]),
            plain(row["dose"]),
            f"{plain(row['value'])} [{plain(row['low'])}, {plain(row['high'])}]",
            plain(row["unsteered"]),
            interval(row, "change"),
        ]
        for row in choices.to_dict("records")
    ]
    columns = ["chosen by", "split", "layer", "multiplier", "dose", "value", "unsteered", "change"]
    shifted = "shift" in set(choices["score"])
    note = "The shift is the mean change of the logit difference in the multiplier's direction." * shifted
    return Table(columns, rows, 2, [split == "report" for split in choices["split"]], note)


def controls_table(here: pd.DataFrame, table: pd.DataFrame) -> Table:
    """Each cell at the chosen layer beside its controls.

    Args:
        here: rows of `against_controls` at that layer.
        table: all of its rows.
    """
    rows = [
        [
            row["operation"].replace("_", " "),
            "" if pd.isna(row["multiplier"]) else signed(row["multiplier"]),
            plain(row["dose"]),
            interval(row, "effect"),
            f"{signed(row['null_low'])} to {signed(row['null_high'])}",
            str(int(row["controls"])),
            plain(row["p_value"]),
        ]
        for row in here.to_dict("records")
    ]
    value = EFFECTS[table["value"].iloc[0]]
    columns = ["operation", "multiplier", "dose", value, "controls' range", "controls", "p"]
    marked = [bool(row["p_value"] <= ALPHA) for row in here.to_dict("records")]
    fewest = int(here["controls"].min())
    one_way = table["value"].iloc[0] in ONE_WAY
    far = "that go as far from the mean of all" if one_way else "that go as far, either way"
    note = (
        "Controls' range: over control vectors, with the same multiplier and its opposite. p: the share of "
        f"them {far}, the vector itself counted; marked at {ALPHA} or less. It is of each cell alone."
    )
    if fewest < CONTROLS:
        floor = f"{1 / (fewest + 1):.2g}"
        note += f" With {fewest} controls p cannot be below {floor}: {CONTROLS} can reach {ALPHA}."
    return Table(columns, rows, 1, marked, note)


def confounds_table(here: pd.DataFrame) -> Table:
    """How far the vector lies along each factor, at one layer."""
    rows = [
        [
            row["factor"],
            row["contrast"],
            signed(row["cosine"]),
            plain(row["share"]),
            plain(row["null_high"]),
        ]
        for row in here.to_dict("records")
    ]
    columns = ["factor", "direction", "cosine", "share of length²", "chance up to"]
    note = (
        f"At layer {int(here['layer'].iloc[0])}; all: the span of all of them. Chance: in 95 % of shuffles "
        "no factor that means nothing is beyond it, at any layer; marked beyond."
    )
    if not here["balanced"].all():
        note += " Without numbers: each level is on one side alone, which is the vector's own difference."
    return Table(columns, rows, 2, here["differs"].astype(bool).tolist(), note)


def cost_table(cost: pd.DataFrame, *, effect: str) -> Table:
    """Effect and damage of every cell at the chosen layer that is no control; `effect` says of what."""
    here = cost[~cost["control"].astype(bool) & (cost["operation"] != "none")].sort_values("multiplier")
    rows = [
        [
            _how(row["multiplier"]),
            WHY[row["reason"]],
            plain(row["dose"]),
            interval(row, "effect"),
            interval(row, "kl", show=plain),
            interval(row, "loss_change"),
        ]
        for row in here.to_dict("records")
    ]
    columns = ["multiplier", "", "dose", effect, "KL (nats)", "loss change (nats)"]
    note = (
        "Usable (marked): the effect's interval is beyond zero (of a shift, on the multiplier's side), the "
        f"effect beyond that of {_number_of_controls(cost)}, the loss change's upper end at most 0.1 nats (a "
        "tenth more perplexity). The text falls apart where the loss changes by more than 2 nats."
    )
    return Table(columns, rows, 2, here["usable"].astype(bool).tolist(), note)


def _number_of_controls(cost: pd.DataFrame) -> str:
    """With how many controls an effect is compared, and whether that could be significant."""
    number = cost.loc[cost["control"].astype(bool), "vector"].nunique()
    if not number:
        return "controls, of which there are none here"
    few = f" (too few for p ≤ {ALPHA})" if number < CONTROLS else ""
    return f"the {number} control{'s' if number > 1 else ''}{few}"


def prediction_table(table: pd.DataFrame) -> Table:
    """Rank correlations over layers, of the measures that vary over these."""
    rows = [
        [
            row["measure"].replace("_", " "),
            signed(row["correlation"]),
            plain(row["p_value"]),
            str(int(row["n"])),
        ]
        for row in by_p_value(table).to_dict("records")
    ]
    note = (
        "Spearman's correlation over layers with the size of the mean slope per dose; p by shifting layers, "
        "of each measure alone; smallest p first."
    )
    return Table(["measure", "correlation", "p", "layers"], rows, 1, [False] * len(rows), note)


def _count(number: float) -> str:
    """Counts without decimals, means with one."""
    return f"{number:.0f}" if float(number).is_integer() else f"{number:.1f}"
