"""Selection of tokens (`Positions`), and the tracker that resolves it during forward passes."""

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
from .tracker import PositionTracker

__all__ = [
    "PositionTracker", "Positions", "PromptTokens", "TokenPreview", "after", "all_tokens",
    "current_token", "generated_tokens", "last_token", "parse_positions", "preview", "prompt_tokens",
    "span", "token", "tokens_matching",
]  # fmt: skip
