"""Packed tokens through the blocks of a Hugging Face decoder in a `TransformerBridge`.

The model's own forward pass gives each block its arguments (rotations, among others): it runs with stand-ins
that record them. The blocks then run on packed tokens, with an attention function in place of transformers'
own: registered with `AttentionInterface`, or called instead of `scaled_dot_product_attention`.
"""

import threading
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode
from transformers import AttentionInterface, Cache
from transformers.masking_utils import AttentionMaskInterface, causal_mask_function

from ...models.bridge_blocks import (
    StandIn,
    body_of,
    is_library_hook,
    replaced_blocks,
    replaced_forward,
    returns_tuples,
    stream_of,
)
from .attention import AttentionLayer, PackedAttention, PackedModel, RunBlocks

# Names of attention functions. Only with the second does transformers make masks, for which it reads the
# positions: each read would wait for a GPU.
PACKED, EXAMINED = "tl_steer_packed", "tl_steer_examined"
_HANDLER = "_tl_steer_attend"  # attribute of an attention module while its layer is packed
_IGNORED = {"cache_position", "dropout", "is_causal", "position_ids", "use_cache"}
_LENGTH_DEPENDENT = ("dynamic", "longrope")  # rotary types
Arguments = list[tuple[tuple, dict[str, Any]]]  # positional and keyword arguments of each block
_discovery = threading.local()


class NotPackableError(ValueError):
    """The reason why a model's blocks cannot run on packed tokens."""


class _KeysStoredError(BaseException):
    """Leaves a block after its keys and values; not an `Exception`, which code of the model might catch."""


