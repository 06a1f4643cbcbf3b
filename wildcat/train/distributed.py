"""Several processes at once: who does what, and how their parts come together again. Alone it costs nothing.

`torchrun` starts the processes and tells each its number by environment variables; nothing else has to be said. What is
exchanged here are flags, scores and small objects, on the CPU; gradients are exchanged by `in_parallel`.
"""

from __future__ import annotations

import contextlib
import os
import platform
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import TypeVar, cast

import torch.distributed
from torch import Tensor, distributed, nn
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from wildcat.errors import ConfigError, TrainingError, WildcatError

Part = TypeVar("Part")

PATIENCE = timedelta(hours=2)
"""How long a process waits for the others, who may be reading slower disks; one that has died is noticed at once."""


def rank() -> int:
    """Number of this process, from 0; 0 where it is alone."""
    return distributed.get_rank() if _started() else 0


def world_size() -> int:
    """How many processes work together; 1 where this one is alone."""
    return distributed.get_world_size() if _started() else 1


def local_size() -> int:
    """How many of them are on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if _started() else 1


def share_of(count: int) -> range:
    """Which of `count` items this process takes: every world-th from its rank on; all shares cover each item once."""
    return range(rank(), count, world_size())


def gather(part: Part) -> list[Part]:
    """The parts of all processes, in the order of their ranks, in every process."""
    if world_size() == 1:
        return [part]
    parts: list[Part | None] = [None] * world_size()
    distributed.all_gather_object(parts, part)
    return cast("list[Part]", parts)


def join_rows(rows: Tensor, count: int) -> Tensor:
    """The `count` rows of which each process has those of `share_of(count)`, in order, in every process."""
    joined = rows.new_empty(count, *rows.shape[1:])
    for number, part in enumerate(gather(rows)):
        joined[number :: world_size()] = part
    return joined


def from_first(make: Callable[[], Part]) -> Part:
    """What `make` gives in the first process, the only one to call it, in every process; its error as well."""
    if world_size() == 1:
        return make()
    made: list[Part | WildcatError | None] = [None]
    if rank() == 0:
        try:
            made = [make()]
        except WildcatError as error:
            made = [error]
    distributed.broadcast_object_list(made)
    if isinstance(made[0], WildcatError):
        raise made[0]
    return cast("Part", made[0])


@contextlib.contextmanager
def together() -> Iterator[None]:
    """What one process cannot do, none goes on from: its error, or Ctrl-C, is raised in all of them.

    Nothing inside may wait for other processes.
    """
    failed: WildcatError | KeyboardInterrupt | None = None
    try:
        yield
    except (WildcatError, KeyboardInterrupt) as error:
        if world_size() == 1:
            raise
        failed = error
    if any(anyone(failed is not None)):
        raise next(error for error in gather(failed) if error is not None)


def anyone(*flags: bool) -> list[bool]:
    """For each flag, whether it is set in any process."""
    if world_size() == 1:
        return list(flags)
    votes = torch.tensor(flags, dtype=torch.int32)
    distributed.all_reduce(votes, distributed.ReduceOp.MAX)
    return [bool(vote) for vote in votes]


def total(value: float) -> float:
    """The sum of the processes' values: the same bits in all of them."""
    if world_size() == 1:
        return value
    values = torch.tensor(value, dtype=torch.float64)
    distributed.all_reduce(values)
    return float(values)


# --- gradients ------------------------------------------------------------------------------------------------------


def in_parallel(module: nn.Module, inputs: Tensor) -> nn.Module:
    """`module` with the first process's weights, whose gradients become means over the processes; alone, itself.

    Args:
        inputs: an example. Parameters its outputs do not depend on (some networks have such layers) are frozen, since
            nobody may wait for their gradients.
    """
    if world_size() == 1:
        return module
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    gradients = torch.autograd.grad(module.eval()(inputs).sum(), trained, allow_unused=True)
    for parameter, gradient in zip(trained, gradients, strict=True):
        parameter.requires_grad_(gradient is not None)
    return DistributedDataParallel(module)


