"""The same results on every backend, compared with Hugging Face's own model with plain hooks.

Tests that take `backend`, `pair`, `llama` or `word_model` run on both (with TransformerLens 4 on the bridge).
"""

import copy
import logging
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import pandas as pd
import pytest
import torch
from transformer_lens.model_bridge import TransformerBridge, sources
from transformers import DynamicCache

import tl_steer as ts
from tl_steer.directions import SteeringVector
from tl_steer.engine import logits_of, residual
from tl_steer.engine.plain import left_padded
from tl_steer.errors import HookDidNotFireError, ModelMismatchError
from tl_steer.interventions import Ablate, Add, ProjectOut, SetProjection, steer
from tl_steer.models import BACKENDS, DEFAULT_BACKEND, chat_format, hook_point, identify, load_model, tokenize
from tl_steer.models.backend import HookedTransformer, unembedded, unembedding
from tl_steer.models.wrapping import _is_same
from tl_steer.positions import all_tokens, current_token, generated_tokens, last_token, parse_positions, token

from .conftest import ARCHITECTURES, SIZES, VOCABULARY, WIDTH, assert_raises, random_hf_model
from .fake_devices import FakeDevices
from .hugging_face import HOOKS, Change, block, greedy_alone, padded, run_alone, unpadded
from .tiny_model import TABLE

NO_HOOKED = pytest.mark.skipif(
    HookedTransformer is None, reason="TransformerLens 4 has no HookedTransformer, only the bridge"
)
HOOKED, BRIDGE = pytest.param("hooked", marks=NO_HOOKED), "bridge"
PROMPTS = [[1, 5, 6, 7], [3, 4, 5, 8, 20, 21, 22, 9], [9, 10]]
CLOSE = {"rtol": 1e-4, "atol": 1e-5}


@dataclass
class Pair:
    """A model, and the Hugging Face model with the same weights."""

    architecture: str
    model: Any
    hf_model: Any

    def alone(self, ids, changes=(), reads=()):
        return run_alone(self.hf_model, self.architecture, ids, len(ids), changes, reads)

    def greedy(self, count, changes=(), stops=()):
        return [greedy_alone(self.hf_model, self.architecture, ids, count, changes, stops) for ids in PROMPTS]


def loaded(architecture, backend, **options):
    """A new model with weights of its own, because wrapping changes the Hugging Face model."""
    hf_model = random_hf_model(architecture)
    return load_model(f"tiny-{architecture}", backend=backend, hf_model=hf_model, device="cpu", **options)


def wrapped(hf_model, **options):
    """A bridge around this model, or around its copy if the test still needs it."""
    return load_model("tiny", backend="bridge", hf_model=hf_model, device="cpu", **options)


@pytest.fixture(scope="module", params=[HOOKED, BRIDGE])
def backend(request):
    return request.param


@pytest.fixture(scope="module", params=ARCHITECTURES)
def pair(request, backend):
    """Every architecture on every backend; not to be changed."""
    return Pair(request.param, loaded(request.param, backend), random_hf_model(request.param))


@pytest.fixture(scope="module")
def llama(backend):
    return Pair("llama", loaded("llama", backend), random_hf_model("llama"))


@pytest.fixture
def word_model(backend, make_tokenizer):
    """A model with a tokenizer, which adds <s>."""
    return loaded("llama", backend, tokenizer=make_tokenizer())


def random_vector(model, layer=1, hook="resid_post", *, scale=6.0, seed=0):
    width = model.cfg.n_heads * model.cfg.d_head if hook == "z" else WIDTH
    values = torch.randn(width, generator=torch.Generator().manual_seed(seed))
    return SteeringVector(scale * values / values.norm(), layer, hook, "test", 10.0, identify(model))


EVERYWHERE, CURRENT = TABLE["all_tokens()"], TABLE["current_token()"]


def adding(vector, where=EVERYWHERE, hook="resid_post"):
    """The change of a Hugging Face model that adds a vector at layer 1."""
    return [Change(1, hook, lambda x: x + vector.values, where)]


def assert_steered(pair, operation, changes, side="left"):
    """A padded batch under an operation has the logits of each prompt alone under the changes."""
    tokens, mask = padded(PROMPTS, side)
    with torch.no_grad(), steer(pair.model, operation):
        logits = pair.model(tokens, attention_mask=mask)
    for ids, result in zip(PROMPTS, unpadded(logits, mask), strict=True):
        torch.testing.assert_close(result, pair.alone(ids, changes)[0], **CLOSE)


