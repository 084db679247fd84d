"""The benchmark for accelerators, on the CPU and on a device that is not there, with a small random model."""

import json
import re
import warnings

import pytest
import torch

import tl_steer as ts
from tl_steer.engine.shared.decoding import Decoder
from tl_steer.engine.shared.forward import LayerwisePass

from .benchmarks.device import bench
from .benchmarks.device.__main__ import RESULTS, main
from .benchmarks.device.waits import host_waits
from .benchmarks.jobs import OURS, PLAIN
from .conftest import random_hf_model
from .fake_devices import KIND, FakeDevices

SWEEPS = ("choice-last", "choice-all", "generate-sweep")
EXPECTED = {"loading": {OURS}, "capture": {PLAIN, OURS}} | {
    name: {"transformers", PLAIN, OURS} for name in (*SWEEPS, "generate-one")
}


def run(folder, *options, device="cpu"):
    """Exit status, and records by part."""
    status = main([str(folder), "--shape", "tiny", "--device", device, "--dtype", "float32", *options])
    return status, json.loads((folder / RESULTS).read_text())["parts"]


@pytest.fixture
def only_last(monkeypatch):
    """One job: the choice sweep at the last token."""
    jobs_of = bench.jobs_of
    monkeypatch.setattr(bench, "jobs_of", lambda *args, **options: jobs_of(*args, **options)[1:2])


@pytest.mark.integration
def test_every_contender_of_every_job_equals_the_plain_loop(tmp_path, capsys):
    status, parts = run(tmp_path)
    assert status == 0
    assert set(parts) == {"tiny, bridge", "tiny, hooked"}
    lines = capsys.readouterr().out.splitlines()
    for part, records in parts.items():
        contenders = {}
        for record in records:
            contenders.setdefault(record["job"], set()).add(record["contender"])
            if record["job"] != "loading" and record["contender"] != PLAIN:
                assert record["difference"]["value"] < 1e-5, record
                assert record["difference"].get("equal_texts", 1) == 1
            columns = f"| {part} | {record['job']} | {record['contender']} |"
            (line,) = (each for each in lines if each.startswith(columns))
            assert f"{record['seconds']:.2f}" in line
        assert contenders == EXPECTED
        (loading,) = (record for record in records if record["job"] == "loading")
        assert loading["path"] == "shared"
        copied = loading["copied_gib"] / loading["weights_gib"]
        assert copied < 0.02 if part == "tiny, bridge" else copied > 0.9


@pytest.mark.integration
def test_the_script_mixes_no_devices(tmp_path, only_last):
    with FakeDevices():
        status, parts = run(tmp_path, "--backend", "bridge", device=f"{KIND}:0")
    assert status == 0
    assert [record["contender"] for record in parts["tiny, bridge"]] == ["transformers", OURS, PLAIN, OURS]


@pytest.mark.integration
def test_a_wrong_result_is_a_problem(tmp_path, only_last, monkeypatch):
    alone = bench.alone

    def with_longer_vectors(setup, job):
        setup.vectors = 1.01 * setup.vectors
        return alone(setup, job)

    monkeypatch.setattr(bench, "alone", with_longer_vectors)
    status, parts = run(tmp_path, "--backend", "bridge")
    problems = {each["contender"]: each.get("problem") for each in parts["tiny, bridge"]}
    assert problems == {"transformers": "differs from the plain loop", PLAIN: None, OURS: None}
    assert status == 1


@pytest.mark.integration
def test_a_failure_and_a_deadline_leave_the_rest(tmp_path, only_last, monkeypatch):
    monkeypatch.setattr(bench, "alone", lambda _setup, _job: 1 / 0)
    for minutes, expected in (("8", [True, False, False, False]), ("0", [True, False, True, True])):
        status, parts = run(tmp_path, "--backend", "bridge", "--minutes", minutes)
        assert ["problem" in record for record in parts["tiny, bridge"]] == expected
        assert status == 1
    assert "time is up" in parts["tiny, bridge"][-1]["problem"]


def test_waits_are_counted_by_phase_and_line(monkeypatch):
    model = ts.load_model("tiny", hf_model=random_hf_model("llama"), device="cpu")
    ts.generate(model, [[5, 6]], max_new_tokens=4, return_tokens=True)  # examines the model
    modes = []
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)
    for owner in (LayerwisePass, Decoder):

        def waiting(self, *args, attend=owner.attend):
            warnings.warn("called a synchronizing CUDA operation", stacklevel=1)
            return attend(self, *args)

        monkeypatch.setattr(owner, "attend", waiting)
    waits = host_waits(lambda: ts.generate(model, [[5, 6]], max_new_tokens=4, return_tokens=True))
    n_layers, line = model.cfg.n_layers, r"(layer|decode step): engine/shared/packed_hooked.py:\d+"
    assert all(re.fullmatch(line, key) for key in waits)
    assert sorted(waits.values()) == [n_layers, 3 * n_layers]
    assert modes == ["warn", "default"]
