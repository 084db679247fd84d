"""Sampled answers: choices drawn with the model's probabilities, and comparison with several baselines."""

from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from .._util.seeds import generator
from .._util.validation import checked
from ..statistics import interval_around, z_of_weights, z_rates
from ..sweeps.selection import numbers, says_signal
from ..sweeps.sweep_table import CONDITION, UNSTEERED, by_condition, ends, prompt_groups, validated_sweep
from ..tables import validated
from ._signal_detection import JEFFREYS_OF_BOTH, MEASURES, is_change_covered, margins


@checked
def sampled_choices(table: pd.DataFrame, *, seed: int = 0) -> pd.DataFrame:
    """The same table with `choice` as the model would draw it at temperature 1.

    A sweep's choice is the more probable one, and a vector that moves a probability from .84 to .98 does not
    change it. Hit and false-alarm rates, d′ and criterion of drawn choices show such a bias.

    Args:
        table: a sweep's, with probabilities.
        seed: of the draws.

    Raises:
        ValueError: missing columns, or no probabilities (answers were written, not scored).

    Each prompt has one threshold for all conditions, so that similar conditions choose alike. The thresholds
    of prompts with the same answer and split are spread evenly from 0 to 1, in random order: shares vary less
    than those of independent draws, and intervals are too wide rather than too narrow.
    """
    table = validated(table, "prompt_id", "answer", "choice", "probability", producer="sweep")
    if table["probability"].isna().all():
        raise ValueError("all probabilities are NaN: expected scored answers. Use sweep(measure='choice').")
    strata = [name for name in ("answer", "split") if name in table]
    prompts = table.drop_duplicates("prompt_id").sort_values("prompt_id")[["prompt_id", *strata]]
    rng = generator(seed)
    threshold = pd.Series(np.nan, index=prompts["prompt_id"])
    for _, stratum in prompts.groupby(strata, dropna=False):
        count = len(stratum)
        threshold[stratum["prompt_id"]] = (rng.permutation(count) + rng.random()) / count
    choice = (table["probability"] <= table["prompt_id"].map(threshold)).astype("Int64")
    return table.assign(choice=choice.mask(table["probability"].isna()))


@checked
def against_baselines(
    table: pd.DataFrame, baselines: pd.DataFrame, *, resamples: int = 2000, seed: int = 0
) -> pd.DataFrame:
    """d′ and criterion of sampled answers against several unsteered draws: each alone, and all together.

    Args:
        table: sampled answers, from `read_recorded` or a sweep. Its own unsteered rows are not used.
        baselines: unsteered rows of the same prompts with a column `draw`, one row per prompt and draw, such
            as `read_recorded` makes of a file of several recordings.
        resamples, seed: of the bootstrap; the draws are the same for every condition.

    Returns:
        Per steered condition one row per draw, after a row of all draws (`draw` is NA):
        the condition's columns, `dose`, `draw`, and `recording` where the baselines have it;
        n_signal, n_noise: prompts of each class that are readable in both;
        d_prime, criterion: of the condition; d_prime_unsteered, criterion_unsteered: of the baseline. Rates
            are means over prompts of each prompt's share, log-linear corrected in prompts;
        d_prime_change, criterion_change: the difference, on the same prompts, with a 95 % interval in …_low
            and …_high: paired Bayesian bootstrap over prompts, groups whole;
        change_covered: as in `signal_detection`; in the row of all draws of the expected numbers of prompts.

    Raises:
        ValueError: no column `draw`, no answers, a prompt twice in a draw, or prompts that differ.

    One unsteered draw is common to all conditions: if it happens to be low, all changes are high. The row of
    all draws compares with the mean of the draws. Its interval includes the sampling of prompts, of the
    steered answers and of the baseline's.

    Source: the bootstrap of `signal_detection` (Rubin 1981); a prompt's mean over draws is one observation.
    """
    table = validated_sweep(table, "prompt_id", "prompt", "answer", "choice", "dose")
    prompts = _prompts(table, baselines)
    then = {draw: _shares(rows, prompts) for draw, rows in baselines.groupby("draw", sort=True)}
    names = {} if "recording" not in baselines else baselines.groupby("draw")["recording"].first().to_dict()
    weights = generator(seed).standard_exponential((resamples, prompts["_group"].max() + 1))
    results = []
    for _, condition in by_condition(table[table["vector"] != UNSTEERED]):
        now = _shares(condition, prompts)
        labels = condition.iloc[0][[*CONDITION, "dose"]].to_dict()
        for draw in (None, *then):
            unsteered = np.stack(list(then.values()) if draw is None else [then[draw]])
            source = {"recording": names.get(draw)} if names else {}
            changes = _changes(now, unsteered, prompts, weights, generator(seed))
            results.append(labels | {"draw": draw} | source | changes)
    return pd.DataFrame(results).astype({"draw": "Int64"})


