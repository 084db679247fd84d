"""Every setting of a Hugging Face config that changes its logits is loaded equal on a backend, or rejected.

Each field of a config is changed, and two Hugging Face models are compared, in float32 on 320 tokens.
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

from . import conftest
from .conftest import SIZES, VOCABULARY, WIDTH

PAGE = Path(__file__).parents[1] / "docs" / "pages" / "models.md"
TOKENS = torch.randint(3, VOCABULARY, (1, 320), generator=torch.Generator().manual_seed(1))
LONG = SIZES | {"max_position_embeddings": 1024}
GROUPED = LONG | {"num_key_value_heads": 2}
GPT2 = {"vocab_size": VOCABULARY, "n_embd": WIDTH, "n_layer": 3, "n_head": 4, "n_positions": 1024}
LOCAL_EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
EXPERTS = {"moe_intermediate_size": 32, "num_experts": 4, "num_experts_per_tok": 2, "head_dim": 12}
ARCHITECTURES = {
    **dict.fromkeys(["Cohere", "Granite", "Llama", "Olmo", "Olmo2", "Phi3", "Qwen2", "Starcoder2"], GROUPED),
    "Bloom": {"vocab_size": VOCABULARY, "hidden_size": WIDTH, "n_layer": 3, "n_head": 4},
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
    "GptOss": GROUPED | {"head_dim": 12} | LOCAL_EXPERTS,
    "Mistral": GROUPED | {"sliding_window": 64},
    "Mixtral": GROUPED | LOCAL_EXPERTS,
    "OPT": LONG | {"ffn_dim": 96, "word_embed_proj_dim": WIDTH},
    "Phi": LONG,
    "Qwen3": GROUPED | {"head_dim": 12},
    "Qwen3Moe": GROUPED | EXPERTS,
    "SmolLM3": GROUPED | {"num_hidden_layers": 4},
}  # fmt: skip
SHORT = {"original_max_position_embeddings": 256}
ROPES = {
    "linear": {"factor": 4.0},
    "dynamic": {"factor": 4.0},
    "yarn": {"factor": 4.0} | SHORT,
    "llama3": {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0} | SHORT,
    "longrope": {"short_factor": [1.3] * 6, "long_factor": [4.0] * 6} | SHORT,
}
# TransformerLens 3.9 mixes dtypes in its experts: rejected in bfloat16, since it does not run.
FLOAT32_ONLY = {("Mixtral", "hooked")}
SIZE = re.compile(r"size|^(num|n|max)_|_id|dim|dtype|dropout|pdrop|cache|initializer|output|router|decoder$")


def random_model(architecture, **changes):
    """A small model whose biases and norms are random, too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(conftest.ARCHITECTURES, architecture, (architecture, ARCHITECTURES[architecture]))
        return conftest.random_hf_model(architecture, **changes)


@torch.no_grad()
def log_probabilities(model):
    logits = model(TOKENS)  # TransformerLens's vocabulary may be larger
    return getattr(logits, "logits", logits)[0].float().log_softmax(-1)[:, :VOCABULARY]


def rms(difference):
    return float(difference.pow(2).mean().sqrt())


def changed_settings(architecture):
    """Other values of every field of a config that is not a size."""
    config = getattr(transformers, f"{architecture}Config")(**ARCHITECTURES[architecture])
    for name, value in config.to_dict().items():
        if SIZE.search(name) or name.startswith("_"):
            continue
        if isinstance(value, bool):
            yield {name: not value}
        elif isinstance(value, float):
            yield {name: 1.5 * value + 0.1}
        elif isinstance(value, str) and "act" in name:
            yield {name: "relu"}
        elif name == "sliding_window":
            yield {name: 32}
        elif name == "layer_types" and value:
            yield {name: ["sliding_attention", *["full_attention"] * (len(value) - 1)]}
    rope = getattr(config, "rope_parameters", None)
    if isinstance(rope, dict) and "rope_theta" in rope:
        ropes = [{"rope_type": rope_type, **options} for rope_type, options in ROPES.items()]
        for changes in (*ropes, {"rope_theta": 500.0}, {"partial_rotary_factor": 0.5}):
            yield {"rope_parameters": rope | changes}
    if "use_sliding_window" in config.to_dict():
        yield {"use_sliding_window": True, "sliding_window": 32, "max_window_layers": 1}


@functools.cache
def variants(architecture):
    """Changes of settings that transformers accepts and that change the logits, the unchanged model first."""
    usual = log_probabilities(random_model(architecture))
    result = [{}]
    for changes in changed_settings(architecture):
        try:
            other = log_probabilities(random_model(architecture, **changes))
        except Exception:  # settings that transformers itself cannot run
            continue
        if other.shape == usual.shape and other.isfinite().all() and (other - usual).abs().max() > 1e-3:
            result.append(changes)
    return result


def loaded(hf_model, backend):
    """A model, or `None` if loading raises."""
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


def page_row(architecture, rejected):
    """A row of docs/pages/models.md: the number of settings, and those that each backend rejects."""
    count, columns = len(variants(architecture)), []
    for backend in BACKENDS:
        names = ", ".join(dict.fromkeys(map(setting_name, rejected[backend])))
        columns.append("all" if len(rejected[backend]) == count else names or "none")
    return f"| {architecture} | {count} | {' | '.join(columns)} |"


@pytest.mark.integration
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_setting_is_loaded_equal_or_refused(architecture):
    wrong, rejected = [], {backend: [] for backend in BACKENDS}
    for changes in variants(architecture):
        hf_model = random_model(architecture, **changes)
        expected = log_probabilities(hf_model)
        for backend in BACKENDS:
            model = loaded(hf_model, backend)
            half = loaded(copy.deepcopy(hf_model).bfloat16(), backend)
            if (model is None) != (half is None) and (architecture, backend) not in FLOAT32_ONLY:
                wrong.append((changes, backend, "rejected in one precision only"))
            if model is None:
                rejected[backend].append(changes)
                continue
            if (off := (log_probabilities(model) - expected).abs().max()) > 1e-3:
                wrong.append((changes, backend, float(off)))
            rounding = rms(log_probabilities(copy.deepcopy(hf_model).bfloat16()) - expected)
            if half and (off := rms(log_probabilities(half) - expected)) > 3 * rounding + 1e-3:
                wrong.append((changes, backend, "bfloat16", off, rounding))
    assert wrong == []
    assert page_row(architecture, rejected) in PAGE.read_text(encoding="utf-8")
