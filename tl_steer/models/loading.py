"""`load_model`: from a name, a folder or a Hugging Face model to a TransformerLens model that equals it."""

import copy
import logging
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from math import inf
from pathlib import Path
from typing import Any

import torch

from .._util.validation import checked, warn
from .backend import BACKENDS, DEFAULT_BACKEND, HookedTransformer
from .chat import begins_with_bos, detected_format
from .equality import cause_of, fits, shortfall, unusual_settings
from .passes import exclusive
from .sources import EMBEDDED, Source, fetch, record_comparison, was_compared
from .weights import SCALAR_CENTRING, optimize_layout, processing_steps
from .wrapping import load_bridge, require_in_memory, wrapped

logger = logging.getLogger(__name__)

# What TransformerLens raises on an architecture that it cannot convert or run.
CONVERSION_ERRORS = (RuntimeError, AttributeError, LookupError, AssertionError, TypeError)


@checked
def load_model(
    name: str | Path = EMBEDDED,
    *,
    backend: str = DEFAULT_BACKEND,
    dtype: torch.dtype | str | None = None,
    device: torch.device | str | None = None,
    hf_model: Any = None,
    tokenizer: Any = None,
    processing: bool | Mapping[str, bool] = False,
    layout: bool = True,
    n_devices: int = 1,
    trust_remote_code: bool = False,
    check: bool = True,
) -> Any:
    """Load a `HookedTransformer` or `TransformerBridge` whose activations equal the Hugging Face model's.

    The two are compared on up to 320 tokens first: a setting that TransformerLens's conversion drops (rotary
    scaling, a bias, a window) is an error. If the chat format has its own BOS and the tokenizer adds none,
    `model.cfg.default_prepend_bos` is False: `model.to_tokens` and `model.generate` add no second one.

    Args:
        name: of `MODELS`, known to TransformerLens, or a Hugging Face folder; with `hf_model` only a label.
        backend: "hooked" (TransformerLens 3) or "bridge" (any model that transformers loads; the default with
            TransformerLens 4, which has nothing else). The engine runs both; see `explain`.
        dtype: of the weights; by default that of `hf_model`, else float32; "auto" is that of the files.
        device: by default CUDA if available, else the CPU; "auto" also takes MPS before the CPU. A bridge
            leaves an `hf_model` where it is by default, and always if it has a `device_map`.
        hf_model: a loaded Hugging Face causal language model, also in 4 bits or with a `device_map`. It is
            not changed, except that a bridge is put into it and the model then runs as part of the bridge.
            LoRA adapters are merged into a copy; a compiled model is replaced by its original.
        tokenizer: used instead of the model's own; copied, not changed.
        processing: `False` leaves the weights as they are, so that a vector means the same elsewhere; `True`
            is TransformerLens's usual folding and centring; a mapping sets each by TransformerLens's name, or
            "scalar_centring" (backend "hooked" only), the study's change of gpt2-xl: its one mean over all
            entries is subtracted from each embedding and from each weight and bias that writes to the
            residual stream. Logits stay the same, the residual stream and vectors do not. Steps that would
            change an architecture's predictions are left out and logged.
        layout: store a `HookedTransformer`'s weights with the strides its components need: decode steps are
            two to three times faster, numbers the same. `safetensors.save_file(model.state_dict())` then
            needs `restore_layout(model)` first.
        n_devices: number of GPUs for a `HookedTransformer`'s layers, the first ones on `device`; conditions
            are then run one by one. For a bridge pass an `hf_model` with a `device_map` instead.
        trust_remote_code: run Python code that comes with the model's files: read it first.
        check: compare with the Hugging Face model. In half precision two float32 copies are compared if
            memory allows, else the difference may be three times that of half precision itself.

    Raises:
        ModelUnavailableError: not in the cache and not available from the Hub, or gated.
        ValueError: an unknown name, backend, dtype or processing step; an architecture that TransformerLens
            does not know or would convert or run wrongly; code of the model's own; an `hf_model` whose
            weights are not all in memory, or are quantised ("hooked"); more devices than there are.
    """
    steps = _steps(processing, backend, n_devices)
    weights_dtype = _dtype(dtype)
    source = _source(name, hf_model, backend, dtype, trust_remote_code)
    # The embedded model does not change: one comparison per version of the packages is enough.
    key = f"{backend}, {weights_dtype}, {steps}" if hf_model is None and source.name == EMBEDDED else ""
    check = check and not (key and was_compared(key))
    with nullcontext() if hf_model is None else exclusive(source.hf_model, evaluation=False):
        if backend == "bridge":
            model = load_bridge(
                Path(source.name).name, source.hf_model, steps, weights_dtype,
                None if device is None and hf_model is not None else _device(device),
                check=check, copy_changed=hf_model is not None,
            )  # fmt: skip
        else:
            options = {"steps": steps, "device": _device(device), "layout": layout, "n_devices": n_devices}
            model = _load_hooked(source, weights_dtype, check=check, **options)
    if check and key:
        record_comparison(key)
    _attach_tokenizer(model, source.tokenizer if tokenizer is None else tokenizer)
    cfg = model.cfg
    log_args = (cfg.model_name, cfg.n_layers, cfg.d_model, backend, cfg.dtype, cfg.device)
    logger.info("%s: %d layers of width %d, %s, %s on %s", *log_args)
    return model.eval().requires_grad_(False)


