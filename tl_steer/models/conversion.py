"""Convert a Hugging Face model's weights into a `HookedTransformer` (TransformerLens 3) that equals it."""

import json
import math
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformer_lens import HookedTransformer, HookedTransformerConfig
from transformer_lens import loading_from_pretrained as tl_loading
from transformer_lens.utilities.multi_gpu import get_device_for_block_index

from .weights import SCALAR_CENTRING, centre_by_scalars, possible_steps


def converted(
    name: str,
    hf_model: Any,
    *,
    dtype: torch.dtype,
    device: str,
    steps: Mapping[str, bool],
    n_devices: int = 1,
) -> HookedTransformer:
    """Convert a model, with the processing steps that do not change its predictions.

    Without an `hf_model`, which is not changed, `name` is that of a model trained for TransformerLens.

    Raises ValueError for an architecture that TransformerLens would convert wrongly, or too few GPUs.
    """
    if n_devices < 1 or (n_devices > 1 and torch.device(device).type != "cuda"):
        raise ValueError(f"n_devices={n_devices} on {device!r}: expected 1 or more CUDA devices.")
    if n_devices > 1 and (available := torch.cuda.device_count()) < n_devices:
        raise ValueError(f"n_devices={n_devices}, but there are {available} CUDA devices.")
    options = {"dtype": dtype, "device": device, "n_devices": n_devices}
    cfg = _config(name, hf_model, fold_ln=steps["fold_ln"], **options)
    possible = possible_steps(steps, cfg)
    if possible["fold_ln"] != steps["fold_ln"]:
        cfg = _config(name, hf_model, fold_ln=False, **options)
    # The converters of an `hf_model` must not look up its name.
    official = name if hf_model is None else "."
    weights = tl_loading.get_pretrained_state_dict(official, cfg, hf_model, dtype=dtype)
    return _build(cfg, weights, possible)


def tokenizer_name(name: str) -> str:
    """The tokenizer of a model that has no Hugging Face model."""
    return tl_loading.get_pretrained_model_config(name).tokenizer_name


def _config(name: str, hf_model: Any, **options: Any) -> HookedTransformerConfig:
    if hf_model is None:
        cfg = tl_loading.get_pretrained_model_config(name, **options)
    elif type(hf_model).__name__ == "Gemma2ForCausalLM":
        cfg = _gemma_2_config(hf_model.config, **options)
    else:
        cfg = _staged_config(hf_model, **options)
    cfg.model_name = Path(name).name
    cfg.tokenizer_name = None  # the constructor would load it from the Hub
    return cfg


def _staged_config(hf_model: Any, **options: Any) -> HookedTransformerConfig:
    """Read the config from a folder that holds nothing else: TransformerLens then does not ask the Hub."""
    config = hf_model.config.to_dict()
    # With code of its own, the class is not transformers': its `model_type` is that of a base class.
    classes = type(hf_model.config).__mro__
    known = (each.model_type for each in classes if each.__module__.startswith("transformers."))
    config["model_type"] = next(known, "") or hf_model.config.model_type
    config["architectures"] = [type(hf_model).__name__]
    config.pop("auto_map", None)  # would ask again whether to run the model's code
    if config["model_type"] == "gpt2":
        config["n_ctx"] = config["n_positions"]  # transformers 5 no longer writes it
    heads = config.get("num_attention_heads")
    if heads and config.get("head_dim") not in (None, config["hidden_size"] // heads):
        raise ValueError(
            f"{type(hf_model).__name__} with head_dim {config['head_dim']}, not hidden_size / heads: "
            "TransformerLens 3.9 would convert this wrongly."
        )
    with tempfile.TemporaryDirectory(prefix="staged-") as folder:
        if any(word in folder.lower() for word in ("llama", "gemma")):
            raise ValueError(
                f"TransformerLens guesses the architecture from the folder's name, here {folder}: set TMPDIR "
                "elsewhere."
            )
        (Path(folder) / "config.json").write_text(json.dumps(config, default=str))
        return tl_loading.get_pretrained_model_config(folder, hf_cfg=config, **options)


def _gemma_2_config(config: Any, **options: Any) -> HookedTransformerConfig:
    """TransformerLens's config of an official Gemma-2, the only ones it knows, with this model's sizes."""
    known = tl_loading.get_pretrained_model_config("google/gemma-2-2b", hf_cfg=config.to_dict(), **options)
    attention_types = {"sliding_attention": "local", "full_attention": "global"}
    renamed = {
        "d_model": "hidden_size", "d_head": "head_dim", "n_heads": "num_attention_heads",
        "n_key_value_heads": "num_key_value_heads", "d_mlp": "intermediate_size",
        "n_layers": "num_hidden_layers", "n_ctx": "max_position_embeddings", "eps": "rms_norm_eps",
        "d_vocab": "vocab_size", "d_vocab_out": "vocab_size", "act_fn": "hidden_activation",
        "window_size": "sliding_window", "rotary_dim": "head_dim",
    }  # fmt: skip
    values = known.to_dict() | {name: getattr(config, hf_name) for name, hf_name in renamed.items()}
    values |= {
        "attn_types": [attention_types[each] for each in config.layer_types],
        "attn_scale": math.sqrt(config.query_pre_attn_scalar),
        "attn_scores_soft_cap": config.attn_logit_softcapping or -1.0,
        "output_logits_soft_cap": config.final_logit_softcapping or -1.0,
        "rotary_base": config.rope_parameters["rope_theta"],
    }
    return HookedTransformerConfig.from_dict(values)


def _build(cfg: HookedTransformerConfig, weights: dict, steps: Mapping[str, bool]) -> HookedTransformer:
    with warnings.catch_warnings():
        # HookedTransformer goes away in 4.0: the dependency is pinned for it.
        warnings.filterwarnings("ignore", "HookedTransformer", DeprecationWarning)
        model = HookedTransformer(cfg, move_to_device=False)
    if steps[SCALAR_CENTRING]:
        centre_by_scalars(weights)
    tl_steps = {step: chosen for step, chosen in steps.items() if step != SCALAR_CENTRING}
    model.load_and_process_state_dict(weights, **tl_steps)
    spread(model)
    return model


def spread(model: HookedTransformer) -> None:
    """Put each module on the device where a forward pass has the residual stream; in place.

    TransformerLens's `move_model_modules_to_device` takes the emptiest GPU, its passes take them in order.
    """
    devices = [get_device_for_block_index(layer, model.cfg) for layer in range(model.cfg.n_layers)]
    for block, device in zip(model.blocks, devices, strict=True):
        block.to(device)
    for name, module in model.named_children():
        if name != "blocks":
            module.to(devices[-1] if name in ("ln_final", "unembed") else devices[0])
