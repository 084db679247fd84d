"""Sweeps with transformers alone, written for sweeps: code of the benchmark, not of a library.

For Llama-like decoders (`model.model.layers`). Prompts are token ids that share at least their first token.
In a condition, the layer's vector times the multiplier is added to the output of that decoder layer. What
conditions have in common is computed once: the prompts' common prefix, and the layers up to the steered one.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from .jobs import Condition

Prompts = Sequence[Sequence[int]]


def choice_last(
    model: Any, prompts: Prompts, letters: Sequence[int], vectors: Tensor, conditions: Sequence[Condition]
) -> Tensor:
    """Difference of two letters' logits, "condition prompt", with the vector added at the last token.

    Each prompt is cached once. The multipliers of a layer are query tokens of one call of the layers above
    it: each attends to the cached prompt and to itself. A row and a cache for each is 3% slower.
    """
    layers, shared = by_layer(conditions), common_length(prompts)
    ids, mask, positions = padded(prompts, shared, model.device)
    cache = DynamicCache()
    model.model(ids[:1, :shared], past_key_values=cache)
    cache.batch_repeat_interleave(len(prompts))
    clean = outputs_of(model, layers, ids[:, shared:], cache, mask, positions[:, shared:])
    cache.crop(-1)
    result = torch.empty(len(conditions), len(prompts), device=model.device)
    for layer, multipliers in layers.items():
        count, upper = len(multipliers), DynamicCache()
        added = multiples(model, vectors[layer], multipliers.values())[:, 0]
        upper.layers = cache.layers[layer + 1 :]
        itself = torch.eye(count, device=model.device).expand(len(prompts), count, count)
        visible = torch.cat([mask[:, None, :-1].expand(-1, count, -1), itself], dim=-1)
        with layers_from(model, layer + 1):
            logits = model(
                inputs_embeds=clean[layer][:, -1:] + added,
                attention_mask=visible[:, None].bool(),
                position_ids=positions[:, -1:].expand(-1, count),
                past_key_values=upper,
            ).logits
        upper.crop(-count)
        result[list(multipliers)] = difference(logits, letters).T
    return result


def choice_every(
    model: Any,
    prompts: Prompts,
    letters: Sequence[int],
    vectors: Tensor,
    conditions: Sequence[Condition],
    *,
    rows: int = 32,
) -> Tensor:
    """Difference of two letters' logits, "condition prompt", with the vector added at every token.

    The multipliers of a layer are rows: of the common prefix, then of batches of prompts, by length. On one
    core, 32 `rows` per call are faster than 16, 64 or 128.
    """
    layers, shared = by_layer(conditions), common_length(prompts)
    cache, prefix_ids = DynamicCache(), torch.tensor([prompts[0][:shared]], device=model.device)
    prefix = outputs_of(model, layers, prefix_ids, cache)
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    size = max(1, rows // max(map(len, layers.values())))
    batches = []
    for start in range(0, len(order), size):
        batch = order[start : start + size]
        ids, mask, positions = padded([prompts[index] for index in batch], shared, model.device)
        inputs = (mask, positions[:, shared:])
        clean = outputs_of(model, layers, ids[:, shared:], repeated(cache, len(batch)), *inputs)
        batches.append((batch, *inputs, clean))
    result = torch.empty(len(conditions), len(prompts), device=model.device)
    for layer, multipliers in layers.items():
        count, steered = len(multipliers), DynamicCache()
        added = multiples(model, vectors[layer], multipliers.values())
        with layers_from(model, layer + 1):
            model.model(inputs_embeds=prefix[layer] + added, past_key_values=steered)
            for batch, mask, positions, clean in batches:
                logits = model(
                    inputs_embeds=(clean[layer] + added[:, None]).flatten(0, 1),
                    attention_mask=mask.repeat(count, 1),
                    position_ids=positions.repeat(count, 1),
                    past_key_values=repeated(steered, len(batch)),
                    logits_to_keep=1,
                ).logits
                values = difference(logits, letters).view(count, len(batch))
                result[torch.tensor(list(multipliers))[:, None], batch] = values
    return result


def generate(
    model: Any,
    prompts: Prompts,
    vectors: Tensor,
    conditions: Sequence[Condition],
    new_tokens: int,
    *,
    rows: int = 256,
) -> Tensor:
    """Greedy tokens, "condition prompt token", with the vector added at every token, including new ones.

    Conditions and prompts are rows of one `generate`, with the common prefix cached once per condition. More
    `rows` per call are faster (of 40, 80, 160 and 168 on one core).
    """
    size, shared = max(1, rows // len(prompts)), common_length(prompts)
    ids, mask, _ = padded(prompts, shared, model.device)
    texts = []
    for start in range(0, len(conditions), size):
        part, cache = conditions[start : start + size], DynamicCache()
        with steered(model, vectors, part, 1):
            model.model(ids[:1, :shared].expand(len(part), -1), past_key_values=cache)
        cache.batch_repeat_interleave(len(prompts))
        with steered(model, vectors, part, len(prompts)):
            tokens = model.generate(
                ids.repeat(len(part), 1),
                attention_mask=mask.repeat(len(part), 1),
                past_key_values=cache,
                max_new_tokens=new_tokens,
                min_new_tokens=new_tokens,
                do_sample=False,
            )
        texts.append(tokens[:, ids.shape[1] :].view(len(part), len(prompts), new_tokens))
    return torch.cat(texts)


def by_layer(conditions: Sequence[Condition]) -> dict[int, dict[int, float]]:
    """Multipliers of each layer, by the index of their condition."""
    layers: dict[int, dict[int, float]] = {}
    for index, (layer, multiplier) in enumerate(conditions):
        layers.setdefault(layer, {})[index] = multiplier
    return layers


def common_length(prompts: Prompts) -> int:
    """Length of the prompts' common prefix, at most up to the last token of the shortest."""
    limit = min(map(len, prompts)) - 1
    return next((at for at in range(limit) if len({prompt[at] for prompt in prompts}) > 1), limit)


