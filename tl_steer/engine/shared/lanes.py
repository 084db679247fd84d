"""Which texts share the computation of their next token.

Before the first layer that a condition changes, it computes what the unsteered model computes: there, texts
with the same tokens go through a layer once, in one *lane*.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from .prefixes import NONE


@dataclass(frozen=True)
class Lanes:
    """The lanes of a layer, in the order of their first members.

    Attributes:
        leaders: the first member of each lane.
        of_member: the lane of each member.
    """

    leaders: Int[np.ndarray, " lane"]
    of_member: Int[np.ndarray, " member"]


def shared_lanes(owners: Int[np.ndarray, " member"], texts: Int[np.ndarray, " member"]) -> Lanes:
    """One lane for each owner and text.

    Args:
        owners: the condition of each member, or NONE where it counts as unsteered.
        texts: equal numbers for equal tokens so far.
    """
    codes = (owners - NONE) * (texts.max(initial=0) + 1) + texts
    _, firsts, lane = np.unique(codes, return_index=True, return_inverse=True)
    order = np.argsort(firsts)
    return Lanes(firsts[order], np.argsort(order)[lane])


@dataclass(frozen=True)
class PromptGroup:
    """Lanes that follow one another and the prompts that they continue, which do so, too.

    Attributes:
        lanes, prompts: which.
        padded: per prompt, its lanes, counted from the group's first; `None` if each has one, in order.
        slots: the index of each lane in `padded`, flattened.
    """

    lanes: slice
    prompts: slice
    padded: Int[Tensor, "prompt most"] | None
    slots: Int[Tensor, " lane"]

    def by_prompt(
        self, x: Float[Tensor, "lane key_head shared width"]
    ) -> Float[Tensor, "prompt key_head query width"]:
        """The group's lanes as queries of their prompts."""
        x = x[self.lanes]
        return x if self.padded is None else x[self.padded].transpose(1, 2).flatten(2, 3)

    def by_lane(
        self, x: Float[Tensor, "prompt key_head query width"], shared: int
    ) -> Float[Tensor, "lane key_head shared width"]:
        """The inverse of `by_prompt`, with `shared` query heads per key head."""
        if self.padded is None:
            return x
        return x.unflatten(2, (-1, shared)).transpose(1, 2).flatten(0, 1)[self.slots]


def prompt_groups(
    prompts: Int[np.ndarray, " lane"], bounds: tuple[int, int], device: torch.device
) -> Iterator[PromptGroup]:
    """The unsteered lanes, then the others.

    Args:
        prompts: that of each lane.
        bounds: how many lanes and how many prompts are unsteered.
    """
    n_lanes, n_prompts = bounds
    for lanes, first in ((slice(n_lanes), 0), (slice(n_lanes, len(prompts)), n_prompts)):
        own = prompts[lanes] - first
        if not len(own):
            continue
        counts = np.bincount(own)
        order = np.argsort(own, kind="stable")
        rank = np.arange(len(own)) - np.repeat(np.cumsum(counts) - counts, counts)
        padded = np.zeros((len(counts), counts.max()), dtype=np.int64)
        padded[own[order], rank] = order
        slots = np.empty(len(own), dtype=np.int64)
        slots[order] = own[order] * counts.max() + rank
        is_plain = np.array_equal(own, np.arange(len(counts)))
        yield PromptGroup(
            lanes=slice(lanes.start or 0, (lanes.start or 0) + len(own)),
            prompts=slice(first, first + len(counts)),
            padded=None if is_plain else torch.from_numpy(padded).to(device),
            slots=torch.from_numpy(slots).to(device),
        )
