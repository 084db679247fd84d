"""One layerwise forward pass for all tokens of a plan, each joining at its own layer."""

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ...interventions import ConditionSlots, ConditionSteering, raise_non_finite
from ..plain import OnProgress, no_progress
from .attention import (
    AttentionLayer,
    Heads,
    KeyHeads,
    PackedAttention,
    PackedModel,
    RunBlocks,
    ValueHeads,
    Values,
    weighted_values,
)
from .packing import MicroBatch, Packer
from .prefixes import NONE, Delta, Plan

# Reading on a CPU is fastest where a pass's activations stay in its cache; accelerators want many rows.
CACHED_TOKENS = 2048
PASS_TOKENS = 8192
MIN_TOKENS = 64  # below this a pass is bound by reading weights


@dataclass(frozen=True)
class CleanStreams:
    """Residual streams of unsteered prompts where conditions start, for later chunks of a sweep.

    With it, unsteered tokens share no pass with others, so that numbers do not depend on what is cached.

    Attributes:
        layers: the start layers of all conditions.
        streams: by the prompts' ids, then by layer, the residual streams of the shared prefix's tokens.
    """

    layers: frozenset[int]
    streams: dict[tuple[tuple[int, ...], ...], dict[int, Float[Tensor, "token d_model"]]] = field(
        default_factory=dict
    )


@dataclass(frozen=True)
class Pass:
    """The micro-batches that go through a block at once, by number and without a gap."""

    batches: Sequence[MicroBatch]

    @cached_property
    def tokens(self) -> slice:
        """The numbers of all its tokens."""
        return slice(self.batches[0].start, self.batches[-1].stop)

    @cached_property
    def running(self) -> slice | Int[Tensor, " running"]:
        """The numbers of those that go through the block."""
        numbers = np.concatenate([batch.running for batch in self.batches])
        is_whole = len(numbers) == self.tokens.stop - self.tokens.start
        return self.tokens if is_whole else torch.from_numpy(numbers)


