"""Chat formats against their official forms, written out by hand."""

import copy
import dataclasses
import pickle
from contextlib import nullcontext
from datetime import date
from types import SimpleNamespace

import pytest

from tl_steer._generation import generate, stop_tokens
from tl_steer.models import ChatFormat, chat_format, tokenize, writes_date
from tl_steer.sweeps.plans import digest

from .conftest import assert_raises
from .tiny_model import make_model, word_tokenizer

SYSTEM_DROPPED = (
    "{% for m in messages %}{% if m.role == 'user' %}<|u|>{{ m.content }}<|a|>{% endif %}{% endfor %}"
)
SYSTEM_REJECTED = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{{ messages[0].content }}ok"
)
# Imitations of the logic of real templates, of the parts that matter here.
PARTS = (  # LLaVA: content is a list of parts, of which the text ones are read
    "{% for m in messages %}{{ m.role.upper() }}: "
    "{% for part in m.content | selectattr('type', 'equalto', 'text') %}"
    "{{ part['text'] }} {% endfor %}{% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
ASSISTANT_OF_QWEN = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' %}<think>\n\n</think>\n\n{% endif %}{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
)
QWEN = (  # Qwen3: an empty thinking block where thinking is off, else the model writes one
    ASSISTANT_OF_QWEN + "{% if enable_thinking is defined and enable_thinking is false %}"
    "<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
CLOSED_QWEN = "<|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\nAnswer: ("
QWEN_THINKING = ASSISTANT_OF_QWEN + "<think>\n{% endif %}"  # Qwen3-Thinking: the prompt opens the block
DEEPSEEK = (  # R1: the prompt opens a block that earlier turns do not show
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}<U>{{ m.content }}{% else %}"
    "<A>{{ m.content.split('</think>')[-1] }}</s>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<A><think>\n{% endif %}"
)
HARMONY = (  # gpt-oss: the generation prompt ends inside the header
    "{% for m in messages %}<|start|>{{ m.role }}{% if m.role == 'assistant' %}<|channel|>final{% endif %}"
    "<|message|>{{ m.content }}{{ '<|return|>' if m.role == 'assistant' else '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant{% endif %}"
)
CLOSED_HARMONY = "<|start|>user<|message|>Q<|end|><|start|>assistant<|channel|>final<|message|>Answer: ("
COMMAND = (  # Command A: thinking and the answer have headers of their own
    "{% for m in messages %}<|{{ m.role }}|>{% if m.role == 'assistant' %}<|START_RESPONSE|>{% endif %}"
    "{{ m.content }}{% endfor %}{% if add_generation_prompt %}<|assistant|><|START_THINKING|>"
    "{% if reasoning is defined and not reasoning %}<|END_THINKING|>{% endif %}{% endif %}"
)
LLAMA_3 = (  # Llama 3.2: the current date, unless one is given
    "{% if not date_string is defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}"
    "Today: {{ date_string }}\n"
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content | trim }}<|eot|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
APERTUS = (  # a turn of the assistant ends only before the next message
    "{% for m in messages %}{% if m.role == 'user' and not loop.first %}<|assistant_end|>{% endif %}"
    "<|{{ m.role }}_start|>{{ m.content }}{% if m.role == 'user' %}<|user_end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant_start|>{% endif %}"
)
APRIEL = (  # the generation prompt begins the reasoning in words
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\nHere are my reasoning steps:\n{% endif %}"
)
GEMMA_4 = APRIEL.replace("Here are my reasoning steps:\n", "<|channel>thought\n<channel|>")
DATED_MACRO = (  # the date in a macro, with a system message alone, and white space that Jinja trims
    "\n  {% macro head(text) %}{{ text }} on {{ strftime_now('%-d.%m.%y, %A') }}{% endmacro %}\n"
    "  {% for m in messages %}"
    "{% if m.role == 'system' %}{{ head(m.content) }}{% else %}{{ m.content }}{% endif %}\n"
    "{% endfor %}"
)
BROKEN = {
    "syntax": ("{% if messages %}", "TemplateSyntaxError"),
    "undefined": ("{{ persona.name }}", "UndefinedError"),
    "type": ("{{ messages[0].content + 1 }}", "TypeError"),
    "index": ("{{ 1 // 0 }}", "ZeroDivisionError"),
    "no text": (3, "TypeError|AttributeError"),
    "tools": ("{% for tool in tools %}{% endfor %}{{ messages[0].content }}", "TypeError"),
    "named": ({"tool_use": "{{ messages[0].content }}"}, "ValueError"),
}


