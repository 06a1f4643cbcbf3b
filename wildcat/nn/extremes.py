"""Both ends of many long rows at once, on a CPU: several times faster than `torch.topk`.

The mean of the k highest needs no order and, going forward, no places: numpy's vectorised partition finds it, here a
block of rows at a time and one thread per core. What is kept for the gradient is a threshold for each end of each row.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

MANY_ROWS, MANY_VALUES = 2048, 1 << 19
"""From which on this is faster: it begins some milliseconds late, while torch's threads still wait for work."""

BLOCK = 1 << 18
"""Values that a thread copies and partitions at a time: a megabyte, which stays in its cache."""


FEW = 64
"""Of rows this many times longer than the count, `torch.topk` keeps a heap, and is the faster one."""


def partitions_well(x: Tensor, highest: int) -> bool:
    """Whether `extreme_means` is for it: many float32 values, on the CPU, and no graph is being recorded."""
    tracing = bool(torch.jit.is_tracing())  # type: ignore[no-untyped-call, attr-defined]  # untyped in torch
    if tracing or torch.compiler.is_compiling() or torch.onnx.is_in_onnx_export():
        return False  # before anything is asked of a shape, which a graph would take for given
    rows = x.numel() // max(1, x.shape[-1])
    many = rows >= MANY_ROWS and x.numel() >= MANY_VALUES and highest * FEW > x.shape[-1]
    return many and x.device.type == "cpu" and x.dtype == torch.float32


def extreme_means(x: Tensor, highest: int, lowest: int) -> tuple[Tensor, Tensor]:
    """Means of the `highest` highest and of the `lowest` lowest values of each row; NaN counts as the highest.

    The gradient flows through exactly that many values of each row, as with `torch.topk`, whatever is tied.

    Args:
        x: (..., n) float32 on the CPU, n above both counts.
        highest, lowest: from 1, and from 0 (zeros come back).

    Returns:
        (...) and (...).
    """
    high, low, *_ = _ExtremeMeans.apply(x.reshape(-1, x.shape[-1]), highest, lowest)
    return high.view(x.shape[:-1]), low.view(x.shape[:-1])


class _ExtremeMeans(torch.autograd.Function):
    """(R, n) -> the two means, the least of the highest and the greatest of the lowest, and whether ties cross either.

    All of them (R,) float32; the last three only serve the gradient.
    """

    @staticmethod
    def forward(x: Tensor, highest: int, lowest: int) -> tuple[Tensor, ...]:
        rows, found = x.detach().numpy(), np.zeros((5, len(x)), dtype=np.float32)
        threads = torch.get_num_threads()
        blocks = _blocks(x, at_least=4 * threads)  # a thread that begins late leaves some of its share to the others
        left = iter(blocks)

        def work(_thread: int) -> None:
            buffer: NDArray[np.float32] | None = None
            for block in left:
                buffer = np.empty_like(rows[block]) if buffer is None else buffer
                _partition(rows[block], buffer, highest, lowest, found[:, block])

        with ThreadPoolExecutor(threads, thread_name_prefix="wildcat-partition") as pool:
            others = pool.map(work, range(1, threads))
            work(0)
            list(others)
        return tuple(torch.from_numpy(found))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        x, ctx.highest, ctx.lowest = inputs
        ctx.mark_non_differentiable(*output[2:])
        ctx.save_for_backward(x, *output[2:])

    @staticmethod
    def backward(ctx: Any, high: Tensor, low: Tensor, *_: Any) -> tuple[Tensor, None, None]:
        x, least, greatest, tied = ctx.saved_tensors
        gradient = torch.empty_like(x)
        for block in _blocks(x):  # what is made on the way stays small
            gradient[block] = (x[block] >= least[block, None]) * (high[block, None] / ctx.highest)
            if ctx.lowest:
                gradient[block] += (x[block] <= greatest[block, None]) * (low[block, None] / ctx.lowest)
        rows = tied.nonzero().flatten()
        if len(rows):  # where a threshold lets more values through than were counted
            exact = _through_places(x[rows], ctx.highest, True, high[rows])
            if ctx.lowest:
                exact = exact + _through_places(x[rows], ctx.lowest, False, low[rows])
            gradient[rows] = exact
        return gradient, None, None


def _blocks(x: Tensor, at_least: int = 1) -> list[slice]:
    """Rows of (R, n), a few at a time."""
    size = max(1, min(BLOCK // x.shape[1], len(x) // at_least))
    return [slice(start, start + size) for start in range(0, len(x), size)]


def _partition(
    rows: NDArray[np.float32], buffer: NDArray[np.float32], highest: int, lowest: int, found: NDArray[np.float32]
) -> None:
    """Fill `found` (5, R) for `rows` (R, n), in a buffer with room for them."""
    high, low, least, greatest, tied = found
    values, rest = buffer[: len(rows)], rows.shape[1] - highest
    np.copyto(values, rows)
    values.partition(rest, axis=1)
    values[:, rest:].mean(axis=1, out=high)
    least[:] = values[:, rest]
    tied[:] = values[:, :rest].max(axis=1) == least
    if lowest:
        # The lowest are among what is left, unless the two ends overlap.
        left = values[:, :rest] if lowest < rest else values
        left.partition(lowest - 1, axis=1)
        left[:, :lowest].mean(axis=1, out=low)
        greatest[:] = left[:, lowest - 1]
        tied[:] += left[:, lowest:].min(axis=1) == greatest


def _through_places(x: Tensor, count: int, highest: bool, gradient: Tensor) -> Tensor:
    """(R, n) gradient of the mean of the `count` highest, or lowest, values of each row; given is the mean's, (R,)."""
    places = x.topk(count, largest=highest, sorted=False).indices
    return torch.zeros_like(x).scatter(-1, places, (gradient / count)[:, None].expand_as(places))
