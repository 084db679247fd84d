"""Sweeps that are interrupted at any moment and continued: the same table, to the bit."""

import copy
import errno
import hashlib
import inspect
import json
import os
import random
import re
import shutil
import time
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import psutil
import pytest
import torch
from filelock import FileLock
from tokenizers import processors

from tl_steer._scoring import plan_choices
from tl_steer.errors import InUseError
from tl_steer.interventions import Add
from tl_steer.models import identify, weights
from tl_steer.models.weights import weight_digests
from tl_steer.positions import all_tokens, last_token
from tl_steer.sweeps import chunks, plans
from tl_steer.sweeps._sweep import sweep
from tl_steer.sweeps.conditions import sweep_conditions
from tl_steer.sweeps.store import LOCK

from .conftest import assert_raises
from .fork_server import long_sweep, wait_for
from .test_sweep import MODEL, questions, several
from .tiny_model import make_model, word_tokenizer

N_CHUNKS = -(-(1 + 2 * 3 * 100) // chunks.MAX_CONDITIONS)  # of `long_sweep`


def finished_chunks(out):
    """Files of the finished chunks with their inodes, which change where a file is written again."""
    return {path.name: path.stat().st_ino for path in out.with_name(f"{out.name}.cells").glob("*.parquet")}


def numbers_of(out):
    return [int(name[:5]) for name in sorted(finished_chunks(out))]


def require_same(table, expected):
    pd.testing.assert_frame_equal(table, expected, check_exact=True)


# Killed processes


@pytest.fixture(scope="module")
def uninterrupted(fork_server, tmp_path_factory):
    """Table of a sweep in a process that is not killed."""
    return table_of(fork_server, tmp_path_factory.mktemp("uninterrupted") / "table.parquet")


def table_of(fork_server, out, **options):
    fork_server.run("sweep", out=out, **options)
    return pd.read_parquet(out)


def require_finished(out, expected):
    require_same(pd.read_parquet(out), expected)
    assert [path for path in out.parent.iterdir() if out.name in path.name] == [out]


def kill_at_random(fork_server, out, kills, rng, most_chunks, **options):
    """Start a sweep and kill it, `kills` times; then let it finish."""
    for _ in range(kills):
        before = finished_chunks(out)
        process = fork_server.start("sweep", out=out, pause=0.01, **options)
        n_chunks = len(before) + rng.randint(0, most_chunks)
        wait_for(lambda n_chunks=n_chunks: len(finished_chunks(out)) >= n_chunks)
        time.sleep(rng.uniform(0, 0.15))
        assert fork_server.kill(process)
        assert not out.exists()
        assert before.items() <= finished_chunks(out).items()  # finished chunks are not computed again
    fork_server.run("sweep", out=out, **options)


@pytest.mark.integration
@pytest.mark.parametrize(
    ("seed", "kills", "most_chunks", "count"),
    [(0, 3, 3, 100), *(pytest.param(seed, 20, 2, 600, marks=pytest.mark.slow) for seed in (1, 2))],
)
def test_a_sweep_that_is_killed_gives_the_same_table(
    fork_server, uninterrupted, tmp_path, seed, kills, most_chunks, count
):
    out = tmp_path / "table.parquet"
    kill_at_random(fork_server, out, kills, random.Random(seed), most_chunks, count=count)
    if count != 100:
        uninterrupted = table_of(fork_server, tmp_path / "uninterrupted", count=count)
    require_finished(out, uninterrupted)


@pytest.mark.integration
def test_a_sweep_in_chunks_equals_one_without_up_to_rounding(uninterrupted):
    pd.testing.assert_frame_equal(uninterrupted, long_sweep(None), rtol=1e-5, atol=1e-6)


def stop_sweep(fork_server, tmp_path, step, name):
    """Process and output of a sweep that stopped at one step of writing one file."""
    out, marker = tmp_path / "table.parquet", tmp_path / "marker"
    process = fork_server.start("stopped_sweep", out=out, step=step, name=name, marker=marker)
    wait_for(marker.exists)
    return process, out


@pytest.mark.integration
@pytest.mark.parametrize("step", ["content", "fsync", "replace"])
@pytest.mark.parametrize(
    ("name", "n_chunks"), [("plan.json", 0), ("00000-", 0), ("00003-", 3), ("table.parquet", N_CHUNKS)]
)
def test_a_sweep_that_is_killed_while_it_writes_continues(
    fork_server, uninterrupted, tmp_path, step, name, n_chunks
):
    process, out = stop_sweep(fork_server, tmp_path, step, name)
    assert fork_server.kill(process)
    assert not out.exists()
    assert len(finished_chunks(out)) == n_chunks
    fork_server.run("sweep", out=out)
    require_finished(out, uninterrupted)


@pytest.mark.integration
def test_a_sweep_that_is_killed_after_its_table_is_written_is_finished(fork_server, uninterrupted, tmp_path):
    process, out = stop_sweep(fork_server, tmp_path, "removal", "cells")
    assert fork_server.kill(process)
    require_same(long_sweep(out), uninterrupted)
    require_finished(out, uninterrupted)


@pytest.mark.integration
def test_a_second_process_is_refused_while_the_first_one_runs(fork_server, uninterrupted, tmp_path):
    process, out = stop_sweep(fork_server, tmp_path, "replace", "00003-")
    with pytest.raises(InUseError, match=f"table.parquet is being written by process {process}: wait"):
        long_sweep(out)
    assert len(finished_chunks(out)) == 3  # of the first process
    assert fork_server.kill(process)
    fork_server.run("sweep", out=out)
    require_finished(out, uninterrupted)


@pytest.mark.integration
def test_a_limit_on_file_sizes_is_an_error_after_which_the_sweep_continues(
    fork_server, uninterrupted, tmp_path
):
    """The operating system's own limit; the table is larger than any chunk."""
    out, message = tmp_path / "run" / "table.parquet", tmp_path / "message"
    out.parent.mkdir()
    fork_server.run("size_limited_sweep", out=out, size=20_000, message=message)
    assert re.search(r"table.parquet \(.* bytes\) could not be written: File too large", message.read_text())
    assert len(finished_chunks(out)) == N_CHUNKS
    assert [path.name for path in out.parent.iterdir()] == ["table.parquet.cells"]  # no partial file
    fork_server.run("sweep", out=out)
    require_finished(out, uninterrupted)


# Sweeps of 13 conditions in 4 chunks, interrupted in this process


@pytest.fixture(autouse=True)
def small_chunks(request, monkeypatch):
    if "fork_server" not in request.fixturenames:
        monkeypatch.setattr(chunks, "MAX_CONDITIONS", 4)


def small(out, own_questions=None, model=MODEL, vectors=None, **options):
    options = {"multipliers": [1.0, 2.0], "controls": 1, "control_layers": "all", "progress": False} | options
    return sweep(model, vectors or several(), own_questions or questions(), out=out, **options)


@pytest.fixture(scope="module")
def whole():
    """Table of `small` without interruption."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunks, "MAX_CONDITIONS", 4)
        return small(None, executor=chunks.in_order)


def test_the_same_call_on_a_finished_file_returns_its_table_and_runs_nothing(tmp_path, whole, monkeypatch):
    out = tmp_path / "table.parquet"
    require_same(small(out), whole)
    monkeypatch.setattr(MODEL, "forward", lambda *_, **__: pytest.fail("the model ran"))
    require_same(small(out, executor=stopping(0)), whole)
    message = r"exists.* another sweep: multipliers: \[1.0, 2.0\] against \[1.0\] "
    assert_raises(message, small, out, error=FileExistsError, multipliers=[1.0])
    whole.to_parquet(out)
    assert_raises("exists, and is not the table of a sweep", small, out, error=FileExistsError)


@pytest.mark.parametrize("measure", ["choice", "generate"])
def test_an_interrupt_says_how_many_conditions_are_kept_and_the_same_call_continues(tmp_path, measure):
    out, options = tmp_path / "table.parquet", {"measure": measure, "max_new_tokens": 2}
    executor = stopping(2, KeyboardInterrupt)
    message = f"7 of 13 conditions are kept in .*{out.name}.cells: the same"
    assert_raises(message, small, out, error=KeyboardInterrupt, executor=executor, **options)
    table = small(out, **options)
    require_same(table, small(tmp_path / "whole.parquet", **options))
    pd.testing.assert_frame_equal(table, small(None, **options), rtol=1e-5, atol=1e-6)
    message = "none of 13 conditions is kept: give out="
    assert_raises(message, small, None, error=KeyboardInterrupt, executor=executor, **options)
    options |= {"control_layers": "chosen", "controls": 3, "executor": stopping_in_call(2, KeyboardInterrupt)}
    message = "7 of 10 conditions are kept"
    assert_raises(message, small, tmp_path / "other.parquet", error=KeyboardInterrupt, **options)


def test_chunks_are_small_where_conditions_take_long(monkeypatch, tmp_path):
    for speed, expected in ((1e30, [4, 3, 3, 3]), (1e-30, [3, 3, 3, 2, 2])):
        monkeypatch.setattr(chunks, "SPEED", {"cpu": speed, "cuda": 1e13})
        sizes = []

        def recording(model, measure, pending, sizes=sizes):
            sizes += map(len, pending.values())
            yield from chunks.in_order(model, measure, pending)

        small(tmp_path / f"{speed}.parquet", executor=recording)
        assert sizes == expected


def test_the_cost_of_a_condition_is_of_the_tokens_and_layers_that_it_changes():
    def cost(layer, positions, new_tokens=0):
        conditions = sweep_conditions(
            {"made": several()}, 0, layers=[layer], multipliers=[1.0], operations=["add"],
            positions=positions, seed=0,
        )  # fmt: skip
        result = chunks.estimated_cost(MODEL, [[0, 1, 2, 3], [0, 1, 2, 4], [0, 5]], conditions, new_tokens)
        return result.clean / unit, 2 * result.condition / unit  # the unsteered condition is one of two

    n_layers = MODEL.cfg.n_layers
    unit = 2 * sum(weight.numel() for weight in MODEL.blocks.parameters()) / n_layers / chunks.SPEED["cpu"]
    clean = pytest.approx(6 * n_layers)  # tokens, without those that the prompts share
    assert cost(0, all_tokens()) == (clean, pytest.approx(6 * (n_layers - 1)))
    assert cost(1, all_tokens()) == (clean, pytest.approx(6 * (n_layers - 2)))
    assert cost(0, last_token()) == (clean, pytest.approx(3 * (n_layers - 1)))
    assert cost(1, last_token(), new_tokens=5) == (
        clean,
        pytest.approx(3 * (n_layers - 2) + 2 * 3 * 5 * n_layers),
    )


def test_a_long_sweep_says_so_at_its_start_and_what_remains(monkeypatch, caplog, tmp_path):
    monkeypatch.setattr(chunks, "SECONDS", 0.0)
    stored = tmp_path / "table.parquet"
    for speed, out, level in ((1e12, None, "INFO"), (1.0, None, "WARNING"), (1.0, stored, "INFO")):
        monkeypatch.setattr(chunks, "SPEED", {"cpu": speed, "cuda": 1e13})
        caplog.clear()
        with caplog.at_level("INFO"):
            small(out)
        start, *later = [record for record in caplog.records if record.name.startswith("tl_steer.sweeps")]
        assert start.levelname == level
        assert "13 conditions (46 % controls) of 8 questions, about" in start.getMessage()
        assert ("without out=… nothing is kept" in start.getMessage()) == (out is None)
        remaining = [record.levelname for record in later if "minutes remain" in record.getMessage()]
        assert set(remaining) == {level}


class StoppedError(Exception):
    pass


def stopping(after, error=StoppedError, calls=None):
    """Executor that raises an error after `after` chunks of a call, and notes their numbers in `calls`."""

    def executor(model, measure, pending):
        for done, (number, conditions) in enumerate(pending.items()):
            if done == after:
                raise error
            yield number, measure(model, conditions)
            if calls is not None:
                calls.append(number)

    return executor


def stopping_in_call(number, error=StoppedError):
    """Executor that raises an error before the first chunk of a call."""
    calls = []

    def executor(model, measure, pending):
        calls.append(pending)
        if len(calls) == number:
            raise error
        yield from chunks.in_order(model, measure, pending)

    return executor


def interrupt(out, after=2, **options):
    with pytest.raises(StoppedError):
        small(out, executor=stopping(after), **options)


def test_finished_chunks_are_not_computed_again_and_progress_starts_after_them(tmp_path, whole, monkeypatch):
    out, computed, progress = tmp_path / "table.parquet", [], []
    interrupt(out)
    assert len(finished_chunks(out)) == 2
    monkeypatch.setattr(chunks, "bar", lambda *_, **__: nullcontext(progress.append))
    table = small(out, executor=stopping(9, calls=computed))
    assert computed == [2, 3]
    assert progress == [7, 3, 3]
    require_same(table, whole)
    require_same(pd.read_parquet(out), whole)


def test_a_sweep_with_controls_at_chosen_layers_continues_to_the_same_table(tmp_path):
    """7 conditions in 2 chunks, then 8 of controls in 2."""
    options = {"control_layers": "chosen", "controls": 8, "multipliers": [1.0, -1.0], "layers": [0, 1, 2]}
    expected = small(tmp_path / "whole.parquet", **options)
    require_same(small(None, executor=chunks.in_order, **options), expected)
    assert expected.loc[expected["control"], "vector"].nunique() == 8
    assert len(expected) == 8 * (7 + 8)
    out = tmp_path / "table.parquet"
    # in both parts after the first chunk, and between them
    for n_finished, executor in ((1, stopping(1)), (2, stopping_in_call(2)), (3, stopping(1))):
        before = finished_chunks(out)
        with pytest.raises(StoppedError):
            small(out, executor=executor, **options)
        assert numbers_of(out) == list(range(n_finished))
        assert before.items() <= finished_chunks(out).items()
    require_same(small(out, **options), expected)
    require_finished(out, expected)


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ([3, 2, 1, 0], None),
        ([0, 1, 3], r"left the chunks \[2\] out"),
        ([0, 0], "answered chunk 0, which is done"),
    ],
)
def test_an_executor_may_change_the_order_but_not_omit_or_repeat_chunks(tmp_path, whole, numbers, message):
    def executor(model, measure, pending):
        for number in numbers:
            yield number, measure(model, pending[number])

    for out in (None, tmp_path / "table.parquet"):
        if message is None:
            require_same(small(out, executor=executor), whole)
        else:
            assert_raises(message, small, out, error=RuntimeError, executor=executor)


def test_the_executor_s_function_holds_no_model_and_can_be_pickled(whole):
    import ray.cloudpickle as pickle

    def sending(model, measure, pending):
        sent = pickle.dumps(measure)
        assert len(sent) < 20_000
        for number, conditions in pending.items():
            yield number, pickle.loads(sent)(model, pickle.loads(pickle.dumps(conditions)))

    pd.testing.assert_frame_equal(small(None, executor=sending), whole, rtol=1e-5, atol=1e-6)


def twice(vector, multiplier, positions):
    return Add(vector, 2 * multiplier, positions)


OTHER_ARGUMENTS = [
    ({"multipliers": [1.0, 3.0]}, r"multipliers: \[1.0, 2.0\] against \[1.0, 3.0\] now"),
    ({"layers": [0, (1, 2)]}, r"layers: \[0, 1, 2\] against \[0, 1\+2\]"),
    ({"vectors": several(5)}, r"vectors made: 3 layers at resid_post \(\w+\) against 3 layers"),
    ({"controls": 2}, "controls: 1 against 2"),
    ({"control_layers": "chosen"}, "control_layers: all against chosen"),
    ({"layers": [0, (1, 2)], "divide_by_layers": True}, r"layers: \[0, 1, 2\] against \[0, 1\+2\]"),
    ({"own_questions": questions(prompts=["a b :"] * 8)}, r"questions prompts: 8 \(\w+\) against 8"),
    ({"own_questions": questions(choices=[(" no", " yes")] * 8)}, r"questions choices: 8 \(\w+\) against 8"),
    ({"own_questions": questions(answers=None)}, r"questions answers: 8 \(\w+\) against nothing"),
    ({"own_questions": questions(factors=None)}, r"questions factors: 8 \(\w+\) against nothing"),
    ({"positions": last_token()}, r"positions: all_tokens\(\) against last_token\(\)"),
    ({"operations": ["project_out"]}, r"operations: \[add\] against \[project_out\]"),
    ({"operations": [twice]}, r"operations: \[add\] against \[twice\]"),
    ({"seed": 1}, "seed: 0 against 1"),
    ({"mass": False}, "mass: True against False"),
    ({"measure": "generate", "max_new_tokens": 2}, "measure: choice against generate"),
    ({"reuse": False}, "reuse: True against False"),
    (
        {"measure": "generate", "temperature": 0.5, "draws": 2, "repetition_penalty": 1.1},
        "temperature: None against 0.5; .*repetition_penalty: None against 1.1; draws: None against 2",
    ),
]


def test_another_sweep_is_refused_with_what_differs_and_costs_nothing(tmp_path, whole):
    out = tmp_path / "table.parquet"
    interrupt(out)
    before = finished_chunks(out)
    for options, message in OTHER_ARGUMENTS:
        message = rf"was begun with another sweep, part of .*{message}.*start again"
        assert_raises(message, small, out, error=FileExistsError, **options)
        assert finished_chunks(out) == before
    require_same(small(out), whole)


def changed_model(change):
    """A copy of the model after `change(model, its weight W_in)`."""
    other = copy.deepcopy(MODEL)
    other.tokenizer = word_tokenizer()
    with torch.no_grad():
        change(other, other.blocks[0].mlp.W_in.data)
    return other


def add_to_one_weight(model, _):
    """Change a projection that the identity does not sample, as adapters of queries and values do."""
    model.blocks[1].attn.W_V[0, 0, 0] += 0.5


def remove_bos(model, _):
    model.tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(single="$A")


def change_layout(model, weight):
    model.blocks[0].mlp.W_in.data = weight.T.contiguous().T


def test_another_model_is_refused_with_what_differs(tmp_path):
    out, options = tmp_path / "table.parquet", {"measure": "generate", "max_new_tokens": 2}
    interrupt(out, **options)
    assert identify(MODEL) == identify(changed_model(add_to_one_weight))
    for model, message in (
        (make_model(word_tokenizer(), seed=3), r"model fingerprint: \w+ against \w+ now"),
        (make_model(word_tokenizer(), dtype=torch.bfloat16), "dtype: torch.float32 against torch.bfloat16"),
        (changed_model(add_to_one_weight), r"model weights: \w+ against \w+ now"),
        (
            changed_model(lambda _, rows: rows[:2].copy_(rows[:2].flip(0))),
            r"model weights: \w+ against \w+ now",
        ),
        (
            changed_model(lambda model, _: setattr(model.cfg, "attn_scores_soft_cap", 1.0)),
            r"model settings attn_scores_soft_cap: -1\.0 against 1\.0 now",
        ),
        (
            changed_model(lambda model, _: setattr(model.tokenizer, "eos_token", "<unk>")),
            r"stop tokens: \[1\] against \[2\] now",
        ),
        (changed_model(remove_bos), r"tokens: 8 \(\w+\) against 8 \(\w+\) now"),
    ):
        message = f"done: .*{message}"
        assert_raises(message, small, out, error=FileExistsError, model=model, force=True, **options)
    small(out, model=changed_model(change_layout), **options)


def test_weights_on_meta_have_no_digest_and_packed_ones_do():
    meta = plans.model_parts(MODEL)["weights"], weight_digests(torch.nn.Linear(2, 2, device="meta"))
    assert meta[1] == {"weight": "", "bias": ""}
    packed = torch.nn.Module()
    packed.weight = torch.nn.Parameter(torch.arange(6, dtype=torch.uint8), requires_grad=False)
    assert weight_digests(packed) == {"weight": hashlib.sha256(bytes(range(6))).hexdigest()[:16]}


@pytest.mark.parametrize("edit", ["data", "numpy", "rows", "assigned"])
def test_weights_are_hashed_once_and_again_after_an_edit_in_place(edit, monkeypatch):
    layer = torch.nn.Linear(3, 2)
    before = weight_digests(layer)
    monkeypatch.setattr(weights, "hashlib", None)
    assert weight_digests(layer) == before
    monkeypatch.undo()
    if edit == "data":
        layer.weight.data[1, 2] += 1
    elif edit == "numpy":
        layer.weight.detach().numpy()[1, 2] = 7
    elif edit == "rows":
        layer.weight.data[[0, 1]] = layer.weight.data[[1, 0]]
    else:
        layer.weight = torch.nn.Parameter(torch.zeros(2, 3))
    content = layer.weight.detach().numpy().tobytes()
    expected = {"weight": hashlib.sha256(content).hexdigest()[:16], "bias": before["bias"]}
    assert weight_digests(layer) == expected != before


def times(factor):
    def scaled(vector, multiplier, positions):
        return Add(vector, factor * multiplier, positions)

    return scaled


def closure(factor):
    def operation(vector, multiplier, positions):
        return SimpleNamespace(edits=lambda n: Add(vector, factor * multiplier, positions).edits(n))

    return operation


def recursive(depth):
    def operation(vector, multiplier, positions):
        def edits(n):
            return edits(n) if n < depth else Add(vector, multiplier, positions).edits(n)

        return SimpleNamespace(edits=edits)

    return operation


class Slotted:
    __slots__ = ("__hidden", "more", "vector")

    def __init__(self, vector, multiplier, positions):
        self.vector, self.__hidden = vector, (multiplier, positions)

    def edits(self, n_layers):
        return Add(self.vector, *self.__hidden).edits(n_layers)


@pytest.mark.parametrize(
    ("operation", "other"),
    [(times(2), times(3)), (closure(2), closure(3)), (recursive(0), recursive(1)), (Slotted, None)],
    ids=["function", "closure", "recursive", "slots"],
)
def test_a_callable_is_the_same_on_the_next_call_and_another_one_is_rejected(tmp_path, operation, other):
    out = tmp_path / "table.parquet"
    interrupt(out, operations=[operation])
    if other:
        with pytest.raises(FileExistsError, match=r"done: cells: 13 \(\w+\) against 13 \(\w+\) now"):
            small(out, operations=[other])
    small(out, operations=[operation])


def edited_class(body, *, state):
    """An instance of a user's class, as if its source had been edited between two calls."""
    namespace = {"__name__": "somewhere"}
    exec(f"class Own:\n    at = 1\n    def edits(self, n):\n        return {body}", namespace)
    instance = namespace["Own"]() if state else dataclass(namespace["Own"])()
    if state:
        instance.state = 3
    return instance


@dataclass(frozen=True)
class Own:
    compared: int
    ignored: int = field(compare=False)


def test_digests_differ_by_code_defaults_slots_fields_and_methods():
    values = [
        lambda x: x, lambda x: x + 1, lambda x, y=1: x, lambda x, y=2: x, lambda x, *, y=1: x, lambda x: -x,
        Slotted(1, 2, 3), Slotted(1, 2, 4), Slotted(2, 2, 3).edits, Slotted(1, 2, 3).edits,
        Own(1, 2), Own(1, 3),
    ]  # fmt: skip
    for state in (True, False):
        values += [edited_class(body, state=state) for body in ("1", "2", "len(range(1))", "len(range(2))")]
    assert len(set(map(plans.digest, values))) == len(values)
    # Each last_token() has its own mask.
    for make in (lambda: Slotted(1, 2, 3), lambda: Own(1, 2), last_token):
        assert plans.digest(make()) == plans.digest(make())


def test_an_operation_without_a_digest_is_rejected_before_anything_is_run(tmp_path):
    def operation(vector, multiplier, positions):
        state = torch.Generator()
        return SimpleNamespace(edits=lambda n: state and Add(vector, multiplier, positions).edits(n))

    message = r"<torch._C.Generator object at .* where in memory .* leave out=…"
    out, options = tmp_path / "table.parquet", {"operations": [operation], "executor": stopping(0)}
    assert_raises(message, small, out, **options)
    assert list(tmp_path.iterdir()) == []


def test_whole_and_numpy_numbers_are_the_same_sweep(tmp_path):
    out, unchecked = tmp_path / "table.parquet", inspect.unwrap(sweep)  # the tests' type checks reject ints
    options = {"controls": 1, "control_layers": "all", "progress": False, "out": out}
    with pytest.raises(StoppedError):
        unchecked(MODEL, several(), questions(), multipliers=[1, 2], executor=stopping(2), **options)
    small(out, multipliers=np.array([1.0, 2.0]), seed=np.int64(0), mass=np.bool_(True))
    assert plans.digest([np.bool_(True), np.int64(1)]) == plans.digest([True, 1])


def test_classes_that_have_moved_keep_their_digest():
    """As in plans on disk: a class of another module than then is in `plans.STORED`."""
    plan = plan_choices(MODEL, questions().prompts, questions().choices)
    assert plans.digest([last_token(), plan, questions()]) == "96a66f11a3f522a0"


NOT_IN_PARQUET = {
    "mixed": [1, "a", 2, "b"] * 2,
    "intervals": pd.cut(range(8), 2),
    "paths": [Path("a"), Path("b")] * 4,
    "complex": [1j, 2j] * 4,
}  # fmt: skip


@pytest.mark.parametrize("name", NOT_IN_PARQUET)
def test_factors_that_parquet_cannot_hold_are_rejected_before_anything_is_run(tmp_path, name):
    with_factor = questions(factors=pd.DataFrame({"kind": NOT_IN_PARQUET[name]}))
    assert len(small(None, with_factor, multipliers=[1.0], controls=0)) == 8 * 4
    message = "the column 'kind' cannot be written .* leave out=… away"
    assert_raises(message, small, tmp_path / "table.parquet", with_factor, executor=stopping(0))
    assert list(tmp_path.iterdir()) == []


# Files next to the table


def test_chunks_next_to_another_table_are_left_unchanged(tmp_path, whole):
    out = tmp_path / "table.parquet"
    interrupt(out)
    whole.to_parquet(out)
    before = finished_chunks(out)
    with pytest.raises(FileExistsError, match="Give another name"):
        small(out)
    assert finished_chunks(out) == before


@pytest.fixture
def not_removed(tmp_path):
    """A finished table and its chunks, as a kill between writing and removing leaves them."""
    out = tmp_path / "table.parquet"
    folder, copied = out.with_name("table.parquet.cells"), tmp_path / "copy"

    def copying(model, measure, pending):
        yield from chunks.in_order(model, measure, pending)
        shutil.copytree(folder, copied)  # the last chunk has been written

    small(out, executor=copying)
    copied.rename(folder)
    return out, folder


def test_chunks_of_a_finished_sweep_are_removed_unless_they_are_locked(tmp_path, not_removed):
    out, folder = not_removed
    before = finished_chunks(out)
    assert len(before) == 4
    with FileLock(folder / LOCK):
        small(out)
    assert finished_chunks(out) == before
    small(out)
    assert list(tmp_path.iterdir()) == [out]


def test_chunks_that_another_process_removes_at_the_same_time_are_no_error(not_removed, monkeypatch):
    out, folder = not_removed
    unlink = Path.unlink

    def unlink_twice(path, **options):
        unlink(path)
        return unlink(path, **options)

    monkeypatch.setattr(Path, "unlink", unlink_twice)
    small(out)
    assert not folder.exists()


def test_a_sweep_without_a_finished_chunk_may_be_replaced_by_another(tmp_path):
    out = tmp_path / "table.parquet"
    interrupt(out, after=0)
    assert list(tmp_path.iterdir()) == []
    small(out, multipliers=[5.0])


def flipped_bit(content):
    return content[:-200] + bytes([content[-200] ^ 1]) + content[-199:]


@pytest.mark.parametrize("damage", [flipped_bit, lambda content: content[:500], lambda content: b"", None])
def test_a_chunk_that_is_damaged_or_of_another_sweep_is_computed_again(tmp_path, whole, damage):
    out, other = tmp_path / "table.parquet", tmp_path / "other.parquet"
    interrupt(out)
    (path,) = (tmp_path / "table.parquet.cells").glob("00001-*")
    if damage:
        path.write_bytes(damage(path.read_bytes()))
    else:
        interrupt(other, seed=1)
        path.unlink()
        (foreign,) = (tmp_path / "other.parquet.cells").glob("00001-*")
        shutil.copy(foreign, path.parent)
    require_same(small(out), whole)


@pytest.mark.parametrize(
    ("number", "name", "n_chunks"),
    [(1, "writer.json", 0), (2, "plan.json", 0), (4, r"00001-\w+.parquet", 1), (7, "table.parquet", 4)],
)
def test_a_full_disk_is_an_error_with_the_file_its_size_and_where_the_rest_is(
    tmp_path, monkeypatch, whole, number, name, n_chunks
):
    """The disk is full when the `number`-th file is written."""
    out, written, fsync = tmp_path / "table.parquet", [], os.fsync

    def full_disk(handle):
        path = os.readlink(f"/proc/self/fd/{handle}")
        written.extend([path] * path.endswith(".part"))
        if len(written) == number:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return fsync(handle)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full_disk)
        message = rf"{name} \([\d,]+ bytes\) could not be written: No space left on device. .* call again"
        with pytest.raises(OSError, match=message) as raised:
            small(out)
    assert raised.value.errno == errno.ENOSPC
    assert not out.exists()
    assert len(finished_chunks(out)) == n_chunks
    assert not list(tmp_path.rglob("*.part"))
    require_same(small(out), whole)


@pytest.mark.parametrize(("memory", "expected"), [(None, 4_000_000), (0.25, 2_000_000)])
def test_memory_is_that_of_the_first_call(tmp_path, monkeypatch, memory, expected):
    """Free memory decides which conditions share a batch, and so the last bits."""
    seen, out, scored = [], tmp_path / "table.parquet", chunks.score_conditions

    def recording(*arguments, options, **more):
        seen.append(options.memory)
        return scored(*arguments, options=options, **more)

    @contextmanager
    def free(number):
        with monkeypatch.context() as patch:
            patch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=number))
            yield

    with free(8_000_000):
        interrupt(out, memory=memory)
    monkeypatch.setattr(chunks, "score_conditions", recording)
    with free(16_000_000):
        small(out, memory=memory)
    assert set(seen) == {expected}


def test_other_package_versions_are_a_warning(tmp_path):
    out, plan = tmp_path / "table.parquet", tmp_path / "table.parquet.cells" / "plan.json"
    interrupt(out)
    begun = json.loads(plan.read_text())
    begun["packages"]["torch"] = "0.0"
    plan.write_text(json.dumps(begun))
    with pytest.warns(UserWarning, match=r"begun with other packages: torch: 0\.0 against "):
        small(out)