def template_format(tokenizer, template, **variables):
    tokenizer.chat_template = template
    return chat_format(model_with(tokenizer), **variables)


def model_with(tokenizer, name="toy"):
    cfg = SimpleNamespace(model_name=name, n_ctx=64, d_vocab=99)
    return SimpleNamespace(tokenizer=tokenizer, cfg=cfg, run_with_hooks=None)


@pytest.fixture
def tokenizer(make_tokenizer):
    return make_tokenizer()


def test_llama_2_is_the_official_form(tokenizer):
    """Meta's llama repository, `chat_completion`: [INST], and <<SYS>> inside the first turn."""
    llama = ChatFormat("llama-2", tokenizer)
    assert llama.render("Is it?") == "<s>[INST] Is it? [/INST]"
    assert llama.render("{user}", system="{0}") == "<s>[INST] <<SYS>>\n{0}\n<</SYS>>\n\n{user} [/INST]"
    for prefix, end in {"Yes": " Yes", " Yes": " Yes", "\nYes": "\nYes"}.items():
        assert llama.render("Is it?", answer_prefix=prefix) == "<s>[INST] Is it? [/INST]" + end
    assert llama.end_of_turn() == "</s>"
    ids = tokenize(model_with(tokenizer), llama.render("the cat", system="the dog"))
    assert [index for index, token in enumerate(ids) if token == tokenizer.bos_token_id] == [0]


def test_plain_text_has_no_turns():
    plain = ChatFormat("plain")
    assert plain.render("Is it?") == "Is it?\n"
    assert plain.render("Is it?", system="Think.") == "Think.\n\nIs it?\n"
    assert plain.render("Is it?", answer_prefix="Answer: (") == "Is it?\nAnswer: ("
    assert plain.end_of_turn() is None


def test_a_template_precedes_the_models_name(tokenizer):
    tokenizer.chat_template = SYSTEM_DROPPED
    assert chat_format(model_with(tokenizer, "llama-2-13b-chat")).kind == "template"
    assert chat_format(model_with(None, "llama-2-13b-chat")).kind == "plain"


@pytest.mark.parametrize(("template", "system", "unset", "message"), [
    (SYSTEM_DROPPED, "Be brief.", "<|u|>Q<|a|>", "drops the system message: put it in the user's turn"),
    (SYSTEM_DROPPED, "u", "<|u|>Q<|a|>", "drops the system message"),  # the template has that text
    (SYSTEM_REJECTED, "Be brief.", "Qok", "rejects the conversation: System role not"),  # as Gemma's
])  # fmt: skip
def test_a_template_that_drops_or_rejects_a_system_message_says_so(
    tokenizer, template, system, unset, message
):
    chat = template_format(tokenizer, template)
    assert chat.render("Q") == unset
    assert_raises(message, chat.render, "Q", system=system)


def test_a_template_of_parts_gets_parts(tokenizer):
    chat = template_format(tokenizer, PARTS)
    assert chat.render("Is it?", answer_prefix="Yes") == "USER: Is it? ASSISTANT: Yes"
    assert chat.render("USER", system="user") == "SYSTEM: user USER: USER ASSISTANT:"
    assert template_format(tokenizer, PARTS + "{{ messages[0].content[0]['text'] + '.' }}").render("Is it?")
    assert chat.end_of_turn() is None


