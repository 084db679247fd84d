"""What steering does to the answers: accuracy, flips, and the shift against the unsteered model."""

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float

from .._util.seeds import generator
from .._util.validation import checked
from ..statistics import joint_counts, mean_interval, rate_interval, share_change
from ..sweeps.selection import correct, flipped, numbers, says_signal
from ..sweeps.sweep_table import (
    CONDITION,
    UNSTEERED,
    ByCondition,
    by_condition,
    condition_means,
    ends,
    factors_of,
    prompt_groups,
    validated_sweep,
    with_unsteered,
)

ALL = "all"  # the level of a factor in rows of all prompts
INTERVALS = {
    "accuracy": rate_interval, "signal_rate": rate_interval, "logit_difference": mean_interval,
    "shift": mean_interval,
}  # fmt: skip
RESULTS = ("n", "unreadable", *INTERVALS, "flipped")


@checked
def effectiveness(
    table: pd.DataFrame, *, by: str | Sequence[str] = (), overall: bool = False
) -> pd.DataFrame:
    """Accuracy, signal rate, logit difference, shift and flips per condition.

    Args:
        table: a sweep's table, one row per prompt (or draw of it) and condition.
        by: factors of the prompts to split by ("label", "answer", "split"). Conditions are never pooled.
        overall: put rows of all prompts first, in which the one factor of `by` is "all".

    Returns:
        The condition's columns, `dose`, the factors, and, with 95 % intervals in `…_low` and `…_high`:
        n: prompts; with several draws per prompt, all draws.
        unreadable: share of them whose answer could not be read (choice NA).
        accuracy: share of right answers where the right one is known, else NaN; an unreadable answer is not
            right. Wilson interval.
        signal_rate: share of choice 0 among the readable. Wilson interval.
        logit_difference: mean of first choice minus second. t interval.
        shift: mean change of the logit difference against unsteered, on the same prompts. Paired t interval.
        flipped: share of prompts, readable with and without, whose choice differs from the unsteered one.
        `shift` and `flipped` are NaN where the table has no unsteered rows for these prompts.

    Raises:
        ValueError: columns are missing, `by` names an outcome or a result, a prompt is in a condition twice;
            or `overall` where `by` is not one factor, or one that has a value "all".

    Prompts that share a `group` or their text are not independent, nor are the draws of a prompt: intervals
    take them together (`statistics.mean_interval`, `statistics.rate_interval`). They hold for one condition,
    not for the best of many: see `choose`.
    """
    by = factors_of(table, by, RESULTS)
    if overall:
        return _with_all(table, by)
    conditions, outcomes = _by_condition(table, by)
    result = condition_means(conditions, outcomes, INTERVALS)
    means = outcomes.groupby(conditions.ngroup().to_numpy()).mean()
    result.insert(result.columns.get_loc("n") + 1, "unreadable", 1 - means["readable"].to_numpy())
    return result.assign(flipped=means["flipped"].to_numpy())


