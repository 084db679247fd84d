"""Choices drawn with the model's own probabilities, where the more probable one would hide a soft bias."""

import numpy as np
import pandas as pd

from .._util.seeds import generator
from .._util.validation import checked
from ..sweeps.sweep_table import require_columns


@checked
def sampled_choices(table: pd.DataFrame, *, seed: int = 0) -> pd.DataFrame:
    """The same table with `choice` as the model would draw it at temperature 1.

    A sweep's choice is the more probable one, which a vector changes only where it tips the scale: of the
    probabilities .84 and .98 both say the same, and a bias that moves a model from one to the other is not
    seen. Drawn choices are right as often as the probabilities say, so that hit and false-alarm rates, d′ and
    criterion speak of those.

    Args:
        table: a sweep's, with probabilities; not changed.
        seed: of the draws.

    Raises:
        ValueError: missing columns, or no probabilities (answers were written, not scored).

    A prompt has one number between 0 and 1 for all cells, and chooses 0 where its probability is above that:
    cells that differ little choose alike, and changes are those of the probabilities, not of luck. The
    numbers of the prompts with the same answer and split lie evenly between 0 and 1, in random order. Where
    these prompts' probabilities are alike, shares are theirs to within a prompt or so; where they differ,
    shares scatter less than those of independent draws. An interval that takes prompts as independent is then
    rather too wide than too narrow.
    """
    require_columns(table, "prompt_id", "answer", "choice", "probability")
    if table["probability"].isna().all():
        raise ValueError(
            "there are no probabilities: answers were written, not scored. Sweep with measure='choice'."
        )
    kinds = [name for name in ("answer", "split") if name in table]
    prompts = table.drop_duplicates("prompt_id").sort_values("prompt_id")[["prompt_id", *kinds]]
    rng = generator(seed)
    bar = pd.Series(np.nan, index=prompts["prompt_id"])
    for _, same in prompts.groupby(kinds, dropna=False):
        count = len(same)
        bar[same["prompt_id"]] = (rng.permutation(count) + rng.random()) / count
    probability = table["probability"].astype(float)
    choice = (probability <= table["prompt_id"].map(bar)).astype("Int64")
    return table.assign(choice=choice.mask(probability.isna()))
