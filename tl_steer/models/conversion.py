"""A Hugging Face model's weights as a `HookedTransformer` (TransformerLens 3) that equals it."""

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

from .processing import SCALAR_CENTRING, centre_by_scalars, possible_steps


def converted(
    name: str,
    hf_model: Any,
    *,
    dtype: torch.dtype,
    device: str,
    steps: Mapping[str, bool],
    n_devices: int = 1,
) -> HookedTransformer:
    """The model converted, with those processing steps that leave its predictions alone.

    Args:
        name: TransformerLens's, where there is no `hf_model`.
        hf_model: not changed; `None` for models that were trained for TransformerLens.
        n_devices: how many GPUs share the layers.

    Raises:
        ValueError: an architecture that TransformerLens would convert wrongly, or fewer GPUs than that.
    """
    _require_devices(device, n_devices)
    options = {"dtype": dtype, "device": device, "n_devices": n_devices}
    cfg = _config(name, hf_model, fold_ln=steps["fold_ln"], **options)
    possible = possible_steps(steps, cfg)
    if possible["fold_ln"] != steps["fold_ln"]:
        cfg = _config(name, hf_model, fold_ln=False, **options)
    weights = tl_loading.get_pretrained_state_dict(
        _converter_name(name, hf_model), cfg, hf_model, dtype=dtype
    )
    return _build(cfg, weights, possible)


def tokenizer_name(name: str) -> str:
    """Whose tokenizer a model without a Hugging Face twin was trained with."""
    return tl_loading.get_pretrained_model_config(name).tokenizer_name


def _converter_name(name: str | Path, hf_model: Any) -> str:
    """What TransformerLens's converters are told: a path for a model in hand, else the official name."""
    return "." if hf_model is not None else str(name)


def _config(name: str, hf_model: Any, **options: Any) -> HookedTransformerConfig:
    """TransformerLens's config for the model in hand."""
    if hf_model is None:
        cfg = tl_loading.get_pretrained_model_config(name, **options)
    elif type(hf_model).__name__ == "Gemma2ForCausalLM":
        cfg = _gemma_2_config(hf_model.config, **options)
    else:
        cfg = _staged_config(hf_model, **options)
    cfg.model_name = Path(name).name
    cfg.tokenizer_name = None
    return cfg


def _staged_config(hf_model: Any, **options: Any) -> HookedTransformerConfig:
    """Through a folder with the config alone: what TransformerLens reads without asking the Hub."""
    config = hf_model.config.to_dict()
    config["architectures"] = [type(hf_model).__name__]
    config["model_type"] = _known_type(hf_model.config)
    config.pop("auto_map", None)  # code that came with the model has run; a question would be asked here
    if config.get("model_type") == "gpt2":
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
                f"TransformerLens takes the folder {folder} for a model's name: set TMPDIR elsewhere."
            )
        (Path(folder) / "config.json").write_text(json.dumps(config, default=str))
        return tl_loading.get_pretrained_model_config(folder, hf_cfg=config, **options)


def _known_type(config: Any) -> str:
    """The `model_type` under which transformers knows a config, though its class came with the model."""
    own = (kind.model_type for kind in type(config).__mro__ if kind.__module__.startswith("transformers."))
    return next(own, "") or config.model_type


def _gemma_2_config(config: Any, **options: Any) -> HookedTransformerConfig:
    """TransformerLens knows Gemma-2 by name alone: its own config, with this model's sizes."""
    known = tl_loading.get_pretrained_model_config("google/gemma-2-2b", hf_cfg=config.to_dict(), **options)
    kinds = {"sliding_attention": "local", "full_attention": "global"}
    values = known.to_dict() | {
        "d_model": config.hidden_size,
        "d_head": config.head_dim,
        "n_heads": config.num_attention_heads,
        "n_key_value_heads": config.num_key_value_heads,
        "d_mlp": config.intermediate_size,
        "n_layers": config.num_hidden_layers,
        "n_ctx": config.max_position_embeddings,
        "eps": config.rms_norm_eps,
        "d_vocab": config.vocab_size,
        "d_vocab_out": config.vocab_size,
        "act_fn": config.hidden_activation,
        "window_size": config.sliding_window,
        "attn_types": [kinds[kind] for kind in config.layer_types],
        "attn_scale": math.sqrt(config.query_pre_attn_scalar),
        "attn_scores_soft_cap": config.attn_logit_softcapping or -1.0,
        "output_logits_soft_cap": config.final_logit_softcapping or -1.0,
        "rotary_base": config.rope_parameters["rope_theta"],
        "rotary_dim": config.head_dim,
    }
    return HookedTransformerConfig.from_dict(values)


def _build(cfg: HookedTransformerConfig, weights: dict, steps: Mapping[str, bool]) -> HookedTransformer:
    with warnings.catch_warnings():
        # We know that HookedTransformer goes away in 4.0: the dependency is pinned for it.
        warnings.filterwarnings("ignore", "HookedTransformer", DeprecationWarning)
        model = HookedTransformer(cfg, move_to_device=False)
    if steps[SCALAR_CENTRING]:
        centre_by_scalars(weights)
    theirs = {step: chosen for step, chosen in steps.items() if step != SCALAR_CENTRING}
    model.load_and_process_state_dict(weights, **theirs)
    spread(model)
    return model


def spread(model: HookedTransformer) -> None:
    """Put each module where a forward pass takes the stream; in place.

    TransformerLens's own `move_model_modules_to_device` puts each on whichever GPU is emptiest, while its
    passes take the stream through the GPUs in order: with several, it ends in an error.
    """
    places = [get_device_for_block_index(layer, model.cfg) for layer in range(model.cfg.n_layers)]
    for block, place in zip(model.blocks, places, strict=True):
        block.to(place)
    for name, part in model.named_children():
        if name != "blocks":
            part.to(places[-1] if name in ("ln_final", "unembed") else places[0])


def _require_devices(device: str, n_devices: int) -> None:
    if n_devices < 1 or (n_devices > 1 and torch.device(device).type != "cuda"):
        raise ValueError(
            f"n_devices={n_devices} on {device!r}: layers are spread over 1 or more CUDA devices."
        )
    if n_devices > 1 and (found := torch.cuda.device_count()) < n_devices:
        raise ValueError(f"n_devices={n_devices}, but there are {found} CUDA devices.")
