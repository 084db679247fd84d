"""`steer`: applies operations to every forward pass inside a `with` block."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from .._util.validation import checked, warn
from ..errors import HookDidNotFireError, NonFiniteError
from ..models import HookedModel, exclusive, hook_point, hook_width, identify
from ..models.backend import require_changeable
from ..positions import PositionTracker, PromptTokens
from .operations import Edit, Operation, at_least_float32, edits_of


@checked
@contextmanager
def steer(
    model: HookedModel,
    *operations: Operation,
    prompt_lengths: Sequence[int] | None = None,
    prompts: Sequence[Sequence[int]] | None = None,
    force: bool = False,
    allow_empty: bool = False,
    generating: bool = True,
    numbers: Sequence[int | None] | None = None,
) -> Iterator[PositionTracker]:
    """Steer every forward pass of a model inside a `with` block.

    Works around any call that runs the model: `model(tokens)`, `model.generate(…)`, `run_with_cache`. On
    exit, also after an exception, the model's own hooks and yours are as before.

    Inside the block the model is in evaluation mode, until `model.train()` is called; on exit each module's
    mode is restored. Other threads that call this package with the model, or with another bridge around the
    same Hugging Face model, wait until the block ends. Threads that call `model(tokens)` themselves do not
    wait, and are steered too; so are asyncio tasks of this thread.

    Args:
        model: a `HookedTransformer` or a `TransformerBridge`.
        operations: applied in the order given; arithmetic in float32, the result in the stream's dtype.
        prompt_lengths: how many unpadded tokens of each row are the prompt; only needed where the passes do
            not show it (generation without a cache, several rows without an attention mask).
        prompts: token ids of each row's prompt, if known; replaces `prompt_lengths`.
        force: accept vectors of a model with the same shapes and processing, but other weights.
        allow_empty: accept prompts of which an operation's positions select nothing.
        generating: whether tokens will be fed back after the prompts; if not, positions that select only
            generated tokens raise too.
        numbers: with `prompts`, each row's number among the caller's prompts, for messages.

    Raises:
        EmptySelectionError: a prompt of which an operation's positions select nothing.
        ModelMismatchError: a vector belongs to another model.
        ValueError: a hook this model lacks, or that a bridge cannot change (resid_mid); a vector of another
            width; a position that depends on the prompt's end where that would be a guess.
        NonFiniteError: the steered stream became NaN or infinite.
        HookDidNotFireError: an operation's layer did not run, or no pass of this model did.
        RuntimeError: two threads steer several models in different orders, and each waits for the other.

    Warns if a prompt begins with two BOS tokens, as `model.to_tokens` makes of many chat prompts.
    """
    (edits,) = checked_edits(model, [operations], force)
    tracker = PositionTracker(model, prompts, prompt_lengths, numbers)
    bos = None if prompts is not None else getattr(model.tokenizer, "bos_token_id", None)
    session = _Session(tracker, edits, model.cfg.d_head, bos, allow_empty, generating)
    sites: dict[tuple[int, str], list[Edit]] = defaultdict(list)
    for edit in edits:
        sites[edit.layer, edit.hook].append(edit)
    with ExitStack() as stack:
        stack.enter_context(exclusive(model))
        stack.enter_context(tracker)
        for (layer, hook), at_hook in sites.items():
            handle = hook_point(model, hook, layer).register_forward_hook(session.hook_at(at_hook))
            stack.callback(handle.remove)
        last = hook_point(model, "resid_post", model.cfg.n_layers - 1)
        stack.callback(last.register_forward_hook(session.at_end).remove)
        yield tracker
        tracker.require_whole_prompts()
        session.log.require_finite()  # of passes that stopped before the last block
        session.log.require_fired(
            session.edits,
            "Did the passes stop before that layer (stop_at_layer), or start after it?"
            if tracker.passes
            else "Inside the block, no pass of this model ran. Was another model called?",
        )


def checked_edits(model: Any, conditions: Sequence[Sequence[Operation]], force: bool) -> list[list[Edit]]:
    """The edits of each condition's operations on this model; raises as `steer`."""
    identity, n_heads = identify(model), model.cfg.n_heads
    edits_by_condition = [edits_of(operations, model.cfg.n_layers) for operations in conditions]
    for edit in chain.from_iterable(edits_by_condition):
        require_changeable(model, edit.hook, edit.layer)
        width = hook_width(model, edit.hook)
        if edit.width not in (None, width):
            raise ValueError(
                f"{edit.described}: the vector has {edit.width} numbers, but {edit.hook} of {identity.name} "
                f"has {width}."
            )
        if edit.identity is not None:
            hint = " If that is intended, pass force=True."
            edit.identity.require(identity, force=force, what=f"the vector of {edit.described}", hint=hint)
        if edit.heads and not 0 <= min(edit.heads) <= max(edit.heads) < n_heads:
            raise IndexError(f"{edit.described}: heads {edit.heads}, but there are heads 0 to {n_heads - 1}.")
    return edits_by_condition


