"""Sampled answers of each condition against several unsteered draws of the same prompts."""

from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from .._util.seeds import generator
from .._util.validation import checked
from ..statistics import bias, interval_around, sensitivity, z_of_weights, z_rates
from ..sweeps.sweep_table import CELL, UNSTEERED, prompt_groups, require_columns, sweep_table
from ._signal_detection import JEFFREYS_OF_BOTH, is_change_covered, margins

MEASURES = {"d_prime": sensitivity, "criterion": bias}  # of the z of both classes


@checked
def against_baselines(
    table: pd.DataFrame, baselines: pd.DataFrame, *, resamples: int = 2000, seed: int = 0
) -> pd.DataFrame:
    """d′ and criterion of sampled answers against several unsteered draws: each alone, and all together.

    Args:
        table: sampled answers, from `read_recorded` or a sweep. Its own unsteered rows are not used.
        baselines: unsteered rows of the same prompts with a column `draw`, one row per prompt and draw, such
            as `read_recorded` makes of a file of several recordings.
        resamples: bootstrap draws.
        seed: of the bootstrap draws, the same for every condition.

    Returns:
        Per steered condition one row per draw, after a row of all draws (`draw` is NA):
        the condition's columns, `dose`, `draw`, and `recording` where the baselines have it;
        n_signal, n_noise: prompts of each class that are readable in both;
        d_prime, criterion: of the condition; d_prime_unsteered, criterion_unsteered: of the baseline. Rates
            are means over prompts of each prompt's share, log-linear corrected in prompts;
        d_prime_change, criterion_change: the difference, on the same prompts, with a 95 % interval in …_low
            and …_high: paired Bayesian bootstrap over prompts, or over groups of prompts, whole;
        change_covered: as in `signal_detection`; in the row of all draws of the expected numbers of prompts.

    Raises:
        ValueError: no column `draw`, no answers, a prompt twice in a draw, or prompts that differ.

    One unsteered draw is common to all conditions: where it happens to be low, all changes are high, and each
    interval is right by itself, but their number above zero says little. The row of all draws compares with
    the mean of the draws. Its interval includes the sampling of prompts, of the steered answers and of the
    baseline's.

    Source: the bootstrap as in `signal_detection` (Rubin 1981), an average over a prompt's draws being one
    observation.
    """
    table = sweep_table(table, "prompt_id", "prompt", "answer", "choice", "dose")
    require_columns(
        baselines, "prompt_id", "prompt", "draw", "choice", maker="read_recorded, of several draws"
    )
    prompts = _prompts(table, baselines)
    unsteered = {draw: _shares(rows, prompts) for draw, rows in baselines.groupby("draw", sort=True)}
    names = {} if "recording" not in baselines else baselines.groupby("draw")["recording"].first().to_dict()
    weights = generator(seed).standard_exponential((resamples, prompts["_group"].max() + 1))
    found = []
    steered = table[table["vector"] != UNSTEERED]
    for _, cell in steered.groupby(list(CELL), dropna=False, sort=False):
        now = _shares(cell, prompts)
        labels = cell.iloc[0][[*CELL, "dose"]].to_dict()
        for draw in (None, *unsteered):
            then = list(unsteered.values()) if draw is None else [unsteered[draw]]
            source = {"recording": names.get(draw)} if names else {}
            changes = _changes([_joint(now, each) for each in then], prompts, weights, generator(seed))
            found.append(labels | {"draw": draw} | source | changes)
    return pd.DataFrame(found).astype({"draw": "Int64"})


def _prompts(table: pd.DataFrame, baselines: pd.DataFrame) -> pd.DataFrame:
    """One row per prompt: its text, answer and group, by prompt_id."""
    if "vector" in baselines and (baselines["vector"] != UNSTEERED).any():
        raise ValueError("the baselines have steered rows: give unsteered ones only.")
    if baselines.duplicated(["prompt_id", "draw"]).any():
        raise ValueError("the baselines have a prompt twice in a draw: give one row per prompt and draw.")
    columns = ["prompt_id", "prompt", "answer", *(["group"] if "group" in table else [])]
    prompts = table[columns].drop_duplicates("prompt_id").set_index("prompt_id", drop=False)
    if not prompts["answer"].isin([0, 1]).all():
        raise ValueError("the table has no answers (0, the signal, or 1): give labels to read_recorded.")
    if not (prompts["answer"] == 0).any() or not (prompts["answer"] == 1).any():
        raise ValueError("all answers are the same: expected signal prompts (0) and noise prompts (1).")
    for prompt_id, prompt in zip(baselines["prompt_id"], baselines["prompt"], strict=True):
        if prompt_id not in prompts.index or prompts["prompt"][prompt_id] != prompt:
            raise ValueError(f"prompt_id {prompt_id} of the baselines is another prompt: {prompt!r:.80}.")
    return prompts.assign(_group=prompt_groups(prompts.reset_index(drop=True)))


def _shares(rows: pd.DataFrame, prompts: pd.DataFrame) -> Float[np.ndarray, " prompt"]:
    """Share of each prompt's readable answers that say the signal; NaN without one."""
    said = (rows["choice"].astype(float) == 0).where(rows["choice"].notna()).astype(float)
    return said.groupby(rows["prompt_id"]).mean().reindex(prompts.index).to_numpy()


def _joint(
    now: Float[np.ndarray, " prompt"], then: Float[np.ndarray, " prompt"]
) -> Float[np.ndarray, "prompt 4"]:
    """Probabilities of saying the signal both times, only now, only then, never; NaN where either is."""
    return np.stack([now * then, now * (1 - then), (1 - now) * then, (1 - now) * (1 - then)], -1)


def _changes(
    joints: list[Float[np.ndarray, "prompt 4"]],
    prompts: pd.DataFrame,
    weights: Float[np.ndarray, "resample group"],
    rng: np.random.Generator,
) -> dict[str, Any]:
    """Measures of the mean over draws of the joint probabilities, and their changes with intervals."""
    stacked = np.stack(joints)
    known = ~np.isnan(stacked).any(-1)
    read = known.any(0)
    joint = np.where(known[..., None], stacked, 0).sum(0)[read] / known.sum(0)[read, None]
    signal = (prompts["answer"] == 0).to_numpy(bool)[read]
    counts = np.zeros((weights.shape[1], 2, 4))
    groups = prompts["_group"].to_numpy()[read]
    np.add.at(counts, (groups, 1 - signal), joint)
    sizes = np.bincount(groups)
    size = (sizes**2).sum() / sizes.sum()  # prompts of an added group, as in `statistics.resampled_weights`
    prior = rng.standard_gamma(np.asarray(JEFFREYS_OF_BOTH), (len(weights), 2, 4))
    drawn = margins(np.tensordot(weights, counts, 1) + size * prior)
    drawn_change = z_of_weights(drawn[0]) - z_of_weights(drawn[1])
    now, then = (z_rates(each[:, 0], each.sum(-1)) for each in margins(counts.sum(0)))
    result: dict[str, Any] = {"n_signal": int(signal.sum()), "n_noise": int((~signal).sum())}
    for name, measure in MEASURES.items():
        change = float(measure(*now) - measure(*then))
        low, high = interval_around(change, measure(*drawn_change.T))
        result |= {name: float(measure(*now)), f"{name}_unsteered": float(measure(*then))}
        result |= {f"{name}_change": change, f"{name}_change_low": low, f"{name}_change_high": high}
    return result | {"change_covered": bool(is_change_covered(np.rint(counts.sum(0) / size).astype(int)))}
