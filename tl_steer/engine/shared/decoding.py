"""New tokens for many rows of many conditions at once, from a layerwise pass's keys and values."""

from collections.abc import Sequence
from itertools import groupby

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ...interventions import ConditionSlots, raise_non_finite
from .attention import (
    AttentionLayer,
    Heads,
    KeyHeads,
    PackedAttention,
    ValueHeads,
    Values,
    additive,
    weighted_values,
)
from .chunking import Chunk


class Decoder(PackedAttention):
    """Generates for the rows of a chunk's conditions, token by token.

    Args:
        new_tokens: how many tokens a row may get.

    Attributes:
        members: (condition, row) of each text that continues, numbered as in the chunk's plan, by condition.
        keys, values: of each layer, "member slot head d_head".
    """

    def __init__(self, chunk: Chunk, new_tokens: int) -> None:
        self.model, self.chunk, self.new_tokens = chunk.layerwise.model, chunk, new_tokens
        self.n_layers = len(self.model.layers)
        plan = chunk.plan
        self.members = [
            (condition, row) for condition in range(len(plan.conditions)) for row in range(len(plan.rows))
        ]
        lengths = [len(row.ids) for row in plan.rows]
        device = chunk.layerwise.token_index.device
        self._next = torch.tensor([lengths[row] for _, row in self.members], device=device)
        self._width = max(lengths)
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []
        self._masks: dict[int | None, Tensor] = {}

    def start(self) -> Float[Tensor, "member d_model"]:
        """Run the prompts; the final residual stream at each one's last token."""
        layerwise = self.chunk.layerwise
        last = np.array([self.chunk.plan.path(condition, row)[-1] for condition, row in self.members])
        layerwise.run(self.n_layers, needed=last, after_layer=self._cache, on_tokens=self.chunk.on_tokens)
        layerwise.require_finite()
        return layerwise.stream[torch.from_numpy(last).to(self.index.device)]

    @torch.no_grad()
    def step(self, tokens: Int[Tensor, " member"]) -> Float[Tensor, "member d_model"]:
        """Feed each member's next token; the final residual stream there."""
        steering = self.chunk.layerwise.steering
        steering.slots = self._slots()
        self._masks = self._visible()
        stream = self.model.embedded(tokens.to(self.index.device), self.index)
        with self.model.packed(self, self._width + self.new_tokens) as run:
            stream = run(0, self.n_layers, stream)
        steering.log.require_finite()
        steering.require_fired([slots.condition for slots in steering.slots])
        finite = torch.isfinite(stream).all(-1).tolist()
        if not all(finite):
            condition, row = self.members[finite.index(False)]
            raise_non_finite(steering.described(condition), self.chunk.plan.rows[row].prompt)
        self._next = self._next + 1
        self.chunk.on_tokens(len(self.members) * self.n_layers)
        return stream

    def keep(self, indices: Sequence[int]) -> None:
        """Continue with these members only."""
        index = torch.tensor(list(indices), device=self.index.device)
        self.members = [self.members[i] for i in indices]
        self._next = self._next[index]
        for cache in (self.keys, self.values):
            for layer, slots in enumerate(cache):
                cache[layer] = slots[index]

    def _cache(self, layer: int) -> None:
        """Copy every member's keys and values of the layer that just ran."""
        layerwise = self.chunk.layerwise
        numbers = torch.zeros(len(self.members), self._width, dtype=torch.long)
        for member, (condition, row) in enumerate(self.members):
            path = self.chunk.plan.path(condition, row, layer=layer)
            numbers[member, : len(path)] = torch.from_numpy(path)
        numbers = numbers.to(layerwise.token_index.device)
        for cache, source in ((self.keys, layerwise.keys), (self.values, layerwise.values)):
            slots = source.new_zeros(len(self.members), self._width + self.new_tokens, *source.shape[1:])
            slots[:, : self._width] = source[numbers]
            cache.append(slots)

    @property
    def index(self) -> Int[Tensor, " member"]:
        """The position of each member's next token."""
        return self._next

    def _slots(self) -> list[ConditionSlots]:
        """The slots of the conditions that steer generated tokens."""
        slots, stop = [], 0
        for condition, rows in groupby(condition for condition, _ in self.members):
            start, stop = stop, stop + len(list(rows))
            positions = {edit.positions for edit in self.chunk.plan.conditions[condition]}
            if any(each.generated for each in positions):
                selected = {each: torch.full((stop - start,), each.generated) for each in positions}
                slots.append(ConditionSlots(condition, slice(start, stop), self.index[start:stop], selected))
        return slots

    def _visible(self) -> dict[int | None, Float[Tensor, "member 1 1 slot"]]:
        slots = torch.arange(int(self.index.max()) + 1, device=self.index.device)
        distance = self.index[:, None] - slots
        visible = {
            window: (distance >= 0) if window is None else (distance >= 0) & (distance < window)
            for window in self.model.windows
        }
        return {window: additive(mask[:, None], self.model.weight) for window, mask in visible.items()}

    def attend(self, layer: AttentionLayer, q: Heads, k: KeyHeads, v: ValueHeads) -> Values:
        """Each token's weighted values, from its own row."""
        keys, values = self.keys[layer.layer], self.values[layer.layer]
        members = torch.arange(len(self.members), device=self.index.device)
        keys[members, self.index], values[members, self.index] = k, v
        mask = self._masks[layer.window]
        width = mask.shape[-1]
        return weighted_values(layer, q[:, None], keys[:, :width], values[:, :width], mask)[:, 0]
