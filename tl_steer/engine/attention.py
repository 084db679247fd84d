"""Attention for passes that hold the tokens of many prompts in a row, without padding.

While a model is `attending`, its blocks run as they are; only what an attention layer does between its keys,
queries and values and its output projection is done here, for each token against the keys it may see.
"""

from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import linear, scaled_dot_product_attention
from transformer_lens.utilities.activation_functions import apply_softcap, softcap_enabled

from .sharing import Branch, Segment

BUNDLED = 64  # tokens that are put together where they look back on the same others
PADDED = 1.5  # how much more than needed a group of bundles may compute

Heads = Float[Tensor, "token head d_head"]
KeyHeads = Float[Tensor, "key key_head d_head"]


class Runs(ABC):
    """What an attention layer has to know of the tokens that run now."""

    @property
    @abstractmethod
    def index(self) -> Int[Tensor, " token"]:
        """Their absolute positions."""

    @property
    @abstractmethod
    def looked_at(self) -> tuple[Float[Tensor, "1 key d_model"], Int[Tensor, " key"]] | None:
        """The stream and positions of tokens that get keys and values, where those are not the same."""

    @abstractmethod
    def attend(self, attn: Any, q: Heads, k: KeyHeads, v: KeyHeads) -> Heads:
        """What each token gathers, given its rotated query and the new keys and values."""


@contextmanager
def attending(model: Any, runs: Runs) -> Iterator[None]:
    """While this is entered, the model's passes hold one row of tokens of any prompts: those that run now."""
    with ExitStack() as stack:
        for block in model.blocks:
            block.attn.forward = partial(_forward, block, runs)
            stack.callback(delattr, block.attn, "forward")
        yield


def _forward(
    block: Any,
    runs: Runs,
    query_input: Float[Tensor, "1 token d_model"],
    key_input: Float[Tensor, "1 token d_model"],
    value_input: Float[Tensor, "1 token d_model"],
    past_kv_cache_entry: None = None,
    attention_mask: None = None,
) -> Float[Tensor, "1 token d_model"]:
    """An attention layer's forward pass, with `attend` in its middle."""
    attn, key_index = block.attn, runs.index
    if runs.looked_at is not None:
        stream, key_index = runs.looked_at
        key_input = value_input = block.ln1(stream)
    q, k, v = (part[0] for part in attn.calculate_qkv_matrices(query_input, key_input, value_input))
    if attn.cfg.positional_embedding_type == "rotary":
        q, k = rotated(attn, q, runs.index), rotated(attn, k, key_index)
    z = attn.hook_z(runs.attend(attn, q, k, v)[None])
    return linear(z.flatten(2), attn.W_O.flatten(0, 1).T, attn.b_O)


def rotated(attn: Any, x: Heads, index: Int[Tensor, " token"]) -> Heads:
    """`attn.apply_rotary` of tokens at any positions, with one copy where that makes four."""
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
    """Let the model's tables of rotations reach `length` positions, as an ordinary pass would."""
    for block in model.blocks:
        if model.cfg.positional_embedding_type == "rotary" and length > len(block.attn.rotary_cos):
            block.attn.apply_rotary(block.attn.rotary_cos.new_zeros(1, 1, 1, model.cfg.d_head), length - 1)


@dataclass(frozen=True)
class Group:
    """Bundles of about the same size, padded: tokens that look back on the same others, and those others.

    Attributes:
        queries: places among the tokens that run, 0 where padded.
        keys: numbers within the whole plan, 0 where padded.
        real: which of the flattened queries are no padding.
        seen: 0 where a query sees a key, −∞ where not, repeated for every query head of a key's head.
        near: the same for layers with local attention, if the model has any.
    """

    queries: Int[Tensor, "bundle query"]
    keys: Int[Tensor, "bundle key"]
    real: Int[Tensor, " token"]
    seen: Float[Tensor, "bundle 1 repeated_query key"]
    near: Float[Tensor, "bundle 1 repeated_query key"] | None


@dataclass(frozen=True)
class Bundle:
    """Tokens and the keys they may see, by number in the whole plan.

    `owner` says which stretch a query or key belongs to, −1 for keys that all of the bundle see.
    """

    queries: Int[np.ndarray, " query"]
    keys: Int[np.ndarray, " key"]
    query_owner: Int[np.ndarray, " query"]
    key_owner: Int[np.ndarray, " key"]

    def only(self, running: Int[np.ndarray, " running"]) -> "Bundle":
        """The bundle without the queries that do not run."""
        kept = np.isin(self.queries, running)
        return replace(self, queries=self.queries[kept], query_owner=self.query_owner[kept])

    @property
    def cost(self) -> int:
        """How many scores it takes."""
        return len(self.queries) * len(self.keys)


def bundles(segments: Sequence[tuple[Branch, Segment]]) -> list[Bundle]:
    """Segments that look back on the same tokens, together, up to `BUNDLED` tokens."""
    siblings: dict[int, list[tuple[Branch, Segment]]] = defaultdict(list)
    for branch, segment in segments:
        siblings[_last_before(branch, segment)].append((branch, segment))
    made = []
    for family in siblings.values():
        together: list[tuple[Branch, Segment]] = []
        count = 0
        for branch, segment in family:
            if together and count + segment.stop - segment.start > BUNDLED:
                made.append(_bundle(together))
                together, count = [], 0
            together.append((branch, segment))
            count += segment.stop - segment.start
        made.append(_bundle(together))
    return made


