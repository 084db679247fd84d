"""What the package computes, with transformers alone: one unpadded prompt at a time, plain module hooks.

Nothing of `tl_steer` or TransformerLens is used here, so that it is an oracle for every backend.
"""

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch

# Names of the blocks; in a block, of the heads' projection and of the two modules whose outputs are added
# to the residual stream (in Gemma-2, norms).
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


def block(hf_model, architecture: str, layer: int):
    return hf_model.get_submodule(BODIES.get(architecture, "model.layers"))[layer]


def module_of_hook(hf_model, architecture: str, layer: int, hook: str):
    """The module of a hook, and whether the hook is its input."""
    module = block(hf_model, architecture, layer)
    if hook in ("resid_pre", "resid_post"):
        return module, hook == "resid_pre"
    if hook == "resid_mid":  # the input of the second norm; a change of it is a change of attn_out
        return module.get_submodule(SECOND_NORMS.get(architecture, "post_attention_layernorm")), True
    name = dict(zip(("z", "attn_out", "mlp_out"), PARTS.get(architecture, USUAL), strict=True))[hook]
    return module.get_submodule(name), hook == "z"


def register(module, is_input: bool, change: Callable[[torch.Tensor], torch.Tensor | None]):
    """Register a forward hook that replaces a tensor by `change(tensor)`, unless that is None."""
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


def run_alone(hf_model, architecture, ids, prompt_length, changes: Sequence[Change] = (), reads=()):
    """Logits "pos d_vocab" of one sequence in one pass, and activations at each (hook, layer) of `reads`."""
    seen: dict[tuple[str, int], torch.Tensor] = {}

    def changing(change: Change):
        def edit(x):
            rows = x.clone()
            for index in change.where(prompt_length, len(ids)):
                rows[0, index] = change.to(rows[0, index].float()).to(rows.dtype)
            return rows

        return edit

    def recording(key):
        def record(x):
            seen[key] = x[0].clone()

        return record

    with torch.no_grad(), ExitStack() as stack:
        for change in changes:
            where = module_of_hook(hf_model, architecture, change.layer, change.hook)
            stack.callback(register(*where, changing(change)).remove)
        for hook, layer in reads:
            where = module_of_hook(hf_model, architecture, layer, hook)
            stack.callback(register(*where, recording((hook, layer))).remove)
        return hf_model(torch.tensor([list(ids)])).logits[0], seen


def greedy_alone(hf_model, architecture, ids, count, changes: Sequence[Change] = (), stops=()):
    """The new tokens, each from a whole pass over everything before it."""
    new: list[int] = []
    while len(new) < count and not (new and new[-1] in stops):
        logits, _ = run_alone(hf_model, architecture, [*ids, *new], len(ids), changes)
        new.append(int(logits[-1].argmax()))
    return new


def padded(prompts, side="left"):
    """Ids and mask of prompts padded on one side, with an id that is also a real one."""
    width = max(map(len, prompts))
    tokens, mask = torch.full((len(prompts), width), 2), torch.zeros(len(prompts), width).long()
    for row, ids in enumerate(prompts):
        filled = slice(width - len(ids), None) if side == "left" else slice(len(ids))
        tokens[row, filled], mask[row, filled] = torch.tensor(ids), 1
    return tokens, mask


def unpadded(logits, mask):
    return [row[tokens.bool()] for row, tokens in zip(logits, mask, strict=True)]
