"""Sweeps that are interrupted at any moment and continued: the same table, to the bit."""

import copy
import errno
import hashlib
import inspect
import itertools
import json
import os
import random
import re
import shutil
import time
from contextlib import nullcontext
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


def require_same(table, expected):
    pd.testing.assert_frame_equal(table, expected, check_exact=True)


# Killed processes


@pytest.fixture
def out(tmp_path):
    return tmp_path / "table.parquet"


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


@pytest.mark.integration
@pytest.mark.parametrize(
    ("seed", "kills", "most_chunks", "count"),
    [(0, 3, 3, 100), *(pytest.param(seed, 20, 2, 600, marks=pytest.mark.slow) for seed in (1, 2))],
)
def test_a_sweep_that_is_killed_gives_the_same_table(
    fork_server, uninterrupted, out, seed, kills, most_chunks, count
):
    rng = random.Random(seed)
    for _ in range(kills):
        before = finished_chunks(out)
        process = fork_server.start("sweep", out=out, pause=0.01, count=count)
        n_chunks = len(before) + rng.randint(0, most_chunks)
        wait_for(lambda n_chunks=n_chunks: len(finished_chunks(out)) >= n_chunks)
        time.sleep(rng.uniform(0, 0.15))
        assert fork_server.kill(process)
        assert not out.exists()
        assert before.items() <= finished_chunks(out).items()  # finished chunks are not computed again
    fork_server.run("sweep", out=out, count=count)
    if count != 100:
        uninterrupted = table_of(fork_server, out.with_name("uninterrupted"), count=count)
    require_finished(out, uninterrupted)


def stop_sweep(fork_server, out, step, name):
    """Process of a sweep that stopped at one step of writing one file."""
    marker = out.with_name("marker")
    process = fork_server.start("stopped_sweep", out=out, step=step, name=name, marker=marker)
    wait_for(marker.exists)
    return process


@pytest.mark.integration
@pytest.mark.parametrize("step", ["content", "fsync", "replace"])
@pytest.mark.parametrize(
    ("name", "n_chunks"), [("plan.json", 0), ("00000-", 0), ("00003-", 3), ("table.parquet", N_CHUNKS)]
)
def test_a_sweep_that_is_killed_while_it_writes_continues(
    fork_server, uninterrupted, out, step, name, n_chunks
):
    assert fork_server.kill(stop_sweep(fork_server, out, step, name))
    assert not out.exists()
    assert len(finished_chunks(out)) == n_chunks
    fork_server.run("sweep", out=out)
    require_finished(out, uninterrupted)


@pytest.mark.integration
def test_a_sweep_that_is_killed_after_its_table_is_written_is_finished(fork_server, uninterrupted, out):
    assert fork_server.kill(stop_sweep(fork_server, out, "removal", "cells"))
    require_same(long_sweep(out), uninterrupted)
    require_finished(out, uninterrupted)


@pytest.mark.integration
def test_a_second_process_is_refused_while_the_first_one_runs(fork_server, uninterrupted, out):
    process = stop_sweep(fork_server, out, "replace", "00003-")
    message = f"table.parquet is being written by process {process}: wait"
    assert_raises(message, long_sweep, out, error=InUseError)
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


def test_the_same_call_on_a_finished_file_returns_its_table_and_runs_nothing(out, whole, monkeypatch):
    require_same(small(out), whole)
    monkeypatch.setattr(MODEL, "forward", lambda *_, **__: pytest.fail("the model ran"))
    require_same(small(out, executor=stopping(0)), whole)
    message = r"exists.* another sweep: multipliers: \[1.0, 2.0\] against \[1.0\] "
    assert_raises(message, small, out, error=FileExistsError, multipliers=[1.0])
    whole.to_parquet(out)
    assert_raises("exists, and is not the table of a sweep", small, out, error=FileExistsError)


