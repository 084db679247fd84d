"""Exemplar answers of both kinds, and whether an embedder tells them apart at all."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from jaxtyping import Float

from .._util.validation import checked
from ..statistics import auc, share, standardised_difference, wilson_interval
from .embedder import Embedder, unit_embeddings

KINDS = ("positive", "negative")
Exemplars = Mapping[str, Sequence[str]]


@checked
def exemplar_accuracy(exemplars: Exemplars, *, embedder: Embedder | None = None) -> pd.DataFrame:
    """Score each exemplar by the others, as `embedding_scores` scores a text: are the kinds told apart?

    Args:
        exemplars: at least two texts under "positive" and two under "negative".
        embedder: texts to an array with a row a text; by default all-MiniLM-L6-v2.

    Returns:
        One row: n_positive, n_negative;
        accuracy: share of exemplars nearer to the others of their own kind (a tie counts half), with Wilson's
            95 % interval in accuracy_low and accuracy_high, which takes exemplars as independent; about 0.5
            where the kinds do not differ;
        auc: probability that a positive exemplar scores higher than a negative one;
        d_prime: difference of the kinds' mean scores over their pooled standard deviation.

    Raises:
        ValueError: too few exemplars, blank ones, or one that is of both kinds or twice in one.

    Embeddings follow the topic first. Where this is near 0.5, scores of steered texts say nothing.
    """
    positive, negative = exemplar_embeddings(exemplars, embedder, fewest=2)
    scores = (_left_out(positive, negative), -_left_out(negative, positive))
    right = sum(float((kind > 0).sum() + (kind == 0).sum() / 2) for kind in (scores[0], -scores[1]))
    n = len(positive) + len(negative)
    low, high = wilson_interval(right, n)
    result = {
        "n_positive": len(positive),
        "n_negative": len(negative),
        "accuracy": float(share(right, n)),
        "accuracy_low": float(low),
        "accuracy_high": float(high),
        "auc": float(auc(*scores)),
        "d_prime": float(standardised_difference(*scores)),
    }
    return pd.DataFrame([result])


def exemplar_embeddings(
    exemplars: Exemplars, embedder: Embedder | None, *, fewest: int = 1
) -> tuple[Float[np.ndarray, "n d"], Float[np.ndarray, "m d"]]:
    """Unit vectors of the positive and of the negative exemplars.

    Raises:
        ValueError: other kinds, fewer than `fewest` of one, blank ones, or one twice.
    """
    if not isinstance(exemplars, Mapping) or set(exemplars) != set(KINDS):
        raise ValueError('exemplars must be a mapping {"positive": […], "negative": […]} of answers.')
    texts = []
    for kind in KINDS:
        given = [exemplars[kind]] if isinstance(exemplars[kind], str) else list(exemplars[kind])
        if len(given) < fewest or not all(isinstance(text, str) and text.strip() for text in given):
            raise ValueError(f"{kind} exemplars: at least {fewest}, each of them a text that is not blank.")
        texts += given
    if repeated := sorted({text for text in texts if texts.count(text) > 1}):
        raise ValueError(f"the exemplar {repeated[0]!r} is given twice: each text once, and of one kind.")
    embedded = unit_embeddings(texts, embedder)
    positives = len(texts) - len(given)
    return embedded[:positives], embedded[positives:]


def exemplar_embeddings_per_prompt(
    exemplars: pd.DataFrame, prompts: Sequence[str], embedder: Embedder | None
) -> tuple[Float[np.ndarray, "prompt d"], Float[np.ndarray, "prompt d"]]:
    """Mean of the unit vectors of each prompt's positive and of its negative exemplars.

    Args:
        exemplars: one row or several per prompt: prompt, positive, negative.
        prompts: different prompts, in the order of the result.

    Raises:
        ValueError: missing columns, blank exemplars, a prompt without any, or with one text on both sides.
    """
    if missing := [name for name in ("prompt", *KINDS) if name not in exemplars]:
        raise ValueError(
            f"exemplars per prompt lack the columns {missing}: expected prompt, positive and negative, as "
            "evaluation.write_exemplars returns them."
        )
    if absent := [prompt for prompt in prompts if not exemplars["prompt"].eq(prompt).any()]:
        raise ValueError(f"{len(absent)} prompts have no exemplars, the first is {absent[0]!r:.80}.")
    rows = exemplars[exemplars["prompt"].isin(prompts)]
    for row in rows.to_dict("records"):
        if not all(isinstance(row[kind], str) and row[kind].strip() for kind in KINDS):
            raise ValueError(f"an exemplar of the prompt {row['prompt']!r:.80} is blank: expected a text.")
        if row["positive"] == row["negative"]:
            raise ValueError(f"positive and negative exemplar of {row['prompt']!r:.80} are the same text.")
    places, texts = pd.factorize(rows[[*KINDS]].to_numpy().ravel())
    embedded = unit_embeddings(list(texts), embedder)[places.reshape(-1, 2)]  # "row side d"
    members = (np.asarray(prompts, object)[:, None] == rows["prompt"].to_numpy()[None]).astype(float)
    means = np.tensordot(members / members.sum(1, keepdims=True), embedded, 1)
    return means[:, 0], means[:, 1]


def _left_out(own: Float[np.ndarray, "n d"], other: Float[np.ndarray, "m d"]) -> Float[np.ndarray, " n"]:
    """Mean cosine of each with the others of its kind, minus that with the other kind."""
    cosines = own @ own.T
    np.fill_diagonal(cosines, 0)
    return cosines.sum(1) / (len(own) - 1) - (own @ other.T).mean(1)
