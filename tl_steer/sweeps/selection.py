"""Selection of the best condition, as a function of sets of prompts: on halves, and for controls."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int

from .._util.seeds import generator
from ..statistics import percentile_interval, permutation_p_value
from .scores import Scorer, Sets, scorer
from .sweep_table import CONDITION, UNSTEERED, by_condition, merged_by_text, text_index

# "accuracy", "readable_accuracy", "d_prime", "shift", "flipped", or a function of rows
Score = str | Callable[[pd.DataFrame], float]
TIE = 1e-9  # scores of equal counts may differ by rounding

Scores = Float[np.ndarray, "set condition"]
SELECTION_COLUMNS = (
    "in_sample_score", "held_out_score", "optimism", "optimism_low", "optimism_high", "selection_agreement",
)  # fmt: skip
NULL_COLUMNS = ("controls", "null_low", "null_high", "p_value")
SHARED = ["layers", "hook", "multiplier"]  # by a control's condition and the vector's


@dataclass(frozen=True, eq=False)
class Candidates:
    """Conditions of one vector and operation on the same prompts, in the order in which they win ties.

    Attributes:
        labels: the conditions' columns and dose, one row each.
        scores: scores of all conditions on sets of prompts; NaN if a set has none.
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
    if callable(score):
        return Candidates(labels, _function_scorer(score, rows, len(labels)))
    return Candidates(labels, scorer(score, rows, before))


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
    """The first halves of random splits, stratified by answer.

    Args:
        prompts: one row per prompt or draw. Prompts of the same `group` (if there is that column) and of the
            same text are in the same half.
        splits: how many.
        seed: of the random splits.
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
    known = np.array(null, float)[~np.isnan(null)] if null else np.empty(0)
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


def _function_scorer(score: Callable[[pd.DataFrame], float], rows: pd.DataFrame, count: int) -> Scorer:
    size = len(rows) // count
    conditions = [rows.iloc[size * index : size * (index + 1)] for index in range(count)]
    return lambda sets: np.array([score(each[one]) for one in sets for each in conditions], float).reshape(
        len(sets), count
    )
