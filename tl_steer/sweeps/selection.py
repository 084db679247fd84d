"""Scores of answers, and selection of the best condition: on halves, and for controls.

For accuracy, flips and shift, one number per answer; the score is the mean, without NaN. d′ is not a mean.
Arrays of choices and answers contain 0, 1 and NaN: unreadable, or no answer known.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int

from .._util.seeds import generator
from ..statistics import d_prime, percentile_interval, permutation_p_value, share
from .sweep_table import CONDITION, UNSTEERED, by_condition, merged_by_text, text_index

Values = Float[np.ndarray, "..."]
Sets = Bool[np.ndarray, "set prompt"]
Scores = Float[np.ndarray, "set condition"]
Scorer = Callable[[Sets], Scores]  # scores of each condition on sets of prompts; NaN if a set has none
# "accuracy", "readable_accuracy", "d_prime", "shift", "flipped", or a function of rows
Score = str | Callable[[pd.DataFrame], float]
TIE = 1e-9  # scores of equal counts may differ by rounding

SELECTION_COLUMNS = (
    "in_sample_score", "held_out_score", "optimism", "optimism_low", "optimism_high", "selection_agreement",
)  # fmt: skip
NULL_COLUMNS = ("controls", "null_low", "null_high", "p_value")
SHARED = ["layers", "hook", "multiplier"]  # by a control's condition and the vector's


def numbers(column: pd.Series) -> Float[np.ndarray, " row"]:
    """The column as floats, missing values as NaN."""
    return column.to_numpy(float, na_value=np.nan)


def correct(choice: Values, answer: Values) -> Values:
    """1 for the right choice, 0 for the wrong one and for an unreadable one."""
    return np.where(np.isnan(answer), np.nan, choice == answer)


def correct_if_readable(choice: Values, answer: Values) -> Values:
    """`correct`, of readable answers only."""
    return np.where(np.isnan(choice), np.nan, correct(choice, answer))


def says_signal(choice: Values) -> Values:
    """1 for choice 0, the signal."""
    return np.where(np.isnan(choice), np.nan, choice == 0)


def flipped(choice: Values, unsteered_choice: Values) -> Values:
    """1 where steering changed the choice; both must be readable."""
    return np.where(np.isnan(choice + unsteered_choice), np.nan, choice != unsteered_choice)


def directed(shift: Values, multiplier: Values) -> Values:
    """A shift in the multiplier's direction; without a multiplier (a projection) as it is."""
    return shift * np.nan_to_num(np.sign(multiplier), nan=1.0)


@dataclass(frozen=True, eq=False)
class Candidates:
    """Conditions of one vector and operation on the same prompts, in the order in which they win ties.

    Attributes:
        labels: the conditions' columns and dose, one row each.
    """

    labels: pd.DataFrame
    scores: Scorer


def candidates(rows: pd.DataFrame, before: pd.DataFrame, score: Score) -> Candidates:
    """Conditions that can be selected.

    Args:
        rows: of one vector and operation; each condition has every prompt (and draw) once.
        before: the unsteered row of each prompt or draw, which set their order.
        score: name of a score or function of rows, as for `choose`.

    Ties go to the smallest |dose|, then to the earliest layer, then to the first in the table.
    """
    number = by_condition(rows, []).ngroup().to_numpy()
    labels = rows[[*CONDITION, "dose"]][~pd.Series(number).duplicated().to_numpy()]
    dose = labels["dose"].abs().fillna(np.inf)
    layer = [min(map(int, layers.split("+"))) for layers in labels["layers"]]
    order = np.lexsort((layer, dose))
    prompt = text_index(before).get_indexer(text_index(rows))
    rows = rows.iloc[np.lexsort((prompt, np.argsort(order)[number]))]
    labels = labels.iloc[order].reset_index(drop=True)
    return Candidates(labels, _scorer(score, rows, before))


def _scorer(score: Score, rows: pd.DataFrame, unsteered: pd.DataFrame) -> Scorer:
    """Of rows condition by condition, each with every prompt once, in the order of `unsteered`."""
    size = len(unsteered)
    if callable(score):
        conditions = [rows.iloc[start : start + size] for start in range(0, len(rows), size)]
        return lambda sets: np.array(
            [score(each[one]) for one in sets for each in conditions], float
        ).reshape(len(sets), len(conditions))
    columns = ("answer", "choice", "logit_difference", "multiplier")
    matrix = {name: numbers(rows[name]).reshape(-1, size) for name in columns if name in rows}
    choice, answer = matrix["choice"], matrix["answer"]
    if score == "d_prime":
        answered = [answer == signal for signal in (0, 1)]
        counted = [each & part for part in answered for each in (choice == 0, ~np.isnan(choice))]
        return lambda sets: d_prime(*(_sums(sets, each) for each in counted))
    if score == "shift":
        shift = matrix["logit_difference"] - numbers(unsteered["logit_difference"])
        values = directed(shift, matrix["multiplier"])
    elif score == "flipped":
        values = flipped(choice, numbers(unsteered["choice"]))
    else:
        values = (correct if score == "accuracy" else correct_if_readable)(choice, answer)
    total, known = np.nan_to_num(values), ~np.isnan(values)
    return lambda sets: share(_sums(sets, total), _sums(sets, known))


def _sums(sets: Sets, values: np.ndarray) -> Scores:
    return sets.astype(float) @ values.T.astype(float)


def best(scores: Scores) -> Int[np.ndarray, " set"]:
    """Index of the first condition with the highest score on each set; −1 without a score."""
    known = np.where(np.isnan(scores), -np.inf, scores)
    is_best = known >= known.max(-1, keepdims=True) - TIE
    return np.where(np.isnan(scores).all(-1), -1, is_best.argmax(-1))