def registered(model):
    """Every hook anywhere in a model and in the model that it wraps, by identity and in order."""
    modules = [*model.named_modules(), *getattr(model, "original_model", model).named_modules()]
    return [(name, list(module._forward_hooks), list(module._forward_pre_hooks)) for name, module in modules]


def test_logits_from_the_stream_equal_hugging_faces(pair):
    batch = left_padded(PROMPTS, range(3), "cpu")
    with torch.no_grad():
        stream = residual(pair.model, batch)
        logits = logits_of(pair.model, stream.flatten(0, 1)).unflatten(0, batch.tokens.shape)
    for ids, result in zip(PROMPTS, unpadded(logits, batch.mask), strict=True):
        torch.testing.assert_close(result, pair.alone(ids)[0], **CLOSE)


@pytest.mark.parametrize("hook", [*HOOKS, "resid_mid"])
def test_every_hook_is_read_as_hugging_face_computes_it(pair, hook):
    if hook == "resid_mid" and pair.architecture == "neox":
        message = r"hook 'resid_mid' does not exist .* this model has resid_pre"
        assert_raises(message, ts.capture, pair.model, PROMPTS, hook=hook)
        return
    layers = range(pair.model.cfg.n_layers)
    result = ts.capture(pair.model, PROMPTS, positions=all_tokens(), hook=hook)
    for row, ids in enumerate(PROMPTS):
        _, seen = pair.alone(ids, reads=[(hook, layer) for layer in layers])
        for layer in layers:
            torch.testing.assert_close(result.values[row, layer, : len(ids)], seen[hook, layer], **CLOSE)


def test_the_last_layer_is_the_last_blocks_output_and_not_after_the_norm(pair):
    result = ts.capture(pair.model, PROMPTS, layers=-1).single()
    for row, ids in enumerate(PROMPTS):
        with torch.no_grad():
            normed = pair.hf_model(torch.tensor([ids]), output_hidden_states=True).hidden_states[-1][0, -1]
        (key,) = reads = [("resid_post", pair.model.cfg.n_layers - 1)]
        torch.testing.assert_close(result[row, 0], pair.alone(ids, reads=reads)[1][key][-1], **CLOSE)
        assert (result[row, 0] - normed).norm() > 1


def test_blocks_after_the_last_requested_layer_are_not_run(pair):
    ran = []
    with ExitStack() as stack:
        for layer, each in enumerate(pair.model.blocks):
            handle = each.register_forward_pre_hook(lambda *_, layer=layer: ran.append(layer))
            stack.callback(handle.remove)
        ts.capture(pair.model, PROMPTS, layers=1)
    assert ran == [0, 1]


def test_generated_tokens_are_read_as_in_one_pass_over_the_whole_text(llama):
    result = ts.capture(llama.model, PROMPTS, positions=generated_tokens(), max_new_tokens=4)
    for row, ids in enumerate(PROMPTS):
        text = [*ids, *result.completion_tokens[row][:-1]]
        seen = llama.alone(text, reads=[("resid_post", 2)])[1]["resid_post", 2]
        torch.testing.assert_close(result.values[row, 2, :3], seen[len(ids) :], **CLOSE)


OPERATIONS = {
    "add": (lambda v: Add(v, 1.5), lambda d, x: x + 1.5 * d),
    "project_out": (lambda v: ProjectOut(v, 2.0), lambda d, x: x - 2 * (x @ d) * d / (d @ d)),
    "set": (lambda v: SetProjection(v, 7.0), lambda d, x: x + (7 * d.norm() - x @ d) * d / (d @ d)),
    "ablate": (lambda v: Ablate(v.layer, v.hook, to=v.values), lambda d, x: d.clone()),
}


@pytest.mark.parametrize("hook", HOOKS)
@pytest.mark.parametrize("name", OPERATIONS)
def test_every_operation_changes_every_hook_as_a_hugging_face_hook_does(pair, hook, name):
    operation, formula = OPERATIONS[name]
    vector = random_vector(pair.model, hook=hook)
    changes = [Change(1, hook, lambda x: formula(vector.values, x), EVERYWHERE)]
    assert_steered(pair, operation(vector), changes)


def test_one_heads_output_alone_is_ablated(pair):
    factors = torch.tensor([1.0, 1, 0, 1]).repeat_interleave(pair.model.cfg.d_head)
    assert_steered(pair, Ablate(1, "z", heads=[2]), [Change(1, "z", lambda x: factors * x, EVERYWHERE)])


