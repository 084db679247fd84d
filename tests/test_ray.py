"""A sweep through a local Ray cluster of two workers: the same table, whatever happens to a worker."""

import os
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from tl_steer.directions import SteeringVectors
from tl_steer.evaluation.chunks import in_order
from tl_steer.evaluation.ray_cluster import LostWorkersError, _Worker, ray_executor
from tl_steer.evaluation.sweep import sweep
from tl_steer.interventions import Add, NonFiniteError
from tl_steer.models import identify
from tl_steer.prompts import ChoiceQuestions

from .tiny_model import made_vector, make_model, word_tokenizer

pytest.importorskip("ray", reason="Ray is not installed (pip install 'tl-steer[ray]')")
MODEL = make_model(word_tokenizer())
VECTORS = SteeringVectors(
    torch.stack([made_vector(MODEL, layer, seed=layer).values for layer in range(3)]),
    (0, 1, 2),
    "resid_post",
    "made",
    torch.full((3,), 10.0),
    identify(MODEL),
)
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
            num_cpus=2,
            include_dashboard=False,
            object_store_memory=80 * 2**20,
            log_to_driver=False,
            logging_level="error",
            _temp_dir=str(folder),
            _node_ip_address="127.0.0.2",
        )
        yield
        ray.shutdown()


def swept(executor=in_order, **options):
    options = {"multipliers": MULTIPLIERS, "controls": 1, "progress": False} | options
    return sweep(MODEL, VECTORS, QUESTIONS, executor=executor, **options)


@dataclass(frozen=True, eq=False)
class Deadly:
    """Adds a vector, and kills the worker that does, until there are as many marks as it may kill."""

    vector: Any
    multiplier: float
    positions: Any
    marks: Path
    kills: int

    def edits(self, n_layers):
        dead = len(list(self.marks.iterdir()))
        if os.getpid() != HERE and self.multiplier == 7 and self.vector.layer == 1 and dead < self.kills:
            (self.marks / f"killed-{dead}").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return Add(self.vector, self.multiplier, self.positions).edits(n_layers)


def deadly(marks, kills):
    def adds(vector, multiplier, positions):
        return Deadly(vector, multiplier, positions, marks, kills)

    return adds


def test_two_workers_give_the_table_that_one_process_gives_and_load_the_model_once_each(tmp_path):
    def load():
        with (tmp_path / str(os.getpid())).open("a") as file:
            file.write("loaded\n")
        return MODEL

    table = swept(ray_executor(workers=2, load=load))
    pd.testing.assert_frame_equal(table, swept(), rtol=1e-6, atol=1e-6)
    assert [file.read_text() for file in tmp_path.iterdir()] == ["loaded\n"] * 2
    assert str(HERE) not in {file.name for file in tmp_path.iterdir()}


def test_a_killed_worker_s_texts_are_written_again_and_the_table_is_the_same(tmp_path):
    options = {"measure": "generate", "max_new_tokens": 4}
    table = swept(ray_executor(workers=2), operations=[deadly(tmp_path, kills=1)], **options)
    assert [mark.name for mark in tmp_path.iterdir()] == ["killed-0"]
    whole = swept(operations=[deadly(tmp_path, kills=0)], **options)
    pd.testing.assert_frame_equal(table, whole, rtol=1e-6, atol=1e-6)


def test_cells_that_kill_every_worker_are_given_up_and_what_is_finished_is_gone_on_with(tmp_path):
    marks, out = tmp_path / "marks", tmp_path / "table.parquet"
    marks.mkdir()
    with pytest.raises(LostWorkersError, match=r"out=…: call it again to go on"):
        swept(ray_executor(workers=2, retries=1), operations=[deadly(marks, kills=9)], out=out)
    assert len(list(marks.iterdir())) >= 2  # once, and once again
    assert not out.exists()
    # Without Ray, and with what was kept.
    table = swept(operations=[deadly(marks, kills=9)], out=out)
    pd.testing.assert_frame_equal(table, swept(operations=[deadly(marks, kills=9)]), rtol=1e-6, atol=1e-6)
    assert out.exists()


@pytest.mark.parametrize(
    ("other", "told"),
    [
        ({"seed": 1}, r"the sweep, made on tiny, .*the weights differ.*load="),
        ({"dtype": torch.bfloat16}, r"the sweep's model is in torch.float32, and .* torch.bfloat16"),
    ],
)
def test_a_worker_that_loads_another_model_is_refused(other, told):
    worker = _Worker(None, lambda: make_model(word_tokenizer(), **other), identify(MODEL), "torch.float32")
    with pytest.raises(ValueError, match=told):
        worker.answer(lambda model, cells: None, 0, ())


def test_an_error_in_a_worker_is_the_error_here():
    with pytest.raises(NonFiniteError, match=r"Add\(multiplier=1e\+38\) at layer 0"):
        swept(ray_executor(workers=2), multipliers=[1.0, 1e38], controls=0)


def test_more_than_the_cluster_has_is_refused():
    with pytest.raises(ValueError, match=r"has 2 CPUs and 0 GPUs, and a worker wants 1 and 1"):
        swept(ray_executor(gpus=1))
    with pytest.raises(ValueError, match=r"workers=0: give at least 1"):
        ray_executor(workers=0)


def test_without_ray_the_remedy_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'tl-steer\[ray\]'"):
        swept(ray_executor())
