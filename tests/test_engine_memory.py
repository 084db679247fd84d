"""Chunks that fit the memory, running out of it, and errors that name the guilty condition among many."""

import gc
import importlib
import logging
import math
import types
import weakref
from contextlib import contextmanager

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tl_steer._capture import capture
from tl_steer._generation import Decoding, generate
from tl_steer._scoring import choice_logits, plan_choices
from tl_steer.directions import SteeringVector
from tl_steer.engine import Row
from tl_steer.engine.shared.chunking import run_in_chunks
from tl_steer.engine.shared.decoding import Decoder
from tl_steer.engine.shared.forward import LayerwisePass
from tl_steer.engine.shared.prefixes import Plan
from tl_steer.errors import EmptySelectionError, NonFiniteError
from tl_steer.interventions import Ablate, Add, ProjectOut
from tl_steer.models import identify
from tl_steer.positions import PromptTokens, all_tokens, generated_tokens, last_token, parse_positions, token
from tl_steer.prompts import ChoiceQuestions
from tl_steer.sweeps._sweep import sweep

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
chunking = importlib.import_module("tl_steer.engine.shared.chunking")
PROMPTS = [[0, 3, 4, 5], [0, 3, 4], [7, 8, 9, 10, 11], [0, 3, 4, 5], [6]]
CONDITIONS = [
    (),
    (Add(made_vector(MODEL, 0), 1.0),),
    (Add(made_vector(MODEL, 1), 2.0, last_token()),),
    (ProjectOut(made_vector(MODEL, 2, "resid_pre")), Ablate(1, "z", heads=[1])),
    (Ablate(0, "mlp_out"),),
]
TOKEN_BYTES = 4 * 2 * N_HEADS * D_HEAD  # keys and values of one token in one layer
KEPT_BYTES = 4 * D_MODEL + TOKEN_BYTES  # and its stream


