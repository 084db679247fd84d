"""One thread at a time runs a model, in evaluation mode: else each gets the other's hooks, and dropout."""

import copy
import gc
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from itertools import combinations_with_replacement

import numpy as np
import pandas as pd
import pytest
import torch

from tl_steer._capture import capture, capture_pairs
from tl_steer._generation import generate
from tl_steer._scoring import choice_logits
from tl_steer.analysis import logit_lens, traces
from tl_steer.directions import SteeringVectors
from tl_steer.interventions import Add, steer
from tl_steer.models import exclusive, identify, is_bridge, load_model, passes
from tl_steer.models.wrapping import wrapped
from tl_steer.positions import all_tokens
from tl_steer.prompts import ChoiceQuestions, contrast_pairs
from tl_steer.recipes import activation_addition, vectors_from_pairs
from tl_steer.sweeps import damage
from tl_steer.sweeps._sweep import sweep
from tl_steer.texts import text_damage
from tl_steer.verification import verify

from .conftest import random_hf_model
from .tiny_model import N_LAYERS, make_model, word_tokenizer

MEET = 0.4  # seconds in which a thread waits for another inside a pass
LONG = 20.0  # seconds after which a test fails that would wait forever
PROMPTS = ["a b c", "d e f g h"]
QUESTIONS = ChoiceQuestions(PROMPTS, [("yes", "no")] * 2)
DROPOUT = {"attn_pdrop": 0.5, "resid_pdrop": 0.5, "embd_pdrop": 0.5}
BACKENDS = ("hooked", "bridge")


def make(backend):
    """A tiny model; its blocks have dropout, where the backend has any."""
    if backend == "hooked":
        return make_model(word_tokenizer())
    hf_model = random_hf_model("gpt2", **DROPOUT)
    return load_model("tiny", backend="bridge", hf_model=hf_model, tokenizer=word_tokenizer(), device="cpu")


def first_block(model):
    """A module that every pass runs, whichever code calls it, before layer 1."""
    return model.original_model.transformer.h[0] if is_bridge(model) else model.blocks[0].mlp


def vectors_of(model, seed=0):
    values = torch.randn(N_LAYERS, model.cfg.d_model, generator=torch.Generator().manual_seed(seed))
    norms = torch.full((N_LAYERS,), 10.0)
    return SteeringVectors(values, tuple(range(N_LAYERS)), "resid_post", "made", norms, identify(model))


def added(model, seed):
    return Add(vectors_of(model, seed)[1], 4.0)


def steered_logits(model, seed):
    with steer(model, added(model, seed)), torch.no_grad():
        return model(torch.tensor([[0, 3, 4, 5, 6]]))


def captured(model, seed):
    return capture(model, PROMPTS, added(model, seed), layers=-1).values


def generated(model, seed):
    options = {"max_new_tokens": 6, "min_new_tokens": 6, "return_tokens": True}
    return generate(model, PROMPTS, added(model, seed), **options)


def scored(model, seed):
    return choice_logits(model, PROMPTS, ("yes", "no"), added(model, seed))


def swept(model, seed, **options):
    options |= {"layers": [1], "multipliers": [4.0], "controls": 0, "progress": False}
    return sweep(model, vectors_of(model, seed), QUESTIONS, **options)


CALLS = (steered_logits, captured, generated, scored, swept)


def damaged(model, seed):
    options = {"layers": [1], "multipliers": [4.0], "controls": 0, "progress": False}
    return damage(model, vectors_of(model, seed), PROMPTS, **options)


def text_damaged(model, seed):
    texts = pd.DataFrame(swept(make("hooked"), seed)).assign(text="a b c d")
    return text_damage(texts, model, progress=False)[["tokens", "loss"]]


def pairs_captured(model, seed):
    pairs = contrast_pairs(["a b", "c d e"], ["f g", "h i j"])
    both = capture_pairs(model, pairs, added(model, seed), max_new_tokens=2, positions=all_tokens())
    return torch.cat([both.positive.values, both.negative.values])


def estimated(model, seed):
    return vectors_from_pairs(model, contrast_pairs(["a b", "c d e"], ["f g", "h i j"])).values


def activation_added(model, seed):
    return activation_addition(model, "a", "b").values


def lens(model, seed):
    return logit_lens(model, vectors_of(model, seed))[["token_id", "logit", "probability"]]


