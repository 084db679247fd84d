"""Sentences made of a run's numbers, with intervals, and no more certain than those."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from ..evaluation.tables import CELL, UNSTEERED

LITTLE_MASS = (
    0.5  # below this share of all probability, two choices say little about what the model would say
)
SCORES = {
    "accuracy": "accuracy",
    "d_prime": "d′",
    "shift": "shift of the logit difference in the multiplier's direction",
}


def separation_finding(table: pd.DataFrame) -> str:
    """Where held-out pairs separate better than under exchanged labels.

    Args:
        table: from `analysis.separation`.

    A layer counts as clear where the interval of its paired accuracy lies above the null band. Where only
    points lie above it, the sentence says how many would by chance: 2.5 % of the layers.
    """
    best = table.loc[table["paired_accuracy"].idxmax()]
    n = f"{int(best['pairs'])} pairs, {int(best['folds'])}-fold"
    band = f"{_share(best['null_low'])} to {_share(best['null_high'])}"
    if table["null_high"].isna().all():
        lowest, highest = _share(table["paired_accuracy"].min()), _share(best["paired_accuracy"])
        return f"Held-out paired accuracy lies between {lowest} and {highest} ({n}); no exchanged labels were run to compare."
    above = table[table["paired_accuracy"] > table["null_high"]]
    clear = table[table["paired_accuracy_low"] > table["null_high"]]
    top = (
        f"the best is layer {int(best['layer'])} with {_share(best['paired_accuracy'])} "
        f"[{_share(best['paired_accuracy_low'])}, {_share(best['paired_accuracy_high'])}], "
        f"where exchanged labels give {band} ({n})"
    )
    if len(clear):
        return (
            f"Held-out pairs separate at {len(clear)} of {len(table)} layers ({_runs(clear['layer'])}), beyond what "
            f"exchanged labels give: {top}."
        )
    if len(above):
        return (
            f"Held-out pairs do not clearly separate at any layer: at {len(above)} of {len(table)} "
            f"({_runs(above['layer'])}) the paired accuracy lies above the band of exchanged labels, but its interval "
            f"reaches into it, and about {0.025 * len(table):.1g} would lie above by chance; {top}."
        )
    span = f"{_share(table['paired_accuracy'].min())} to {_share(table['paired_accuracy'].max())}"
    return (
        f"The pairs do not separate in this model: at none of {len(table)} layers does the held-out paired accuracy "
        f"({span}) rise above what exchanged labels give; {top}. A vector made of such pairs is not shown to carry "
        "what they were meant to differ in."
    )


def effect_finding(
    effects: pd.DataFrame, detection: pd.DataFrame, chosen: pd.Series, *, factor: str, signal: Sequence[str]
) -> str:
    """Whether steering shifts a bias, improves the answers, or neither: the run's central question.

    Args:
        effects: `effectiveness` by `factor`, of the questions that had no part in choosing.
        detection: `signal_detection` of the same.
        chosen: the chosen cell, with the columns of a cell.
        factor: tells the kinds of questions apart.
        signal: the kinds whose right answer is the signal; the others' right answer is its opposite.

    A kind has moved where the interval of its shift (mean change of the logit difference) excludes zero. It
    has moved more than by chance where no control at these layers, at this multiplier or its opposite, moves
    it as far, whichever way.
    """
    kinds = _cell(effects, chosen)
    moves = {str(row[factor]): _direction(row, "shift") for row in kinds.to_dict("records")}
    shifts = "; ".join(f"{row[factor]} {_interval(row, 'shift')}" for row in kinds.to_dict("records"))
    where = (
        f"At layer {chosen['layers']}, multiplier {_signed(chosen['multiplier'])} (dose {chosen['dose']:.2f})"
    )
    moved = f"{where}, on the half not chosen on, the vector {_moved(moves, factor, signal)} (logit difference: {shifts})"
    return f"{moved}{_against_controls(effects, kinds, chosen, factor)}. {_verdict(detection, chosen)}"


def choice_finding(choices: pd.DataFrame) -> str:
    """What was chosen on one half of the questions, and what it does on the other.

    Args:
        choices: two rows from `choose`, the choosing half first.
    """
    on, report = (choices.iloc[place] for place in (0, 1))
    shown = _share if on["score"] == "accuracy" else _signed
    sentence = (
        f"By {SCORES.get(on['score'], on['score'])}, layer {on['layers']} at multiplier {_signed(on['multiplier'])} does best "
        f"on one half ({int(on['n'])} questions: {shown(on['value'])}"
    )
    found = f"{shown(report['value'])} [{shown(report['low'])}, {shown(report['high'])}]"
    if on["score"] == "shift":
        return f"{sentence}); on the other half it gives {found}{_unless_zero(report)}."
    before = f"against {shown(report['unsteered'])} unsteered, a change of {_interval(report, 'change')}"
    return f"{sentence}); on the other half it gives {found} {before}{_unless_zero(report)}."


def mass_finding(rows: pd.DataFrame, chosen: pd.Series) -> str | None:
    """A warning where the two choices hold little of the probability, unsteered or at the chosen cell."""
    masses = {
        "unsteered": rows.loc[rows["vector"] == UNSTEERED, "mass"].mean(),
        "steered": _cell(rows, chosen)["mass"].mean(),
    }
    if min(masses.values()) >= LITTLE_MASS:
        return None
    return (
        f"Caution: the two choices together hold {_share(masses['unsteered'])} of the probability unsteered and "
        f"{_share(masses['steered'])} steered; most of the time the model would say something else."
    )


def text_finding(texts: pd.DataFrame) -> str:
    """What texts there are; nothing is claimed of them."""
    layers = [name for name in texts["layers"].unique() if name]
    return (
        f"{texts['prompt_id'].nunique()} open prompts were answered with the vector subtracted, left out and added at "
        f"{_counted('layer', layers)}; the texts are below to be read, and nothing is measured of them."
    )


def _moved(moves: dict[str, int], factor: str, signal: Sequence[str]) -> str:
    """What happened to the kinds, in words; +1 is toward the signal."""
    toward = {1: "toward", -1: "away from"}
    aim = f"“{signal[0]}”" if len(signal) == 1 else "the right answer"
    if not any(moves.values()):
        return f"moves no kind of question measurably toward or away from {aim}"
    if len(set(moves.values())) == 1:
        (way,) = set(moves.values())
        return f"moves {'both' if len(moves) == 2 else 'all'} kinds of questions {toward[way]} {aim}"
    if len(signal) < len(moves):
        right = {kind: way if kind in signal else -way for kind, way in moves.items()}
        if set(right.values()) == {1}:
            return "moves each kind of question toward its own right answer"
        if set(right.values()) == {-1}:
            return "moves each kind of question toward its own wrong answer"
    parts = [f"{kind} {toward[way]} {aim}" for kind, way in moves.items() if way]
    still = [kind for kind, way in moves.items() if not way]
    rest = f", and {' and '.join(still)} not measurably" if still else ""
    return f"moves questions of {factor} {' and '.join(parts)}{rest}"


def _against_controls(effects: pd.DataFrame, kinds: pd.DataFrame, chosen: pd.Series, factor: str) -> str:
    """How far random directions move the same questions."""
    control = effects["control"].astype(bool) & (effects["layers"] == chosen["layers"])
    control &= effects["operation"] == chosen["operation"]
    sizes = effects["multiplier"].abs()
    control &= sizes.isna() if pd.isna(chosen["multiplier"]) else np.isclose(sizes, abs(chosen["multiplier"]))
    if not control.any():
        return "; no random direction was tried there"
    farthest = effects[control].groupby(factor)["shift"].agg(lambda shift: shift.abs().max())
    beyond = [abs(row["shift"]) > farthest[row[factor]] for row in kinds.to_dict("records")]
    number = effects.loc[control, "vector"].nunique()
    told = "; ".join(f"{kind} {far:.2f}" for kind, far in farthest.items())
    random = f"{number} random direction{'s' if number > 1 else ''} of the same length"
    if all(beyond):
        return f", farther than {random} (at most {told})"
    if not any(beyond):
        return f"; but {random} move{'s' if number == 1 else ''} them as far (up to {told}), so this is not the vector's doing"
    return f"; {random} move{'s' if number == 1 else ''} one kind as far (up to {told})"


def _verdict(detection: pd.DataFrame, chosen: pd.Series) -> str:
    """Bias or improvement, from the changes of criterion and d′."""
    (row,) = _cell(detection, chosen).to_dict("records")
    d_prime, c = _interval(row, "d_prime_change"), _interval(row, "criterion_change")
    if np.isnan(row["d_prime_change"]):
        return "All questions have the same right answer here, so bias and sensitivity cannot be told apart."
    sensitivity, bias = _direction(row, "d_prime_change"), _direction(row, "criterion_change")
    if sensitivity > 0:
        also = (
            f", with a shift of bias as well (criterion {c})"
            if bias
            else f"; the criterion does not measurably move ({c})"
        )
        return f"This is an improvement: d′ rises by {d_prime}{also}."
    if sensitivity < 0:
        also = (
            f", and the bias shifts (criterion {c})"
            if bias
            else f"; the criterion does not measurably move ({c})"
        )
        return f"This is no improvement but a loss: d′ falls by {d_prime}{also}."
    if bias:
        return f"This is a shift of bias, not an improvement: the criterion moves by {c}, d′ not measurably ({d_prime})."
    n = int(row["n_signal"] + row["n_noise"])
    return f"In the answers given, neither bias nor sensitivity changes measurably with {n} questions: criterion {c}, d′ {d_prime}."


def _unless_zero(row: pd.Series) -> str:
    return ", which may be no change at all" if _direction(row, "change") == 0 else ""


def _direction(row: pd.Series | dict, name: str) -> int:
    """+1 or −1 where the interval lies on one side of zero, else 0; so too where there is no interval."""
    return int(row[f"{name}_low"] > 0) - int(row[f"{name}_high"] < 0)


def _cell(table: pd.DataFrame, cell: pd.Series) -> pd.DataFrame:
    same = [
        table[name].eq(cell[name]) | (table[name].isna() & pd.isna(cell[name]))
        for name in CELL
        if name in cell
    ]
    return table[np.logical_and.reduce(same) & ~table["control"].astype(bool)]


def _interval(row: pd.Series | dict, name: str) -> str:
    return f"{_signed(row[name])} [{_signed(row[f'{name}_low'])}, {_signed(row[f'{name}_high'])}]"


def _signed(number: float) -> str:
    return "–" if pd.isna(number) else f"{number:+.2f}".replace("-", "−")


def _share(number: float) -> str:
    return "–" if pd.isna(number) else f"{number:.2f}"


def _runs(layers: Sequence[int]) -> str:
    """Layers as runs: "0–4, 7, 9–11"."""
    layers = sorted(int(layer) for layer in layers)
    starts = [layer for layer in layers if layer - 1 not in layers]
    ends = [layer for layer in layers if layer + 1 not in layers]
    return ", ".join(str(a) if a == b else f"{a}–{b}" for a, b in zip(starts, ends, strict=True))


def _counted(word: str, names: Sequence[str]) -> str:
    return f"{word}{'s' if len(names) > 1 else ''} {', '.join(names)}"