@contextmanager
def limited(size):
    """The memory at hand is so many bytes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunking, "bytes_allowed", lambda model, memory: size)
        yield


def scored(**options):
    plan = plan_choices(MODEL, PROMPTS, [(" yes", " no")] * len(PROMPTS))
    return score(MODEL, plan, CONDITIONS, **options)


def written(**options):
    return write(MODEL, PROMPTS, CONDITIONS, Decoding(4, 4), **options)


def captured(**options):
    return capture(MODEL, PROMPTS, *CONDITIONS[3], positions=all_tokens(), max_new_tokens=3, **options)


def require_same_scores(result, expected):
    for one, other in zip(result, expected, strict=True):
        pd.testing.assert_frame_equal(one, other, rtol=0, atol=1e-4)


# The argument


@pytest.mark.parametrize(
    ("memory", "free", "expected"),
    [
        (None, 2**40, chunking.CPU_BYTES),
        (None, 10**6, 5 * 10**5),
        (0.25, 4 * 10**9, 10**9),
        (1.0, 10**6, 10**6),
        (1e-3, 10**6, 1000),
        (7, 10**6, 7),
    ],
)
def test_memory_is_a_share_of_what_is_free_and_by_default_half_but_on_a_cpu_not_more_than_helps(
    monkeypatch, memory, free, expected
):
    monkeypatch.setattr(chunking.psutil, "virtual_memory", lambda: types.SimpleNamespace(available=free))
    assert chunking.bytes_allowed(MODEL, memory) == expected
    assert chunking.CPU_BYTES <= 2**30


@pytest.mark.parametrize(("memory", "expected"), [(None, 3 * 10**9), (0.5, 3 * 10**9), (0.1, 6 * 10**8)])
def test_on_an_accelerator_memory_is_a_share_of_what_is_free_there(monkeypatch, memory, expected):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (6 * 10**9, 8 * 10**9))
    model = types.SimpleNamespace(cfg=types.SimpleNamespace(device="cuda:0"))
    assert chunking.bytes_allowed(model, memory) == expected


CALLS = {
    "choice_logits": lambda **options: choice_logits(MODEL, ["a b", "a"], (" yes", " no"), **options),
    "generate": lambda **options: generate(MODEL, ["a b", "a"], max_new_tokens=2, **options),
    "capture": lambda **options: capture(MODEL, ["a b", "a"], **options),
    "sweep": lambda **options: sweep(
        MODEL,
        made_vector(MODEL, 1).at(layers=[1]),
        ChoiceQuestions(["a b", "a"], [(" yes", " no")] * 2),
        multipliers=[1.0],
        controls=0,
        progress=False,
        **options,
    ),
}


# Chunks


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_memory_is_a_number_of_bytes_or_a_fraction(call):
    for memory in (0.0, -0.5, 1.5, -math.inf, math.inf, math.nan, 0, -1):
        with pytest.raises(
            ValueError, match=f"memory={memory!r}: expected a whole number of bytes, a fraction"
        ):
            call(memory=memory)
    assert len(call(memory=2 * 10**9)) == len(call(memory=1)) == len(call())


def edits(condition):
    return [edit for operation in condition for edit in operation.edits(N_LAYERS)]


def rows_of(prompts):
    return [Row(tuple(ids), PromptTokens(len(ids), tuple(ids))) for ids in prompts]


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
        run_in_chunks(MODEL, rows, conditions, chunks.append, new_tokens=new_tokens)
    done = [(condition, row) for chunk in chunks for condition in chunk.conditions for row in chunk.rows]
    assert sorted(done) == [
        (condition, row) for condition in range(len(conditions)) for row in range(len(rows))
    ]
    for chunk in chunks:
        assert chunk.plan.rows == [rows[row] for row in chunk.rows]
        assert chunk.plan.conditions == [conditions[condition] for condition in chunk.conditions]
        assert len(chunk.layerwise.stream) == chunk.plan.size
        size = chunk.plan.size * KEPT_BYTES
        if new_tokens:
            longest = max(len(row.ids) for row in chunk.plan.rows)
            size += len(chunk.conditions) * len(chunk.rows) * (longest + new_tokens) * N_LAYERS * TOKEN_BYTES
        assert size <= limit or len(chunk.conditions) == len(chunk.rows) == 1


def test_where_all_fits_there_is_one_chunk():
    chunks = []
    run_in_chunks(MODEL, rows_of(PROMPTS), [edits(condition) for condition in CONDITIONS], chunks.append)
    assert [(len(chunk.conditions), len(chunk.rows)) for chunk in chunks] == [(len(CONDITIONS), len(PROMPTS))]


def test_prompts_that_begin_alike_stay_in_one_chunk():
    begin = [3, 4, 5, 6, 7, 8]
    prompts = [[*begin, 9], [10, 11, 12, 13, 14, 15, 16], [*begin, 10], [17, 18, 19, 20, 21, 22, 23]]
    chunks = []
    with limited(18 * KEPT_BYTES):  # either half, with its masks, but not both
        run_in_chunks(MODEL, rows_of(prompts), [()], chunks.append)
    assert sorted(set(chunk.rows) for chunk in chunks)[0] in ({0, 2}, {1, 3})
    assert len(chunks) == 2


@pytest.mark.parametrize("tokens", [1, 6, 20, 60])
def test_with_little_memory_there_are_many_chunks_and_the_same_numbers(monkeypatch, tokens):
    passes = []
    up = LayerwisePass.run
    monkeypatch.setattr(
        LayerwisePass, "run", lambda self, *args, **options: passes.append(1) or up(self, *args, **options)
    )
    expected = scored(reuse=False), written(reuse=False), captured(reuse=False)
    with limited(tokens * KEPT_BYTES):
        result = scored(), written(), captured()
    assert len(passes) > (3 if tokens == 60 else 6)
    require_same_scores(result[0], expected[0])
    assert result[1] == expected[1]
    torch.testing.assert_close(result[2].values, expected[2].values, rtol=0, atol=1e-4, equal_nan=True)
    torch.testing.assert_close(result[2].stream_norm, expected[2].stream_norm)


def test_what_is_kept_between_passes_fits_the_memory(monkeypatch):
    sizes = []

    def start(self, start=Decoder.start):
        stream = start(self)
        layerwise = self.chunk.layerwise
        kept = [layerwise.stream, layerwise.keys, layerwise.values, *self.keys, *self.values]
        sizes.append((len(self.members), sum(each.numel() * each.element_size() for each in kept)))
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
    """Layerwise passes that are still there, by the time the next one is made."""
    passes, result = [], []
    init = LayerwisePass.__init__

    def remember(self, *args, **options):
        result.append(sum(layerwise() is not None for layerwise in passes))
        passes.append(weakref.ref(self))
        init(self, *args, **options)

    monkeypatch.setattr(LayerwisePass, "__init__", remember)
    gc.collect()
    gc.disable()
    yield lambda: (result, [layerwise for layerwise in passes if layerwise() is not None])
    gc.enable()


@pytest.mark.parametrize("run", [scored, written, captured], ids=["scored", "written", "captured"])
def test_what_a_chunk_has_kept_is_freed_before_the_next_is_made(alive, run):
    """Else there would be twice what the memory was said to allow."""
    with limited(10 * KEPT_BYTES):
        run()
    before_each, afterwards = alive()
    assert len(before_each) > 3
    assert set(before_each) == {0}
    assert afterwards == []


def test_what_ran_out_of_memory_is_freed_before_it_is_tried_again(alive):
    def work(chunk):
        if len(chunk.conditions) > 1:
            raise MemoryError

    run_in_chunks(MODEL, rows_of(PROMPTS), [edits(condition) for condition in CONDITIONS], work)
    before_each, afterwards = alive()
    assert len(before_each) > len(CONDITIONS)
    assert set(before_each) == {0}
    assert afterwards == []


@pytest.mark.parametrize("limit", [10**6, 3000])
def test_progress_adds_up_to_the_conditions(limit):
    for run in (
        scored,
        lambda on_progress: write(MODEL, PROMPTS, CONDITIONS, Decoding(4, 4), on_progress=on_progress),
    ):
        steps = []
        with limited(limit):
            run(on_progress=steps.append)
        assert len(steps) >= N_LAYERS
        assert min(steps) > 0
        assert 0.8 * len(CONDITIONS) < sum(steps) < 1.05 * len(CONDITIONS)


# Running out of memory

OOM_ERRORS = {
    "on an accelerator": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    "in Python": MemoryError(),
    "on a CPU": RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 64 bytes."),
    "on a CPU under Linux": RuntimeError(
        "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried "
        "to allocate 4503599627370496 bytes. Error code 12 (Cannot allocate memory)"
    ),
}


@pytest.fixture(params=OOM_ERRORS)
def oom_error(request):
    return OOM_ERRORS[request.param]


@contextmanager
def failing(error, *, above, layer=1):
    """A block runs out of memory with more than so many tokens at once."""
    block, seen = MODEL.blocks[layer], []
    forward = block.forward

    def run(x, *args, **kwargs):
        seen.append(x.shape[0] * x.shape[1])
        if seen[-1] > above:
            raise error
        return forward(x, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(block, "forward", run)
        yield seen


def test_what_torch_says_when_there_is_no_memory_is_understood():
    """Asked for what no machine has, so that it is told on every one."""
    with pytest.raises(RuntimeError) as message:
        torch.empty(2**55)
    assert chunking.is_out_of_memory(message.value)


def test_running_out_of_memory_halves_and_continues_with_the_same_numbers(oom_error, caplog):
    expected = scored(), written(), captured()
    for number, run in enumerate((scored, written, captured)):
        caplog.clear()
        with caplog.at_level(logging.WARNING, logger="tl_steer"), failing(oom_error, above=7) as seen:
            result = run()
        assert max(seen) > 7
        messages = [record.getMessage() for record in caplog.records]
        assert messages
        assert all("continuing with half as much at once" in message for message in messages)
        assert len(messages) == sum(tokens > 7 for tokens in seen)
        if number == 0:
            assert messages[0].startswith("out of memory with 5 conditions of 5 prompts;")
            require_same_scores(result, expected[0])
        elif number == 1:
            assert result == expected[1]
        else:
            torch.testing.assert_close(result.values, expected[2].values, rtol=0, atol=1e-4, equal_nan=True)
    assert not any("forward" in vars(block.attn) for block in MODEL.blocks)


def test_running_out_of_memory_while_texts_are_written_halves_and_goes_on(oom_error, monkeypatch):
    expected, sizes = written(), []
    step = Decoder.step

    def run(self, tokens):
        sizes.append(len(tokens))
        if len(tokens) > 4:
            raise oom_error
        return step(self, tokens)

    monkeypatch.setattr(Decoder, "step", run)
    assert written() == expected
    assert max(sizes) == len(CONDITIONS) * len(PROMPTS)


def failing_work(done, above, error=None):
    """A chunk's work that runs out of memory where there are more than so many rows in all its conditions."""
    tried = []

    def work(chunk):
        indices = [(condition, row) for condition in chunk.conditions for row in chunk.rows]
        tried.append(len(indices))
        if len(indices) > above:
            raise error or MemoryError
        done.extend(indices)

    return work, tried


