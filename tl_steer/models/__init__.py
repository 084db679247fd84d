"""Names to a `HookedTransformer`, text to tokens, chat formats, and which model it is."""

from .chat import ChatFormat, chat_format
from .embedded import EMBEDDED, embedded_folder, get_model
from .hooks import HOOKS, Layer, Layers, hook_point, hook_width, resolve_layers
from .identity import ModelIdentity, ModelMismatchError, identify
from .layout import optimize_layout, restore_layout
from .loading import MODELS, ModelUnavailableError, load_model
from .organisms import ORGANISMS, organism_folder
from .tokenizing import Prompt, as_prompts, token_strings, tokenize, tokenize_all

__all__ = [
    "EMBEDDED",
    "HOOKS",
    "MODELS",
    "ORGANISMS",
    "ChatFormat",
    "Layer",
    "Layers",
    "ModelIdentity",
    "ModelMismatchError",
    "ModelUnavailableError",
    "Prompt",
    "as_prompts",
    "chat_format",
    "embedded_folder",
    "get_model",
    "hook_point",
    "hook_width",
    "identify",
    "load_model",
    "optimize_layout",
    "organism_folder",
    "resolve_layers",
    "restore_layout",
    "token_strings",
    "tokenize",
    "tokenize_all",
]