def padded(prompts: Prompts, shared: int, device: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Ids, mask and positions, "prompt token", with padding between the common prefix and the rest."""
    width = max(map(len, prompts))
    rows = [[*prompt[:shared], *[-1] * (width - len(prompt)), *prompt[shared:]] for prompt in prompts]
    ids = torch.tensor(rows, device=device)
    mask = (ids >= 0).long()
    return ids.clamp(min=0), mask, mask.cumsum(-1) - 1


def outputs_of(
    model: Any, layers: Iterable[int], ids: Tensor, cache: DynamicCache, *mask_and_positions: Tensor
) -> dict[int, Tensor]:
    """Outputs of the given layers in a forward pass that extends the cache by `ids`."""
    outputs: dict[int, Tensor] = {}
    hooks = {layer: lambda _m, _i, output, at=layer: outputs.update({at: output}) for layer in layers}
    with hooked(model, hooks):
        model.model(ids, *mask_and_positions, past_key_values=cache)
    return outputs


def steered(
    model: Any, vectors: Tensor, conditions: Sequence[Condition], repeats: int
) -> AbstractContextManager:
    """Add each condition's multiple in its own rows, `repeats` per condition."""
    hooks = {}
    for layer in by_layer(conditions):
        multipliers = [multiplier if at == layer else 0.0 for at, multiplier in conditions]
        added = multiples(model, vectors[layer], multipliers).repeat_interleave(repeats, dim=0)
        hooks[layer] = lambda _m, _i, output, added=added: output + added
    return hooked(model, hooks)


def multiples(model: Any, vector: Tensor, multipliers: Iterable[float]) -> Tensor:
    """The vector times each multiplier, "multiplier 1 d_model"."""
    factors = torch.tensor([*multipliers], device=vector.device)
    return (factors[:, None, None] * vector).to(model.device, model.dtype)


def repeated(cache: DynamicCache, count: int) -> DynamicCache:
    """A copy of the cache with every row repeated."""
    layers = [(each.keys, each.values) for each in cache.layers]
    return DynamicCache([[each.repeat_interleave(count, dim=0) for each in layer] for layer in layers])


def difference(logits: Tensor, letters: Sequence[int]) -> Tensor:
    return logits[..., letters[0]].float() - logits[..., letters[1]].float()


@contextmanager
def hooked(model: Any, hooks: Mapping[int, Callable]) -> Iterator[None]:
    """Forward hooks on decoder layers."""
    handles = [model.model.layers[layer].register_forward_hook(hook) for layer, hook in hooks.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def layers_from(model: Any, first: int) -> Iterator[None]:
    """The decoder without the layers below `first`; the others count from 0, as a cache's layers do."""
    layers = model.model.layers
    model.model.layers = numbered(torch.nn.ModuleList(layers[first:]))
    try:
        yield
    finally:
        model.model.layers = numbered(layers)


def numbered(layers: torch.nn.ModuleList) -> torch.nn.ModuleList:
    """The layers with the indices under which they use a cache."""
    for index, layer in enumerate(layers):
        layer.self_attn.layer_idx = index
    return layers