@pytest.mark.parametrize("above", [1, 2, 7, 13, 24])
def test_finished_conditions_are_kept_and_not_computed_again(above, caplog):
    done = []
    work, tried = failing_work(done, above)
    with caplog.at_level(logging.WARNING, logger="tl_steer"):
        run_in_chunks(MODEL, rows_of(PROMPTS), [edits(condition) for condition in CONDITIONS], work)
    assert sorted(done) == [(condition, row) for condition in range(5) for row in range(5)]
    failed = [size for size in tried if size > above]
    assert len(caplog.records) == len(failed) > 0
    assert failed == sorted(failed, reverse=True)


def test_memory_that_ran_out_once_is_not_asked_for_again(monkeypatch):
    """Chunks after the one that failed are at most half as large, though the limit allows more."""
    sizes = []

    def work(chunk):
        sizes.append(chunking.plan_bytes(MODEL, chunk.plan, 0))
        if len(sizes) == 1:
            raise MemoryError

    run_in_chunks(MODEL, rows_of(PROMPTS), [edits(condition) for condition in CONDITIONS * 3], work)
    assert max(sizes[1:]) <= sizes[0] / 2


def test_passes_become_smaller_where_there_is_only_one_row_of_one_condition_left(monkeypatch, caplog):
    budgets, up = [], LayerwisePass.run

    def run(self, *args, **options):
        budgets.append(self.budget)
        if self.budget > 64:
            raise MemoryError
        return up(self, *args, **options)

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
    plan = plan_choices(MODEL, prompts, [(" yes", " no")] * len(prompts))
    with failing(None, above=10**6) as seen:
        score(MODEL, plan, [(), *conditions])
    assert sum(seen) == 4 * 24 * 4
    assert max(seen) <= 16 + 4  # and a segment
    assert len(seen) <= 2 * sum(seen) / 16


