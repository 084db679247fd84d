"""Load TransformerLens models, tokenize text, render chat formats, identify models."""

from .backend import (
    BACKENDS,
    DEFAULT_BACKEND,
    HOOKS,
    HookedModel,
    Layers,
    hook_point,
    hook_width,
    is_bridge,
    is_hooked,
    resolve_layers,
)
from .chat import ChatFormat, ChatPrompt, chat_format, detected_format, prompt_label, writes_date
from .identity import ModelIdentity, identify
from .loading import load_hugging_face, load_model
from .passes import exclusive
from .sources import EMBEDDED, MODELS, ORGANISMS, embedded_folder, get_model, organism_folder
from .tokenizing import Prompt, as_prompts, token_strings, tokenize, tokenize_all
from .weights import optimize_layout, restore_layout

__all__ = [
    "BACKENDS", "DEFAULT_BACKEND", "EMBEDDED", "HOOKS", "MODELS", "ORGANISMS", "ChatFormat",
    "ChatPrompt", "HookedModel", "Layers", "ModelIdentity", "Prompt", "as_prompts", "chat_format",
    "detected_format", "embedded_folder", "exclusive", "get_model", "hook_point", "hook_width",
    "identify", "is_bridge", "is_hooked", "load_hugging_face", "load_model", "optimize_layout",
    "organism_folder", "prompt_label", "resolve_layers", "restore_layout", "token_strings", "tokenize",
    "tokenize_all", "writes_date",
]  # fmt: skip