@pytest.mark.parametrize("measure", ["choice", "generate"])
def test_an_interrupt_says_how_many_conditions_are_kept_and_the_same_call_continues(tmp_path, out, measure):
    options = {"measure": measure, "max_new_tokens": 2}

    def interrupted(message, path, executor, **more):
        more |= options | {"executor": executor(2, KeyboardInterrupt)}
        assert_raises(message, small, path, error=KeyboardInterrupt, **more)

    interrupted(f"7 of 13 conditions are kept in .*{out.name}.cells: the same", out, stopping)
    table = small(out, **options)
    require_same(table, small(tmp_path / "whole.parquet", **options))
    pd.testing.assert_frame_equal(table, small(None, **options), rtol=1e-5, atol=1e-6)
    interrupted("none of 13 conditions is kept: give out=", None, stopping)
    chosen = {"control_layers": "chosen", "controls": 3}
    interrupted("7 of 10 conditions are kept", tmp_path / "other.parquet", stopping_in_call, **chosen)


def test_chunks_are_small_where_conditions_take_long(monkeypatch, tmp_path):
    sizes = []

    def recording(model, measure, pending):
        sizes.append([len(conditions) for conditions in pending.values()])
        yield from chunks.in_order(model, measure, pending)

    for speed in (1e30, 1e-30):
        monkeypatch.setattr(chunks, "SPEED", {"cpu": speed, "cuda": 1e13})
        small(tmp_path / f"{speed}.parquet", executor=recording)
    assert sizes == [[4, 3, 3, 3], [3, 3, 3, 2, 2]]


def test_the_cost_of_a_condition_is_of_the_tokens_and_layers_that_it_changes():
    n_layers, options = MODEL.cfg.n_layers, {"multipliers": [1.0], "operations": ["add"], "seed": 0}
    unit = 2 * sum(weight.numel() for weight in MODEL.blocks.parameters()) / n_layers / chunks.SPEED["cpu"]
    for layer, positions, new_tokens, expected in (
        (0, all_tokens(), 0, 6 * (n_layers - 1)),  # 6 tokens, without those that the prompts share
        (1, all_tokens(), 0, 6 * (n_layers - 2)),
        (0, last_token(), 0, 3 * (n_layers - 1)),
        (1, last_token(), 5, 3 * (n_layers - 2) + 2 * 3 * 5 * n_layers),
    ):
        conditions = sweep_conditions({"made": several()}, 0, layers=[layer], positions=positions, **options)
        cost = chunks.estimated_cost(MODEL, [[0, 1, 2, 3], [0, 1, 2, 4], [0, 5]], conditions, new_tokens)
        assert cost.clean / unit == pytest.approx(6 * n_layers)
        assert 2 * cost.condition / unit == pytest.approx(expected)  # one of two conditions is unsteered


def test_a_long_sweep_says_so_at_its_start_and_what_remains(monkeypatch, caplog, out):
    monkeypatch.setattr(chunks, "SECONDS", 0.0)
    for speed, path, level in ((1e12, None, "INFO"), (1.0, None, "WARNING"), (1.0, out, "INFO")):
        monkeypatch.setattr(chunks, "SPEED", {"cpu": speed, "cuda": 1e13})
        caplog.clear()
        with caplog.at_level("INFO"):
            small(path)
        start, *later = [record for record in caplog.records if record.name.startswith("tl_steer.sweeps")]
        assert start.levelname == level
        assert "13 conditions (46 % controls) of 8 questions, about" in start.getMessage()
        assert ("without out=… nothing is kept" in start.getMessage()) == (path is None)
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
    calls = itertools.count(1)

    def executor(model, measure, pending):
        if next(calls) == number:
            raise error
        yield from chunks.in_order(model, measure, pending)

    return executor


def interrupt(out, after=2, **options):
    with pytest.raises(StoppedError):
        small(out, executor=stopping(after), **options)


def test_finished_chunks_are_not_computed_again_and_progress_starts_after_them(out, whole, monkeypatch):
    computed, progress = [], []
    interrupt(out)
    assert len(finished_chunks(out)) == 2
    monkeypatch.setattr(chunks, "bar", lambda *_, **__: nullcontext(progress.append))
    table = small(out, executor=stopping(9, calls=computed))
    assert computed == [2, 3]
    assert progress == [7, 3, 3]
    require_same(table, whole)
    require_same(pd.read_parquet(out), whole)


