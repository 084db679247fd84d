"""One thread at a time runs a model, in evaluation mode: else each gets the other's hooks, and dropout."""

import copy
import functools
import gc
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from itertools import combinations_with_replacement

import numpy as np
import pandas as pd
import pytest
import torch

import tl_steer as ts
from tl_steer.models import exclusive, is_bridge, passes
from tl_steer.models.wrapping import wrapped
from tl_steer.texts import text_damage

from .conftest import random_hf_model
from .tiny_model import N_LAYERS, make_model, word_tokenizer

MEET = 0.4  # seconds in which a thread waits for another inside a pass
LONG = 20.0  # seconds after which a test fails that would wait forever
PROMPTS = ["a b c", "d e f g h"]
QUESTIONS = ts.ChoiceQuestions(PROMPTS, [("yes", "no")] * 2)
PAIRS = ts.contrast_pairs(["a b", "c d e"], ["f g", "h i j"])
GRID = {"layers": [1], "multipliers": [4.0], "controls": 0, "progress": False}
LENS_COLUMNS = ["token_id", "logit", "probability"]
TOKENS = torch.tensor([[0, 3, 4, 5, 6]])


def make(backend):
    """A tiny model; its blocks have dropout, where the backend has any."""
    if backend == "hooked":
        return make_model(word_tokenizer())
    inner = random_hf_model("gpt2", attn_pdrop=0.5, resid_pdrop=0.5, embd_pdrop=0.5)
    return ts.load_model("tiny", backend="bridge", hf_model=inner, tokenizer=word_tokenizer(), device="cpu")


def first_block(model):
    """A module that every pass runs, whichever code calls it, before layer 1."""
    return model.original_model.transformer.h[0] if is_bridge(model) else model.blocks[0].mlp


def vectors_of(model, seed=0):
    values = torch.randn(N_LAYERS, model.cfg.d_model, generator=torch.Generator().manual_seed(seed))
    norms = torch.full((N_LAYERS,), 10.0)
    return ts.SteeringVectors(values, tuple(range(N_LAYERS)), "resid_post", "x", norms, ts.identify(model))


def added(model, seed):
    return ts.Add(vectors_of(model, seed)[1], 4.0)


def steered_logits(model, seed):
    with ts.steer(model, added(model, seed)), torch.no_grad():
        return model(TOKENS)


def unsteered(model, seed=0):
    return ts.capture(model, PROMPTS, layers=-1).values


def captured(model, seed):
    return ts.capture(model, PROMPTS, added(model, seed), layers=-1).values


def swept(model, seed, **options):
    return ts.sweep(model, vectors_of(model, seed), QUESTIONS, **GRID, **options)


TOKEN_OPTIONS = {"max_new_tokens": 6, "min_new_tokens": 6, "return_tokens": True}
CALLS = {
    "logits": steered_logits,
    "captured": captured,
    "generated": lambda model, seed: ts.generate(model, PROMPTS, added(model, seed), **TOKEN_OPTIONS),
    "scored": lambda model, seed: ts.choice_logits(model, PROMPTS, ("yes", "no"), added(model, seed)),
    "swept": swept,
}


def text_damaged(model, seed):
    texts = pd.DataFrame(swept(make("hooked"), seed)).assign(text="a b c d")
    return text_damage(texts, model, progress=False)[["tokens", "loss"]]


def pairs_captured(model, seed):
    both = ts.capture_pairs(model, PAIRS, added(model, seed), max_new_tokens=2, positions=ts.all_tokens())
    return torch.cat([both.positive.values, both.negative.values])


def traced(model, seed):
    activations = ts.capture(model, PROMPTS, added(model, seed), positions=ts.all_tokens())
    return ts.traces(activations, vectors_of(model))[["projection", "cosine"]]


NUMBERS = CALLS | {
    "damaged": lambda model, seed: ts.damage(model, vectors_of(model, seed), PROMPTS, **GRID),
    "text_damaged": text_damaged,
    "pairs_captured": pairs_captured,
    "estimated": lambda model, seed: ts.vectors_from_pairs(model, PAIRS).values,
    "activation_added": lambda model, seed: ts.activation_addition(model, "a", "b").values,
    "lens": lambda model, seed: ts.logit_lens(model, vectors_of(model, seed))[LENS_COLUMNS],
    "traced": traced,
}


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
    barrier, threads, inside = threading.Barrier(2), set(), threading.Event()
    module = first_block(model)
    forward = module.forward

    def gated(*inputs, **options):
        if threading.current_thread() not in threads:
            threads.add(threading.current_thread())
            inside.set()
            with suppress(threading.BrokenBarrierError):  # the other thread waits for this one
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


def in_thread_after(block, call, *arguments, **options):
    """Result of a call in another thread, which must wait until the block ends."""
    with ThreadPoolExecutor(1) as pool:
        with block:
            future = pool.submit(call, *arguments, **options)
            with pytest.raises(TimeoutError):
                future.result(MEET)
        return future.result(LONG)


# ---- Threads


@pytest.fixture(scope="module", params=["hooked", "bridge"])
def model(request):
    """A model, which tests leave as it was."""
    return make(request.param)


@pytest.mark.parametrize(("first", "second"), [*combinations_with_replacement(CALLS, 2)])
def test_two_threads_get_the_numbers_that_each_gets_alone(model, first, second):
    first, second = CALLS[first], CALLS[second]
    alone = first(model, 1), second(model, 2)
    for result, expected in zip(in_threads(model, first, second), alone, strict=True):
        require_equal(result, expected)