class LayerwisePass(PackedAttention):
    """Takes a plan's tokens through the model layer by layer; see `run`.

    Attributes:
        stream: each token's residual stream at the current layer, by number.
        keys, values: the tokens' keys and values in the last layer that ran.
        token_index: each token's absolute position in its prompt.
        current: the pass that runs now.
    """

    stream: Float[Tensor, "token d_model"]
    current: Pass

    def __init__(
        self,
        model: PackedModel,
        plan: Plan,
        steering: ConditionSteering,
        *,
        budget: int,
        clean: CleanStreams | None = None,
    ) -> None:
        self.model, self.plan, self.steering, self.budget = model, plan, steering, budget
        attends_prefix = any(len(each.prefix) for delta in plan.deltas for each in delta.trie.segments)
        # The shared prefix of a single condition is steered.
        self.clean = None if attends_prefix or plan.prefix.condition != NONE else clean
        ids = tuple(row.ids for row in plan.rows)
        self._cached = {} if self.clean is None else self.clean.streams.setdefault(ids, {})
        self.stream = model.weight.new_empty(plan.size, model.d_model)
        self.keys = model.weight.new_empty(plan.size, *model.key_shape)
        self.values = model.weight.new_empty(plan.size, *model.value_shape)
        self._packer = Packer(model.windows, plan, budget, self.stream)
        self.token_index = torch.from_numpy(self._packer.index).to(self.stream.device)
        self._bases = [part.base for part in plan.parts]
        self._batches = list(self._packer.micro_batches())

    @torch.no_grad()
    def run(
        self,
        stop: int,
        *,
        needed: Int[np.ndarray, " token"] | None = None,
        after_layer: Callable[[int], object] = lambda layer: None,
        on_tokens: OnProgress = no_progress,
    ) -> None:
        """Run the layers before `stop`; then `stream` is the input of layer `stop`.

        Args:
            needed: the tokens whose final residual stream is read; for others the last layer computes only
                keys and values, unless a hook is inside it.
            after_layer: called with each layer's number, while keys and values are this layer's.
            on_tokens: called with the number of tokens that went through a layer.
        """
        prefix = self.plan.prefix
        if self._is_cached(needed):
            self._batches = [batch for batch in self._batches if batch.start >= prefix.stop]
            for each in (self.stream, self.keys, self.values):  # padding points at the first token
                each[: prefix.stop] = 0
            on_tokens(prefix.stop * stop)
        else:
            tokens = torch.from_numpy(prefix.trie.tokens).to(self.token_index.device)
            self.stream[: prefix.stop] = self.model.embedded(tokens, self.token_index[: prefix.stop])
        with self.model.packed(self, int(self._packer.index.max(initial=0)) + 1) as run:
            for layer in range(stop):
                self._run_layer(run, layer, needed if layer == stop - 1 else None, on_tokens)
                after_layer(layer)
            self._join(stop)
        self.steering.log.require_finite()
        with_tokens = [part.condition for part in self.plan.parts if len(part.trie)]
        self.steering.require_fired([condition for condition in with_tokens if condition != NONE])

    def _run_layer(
        self, run: RunBlocks, layer: int, needed: Int[np.ndarray, " token"] | None, on_tokens: OnProgress
    ) -> None:
        if self.clean is not None and layer in self.clean.layers and layer not in self._cached:
            self._cached[layer] = self.stream[: self.plan.prefix.stop].clone()
        self._join(layer)
        edited = self.steering.conditions_at(layer)
        if needed is not None:
            needed = None if self.model.has_hooks(layer) else self.plan.source(needed, layer + 1)
        for current in self._passes(layer, needed):
            self.current = current
            running = current.running
            self.steering.slots = self.slots_of(edited, current.tokens)
            self.stream[running] = run(layer, layer + 1, self.stream[running])
            on_tokens(current.tokens.stop - current.tokens.start)

    @property
    def index(self) -> Int[Tensor, " token"]:
        """The positions of the tokens that run now."""
        return self.token_index[self.current.running]

    @property
    def key_inputs(self) -> tuple[Float[Tensor, "1 key d_model"], Int[Tensor, " key"]] | None:
        """All tokens of the pass, where only some of them run."""
        tokens = self.current.tokens
        if isinstance(self.current.running, slice):
            return None
        return self.stream[None, tokens], self.token_index[tokens]

    @property
    def pass_id(self) -> tuple[int, int] | None:
        """First and last token, if all between them run."""
        tokens = self.current.running
        return (tokens.start, tokens.stop) if isinstance(tokens, slice) else None

    def attend(self, layer: AttentionLayer, q: Heads, k: KeyHeads, v: ValueHeads) -> Values:
        """Each token's weighted values, from its own pass and earlier ones of this layer."""
        self.keys[self.current.tokens], self.values[self.current.tokens] = k, v
        # Padding is written to the last row.
        z, start = q.new_empty(len(q) + 1, q.shape[1], v.shape[-1]), 0
        for batch in self.current.batches:
            count = len(batch.running)
            for group in batch.groups:
                keys, values = self.keys[group.keys], self.values[group.keys]
                weighted = weighted_values(
                    layer, q[start : start + count][group.queries], keys, values, group.masks[layer.window]
                )
                z[start : start + count + 1][group.outputs] = weighted.flatten(0, 1)
            start += count
        return z[:-1]

    def require_finite(self) -> None:
        """Raise `NonFiniteError` if a residual stream is not finite; names the condition's operations."""
        finite = torch.isfinite(self.stream).all(-1).cpu()
        for part in () if finite.all() else self.plan.parts:
            if not finite[part.base : part.stop].all():
                described = "" if part.condition == NONE else self.steering.described(part.condition)
                raise_non_finite(described, self.steering.prompt)

    def slots_of(self, conditions: set[int], tokens: slice) -> list[ConditionSlots]:
        """The slots of these conditions in a pass over these tokens."""
        if not conditions:
            return []
        first = bisect_right(self._bases, tokens.start) - 1
        slots = []
        for part in self.plan.parts[first : bisect_left(self._bases, tokens.stop)]:
            start, stop = max(tokens.start, part.base), min(tokens.stop, part.stop)
            if part.condition in conditions and start < stop:
                slots.append(self._slots(part, start, stop, tokens.start))
        return slots

    def _slots(self, part: Delta, first: int, last: int, start: int) -> ConditionSlots:
        own = slice(first - part.base, last - part.base)
        selected = {positions: torch.from_numpy(mask[own]) for positions, mask in part.trie.selected.items()}
        slots = slice(first - start, last - start)
        return ConditionSlots(part.condition, slots, self.token_index[first:last], selected)

    def _is_cached(self, needed: Int[np.ndarray, " token"] | None) -> bool:
        """Whether earlier chunks cached the prefix where deltas start, and nothing else of it is needed."""
        return (
            self.clean is not None
            and needed is not None
            and not (needed < self.plan.prefix.stop).any()
            and all(delta.start_layer in self._cached for delta in self.plan.deltas)
        )

    def _join(self, layer: int) -> None:
        """Start the deltas whose first change is this layer's input: from the prefix's stream, changed."""
        prefix = self._cached.get(layer, self.stream)
        for delta in self.plan.deltas:
            if delta.start_layer == layer and len(delta.trie):
                source = torch.from_numpy(delta.trie.source).to(self.token_index.device)
                stream = prefix[source][None]
                if layer:
                    slots = self._slots(delta, delta.base, delta.stop, delta.base)
                    stream = self.steering.changed(layer - 1, "resid_post", stream, [slots])
                self.stream[delta.base : delta.stop] = stream[0]

    def _passes(self, layer: int, needed: Int[np.ndarray, " token"] | None) -> Iterator[Pass]:
        """The micro-batches that have started, as many at once as the budget allows."""
        together: list[MicroBatch] = []
        for batch in self._batches:
            if batch.start_layer > layer:
                break
            start = together[0].start if together else batch.start
            is_separate = self.clean is not None and start < self.plan.prefix.stop <= batch.start
            if is_separate or (batch.stop - start > self.budget and together):
                yield Pass(together)
                together = []
            together.append(batch if needed is None else self._packer.only(batch, needed))
        if together:
            yield Pass(together)


def tokens_per_pass(model: PackedModel, limit: int) -> int:
    """How many tokens go through a layer at once, if `limit` bytes may be used between passes."""
    best = CACHED_TOKENS if model.weight.device.type == "cpu" else PASS_TOKENS
    return max(MIN_TOKENS, min(best, limit // (model.widest * model.weight.element_size())))
