"""One walk up the layers for every token of a plan, each joining at its own layer."""

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ...interventions import CellSteering, Part, raise_non_finite
from .attention import Heads, KeyHeads, Runs, attending, extend_rotary, weighted_values
from .packing import Packer, Parcel
from .prefixes import NOWHERE, Branch, Plan

# Reading on a CPU is fastest where a pass's activations stay in its cache; accelerators want many rows.
CACHED_TOKENS = 2048
PASS_TOKENS = 8192
LEAST_TOKENS = 64  # below this a pass is bound by reading weights


@dataclass(frozen=True)
class CleanStreams:
    """Residual streams of unsteered prompts where conditions start, kept for later chunks of a sweep.

    So that a number does not depend on what was kept, the unsteered tokens then share no pass with others.

    Attributes:
        layers: the layers before which a condition of any chunk starts.
        kept: by the prompts' ids, then by layer, the streams of the trunk's tokens.
    """

    layers: frozenset[int]
    kept: dict[tuple[tuple[int, ...], ...], dict[int, Float[Tensor, "token d_model"]]] = field(
        default_factory=dict
    )


@dataclass(frozen=True)
class Pass:
    """The parcels that go through a block at once, in the order of their numbers and without a gap."""

    parcels: Sequence[Parcel]

    @cached_property
    def tokens(self) -> slice:
        """The numbers of all its tokens."""
        return slice(self.parcels[0].start, self.parcels[-1].stop)

    @cached_property
    def running(self) -> slice | Int[Tensor, " running"]:
        """The numbers of those that go through the block."""
        numbers = np.concatenate([parcel.running for parcel in self.parcels])
        whole = len(numbers) == self.tokens.stop - self.tokens.start
        return self.tokens if whole else torch.from_numpy(numbers)


