"""Checks of the model's state (hooks, modes, weights, settings) and of its tokenizer."""

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from jinja2 import TemplateError
from torch import nn

from ..errors import DoesNotApplyError
from ..models import detected_format, is_hooked, tokenize
from ..models.bridge_blocks import is_library_hook
from ..models.weights import weight_digests
from .context import QUESTION, SENTENCES, Context, Measurements, check

_HOOKS = {
    "_forward_pre_hooks": " (before it)", "_forward_hooks": "",
    "_backward_pre_hooks": " (before its gradient)", "_backward_hooks": " (its gradient)",
}  # fmt: skip
_TOKENIZER = ("padding_side", "truncation_side", "pad_token", "bos_token", "eos_token", "chat_template")


@check("no hooks were left behind", "hooks")
def no_hooks(context: Context) -> Measurements:
    """No hook is registered before the checks begin. A forgotten hook changes every number, the unsteered
    ones too: model.reset_hooks(), or a fresh model."""
    registered = context.before["hooks"]
    yield sum(map(len, registered.values())), listed(list(registered))[1]


@check("evaluation mode", "modules")
def evaluation_mode(context: Context) -> Measurements:
    """No module is in training mode. Otherwise dropout may be on, and no two runs are alike."""
    training = [name or "the model" for name, each in context.model.named_modules() if each.training]
    count, names = listed(training)
    yield count, f"call model.eval(): {names}"


@check("gradients are off", "weights")
def gradients_off(context: Context) -> Measurements:
    """No weight requires gradients. Otherwise numbers stay right, but passes inside a bare `with steer(…)`
    keep every activation in memory."""
    names = [name for name, weight in context.model.named_parameters() if weight.requires_grad]
    count, names = listed(names)
    yield count, f"call model.requires_grad_(False): {names}"


@check("weights are unchanged", "weights")
def weights_unchanged(context: Context) -> Measurements:
    """After all checks every weight is as before. Otherwise something writes into the model, and results
    depend on what ran earlier."""
    yield differences(context.before["weights"], weight_digests(context.model))


@check("settings are unchanged", "settings")
def settings_unchanged(context: Context) -> Measurements:
    """After all checks the model's modes, its config and its tokenizer are as before."""
    yield differences(context.before["settings"], settings(context.model))


@check("one BOS before text", "tokens")
def plain_tokens(context: Context) -> Measurements:
    """Text becomes the ids that its tokenizer returns, with at most one BOS. A second BOS moves logit
    differences by several nats, and capture reads other activations."""
    for text in SENTENCES:
        expected = context.tokenizer(text)["input_ids"]
        if len(expected) <= context.model.cfg.n_ctx:
            yield _wrong_tokens(context, tokenize(context.model, text), expected), repr(text)


@check("one BOS before chat", "tokens")
def chat_tokens(context: Context) -> Measurements:
    """A rendered chat prompt becomes the ids that the chat template gives, with at most one BOS. Otherwise
    the model reads prompts that it was not trained on."""
    tokenizer = context.tokenizer
    if not getattr(tokenizer, "chat_template", None):
        raise DoesNotApplyError("the tokenizer has no chat template.")
    prompt = detected_format(context.model).render(QUESTION)  # raises if the template is broken
    options = {"add_generation_prompt": True}
    for content in (QUESTION, [{"type": "text", "text": QUESTION}]):
        turns = [{"role": "user", "content": content}]
        with suppress(TemplateError, TypeError):  # a template of the other content type
            if QUESTION in tokenizer.apply_chat_template(turns, tokenize=False, **options):
                break
    rendered = tokenizer.apply_chat_template(turns, tokenize=True, return_dict=True, **options)["input_ids"]
    if len(rendered) > context.model.cfg.n_ctx:
        raise DoesNotApplyError("a chat prompt does not fit the context.")
    ids = tokenize(context.model, prompt)
    yield _wrong_tokens(context, ids, rendered), repr(tokenizer.decode(ids[:8]))


@check("every token has an embedding", "tokens")
def vocabulary(context: Context) -> Measurements:
    """The tokenizer has no token that the model lacks. Otherwise it is another model's tokenizer."""
    tokenizer = context.tokenizer
    # A placeholder of another modality (Gemma 3's <image_soft_token>) is never embedded.
    special = {id_ for id_, added in getattr(tokenizer, "added_tokens_decoder", {}).items() if added.special}
    size, ids = context.model.cfg.d_vocab, tokenizer.get_vocab()
    missing = sorted(repr(text) for text in ids if ids[text] >= size and ids[text] not in special)
    yield listed(missing)


def _wrong_tokens(context: Context, ids: list[int], expected: list[int]) -> int:
    """Number of positions in which two token lists differ, plus BOS tokens after the first one."""
    bos = context.tokenizer.bos_token_id
    leading = next((index for index, token in enumerate(ids) if token != bos), len(ids))
    different = sum(one != other for one, other in zip(ids, expected, strict=False))
    return max(0, leading - 1) + different + abs(len(ids) - len(expected))


def snapshot(model: Any) -> dict[str, dict[str, Any]]:
    """Hooks, weights and settings of a model as it is now."""
    return {"hooks": hooks(model), "weights": weight_digests(model), "settings": settings(model)}


def hooks(model: Any) -> dict[str, tuple[int, ...]]:
    """Every hook of torch or TransformerLens by module, and every replaced `forward`."""
    names = {module: name or "the model" for name, module in model.named_modules()}
    registered = {
        f"{name}{when}": tuple(
            key for key, hook in getattr(module, registry).items() if not is_library_hook(hook)
        )
        for module, name in names.items()
        for registry, when in _HOOKS.items()
    }
    everywhere = nn.modules.module
    registered["every module"] = (*everywhere._global_forward_pre_hooks, *everywhere._global_forward_hooks)
    if is_hooked(model):
        replaced = [(name, vars(module).get("forward")) for module, name in names.items()]
        registered |= {f"{name}.forward": (id(forward),) for name, forward in replaced if forward}
    return {name: keys for name, keys in registered.items() if keys}


def settings(model: Any) -> dict[str, str]:
    """Training modes, gradients, config and tokenizer settings, as text by name."""
    values = {f"{name or 'the model'}.training": module.training for name, module in model.named_modules()}
    values |= {f"{name}.requires_grad": weight.requires_grad for name, weight in model.named_parameters()}
    values |= {f"cfg.{name}": value for name, value in vars(model.cfg).items()}
    if model.tokenizer is not None:
        values |= {f"tokenizer.{name}": getattr(model.tokenizer, name, None) for name in _TOKENIZER}
    return {name: str(value) for name, value in values.items()}


def differences(before: dict[str, Any], after: dict[str, Any]) -> tuple[int, str]:
    """The number of entries that differ, and the first few names."""
    return listed([name for name in {**before, **after} if before.get(name) != after.get(name)])


def listed(names: Sequence[str]) -> tuple[int, str]:
    """The number of names, and the first five as text."""
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return len(names), ", ".join(names[:5]) + more
