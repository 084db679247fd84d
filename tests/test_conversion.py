"""Every setting of a Hugging Face config that changes its logits: loaded equal on a backend, or refused.

Settings are found by changing each field of a config and comparing two Hugging Face models. The oracle is the
Hugging Face model itself, run in float32 on 320 tokens.
"""

import copy
import functools
import re
from pathlib import Path

import pytest
import torch
import transformers

import tl_steer as ts
from tl_steer.models import BACKENDS

from .conftest import SIZES, VOCABULARY, WIDTH

PAGE = Path(__file__).parents[1] / "docs" / "pages" / "models.md"
TOKENS = torch.randint(3, VOCABULARY, (1, 320), generator=torch.Generator().manual_seed(1))
LONG = SIZES | {"max_position_embeddings": 1024}
GROUPED = LONG | {"num_key_value_heads": 2}
GPT2 = {"vocab_size": VOCABULARY, "n_embd": WIDTH, "n_layer": 3, "n_head": 4, "n_positions": 1024}
ROPE = {"rope_theta": 10_000.0, "partial_rotary_factor": 1.0}
EXPERTS = {"moe_intermediate_size": 32, "num_experts": 4, "num_experts_per_tok": 2, "head_dim": 12}
ARCHITECTURES = {
    "Bloom": {"vocab_size": VOCABULARY, "hidden_size": WIDTH, "n_layer": 3, "n_head": 4},
    "Cohere": GROUPED,
    "Falcon": LONG,
    "Gemma": GROUPED | {"head_dim": 12},
    "Gemma2": GROUPED | {"head_dim": 16, "sliding_window": 64, "query_pre_attn_scalar": 20},
    "Gemma3Text": GROUPED | {"head_dim": 12, "sliding_window": 64},
    "GPT2": GPT2,
    "GPTBigCode": GPT2,
    "GPTJ": GPT2 | {"rotary_dim": 4},
    "GPTNeo": {
        "vocab_size": VOCABULARY, "hidden_size": WIDTH, "num_layers": 2, "num_heads": 4,
        "attention_types": [[["global", "local"], 1]], "max_position_embeddings": 1024, "window_size": 64,
    },
    "GPTNeoX": LONG | {"rotary_pct": 0.5},
    "GptOss": GROUPED | {"head_dim": 12, "num_local_experts": 4, "num_experts_per_tok": 2},
    "Granite": GROUPED,
    "Llama": GROUPED,
    "Mistral": GROUPED | {"sliding_window": 64},
    "Mixtral": GROUPED | {"num_local_experts": 4, "num_experts_per_tok": 2},
    "Olmo": GROUPED,
    "Olmo2": GROUPED,
    "OPT": LONG | {"ffn_dim": 96, "word_embed_proj_dim": WIDTH},
    "Phi": LONG,
    "Phi3": GROUPED,
    "Qwen2": GROUPED,
    "Qwen3": GROUPED | {"head_dim": 12},
    "Qwen3Moe": GROUPED | EXPERTS,
    "SmolLM3": GROUPED | {"num_hidden_layers": 4},
    "Starcoder2": GROUPED,
}  # fmt: skip
ROPES = {
    "linear": {"factor": 4.0},
    "dynamic": {"factor": 4.0},
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 256},
    "llama3": {
        "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 256,
    },
    "longrope": {
        "short_factor": [1.3] * 6, "long_factor": [4.0] * 6, "original_max_position_embeddings": 256,
    },
}  # fmt: skip
# TransformerLens 3.9 mixes dtypes in its experts: refused in bfloat16, since it does not run.
FLOAT32_ONLY = {("Mixtral", "hooked")}
SIZE = re.compile(r"size|^(num|n|max)_|_id|dim|dtype|dropout|pdrop|cache|initializer|output|router|decoder$")


def random_model(architecture, **changes):
    """A small model whose biases and norms are not what initialization leaves."""
    config = getattr(transformers, f"{architecture}Config")(**(ARCHITECTURES[architecture] | changes))
    hf_model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in hf_model.float().eval().parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim > 1:
                parameter.copy_(noise * WIDTH**-0.5)
            else:
                parameter.add_(0.2 * noise)
    return hf_model


@torch.no_grad()
def log_probabilities(model):
    logits = model(TOKENS)  # TransformerLens's vocabulary may be larger
    return getattr(logits, "logits", logits)[0].float().log_softmax(-1)[:, :VOCABULARY]


