"""A sweep's chunks on several machines, through Ray."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from ..models import ModelIdentity, identify
from .cells import Cell
from .chunks import Answers, Ask, Executor

logger = logging.getLogger(__name__)


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
    the bit where hardware and threads are alike.

    Args:
        address: of a running cluster, "auto" for the one this machine belongs to; `None` uses the Ray this
            process is connected to, else starts one here, for as long as the sweep takes.
        load: gives the model in a worker, `lambda: ts.load_model("llama-2-13b-chat", device="cuda")`; it has
            to be the sweep's own (the identity is compared). By default the sweep's model is sent to every
            worker, as it is and for the device it is on: for small ones.
        workers: how many; by default as many as the cluster has room for.
        cpus, gpus: what a worker takes of its machine; may be a part of a GPU.
        retries: how often a chunk is begun again whose worker was lost.
        init: further arguments of `ray.init`, where this starts or connects.

    Raises:
        ModuleNotFoundError: Ray is not installed (`pip install 'tl-steer[ray]'`).
        ValueError: no workers, or the cluster has no room for one.
        ModelMismatchError: `load` gives another model than the sweep's.
        LostWorkersError: a chunk's worker was lost more often than `retries`.

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
            ray.init(address, **quiet | init)
        try:
            count = min(workers or _room(ray, cpus, gpus), len(chunks))
            options = {
                "num_cpus": cpus,
                "num_gpus": gpus,
                "max_restarts": retries,
                "max_task_retries": retries,
            }
            worker = ray.remote(_Worker).options(**options)
            given = ray.put(model) if load is None else None
            identity, precision = identify(model), str(model.cfg.dtype)
            pool = [worker.remote(given, load, identity, precision) for _ in range(count)]
            logger.info("%d chunks of cells for %d Ray workers", len(chunks), count)
            yield from _answers(ray, pool, ray.put(ask), chunks)
        finally:
            if own:
                ray.shutdown()

    return execute


class LostWorkersError(RuntimeError):
    """Workers were lost so often that a chunk of cells could not be answered."""


class _Worker:
    """One process of the cluster, with the model in its memory."""

    def __init__(
        self, model: Any, load: Callable[[], Any] | None, identity: ModelIdentity, precision: str
    ) -> None:
        self.model, self.load = model, load
        self.identity, self.precision = identity, precision

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
        given = ray.util.ActorPool(pool).map_unordered(
            lambda worker, chunk: worker.answer.remote(ask, *chunk), list(chunks.items())
        )
        yield from given
    except ray.exceptions.RayTaskError as error:  # what a chunk raised: the same as without Ray
        raise error.cause from error
    except ray.exceptions.RayActorError as error:
        raise LostWorkersError(
            "a chunk of cells was given up: its worker was lost each time it was begun. What is finished is "
            "kept where the sweep has out=…: call it again to go on. If memory ran out on a machine, let a "
            "worker take more of it (cpus=…, gpus=…), so that there are fewer."
        ) from error
    finally:
        for worker in pool:
            ray.kill(worker)


def _room(ray: Any, cpus: int | float, gpus: int | float) -> int:
    """How many workers the cluster has room for."""
    has = ray.cluster_resources()
    rooms = [int(has.get(name, 0) // each) for name, each in (("CPU", cpus), ("GPU", gpus)) if each]
    if not rooms or min(rooms) < 1:
        raise ValueError(
            f"the cluster has {has.get('CPU', 0):g} CPUs and {has.get('GPU', 0):g} GPUs, and a worker wants "
            f"{cpus:g} and {gpus:g}: ask for less (cpus=…, gpus=…), or say how many workers."
        )
    return min(rooms)


def _ray() -> Any:
    try:
        import ray
        import ray.util
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("Ray is not installed: pip install 'tl-steer[ray]'.") from error
    return ray
