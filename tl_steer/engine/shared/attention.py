"""Attention for forward passes over packed tokens: the tokens of many prompts in one row, without padding.

While a model is `packed`, its blocks run as they are; only the part of an attention layer between its
queries, keys and values and its output projection is replaced, so that each token sees its own keys.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import linear, scaled_dot_product_attention
from transformer_lens.utilities.activation_functions import apply_softcap, softcap_enabled

Heads = Float[Tensor, "token head d_head"]
KeyHeads = Float[Tensor, "key key_head d_head"]


class PackedAttention(ABC):
    """What an attention layer needs to know of the tokens in the current pass."""

    @property
    @abstractmethod
    def index(self) -> Int[Tensor, " token"]:
        """Their absolute positions."""

    @property
    @abstractmethod
    def key_inputs(self) -> tuple[Float[Tensor, "1 key d_model"], Int[Tensor, " key"]] | None:
        """Residual stream and positions of the tokens that get keys and values, if those are others."""

    @abstractmethod
    def attend(self, attn: Any, q: Heads, k: KeyHeads, v: KeyHeads) -> Heads:
        """The weighted values of each token, from rotated queries and the new keys and values."""


@contextmanager
def packed(model: Any, attention: PackedAttention) -> Iterator[None]:
    """Let the model's passes hold one row of packed tokens."""
    with ExitStack() as stack:
        for block in model.blocks:
            block.attn.forward = partial(_forward, block, attention)
            stack.callback(delattr, block.attn, "forward")
        yield


def _forward(
    block: Any,
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
    z = attn.hook_z(attention.attend(attn, q, k, v)[None])
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


def extend_rotary(model: Any, length: int) -> None:
    """Extend the model's rotary tables to `length` positions, as an ordinary pass would."""
    for block in model.blocks:
        if model.cfg.positional_embedding_type == "rotary" and length > len(block.attn.rotary_cos):
            block.attn.apply_rotary(block.attn.rotary_cos.new_zeros(1, 1, 1, model.cfg.d_head), length - 1)


def weighted_values(
    attn: Any,
    q: Float[Tensor, "block query head d_head"],
    k: Float[Tensor, "block key key_head d_head"],
    v: Float[Tensor, "block key key_head d_head"],
    mask: Float[Tensor, "block 1 query key"],
) -> Float[Tensor, "block query head d_head"]:
    """softmax(q·k / scale + mask)·v, with the model's scale, soft cap and grouped keys."""
    shared = q.shape[2] // k.shape[2]  # query heads per key head
    q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
    cap = attn.cfg.attn_scores_soft_cap
    if softcap_enabled(cap):
        k, v = (part.repeat_interleave(shared, 1) for part in (k, v))
        scores = apply_softcap(q @ k.transpose(-1, -2) / attn.attn_scale, cap)
        return ((scores + mask).softmax(-1) @ v).transpose(1, 2)
    if q.shape[2] == 1:  # one query: heads that share keys can be queries, which is faster
        q = q.unflatten(1, (-1, shared)).flatten(2, 3)
        z = scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=1 / attn.attn_scale)
        return z.flatten(1, 2)[:, None]
    options = {"scale": 1 / attn.attn_scale, "enable_gqa": shared > 1}
    return scaled_dot_product_attention(q, k, v, attn_mask=mask, **options).transpose(1, 2)


def additive(visible: Bool[Tensor, "block query key"], like: Tensor) -> Float[Tensor, "block 1 query key"]:
    """A mask for `weighted_values`: 0 where visible and −∞ elsewhere, in the dtype and device of `like`."""
    mask = torch.zeros(visible.shape, dtype=like.dtype, device=visible.device)
    return mask.masked_fill_(~visible, -torch.inf)[:, None].to(like.device)
