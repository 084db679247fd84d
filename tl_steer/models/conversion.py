"""Convert a Hugging Face model into an equal `HookedTransformer`, or wrap it as a bridge."""

import copy
import json
import math
import tempfile
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens import HookedTransformer, HookedTransformerConfig
from transformer_lens import loading_from_pretrained as tl_loading
from transformer_lens.utilities.multi_gpu import get_device_for_block_index

from .bridge import new_cache, not_in_memory, run, unembedded
from .equality import cause_of, probe, reference
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

    Args:
        name: TransformerLens's name, if there is no `hf_model`.
        hf_model: not changed; `None` for models that were trained for TransformerLens.
        n_devices: over how many GPUs the layers are spread.

    Raises:
        ValueError: an architecture that TransformerLens would convert wrongly, or too few GPUs.
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

    TransformerLens's `move_model_modules_to_device` takes whichever GPU is emptiest, while its passes go
    through the GPUs in order, and so raises with several.
    """
    devices = [get_device_for_block_index(layer, model.cfg) for layer in range(model.cfg.n_layers)]
    for block, device in zip(model.blocks, devices, strict=True):
        block.to(device)
    for name, module in model.named_children():
        if name != "blocks":
            module.to(devices[-1] if name in ("ln_final", "unembed") else devices[0])


EXACT, ROUNDED = 1e-3, 0.05  # allowed relative error of logits, in float32 and in half precision


def load_bridge(
    name: str,
    hf_model: Any,
    steps: Mapping[str, bool],
    dtype: torch.dtype | None,
    device: str | None,
    *,
    check: bool,
    copy_changed: bool,
) -> Any:
    """A checked bridge in this dtype and on this device, with its weights processed.

    Args:
        dtype, device: `None` leaves them as they are. A model with a `device_map` stays on its devices.
        copy_changed: copy the model if its weights would change, because they are the user's.
    """
    changes: dict[str, Any] = {} if dtype in (None, hf_model.dtype) else {"dtype": dtype}
    mapped = getattr(hf_model, "hf_device_map", None)
    if device is not None and not mapped and not _is_same(hf_model.device, torch.device(device)):
        changes["device"] = device
    if copy_changed and (changes or any(steps.values())):
        hf_model = copy.deepcopy(hf_model)
    model = wrapped(hf_model.to(**changes) if changes else hf_model, name, check=check)
    possible = possible_steps(steps, model.cfg)
    if any(possible.values()):
        process(model, possible)
    return model


def _is_same(device: torch.device, requested: torch.device) -> bool:
    """A missing index matches any: a model on "cuda:1" is on "cuda"."""
    any_index = None in (device.index, requested.index)
    return device.type == requested.type and (any_index or device.index == requested.index)


@torch.no_grad()
def wrapped(hf_model: Any, name: str, *, check: bool = True) -> Any:
    """Wrap a Hugging Face model in a `TransformerBridge`; the model is not copied.

    Some bridges do not compute what the model computes (Cohere's of 3.9 is off by half a logit), or not in a
    decode step with a cache (MPT's, Mamba's). `check` compares logits on probe tokens before and after.

    Raises:
        ValueError: TransformerLens has no bridge for the architecture, or its bridge changes the logits.
    """
    from transformer_lens.model_bridge.sources import build_bridge_from_module

    architecture, tokens = type(hf_model).__name__, probe(hf_model)
    with reference(hf_model, rounded_buffers=True):  # as the bridge will run it
        before = hf_model(tokens).logits[0] if check else None
    try:
        model = build_bridge_from_module(
            hf_model.eval(), architecture, hf_config=hf_model.config, model_name=name
        )
        after = _logits(model, tokens)
    except Exception as error:
        raise ValueError(f"TransformerLens's bridge cannot run {architecture}: {cause_of(error)}.") from error
    model.cfg.n_devices = max(1, len(set((getattr(hf_model, "hf_device_map", None) or {}).values())))
    if check and (problem := _problem(lambda: after, before, hf_model.dtype)):
        raise ValueError(
            f"TransformerLens's bridge changes what {architecture} computes: {problem}. "
            "Use backend='hooked', or another version of TransformerLens."
        )
    if check and (problem := _problem(lambda: _decode_step(model, tokens), before[-1:], hf_model.dtype)):
        raise ValueError(
            f"TransformerLens's bridge cannot run {architecture} a token at a time with cached keys and "
            f"values, as generation does: {problem}. Use backend='hooked' if possible, or another version "
            "of TransformerLens."
        )
    return model


@torch.no_grad()
def process(model: Any, steps: Mapping[str, bool]) -> None:
    """Apply TransformerLens's processing to a bridge's weights, in place.

    Raises:
        ValueError: it fails on this architecture, or the model then fails or predicts something else.
    """
    tokens = probe(model.original_model)

    def log_probabilities() -> Float[Tensor, "pos d_vocab"]:
        return _logits(model, tokens).float().log_softmax(-1)  # centring moves all logits alike

    def processed() -> Float[Tensor, "pos d_vocab"]:
        model.enable_compatibility_mode(disable_warnings=True, **steps)
        return log_probabilities()

    if problem := _problem(processed, log_probabilities(), model.cfg.dtype, "log-probabilities"):
        requested = ", ".join(step for step, is_requested in steps.items() if is_requested)
        raise ValueError(
            f"TransformerLens cannot process its bridge of {type(model.original_model).__name__} by "
            f"{requested}: {problem}. Leave that out of processing=…, or use backend='hooked'."
        )


def require_in_memory(hf_model: Any, name: str) -> None:
    """Raise `ValueError` if some weights are on "meta" or on disk, from where accelerate loads them."""
    devices = {str(device) for device in (getattr(hf_model, "hf_device_map", None) or {}).values()}
    devices |= {weight.device.type for weight in hf_model.parameters()}
    if offloaded := devices & {"disk", "meta"}:
        raise not_in_memory(name, offloaded)


def _logits(model: Any, tokens: Int[Tensor, "1 pos"]) -> Float[Tensor, "pos d_vocab"]:
    return unembedded(model, run(model, tokens, tokens >= 0, model.cfg.n_layers, None)[0])


def _decode_step(model: Any, tokens: Int[Tensor, "1 pos"]) -> Float[Tensor, "1 d_vocab"]:
    """Logits of the last token, with the keys and values of all others cached."""
    cache, n_layers = new_cache(model, 1), model.cfg.n_layers
    for part in (tokens[:, :-1], tokens[:, -1:]):
        stream = run(model, part, part >= 0, n_layers, cache)
    return unembedded(model, stream[0, -1:])


def _problem(
    compute: Callable[[], Tensor], expected: Tensor, dtype: torch.dtype, quantity: str = "logits"
) -> str:
    """Why a computation fails or differs from the expected values; "" if it does not."""
    try:
        values = compute().float()
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        return cause_of(error)
    expected, allowed = expected.float(), EXACT if dtype == torch.float32 else ROUNDED
    off = float((values.to(expected.device) - expected).norm() / expected.norm())
    return "" if off < allowed else f"its {quantity} are off by {off:.1%}"
