"""Chat formats against their official forms, written out by hand."""

from types import SimpleNamespace

import pytest

from tl_steer.models import ChatFormat, chat_format, tokenize

SYSTEM_DROPPED = (
    "{% for m in messages %}{% if m.role == 'user' %}<|u|>{{ m.content }}<|a|>{% endif %}{% endfor %}"
)
SYSTEM_REFUSED = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}ok"
)


def model_with(tokenizer, name="toy"):
    cfg = SimpleNamespace(model_name=name, n_ctx=64, d_vocab=99)
    return SimpleNamespace(tokenizer=tokenizer, cfg=cfg, run_with_hooks=None)


@pytest.fixture
def tokenizer(make_tokenizer):
    return make_tokenizer()


@pytest.fixture
def llama(tokenizer):
    return ChatFormat("llama-2", tokenizer)


def test_llama_2_is_the_official_form(llama):
    """Meta's llama repository, `chat_completion`: [INST], and <<SYS>> inside the first turn."""
    assert llama.render("Is the sky blue?") == "<s>[INST] Is the sky blue? [/INST]"
    assert llama.render("Is the sky blue?", system="Be brief.") == (
        "<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nIs the sky blue? [/INST]"
    )


def test_llama_2_has_one_bos_once_tokenized(llama):
    ids = tokenize(model_with(llama.tokenizer), llama.render("the cat", system="the dog"))
    assert ids[0] == llama.tokenizer.bos_token_id
    assert ids.count(llama.tokenizer.bos_token_id) == 1


def test_text_with_braces_is_kept(llama):
    assert llama.render("{user}", system="{0}") == "<s>[INST] <<SYS>>\n{0}\n<</SYS>>\n\n{user} [/INST]"


def test_plain_text_has_no_turns(tokenizer):
    plain = ChatFormat("plain", tokenizer)
    assert plain.render("Is it?") == "Is it?\n"
    assert plain.render("Is it?", system="Think.") == "Think.\n\nIs it?\n"
    assert plain.render("Is it?", answer_prefix="Answer: (") == "Is it?\nAnswer: ("
    assert plain.end_of_turn() is None
    assert ChatFormat("plain").render("Is it?") == "Is it?\n"


def test_the_answer_prefix_stands_apart_by_exactly_one_space(llama):
    turn = llama.render("Is it?")
    assert llama.render("Is it?", answer_prefix="Yes") == turn + " Yes"
    assert llama.render("Is it?", answer_prefix=" Yes") == turn + " Yes"
    assert llama.render("Is it?", answer_prefix="\nYes") == turn + "\nYes"
    assert llama.render("Is it?", answer_prefix="") == turn


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("llama-2-13b-chat", "llama-2"),
        ("Llama-2-7b-chat-hf", "llama-2"),
        ("llama-2-13b", "plain"),
        ("gpt2-xl", "plain"),
    ],
)
def test_the_format_follows_the_models_name_where_the_tokenizer_has_no_template(tokenizer, name, kind):
    assert chat_format(model_with(tokenizer, name)).kind == kind


def test_the_tokenizers_template_goes_before_the_name(tokenizer):
    tokenizer.chat_template = SYSTEM_DROPPED
    assert chat_format(model_with(tokenizer, "llama-2-13b-chat")).kind == "template"


def test_a_model_without_a_tokenizer_is_spoken_to_in_plain_text():
    assert chat_format(model_with(None, "llama-2-13b-chat")).kind == "plain"


def test_llama_2_ends_its_turn_with_eos(llama):
    assert llama.end_of_turn() == "</s>"


def test_a_template_that_drops_the_system_message_is_refused(tokenizer):
    tokenizer.chat_template = SYSTEM_DROPPED
    chat = ChatFormat("template", tokenizer)
    assert chat.render("Is it?") == "<|u|>Is it?<|a|>"
    with pytest.raises(ValueError, match="drops the system message: put it in the user's turn"):
        chat.render("Is it?", system="Be brief.")


def test_a_template_that_refuses_a_system_message_says_so(tokenizer):
    """Gemma's does."""
    tokenizer.chat_template = SYSTEM_REFUSED
    with pytest.raises(ValueError, match="refuses the conversation: System role not supported"):
        ChatFormat("template", tokenizer).render("Is it?", system="Be brief.")


@pytest.mark.model
def test_the_embedded_models_template_is_the_tokenizers_own(embedded, embedded_hf):
    chat, tokenizer = chat_format(embedded), embedded_hf[1]
    assert chat.kind == "template"
    for system in (None, "Be brief."):
        turns = [] if system is None else [{"role": "system", "content": system}]
        turns.append({"role": "user", "content": "Is the sky blue?"})
        theirs = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        assert chat.render("Is the sky blue?", system=system) == theirs
        assert (
            chat.render("Is the sky blue?", system=system, answer_prefix="Answer: (A")
            == theirs + "Answer: (A"
        )


@pytest.mark.model
def test_the_embedded_models_turn_ends_as_chatml_does(embedded):
    """Written out by hand: the text after the assistant's turn opens on a line of its own."""
    text = chat_format(embedded).render("Hi.", system="Be brief.")
    assert text == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi.<|im_end|>\n<|im_start|>assistant\n"
    )
    assert chat_format(embedded).end_of_turn() == "<|im_end|>"
