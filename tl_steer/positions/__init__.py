"""The one language that says *where*, and the clock that resolves it during a forward pass."""

from ._preview import TokenPreview, preview
from .selectors import (
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
from .tracker import Clock

__all__ = [
    "Clock",
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