@pytest.mark.parametrize("side", ["left", "right"])
def test_positions_mean_the_same_under_either_padding(pair, side):
    vector = random_vector(pair.model)
    add = Add(vector, 1.0, token(1) | last_token())
    assert_steered(pair, add, adding(vector, lambda p, n: {1, p - 1}), side)


def test_capture_at_the_steered_layer_shows_exactly_the_added_vector(pair):
    vector = random_vector(pair.model)
    plain, steered = (ts.capture(pair.model, PROMPTS, *each).single() for each in ((), (Add(vector, -2.0),)))
    torch.testing.assert_close(steered[:, 0], plain[:, 0])
    torch.testing.assert_close(steered[:, 1] - plain[:, 1], (-2 * vector.values).expand(3, -1), **CLOSE)


def test_steering_twice_in_turn_is_steering_once(llama):
    """Seen by the user's own `run_with_cache`, which shows the steered stream."""
    vector, name = random_vector(llama.model), hook_point(llama.model, "resid_post", 1).name

    def stream():
        with torch.no_grad():
            return llama.model.run_with_cache(torch.tensor([PROMPTS[1]]))[1][name]

    before, steered = stream(), []
    for _ in range(2):
        with steer(llama.model, Add(vector)):
            steered.append(stream())
    assert torch.equal(*steered)
    torch.testing.assert_close(steered[0] - before, vector.values.expand(1, 8, -1), **CLOSE)
    assert torch.equal(stream(), before)


def test_hooks_are_as_before_also_after_an_exception(llama):
    model, seen = llama.model, []
    handle = hook_point(model, "resid_post", 1).register_forward_hook(lambda *_: seen.append(1))
    before = registered(model)
    with pytest.raises(RuntimeError, match="on purpose"), steer(model, Add(random_vector(model))):
        raise RuntimeError("on purpose")
    ts.capture(model, PROMPTS, layers=0)
    ts.generate(model, PROMPTS, max_new_tokens=2, return_tokens=True)
    add = Add(random_vector(model), 1.0, last_token())
    with pytest.raises(ValueError, match="would be a guess"), steer(model, add):
        model(torch.tensor([[1, 2], [3, 4]]))
    assert registered(model) == before
    handle.remove()
    assert seen


def test_a_hook_that_is_unknown_or_not_reached_is_an_error(pair):
    model, message = pair.model, r"hook 'resid_past' does not exist .* this model has resid_pre"
    assert_raises(message, ts.capture, model, PROMPTS, hook="resid_past")
    with pytest.raises(ValueError, match=message), steer(model, Add(random_vector(model, hook="resid_past"))):
        pass
    with pytest.raises(HookDidNotFireError, match="no pass"), steer(model, Add(random_vector(model))):
        pass


NAMES = ["all_tokens()", "prompt_tokens()", "generated_tokens()", "current_token()", "last_token()"]


@pytest.mark.parametrize("name", [*NAMES, "(token(0) | generated_tokens())", "span(-2, None)", "~token(0)"])
def test_steered_texts_are_the_same_with_and_without_a_cache_and_those_of_hugging_face(llama, name):
    vector = random_vector(llama.model, scale=4.0)
    expected, add = llama.greedy(6, adding(vector, TABLE[name])), Add(vector, 1.0, parse_positions(name))
    for use_cache in (True, False):
        options = {"max_new_tokens": 6, "use_cache": use_cache, "return_tokens": True}
        assert ts.generate(llama.model, PROMPTS, add, **options) == expected


def test_every_architecture_writes_what_hugging_face_writes(pair):
    vector = random_vector(pair.model, scale=12.0)
    steered, plain = pair.greedy(8, adding(vector, CURRENT)), pair.greedy(8)
    assert steered != plain
    for use_cache in (True, False):
        options = {"max_new_tokens": 8, "use_cache": use_cache, "return_tokens": True}
        assert ts.generate(pair.model, PROMPTS, **options) == plain
        assert ts.generate(pair.model, PROMPTS, Add(vector, 1.0, current_token()), **options) == steered