def flips(table: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """`flipped` of `effectiveness` with its Wilson interval, and `compared`, the prompts it is of."""
    conditions, outcomes = _by_condition(table, by)
    result = condition_means(conditions, outcomes, {"flipped": rate_interval})
    compared = outcomes["flipped"].groupby(conditions.ngroup().to_numpy()).count()
    result.insert(result.columns.get_loc("n") + 1, "compared", compared.to_numpy())
    return result


def renamed(table: pd.DataFrame, name: str, names: Sequence[str]) -> pd.DataFrame:
    """The table with other names for a value and the ends of its interval."""
    return table.rename(columns=dict(zip(ends(name), names, strict=True)))


def _with_all(table: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    if len(by) != 1:
        raise ValueError(f"overall=True with by={by}: expected one factor, which is {ALL!r} in the new rows.")
    (factor,) = by
    if table[factor].astype(str).eq(ALL).any():
        raise ValueError(f"{factor!r} has a value {ALL!r} already. Rename it, or leave overall out.")
    split = effectiveness(table, by=by)
    together = effectiveness(table)
    together[factor] = ALL
    return pd.concat([together[list(split)], split.astype({factor: object})], ignore_index=True)


def _by_condition(table: pd.DataFrame, by: Sequence[str]) -> tuple[ByCondition, pd.DataFrame]:
    """The rows by condition and factors, and, separately since factors may have their names, the outcomes."""
    rows = with_unsteered(table, by)
    keys = [*CONDITION, "dose", *by, *rows.columns.intersection(["prompt_id", "prompt", "group"])]
    choice, answer = numbers(rows["choice"]), numbers(rows["answer"])
    outcomes = {
        "readable": ~np.isnan(choice),
        "accuracy": correct(choice, answer),
        "signal_rate": says_signal(choice),
        "flipped": flipped(choice, numbers(rows["unsteered_choice"])),
        "logit_difference": rows["logit_difference"].to_numpy(),
        "shift": (rows["logit_difference"] - rows["unsteered_logit_difference"]).to_numpy(),
    }
    return by_condition(rows[[*dict.fromkeys(keys)]], by), pd.DataFrame(outcomes)


def share_changes(
    rows: pd.DataFrame,
    by: Sequence[str],
    outcome: Callable[[Float[np.ndarray, " n"], Float[np.ndarray, " n"]], Float[np.ndarray, " n"]],
    *,
    resamples: int,
    seed: int,
) -> pd.DataFrame:
    """Change per condition of the share of answers with an outcome, against the same prompts unsteered.

    Args:
        rows: from `with_unsteered`.
        by: factors to split by, too.
        outcome: of choices and right answers: 0, 1, or NaN where an answer does not count.
        resamples, seed: of `statistics.share_change`; every condition starts from the seed.

    Returns:
        compared (answers that count both times), change, change_low, change_high.
    """
    answer = numbers(rows["answer"])
    now, then = (outcome(numbers(rows[name]), answer) for name in ("choice", "unsteered_choice"))

    def change(both: Bool[np.ndarray, " row"]) -> list[int | float]:
        joint = joint_counts(now[both] == 1, then[both] == 1, prompt_groups(rows[both]))
        interval = share_change(joint, resamples=resamples, rng=generator(seed), grouped=True)
        return [int(both.sum()), *map(float, interval)]

    number, known = by_condition(rows, by).ngroup().to_numpy(), ~np.isnan(now + then)
    changes = [change((number == each) & known) for each in range(number.max() + 1)]
    return pd.DataFrame(changes, columns=["compared", *ends("change")]).astype({"compared": int})


def answer_shifts(rows: pd.DataFrame, *, by: str, resamples: int = 2000, seed: int = 0) -> pd.DataFrame:
    """Change of the share of answers that say the signal, for texts, which have no logit difference.

    Args:
        rows: a sweep's table with `choice`, the unsteered condition included.
        by: the factor that distinguishes the types of questions.
        resamples, seed: of the paired bootstrap over groups (`statistics.share_change`).

    Returns:
        One row per condition and level: the condition's columns, `dose`, the factor,
        n: prompts; with several draws per prompt, all draws.
        compared: those readable both unsteered and steered. The others do not count: a vector that only
            breaks the text would otherwise seem to move all answers away from the signal.
        shift, shift_low, shift_high: change of the share of choice 0 against unsteered, from −1 to 1, with
            its 95 % interval; NaN where nothing can be compared, zero for the unsteered condition.
    """
    factors_of(rows, by, ("n", "compared", "shift"))
    rows = with_unsteered(rows, [by])
    result = condition_means(by_condition(rows, [by]), rows, {})
    changes = share_changes(rows, [by], lambda choice, _: says_signal(choice), resamples=resamples, seed=seed)
    values = changes[ends("change")].to_numpy(copy=True)
    values[(result["vector"] == UNSTEERED) & ~np.isnan(values[:, 0])] = 0.0
    result["compared"] = changes["compared"]
    result[ends("shift")] = values
    return result


@checked
def embedding_effect(table: pd.DataFrame, *, by: str | Sequence[str] = ()) -> pd.DataFrame:
    """Mean embedding score and its shift per condition.

    Args:
        table: from `embedding_scores`.
        by: factors of the prompts to split by. Conditions are never pooled.

    Returns:
        The condition's columns, `dose`, the factors, and, with 95 % intervals in `…_low` and `…_high`:
        n, blank: texts with and without a score.
        score: mean embedding score. Student's t interval.
        shift: mean change against the unsteered text of the same prompt and draw. Paired t interval; NaN
            where there is no unsteered text.
        Prompts of one `group`, and draws of one prompt, are taken together, as in `effectiveness`.

    Raises:
        ValueError: columns are missing, `by` names an outcome, or a prompt is in a condition twice.
    """
    table = validated_sweep(table, "embedding_score", producer="embedding_scores")
    factors = factors_of(table, by, {"n", "blank", "score", "shift"})
    result = effectiveness(table.assign(logit_difference=table["embedding_score"]), by=factors)
    n = by_condition(table, factors)["embedding_score"].count().to_numpy()  # in the same order
    result = renamed(result.assign(blank=result["n"] - n, n=n), "logit_difference", ends("score"))
    return result[[*CONDITION, "dose", *factors, "n", "blank", *ends("score"), *ends("shift")]]