def test_a_sweep_with_controls_at_chosen_layers_continues_to_the_same_table(tmp_path, out):
    """7 conditions in 2 chunks, then 8 of controls in 2."""
    options = {"control_layers": "chosen", "controls": 8, "multipliers": [1.0, -1.0], "layers": [0, 1, 2]}
    expected = small(tmp_path / "whole.parquet", **options)
    require_same(small(None, executor=chunks.in_order, **options), expected)
    assert expected.loc[expected["control"], "vector"].nunique() == 8
    assert len(expected) == 8 * (7 + 8)
    # in both parts after the first chunk, and between them
    for n_finished, executor in ((1, stopping(1)), (2, stopping_in_call(2)), (3, stopping(1))):
        before = finished_chunks(out)
        with pytest.raises(StoppedError):
            small(out, executor=executor, **options)
        assert [int(name[:5]) for name in sorted(finished_chunks(out))] == list(range(n_finished))
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
def test_an_executor_may_change_the_order_but_not_omit_or_repeat_chunks(out, whole, numbers, message):
    def executor(model, measure, pending):
        for number in numbers:
            yield number, measure(model, pending[number])

    for path in (None, out):
        if message is None:
            require_same(small(path, executor=executor), whole)
        else:
            assert_raises(message, small, path, error=RuntimeError, executor=executor)


def test_the_executor_s_function_holds_no_model_and_can_be_pickled(whole):
    import ray.cloudpickle as pickle

    def sending(model, measure, pending):
        sent = pickle.dumps(measure)
        assert len(sent) < 20_000
        for number, conditions in pending.items():
            yield number, pickle.loads(sent)(model, pickle.loads(pickle.dumps(conditions)))

    pd.testing.assert_frame_equal(small(None, executor=sending), whole, rtol=1e-5, atol=1e-6)


def times(factor):
    def scaled(vector, multiplier, positions):
        return Add(vector, factor * multiplier, positions)

    return scaled


OTHER_ARGUMENTS = [
    ({"multipliers": [1.0, 3.0]}, r"multipliers: \[1.0, 2.0\] against \[1.0, 3.0\] now"),
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
    ({"operations": [times(2)]}, r"operations: \[add\] against \[scaled\]"),
    ({"seed": 1}, "seed: 0 against 1"),
    ({"mass": False}, "mass: True against False"),
    ({"measure": "generate", "max_new_tokens": 2}, "measure: choice against generate"),
    ({"reuse": False}, "reuse: True against False"),
    (
        {"measure": "generate", "temperature": 0.5, "draws": 2, "repetition_penalty": 1.1},
        "temperature: None against 0.5; .*repetition_penalty: None against 1.1; draws: None against 2",
    ),
]


def test_another_sweep_is_refused_with_what_differs_and_costs_nothing(out, whole):
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


def exchange_rows(_, weight):
    weight[:2] = weight[:2].flip(0)


def test_another_model_is_refused_with_what_differs(out):
    options = {"measure": "generate", "max_new_tokens": 2}
    interrupt(out, **options)
    assert identify(MODEL) == identify(changed_model(add_to_one_weight))
    capped = changed_model(lambda model, _: setattr(model.cfg, "attn_scores_soft_cap", 1.0))
    stopped = changed_model(lambda model, _: setattr(model.tokenizer, "eos_token", "<unk>"))
    for model, message in (
        (make_model(word_tokenizer(), seed=3), r"model fingerprint: \w+ against \w+ now"),
        (make_model(word_tokenizer(), dtype=torch.bfloat16), "dtype: torch.float32 against torch.bfloat16"),
        (changed_model(add_to_one_weight), r"model weights: \w+ against \w+ now"),
        (changed_model(exchange_rows), r"model weights: \w+ against \w+ now"),
        (capped, r"model settings attn_scores_soft_cap: -1\.0 against 1\.0 now"),
        (stopped, r"stop tokens: \[1\] against \[2\] now"),
        (changed_model(remove_bos), r"tokens: 8 \(\w+\) against 8 \(\w+\) now"),
    ):
        message = f"done: .*{message}"
        assert_raises(message, small, out, error=FileExistsError, model=model, force=True, **options)
    small(out, model=changed_model(change_layout), **options)


