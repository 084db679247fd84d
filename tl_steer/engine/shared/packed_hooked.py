"""Packed tokens through the blocks of a `HookedTransformer`."""

import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import linear
from transformer_lens.utilities.architectures import POST_NORM_ARCHITECTURES

from ...models.bridge_blocks import replaced_forward
from .attention import AttentionLayer, Heads, PackedAttention, PackedModel, RunBlocks

# Settings of an attention layer that packed passes depend on, with the values that it supports.
_SUPPORTED = {
    "positional_embedding_type": ("standard", "rotary"),
    "attention_dir": ("causal",),
    "use_attn_in": (False,),
    "use_split_qkv_input": (False,),
    "use_attn_result": (False,),
    "use_hook_tokens": (False,),
    "use_attention_sinks": (False,),
    "use_logn_attn": (False,),
    "use_dynamic_ntk_rope": (False,),
    "ungroup_grouped_query_attention": (False,),
    "load_in_4bit": (False,),
    "clip_qkv": (None,),
    "n_devices": (1,),
}
_UNSUPPORTED_NORMS = {"OlmoeForCausalLM", *POST_NORM_ARCHITECTURES}


class PackedHooked(PackedModel):
    """A `HookedTransformer` whose settings `support` allows."""

    def __init__(self, model: Any) -> None:
        cfg = model.cfg
        self._model = weakref.ref(model)  # `paths` stores this by model, which must stay collectable
        self.layers = tuple(
            AttentionLayer(
                layer,
                1 / block.attn.attn_scale,
                block.attn.cfg.attn_scores_soft_cap,
                cfg.window_size if cfg.use_local_attn and block.attn.attn_type == "local" else None,
            )
            for layer, block in enumerate(model.blocks)
        )
        self.key_shape = self.value_shape = (cfg.n_key_value_heads or cfg.n_heads, cfg.d_head)
        self.weight, self.d_model = model.W_E, cfg.d_model
        self.widest = 4 * (cfg.d_mlp or 0) + 8 * cfg.d_model + 4 * cfg.n_heads * cfg.d_head

    @property
    def model(self) -> Any:
        """The `HookedTransformer`."""
        return self._model()

    def embedded(
        self, tokens: Int[Tensor, " token"], index: Int[Tensor, " token"]
    ) -> Float[Tensor, "token d_model"]:
        """The first block's input for tokens at these absolute positions."""
        stream = self.model.embed(tokens)
        if self.model.cfg.positional_embedding_type == "standard":
            return stream + self.model.pos_embed.W_pos[index]
        return stream

    @contextmanager
    def packed(self, attention: PackedAttention, length: int) -> Iterator[RunBlocks]:
        """Replace the forward pass of each attention layer, and of parts that compute the same again."""
        _extend_rotary(self.model, length)
        norm = _LastNorm()
        with ExitStack() as stack:
            for block, layer in zip(self.model.blocks, self.layers, strict=True):
                forward = partial(_forward, block, layer, attention)
                stack.enter_context(replaced_forward(block.attn, forward))
                stack.enter_context(replaced_forward(block.ln1, partial(norm, block.ln1.forward)))
                if _is_plain_gated(getattr(block, "mlp", None)):
                    stack.enter_context(replaced_forward(block.mlp, partial(_gated_mlp, block.mlp)))
            yield self._run

    def _run(
        self, start: int, stop: int, stream: Float[Tensor, "token d_model"]
    ) -> Float[Tensor, "token d_model"]:
        return self.model(stream[None], start_at_layer=start, stop_at_layer=stop)[0]

    def has_hooks(self, layer: int) -> bool:
        """Whether anything is read or changed inside a block."""
        return any(module._forward_hooks for module in self.model.blocks[layer].modules())


class _LastNorm:
    """Normalises a block's input once: TransformerLens does for queries, for keys, and for values."""

    def __init__(self) -> None:
        self._input = self._output = None

    def __call__(self, normalise: Callable, x: Tensor) -> Tensor:
        if x is not self._input:
            self._input, self._output = x, normalise(x)
        return self._output


def _is_plain_gated(mlp: Any) -> bool:
    from transformer_lens.components import GatedMLP

    if type(mlp) is not GatedMLP or "forward" in vars(mlp):
        return False
    return not mlp.cfg.is_layer_norm_activation()


def _gated_mlp(mlp: Any, x: Float[Tensor, "1 token d_model"]) -> Float[Tensor, "1 token d_model"]:
    """`GatedMLP.forward`, with fewer copies of its widest activations."""
    gate, value = mlp.act_fn(linear(x, mlp.W_gate.T)), linear(x, mlp.W_in.T)
    return linear(torch.addcmul(mlp.b_in, gate, value, out=value), mlp.W_out.T, mlp.b_out)


def _forward(
    block: Any,
    layer: AttentionLayer,
    attention: PackedAttention,
    query_input: Float[Tensor, "1 token d_model"],
    key_input: Float[Tensor, "1 token d_model"],
    value_input: Float[Tensor, "1 token d_model"],
    past_kv_cache_entry: None = None,
    attention_mask: None = None,
) -> Float[Tensor, "1 token d_model"]:
    """An attention layer's forward pass, with `attend` in its middle."""
    attn, key_index = block.attn, attention.index
    if attention.key_inputs is not None:
        stream, key_index = attention.key_inputs
        key_input = value_input = block.ln1(stream)
    q, k, v = (part[0] for part in attn.calculate_qkv_matrices(query_input, key_input, value_input))
    if attn.cfg.positional_embedding_type == "rotary":
        q, k = rotated(attn, q, attention.index), rotated(attn, k, key_index)
    z = attn.hook_z(attention.attend(layer, q, k, v)[None])
    return linear(z.flatten(2), attn.W_O.flatten(0, 1).T, attn.b_O)


def rotated(attn: Any, x: Heads, index: Int[Tensor, " token"]) -> Heads:
    """`attn.apply_rotary` of tokens at any positions, with one copy instead of four."""
    count, pairs = attn.cfg.rotary_dim, attn.cfg.rotary_adjacent_pairs
    first = slice(0, count, 2) if pairs else slice(0, count // 2)
    second = slice(1, count, 2) if pairs else slice(count // 2, count)
    cos, sin = attn.rotary_cos[index, None], attn.rotary_sin[index, None]
    turned = x.clone()
    turned[..., :count] *= cos
    turned[..., first].addcmul_(x[..., second], sin[..., first], value=-1)
    turned[..., second].addcmul_(x[..., first], sin[..., second])
    return turned


def _extend_rotary(model: Any, length: int) -> None:
    """Extend the model's rotary tables to `length` positions, as an ordinary pass would."""
    for block in model.blocks:
        if model.cfg.positional_embedding_type == "rotary" and length > len(block.attn.rotary_cos):
            block.attn.apply_rotary(block.attn.rotary_cos.new_zeros(1, 1, 1, model.cfg.d_head), length - 1)


def unsupported_setting(model: Any) -> str | None:
    """A setting with which the model's blocks cannot run on packed tokens."""
    from transformer_lens.components import Attention, GroupedQueryAttention

    for name, supported in _SUPPORTED.items():
        if getattr(model.cfg, name, supported[0]) not in supported:
            return f"the model's {name} is {getattr(model.cfg, name)!r}"
    if model.cfg.original_architecture in _UNSUPPORTED_NORMS:
        return f"{model.cfg.original_architecture} has its norms at other places"
    for block in model.blocks:
        if type(block.attn) not in (Attention, GroupedQueryAttention) or "forward" in vars(block.attn):
            return "an attention layer is not TransformerLens's own"
    return None
