"""Render chat templates: message content, thinking blocks, dates, and one error if a template is broken."""

import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from jinja2 import TemplateError

DATE = "strftime_now"  # the function through which transformers gives templates the current date
# Around each message, to find it in the rendered text. `repr` escapes them: a list of parts that a template
# prints as Python text does not count as rendered.
MARKS = {"system": "\ue000", "user": "\ue001", "assistant": "\ue002", "next": "\ue003"}
THINKING = re.compile(
    r"([<\[◁])(\|?)(/?)((?:(?:begin|start|end)_(?:of_)?|\w+:)?(?:think|thinking|thoughts?|reasoning))(\|?)([>\]▷])",
    re.IGNORECASE,
)
DIRECTIVES = [f"%{flag}{letter}" for letter in "aAbBcdDeFfGhHIjmMpRSTuUVwWxXyYzZ" for flag in ("-", "")]


@dataclass(frozen=True)
class Rendered:
    """A conversation as text, without and with marks around each message, and the roles that are missing."""

    text: str
    marked: str
    dropped: tuple[str, ...]

    def after(self, role: str) -> str:
        """The text after a role's message, up to the next message."""
        return re.match(rf"[^{''.join(MARKS.values())}]*", self.marked.rpartition(MARKS[role])[2]).group()


def render_template(
    tokenizer: Any, variables: Mapping[str, Any], turns: Mapping[str, str], *, prompt: bool
) -> Rendered:
    """Render one message per role; content is text or, where that loses a message, a list with one text part.

    Raises ValueError if the template is broken, or rejects the conversation.

    Args:
        turns: message by role; "next" is a second message of the user, after the assistant's.
        prompt: end with the template's generation prompt.
    """
    outcomes: list[Rendered | ValueError] = []
    for as_parts in (False, True):
        try:
            outcomes.append(_rendered(tokenizer, variables, turns, prompt, as_parts))
        except ValueError as error:
            outcomes.append(error)
            continue
        if not outcomes[-1].dropped:
            return outcomes[-1]
    if isinstance(outcomes[0], ValueError):
        raise outcomes[0]
    return outcomes[0]


def answer_gap(tail: str, lead: str | None, answer_prefix: str) -> str:
    """The text between a generation prompt and an answer: completes headers, closes thinking blocks.

    Raises ValueError if that is unknown: the prompt leaves a thinking block or text of its own open.

    Args:
        tail: the rendered prompt after the user's message.
        lead: the text that the template writes between the user's message and an answer; `None` if it drops
            answers.
    """
    known = lead is not None and lead.startswith(tail)
    gap = lead[len(tail) :] if known else ""
    if gap.strip() and (first_tag(gap) or gap.strip()) in answer_prefix:
        gap = ""  # the answer's prefix brings its own header, or its own thinking block
    if closing := _closing(tail + gap, answer_prefix):
        return gap + closing
    if not known:
        if lead is not None:
            same = [a == b for a, b in zip(tail, lead, strict=False)]
            _require_no_text(tail[[*same, False].index(False) :])
        return space(tail, answer_prefix)
    return "" if gap.isspace() and answer_prefix[0].isspace() else gap


def space(text: str, answer_prefix: str) -> str:
    """A space to put between the texts, unless one of them has white space there."""
    return "" if not answer_prefix or text[-1:].isspace() or answer_prefix[0].isspace() else " "


def first_tag(text: str) -> str | None:
    """The tag that text begins with (`<|im_end|>`), if any."""
    tag = re.match(r"\s*(<[^>]*>)", text)
    return tag.group(1) if tag else None


def depends_on_date(tokenizer: Any, variables: Mapping[str, Any]) -> bool:
    """Whether prompts rendered on two dates differ, with a system message or without."""
    if DATE in variables or DATE not in str(tokenizer.chat_template):
        return False
    for turns in ({"user": "question"}, {"system": "instruction", "user": "question"}):
        with suppress(ValueError):  # the template rejects system messages, or is broken
            rendered = {
                render_template(tokenizer, {**variables, DATE: date}, turns, prompt=True).text
                for date in ("2001-02-13T01:02:03", "2032-11-28T14:15:16")
            }
            if len(rendered) > 1:
                return True
    return False


