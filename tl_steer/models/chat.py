"""How a user's words become the text a model was trained to answer."""

import re
from dataclasses import dataclass
from typing import Any, Literal

from jinja2 import TemplateError

from ..arguments import checked
from .backend import HookedModel

LLAMA_2_SYSTEM = "<<SYS>>\n{system}\n<</SYS>>\n\n"


@checked
@dataclass(frozen=True)
class ChatFormat:
    """One model's way of writing a conversation as text.

    Attributes:
        kind: "template" (the tokenizer's own chat template), "llama-2" (`[INST] <<SYS>>`, for Llama-2-chat
            tokenizers that carry none) or "plain" (base models: no turns).
        tokenizer: used by "template", and for its BOS by "llama-2".
    """

    kind: Literal["template", "llama-2", "plain"]
    tokenizer: Any = None

    @checked
    def render(self, user: str, *, system: str | None = None, answer_prefix: str = "") -> str:
        """One user turn as a prompt, up to where the assistant answers.

        Args:
            user: the user's message.
            system: the system message; `None` leaves it to the template's default.
            answer_prefix: text with which the assistant's turn opens ("Answer: (A").

        Raises:
            ValueError: the tokenizer's template has no place for a system message, or refuses it.
        """
        opened = getattr(self, "_" + self.kind.replace("-", "_"))(user, system)
        gap = "" if not answer_prefix or opened[-1:].isspace() or answer_prefix[0].isspace() else " "
        return opened + gap + answer_prefix

    def end_of_turn(self) -> str | None:
        """The token that ends the assistant's turn (`<|im_end|>`, `</s>`), if the format shows one."""
        if self.kind == "llama-2":
            return self.tokenizer.eos_token
        if self.kind == "plain":
            return None
        turns = [{"role": "user", "content": "question"}, {"role": "assistant", "content": "answer"}]
        after = self.tokenizer.apply_chat_template(turns, tokenize=False).rpartition("answer")[2]
        first = re.match(r"\s*(<[^>]*>)", after)
        return first.group(1) if first else None

    def _template(self, user: str, system: str | None) -> str:
        turns = [{"role": "user", "content": user}]
        if system is not None:
            turns.insert(0, {"role": "system", "content": system})
        try:
            text = self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        except TemplateError as error:
            raise ValueError(f"this model's chat template refuses the conversation: {error}.") from error
        if system is not None and system.strip() not in text:
            raise ValueError(
                "this model's chat template drops the system message: put it in the user's turn."
            )
        return text

    def _llama_2(self, user: str, system: str | None) -> str:
        head = "" if system is None else LLAMA_2_SYSTEM.format(system=system)
        return f"{self.tokenizer.bos_token}[INST] {head}{user} [/INST]"

    def _plain(self, user: str, system: str | None) -> str:
        return f"{user}\n" if system is None else f"{system}\n\n{user}\n"


@checked
def chat_format(model: HookedModel) -> ChatFormat:
    """The chat format of a model: its tokenizer's template, Llama-2's, or plain text for base models."""
    if getattr(model.tokenizer, "chat_template", None):
        return ChatFormat("template", model.tokenizer)
    if model.tokenizer is not None and re.search(r"llama-2-.*chat", model.cfg.model_name.lower()):
        return ChatFormat("llama-2", model.tokenizer)
    return ChatFormat("plain", model.tokenizer)
