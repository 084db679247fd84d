"""Whether steered texts are still texts: repetition, length, unreadable answers, how unlikely they are."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch

from .._generation import require_context
from .._util.logs import bar
from .._util.validation import checked
from ..engine import FinalStreams, Memory, Row, final_streams, losses, row_means
from ..models import HookedModel, tokenize
from ..positions import PromptTokens
from ..sweeps.sweep_table import OUTCOMES, require_one_row_a_prompt, sweep_table

UNIT = re.compile(r"\w+(?:['’]\w+)*|[^\w\s]|\n")  # a word, a mark of punctuation, or the end of a line
LONGEST = 3  # words in an n-gram
MEASURED = {"words", "distinct_1", "distinct_2", "distinct_3", "unreadable", "tokens", "loss"}


@checked
def text_damage(
    table: pd.DataFrame,
    model: HookedModel | None = None,
    *,
    progress: bool = True,
    reuse: bool = True,
    memory: Memory = None,
) -> pd.DataFrame:
    """Measure the texts of a sweep, each by itself.

    Args:
        table: of `sweep(…, measure="generate")` or `read_recorded`.
        model: to say how likely it finds the texts unsteered; it should be the one that wrote them.
        progress, reuse, memory: as for `sweep`.

    Returns:
        The table's rows without its scores, and
        words: how many there are, a mark of punctuation counting as a word.
        distinct_1, distinct_2, distinct_3: different n-grams over all, of words, marks and ends of lines;
            capitals make no difference; NaN where the text is shorter.
        unreadable: whether no choice could be read; NA where the table has no choices.
        tokens, loss: tokens of the text, and their mean cross-entropy given the prompt, unsteered, in nats:
            the perplexity is exp(loss). NA and NaN without a model; 0 and NaN for an empty text.

    Raises:
        ValueError: columns are missing or have names of the result, no row has a text, a prompt is in a cell
            twice, or a text does not fit the model's context behind its prompt.

    Long texts repeat more than short ones, so distinct n-grams compare only between texts of about one
    length.
    A low loss is no virtue: a text that repeats itself is easily predicted. The loss is of the text tokenised
    alone and appended to the prompt's tokens, which need not be the tokens that were written; the token that
    ended the text is not among them. Source: distinct n-grams, Li et al. 2016, section 5.
    """
    table = sweep_table(table, "prompt_id", "prompt", "choice", "answer", "text")
    require_one_row_a_prompt(table)
    if taken := sorted(set(table) & MEASURED):
        raise ValueError(f"the table's columns {taken} have names of the result: rename or drop them first.")
    texts = table["text"].astype("string")
    if texts.isna().all():
        raise ValueError("the table has no texts: sweep with measure='generate'.")
    scores = [name for name in OUTCOMES if name != "text" and name in table]
    kept = table.drop(columns=scores).reset_index(drop=True)
    measured = pd.DataFrame([_counted(None if pd.isna(text) else text) for text in texts])
    asked = table[["choice", "answer"]].notna().any(axis=None)
    unreadable = table["choice"].isna().to_numpy() if asked else [pd.NA] * len(table)
    unreadable = pd.Series(unreadable, dtype="boolean").mask(texts.isna().to_numpy())
    likely = _likely(model, table, progress, reuse, memory)
    return kept.join(measured.astype({"words": "Int64"})).assign(unreadable=unreadable, **likely)


def units_of(text: str) -> list[str]:
    """Words, marks of punctuation and ends of lines, without capitals: texts fall apart into any of them."""
    return UNIT.findall(text.casefold())


def distinct(units: Sequence[str], n: int) -> float:
    """Different n-grams over all of them; NaN where there is none."""
    grams = [tuple(units[start : start + n]) for start in range(len(units) - n + 1)]
    return len(set(grams)) / len(grams) if grams else float("nan")


def _counted(text: str | None) -> dict[str, Any]:
    units = [] if text is None else units_of(text)
    words = sum(unit != "\n" for unit in units)
    shares = {f"distinct_{n}": distinct(units, n) for n in range(1, LONGEST + 1)}
    return {"words": pd.NA if text is None else words, **shares}


def _likely(
    model: Any, table: pd.DataFrame, progress: bool, reuse: bool, memory: Memory
) -> Mapping[str, pd.Series]:
    """The columns tokens and loss."""
    if model is None:
        nothing = pd.Series([pd.NA] * len(table), dtype="Int64")
        return {"tokens": nothing, "loss": nothing.astype(float)}
    places = [
        None if pd.isna(text) else (prompt if isinstance(prompt, str) else tuple(prompt), text)
        for prompt, text in zip(table["prompt"], table["text"], strict=True)
    ]
    unique = list(dict.fromkeys(place for place in places if place is not None))
    found = dict(zip(unique, _losses(model, unique, progress, reuse, memory), strict=True))
    rows = [(pd.NA, np.nan) if place is None else found[place] for place in places]
    return {
        "tokens": pd.Series([tokens for tokens, _ in rows], dtype="Int64"),
        "loss": pd.Series([loss for _, loss in rows], dtype=float),
    }


def _losses(
    model: Any, pairs: Sequence[tuple[Any, str]], progress: bool, reuse: bool, memory: Memory
) -> list[tuple[int, float]]:
    """Number of tokens and mean loss of each text behind its prompt; each prompt is read once."""
    prompts = {prompt: tokenize(model, prompt) for prompt, _ in pairs}
    new = [model.tokenizer(text, add_special_tokens=False)["input_ids"] for _, text in pairs]
    for (prompt, _), text in zip(pairs, new, strict=True):
        require_context(model, [prompts[prompt]], len(text))
    written = [place for place, text in enumerate(new) if text]
    found = np.full(len(pairs), np.nan)
    rows = [_row(model, prompts[pairs[place][0]], new[place]) for place in written]
    counts = np.array([len(new[place]) for place in written], dtype=int)

    def read(streams: FinalStreams) -> None:
        places = [written[row] for row in streams.rows]
        targets = torch.tensor([token for place in places for token in new[place]])
        stream = streams.stream[streams.slots[0].to(streams.stream.device)]
        found[places] = row_means(losses(model, stream, targets), counts[list(streams.rows)])

    with bar("reading texts", 1, shown=progress) as tick:
        if rows:
            final_streams(model, rows, counts.tolist(), [()], read, reuse=reuse, memory=memory, tick=tick)
    return [(len(text), float(loss)) for text, loss in zip(new, found, strict=True)]


def _row(model: Any, prompt: Sequence[int], text: Sequence[int]) -> Row:
    """All but the last token, which has nothing to predict."""
    return Row((*prompt, *text[:-1]), PromptTokens(len(prompt), tuple(prompt), model.tokenizer))
