"""The one language that says *where*, and the clock that resolves it during a forward pass."""

from .clock import Clock
from .language import (
    EmptySelectionError,
    Positions,
    PromptTokens,
    after,
    all_tokens,
    current_token,
    generated_tokens,
    last_token,
    parse_positions,
    prompt_tokens,
    span,
    token,
    tokens_matching,
)
from .preview import TokenPreview, preview

__all__ = [
    "Clock",
    "EmptySelectionError",
    "Positions",
    "PromptTokens",
    "TokenPreview",
    "after",
    "all_tokens",
    "current_token",
    "generated_tokens",
    "last_token",
    "parse_positions",
    "preview",
    "prompt_tokens",
    "span",
    "token",
    "tokens_matching",
]
