"""A sweep's chunks on several machines, through Ray."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from .._util.validation import checked
from ..errors import LostWorkersError
from ..models import ModelIdentity, exclusive, identify
from .chunks import Answers, Ask, Executor
from .conditions import Cell

logger = logging.getLogger(__name__)

STARTING = 600  # seconds within which a first worker has to be there; a cluster may be adding machines


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
    """Let a Ray cluster answer a sweep: `sweep(…, executor=ray_executor("ray-head:6379", gpus=1))`.

    Each worker is a process that holds one copy of the model and answers a chunk of cells at a time. A worker
    that is lost is started anew, and its chunk is done again; the table is the same, in the same order, to
    the bit where hardware and threads are alike. A worker whose place is still taken by others joins in when
    it has started.

    Args:
        address: of a running cluster, "auto" for the one this machine belongs to; `None` uses the Ray this
            process is connected to, else starts one here, for as long as the sweep takes, whatever else
            runs on this machine.
        load: gives the model in a worker, `lambda: ts.load_model("llama-2-13b-chat", device="cuda")`; it has
            to be the sweep's own (the identity is compared). By default the sweep's model is sent to every
            worker, as it is and for the device it is on: for small ones.
        workers: how many; by default as many as the cluster's machines have room for, counted one by one.
        cpus, gpus: what a worker takes of its machine; may be a part of a GPU.
        retries: how often a chunk is begun again whose worker was lost; each chunk counts for itself.
        init: further arguments of `ray.init`, where this starts or connects.

    Raises:
        ModuleNotFoundError: Ray is not installed (`pip install 'tl-steer[ray]'`).
        ValueError: no workers, or more than the cluster has room for.
        ModelMismatchError: `load` gives another model than the sweep's.
        LostWorkersError: a chunk's worker was lost more often than `retries`; it says of what.
        TimeoutError: no worker has started within ten minutes.

    Ray's processes listen on all of a machine's addresses, and whoever can talk to them can run code there:
    leave its token authentication on, which is the default.
    """
    if workers is not None and workers < 1:
        raise ValueError(f"workers={workers}: give at least 1, or None for as many as there is room for.")

    def execute(model: Any, ask: Ask, chunks: Mapping[int, Sequence[Cell]]) -> Iterator[tuple[int, Answers]]:
        ray = _ray()
        own = not ray.is_initialized()
        if own:
            quiet = {"log_to_driver": False} | ({} if address else {"include_dashboard": False})
            ray.init(address or "local", **quiet | init)  # without an address it would join what runs here
        try:
            count = min(_count(ray, workers, cpus, gpus), len(chunks))
            options = {
                "num_cpus": cpus,
                "num_gpus": gpus,
                "max_restarts": -1,  # as often as the chunks allow: this counts all that a worker ever did
                "max_task_retries": retries,
            }
            worker = ray.remote(_Worker).options(**options)
            with exclusive(model):  # without the hooks of another thread's steer
                given = ray.put(model) if load is None else None
            identity, precision = identify(model), str(model.cfg.dtype)
            pool = [worker.remote(given, load, identity, precision) for _ in range(count)]
            logger.info("%d chunks of cells for %d Ray workers", len(chunks), count)
            yield from _answers(ray, pool, ray.put(ask), chunks)
        finally:
            if own:
                ray.shutdown()

    return execute


class _Worker:
    """One process of the cluster, with the model in its memory."""

    def __init__(
        self, model: Any, load: Callable[[], Any] | None, identity: ModelIdentity, precision: str
    ) -> None:
        self.model, self.load = model, load
        self.identity, self.precision = identity, precision

    def ready(self) -> None:
        """Answered as soon as the worker has a place and has started; the model is not waited for."""

    def answer(self, ask: Ask, number: int, cells: Sequence[Cell]) -> tuple[int, Answers]:
        """A chunk's number and answers; the first one waits for the model."""
        if self.model is None:
            self.model = self._loaded()
        return number, ask(self.model, cells)

    def _loaded(self) -> Any:
        model = self.load()
        self.identity.require(identify(model), what="the sweep", hint=" See load=… of ray_executor.")
        if str(model.cfg.dtype) != self.precision:
            raise ValueError(
                f"the sweep's model is in {self.precision}, and what load=… gave a worker in "
                f"{model.cfg.dtype}: load the same."
            )
        return model


