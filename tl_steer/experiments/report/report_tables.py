"""Tables of the report as text: numbers with intervals, and a note on what each column means."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import pandas as pd

from ...evaluation._signal_detection import FEWEST
from ...evaluation.control_tests import ONE_WAY
from ...sweeps.sweep_table import UNSTEERED
from .number_format import ALPHA, ENOUGH_CONTROLS, Format, counted, interval, plain, signed, span, steered_by

DAGGER = "†"
EFFECTS = {
    "shift": "shift (nats)",
    "accuracy": "change of accuracy",
    "d_prime": "change of d′",
    "flipped": "answers that change",
}
REASONS = {
    "": "usable",
    "damage": "the text suffers",
    "collapse": "the text falls apart",
    "no effect": "no clear effect",
}
# The measures of `detection_table`, with their formats where they are not signed with two decimals.
DETECTION = ("accuracy", "auc", "auc_change", "d_prime", "criterion", "d_prime_change", "criterion_change")
FORMATS: Mapping[str, Format] = {
    "accuracy": plain, "auc": partial(plain, digits=3), "auc_change": partial(signed, digits=3),
    "d_prime": plain,
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


def _table(
    table: pd.DataFrame,
    columns: Mapping[str, Callable[[Mapping[str, Any]], str]],
    *,
    labels: int,
    marked: pd.Series | None = None,
    note: str,
) -> Table:
    """A table of what each column's function returns for a row."""
    rows = [[text_of(row) for text_of in columns.values()] for row in table.to_dict("records")]
    marks = [False] * len(rows) if marked is None else marked.astype(bool).tolist()
    return Table(list(columns), rows, labels, marks, note)


def _number(name: str, show: Format = signed) -> Callable[[Mapping[str, Any]], str]:
    return lambda row: show(row[name])


def _range(row: Mapping[str, Any], name: str, show: Format) -> str:
    return f"{show(row[f'{name}_low'])} to {show(row[f'{name}_high'])}"


def _operation(row: Mapping[str, Any]) -> str:
    return row["operation"].replace("_", " ")


def _count(value: float) -> str:
    return plain(value, 0 if float(value).is_integer() else 1)