def test_weights_on_meta_have_no_digest_and_packed_ones_do():
    assert weight_digests(torch.nn.Linear(2, 2, device="meta")) == {"weight": "", "bias": ""}
    packed = torch.nn.Module()
    packed.weight = torch.nn.Parameter(torch.arange(6, dtype=torch.uint8), requires_grad=False)
    assert weight_digests(packed) == {"weight": hashlib.sha256(bytes(range(6))).hexdigest()[:16]}


EDITS = {
    "data": lambda layer: layer.weight.data[1].add_(1),
    "numpy": lambda layer: layer.weight.detach().numpy().fill(7),
    "rows": lambda layer: layer.weight.data.copy_(layer.weight.data.flip(0)),
    "assigned": lambda layer: setattr(layer, "weight", torch.nn.Parameter(torch.zeros(2, 3))),
}


@pytest.mark.parametrize("edit", EDITS)
def test_weights_are_hashed_once_and_again_after_an_edit_in_place(edit, monkeypatch):
    layer = torch.nn.Linear(3, 2)
    before = weight_digests(layer)
    monkeypatch.setattr(weights, "hashlib", None)
    assert weight_digests(layer) == before
    monkeypatch.undo()
    EDITS[edit](layer)
    content = layer.weight.detach().numpy().tobytes()
    expected = {"weight": hashlib.sha256(content).hexdigest()[:16], "bias": before["bias"]}
    assert weight_digests(layer) == expected != before


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
def test_a_callable_is_the_same_on_the_next_call_and_another_one_is_rejected(out, operation, other):
    interrupt(out, operations=[operation])
    if other:
        message = r"done: cells: 13 \(\w+\) against 13 \(\w+\) now"
        assert_raises(message, small, out, error=FileExistsError, operations=[other])
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
class Fields:
    compared: int
    ignored: int = field(compare=False)


def test_digests_differ_by_code_defaults_slots_fields_and_methods():
    values = [
        lambda x: x, lambda x: x + 1, lambda x, y=1: x, lambda x, y=2: x, lambda x, *, y=1: x, lambda x: -x,
        Slotted(1, 2, 3), Slotted(1, 2, 4), Slotted(2, 2, 3).edits, Slotted(1, 2, 3).edits,
        Fields(1, 2), Fields(1, 3),
        *(edited_class(body, state=state) for state in (True, False)
          for body in ("1", "2", "len(range(1))", "len(range(2))")),
    ]  # fmt: skip
    assert len(set(map(plans.digest, values))) == len(values)
    # Each last_token() has its own mask.
    for make in (lambda: Slotted(1, 2, 3), lambda: Fields(1, 2), last_token):
        assert plans.digest(make()) == plans.digest(make())


def test_an_operation_without_a_digest_is_rejected_before_anything_is_run(tmp_path, out):
    def operation(vector, multiplier, positions):
        state = torch.Generator()
        return SimpleNamespace(edits=lambda n: state and Add(vector, multiplier, positions).edits(n))

    message = r"<torch._C.Generator object at .* where in memory .* leave out=…"
    assert_raises(message, small, out, operations=[operation], executor=stopping(0))
    assert list(tmp_path.iterdir()) == []


def test_whole_and_numpy_numbers_are_the_same_sweep(out):
    unchecked = inspect.unwrap(sweep)  # the tests' type checks reject ints
    options = {"controls": 1, "control_layers": "all", "progress": False, "executor": stopping(2)}
    with pytest.raises(StoppedError):
        unchecked(MODEL, several(), questions(), multipliers=[1, 2], out=out, **options)
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
def test_factors_that_parquet_cannot_hold_are_rejected_before_anything_is_run(tmp_path, out, name):
    with_factor = questions(factors=pd.DataFrame({"kind": NOT_IN_PARQUET[name]}))
    assert len(small(None, with_factor, multipliers=[1.0], controls=0)) == 8 * 4
    message = "the column 'kind' cannot be written .* leave out=… away"
    assert_raises(message, small, out, with_factor, executor=stopping(0))
    assert list(tmp_path.iterdir()) == []


