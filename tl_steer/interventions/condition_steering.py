"""Several cells' operations in one pass, each on the slots that belong to its cell."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..errors import HookDidNotFireError
from ..models import hook_point
from ..positions import Positions, PromptTokens
from .operations import Edit, in_full
from .steering import raise_non_finite


@dataclass(frozen=True)
class Part:
    """A stretch of a pass's slots that belongs to one cell.

    Attributes:
        cell: which.
        slots: where in the pass.
        index: each slot's absolute position in its prompt.
        selected: for each position that the cell's edits name, which of the slots it selects.
    """

    cell: int
    slots: slice
    index: Int[Tensor, " pos"]
    selected: Mapping[Positions, Bool[Tensor, " pos"]]


class CellSteering:
    """Edits of several cells; `steer_cells` makes one. Set `parts` before each pass."""

    def __init__(
        self, cells: Sequence[Sequence[Edit]], d_head: int, prompt: PromptTokens | None = None
    ) -> None:
        self.cells = cells
        self.d_head = d_head
        self.prompt = prompt
        self.parts: Sequence[Part] = ()
        self.sites: dict[tuple[int, str], dict[int, list[Edit]]] = defaultdict(lambda: defaultdict(list))
        for cell, edits in enumerate(cells):
            for edit in edits:
                self.sites[edit.layer, edit.hook][cell].append(edit)
        self._fired: set[int] = set()
        self._finite: list[tuple[str, Tensor]] = []

    def cells_at(self, layer: int) -> set[int]:
        """The cells that change anything inside this layer's block, its output included."""
        return {cell for (place, _), edits in self.sites.items() if place == layer for cell in edits}

    def changed(
        self, layer: int, hook: str, x: Float[Tensor, "1 pos d_hook"], parts: Sequence[Part]
    ) -> Float[Tensor, "1 pos d_hook"]:
        """What a hook holds after the edits that the parts' cells have there."""
        edits = self.sites[layer, hook]
        parts = [part for part in parts if part.cell in edits]
        if not parts:
            return x
        x = x.clone()
        for part in parts:
            x[:, part.slots] = self._edited(edits[part.cell], x[:, part.slots], part)
        return x

    def require_finite(self) -> None:
        """Raise `NonFiniteError` for what was seen since the last look; the earliest site is named."""
        seen, self._finite = self._finite, []
        flags = torch.stack([flag.cpu() for _, flag in seen]).tolist() if seen else []
        if not all(flags):
            raise_non_finite(seen[flags.index(False)][0], self.prompt)

    def require_all_fired(self, cells: Sequence[int]) -> None:
        """Raise `HookDidNotFireError` where an edit of these cells was never made."""
        edits = [edit for cell in cells for edit in self.cells[cell]]
        missed = [edit.described for edit in edits if id(edit) not in self._fired]
        if missed:
            raise HookDidNotFireError(
                f"{'; '.join(missed)}: the hook did not fire, so nothing was changed there."
            )

    def described(self, cell: int) -> str:
        """All of a cell's edits, for messages."""
        return " and ".join(edit.described for edit in self.cells[cell])

    def at_site(self, layer: int, hook: str) -> Any:
        """A forward hook for one hook point."""

        def change(_module: Any, _inputs: tuple, x: Tensor) -> Tensor:
            # "z" has an axis for the heads; everywhere else the last axis is the whole position.
            flat = x.flatten(2) if x.ndim == 4 else x
            return self.changed(layer, hook, flat, self.parts).reshape(x.shape)

        return change

    def _edited(self, edits: list[Edit], x: Float[Tensor, "1 pos d_hook"], part: Part) -> Tensor:
        stream = in_full(x)
        for edit in edits:
            self._fired.add(id(edit))
            stream = edit.on(
                stream, part.selected[edit.positions][None], part.index[None], d_head=self.d_head
            )
        stream = stream.to(x.dtype)
        self._finite.append((" and ".join(edit.described for edit in edits), torch.isfinite(stream).all()))
        return stream


@contextmanager
def steer_cells(
    model: Any, cells: Sequence[Sequence[Edit]], prompt: PromptTokens | None = None
) -> Iterator[CellSteering]:
    """Steer passes that hold slots of several cells; the engine's counterpart of `steer`.

    Args:
        prompt: the one that is run, where it is only one; told where its stream becomes NaN or infinite.

    When the block ends, also by an exception, the model's own hooks and the user's are as they were.
    """
    steering = CellSteering(cells, model.cfg.d_head, prompt)
    with ExitStack() as stack:
        for layer, hook in steering.sites:
            handle = hook_point(model, hook, layer).register_forward_hook(steering.at_site(layer, hook))
            stack.callback(handle.remove)
        yield steering
        steering.require_finite()
