"""Which tokens go through a block together, and which keys each of them sees.

Segments with the same context form an *attention block*. Attention blocks of similar size, padded, form a
*group*: one call of attention. The segments that go through a layer together form a *micro-batch*.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from math import ceil

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from .attention import additive
from .prefixes import Delta, Plan, Segment

BLOCK_TOKENS = 64  # queries per attention block
PADDED = 1.5  # how much more than necessary a group of attention blocks may compute


@dataclass(frozen=True)
class Group:
    """Attention blocks of similar size, padded.

    Attributes:
        queries: indices into the running tokens, 0 where padded.
        keys: numbers in the plan, 0 where padded.
        outputs: `queries` flattened; where padded, the index after the last running token.
        masks: by window, 0 where a query sees a key, −∞ elsewhere.
    """

    queries: Int[Tensor, "block query"]
    keys: Int[Tensor, "block key"]
    outputs: Int[Tensor, " block_query"]
    masks: dict[int | None, Float[Tensor, "block 1 query key"]]


@dataclass(frozen=True)
class AttentionBlock:
    """Queries with a common context and the keys they may see, by number in the plan.

    `query_owner` and `key_owner` say to which segment each belongs; −1 for the keys of the context.
    """

    queries: Int[np.ndarray, " query"]
    keys: Int[np.ndarray, " key"]
    query_owner: Int[np.ndarray, " query"]
    key_owner: Int[np.ndarray, " key"]

    def only(self, running: Int[np.ndarray, " running"]) -> "AttentionBlock":
        """The block without the queries that do not run."""
        is_running = np.isin(self.queries, running)
        return replace(self, queries=self.queries[is_running], query_owner=self.query_owner[is_running])

    @property
    def is_common(self) -> Bool[np.ndarray, "query key"]:
        """Which keys are of a query's own segment or of the context."""
        return (self.key_owner == -1) | (self.key_owner == self.query_owner[:, None])

    @property
    def shape(self) -> tuple[int, int]:
        """Number of queries and of keys."""
        return len(self.queries), len(self.keys)


@dataclass(frozen=True)
class MicroBatch:
    """Tokens `start` to `stop` of a plan, which join before `start_layer` and attend in the same groups.

    `running` are the numbers of those that go through a block; the others only give keys and values.
    """

    start: int
    stop: int
    start_layer: int
    running: Int[np.ndarray, " running"]
    blocks: tuple[AttentionBlock, ...]
    groups: tuple[Group, ...]