def test_one_row_of_one_condition_that_does_not_fit_at_all_lets_the_error_through(oom_error, caplog):
    before = all_hooks(MODEL)
    with failing(oom_error, above=4) as seen, pytest.raises(type(oom_error)) as message:
        scored()
    assert message.value is oom_error
    assert len(seen) < 30
    assert all_hooks(MODEL) == before
    assert not any("forward" in vars(block.attn) for block in MODEL.blocks)


@pytest.mark.parametrize(
    "error", [RuntimeError("mat1 and mat2 shapes cannot be multiplied"), ZeroDivisionError()]
)
def test_any_other_error_comes_through_at_once(error, caplog):
    with failing(error, above=0) as seen, pytest.raises(type(error)) as message:
        scored()
    assert message.value is error
    assert len(seen) == 1
    assert caplog.records == []


# Streams that are not finite


def blow_up(layer, multiplier=3e38, positions=None):
    return Add(made_vector(MODEL, layer), multiplier, positions or all_tokens())


@pytest.mark.parametrize("layer", range(N_LAYERS))
@pytest.mark.parametrize("index", [0, 2, 5])
def test_the_guilty_condition_among_many_is_named(layer, index):
    conditions = [*CONDITIONS[:index], (Ablate(0, "z"), blow_up(layer, -3e38)), *CONDITIONS[index:]]
    plan = plan_choices(MODEL, PROMPTS, [(" yes", " no")] * len(PROMPTS))
    guilty = rf"Add\(multiplier=-3e\+38\) at layer {layer}"
    message = rf"^(Ablate\(hook='z'\) at layer 0 and )?{guilty}: the stream became NaN or infinite"
    with pytest.raises(NonFiniteError, match=message):
        score(MODEL, plan, conditions)
    with pytest.raises(NonFiniteError, match=message):
        write(MODEL, PROMPTS, conditions, Decoding(2))
    with pytest.raises(NonFiniteError, match=message):
        capture(MODEL, PROMPTS, *conditions[index])


def late(layer, positions, multiplier=1.0):
    """Finite where it is added; its mean is not, so the next layer's norm makes NaN of it."""
    vector = SteeringVector(torch.full((D_MODEL,), 1e38), layer, "resid_post", "made", 1.0, identify(MODEL))
    return Add(vector, multiplier, positions)


