"""What is done in another way on a `TransformerBridge`, whose passes are the Hugging Face model's own."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from .equality import cause_of, probe, reference

EXACT, ROUNDED = 1e-3, 0.05  # of the logits' length: what a bridge may differ by in float32, and in less

READ_ONLY = {
    # On a bridge it is the second norm's input: what is changed there does not reach the skip connection.
    "resid_mid": "Add at attn_out of the same layer does the same",
}


class _Reached(BaseException):
    """Leaves a forward pass with the stream: a Hugging Face model has no other way to stop at a layer.

    Not an `Exception`, which something on the way might handle.
    """

    def __init__(self, stream: Tensor) -> None:
        self.stream = stream


@dataclass
class BridgeCache:
    """Keys and values as transformers keeps them, and the mask of all slots that they belong to."""

    keys_and_values: Any
    mask: Bool[Tensor, "batch past"]


def new_cache(model: Any, rows: int) -> BridgeCache:
    """An empty cache, of the kind that the model makes for itself."""
    from transformers import DynamicCache

    empty = torch.zeros(rows, 0, dtype=torch.bool, device=model.W_E.device)
    return BridgeCache(DynamicCache(config=model.original_model.config), empty)


def run(
    model: Any,
    tokens: Int[Tensor, "batch pos"],
    mask: Bool[Tensor, "batch pos"],
    stop_at_layer: int,
    cache: BridgeCache | None,
) -> Float[Tensor, "batch pos d_model"]:
    """`backend.run`. The mask given to the model covers what is cached; positions follow from it."""
    options: dict[str, Any] = {}  # of a cache that is not wanted nothing is said: OLMo crashes without one
    if cache is not None:
        mask = cache.mask = torch.cat([cache.mask, mask], 1)
        options = {"use_cache": True, "past_key_values": cache.keys_and_values}
    handle = model.blocks[stop_at_layer - 1].register_forward_hook(_leave)
    try:
        model(tokens, attention_mask=mask.long(), return_type=None, **options)
    except _Reached as reached:
        return reached.stream
    finally:
        handle.remove()
    raise RuntimeError(f"block {stop_at_layer - 1} of {model.cfg.model_name} did not run in its own pass.")


def _leave(_module: nn.Module, _inputs: tuple, output: Any) -> None:
    raise _Reached(output[0] if isinstance(output, tuple) else output)


@torch.no_grad()
def unembedded(
    model: Any,
    stream: Float[Tensor, "batch d_model"],
    *,
    norm: Callable[[Tensor], Tensor] | None = None,
    head: Callable[[Tensor], Tensor] | None = None,
) -> Float[Tensor, "batch d_vocab"]:
    """`backend.unembedded`: by the Hugging Face model's own forward pass, whatever it scales or caps.

    Its body is replaced for the moment by one that gives the normed stream.

    Args:
        norm, head: to use instead of the model's final norm and of its unembedding.
    """
    normed = _Hidden((norm or model.ln_final)(stream[:, None]))
    given = torch.zeros(len(stream), 1, dtype=torch.long, device=stream.device)
    with ExitStack() as stack:
        for body in _bodies(model.original_model):
            stack.enter_context(_forward(body, normed.given))
        if head is not None:
            stack.enter_context(_forward(model.unembed, lambda hidden, **_: head(hidden)))
        # Not by calling the model itself, whose hooks watch for passes.
        logits = model.original_model.forward(input_ids=given, use_cache=False, return_dict=True).logits
    if not normed.was_given:
        raise ValueError(
            f"{type(model.original_model).__name__} does not get its logits from a body that can be told "
            "from its head, so that none can be had from a stream alone."
        )
    return logits[:, 0]


def _bodies(hf_model: Any) -> list[nn.Module]:
    """What a causal language model may call to get its hidden states: all of it but the head."""
    found = [
        getattr(hf_model, "base_model", None),
        getattr(hf_model, "get_decoder", lambda: None)(),
        getattr(hf_model, "model", None),  # Llama 4's text model names another attribute as its base
    ]
    return [body for body in dict.fromkeys(found) if isinstance(body, nn.Module) and body is not hf_model]


@contextmanager
def _forward(module: nn.Module, function: Callable) -> Iterator[None]:
    """While this is entered, a module computes something else. By `vars`: a bridge hands attributes on."""
    before = vars(module).get("forward")
    vars(module)["forward"] = function
    try:
        yield
    finally:
        del vars(module)["forward"]
        if before is not None:
            vars(module)["forward"] = before


class _Hidden:
    """What a head asks of its body: the normed stream. Whatever else it may ask is not there."""

    was_given = False

    def __init__(self, normed: Tensor) -> None:
        self.last_hidden_state = normed

    def given(self, *_: Any, **__: Any) -> "_Hidden":
        self.was_given = True
        return self

    def __getitem__(self, place: int | slice) -> Any:
        return (self.last_hidden_state,)[place]

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)


def is_folded(model: Any) -> bool:
    """Whether the norms' weights were folded away, as `enable_compatibility_mode()` does.

    Measured: the bridge's config goes on to name the norm that the Hugging Face model has.
    """
    if not (model.compatibility_mode or getattr(model, "_weights_processed", False)):
        return False
    weight = getattr(model.blocks[0].ln1, "weight", None)
    return weight is not None and bool((weight == weight[0]).all())


def block_weight(model: Any, layer: int, name: str) -> Tensor | None:
    """A weight of a block by `HookedTransformer`'s name and in its shape: W_O, W_Q, W_V or W_out.

    `None` where it cannot be read: packed in 4 bits, or no such attention or MLP.
    """
    cfg, block = model.cfg, model.blocks[layer]
    attention = getattr(block, "attn", None)
    if name == "W_O":
        weight = _matrix(getattr(attention, "o", None), cfg.n_heads * cfg.d_head, cfg.d_model)
        return None if weight is None else weight.unflatten(0, (cfg.n_heads, cfg.d_head))
    if name == "W_out":
        return _matrix(getattr(getattr(block, "mlp", None), "out", None), cfg.d_mlp, cfg.d_model)
    heads = cfg.n_heads if name == "W_Q" else getattr(cfg, "n_key_value_heads", None) or cfg.n_heads
    weight = _matrix(getattr(attention, name[-1].lower(), None), cfg.d_model, heads * cfg.d_head)
    return None if weight is None else weight.unflatten(1, (heads, cfg.d_head)).movedim(1, 0)


def _matrix(layer: Any, *shape: int | None) -> Float[Tensor, "d_in d_out"] | None:
    """A linear layer's weight, `None` where it is packed, or another layer than was looked for."""
    weight = getattr(layer, "weight", None)
    if weight is None or not weight.is_floating_point():
        return None
    if type(layer.original_component).__name__ != "Conv1D":  # GPT-2's, which is stored the other way round
        weight = weight.T
    return weight if weight.shape == shape else None


