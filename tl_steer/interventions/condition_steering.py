"""Operations of several conditions in one pass, each on the slots of its own condition."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..models import hook_point
from ..positions import Positions, PromptTokens
from ..positions.tracker import slots_of
from .operations import Edit, at_least_float32
from .steering import EditLog


@dataclass(frozen=True)
class ConditionSlots:
    """The slots of a pass that belong to one condition."""

    condition: int
    slots: slice
    index: Int[Tensor, " pos"]  # each slot's absolute position in its prompt
    selected: Mapping[Positions, Bool[Tensor, " pos"]]  # by each `Positions` of the condition's edits


class ConditionSteering:
    """The edits of several conditions, from `steer_conditions`; set `slots` before each pass."""

    def __init__(
        self, conditions: Sequence[Sequence[Edit]], d_head: int, prompt: PromptTokens | None = None
    ) -> None:
        self.conditions, self.d_head, self.prompt = conditions, d_head, prompt
        self.slots: Sequence[ConditionSlots] = ()
        self.sites: dict[tuple[int, str], dict[int, list[Edit]]] = defaultdict(lambda: defaultdict(list))
        for condition, edits in enumerate(conditions):
            for edit in edits:
                self.sites[edit.layer, edit.hook][condition].append(edit)
        self.log = EditLog()

    def conditions_at(self, layer: int) -> set[int]:
        """The conditions that change anything inside this layer's block, its output included."""
        return set().union(*(edits for (at_layer, _), edits in self.sites.items() if at_layer == layer))

    def changed(
        self, layer: int, hook: str, x: Float[Tensor, "1 pos d_hook"], slots: Sequence[ConditionSlots]
    ) -> Float[Tensor, "1 pos d_hook"]:
        """A hook's activations after the edits of the conditions in `slots`."""
        edits = self.sites[layer, hook]
        slots = [each for each in slots if each.condition in edits]
        if not slots:
            return x
        x = x.clone()
        for each in slots:
            stream = at_least_float32(x[:, each.slots])
            for edit in edits[each.condition]:
                selected = each.selected[edit.positions][None]
                stream = edit.apply(stream, selected, each.index[None], d_head=self.d_head)
            x[:, each.slots] = stream = stream.to(x.dtype)
            self.log.note_applied(edits[each.condition])
            self.log.note_finite(edits[each.condition], torch.isfinite(stream).all()[None], [self.prompt])
        return x

    def require_fired(self, conditions: Sequence[int]) -> None:
        """Raise `HookDidNotFireError` if an edit of these conditions was not applied."""
        self.log.require_fired([edit for condition in conditions for edit in self.conditions[condition]])

    def described(self, condition: int) -> str:
        """All of a condition's edits, for messages."""
        return " and ".join(edit.described for edit in self.conditions[condition])

    def hook_at(self, layer: int, hook: str) -> Callable[[Any, tuple, Tensor], Tensor]:
        """A forward hook for one hook point."""

        def change(_module: Any, _inputs: tuple, x: Tensor) -> Tensor:
            flat = slots_of(x, 1, x.shape[1])
            return self.changed(layer, hook, flat, self.slots).reshape(x.shape)

        return change


@contextmanager
def steer_conditions(
    model: Any, conditions: Sequence[Sequence[Edit]], prompt: PromptTokens | None = None
) -> Iterator[ConditionSteering]:
    """Steer passes that hold slots of several conditions; the engine's counterpart of `steer`.

    A single `prompt` is named where its residual stream is not finite.
    """
    steering = ConditionSteering(conditions, model.cfg.d_head, prompt)
    with ExitStack() as stack:
        for layer, hook in steering.sites:
            handle = hook_point(model, hook, layer).register_forward_hook(steering.hook_at(layer, hook))
            stack.callback(handle.remove)
        yield steering
        steering.log.require_finite()
