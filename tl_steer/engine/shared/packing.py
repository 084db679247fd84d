"""Which tokens go through a block together, and which keys each of them sees there.

Segments that look back on the same tokens are put in *bundles*; bundles of about the same size, padded, are
*groups*, each one call of attention; a *parcel* is as many segments as go through a block at once.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from math import ceil
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from .prefixes import Branch, Plan, Segment

BUNDLED = 64  # tokens that are put together where they look back on the same others
PADDED = 1.5  # how much more than needed a group of bundles may compute


@dataclass(frozen=True)
class Group:
    """Bundles of about the same size, padded: tokens that look back on the same others, and those others.

    Attributes:
        queries: places among the tokens that run, 0 where padded.
        keys: numbers within the whole plan, 0 where padded.
        places: the same, flattened; where padded, the place behind the last.
        seen: 0 where a query sees a key, −∞ where not.
        near: the same for layers with local attention, if the model has any.
    """

    queries: Int[Tensor, "bundle query"]
    keys: Int[Tensor, "bundle key"]
    places: Int[Tensor, " bundle_query"]
    seen: Float[Tensor, "bundle 1 query key"]
    near: Float[Tensor, "bundle 1 query key"] | None


@dataclass(frozen=True)
class Bundle:
    """Tokens and the keys they may see, by number in the whole plan.

    `owner` says which stretch a query or key belongs to, −1 for keys that all of the bundle see.
    """

    queries: Int[np.ndarray, " query"]
    keys: Int[np.ndarray, " key"]
    query_owner: Int[np.ndarray, " query"]
    key_owner: Int[np.ndarray, " key"]

    def only(self, running: Int[np.ndarray, " running"]) -> "Bundle":
        """The bundle without the queries that do not run."""
        kept = np.isin(self.queries, running)
        return replace(self, queries=self.queries[kept], query_owner=self.query_owner[kept])

    @property
    def shared(self) -> Bool[np.ndarray, "query key"]:
        """Which keys are of a query's own stretch, or of what all look back on."""
        return (self.key_owner == -1) | (self.key_owner == self.query_owner[:, None])

    @property
    def shape(self) -> tuple[int, int]:
        """How many queries, and how many keys."""
        return len(self.queries), len(self.keys)


@dataclass(frozen=True)
class Parcel:
    """Tokens `start` to `stop` of a plan, which join before layer `born` and attend in the same groups.

    `running` are the numbers of those that go through a block; the others give keys and values alone.
    """

    start: int
    stop: int
    born: int
    running: Int[np.ndarray, " running"]
    bundles: tuple[Bundle, ...]
    groups: tuple[Group, ...]


