"""Put a Hugging Face model into a `TransformerBridge`, and check that the bridge computes the same."""

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .bridge import new_cache, not_in_memory, run, unembedded
from .equality import cause_of, probe, reference
from .weights import possible_steps

EXACT, ROUNDED = 1e-3, 0.05  # allowed relative error of logits, in float32 and in half precision


def load_bridge(
    name: str,
    hf_model: Any,
    steps: Mapping[str, bool],
    dtype: torch.dtype | None,
    device: str | None,
    *,
    check: bool,
    copy_changed: bool,
) -> Any:
    """A checked bridge, with its weights processed; `None` leaves the model's dtype or device.

    Args:
        copy_changed: copy the model if its weights would change, because they are the user's.
    """
    changes: dict[str, Any] = {} if dtype in (None, hf_model.dtype) else {"dtype": dtype}
    mapped = getattr(hf_model, "hf_device_map", None)
    if device is not None and not mapped and not _is_same(hf_model.device, torch.device(device)):
        changes["device"] = device
    if copy_changed and (changes or any(steps.values())):
        hf_model = copy.deepcopy(hf_model)
    model = wrapped(hf_model.to(**changes) if changes else hf_model, name, check=check)
    possible = possible_steps(steps, model.cfg)
    if any(possible.values()):
        process(model, possible)
    return model


def _is_same(device: torch.device, requested: torch.device) -> bool:
    """A missing index matches any: a model on "cuda:1" is on "cuda"."""
    any_index = None in (device.index, requested.index)
    return device.type == requested.type and (any_index or device.index == requested.index)


@torch.no_grad()
def wrapped(hf_model: Any, name: str, *, check: bool = True) -> Any:
    """Wrap a Hugging Face model in a `TransformerBridge`; the model is not copied.

    Some bridges do not compute what the model computes (Cohere's of 3.9 is off by half a logit), or not in a
    decode step with a cache (MPT's, Mamba's): `check` raises ValueError if logits on probe tokens change.
    """
    from transformer_lens.model_bridge.sources import build_bridge_from_module

    architecture, tokens = type(hf_model).__name__, probe(hf_model)
    with reference(hf_model, rounded_buffers=True):  # as the bridge will run it
        before = hf_model(tokens).logits[0] if check else None
    try:
        model = build_bridge_from_module(
            hf_model.eval(), architecture, hf_config=hf_model.config, model_name=name
        )
        after = _logits(model, tokens)
    except Exception as error:
        raise ValueError(f"TransformerLens's bridge cannot run {architecture}: {cause_of(error)}.") from error
    model.cfg.n_devices = max(1, len(set((getattr(hf_model, "hf_device_map", None) or {}).values())))
    if not check:
        return model
    hint = "Use backend='hooked', or another version of TransformerLens."
    if problem := _problem(lambda: after, before, hf_model.dtype):
        raise ValueError(f"TransformerLens's bridge changes what {architecture} computes: {problem}. {hint}")
    if problem := _problem(lambda: _decode_step(model, tokens), before[-1:], hf_model.dtype):
        raise ValueError(
            f"TransformerLens's bridge cannot run {architecture} a token at a time with cached keys and "
            f"values, as generation does: {problem}. {hint}"
        )
    return model


@torch.no_grad()
def process(model: Any, steps: Mapping[str, bool]) -> None:
    """Apply TransformerLens's processing to a bridge's weights, in place; predictions must stay the same."""
    tokens = probe(model.original_model)

    def log_probabilities() -> Float[Tensor, "pos d_vocab"]:
        return _logits(model, tokens).float().log_softmax(-1)  # centring moves all logits alike

    def processed() -> Float[Tensor, "pos d_vocab"]:
        model.enable_compatibility_mode(disable_warnings=True, **steps)
        return log_probabilities()

    if problem := _problem(processed, log_probabilities(), model.cfg.dtype, "log-probabilities"):
        requested = ", ".join(step for step, is_requested in steps.items() if is_requested)
        raise ValueError(
            f"TransformerLens cannot process its bridge of {type(model.original_model).__name__} by "
            f"{requested}: {problem}. Leave that out of processing=…, or use backend='hooked'."
        )


def require_in_memory(hf_model: Any, name: str) -> None:
    """Raise `ValueError` if some weights are on "meta" or on disk, from where accelerate loads them."""
    devices = {str(device) for device in (getattr(hf_model, "hf_device_map", None) or {}).values()}
    devices |= {weight.device.type for weight in hf_model.parameters()}
    if offloaded := devices & {"disk", "meta"}:
        raise not_in_memory(name, offloaded)


def _logits(model: Any, tokens: Int[Tensor, "1 pos"]) -> Float[Tensor, "pos d_vocab"]:
    return unembedded(model, run(model, tokens, tokens >= 0, model.cfg.n_layers, None)[0])


def _decode_step(model: Any, tokens: Int[Tensor, "1 pos"]) -> Float[Tensor, "1 d_vocab"]:
    """Logits of the last token, with the keys and values of all others cached."""
    cache, n_layers = new_cache(model, 1), model.cfg.n_layers
    for part in (tokens[:, :-1], tokens[:, -1:]):
        stream = run(model, part, part >= 0, n_layers, cache)
    return unembedded(model, stream[0, -1:])


def _problem(
    compute: Callable[[], Tensor], expected: Tensor, dtype: torch.dtype, quantity: str = "logits"
) -> str:
    """Why a computation fails or differs from the expected values; "" if it does not."""
    try:
        values = compute().float()
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        return cause_of(error)
    expected, allowed = expected.float(), EXACT if dtype == torch.float32 else ROUNDED
    off = float((values.to(expected.device) - expected).norm() / expected.norm())
    return "" if off < allowed else f"its {quantity} are off by {off:.1%}"
