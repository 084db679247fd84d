"""A sweep through a local Ray cluster of two workers: the same table, whatever happens to a worker."""

import os
import signal
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import torch

from tl_steer.errors import LostWorkersError, NonFiniteError
from tl_steer.interventions import Add
from tl_steer.models import identify
from tl_steer.prompts import ChoiceQuestions
from tl_steer.sweeps import ray_cluster
from tl_steer.sweeps._sweep import sweep
from tl_steer.sweeps.chunks import in_order
from tl_steer.sweeps.ray_cluster import _count, _Worker, ray_executor

from .conftest import assert_raises
from .test_sweep import MODEL, several
from .tiny_model import make_model, word_tokenizer

pytest.importorskip("ray", reason="Ray is not installed (pip install 'tl-steer[ray]')")
pytestmark = pytest.mark.integration
VECTORS = several()
QUESTIONS = ChoiceQuestions(
    ["a b c :", "d :", "e f g h :", "i j :"], [(" yes", " no")] * 4, answers=[0, 1] * 2
)
MULTIPLIERS = [float(number) for number in range(-20, 20)]
HERE = os.getpid()


@pytest.fixture(scope="module", autouse=True)
def cluster(tmp_path_factory):
    """Two workers on this machine's loopback; files and the authentication token in a folder of its own."""
    folder = tmp_path_factory.mktemp("ray")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(folder))
        import ray

        # This module's functions and classes travel as they are: a worker cannot import tests.
        ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
        ray.init(
            num_cpus=2, include_dashboard=False, object_store_memory=80 * 2**20, log_to_driver=False,
            logging_level="error", _temp_dir=str(folder), _node_ip_address="127.0.0.2",
        )  # fmt: skip
        yield
        ray.shutdown()


def swept(executor=in_order, **options):
    options = {"multipliers": MULTIPLIERS, "controls": 1, "control_layers": "all"} | options
    return sweep(MODEL, VECTORS, QUESTIONS, executor=executor, progress=False, **options)


@dataclass(frozen=True, eq=False)
class Deadly:
    """Adds a vector, and kills the worker that does; so often the vector's, and so often the control's."""

    vector: Any
    multiplier: float
    positions: Any
    marks: Path
    kills: int

    def edits(self, n_layers):
        dead = len(list(self.marks.glob(f"killed-{self.vector.method}-*")))
        if os.getpid() != HERE and self.multiplier == 7 and self.vector.layer == 1 and dead < self.kills:
            (self.marks / f"killed-{self.vector.method}-{dead}").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return Add(self.vector, self.multiplier, self.positions).edits(n_layers)


def deadly(marks, kills):
    def adds(vector, multiplier, positions):
        return Deadly(vector, multiplier, positions, marks, kills)

    return adds


@contextmanager
def taken(cpus):
    """So many of the cluster's CPUs are in use by others."""
    from ray.util import placement_group, remove_placement_group

    group = placement_group([{"CPU": cpus}])
    assert group.wait(60)
    try:
        yield
    finally:
        remove_placement_group(group)


@contextmanager
def within(seconds):
    """What hangs is an error."""

    rung = []

    def stop(*_):
        rung.append(True)
        raise KeyboardInterrupt  # the one that ends Ray's waiting

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    except KeyboardInterrupt as error:
        if not rung:
            raise
        raise AssertionError(f"it hangs: {seconds} seconds") from error
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def test_two_workers_give_the_table_that_one_process_gives_and_load_the_model_once_each(tmp_path):
    def load():
        with (tmp_path / str(os.getpid())).open("a") as file:
            file.write("loaded\n")
        # A worker that starts first could answer all before the other is there.
        until = time.monotonic() + 100
        while len(list(tmp_path.iterdir())) < 2 and time.monotonic() < until:
            time.sleep(0.1)
        return MODEL

    with within(seconds=400):
        table = swept(ray_executor(workers=2, load=load))
    pd.testing.assert_frame_equal(table, swept(), rtol=1e-6, atol=1e-6)
    assert [file.read_text() for file in tmp_path.iterdir()] == ["loaded\n"] * 2
    assert str(HERE) not in {file.name for file in tmp_path.iterdir()}