def _rendered(
    tokenizer: Any, variables: Mapping[str, Any], turns: Mapping[str, str], prompt: bool, as_parts: bool
) -> Rendered:
    def apply(marked: bool) -> str:
        messages = []
        for role, message in turns.items():
            content = f"{MARKS[role]}{message}{MARKS[role]}" if marked else message
            parts = [{"type": "text", "text": content}] if as_parts else content
            messages.append({"role": "user" if role == "next" else role, "content": parts})
        return _apply_template(tokenizer, variables, messages, prompt)

    text, marked = apply(marked=False), apply(marked=True)
    return Rendered(text, marked, tuple(role for role in turns if marked.count(MARKS[role]) < 2))


def _apply_template(tokenizer: Any, variables: Mapping[str, Any], messages: list[dict], prompt: bool) -> str:
    options = dict(variables)
    try:
        if DATE in options:
            template = tokenizer.get_chat_template(tools=options.get("tools"))
            options["chat_template"] = _date_macro(options.pop(DATE), template) + template
        text = tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=prompt, **options
        )
        if not isinstance(text, str):
            raise TypeError(f"it returns a {type(text).__name__}")
        return text
    except ImportError:  # jinja2 is missing or too old: not the template's fault
        raise
    except Exception as error:  # the template's Python and Jinja code may raise anything
        if type(error) is TemplateError:  # the template's own raise_exception
            raise ValueError(f"this model's chat template rejects the conversation: {error}.") from error
        raise ValueError(
            f"this model's chat template is broken ({type(error).__name__}: {str(error).rstrip('.')}): "
            "expected a Jinja template that renders a conversation. Give variables that it needs, as in "
            "chat_format(model, tools=[]), or set model.tokenizer.chat_template to a working template, or to "
            "None for plain text."
        ) from error


def _date_macro(date: str, template: str) -> str:
    """A first line for the template that defines `strftime_now` with a fixed date.

    A macro, since transformers passes no functions to templates. The line break after its last block is
    dropped, so the template's own first line is read as before.
    """
    moment = datetime.fromisoformat(date)
    used = [directive for directive in DIRECTIVES if directive in template]  # the platform may lack others
    replaced = "".join(f".replace({directive!r}, {moment.strftime(directive)!r})" for directive in used)
    return f"{{% macro {DATE}(format) %}}{{{{ format{replaced} }}}}{{% endmacro %}}\n"


def _require_no_text(end: str) -> None:
    """Raise `ValueError` if a prompt ends in text, outside tags, that introduces reasoning."""
    if re.search(r"\w[^<>\[\]]*$", end):
        raise ValueError(
            f"this model's chat template ends prompts in {end.strip()!r:.80}, which it does not write before "
            "an answer: expected a prompt that answer_prefix can follow. Leave answer_prefix out, or set a "
            "template without this text."
        )


def _closing(text: str, answer_prefix: str) -> str:
    """The text that closes a thinking block open at the end of a prompt; "" if none is open."""
    tags = list(THINKING.finditer(text))
    if not tags:
        return ""
    bracket, bar, slash, name, _, end = tags[-1].groups()
    if slash or name.lower().startswith("end"):
        return ""
    closing = f"{bracket}/{name}{end}"
    if bar or re.match("begin|start", name, re.IGNORECASE):
        raise ValueError(
            f"this model's chat template opens a thinking block ({tags[-1].group()}): expected a prompt that "
            "answer_prefix can follow. Turn thinking off with the template's variable, as in "
            "chat_format(model, enable_thinking=False)."
        )
    if closing in answer_prefix:
        return ""
    breaks = len(text) - len(text.rstrip("\n"))
    return "\n" * max(0, 2 - breaks) + closing + "\n\n"
