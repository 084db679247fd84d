"""What the package computes, with transformers alone: one unpadded prompt at a time, plain module hooks.

Nothing of `tl_steer` or TransformerLens is used here, so that it is an oracle for every backend.
"""

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch

# Where the blocks are, and what an architecture calls a block's parts: what projects the heads, and what
# gives the stream what attention and MLP found (of Gemma-2, the norms behind them).
BODIES = {"gpt2": "transformer.h", "neox": "gpt_neox.layers"}
PARTS = {
    "gpt2": ("attn.c_proj", "attn", "mlp"),
    "neox": ("attention.dense", "attention", "mlp"),
    "gemma2": ("self_attn.o_proj", "post_attention_layernorm", "post_feedforward_layernorm"),
}
USUAL = ("self_attn.o_proj", "self_attn", "mlp")
SECOND_NORMS = {"gpt2": "ln_2", "gemma2": "pre_feedforward_layernorm"}
HOOKS = ("resid_pre", "resid_post", "attn_out", "mlp_out", "z")


@dataclass
class Change:
    """`to(x)` replaces each row x "d_hook" at the absolute positions of the unpadded prompt in `where`.

    `where(prompt_length, length)` lists them for a sequence that is prompt and generated tokens.
    """

    layer: int
    hook: str
    to: Callable[[torch.Tensor], torch.Tensor]
    where: Callable[[int, int], Iterable[int]]


def block(hf_model, kind: str, layer: int):
    return hf_model.get_submodule(BODIES.get(kind, "model.layers"))[layer]


def place(hf_model, kind: str, layer: int, hook: str):
    """(module, whether it is the module's input) of a hook."""
    here = block(hf_model, kind, layer)
    if hook in ("resid_pre", "resid_post"):
        return here, hook == "resid_pre"
    if hook == "resid_mid":  # read at what normalises it; a change of it is a change of attn_out
        return here.get_submodule(SECOND_NORMS.get(kind, "post_attention_layernorm")), True
    name = dict(zip(("z", "attn_out", "mlp_out"), PARTS.get(kind, USUAL), strict=True))[hook]
    return here.get_submodule(name), hook == "z"


def at(module, is_input: bool, change: Callable[[torch.Tensor], torch.Tensor | None]):
    """Register a forward hook that gives a tensor to `change`, and puts what comes back in its place."""
    if not is_input:

        def after(_module, _inputs, output):
            first = output[0] if isinstance(output, tuple) else output
            new = change(first)
            if new is None:
                return None
            return (new, *output[1:]) if isinstance(output, tuple) else new

        return module.register_forward_hook(after)

    def before(_module, inputs, kwargs):
        new = change(inputs[0] if inputs else kwargs["hidden_states"])
        if new is None:
            return None
        return ((new, *inputs[1:]), kwargs) if inputs else (inputs, {**kwargs, "hidden_states": new})

    return module.register_forward_pre_hook(before, with_kwargs=True)


def run_alone(hf_model, kind, ids, prompt_length, changes: Sequence[Change] = (), reads=()):
    """Logits "pos d_vocab" of one sequence in one pass, and what each (hook, layer) of `reads` holds."""
    seen: dict[tuple[str, int], torch.Tensor] = {}

    def changing(change: Change):
        def edit(x):
            rows = x.clone()
            for index in change.where(prompt_length, len(ids)):
                rows[0, index] = change.to(rows[0, index].float()).to(rows.dtype)
            return rows

        return edit

    def reading(key):
        def note(x):
            seen[key] = x[0].clone()

        return note

    with torch.no_grad(), ExitStack() as stack:
        for change in changes:
            where = place(hf_model, kind, change.layer, change.hook)
            stack.callback(at(*where, changing(change)).remove)
        for hook, layer in reads:
            stack.callback(at(*place(hf_model, kind, layer, hook), reading((hook, layer))).remove)
        return hf_model(torch.tensor([list(ids)])).logits[0], seen


def greedy_alone(hf_model, kind, ids, count, changes: Sequence[Change] = (), stops=()):
    """The new tokens, each from a whole pass over everything before it."""
    new: list[int] = []
    while len(new) < count and not (new and new[-1] in stops):
        logits, _ = run_alone(hf_model, kind, [*ids, *new], len(ids), changes)
        new.append(int(logits[-1].argmax()))
    return new


def run_padded(hf_model, kind, prompts, changes: Sequence[Change] = ()):
    """Each prompt's logits from one left-padded batch: transformers needs the mask, and positions with it."""
    width = max(map(len, prompts))
    tokens, mask = torch.zeros(len(prompts), width).long(), torch.zeros(len(prompts), width).long()
    for row, ids in enumerate(prompts):
        tokens[row, width - len(ids) :], mask[row, width - len(ids) :] = torch.tensor(ids), 1
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    with torch.no_grad():
        logits = hf_model(tokens, attention_mask=mask, position_ids=positions).logits
    return [row[kept.bool()] for row, kept in zip(logits, mask, strict=True)]
