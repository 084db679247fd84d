"""Parts of the report: sections, tables as text, and the format of their numbers."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from ..evaluation._signal_detection import FEWEST
from ..evaluation.control_tests import ONE_WAY
from ..plots.format import counted, interval, number
from ..sweeps.sweep_table import UNSTEERED

Row = pd.Series | Mapping[str, Any]
SIGNED, PLAIN = "+.2f", ".2f"  # formats of changes and of other values
ALPHA = 0.05  # the largest p value that counts as significant, in every sentence and table
ENOUGH_CONTROLS = 19  # with which a p value can reach ALPHA
DAGGER = "†"
EFFECTS = {
    "shift": "shift of the logit difference (nats)",
    "bias": "shift of the logit difference (nats)",
    "accuracy": "change of accuracy",
    "d_prime": "change of d′",
    "shift_toward_answer": "shift toward the right answer (nats)",
    "criterion": "change of the criterion",
    "flipped": "answers that change (share)",
}
REASONS = {
    "": "usable",
    "damage": "the text suffers",
    "collapse": "the text falls apart",
    "no effect": "no clear effect",
}
DETECTION = {  # measures of `detection_table` with their formats
    "accuracy": PLAIN, "auc": ".3f", "auc_change": "+.3f", "d_prime": PLAIN, "criterion": SIGNED,
    "d_prime_change": SIGNED, "criterion_change": SIGNED,
}  # fmt: skip


@dataclass(frozen=True)
class Table:
    """Rows of text; the first `labels` columns are text, the others numbers, which are set to the right.

    Rows in `marked` are highlighted. In a table of `prose` the texts are long, and keep their line ends.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    labels: int
    marked: Sequence[bool]
    note: str = ""
    prose: bool = False


@dataclass(frozen=True)
class Section:
    """A part of the report: heading, its finding, how to read it, figures by their id, and tables."""

    id: str
    title: str
    finding: str
    read: str
    figures: Sequence[tuple[str, Any]] = ()
    tables: Sequence[Table] = ()


def sign_of(row: Row, name: str) -> int:
    """+1 or −1 if the interval of a column excludes zero, else 0; also 0 without an interval."""
    return int(row[f"{name}_low"] > 0) - int(row[f"{name}_high"] < 0)


def is_known(table: pd.DataFrame, column: str) -> bool:
    """Whether some steered condition has a value."""
    return bool(table.loc[table["vector"] != UNSTEERED, column].notna().any())


def span(low: float, high: float, spec: str = SIGNED) -> str:
    """A range, "+0.10 to +0.20", or one number if both look the same."""
    return " to ".join(dict.fromkeys([number(low, spec), number(high, spec)]))


def value_interval(row: Row, spec: str = PLAIN) -> str:
    """The value of a row of `choose`, with its interval."""
    return f"{number(row['value'], spec)} [{number(row['low'], spec)}, {number(row['high'], spec)}]"


def steered_by(multiplier: float) -> str:
    """A multiplier, or that the vector is projected out."""
    return "projected out" if pd.isna(multiplier) else number(multiplier, SIGNED)


def condition_label(condition: pd.Series) -> str:
    """Layer, multiplier and dose of a condition."""
    if pd.isna(condition["multiplier"]):
        return f"layer {condition['layers']} ({condition['operation']})"
    multiplier, dose = number(condition["multiplier"], SIGNED), number(condition["dose"], PLAIN)
    return f"layer {condition['layers']}, multiplier {multiplier} (dose {dose})"


def _table(
    table: pd.DataFrame,
    columns: Mapping[str, Callable[[Row], str]],
    *,
    labels: int,
    marked: pd.Series | None = None,
    note: str,
) -> Table:
    """A table of what each column's function returns for a row."""
    rows = [[text_of(row) for text_of in columns.values()] for row in table.to_dict("records")]
    marks = [False] * len(rows) if marked is None else marked.astype(bool).tolist()
    return Table(list(columns), rows, labels, marks, note)


def _number(name: str, spec: str = SIGNED) -> Callable[[Row], str]:
    return lambda row: number(row[name], spec)


def _range(row: Row, name: str, spec: str) -> str:
    return f"{number(row[f'{name}_low'], spec)} to {number(row[f'{name}_high'], spec)}"


def _spaced(name: str) -> Callable[[Row], str]:
    return lambda row: row[name].replace("_", " ")


def _count(name: str) -> Callable[[Row], str]:
    return lambda row: number(row[name], ".0f" if float(row[name]).is_integer() else ".1f")


def audit_table(audit: pd.DataFrame) -> Table:
    """Factors and levels with counts on either side."""
    columns = {
        "factor": lambda row: row["factor"],
        "level": lambda row: row["level"],
        "positive side": _count("positive"),
        "negative side": _count("negative"),
        "difference": _number("difference"),
    }
    note = "Counts of prompts, means for lengths; difference in pooled standard deviations."
    return _table(audit, columns, labels=2, marked=audit["differs"].astype(str) == "True", note=note)


