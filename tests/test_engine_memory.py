"""Chunks that fit the memory, running out of it, and errors that name the guilty condition among many."""

import gc
import importlib
import itertools
import logging
import math
import types
import weakref
from contextlib import contextmanager, nullcontext

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tl_steer._capture import capture
from tl_steer._generation import Decoding, generate
from tl_steer._scoring import choice_logits, plan_choices
from tl_steer.activations import Activations
from tl_steer.directions import SteeringVector
from tl_steer.engine import Row
from tl_steer.engine.paths import path_of
from tl_steer.engine.shared.chunking import run_in_chunks
from tl_steer.engine.shared.decoding import Decoder
from tl_steer.engine.shared.forward import LayerwisePass
from tl_steer.engine.shared.packed_hooked import PackedHooked
from tl_steer.engine.shared.prefixes import Plan
from tl_steer.errors import EmptySelectionError, NonFiniteError
from tl_steer.interventions import Ablate, Add, ProjectOut
from tl_steer.models import identify
from tl_steer.positions import PromptTokens, all_tokens, generated_tokens, last_token, parse_positions, token
from tl_steer.prompts import ChoiceQuestions
from tl_steer.sweeps._sweep import sweep

from .conftest import assert_raises
from .tiny_model import (
    D_HEAD,
    D_MODEL,
    N_HEADS,
    N_LAYERS,
    all_hooks,
    made_vector,
    make_model,
    score,
    word_tokenizer,
    write,
)

MODEL = make_model(word_tokenizer())
path_of(MODEL)  # its probe is not counted below
PACKED = PackedHooked(MODEL)
chunking = importlib.import_module("tl_steer.engine.shared.chunking")
PROMPTS = [[0, 3, 4, 5], [0, 3, 4], [7, 8, 9, 10, 11], [0, 3, 4, 5], [6]]
CONDITIONS = [
    (),
    (Add(made_vector(MODEL, 0), 1.0),),
    (Add(made_vector(MODEL, 1), 2.0, last_token()),),
    (ProjectOut(made_vector(MODEL, 2, "resid_pre")), Ablate(1, "z", heads=[1])),
    (Ablate(0, "mlp_out"),),
]
CACHE_BYTES = 4 * 2 * N_HEADS * D_HEAD  # keys and values of one token in one layer
TOKEN_BYTES = 4 * D_MODEL + CACHE_BYTES  # and its stream