class Packer:
    """Puts a plan's segments in parcels.

    Args:
        budget: about how many tokens a parcel holds at most (but at least a segment).
        like: a tensor of the device and dtype that masks shall have.
    """

    def __init__(self, model: Any, plan: Plan, budget: int, like: Tensor) -> None:
        cfg = model.cfg
        self.plan, self.budget, self.like = plan, budget, like
        self.places = np.concatenate([branch.growth.index for branch in plan.all])
        self.window = cfg.window_size if cfg.use_local_attn else None

    def parcels(self) -> Iterator[Parcel]:
        """The whole plan, in the order of its numbers; those that join at one layer are of about one size."""
        for _, branches in groupby(self.plan.all, key=lambda each: (each is self.plan.trunk, each.born)):
            segments = [(branch, segment) for branch in branches for segment in branch.growth.segments]
            total = sum(segment.stop - segment.start for _, segment in segments)
            size = total / max(1, ceil(total / self.budget))
            together, done, enough = [], 0, size
            for branch, segment in segments:
                count = segment.stop - segment.start
                if together and done + count > enough + 0.5 * count:
                    yield self._parcel(together)
                    together, enough = [], enough + size
                together.append((branch, segment))
                done += count
            if together:
                yield self._parcel(together)

    def only(self, parcel: Parcel, wanted: Int[np.ndarray, " token"]) -> Parcel:
        """The parcel with only those tokens running that are wanted."""
        running = wanted[(wanted >= parcel.start) & (wanted < parcel.stop)]
        made = [few for bundle in parcel.bundles if len((few := bundle.only(running)).queries)]
        return replace(parcel, running=running, groups=tuple(self._groups(made, running)))

    def _parcel(self, together: Sequence[tuple[Branch, Segment]]) -> Parcel:
        (first, begun), (last, ended) = together[0], together[-1]
        start, stop = first.base + begun.start, last.base + ended.stop
        running, made = np.arange(start, stop), bundles(together)
        groups = tuple(self._groups(made, running))
        return Parcel(start, stop, first.born, running, tuple(made), groups)

    def _groups(self, made: Sequence[Bundle], running: Int[np.ndarray, " running"]) -> Iterator[Group]:
        """Bundles of about the same size together."""
        together: list[Bundle] = []
        needed, sides = 0, np.zeros(2, dtype=int)
        for bundle in sorted(made, key=lambda bundle: bundle.shape):
            needed, sides = needed + np.prod(bundle.shape), np.maximum(sides, bundle.shape)
            if together and (len(together) + 1) * sides.prod() > PADDED * needed:
                yield self._padded(together, running)
                together, needed, sides = [], np.prod(bundle.shape), np.array(bundle.shape)
            together.append(bundle)
        if together:
            yield self._padded(together, running)

    def _padded(self, together: Sequence[Bundle], running: Int[np.ndarray, " running"]) -> Group:
        shape = (len(together), *np.max([each.shape for each in together], axis=0))
        queries, keys = np.zeros(shape[:2], dtype=np.int64), np.zeros(shape[::2], dtype=np.int64)
        real, seen, near = (np.zeros(size, dtype=bool) for size in (shape[:2], shape, shape))
        for row, each in enumerate(together):
            here, there = slice(len(each.queries)), slice(len(each.keys))
            queries[row, here], keys[row, there] = np.searchsorted(running, each.queries), each.keys
            real[row, here] = True
            back = self.places[each.queries][:, None] - self.places[each.keys]
            seen[row, here, there] = each.shared & (back >= 0)
            near[row, here, there] = each.shared & (back >= 0) & (back < (self.window or 0))
        return Group(
            queries=torch.from_numpy(queries).to(self.like.device),
            keys=torch.from_numpy(keys).to(self.like.device),
            places=torch.from_numpy(np.where(real, queries, len(running)).flatten()).to(self.like.device),
            seen=self._additive(seen, real),
            near=None if self.window is None else self._additive(near, real),
        )

    def _additive(
        self, seen: Bool[np.ndarray, "bundle query key"], real: Bool[np.ndarray, "bundle query"]
    ) -> Float[Tensor, "bundle 1 query key"]:
        seen = torch.from_numpy(seen | ~real[..., None])  # padded queries see something, or they would be NaN
        mask = torch.zeros(seen.shape, dtype=self.like.dtype).masked_fill_(~seen, -torch.inf)
        return mask[:, None].to(self.like.device)


def bundles(segments: Sequence[tuple[Branch, Segment]]) -> list[Bundle]:
    """Segments that look back on the same tokens, together, up to `BUNDLED` tokens."""
    siblings: dict[int, list[tuple[Branch, Segment]]] = defaultdict(list)
    for branch, segment in segments:
        siblings[_last_before(branch, segment)].append((branch, segment))
    made = []
    for family in siblings.values():
        together: list[tuple[Branch, Segment]] = []
        count = 0
        for branch, segment in family:
            if together and count + segment.stop - segment.start > BUNDLED:
                made.append(_bundle(together))
                together, count = [], 0
            together.append((branch, segment))
            count += segment.stop - segment.start
        made.append(_bundle(together))
    return made


def _last_before(branch: Branch, segment: Segment) -> int:
    """The token a segment comes behind, which stands for all before it."""
    if len(segment.own):
        return int(segment.own[-1]) + branch.base
    return int(segment.trunk[-1]) if len(segment.trunk) else -1


def _bundle(together: Sequence[tuple[Branch, Segment]]) -> Bundle:
    branch, segment = together[0]
    shared = segment.before(branch.base)
    own = [np.arange(segment.start, segment.stop) + branch.base for branch, segment in together]
    owner = np.repeat(np.arange(len(own)), [len(each) for each in own])
    queries = np.concatenate(own)
    return Bundle(
        queries, np.concatenate([shared, queries]), owner, np.concatenate([np.full(len(shared), -1), owner])
    )