PARTS_ALONE = "{% if messages[0].content is string %}{{ raise_exception('parts') }}{% endif %}"
NO_MESSAGE = r"drops the user's message: set model\.tokenizer.chat_template"


@pytest.mark.parametrize(("template", "message"), [
    ("<|user|><|assistant|>", NO_MESSAGE),
    ("{{ messages[0].content[:1] }} user", NO_MESSAGE),
    ("{{ messages[0].role }}", NO_MESSAGE),
    # A list of parts printed as Python text is not a message.
    (PARTS_ALONE + "{{ messages[0].content }}", "rejects the conversation: parts"),
])  # fmt: skip
def test_a_template_that_drops_the_users_message_is_refused(tokenizer, template, message):
    chat = template_format(tokenizer, template)
    for text in ("Is it?", "user"):  # the template may have the same text by chance
        assert_raises(message, chat.render, text)


def test_switches_that_a_template_removes_from_a_message_do_not_drop_it(tokenizer):
    """SmolLM3 and Nemotron read /no_think and take it out."""
    chat = template_format(tokenizer, "{{ messages[0].content.replace('/no_think', '') }}|")
    assert chat.render("Is it? /no_think") == "Is it? |"
    assert template_format(tokenizer, BROKEN["tools"][0], tools=[]).render("Q") == "Q"


@pytest.mark.parametrize(("template", "variables", "expected"), [
    (QWEN, {}, CLOSED_QWEN),
    (QWEN, {"enable_thinking": False}, CLOSED_QWEN),
    (QWEN_THINKING, {}, CLOSED_QWEN),
    (DEEPSEEK, {}, "<s><U>Q<A><think>\n\n</think>\n\nAnswer: ("),
    (HARMONY, {}, CLOSED_HARMONY),
    ("<u>{{ messages[0].content }}<a><think>", {}, "<u>Q<a><think>\n\n</think>\n\nAnswer: ("),
    ("<u>{{ messages[0].content }}[THINK]", {}, "<u>Q[THINK]\n\n[/THINK]\n\nAnswer: ("),
    ("<u>{{ messages[0].content }}<a>", {}, "<u>Q<a> Answer: ("),
    (COMMAND, {"reasoning": False}, "<|user|>Q<|assistant|><|START_THINKING|><|END_THINKING|> Answer: ("),
    (GEMMA_4, {}, "<|user|>\nQ\n<|assistant|>\n<|channel>thought\n<channel|> Answer: ("),
])  # fmt: skip
def test_the_answer_stands_in_no_thinking_block_and_no_header(tokenizer, template, variables, expected):
    chat = template_format(tokenizer, template, **variables)
    assert chat.render("Q", answer_prefix="Answer: (") == expected
    turns, options = [{"role": "user", "content": "Q"}], {"tokenize": False, "add_generation_prompt": True}
    # Without an answer, the model may think.
    assert chat.render("Q") == tokenizer.apply_chat_template(turns, **options, **variables)


@pytest.mark.parametrize(("template", "message", "prefix"), [
    (QWEN, "Q", "<think>\nHm"),
    (QWEN_THINKING, "Q", "Hm.\n</think>\n\nYes"),
    (DEEPSEEK, "Q", "Hm.\n</think>\n\nYes"),
    (HARMONY, "Q", "<|channel|>analysis<|message|>Hm"),
    # A tag in the user's message opens no block.
    (DEEPSEEK.replace("<think>\n", ""), "What is <think>?", "A tag"),
    (DEEPSEEK.replace("<think>\n", ""), "think", "A tag"),
])  # fmt: skip
def test_nothing_is_added_before_a_prefix_with_its_own_header_or_block(tokenizer, template, message, prefix):
    chat = template_format(tokenizer, template)
    added = chat.render(message, answer_prefix=prefix).removeprefix(chat.render(message))
    assert added.lstrip(" ") == prefix