def _answers(
    ray: Any, pool: Sequence[Any], ask: Any, chunks: Mapping[int, Sequence[Cell]]
) -> Iterator[tuple[int, Answers]]:
    """Each chunk's answers as they come; the pool's workers die with the list that holds them."""
    try:
        yield from _handed_out(ray, pool, ask, chunks)
    except ray.exceptions.RayTaskError as error:  # what a chunk raised: the same as without Ray
        raise error.cause from error
    except ray.exceptions.RayActorError as error:
        raise LostWorkersError(
            "a chunk of cells was given up: its worker was lost each time it was begun, the last time with: "
            f"{str(error).strip().splitlines()[0]} What is finished is kept where the sweep has out=…: "
            "call it again to go on. If memory ran out on a machine, let a worker take more of it (cpus=…, "
            "gpus=…), so that there are fewer."
        ) from error
    finally:
        for worker in pool:
            ray.kill(worker)


def _handed_out(
    ray: Any, pool: Sequence[Any], ask: Any, chunks: Mapping[int, Sequence[Cell]]
) -> Iterator[tuple[int, Answers]]:
    """The chunks' answers; a worker gets a chunk when it has started, and another one with each answer."""
    left, started = list(chunks.items()), False
    asked = {worker.ready.remote(): worker for worker in pool}
    missing = len(left)
    while missing:
        done, _ = ray.wait(list(asked), timeout=None if started else STARTING)
        if not done:
            raise TimeoutError(_not_started(len(pool)))
        started, worker = True, asked.pop(done[0])
        answer = ray.get(done[0])
        if left:
            asked[worker.answer.remote(ask, *left.pop(0))] = worker
        else:
            ray.kill(worker)  # its place may be what a lost one, with a chunk to do again, is waiting for
        if answer is not None:
            missing -= 1
            yield answer


def _not_started(count: int) -> str:
    workers = "the Ray worker" if count == 1 else f"any of the {count} Ray workers"
    return (
        f"waited {STARTING} seconds for {workers} to start: others have what the cluster has. `ray status` "
        "shows who takes what; ask for less (cpus=…, gpus=…), or call again when there is room."
    )


def _count(ray: Any, workers: int | None, cpus: int | float, gpus: int | float) -> int:
    """How many workers there will be: as many as were asked for, if the cluster has room for them.

    Raises:
        ValueError: it has not, or none were asked for of workers that take nothing of a machine.
    """
    wanted = {name: each for name, each in (("CPU", cpus), ("GPU", gpus)) if each}
    if not wanted:
        if workers is None:
            raise ValueError(
                "a worker that takes no CPU and no GPU has room everywhere: say how many workers."
            )
        return workers
    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    room = sum(_fitting(machine, wanted) for machine in machines)
    if room < (workers or 1):
        has = {name: sum(machine.get(name, 0) for machine in machines) for name in ("CPU", "GPU")}
        raise ValueError(
            f"the cluster has {has['CPU']:g} CPUs and {has['GPU']:g} GPUs on {len(machines)} machines, and a "
            f"worker wants {cpus:g} and {gpus:g} of one: there is room for {room}, not for {workers or 1}. "
            "Ask for less (cpus=…, gpus=…), or for fewer workers."
        )
    return workers or room


def _fitting(machine: Mapping[str, float], wanted: Mapping[str, int | float]) -> int:
    """How many workers fit on one machine."""
    # Ray counts in ten-thousandths; in floats a GPU would hold nine tenths of itself.
    return min(
        round(machine.get(name, 0) * 10_000) // max(round(each * 10_000), 1) for name, each in wanted.items()
    )


def _ray() -> Any:
    try:
        import ray
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("Ray is not installed: pip install 'tl-steer[ray]'.") from error
    return ray
