"""Whether a vector shifts a bias, improves the answers, or neither: a run's central question, in words."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from ...evaluation.tables import UNSTEERED, rows_of
from ...statistics import auc, percentile_interval
from .wording import direction, interval, place


def effect_finding(
    effects: pd.DataFrame,
    detection: pd.DataFrame,
    chosen: pd.Series,
    *,
    factor: str,
    signal: Sequence[str],
    written: bool = False,
) -> str:
    """Whether steering shifts a bias, improves the answers, or neither: the run's central question.

    Args:
        effects: `effectiveness` by `factor`, of the questions that had no part in choosing; where answers
            are texts, `answer_shifts` of them.
        detection: `signal_detection` of the same.
        chosen: the chosen cell, with the columns of a cell.
        factor: tells the kinds of questions apart.
        signal: the kinds whose right answer is the signal; the others' right answer is its opposite.
        written: answers are texts, and a shift is of the share of them that say the signal.

    A kind has moved where the interval of its shift (mean change of the logit difference, or of that share)
    excludes zero. It has moved more than by chance where no control at these layers, at this multiplier or
    its opposite, moves it as far, whichever way.
    """
    kinds = rows_of(effects, chosen)
    rows = kinds.to_dict("records")
    moves = {str(row[factor]): direction(row, "shift") for row in rows}
    shifts = "; ".join(f"{row[factor]} {interval(row, 'shift')}" for row in rows)
    measured = _share(signal) if written else "the logit difference"
    moved = f"the vector {_moved(moves, factor, signal)} (change of {measured}: {shifts})"
    controls = _against_controls(effects, kinds, chosen, factor, moves=moves)
    verdict = _verdict(detection, chosen, signal, has_noise=0 < len(signal) < len(moves))
    return f"At {place(chosen)}, on the half not chosen on, {moved}{controls}. {verdict}"


def ranking_finding(
    rows: pd.DataFrame, chosen: pd.Series, *, resamples: int = 2000, seed: int = 0
) -> str | None:
    """How well the logit difference ranks the two kinds apart, steered and not, whatever the criterion.

    Where a strong bias makes all answers alike, their d′ is at the floor, and cannot tell whether anything
    but the criterion has moved. The area under the ROC curve can.

    Args:
        rows: a sweep's rows, of the questions that had no part in choosing.
        chosen: the chosen cell.
        resamples, seed: of the paired bootstrap over questions, within each kind of answer.

    Returns:
        The sentence, or `None` where all questions have the same right answer, or answers are texts.
    """
    before = rows[rows["vector"] == UNSTEERED].set_index("prompt_id")
    sides = [before, rows_of(rows, chosen).set_index("prompt_id").loc[before.index]]
    kinds = [np.flatnonzero(before["answer"] == answer) for answer in (0, 1)]
    if not all(map(len, kinds)) or rows["logit_difference"].isna().all():
        return None
    rng = np.random.default_rng(seed)
    draws = [np.vstack([kind, rng.choice(kind, (resamples, len(kind)))]) for kind in kinds]
    values = [side["logit_difference"].to_numpy(float) for side in sides]
    # the first draw is what was seen
    then, now = (auc(value[draws[0]], value[draws[1]]) for value in values)
    low, high = percentile_interval(now[1:] - then[1:])
    return (
        f"Whatever the criterion, the logit difference tells the kinds apart with an AUC of {then[0]:.3f} "
        f"unsteered and {now[0]:.3f} steered (change {now[0] - then[0]:+.3f} [{low:+.3f}, {high:+.3f}])."
    ).replace("-", "−")


def _moved(moves: dict[str, int], factor: str, signal: Sequence[str]) -> str:
    """What happened to the kinds, in words; +1 is toward the signal."""
    toward = {1: "toward", -1: "away from"}
    aim = _aim(signal)
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


def _aim(signal: Sequence[str]) -> str:
    return f"“{signal[0]}”" if len(signal) == 1 else "the right answer"


def _share(signal: Sequence[str]) -> str:
    return f"the share that says {_aim(signal)}" if len(signal) == 1 else "the share of right answers"


def _against_controls(
    effects: pd.DataFrame, kinds: pd.DataFrame, chosen: pd.Series, factor: str, *, moves: dict[str, int]
) -> str:
    """How far control vectors move the same questions."""
    control = effects["control"].astype(bool) & (effects["layers"] == chosen["layers"])
    control &= effects["operation"] == chosen["operation"]
    sizes = effects["multiplier"].abs()
    control &= sizes.isna() if pd.isna(chosen["multiplier"]) else np.isclose(sizes, abs(chosen["multiplier"]))
    if kinds["shift"].isna().any():
        return "; where no answer can be read, there is nothing to compare with control vectors"
    if not control.any():
        return "; no control vector was tried there"
    number = effects.loc[control, "vector"].nunique()
    length = "" if pd.isna(chosen["multiplier"]) else " of the same length"  # a projection has none
    vectors = f"{number} control vector{'s' if number > 1 else ''}{length}"
    farthest = effects[control].groupby(factor)["shift"].agg(lambda shift: shift.abs().max())
    if farthest.isna().any():
        return f"; under {vectors} too few answers can be read to compare with"
    if {1, -1} <= set(moves.values()):
        return _apart_beside(effects[control], kinds, factor, moves, vectors)
    beyond = [abs(row["shift"]) > farthest[row[factor]] for row in kinds.to_dict("records")]
    told = ", ".join(f"{far:.2f} for {kind}" for kind, far in farthest.items())
    if all(beyond):
        return f", farther than {vectors} (at most {told})"
    move = "moves" if number == 1 else "move"
    if not any(moves.values()):
        return f"; {vectors} {move} them by at most {told}"
    if not any(beyond):
        return f"; but {vectors} {move} them as far (up to {told}), so this need not be the vector's doing"
    return f"; {vectors} {move} some of them as far (up to {told})"


def _apart_beside(
    controls: pd.DataFrame, kinds: pd.DataFrame, factor: str, moves: dict[str, int], vectors: str
) -> str:
    """Beside the controls' change of the difference between kinds that the vector moves opposite ways: a push
    that moves all kinds alike says nothing about that.
    """
    ways = pd.Series(moves)
    shifts = kinds.set_index(kinds[factor].astype(str))["shift"]
    apart = shifts[ways > 0].mean() - shifts[ways < 0].mean()
    levels = controls[factor].astype(str)
    sides = [
        controls[levels.isin(ways[way].index)].groupby(["vector", "multiplier"], dropna=False)["shift"].mean()
        for way in (ways > 0, ways < 0)
    ]
    farthest = (sides[0] - sides[1]).abs().max()
    changed = f"; the difference between the two ways is {apart:.2f}"
    if apart > farthest:
        return f"{changed}, more than under {vectors} (at most {farthest:.2f})"
    return f"{changed}, but under {vectors} up to {farthest:.2f}, so this need not be the vector's doing"


def _verdict(detection: pd.DataFrame, chosen: pd.Series, signal: Sequence[str], *, has_noise: bool) -> str:
    """Bias or improvement, from the changes of criterion and d′."""
    (row,) = rows_of(detection, chosen).to_dict("records")
    if np.isnan(row["d_prime_change"]):
        if has_noise:
            return "Too few of these answers can be read to tell bias from sensitivity."
        return "All questions have the same right answer, so bias and sensitivity cannot be told apart."
    sensitivity, bias = direction(row, "d_prime_change"), direction(row, "criterion_change")
    d_prime = f"d′ changes by {interval(row, 'd_prime_change')}"
    name = f"“{signal[0]}”" if len(signal) == 1 else "the signal"
    said = {1: f": {name} is said less often", -1: f": {name} is said more often", 0: ""}[bias]
    c = f"the criterion by {interval(row, 'criterion_change')}{said}"
    before = detection[detection["vector"] == UNSTEERED].iloc[0]
    if sensitivity < 0 and direction(before, "d_prime") > 0 > direction(row, "d_prime"):
        told = "along with a shift of bias" if bias else "without a measurable shift of bias"
        return (
            f"This reverses the answers, {told}: right and wrong are still told apart, and the opposite is "
            f"said. d′ is {interval(row, 'd_prime')}; {d_prime}, {c}."
        )
    if sensitivity > 0:
        also = "with a shift of bias as well" if bias else "without a measurable shift of bias"
        return f"This is an improvement, {also}: {d_prime}, {c}."
    if sensitivity < 0 and bias:
        return f"This is a shift of bias that costs sensitivity, not an improvement: {d_prime}, {c}."
    if sensitivity < 0:
        return f"This is a loss of sensitivity: {d_prime}, {c}."
    if bias:
        return f"This is a shift of bias and not measurably an improvement: {d_prime}, {c}."
    n = int(row["n_signal"] + row["n_noise"])
    return f"The {n} answers show neither a shift of bias nor an improvement: {d_prime}, {c}."