# Files next to the table


def test_chunks_next_to_another_table_are_left_unchanged(out, whole):
    interrupt(out)
    whole.to_parquet(out)
    before = finished_chunks(out)
    assert_raises("Give another name", small, out, error=FileExistsError)
    assert finished_chunks(out) == before


@pytest.fixture
def not_removed(tmp_path, out):
    """The folder of chunks next to their table, as a kill between writing and removing leaves it."""
    folder, copied = out.with_name("table.parquet.cells"), tmp_path / "copy"

    def copying(model, measure, pending):
        yield from chunks.in_order(model, measure, pending)
        shutil.copytree(folder, copied)  # the last chunk has been written

    small(out, executor=copying)
    copied.rename(folder)
    return folder


def test_chunks_of_a_finished_sweep_are_removed_unless_they_are_locked(tmp_path, out, not_removed):
    before = finished_chunks(out)
    assert len(before) == 4
    with FileLock(not_removed / LOCK):
        small(out)
    assert finished_chunks(out) == before
    small(out)
    assert list(tmp_path.iterdir()) == [out]


def test_chunks_that_another_process_removes_at_the_same_time_are_no_error(out, not_removed, monkeypatch):
    unlink = Path.unlink

    def unlink_twice(path, **options):
        unlink(path)
        return unlink(path, **options)

    monkeypatch.setattr(Path, "unlink", unlink_twice)
    small(out)
    assert not not_removed.exists()


def test_a_sweep_without_a_finished_chunk_may_be_replaced_by_another(tmp_path, out):
    interrupt(out, after=0)
    assert list(tmp_path.iterdir()) == []
    small(out, multipliers=[5.0])


DAMAGES = {
    "flipped bit": lambda content: content[:-200] + bytes([content[-200] ^ 1]) + content[-199:],
    "cut": lambda content: content[:500],
    "empty": lambda content: b"",
    "of another sweep": None,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_chunk_that_is_damaged_or_of_another_sweep_is_computed_again(tmp_path, out, whole, damage):
    interrupt(out)
    (path,) = (tmp_path / "table.parquet.cells").glob("00001-*")
    if DAMAGES[damage]:
        path.write_bytes(DAMAGES[damage](path.read_bytes()))
    else:
        interrupt(tmp_path / "other.parquet", seed=1)
        path.unlink()
        (foreign,) = (tmp_path / "other.parquet.cells").glob("00001-*")
        shutil.copy(foreign, path.parent)
    require_same(small(out), whole)


@pytest.mark.parametrize(
    ("number", "name", "n_chunks"),
    [(1, "writer.json", 0), (2, "plan.json", 0), (4, r"00001-\w+.parquet", 1), (7, "table.parquet", 4)],
)
def test_a_full_disk_is_an_error_with_the_file_its_size_and_where_the_rest_is(
    tmp_path, out, monkeypatch, whole, number, name, n_chunks
):
    """The disk is full when the `number`-th file is written."""
    written, fsync = [], os.fsync

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
def test_memory_is_that_of_the_first_call(out, monkeypatch, memory, expected):
    """Free memory decides which conditions share a batch, and so the last bits."""
    seen, scored, available = [], chunks.score_conditions, [8_000_000]

    def recording(*arguments, options, **more):
        seen.append(options.memory)
        return scored(*arguments, options=options, **more)

    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=available[0]))
    interrupt(out, memory=memory)
    available[0] = 16_000_000
    monkeypatch.setattr(chunks, "score_conditions", recording)
    small(out, memory=memory)
    assert set(seen) == {expected}


def test_other_package_versions_are_a_warning(out):
    plan = out.with_name("table.parquet.cells") / "plan.json"
    interrupt(out)
    begun = json.loads(plan.read_text())
    begun["packages"]["torch"] = "0.0"
    plan.write_text(json.dumps(begun))
    with pytest.warns(UserWarning, match=r"begun with other packages: torch: 0\.0 against "):
        small(out)
