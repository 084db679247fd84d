"""Functions of `backend` for a `TransformerBridge`, whose passes are those of the Hugging Face model."""

from collections.abc import Callable, Iterable
from contextlib import ExitStack, nullcontext
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from .bridge_blocks import replaced_forward, starting

PROBE = 2.0**12  # a power of two, so that sums are exact, and so large that a norm's epsilon is negligible

# On a bridge it is the second norm's input: a change there does not reach the skip connection.
READ_ONLY = {"resid_mid": "Add at attn_out of the same layer does the same"}


class _StopAtLayerError(BaseException):  # not an `Exception`, which code of the model might catch
    """Leaves a forward pass with the residual stream: a Hugging Face model cannot stop at a layer."""

    def __init__(self, stream: Tensor) -> None:
        self.stream = stream


@dataclass
class BridgeCache:
    """transformers' key-value cache, and the attention mask of all its slots."""

    keys_and_values: Any
    mask: Bool[Tensor, "batch past"]


def new_cache(model: Any, rows: int) -> BridgeCache:
    """An empty cache, of the class that the model itself would create."""
    from transformers import DynamicCache

    empty = torch.zeros(rows, 0, dtype=torch.bool, device=model.W_E.device)
    return BridgeCache(DynamicCache(config=model.original_model.config), empty)


def run(
    model: Any,
    tokens: Int[Tensor, "batch pos"],
    mask: Bool[Tensor, "batch pos"],
    stop_at_layer: int,
    cache: BridgeCache | None,
    start: Any = None,
) -> Float[Tensor, "batch pos d_model"]:
    """`backend.run`. The model is given the mask of cached tokens too; it computes positions from it."""
    options: dict[str, Any] = {}  # without a cache, not even use_cache=False: OLMo crashes with it
    if cache is not None:
        mask = cache.mask = torch.cat([cache.mask, mask], 1)
        options = {"use_cache": True, "past_key_values": cache.keys_and_values}

    def stop(_module: nn.Module, _inputs: tuple, output: Any) -> None:
        raise _StopAtLayerError(output[0] if isinstance(output, tuple) else output)

    with nullcontext() if start is None else starting(model, start.layer, start.stream):
        handle = model.blocks[stop_at_layer - 1].register_forward_hook(stop)
        try:
            model(tokens, attention_mask=mask.long(), return_type=None, **options)
        except _StopAtLayerError as stopped:
            return stopped.stream
        finally:
            handle.remove()
    raise RuntimeError(f"block {stop_at_layer - 1} of {model.cfg.model_name} did not run in its own pass.")


@torch.no_grad()
def unembedded(
    model: Any,
    stream: Float[Tensor, "batch d_model"],
    *,
    norm: Callable[[Tensor], Tensor] | None = None,
    head: Callable[[Tensor], Tensor] | None = None,
) -> Float[Tensor, "batch d_vocab"]:
    """`backend.unembedded`, by the Hugging Face model's own forward pass, with its scaling and caps.

    The body of the model is temporarily replaced by a function that returns the normed stream; `norm` and
    `head` replace the model's own.
    """
    body_output = _BodyOutput((norm or model.ln_final)(stream[:, None]))
    input_ids = torch.zeros(len(stream), 1, dtype=torch.long, device=stream.device)
    with ExitStack() as stack:
        for body in _bodies(model.original_model):
            stack.enter_context(replaced_forward(body, body_output.forward))
        if head is not None:
            stack.enter_context(replaced_forward(model.unembed, lambda hidden, **_: head(hidden)))
        # `forward`, since hooks on the call itself watch for passes.
        logits = model.original_model.forward(input_ids=input_ids, use_cache=False, return_dict=True).logits
    if not body_output.used:
        raise ValueError(
            f"{type(model.original_model).__name__} has no body separate from its head: its logits cannot be "
            "computed from a residual stream."
        )
    return logits[:, 0]


def _bodies(hf_model: Any) -> list[nn.Module]:
    """Modules that may compute the hidden states of a causal language model: everything but the head."""
    modules = [
        getattr(hf_model, "base_model", None),
        getattr(hf_model, "get_decoder", lambda: None)(),
        getattr(hf_model, "model", None),  # Llama 4's text model names another attribute as its base
    ]
    return [each for each in dict.fromkeys(modules) if isinstance(each, nn.Module) and each is not hf_model]


class _BodyOutput:
    """Stands in for the body's output: the normed stream; every other attribute is None."""

    used = False

    def __init__(self, normed: Tensor) -> None:
        self.last_hidden_state = normed

    def forward(self, *_: Any, **__: Any) -> "_BodyOutput":
        self.used = True
        return self

    def __getitem__(self, index: int | slice) -> Any:
        return (self.last_hidden_state,)[index]

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)


