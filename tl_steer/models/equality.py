"""Compare a loaded model with the Hugging Face model it was made from, on fixed probe tokens."""

import copy
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import psutil
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

LENGTH = 320  # tokens: enough to show scaled positions and short attention windows
TOLERANCE = 1e-3  # nats, in float32; correct conversions are within 1e-5, dropped settings off by 0.1 to 2
NOISE = 3.0  # allowed multiple of the difference that half precision itself makes
MEMORY = 0.5  # share of the free memory that copies for a comparison may take
SIZES = re.compile(  # settings of a model's size or its tokens, not of what it computes
    r"size|^(n|num|max)_|_dim$|_ids?$|token|dtype|name|architectures|version|^_|initializer|dropout|cache"
    r"|^(head_dim|d_model|n_embd|output_|return_|is_|chunk|problem|id2label|label2id|model_type|pretraining)"
)


def probe(hf_model: Any) -> Int[Tensor, "1 pos"]:
    """Fixed random token ids on the model's device: `LENGTH` of them, or as many as the context holds."""
    config = hf_model.config.get_text_config()
    context = getattr(config, "max_position_embeddings", None) or getattr(config, "max_seq_len", None)
    vocabulary = hf_model.get_input_embeddings().weight
    first, shape = min(3, len(vocabulary) - 1), (1, min(LENGTH, context or LENGTH))
    ids = torch.randint(first, len(vocabulary), shape, generator=torch.Generator().manual_seed(0))
    return ids.to(vocabulary.device)


@torch.no_grad()
def log_probabilities(
    model: Callable[[Tensor], Any], tokens: Int[Tensor, "1 pos"]
) -> Float[Tensor, "pos d_vocab"]:
    """Next-token log-probabilities at every probe token, in float32 on the CPU."""
    logits = model(tokens)
    return getattr(logits, "logits", logits)[0].float().log_softmax(-1).cpu()


def difference(values: Float[Tensor, "pos d_vocab"], expected: Float[Tensor, "pos d_vocab_"]) -> float:
    """Root mean square difference; TransformerLens's vocabulary may be larger than the expected one."""
    return float((values[:, : expected.shape[-1]] - expected).double().pow(2).mean().sqrt())


@contextmanager
def reference(hf_model: Any, *, rounded_buffers: bool = False) -> Iterator[None]:
    """Run a Hugging Face model as an oracle until exit: evaluation mode, attention that has soft caps.

    Args:
        rounded_buffers: leave buffers as they are. `.to(torch.bfloat16)` rounds rotary frequencies and the
            scale of embeddings, `from_pretrained(dtype=torch.bfloat16)` does not.
    """
    modes = [(module, module.training) for module in hf_model.modules()]
    attention = hf_model.config._attn_implementation
    exact = [] if rounded_buffers else list(_exact_buffers(hf_model))
    rounded = [(module, name, getattr(module, name)) for module, name, _ in exact]
    hf_model.eval()
    hf_model.set_attn_implementation("eager")
    for module, name, buffer in exact:
        setattr(module, name, buffer)
    try:
        yield
    finally:
        hf_model.set_attn_implementation(attention)
        for module, mode in modes:
            module.training = mode
        for module, name, buffer in rounded:
            setattr(module, name, buffer)


def _exact_buffers(hf_model: Any) -> Iterator[tuple[nn.Module, str, Tensor]]:
    """Buffers in half precision, with their values before a cast rounded them."""
    for module in hf_model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            if buffer.dtype not in (torch.bfloat16, torch.float16):
                continue
            if name == "inv_freq":
                yield module, name, type(module)(config=module.config).inv_freq.to(buffer.device)
            elif name == "embed_scale":
                yield module, name, torch.tensor(module.scalar_embed_scale, device=buffer.device)


@contextmanager
def in_float32(hf_model: Any) -> Iterator[None]:
    """Compute in float32, module by module: a module's own weights are converted while it runs."""
    dtypes = {weight: weight.dtype for weight in hf_model.parameters() if weight.is_floating_point()}

    def convert(module: nn.Module, _inputs: Any, *output: Any) -> None:  # output: after the module
        for weight in dtypes.keys() & set(module.parameters(recurse=False)):
            weight.data = weight.data.to(dtypes[weight] if output else torch.float32)

    with ExitStack() as stack:
        for module in hf_model.modules():
            if module._parameters:
                stack.callback(module.register_forward_pre_hook(convert).remove)
                stack.callback(module.register_forward_hook(convert, always_call=True).remove)
        yield


