"""Several training processes: what they exchange. With a single process every function returns at once.

`torchrun` starts the processes and numbers them by environment variables. Flags, scores and small objects are exchanged
on the CPU; gradients are averaged by `DistributedDataParallel`, see `data_parallel`.
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

T = TypeVar("T")

# How long a process waits for the others, which may read slower disks; a process that died is noticed at once.
TIMEOUT = timedelta(hours=2)


def rank() -> int:
    """The number of this process, from 0; 0 for a single process."""
    return distributed.get_rank() if _started() else 0


def world_size() -> int:
    """The number of processes."""
    return distributed.get_world_size() if _started() else 1


def local_size() -> int:
    """The number of processes on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if _started() else 1


def share_of(count: int) -> range:
    """Indices of this process's share of `count` items: rank, rank + world_size, ...; the shares are disjoint."""
    return range(rank(), count, world_size())


def gather(item: T) -> list[T]:
    """The items of all processes in the order of their ranks, in every process."""
    if world_size() == 1:
        return [item]
    items: list[T | None] = [None] * world_size()
    distributed.all_gather_object(items, item)
    return cast("list[T]", items)


def gather_rows(rows: Tensor, count: int) -> Tensor:
    """(count, ...) rows in order, in every process; each process gives its rows of `share_of(count)`."""
    joined = rows.new_empty(count, *rows.shape[1:])
    for number, part in enumerate(gather(rows)):
        joined[number :: world_size()] = part
    return joined


def broadcast_from_first(compute: Callable[[], T]) -> T:
    """The result of `compute`, called in the first process only, in every process; its error is raised in all."""
    if world_size() == 1:
        return compute()
    result: list[T | WildcatError | None] = [None]
    if rank() == 0:
        try:
            result = [compute()]
        except WildcatError as error:
            result = [error]
    distributed.broadcast_object_list(result)
    if isinstance(result[0], WildcatError):
        raise result[0]
    return cast("T", result[0])


@contextlib.contextmanager
def shared_errors() -> Iterator[None]:
    """Re-raise an error, or Ctrl-C, of any process in all of them. The block must not wait for other processes."""
    failed: WildcatError | KeyboardInterrupt | None = None
    try:
        yield
    except (WildcatError, KeyboardInterrupt) as error:
        if world_size() == 1:
            raise
        failed = error
    if any(any_process(failed is not None)):
        raise next(error for error in gather(failed) if error is not None)


def any_process(*flags: bool) -> list[bool]:
    """For each flag, whether it is set in any process."""
    if world_size() == 1:
        return list(flags)
    votes = torch.tensor(flags, dtype=torch.int32)
    distributed.all_reduce(votes, distributed.ReduceOp.MAX)
    return [bool(vote) for vote in votes]


def sum_over_processes(value: float) -> float:
    """The sum of the processes' values, with the same bits in all of them."""
    if world_size() == 1:
        return value
    values = torch.tensor(value, dtype=torch.float64)
    distributed.all_reduce(values)
    return float(values)


# --- gradients ------------------------------------------------------------------------------------------------------


def data_parallel(module: nn.Module, inputs: Tensor) -> nn.Module:
    """The module with the first process's weights, whose gradients are averaged over the processes.

    Args:
        module: inputs -> `wildcat.nn.model.Output`.
        inputs: an example. Parameters that the scores do not depend on (some networks have such layers) are frozen,
            because `DistributedDataParallel` would wait for their gradients.
    """
    if world_size() == 1:
        return module
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    gradients = torch.autograd.grad(module.eval()(inputs).scores.sum(), trained, allow_unused=True)
    for parameter, gradient in zip(trained, gradients, strict=True):
        parameter.requires_grad_(gradient is not None)
    return DistributedDataParallel(module)


@contextlib.contextmanager
def accumulating(module: nn.Module, more: bool) -> Iterator[None]:
    """Keep the gradients computed in the block in this process if there is `more` to add before they are averaged."""
    if more and isinstance(module, DistributedDataParallel):
        with module.no_sync():
            yield
    else:
        yield


def broadcast_buffers(module: nn.Module) -> None:
    """Copy the first process's buffers, such as running averages of batch normalisation, to all others."""
    if world_size() > 1:
        for buffer in module.buffers():
            distributed.broadcast(buffer, 0)


# --- start and end --------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def process_group() -> Iterator[None]:
    """Join the group of processes that `torchrun` started, and leave it at the end; a single process does nothing.

    On GPUs each process uses the one with its local rank.

    Raises:
        ConfigError: the group that the environment variables describe cannot be joined.
        TrainingError: another process has died.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or _started():
        yield
        return
    _join()
    try:
        yield
    except RuntimeError as error:
        if not _peer_died(error):
            raise
        raise TrainingError(
            "another process has died, and this one cannot continue without it.",
            "torchrun names the process; with --max-restarts 3 it restarts all of them.",
        ) from error
    finally:
        distributed.destroy_process_group()


def _join() -> None:
    """Create the process group, with a separate key prefix for each restart by `torchrun`.

    torchrun keeps one store across restarts (pytorch issue 135712), and its count of restarts is per machine: with
    several machines, which must agree on the prefix, torchrun has to create a new store at each restart.
    """
    shared = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    machines, restarts = (os.environ.get(k, "0") for k in ("GROUP_WORLD_SIZE", "TORCHELASTIC_MAX_RESTARTS"))
    if shared and int(machines) > 1 and int(restarts) > 0:
        raise ConfigError(
            f"torchrun --max-restarts {restarts} on {machines} machines would hang at the first restart: "
            "processes would read old keys in torchrun's store.",
            "Set for every torchrun the environment variable TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1.",
        )
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    try:
        store, number, size = next(rendezvous("env://", timeout=TIMEOUT))
        name = f"start {os.environ.get('TORCHELASTIC_RESTART_COUNT', '0') if shared else ''}"
        named = distributed.PrefixStore(name, store)  # type: ignore[attr-defined]  # torch names it in no stub
        backend = "cpu:gloo,cuda:nccl" if cuda else "gloo"
        distributed.init_process_group(backend, store=named, rank=number, world_size=size, timeout=TIMEOUT)
    except (ValueError, RuntimeError) as error:
        raise ConfigError(
            f"WORLD_SIZE={os.environ['WORLD_SIZE']}, but the other processes cannot be joined: {error}.",
            "Start them with torchrun, or unset WORLD_SIZE.",
        ) from error


def check_device(device: torch.device) -> None:
    """Refuse a device that several processes of this machine would have to share.

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
    """The name of the `torchrun` launch that this process belongs to, unchanged by restarts; "" without torchrun."""
    name = os.environ.get("TORCHELASTIC_RUN_ID", "")
    return f"{platform.node()}:{os.getppid()}" if name == "none" else name  # no --rdzv-id was given


def _started() -> bool:
    return distributed.is_available() and distributed.is_initialized()


def _peer_died(error: RuntimeError) -> bool:
    """Whether a collective operation failed because another process died; gloo reports that only in the message."""
    return isinstance(error, distributed.DistError) or "gloo" in str(error)
