"""Show a prompt's tokens with those that a position selects marked."""

import html
import unicodedata
from dataclasses import dataclass

import torch

from .._util.validation import checked
from ..models import HookedModel, Prompt, token_strings, tokenize
from .selectors import Positions, PromptTokens

TURNING = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}  # explicit, not the script's own
SELECTED = "background:#fdd49e;border-radius:3px;"


@dataclass(frozen=True)
class TokenPreview:
    """A prompt's tokens, each with whether it is selected. HTML in notebooks, `[selected]` as plain text.

    Attributes:
        positions: what was resolved.
        tokens: each token as text.
        selected: which of them are selected.
    """

    positions: Positions
    tokens: tuple[str, ...]
    selected: tuple[bool, ...]

    def __str__(self) -> str:
        shown = [
            f"[{text}]" if chosen else text
            for text, chosen in zip(self._visible(), self.selected, strict=True)
        ]
        return f"{self._title()}\n{''.join(shown)}"

    __repr__ = __str__

    def _repr_html_(self) -> str:
        spans = [
            f'<span title="token {number}" style="{SELECTED if chosen else ""}white-space:pre-wrap;'
            f'border-right:1px solid #ddd">{html.escape(text)}</span>'
            + ("<br>" if text.endswith("⏎") else "")
            for number, (text, chosen) in enumerate(zip(self._visible(), self.selected, strict=True))
        ]
        title = f"<div><small>{html.escape(self._title())}</small></div>"
        return f'{title}<div style="line-height:1.7">{"".join(spans)}</div>'

    def _title(self) -> str:
        more = ", and every generated token" if self.positions.generated else ""
        positions = "".join(map(_seen, str(self.positions)))
        return f"{positions}: {sum(self.selected)} of {len(self.tokens)} tokens{more}"

    def _visible(self) -> list[str]:
        return ["".join(map(_seen, text)) for text in self.tokens]


def _seen(sign: str) -> str:
    """A character, or its number where it would steer a terminal or turn the writing's direction."""
    if sign == "\n":
        return "⏎"
    steers = unicodedata.category(sign) in ("Cc", "Cs") or unicodedata.bidirectional(sign) in TURNING
    return f"<U+{ord(sign):04X}>" if steers and sign != "\t" else sign


@checked
def preview(model: HookedModel, prompt: Prompt, positions: Positions) -> TokenPreview:
    """What `positions` selects in one prompt.

    Args:
        model: gives the tokenizer.
        prompt: text or token ids.
        positions: what to show.
    """
    ids = tokenize(model, prompt)
    mask = positions.select(PromptTokens(len(ids), tuple(ids), model.tokenizer))
    return TokenPreview(positions, tuple(token_strings(model, ids)), tuple(torch.as_tensor(mask).tolist()))
