"""Attention over packed tokens: the tokens of many prompts in one row, without padding.

The model's blocks run as they are; only what happens between a layer's queries, keys and values and its
output projection is replaced, so that each token sees its own keys. `packed_hooked` and `packed_bridge` do
this for the two classes of models.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformer_lens.utilities.activation_functions import apply_softcap, softcap_enabled

Heads = Float[Tensor, "token head d_head"]
KeyHeads = Float[Tensor, "key key_head d_head"]
ValueHeads = Float[Tensor, "key key_head d_value"]
Values = Float[Tensor, "token head d_value"]
RunBlocks = Callable[[int, int, Tensor], Float[Tensor, "token d_model"]]


@dataclass(frozen=True)
class AttentionLayer:
    """What a layer does with queries and keys.

    Attributes:
        layer: its index.
        scale: q·k is multiplied by it.
        soft_cap: scores become cap · tanh(score / cap); `None` or not positive: no cap.
        window: a token sees so many positions, its own included; `None`: all before it.
        sinks: a score per query head that takes part in the softmax and has no value.
    """

    layer: int
    scale: float
    soft_cap: float | None = None
    window: int | None = None
    sinks: Float[Tensor, " head"] | None = None

    @property
    def is_capped(self) -> bool:
        """Whether scores are capped."""
        return self.soft_cap is not None and softcap_enabled(self.soft_cap)


class PackedAttention(ABC):
    """What an attention layer needs to know of the tokens in the current pass."""

    @property
    @abstractmethod
    def index(self) -> Int[Tensor, " token"]:
        """Their absolute positions."""

    @property
    def key_inputs(self) -> tuple[Float[Tensor, "1 key d_model"], Int[Tensor, " key"]] | None:
        """Residual stream and positions of the tokens that get keys and values, if those are others."""
        return None

    @property
    def pass_id(self) -> Hashable:
        """Equal for passes over the same tokens; `None` if they do not come again."""
        return None

    @abstractmethod
    def attend(self, layer: AttentionLayer, q: Heads, k: KeyHeads, v: ValueHeads) -> Values:
        """The weighted values of each token, from rotated queries and the new keys and values."""


class PackedModel(ABC):
    """What the engine needs of a model.

    Attributes:
        layers: the attention of each.
        key_shape, value_shape: of one token in one layer, "key_head d_head".
        weight: a tensor with the dtype and device of the residual stream.
        d_model: width of the residual stream.
        widest: numbers per token in the widest part of a block, for batch sizes.
    """

    layers: tuple[AttentionLayer, ...]
    key_shape: tuple[int, int]
    value_shape: tuple[int, int]
    weight: Tensor
    d_model: int
    widest: int

    @property
    def windows(self) -> set[int | None]:
        """The different windows of its layers."""
        return {each.window for each in self.layers}

    @property
    def token_bytes(self) -> int:
        """Bytes of one token's keys and values in one layer."""
        counts = (heads * width for heads, width in (self.key_shape, self.value_shape))
        return sum(counts) * self.weight.element_size()

    @abstractmethod
    def embedded(
        self, tokens: Int[Tensor, " token"], index: Int[Tensor, " token"]
    ) -> Float[Tensor, "token d_model"]:
        """The first block's input for tokens at these absolute positions."""

    @abstractmethod
    def packed(self, attention: PackedAttention, length: int) -> AbstractContextManager[RunBlocks]:
        """A function `run(start, stop, stream)` that runs blocks `start` to `stop` − 1 on packed tokens.

        Args:
            attention: of each pass.
            length: the positions that occur are below it.
        """

    @abstractmethod
    def has_hooks(self, layer: int) -> bool:
        """Whether anything is read or changed inside a block: then every token has to go through it."""


def weighted_values(
    layer: AttentionLayer,
    q: Float[Tensor, "block query head d_head"],
    k: Float[Tensor, "block key key_head d_head"],
    v: Float[Tensor, "block key key_head d_value"],
    mask: Float[Tensor, "block 1 query key"],
) -> Float[Tensor, "block query head d_value"]:
    """softmax(q·k · scale + mask)·v, with the layer's soft cap and sinks, and grouped keys."""
    shared = q.shape[2] // k.shape[2]  # query heads per key head
    q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
    if layer.is_capped or layer.sinks is not None:
        k, v = (part.repeat_interleave(shared, 1) for part in (k, v))
        return (attention_weights(layer, q @ k.transpose(-1, -2), mask) @ v).transpose(1, 2)
    options = {"scale": layer.scale, "enable_gqa": shared > 1}
    return scaled_dot_product_attention(q, k, v, attn_mask=mask, **options).transpose(1, 2)


def attention_weights(
    layer: AttentionLayer,
    scores: Float[Tensor, "block head query key"],
    mask: Float[Tensor, "block 1 query key"],
) -> Float[Tensor, "block head query key"]:
    """softmax(scores · scale + mask), with the layer's soft cap and sinks."""
    scores = scores * layer.scale
    if layer.is_capped:
        scores = apply_softcap(scores, layer.soft_cap)
    scores = scores + mask
    if layer.sinks is None:
        return scores.softmax(-1)
    sinks = layer.sinks.to(scores)[:, None, None].expand(len(scores), -1, scores.shape[2], 1)
    return torch.cat([scores, sinks], -1).softmax(-1)[..., :-1]


def additive(visible: Bool[Tensor, "block query key"], like: Tensor) -> Float[Tensor, "block 1 query key"]:
    """A mask for `weighted_values`: 0 where visible and −∞ elsewhere, in the dtype and device of `like`."""
    mask = torch.zeros(visible.shape, dtype=like.dtype, device=visible.device)
    return mask.masked_fill_(~visible, -torch.inf)[:, None].to(like.device)