def audit_table(audit: pd.DataFrame) -> Table:
    """Factors and levels with counts on either side."""
    columns = {
        "factor": lambda row: row["factor"],
        "level": lambda row: row["level"],
        "positive side": _number("positive", _count),
        "negative side": _number("negative", _count),
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
    keys = ["vector", "layers", "operation", "multiplier"]
    both = detection.merge(accuracy[[*keys, "accuracy", "accuracy_low", "accuracy_high"]], on=keys)
    both = both.sort_values(["operation", "multiplier", "vector"], kind="stable")
    is_control = both["control"].astype(bool)
    own = both[~is_control].sort_values(["multiplier", "vector"], kind="stable").to_dict("records")
    controls = [rows for _, rows in both[is_control].groupby(["operation", "multiplier"], dropna=False)]
    rows = [_detection_row(row) for row in own] + [_control_row(rows) for rows in controls]
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
    if controls:
        note += " Of control vectors: the lowest and the highest value."
    if any(DAGGER in text for row in rows for text in row):
        note += (
            f" {DAGGER} Fewer than {FEWEST} answers of some kind: the interval is not known to cover, and is "
            "not used for the verdict."
        )
    marked = [row["vector"] == UNSTEERED for row in own]
    return Table(columns, rows, 2, marked + [False] * len(controls), note)


def _detection_row(row: Mapping[str, Any]) -> list[str]:
    """A condition without controls; a dagger where an interval is not known to cover."""
    is_steered = row["vector"] != UNSTEERED
    texts = []
    for name in DETECTION:
        is_change = name.endswith("_change")
        if is_change and not is_steered:
            texts.append("")
        elif name.startswith("auc") and pd.isna(row[name]):
            texts.append("–")
        else:
            covered = row["change_covered" if is_change else "covered"] or not name.startswith(("d_", "crit"))
            texts.append(interval(row, name, show=FORMATS.get(name, signed)) + DAGGER * (not covered))
    multiplier = steered_by(row["multiplier"]) if is_steered else ""
    return [row["vector"] if is_steered else "unsteered", row["verdict"], multiplier, *texts]


def _control_row(rows: pd.DataFrame) -> list[str]:
    """All controls of an operation and multiplier, from the lowest to the highest value."""
    ranges = [span(rows[name].min(), rows[name].max(), FORMATS.get(name, signed)) for name in DETECTION]
    return [counted(rows["vector"].nunique(), "control"), "", steered_by(rows["multiplier"].iloc[0]), *ranges]


def optimism_table(choices: pd.DataFrame) -> Table:
    """Results of choosing and reporting on the same questions, and of the controls' own choices."""
    columns = {
        "chosen by": lambda row: row["value_name"],
        "operation": _operation,
        "in sample": _number("in_sample_score", plain),
        "held out": _number("held_out_score", plain),
        "optimism": lambda row: f"{plain(row['optimism'])} ({_range(row, 'optimism', plain)})",
        "same again": _number("selection_agreement", lambda share: "–" if pd.isna(share) else f"{share:.0%}"),
        "controls' choices": lambda row: _range(row, "null", plain) if row["controls"] else "–",
        "p": lambda row: f"{row['p_value']:.2g} ({int(row['controls'])})" if row["controls"] else "–",
    }
    note = (
        "In sample: chosen and reported on the same questions. Held out: chosen on one half, reported on the "
        "other, mean of repeated halvings. Optimism: how much better a choice looks where it was made; in "
        "brackets the middle 95 % of halvings. Controls' choices: control vectors put through the same "
        "choice, where they were tried in all the same conditions; p: the share that does as well, the "
        f"vector itself counted, which takes {ENOUGH_CONTROLS} controls or more to reach {ALPHA}."
    )
    return _table(choices[choices["split"] == "report"], columns, labels=2, note=note)


def choice_table(choices: pd.DataFrame) -> Table:
    """The chosen conditions with their values on both splits."""
    columns = {
        "chosen by": lambda row: row["value_name"],
        "split": lambda row: f"{row['split']} (n = {row['n']})",
        "layer": lambda row: row["layers"],
        "multiplier": _number("multiplier"),
        "dose": _number("dose", plain),
        "value": lambda row: f"{plain(row['value'])} [{plain(row['low'])}, {plain(row['high'])}]",
        "unsteered": _number("unsteered", plain),
        "change": lambda row: interval(row, "change"),
    }
    shifted = "shift" in set(choices["value_name"])
    note = "The shift is the mean change of the logit difference in the multiplier's direction." * shifted
    return _table(choices, columns, labels=2, marked=choices["split"] == "report", note=note)


def controls_table(table: pd.DataFrame) -> Table:
    """Each condition next to its controls, from rows of `against_controls`."""
    value = table["value_name"].iloc[0]
    columns = {
        "operation": _operation,
        "multiplier": lambda row: "" if pd.isna(row["multiplier"]) else signed(row["multiplier"]),
        "dose": _number("dose", plain),
        EFFECTS[value]: lambda row: interval(row, "effect"),
        "controls' range": lambda row: _range(row, "null", signed),
        "controls": lambda row: str(int(row["controls"])),
        "p": _number("p_value", plain),
    }
    far = "that go as far from the mean of all" if value in ONE_WAY else "that go as far, either way"
    note = (
        "Controls' range: over control vectors, with the same multiplier and its opposite. p: the share of "
        f"them {far}, the vector itself counted; marked at {ALPHA} or less. It is of each condition alone."
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
        "share of length²": _number("share", plain),
        "chance up to": _number("null_high", plain),
    }
    note = (
        f"At layer {int(table['layer'].iloc[0])}; all: the span of all of them. Chance: in 95 % of shuffles "
        "no factor that means nothing is beyond it, at any layer; marked beyond."
    )
    if not table["balanced"].all():
        note += " Without numbers: each level is on one side alone, which is the vector's own difference."
    return _table(table, columns, labels=2, marked=table["differs"], note=note)


def cost_table(cost: pd.DataFrame, *, effect: str) -> Table:
    """Effect and damage of every condition at the chosen layer, without controls; `effect` is a heading."""
    is_control = cost["control"].astype(bool)
    own = cost[~is_control & (cost["operation"] != "none")].sort_values("multiplier")
    columns = {
        "multiplier": _number("multiplier", steered_by),
        "": lambda row: REASONS[row["reason"]],
        "dose": _number("dose", plain),
        effect: lambda row: interval(row, "effect"),
        "KL (nats)": lambda row: interval(row, "kl", show=plain),
        "loss change (nats)": lambda row: interval(row, "loss_change"),
    }
    controls = "controls (this run has no controls)"
    if number := cost.loc[is_control, "vector"].nunique():
        few = f" (too few for p ≤ {ALPHA})" if number < ENOUGH_CONTROLS else ""
        controls = f"the {counted(number, 'control')}{few}"
    note = (
        "Usable (marked): the effect's interval is beyond zero (of a shift, on the multiplier's side), the "
        f"effect beyond that of {controls}, the loss change's upper end at most 0.1 nats (a "
        "tenth more perplexity). The text falls apart where the loss changes by more than 2 nats."
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
        "measure": lambda row: row["measure"].replace("_", " "),
        "correlation": _number("correlation"),
        "p": _number("p_value", plain),
        "layers": lambda row: str(int(row["n"])),
    }
    note = (
        "Spearman's correlation over layers with the size of the mean slope per dose; p by shifting layers, "
        "of each measure alone; smallest p first."
    )
    return _table(by_p_value(table), columns, labels=1, note=note)
