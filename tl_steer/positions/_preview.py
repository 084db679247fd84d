"""`preview`: a prompt's tokens with the selected ones marked."""

import html
import unicodedata
from dataclasses import dataclass

from .._util.validation import checked
from ..models import HookedModel, Prompt, token_strings, tokenize
from .selectors import Positions, PromptTokens

BIDIRECTIONAL = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}  # explicit controls
STYLE = "background:#fdd49e;border-radius:3px;"


@dataclass(frozen=True)
class TokenPreview:
    """A prompt's tokens and which are selected. HTML in notebooks, `[selected]` as plain text.

    Attributes:
        positions: the selection.
        tokens: each token as text.
        selected: per token, whether it is selected.
    """

    positions: Positions
    tokens: tuple[str, ...]
    selected: tuple[bool, ...]

    def __str__(self) -> str:
        pairs = zip(map(_printable, self.tokens), self.selected, strict=True)
        marked = "".join(f"[{text}]" if is_selected else text for text, is_selected in pairs)
        return f"{self._title()}\n{marked}"

    __repr__ = __str__

    def _repr_html_(self) -> str:
        texts = map(_printable, self.tokens)
        spans = [
            f'<span title="token {number}" style="{STYLE if is_selected else ""}white-space:pre-wrap;'
            f'border-right:1px solid #ddd">{html.escape(text)}</span>'
            + ("<br>" if text.endswith("⏎") else "")
            for number, (text, is_selected) in enumerate(zip(texts, self.selected, strict=True))
        ]
        title = f"<div><small>{html.escape(self._title())}</small></div>"
        return f'{title}<div style="line-height:1.7">{"".join(spans)}</div>'

    def _title(self) -> str:
        more = ", and every generated token" if self.positions.generated else ""
        return f"{_printable(str(self.positions))}: {sum(self.selected)} of {len(self.tokens)} tokens{more}"


def _printable(text: str) -> str:
    """With a code point for each character that would control a terminal or the text direction."""

    def is_control(sign: str) -> bool:
        return unicodedata.category(sign) in ("Cc", "Cs") or unicodedata.bidirectional(sign) in BIDIRECTIONAL

    printable = (f"<U+{ord(sign):04X}>" if is_control(sign) and sign not in "\n\t" else sign for sign in text)
    return "".join(printable).replace("\n", "⏎")


@checked
def preview(model: HookedModel, prompt: Prompt, positions: Positions) -> TokenPreview:
    """Show which tokens of a prompt `positions` selects.

    Args:
        model: for its tokenizer.
        prompt: text or token ids.
        positions: the selection to show.
    """
    ids = tokenize(model, prompt)
    mask = positions.select(PromptTokens(len(ids), tuple(ids), model.tokenizer))
    return TokenPreview(positions, tuple(token_strings(model, ids)), tuple(mask.tolist()))