def rms(difference):
    return float(difference.pow(2).mean().sqrt())


def changed_values(architecture):
    """(setting, other value) for every field of a config that is not a size."""
    config = getattr(transformers, f"{architecture}Config")(**ARCHITECTURES[architecture])
    for name, value in config.to_dict().items():
        if SIZE.search(name) or name.startswith("_"):
            continue
        if isinstance(value, bool):
            yield name, not value
        elif isinstance(value, float):
            yield name, 1.5 * value + 0.1
        elif isinstance(value, str) and "act" in name:
            yield name, "relu"
        elif name == "sliding_window":
            yield name, 32
        elif name == "layer_types" and value:
            yield name, ["sliding_attention", *["full_attention"] * (len(value) - 1)]
    if isinstance(getattr(config, "rope_parameters", None), dict) and "rope_theta" in config.rope_parameters:
        for rope_type, options in ROPES.items():
            yield "rope_parameters", {**config.rope_parameters, "rope_type": rope_type, **options}
        yield "rope_parameters", {**config.rope_parameters, "rope_theta": 500.0}
        yield "rope_parameters", {**config.rope_parameters, "partial_rotary_factor": 0.5}
    if "use_sliding_window" in config.to_dict():
        yield "use_sliding_window", {"use_sliding_window": True, "sliding_window": 32, "max_window_layers": 1}


@functools.cache
def variants(architecture):
    """Changes of settings that transformers accepts and that change the logits, the unchanged model first."""
    usual = log_probabilities(random_model(architecture))
    result = [{}]
    for name, value in changed_values(architecture):
        changes = value if name == "use_sliding_window" and isinstance(value, dict) else {name: value}
        try:
            other = log_probabilities(random_model(architecture, **changes))
        except Exception:  # settings that transformers itself cannot run
            continue
        if other.shape == usual.shape and other.isfinite().all() and (other - usual).abs().max() > 1e-3:
            result.append(changes)
    return result


def loaded(hf_model, backend):
    """A model, or `None` where loading refuses."""
    try:
        return ts.load_model("tiny", hf_model=copy.deepcopy(hf_model), backend=backend, device="cpu")
    except ValueError:
        return None


def setting_name(changes):
    """A change as the page of models names it."""
    name, value = next(iter(changes.items()), ("defaults", None))
    if name != "rope_parameters":
        return name
    if value["rope_type"] != "default":
        return f"rope {value['rope_type']}"
    return "rope_theta" if value["rope_theta"] == 500.0 else "partial_rotary_factor"


def page_row(architecture, refused):
    """A row of docs/pages/models.md: the number of settings, and those that each backend refuses."""
    count, columns = len(variants(architecture)), []
    for backend in BACKENDS:
        names = ", ".join(dict.fromkeys(map(setting_name, refused[backend])))
        columns.append("all" if len(refused[backend]) == count else names or "none")
    return f"| {architecture} | {count} | {' | '.join(columns)} |"


@pytest.mark.integration
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_setting_is_loaded_equal_or_refused(architecture):
    wrong, refused = [], {backend: [] for backend in BACKENDS}
    for changes in variants(architecture):
        hf_model = random_model(architecture, **changes)
        expected = log_probabilities(hf_model)
        for backend in BACKENDS:
            model = loaded(hf_model, backend)
            half = loaded(copy.deepcopy(hf_model).bfloat16(), backend)
            if (model is None) != (half is None) and (architecture, backend) not in FLOAT32_ONLY:
                wrong.append((changes, backend, "refused in one precision only"))
            if model is None:
                refused[backend].append(changes)
                continue
            if (off := (log_probabilities(model) - expected).abs().max()) > 1e-3:
                wrong.append((changes, backend, float(off)))
            rounding = rms(log_probabilities(copy.deepcopy(hf_model).bfloat16()) - expected)
            if half and (off := rms(log_probabilities(half) - expected)) > 3 * rounding + 1e-3:
                wrong.append((changes, backend, "bfloat16", off, rounding))
    assert wrong == []
    assert page_row(architecture, refused) in PAGE.read_text(encoding="utf-8")


@pytest.mark.integration
def test_enough_settings_are_examined():
    assert len(ARCHITECTURES) >= 20
    assert sum(len(variants(architecture)) for architecture in ARCHITECTURES) >= 60