@torch.no_grad()
def wrapped(hf_model: Any, name: str, *, check: bool = True) -> Any:
    """A `TransformerBridge` around a Hugging Face model, which it is put into: no copy is made.

    Some architectures' bridges do not compute what the model did (Cohere's of 3.9 is off by half a logit), or
    not in a step with cached keys and values (MPT's, Mamba's), so probe tokens are run before and after,
    unless `check` is False.

    Raises:
        ValueError: an architecture that TransformerLens has no bridge for, or one that changes its numbers.
    """
    from transformer_lens.model_bridge.sources import build_bridge_from_module

    kind = type(hf_model).__name__
    tokens = probe(hf_model)
    with reference(hf_model, rounded_buffers=True):  # as the bridge will run it
        before = hf_model(tokens).logits[0] if check else None
    try:
        model = build_bridge_from_module(hf_model.eval(), kind, hf_config=hf_model.config, model_name=name)
        after = unembedded(model, run(model, tokens, tokens >= 0, model.cfg.n_layers, None)[0])
    except Exception as error:
        raise ValueError(f"TransformerLens's bridge cannot run {kind}: {cause_of(error)}.") from error
    model.cfg.n_devices = max(1, len(set((getattr(hf_model, "hf_device_map", None) or {}).values())))
    if not check:
        return model
    close = _close(hf_model.dtype)
    if not (off := _off(after, before)) < close:
        raise ValueError(
            f"TransformerLens's bridge changes what {kind} computes: its logits are off by {off:.1%}. "
            "Try backend='hooked', which is compared too, or another version of TransformerLens."
        )
    _require_cache(model, tokens, before[-1:], close)
    return model


