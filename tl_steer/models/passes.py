"""What a forward pass was given, told from inside the pass before any hook of it.

It is read with forward pre-hooks, which fire whoever calls the model: `model(tokens)`, `model.generate(…)`,
`run_with_cache`. Of a `HookedTransformer` the first block that runs knows the cached keys and the mask, and
the embedding the tokens; of a `TransformerBridge` the Hugging Face model below it is given all of them.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from .backend import is_bridge


@dataclass(frozen=True)
class ForwardPass:
    """One pass of a model.

    Attributes:
        rows, slots: its shape, padding included.
        past: slots before it whose keys and values are cached.
        mask: where there is a token, in cached and new slots; `None` where the caller gave none.
        tokens: the ids, `None` of a pass that began behind the embedding.
        device: where the stream is.
    """

    rows: int
    slots: int
    past: int
    mask: Int[Tensor, "batch all"] | Bool[Tensor, "batch all"] | Float[Tensor, "batch all"] | None
    tokens: Int[Tensor, "batch pos"] | None
    device: torch.device


Begin = Callable[[ForwardPass], None]


@contextmanager
def watching(model: Any, begin: Begin) -> Iterator[None]:
    """Call `begin` at the start of each pass of the model; afterwards its hooks are as they were."""
    watch = _watch_bridge if is_bridge(model) else _watch_hooked
    with ExitStack() as stack:
        for handle in watch(model, begin):
            stack.callback(handle.remove)
        yield


def _watch_hooked(model: Any, begin: Begin) -> Iterator[Any]:
    """A pass begins at the first block that runs: with `start_at_layer` that is not block 0."""
    tokens: Tensor | None = None
    last_block = -1

    def at_embedding(_module: Any, inputs: tuple) -> None:
        nonlocal tokens, last_block
        tokens, last_block = inputs[0], -1

    def at_block(number: int) -> Callable[[Any, tuple, dict], None]:
        def enter(_module: Any, inputs: tuple, kwargs: dict) -> None:
            nonlocal tokens, last_block
            if number <= last_block or last_block == -1:
                stream = inputs[0] if inputs else kwargs["resid_pre"]
                begin(_hooked_pass(stream, kwargs, tokens))
                tokens = None
            last_block = number

        return enter

    yield model.embed.register_forward_pre_hook(at_embedding)
    for number, block in enumerate(model.blocks):
        yield block.register_forward_pre_hook(at_block(number), with_kwargs=True)


def _hooked_pass(stream: Tensor, kwargs: dict, tokens: Tensor | None) -> ForwardPass:
    rows, slots = stream.shape[:2]
    entry = kwargs.get("past_kv_cache_entry")
    past = 0 if entry is None else entry.past_keys.shape[1]
    if tokens is not None and tokens.shape != (rows, slots):
        tokens = None
    return ForwardPass(rows, slots, past, kwargs.get("attention_mask"), tokens, stream.device)


def _watch_bridge(model: Any, begin: Begin) -> Iterator[Any]:
    def enter(_module: Any, inputs: tuple, kwargs: dict) -> None:
        begin(_bridge_pass(inputs, kwargs))

    yield model.original_model.register_forward_pre_hook(enter, with_kwargs=True)


def _bridge_pass(inputs: tuple, kwargs: dict) -> ForwardPass:
    tokens = inputs[0] if inputs else kwargs.get("input_ids")
    given = kwargs["inputs_embeds"] if tokens is None else tokens
    cached, mask = kwargs.get("past_key_values"), kwargs.get("attention_mask")
    if mask is not None and not (isinstance(mask, Tensor) and mask.ndim == 2):
        raise ValueError(
            "the pass has an attention mask that is not one number a row and token, so that it cannot be "
            "told where its tokens are. Give the two-dimensional mask, and leave the rest to the model."
        )
    past = 0 if cached is None else int(cached.get_seq_length())
    return ForwardPass(*given.shape[:2], past, mask, tokens, given.device)