@contextmanager
def limited(size):
    """The memory allowed is `size` bytes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunking, "bytes_allowed", lambda model, memory: size)
        yield


def scored(conditions=CONDITIONS, prompts=PROMPTS, choices=(" yes", " no"), **options):
    return score(MODEL, plan_choices(MODEL, prompts, [choices] * len(prompts)), conditions, **options)


def written(conditions=CONDITIONS, prompts=PROMPTS, decoding=None, **options):
    return write(MODEL, prompts, conditions, decoding or Decoding(4, 4), **options)


def captured(**options):
    return capture(MODEL, PROMPTS, *CONDITIONS[3], positions=all_tokens(), max_new_tokens=3, **options)


RUNS = (scored, written, captured)
each_run = pytest.mark.parametrize("run", RUNS, ids=["scored", "written", "captured"])


def require_same(result, expected):
    """Scores, texts or activations are the same."""
    if isinstance(expected, Activations):
        for name in ("values", "stream_norm"):
            options = {"rtol": 0, "atol": 1e-4, "equal_nan": True}
            torch.testing.assert_close(getattr(result, name), getattr(expected, name), **options)
    elif isinstance(expected[0], pd.DataFrame):
        for one, other in zip(result, expected, strict=True):
            pd.testing.assert_frame_equal(one, other, rtol=0, atol=1e-4)
    else:
        assert result == expected


def edits(condition):
    return [edit for operation in condition for edit in operation.edits(N_LAYERS)]


def rows_of(prompts):
    return [Row(tuple(ids), PromptTokens(len(ids), tuple(ids))) for ids in prompts]


def run_chunks(work, conditions=CONDITIONS, prompts=PROMPTS):
    run_in_chunks(MODEL, PACKED, rows_of(prompts), [edits(condition) for condition in conditions], work)


# The argument


@pytest.mark.parametrize(
    ("device", "memory", "free", "expected"),
    [
        ("cpu", None, 2**40, chunking.CPU_BYTES),
        ("cpu", None, 10**6, 5 * 10**5),
        ("cpu", 0.25, 4 * 10**9, 10**9),
        ("cpu", 1.0, 10**6, 10**6),
        ("cpu", 1e-3, 10**6, 1000),
        ("cpu", 7, 10**6, 7),
        ("cuda:0", None, 6 * 10**9, 3 * 10**9),
        ("cuda:0", 0.5, 6 * 10**9, 3 * 10**9),
        ("cuda:0", 0.1, 6 * 10**9, 6 * 10**8),
    ],
)
def test_memory_is_a_share_of_what_is_free_and_by_default_half_up_to_a_limit_on_a_cpu(
    monkeypatch, device, memory, free, expected
):
    monkeypatch.setattr(chunking.psutil, "virtual_memory", lambda: types.SimpleNamespace(available=free))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 8 * 10**9))
    model = types.SimpleNamespace(W_E=types.SimpleNamespace(device=torch.device(device)))
    assert chunking.bytes_allowed(model, memory) == expected
    assert chunking.CPU_BYTES <= 2**30


CALLS = {
    "choice_logits": lambda **options: choice_logits(MODEL, ["a b", "a"], (" yes", " no"), **options),
    "generate": lambda **options: generate(MODEL, ["a b", "a"], max_new_tokens=2, **options),
    "capture": lambda **options: capture(MODEL, ["a b", "a"], **options),
    "sweep": lambda **options: sweep(
        MODEL, made_vector(MODEL, 1).at(layers=[1]), ChoiceQuestions(["a b", "a"], [(" yes", " no")] * 2),
        multipliers=[1.0], controls=0, progress=False, **options,
    ),
}  # fmt: skip


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_memory_is_a_number_of_bytes_or_a_fraction(call):
    for memory in (0.0, -0.5, 1.5, -math.inf, math.inf, math.nan, 0, -1):
        assert_raises(f"memory={memory!r}: expected a whole number of bytes", call, memory=memory)
    assert len(call(memory=2 * 10**9)) == len(call(memory=1)) == len(call())


# Chunks


@settings(max_examples=30)
@given(
    prompts=st.lists(st.lists(st.integers(3, 5), min_size=1, max_size=6), min_size=1, max_size=6),
    conditions=st.lists(st.sampled_from(range(len(CONDITIONS))), min_size=1, max_size=6),
    limit=st.integers(1, 20_000),
    new_tokens=st.sampled_from([0, 0, 5]),
)
def test_every_condition_of_every_row_is_in_one_chunk_that_fits(prompts, conditions, limit, new_tokens):
    rows, conditions = rows_of(prompts), [edits(CONDITIONS[condition]) for condition in conditions]
    chunks = []
    with limited(limit):
        run_in_chunks(MODEL, PACKED, rows, conditions, chunks.append, new_tokens=new_tokens)
    done = [pair for chunk in chunks for pair in itertools.product(chunk.conditions, chunk.rows)]
    assert sorted(done) == list(itertools.product(range(len(conditions)), range(len(rows))))
    for chunk in chunks:
        assert chunk.plan.rows == [rows[row] for row in chunk.rows]
        assert chunk.plan.conditions == [conditions[condition] for condition in chunk.conditions]
        assert len(chunk.layerwise.stream) == chunk.plan.size
        size = chunk.plan.size * TOKEN_BYTES
        if new_tokens:
            longest = max(len(row.ids) for row in chunk.plan.rows)
            size += len(chunk.conditions) * len(chunk.rows) * (longest + new_tokens) * N_LAYERS * CACHE_BYTES
        assert size <= limit or len(chunk.conditions) == len(chunk.rows) == 1


def test_prompts_that_begin_alike_stay_in_one_chunk():
    begin = [3, 4, 5, 6, 7, 8]
    prompts = [[*begin, 9], [10, 11, 12, 13, 14, 15, 16], [*begin, 10], [17, 18, 19, 20, 21, 22, 23]]
    chunks = []
    with limited(18 * TOKEN_BYTES):  # either half, with its masks, but not both
        run_chunks(chunks.append, [()], prompts)
    assert sorted(set(chunk.rows) for chunk in chunks)[0] in ({0, 2}, {1, 3})
    assert len(chunks) == 2


@pytest.mark.parametrize("tokens", [1, 6, 20, 60])
def test_with_little_memory_there_are_many_chunks_and_the_same_numbers(monkeypatch, tokens):
    passes, run_pass = [], LayerwisePass.run

    def run(self, *args, **options):
        passes.append(1)
        return run_pass(self, *args, **options)

    monkeypatch.setattr(LayerwisePass, "run", run)
    for call in RUNS:
        expected = call(reuse=False)
        with limited(tokens * TOKEN_BYTES):
            require_same(call(), expected)
    assert len(passes) > (3 if tokens == 60 else 6)


def test_tensors_cached_between_passes_fit_the_memory(monkeypatch):
    sizes = []

    def start(self, start=Decoder.start):
        stream = start(self)
        layerwise = self.chunk.layerwise
        prompts = [each for pair in self.prompts for each in pair]
        cached = [layerwise.stream, layerwise.keys, layerwise.values, *prompts, *self.keys, *self.values]
        sizes.append((len(self.members), sum(each.nbytes for each in cached)))
        return stream

    monkeypatch.setattr(Decoder, "start", start)
    limit = 20_000
    with limited(limit):
        written()
    assert len(sizes) > 2
    assert all(size <= limit for members, size in sizes if members > 1)
    assert max(size for _, size in sizes) > limit / 4  # and is not left unused


@pytest.fixture
def alive(monkeypatch):
    """How many layerwise passes exist when the next one is created, and at the end."""
    passes, result = [], []
    init = LayerwisePass.__init__

    def remember(self, *args, **options):
        result.append(sum(layerwise() is not None for layerwise in passes))
        passes.append(weakref.ref(self))
        init(self, *args, **options)

    monkeypatch.setattr(LayerwisePass, "__init__", remember)
    gc.collect()
    gc.disable()
    yield lambda: (result, sum(layerwise() is not None for layerwise in passes))
    gc.enable()


@each_run
def test_memory_of_a_chunk_is_freed_before_the_next_one(alive, run):
    with limited(10 * TOKEN_BYTES):
        run()
    before_each, afterwards = alive()
    assert len(before_each) > 3
    assert {*before_each, afterwards} == {0}


def test_memory_of_a_chunk_that_ran_out_is_freed_before_it_is_tried_again(alive):
    def work(chunk):
        if len(chunk.conditions) > 1:
            raise MemoryError

    run_chunks(work)
    before_each, afterwards = alive()
    assert len(before_each) > len(CONDITIONS)
    assert {*before_each, afterwards} == {0}


@pytest.mark.parametrize("limit", [10**6, 3000])
def test_progress_adds_up_to_the_conditions(limit):
    for run in (scored, written):
        steps = []
        with limited(limit):
            run(on_progress=steps.append)
        assert len(steps) >= N_LAYERS
        assert min(steps) > 0
        assert 0.8 * len(CONDITIONS) < sum(steps) < 1.05 * len(CONDITIONS)


# Running out of memory

OOM_ERRORS = {
    "accelerator": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    "Python": MemoryError(),
    "CPU": RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 64 bytes."),
    "Linux": RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: 4 B"),
}


@pytest.fixture(params=OOM_ERRORS.values(), ids=OOM_ERRORS)
def oom_error(request):
    return request.param


@contextmanager
def failing(error, *, above):
    """A block runs out of memory with more than `above` tokens at once."""
    seen, forward = [], MODEL.blocks[1].forward

    def run(x, *args, **kwargs):
        seen.append(x.shape[0] * x.shape[1])
        if seen[-1] > above:
            raise error
        return forward(x, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MODEL.blocks[1], "forward", run)
        yield seen


def test_the_error_of_torch_is_recognised():
    """More memory is requested than any machine has."""
    with pytest.raises(RuntimeError) as message:
        torch.empty(2**55)
    assert chunking.is_out_of_memory(message.value)


@each_run
def test_running_out_of_memory_halves_and_continues_with_the_same_numbers(oom_error, caplog, run):
    expected = run()
    with caplog.at_level(logging.WARNING, logger="tl_steer"), failing(oom_error, above=7) as seen:
        require_same(run(), expected)
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == sum(tokens > 7 for tokens in seen) > 0
    assert all("continuing with half as much at once" in message for message in messages)
    if run is scored:
        assert messages[0].startswith("out of memory with 5 conditions of 5 prompts;")
    assert not any("forward" in vars(block.attn) for block in MODEL.blocks)


def test_running_out_of_memory_while_decoding_halves_and_continues(oom_error, monkeypatch):
    expected, sizes, step = written(), [], Decoder.step

    def run(self, tokens):
        sizes.append(len(tokens))
        if len(tokens) > 4:
            raise oom_error
        return step(self, tokens)

    monkeypatch.setattr(Decoder, "step", run)
    assert written() == expected
    assert max(sizes) == len(CONDITIONS) * len(PROMPTS)


@pytest.mark.parametrize("above", [1, 2, 7, 13, 24])
def test_finished_conditions_are_not_computed_again(above, caplog):
    """With a chunk's work that runs out of memory above a number of rows in all its conditions."""
    done, sizes = [], []

    def work(chunk):
        indices = list(itertools.product(chunk.conditions, chunk.rows))
        sizes.append(len(indices))
        if len(indices) > above:
            raise MemoryError
        done.extend(indices)

    with caplog.at_level(logging.WARNING, logger="tl_steer"):
        run_chunks(work)
    assert sorted(done) == list(itertools.product(range(5), range(5)))
    failed = [size for size in sizes if size > above]
    assert len(caplog.records) == len(failed) > 0
    assert failed == sorted(failed, reverse=True)


