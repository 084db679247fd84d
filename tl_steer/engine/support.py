"""Running options, and the conditions under which the shared engine applies."""

import logging
from dataclasses import dataclass
from typing import Any

import torch
from transformer_lens.utilities.architectures import POST_NORM_ARCHITECTURES

from .._util.logs import OnProgress
from ..models import is_hooked

logger = logging.getLogger(__name__)
Memory = int | float | None  # bytes, or a fraction of the free memory

# Settings of an attention layer that `shared.attention` depends on, with the values that it supports.
_SUPPORTED = {
    "positional_embedding_type": ("standard", "rotary"),
    "attention_dir": ("causal",),
    "use_attn_in": (False,),
    "use_split_qkv_input": (False,),
    "use_attn_result": (False,),
    "use_hook_tokens": (False,),
    "use_attention_sinks": (False,),
    "use_logn_attn": (False,),
    "use_dynamic_ntk_rope": (False,),
    "ungroup_grouped_query_attention": (False,),
    "load_in_4bit": (False,),
    "clip_qkv": (None,),
    "n_devices": (1,),
}
_UNSUPPORTED_NORMS = {"OlmoeForCausalLM", *POST_NORM_ARCHITECTURES}


def no_progress(conditions: float) -> None:
    """Ignore progress."""


@dataclass(frozen=True)
class RunOptions:
    """How prompts are run; the results do not depend on `reuse` and `memory`.

    Attributes:
        reuse: compute once what conditions and prompts share; `False` runs the plain loop.
        memory: what residual streams, keys and values may take; see `bytes_allowed`.
        force: accept vectors of other weights of the same shapes and processing.
        allow_empty: accept prompts of which an operation's positions select nothing.
        on_progress: called with the number of conditions done since the last call, in fractions.
    """

    reuse: bool = True
    memory: Memory = None
    force: bool = False
    allow_empty: bool = False
    on_progress: OnProgress = no_progress


DEFAULT_OPTIONS = RunOptions()


def is_shared(model: Any, options: RunOptions) -> bool:
    """Whether the shared engine runs this model now, instead of the plain loop."""
    reason = obstacle(model) if options.reuse else None
    if reason is not None:
        logger.info("every condition is run in whole forward passes, because %s", reason)
    return options.reuse and reason is None


def obstacle(model: Any) -> str | None:
    """The reason why this model needs the plain loop now; `None` if it does not.

    Hooks that are already registered (the user's, an outer `steer`) expect padded batches of whole prompts,
    so the plain loop runs while there are any.
    """
    if not is_hooked(model):
        return f"{type(model).__name__} is not a HookedTransformer"
    from transformer_lens.components import Attention, GroupedQueryAttention

    for name, supported in _SUPPORTED.items():
        if getattr(model.cfg, name, supported[0]) not in supported:
            return f"the model's {name} is {getattr(model.cfg, name)!r}"
    if model.cfg.original_architecture in _UNSUPPORTED_NORMS:
        return f"{model.cfg.original_architecture} has its norms at other places"
    for block in model.blocks:
        if type(block.attn) not in (Attention, GroupedQueryAttention) or "forward" in vars(block.attn):
            return "an attention layer is not TransformerLens's own"
    return _registered_hook(model)


def require_unhooked(model: Any) -> None:
    """Raise `ValueError` if a `HookedTransformer` has hooks: a resumed sweep could lack them."""
    if is_hooked(model) and (reason := _registered_hook(model)):
        raise ValueError(
            f"{reason}, yours or an outer steer's: expected none with out=…, since a resumed call could lack "
            "it. Remove the hook, steer by operations, or leave out=… away."
        )


def _registered_hook(model: Any) -> str | None:
    if torch.nn.modules.module._global_forward_hooks or torch.nn.modules.module._global_forward_pre_hooks:
        return "there is a hook at every module"
    for name, module in model.named_modules():
        if module._forward_hooks or module._forward_pre_hooks:
            return f"there is a hook at {name or 'the model'}"
    return None