def traced(model, seed):
    everywhere = capture(model, PROMPTS, added(model, seed), positions=all_tokens())
    return traces(everywhere, vectors_of(model))[["projection", "cosine"]]


OTHERS = (damaged, text_damaged, pairs_captured, estimated, activation_added, lens, traced)
NUMBERS = (*CALLS, *OTHERS)


def require_equal(result, expected):
    if isinstance(expected, pd.DataFrame):
        pd.testing.assert_frame_equal(result, expected, rtol=1e-4, atol=1e-5)
    elif isinstance(expected, torch.Tensor):
        torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-5, equal_nan=True)
    else:
        assert result == expected


@contextmanager
def meeting(model):
    """In its first pass, each thread waits inside block 0 until another thread is there too, or too long."""
    barrier, met, inside = threading.Barrier(2), set(), threading.Event()
    module = first_block(model)
    forward = module.forward

    def gated(*inputs, **options):
        if threading.current_thread() not in met:
            met.add(threading.current_thread())
            inside.set()
            with suppress(threading.BrokenBarrierError):  # no other came: it waits for this one
                barrier.wait(MEET)
        return forward(*inputs, **options)

    vars(module)["forward"] = gated
    try:
        yield inside
    finally:
        del vars(module)["forward"]


def in_threads(model, first, second):
    """Results of two calls, of which the second begins while the first is inside a pass."""
    with ThreadPoolExecutor(2) as pool, meeting(model) as inside:
        one = pool.submit(first, model, 1)
        assert inside.wait(LONG)
        two = pool.submit(second, model, 2)
        return one.result(LONG), two.result(LONG)


def in_thread(call, *arguments):
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(call, *arguments).result(LONG)


# ---- Threads


@pytest.fixture(scope="module", params=BACKENDS)
def model(request):
    """A model, which tests leave as it was."""
    return make(request.param)


@pytest.mark.parametrize(
    ("first", "second"), [*combinations_with_replacement(CALLS, 2)], ids=lambda call: call.__name__
)
def test_two_threads_get_the_numbers_that_each_gets_alone(model, first, second):
    alone = first(model, 1), second(model, 2)
    for result, expected in zip(in_threads(model, first, second), alone, strict=True):
        require_equal(result, expected)


def test_an_unsteered_call_is_not_steered_by_another_thread(model):
    def unsteered(model, seed):
        return capture(model, PROMPTS, layers=-1).values

    alone = unsteered(model, 0)
    require_equal(in_threads(model, steered_logits, unsteered)[1], alone)
    require_equal(in_threads(model, unsteered, steered_logits)[0], alone)


def test_two_bridges_around_one_hugging_face_model_wait_for_each_other():
    one = make("bridge")
    two = wrapped(one.original_model, "tiny")
    two.tokenizer = word_tokenizer()
    alone = captured(two, 2)
    with ThreadPoolExecutor(1) as pool:
        with steer(one, added(one, 1)), torch.no_grad():
            other = pool.submit(captured, two, 2)
            with pytest.raises(TimeoutError):
                other.result(MEET)
            one(torch.tensor([[0, 3, 4]]))
        require_equal(other.result(LONG), alone)


def test_a_sweep_with_a_file_waits_for_another_thread_s_hooks(tmp_path):
    model = make("hooked")
    expected = swept(model, 2)
    with ThreadPoolExecutor(1) as pool:
        with steer(model):
            sweeping = pool.submit(swept, model, 2, out=tmp_path / "sweep.parquet")
            with pytest.raises(TimeoutError):
                sweeping.result(MEET)
        require_equal(sweeping.result(LONG), expected)


def test_a_thread_may_use_the_model_that_it_steers(model):
    expected = captured(model, 1)
    with steer(model, added(model, 1)):
        result = capture(model, PROMPTS, layers=-1).values
    require_equal(result, expected)
    in_thread(captured, model, 1)  # released as often as entered


def test_other_models_are_not_waited_for(model):
    other = copy.deepcopy(model)
    expected = captured(other, 2)
    with exclusive(model):
        require_equal(in_thread(captured, other, 2), expected)
        require_equal(in_thread(captured, copy.deepcopy(model), 2), expected)


def test_after_an_exception_or_in_another_thread_the_model_is_released(model):
    with pytest.raises(ZeroDivisionError), steer(model, added(model, 1)):
        raise ZeroDivisionError
    in_thread(captured, model, 1)
    block = exclusive(model)
    block.__enter__()
    in_thread(block.__exit__, None, None, None)
    in_thread(captured, model, 1)
    abandoned = exclusive(model)
    abandoned.__enter__()
    del abandoned
    gc.collect()
    in_thread(captured, model, 1)


