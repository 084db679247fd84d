"""The layer and dose that do best on one half of the prompts, measured on the other half."""

import html
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Int

from .._util.seeds import generator
from .._util.validation import checked
from ..statistics import percentile_interval, rate_interval
from ..sweeps.selection import (
    NULL_COLUMNS,
    SELECTION_COLUMNS,
    Score,
    best,
    candidates,
    correct,
    correct_if_readable,
    directed,
    halvings,
    null_columns,
    numbers,
    selection_columns,
)
from ..sweeps.sweep_table import (
    CONDITION,
    UNSTEERED,
    by_condition,
    condition_means,
    condition_rows,
    ends,
    prompt_groups,
    require_unique_prompts,
    serves,
    text_index,
    text_keys,
    validated_sweep,
    with_unsteered,
)
from ._effectiveness import effectiveness, flips, renamed, share_changes
from ._signal_detection import signal_detection

LABELS = (
    "vector", "operation", "layers", "hook", "multiplier", "dose", "split", "n", "unreadable",
    "unreadable_unsteered", "value_name",
)  # fmt: skip
Measure = Callable[[pd.DataFrame, int, int], pd.DataFrame]  # rows, resamples, seed
VALUE = ["value", "low", "high"]
MEASURED = (*VALUE, "unsteered", *ends("change"))


@checked
def choose(
    table: pd.DataFrame,
    *,
    on: str,
    report: str,
    value: Score = "accuracy",
    resamples: int = 2000,
    seed: int = 0,
    splits: int = 100,
) -> pd.DataFrame:
    """For each vector and operation, the best condition on some prompts, and what it does on others.

    Args:
        table: a sweep's table; its column `split` divides the prompts.
        on: the split on which layer and multiplier are chosen.
        report: the split that had no part in the choice. Its row is the result; the other one is flattered.
        value: "accuracy", in which an unreadable answer is wrong: it rewards vectors that make answers
            readable; "readable_accuracy", of the readable answers alone; "d_prime"; "shift", the mean change
            of the logit difference times the sign of the multiplier (plus for a projection); "flipped", the
            share of choices that differ from unsteered; or a function of a condition's rows.
        resamples: bootstrap draws.
        seed: of the draws and of the halvings.
        splits: random halvings of all these prompts, in which the choice is repeated; 0 leaves NaN. A
            function is called for each half of each condition: with a slow one, take fewer.

    Returns:
        Two rows (split `on`, then `report`) for each vector and operation, controls left out, with one line
        of text for each pair of rows in `attrs["summary"]`, which a notebook shows: vector, operation,
        layers, hook, multiplier, dose, split, n, value_name (the score's name), and
        unreadable, unreadable_unsteered: shares of these prompts whose answer could not be read. Where the
            second is larger, accuracy may have risen for that alone.
        value, low, high: the score and its 95 % interval: Wilson's for accuracy and flips, that of
            `signal_detection` for d′, the paired t interval for the shift; for a function, by bootstrap.
        unsteered: the same score of the unsteered model on the same prompts.
        change, change_low, change_high: against unsteered, by paired bootstrap over prompts. For d′ and
            readable accuracy on the prompts readable in both; a shift is a change already.
        And, the same in both rows, about the choice itself:
        in_sample_score: the score of the condition chosen on all prompts of both splits, on the same prompts.
        held_out_score: mean, over both turns of each halving, of the score on one half of the condition
            chosen on the other half.
        optimism: mean of how much better that condition is on the half that it was chosen on; never below 0.
        optimism_low, optimism_high: between them lie 95 % of the halvings. A spread over splits of the same
            prompts, not a confidence interval.
        selection_agreement: share of choices on a half that are the condition of these rows.
        controls: how many control vectors went through the same choice: best condition on `on`, score on
            `report`. Only those swept under the same operation in all the same conditions.
        null_low, null_high: the lowest and the highest of their scores on `report`.
        p_value: (b + 1) / (m + 1), where b of these m controls do as well as the vector on `report`. With
            vectors of shuffled labels as controls this is nearly a permutation test of everything from pairs
            to result (see `control_vectors`: not with few groups); with random directions it compares with
            any vector of this length.

    Raises:
        ValueError: the two splits are one, one is missing, a prompt is in both, a condition lacks prompts
            that another has (the unsteered one included), only controls are there, no condition has a score,
            or `splits` is negative.

    Ties go to the smallest |dose|, then to the earlier layer, then to the first in the table.

    Source: the optimism, Efron 1986, JASA 81, 461–470; choosing again in each split, Varma & Simon 2006, BMC
    Bioinformatics 7, 91; the p value, Phipson & Smyth 2010, section 3.
    """
    measure, name = measure_of(value)
    table = validated_sweep(table, "prompt_id", "split")
    _require_splits(table, on, report, splits)
    both = table[table["split"].isin([on, report])]
    require_unique_prompts(both)
    is_control = both["control"].astype(bool)
    studied = both[~is_control]
    _require_complete(studied)
    is_unsteered = studied["vector"] == UNSTEERED
    unsteered = studied[is_unsteered]
    parts = np.stack([(unsteered["split"] == part).to_numpy() for part in (on, report)])
    halves = halvings(unsteered, splits, seed)
    results = []
    for (vector, operation), rows in studied[~is_unsteered].groupby(["vector", "operation"], sort=False):
        conditions = candidates(rows, unsteered, value)
        (index,) = best(conditions.scores(parts[:1]))
        if index < 0:
            raise ValueError(f"no condition of {vector!r} has a score: expected known choices and answers.")
        controls = both[is_control & (both["operation"] == operation) & serves(both, vector)]
        evidence = selection_columns(conditions, halves, int(index))
        evidence |= null_columns(conditions, controls, unsteered, value, parts)
        chosen = pd.concat([condition_rows(rows, conditions.labels.iloc[index]), unsteered])
        for split in (on, report):
            half = chosen[chosen["split"] == split]
            row = measure(half, resamples, seed).assign(split=split, value_name=name, **evidence)
            unreadable = half["choice"].isna().groupby(half["vector"]).mean()
            row["unreadable"], row["unreadable_unsteered"] = unreadable[vector], unreadable[UNSTEERED]
            results.append(row)
    columns = [*LABELS, *MEASURED, *SELECTION_COLUMNS, *NULL_COLUMNS]
    result = _Chosen(pd.concat(results, ignore_index=True)[columns])
    rows = result.to_dict("records")
    result.attrs["summary"] = "\n".join(map(_summary, rows[::2], rows[1::2]))
    return result