@pytest.mark.parametrize(("template", "message"), [
    (COMMAND, r"opens a thinking block \(<\|START_THINKING\|>\).*enable_thinking=False"),
    (APRIEL, "'Here are my reasoning steps:', which it does not write before an"),
])  # fmt: skip
def test_a_thinking_block_that_cannot_be_closed_is_refused_with_the_remedy(tokenizer, template, message):
    assert_raises(message, template_format(tokenizer, template).render, "Q", answer_prefix="Yes")


def test_the_template_defines_the_text_before_an_answer(tokenizer):
    turns = "{% for m in messages %}[{{ m.role }}]{{ GAP }}{{ m.content }}{% endfor %}"
    template = turns + "{% if add_generation_prompt %}[assistant]{% endif %}"
    for gap in ("", " ", "\n"):
        chat = template_format(tokenizer, template.replace("GAP", repr(gap)))
        assert chat.render("Q", answer_prefix="Yes") == f"[user]{gap}Q[assistant]{gap}Yes"
        assert chat.render("Q", answer_prefix=" Yes") == f"[user]{gap}Q[assistant] Yes"


def test_end_of_turn_of_imitated_templates(tokenizer):
    ends = {QWEN: "<|im_end|>", DEEPSEEK: "</s>", HARMONY: "<|return|>", SYSTEM_DROPPED: None}
    ends |= {APERTUS: "<|assistant_end|>", APRIEL: "<|user|>"}
    for template, end in ends.items():
        assert template_format(tokenizer, template).end_of_turn() == end
    model = make_model(tokenizer := word_tokenizer())  # without a token <|return|>; does not stop at <unk>
    tokenizer.chat_template = HARMONY
    assert stop_tokens(model) == [tokenizer.eos_token_id]


@pytest.mark.parametrize(("template", "error"), BROKEN.values(), ids=list(BROKEN))
def test_a_broken_template_gives_one_clear_error_wherever_it_is_used(template, error):
    model = make_model(tokenizer := word_tokenizer())
    tokenizer.chat_template = template
    message = rf"chat template is broken \(({error}): .*set model.tokenizer.chat_template to a working"
    assert_raises(message, lambda: chat_format(model).render("a"))
    assert_raises(message, lambda: chat_format(model).end_of_turn())
    assert_raises(message, generate, model, "a b", max_new_tokens=2)
    assert_raises(message, stop_tokens, model)


def test_template_variables_are_copied_and_read_only(tokenizer):
    chat = template_format(tokenizer, QWEN, enable_thinking=False)
    assert chat.template_variables == {"enable_thinking": False}
    with pytest.raises(TypeError):
        chat.template_variables["enable_thinking"] = True
    variables = {"enable_thinking": False}
    other = ChatFormat("template", tokenizer, variables)
    variables["enable_thinking"] = True
    assert other == chat
    assert hash(other) == hash(chat)
    assert pickle.loads(pickle.dumps(chat)).template_variables == chat.template_variables
    assert copy.deepcopy(chat).template_variables == chat.template_variables
    assert digest(other) == digest(chat) != digest(dataclasses.replace(chat, template_variables={}))
    assert digest(chat) != digest(dataclasses.replace(chat, template_variables={"enable_thinking": True}))


@pytest.mark.parametrize(("kind", "settings", "variables", "message"), [
    ("template", {}, {}, "expected a tokenizer with a chat_template"),
    ("llama-2", {"bos_token": None}, {}, "expected a tokenizer with a BOS"),
    ("llama-2", {}, {"enable_thinking": False}, "that reads it; this format is 'llama-2'"),
    ("template", {"chat_template": QWEN}, {"enable_thinkin": False}, "expected a variable that .* reads"),
    ("template", {"chat_template": QWEN}, {"tokenize": True}, "tokenize is set by render"),
    ("template", {"chat_template": QWEN}, {"enable_thinking": object()}, "expected plain values"),
    ("template", {"chat_template": LLAMA_3}, {"strftime_now": "31 Jan 2026"}, "a date in ISO format"),
])  # fmt: skip
def test_an_incomplete_format_or_unused_variable_is_rejected(kind, settings, variables, message):
    assert_raises(message, ChatFormat, kind, SimpleNamespace(**{"bos_token": "<s>"} | settings), variables)


