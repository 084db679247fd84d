"""Sweeps that are killed at any moment and go on: the same table, to the bit."""

import copy
import errno
import hashlib
import inspect
import json
import os
import random
import shutil
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from filelock import FileLock
from tokenizers import processors

from tl_steer.evaluation import asking, chunks, digests, plans
from tl_steer.evaluation import checkpoints as module
from tl_steer.evaluation.checkpoints import InUseError
from tl_steer.evaluation.sweep import sweep
from tl_steer.interventions import Add
from tl_steer.models import identify
from tl_steer.models.weights import weight_digests
from tl_steer.positions import last_token

from .broken_off import nursery, swept, wait_for
from .test_sweep import MODEL, questions, several
from .tiny_model import word_tokenizer

NUMBER = -(-(1 + 2 * 3 * 100) // chunks.CELLS)  # of `swept`
SWEEP = sys.modules["tl_steer.evaluation.sweep"]  # the name in the package is the function's


@pytest.fixture(scope="module")
def attempts():
    with nursery() as made:
        yield made


@pytest.fixture(scope="module")
def undisturbed(attempts, tmp_path_factory):
    """The table of a sweep that nobody disturbs."""
    return alone(attempts, tmp_path_factory.mktemp("undisturbed") / "table.parquet")


def alone(attempts, out, **options):
    attempts.do("sweeping", out=out, **options)
    return pd.read_parquet(out)


def kept(out):
    """The finished chunks, each with what tells it from one written anew."""
    return {path.name: path.stat().st_ino for path in out.with_name(f"{out.name}.cells").glob("*.parquet")}


def require_same(out, undisturbed):
    pd.testing.assert_frame_equal(pd.read_parquet(out), undisturbed, check_exact=True)
    assert [path for path in out.parent.iterdir() if out.name in path.name] == [out]


def kill_at_random(attempts, out, kills, rng, further, **options):
    """Begin a sweep, kill it, begin it again …; then let it come to its end."""
    for _ in range(kills):
        before = kept(out)
        process = attempts.begin("sweeping", out=out, pause=0.01, **options)
        wanted = len(before) + rng.randint(0, further)
        wait_for(lambda wanted=wanted: len(kept(out)) >= wanted)
        time.sleep(rng.uniform(0, 0.15))
        assert attempts.kill(process)
        assert not out.exists()
        assert before.items() <= kept(out).items()  # nothing that was done is done again
    attempts.do("sweeping", out=out, **options)


def test_a_sweep_that_is_killed_three_times_gives_the_same_table(attempts, undisturbed, tmp_path):
    out = tmp_path / "table.parquet"
    kill_at_random(attempts, out, 3, random.Random(0), further=3)
    require_same(out, undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_a_sweep_that_is_killed_twenty_times_gives_the_same_table(attempts, tmp_path, seed):
    out = tmp_path / "table.parquet"
    kill_at_random(attempts, out, 20, random.Random(seed), further=2, count=600)
    require_same(out, alone(attempts, tmp_path / "alone", count=600))


def test_the_undisturbed_table_is_the_one_of_a_sweep_in_one_piece(undisturbed):
    """Which cells share a batch decides the last bits alone."""
    pd.testing.assert_frame_equal(undisturbed, swept(None), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("place", ["content", "fsync", "replace"])
@pytest.mark.parametrize("name", ["plan.json", "00000-", "00003-", "table.parquet"])
def test_a_sweep_that_is_killed_while_it_writes_goes_on(attempts, undisturbed, tmp_path, place, name):
    out, there = tmp_path / "table.parquet", tmp_path / "there"
    process = attempts.begin("stopping_sweep", out=out, place=place, name=name, there=there)
    wait_for(there.exists)
    assert attempts.kill(process)
    assert not out.exists()
    assert len(kept(out)) == {"plan.json": 0, "00000-": 0, "00003-": 3, "table.parquet": NUMBER}[name]
    attempts.do("sweeping", out=out)
    require_same(out, undisturbed)


def test_a_sweep_that_is_killed_when_its_table_is_written_is_finished(attempts, undisturbed, tmp_path):
    out, there = tmp_path / "table.parquet", tmp_path / "there"
    process = attempts.begin("stopping_sweep", out=out, place="removal", name="cells", there=there)
    wait_for(there.exists)
    assert attempts.kill(process)
    with pytest.raises(FileExistsError, match="give another name"):
        swept(out)
    require_same(out, undisturbed)


def test_chunks_beside_a_table_of_something_else_are_left_alone(tmp_path):
    broken_off(tmp_path / "table.parquet")
    small(None).to_parquet(tmp_path / "table.parquet")
    before = kept(tmp_path / "table.parquet")
    with pytest.raises(FileExistsError, match="give another name"):
        small(tmp_path / "table.parquet")
    assert kept(tmp_path / "table.parquet") == before


def test_a_second_process_is_refused_until_the_first_one_dies(attempts, undisturbed, tmp_path):
    out, there = tmp_path / "table.parquet", tmp_path / "there"
    process = attempts.begin("stopping_sweep", out=out, place="replace", name="00003-", there=there)
    wait_for(there.exists)
    with pytest.raises(InUseError, match=f"table.parquet is being written by process {process}: wait"):
        swept(out)
    assert len(kept(out)) == 3  # the first one's, untouched
    assert attempts.kill(process)
    attempts.do("sweeping", out=out)
    require_same(out, undisturbed)


def test_files_that_may_not_grow_end_a_sweep_with_what_is_kept_and_how_to_go_on(
    attempts, undisturbed, tmp_path
):
    """The system's own limit: the table is larger than any chunk."""
    out = tmp_path / "table.parquet"
    attempts.do("limited_sweep", out=out, size=20_000)
    told = out.with_suffix(".told").read_text()
    out.with_suffix(".told").unlink()
    assert "table.parquet (" in told
    assert "bytes) could not be written: File too large. All that was finished before is kept in" in told
    assert len(kept(out)) == NUMBER
    assert [path.name for path in tmp_path.iterdir()] == ["table.parquet.cells"]  # no half file
    attempts.do("sweeping", out=out)
    require_same(out, undisturbed)


# --- in this process ------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def small_chunks(request, monkeypatch):
    if "attempts" not in request.fixturenames:
        monkeypatch.setattr(chunks, "CELLS", 4)


def small(out, asked=None, model=MODEL, vectors=None, **options):
    """13 cells, so that there are 4 chunks."""
    options = {"multipliers": [1.0, 2.0], "controls": 1, "progress": False} | options
    return sweep(model, several() if vectors is None else vectors, asked or questions(), out=out, **options)


class StoppedError(Exception):
    pass


def stopping(after):
    """An executor that breaks after so many chunks."""

    def executor(model, ask, waiting):
        for done, (number, cells) in enumerate(waiting.items()):
            if done == after:
                raise StoppedError
            yield number, ask(model, cells)

    return executor


def broken_off(out, after=2, **options):
    with pytest.raises(StoppedError):
        small(out, executor=stopping(after), **options)


def test_what_is_done_is_not_asked_again_and_the_bar_goes_on_from_there(tmp_path, monkeypatch):
    out, asked, ticks = tmp_path / "table.parquet", [], []
    broken_off(out)
    before = kept(out)
    assert len(before) == 2

    def remembering(model, ask, waiting):
        for number, cells in waiting.items():
            asked.append(number)
            yield number, ask(model, cells)

    @contextmanager
    def bar(doing, cells, *, shown):
        yield ticks.append

    monkeypatch.setattr(SWEEP, "bar", bar)
    table = small(out, executor=remembering)
    assert asked == [2, 3]
    assert ticks == [8, 4, 1]
    pd.testing.assert_frame_equal(table, small(tmp_path / "whole.parquet"), check_exact=True)
    pd.testing.assert_frame_equal(table, pd.read_parquet(out), check_exact=True)


def test_chunks_may_come_in_any_order(tmp_path):
    def backwards(model, ask, waiting):
        for number in reversed(waiting):
            yield number, ask(model, waiting[number])

    expected = small(tmp_path / "table.parquet")
    for out in (None, tmp_path / "other.parquet"):
        pd.testing.assert_frame_equal(small(out, executor=backwards), expected, check_exact=True)


@pytest.mark.parametrize(
    ("answers", "told"), [([0, 1, 3], r"left the chunks \[2\] out"), ([0, 0], "answered chunk 0, which was")]
)
def test_an_executor_that_leaves_chunks_out_or_does_them_twice_is_refused(answers, told):
    def wrong(model, ask, waiting):
        for number in answers:
            yield number, ask(model, waiting[number])

    with pytest.raises(RuntimeError, match=told):
        small(None, executor=wrong)


def test_an_executor_holds_no_model_and_its_work_can_be_sent(tmp_path):
    import ray.cloudpickle

    def sending(model, ask, waiting):
        sent = ray.cloudpickle.dumps(ask)
        assert len(sent) < 20_000
        for number, cells in waiting.items():
            yield (
                number,
                ray.cloudpickle.loads(sent)(model, ray.cloudpickle.loads(ray.cloudpickle.dumps(cells))),
            )

    expected = small(None)
    pd.testing.assert_frame_equal(small(None, executor=sending), expected, rtol=1e-5, atol=1e-6)


def twice(vector, multiplier, positions):
    return Add(vector, 2 * multiplier, positions)


def by(factor):
    def scaled(vector, multiplier, positions):
        return Add(vector, factor * multiplier, positions)

    return scaled


OTHER = {
    "multipliers": ({"multipliers": [1.0, 3.0]}, r"multipliers: \[1.0, 2.0\] against \[1.0, 3.0\] now"),
    "layers": ({"layers": [0, (1, 2)]}, r"layers: \[0, 1, 2\] against \[0, 1\+2\]"),
    "vectors": ({"vectors": several(5)}, r"vectors made: 3 layers at resid_post \(\w+\) against 3 layers"),
    "controls": ({"controls": 2}, "controls: 1 against 2"),
    "questions": ({"asked": questions(prompts=["a b :"] * 8)}, r"questions prompts: 8 \(\w+\) against 8"),
    "choices": (
        {"asked": questions(choices=[(" no", " yes")] * 8)},
        r"questions choices: 8 \(\w+\) against 8",
    ),
    "answers": ({"asked": questions(answers=None)}, r"questions answers: 8 \(\w+\) against nothing"),
    "factors": (
        {"asked": questions(factors=pd.DataFrame({"kind": ["x"] * 8}))},
        r"questions factors: 8 \(\w+\) against 8",
    ),
    "positions": ({"positions": last_token()}, r"positions: all_tokens\(\) against last_token\(\)"),
    "operation": ({"operations": ["project_out"]}, r"operations: \[add\] against \[project_out\]"),
    "callable": ({"operations": [twice]}, r"operations: \[add\] against \[twice\]"),
    "seed": ({"seed": 1}, "seed: 0 against 1"),
    "mass": ({"mass": False}, "mass: True against False"),
    "measure": ({"measure": "generate", "max_new_tokens": 2}, "measure: choice against generate"),
    "reuse": ({"reuse": False}, "reuse: True against False"),
}  # fmt: skip


@pytest.mark.parametrize("changed", OTHER)
def test_another_sweep_is_refused_with_what_differs_and_costs_nothing(tmp_path, changed):
    options, told = OTHER[changed]
    out = tmp_path / "table.parquet"
    broken_off(out)
    before = kept(out)
    with pytest.raises(FileExistsError, match=rf"was begun with another sweep, part of .*{told}.*begin anew"):
        small(out, **options)
    assert kept(out) == before
    small(out)


def test_a_callable_that_makes_something_else_is_another_sweep(tmp_path):
    out = tmp_path / "table.parquet"
    broken_off(out, operations=[by(2)])
    with pytest.raises(FileExistsError, match=r"done: cells: 13 \(\w+\) against 13 \(\w+\) now"):
        small(out, operations=[by(3)])
    small(out, operations=[by(2)])


def test_another_model_of_the_same_shapes_is_refused(tmp_path):
    from .tiny_model import make_model, word_tokenizer

    out, other = tmp_path / "table.parquet", make_model(word_tokenizer(), seed=3)
    broken_off(out)
    with pytest.raises(FileExistsError, match=r"model fingerprint: \w+ against \w+ now"):
        small(out, model=other, force=True)
    half = make_model(word_tokenizer(), dtype=torch.bfloat16)
    with pytest.raises(FileExistsError, match=r"model dtype: torch.float32 against torch.bfloat16"):
        small(out, model=half, force=True)


def merged():
    """The model with other weights than `W_O`, as adapters of queries and values make it."""
    other = copy.deepcopy(MODEL)
    with torch.no_grad():
        other.blocks[1].attn.W_V[0, 0, 0] += 0.5
    return other


def test_a_model_that_differs_in_one_weight_is_refused(tmp_path):
    out, other = tmp_path / "table.parquet", merged()
    assert identify(MODEL) == identify(other)
    broken_off(out)
    with pytest.raises(FileExistsError, match=r"done: model weights: \w+ against \w+ now"):
        small(out, model=other)
    restored = copy.deepcopy(MODEL)
    restored.blocks[0].mlp.W_in.data = restored.blocks[0].mlp.W_in.data.T.contiguous().T  # another layout
    small(out, model=restored)


def exchanged():
    """Two numbers in one weight have changed places."""
    other = copy.deepcopy(MODEL)
    rows = other.blocks[0].mlp.W_in.data
    rows[:2] = rows[:2].flip(0)
    return other


def capped():
    """The same weights, other attention."""
    other = copy.deepcopy(MODEL)
    other.cfg.attn_scores_soft_cap = 1.0
    return other


def ending_elsewhere():
    """The same vocabulary, another token that ends a text."""
    other = copy.deepcopy(MODEL)
    other.tokenizer = word_tokenizer()
    other.tokenizer.eos_token = "<unk>"
    return other


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (exchanged, r"model weights: \w+ against \w+ now"),
        (capped, r"model settings attn_scores_soft_cap: -1\.0 against 1\.0 now"),
        (ending_elsewhere, r"stop tokens: \[1\] against \[2\] now"),
    ],
)
def test_what_else_changes_the_numbers_is_seen(tmp_path, change, told):
    out = tmp_path / "table.parquet"
    broken_off(out, measure="generate", max_new_tokens=2)
    with pytest.raises(FileExistsError, match=f"done: {told}"):
        small(out, model=change(), measure="generate", max_new_tokens=2)


def test_weights_without_numbers_are_no_hindrance():
    names = plans.model_parts(MODEL)["weights"], weight_digests(torch.nn.Linear(2, 2, device="meta"))
    assert names[1] == {"weight": "", "bias": ""}
    packed = torch.nn.Module()
    packed.weight = torch.nn.Parameter(torch.arange(6, dtype=torch.uint8), requires_grad=False)
    assert weight_digests(packed) == {"weight": hashlib.sha256(bytes(range(6))).hexdigest()[:16]}


def test_a_tokenizer_that_cuts_the_same_vocabulary_otherwise_is_refused(tmp_path):
    out, other = tmp_path / "table.parquet", copy.deepcopy(MODEL)
    other.tokenizer = word_tokenizer()
    other.tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(single="$A")
    broken_off(out)
    with pytest.raises(FileExistsError, match=r"done: tokens: 8 \(\w+\) against 8 \(\w+\) now"):
        small(out, model=other)


def catching(factor):
    def operation(vector, multiplier, positions):
        return SimpleNamespace(edits=lambda n: Add(vector, factor * multiplier, positions).edits(n))

    return operation


def calling_itself(depth):
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


@pytest.mark.parametrize("operation", [catching(2), calling_itself(0), Slotted])
def test_an_operation_that_catches_or_has_slots_is_the_same_when_made_again(tmp_path, operation):
    out = tmp_path / "table.parquet"
    broken_off(out, operations=[operation])
    small(out, operations=[operation])


@pytest.mark.parametrize("makers", [(catching(2), catching(3)), (calling_itself(0), calling_itself(1))])
def test_what_a_function_catches_tells_it_from_another(tmp_path, makers):
    out = tmp_path / "table.parquet"
    broken_off(out, operations=makers[:1])
    with pytest.raises(FileExistsError, match="cells: 13"):
        small(out, operations=makers[1:])


def test_functions_differ_by_code_and_defaults_and_objects_by_their_slots():
    made = [
        lambda x: x,
        lambda x: x + 1,
        lambda x, y=1: x,
        lambda x, y=2: x,
        lambda x, *, y=1: x,
        lambda x: -x,
    ]
    made += [Slotted(1, 2, 3), Slotted(1, 2, 4), Slotted(2, 2, 3).edits, Slotted(1, 2, 3).edits]
    assert len(set(map(digests.digest, made))) == len(made)
    assert digests.digest(Slotted(1, 2, 3)) == digests.digest(Slotted(1, 2, 3))


@pytest.mark.parametrize("bodies", [("1", "2"), ("len(range(1))", "len(range(2))")])
def test_a_class_that_was_edited_is_another(bodies):
    """Between two calls somebody changes what the class of an operation does."""
    made = []
    for body in bodies:
        place = {"__name__": "somewhere"}
        exec(f"class Own:\n    at = 1\n    def edits(self, n):\n        return {body}", place)
        made += [place["Own"](), dataclass(place["Own"])()]
        made[-2].held = 3  # one that holds something, one that does not
    found = [digests.digest(each) for each in made]
    assert found[0] != found[2]
    assert found[1] != found[3]


def test_all_that_a_class_of_somebodys_own_holds_counts():
    @dataclass(frozen=True)
    class Own:
        compared: int
        besides: int = field(compare=False)

    assert digests.digest(Own(1, 2)) != digests.digest(Own(1, 3))
    assert digests.digest(last_token()) == digests.digest(last_token())  # its mask is made anew each time


def test_what_cannot_be_told_from_another_is_refused_before_anything_is_run(tmp_path):
    def operation(vector, multiplier, positions):
        held = torch.Generator()
        return SimpleNamespace(edits=lambda n: held and Add(vector, multiplier, positions).edits(n))

    out = tmp_path / "table.parquet"
    with pytest.raises(ValueError, match=r"<torch._C.Generator object at .* where in memory .* leave out=…"):
        small(out, operations=[operation])
    assert list(tmp_path.iterdir()) == []


def test_whole_multipliers_are_the_same_sweep(tmp_path):
    out, unchecked = tmp_path / "table.parquet", inspect.unwrap(sweep)  # whole numbers are refused in tests
    given = {"controls": 1, "progress": False, "out": out}
    with pytest.raises(StoppedError):
        unchecked(MODEL, several(), questions(), multipliers=[1, 2], executor=stopping(2), **given)
    small(out, multipliers=[1.0, 2.0])


def test_settings_that_are_numpy_s_numbers_are_the_same_sweep():
    def plan(**settings):
        return json.dumps(plans.sweep_plan(MODEL, {}, 0, [], questions(), {"measure": "choice", **settings}))

    held = plan(seed=np.int64(1), mass=np.bool_(True), max_new_tokens=np.int64(2))
    assert held == plan(seed=1, mass=True, max_new_tokens=2)
    assert digests.digest([np.bool_(True), np.int64(1)]) == digests.digest([True, 1])


UNWRITABLE = {
    "mixed": [1, "a", 2, "b"] * 2,
    "intervals": pd.cut(range(8), 2),
    "paths": [Path("a"), Path("b")] * 4,
    "complex": [1j, 2j] * 4,
}  # fmt: skip


@pytest.mark.parametrize("kind", UNWRITABLE)
def test_factors_that_parquet_cannot_hold_are_told_before_anything_is_run(tmp_path, monkeypatch, kind):
    asked = questions(factors=pd.DataFrame({"kind": UNWRITABLE[kind]}))
    assert len(small(None, asked)) == 8 * 13
    monkeypatch.setattr(SWEEP, "_answers", None)
    with pytest.raises(ValueError, match=r"the column 'kind' cannot be written .* leave out=… away"):
        small(tmp_path / "table.parquet", asked)
    assert list(tmp_path.iterdir()) == []


def test_a_share_of_the_memory_is_what_it_was_when_the_sweep_was_begun(tmp_path, monkeypatch):
    seen, out, real = [], tmp_path / "table.parquet", asking.score_cells
    monkeypatch.setattr(SWEEP, "bytes_allowed", lambda *_: 10_000_000)
    broken_off(out, memory=0.5)
    monkeypatch.setattr(SWEEP, "bytes_allowed", lambda *_: 20_000_000)
    monkeypatch.setattr(
        asking, "score_cells", lambda *a, memory, **k: seen.append(memory) or real(*a, memory=memory, **k)
    )
    small(out, memory=0.5)
    assert set(seen) == {10_000_000}


def outlived(out):
    """A table with the chunks of the process that wrote it still there, as a kill right after leaves them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_removed", lambda folder: None)
        small(out)
    return out.with_name(f"{out.name}.cells")


def test_chunks_of_a_finished_sweep_go_unless_somebody_still_holds_them(tmp_path):
    out = tmp_path / "table.parquet"
    folder = outlived(out)
    before = kept(out)
    with FileLock(folder / module.LOCK), pytest.raises(FileExistsError, match="give another name"):
        small(out)
    assert kept(out) == before
    with pytest.raises(FileExistsError, match="give another name"):
        small(out)
    assert list(tmp_path.iterdir()) == [out]


def test_chunks_that_another_process_removes_meanwhile_are_no_error(tmp_path, monkeypatch):
    folder, unlink = outlived(tmp_path / "table.parquet"), Path.unlink

    def twice_gone(path, **options):
        unlink(path)
        return unlink(path, **options)

    monkeypatch.setattr(Path, "unlink", twice_gone)
    module._removed(folder)
    assert not folder.exists()


def test_where_nothing_is_finished_another_sweep_may_begin(tmp_path):
    out = tmp_path / "table.parquet"
    broken_off(out, after=0)
    assert list(tmp_path.iterdir()) == []
    small(out, multipliers=[5.0])


def damaged(path):
    content = path.read_bytes()
    path.write_bytes(content[:-200] + bytes([content[-200] ^ 1]) + content[-199:])


def torn(path):
    path.write_bytes(path.read_bytes()[:500])


def emptied(path):
    path.write_bytes(b"")


@pytest.mark.parametrize("harm", [damaged, torn, emptied])
def test_a_harmed_chunk_is_noticed_and_done_again(tmp_path, harm):
    out = tmp_path / "table.parquet"
    broken_off(out)
    harm(min((tmp_path / "table.parquet.cells").glob("*.parquet")))
    pd.testing.assert_frame_equal(small(out), small(tmp_path / "whole.parquet"), check_exact=True)


def test_a_chunk_of_another_sweep_is_noticed_and_done_again(tmp_path):
    out, other = tmp_path / "table.parquet", tmp_path / "other.parquet"
    broken_off(out)
    broken_off(other, seed=1)
    for path in (tmp_path / "table.parquet.cells").glob("00001-*"):
        path.unlink()
    for path in (tmp_path / "other.parquet.cells").glob("00001-*"):
        shutil.copy(path, tmp_path / "table.parquet.cells")
    pd.testing.assert_frame_equal(small(out), small(tmp_path / "whole.parquet"), check_exact=True)


@pytest.mark.parametrize("full", [1, 2, 3, 4, 5, 6])
def test_a_full_disk_is_told_with_the_file_its_size_and_what_is_kept(tmp_path, monkeypatch, full):
    """Each file in turn is the one for which there is no room: the writer's, the plan, a chunk, the table."""
    out, written, flush = tmp_path / "table.parquet", [], os.fsync

    def flushing(handle):
        path = os.readlink(f"/proc/self/fd/{handle}")
        if path.endswith(".part"):
            written.append(path)
            if len(written) == full:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return flush(handle)

    monkeypatch.setattr(os, "fsync", flushing)
    words = (
        r"(writer.json|plan.json|parquet) \([\d,]+ bytes\) could not be written: "
        r"No space left on device. .* go on"
    )
    with pytest.raises(OSError, match=words) as told:
        small(out)
    assert told.value.errno == errno.ENOSPC
    monkeypatch.undo()
    monkeypatch.setattr(chunks, "CELLS", 4)
    assert not out.exists()
    assert len(kept(out)) == max(full - 3, 0)  # after the writer's name and the plan
    assert not list(tmp_path.rglob("*.part"))
    pd.testing.assert_frame_equal(small(out), small(tmp_path / "whole.parquet"), check_exact=True)


def test_memory_is_what_it_was_when_the_sweep_was_begun(tmp_path, monkeypatch):
    """What is free decides what shares a batch, and so the last bits."""
    seen, out = [], tmp_path / "table.parquet"

    def free(bytes_free):
        monkeypatch.setattr(SWEEP, "bytes_allowed", lambda model, memory: memory or bytes_free)

    free(10_000_000)
    broken_off(out)
    free(20_000_000)
    real = asking.score_cells
    monkeypatch.setattr(
        asking, "score_cells", lambda *a, memory, **k: seen.append(memory) or real(*a, memory=memory, **k)
    )
    small(out)
    assert set(seen) == {10_000_000}


def test_other_packages_are_warned_of(tmp_path, monkeypatch):
    out = tmp_path / "table.parquet"
    broken_off(out)
    monkeypatch.setattr(module, "version", lambda package: "0.0")
    with pytest.warns(UserWarning, match=r"other packages than it was begun with: .*torch: .* against 0\.0"):
        small(out)


def test_texts_go_on_too(tmp_path):
    options = {"measure": "generate", "max_new_tokens": 3}
    out = tmp_path / "table.parquet"
    broken_off(out, **options)
    table = small(out, **options)
    pd.testing.assert_frame_equal(table, small(tmp_path / "whole.parquet", **options), check_exact=True)
    pd.testing.assert_frame_equal(table, small(None, **options))
