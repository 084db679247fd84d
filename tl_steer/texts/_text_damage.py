"""Whether steered texts are still texts: repetition, length, unreadable answers, perplexity."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch

from .._generation import require_context
from .._util.logs import bar
from .._util.repetition import UNIT
from .._util.validation import checked
from ..engine import FinalStreams, Memory, Row, RunOptions, final_streams, losses, row_means
from ..models import HookedModel, tokenize
from ..positions import PromptTokens
from ..sweeps.sweep_table import OUTCOMES, require_unique_prompts, validated_sweep

DISTINCT = {"distinct_1": 1, "distinct_2": 2, "distinct_3": 3}  # words in an n-gram
RESULTS = {"words", *DISTINCT, "unreadable", "tokens", "loss"}


@checked
def text_damage(
    table: pd.DataFrame,
    model: HookedModel | None = None,
    *,
    progress: bool = True,
    reuse: bool = True,
    memory: Memory = None,
) -> pd.DataFrame:
    """Measure repetition, length, readability and loss of each text of a sweep.

    Args:
        table: of `sweep(…, measure="generate")` or `read_recorded`.
        model: for the loss of the texts unsteered; it should be the one that wrote them.
        progress, reuse, memory: as for `sweep`.

    Returns:
        The table's rows without its scores, and
        words: their number; a punctuation mark counts as a word.
        distinct_1, distinct_2, distinct_3: different n-grams over all, of words, punctuation and line ends;
            case is ignored; NaN where the text is shorter.
        unreadable: whether no choice could be read; NA where the table has no choices.
        tokens, loss: tokens of the text, and their mean cross-entropy given the prompt, unsteered, in nats:
            the perplexity is exp(loss). NA and NaN without a model; 0 and NaN for an empty text.

    Raises:
        ValueError: columns are missing or have names of the result, no row has a text, a prompt is in a
            condition twice, or a prompt with its text does not fit the model's context.

    Long texts repeat more than short ones, so distinct n-grams compare only between texts of about one
    length. A text that repeats itself has a low loss. The loss is of the text tokenized alone and appended to
    the prompt's tokens, which need not be the generated tokens; the end-of-turn token is not among them.
    Source: distinct n-grams, Li et al. 2016, section 5.
    """
    table = validated_sweep(table, "prompt_id", "prompt", "choice", "answer", "text")
    require_unique_prompts(table)
    if clash := sorted(set(table) & RESULTS):
        raise ValueError(f"the columns {clash} have names of the result. Rename or drop them.")
    texts = table["text"].astype("string")
    if texts.isna().all():
        raise ValueError("the table has no texts: expected a sweep(…, measure='generate').")
    measured = pd.DataFrame([_counted(text) for text in texts]).astype({"words": "Int64"})
    has_choices = table[["choice", "answer"]].notna().any(axis=None)
    unreadable = table["choice"].isna().to_numpy() if has_choices else [pd.NA] * len(table)
    unreadable = pd.Series(unreadable, dtype="boolean").mask(texts.isna().to_numpy())
    rows = table.drop(columns=[name for name in OUTCOMES if name != "text" and name in table])
    likelihood = _likelihood(model, table, progress, reuse, memory)
    return rows.reset_index(drop=True).join(measured).assign(unreadable=unreadable, **likelihood)


def distinct(units: Sequence[str], n: int) -> float:
    """Different n-grams over all of them; NaN without n-grams."""
    grams = [tuple(units[start : start + n]) for start in range(len(units) - n + 1)]
    return len(set(grams)) / len(grams) if grams else float("nan")


def _counted(text: Any) -> dict[str, Any]:
    if pd.isna(text):
        return {"words": pd.NA, **dict.fromkeys(DISTINCT, float("nan"))}
    units = UNIT.findall(text.casefold())
    count = sum(unit != "\n" for unit in units)
    return {"words": count, **{name: distinct(units, n) for name, n in DISTINCT.items()}}


def _likelihood(
    model: Any, table: pd.DataFrame, progress: bool, reuse: bool, memory: Memory
) -> dict[str, pd.Series]:
    """The columns tokens and loss."""
    pairs = table[["prompt", "text"]].reset_index(drop=True)
    if model is None:
        missing = pd.Series(pd.NA, index=pairs.index, dtype="Int64")
        return {"tokens": missing, "loss": missing.astype(float)}
    unique = pairs.dropna(subset="text").drop_duplicates()
    prompts = {prompt: tokenize(model, prompt) for prompt in unique["prompt"].unique()}
    tokenized = [
        (prompts[prompt], model.tokenizer(text, add_special_tokens=False)["input_ids"])
        for prompt, text in unique.itertuples(index=False)
    ]
    for prompt, text in tokenized:
        require_context(model, [prompt], len(text))
    lengths = [len(text) for _, text in tokenized]
    measured = unique.assign(tokens=lengths, loss=_losses(model, tokenized, progress, reuse, memory))
    rows = pairs.merge(measured, how="left", on=["prompt", "text"])
    return {"tokens": rows["tokens"].astype("Int64"), "loss": rows["loss"].astype(float)}


def _losses(
    model: Any,
    pairs: Sequence[tuple[Sequence[int], Sequence[int]]],
    progress: bool,
    reuse: bool,
    memory: Memory,
) -> np.ndarray:
    """Mean loss of each text after its prompt; NaN for an empty one. Each prompt is run once."""
    written = [(index, prompt, text) for index, (prompt, text) in enumerate(pairs) if text]
    result = np.full(len(pairs), np.nan)
    # Without the last token, which has nothing to predict.
    rows = [
        Row((*prompt, *text[:-1]), PromptTokens(len(prompt), tuple(prompt), model.tokenizer))
        for _, prompt, text in written
    ]
    counts = np.array([len(text) for *_, text in written], dtype=int)

    def read(streams: FinalStreams) -> None:
        texts = [written[row] for row in streams.rows]
        targets = torch.tensor([token for *_, text in texts for token in text])
        stream = streams.stream[streams.slots[0].to(streams.stream.device)]
        means = row_means(losses(model, stream, targets), counts[list(streams.rows)])
        result[[index for index, *_ in texts]] = means

    with bar("reading texts", 1, visible=progress) as on_progress:
        if rows:
            options = RunOptions(reuse, memory, on_progress=on_progress)
            final_streams(model, rows, counts.tolist(), [()], read, options)
    return result