def test_a_template_with_the_current_date_warns_and_takes_one(tokenizer):
    today = date.today().strftime("%d %b %Y")
    message = r'writes the current date.*chat_format\(model, strftime_now="\d{4}-\d\d-\d\d"\)'
    with pytest.warns(UserWarning, match=message):
        chat = template_format(tokenizer, LLAMA_3)
    assert writes_date(chat)
    assert chat.render("Q").startswith(f"Today: {today}\n")
    expected = "Today: 31 Jan 2026\n<|user|>Q<|eot|><|assistant|>\n"
    for variables in ({"strftime_now": "2026-01-31"}, {"date_string": "31 Jan 2026"}):
        chat = template_format(tokenizer, LLAMA_3, **variables)  # without a warning, which would be an error
        assert not writes_date(chat)
        assert chat.render("Q") == expected


def test_a_fixed_date_changes_nothing_else(tokenizer):
    with pytest.warns(UserWarning, match="current date"):
        unset = template_format(tokenizer, DATED_MACRO)
    now = date.today()
    chat = template_format(tokenizer, DATED_MACRO, strftime_now=now.isoformat())
    assert chat.render("Q", system="S") == unset.render("Q", system="S")
    assert f"S on {now.day}.{now:%m.%y, %A}" in chat.render("Q", system="S")
    assert chat.render("Q") == unset.render("Q")
    chat = template_format(tokenizer, DATED_MACRO, strftime_now="2026-01-02")
    assert "S on 2.01.26, Friday" in chat.render("Q", system="S")


LLAMA = {"bos_token": "<s>", "eos_token": "</s>", "vocab_size": 32000, "chat_template": None}
WARNING = r'no chat format was recognised.*ChatFormat\("llama-2", model.tokenizer\)'


@pytest.mark.parametrize(("name", "changes", "kind", "message"), [
    ("my-checkpoint", {}, "plain", WARNING),
    ("llama2-chat-tuned", {}, "plain", WARNING),
    ("llama-7b-hf", {}, "plain", None),
    ("Llama-2-13b", {}, "plain", None),
    ("gpt2-xl", {"vocab_size": 50257}, "plain", None),
    ("llama-2-7b-hf", {}, "plain", None),
    ("Llama-2-7b-chat-hf", {}, "llama-2", None),
    ("llama-2-13b-chat", {}, "llama-2", None),
    ("my-checkpoint", {"vocab_size": 50257}, "plain", None),
])  # fmt: skip
def test_without_a_template_the_name_decides_and_an_unknown_llama_2_warns(name, changes, kind, message):
    model = model_with(SimpleNamespace(**LLAMA | changes), name)
    model.cfg.original_architecture = "LlamaForCausalLM"
    with pytest.warns(UserWarning, match=message) if message else nullcontext():
        assert chat_format(model).kind == kind


@pytest.mark.model
def test_the_embedded_models_template_is_the_tokenizers_own(embedded, embedded_hf):
    chat, tokenizer = chat_format(embedded), embedded_hf[1]
    assert (chat.kind, chat.end_of_turn()) == ("template", "<|im_end|>")
    for system in (None, "Be brief."):
        turns = [] if system is None else [{"role": "system", "content": system}]
        turns.append({"role": "user", "content": "Is it?"})
        expected = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        for prefix in ("", "Answer: (A"):
            assert chat.render("Is it?", system=system, answer_prefix=prefix) == expected + prefix