@checked
def load_hugging_face(
    name: str | Path = EMBEDDED,
    *,
    backend: str = DEFAULT_BACKEND,
    dtype: torch.dtype | str | None = None,
    trust_remote_code: bool = False,
) -> tuple[Any, Any]:
    """The Hugging Face model and tokenizer that `load_model` starts from, on the CPU.

    Either may be `None`: a model trained for TransformerLens, a folder without a tokenizer. Arguments and
    errors are those of `load_model`; the names that are known depend on `backend`.
    """
    source = _source(name, None, backend, dtype, trust_remote_code)
    return None if source.hf_model is None else source.hf_model.eval(), source.tokenizer


def _source(
    name: str | Path, hf_model: Any, backend: str, dtype: torch.dtype | str | None, trust_remote_code: bool
) -> Source:
    """The user's `hf_model` or the model of this name, with adapters merged."""
    if backend not in BACKENDS:
        raise ValueError(f"backend {backend!r} is unknown; there are {' and '.join(map(repr, BACKENDS))}.")
    if backend == "hooked" and HookedTransformer is None:
        raise ValueError(
            "backend 'hooked' is a HookedTransformer, which TransformerLens 4 no longer has: use "
            "backend='bridge', the default there, or install 'transformer-lens<4'."
        )
    if hf_model is None:
        fetched_dtype = "auto" if dtype == "auto" else _dtype(dtype) or torch.float32
        source = fetch(name, fetched_dtype, backend, trust_remote_code)
        return source if source.hf_model is None else replace(source, hf_model=_merged(source.hf_model))
    hf_model = _merged(hf_model)
    require_in_memory(hf_model, str(name))
    if name == EMBEDDED:  # the default
        name = hf_model.config.name_or_path or type(hf_model).__name__
    return Source(str(name), hf_model)


def _merged(hf_model: Any) -> Any:
    """The model with peft's adapters merged into a copy of its weights, and without torch.compile.

    Raises ValueError for adapters that cannot be merged (prompt or prefix tuning, several types).
    """
    hf_model = getattr(hf_model, "_orig_mod", hf_model)
    if not any(type(module).__module__.startswith("peft.") for module in hf_model.modules()):
        return hf_model
    try:
        merged = copy.deepcopy(hf_model)
        return merged.merge_and_unload() if hasattr(merged, "merge_and_unload") else _merge_injected(merged)
    except Exception as error:
        raise ValueError(
            f"this {type(hf_model).__name__} has adapters that cannot be merged into its weights ({error}): "
            "expected LoRA or similar adapters. Pass the base model, or merge them yourself."
        ) from error