class Walk(Runs):
    """Takes a plan's tokens through the model; see `up`.

    Attributes:
        stream: what each token's stream is now, by number.
        keys, values: what the tokens' keys and values were in the last layer run.
        now: the pass that is going on.
    """

    stream: Float[Tensor, "token d_model"]
    now: Pass

    def __init__(
        self,
        model: Any,
        plan: Plan,
        steering: CellSteering,
        *,
        budget: int,
        clean: CleanStreams | None = None,
    ) -> None:
        self.model, self.plan, self.steering = model, plan, steering
        looking_back = any(len(each.trunk) for branch in plan.branches for each in branch.growth.segments)
        # Of a single condition the trunk is steered.
        self.clean = None if looking_back or plan.trunk.cell != NOWHERE else clean
        ids = tuple(row.ids for row in plan.rows)
        self._kept = {} if self.clean is None else self.clean.kept.setdefault(ids, {})
        cfg = model.cfg
        self.budget = budget
        self.stream = model.W_E.new_empty(plan.size, cfg.d_model)
        kv_heads = cfg.n_key_value_heads or cfg.n_heads
        self.keys, self.values = (model.W_E.new_empty(plan.size, kv_heads, cfg.d_head) for _ in range(2))
        self._packer = Packer(model, plan, budget, self.stream)
        self.places = torch.from_numpy(self._packer.places).to(self.stream.device)
        self._bases = [branch.base for branch in plan.all]
        self._parcels = list(self._packer.parcels())

    @torch.no_grad()
    def up(
        self,
        stop: int,
        *,
        wanted: Int[np.ndarray, " token"] | None = None,
        after: Callable[[int], object] = lambda layer: None,
        count: Callable[[int], object] = lambda tokens: None,
    ) -> None:
        """Run the layers before `stop`; then `stream` is what the layer `stop` would be given.

        Args:
            wanted: the tokens whose stream is wanted at the end; of the others the last layer then computes
                keys and values alone, unless something reads or changes it inside.
            after: called behind each layer with its number, while keys and values are this layer's.
            count: called with the number of tokens that have been through a layer.
        """
        trunk = self.plan.trunk
        extend_rotary(self.model, int(self._packer.places.max(initial=0)) + 1)
        if self._is_kept(wanted):
            self._parcels = [parcel for parcel in self._parcels if parcel.start >= trunk.stop]
            for each in (self.stream, self.keys, self.values):  # padding points at the first token
                each[: trunk.stop] = 0
            count(trunk.stop * stop)
        else:
            tokens = torch.from_numpy(trunk.growth.tokens).to(self.places.device)
            self.stream[: trunk.stop] = embedded(self.model, tokens, self.places[: trunk.stop])
        with attending(self.model, self):
            for layer in range(stop):
                if self.clean is not None and layer in self.clean.layers and layer not in self._kept:
                    self._kept[layer] = self.stream[: trunk.stop].clone()
                self._join(layer)
                edited = self.steering.cells_at(layer)
                some = None
                if wanted is not None and layer == stop - 1 and not self._is_watched(layer):
                    some = self.plan.source(wanted, stop)
                for now in self._passes(layer, some):
                    self.now = now
                    running = now.running
                    self.steering.parts = self.parts(edited, now.tokens)
                    self.stream[running] = self.model(
                        self.stream[running][None], start_at_layer=layer, stop_at_layer=layer + 1
                    )[0]
                    count(now.tokens.stop - now.tokens.start)
                after(layer)
            self._join(stop)
        self.steering.require_finite()
        grown = [branch.cell for branch in self.plan.all if len(branch.growth)]
        self.steering.require_all_fired([cell for cell in grown if cell != NOWHERE])

    @property
    def index(self) -> Int[Tensor, " token"]:
        """The positions of the tokens that run now."""
        return self.places[self.now.running]

    @property
    def looked_at(self) -> tuple[Float[Tensor, "1 key d_model"], Int[Tensor, " key"]] | None:
        """All tokens of the pass, where only some of them run."""
        tokens = self.now.tokens
        if isinstance(self.now.running, slice):
            return None
        return self.stream[None, tokens], self.places[tokens]

    def attend(self, attn: Any, q: Heads, k: KeyHeads, v: KeyHeads) -> Heads:
        """Each token's values, from its own pass and from those before it in this layer."""
        self.keys[self.now.tokens], self.values[self.now.tokens] = k, v
        z, held = q.new_empty(len(q) + 1, *q.shape[1:]), 0  # what is padded goes behind what is wanted
        for parcel in self.now.parcels:
            count = len(parcel.running)
            for group in parcel.groups:
                mask = group.near if attn.attn_type == "local" else group.seen
                keys, values = self.keys[group.keys], self.values[group.keys]
                gathered = weighted_values(attn, q[held : held + count][group.queries], keys, values, mask)
                z[held : held + count + 1][group.places] = gathered.flatten(0, 1)
            held += count
        return z[:-1]

    def require_finite(self) -> None:
        """Raise `NonFiniteError` for a stream that is not; names the cell's operations."""
        finite = torch.isfinite(self.stream).all(-1).cpu()
        for branch in () if finite.all() else self.plan.all:
            if not finite[branch.base : branch.stop].all():
                described = "" if branch.cell == NOWHERE else self.steering.described(branch.cell)
                raise_non_finite(described, self.steering.prompt)

    def parts(self, cells: set[int], tokens: slice) -> list[Part]:
        """The stretches of a pass over these tokens that belong to these cells."""
        if not cells:
            return []
        first = bisect_right(self._bases, tokens.start) - 1
        found = []
        for branch in self.plan.all[first : bisect_left(self._bases, tokens.stop)]:
            start, stop = max(tokens.start, branch.base), min(tokens.stop, branch.stop)
            if branch.cell in cells and start < stop:
                found.append(self._part(branch, start, stop, tokens.start))
        return found

    def _part(self, branch: Branch, first: int, last: int, start: int) -> Part:
        own = slice(first - branch.base, last - branch.base)
        selected = {
            positions: torch.from_numpy(chosen[own]) for positions, chosen in branch.growth.selected.items()
        }
        return Part(branch.cell, slice(first - start, last - start), self.places[first:last], selected)

    def _is_kept(self, wanted: Int[np.ndarray, " token"] | None) -> bool:
        """Whether earlier walks kept the trunk's streams where branches start, and nothing else is needed."""
        return (
            self.clean is not None
            and wanted is not None
            and not (wanted < self.plan.trunk.stop).any()
            and all(branch.born in self._kept for branch in self.plan.branches)
        )

    def _join(self, layer: int) -> None:
        """Begin the branches whose first change this layer is given: where the trunk is, changed."""
        trunk = self._kept.get(layer, self.stream)
        for branch in self.plan.branches:
            if branch.born == layer and len(branch.growth):
                source = torch.from_numpy(branch.growth.source).to(self.places.device)
                stream = trunk[source][None]
                if layer:
                    part = self._part(branch, branch.base, branch.stop, branch.base)
                    stream = self.steering.changed(layer - 1, "resid_post", stream, [part])
                self.stream[branch.base : branch.stop] = stream[0]

    def _is_watched(self, layer: int) -> bool:
        """Whether anything is read or changed inside a block: then every token has to go through it."""
        return any(module._forward_hooks for module in self.model.blocks[layer].modules())

    def _passes(self, layer: int, wanted: Int[np.ndarray, " token"] | None) -> Iterator[Pass]:
        """The parcels that are there, as many at once as the budget allows."""
        together: list[Parcel] = []
        for parcel in self._parcels:
            if parcel.born > layer:
                break
            start = together[0].start if together else parcel.start
            apart = self.clean is not None and start < self.plan.trunk.stop <= parcel.start
            if apart or (parcel.stop - start > self.budget and together):
                yield Pass(together)
                together = []
            together.append(parcel if wanted is None else self._packer.only(parcel, wanted))
        if together:
            yield Pass(together)


def embedded(
    model: Any, tokens: Int[Tensor, " token"], index: Int[Tensor, " token"]
) -> Float[Tensor, "token d_model"]:
    """What the first layer is given for tokens at these absolute positions."""
    stream = model.embed(tokens)
    return (
        stream + model.pos_embed.W_pos[index] if model.cfg.positional_embedding_type == "standard" else stream
    )


def tokens_a_pass(model: Any, limit: int) -> int:
    """How many tokens go through a layer at once, where so many bytes may be kept between passes."""
    cfg = model.cfg
    token = (4 * (cfg.d_mlp or 0) + 8 * cfg.d_model + 4 * cfg.n_heads * cfg.d_head) * model.W_E.element_size()
    best = CACHED_TOKENS if str(cfg.device) == "cpu" else PASS_TOKENS
    return max(LEAST_TOKENS, min(best, limit // token))
