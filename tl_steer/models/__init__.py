"""Names to a model of TransformerLens, text to tokens, chat formats, and which model it is."""

from .backend import (
    BACKENDS,
    DEFAULT_BACKEND,
    HookedModel,
    input_device,
    is_bridge,
    is_hooked,
    new_cache,
    run,
    unembedded,
)
from .chat import ChatFormat, ChatPrompt, chat_format, detected_format, prompt_label, writes_date
from .embedded import EMBEDDED, embedded_folder, get_model
from .equality import probe_difference
from .hook_names import HOOKS, Layers, hook_point, hook_width, require_changeable, resolve_layers
from .identity import ModelIdentity, identify
from .layout import optimize_layout, restore_layout
from .loading import MODELS, load_hugging_face, load_model
from .organism_files import ORGANISMS, organism_folder
from .passes import ForwardPass, exclusive, watching
from .tokenizing import Prompt, as_prompts, token_strings, tokenize, tokenize_all, warn_of_padding
from .unembedding import can_unembed_in_float32, final_norm, unembedding

__all__ = [
    "BACKENDS",
    "DEFAULT_BACKEND",
    "EMBEDDED",
    "HOOKS",
    "MODELS",
    "ORGANISMS",
    "ChatFormat",
    "ChatPrompt",
    "ForwardPass",
    "HookedModel",
    "Layers",
    "ModelIdentity",
    "Prompt",
    "as_prompts",
    "can_unembed_in_float32",
    "chat_format",
    "detected_format",
    "embedded_folder",
    "exclusive",
    "final_norm",
    "get_model",
    "hook_point",
    "hook_width",
    "identify",
    "input_device",
    "is_bridge",
    "is_hooked",
    "load_hugging_face",
    "load_model",
    "new_cache",
    "optimize_layout",
    "organism_folder",
    "probe_difference",
    "prompt_label",
    "require_changeable",
    "resolve_layers",
    "restore_layout",
    "run",
    "token_strings",
    "tokenize",
    "tokenize_all",
    "unembedded",
    "unembedding",
    "warn_of_padding",
    "watching",
    "writes_date",
]