def raise_non_finite(described: str, prompt: PromptTokens | None = None, *, row: int | None = None) -> None:
    """Raise `NonFiniteError`; `row` names a prompt without a number, `described` is "" without operations."""
    which = "" if prompt is None else f" in {prompt.named(row)}"
    remedy = "Use a smaller multiplier" if described else "Load the model in bfloat16 or float32"
    described = described or "without any operation"
    raise NonFiniteError(f"{described}: the stream became NaN or infinite{which}. {remedy}.")


class EditLog:
    """Which edits were applied, and where the residual stream stayed finite."""

    def __init__(self) -> None:
        self._applied: set[int] = set()
        # Descriptions, which rows are finite, and their prompts. Read once per pass, since reads are slow.
        self._finite: list[tuple[str, Tensor, Sequence[PromptTokens | None]]] = []

    def note_applied(self, edits: Iterable[Edit]) -> None:
        """Remember that these edits were applied."""
        self._applied.update(map(id, edits))

    def note_finite(
        self, edits: Sequence[Edit], rows: Bool[Tensor, " row"], prompts: Sequence[PromptTokens | None]
    ) -> None:
        """Remember in which rows the residual stream is finite after these edits."""
        self._finite.append((" and ".join(edit.described for edit in edits), rows, prompts))

    def require_finite(self) -> None:
        """Raise `NonFiniteError` for the earliest site noted since the last call."""
        notes, self._finite = self._finite, []
        # One transfer to the host; a model's layers may be on several devices.
        flags = torch.stack([rows.all().to(notes[0][1].device) for _, rows, _ in notes]) if notes else None
        flags = [] if flags is None else flags.tolist()
        if not all(flags):
            described, rows, prompts = notes[flags.index(False)]
            row = rows.tolist().index(False)
            raise_non_finite(described, prompts[row], row=row)

    def require_fired(self, edits: Iterable[Edit], hint: str = "") -> None:
        """Raise `HookDidNotFireError` if one of these edits was never applied."""
        if missed := [edit.described for edit in edits if id(edit) not in self._applied]:
            raise HookDidNotFireError(
                f"{'; '.join(missed)}: the hook did not fire, so nothing was changed there. {hint}".strip()
            )


@dataclass
class _Session:
    """The edits of one `steer` block, with the state of their checks."""

    tracker: PositionTracker
    edits: list[Edit]
    d_head: int
    bos: int | None  # looked for at the start of prompts until a warning was given
    allow_empty: bool
    generating: bool
    log: EditLog = field(default_factory=EditLog)
    # Per edit, the prompts of which it selects something.
    _selecting: dict[int, list[PromptTokens]] = field(default_factory=dict)

    def hook_at(self, edits: list[Edit]) -> Callable[[Any, tuple, Tensor], Tensor]:
        """A forward hook for the hook point of these edits."""

        def change(_module: Any, _inputs: tuple, x: Tensor) -> Tensor:
            stream = at_least_float32(self.tracker.slots_of(x))
            self.log.note_applied(edits)
            for edit in edits:
                stream = self._applied(edit, stream)
            stream = stream.to(x.dtype)
            self._note_finite(edits, stream)
            return stream.reshape(x.shape)

        return change

    def at_end(self, _module: Any, _inputs: tuple, x: Tensor) -> None:
        """Check after the last block of a pass that all of it is finite."""
        self._note_finite(self.edits, x)
        self.log.require_finite()

    def _applied(
        self, edit: Edit, stream: Float[Tensor, "batch pos d_hook"]
    ) -> Float[Tensor, "batch pos d_hook"]:
        selected = self.tracker.mask(edit.positions)
        self._warn_of_two_bos()
        prompts = self.tracker.prompts
        if not self.allow_empty and self._selecting.get(id(edit)) is not prompts:
            for row, prompt in enumerate(prompts):
                described = f"{edit.described}: row {row}"
                edit.positions.require_some(prompt, described, generating=self.generating)
            self._selecting[id(edit)] = prompts
        return edit.apply(stream, selected, self.tracker.index, d_head=self.d_head)

    def _warn_of_two_bos(self) -> None:
        if self.bos is None:
            return
        for row, prompt in enumerate(self.tracker.prompts):
            if (prompt.ids or ())[:2] == (self.bos, self.bos):
                warn(
                    f"row {row} begins with two BOS tokens (id {self.bos}): expected one. Use the ids of "
                    "tokenize(model, text), or model.to_tokens(text, prepend_bos=False)."
                )
                self.bos = None
                return

    def _note_finite(self, edits: Sequence[Edit], stream: Float[Tensor, "batch pos d_hook"]) -> None:
        """Padding need not be finite."""
        rows = (torch.isfinite(stream).all(-1) | (self.tracker.index < 0).to(stream.device)).all(-1)
        self.log.note_finite(edits, rows, self.tracker.prompts)
