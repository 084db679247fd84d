"""`damage`: how much steering changes next-token predictions on neutral text."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from .._util.logs import bar
from .._util.validation import checked
from ..directions import SteeringVector, SteeringVectors
from ..engine import FinalStreams, Memory, Row, RunOptions, divergences, final_streams, losses, row_means
from ..interventions import Vectors, edits_of
from ..models import HookedModel, Prompt, as_prompts, tokenize_all
from ..positions import Positions, PromptTokens, all_tokens
from .chunks import steered_sites, typical_norms
from .conditions import Condition, OperationFactory, named_vectors, sweep_conditions
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
    operations: Sequence[str | OperationFactory] = ("add",),
    positions: Positions | None = None,
    controls: int | Mapping[str, SteeringVectors] | None = None,
    seed: int = 0,
    max_tokens: int = 64,
    force: bool = False,
    progress: bool = True,
    reuse: bool = True,
    memory: Memory = None,
) -> pd.DataFrame:
    """Compare next-token distributions on passages with the unsteered ones, under every condition of a sweep.

    A passage is read as text that the model generates after its first token (the BOS, if the tokenizer adds
    one). So `all_tokens()` and `current_token()` steer every token, `generated_tokens()` and `~token(0)` all
    but the first. Every token but the first is predicted, from the position before it.

    Args:
        model: a `HookedTransformer` or a `TransformerBridge`.
        vectors, layers, multipliers, operations, seed, force, progress, reuse, memory: as for `sweep`.
        controls: as for `sweep`, at all of these layers and multipliers; with the same `seed`, they are the
            same directions. By default 20 if `layers` is given, else none: at every layer they would make the
            call 21 times as long.
        passages: texts or token lists, or a table with a column `passage`, such as `read_neutral()`, whose
            other columns are copied.
        positions: by default `all_tokens()`.
        max_tokens: how many tokens of each passage are read at most.

    Returns:
        A row per passage and condition, the unsteered condition first: prompt_id, prompt (the passage), the
        table's other columns, the condition's columns, dose (by the stream norm on these passages, which
        differs from a sweep's), and
        tokens: predicted ones, the passage's tokens less one.
        kl: mean over them of KL(unsteered ‖ steered) of the next-token distribution, in nats; 0 unsteered.
        loss: mean cross-entropy of the passage's own tokens, in nats: the perplexity is exp(loss).
        loss_change: against the unsteered model on the same passage.
        NaN for a passage of one token, of which nothing is predicted.

    Raises:
        ValueError: no passages, or none of two tokens; a column with the name of a column of the result;
            positions that do not select generated tokens (`last_token()`: use `current_token()`).

    `kl` measures every change of the predictions, intended ones too; `loss_change` only whether the passage
    becomes less likely, and may be negative. Both are per token: exp(0.1) is 10.5 % more perplexity.
    """
    positions = all_tokens() if positions is None else positions
    if controls is None:
        controls = 0 if layers is None else 20
    unsteered, *conditions = sweep_conditions(
        named_vectors(vectors),
        controls,
        layers=layers,
        multipliers=multipliers,
        operations=operations,
        positions=positions,
        seed=seed,
    )
    _require_generated(model, conditions)
    labels, ids = _read_passages(model, passages, max_tokens)
    damages = _Damages(model, ids, len(conditions))
    with bar("measuring damage", len(conditions) + 1, visible=progress) as on_progress:
        # Where a passage has no selected token, nothing changes.
        damages.run(conditions, RunOptions(reuse, memory, force, allow_empty=True, on_progress=on_progress))
    norms = typical_norms(model, ids, steered_sites(model, conditions), reuse=reuse, memory=memory)
    tables = [
        labels.assign(**condition.labels(norms), **values)
        for condition, values in zip([unsteered, *conditions], damages.by_condition(), strict=True)
    ]
    return pd.concat(tables, ignore_index=True)


class _Damages:
    """Each passage's KL divergence and loss, unsteered and under every condition."""

    def __init__(self, model: Any, ids: Sequence[Sequence[int]], n_conditions: int) -> None:
        self.model, self.ids = model, ids
        self.counts = np.array([len(tokens) - 1 for tokens in ids])
        self.read = np.flatnonzero(self.counts)  # of a single token nothing is predicted
        self.clean: dict[int, Float[Tensor, "pos d_model"]] = {}
        self.kl, self.loss = (np.full((n_conditions + 1, len(ids)), np.nan) for _ in range(2))

    def run(self, conditions: Sequence[Condition], options: RunOptions) -> None:
        """Run the passages unsteered, keep these residual streams, and compare every condition with them."""
        rows, counts = [self._row(passage) for passage in self.read.tolist()], self.counts[self.read].tolist()
        final_streams(self.model, rows, counts, [()], self._keep_clean, options)
        if operations := [condition.operations for condition in conditions]:
            final_streams(self.model, rows, counts, operations, self._compare, options)

    def by_condition(self) -> Iterable[dict[str, Any]]:
        """The table's columns, the unsteered condition first."""
        for kl, loss in zip(self.kl, self.loss, strict=True):
            values = (self.counts, kl, loss, loss - self.loss[0])
            yield dict(zip(MEASURED, values, strict=True))

    def _row(self, passage: int) -> Row:
        """All but the last token, which predicts nothing; tokens after the first count as generated."""
        ids = self.ids[passage]
        return Row(tuple(ids[:-1]), PromptTokens(1, tuple(ids[:1]), self.model.tokenizer, passage))

    def _keep_clean(self, streams: FinalStreams) -> None:
        passages = self.read[list(streams.rows)]
        counts = self.counts[passages]
        stream = streams.stream[streams.slots[0].to(streams.stream.device)]
        for passage, part in zip(passages.tolist(), stream.split(counts.tolist()), strict=True):
            self.clean[passage] = part.clone()
        self.loss[0, passages] = row_means(losses(self.model, stream, self._targets(passages)), counts)
        self.kl[0, passages] = 0.0

    def _compare(self, streams: FinalStreams) -> None:
        passages = self.read[list(streams.rows)]
        clean = torch.cat([self.clean[passage] for passage in passages.tolist()])
        kl, loss = divergences(self.model, streams, clean, self._targets(passages))
        entries = np.ix_(np.array(streams.conditions) + 1, passages)
        # Rounding can make a divergence of zero slightly negative.
        self.kl[entries] = np.maximum(row_means(kl, self.counts[passages]), 0.0)
        self.loss[entries] = row_means(loss, self.counts[passages])

    def _targets(self, passages: np.ndarray) -> Tensor:
        return torch.tensor([token for passage in passages.tolist() for token in self.ids[passage][1:]])


def _require_generated(model: Any, conditions: Sequence[Condition]) -> None:
    """Raise `ValueError` for a condition that steers at most a passage's first token."""
    for condition in conditions:
        edits = edits_of(condition.operations, model.cfg.n_layers)
        vectors = [getattr(operation, "vector", None) for operation in condition.operations]
        if edits and any(isinstance(each, SteeringVector) and each.has_positions for each in vectors):
            raise ValueError(
                "vectors with one per position, which are added to a prompt's first tokens: expected one per "
                "layer, since passages are read as generated text."
            )
        if edits and not any(edit.positions.generated for edit in edits):
            raise ValueError(
                f"{edits[0].positions} leaves generated tokens alone, and passages are read as generated "
                "text after their first token. Use all_tokens(), current_token() or generated_tokens()."
            )


def _read_passages(
    model: Any, passages: pd.DataFrame | Sequence[Prompt], max_tokens: int
) -> tuple[pd.DataFrame, list[list[int]]]:
    """The columns prompt_id, prompt and a table's others, and the first tokens of each passage."""
    if max_tokens < 2:
        raise ValueError(f"max_tokens={max_tokens}: at least 2 are expected, of which one is predicted.")
    others = pd.DataFrame()
    if not isinstance(passages, pd.DataFrame):
        texts = as_prompts(passages)
    else:
        if "passage" not in passages:
            raise ValueError(f"the table has no column 'passage'; it has {', '.join(map(str, passages))}.")
        others = passages.drop(columns="passage").reset_index(drop=True)
        if clash := sorted(set(others) & {*FIXED, *MEASURED}):
            raise ValueError(f"the passages' columns {clash} have names of the result: rename them first.")
        texts = passages["passage"].tolist()
    ids = [tokens[:max_tokens] for tokens in tokenize_all(model, texts)]
    if max(map(len, ids)) < 2:
        raise ValueError("every passage is a single token: expected some of two tokens or more.")
    return pd.DataFrame({"prompt_id": range(len(texts)), "prompt": texts}).join(others), ids
