"""`preview`: a prompt's tokens with the selected ones marked."""

import html
from dataclasses import dataclass

from .._util.characters import without_controls
from .._util.html_output import fragment
from .._util.token_html import TIP, TOKEN_SCRIPT, TOKEN_STYLE, running_text, token_line, token_span
from .._util.validation import checked
from ..models import HookedModel, Prompt, token_strings, tokenize
from .selectors import Positions, PromptTokens


@dataclass(frozen=True)
class TokenPreview:
    """A prompt's tokens and which are selected. HTML in notebooks, `[selected]` as plain text.

    Attributes:
        positions: the selection.
        tokens: each token as text.
        token_ids: each token's id.
        selected: per token, whether it is selected.
    """

    positions: Positions
    tokens: tuple[str, ...]
    token_ids: tuple[int, ...]
    selected: tuple[bool, ...]

    def __str__(self) -> str:
        pairs = zip(map(_printable, self.tokens), self.selected, strict=True)
        marked = "".join(f"[{text}]" if is_selected else text for text, is_selected in pairs)
        return f"{self._title()}\n{marked}"

    __repr__ = __str__

    def _repr_html_(self) -> str:
        rows = enumerate(zip(self.tokens, self.token_ids, self.selected, strict=True))
        spans = [
            token_span(
                text,
                [token_line(text, token_id), f"index {index}{', selected' * is_selected}"],
                is_selected=is_selected,
            )
            for index, (text, token_id, is_selected) in rows
        ]
        content = (
            f'<p class="tls-note">{html.escape(self._title())}</p>{running_text(spans, self.tokens)}{TIP}'
        )
        return fragment(content, title="Selected tokens", style=TOKEN_STYLE, script=TOKEN_SCRIPT).body

    def _title(self) -> str:
        more = ", and every generated token" if self.positions.generated else ""
        return f"{_printable(str(self.positions))}: {sum(self.selected)} of {len(self.tokens)} tokens{more}"


def _printable(text: str) -> str:
    """In one line, without characters that would control a terminal or the text direction."""
    return without_controls(text).replace("\n", "⏎").replace("\r", "␍")


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
    return TokenPreview(positions, tuple(token_strings(model, ids)), tuple(ids), tuple(mask.tolist()))