@torch.no_grad()
def process(model: Any, steps: Mapping[str, bool]) -> None:
    """TransformerLens's own processing of a bridge's weights, in place.

    Raises:
        ValueError: it breaks on this architecture, or leaves a model that does not run or predicts otherwise.
    """
    tokens = probe(model.original_model)

    def predicted() -> Float[Tensor, "pos d_vocab"]:
        stream = run(model, tokens, tokens >= 0, model.cfg.n_layers, None)[0]
        return unembedded(model, stream).float().log_softmax(-1)  # centring moves all logits alike

    before = predicted()
    try:
        model.enable_compatibility_mode(disable_warnings=True, **steps)
        off = _off(predicted(), before)
        wrong = "" if off < _close(model.cfg.dtype) else f"its log-probabilities are off by {off:.1%}"
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        wrong = cause_of(error)
    if wrong:
        asked = ", ".join(step for step, is_asked in steps.items() if is_asked)
        raise ValueError(
            f"TransformerLens cannot process its bridge of {type(model.original_model).__name__} by {asked}: "
            f"{wrong}. Leave that out of processing=…, or use backend='hooked'."
        )


def _close(dtype: torch.dtype) -> float:
    return EXACT if dtype == torch.float32 else ROUNDED


def require_in_memory(hf_model: Any, name: str) -> None:
    """Refuse a model that accelerate fetches part of from elsewhere whenever that part runs.

    Raises:
        ValueError: some weights are on the device "meta", or said to be on disk.
    """
    devices = {str(device) for device in (getattr(hf_model, "hf_device_map", None) or {}).values()}
    devices |= {weight.device.type for weight in hf_model.parameters()}
    if away := devices & {"disk", "meta"}:
        raise not_in_memory(name, away)


def not_in_memory(name: str, away: Iterable[str] = ("meta",)) -> ValueError:
    """For weights that hold no numbers where they are."""
    return ValueError(
        f"{name} has weights on {' and '.join(sorted(away))}: they are not in memory, and cannot be read or "
        "run with hooks. It was offloaded to the CPU or to disk for want of room: load it in fewer bits, in "
        "a smaller dtype, or over more devices."
    )


def _require_cache(model: Any, tokens: Tensor, last: Float[Tensor, "1 d_vocab"], close: float) -> None:
    """Refuse a bridge whose logits of the last token are others behind cached keys and values."""
    mask = tokens >= 0
    try:
        cache = new_cache(model, 1)
        for part in (slice(None, -1), slice(-1, None)):
            stream = run(model, tokens[:, part], mask[:, part], model.cfg.n_layers, cache)
        off = _off(unembedded(model, stream[0, -1:]), last)
        wrong = "" if off < close else f"its logits are off by {off:.1%}"
    except Exception as error:
        wrong = cause_of(error)
    if wrong:
        raise ValueError(
            f"TransformerLens's bridge cannot run {type(model.original_model).__name__} a token at a time, "
            f"with keys and values cached, as texts are written: {wrong}. Use backend='hooked', if "
            "TransformerLens can convert it, or another version of TransformerLens."
        )


def _off(found: Tensor, expected: Tensor) -> float:
    """The distance, as a part of the length of what is expected."""
    expected = expected.float()
    return float((found.float().to(expected.device) - expected).norm() / expected.norm())