@pytest.mark.parametrize("index", [0, 1, 3])
@pytest.mark.parametrize("positions", [all_tokens(), last_token()], ids=repr)
def test_a_condition_that_blows_up_behind_its_own_layer_is_named_and_no_neighbour(index, positions):
    """Tokens that attend together with the guilty condition's keep their results."""
    good = [(Add(made_vector(MODEL, 0, seed=seed), 1.0, positions),) for seed in range(3)]
    good[1] += (Ablate(2, "mlp_out", positions=positions),)
    conditions = [*good[:index], (late(0, positions, 1.5),), *good[index:]]
    message = r"^Add\(multiplier=1\.5\) at layer 0: the stream became NaN or infinite"
    plan = plan_choices(MODEL, PROMPTS, [(" yes", " no")] * len(PROMPTS))
    with pytest.raises(NonFiniteError, match=message):
        score(MODEL, plan, conditions[index : index + 1])
    with pytest.raises(NonFiniteError, match=message):
        score(MODEL, plan, conditions)
    with pytest.raises(NonFiniteError, match=message):
        write(MODEL, PROMPTS, conditions, Decoding(2))


# Selections that are empty

NOWHERE = {
    "token(3)": ((Add(made_vector(MODEL, 1), 2.0, token(3)),), r"Add\(multiplier=2\) at layer 1"),
    "span(4, 9)": (
        (Ablate(0, "z", positions=parse_positions("span(4, 9)")),),
        r"Ablate\(hook='z'\) at layer 0",
    ),
}


@pytest.mark.parametrize("condition", NOWHERE.values(), ids=NOWHERE)
@pytest.mark.parametrize("index", [0, 3, 5])
def test_a_condition_that_selects_nothing_of_a_prompt_is_rejected_and_named(condition, index):
    operations, message = condition
    conditions = [*CONDITIONS[:index], operations, *CONDITIONS[index:]]
    plan = plan_choices(MODEL, PROMPTS, [(" yes", " no")] * len(PROMPTS))
    for run in (
        lambda: score(MODEL, plan, conditions),
        lambda: write(MODEL, PROMPTS, conditions, Decoding(3)),
        lambda: capture(MODEL, PROMPTS, *operations),
    ):
        with pytest.raises(EmptySelectionError, match=f"selects no token of {message}"):
            run()


@pytest.mark.parametrize("fed", [True, False])
def test_generated_tokens_alone_are_rejected_where_none_are_fed(fed):
    conditions = [(), (Add(made_vector(MODEL, 1), 1.0, generated_tokens()),)]
    choices = (" ( A", " ( B") if fed else (" yes", " no")
    plan = plan_choices(MODEL, PROMPTS, [choices] * len(PROMPTS))
    runs = [
        lambda: score(MODEL, plan, conditions),
        lambda: write(MODEL, PROMPTS, conditions, Decoding(2 if fed else 1)),
        lambda: capture(MODEL, PROMPTS, *conditions[1], max_new_tokens=2 if fed else 0),
    ]
    for run in runs:
        if fed:
            run()
            continue
        with pytest.raises(EmptySelectionError, match=r"generated_tokens\(\) selects no token"):
            run()


def test_where_an_empty_selection_is_meant_the_numbers_are_the_unsteered_ones():
    prompts = [[0, 3], [4, 5, 6], [7]]
    conditions = [
        (),
        (Add(made_vector(MODEL, 1), 2.0, token(3)),),
        (Add(made_vector(MODEL, 1), 2.0, token(2)),),
    ]
    plan = plan_choices(MODEL, prompts, [(" yes", " no")] * 3)
    clean, nothing, some = score(MODEL, plan, conditions, allow_empty=True)
    pd.testing.assert_frame_equal(nothing, clean)
    changed = (some - clean)["logit_difference"].abs().to_numpy()
    np.testing.assert_array_equal(changed > 1e-3, [False, True, False])
    texts = write(MODEL, prompts, conditions[:2], Decoding(4), allow_empty=True)
    assert texts[0] == texts[1]
    (alone,) = score(MODEL, plan, conditions[1:2], allow_empty=True)
    pd.testing.assert_frame_equal(alone, clean, rtol=0, atol=1e-4)


def test_masks_are_counted_where_prompts_are_long():
    """They grow with the square of a prompt's length, what else is kept with its length."""
    short, long = (Plan(rows_of([list(range(3, 3 + length))]), [()]) for length in (4, 40))
    masks = [chunking.plan_bytes(MODEL, plan, 0) - plan.size * KEPT_BYTES for plan in (short, long)]
    assert masks == [1.5 * 4 * 4**2, 1.5 * 4 * 40**2]