def _prompts(table: pd.DataFrame, baselines: pd.DataFrame) -> pd.DataFrame:
    """One row per prompt: its text, answer and group, by prompt_id."""
    validated(baselines, "prompt_id", "prompt", "draw", "choice", producer="read_recorded")
    if "vector" in baselines and (baselines["vector"] != UNSTEERED).any():
        raise ValueError("the baselines have steered rows: expected unsteered ones only.")
    if baselines.duplicated(["prompt_id", "draw"]).any():
        raise ValueError("the baselines have a prompt twice in a draw: expected one row per prompt and draw.")
    prompts = table.filter(["prompt_id", "prompt", "answer", "group"]).drop_duplicates("prompt_id")
    prompts = prompts.set_index("prompt_id", drop=False)
    if prompts["answer"].isna().any():
        raise ValueError("the table has no answers (0, the signal, or 1). Pass labels to read_recorded.")
    if prompts["answer"].nunique() < 2:
        raise ValueError("all answers are the same: expected signal prompts (0) and noise prompts (1).")
    differing = baselines[baselines["prompt_id"].map(prompts["prompt"]).ne(baselines["prompt"])]
    if len(differing):
        index, text = differing[["prompt_id", "prompt"]].iloc[0]
        raise ValueError(f"prompt_id {index} of the baselines is another prompt: {text!r:.80}.")
    return prompts.assign(_group=prompt_groups(prompts.reset_index(drop=True)))


def _shares(rows: pd.DataFrame, prompts: pd.DataFrame) -> Float[np.ndarray, " prompt"]:
    """Share of each prompt's readable answers that say the signal; NaN without one."""
    said = pd.Series(says_signal(numbers(rows["choice"])))
    return said.groupby(rows["prompt_id"].to_numpy()).mean().reindex(prompts.index).to_numpy()


def _changes(
    now: Float[np.ndarray, " prompt"],
    then: Float[np.ndarray, "draw prompt"],
    prompts: pd.DataFrame,
    weights: Float[np.ndarray, "resample group"],
    rng: np.random.Generator,
) -> dict[str, Any]:
    """Measures of the mean over draws, and their changes with intervals."""
    # Probabilities of saying the signal both times, only now, only then, never.
    joints = np.stack([now * then, now * (1 - then), (1 - now) * then, (1 - now) * (1 - then)], -1)
    known = ~np.isnan(joints).any(-1)
    read = known.any(0)
    joint = np.where(known[..., None], joints, 0).sum(0)[read] / known.sum(0)[read, None]
    signal = (prompts["answer"] == 0).to_numpy(bool)[read]
    counts = np.zeros((weights.shape[1], 2, 4))
    groups = prompts["_group"].to_numpy()[read]
    np.add.at(counts, (groups, 1 - signal), joint)
    sizes = np.bincount(groups)
    size = (sizes**2).sum() / sizes.sum()  # prompts of an added group, as in `statistics.resampled_weights`
    prior = rng.standard_gamma(np.asarray(JEFFREYS_OF_BOTH), (len(weights), 2, 4))
    drawn = margins(np.tensordot(weights, counts, 1) + size * prior)
    drawn_change = z_of_weights(drawn[0]) - z_of_weights(drawn[1])
    z_now, z_then = (z_rates(each[:, 0], each.sum(-1)) for each in margins(counts.sum(0)))
    result: dict[str, Any] = {"n_signal": int(signal.sum()), "n_noise": int((~signal).sum())}
    for name, measure in MEASURES.items():
        value, unsteered = float(measure(*z_now)), float(measure(*z_then))
        change = value - unsteered
        interval = (change, *interval_around(change, measure(*drawn_change.T)))
        result |= {name: value, f"{name}_unsteered": unsteered}
        result |= dict(zip(ends(f"{name}_change"), interval, strict=True))
    return result | {"change_covered": bool(is_change_covered(np.rint(counts.sum(0) / size).astype(int)))}