class _Chosen(pd.DataFrame):
    """The table of `choose`: a notebook shows the summary above it; selections from it are plain tables."""

    def _repr_html_(self) -> str | None:
        table = super()._repr_html_()
        return table and f"<pre>{html.escape(self.attrs.get('summary', ''))}</pre>{table}"


def _summary(on: Mapping[str, Any], report: Mapping[str, Any]) -> str:
    """The choice in one line: condition, scores on both splits, p value."""
    multiplier = "" if pd.isna(on["multiplier"]) else f" × {on['multiplier']:g}"
    reported = "{value:.3g} [{low:.3g}, {high:.3g}]".format(**report)
    if report["value_name"] != "shift":
        reported += ", change {change:+.3g} [{change_low:.3g}, {change_high:.3g}]".format(**report)
    p_value = "no p value (it needs controls at all these conditions)"
    if report["controls"]:
        p_value = f"p = {report['p_value']:.2g} against {report['controls']:g} controls"
    condition = f"{on['vector']}, {on['operation']}{multiplier} at {on['hook']} of layer {on['layers']}"
    chosen = f"best {on['value_name']} on {on['n']:g} prompts ({on['split']}), {on['value']:.3g}"
    others = f"on {report['n']:g} others ({report['split']}) {reported}"
    return f"{condition}: {chosen}; {others}; {p_value}"


def _require_splits(table: pd.DataFrame, on: str, report: str, splits: int) -> None:
    if splits < 0:
        raise ValueError(f"splits={splits} is negative: expected a number of halvings, 0 for never.")
    if on == report:
        raise ValueError(f"on and report are both {on!r}: report on prompts that had no part in the choice.")
    known = set(table["split"].dropna())
    if missing := [split for split in (on, report) if split not in known]:
        raise ValueError(f"there is no split {missing[0]!r}; the table has {sorted(map(str, known))}.")
    for column in table.columns.intersection(["prompt_id", "prompt"]):
        prompts = [set(table.loc[table["split"] == split, column]) for split in (on, report)]
        if shared := prompts[0] & prompts[1]:
            raise ValueError(
                f"{column} {sorted(shared)[:5]!r:.200} in both {on!r} and {report!r}: expected prompts that "
                "are in one of them, by their text too. Give repeated prompts the same split."
            )


def _require_complete(studied: pd.DataFrame) -> None:
    """Raise `ValueError` unless every condition has every prompt (and draw)."""
    unsteered = studied["vector"] == UNSTEERED
    if unsteered.all():
        raise ValueError("all steered conditions are controls: expected a vector's, to choose from.")
    texts = len(studied[text_keys(studied)].drop_duplicates())
    conditions = by_condition(studied).ngroups
    known = studied["prompt_id"].isin(studied.loc[unsteered, "prompt_id"])
    if len(studied) != conditions * texts or not known.all():
        raise ValueError(
            "some conditions lack prompts: expected all prompts of both splits in each condition, the "
            "unsteered one too. Pass the whole sweep."
        )