def test_memory_that_ran_out_once_is_not_requested_again():
    """Chunks after the one that failed are at most half as large, though the limit allows more."""
    sizes = []

    def work(chunk):
        sizes.append(chunking.plan_bytes(PACKED, chunk.plan, 0))
        if len(sizes) == 1:
            raise MemoryError

    run_chunks(work, CONDITIONS * 3)
    assert max(sizes[1:]) <= sizes[0] / 2


def test_passes_become_smaller_for_a_single_row_of_one_condition(monkeypatch, caplog):
    budgets, run_pass = [], LayerwisePass.run

    def run(self, *args, **options):
        budgets.append(self.budget)
        if self.budget > 64:
            raise MemoryError
        return run_pass(self, *args, **options)

    expected = capture(MODEL, PROMPTS[:1], positions=all_tokens())
    monkeypatch.setattr(LayerwisePass, "run", run)
    with caplog.at_level(logging.WARNING, logger="tl_steer"):
        result = capture(MODEL, PROMPTS[:1], positions=all_tokens())
    assert budgets[0] >= 512
    assert budgets == [budgets[0] // 2**time for time in range(len(budgets))]
    assert budgets[-1] == 64
    assert len(caplog.records) == len(budgets) - 1
    torch.testing.assert_close(result.values, expected.values)


def test_passes_hold_about_as_many_tokens_as_their_budget_and_not_many_more(monkeypatch):
    forward = importlib.import_module("tl_steer.engine.shared.forward")
    monkeypatch.setattr(forward, "CACHED_TOKENS", 16)
    monkeypatch.setattr(forward, "MIN_TOKENS", 1)
    prompts = [[first, 3, 4, 5] for first in range(6, 30)]
    conditions = [(Add(made_vector(MODEL, 0, "resid_pre", seed=seed), 1.0),) for seed in range(3)]
    with failing(None, above=10**6) as seen:
        scored([(), *conditions], prompts)
    assert sum(seen) == 4 * 24 * 4
    assert max(seen) <= 16 + 4  # and a segment
    assert len(seen) <= 2 * sum(seen) / 16


def test_one_row_of_one_condition_that_does_not_fit_raises_the_error(oom_error):
    before = all_hooks(MODEL)
    with failing(oom_error, above=4) as seen, pytest.raises(type(oom_error)) as message:
        scored()
    assert message.value is oom_error
    assert len(seen) < 30
    assert all_hooks(MODEL) == before
    assert not any("forward" in vars(block.attn) for block in MODEL.blocks)


@pytest.mark.parametrize("error", [RuntimeError("shapes cannot be multiplied"), ZeroDivisionError()])
def test_any_other_error_is_raised_at_once(error, caplog):
    with failing(error, above=0) as seen, pytest.raises(type(error)) as message:
        scored()
    assert message.value is error
    assert len(seen) == 1
    assert caplog.records == []


# Streams that are not finite


def require_non_finite(message, conditions):
    message = f"^{message}: the stream became NaN or infinite"
    assert_raises(message, scored, conditions, error=NonFiniteError)
    assert_raises(message, written, conditions, decoding=Decoding(2), error=NonFiniteError)


@pytest.mark.parametrize("layer", range(N_LAYERS))
@pytest.mark.parametrize("index", [0, 2, 5])
def test_the_condition_that_is_not_finite_is_named(layer, index):
    operations = Ablate(0, "z"), Add(made_vector(MODEL, layer), -3e38)
    message = rf"(Ablate\(hook='z'\) at layer 0 and )?Add\(multiplier=-3e\+38\) at layer {layer}"
    require_non_finite(message, [*CONDITIONS[:index], operations, *CONDITIONS[index:]])
    assert_raises(f"^{message}: the stream", capture, MODEL, PROMPTS, *operations, error=NonFiniteError)


@pytest.mark.parametrize("index", [0, 1, 3])
@pytest.mark.parametrize("positions", [all_tokens(), last_token()], ids=repr)
def test_a_condition_that_is_not_finite_after_its_own_layer_is_named_and_no_other(index, positions):
    """The sum is finite, but its mean is not, so the norm of the next layer is NaN."""
    vector = SteeringVector(torch.full((D_MODEL,), 1e38), 0, "resid_post", "made", 1.0, identify(MODEL))
    good = [(Add(made_vector(MODEL, 0, seed=seed), 1.0, positions),) for seed in range(3)]
    good[1] += (Ablate(2, "mlp_out", positions=positions),)
    bad = (Add(vector, 1.5, positions),)
    for conditions in ([bad], [*good[:index], bad, *good[index:]]):
        require_non_finite(r"Add\(multiplier=1\.5\) at layer 0", conditions)


# Selections that are empty

NOWHERE = {
    "token(3)": (Add(made_vector(MODEL, 1), 2.0, token(3)), r"Add\(multiplier=2\) at layer 1"),
    "span(4, 9)": (Ablate(0, "z", positions=parse_positions("span(4, 9)")), r"Ablate\(hook='z'\) at layer 0"),
}


@pytest.mark.parametrize(("operation", "message"), NOWHERE.values(), ids=NOWHERE)
@pytest.mark.parametrize("index", [0, 3, 5])
def test_a_condition_that_selects_nothing_of_a_prompt_is_rejected_and_named(operation, message, index):
    conditions = [*CONDITIONS[:index], (operation,), *CONDITIONS[index:]]
    message = f"selects no token of {message}"
    for run in (scored, written):
        assert_raises(message, run, conditions, error=EmptySelectionError)
    assert_raises(message, capture, MODEL, PROMPTS, operation, error=EmptySelectionError)


@pytest.mark.parametrize("fed", [True, False])
def test_generated_tokens_alone_are_rejected_where_none_are_fed(fed):
    operation = Add(made_vector(MODEL, 1), 1.0, generated_tokens())
    expected = pytest.raises(EmptySelectionError, match=r"generated_tokens\(\) selects no token")
    for run in (
        lambda: scored([(), (operation,)], choices=(" ( A", " ( B") if fed else (" yes", " no")),
        lambda: written([(), (operation,)], decoding=Decoding(2 if fed else 1)),
        lambda: capture(MODEL, PROMPTS, operation, max_new_tokens=2 if fed else 0),
    ):
        with nullcontext() if fed else expected:
            run()


def test_where_an_empty_selection_is_allowed_the_numbers_are_the_unsteered_ones():
    prompts = [[0, 3], [4, 5, 6], [7]]
    conditions = [(), *((Add(made_vector(MODEL, 1), 2.0, token(index)),) for index in (3, 2))]
    clean, nothing, some = scored(conditions, prompts, allow_empty=True)
    pd.testing.assert_frame_equal(nothing, clean)
    changed = (some - clean)["logit_difference"].abs().to_numpy()
    np.testing.assert_array_equal(changed > 1e-3, [False, True, False])
    texts = written(conditions[:2], prompts, Decoding(4), allow_empty=True)
    assert texts[0] == texts[1]
    require_same(scored(conditions[1:2], prompts, allow_empty=True), [clean])


def test_masks_are_counted_where_prompts_are_long():
    """They grow with the square of a prompt's length, all other tensors with its length."""
    short, long = (Plan(rows_of([list(range(3, 3 + length))]), [()]) for length in (4, 40))
    masks = [chunking.plan_bytes(PACKED, plan, 0) - plan.size * TOKEN_BYTES for plan in (short, long)]
    assert masks == [1.5 * 4 * 4**2, 1.5 * 4 * 40**2]
