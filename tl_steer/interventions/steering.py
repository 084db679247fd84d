"""`steer`: the only way an intervention reaches a model."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from .._util.validation import checked, warn
from ..errors import HookDidNotFireError, NonFiniteError
from ..models import HookedModel, ModelIdentity, exclusive, hook_point, hook_width, identify
from ..models.backend import require_changeable
from ..positions import Clock, PromptTokens
from .operations import Edit, Operation, edits_of, in_full


def raise_non_finite(described: str, prompt: PromptTokens | None = None, *, row: int | None = None) -> None:
    """Raise the error of a stream that became NaN or infinite under what is described.

    Args:
        described: the operations with their layers, "" where there are none.
        prompt: in which, if that is known.
        row: its row in the pass; told where the prompt has no number.
    """
    which = "" if prompt is None else f" in {prompt.named(row)}"
    remedy = "Use a smaller multiplier" if described else "Load the model in bfloat16 or float32"
    described = described or "without any operation"
    raise NonFiniteError(f"{described}: the stream became NaN or infinite{which}. {remedy}.")


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
    numbers: Sequence[int] | None = None,
) -> Iterator[Clock]:
    """Steer every forward pass of a model inside a `with` block.

    Works around any call that runs the model: `model(tokens)`, `model.generate(…)`, `run_with_cache`. When
    the block ends, also by an exception, the model's own hooks and yours are as they were.

    Inside the block the model is in evaluation mode; afterwards each module's mode is as it was. To train
    under operations, call `model.train()` inside. Other threads that call this package with the model, or
    with another bridge around the same Hugging Face model, wait until the block ends. Threads that call
    `model(tokens)` themselves do not wait, and are steered too; so are asyncio tasks of this thread.

    Args:
        model: a `HookedTransformer` or a `TransformerBridge`.
        operations: applied in the order given; arithmetic in float32, the result in the stream's dtype.
        prompt_lengths: how many unpadded tokens of each row are the prompt; only needed where the passes
            themselves do not tell (generation without a cache, several rows without an attention mask).
        prompts: the ids of each row's prompt, where the caller knows them; stands for `prompt_lengths` too.
        force: accept vectors of a model with the same shapes and processing, but other weights.
        allow_empty: accept prompts of which an operation's positions select nothing.
        generating: whether tokens will be fed back after the prompts; if not, positions that select nothing
            else are refused too.
        numbers: with `prompts`, which of the caller's prompts each row is, for messages.

    Raises:
        EmptySelectionError: a prompt of which an operation's positions select nothing.
        ModelMismatchError: a vector belongs to another model.
        ValueError: a hook this model lacks, or that a bridge cannot change (resid_mid); a vector of another
            width; a position that depends on the prompt's end where that would be a guess.
        NonFiniteError: the steered stream became NaN or infinite; names operation, layer and prompt.
        HookDidNotFireError: an operation's layer did not run, or no pass of this model did.
        RuntimeError: two threads steer several models in different orders, and each waits for the other.

    Warns if a prompt begins with two BOS tokens, as `model.to_tokens` makes of many chat prompts.
    """
    (edits,) = checked_edits(model, [operations], force)
    session = _Session(model, edits, Clock(model, prompts, prompt_lengths, numbers), allow_empty, generating)
    session.bos = None if prompts is not None else getattr(model.tokenizer, "bos_token_id", None)
    with ExitStack() as stack:
        stack.enter_context(exclusive(model))
        stack.enter_context(session.clock)
        for (layer, hook), edits in session.sites.items():
            handle = hook_point(model, hook, layer).register_forward_hook(session.at_site(layer, hook, edits))
            stack.callback(handle.remove)
        last = hook_point(model, "resid_post", model.cfg.n_layers - 1)
        stack.callback(last.register_forward_hook(session.at_end).remove)
        yield session.clock
        session.clock.require_whole_prompts()
        session.require_finite()  # passes that stopped before the last block
        session.require_all_fired()


def checked_edits(model: Any, cells: Sequence[Sequence[Operation]], force: bool) -> list[list[Edit]]:
    """What each cell's operations come down to on this model; raises as `steer`."""
    identity = identify(model)
    found = [edits_of(operations, model.cfg.n_layers) for operations in cells]
    for edit in (edit for edits in found for edit in edits):
        _check(model, identity, edit, force)
    return found


