"""Tables of the report as text cells: numbers with intervals, and what each column means."""

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from .wording import interval, plain, signed


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
    both = both.sort_values(["control", "multiplier", "vector"], kind="stable")
    rows = [
        [
            row["vector"] if row["vector"] != "none" else "unsteered",
            signed(row["multiplier"]) if row["vector"] != "none" else "",
            interval(row, "accuracy", show=plain),
            interval(row, "d_prime", show=plain),
            interval(row, "criterion"),
            interval(row, "d_prime_change") if row["vector"] != "none" else "",
            interval(row, "criterion_change") if row["vector"] != "none" else "",
        ]
        for row in both.to_dict("records")
    ]
    columns = [
        "vector",
        "multiplier",
        "accuracy",
        "d′",
        "criterion c",
        "change of d′",
        "change of c",
    ]
    first = both.iloc[0] if len(both) else {"n_signal": 0, "n_noise": 0}
    note = (
        f"{first['n_signal']} questions whose right answer is the signal, {first['n_noise']} whose is not; "
        "95 % intervals. A negative criterion says the signal more often."
    )
    return Table(columns, rows, 1, [row["vector"] == "none" for row in both.to_dict("records")], note)


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


def _count(number: float) -> str:
    """Counts without decimals, means with one."""
    return f"{number:.0f}" if float(number).is_integer() else f"{number:.1f}"