def _merge_injected(hf_model: Any) -> Any:
    """Merge adapters that transformers' `add_adapter` injected, and restore the plain layers; in place."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = {name: layer for name, layer in hf_model.named_modules() if isinstance(layer, BaseTunerLayer)}
    if not layers:
        raise ValueError("it has no tuner layers")
    for name, layer in layers.items():
        layer.merge()
        parent, _, child = name.rpartition(".")
        setattr(hf_model.get_submodule(parent), child, layer.get_base_layer())
    hf_model._hf_peft_config_loaded = False
    return hf_model


def _steps(processing: bool | Mapping[str, bool], backend: str, n_devices: int) -> dict[str, bool]:
    if backend == "bridge" and n_devices != 1:
        raise ValueError("n_devices is for backend='hooked': give a bridge an hf_model with a device_map.")
    steps = processing_steps(processing)
    if backend == "bridge" and steps.pop(SCALAR_CENTRING):
        raise ValueError(f"processing: {SCALAR_CENTRING} is for backend='hooked' only.")
    return steps


def _load_hooked(source: Source, dtype: torch.dtype | None, *, check: bool, **options: Any) -> Any:
    """Convert, and compare with the Hugging Face model if there is one."""
    hf_model, convert = source.hf_model, partial(_convert, source.name, **options)
    model = convert(hf_model, dtype=dtype or getattr(hf_model, "dtype", torch.float32))
    if not check or hf_model is None:
        return model
    try:
        problem = shortfall(model, hf_model, partial(convert, dtype=torch.float32))
    except torch.OutOfMemoryError:
        warn(f"{model.cfg.model_name} was not compared with the Hugging Face model: out of memory.")
        return model
    except CONVERSION_ERRORS as error:
        problem = f"it does not run ({cause_of(error)})"
    if problem:
        settings = unusual_settings(hf_model.config)
        raise _inconvertible(hf_model, problem + (f". Its config has {settings}" if settings else ""))
    return model


def _convert(name: str, hf_model: Any, *, layout: bool, **options: Any) -> Any:
    from .conversion import converted

    if _is_quantised(hf_model):
        raise _inconvertible(hf_model, "its weights are quantised")
    try:
        model = converted(name, hf_model, **options)
    except CONVERSION_ERRORS as error:
        if hf_model is None or isinstance(error, torch.OutOfMemoryError):
            raise
        raise _inconvertible(hf_model, cause_of(error)) from error
    if layout:
        optimize_layout(model)
    model.revision = getattr(getattr(hf_model, "config", None), "_commit_hash", None)
    return model


def _is_quantised(hf_model: Any) -> bool:
    config = getattr(getattr(hf_model, "config", None), "quantization_config", None)
    return bool(getattr(hf_model, "is_quantized", False) or config)


def _inconvertible(hf_model: Any, reason: str) -> ValueError:
    """The error for a model that cannot be converted; tries on a copy whether backend='bridge' runs it."""
    if _is_quantised(hf_model) or not fits(hf_model):
        advice = "backend='bridge' runs the Hugging Face model itself; this was not tried."
    else:
        try:
            wrapped(copy.deepcopy(hf_model), "copy")
            advice = "Use backend='bridge', which runs the Hugging Face model and was compared with it."
        except ValueError as error:
            cause = str(error).partition(". ")[0].rstrip(".")
            advice = f"Nor does backend='bridge' run it: {cause}."
    return ValueError(
        f"TransformerLens cannot convert this {type(hf_model).__name__} into a HookedTransformer: {reason}. "
        + advice
    )


def _device(device: torch.device | str | None) -> str:
    """The device's name, after a check that it exists."""
    if device is None or str(device) == "auto":
        if torch.cuda.is_available():
            return "cuda"
        return "mps" if device is not None and torch.backends.mps.is_available() else "cpu"
    try:
        requested = torch.device(device)
    except RuntimeError:
        raise ValueError(
            f"device='{device}' is unknown; use 'auto', 'cpu', 'cuda', 'cuda:1' or 'mps'."
        ) from None
    counts = {"cuda": torch.cuda.device_count, "mps": lambda: int(torch.backends.mps.is_available())}
    count = counts.get(requested.type, lambda: inf)()
    if (requested.index or 0) >= count:
        raise ValueError(f"device='{device}' is not there: torch finds {count} {requested.type!r} devices.")
    return str(device)


def _dtype(dtype: torch.dtype | str | None) -> torch.dtype | None:
    """The torch dtype; `None` for "auto"."""
    if dtype in (None, "auto"):
        return None
    resolved = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if not isinstance(resolved, torch.dtype):
        raise ValueError(f"dtype {dtype!r} is unknown; use 'float32', 'bfloat16', 'float16' or 'auto'.")
    return resolved


def _attach_tokenizer(model: Any, tokenizer: Any) -> None:
    """Set the tokenizer unchanged; TransformerLens's own setter would reload it so that it adds a BOS."""
    if tokenizer is None:
        return
    model.tokenizer = copy.deepcopy(tokenizer)
    if model.tokenizer.pad_token is None:
        model.tokenizer.pad_token = model.tokenizer.eos_token
    model.cfg.tokenizer_prepends_bos = len(model.tokenizer.encode("")) > 0
    if not model.cfg.tokenizer_prepends_bos and begins_with_bos(detected_format(model)):
        model.cfg.default_prepend_bos = False
