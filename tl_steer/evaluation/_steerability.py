"""How steerable each prompt is: the slope of its logit difference over the multipliers."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from .._util.seeds import generator
from .._util.validation import checked
from ..statistics import percentile_interval, rate_interval, share
from ..sweeps.selection import numbers
from ..sweeps.sweep_table import (
    DRAW,
    FIXED,
    UNSTEERED,
    UNSTEERED_OUTCOMES,
    ends,
    factors_of,
    prompt_groups,
    text_keys,
    with_unsteered,
)
from ..tables import validated

LINE = ("vector", "control", "control_of", "operation", "hook", "layers")  # a condition without multiplier
SLOPES = ("toward", "multipliers", "slope", "r_squared", "slope_per_dose")
RESULTS = ("n", *ends("slope"), *ends("slope_per_dose"), *ends("anti_steerable"), "spread", "r_squared")


@checked
def prompt_slopes(table: pd.DataFrame, *, toward: str = "signal") -> pd.DataFrame:
    """The slope of each prompt's logit difference over multipliers, by least squares, unsteered at 0.

    Args:
        table: of a sweep that scored choices; its controls are kept.
        toward: "signal" counts a shift toward choice 0 as positive, "answer" one toward the right answer of
            each prompt.

    Returns:
        One row per prompt and vector, operation, hook and layers: these, control, toward, prompt_id, prompt,
        the factors, answer, split, and
        multipliers: points of the line, the unsteered one among them.
        slope: nats per unit of multiplier.
        r_squared: share of the points' variance that the line explains: low where the effect turns or levels
            off. It is 1 for two points, and NaN where nothing moves.
        slope_per_dose: nats per unit of dose (with the multiplier's sign): comparable across layers and
            vectors. NaN for an operation without a dose.
        Slopes are NaN for a prompt without a scored answer, and toward "answer" without a right one.

    Raises:
        ValueError: columns are missing, a factor has the name of a result, there are no answers, multipliers
            (a projection has none) or logit differences (texts were read), or a prompt has no unsteered row
            or is in a condition twice.

    Source: Tan et al. 2024, "Analysing the Generalization and Reliability of Steering Vectors", arXiv
    2407.12404. Points far from the middle weigh most in a line: where a large multiplier breaks the answers,
    it decides the slope. Leave such multipliers out, and look at `r_squared`.
    """
    rows, shift = _shifts(table, toward)
    rows = rows.assign(toward=toward)
    keys = [*LINE, "toward", *text_keys(rows)]
    line = rows.groupby(keys, sort=False, observed=True).ngroup().to_numpy()
    labels = [*keys, "prompt", *_factors(table), "answer", "split"]
    result = rows.drop_duplicates(keys).filter(labels).reset_index(drop=True)
    multiplier = rows["multiplier"].to_numpy(float)
    result["multipliers"] = 1 + np.bincount(line, ~np.isnan(shift)).astype(int)
    result["slope"], result["r_squared"] = _lines(multiplier, shift, line)
    dose = np.sign(multiplier) * rows["dose"].to_numpy(float)
    result["slope_per_dose"], _ = _lines(dose, shift, line)
    return result


@checked
def steerability(
    table: pd.DataFrame,
    *,
    by: str | Sequence[str] = (),
    toward: str = "signal",
    resamples: int = 2000,
    seed: int = 0,
) -> pd.DataFrame:
    """The prompts' slopes for each vector, operation, hook and layers: their mean, their spread, their sign.

    Args:
        table, toward: as for `prompt_slopes`.
        by: factors of the prompts to split by.
        resamples, seed: of the bootstrap; every row starts from the seed and does not depend on the others.

    Returns:
        vector, control, control_of, operation, hook, layers, toward, the factors, and, with 95 % intervals in
        `…_low` and `…_high`:
        n: prompts that have a slope.
        slope, slope_per_dose: their means. Bootstrap over groups, expanded percentile interval.
        anti_steerable: share of prompts whose slope is negative. Wilson interval, groups whole.
        spread: standard deviation of the slopes.
        r_squared: the median of the prompts'. NaN where none has one.

    Raises:
        ValueError: as for `prompt_slopes`, no resamples, or `by` names an outcome or a result.

    Prompts that share a `group` or their text are drawn together. A control's sign is arbitrary: compare with
    its absolute slope, and with both `anti_steerable` and 1 − `anti_steerable`.

    Source of the interval: Hesterberg 2015, The American Statistician 69, section 4: percentiles further out,
    by as much as Student's t interval is wider than one from a normal distribution and the variance over n.
    """
    if resamples < 1:
        raise ValueError(f"resamples={resamples}: expected 1 or more draws.")
    by = factors_of(table, by, RESULTS)
    slopes = prompt_slopes(table, toward=toward)
    keys = list(dict.fromkeys([*LINE, "toward", *by]))
    lines = slopes.groupby(keys, dropna=False, sort=False, observed=True)
    counts: dict[int, Int[np.ndarray, "draw group"]] = {}  # shared by rows with as many groups
    results = [_summary(rows, counts, resamples, seed) for _, rows in lines]
    labels = slopes.drop_duplicates(keys)[keys].reset_index(drop=True)
    return labels.join(pd.DataFrame(results, columns=RESULTS))


def _shifts(table: pd.DataFrame, toward: str) -> tuple[pd.DataFrame, Float[np.ndarray, " row"]]:
    """The steered rows, and the shift of each."""
    if toward not in ("signal", "answer"):
        raise ValueError(f"toward={toward!r}: expected 'signal' or 'answer'.")
    validated(table, "prompt", "dose", producer="sweep")
    if clash := sorted(set(_factors(table)) & {*SLOPES, *UNSTEERED_OUTCOMES}):
        raise ValueError(f"the factors {clash} have names of results. Rename these columns.")
    rows = with_unsteered(table, [])
    unsteered = rows.loc[rows["vector"] == UNSTEERED, "prompt_id"]
    # A multiplier of 0 is the unsteered model again.
    rows = rows[(rows["vector"] != UNSTEERED) & rows["multiplier"].notna() & (rows["multiplier"] != 0)]
    if rows.empty:
        raise ValueError("no steered row has a multiplier, so there is no slope; a projection has none.")
    if not (known := rows["prompt_id"].isin(unsteered)).all():
        first = rows.loc[~known, "prompt_id"].iloc[0]
        raise ValueError(f"prompt_id {first} has no unsteered row. Pass the whole sweep.")
    if rows["logit_difference"].isna().all():
        raise ValueError("all logit differences are NaN: slopes need a sweep with measure='choice'.")
    shift = (rows["logit_difference"] - rows["unsteered_logit_difference"]).to_numpy(float)
    if toward == "answer":
        if rows["answer"].isna().all():
            raise ValueError("toward='answer' needs prompts whose right answer is known; no row has one.")
        shift = shift * (1 - 2 * numbers(rows["answer"]))
    return rows, shift


def _factors(table: pd.DataFrame) -> list[str]:
    return [name for name in table if name not in (*FIXED, DRAW)]


def _lines(
    x: Float[np.ndarray, " row"], y: Float[np.ndarray, " row"], line: Int[np.ndarray, " row"]
) -> tuple[Float[np.ndarray, " line"], Float[np.ndarray, " line"]]:
    """Slope and r² of each line by least squares, through its rows and the point (0, 0)."""
    known = ~np.isnan(x + y)
    size = line.max() + 1

    def total(values: Float[np.ndarray, " row"]) -> Float[np.ndarray, " line"]:
        return np.bincount(line[known], values[known], minlength=size).astype(float)

    count = total(np.ones(len(x))) + 1
    x_mean, y_mean = (total(values) / count for values in (x, y))
    x, y = x - x_mean[line], y - y_mean[line]
    # The point (0, 0) adds the means' own products.
    xy = total(x * y) + x_mean * y_mean
    xx, yy = total(x**2) + x_mean**2, total(y**2) + y_mean**2
    return share(xy, xx), share(xy**2, xx * yy)


def _summary(
    rows: pd.DataFrame, counts: dict[int, Int[np.ndarray, "draw group"]], resamples: int, seed: int
) -> list[float | int]:
    rows = rows[rows["slope"].notna()]
    if rows.empty:
        return [0] + [np.nan] * (len(RESULTS) - 1)
    group = prompt_groups(rows)
    groups = len(np.unique(group))
    if groups not in counts:
        counts[groups] = _drawn(groups, resamples, seed)
    means = [_mean(rows[name].to_numpy(float), group, counts[groups]) for name in ("slope", "slope_per_dose")]
    negative = rate_interval((rows["slope"] < 0).to_numpy(float), np.zeros(len(rows), int), group)
    anti_steerable = (float(each[0]) for each in negative)
    spread, r_squared = rows["slope"].std(), rows["r_squared"].median()
    return [len(rows), *means[0], *means[1], *anti_steerable, float(spread), float(r_squared)]


def _drawn(groups: int, resamples: int, seed: int) -> Int[np.ndarray, "draw group"]:
    """How often each group is drawn, of as many with replacement."""
    return generator(seed).multinomial(groups, np.full(groups, 1 / groups), size=resamples)


def _mean(
    values: Float[np.ndarray, " n"], group: Int[np.ndarray, " n"], counts: Int[np.ndarray, "draw group"]
) -> tuple[float, float, float]:
    """Mean, low and high; NaN where a value is, low and high also with one group."""
    from scipy.special import ndtr
    from scipy.stats import t

    size = np.bincount(group)
    n = size.sum() ** 2 / (size**2).sum()  # as in `statistics.mean_interval`
    if n == 1:
        return float(values.mean()), np.nan, np.nan
    confidence = 2 * ndtr(np.sqrt(n / (n - 1)) * t.ppf(0.975, n - 1)) - 1
    drawn = counts @ np.bincount(group, values) / (counts @ size)
    low, high = percentile_interval(drawn, float(confidence))
    return float(values.mean()), float(low), float(high)