def shortfall(model: Any, hf_model: Any, float32_twin: Callable[[Any], Any]) -> str:
    """Why a converted model does not compute what the Hugging Face model does; "" if it does.

    For models in half precision, `float32_twin` converts a Hugging Face model in float32.
    """
    length = probe(hf_model).shape[1]
    if problem := beyond_probe(hf_model.config.get_text_config(), model.cfg, length):
        return problem
    if model.cfg.dtype != torch.float32 and fits(hf_model):
        tokens = probe(hf_model).to(model.W_E.device)
        if not log_probabilities(model, tokens).isfinite().all():  # raises if it cannot run in this dtype
            return f"its logits are not finite in {model.cfg.dtype}"
        with reference(hf_model):
            hf_model = hf_model if hf_model.dtype == torch.float32 else copy.deepcopy(hf_model).float()
            off, allowed = probe_difference(float32_twin(hf_model), hf_model)
    else:
        off, allowed = probe_difference(model, hf_model)
    if off <= allowed:  # False for NaN
        return ""
    return (
        f"its log-probabilities differ from Hugging Face's by {off:.2g} nats (root mean square over "
        f"{length} tokens; expected at most {allowed:.1g})"
    )


def probe_difference(model: Any, hf_model: Any) -> tuple[float, float]:
    """Difference of log-probabilities from Hugging Face's on the probe tokens, and the largest allowed one.

    Both are root mean squares in nats. In half precision the Hugging Face model is run in float32, and the
    difference may be `NOISE` times that of the Hugging Face model itself.
    """
    tokens, allowed = probe(hf_model), TOLERANCE
    with reference(hf_model):
        expected = log_probabilities(hf_model, tokens)
        if model.cfg.dtype in (torch.bfloat16, torch.float16):
            with in_float32(hf_model):
                exact = log_probabilities(hf_model, tokens)
            expected, allowed = exact, TOLERANCE + NOISE * difference(expected, exact)
    return difference(log_probabilities(model, tokens.to(model.W_E.device)), expected), allowed


def fits(hf_model: Any) -> bool:
    """Whether two float32 copies of a model fit in half of the free memory of its device."""
    device = hf_model.device
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available
    return 2 * 4 * sum(weight.numel() for weight in hf_model.parameters()) < MEMORY * free


def beyond_probe(config: Any, cfg: Any, length: int) -> str:
    """Settings that TransformerLens's config drops and that act only beyond the probe; "" if none."""
    n_layers, n_ctx = cfg.n_layers, cfg.n_ctx
    types = cfg.attn_types if cfg.use_local_attn else ["global"] * n_layers
    windows = [cfg.window_size if each == "local" else n_ctx for each in types]
    expected = _attention_windows(config, n_layers, n_ctx)

    def beyond(windows: list[int]) -> list[int]:  # shorter windows are seen on the probe
        return [min(window, n_ctx) if window >= length else n_ctx for window in windows]

    if beyond(windows) != beyond(expected):
        return f"it drops sliding_window={config.sliding_window}"
    rope = getattr(config, "rope_parameters", None) or {}
    name = "original_max_position_embeddings"
    trained = rope.get(name) or getattr(config, name, None)
    if rope.get("rope_type") == "longrope" and trained and trained < n_ctx:
        return f"it drops rope_parameters with rope_type 'longrope' beyond {trained} tokens"
    return ""


def _attention_windows(config: Any, n_layers: int, n_ctx: int) -> list[int]:
    """Number of tokens that each layer of a Hugging Face model attends to; `n_ctx` if all."""
    window = getattr(config, "sliding_window", None)
    if not window or getattr(config, "use_sliding_window", True) is False:
        return [n_ctx] * n_layers
    types = getattr(config, "layer_types", None) or ["sliding_attention"] * n_layers
    return [window if each == "sliding_attention" else n_ctx for each in types]


def unusual_settings(config: Any) -> str:
    """Settings that differ from the defaults of the config's class, without sizes."""
    config = config.get_text_config()
    try:
        defaults = type(config)().to_dict()
    except Exception:  # a class whose arguments have no defaults
        return ""
    settings = config.to_dict()
    changed = [name for name in settings if not SIZES.search(name) and settings[name] != defaults.get(name)]
    return ", ".join(f"{name}={settings[name]!r}" for name in changed)


def cause_of(error: BaseException) -> str:
    """Type and message of an error in one line of at most 400 characters."""
    text = " ".join(f"{type(error).__name__}: {error}".split()).rstrip(" .")
    return text if len(text) <= 400 else text[:399] + "…"
