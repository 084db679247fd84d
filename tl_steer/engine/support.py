"""Where the engine's shortcuts apply, and why not where they do not."""

import logging
from typing import Any

import torch
from transformer_lens.utilities.architectures import POST_NORM_ARCHITECTURES

from ..models import is_hooked

logger = logging.getLogger(__name__)

# What an attention layer may do that the engine's does not: settings, and the values it knows.
_KNOWN = {
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
_OTHERWISE_NORMED = {"OlmoeForCausalLM", *POST_NORM_ARCHITECTURES}


def shares(model: Any, reuse: bool) -> bool:
    """Whether what is alike is computed once: where the caller wants it, and nothing stands in the way."""
    reason = obstacle(model) if reuse else None
    if reason is not None:
        logger.info("every cell is run whole, because %s", reason)
    return reuse and reason is None


def obstacle(model: Any) -> str | None:
    """Why this model has to be run by the plain loop now, `None` where it does not.

    Hooks that are there already (a user's own, an outer `steer`) are made for ordinary passes: padded
    batches of whole prompts. With them the plain loop runs, and they see what they expect.
    """
    if not is_hooked(model):
        return f"{type(model).__name__} is not a HookedTransformer"
    from transformer_lens.components import Attention, GroupedQueryAttention

    for name, known in _KNOWN.items():
        if getattr(model.cfg, name, known[0]) not in known:
            return f"the model's {name} is {getattr(model.cfg, name)!r}"
    if model.cfg.original_architecture in _OTHERWISE_NORMED:
        return f"{model.cfg.original_architecture} normalises elsewhere"
    for block in model.blocks:
        if type(block.attn) not in (Attention, GroupedQueryAttention) or "forward" in vars(block.attn):
            return "an attention layer is not TransformerLens's own"
    return _hooked(model)


def require_unhooked(model: Any) -> None:
    """Refuse a `HookedTransformer` with hooks in place where what it does is to be the same later on.

    Raises:
        ValueError: says where a hook is.
    """
    if is_hooked(model) and (reason := _hooked(model)):
        raise ValueError(
            f"{reason}, a user's own or an outer steer's: a call that goes on with what out=… keeps could "
            "lack it. Remove it, steer by operations, or leave out=… away."
        )


def _hooked(model: Any) -> str | None:
    if torch.nn.modules.module._global_forward_hooks or torch.nn.modules.module._global_forward_pre_hooks:
        return "there is a hook at every module"
    for name, module in model.named_modules():
        if module._forward_hooks or module._forward_pre_hooks:
            return f"there is a hook at {name or 'the model'}"
    return None
