"""Executor that runs a sweep's chunks on several machines, through Ray."""

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from .._util.validation import checked
from ..errors import LostWorkersError
from ..models import ModelIdentity, exclusive, identify
from .chunks import Chunks, Executor, Measure
from .conditions import ChunkResult, Condition

logger = logging.getLogger(__name__)

START_TIMEOUT = 600  # seconds until the first worker has started; a cluster may be adding machines
UNITS = 10_000  # per CPU or GPU: Ray's own precision, in which nothing is rounded


@checked
def ray_executor(
    address: str | None = None,
    *,
    load: Callable[[], Any] | None = None,
    workers: int | None = None,
    cpus: int | float = 1,
    gpus: int | float = 0,
    retries: int = 3,
    **init: Any,
) -> Executor:
    """Executor for `sweep` on a Ray cluster: `sweep(…, executor=ray_executor("ray-head:6379", gpus=1))`.

    Each worker is a process with a copy of the model that runs one chunk of conditions at a time. A lost
    worker is restarted and repeats its chunk. On equal hardware with as many threads, the table is the same
    to the bit.

    Args:
        address: of a running cluster, "auto" for the one this machine belongs to; `None` uses the Ray that
            this process is connected to, else starts one here for the duration of the sweep.
        load: loads the sweep's model in a worker, `lambda: ts.load_model("llama-2-13b-chat", device="cuda")`.
            By default the sweep's model, with its device, is sent to each worker: for small models.
        workers: by default as many as the cluster's machines have resources for.
        cpus, gpus: per worker; may be a fraction of a GPU.
        retries: how often a chunk whose worker was lost is repeated.
        init: further arguments of `ray.init`, if Ray is started or connected here.

    Raises:
        ModuleNotFoundError: Ray is not installed (`pip install 'tl-steer[ray]'`).
        ValueError: no workers, or more than the cluster has resources for.
        ModelMismatchError: `load` returns another model than the sweep's.
        LostWorkersError: a chunk's worker was lost more often than `retries`.
        TimeoutError: no worker has started within ten minutes.

    Ray's processes listen on all addresses of a machine, and anyone who can reach them can run code there:
    leave its token authentication on, which is the default.
    """
    if workers is not None and workers < 1:
        raise ValueError(f"workers={workers}: give at least 1, or None for as many as fit.")

    def execute(model: Any, measure: Measure, chunks: Chunks) -> Iterator[tuple[int, ChunkResult]]:
        try:
            import ray
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError("Ray is not installed: pip install 'tl-steer[ray]'.") from error
        is_own = not ray.is_initialized()
        if is_own:
            quiet = {"log_to_driver": False} | ({} if address else {"include_dashboard": False})
            ray.init(address or "local", **quiet | init)  # without an address Ray joins any running cluster
        try:
            count = min(_count(ray, workers, cpus, gpus), len(chunks))
            worker = ray.remote(_Worker).options(
                num_cpus=cpus,
                num_gpus=gpus,
                max_restarts=-1,  # counts all chunks of a worker together: limited per chunk instead
                max_task_retries=retries,
            )
            with exclusive(model):  # without the hooks of another thread's `steer`
                sent = ray.put(model) if load is None else None
            identity, dtype = identify(model), str(model.cfg.dtype)
            pool = [worker.remote(sent, load, identity, dtype) for _ in range(count)]
            logger.info("%d chunks of conditions for %d Ray workers", len(chunks), count)
            yield from _results(ray, pool, ray.put(measure), chunks)
        finally:
            if is_own:
                ray.shutdown()

    return execute


class _Worker:
    """A process of the cluster, with the model in its memory."""

    def __init__(
        self, model: Any, load: Callable[[], Any] | None, identity: ModelIdentity, dtype: str
    ) -> None:
        self.model, self.load, self.identity, self.dtype = model, load, identity, dtype

    def ready(self) -> None:
        """Return when the worker has started; the model is loaded later."""

    def run(self, measure: Measure, number: int, conditions: Sequence[Condition]) -> tuple[int, ChunkResult]:
        """A chunk's number and result; the first call loads the model."""
        if self.model is None:
            model = self.load()
            self.identity.require(identify(model), what="the sweep", hint=" See load=… of ray_executor.")
            if str(model.cfg.dtype) != self.dtype:
                raise ValueError(
                    f"the sweep's model is in {self.dtype}, load=… returned one in {model.cfg.dtype}."
                )
            self.model = model
        return number, measure(self.model, conditions)


def _results(
    ray: Any, pool: Sequence[Any], measure: Any, chunks: Chunks
) -> Iterator[tuple[int, ChunkResult]]:
    """Each chunk's result as it arrives; the workers are ended afterwards."""
    try:
        yield from _distributed(ray, pool, measure, chunks)
    except ray.exceptions.RayTaskError as error:  # raised by a chunk, as without Ray
        raise error.cause from error
    except ray.exceptions.RayActorError as error:
        raise LostWorkersError(
            "a chunk of conditions was given up: its worker was lost at each try, the last time with: "
            f"{str(error).strip().splitlines()[0]} If the sweep has out=…, finished chunks are kept: call it "
            "again to go on. If a machine's memory ran out, give each worker more of it (cpus=…, gpus=…)."
        ) from error
    finally:
        for worker in pool:
            ray.kill(worker)


def _distributed(
    ray: Any, pool: Sequence[Any], measure: Any, chunks: Chunks
) -> Iterator[tuple[int, ChunkResult]]:
    """Give a chunk to each worker that has started or finished its previous one; yield the results."""
    waiting, has_started = list(chunks.items()), False
    running = {worker.ready.remote(): worker for worker in pool}
    missing = len(waiting)
    while missing:
        done, _ = ray.wait(list(running), timeout=None if has_started else START_TIMEOUT)
        if not done:
            raise TimeoutError(
                f"waited {START_TIMEOUT} seconds for any of the {len(pool)} Ray workers to start: the "
                "cluster's resources are in use (see `ray status`). Ask for less (cpus=…, gpus=…), or wait."
            )
        has_started, worker = True, running.pop(done[0])
        result = ray.get(done[0])
        if waiting:
            running[worker.run.remote(measure, *waiting.pop(0))] = worker
        else:
            ray.kill(worker)  # a restarting worker, with a chunk to repeat, may be waiting for its resources
        if result is not None:
            missing -= 1
            yield result


def _count(ray: Any, workers: int | None, cpus: int | float, gpus: int | float) -> int:
    """Number of workers; `ValueError` if the cluster lacks the resources, or nothing limits the number."""
    needed = {name: round(amount * UNITS) for name, amount in (("CPU", cpus), ("GPU", gpus)) if amount}
    if not needed:
        if workers is None:
            raise ValueError("a worker that takes no CPU and no GPU fits everywhere: say how many workers.")
        return workers
    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    most = sum(
        min(round(machine.get(name, 0) * UNITS) // max(amount, 1) for name, amount in needed.items())
        for machine in machines
    )
    if most < (workers or 1):
        total = {name: sum(machine.get(name, 0) for machine in machines) for name in ("CPU", "GPU")}
        raise ValueError(
            f"the cluster has {total['CPU']:g} CPUs and {total['GPU']:g} GPUs on {len(machines)} machines, "
            f"and a worker needs {cpus:g} and {gpus:g} of one: it has resources for {most}, not for "
            f"{workers or 1}. Ask for less (cpus=…, gpus=…), or for fewer workers."
        )
    return workers or most
