"""One walk up the layers for every token of a plan, each joining at its own layer."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..interventions import CellSteering, Part, raise_non_finite
from .attention import Group, Heads, KeyHeads, attending, bundles, extend_rotary, groups, weighted_values
from .sharing import Branch, Plan, Segment

# Reading on a CPU is fastest where a pass's activations stay in its cache; accelerators want many rows.
CACHED_TOKENS = 1024
PASS_TOKENS = 8192


@dataclass(frozen=True)
class Parcel:
    """Tokens `start` to `stop` of a plan, which join before layer `born` and attend in the same groups."""

    start: int
    stop: int
    born: int
    groups: tuple[Group, ...]


class Walk:
    """Takes a plan's tokens through the model; see `up`.

    Attributes:
        stream: what each token's stream is now, by number.
        keys, values: what the tokens' keys and values were in the last layer run.
    """

    stream: Float[Tensor, "token d_model"]

    def __init__(self, model: Any, plan: Plan, steering: CellSteering, *, budget: int | None = None) -> None:
        self.model, self.plan, self.steering = model, plan, steering
        cfg = model.cfg
        self.budget = budget or tokens_a_pass(model)
        self.stream = model.W_E.new_empty(plan.size, cfg.d_model)
        kv_heads = cfg.n_key_value_heads or cfg.n_heads
        self.keys, self.values = (model.W_E.new_empty(plan.size, kv_heads, cfg.d_head) for _ in range(2))
        self._index = np.concatenate([branch.growth.index for branch in plan.all])
        self.index = torch.from_numpy(self._index).to(self.stream.device)
        self._parcels = list(self._packed(cfg.n_heads // kv_heads))
        self._pass: list[Parcel] = []

    @torch.no_grad()
    def up(
        self,
        stop: int,
        *,
        after: Callable[[int], object] = lambda layer: None,
        count: Callable[[int], object] = lambda tokens: None,
    ) -> None:
        """Run the layers before `stop`; then `stream` is what the layer `stop` would be given.

        Args:
            after: called behind each layer with its number, while keys and values are this layer's.
            count: called with the number of tokens that have been through a layer.
        """
        trunk = self.plan.trunk
        extend_rotary(self.model, int(self._index.max(initial=0)) + 1)
        with attending(
            self.model, self._attend, lambda: self.index[self._pass[0].start : self._pass[-1].stop]
        ):
            self.stream[: trunk.stop] = embedded(
                self.model,
                torch.from_numpy(trunk.growth.tokens).to(self.index.device),
                self.index[: trunk.stop],
            )
            for layer in range(stop):
                self._join(layer)
                edited = self.steering.cells_at(layer)
                for parcels in self._passes(layer):
                    self._pass = parcels
                    start, end = parcels[0].start, parcels[-1].stop
                    self.steering.parts = self.parts(edited, start, end)
                    self.stream[start:end] = self.model(
                        self.stream[None, start:end], start_at_layer=layer, stop_at_layer=layer + 1
                    )[0]
                    count(end - start)
                after(layer)
            self._join(stop)
        self.steering.require_finite()

    def require_finite(self) -> None:
        """Raise `NonFiniteError` for a stream that is not; names the cell's operations."""
        finite = torch.isfinite(self.stream).all(-1).cpu()
        for branch in () if finite.all() else self.plan.all:
            if not finite[branch.base : branch.stop].all():
                raise_non_finite(self.steering.described(branch.cell) if branch.cell >= 0 else "")

    def span(self) -> tuple[int, int]:
        """The numbers of the tokens of the pass that runs now."""
        return self._pass[0].start, self._pass[-1].stop

    def parts(self, cells: set[int], start: int, stop: int) -> list[Part]:
        """The stretches of a pass over the tokens `start` to `stop` that belong to these cells."""
        found = []
        for branch in self.plan.all:
            first, last = max(start, branch.base), min(stop, branch.stop)
            if branch.cell in cells and first < last:
                found.append(self._part(branch, first, last, start))
        return found

    def _part(self, branch: Branch, first: int, last: int, start: int) -> Part:
        own = slice(first - branch.base, last - branch.base)
        selected = {
            positions: torch.from_numpy(chosen[own]) for positions, chosen in branch.growth.selected.items()
        }
        return Part(branch.cell, slice(first - start, last - start), self.index[first:last], selected)

    def _join(self, layer: int) -> None:
        """Begin the branches whose first change this layer is given: where the trunk is, changed."""
        for branch in self.plan.branches:
            if branch.born == layer and len(branch.growth):
                source = torch.from_numpy(branch.growth.source).to(self.index.device)
                stream = self.stream[source][None]
                if layer:
                    part = self._part(branch, branch.base, branch.stop, branch.base)
                    stream = self.steering.changed(layer - 1, "resid_post", stream, [part])
                self.stream[branch.base : branch.stop] = stream[0]

    def _passes(self, layer: int) -> Iterator[list[Parcel]]:
        """Parcels that are there, as many at once as the budget allows."""
        together: list[Parcel] = []
        for parcel in self._parcels:
            if parcel.born > layer:
                break
            if together and parcel.stop - together[0].start > self.budget:
                yield together
                together = []
            together.append(parcel)
        if together:
            yield together

    def _packed(self, repeats: int) -> Iterator[Parcel]:
        """The plan's segments in parcels of at most the budget (but at least a segment)."""
        window = self.model.cfg.window_size if self.model.cfg.use_local_attn else None
        together: list[tuple[Branch, Segment]] = []

        def parcel() -> Parcel:
            first, last = (branch.base for branch, _ in (together[0], together[-1]))
            start, stop = first + together[0][1].start, last + together[-1][1].stop
            made = groups(
                bundles(together), start, self._index, repeats=repeats, window=window, like=self.stream
            )
            return Parcel(start, stop, together[0][0].born, tuple(made))

        for branch in self.plan.all:
            for segment in branch.growth.segments:
                if together:
                    start = together[0][0].base + together[0][1].start
                    if branch.base + segment.stop - start > self.budget or branch.born != together[0][0].born:
                        yield parcel()
                        together = []
                together.append((branch, segment))
        if together:
            yield parcel()

    def _attend(self, attn: Any, q: Heads, k: KeyHeads, v: KeyHeads) -> Heads:
        """Each token's values, from its own pass and from those before it in this layer."""
        start, stop = self.span()
        self.keys[start:stop], self.values[start:stop] = k, v
        z = torch.empty_like(q)
        for parcel in self._pass:
            held = slice(parcel.start - start, parcel.stop - start)
            for group in parcel.groups:
                mask = group.near if attn.attn_type == "local" else group.seen
                gathered = weighted_values(
                    attn, q[held][group.queries], self.keys[group.keys], self.values[group.keys], mask
                )
                z[held][group.queries.flatten()[group.real]] = gathered.flatten(0, 1)[group.real]
        return z


def embedded(
    model: Any, tokens: Int[Tensor, " token"], index: Int[Tensor, " token"]
) -> Float[Tensor, "token d_model"]:
    """What the first layer is given for tokens at these absolute positions."""
    stream = model.embed(tokens)
    return (
        stream + model.pos_embed.W_pos[index] if model.cfg.positional_embedding_type == "standard" else stream
    )


def tokens_a_pass(model: Any) -> int:
    """How many tokens go through a layer at once."""
    return CACHED_TOKENS if str(model.cfg.device) == "cpu" else PASS_TOKENS