@contextlib.contextmanager
def accumulating(module: nn.Module, more: bool) -> Iterator[None]:
    """With `more` to come, gradients made inside stay in this process and are exchanged with the last ones."""
    if more and isinstance(module, DistributedDataParallel):
        with module.no_sync():
            yield
    else:
        yield


def share_buffers(module: nn.Module) -> None:
    """Give every process the first one's buffers, such as running averages of batch normalisation."""
    if world_size() > 1:
        for buffer in module.buffers():
            distributed.broadcast(buffer, 0)


# --- start and end --------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def process_group() -> Iterator[None]:
    """Join the processes that `torchrun` started together, and part from them at the end; alone, do nothing.

    On GPUs each process has the one of its number on its machine.

    Raises:
        ConfigError: the environment names a group that cannot be joined.
        TrainingError: another process has ended in the middle.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or _started():
        yield
        return
    _join()
    try:
        yield
    except RuntimeError as error:
        if not _lost_another(error):
            raise
        raise TrainingError(
            "another of the processes has ended, and this one cannot go on without it.",
            "What was saved is intact. torchrun names the process; with --max-restarts 3 it starts them all again.",
        ) from error
    finally:
        distributed.destroy_process_group()


def _join() -> None:
    """Make the group, under a name of its own for each time `torchrun` has started its processes.

    torchrun keeps one store for all of these times (pytorch issue 135712), and its count of restarts is that of one
    machine: where machines must agree on the name, torchrun has to make a new store each time.
    """
    shared = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    machines, restarts = (os.environ.get(k, "0") for k in ("GROUP_WORLD_SIZE", "TORCHELASTIC_MAX_RESTARTS"))
    if shared and int(machines) > 1 and int(restarts) > 0:
        raise ConfigError(
            f"torchrun --max-restarts {restarts} on {machines} machines would hang at the first restart: "
            "processes would find what those before them have left in torchrun's store.",
            "Give every torchrun the environment variable TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1.",
        )
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    try:
        store, number, size = next(rendezvous("env://", timeout=PATIENCE))
        name = f"start {os.environ.get('TORCHELASTIC_RESTART_COUNT', '0') if shared else ''}"
        named = distributed.PrefixStore(name, store)  # type: ignore[attr-defined]  # torch names it in no stub
        backend = "cpu:gloo,cuda:nccl" if cuda else "gloo"
        distributed.init_process_group(backend, store=named, rank=number, world_size=size, timeout=PATIENCE)
    except (ValueError, RuntimeError) as error:
        raise ConfigError(
            f"WORLD_SIZE={os.environ['WORLD_SIZE']}, but the other processes cannot be joined: {error}.",
            "Start them with torchrun, or unset WORLD_SIZE.",
        ) from error


def check_device(device: torch.device) -> None:
    """Refuse a device that processes of this machine would have to share.

    Raises:
        ConfigError: fewer GPUs than processes, one GPU by its number for several, or Apple's MPS.
    """
    if world_size() == 1 or device.type == "cpu":
        return
    gpus = torch.cuda.device_count() if device.type == "cuda" else 1
    if device.type != "cuda" or gpus < local_size() or (device.index is not None and local_size() > 1):
        raise ConfigError(
            f"device={device}: {local_size()} processes of this machine, which has {gpus} such devices, need one each.",
            "Give --device cuda and torchrun --nproc-per-node gpu, or --device cpu.",
        )


def launch_name() -> str:
    """What names the start by `torchrun` that this process belongs to; the same where it started processes again.

    Empty where `torchrun` did not start it.
    """
    name = os.environ.get("TORCHELASTIC_RUN_ID", "")
    return f"{platform.node()}:{os.getppid()}" if name == "none" else name  # it was given no name: the agent's


def _started() -> bool:
    return distributed.is_available() and distributed.is_initialized()


def _lost_another(error: RuntimeError) -> bool:
    """Whether a collective failed because a process at the other end has gone; gloo says so by text alone."""
    return isinstance(error, distributed.DistError) or "gloo" in str(error)