def detection_table(detection: pd.DataFrame, accuracy: pd.DataFrame) -> Table:
    """Unsteered next to steered: accuracy, AUC, d′ and criterion with their changes.

    Args:
        detection: from `signal_detection`.
        accuracy: from `effectiveness` of the same rows.
    """
    keys = ["vector", "layers", "hook", "operation", "multiplier"]
    both = detection.merge(accuracy[[*keys, "accuracy", "accuracy_low", "accuracy_high"]], on=keys)
    both = both.sort_values(["operation", "multiplier", "vector"], kind="stable")
    is_control = both["control"].astype(bool)
    own = both[~is_control].sort_values(["multiplier", "vector"], kind="stable").to_dict("records")
    controls = [rows for _, rows in both[is_control].groupby(["operation", "multiplier"], dropna=False)]
    rows = [*map(_detection_row, own), *map(_control_row, controls)]
    columns = [
        "vector", "verdict", "multiplier", "accuracy", "AUC", "change of AUC", "d′", "criterion c",
        "change of d′", "change of c",
    ]  # fmt: skip
    note = (
        f"{both['n_signal'].iloc[0]} questions whose right answer is the signal, {both['n_noise'].iloc[0]} "
        "whose is not; 95 % intervals. A negative criterion says the signal more often. Where logit "
        "differences are known, the verdict on sensitivity is that of their AUC, and the verdict on bias "
        "that of their change; elsewhere d′ and c decide, if their intervals are known to cover."
    )
    if controls:
        note += " Control vectors: lowest and highest value."
    if any(DAGGER in text for row in rows for text in row):
        note += (
            f" {DAGGER} Fewer than {FEWEST} answers of some kind: the interval is not known to cover, and is "
            "not used for the verdict."
        )
    marked = [row["vector"] == UNSTEERED for row in own]
    return Table(columns, rows, 2, marked + [False] * len(controls), note)


def _detection_row(row: Row) -> list[str]:
    """A condition without controls; a dagger where an interval is not known to cover."""
    is_steered = row["vector"] != UNSTEERED
    texts = []
    for name, spec in DETECTION.items():
        is_change = name.endswith("_change")
        if is_change and not is_steered:
            texts.append("")
        elif name.startswith("auc") and pd.isna(row[name]):
            texts.append("–")
        else:
            covered = row["change_covered" if is_change else "covered"] or not name.startswith(("d_", "crit"))
            texts.append(interval(row, name, spec) + DAGGER * (not covered))
    multiplier = steered_by(row["multiplier"]) if is_steered else ""
    return [row["vector"] if is_steered else "unsteered", row["verdict"], multiplier, *texts]


def _control_row(rows: pd.DataFrame) -> list[str]:
    """All controls of an operation and multiplier, from the lowest to the highest value."""
    ranges = [span(rows[name].min(), rows[name].max(), spec) for name, spec in DETECTION.items()]
    controls = counted([rows["vector"].nunique()], "control")
    return [controls, "", steered_by(rows["multiplier"].iloc[0]), *ranges]


def optimism_table(choices: pd.DataFrame) -> Table:
    """Results of choosing and reporting on the same questions, and of the controls' own choices."""
    columns = {
        "chosen by": lambda row: row["value_name"],
        "operation": _spaced("operation"),
        "in sample": _number("in_sample_score", PLAIN),
        "held out": _number("held_out_score", PLAIN),
        "optimism": lambda row: f"{number(row['optimism'], PLAIN)} ({_range(row, 'optimism', PLAIN)})",
        "same again": _number("selection_agreement", ".0%"),
        "controls' choices": lambda row: _range(row, "null", PLAIN) if row["controls"] else "–",
        "p": lambda row: f"{row['p_value']:.2g} ({int(row['controls'])})" if row["controls"] else "–",
    }
    note = (
        "In sample: chosen and reported on the same questions. Held out: chosen on one half, reported on the "
        "other, mean of repeated halvings. Optimism: in sample minus held out; in brackets the middle 95 % "
        "of halvings. Controls' choices: the same choice among control vectors that ran in all the same "
        "conditions. p: the share of these that does as well, counting the vector itself; "
        f"{ENOUGH_CONTROLS} controls or more can reach {ALPHA}."
    )
    return _table(choices[choices["split"] == "report"], columns, labels=2, note=note)