def test_each_chunk_s_killed_worker_counts_for_itself_and_the_table_is_the_same(tmp_path):
    options = {"measure": "generate", "max_new_tokens": 4, "multipliers": MULTIPLIERS[20:]}
    # One worker is lost twice, with another chunk each time.
    once = ray_executor(workers=1, retries=1)
    table = swept(once, operations=[deadly(tmp_path, kills=1)], **options)
    assert len(list(tmp_path.iterdir())) == 2
    whole = swept(operations=[deadly(tmp_path, kills=0)], **options)
    pd.testing.assert_frame_equal(table, whole, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_conditions_that_kill_every_worker_are_given_up_and_the_sweep_can_continue(workers, tmp_path):
    marks, out = tmp_path / "marks", tmp_path / "table.parquet"
    marks.mkdir()
    options = {"operations": [deadly(marks, kills=9)], "multipliers": MULTIPLIERS[20:]}
    with pytest.raises(LostWorkersError, match=r"the last time with: The actor .*out=….* call it again"):
        swept(ray_executor(workers=workers, retries=1), out=out, **options)
    assert len(list(marks.iterdir())) >= 2  # once, and once again
    assert not out.exists()
    # Without Ray, and with what was kept.
    table = swept(out=out, **options)
    pd.testing.assert_frame_equal(table, swept(**options), rtol=1e-6, atol=1e-6)
    assert out.exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 1}, r"the sweep, made on tiny, .*the weights differ.*load="),
        ({"dtype": torch.bfloat16}, r"the sweep's model is in torch.float32, .* torch.bfloat16"),
    ],
)
def test_a_worker_that_loads_another_model_is_rejected(changes, message):
    worker = _Worker(None, lambda: make_model(word_tokenizer(), **changes), identify(MODEL), "torch.float32")
    assert_raises(message, worker.run, lambda model, conditions: None, 0, ())


def test_an_error_in_a_worker_is_the_error_here():
    with pytest.raises(NonFiniteError, match=r"Add\(multiplier=1e\+38\) at layer 0"):
        swept(ray_executor(workers=1), multipliers=[1.0, 1e38], controls=0)


def test_a_worker_whose_place_is_taken_gets_no_chunk_and_the_others_answer_all():
    options = {"multipliers": MULTIPLIERS[:12], "controls": 0}
    with taken(cpus=1), within(seconds=400):
        table = swept(ray_executor(workers=2), **options)
    pd.testing.assert_frame_equal(table, swept(**options), rtol=1e-6, atol=1e-6)


def test_where_no_worker_can_start_it_is_said_and_not_waited_for_ever(monkeypatch):
    monkeypatch.setattr(ray_cluster, "START_TIMEOUT", 0.5)
    message = "waited 0.5 seconds for any of the 2 Ray workers to start"
    with taken(cpus=2), within(seconds=60):
        assert_raises(message, swept, ray_executor(workers=2), error=TimeoutError)


def test_more_than_the_cluster_has_is_rejected():
    message = "has 2 CPUs and 0 GPUs on 1 machines, and a worker needs 1 and 1"
    assert_raises(message, swept, ray_executor(gpus=1))
    with within(seconds=60):
        assert_raises("it has resources for 2, not for 3", swept, ray_executor(workers=3))
    assert_raises("workers=0: give at least 1", ray_executor, workers=0)


@pytest.mark.parametrize(
    ("machines", "resources", "expected"),
    [
        ([{"CPU": 3.0}, {"CPU": 3.0}], (None, 2, 0), 2),  # and not 6 // 2
        ([{"CPU": 3.0}, {"CPU": 3.0}], (2, 2, 0), 2),
        ([{"CPU": 9.0, "GPU": 1.0}, {"CPU": 1.0, "GPU": 9.0}], (None, 1, 1), 2),
        ([{"CPU": 9.0}, {"CPU": 9.0, "GPU": 1.0}], (None, 0, 0.1), 10),  # and not 1 // 0.1
        ([{"CPU": 1.0}], (7, 0, 0), 7),
        ([{"CPU": 3.0}] * 2, (3, 2, 0), r"6 CPUs and 0 GPUs on 2 machines, .* resources for 2, not for 3\."),
        ([{"CPU": 3.0}] * 2, (None, 4, 0), r"resources for 0, not for 1\."),
        ([{"CPU": 3.0}] * 2, (None, 0, 0), "takes no CPU and no GPU fits everywhere: say how many"),
    ],
)
def test_workers_are_counted_machine_by_machine(machines, resources, expected):
    nodes = [{"Alive": True, "Resources": machine} for machine in machines]
    lost = {"Alive": False, "Resources": {"CPU": 99.0, "GPU": 99.0}}
    ray = SimpleNamespace(nodes=lambda: [lost, *nodes])
    if isinstance(expected, int):
        assert _count(ray, *resources) == expected
    else:
        assert_raises(expected, _count, ray, *resources)


def test_without_an_address_no_cluster_that_runs_here_is_joined(monkeypatch):
    import ray

    addresses = []

    def init(address, **_):
        addresses.append(address)
        raise ConnectionError

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", init)
    for address in (None, "auto"):
        with pytest.raises(ConnectionError):
            swept(ray_executor(address))
    assert addresses == ["local", "auto"]


def test_without_ray_the_remedy_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'tl-steer\[ray\]'"):
        swept(ray_executor())
