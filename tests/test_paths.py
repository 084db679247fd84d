"""Which path each architecture takes through the engine, and that every path gives whole passes' results.

With TransformerLens 4 too. Small random weights; windows are shorter than the prompts.
"""

import copy
import gc
import logging
import weakref

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from tl_steer._capture import capture
from tl_steer._generation import Decoding
from tl_steer.engine.paths import SHARED, SHORTER, WHOLE, explain, path_of
from tl_steer.interventions import Add, ProjectOut
from tl_steer.models import load_model
from tl_steer.positions import all_tokens, last_token

from .conftest import SIZES, VOCABULARY, WIDTH, randomise
from .equal_paths import (
    MEMORY,
    PACKED,
    PAIRS,
    choice_plan,
    draw_conditions,
    hooks_of,
    prompt_lists,
    require_same_capture,
    require_same_scores,
    require_same_texts,
    small_batches,
    vectors,
)
from .tiny_model import score, word_tokenizer

pytestmark = [
    pytest.mark.filterwarnings("ignore:row . of the token ids"),
    pytest.mark.filterwarnings("ignore:cannot compare the weights"),  # of linear attention
]

GROUPED = SIZES | {"num_hidden_layers": 4, "num_key_value_heads": 2}
HEADS = GROUPED | {"head_dim": 16}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
OLDER = {"vocab_size": VOCABULARY, "n_embd": WIDTH, "n_layer": 4, "n_head": 4, "n_positions": 64}
ENDS = {"bos_token_id": 1, "eos_token_id": 2}
FALCON = {"vocab_size": VOCABULARY, "hidden_size": WIDTH, "num_hidden_layers": 4, "num_attention_heads": 4}
FAMILIES = {
    "Llama": GROUPED,
    "Qwen2": GROUPED,
    "Qwen3": HEADS,
    "Qwen3Moe": HEADS | EXPERTS | {"decoder_sparse_step": 1},
    "Mistral": GROUPED | {"sliding_window": 4},
    "Mixtral": GROUPED | {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": None},
    "Gemma2": HEADS | {
        "query_pre_attn_scalar": 20, "sliding_window": 5, "attn_logit_softcapping": 3.0,
        "final_logit_softcapping": 4.0,
    },
    "Gemma3Text": HEADS | {"query_pre_attn_scalar": 16, "sliding_window": 5, "sliding_window_pattern": 2},
    "GptOss": HEADS | {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 4},
    "Olmo2": GROUPED,
    "Phi3": GROUPED,
    "Granite": GROUPED | {"residual_multiplier": 0.7, "attention_multiplier": 0.3},
    "SmolLM3": GROUPED | {"no_rope_layer_interval": 2},
    "GPT2": OLDER | ENDS,
    "GPTNeoX": SIZES | {"num_hidden_layers": 4, "rotary_pct": 0.5},
    "Falcon": FALCON | ENDS | {"multi_query": True, "new_decoder_architecture": False, "alibi": False},
    "DeepseekV3": SIZES | {
        "num_hidden_layers": 4, "num_key_value_heads": 4, "n_routed_experts": 4, "num_experts_per_tok": 2,
        "moe_intermediate_size": 32, "kv_lora_rank": 16, "q_lora_rank": 24, "qk_nope_head_dim": 12,
        "qk_rope_head_dim": 4, "v_head_dim": 12, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 2,
    },
}  # fmt: skip
# What packed tokens cannot be given: ALiBi or masks of their own inside attention, linear attention.
OTHERS = {
    "Bloom": {"vocab_size": VOCABULARY, "hidden_size": WIDTH, "n_layer": 4, "n_head": 4} | ENDS,
    "GPTJ": OLDER | ENDS | {"rotary_dim": 8},
    "GPTNeo": {
        "vocab_size": VOCABULARY, "hidden_size": WIDTH, "num_layers": 4, "num_heads": 4, "window_size": 4,
        "attention_types": [[["global", "local"], 2]], "max_position_embeddings": 64,
    } | ENDS,
    "Qwen3Next": HEADS | EXPERTS | {
        "shared_expert_intermediate_size": 32, "linear_num_value_heads": 4, "linear_num_key_heads": 2,
        "linear_key_head_dim": 16, "linear_value_head_dim": 16, "full_attention_interval": 2,
    },
}  # fmt: skip
PROMPTS = [
    [1, 3, 5, 6, 1, 4, 7, 9, 2],
    [1, 3, 5],
    [1, 4, 5, 3],
    [1, 3, 5, 6, 1, 4],
    [1],
    [6, 5, 4, 3, 3, 1, 1],
]
PLAN = choice_plan(PROMPTS, [PAIRS[row % len(PAIRS)] for row in range(len(PROMPTS))])


def loaded(family, **changes):
    """A bridge with random weights and a tokenizer."""
    sizes = (FAMILIES | OTHERS)[family] | changes
    config = getattr(transformers, f"{family}Config")(**sizes)
    hf_model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    model = load_model("tiny", backend="bridge", hf_model=randomise(hf_model.float().eval()), device="cpu")
    model.tokenizer = word_tokenizer()
    return model


class Loaded:
    """A model with a short repr, for messages of hypothesis."""

    def __init__(self, family):
        self.model = loaded(family)
        # Contributions that Granite's bridge scales fire for TransformerLens's own hooks only; with latent
        # attention "z" has another width than the config says.
        others = {"Granite": ("attn_out", "mlp_out"), "DeepseekV3": ("z",)}.get(family, ())
        self.hooks = [hook for hook in hooks_of(self.model) if hook not in others]


@pytest.fixture(scope="module", params=FAMILIES)
def shared(request):
    """A model of each family; not to be changed."""
    return Loaded(request.param)


@pytest.fixture
def llama():
    """A model that may be changed."""
    return loaded("Llama")


def steered(model):
    return [
        (),
        (Add(vectors(model, [1]), 1.0, last_token()),),
        (ProjectOut(vectors(model, [0])),),
        (Add(vectors(model, [2], "resid_pre"), 2.0), Add(vectors(model, [3]), 1.0)),
    ]


# Every architecture that is shared


@settings(max_examples=3)
@given(data=st.data())
def test_scores_and_texts_of_any_conditions_equal_whole_passes(shared, data):
    model = shared.model
    assert explain(model) == SHARED
    prompts, memory = data.draw(prompt_lists()), data.draw(MEMORY)
    conditions = draw_conditions(data, model, prompts, most=3, hooks=shared.hooks)
    pairs = data.draw(st.lists(st.sampled_from(PAIRS), min_size=len(prompts), max_size=len(prompts)))
    with small_batches(*data.draw(PACKED)):
        require_same_scores(model, choice_plan(prompts, pairs), conditions, memory=memory)
        require_same_texts(model, prompts, conditions, Decoding(4, 4), memory=memory)


def test_every_hook_is_read_and_changed_as_in_whole_passes(shared):
    model = shared.model
    conditions = [(Add(vectors(model, [2], hook), 1.0, last_token()),) for hook in shared.hooks]
    scores = require_same_scores(model, PLAN, [(), *conditions])
    clean = scores[0]["logit_difference"]
    assert all((each["logit_difference"] - clean).abs().max() > 1e-3 for each in scores[1:])
    for hook in shared.hooks:
        require_same_capture(model, PROMPTS, *conditions[0], positions=all_tokens(), hook=hook)


def test_prompts_longer_than_every_window(shared):
    model = shared.model
    generator = torch.Generator().manual_seed(3)
    start = torch.randint(3, 30, (31,), generator=generator).tolist()
    prompts = [start, [*start[:28], 7, 8], [*start[:15], *range(3, 20)], start[:9]]
    with small_batches(16, None):
        require_same_scores(model, choice_plan(prompts, PAIRS), steered(model))
    require_same_texts(model, prompts, steered(model)[:2], Decoding(8, 8))


# Other paths


@pytest.mark.parametrize("family", OTHERS)
def test_conditions_start_at_the_first_layer_they_change(family, monkeypatch):
    model = loaded(family)
    assert path_of(model).name == SHORTER
    require_same_scores(model, PLAN, steered(model))
    conditions = [(), *((Add(vectors(model, [3], "resid_pre"), each),) for each in (-1.0, 1.0, 2.0))]
    whole = require_same_scores(model, PLAN, conditions)
    require_same_texts(model, PROMPTS[:3], conditions[1:3], Decoding(3, 3))
    runs = [0] * 4
    for layer, block in enumerate(model.blocks):
        original = block.original_component
        forward = original.forward

        def counted(*args, layer=layer, forward=forward, **kwargs):
            runs[layer] += 1
            return forward(*args, **kwargs)

        monkeypatch.setitem(vars(original), "forward", counted)
    assert path_of(model).name == SHORTER
    runs[:] = [0] * 4
    result = score(model, PLAN, conditions)
    assert runs == [2, 2, 2, 4]
    for each, expected in zip(result, whole, strict=True):
        np.testing.assert_allclose(each["logit_difference"], expected["logit_difference"], atol=1e-4)


def test_a_hook_of_the_user_s_own_takes_whole_passes(llama):
    assert explain(llama) == SHARED
    without = score(llama, PLAN, steered(llama))
    llama.blocks[1].hook_out.add_hook(lambda x, hook: 1.5 * x)
    assert path_of(llama).name == WHOLE
    assert "hook at" in explain(llama)
    scores = require_same_scores(llama, PLAN, steered(llama), close=0)
    assert not np.allclose(scores[0]["logit_difference"], without[0]["logit_difference"])
    llama.reset_hooks()
    assert explain(llama) == SHARED


@pytest.mark.parametrize(
    "changes",
    [{"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}}],
    ids=["dynamic"],
)
def test_a_rotation_that_depends_on_the_length_is_not_shared(changes):
    assert "depends on the length" in explain(loaded("Llama", **changes))


# Models that break an assumption


def sees_everything(model):
    """Attention that ignores masks and attention functions."""
    for block in model.blocks:
        attn = block.attn.original_component

        def forward(hidden_states, *args, attn=attn, **kwargs):
            q, k, v = (getattr(attn, name)(hidden_states) for name in ("q_proj", "k_proj", "v_proj"))
            k, v = (part.repeat_interleave(q.shape[-1] // part.shape[-1], -1) for part in (k, v))
            weights = (q @ k.transpose(1, 2) / 10).softmax(-1)
            return attn.o_proj(weights @ v), None

        vars(attn)["forward"] = forward


def norms_between_blocks(model):
    """The body norms the residual stream before each block."""
    body = model.original_model.model
    norm = copy.deepcopy(body.norm)

    class Normed(torch.nn.ModuleList):
        """Its blocks are called with normed streams."""

        def __getitem__(self, index):
            chosen = super().__getitem__(index)
            if isinstance(index, int):
                return chosen
            return [lambda x, each=each, **kwargs: each(norm(x), **kwargs) for each in chosen]

    body._modules["layers"] = Normed(body.layers)


def counts_slots(model):
    """The body rotates by slots of the pass, not by positions."""
    rotary = model.original_model.model.rotary_emb
    forward = rotary.forward

    def by_slot(x, position_ids, *args, **kwargs):
        slots = torch.arange(position_ids.shape[1])[None].expand_as(position_ids)
        return forward(x, slots, *args, **kwargs)

    vars(rotary)["forward"] = by_slot


def mixes_tokens(model):
    """A block's MLP adds the token before it."""
    mlp = model.blocks[1].mlp.original_component
    forward = mlp.forward
    vars(mlp)["forward"] = lambda x: forward(x + x.roll(1, 1))


@pytest.mark.filterwarnings("ignore:the shared engine does not compute")
@pytest.mark.parametrize("change", [sees_everything, norms_between_blocks, counts_slots, mixes_tokens])
def test_a_broken_assumption_is_found_and_nothing_is_shared(llama, change):
    assert explain(llama) == SHARED
    change(llama)
    assert path_of(llama).name != SHARED
    prompts = [[1, 3, 5, 6], [1, 3, 5, 7]]  # of one length: padding is part of what some of these break
    require_same_scores(llama, choice_plan(prompts, PAIRS[:1] * 2), steered(llama), close=1e-5)


def test_the_path_is_logged_once_and_a_failed_probe_warns(llama, caplog):
    with caplog.at_level(logging.INFO, logger="tl_steer"):
        score(llama, PLAN, steered(llama))
        score(llama, PLAN, steered(llama))
    assert [record.message for record in caplog.records].count("tiny: shared") == 1
    mixes_tokens(llama)
    with pytest.warns(RuntimeWarning, match="does not compute what tiny computes"):
        explain(llama)


def test_nothing_is_left_behind_on_a_model(llama):
    before = [
        (name, dict(vars(module)).keys(), len(module._forward_hooks), len(module._forward_pre_hooks))
        for name, module in llama.named_modules()
    ]
    implementation = llama.original_model.config._attn_implementation
    score(llama, PLAN, steered(llama))
    capture(llama, PROMPTS, max_new_tokens=3)
    after = [
        (name, dict(vars(module)).keys(), len(module._forward_hooks), len(module._forward_pre_hooks))
        for name, module in llama.named_modules()
    ]
    assert after == before
    assert llama.original_model.config._attn_implementation == implementation


@pytest.mark.integration
@pytest.mark.filterwarnings("default")  # of bitsandbytes, and of the probe
@pytest.mark.parametrize("bits", [4, 8])
def test_quantised_weights_take_a_path_that_equals_whole_passes(bits, tmp_path):
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed: make test-next has it")
    config = transformers.LlamaConfig(**GROUPED | {"hidden_size": 64, "intermediate_size": 128})
    randomise(transformers.AutoModelForCausalLM.from_config(config).float()).save_pretrained(tmp_path)
    quantisation = transformers.BitsAndBytesConfig(
        load_in_4bit=bits == 4, load_in_8bit=bits == 8, bnb_4bit_compute_dtype=torch.float32
    )
    hf_model = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, quantization_config=quantisation, device_map={"": "cpu"}, dtype=torch.float32
    )
    model = load_model("tiny", backend="bridge", hf_model=hf_model, check=False)
    model.tokenizer = word_tokenizer()
    assert path_of(model).name in (SHARED, SHORTER)
    require_same_scores(model, PLAN, steered(model))
    require_same_texts(model, PROMPTS[:3], steered(model)[:2], Decoding(3, 3))


def test_a_model_that_was_examined_is_freed():
    model = loaded("Llama")
    score(model, PLAN, steered(model))
    reference = weakref.ref(model)
    del model
    gc.collect()
    assert reference() is None


@pytest.mark.model
def test_the_embedded_model_is_shared_as_a_bridge(embedded):
    bridge = load_model(backend="bridge", device="cpu")
    assert explain(bridge) == explain(embedded) == SHARED
