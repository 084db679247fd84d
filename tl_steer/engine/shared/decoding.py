"""New tokens for many rows of many conditions at once, from a layerwise pass's keys and values."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby, pairwise

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ...interventions import ConditionSlots, raise_non_finite
from ...positions import Positions
from .attention import (
    AttentionLayer,
    Heads,
    KeyHeads,
    PackedAttention,
    RunBlocks,
    ValueHeads,
    Values,
    additive,
    attention_weights,
)
from .chunking import Chunk
from .lanes import Lanes, PromptGroup, prompt_groups, shared_lanes
from .prefixes import NONE


@dataclass(frozen=True)
class Current:
    """The lanes that go through the layers now.

    Attributes:
        leaders, of_member: see `Lanes`, on the model's device; `leaders` is `None` if every member is one.
        index: the absolute position of each lane's new token.
        groups: lanes with the prompts that they continue.
        masks: by window, 0 where a lane's token sees a slot of its prompt or a new one, −∞ elsewhere.
    """

    lanes: Lanes
    leaders: Int[Tensor, " lane"] | None
    of_member: Int[Tensor, " member"]
    index: Int[Tensor, " lane"]
    groups: tuple[PromptGroup, ...]
    masks: dict[int | None, Float[Tensor, "lane 1 1 slot"]]


class Decoder(PackedAttention):
    """Generates for the rows of a chunk's conditions, token by token.

    Args:
        new_tokens: how many tokens a row may get.

    Attributes:
        members: (condition, row) of each text that continues, numbered as in the chunk's plan; those that are
            unsteered in more layers come first.
        prompts: keys and values of the prompts in each layer, "prompt key_head slot d_head".
        keys, values: those of new tokens in each layer, "member key_head slot d_head".
    """

    current: Current
    _run: RunBlocks

    def __init__(self, chunk: Chunk, new_tokens: int) -> None:
        self.model, self.chunk, self.new_tokens = chunk.layerwise.model, chunk, new_tokens
        plan, n_layers = chunk.plan, len(self.model.layers)
        self._starts = [plan.steered_from(each, n_layers) for each in range(len(plan.conditions))]
        by_start = sorted(range(len(plan.conditions)), key=lambda condition: -self._starts[condition])
        self._set_members([(condition, row) for condition in by_start for row in range(len(plan.rows))])
        ids = list({row.ids: None for row in plan.rows})
        self._texts = np.array([ids.index(plan.rows[row].ids) for _, row in self.members])
        self._width, self._fed = max(map(len, ids)), 0
        # From each of these layers to the next, lanes and prompts are the same.
        self._bounds = sorted({0, n_layers, *(start for start in self._starts if start < n_layers)})
        self._prompt_of = {layer: self._lanes(layer).of_member for layer in self._bounds}
        self.prompts: list[tuple[Tensor, Tensor]] = []
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []

    def start(self) -> Float[Tensor, "member d_model"]:
        """Run the prompts; the final residual stream at each one's last token."""
        layerwise = self.chunk.layerwise
        last = np.array([self.chunk.plan.path(condition, row)[-1] for condition, row in self.members])
        stop, on_tokens = self._bounds[-1], self.chunk.on_tokens
        layerwise.run(stop, needed=last, after_layer=self._store, on_tokens=on_tokens)
        layerwise.require_finite()
        return layerwise.stream[self._tensor(last)]

    @contextmanager
    def running(self) -> Iterator[None]:
        """Steps are taken inside this block."""
        with self.model.packed(self, self._width + self.new_tokens) as self._run:
            yield

    @torch.no_grad()
    def step(self, tokens: Int[Tensor, " member"]) -> Float[Tensor, "member d_model"]:
        """Feed each member's next token; the final residual stream there."""
        steering, ids = self.chunk.layerwise.steering, tokens.cpu().numpy()
        self._texts = np.unique(self._texts * (ids.max() + 1) + ids, return_inverse=True)[1]
        lanes = self._enter(0)
        stream = self.model.embedded(self._tensor(ids[lanes.leaders]), self.index)
        for start, stop in pairwise(self._bounds):
            stream = self._join(stop, self._run(start, stop, stream))
        steering.log.require_finite()
        steering.require_fired(
            [each for each in np.unique(self._conditions).tolist() if self._selected(each)]
        )
        stream = stream[self.current.of_member]
        finite = torch.isfinite(stream).all(-1).tolist()
        if not all(finite):
            condition, row = self.members[finite.index(False)]
            raise_non_finite(steering.described(condition), self.chunk.plan.rows[row].prompt)
        self._fed += 1
        self.chunk.on_tokens(len(self.members) * self._bounds[-1])
        return stream

    def keep(self, indices: Sequence[int]) -> None:
        """Continue with these members only."""
        chosen = np.array(indices)
        self._set_members([self.members[i] for i in indices])
        self._texts, index = self._texts[chosen], self._tensor(chosen)
        for cache in (self.keys, self.values):
            for layer, slots in enumerate(cache):
                cache[layer] = slots[index]
        for start, stop in pairwise(self._bounds):
            used, self._prompt_of[start] = np.unique(self._prompt_of[start][chosen], return_inverse=True)
            for layer in range(start, stop):
                keys, values = self.prompts[layer]
                self.prompts[layer] = keys[self._tensor(used)], values[self._tensor(used)]

    @property
    def index(self) -> Int[Tensor, " lane"]:
        """The position of each lane's new token."""
        return self.current.index

    def attend(self, layer: AttentionLayer, q: Heads, k: KeyHeads, v: ValueHeads) -> Values:
        """Each lane's weighted values, from its prompt and its own new tokens."""
        current, (prompt_keys, prompt_values) = self.current, self.prompts[layer.layer]
        keys, values = self.keys[layer.layer], self.values[layer.layer]
        keys[:, :, self._fed], values[:, :, self._fed] = k[current.of_member], v[current.of_member]
        keys, values = keys[:, :, : self._fed + 1], values[:, :, : self._fed + 1]
        if current.leaders is not None:
            keys, values = keys[current.leaders], values[current.leaders]
        shared = q.shape[1] // k.shape[1]  # query heads per key head
        q = q.unflatten(1, (-1, shared))
        scores = [
            each.by_lane(each.by_prompt(q) @ prompt_keys[each.prompts].mT, shared) for each in current.groups
        ]
        scores = torch.cat([torch.cat(scores), q @ keys.mT], -1).flatten(1, 2)
        weights = attention_weights(layer, scores[:, :, None], current.masks[layer.window])
        weights = weights[:, :, 0].unflatten(1, (-1, shared))
        of_prompt, of_new = weights.split([self._width, self._fed + 1], -1)
        z = [
            each.by_lane(each.by_prompt(of_prompt) @ prompt_values[each.prompts], shared)
            for each in current.groups
        ]
        return (torch.cat(z) + of_new @ values).flatten(1, 2)

    def _set_members(self, members: list[tuple[int, int]]) -> None:
        self.members = members
        self._conditions = np.array([condition for condition, _ in members])
        self._lengths = np.array([len(self.chunk.plan.rows[row].ids) for _, row in members])
        self._start_of = np.array([self._starts[condition] for condition, _ in members])

    def _lanes(self, layer: int) -> Lanes:
        return shared_lanes(np.where(self._start_of <= layer, self._conditions, NONE), self._texts)

    def _store(self, layer: int) -> None:
        """Copy the keys and values of the layer that just ran: those of each prompt, once."""
        prompt_of = self._prompt_of[max(bound for bound in self._bounds if bound <= layer)]
        firsts = np.unique(prompt_of, return_index=True)[1]
        numbers = np.zeros((len(firsts), self._width), dtype=np.int64)
        for slots, member in zip(numbers, firsts, strict=True):
            path = self.chunk.plan.path(*self.members[member], layer=layer)
            slots[: len(path)] = path
        layerwise, index = self.chunk.layerwise, self._tensor(numbers)
        keys, values = (
            each[index].transpose(1, 2).contiguous() for each in (layerwise.keys, layerwise.values)
        )
        self.prompts.append((keys, values))
        for cache, (_, heads, _, width) in ((self.keys, keys.shape), (self.values, values.shape)):
            cache.append(keys.new_zeros(len(self.members), heads, self.new_tokens, width))

    def _enter(self, layer: int) -> Lanes:
        """Continue with the lanes of the layers from this one on."""
        lanes = self._lanes(layer)
        n_unsteered = int((self._start_of > layer).sum())
        prompt_of = self._prompt_of[layer]
        unsteered = lanes.of_member[:n_unsteered], prompt_of[:n_unsteered]
        bounds = tuple(int(each.max(initial=-1)) + 1 for each in unsteered)
        device, lengths = self.model.weight.device, self._tensor(self._lengths[lanes.leaders])
        self.current = Current(
            lanes=lanes,
            leaders=None if len(lanes.leaders) == len(self.members) else self._tensor(lanes.leaders),
            of_member=self._tensor(lanes.of_member),
            index=lengths + self._fed,
            groups=tuple(prompt_groups(prompt_of[lanes.leaders], bounds, device)),
            masks=self._visible(lengths) if layer < self._bounds[-1] else {},
        )
        self.chunk.layerwise.steering.slots = self._slots(lanes.leaders[bounds[0] :], bounds[0])
        return lanes

    def _join(self, layer: int, stream: Float[Tensor, "lane d_model"]) -> Float[Tensor, "new_lane d_model"]:
        """Continue with the lanes of this layer; conditions that start here change its input."""
        before = self.current.lanes
        lanes, steering = self._enter(layer), self.chunk.layerwise.steering
        stream = stream[self._tensor(before.of_member[lanes.leaders])]
        starting = [slots for slots in steering.slots if self._starts[slots.condition] == layer]
        return steering.changed(layer - 1, "resid_post", stream[None], starting)[0]

    def _slots(self, leaders: Int[np.ndarray, " lane"], first: int) -> list[ConditionSlots]:
        """The slots of the conditions that steer generated tokens, in lanes from `first` on."""
        slots = []
        for condition, own in groupby(self._conditions[leaders].tolist()):
            count = len(list(own))
            part, first = slice(first, first + count), first + count
            if selected := self._selected(condition):
                masks = {each: torch.full((count,), each.generated) for each in selected}
                slots.append(ConditionSlots(condition, part, self.index[part], masks))
        return slots

    def _selected(self, condition: int) -> set[Positions]:
        """The positions of a condition's edits, if any selects generated tokens."""
        positions = {edit.positions for edit in self.chunk.plan.conditions[condition]}
        return positions if any(each.generated for each in positions) else set()

    def _visible(self, lengths: Int[Tensor, " lane"]) -> dict[int | None, Float[Tensor, "lane 1 1 slot"]]:
        prompt, new = (torch.arange(count, device=lengths.device) for count in (self._width, self._fed + 1))
        lengths = lengths[:, None]
        is_token = torch.cat([prompt < lengths, new.expand(len(lengths), -1) >= 0], 1)
        distance = torch.cat([lengths + self._fed - prompt, (self._fed - new).expand(len(lengths), -1)], 1)
        visible = {
            window: is_token if window is None else is_token & (distance < window)
            for window in self.model.windows
        }
        return {window: additive(mask[:, None], self.model.weight) for window, mask in visible.items()}

    def _tensor(self, values: Int[np.ndarray, "..."]) -> Int[Tensor, "..."]:
        return torch.from_numpy(values).to(self.model.weight.device)