def test_a_batch_writes_what_its_rows_write_alone_also_where_some_end_early(word_model):
    prompts = ["the cat is", "the sky is not blue : (", "dog", "a b c d e f"]
    options = {"max_new_tokens": 12, "temperature": 3.0, "seed": 4, "return_tokens": True}
    add = Add(random_vector(word_model, scale=3.0))
    alone = [ts.generate(word_model, [prompt], add, **options)[0] for prompt in prompts]
    assert ts.generate(word_model, prompts, add, **options) == alone


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize("name", ["current_token()", "generated_tokens()"])
def test_the_models_own_generate_is_steered_at_the_same_tokens(word_model, name, cached):
    """The prompt's end is known from the cache; without one, `prompt_lengths` is required."""
    ids, vector = tokenize(word_model, "the cat is"), random_vector(word_model, scale=9.0)
    hf_model = random_hf_model("llama")
    expected = greedy_alone(hf_model, "llama", ids, 5, adding(vector, TABLE[name]))
    assert expected != greedy_alone(hf_model, "llama", ids, 5)
    options = {"do_sample": False, "stop_at_eos": False, "verbose": False, "use_past_kv_cache": cached}

    def generated(**lengths):
        with steer(word_model, Add(vector, 1.0, parse_positions(name)), **lengths) as tracker:
            result = word_model.generate(torch.tensor([ids]), max_new_tokens=5, **options)
        assert tracker.passes == 5
        return result[0, len(ids) :].tolist()

    assert generated(prompt_lengths=[len(ids)]) == expected
    if cached:
        assert generated() == expected
    else:
        assert_raises("would be a guess", generated)


def test_a_users_own_cache_without_a_mask_is_counted():
    model, ids, cache = loaded("llama", "bridge"), PROMPTS[1], DynamicCache()
    vector = random_vector(model)
    changes = adding(vector, lambda p, n: range(6, n))
    expected = run_alone(random_hf_model("llama"), "llama", ids, 6, changes)[0]
    with torch.no_grad(), steer(model, Add(vector, 1.0, generated_tokens())) as tracker:
        parts = [
            model(torch.tensor([part]), past_key_values=cache, use_cache=True)[0]
            for part in (ids[:6], ids[6:7], ids[7:])
        ]
    torch.testing.assert_close(torch.cat(parts), expected, **CLOSE)
    assert tracker.index.tolist() == [[7]]


def test_logits_from_a_stream_are_no_pass_of_the_model(llama):
    batch = left_padded(PROMPTS, range(3), "cpu")
    with torch.no_grad(), steer(llama.model, Add(random_vector(llama.model))) as tracker:
        stream = residual(llama.model, batch)
        logits_of(llama.model, stream[:, -1])
    assert tracker.passes == 1
    assert tracker.index.shape == batch.tokens.shape


def test_choices_are_scored_as_hugging_face_scores_them(word_model):
    hf_model, vector = random_hf_model("llama"), random_vector(word_model)
    questions = ["the cat is", "the sky is not"]
    result = ts.choice_logits(word_model, questions, [(" blue", " cat"), (" blue dog", " cat")], Add(vector))

    def log_probability(text, *added):
        ids = [*tokenize(word_model, text), *word_model.tokenizer.convert_tokens_to_ids(added)]
        logits = run_alone(hf_model, "llama", ids, len(ids), adding(vector))[0].double().log_softmax(-1)
        return sum(logits[index - 1, ids[index]] for index in range(len(ids) - len(added), len(ids))).item()

    first = [log_probability(questions[0], "blue"), log_probability(questions[1], "blue", "dog")]
    second = [log_probability(question, "cat") for question in questions]
    first, second = torch.tensor([first, second])
    assert result["logit_difference"].tolist() == pytest.approx((first - second).tolist(), abs=1e-5)
    assert result["mass"].tolist() == pytest.approx((first.exp() + second.exp()).tolist(), rel=1e-4)


@NO_HOOKED
def test_tables_and_vectors_are_the_same_on_both_backends(make_tokenizer):
    """All functions of captures, choices and texts."""
    models = [loaded("qwen2", backend, tokenizer=make_tokenizer()) for backend in BACKENDS]
    pairs = ts.contrast_pairs(["the cat is a", "the dog is b"], ["the cat is c", "the sky is d"])
    questions = ts.ChoiceQuestions(["the cat is", "the sky is not"], [("a", "b")] * 2, answers=[0, 1])
    texts = ["the cat is not blue", "a b"]

    def everything(model):
        vectors = ts.mean_difference(ts.capture_pairs(model, pairs))
        generator, few = random_vector(model), {"controls": 1, "progress": False}
        return (
            vectors.values,
            ts.activation_addition(model, "a b", "c d", layers=1).values,
            ts.sweep(model, vectors, questions, layers=[0, 2], multipliers=[-1.0, 2.0], **few),
            ts.logit_lens(model, generator, top=5),
            ts.logit_lens(model, generator, top=5, norm=False),
            ts.damage(model, generator.at(layers=1), texts, multipliers=[3.0], **few),
        )

    for first, second in zip(*(everything(model) for model in models), strict=True):
        if isinstance(first, torch.Tensor):
            torch.testing.assert_close(first, second, **CLOSE)
        else:
            pd.testing.assert_frame_equal(first, second, check_exact=False, rtol=1e-4, atol=1e-4)


