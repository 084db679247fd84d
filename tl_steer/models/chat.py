"""Chat formats: a user's message as the prompt that a model was trained to answer."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date, datetime
from types import MappingProxyType
from typing import Any, Literal

from .._util.validation import checked, short_repr, warn
from .backend import HookedModel, architecture_of
from .chat_template import DATE, answer_gap, depends_on_date, first_tag, render_template, space

LLAMA_2_TOKENS = 32_000
DROPPED = {
    "system": "the system message: put it in the user's turn",
    "user": "the user's message: set model.tokenizer.chat_template to one that renders it, or to None",
}
# Arguments of `apply_chat_template` that are set here or would change more than the text.
NOT_VARIABLES = (
    "messages", "conversation", "chat_template", "add_generation_prompt", "continue_final_message",
    "tokenize", "padding", "truncation", "max_length", "return_tensors", "return_dict",
    "return_assistant_tokens_mask", "tokenizer_kwargs",
)  # fmt: skip


class ChatPrompt(str):
    """A rendered prompt with its messages; text made from it (`prompt + "…"`) is a plain `str`.

    Attributes:
        user: the user's message.
        system: the system message, if any.
        chat: the format in which they were rendered.
    """

    user: str
    system: str | None
    chat: "ChatFormat | None"

    @checked
    def __new__(
        cls, text: str, user: str | None = None, system: str | None = None, chat: "ChatFormat | None" = None
    ) -> "ChatPrompt":
        """The rendered `text`; without `user` that is the message itself."""
        prompt = super().__new__(cls, text)
        prompt.user, prompt.system, prompt.chat = text if user is None else user, system, chat
        return prompt


def prompt_label(prompt: str) -> str:
    """A prompt's label in tables and figures: its user message, or the prompt itself."""
    return str(getattr(prompt, "user", prompt))


@checked
@dataclass(frozen=True)
class ChatFormat:
    """One model's way of writing a conversation as text.

    Attributes:
        kind: "template" (the tokenizer's own chat template), "llama-2" (`[INST] <<SYS>>`, for Llama-2-chat
            tokenizers without one) or "plain" (base models: no turns).
        tokenizer: used by "template", and for its BOS and EOS by "llama-2".
        template_variables: values that the template reads, by name (`{"enable_thinking": False}`); read-only.
            `strftime_now`, the function that gives templates the current date, is set to a date in ISO format
            ("2026-01-31").

    Raises:
        ValueError: the tokenizer has no template or BOS; or a variable that the template does not read, that
            `render` sets itself, or that is not plain JSON.
    """

    kind: Literal["template", "llama-2", "plain"]
    tokenizer: Any = None
    template_variables: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        if self.kind == "llama-2" and getattr(self.tokenizer, "bos_token", None) is None:
            raise ValueError("kind='llama-2': expected a tokenizer with a BOS. Use model.tokenizer.")
        if self.kind == "template" and not getattr(self.tokenizer, "chat_template", None):
            raise ValueError(
                "kind='template': expected a tokenizer with a chat_template. Set it, or use 'plain'."
            )
        for name, value in self.template_variables.items():
            _require_variable(self, name, value)
        copied = json.loads(json.dumps(dict(self.template_variables)))
        object.__setattr__(self, "template_variables", MappingProxyType(dict(sorted(copied.items()))))

    __repr__ = short_repr

    def __reduce__(self) -> tuple[Any, ...]:
        # A read-only mapping can be neither pickled nor copied deeply.
        return type(self), (self.kind, self.tokenizer, dict(self.template_variables))

    @checked
    def render(self, user: str, *, system: str | None = None, answer_prefix: str = "") -> ChatPrompt:
        """Render one user turn as a prompt, up to the start of the assistant's answer.

        Args:
            user: the user's message.
            system: the system message; `None` leaves it to the template's default.
            answer_prefix: the start of the assistant's answer ("Answer: (A"), put where the template writes
                an answer: an incomplete header is completed, and a thinking block that the template opens is
                closed, unless the prefix closes it.

        Raises:
            ValueError: the template is broken, drops or changes a message, rejects the conversation, or opens
                a thinking block that cannot be closed.
        """
        if self.kind == "template":
            return ChatPrompt(self._render_template(user, system, answer_prefix), user, system, self)
        if self.kind == "llama-2":
            head = "" if system is None else f"<<SYS>>\n{system}\n<</SYS>>\n\n"
            text = f"{self.tokenizer.bos_token}[INST] {head}{user} [/INST]"
        else:
            text = f"{user}\n" if system is None else f"{system}\n\n{user}\n"
        return ChatPrompt(text + space(text, answer_prefix) + answer_prefix, user, system, self)

    def end_of_turn(self) -> str | None:
        """The token that ends the assistant's turn (`<|im_end|>`, `</s>`), if the format has one.

        Raises:
            ValueError: the tokenizer's template is broken.
        """
        if self.kind != "template":
            return self.tokenizer.eos_token if self.kind == "llama-2" else None
        turns = {"user": "question", "assistant": "answer"}
        # Some templates end an assistant's turn only before the next one.
        for each in (turns, turns | {"next": "question"}):
            rendered = render_template(self.tokenizer, self.template_variables, each, prompt=False)
            if "assistant" in rendered.dropped:
                return None
            if tag := first_tag(rendered.after("assistant")):
                return tag
        return None

    def _render_template(self, user: str, system: str | None, answer_prefix: str) -> str:
        turns = {"user": user} if system is None else {"system": system, "user": user}
        prompt = render_template(self.tokenizer, self.template_variables, turns, prompt=True)
        for role in prompt.dropped:
            raise ValueError(f"this model's chat template drops {DROPPED[role]}.")
        if not answer_prefix:
            return prompt.text
        turns["assistant"] = "answer"
        answered = render_template(self.tokenizer, self.template_variables, turns, prompt=False)
        lead = None if answered.dropped else answered.after("user")
        return prompt.text + answer_gap(prompt.after("user"), lead, answer_prefix) + answer_prefix


