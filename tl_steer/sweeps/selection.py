"""The rule by which a cell is chosen, as a function of the prompts: tried on halves, and on controls."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int

from .._util.seeds import generator
from ..statistics import d_prime, percentile_interval, permutation_p_value, share
from .sweep_table import CELL, UNSTEERED, in_cells, same_text_together, text_index

# "accuracy", "readable_accuracy", "d_prime", "shift", "flipped", or a function
Score = str | Callable[[pd.DataFrame], float]
TIE = 1e-9  # scores of equal counts may differ by rounding: they are tied

Sets = Bool[np.ndarray, "set prompt"]  # some sets of prompts
Scores = Float[np.ndarray, "set cell"]
Scorer = Callable[[Sets], Scores]
TRIED = (
    "in_sample_score",
    "held_out_score",
    "optimism",
    "optimism_low",
    "optimism_high",
    "selection_agreement",
)
NULL = ("controls", "null_low", "null_high", "p_value")
PLACE = ["layers", "hook", "multiplier"]  # what a control's cell shares with the vector's


@dataclass(frozen=True, eq=False)
class Candidates:
    """The cells of one vector and operation on the same prompts, in the order in which they win ties.

    Attributes:
        labels: the cells' columns and dose, a row each.
        scores: the score of every cell on each of some sets of prompts, NaN where it has none there.
    """

    labels: pd.DataFrame
    scores: Scorer


def candidates(rows: pd.DataFrame, before: pd.DataFrame, score: Score) -> Candidates:
    """Cells that can be chosen from.

    Args:
        rows: of one vector and operation; every cell has each of the prompts (and draws) once.
        before: the unsteered row of each prompt, or draw of it; the order of the prompts is theirs.
        score: the name of a score, or a function of rows, as for `choose`.

    Of cells with equal scores the one with the smallest |dose| is taken, then the one with the earlier layer,
    then the one that comes first in the table.
    """
    number = in_cells(rows, []).ngroup().to_numpy()
    labels = rows[[*CELL, "dose"]][~pd.Series(number).duplicated().to_numpy()]
    dose = labels["dose"].abs().fillna(np.inf)
    layer = [min(map(int, layers.split("+"))) for layers in labels["layers"]]
    order = np.lexsort((layer, dose))
    place = text_index(before).get_indexer(text_index(rows))
    rows = rows.iloc[np.lexsort((place, np.argsort(order)[number]))]
    scorer = _looped(score, rows, len(labels)) if callable(score) else _SCORERS[score](rows, before)
    return Candidates(labels.iloc[order].reset_index(drop=True), scorer)


def best(scores: Scores) -> Int[np.ndarray, " set"]:
    """The place of the cell chosen on each set: the first of the highest scores, −1 where there is none."""
    known = np.where(np.isnan(scores), -np.inf, scores)
    reached = known >= known.max(-1, keepdims=True) - TIE
    return np.where(np.isnan(scores).all(-1), -1, reached.argmax(-1))


def best_conditions(table: pd.DataFrame) -> pd.DataFrame:
    """Of each vector and operation the condition that does best on the split "choose", a row each.

    Args:
        table: a sweep's, without controls; where no prompt has that split, all prompts decide.

    Returns:
        The conditions' columns and dose. The score is the first of these that the conditions have: accuracy;
        the shift of the logit difference in the multiplier's direction; the share of choices that differ from
        the unsteered ones; the share of texts that do. Ties as for `candidates`.
    """
    half = table[table["split"] == "choose"]
    table = table if half.empty else half
    before = table[table["vector"] == UNSTEERED]
    texts = pd.Series(before["text"].to_numpy(), text_index(before))

    def changed_texts(rows: pd.DataFrame) -> float:
        return float((rows["text"].to_numpy() != texts.loc[text_index(rows)].to_numpy()).mean())

    everything = np.ones((1, len(before)), bool)
    chosen = []
    for _, rows in table[table["vector"] != UNSTEERED].groupby(["vector", "operation"], sort=False):
        for score in ("accuracy", "shift", "flipped", changed_texts):
            cells = candidates(rows, before, score)
            (place,) = best(cells.scores(everything))
            if place >= 0:
                chosen.append(cells.labels.iloc[place])
                break
    return pd.DataFrame(chosen, columns=[*CELL, "dose"])


def halvings(asked: pd.DataFrame, splits: int, seed: int) -> Bool[np.ndarray, "split prompt"]:
    """The first halves of random splits: each half has as many prompts of each answer.

    Args:
        asked: a row a prompt, or draw of it; prompts of one `group`, where there is such a column, and
            prompts of the same text go to the same half.
        splits: how many.
        seed: of the draws.
    """
    unit, _ = pd.factorize(asked["group" if "group" in asked else "prompt_id"], use_na_sentinel=False)
    unit = same_text_together(unit, asked)
    kinds = asked["answer"].map(str).groupby(unit).agg(lambda answers: " ".join(sorted(answers)))
    drawn = generator(seed).random((int(splits), len(kinds)))
    # sorted by kind, shuffled within, dealt out
    order = np.lexsort((drawn, np.broadcast_to(pd.factorize(kinds)[0], drawn.shape)), axis=-1)
    first = np.zeros(drawn.shape, bool)
    np.put_along_axis(first, order[:, ::2], True, axis=-1)
    return first[:, unit]


def tried(cells: Candidates, halves: Bool[np.ndarray, "split prompt"], chosen: int) -> dict[str, float | int]:
    """The columns `TRIED`: the naive score, and what choosing on one half and reporting on the other gives.

    Args:
        cells: to choose from.
        halves: the first half of each split; each half takes its turn.
        chosen: the place of the cell that was chosen in earnest.

    Splits in which a half has no score are left out.
    """
    everything = np.ones((1, halves.shape[1]), bool)
    result = dict.fromkeys(TRIED, np.nan) | {
        "in_sample_score": _reported(cells, np.repeat(everything, 2, axis=0))
    }
    scores = np.stack([cells.scores(halves), cells.scores(~halves)])  # turn split cell
    picked = best(scores.reshape(-1, scores.shape[-1])).reshape(scores.shape[:2])
    inside, outside = (_taken(each, picked) for each in (scores, scores[::-1]))
    known = ~np.isnan(inside + outside).any(0)
    if not known.any():
        return result
    optimism = (inside - outside)[:, known].mean(0)
    low, high = percentile_interval(optimism)
    found = (outside[:, known].mean(), optimism.mean(), low, high, (picked[:, known] == chosen).mean())
    return result | dict(zip(TRIED[1:], map(float, found), strict=True))


def compared(
    cells: Candidates, controls: pd.DataFrame, before: pd.DataFrame, score: Score, parts: Sets
) -> dict[str, float | int]:
    """The columns `NULL`: what the same choice finds in control vectors.

    Args:
        cells: the vector's.
        controls: rows of control vectors under the same operation.
        before: as for `candidates`.
        score: as for `candidates`.
        parts: the prompts to choose on, and those to report on.

    A control that lacks a cell or a prompt of the vector's was not chosen the same way, and is left out.
    """
    null = []
    alike = controls.merge(cells.labels[PLACE], on=PLACE)
    alike = alike[alike["prompt_id"].isin(before["prompt_id"])]
    for _, mine in alike.groupby("vector", sort=False):
        if len(mine) == len(cells.labels) * len(before):
            null.append(_reported(candidates(mine, before, score), parts))
    known = np.array(null, float)[~np.isnan(null)] if null else np.empty(0)
    if not len(known):
        return dict(zip(NULL, (0, np.nan, np.nan, np.nan), strict=True))
    reported = _reported(cells, parts)
    p_value = np.nan if np.isnan(reported) else permutation_p_value(reported - TIE, known)
    found = (len(known), float(known.min()), float(known.max()), float(p_value))
    return dict(zip(NULL, found, strict=True))


def _reported(cells: Candidates, parts: Sets) -> float:
    on, report = cells.scores(parts)
    (place,) = best(on[None])
    return float(report[place]) if place >= 0 else np.nan


def _taken(
    scores: Float[np.ndarray, "turn split cell"], picked: Int[np.ndarray, "turn split"]
) -> Float[np.ndarray, "turn split"]:
    values = np.take_along_axis(scores, np.maximum(picked, 0)[..., None], axis=-1)[..., 0]
    return np.where(picked >= 0, values, np.nan)


def _looped(score: Callable[[pd.DataFrame], float], rows: pd.DataFrame, count: int) -> Scorer:
    size = len(rows) // count
    cells = [rows.iloc[size * place : size * (place + 1)] for place in range(count)]
    return lambda sets: np.reshape(
        np.array([score(cell[chosen]) for chosen in sets for cell in cells], float), (len(sets), count)
    )


def _accuracy(rows: pd.DataFrame, before: pd.DataFrame) -> Scorer:
    answer, choice = (_matrix(rows[name], before) for name in ("answer", "choice"))
    return lambda sets: share(_sums(sets, choice == answer), _sums(sets, ~np.isnan(answer)))


def _readable_accuracy(rows: pd.DataFrame, before: pd.DataFrame) -> Scorer:
    answer, choice = (_matrix(rows[name], before) for name in ("answer", "choice"))
    return lambda sets: share(_sums(sets, choice == answer), _sums(sets, ~np.isnan(answer + choice)))


def _d_prime(rows: pd.DataFrame, before: pd.DataFrame) -> Scorer:
    answer, choice = (_matrix(rows[name], before) for name in ("answer", "choice"))
    said, read = choice == 0, ~np.isnan(choice)
    counted = [met & (answer == kind) for kind in (0, 1) for met in (said, read)]
    return lambda sets: d_prime(*(_sums(sets, each) for each in counted))


def _shift(rows: pd.DataFrame, before: pd.DataFrame) -> Scorer:
    moved = _matrix(rows["logit_difference"], before) - before["logit_difference"].to_numpy(float)
    known = ~np.isnan(moved)
    moved = np.where(known, moved, 0) * np.nan_to_num(np.sign(_matrix(rows["multiplier"], before)), nan=1.0)
    return lambda sets: share(_sums(sets, moved), _sums(sets, known))


def _flipped(rows: pd.DataFrame, before: pd.DataFrame) -> Scorer:
    choice, then = _matrix(rows["choice"], before), before["choice"].to_numpy(float, na_value=np.nan)
    both = ~np.isnan(choice + then)
    return lambda sets: share(_sums(sets, both & (choice != then)), _sums(sets, both))


_SCORERS = {
    "accuracy": _accuracy,
    "readable_accuracy": _readable_accuracy,
    "d_prime": _d_prime,
    "shift": _shift,
    "flipped": _flipped,
}


def _matrix(column: pd.Series, before: pd.DataFrame) -> Float[np.ndarray, "cell prompt"]:
    return column.to_numpy(float, na_value=np.nan).reshape(-1, len(before))


def _sums(sets: Sets, values: np.ndarray) -> Scores:
    return sets.astype(float) @ values.T.astype(float)
