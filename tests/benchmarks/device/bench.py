"""All jobs on one random model, by transformers alone, by the plain loop and by tl_steer."""

import argparse
import gc
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

import tl_steer as ts
from tl_steer.engine.paths import EXACT, ROUNDED, explain
from tl_steer.models.equality import cause_of

from .. import driver, ours
from ..jobs import OURS, PLAIN, VECTORS, Job
from ..measuring import Task, measure, weights_mib
from .comparison import Arrays, difference
from .jobs import ALONE, alone, id_texts, jobs_of, materials
from .models import SHAPES, random_model, trained_tokenizer
from .waits import host_waits

NAME = "llama-2-chat with random weights"  # the chat format goes by it
Records = list[dict[str, Any]]


def run_jobs(args: argparse.Namespace) -> Iterator[tuple[str, Records]]:
    """By shape and backend, the records so far, after each measurement."""
    deadline = time.monotonic() + 60 * args.minutes
    for backend in args.backend:
        for shape in args.shape:
            driver.log(f"{shape}, {backend}")
            with tempfile.TemporaryDirectory(prefix="device-") as folder:
                bench = Bench(shape, torch.device(args.device), getattr(torch, args.dtype), Path(folder))
                for records in bench.measured(backend, deadline):
                    yield f"{shape}, {backend}", records
            del bench
            gc.collect()  # the next model needs its memory


class Bench:
    """A model with the jobs, prompts, vectors, outputs and records."""

    def __init__(self, shape: str, device: torch.device, dtype: torch.dtype, folder: Path) -> None:
        self.device, self.folder, self.allowed = device, folder, EXACT if dtype == torch.float32 else ROUNDED
        self.model = random_model("Llama", SHAPES[shape], device, dtype)
        self.tokenizer = trained_tokenizer("Llama")
        n_layers, width = self.model.config.num_hidden_layers, self.model.config.hidden_size
        vectors = torch.randn(n_layers, width, generator=torch.Generator().manual_seed(0))
        np.save(folder / VECTORS, vectors.numpy())
        self.vectors = vectors.to(device, dtype)
        self.jobs = jobs_of(n_layers, is_trial=shape == "tiny")
        self.data = materials(self.tokenizer, max(job.prompts for job in self.jobs))
        self.outputs: dict[tuple[str, str], Arrays] = {}
        self.records: Records = []

    def measured(self, backend: str, deadline: float) -> Iterator[Records]:
        """The records after each measurement; transformers alone first, since a bridge changes its model."""
        for job in self.jobs:
            if ALONE in job.peers:
                yield self._measured(job, ALONE, deadline)
        try:
            self._load(backend)
        except Exception as error:  # a conversion may not fit the memory
            self.records.append({"job": "loading", "contender": OURS, "problem": cause_of(error)})
            yield self.records
            return
        for job in self.jobs:
            for contender in (PLAIN, OURS):
                yield self._measured(job, contender, deadline)

    def _load(self, backend: str) -> None:
        """Put the model into TransformerLens, and record the memory of weights that were copied."""
        weights, begun = {each.data_ptr() for each in self.model.parameters()}, time.perf_counter()
        options = {"hf_model": self.model, "tokenizer": self.tokenizer, "device": self.device}
        self.model = ts.load_model(NAME, backend=backend, **options)
        record = {"job": "loading", "contender": OURS, "seconds": time.perf_counter() - begun}
        copied = [each for each in self.model.parameters() if each.data_ptr() not in weights]
        record["copied_gib"] = sum(each.numel() * each.element_size() for each in copied) / 2**30
        record["weights_gib"] = weights_mib(self.model) / 1024
        self.records.append(record | {"path": explain(self.model)})
        self.model.tokenizer.decode = lambda ids, **_: id_texts([ids])[0]

    def _measured(self, job: Job, contender: str, deadline: float) -> Records:
        record: dict[str, Any] = {"job": job.name, "contender": contender}
        self.records.append(record)
        if time.monotonic() > deadline:
            record["problem"] = "not run: the time is up"
            return self.records
        try:
            record |= self._timed(job, contender)
            self._compare(job)
        except Exception as error:  # the other measurements still count
            record["problem"] = cause_of(error)
        driver.log(f"  {job.name}, {contender}: {record.get('problem') or round(record['seconds'], 2)}")
        return self.records

    @torch.no_grad()
    def _timed(self, job: Job, contender: str) -> dict[str, Any]:
        """Seconds (median), peak memory and, of tl_steer, where the host waited for the device."""
        task = self._task(job, contender)
        is_cuda, output = self.device.type == "cuda", self.folder / "output.npz"

        def synchronized(call: Callable[[], Any]) -> Any:
            result = call()
            if is_cuda:
                torch.cuda.synchronize()
            return result

        def warm_up() -> None:
            synchronized(task.warm_up)
            if is_cuda:
                torch.cuda.empty_cache()  # what others left counts as used where memory is budgeted
                torch.cuda.reset_peak_memory_stats()

        timed = replace(task, warm_up=warm_up, run=lambda: synchronized(task.run))
        runs = [measure(timed, self.model, output) for _ in range(1 if contender == PLAIN else job.repeats)]
        self.outputs[job.name, contender] = dict(np.load(output))
        record = runs[-1] | {"all_seconds": [each["seconds"] for each in runs]}
        for name in ("seconds", "seconds_per_condition"):
            record[name] = statistics.median(each[name] for each in runs)
        peak = torch.cuda.max_memory_allocated() if is_cuda else 2**20 * record["running_peak_mib"]
        record["peak_gib"] = peak / 2**30
        if is_cuda and contender == OURS:
            record["waits"] = host_waits(task.run)
        return record

    def _task(self, job: Job, contender: str) -> Task:
        if contender == ALONE:
            return alone(self, job)
        return ours.TASKS[job.measure](self.model, job, contender, self.data, self.folder)

    def _compare(self, job: Job) -> None:
        """Compare the outputs of a job with the plain loop's, once that has run."""
        plain = self.outputs.get((job.name, PLAIN))
        for record in self.records if plain else ():
            output = self.outputs.get((record["job"], record["contender"]))
            is_due = record["job"] == job.name and record["contender"] != PLAIN and "difference" not in record
            if output is not None and is_due:
                record["difference"] = difference(self, job, output, plain)
                if not record["difference"]["value"] <= record["difference"]["allowed"]:
                    record["problem"] = "differs from the plain loop"