def choice_table(choices: pd.DataFrame) -> Table:
    """The chosen conditions with their values on both splits."""
    columns = {
        "chosen by": lambda row: row["value_name"],
        "split": lambda row: f"{row['split']} (n = {row['n']})",
        "layer": lambda row: row["layers"],
        "multiplier": _number("multiplier"),
        "dose": _number("dose", PLAIN),
        "value": value_interval,
        "unsteered": _number("unsteered", PLAIN),
        "change": lambda row: interval(row, "change", SIGNED),
    }
    shifted = "shift" in set(choices["value_name"])
    note = "The shift is the mean change of the logit difference in the multiplier's direction." * shifted
    return _table(choices, columns, labels=2, marked=choices["split"] == "report", note=note)


def controls_table(table: pd.DataFrame) -> Table:
    """Each condition next to its controls, from rows of `against_controls`."""
    value = table["value_name"].iloc[0]
    columns = {
        "operation": _spaced("operation"),
        "multiplier": lambda row: "" if pd.isna(row["multiplier"]) else number(row["multiplier"], SIGNED),
        "dose": _number("dose", PLAIN),
        EFFECTS[value]: lambda row: interval(row, "effect", SIGNED),
        "controls' range": lambda row: _range(row, "null", SIGNED),
        "controls": lambda row: str(int(row["controls"])),
        "p": _number("p_value", PLAIN),
    }
    far = "as far from their mean" if value in ONE_WAY else "as far from zero, either way"
    note = (
        "Controls' range: of control vectors with the same multiplier and its opposite. p: the share of them "
        f"{far}, counting the vector itself, not corrected for several conditions; marked at {ALPHA} or less."
    )
    if (fewest := int(table["controls"].min())) < ENOUGH_CONTROLS:
        floor = f"{1 / (fewest + 1):.2g}"
        note += f" With {fewest} controls p cannot be below {floor}: {ENOUGH_CONTROLS} can reach {ALPHA}."
    return _table(table, columns, labels=1, marked=table["p_value"] <= ALPHA, note=note)


def confounds_table(table: pd.DataFrame) -> Table:
    """How far the vector is along each factor, at one layer."""
    columns = {
        "factor": lambda row: row["factor"],
        "direction": lambda row: row["contrast"],
        "cosine": _number("cosine"),
        "share of length²": _number("share", PLAIN),
        "chance up to": _number("null_high", PLAIN),
    }
    note = (
        f"At layer {int(table['layer'].iloc[0])}; all: the span of all of them. Chance: in 95 % of shuffles "
        "no shuffled factor is beyond it at any layer; marked where the vector is."
    )
    if not table["balanced"].all():
        note += " Without numbers: each level is on one side alone, which is the vector's own difference."
    return _table(table, columns, labels=2, marked=table["differs"], note=note)


def cost_table(cost: pd.DataFrame, *, effect: str) -> Table:
    """Effect and damage of every condition at the chosen layer, without controls; `effect` is a heading."""
    is_control = cost["control"].astype(bool)
    own = cost[~is_control & (cost["operation"] != "none")].sort_values("multiplier")
    columns = {
        "multiplier": lambda row: steered_by(row["multiplier"]),
        "verdict": lambda row: REASONS[row["reason"]],
        "dose": _number("dose", PLAIN),
        effect: lambda row: interval(row, "effect", SIGNED),
        "KL (nats)": lambda row: interval(row, "kl", PLAIN),
        "loss change (nats)": lambda row: interval(row, "loss_change", SIGNED),
    }
    controls = "controls (this run has no controls)"
    if n := cost.loc[is_control, "vector"].nunique():
        few = f" (too few for p ≤ {ALPHA})" if n < ENOUGH_CONTROLS else ""
        controls = f"the {counted([n], 'control')}{few}"
    note = (
        "Usable (marked): the effect's interval is beyond zero (of a shift, on the multiplier's side), the "
        f"effect beyond that of {controls}, and the loss change's upper end at most 0.1 nats (a tenth more "
        "perplexity). The text falls apart where the loss changes by more than 2 nats."
    )
    return _table(own, columns, labels=2, marked=own["usable"], note=note)


def by_p_value(table: pd.DataFrame) -> pd.DataFrame:
    """The measures of `prediction` that have a p value, smallest first, of equal ones the most correlated."""
    known = table.dropna(subset="p_value")
    known = known.assign(size=known["correlation"].abs())
    return known.sort_values(["p_value", "size"], ascending=[True, False], kind="stable")


def prediction_table(table: pd.DataFrame) -> Table:
    """Rank correlations over layers, of the measures that vary over these."""
    columns = {
        "measure": _spaced("measure"),
        "correlation": _number("correlation"),
        "p": _number("p_value", PLAIN),
        "layers": lambda row: str(int(row["n"])),
    }
    note = (
        "Spearman's correlation over layers with the size of the mean slope per dose; p of each measure "
        "alone, by shifting layers; smallest first."
    )
    return _table(by_p_value(table), columns, labels=1, note=note)
