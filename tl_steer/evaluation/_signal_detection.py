"""Signal detection: whether steering changes what a model can tell apart, or only what it prefers to say."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int, Num

from .._util.seeds import generator
from .._util.validation import checked
from ..statistics import (
    auc_intervals,
    bias,
    interval_around,
    mean_of_classes,
    rate_interval,
    resampled_weights,
    sensitivity,
    z_of_weights,
    z_rates,
)
from ..sweeps.selection import numbers, says_signal
from ..sweeps.sweep_table import (
    CONDITION,
    UNSTEERED,
    by_condition,
    ends,
    factors_of,
    prompt_groups,
    with_unsteered,
)

MEASURES = {"d_prime": sensitivity, "criterion": bias}  # of the z of both classes, or of its changes
# Half a group per choice is Jeffreys' prior of a rate. Added to the groups whose choice changed, it is that
# of both rates, steered and unsteered.
JEFFREYS = (0.5, 0.5)
JEFFREYS_OF_BOTH = (0.0, 0.5, 0.5, 0.0)
RESULTS = (
    "n_signal", "n_noise", "unreadable", "hit_rate", "false_alarm_rate", "d_prime", "criterion", "covered",
    "d_prime_change", "criterion_change", "change_covered", "auc", "auc_change", "shift", "signal_shift",
    "noise_shift", "verdict",
)  # fmt: skip
CHOICES = ["choice", "unsteered_choice"]
LOGITS = ["logit_difference", "unsteered_logit_difference"]
FEWEST = 5  # groups of each class with each choice, from which on intervals are known to cover
VERDICTS = {
    (False, False): "neither", (True, False): "sensitivity", (False, True): "bias", (True, True): "both",
}  # fmt: skip
Intervals = dict[str, tuple[Any, Any, Any]]  # value, low and high of each measure


@checked
def signal_detection(
    table: pd.DataFrame,
    *,
    by: str | Sequence[str] = (),
    signal: str = "answer",
    resamples: int = 2000,
    seed: int = 0,
) -> pd.DataFrame:
    """Sensitivity (AUC, d′) and bias (criterion, shift) of each condition, their changes, and a verdict.

    Args:
        table: a sweep's table with answers.
        by: factors of the prompts to split by, in addition to the condition.
        signal: the factor that distinguishes signal from noise, with two levels; the first in sorted order
            (or in a categorical's) is the signal. A right choice says the prompt's own level, a wrong one the
            other. "answer": the signal is answer 0, and choice 0 says it. "letter": where the right answer is
            lettered A or B, the bias is toward a letter.
        resamples, seed: of the bootstrap; every row starts from the seed and does not depend on the others.

    Returns:
        The condition's columns, `dose`, the factors, and, with 95 % intervals in `…_low` and `…_high`:
        n_signal, n_noise: readable prompts of each class; with several draws per prompt, readable draws.
        unreadable: share of the prompts with an answer whose choice is NA; they are left out.
        hit_rate, false_alarm_rate: share of each class where the choice says the signal. Wilson interval,
            groups whole (`statistics.rate_interval`).
        d_prime: z(H) − z(F), rates log-linear corrected. Bayesian bootstrap.
        criterion: −½(z(H) + z(F)), negative says the signal more often. Bayesian bootstrap.
        covered: whether the intervals of d′ and c are known to contain the truth in 93 to 97 %: at least 5
            groups of each class chose the signal, and at least 5 did not.
        d_prime_change, criterion_change: against unsteered, on the prompts readable in both (so not always
            the difference of two rows). Paired Bayesian bootstrap.
        change_covered: the same of the changes: at least 5 groups of these prompts in each choice, steered
            and unsteered, and at least 5 that changed it. True where the change is zero by definition.
        auc, auc_change: probability that a signal prompt's logit difference exceeds a noise prompt's, and
            its paired change. `statistics.auc_intervals`.
        shift: paired change of the logit difference toward the signal (nats), mean of both classes' means. t
            interval. signal_shift, noise_shift: those means, without intervals.
        verdict: "sensitivity" if the interval of the AUC's change excludes zero; "bias" if that of the shift
            does and both classes moved in the same direction; "both"; else "neither", or "cannot tell" if the
            AUC is 1 in both and d′ changed where `change_covered` (drawn choices can show a loss that a
            perfect ranking hides). Without logit differences, the changes of d′ and c decide where
            `change_covered`, which assumes equal variances; else "cannot tell". "" for the unsteered
            condition. "neither" and "bias" do not show that sensitivity is unchanged: see the interval.
        NaN where one class of prompts, for changes the unsteered condition, or for AUC and shift the logit
        difference is missing.

    Raises:
        ValueError: no answers, answers other than 0 and 1, missing columns, a prompt twice in a condition, or
            `signal` without two levels.

    A constant added to every logit difference is a pure bias. It does not change the AUC, but moves d′ where
    variances are unequal or rates are near 0 or 1; so the AUC decides wherever it is known.

    Prompts of one `group`, and draws of one prompt, are resampled together, within each class
    (`statistics.resampled_weights`). In simulations with 20 to 200 prompts per class and rates of .01 to .99,
    95 % intervals contained the truth in 93 to 97 % where 5 prompts per choice were expected, elsewhere in 92
    to 100 % (`tests/coverage_table.py`).

    Source: Macmillan & Creelman 2005, chapters 1 to 3; correction of Hautus 1995; the bootstrap: Rubin 1981,
    with Jeffreys' prior on each rate (Brown, Cai & DasGupta 2001).
    """
    by = factors_of(table, by, RESULTS)
    factors_of(table, signal)
    rows = with_unsteered(table, by)
    if rows["answer"].isna().all():
        raise ValueError("no row has an answer: expected questions whose right choice (0 or 1) is known.")
    rows = rows[(rows["answer"].notna() & table[signal].notna().to_numpy())]
    conditions = by_condition(rows, by)
    # Without the factors, which may have the names of the columns that are added.
    toward_signal = _toward_signal(rows, signal).assign(_group=prompt_groups(rows))
    parts = toward_signal.groupby(conditions.ngroup().to_numpy())
    detected = pd.DataFrame([_detected(part, resamples, seed) for _, part in parts])
    labels = conditions.head(1)[[*CONDITION, "dose", *by]]
    return pd.concat([labels.reset_index(drop=True), detected], axis=1)


def _toward_signal(rows: pd.DataFrame, signal: str) -> pd.DataFrame:
    """`_signal` (whether the prompt is signal), vector, choices as 0 for the signal, evidence toward it."""
    levels = sorted(rows[signal].unique())
    if rows[signal].dtype == "category":
        levels = [level for level in rows[signal].cat.categories if rows[signal].eq(level).any()]
    if signal != "answer" and len(levels) != 2:
        raise ValueError(f"signal={signal!r} has the levels {levels[:5]}: expected two, signal and noise.")
    first = rows[signal].eq(0 if signal == "answer" else levels[0])
    reversed_ = (first != rows["answer"].eq(0)).to_numpy()  # the signal is choice 1
    result = rows[["vector"]].assign(_signal=first.to_numpy(bool))
    for name in CHOICES:
        choice = numbers(rows[name])
        result[name] = np.where(reversed_, 1 - choice, choice)
    for name in LOGITS:
        result[name] = rows[name].mask(reversed_, -rows[name])
    return result


def measures(
    counts: Int[np.ndarray, "*batch class 2"], *, resamples: int, seed: int, grouped: bool = False
) -> Intervals:
    """d′ and criterion, each with its 95 % interval, by `statistics.resampled_weights`.

    Args:
        counts: signal and noise prompts (class) that said the signal and that did not; with `grouped`, of
            each group (first axis).
    """
    weights = resampled_weights(counts, JEFFREYS, resamples=resamples, rng=generator(seed), grouped=grouped)
    return _with_intervals(_z_of_counts(counts.sum(0) if grouped else counts), z_of_weights(weights))


def changes(
    joint: Int[np.ndarray, "*batch class 4"], *, resamples: int, seed: int, grouped: bool = False
) -> Intervals:
    """Change of d′ and criterion, steered minus unsteered, from `joint_counts`; as `measures` otherwise."""
    prior, rng = JEFFREYS_OF_BOTH, generator(seed)
    weights = resampled_weights(joint, prior, resamples=resamples, rng=rng, grouped=grouped)
    # d′ and c are linear in z, so that their change is that of z.
    now, then = map(_z_of_counts, margins(joint.sum(0) if grouped else joint))
    drawn_now, drawn_then = map(z_of_weights, margins(weights))
    return _with_intervals(now - then, drawn_now - drawn_then)


def margins(
    joint: Num[np.ndarray, "*batch 4"],
) -> tuple[Num[np.ndarray, "*batch 2"], Num[np.ndarray, "*batch 2"]]:
    """Of `joint_counts` or such weights: those with and without the property now, and then."""
    both, now, then, neither = np.moveaxis(joint, -1, 0)
    return np.stack([both + now, then + neither], -1), np.stack([both + then, now + neither], -1)


def _z_of_counts(counts: Int[np.ndarray, "*batch class 2"]) -> Float[np.ndarray, "*batch class"]:
    return z_rates(counts[..., 0], counts.sum(-1))


def _with_intervals(
    observed: Float[np.ndarray, "*batch class"], drawn: Float[np.ndarray, "draw *batch class"]
) -> Intervals:
    result = {}
    for name, measure in MEASURES.items():
        value = measure(observed[..., 0], observed[..., 1])
        result[name] = value, *interval_around(value, measure(drawn[..., 0], drawn[..., 1]))
    return result


def is_covered(counts: Int[np.ndarray, "*batch class 2"]) -> Bool[np.ndarray, "*batch"] | np.bool_:
    """Whether at least `FEWEST` prompts of each class chose 0, and at least as many 1."""
    return (counts >= FEWEST).all((-1, -2))


def is_change_covered(joint: Int[np.ndarray, "*batch class 4"]) -> Bool[np.ndarray, "*batch"] | np.bool_:
    """Whether both times are covered, and at least `FEWEST` prompts changed their choice."""
    now, then = map(is_covered, margins(joint))
    return now & then & (joint[..., 1:3].sum((-1, -2)) >= FEWEST)


def _detected(condition: pd.DataFrame, resamples: int, seed: int) -> dict[str, Any]:
    is_unsteered = condition["vector"].iloc[0] == UNSTEERED
    counts, joint = _counted(condition)
    result = dict(zip(("n_signal", "n_noise"), counts.sum((0, 2)).tolist(), strict=True))
    result["unreadable"] = float(condition["choice"].isna().mean())
    for is_signal, name in ((True, "hit_rate"), (False, "false_alarm_rate")):
        result |= _columns(name, _rate(condition[condition["_signal"] == is_signal]))
    for name, interval in measures(counts, resamples=resamples, seed=seed, grouped=True).items():
        result |= _columns(name, interval)
    result["covered"] = bool(is_covered((counts > 0).sum(0)))
    for name, interval in changes(joint, resamples=resamples, seed=seed, grouped=True).items():
        result |= _columns(f"{name}_change", _change(interval, is_unsteered))
    change_covered = joint.sum((0, -1)).all() if is_unsteered else is_change_covered((joint > 0).sum(0))
    result["change_covered"] = bool(change_covered)
    result |= _from_logits(condition, is_unsteered)
    return result | {"verdict": "" if is_unsteered else _verdict(result)}


def _rate(rows: pd.DataFrame) -> Sequence[float]:
    """How often the choices say the signal, with its interval."""
    read = rows[rows["choice"].notna()]
    if read.empty:
        return [np.nan] * 3
    said, group = says_signal(numbers(read["choice"])), pd.factorize(read["_group"])[0]
    return [each[0] for each in rate_interval(said, np.zeros(len(read), int), group)]


def _counted(
    condition: pd.DataFrame,
) -> tuple[Int[np.ndarray, "group class=2 2"], Int[np.ndarray, "group class=2 4"]]:
    """The counts of `measures` and of `changes`, of each group."""
    noise, group = 1 - condition["_signal"].to_numpy(), pd.factorize(condition["_group"])[0]
    choice, unsteered = (numbers(condition[name]) for name in CHOICES)
    counts = np.zeros((group.max() + 1, 2, 2), int)
    joint = np.zeros((group.max() + 1, 2, 4), int)
    read, both = ~np.isnan(choice), ~np.isnan(choice + unsteered)
    np.add.at(counts, (group[read], noise[read], choice[read].astype(int)), 1)
    outcome = (2 * choice[both] + unsteered[both]).astype(int)
    np.add.at(joint, (group[both], noise[both], outcome), 1)
    return counts, joint


def _from_logits(condition: pd.DataFrame, is_unsteered: bool) -> dict[str, float]:
    """AUC, its change, and the shift, of the prompts whose logit differences are known."""
    signal, group = condition["_signal"].to_numpy(), pd.factorize(condition["_group"])[0]
    now, then = (condition[name].to_numpy(float) for name in LOGITS)
    shift = now - then
    known, both = ~np.isnan(now), ~np.isnan(shift)
    (area,) = auc_intervals(now[None, known], signal[known], group[known])[0].T
    _, change = auc_intervals(np.stack([now, then])[:, both], signal[both], group[both])
    mean = mean_of_classes(shift[both], signal[both], group[both])
    means = [shift[both & each].mean() if (both & each).any() else np.nan for each in (signal, ~signal)]
    result = _columns("auc", area) | _columns("auc_change", _change(change, is_unsteered))
    result |= _columns("shift", _change(mean, is_unsteered))
    return result | {"signal_shift": float(means[0]), "noise_shift": float(means[1])}


def _change(interval: Any, is_unsteered: bool) -> Any:
    """A change of the unsteered condition against itself is zero by definition, not by estimate."""
    return np.where(np.isnan(interval), np.nan, 0.0) if is_unsteered else interval


def _verdict(row: dict[str, Any]) -> str:
    if not np.isnan(row["auc_change"]):
        is_bias = _excludes_zero(row, "shift") and row["signal_shift"] * row["noise_shift"] > 0
        at_ceiling = row["auc"] == 1 and row["auc_change"] == 0
        if at_ceiling and not is_bias and row["change_covered"] and _excludes_zero(row, "d_prime_change"):
            return "cannot tell"
        return VERDICTS[_excludes_zero(row, "auc_change"), is_bias]
    if row["change_covered"]:
        return VERDICTS[_excludes_zero(row, "d_prime_change"), _excludes_zero(row, "criterion_change")]
    return "cannot tell"


def _excludes_zero(row: dict[str, Any], name: str) -> bool:
    return bool(row[f"{name}_low"] > 0 or row[f"{name}_high"] < 0)


def _columns(name: str, interval: Iterable[float]) -> dict[str, float]:
    return dict(zip(ends(name), map(float, interval), strict=True))