def measure_of(value: Score) -> tuple[Measure, str]:
    """The function that returns the columns `MEASURED` per steered condition, and the score's name."""
    if callable(value):
        return partial(_function, value), getattr(value, "__name__", type(value).__name__)
    if value not in _MEASURES:
        names = ", ".join(map(repr, _MEASURES))
        raise ValueError(f"value={value!r}: expected {names}, or a function of rows.")
    return _MEASURES[value], value


def _accuracy(rows: pd.DataFrame, resamples: int, seed: int, outcome: Callable = correct) -> pd.DataFrame:
    rows = with_unsteered(rows, [])
    values = pd.DataFrame({"value": outcome(numbers(rows["choice"]), numbers(rows["answer"]))})
    result = condition_means(by_condition(rows), values, {"value": rate_interval})
    result = renamed(result, "value", VALUE)
    changes = share_changes(rows, [], outcome, resamples=resamples, seed=seed)
    # Readable accuracy changes on the prompts that are readable both times.
    return _steered(result, changes[ends("change")[outcome is correct :]])


def _d_prime(rows: pd.DataFrame, resamples: int, seed: int) -> pd.DataFrame:
    result = signal_detection(rows, resamples=resamples, seed=seed)
    result = renamed(renamed(result, "d_prime", VALUE), "d_prime_change", ends("change"))
    return _steered(result.assign(n=result["n_signal"] + result["n_noise"]), result[ends("change")])


def _shift(rows: pd.DataFrame, resamples: int, seed: int) -> pd.DataFrame:
    result = effectiveness(rows)
    multiplier = result["multiplier"].to_numpy()
    interval = np.sort(directed(result[["shift_low", "shift_high"]].to_numpy(), multiplier[:, None]), axis=1)
    result[VALUE] = np.column_stack([directed(result["shift"].to_numpy(), multiplier), interval])
    return _steered(result, result[VALUE].set_axis(ends("change"), axis=1))


def _flipped(rows: pd.DataFrame, resamples: int, seed: int) -> pd.DataFrame:
    result = renamed(flips(rows, []), "flipped", VALUE)
    return _steered(result.assign(n=result["compared"]), result[VALUE].set_axis(ends("change"), axis=1))


def _function(
    score: Callable[[pd.DataFrame], float], rows: pd.DataFrame, resamples: int, seed: int
) -> pd.DataFrame:
    unsteered = rows[rows["vector"] == UNSTEERED]
    unsteered = unsteered.set_index(text_index(unsteered))
    results = []
    for _, condition in by_condition(rows):
        before = unsteered.loc[text_index(condition)].reset_index(drop=True)
        draws = _resampled(condition, resamples, seed)
        scores = np.array([[score(side.iloc[draw]) for side in (condition, before)] for draw in draws], float)
        value = score(condition)
        change = value - score(before)
        intervals = [percentile_interval(each) for each in (scores[:, 0], scores[:, 0] - scores[:, 1])]
        results.append([len(condition), value, *intervals[0], change, *intervals[1]])
    labels = by_condition(rows).head(1)[[*CONDITION, "dose"]].reset_index(drop=True)
    result = labels.join(pd.DataFrame(results, columns=["n", *VALUE, *ends("change")]))
    return _steered(result, result[ends("change")])


def _resampled(condition: pd.DataFrame, resamples: int, seed: int) -> Iterator[Int[np.ndarray, " row"]]:
    """Rows drawn with replacement: whole groups, within strata by their answers, so that all occur."""
    rng = generator(seed)
    group = prompt_groups(condition)
    answers = condition["answer"].map(str).groupby(group).agg(lambda each: " ".join(sorted(set(each))))
    rows = np.split(np.argsort(group, kind="stable"), np.cumsum(np.bincount(group))[:-1])
    strata = [np.flatnonzero(answers == each) for each in sorted(set(answers))]
    drawn = np.concatenate([rng.choice(each, (resamples, len(each))) for each in strata], axis=1)
    return (np.concatenate([rows[number] for number in draw]) for draw in drawn)


def _steered(result: pd.DataFrame, changes: pd.DataFrame) -> pd.DataFrame:
    """The steered conditions, with the unsteered value and the change against it."""
    result = result.drop(columns=changes.columns, errors="ignore").join(changes)
    result["unsteered"] = result.loc[result["vector"] == UNSTEERED, "value"].iloc[0]
    if "change" not in result:
        result["change"] = result["value"] - result["unsteered"]
    return result[result["vector"] != UNSTEERED]


_MEASURES: dict[str, Measure] = {
    "accuracy": _accuracy,
    "readable_accuracy": partial(_accuracy, outcome=correct_if_readable),
    "d_prime": _d_prime,
    "shift": _shift,
    "flipped": _flipped,
}
