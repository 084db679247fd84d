"""How far steering changes what a model predicts on neutral text."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from .._util.validation import checked
from ..directions import SteeringVector, SteeringVectors
from ..engine import Memory, Row, Tick, bar
from ..interventions import Vectors, edits_of
from ..models import HookedModel, Prompt, as_prompts, tokenize_all
from ..positions import Positions, PromptTokens, all_tokens
from .conditions import Cell, OperationMaker, named_vectors, sweep_cells
from .distributions import divergences, losses, row_means
from .final_streams import Streams, read_streams
from .measuring import steered_sites, typical_norms
from .sweep_table import FIXED

MEASURED = ("tokens", "kl", "loss", "loss_change")


@checked
def damage(
    model: HookedModel,
    vectors: Vectors | Mapping[str, Vectors],
    passages: pd.DataFrame | Sequence[Prompt],
    *,
    layers: int | Sequence[int | Sequence[int]] | None = None,
    multipliers: Sequence[float],
    operations: Sequence[str | OperationMaker] = ("add",),
    positions: Positions | None = None,
    controls: int | Mapping[str, SteeringVectors] | None = None,
    seed: int = 0,
    max_tokens: int = 64,
    force: bool = False,
    progress: bool = True,
    reuse: bool = True,
    memory: Memory = None,
) -> pd.DataFrame:
    """Read passages under every cell of a sweep; compare each next-token distribution with the unsteered one.

    A passage is read as text that the model is writing behind its first token, with or without the
    tokenizer's BOS as that tokenizer has it. So `all_tokens()` and `current_token()` steer every token,
    `generated_tokens()` and `~token(0)` all but the first. Every token but the first is predicted, from the
    position before it.

    Args:
        model: a `HookedTransformer` or a `TransformerBridge`.
        vectors, layers, multipliers, operations, seed, force, progress, reuse, memory: as for `sweep`.
        controls: as for `sweep`, at all of these layers and multipliers; with the same `seed`, they are the
            same directions. By default 20 where `layers` is given, and none where it is left out: at every
            layer they would make the call 21 times as long.
        passages: texts or token lists, or a table such as `read_neutral()`: its column `passage` is read, and
            the others are kept.
        positions: by default `all_tokens()`.
        max_tokens: of each passage the first so many are read.

    Returns:
        A row a passage and cell, the unsteered cell first: prompt_id, prompt (the passage), the table's other
        columns, the cell's columns, dose (by the stream's norm on these passages: not quite a sweep's), and
        tokens: predicted ones, the passage's tokens less one.
        kl: mean over them of KL(unsteered ‖ steered) of the next-token distribution, in nats; 0 unsteered.
        loss: mean cross-entropy of the passage's own tokens, in nats: the perplexity is exp(loss).
        loss_change: against the unsteered model on the same passage.
        NaN for a passage of one token, of which nothing is predicted.

    Raises:
        ValueError: no passages, none of two tokens, a column that has one of the table's names, positions
            that leave generated tokens alone (`last_token()`: use `current_token()`).

    `kl` sees every change of the predictions, wanted ones among them; `loss_change` only what makes the
    passage itself less likely, and may be negative. Both are per token: exp(0.1) is 10.5 % more perplexity.
    """
    positions = all_tokens() if positions is None else positions
    if controls is None:
        controls = 0 if layers is None else 20
    named = named_vectors(vectors)
    unsteered, *cells = sweep_cells(
        named,
        controls,
        layers=layers,
        multipliers=multipliers,
        operations=operations,
        positions=positions,
        seed=seed,
    )
    _require_written(model, cells)
    shown = _shown(passages)
    ids = _tokens(model, passages, max_tokens)
    options = {"force": force, "reuse": reuse, "memory": memory}
    with bar("measuring damage", len(cells) + 1, shown=progress) as tick:
        measured = _Measured(model, ids, len(cells))
        measured.run(cells, options, tick)
    norms = typical_norms(model, ids, steered_sites(model, cells), reuse=reuse, memory=memory)
    tables = [
        shown.assign(**cell.labels(norms), **values)
        for cell, values in zip([unsteered, *cells], measured.by_cell(), strict=True)
    ]
    return pd.concat(tables, ignore_index=True)


class _Measured:
    """Each passage's KL divergence and loss, unsteered and under every cell."""

    def __init__(self, model: Any, ids: Sequence[Sequence[int]], cells: int) -> None:
        self.model, self.ids = model, ids
        self.counts = np.array([len(tokens) - 1 for tokens in ids])
        self.read = np.flatnonzero(self.counts)  # a single token predicts nothing that is there
        self.clean: dict[int, Float[Tensor, "pos d_model"]] = {}
        self.kl = np.full((cells + 1, len(ids)), np.nan)
        self.loss = np.full((cells + 1, len(ids)), np.nan)

    def run(self, cells: Sequence[Cell], options: Mapping[str, Any], tick: Tick) -> None:
        """The unsteered streams first: they are kept, and compared with those of every cell."""
        rows, counts = [self._row(passage) for passage in self.read.tolist()], self.counts[self.read]
        read_streams(self.model, rows, counts.tolist(), [()], self._keep, tick=tick, **options)
        operations = [cell.operations for cell in cells]
        if operations:
            read_streams(self.model, rows, counts.tolist(), operations, self._compare, tick=tick, **options)

    def by_cell(self) -> Iterable[dict[str, Any]]:
        """The table's columns, the unsteered cell first."""
        for kl, loss in zip(self.kl, self.loss, strict=True):
            values = (self.counts, kl, loss, loss - self.loss[0])
            yield dict(zip(MEASURED, values, strict=True))

    def _row(self, passage: int) -> Row:
        """All but the last token, which has nothing to predict; what follows the first counts as written."""
        ids = self.ids[passage]
        return Row(tuple(ids[:-1]), PromptTokens(1, tuple(ids[:1]), self.model.tokenizer, passage))

    def _keep(self, streams: Streams) -> None:
        passages = self.read[list(streams.rows)]
        counts = self.counts[passages]
        stream = streams.stream[streams.slots[0].to(streams.stream.device)]
        for passage, mine in zip(passages.tolist(), stream.split(counts.tolist()), strict=True):
            self.clean[passage] = mine.clone()
        self.loss[0, passages] = row_means(losses(self.model, stream, self._targets(passages)), counts)
        self.kl[0, passages] = 0.0

    def _compare(self, streams: Streams) -> None:
        passages = self.read[list(streams.rows)]
        clean = torch.cat([self.clean[passage] for passage in passages.tolist()])
        kl, loss = divergences(self.model, streams, clean, self._targets(passages))
        place = np.ix_(np.array(streams.cells) + 1, passages)
        # rounding can put a divergence of nothing a little below zero
        self.kl[place] = np.maximum(row_means(kl, self.counts[passages]), 0.0)
        self.loss[place] = row_means(loss, self.counts[passages])

    def _targets(self, passages: np.ndarray) -> Tensor:
        return torch.tensor([token for passage in passages.tolist() for token in self.ids[passage][1:]])