def _last_before(branch: Branch, segment: Segment) -> int:
    """The token a segment comes behind, which stands for all before it."""
    if len(segment.own):
        return int(segment.own[-1]) + branch.base
    return int(segment.trunk[-1]) if len(segment.trunk) else -1


def _bundle(together: Sequence[tuple[Branch, Segment]]) -> Bundle:
    branch, segment = together[0]
    shared = segment.before(branch.base)
    own = [np.arange(segment.start, segment.stop) + branch.base for branch, segment in together]
    owner = np.repeat(np.arange(len(own)), [len(each) for each in own])
    queries = np.concatenate(own)
    return Bundle(
        queries, np.concatenate([shared, queries]), owner, np.concatenate([np.full(len(shared), -1), owner])
    )


def groups(
    made: Sequence[Bundle],
    running: Int[np.ndarray, " running"],
    index: Int[np.ndarray, " plan"],
    *,
    repeats: int,
    window: int | None,
    like: Tensor,
) -> list[Group]:
    """Bundles padded to groups.

    Args:
        running: the numbers of the tokens that go through the block, in order.
        index: absolute positions by number in the whole plan.
        repeats: query heads for each head of the keys.
        window: how far back local attention sees, if the model has any.
        like: a tensor of the device and dtype that masks shall have.
    """
    grouped, waiting = [], sorted(made, key=lambda bundle: (len(bundle.keys), len(bundle.queries)))
    while waiting:
        together, cost, width = [waiting[0]], waiting[0].cost, len(waiting[0].queries)
        for bundle in waiting[1:]:
            width, cost = max(width, len(bundle.queries)), cost + bundle.cost
            if (len(together) + 1) * width * len(bundle.keys) > PADDED * cost:
                break
            together.append(bundle)
        waiting = waiting[len(together) :]
        grouped.append(_padded(together, running, index, repeats=repeats, window=window, like=like))
    return grouped


def _padded(
    together: Sequence[Bundle],
    running: Int[np.ndarray, " running"],
    index: Int[np.ndarray, " plan"],
    *,
    repeats: int,
    window: int | None,
    like: Tensor,
) -> Group:
    shape = (
        len(together),
        max(len(each.queries) for each in together),
        max(len(each.keys) for each in together),
    )
    queries, keys = np.zeros(shape[:2], dtype=np.int64), np.zeros((shape[0], shape[2]), dtype=np.int64)
    real, seen, near = (
        np.zeros(shape[:2], dtype=bool),
        np.zeros(shape, dtype=bool),
        np.zeros(shape, dtype=bool),
    )
    for place, each in enumerate(together):
        n_queries, n_keys = len(each.queries), len(each.keys)
        queries[place, :n_queries] = np.searchsorted(running, each.queries)
        keys[place, :n_keys] = each.keys
        real[place, :n_queries] = True
        back = index[each.queries][:, None] - index[each.keys][None]
        own = (each.key_owner == -1)[None] | (each.key_owner[None] == each.query_owner[:, None])
        seen[place, :n_queries, :n_keys] = own & (back >= 0)
        near[place, :n_queries, :n_keys] = own & (back >= 0) & (back < (window or 0))
    device = like.device
    return Group(
        queries=torch.from_numpy(queries).to(device),
        keys=torch.from_numpy(keys).to(device),
        real=torch.from_numpy(np.flatnonzero(real)).to(device),
        seen=_additive(seen, real, repeats, like),
        near=None if window is None else _additive(near, real, repeats, like),
    )


def _additive(
    seen: Bool[np.ndarray, "bundle query key"],
    real: Bool[np.ndarray, "bundle query"],
    repeats: int,
    like: Tensor,
) -> Float[Tensor, "bundle 1 repeated_query key"]:
    seen = torch.from_numpy(seen | ~real[..., None])  # padded queries see something, or they would be NaN
    mask = torch.zeros(seen.shape, dtype=like.dtype).masked_fill_(~seen, -torch.inf)
    return mask.repeat(1, repeats, 1)[:, None].to(like.device)


def weighted_values(
    attn: Any,
    q: Float[Tensor, "bundle query head d_head"],
    k: Float[Tensor, "bundle key key_head d_head"],
    v: Float[Tensor, "bundle key key_head d_head"],
    mask: Float[Tensor, "bundle 1 repeated_query_or_1 key"],
) -> Float[Tensor, "bundle query head d_head"]:
    """softmax(q·k / scale + mask)·v, with the scale, soft cap and shared keys of the model."""
    bundle, query, head, d_head = q.shape
    key_head = k.shape[2]
    repeats = head // key_head
    q = (
        q.unflatten(2, (key_head, repeats))
        .permute(0, 2, 3, 1, 4)
        .reshape(bundle, key_head, repeats * query, d_head)
    )
    k, v = k.transpose(1, 2), v.transpose(1, 2)
    cap = attn.cfg.attn_scores_soft_cap
    if softcap_enabled(cap):
        scores = apply_softcap(q @ k.transpose(-1, -2) / attn.attn_scale, cap)
        z = (scores + mask).softmax(-1) @ v
    else:
        z = scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=1 / attn.attn_scale)
    return z.unflatten(2, (repeats, query)).permute(0, 3, 1, 2, 4).reshape(bundle, query, head, d_head)
