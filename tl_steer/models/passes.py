"""Forward passes: exclusive use of a model, and the inputs of each pass.

Inputs are read by forward pre-hooks, before any other hook of the pass, for every caller of the model:
`model(tokens)`, `model.generate(…)`, `run_with_cache`. In a `HookedTransformer` the first block that runs has
the cached keys and the mask, and the embedding has the tokens; in a `TransformerBridge` the Hugging Face
model has all of them.
"""

import itertools
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from .._util.validation import warn
from .backend import is_bridge

WARN_AFTER = 60.0  # seconds that a thread waits for another before it warns

# Not an attribute of the model: a lock can be neither copied nor pickled.
_changed = threading.Condition()
_holders: "WeakKeyDictionary[nn.Module, list[threading.Thread]]" = WeakKeyDictionary()  # one per nested use
_waiting: dict[threading.Thread, nn.Module] = {}


@contextmanager
def exclusive(model: Any, *, evaluation: bool = True) -> Iterator[None]:
    """Keep other threads from running a model, with every module of it in evaluation mode until exit.

    Other threads that enter this for the same model, or for another bridge around the same Hugging Face
    model, wait; the same thread may enter again. `evaluation=False` leaves the modes as they are.

    Raises:
        RuntimeError: the other thread waits for a model that this one has.
    """
    module = model.original_model if is_bridge(model) else model
    _acquire(module)
    try:
        # Not `train()`, which sets whole subtrees; `vars`, since a bridge delegates attributes.
        modules = dict.fromkeys(itertools.chain(model.modules(), module.modules())) if evaluation else ()
        training = [each for each in modules if vars(each)["training"]]
        for each in training:
            vars(each)["training"] = False
        try:
            yield
        finally:
            for each in training:
                vars(each)["training"] = True
    finally:
        with _changed:
            _holders[module].pop()
            _changed.notify_all()


def _acquire(module: nn.Module) -> None:
    current = threading.current_thread()
    with _changed:
        while (holders := _holders.setdefault(module, [])) and holders[0] is not current:
            _require_no_deadlock(holders[0], current)
            _waiting[current] = module
            try:
                released = _changed.wait(WARN_AFTER)
            finally:
                del _waiting[current]
            if holders and not released:
                warn(
                    f"thread {current.name!r} has waited {WARN_AFTER:.0f} s for a model that thread "
                    f"{holders[0].name!r} uses. If that thread waits for this one, neither continues: let it "
                    "leave its `with steer(…)` block first.",
                    RuntimeWarning,
                )
        holders.append(current)


def _require_no_deadlock(holder: threading.Thread, current: threading.Thread) -> None:
    """Raise `RuntimeError` if `holder` waits, possibly through others, for a model that `current` holds."""
    thread = holder
    while thread in _waiting:
        others = _holders[_waiting[thread]]
        if current in others:
            raise RuntimeError(
                f"thread {current.name!r} needs a model that thread {holder.name!r} uses, and that one waits "
                f"for a model that {current.name!r} uses: expected models in one order. Steer several models "
                "in the same order in every thread."
            )
        if not others:  # released, and about to be acquired
            return
        thread = others[0]


@dataclass(frozen=True)
class ForwardPass:
    """The inputs of one pass of a model: rows × slots, padding included, after `past` cached slots."""

    rows: int
    slots: int
    past: int
    mask: Int[Tensor, "batch all"] | Bool[Tensor, "batch all"] | Float[Tensor, "batch all"] | None
    tokens: Int[Tensor, "batch pos"] | None  # None if the pass began after the embedding
    device: torch.device


Begin = Callable[[ForwardPass], None]


@contextmanager
def watching(model: Any, begin: Begin) -> Iterator[None]:
    """Call `begin` at the start of each pass of the model, until exit."""
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
                entry = kwargs.get("past_kv_cache_entry")
                past = 0 if entry is None else entry.past_keys.shape[1]
                ids = tokens if tokens is not None and tokens.shape == stream.shape[:2] else None
                begin(ForwardPass(*stream.shape[:2], past, kwargs.get("attention_mask"), ids, stream.device))
                tokens = None
            last_block = number

        return enter

    yield model.embed.register_forward_pre_hook(at_embedding)
    for number, block in enumerate(model.blocks):
        yield block.register_forward_pre_hook(at_block(number), with_kwargs=True)


def _watch_bridge(model: Any, begin: Begin) -> Iterator[Any]:
    def enter(_module: Any, inputs: tuple, kwargs: dict) -> None:
        tokens = inputs[0] if inputs else kwargs.get("input_ids")
        embedded = kwargs["inputs_embeds"] if tokens is None else tokens
        cached, mask = kwargs.get("past_key_values"), kwargs.get("attention_mask")
        if mask is not None and not (isinstance(mask, Tensor) and mask.ndim == 2):
            raise ValueError(
                "the pass has an attention mask that is not one number per row and token: expected the "
                "two-dimensional mask, which shows where the tokens are. Leave the rest to the model."
            )
        past = 0 if cached is None else int(cached.get_seq_length())
        begin(ForwardPass(*embedded.shape[:2], past, mask, tokens, embedded.device))

    yield model.original_model.register_forward_pre_hook(enter, with_kwargs=True)
