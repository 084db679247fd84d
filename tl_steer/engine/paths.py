"""Which path a model takes through the engine, checked on a few tokens before it is used.

- *Shared*: blocks run on packed tokens, with common tokens and layers computed once (`shared/`).
- *Shorter*: whole passes that begin at the first layer a condition changes; only for scores and damage.
- *Whole*: the plain loop.

A new architecture may be slow, never wrong: what is not found to be equal takes the next path.
"""

import logging
from collections.abc import Callable, Hashable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from .._util.validation import checked, warn
from ..errors import NonFiniteError
from ..interventions import Edit
from ..models import HookedModel, exclusive, is_hooked
from ..models.backend import HOOKS, Start, find_hook_point, is_bridge
from ..models.bridge_blocks import is_library_hook, returns_tuples
from ..positions import Positions, PositionTracker, PromptTokens, all_tokens, current_token
from .plain import DEFAULT_OPTIONS, Batch, Row, residual, run_plain
from .recording import ActivationReader
from .shared.attention import PackedModel
from .shared.chunking import Chunk, run_in_chunks
from .shared.decoding import Decoder
from .shared.packed_bridge import PackedBridge
from .shared.packed_hooked import PackedHooked, unsupported_setting

logger = logging.getLogger(__name__)
SHARED, SHORTER, WHOLE = "shared", "shorter passes", "whole passes"
EXACT, ROUNDED = 1e-3, 0.1  # relative errors that the probe allows, in float32 and in half precision
PROBE_TOKENS = 14
NEW_TOKENS = 2


@dataclass(frozen=True)
class Path:
    """How a model's conditions run.

    Attributes:
        name: SHARED, SHORTER or WHOLE.
        reason: why not shared.
        packed: runs blocks on packed tokens, if shared.
    """

    name: str
    reason: str = ""
    packed: PackedModel | None = None


# By model: what the path depends on, and the path without registered hooks.
_examined: "WeakKeyDictionary[Any, tuple[Hashable, Path]]" = WeakKeyDictionary()


@checked
def explain(model: HookedModel) -> str:
    """Which path a model takes through the engine now, and why; the results are the same.

    "shared": what prompts and conditions have in common, tokens and layers, is computed once. "shorter
    passes": scores and damage of a condition are computed from the first layer it changes on, all else in
    whole passes. "whole passes": every condition runs by itself.
    """
    path = path_of(model)
    return path.name if path.name == SHARED else f"{path.name}, because {path.reason}"


def path_of(model: Any) -> Path:
    """The path that a model takes now.

    Hooks that are already registered (the user's, an outer `steer`) expect padded batches of whole prompts,
    so whole passes run while there are any.
    """
    if (reason := registered_hook(model)) is not None:
        return Path(WHOLE, reason)
    state = _state(model)
    if model not in _examined or _examined[model][0] != state:
        with exclusive(model):
            _examined[model] = state, _examine(model)
        logger.info("%s: %s", model.cfg.model_name, explain(model))
    return _examined[model][1]


