"""What a row of an analysis table says about an activation: pair, side, prompt and factors."""

import pandas as pd

from ..activations import PairedActivations
from ..models import prompt_label
from ..prompts.pairs import SIDES, sided_factors

LABELS = ("layer", "pair", "side", "prompt")


def side_labels(pairs: PairedActivations) -> pd.DataFrame:
    """One row per activation, all positive ones, then all negative ones: pair, side, prompt, label, factors.

    `label` is the message that a prompt was rendered from, else the prompt; a factor of that name stays.

    Factors that differ between the sides (letter_positive, letter_negative) become one column (letter).

    Raises:
        ValueError: a factor has the name of a label, or of such a joined column.
    """
    names = [str(name) for name in pairs.factors.columns]
    joined = sided_factors(pairs.factors)
    taken = {*LABELS, *joined} & set(names) | set(LABELS) & set(joined)
    if taken:
        raise ValueError(
            f"the factors {sorted(taken)} have the name of another column of the table: rename them."
        )
    return pd.concat([_one_side(pairs, side, joined) for side in SIDES], ignore_index=True)


def a_row_an_activation(labels: pd.DataFrame, layer: int, values: pd.DataFrame) -> pd.DataFrame:
    """The labels of both sides with a layer's values beside them.

    Raises:
        ValueError: a factor has the name of a value.
    """
    if taken := sorted(set(labels) & set(values)):
        raise ValueError(f"the factors {taken} have the names of results: rename them first.")
    return pd.concat([pd.DataFrame({"layer": layer}, index=labels.index), labels, values], axis=1)


def _one_side(pairs: PairedActivations, side: str, joined: list[str]) -> pd.DataFrame:
    (other,) = set(SIDES) - {side}
    factors = pairs.factors.reset_index(drop=True).drop(columns=[f"{name}_{other}" for name in joined])
    factors = factors.rename(columns={f"{name}_{side}": name for name in joined})
    prompts = getattr(pairs, side).prompts
    about = {"pair": range(len(pairs)), "side": side, "prompt": list(map(str, prompts))}
    if "label" not in factors:
        about["label"] = list(map(prompt_label, prompts))
    return pd.DataFrame(about).join(factors)