class Packer:
    """Packs a plan's segments into micro-batches.

    Args:
        windows: of the model's layers.
        budget: about how many tokens a micro-batch holds at most (but at least one segment).
        like: a tensor with the device and dtype of the masks.
    """

    def __init__(self, windows: set[int | None], plan: Plan, budget: int, like: Tensor) -> None:
        self.windows, self.plan, self.budget, self.like = windows, plan, budget, like
        self.index = np.concatenate([part.trie.index for part in plan.parts])

    def micro_batches(self) -> Iterator[MicroBatch]:
        """The whole plan by number; micro-batches with the same start layer are of similar size."""
        for _, parts in groupby(
            self.plan.parts, key=lambda part: (part is self.plan.prefix, part.start_layer)
        ):
            segments = [(part, segment) for part in parts for segment in part.trie.segments]
            total = sum(segment.stop - segment.start for _, segment in segments)
            size = total / max(1, ceil(total / self.budget))
            batch, done, enough = [], 0, size
            for part, segment in segments:
                count = segment.stop - segment.start
                if batch and done + count > enough + 0.5 * count:
                    yield self._micro_batch(batch)
                    batch, enough = [], enough + size
                batch.append((part, segment))
                done += count
            if batch:
                yield self._micro_batch(batch)

    def only(self, batch: MicroBatch, needed: Int[np.ndarray, " token"]) -> MicroBatch:
        """The micro-batch in which only the needed tokens run."""
        running = needed[(needed >= batch.start) & (needed < batch.stop)]
        blocks = [block for each in batch.blocks if len((block := each.only(running)).queries)]
        return replace(batch, running=running, groups=tuple(self._groups(blocks, running)))

    def _micro_batch(self, segments: Sequence[tuple[Delta, Segment]]) -> MicroBatch:
        (first, first_segment), (last, last_segment) = segments[0], segments[-1]
        start, stop = first.base + first_segment.start, last.base + last_segment.stop
        running, blocks = np.arange(start, stop), attention_blocks(segments)
        groups = tuple(self._groups(blocks, running))
        return MicroBatch(start, stop, first.start_layer, running, tuple(blocks), groups)

    def _groups(
        self, blocks: Sequence[AttentionBlock], running: Int[np.ndarray, " running"]
    ) -> Iterator[Group]:
        """Attention blocks of similar size together."""
        group: list[AttentionBlock] = []
        needed, sides = 0, np.zeros(2, dtype=int)
        for block in sorted(blocks, key=lambda block: block.shape):
            needed, sides = needed + np.prod(block.shape), np.maximum(sides, block.shape)
            if group and (len(group) + 1) * sides.prod() > PADDED * needed:
                yield self._padded(group, running)
                group, needed, sides = [], np.prod(block.shape), np.array(block.shape)
            group.append(block)
        if group:
            yield self._padded(group, running)

    def _padded(self, blocks: Sequence[AttentionBlock], running: Int[np.ndarray, " running"]) -> Group:
        shape = (len(blocks), *np.max([each.shape for each in blocks], axis=0))
        queries, keys = np.zeros(shape[:2], dtype=np.int64), np.zeros(shape[::2], dtype=np.int64)
        is_query = np.zeros(shape[:2], dtype=bool)
        visible = {window: np.zeros(shape, dtype=bool) for window in self.windows}
        for row, block in enumerate(blocks):
            n_queries, n_keys = map(slice, block.shape)
            queries[row, n_queries], keys[row, n_keys] = np.searchsorted(running, block.queries), block.keys
            is_query[row, n_queries] = True
            distance = self.index[block.queries][:, None] - self.index[block.keys]
            causal = block.is_common & (distance >= 0)
            for window, seen in visible.items():
                seen[row, n_queries, n_keys] = causal if window is None else causal & (distance < window)

        def mask(seen: Bool[np.ndarray, "block query key"]) -> Float[Tensor, "block 1 query key"]:
            # Padded queries see something: a softmax over nothing is NaN.
            return additive(torch.from_numpy(seen | ~is_query[..., None]), self.like)

        device = self.like.device
        return Group(
            queries=torch.from_numpy(queries).to(device),
            keys=torch.from_numpy(keys).to(device),
            outputs=torch.from_numpy(np.where(is_query, queries, len(running)).flatten()).to(device),
            masks={window: mask(seen) for window, seen in visible.items()},
        )


def attention_blocks(segments: Sequence[tuple[Delta, Segment]]) -> list[AttentionBlock]:
    """Segments with the same context together, up to `BLOCK_TOKENS` tokens."""
    siblings: dict[int, list[tuple[Delta, Segment]]] = defaultdict(list)
    for part, segment in segments:
        siblings[_last_before(part, segment)].append((part, segment))
    blocks = []
    for family in siblings.values():
        together: list[tuple[Delta, Segment]] = []
        count = 0
        for part, segment in family:
            if together and count + segment.stop - segment.start > BLOCK_TOKENS:
                blocks.append(_attention_block(together))
                together, count = [], 0
            together.append((part, segment))
            count += segment.stop - segment.start
        blocks.append(_attention_block(together))
    return blocks


def _last_before(part: Delta, segment: Segment) -> int:
    """The token before a segment, which identifies its whole context."""
    if len(segment.own):
        return int(segment.own[-1]) + part.base
    return int(segment.prefix[-1]) if len(segment.prefix) else -1


def _attention_block(segments: Sequence[tuple[Delta, Segment]]) -> AttentionBlock:
    part, segment = segments[0]
    context = segment.context(part.base)
    own = [np.arange(segment.start, segment.stop) + part.base for part, segment in segments]
    owner = np.repeat(np.arange(len(own)), [len(each) for each in own])
    queries = np.concatenate(own)
    keys, key_owner = (
        np.concatenate(pair) for pair in ((context, queries), (np.full(len(context), -1), owner))
    )
    return AttentionBlock(queries, keys, owner, key_owner)