def registered_hook(model: Any) -> str | None:
    """A hook on the model that is neither the engine's nor the libraries' own."""
    if torch.nn.modules.module._global_forward_hooks or torch.nn.modules.module._global_forward_pre_hooks:
        return "there is a hook at every module"
    for name, module in model.named_modules():
        hooks = (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
        if not all(map(is_library_hook, hooks)):
            return f"there is a hook at {name or 'the model'}"
    return None


def require_unhooked(model: Any) -> None:
    """Raise `ValueError` if a model has hooks: a resumed sweep could lack them."""
    if reason := registered_hook(model):
        raise ValueError(
            f"{reason}, yours or an outer steer's: expected none with out=…, since a resumed call could lack "
            "it. Remove the hook, steer by operations, or leave out=… away."
        )


def _state(model: Any) -> Hashable:
    """Whatever decides the path: modules, replaced forward passes, settings, dtype and device."""
    if is_bridge(model):
        modules = patched = [*model.modules(), *model.original_model.modules()]
    else:  # other parts of a `HookedTransformer` run as they are
        modules, patched = model.modules(), [block.attn for block in model.blocks]
    replaced = tuple("forward" in vars(module) for module in patched)
    return tuple(map(type, modules)), replaced, repr(model.cfg), model.W_E.dtype, model.W_E.device


def _examine(model: Any) -> Path:
    reason = unsupported(model)
    if reason is None:
        try:
            packed = PackedHooked(model) if is_hooked(model) else PackedBridge(model)
            reason = probe(model, packed)
        except ValueError as error:
            reason = str(error)
        else:
            if reason is None:
                return Path(SHARED, packed=packed)
            warn(
                f"the shared engine does not compute what {model.cfg.model_name} computes ({reason}): its "
                "conditions run in longer passes, with the right results.",
                RuntimeWarning,
            )
    return Path(WHOLE if probe_start(model) else SHORTER, reason)


def unsupported(model: Any) -> str | None:
    """A reason against packed tokens that needs no probe."""
    if is_hooked(model):
        return unsupported_setting(model)
    if not is_bridge(model):
        return f"{type(model).__name__} is not a HookedTransformer"
    if getattr(model.cfg, "n_devices", 1) > 1:
        return f"the model is on {model.cfg.n_devices} devices"
    names = ("use_attn_in", "use_split_qkv_input", "use_attn_result", "use_hook_mlp_in")
    return next((f"the model's {name} is True" for name in names if getattr(model.cfg, name, False)), None)


class _Probe:
    """An operation for the probe: adds a direction as long as the residual stream."""

    def __init__(self, layer: int, positions: Positions, d_model: int) -> None:
        direction = torch.randn(d_model, generator=torch.Generator().manual_seed(layer))
        self.direction = direction / direction.norm()
        self.layer, self.positions = layer, positions

    def edits(self, n_layers: int) -> list[Edit]:
        """One edit at a block's output."""

        def change(x: Tensor, _index: Tensor) -> Tensor:
            return x + x.norm(dim=-1, keepdim=True) * self.direction.to(x)

        return [Edit(self.layer, "resid_post", self.positions, change, None, "the probe")]


@torch.no_grad()
def probe(model: Any, packed: PackedModel) -> str | None:
    """Compare the shared engine with whole passes, on prompts that share tokens and on new tokens.

    Returns:
        What differs, or `None`.
    """
    n_layers, (prompts, new) = model.cfg.n_layers, _probe_tokens(model)
    middle = n_layers // 2
    conditions = [
        (),
        (_Probe(middle, current_token(), packed.d_model),),
        (_Probe(0, all_tokens(), packed.d_model),),
    ]
    edits = [[edit for operation in each for edit in operation.edits(n_layers)] for each in conditions]
    tokens = [PromptTokens(len(ids), tuple(ids)) for ids in prompts]
    points = {hook: point for hook in HOOKS if (point := find_hook_point(model, hook, middle)) is not None}
    # By condition and row: final residual streams. By hook and row: the activation, without steering.
    whole, shared, whole_hooks, shared_hooks = ({} for _ in range(4))

    def plain(condition: int, batch: Batch, _tracker: PositionTracker, _start: None) -> None:
        def read(hook: str) -> Callable[[Any, tuple, Tensor], None]:
            def keep(_module: Any, _inputs: tuple, x: Tensor) -> None:
                if x.ndim > 2:  # a hook with a row for each token
                    whole_hooks.update({(hook, row): each for row, each in zip(batch.rows, x, strict=True)})

            return keep

        with ExitStack() as stack:
            for hook, point in points.items() if condition == 0 else ():
                stack.callback(point.register_forward_hook(read(hook)).remove)
            stream = residual(model, batch)
        whole.update({(condition, row): each for row, each in zip(batch.rows, stream, strict=True)})

    def together(chunk: Chunk) -> None:
        prefix, decoder = chunk.plan.prefix, Decoder(chunk, NEW_TOKENS)
        reader = ActivationReader(
            [(middle, hook) for hook in sorted({hook for hook, _ in whole_hooks})], np.arange(prefix.stop)
        )
        with reader.of(model, chunk):
            streams = [decoder.start()]
        texts = torch.tensor([new[chunk.rows[row]] for _, row in decoder.members])
        with decoder.running():
            streams += [decoder.step(tokens) for tokens in texts.T]
        for member, (condition, row) in enumerate(decoder.members):
            index = chunk.conditions[condition], chunk.rows[row]
            shared[index] = torch.stack([stream[member] for stream in streams])
        for row, path in zip(chunk.rows, prefix.trie.paths, strict=True):
            shared_hooks.update({(hook, row): x[path[-1]] for (_, hook), x in reader.values.items()})

    longer = [Row((*ids, *more), prompt) for ids, more, prompt in zip(prompts, new, tokens, strict=True)]
    try:
        run_plain(model, longer, conditions, plain, DEFAULT_OPTIONS)
    except NonFiniteError:  # no numbers to compare: an error in any case
        return None
    rows = [Row(prompt.ids, prompt) for prompt in tokens]
    try:
        run_in_chunks(
            model, packed, rows, edits, together, DEFAULT_OPTIONS, new_tokens=NEW_TOKENS, generating=True
        )
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        return f"packed tokens do not run: {error}"
    if whole_hooks.keys() != shared_hooks.keys():
        hooks = {hook for hook, _ in whole_hooks.keys() ^ shared_hooks.keys()}
        return f"hook {' and '.join(sorted(hooks))} fires in one of them only"
    last = -1 - NEW_TOKENS
    errors = [_error(whole[index][last:], shared[index]) for index in whole]
    errors += [_error(x[last].flatten(), shared_hooks[index]) for index, x in whole_hooks.items()]
    worst = max(errors)
    return None if worst <= _allowed(packed.weight.dtype) else f"activations differ by {worst:.1%}"


@torch.no_grad()
def probe_start(model: Any) -> str | None:
    """Compare passes that start at a layer with whole ones.

    Returns:
        What differs, or `None`.
    """
    if not (is_hooked(model) or is_bridge(model)):
        return "it is of another class"
    prompts, _ = _probe_tokens(model)
    tokens = [PromptTokens(len(ids), tuple(ids)) for ids in prompts]
    rows, middle = [Row(prompt.ids, prompt) for prompt in tokens], model.cfg.n_layers // 2
    conditions = [(_Probe(middle, current_token(), model.cfg.d_model),)]
    streams: list[Tensor] = []

    def plain(_condition: int, batch: Batch, _tracker: PositionTracker, start: Start | None) -> None:
        streams.extend(residual(model, batch, start=start)[:, -1])

    try:
        if is_bridge(model):
            returns_tuples(model)
        for starts in (None, [middle]):
            run_plain(model, rows, conditions, plain, DEFAULT_OPTIONS, starts=starts)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        return f"passes that start late do not run: {error}"
    whole, late = torch.stack(streams).chunk(2)
    error = _error(whole, late)
    return None if error <= _allowed(whole.dtype) else f"the residual stream differs by {error:.1%}"


def _probe_tokens(model: Any) -> tuple[list[list[int]], list[list[int]]]:
    """Prompts of unequal length that share their beginnings, and new tokens for each."""
    length = max(2, min(PROBE_TOKENS, model.cfg.n_ctx - NEW_TOKENS))
    ids = torch.randint(
        model.cfg.d_vocab, (3, length + NEW_TOKENS), generator=torch.Generator().manual_seed(0)
    )
    first, second, third = ids.tolist()
    half = length // 2
    prompts = [first[:length], [*first[:half], *second[half:length]], first[: half + 1], third[:length]]
    return prompts, [row[length:] for row in (first, second, third, first)]


def _error(expected: Float[Tensor, "*token d_hook"], result: Float[Tensor, "*token d_hook"]) -> float:
    """The largest relative error of a token whose expected activation is finite."""
    expected, result = expected.float().cpu(), result.float().cpu()
    errors = (result - expected).norm(dim=-1) / expected.norm(dim=-1)
    errors = torch.where(torch.isfinite(expected).all(-1), errors.nan_to_num(torch.inf), 0)
    return float(errors.max())


def _allowed(dtype: torch.dtype) -> float:
    return EXACT if dtype == torch.float32 else ROUNDED
