"""What a model is like: its hooks, weights and settings, so that two moments can be compared."""

from dataclasses import dataclass
from typing import Any

from torch import nn

from ..models import is_hooked
from ..models.weights import weight_digests as weights
from .check import Finding

_HOOKS = {
    "_forward_pre_hooks": " (before it)", "_forward_hooks": "",
    "_backward_pre_hooks": " (before its gradient)", "_backward_hooks": " (its gradient)",
}  # fmt: skip
_TOKENIZER = ("padding_side", "truncation_side", "pad_token", "bos_token", "eos_token", "chat_template")


@dataclass(frozen=True)
class State:
    """A model at one moment, as names and what belongs to each."""

    hooks: dict[str, tuple[int, ...]]
    weights: dict[str, str]
    settings: dict[str, str]

    @classmethod
    def of(cls, model: Any) -> "State":
        """The model as it is now; one pass over its weights."""
        return cls(hooks(model), weights(model), settings(model))


def hooks(model: Any) -> dict[str, tuple[int, ...]]:
    """Every hook of torch's or TransformerLens's, by place; also what was put in place of a `forward`."""
    found = {
        f"{name or 'the model'}{when}": held
        for name, module in model.named_modules()
        for kind, when in _HOOKS.items()
        if (held := tuple(key for key, hook in getattr(module, kind).items() if not _own(hook)))
    }
    everywhere = nn.modules.module
    if held := (*everywhere._global_forward_pre_hooks, *everywhere._global_forward_hooks):
        found["every module"] = held
    if is_hooked(model):
        for name, module in model.named_modules():
            if "forward" in vars(module):
                found[f"{name or 'the model'}.forward"] = (id(vars(module)["forward"]),)
    return found


def _own(hook: Any) -> bool:
    """Whether it is a bridge's, by which it follows its model, or transformers', which collects outputs.

    transformers puts its own in at the first pass that is asked for hidden states, and leaves them there.
    """
    owner = getattr(hook, "__module__", None) or ""
    return owner.startswith(("transformer_lens.model_bridge", "transformers.utils.output_capturing"))


def settings(model: Any) -> dict[str, str]:
    """Whether each module trains and each weight wants gradients; the config; the tokenizer's settings."""
    found = {
        f"{name or 'the model'}.training": str(module.training) for name, module in model.named_modules()
    }
    found |= {f"{name}.requires_grad": str(each.requires_grad) for name, each in model.named_parameters()}
    found |= {f"cfg.{name}": str(value) for name, value in vars(model.cfg).items()}
    if model.tokenizer is not None:
        found |= {f"tokenizer.{name}": str(getattr(model.tokenizer, name, None)) for name in _TOKENIZER}
    return found


def differing(before: dict[str, Any], after: dict[str, Any]) -> Finding:
    """How many entries are not what they were, and the first few."""
    names = [name for name in {**before, **after} if before.get(name) != after.get(name)]
    return Finding(len(names), listed(names))


def listed(names: list[str], most: int = 5) -> str:
    """The first few of some names."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
