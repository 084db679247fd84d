"""Adapters and wrappers of a Hugging Face model, taken off before it is converted."""

import copy
import importlib.util
from pathlib import Path
from typing import Any


def merged(hf_model: Any) -> Any:
    """The model with the adapters of peft merged into a copy of its weights, and without torch.compile.

    Raises:
        ValueError: adapters that cannot be merged (prompt or prefix tuning, several kinds).
    """
    hf_model = getattr(hf_model, "_orig_mod", hf_model)
    if not _has_adapters(hf_model):
        return hf_model
    try:
        whole = copy.deepcopy(hf_model)
        if hasattr(whole, "merge_and_unload"):
            return whole.merge_and_unload()
        return _without_layers(whole)
    except Exception as error:
        raise ValueError(
            f"this {type(hf_model).__name__} has adapters that cannot be merged into its weights ({error}): "
            "pass the base model, or a model whose adapters are LoRA or the like."
        ) from error


def require_peft(folder: Path) -> None:
    """Refuse a folder with an adapter where peft is not installed: transformers would load the base model."""
    if (folder / "adapter_config.json").is_file() and importlib.util.find_spec("peft") is None:
        raise ValueError(
            f"{folder} has an adapter (adapter_config.json), and peft, which can merge it, is not installed: "
            "pip install peft, or pass the merged model as hf_model=…"
        )


def _has_adapters(hf_model: Any) -> bool:
    return hf_model is not None and any(
        type(module).__module__.startswith("peft.") for module in hf_model.modules()
    )


def _without_layers(hf_model: Any) -> Any:
    """Merge adapters that transformers put into a model, and restore its plain layers; in place."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = [
        (name, module) for name, module in hf_model.named_modules() if isinstance(module, BaseTunerLayer)
    ]
    if not layers:
        raise TypeError("no layer of theirs can be merged")
    for name, layer in layers:
        layer.merge()
        parent, _, child = name.rpartition(".")
        setattr(hf_model.get_submodule(parent), child, layer.get_base_layer())
    hf_model._hf_peft_config_loaded = False
    return hf_model
