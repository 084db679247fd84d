"""New tokens for many rows of many cells at once, from the keys and values that a walk leaves behind."""

from collections.abc import Sequence
from itertools import groupby
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ...interventions import Part, raise_non_finite
from .attention import Heads, KeyHeads, Runs, attending, extend_rotary, weighted_values
from .chunking import Wave
from .forward import embedded


class Decoder(Runs):
    """Rows of a wave's cells, one after another by cell, that go on token by token.

    Args:
        room: how many tokens a row may get.

    Attributes:
        members: (cell, row) of each, numbered as in the wave's plan.
    """

    def __init__(self, model: Any, wave: Wave, room: int) -> None:
        self.model, self.wave = model, wave
        plan = wave.plan
        self.members = [(cell, row) for cell in range(len(plan.cells)) for row in range(len(plan.rows))]
        lengths = [len(row.ids) for row in plan.rows]
        device = wave.walk.places.device
        self._next = torch.tensor([lengths[row] for _, row in self.members], device=device)
        self._width = max(lengths)
        self._room = room
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []
        self._masks: dict[str, Tensor] = {}
        extend_rotary(model, self._width + room)

    def start(self) -> Float[Tensor, "member d_model"]:
        """Walk through the prompts; what the last layer gives at each one's last token."""
        walk = self.wave.walk
        last = np.array([self.wave.plan.path(cell, row)[-1] for cell, row in self.members])
        walk.up(self.model.cfg.n_layers, wanted=last, after=self._keep, count=self.wave.count)
        walk.require_finite()
        return walk.stream[torch.from_numpy(last).to(self.index.device)]

    @torch.no_grad()
    def step(self, tokens: Int[Tensor, " member"]) -> Float[Tensor, "member d_model"]:
        """Feed each member's next token; what the last layer gives there."""
        steering = self.wave.walk.steering
        steering.parts = self._parts()
        self._masks = self._visible()
        with attending(self.model, self):
            stream = embedded(self.model, tokens.to(self.index.device), self.index)
            stream = self.model(stream[None], start_at_layer=0, stop_at_layer=self.model.cfg.n_layers)[0]
        steering.require_finite()
        steering.require_all_fired([part.cell for part in steering.parts])
        finite = torch.isfinite(stream).all(-1).tolist()
        if not all(finite):
            cell, row = self.members[finite.index(False)]
            raise_non_finite(steering.described(cell), self.wave.plan.rows[row].prompt)
        self._next = self._next + 1
        self.wave.count(len(self.members) * self.model.cfg.n_layers)
        return stream

    def leave(self, staying: Sequence[int]) -> None:
        """Only these members, by place, go on."""
        places = torch.tensor(list(staying), device=self.index.device)
        self.members = [self.members[place] for place in staying]
        self._next = self._next[places]
        for kept in (self.keys, self.values):
            for layer, slots in enumerate(kept):
                kept[layer] = slots[places]

    def _keep(self, layer: int) -> None:
        """Keep every member's keys and values of the layer that has just been walked."""
        walk = self.wave.walk
        numbers = torch.zeros(len(self.members), self._width, dtype=torch.long)
        for place, (cell, row) in enumerate(self.members):
            path = self.wave.plan.path(cell, row, layer=layer)
            numbers[place, : len(path)] = torch.from_numpy(path)
        numbers = numbers.to(walk.places.device)
        for kept, held in ((self.keys, walk.keys), (self.values, walk.values)):
            slots = held.new_zeros(len(self.members), self._width + self._room, *held.shape[1:])
            slots[:, : self._width] = held[numbers]
            kept.append(slots)

    @property
    def index(self) -> Int[Tensor, " member"]:
        """The position of each member's next token."""
        return self._next

    @property
    def looked_at(self) -> None:
        """Every token that runs gets a key and a value, and no other."""
        return

    def _parts(self) -> list[Part]:
        """The cells that change what is generated, and where their rows are."""
        found, stop = [], 0
        for cell, rows in groupby(cell for cell, _ in self.members):
            start, stop = stop, stop + len(list(rows))
            positions = {edit.positions for edit in self.wave.plan.cells[cell]}
            if any(each.generated for each in positions):
                selected = {each: torch.full((stop - start,), each.generated) for each in positions}
                found.append(Part(cell, slice(start, stop), self.index[start:stop], selected))
        return found

    def _visible(self) -> dict[str, Float[Tensor, "member 1 1 slot"]]:
        slots = torch.arange(int(self.index.max()) + 1, device=self.index.device)
        back = self.index[:, None] - slots
        seen = {"global": back >= 0}
        if self.model.cfg.use_local_attn:
            seen["local"] = (back >= 0) & (back < self.model.cfg.window_size)
        return {kind: self._additive(mask) for kind, mask in seen.items()}

    def _additive(self, seen: Bool[Tensor, "member slot"]) -> Float[Tensor, "member 1 1 slot"]:
        mask = torch.zeros(seen.shape, dtype=self.model.W_E.dtype, device=seen.device)
        return mask.masked_fill_(~seen, -torch.inf)[:, None, None]

    def attend(self, attn: Any, q: Heads, k: KeyHeads, v: KeyHeads) -> Heads:
        """Each token's values, from its own row."""
        keys, values = self.keys[attn.layer_id], self.values[attn.layer_id]
        everyone = torch.arange(len(self.members), device=self.index.device)
        keys[everyone, self.index], values[everyone, self.index] = k, v
        mask = self._masks[attn.attn_type]
        width = mask.shape[-1]
        return weighted_values(attn, q[:, None], keys[:, :width], values[:, :width], mask)[:, 0]
