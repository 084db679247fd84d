"""Other blocks, and other forward passes, in the Hugging Face model of a `TransformerBridge`."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

_returns_tuples: "WeakKeyDictionary[Any, list[bool]]" = WeakKeyDictionary()


class StandIn(nn.Module):
    """Takes the place of a block: returns `respond(args, kwargs)`, a residual stream, as the block would."""

    def __init__(
        self, block: nn.Module, returns_tuple: bool, respond: Callable[[tuple, dict], Tensor]
    ) -> None:
        super().__init__()
        vars(self).update(block=block, returns_tuple=returns_tuple, respond=respond)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.block, name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the block would return."""
        stream = self.respond(args, kwargs)
        return (stream,) if self.returns_tuple else stream


def stream_of(args: tuple, kwargs: Mapping[str, Any]) -> Tensor:
    """The residual stream among a block's arguments."""
    return args[0] if args else kwargs["hidden_states"]


def body_of(model: Any) -> tuple[nn.Module, str]:
    """The module that calls the blocks, and its attribute that lists them.

    Raises:
        ValueError: the blocks are not in a list of modules.
    """
    for name, module in model.original_model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) and module[0] is model.blocks[0]:
            parent, _, attribute = name.rpartition(".")
            return model.original_model.get_submodule(parent), attribute
    raise ValueError("its blocks are not a list of modules")


@contextmanager
def replaced_blocks(model: Any, blocks: Sequence[nn.Module]) -> Iterator[None]:
    """Temporarily let the model call other blocks."""
    body, attribute = body_of(model)
    before = body._modules[attribute]
    body._modules[attribute] = nn.ModuleList(blocks)
    try:
        yield
    finally:
        body._modules[attribute] = before


@torch.no_grad()
def returns_tuples(model: Any) -> list[bool]:
    """Whether each block returns a tuple; runs one token, once per model."""
    if model not in _returns_tuples:
        tuples: dict[int, bool] = {}
        with ExitStack() as stack:
            for layer, block in enumerate(model.blocks):
                note = partial(_note_type, tuples, layer)
                stack.callback(block.register_forward_hook(note).remove)
            model(torch.zeros(1, 1, dtype=torch.long, device=model.W_E.device), return_type=None)
        _returns_tuples[model] = [tuples[layer] for layer in range(len(tuples))]
    return _returns_tuples[model]


def _note_type(tuples: dict[int, bool], layer: int, _module: Any, _inputs: tuple, output: Any) -> None:
    tuples[layer] = isinstance(output, tuple)


@contextmanager
def starting(model: Any, layer: int, stream: Tensor) -> Iterator[None]:
    """Let a pass start at a layer: the blocks before it hand the given residual stream on."""
    blocks = list(model.blocks)
    tuples = returns_tuples(model)
    skipped = [
        StandIn(block, each, lambda _args, _kwargs: stream)
        for block, each in zip(blocks, tuples, strict=True)
    ][:layer]
    with replaced_blocks(model, [*skipped, *blocks[layer:]]):
        yield


@contextmanager
def replaced_forward(module: nn.Module, function: Callable) -> Iterator[None]:
    """Temporarily override `module.forward`, through `vars()` since a bridge delegates attributes."""
    before = vars(module).get("forward")
    vars(module)["forward"] = function
    try:
        yield
    finally:
        del vars(module)["forward"]
        if before is not None:
            vars(module)["forward"] = before


def is_library_hook(hook: Any) -> bool:
    """Whether a hook is a bridge's, or one that transformers leaves after it returned hidden states."""
    owner = getattr(hook, "__module__", None) or ""
    return owner.startswith(("transformer_lens.model_bridge", "transformers.utils.output_capturing"))