def _check(model: Any, identity: ModelIdentity, edit: Edit, force: bool) -> None:
    require_changeable(model, edit.hook, edit.layer)
    width = hook_width(model, edit.hook)
    if edit.width not in (None, width):
        raise ValueError(
            f"{edit.described}: the vector has {edit.width} numbers, "
            f"but {edit.hook} of {identity.name} has {width}."
        )
    if edit.identity is not None:
        hint = " If that is what you want, say so with force=True."
        edit.identity.require(identity, force=force, what=f"the vector of {edit.described}", hint=hint)
    if edit.heads and not 0 <= min(edit.heads) <= max(edit.heads) < model.cfg.n_heads:
        raise IndexError(
            f"{edit.described}: heads {edit.heads}, but there are heads 0 to {model.cfg.n_heads - 1}."
        )


class _Session:
    """The edits of one `steer` block, site by site, and what has been seen of them."""

    def __init__(
        self, model: Any, edits: list[Edit], clock: Clock, allow_empty: bool, generating: bool
    ) -> None:
        self.clock = clock
        self.bos: int | None = None  # looked for at the start of prompts until a warning was given
        self.allow_empty = allow_empty
        self.generating = generating
        # For each edit, the prompts of which it is known to select something.
        self.looked_at: dict[int, list[PromptTokens]] = {}
        self.sites: dict[tuple[int, str], list[Edit]] = defaultdict(list)
        for edit in edits:
            self.sites[edit.layer, edit.hook].append(edit)
        self.edits = edits
        self.d_head = model.cfg.d_head
        self.fired: set[int] = set()
        # What was done, in which rows the stream stayed finite, and those rows' prompts.
        self.finite: list[tuple[str, Tensor, list[PromptTokens]]] = []

    def at_site(self, layer: int, hook: str, edits: list[Edit]) -> Any:
        def changed(_module: Any, _inputs: tuple, x: Tensor) -> Tensor:
            stream = in_full(self.clock.slots_of(x))
            for edit in edits:
                stream = self._applied(edit, stream)
            stream = stream.to(x.dtype)
            self._look(edits, stream)
            return stream.reshape(x.shape)

        return changed

    def at_end(self, _module: Any, _inputs: tuple, x: Tensor) -> None:
        """Once a pass, after the last block: one look at whether all of it stayed finite."""
        self._look(self.edits, x)
        self.require_finite()

    def require_finite(self) -> None:
        """Raise for what was seen since the last look; the earliest site is named."""
        seen, self.finite = self.finite, []
        flags = torch.stack([rows.all().cpu() for _, rows, _ in seen]).tolist() if seen else []
        if not all(flags):
            described, rows, prompts = seen[flags.index(False)]
            row = rows.tolist().index(False)
            raise_non_finite(described, prompts[row], row=row)

    def require_all_fired(self) -> None:
        missed = [edit.described for edit in self.edits if id(edit) not in self.fired]
        if missed and not self.clock.passes:
            raise HookDidNotFireError(
                f"{'; '.join(missed)}: no pass of this model ran inside the block. Was another model called?"
            )
        if missed:
            raise HookDidNotFireError(
                f"{'; '.join(missed)}: the hook did not fire, so nothing was changed there. "
                "Did the passes stop before that layer (stop_at_layer), or start behind it?"
            )

    def _applied(
        self, edit: Edit, stream: Float[Tensor, "batch pos d_hook"]
    ) -> Float[Tensor, "batch pos d_hook"]:
        self.fired.add(id(edit))
        selected = self.clock.mask(edit.positions)
        self._warn_of_two_bos()
        self._require_some(edit)
        return edit.on(stream, selected, self.clock.index, d_head=self.d_head)

    def _warn_of_two_bos(self) -> None:
        if self.bos is None:
            return
        for row, prompt in enumerate(self.clock.prompts):
            if prompt.ids is not None and prompt.ids[:2] == (self.bos, self.bos):
                warn(
                    f"row {row} begins with two BOS tokens (id {self.bos}): expected one. Use the ids of "
                    "tokenize(model, text), or model.to_tokens(text, prepend_bos=False)."
                )
                self.bos = None
                return

    def _require_some(self, edit: Edit) -> None:
        """Look once at each prompt: an operation that changes nothing of it is a mistake."""
        prompts = self.clock.prompts
        if self.allow_empty or self.looked_at.get(id(edit)) is prompts:
            return
        for row, prompt in enumerate(prompts):
            edit.positions.require_some(prompt, f"{edit.described}: row {row}", generating=self.generating)
        self.looked_at[id(edit)] = prompts

    def _look(self, edits: Sequence[Edit], stream: Float[Tensor, "batch pos d_hook"]) -> None:
        """Note in which rows the stream is finite wherever there is a token."""
        rows = (torch.isfinite(stream).all(-1) | (self.clock.index < 0).to(stream.device)).all(-1)
        self.finite.append((" and ".join(edit.described for edit in edits), rows, self.clock.prompts))