def test_an_unsteered_call_is_not_steered_by_another_thread(model):
    alone = unsteered(model)
    require_equal(in_threads(model, steered_logits, unsteered)[1], alone)
    require_equal(in_threads(model, unsteered, steered_logits)[0], alone)


def test_two_bridges_around_one_hugging_face_model_wait_for_each_other():
    one = make("bridge")
    two = wrapped(one.original_model, "tiny")
    two.tokenizer = word_tokenizer()
    alone = captured(two, 2)

    @contextmanager
    def steered():
        with ts.steer(one, added(one, 1)), torch.no_grad():
            yield
            one(TOKENS)

    require_equal(in_thread_after(steered(), captured, two, 2), alone)


def test_a_sweep_with_a_file_waits_for_another_thread_s_hooks(tmp_path):
    model = make("hooked")
    result = in_thread_after(ts.steer(model), swept, model, 2, out=tmp_path / "sweep.parquet")
    require_equal(result, swept(model, 2))


def test_a_thread_may_use_the_model_that_it_steers(model):
    expected = captured(model, 1)
    with ts.steer(model, added(model, 1)):
        require_equal(unsteered(model), expected)
    in_thread(captured, model, 1)  # released as often as entered


def test_other_models_are_not_waited_for(model):
    other = copy.deepcopy(model)
    expected = captured(other, 2)
    with exclusive(model):
        for copied in (other, copy.deepcopy(model)):
            require_equal(in_thread(captured, copied, 2), expected)


def test_after_an_exception_or_in_another_thread_the_model_is_released(model):
    with pytest.raises(ZeroDivisionError), ts.steer(model, added(model, 1)):
        raise ZeroDivisionError
    in_thread(captured, model, 1)
    block = exclusive(model)
    block.__enter__()
    in_thread(block.__exit__, None, None, None)
    in_thread(captured, model, 1)
    block = exclusive(model)
    block.__enter__()
    del block
    gc.collect()
    in_thread(captured, model, 1)


def test_two_models_steered_in_opposite_order_are_an_error_and_no_deadlock():
    one, two = make("hooked"), make("bridge")
    both = threading.Barrier(2)

    def in_order(first, second):
        with ts.steer(first), ExitStack() as stack:
            both.wait(LONG)
            try:
                stack.enter_context(ts.steer(second))
            except RuntimeError as error:
                return str(error)
            return ""

    with ThreadPoolExecutor(2) as pool:
        entered, message = sorted(pool.map(in_order, (one, two), (two, one), timeout=LONG))
    assert entered == ""
    assert "Steer several models in the same order in every thread" in message


def test_a_thread_that_waits_long_warns_and_names_the_other(model, monkeypatch):
    monkeypatch.setattr(passes, "WARN_AFTER", 0.05)
    with ts.steer(model), pytest.raises(RuntimeWarning, match="'MainThread' uses"):
        in_thread(captured, model, 1)
    in_thread(captured, model, 1)


# ---- Evaluation mode


def modules_of(model):
    return list(dict.fromkeys([*model.modules(), *getattr(model, "original_model", model).modules()]))


def modes_of(model):
    return [module.training for module in modules_of(model)]


def evaluate(model):
    for module in modules_of(model):
        vars(module)["training"] = False


def train_some(model):
    for number, module in enumerate(modules_of(model)):
        vars(module)["training"] = number % 3 > 0


@pytest.fixture(scope="module")
def bridge():
    return make("bridge")


@pytest.mark.parametrize("call", NUMBERS.values(), ids=NUMBERS)
def test_dropout_changes_no_number_and_every_mode_is_restored(bridge, call):
    evaluate(bridge)
    expected = call(bridge, 1)
    for set_training in (bridge.train, bridge.original_model.train, functools.partial(train_some, bridge)):
        set_training()
        modes = modes_of(bridge)
        assert any(modes)
        require_equal(call(bridge, 1), expected)
        assert modes_of(bridge) == modes


def test_a_hooked_transformer_in_training_mode_is_evaluated():
    model = make("hooked")
    mlp = model.blocks[1].mlp
    forward = mlp.forward
    mlp.forward = lambda x: torch.nn.functional.dropout(forward(x), 0.5, mlp.training)
    expected = [call(model, 1) for call in NUMBERS.values()]
    train_some(model)
    mlp.train()
    modes = modes_of(model)
    for call, numbers in zip(NUMBERS.values(), expected, strict=True):
        require_equal(call(model, 1), numbers)
    assert modes_of(model) == modes


def test_modes_are_restored_after_an_exception_and_training_can_be_steered(bridge):
    train_some(bridge)
    modes = modes_of(bridge)
    with pytest.raises(ZeroDivisionError), ts.steer(bridge, added(bridge, 1)):
        _ = 1 / sum(modes_of(bridge))  # 0: none is in training mode
    assert modes_of(bridge) == modes
    evaluate(bridge)
    with ts.steer(bridge, added(bridge, 1)), torch.no_grad():
        evaluated = bridge(TOKENS)
        bridge.train()
        assert not torch.equal(bridge(TOKENS), evaluated)
    evaluate(bridge)


def test_verify_still_reports_training_mode_and_compares_nothing_with_it(bridge):
    reference = random_hf_model("gpt2")
    reference.transformer.h[1].attn.train()  # the model itself is in evaluation mode
    assert not reference.training
    bridge.original_model.train()
    table = ts.verify(bridge, hf_model=reference, prompts=PROMPTS, progress=False).set_index("check")
    evaluate(bridge)
    assert list(table.loc[["evaluation mode", "settings are unchanged"], "result"]) == ["failed", "passed"]
    assert table["detail"].str.contains("hf_model is in training mode").any()
    assert np.isfinite(table.loc["evaluation mode", "measured"])