@checked
def chat_format(model: HookedModel, **template_variables: Any) -> ChatFormat:
    """The chat format of a model: its tokenizer's template, Llama-2's, or plain text for base models.

    Args:
        model: a `HookedTransformer` or a `TransformerBridge`.
        template_variables: values that the template reads, such as `enable_thinking=False` or
            `date_string="26 Jul 2024"`. `strftime_now="2026-01-31"` sets the date in any template that writes
            the current one.

    Raises:
        ValueError: a variable that the template does not read, or there is no template.

    Warns if prompts contain the current date, and so differ from day to day, and if the model may be a
    Llama-2-chat under another name, whose format is not recognised.
    """
    chat = detected_format(model, template_variables)
    if writes_date(chat):
        warn(
            "this model's chat template writes the current date: prompts differ from day to day. Set the "
            f'date with chat_format(model, strftime_now="{date.today().isoformat()}").',
        )
    if chat.kind == "plain" and _may_be_llama_2_chat(model):
        warn(
            f"no chat format was recognised for {model.cfg.model_name!r}, which has Llama-2's tokenizer and "
            'no chat template: prompts are plain text. For Llama-2-chat, use ChatFormat("llama-2", '
            'model.tokenizer); for a base model, ChatFormat("plain", model.tokenizer).',
        )
    return chat


def detected_format(model: Any, template_variables: Mapping[str, Any] = MappingProxyType({})) -> ChatFormat:
    """`chat_format` without warnings, for use where no prompt is written or the date is set."""
    kind = "plain"
    if getattr(model.tokenizer, "chat_template", None):
        kind = "template"
    elif model.tokenizer is not None and re.search(r"llama-2-.*chat", model.cfg.model_name.lower()):
        kind = "llama-2"
    return ChatFormat(kind, model.tokenizer, template_variables)


def begins_with_bos(chat: ChatFormat) -> bool:
    """Whether prompts begin with the BOS; False if the template cannot be rendered."""
    bos = getattr(chat.tokenizer, "bos_token", None)
    try:
        return bool(bos) and chat.render("question").startswith(bos)
    except ValueError:
        return False


def writes_date(chat: ChatFormat) -> bool:
    """Whether prompts contain the current date."""
    return chat.kind == "template" and depends_on_date(chat.tokenizer, chat.template_variables)


def _may_be_llama_2_chat(model: Any) -> bool:
    """Whether a Llama with Llama-2's vocabulary is not named as a base model (llama-7b, llama-2-7b-hf)."""
    tokenizer = model.tokenizer
    return (
        tokenizer is not None
        and architecture_of(model.cfg) == "LlamaForCausalLM"
        and getattr(tokenizer, "vocab_size", None) == LLAMA_2_TOKENS
        and (tokenizer.bos_token, tokenizer.eos_token) == ("<s>", "</s>")
        and not re.fullmatch(r"llama-(2-)?\d+b(-hf)?", model.cfg.model_name.lower())
    )


def _require_variable(chat: ChatFormat, name: str, value: Any) -> None:
    """Raise `ValueError` if a template variable is not read, is set by `render`, or is not plain JSON."""
    if chat.kind != "template":
        problem = f"expected a chat template that reads it; this format is {chat.kind!r}."
    elif name in NOT_VARIABLES:
        problem = f"expected a variable of the template; {name} is set by render. Leave it out."
    elif not re.search(rf"\b{re.escape(name)}\b", str(chat.tokenizer.chat_template)):
        problem = "expected a variable that this model's chat template reads: see tokenizer.chat_template."
    else:
        check, expected = json.dumps, "plain values (text, numbers, lists, dicts)"
        if name == DATE:
            check, expected = datetime.fromisoformat, 'a date in ISO format, as "2026-01-31"'
        try:
            check(value)
            return
        except (TypeError, ValueError):
            problem = f"expected {expected}."
    raise ValueError(f"template variable {name}={value!r:.60}: {problem}")