def unembedding(model: Any, dtype: torch.dtype, norm: bool) -> Callable[[Tensor], Tensor]:
    """`backend.unembedding`, from copies of the final norm and the head in `dtype`."""
    final, head = (deepcopy(part.original_component).to(dtype) for part in (model.ln_final, model.unembed))
    if norm:
        return lambda rows: unembedded(model, rows, norm=final, head=head)
    linear_norm, linear_head = _linear_norm(final, model.cfg.d_model, dtype), _linear_head(model, head, dtype)
    return lambda rows: linear_head(linear_norm(rows))


def scaled(rows: Float[Tensor, "row d_model"], weight: Tensor, centres: bool) -> Float[Tensor, "row d_model"]:
    """The linear part of a norm: its centring (LayerNorm only) and its weights."""
    rows = rows - rows.mean(-1, keepdim=True) if centres else rows
    return rows * weight.to(rows.device)


def _linear_norm(norm: Any, d_model: int, dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    """A norm without its division and biases; measured, since some multiply by 1 + weight or have none."""
    device = next((weight.device for weight in norm.parameters()), torch.device("cpu"))
    level = torch.full((d_model,), PROBE, dtype=dtype, device=device)
    alternating = level.clone()
    alternating[1::2] *= -1
    alternating -= alternating.mean()
    weight = _odd_part(norm, alternating) * alternating.pow(2).mean().sqrt() / alternating
    centres = bool(_odd_part(norm, level).abs().max() < 1e-2 * weight.abs().max())
    return lambda rows: scaled(rows, weight, centres)


@torch.no_grad()
def _odd_part(function: Callable[[Tensor], Tensor], x: Float[Tensor, " d_model"]) -> Tensor:
    """(f(x) − f(−x)) / 2: the output without biases."""
    positive, negative = function(torch.stack([x, -x])[:, None])[:, 0]
    return (positive - negative) / 2


def _linear_head(model: Any, head: Any, dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    """The head and the model's scaling of its logits, without a bias; the head alone if they are capped."""
    device = head.weight.device

    def logits(rows: Tensor) -> Tensor:
        return unembedded(model, rows.to(device), norm=lambda hidden: hidden, head=head)

    x = torch.full((1, model.cfg.d_model), PROBE, dtype=dtype, device=device)
    bias = logits(0 * x)
    once, twice = logits(x) - bias, logits(2 * x) - bias
    if (twice - 2 * once).norm() > 1e-2 * twice.norm():
        return lambda rows: rows.to(device) @ head.weight.T
    return lambda rows: logits(rows) - bias


def is_folded(model: Any) -> bool:
    """Whether the norms' weights were folded away; measured, since the config still names the norm."""
    if not (model.compatibility_mode or getattr(model, "_weights_processed", False)):
        return False
    weight = getattr(model.blocks[0].ln1, "weight", None)
    return weight is not None and bool((weight == weight[0]).all())


def block_weight(model: Any, layer: int, name: str) -> Tensor | None:
    """W_O, W_Q, W_V or W_out of a block in `HookedTransformer`'s shape; `None` if it cannot be read."""
    cfg, block = model.cfg, model.blocks[layer]
    if name == "W_out":
        return _matrix(getattr(getattr(block, "mlp", None), "out", None), cfg.d_mlp, cfg.d_model)
    projection = getattr(getattr(block, "attn", None), name[-1].lower(), None)
    if name == "W_O":
        weight = _matrix(projection, cfg.n_heads * cfg.d_head, cfg.d_model)
        pattern, heads = "(head d_head) d_model -> head d_head d_model", cfg.n_heads
    else:
        heads = cfg.n_heads if name == "W_Q" else getattr(cfg, "n_key_value_heads", None) or cfg.n_heads
        weight = _matrix(projection, cfg.d_model, heads * cfg.d_head)
        pattern = "d_model (head d_head) -> head d_model d_head"
    return None if weight is None else rearrange(weight, pattern, head=heads)


def _matrix(linear: Any, *shape: int | None) -> Float[Tensor, "d_in d_out"] | None:
    """Weight of a linear layer; `None` if it is packed or has another shape."""
    weight = getattr(linear, "weight", None)
    if weight is None or not weight.is_floating_point():
        return None
    if type(linear.original_component).__name__ != "Conv1D":  # GPT-2's is stored transposed
        weight = weight.T
    return weight if weight.shape == shape else None


def not_in_memory(name: str, devices: Iterable[str] = ("meta",)) -> ValueError:
    """The error for weights that are not in memory."""
    return ValueError(
        f"{name} has weights on {' and '.join(sorted(devices))}: they are offloaded, and cannot be read or "
        "run with hooks. Load it in fewer bits, in a smaller dtype, or over more devices."
    )