def test_two_models_steered_in_opposite_order_are_an_error_and_no_deadlock():
    one, two = make("hooked"), make("bridge")
    both = threading.Barrier(2)

    def in_order(first, second):
        with steer(first), ExitStack() as stack:
            both.wait(LONG)
            try:
                stack.enter_context(steer(second))
            except RuntimeError as error:
                return str(error)
            return "entered"

    with ThreadPoolExecutor(2) as pool:
        result = [pool.submit(in_order, *models) for models in ((one, two), (two, one))]
        results = sorted(each.result(LONG) for each in result)
    assert results[0] == "entered"
    assert "Steer several models in the same order in every thread" in results[1]


def test_a_thread_that_waits_long_warns_and_names_the_other(model, monkeypatch):
    monkeypatch.setattr(passes, "WARN_AFTER", 0.05)
    with steer(model), pytest.raises(RuntimeWarning, match="'MainThread' uses"):
        in_thread(captured, model, 1)
    in_thread(captured, model, 1)


# ---- Evaluation mode


def modules_of(model):
    return list(dict.fromkeys([*model.modules(), *getattr(model, "original_model", model).modules()]))


def evaluate(model):
    for module in modules_of(model):
        vars(module)["training"] = False


def set_training(model, case):
    """Training mode, of all modules or of some."""
    if case == "model.train()":
        model.train()
    elif case == "below the bridge":
        model.original_model.train()
    else:
        for number, module in enumerate(modules_of(model)):
            vars(module)["training"] = number % 3 > 0


@pytest.fixture(scope="module")
def bridge():
    return make("bridge")


@pytest.mark.parametrize("call", NUMBERS, ids=lambda call: call.__name__)
def test_dropout_changes_no_number_and_every_mode_is_restored(bridge, call):
    modules = modules_of(bridge)
    evaluate(bridge)
    expected = call(bridge, 1)
    for case in ("model.train()", "below the bridge", "some modules"):
        set_training(bridge, case)
        modes = [module.training for module in modules]
        assert any(modes)
        require_equal(call(bridge, 1), expected)
        assert [module.training for module in modules] == modes


def test_a_hooked_transformer_in_training_mode_is_evaluated():
    model = make("hooked")
    forward = model.blocks[1].mlp.forward

    def dropping(x):
        return torch.nn.functional.dropout(forward(x), 0.5, model.blocks[1].mlp.training)

    model.blocks[1].mlp.forward = dropping
    expected = [call(model, 1) for call in NUMBERS]
    set_training(model, "some modules")
    model.blocks[1].mlp.train()
    modes = [module.training for module in model.modules()]
    for call, numbers in zip(NUMBERS, expected, strict=True):
        require_equal(call(model, 1), numbers)
    assert [module.training for module in model.modules()] == modes


def test_modes_are_restored_after_an_exception_and_training_can_be_steered(bridge):
    set_training(bridge, "some modules")
    modes = [module.training for module in modules_of(bridge)]
    with pytest.raises(ZeroDivisionError), steer(bridge, added(bridge, 1)):
        _ = 1 / sum(module.training for module in modules_of(bridge))  # 0: none is
    assert [module.training for module in modules_of(bridge)] == modes
    evaluate(bridge)
    tokens = torch.tensor([[0, 3, 4, 5]])
    with steer(bridge, added(bridge, 1)), torch.no_grad():
        evaluated = bridge(tokens)
        bridge.train()
        assert not torch.equal(bridge(tokens), evaluated)
    evaluate(bridge)


def test_verify_still_reports_training_mode_and_compares_nothing_with_it(bridge):
    reference = random_hf_model("gpt2")
    reference.transformer.h[1].attn.train()  # the model itself is in evaluation mode
    assert not reference.training
    set_training(bridge, "below the bridge")
    table = verify(bridge, hf_model=reference, prompts=PROMPTS, progress=False).set_index("check")
    evaluate(bridge)
    assert table.loc["evaluation mode", "result"] == "failed"
    assert table.loc["settings are unchanged", "result"] == "passed"
    assert table["detail"].str.contains("hf_model is in training mode").any()
    assert np.isfinite(table.loc["evaluation mode", "measured"])