def best_conditions(table: pd.DataFrame) -> pd.DataFrame:
    """The condition of each vector and operation that does best on the split "choose", one row each.

    Args:
        table: a sweep's, without controls; if no prompt has that split, all prompts are used.

    Returns:
        The conditions' columns and dose. The score is the first of these that is known: accuracy, the shift
        of the logit difference in the multiplier's direction, the share of choices, and the share of texts
        that differ from the unsteered ones. Ties as for `candidates`.
    """
    selected = table[table["split"] == "choose"]
    table = table if selected.empty else selected
    before = table[table["vector"] == UNSTEERED]
    texts = pd.Series(before["text"].to_numpy(), text_index(before))

    def changed_texts(rows: pd.DataFrame) -> float:
        return float((rows["text"].to_numpy() != texts.loc[text_index(rows)].to_numpy()).mean())

    all_prompts = np.ones((1, len(before)), bool)
    chosen = []
    for _, rows in table[table["vector"] != UNSTEERED].groupby(["vector", "operation"], sort=False):
        for score in ("accuracy", "shift", "flipped", changed_texts):
            conditions = candidates(rows, before, score)
            (index,) = best(conditions.scores(all_prompts))
            if index >= 0:
                chosen.append(conditions.labels.iloc[index])
                break
    return pd.DataFrame(chosen, columns=[*CONDITION, "dose"])


def halvings(prompts: pd.DataFrame, splits: int, seed: int) -> Bool[np.ndarray, "split prompt"]:
    """The first halves of random splits of prompts (or draws), stratified by answer.

    Prompts of the same `group` (if there is that column) and of the same text are in the same half.
    """
    unit, _ = pd.factorize(prompts["group" if "group" in prompts else "prompt_id"], use_na_sentinel=False)
    unit = merged_by_text(unit, prompts)
    strata = prompts["answer"].map(str).groupby(unit).agg(lambda answers: " ".join(sorted(answers)))
    drawn = generator(seed).random((int(splits), len(strata)))
    # sorted by stratum, shuffled within it, assigned alternately
    order = np.lexsort((drawn, np.broadcast_to(pd.factorize(strata)[0], drawn.shape)), axis=-1)
    first = np.zeros(drawn.shape, bool)
    np.put_along_axis(first, order[:, ::2], True, axis=-1)
    return first[:, unit]


def selection_columns(
    conditions: Candidates, halves: Bool[np.ndarray, "split prompt"], chosen: int
) -> dict[str, float | int]:
    """`SELECTION_COLUMNS`: the in-sample score, and results of selecting on one half and scoring the other.

    Args:
        conditions: to select from.
        halves: the first half of each split; both halves are used for selection in turn.
        chosen: index of the condition that was selected.

    Splits with a half that has no score are left out.
    """
    everything = np.ones((2, halves.shape[1]), bool)
    result = dict.fromkeys(SELECTION_COLUMNS, np.nan)
    result["in_sample_score"] = _held_out(conditions, everything)
    scores = np.stack([conditions.scores(halves), conditions.scores(~halves)])  # turn split condition
    picked = best(scores.reshape(-1, scores.shape[-1])).reshape(scores.shape[:2])
    inside, outside = (_scores_at(each, picked) for each in (scores, scores[::-1]))
    known = ~np.isnan(inside + outside).any(0)
    if not known.any():
        return result
    optimism = (inside - outside)[:, known].mean(0)
    low, high = percentile_interval(optimism)
    values = (outside[:, known].mean(), optimism.mean(), low, high, (picked[:, known] == chosen).mean())
    return result | dict(zip(SELECTION_COLUMNS[1:], map(float, values), strict=True))


def null_columns(
    conditions: Candidates, controls: pd.DataFrame, before: pd.DataFrame, score: Score, parts: Sets
) -> dict[str, float | int]:
    """`NULL_COLUMNS`: results of the same selection among each control's conditions.

    Args:
        conditions: the vector's.
        controls: rows of control vectors under the same operation.
        before, score: as for `candidates`.
        parts: the prompts to select on, and those to score.

    Controls that lack one of the vector's conditions or prompts are left out.
    """
    null = []
    shared = controls.merge(conditions.labels[SHARED], on=SHARED)
    shared = shared[shared["prompt_id"].isin(before["prompt_id"])]
    for _, rows in shared.groupby("vector", sort=False):
        if len(rows) == len(conditions.labels) * len(before):
            null.append(_held_out(candidates(rows, before, score), parts))
    known = np.array(null, float)
    known = known[~np.isnan(known)]
    if not len(known):
        return dict(zip(NULL_COLUMNS, (0, np.nan, np.nan, np.nan), strict=True))
    value = _held_out(conditions, parts)
    p_value = np.nan if np.isnan(value) else float(permutation_p_value(value - TIE, known))
    values = (len(known), float(known.min()), float(known.max()), p_value)
    return dict(zip(NULL_COLUMNS, values, strict=True))


def _held_out(conditions: Candidates, parts: Sets) -> float:
    """Score on the second set of the condition that does best on the first."""
    on, report = conditions.scores(parts)
    (index,) = best(on[None])
    return float(report[index]) if index >= 0 else np.nan


def _scores_at(
    scores: Float[np.ndarray, "turn split condition"], index: Int[np.ndarray, "turn split"]
) -> Float[np.ndarray, "turn split"]:
    values = np.take_along_axis(scores, np.maximum(index, 0)[..., None], axis=-1)[..., 0]
    return np.where(index >= 0, values, np.nan)