class PackedBridge(PackedModel):
    """A decoder whose attention layers call an attention function with rotated queries and keys.

    Raises:
        ValueError: the model has parts that this does not support.
    """

    def __init__(self, model: Any) -> None:
        self._model = weakref.ref(model)
        self.blocks = list(model.blocks)
        self.body, _ = body_of(model)
        modules = [self.body, *(module for block in self.blocks for module in block.modules())]
        configs = [getattr(module, "config", None) for module in modules]
        self.configs = list(
            {id(each): each for each in configs if hasattr(each, "_attn_implementation")}.values()
        )
        if any(rotary in _LENGTH_DEPENDENT for config in self.configs for rotary in _rotary_types(config)):
            raise NotPackableError("its rotary embedding depends on the length of the prompt")
        self.weight, self.d_model = model.W_E, model.cfg.d_model
        self._arguments: Arguments = [((), {})] * len(self.blocks)
        self._last: tuple[Tensor | None, Arguments] = None, []  # positions, and what the blocks get for them
        self._stand_ins = [
            StandIn(block, returns_tuple, partial(self._record, layer))
            for layer, (block, returns_tuple) in enumerate(
                zip(self.blocks, returns_tuples(model), strict=True)
            )
        ]
        self.uses_interface = True
        try:
            self._discover()
        except NotPackableError:
            self.uses_interface = False
            self._discover()
        heads = model.cfg.n_heads * self.key_shape[1]
        self.widest = 4 * (getattr(model.cfg, "d_mlp", None) or 0) + 8 * self.d_model + 4 * heads

    def embedded(
        self, tokens: Int[Tensor, " token"], index: Int[Tensor, " token"]
    ) -> Float[Tensor, "token d_model"]:
        """The first block's input for tokens at these absolute positions."""
        if not len(tokens):  # transformers has no empty pass
            return self.weight.new_empty(0, self.d_model)
        with self._attending(None):
            return stream_of(*self.arguments(index, input_ids=tokens[None])[0])[0]

    @contextmanager
    def packed(self, attention: PackedAttention, length: int) -> Iterator[RunBlocks]:
        """Replace the attention of each block."""
        run = _Run(self, attention)
        with self._attending(run.attend):
            yield run

    def has_hooks(self, layer: int) -> bool:
        """Whether anything is read or changed inside a block, but by TransformerLens itself."""
        hooks = (hook for module in self.blocks[layer].modules() for hook in module._forward_hooks.values())
        return not all(map(is_library_hook, hooks))

    def arguments(self, index: Int[Tensor, " token"], **inputs: Tensor) -> Arguments:
        """What the model gives each block for tokens at these positions, without mask and cache.

        Args:
            inputs: `input_ids` "1 token" or `inputs_embeds` "1 token d_model".
        """
        with replaced_blocks(self._model(), self._stand_ins):
            self.body(position_ids=index[None], use_cache=False, **inputs)
        self._last = index, list(self._arguments)
        return self._last[1]

    def _record(self, layer: int, args: tuple, kwargs: dict[str, Any]) -> Tensor:
        """Note a block's arguments without masks and caches; its output is its input."""

        def value_of(value: Any, name: str = "") -> Any:
            return None if "mask" in name or isinstance(value, Cache) else value

        named = {name: value_of(value, name) for name, value in kwargs.items()}
        self._arguments[layer] = tuple(map(value_of, args)), named
        return stream_of(args, kwargs)

    @contextmanager
    def _attending(self, attend: Callable | None, implementation: str = PACKED) -> Iterator[None]:
        """Let every attention layer call `attend(layer, q, k, v, mask, **options)`."""
        with ExitStack() as stack:
            for config in self.configs:
                stack.callback(setattr, config, "_attn_implementation", config._attn_implementation)
                config._attn_implementation = implementation
            for layer, block in enumerate(self.blocks if attend else ()):
                attn = block.attn
                handler = partial(attend, layer)
                vars(attn.original_component)[_HANDLER] = handler
                stack.callback(vars(attn.original_component).pop, _HANDLER)
                forward = partial(_forward, attn, None if self.uses_interface else handler)
                stack.enter_context(replaced_forward(attn, forward))
                if (handle := _hook_of_projection(attn)) is not None:
                    stack.callback(handle.remove)
            yield

    @torch.no_grad()
    def _discover(self) -> None:
        """Run two tokens, and note what each attention layer does."""
        layers: dict[int, AttentionLayer] = {}
        shapes = set()

        def attend(
            layer: int, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, **options: Any
        ) -> Tensor:
            if layer in layers:
                raise NotPackableError(f"block {layer} calls its attention function several times")
            layers[layer] = _attention_layer(layer, q, mask, options)
            shapes.add((k.shape[1], k.shape[3], v.shape[1], v.shape[3]))
            return v.repeat_interleave(q.shape[1] // v.shape[1], 1).transpose(1, 2)

        index = torch.arange(2, device=self.weight.device)
        _discovery.length = self._model().cfg.n_ctx
        try:
            with self._attending(attend, EXAMINED):
                self.body(input_ids=index[None], position_ids=index[None], use_cache=False)
        except (NotPackableError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            raise NotPackableError(f"its blocks need their own attention: {error}") from error
        finally:
            del _discovery.length
        if missing := sorted(set(range(len(self.blocks))) - set(layers)):
            raise NotPackableError(f"block {missing[0]} calls no attention function")
        if len(shapes) > 1:
            raise NotPackableError("its layers have keys of different shapes")
        self.layers = tuple(layers[layer] for layer in range(len(self.blocks)))
        ((key_heads, d_key, value_heads, d_value),) = shapes
        self.key_shape, self.value_shape = (key_heads, d_key), (value_heads, d_value)


class _Run:
    """Runs blocks on packed tokens; `RunBlocks` of a bridge."""

    def __init__(self, model: PackedBridge, attention: PackedAttention) -> None:
        self.model, self.attention = model, attention
        self._arguments: dict[Any, Arguments] = {}
        self._stored: tuple[Tensor, Tensor] | None = None
        self._is_storing = False

    def __call__(
        self, start: int, stop: int, stream: Float[Tensor, "token d_model"]
    ) -> Float[Tensor, "token d_model"]:
        stream, attention = stream[None], self.attention
        if attention.key_inputs is not None:
            self._store_keys(start, *attention.key_inputs)
        if not stream.shape[1]:  # transformers has no empty pass
            (k, v), self._stored = self._stored, None
            attention.attend(self.model.layers[start], k[:0], k, v)
            return stream[0]
        arguments = self._arguments_of(attention.pass_id, attention.index, stream)
        for layer in range(start, stop):
            stream = self._block(layer, stream, arguments)
        self._stored = None
        return stream[0]

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, *_: Any, **__: Any) -> Tensor:
        """The attention function of transformers, for one row of packed tokens."""
        q, k, v = (part[0].transpose(0, 1) for part in (q, k, v))
        if self._is_storing:
            self._stored = k, v
            raise _KeysStoredError
        k, v = self._stored or (k, v)
        return self.attention.attend(self.model.layers[layer], q, k, v)[None]

    def _store_keys(self, layer: int, stream: Tensor, index: Int[Tensor, " key"]) -> None:
        """Compute keys and values of tokens that do not go through the block."""
        self._is_storing = True
        try:
            self._block(layer, stream, self._arguments_of(None, index, stream))
        except _KeysStoredError:
            pass
        finally:
            self._is_storing = False

    def _arguments_of(self, pass_id: Any, index: Tensor, stream: Tensor) -> Arguments:
        if index is self.model._last[0]:  # of the embedding of the same tokens
            return self.model._last[1]
        if pass_id is None:
            return self.model.arguments(index, inputs_embeds=stream)
        if pass_id not in self._arguments:
            self._arguments[pass_id] = self.model.arguments(index, inputs_embeds=stream)
        return self._arguments[pass_id]

    def _block(self, layer: int, stream: Tensor, arguments: Arguments) -> Tensor:
        args, kwargs = arguments[layer]
        if args:
            output = self.model.blocks[layer](stream, *args[1:], **kwargs)
        else:
            output = self.model.blocks[layer](**{**kwargs, "hidden_states": stream})
        return output[0] if isinstance(output, tuple) else output


class _InsteadOfSdpa(TorchFunctionMode):
    """Calls a function in place of `scaled_dot_product_attention`."""

    def __init__(self, attend: Callable) -> None:
        super().__init__()
        self.attend = attend

    def __torch_function__(
        self, function: Callable, types: Any, args: tuple = (), kwargs: Mapping | None = None
    ) -> Any:
        options = dict(kwargs or {})
        if function is not scaled_dot_product_attention:
            return function(*args, **options)
        mask, scaling = options.pop("attn_mask", None), options.pop("scale", None)
        options = {name: value for name, value in options.items() if name not in ("dropout_p", "is_causal")}
        return self.attend(*args[:3], *(args[3:4] or (mask,)), scaling=scaling, **options).transpose(1, 2)


def _forward(attn: Any, handler: Callable | None, *args: Any, **kwargs: Any) -> Any:
    """A bridge's attention: the original module between the hooks of its input and output.

    Args:
        handler: is called in place of `scaled_dot_product_attention`, if given.
    """
    original = attn.original_component
    if "hidden_states" in kwargs:
        kwargs["hidden_states"] = attn.hook_in(kwargs["hidden_states"])
    else:
        args = (attn.hook_in(args[0]), *args[1:])
    if handler is None:
        output = original.forward(*args, **kwargs)
    else:
        implementation, original.config._attn_implementation = original.config._attn_implementation, "sdpa"
        try:
            with _InsteadOfSdpa(handler):
                output = original.forward(*args, **kwargs)
        finally:
            original.config._attn_implementation = implementation
    return (attn.hook_out(output[0]), *output[1:]) if isinstance(output, tuple) else attn.hook_out(output)


def _hook_of_projection(attn: Any) -> Any:
    """Let the bridge's hook "z" fire, where the original module does not call the bridge's projection."""
    projection = getattr(attn, "o", None)
    parts = list(attn.original_component.modules())
    if projection is None or projection in parts or projection.original_component not in parts:
        return None
    return projection.original_component.register_forward_pre_hook(
        lambda _module, inputs: (projection.hook_in(inputs[0]), *inputs[1:])
    )


def _attention_layer(layer: int, q: Tensor, mask: Tensor | None, options: dict[str, Any]) -> AttentionLayer:
    """A layer's attention, from what its attention function is given."""
    scaling, soft_cap, sinks = (options.pop(name, None) for name in ("scaling", "softcap", "s_aux"))
    options.pop("sliding_window", None)  # the mask decides
    unknown = [name for name, value in options.items() if name not in _IGNORED and value not in (None, False)]
    if unknown:
        raise NotPackableError(f"the attention of block {layer} takes {', '.join(unknown)}")
    if mask is None or mask.shape[-2] != 2 or mask.shape[-1] != getattr(_discovery, "length", None):
        raise NotPackableError(f"block {layer} makes its own attention mask")
    scale = q.shape[-1] ** -0.5 if scaling is None else float(scaling)
    return AttentionLayer(layer, scale, soft_cap, _window(layer, mask[0, 0]), sinks)


def _window(layer: int, visible: Tensor) -> int | None:
    """The window of a mask's last two queries."""
    length = visible.shape[1]
    counts = visible.sum(1).tolist()
    if counts == [length - 1, length]:
        return None
    window = counts[1]
    expected = torch.zeros_like(visible)
    expected[0, length - 1 - window : length - 1] = expected[1, length - window :] = True
    if not torch.equal(visible, expected):
        raise NotPackableError(f"block {layer} sees other tokens than the last ones")
    return window


def _mask(*_: Any, mask_function: Callable = causal_mask_function, device: Any = None, **__: Any) -> Tensor:
    """What the last two queries of the whole context see."""
    keys = torch.arange(_discovery.length)
    zero = torch.zeros((), dtype=torch.long)
    return torch.stack([mask_function(zero, zero, query, keys) for query in keys[-2:]])[None, None]


def _dispatch(
    module: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """The function that transformers calls: that of the module's layer."""
    return vars(module)[_HANDLER](q, k, v, mask, **options), None


for implementation in (PACKED, EXAMINED):
    AttentionInterface.register(implementation, _dispatch)
AttentionMaskInterface.register(EXAMINED, _mask)


def _rotary_types(config: Any) -> Iterator[str]:
    """All rotary types that a config names."""
    rotary = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    for each in (rotary, *rotary.values()):
        if isinstance(each, Mapping):
            yield each.get("rope_type") or each.get("type") or ""