def test_the_logit_lens_of_the_last_layer_is_the_prediction(pair, make_tokenizer, monkeypatch):
    monkeypatch.setattr(pair.model, "tokenizer", make_tokenizer())
    result = ts.logit_lens(pair.model, ts.capture(pair.model, PROMPTS, layers=-1), top=3)
    best = torch.stack([pair.alone(ids)[0][-1] for ids in PROMPTS]).topk(3)
    assert result["token_id"].tolist() == best.indices.flatten().tolist()
    assert result["logit"].tolist() == pytest.approx(best.values.flatten().tolist(), abs=1e-4)


def test_without_the_norm_the_lens_is_what_a_vector_adds_to_the_logits(pair):
    vector, hf_model = random_vector(pair.model), pair.hf_model
    norms = {"gpt2": "transformer.ln_f", "neox": "gpt_neox.final_layer_norm"}
    norm = hf_model.get_submodule(norms.get(pair.architecture, "model.norm"))
    weight = norm.weight + (pair.architecture == "gemma2")
    added = vector.values - vector.values.mean() * (pair.architecture in ("gpt2", "neox"))
    expected = (2 * added * weight) @ hf_model.get_output_embeddings().weight.T
    result = ts.logit_lens(pair.model, vector, multipliers=[2.0], top=VOCABULARY, norm=False)
    values = torch.tensor(result.sort_values("token_id")["logit"].to_numpy())
    torch.testing.assert_close(values, expected.detach(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("processing", [False, True, {"center_writing_weights": True}])
@NO_HOOKED
def test_a_bridge_has_the_identity_of_the_hooked_transformer_to_the_digit(architecture, processing, caplog):
    caplog.set_level(logging.ERROR)  # steps that an architecture cannot have are left out, and logged
    hooked, bridge = (identify(loaded(architecture, backend, processing=processing)) for backend in BACKENDS)
    assert bridge == hooked
    assert len(bridge.fingerprint) == 512


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_bridge_in_half_precision_is_the_same_model(architecture, dtype):
    exact, rounded = (identify(loaded(architecture, "bridge", **each)) for each in ({}, {"dtype": dtype}))
    assert exact.same_model(rounded)
    assert rounded.same_model(exact)
    assert exact.fingerprint != rounded.fingerprint


@NO_HOOKED
@pytest.mark.parametrize(("made_on", "used_on"), [BACKENDS, BACKENDS[::-1]])
def test_a_vector_made_on_one_backend_is_used_on_the_other(made_on, used_on):
    pair = Pair("gpt2", loaded("gpt2", used_on), random_hf_model("gpt2"))
    vector = random_vector(loaded("gpt2", made_on))
    assert_steered(pair, Add(vector), adding(vector))


def test_a_folded_bridge_is_another_model_and_names_alone_do_not_fold():
    plain, folded, renamed = (loaded("gpt2", "bridge") for _ in range(3))
    tokens = torch.tensor([PROMPTS[1]])
    before = folded(tokens).log_softmax(-1)
    folded.enable_compatibility_mode(disable_warnings=True)
    torch.testing.assert_close(folded(tokens).log_softmax(-1), before, **CLOSE)
    assert (identify(plain).normalization, identify(plain).centred) == ("LN", False)
    assert (identify(folded).normalization, identify(folded).centred) == ("LNPre", True)
    add = Add(random_vector(plain))
    with pytest.raises(ModelMismatchError, match="normalization: LN against LNPre"), steer(folded, add):
        pass
    renamed.enable_compatibility_mode(disable_warnings=True, no_processing=True)
    assert identify(renamed) == identify(plain)


def test_weights_in_four_bits_have_no_fingerprint_and_say_so():
    """As bitsandbytes leaves them: packed in bytes, in another shape."""
    model, exact = loaded("llama", "bridge"), loaded("llama", "bridge")
    for each in model.original_model.model.layers:
        projection = each.original_component.self_attn.original_component.o_proj.original_component
        packed = torch.zeros(WIDTH * WIDTH // 2, 1, dtype=torch.uint8)
        projection.weight = torch.nn.Parameter(packed, requires_grad=False)
    assert identify(model).fingerprint == ()
    with pytest.warns(UserWarning, match="cannot compare the weights of tiny-llama"):
        identify(exact).require(identify(model))


@pytest.mark.parametrize("options", [{}, {"dtype": "bfloat16"}, {"processing": True}], ids=str)
def test_a_hugging_face_model_is_copied_only_if_its_weights_would_change(options):
    hf_model, tokens = random_hf_model("llama"), torch.tensor([PROMPTS[1]])
    before = hf_model(tokens).logits
    model = load_model("tiny", backend="bridge", hf_model=hf_model, **options)
    assert (model.original_model is hf_model) == (not options)
    assert torch.equal(hf_model(tokens).logits, before)
    assert model.cfg.dtype == (torch.bfloat16 if "dtype" in options else torch.float32)
    assert not model.training
    assert not any(weight.requires_grad for weight in model.parameters())


@pytest.mark.parametrize(("spoil", "message"), [
    (lambda model: [][1], "IndexError: list index out of range"),  # as on bridges of Bloom
    (lambda model: model.ln_final.weight.data.mul_(0.9), r"its log-probabilities are off by \d+\.\d%"),
    (lambda model: setattr(model.blocks[0].ln1, "forward", None), "TypeError: 'NoneType'"),
])  # fmt: skip
def test_processing_that_breaks_or_changes_a_bridge_is_rejected_with_the_step(monkeypatch, spoil, message):
    monkeypatch.setattr(TransformerBridge, "enable_compatibility_mode", lambda model, **_: spoil(model))
    message = rf"cannot process its bridge of \w+ by fold_ln: {message}.* Leave that"
    assert_raises(message, loaded, "llama", "bridge", processing={"fold_ln": True})


@pytest.mark.parametrize("device_map", [None, {"": "cpu"}, {"model": "cpu", "lm_head": "cpu"}])
def test_a_bridge_that_the_user_booted_is_steered_and_written_with(tmp_path, make_tokenizer, device_map):
    random_hf_model("llama").save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    placement = {"device": "cpu"} if device_map is None else {"device_map": device_map}
    model = TransformerBridge.boot_transformers(str(tmp_path), **placement)
    vector = random_vector(loaded("llama", "bridge"), scale=4.0)
    changes = adding(vector, CURRENT)
    expected = Pair("llama", model, random_hf_model("llama")).greedy(5, changes, [2])
    add = Add(vector, 1.0, current_token())
    assert ts.generate(model, PROMPTS, add, max_new_tokens=5, return_tokens=True) == expected


def test_a_bridge_that_computes_something_else_is_refused(monkeypatch):
    build = sources.build_bridge_from_module

    def wrong(hf_model, *arguments, **options):
        with torch.no_grad():
            block(hf_model, "llama", 1).mlp.down_proj.weight.mul_(1.1)
        return build(hf_model, *arguments, **options)

    monkeypatch.setattr(sources, "build_bridge_from_module", wrong)
    message = r"bridge changes what LlamaForCausalLM computes: .* off by \d"
    assert_raises(message, loaded, "llama", "bridge")


def novel(hf_model):
    hf_model.__class__ = type("NovelForCausalLM", (type(hf_model),), {})


def offloaded(hf_model):
    hf_model.model.layers[2].to("meta")
    hf_model.forward = None  # any pass would fail


@pytest.mark.parametrize(("change", "message"), [
    (novel, r"bridge cannot run NovelForCausalLM: .*[Uu]nsupported"),
    (offloaded, r"tiny has weights on meta: .* cannot be read or run with hooks"),
])  # fmt: skip
def test_a_model_that_no_bridge_can_run_is_rejected(change, message):
    hf_model = random_hf_model("llama")
    change(hf_model)
    assert_raises(message, load_model, "tiny", backend="bridge", hf_model=hf_model)


def test_the_default_backend_is_hooked_if_there_is_one(monkeypatch):
    assert ("bridge" if HookedTransformer is None else "hooked") == DEFAULT_BACKEND
    model = load_model("tiny", hf_model=random_hf_model("gpt2"))
    assert type(model).__name__ == {"hooked": "HookedTransformer"}.get(DEFAULT_BACKEND, "TransformerBridge")
    monkeypatch.setattr("tl_steer.models.loading.HookedTransformer", None)
    message = r"TransformerLens 4 .* use backend='bridge'.*'transformer-lens<4'"
    assert_raises(message, load_model, backend="hooked")


GRANITE = {"num_key_value_heads": 2, "logits_scaling": 3.0, "residual_multiplier": 0.7}
GROUPED = {"num_key_value_heads": 2, "head_dim": 12}
EXPERTS = GROUPED | {"num_local_experts": 4, "num_experts_per_tok": 2, "intermediate_size_mlp": 64}
MIXED = GROUPED | {
    "layer_types": ["linear_attention", "full_attention", "linear_attention"], "linear_num_value_heads": 4,
    "linear_num_key_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8, "num_experts": 4,
    "num_experts_per_tok": 2, "moe_intermediate_size": 32, "shared_expert_intermediate_size": 32,
}  # fmt: skip


def rare_model(architecture, **sizes):
    """A small model of another architecture, by transformers' name."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ARCHITECTURES, architecture, (architecture, SIZES | sizes))
        return random_hf_model(architecture)


MPT = pytest.param("Mpt", marks=pytest.mark.skipif(HookedTransformer is None, reason="correct in 4"))


@pytest.mark.parametrize("architecture", [MPT, "Mamba"])
def test_a_bridge_that_goes_wrong_after_cached_keys_and_values_is_refused(architecture, monkeypatch):
    sizes = {"vocab_size": VOCABULARY, "d_model": WIDTH, "n_layers": 3, "n_heads": 4, "max_seq_len": 64}
    if architecture == "Mamba":
        sizes = {"vocab_size": VOCABULARY, "hidden_size": WIDTH, "num_hidden_layers": 3, "state_size": 8}
    monkeypatch.setitem(ARCHITECTURES, architecture, (architecture, sizes))
    message = rf"cannot run {architecture}ForCausalLM a token at a time .*: \w.*backend='hooked'"
    assert_raises(message, loaded, architecture, "bridge")


@pytest.mark.parametrize(("architecture", "sizes", "dtype"), [
    ("Olmo", {}, "bfloat16"), ("Olmo2", {}, "bfloat16"), ("Olmo3", {"sliding_window": 5}, "float16"),
    ("Qwen3Next", MIXED, "float32"), ("Llama4Text", EXPERTS, "float32"),
])  # fmt: skip
def test_bridges_of_rarer_architectures_are_read_and_written_with(architecture, sizes, dtype):
    hf_model = rare_model(architecture, **sizes).to(getattr(torch, dtype))
    model = wrapped(copy.deepcopy(hf_model))
    with torch.no_grad():
        logits = hf_model(torch.tensor([PROMPTS[1]])).logits[:, -1].float()
        stream = ts.capture(model, [PROMPTS[1]], layers=-1).single()[:, 0]
        result = unembedded(model, stream.to(model.cfg.dtype))
    assert (result - logits).norm() < (1e-4 if dtype == "float32" else 0.03) * logits.norm()
    assert len(ts.generate(model, [PROMPTS[1]], max_new_tokens=2, return_tokens=True)[0]) == 2


@pytest.mark.parametrize(("architecture", "sizes"), [
    ("Granite", GRANITE), ("Nemotron", GROUPED),
    ("Qwen3Next", MIXED), ("Olmo", {}), ("Llama", {}), ("GPTNeoX", {}),
])  # fmt: skip
def test_without_the_norm_a_bridges_lens_is_the_slope_of_its_logits(architecture, sizes):
    """Along directions that keep the stream's length, and without the division by it."""
    model = wrapped(rare_model(architecture, **sizes))
    generator = torch.Generator().manual_seed(3)
    stream, added = (torch.randn(WIDTH, dtype=torch.float64, generator=generator) * 5 for _ in range(2))
    stream -= stream.mean()  # so that both kinds of norm divide by the same length
    added -= (added @ stream) / (stream @ stream) * stream
    added += 1.0  # a LayerNorm subtracts it
    whole, linear = (unembedding(model, torch.float64, norm=norm) for norm in (True, False))
    with torch.no_grad():
        slope = (whole((stream + 1e-3 * added)[None]) - whole((stream - 1e-3 * added)[None])) / 2e-3
        expected = slope * stream.pow(2).mean().sqrt()
        torch.testing.assert_close(linear(added[None]), expected, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(linear(2 * added[None]), 2 * linear(added[None]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("architecture", ["llama", "gemma2"])
def test_a_lens_without_the_norm_takes_streams_to_a_norm_and_a_head_on_other_devices(architecture):
    model = loaded(architecture, "bridge")
    stream = torch.randn(2, WIDTH, generator=torch.Generator().manual_seed(1))
    expected = unembedding(model, torch.float32, norm=False)(stream)
    with FakeDevices():
        for index, part in enumerate((model.ln_final, model.unembed)):
            part.original_component.to(f"lazy:{index}")
        result = unembedding(model, torch.float32, norm=False)(stream)
        assert str(result.device) == "lazy:1"
        torch.testing.assert_close(result.cpu(), expected, **CLOSE)


@pytest.mark.parametrize(("device", "requested", "same"), [
    ("cpu", "cpu:0", True), ("cuda:1", "cuda", True), ("cuda:0", "cuda:0", True),
    ("cuda:0", "cuda:1", False), ("cpu", "cuda", False),
])  # fmt: skip
def test_a_device_without_an_index_matches_any_index(device, requested, same):
    assert _is_same(torch.device(device), torch.device(requested)) is same


@pytest.mark.parametrize(
    ("device_map", "device"), [(None, "cpu:0"), ({"model": "cpu", "lm_head": "cpu"}, "cuda:3")]
)
def test_a_model_that_is_in_place_or_over_several_devices_stays_there(monkeypatch, device_map, device):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    hf_model = random_hf_model("llama")
    hf_model.hf_device_map = device_map
    assert load_model("tiny", backend="bridge", hf_model=hf_model, device=device).original_model is hf_model


def test_the_middle_of_a_block_can_be_read_on_a_bridge_but_not_changed():
    """A vector added at the second norm's input does not reach the skip connection."""
    pair = Pair("llama", loaded("llama", "bridge"), random_hf_model("llama"))
    vector = random_vector(pair.model, hook="resid_mid")
    message = r"'resid_mid' can be read but not changed on a TransformerBridge"
    options = {"max_new_tokens": 2, "return_tokens": True}
    assert_raises(message, ts.generate, pair.model, PROMPTS, Add(vector), **options)
    assert_steered(pair, Add(vector.at(layers=1, hook="attn_out")), adding(vector, hook="attn_out"))


def test_a_head_that_scales_its_logits_is_the_models_own():
    hf_model = rare_model("Granite", **GRANITE)
    model = wrapped(copy.deepcopy(hf_model))
    stream = ts.capture(model, PROMPTS, layers=-1).single()[:, 0]
    expected = torch.stack([run_alone(hf_model, "llama", ids, len(ids))[0][-1] for ids in PROMPTS])
    torch.testing.assert_close(unembedded(model, stream), expected, **CLOSE)
    # Its bridge calls these hooks only for TransformerLens's own hooks.
    message = "hook 'attn_out' did not fire at layers"
    assert_raises(message, ts.capture, model, PROMPTS, hook="attn_out", error=HookDidNotFireError)


def test_a_mask_for_each_query_is_rejected():
    model, tokens = loaded("llama", "bridge"), torch.tensor([PROMPTS[0]])
    message = "attention mask that is not one number per row and token"
    with pytest.raises(ValueError, match=message), steer(model, Add(random_vector(model))):
        model(tokens, attention_mask=torch.ones(1, 1, 4, 4))


def test_operations_follow_the_stream_to_its_device():
    """The device "meta" has only shapes, but mixing it with another device raises as everywhere."""
    vector = random_vector(loaded("llama", "bridge"))
    operations = [operation(vector) for operation, _ in OPERATIONS.values()]
    operations.append(Ablate(1, "z", heads=[2]))
    stream = torch.empty(1, 4, WIDTH, device="meta")
    with pytest.raises(RuntimeError, match=r"device"):
        stream + vector.values
    selected, index = torch.ones(1, 4).bool(), torch.arange(4)[None]
    for (edit,) in (operation.edits(3) for operation in operations):
        assert edit.apply(stream, selected, index, d_head=12).device.type == "meta"


@pytest.mark.model
def test_the_embedded_models_bridge_reads_and_steers_as_hugging_face_does(embedded_hf):
    hf_model, tokenizer = embedded_hf
    model = wrapped(copy.deepcopy(hf_model), tokenizer=tokenizer)
    ids = tokenize(model, chat_format(model).render("How was your day?"))
    _, seen = run_alone(hf_model, "llama", ids, len(ids), reads=[("resid_post", 29), ("z", 15)])
    assert model.cfg.n_layers == 30
    for hook, layer in seen:
        result = ts.capture(model, [ids], layers=layer, hook=hook, positions=all_tokens())
        torch.testing.assert_close(result.values[0, 0], seen[hook, layer], rtol=1e-3, atol=1e-3)
    values = torch.randn(576, generator=torch.Generator().manual_seed(0))
    vector = SteeringVector(values, 15, "resid_post", "test", 10.0, identify(model))
    changes = [Change(15, "resid_post", lambda x: x + 5 * values, CURRENT)]
    expected = greedy_alone(hf_model, "llama", ids, 8, changes, [2])
    add = Add(vector, 5.0, current_token())
    assert ts.generate(model, [ids], add, max_new_tokens=8, return_tokens=True) == [expected]
    assert expected != greedy_alone(hf_model, "llama", ids, 8, stops=[2])
