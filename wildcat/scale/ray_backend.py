"""Parts made by Ray: a few processes that each hold the network, here or on the machines of a cluster.

Ray's actors over our parts, not Ray Data's datasets: a part is a list of a thousand names that any process can turn
into the same file, so nothing but names and counts travels, a part that is tried again does no harm, and no more parts
are under way than there are processes. Ray Data would carry the images through its store, and its files end where its
blocks do.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from wildcat.device import available_cores
from wildcat.errors import ConfigError, MissingExtra, WildcatError
from wildcat.predictor import Predictor
from wildcat.scale.scheduler import Died, make_parts
from wildcat.scale.shards import Done, Part
from wildcat.scale.worker import PartMaker


class Worker:
    """A process of Ray's that makes parts."""

    def __init__(self, load: Callable[[], Predictor], threads: int, folder: str) -> None:
        import torch  # noqa: PLC0415  # in the process that uses it

        os.chdir(folder)  # sources may be named from where the command was given; this process is ours alone
        torch.set_num_threads(threads)
        self.predictor = load()

    def make(self, maker: PartMaker, part: Part, careful: bool) -> Done | WildcatError:
        """A part, or why it cannot be made: an error raised in another process would come wrapped in that one's."""
        try:
            return maker(self.predictor, part, careful)
        except WildcatError as error:
            return error

    def process(self) -> int:
        """Its number in the operating system."""
        return os.getpid()


class RayPool:
    """Worker processes under Ray: `with RayPool(...) as pool: run_parts(parts, folder, pool.make_all)`.

    A cluster that `RAY_ADDRESS` names is used, otherwise Ray is started here and stopped again. On a cluster the run
    folder, the sources and the output have to be at the same paths on every machine.

    Args:
        load: makes a predictor in each process.
        maker: makes a part there.
        workers: processes; each gets its share of this machine's cores.
        gpu: whether each gets a GPU.

    Raises:
        MissingExtra: Ray is not installed.
        ConfigError: fewer than one worker.
    """

    def __init__(self, load: Callable[[], Predictor], maker: PartMaker, workers: int, gpu: bool = False) -> None:
        if workers < 1:
            raise ConfigError(f"workers={workers}: give at least 1.")
        self.ray, self.maker = import_ray(), maker
        self.started = not self.ray.is_initialized()
        cluster = bool(os.environ.get("RAY_ADDRESS"))
        cores = available_cores()
        if self.started:
            here = {} if cluster else {"num_cpus": max(cores, workers), "include_dashboard": False}
            self.ray.init(log_to_driver=False, logging_level="ERROR", configure_logging=True, **here)
        threads = max(1, cores // workers)
        kind = self.ray.remote(Worker).options(num_cpus=threads, num_gpus=int(gpu))
        self.start = partial(kind.remote, load, threads, str(Path.cwd()))
        self.workers = [self.start() for _ in range(workers)]

    def __enter__(self) -> RayPool:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self.workers:
            self.ray.kill(worker)
        if self.started:
            self.ray.shutdown()

    def processes(self) -> list[int]:
        """The workers' numbers in the operating system, once they hold their networks."""
        return list(self.ray.get([worker.process.remote() for worker in self.workers]))

    def make_all(self, parts: Iterator[Part]) -> Iterator[Done]:
        """The parts, finished; see `wildcat.scale.scheduler.make_parts`."""
        return make_parts(self, parts)

    @property
    def size(self) -> int:
        """How many workers there are."""
        return len(self.workers)

    def give(self, worker: int, part: Part, careful: bool) -> Any:
        """See `wildcat.scale.scheduler.Crew`."""
        return self.workers[worker].make.remote(self.maker, part, careful)

    def wait(self, tickets: list[Any]) -> Any:
        """See `wildcat.scale.scheduler.Crew`."""
        return self.ray.wait(tickets, num_returns=1)[0][0]

    def result(self, ticket: Any) -> Done | WildcatError:
        """See `wildcat.scale.scheduler.Crew`."""
        try:
            return self.ray.get(ticket)  # type: ignore[no-any-return]
        except self.ray.exceptions.RayError as error:
            raise Died(_reason(error)) from error

    def replace(self, worker: int) -> None:
        """See `wildcat.scale.scheduler.Crew`."""
        self.ray.kill(self.workers[worker])
        self.workers[worker] = self.start()


def _reason(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1 if "Traceback" in str(error) else 0].rstrip(".") if lines else "its process died"


def import_ray() -> Any:
    """Ray, told to report nothing about its use to its makers, and not to let its workers wait for all other programs.

    What the environment says of either stands. By default workers run at niceness 15: where anything else computes, a
    few per cent of a core are left to them.

    Raises:
        MissingExtra: it is not installed.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_worker_niceness", "0")
    try:
        import ray  # noqa: PLC0415  # an extra
    except ImportError as error:
        raise MissingExtra("ray", "ray") from error
    return ray