def _require_written(model: Any, cells: Sequence[Cell]) -> None:
    """Every cell steers more than a passage's first token."""
    for cell in cells:
        edits = edits_of(cell.operations, model.cfg.n_layers)
        if edits and any(vector.has_positions for vector in _steering(cell)):
            raise ValueError(
                "vectors with one a position go to a prompt's first tokens, and passages are read as text "
                "that the model is writing: they have no such tokens. Give one vector a layer."
            )
        if edits and not any(edit.positions.generated for edit in edits):
            raise ValueError(
                f"{edits[0].positions} leaves generated tokens alone, and passages are read as text that the "
                "model is writing behind its first token: use all_tokens(), current_token(), "
                "generated_tokens() or ~token(0)."
            )


def _steering(cell: Cell) -> list[SteeringVector]:
    """The vectors of a cell's operations; an operation need not have one."""
    given = [getattr(operation, "vector", None) for operation in cell.operations]
    return [each for each in given if isinstance(each, SteeringVector)]


def _shown(passages: pd.DataFrame | Sequence[Prompt]) -> pd.DataFrame:
    """prompt_id, prompt, and a table's other columns."""
    given = _given(passages)
    table = pd.DataFrame({"prompt_id": range(len(given)), "prompt": given})
    if not isinstance(passages, pd.DataFrame):
        return table
    others = passages.drop(columns="passage").reset_index(drop=True)
    if clash := sorted(set(others) & {*FIXED, *MEASURED}):
        raise ValueError(f"the passages' columns {clash} have names of the result: rename them first.")
    return table.join(others)


def _given(passages: pd.DataFrame | Sequence[Prompt]) -> list[Prompt]:
    if not isinstance(passages, pd.DataFrame):
        return as_prompts(passages)
    if "passage" not in passages:
        raise ValueError(f"the table has no column 'passage'; it has {', '.join(map(str, passages))}.")
    return passages["passage"].tolist()


def _tokens(model: Any, passages: pd.DataFrame | Sequence[Prompt], max_tokens: int) -> list[list[int]]:
    if max_tokens < 2:
        raise ValueError(f"max_tokens={max_tokens}: at least 2 are needed for one to be predicted.")
    ids = [tokens[:max_tokens] for tokens in tokenize_all(model, _given(passages))]
    if max(map(len, ids)) < 2:
        raise ValueError("every passage is a single token, so that none is predicted: give longer ones.")
    return ids
