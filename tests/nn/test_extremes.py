"""The quick way to both ends of long rows equals `torch.topk` in what it gives and in where its gradient goes."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from wildcat.nn import extremes
from wildcat.nn.extremes import extreme_means
from wildcat.nn.pooling import SpatialPool, spatial_pool

shapes = st.tuples(st.integers(1, 7), st.integers(2, 30))


@pytest.fixture(autouse=True)
def _quick_for_few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extremes, "MANY_ROWS", 0)
    monkeypatch.setattr(extremes, "MANY_VALUES", 0)
    monkeypatch.setattr(extremes, "BLOCK", 50)  # several blocks, the last one smaller


def by_topk(x: Tensor, highest: int, lowest: int) -> tuple[Tensor, Tensor]:
    low = x.topk(lowest, largest=False).values.mean(dim=-1) if lowest else x.new_zeros(x.shape[:-1])
    return x.topk(highest).values.mean(dim=-1), low


def gradients(ways: tuple[Tensor, Tensor], x: Tensor) -> Tensor:
    high, low = ways
    weights = torch.arange(1.0, 1 + high.numel()).view(high.shape)
    return torch.autograd.grad((high * weights + 0.7 * low * weights).sum(), x)[0]


@given(shape=shapes, ends=st.tuples(st.integers(1, 99), st.integers(0, 99)), seed=st.integers(0, 999))
def test_it_equals_topk(shape: tuple[int, int], ends: tuple[int, int], seed: int) -> None:
    """Also where the two ends overlap."""
    highest, lowest = 1 + ends[0] % (shape[1] - 1), ends[1] % shape[1]
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).requires_grad_()
    mine, theirs = extreme_means(x, highest, lowest), by_topk(x, highest, lowest)
    torch.testing.assert_close(mine, theirs)
    torch.testing.assert_close(gradients(mine, x), gradients(theirs, x))


@given(shape=shapes, ends=st.tuples(st.integers(1, 99), st.integers(0, 99)), seed=st.integers(0, 999))
def test_of_tied_values_as_many_are_selected_as_were_counted(
    shape: tuple[int, int], ends: tuple[int, int], seed: int
) -> None:
    highest, lowest = 1 + ends[0] % (shape[1] - 1), ends[1] % shape[1]
    x = torch.randint(3, shape, generator=torch.Generator().manual_seed(seed)).float().requires_grad_()
    mine, theirs = extreme_means(x, highest, lowest), by_topk(x, highest, lowest)
    torch.testing.assert_close(mine, theirs)
    for one, other, count in zip(mine, theirs, (highest, lowest), strict=True):
        if count:
            found, expected = (torch.autograd.grad(end.sum(), x, retain_graph=True)[0] for end in (one, other))
            torch.testing.assert_close(found.sort().values, expected.sort().values)
            torch.testing.assert_close((found * x).sum(dim=-1), other)  # and they are the highest, or lowest


@pytest.mark.parametrize("kmin", [None, 0, 1, 9])
def test_spatial_pool_is_the_same_either_way(kmin: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(2, 6, 5, 4).contiguous(memory_format=torch.channels_last).requires_grad_()
    quick = spatial_pool(x, 0.3, kmin)
    assert quick.grad_fn is not None
    found = torch.autograd.grad(quick.sum(), x)[0]
    monkeypatch.setattr(extremes, "MANY_VALUES", x.numel() + 1)
    plain = spatial_pool(x, 0.3, kmin)
    torch.testing.assert_close(quick, plain)
    torch.testing.assert_close(found, torch.autograd.grad(plain.sum(), x)[0])


def test_of_no_rows_there_are_no_means() -> None:
    assert [end.shape for end in extreme_means(torch.zeros(2, 0, 9), 3, 2)] == [(2, 0), (2, 0)]


def test_a_nan_shows_in_the_score() -> None:
    x = torch.randn(2, 3, 4, 4)
    x[0, 1, 2, 2] = math.nan
    assert spatial_pool(x, 0.3).isnan().nonzero().tolist() == [[0, 1]]


def test_a_gradient_can_be_differentiated_by_what_came_from_above() -> None:
    x, weight = torch.randn(4, 9, requires_grad=True), torch.tensor(2.0, requires_grad=True)
    high, low = extreme_means(x, 3, 2)
    first = torch.autograd.grad((weight * (high + low)).sum(), x, create_graph=True)[0]
    assert torch.autograd.grad(first.sum(), weight)[0].item() == pytest.approx(4 * 2)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::torch.jit.TracerWarning")
def test_other_numbers_and_recorded_graphs_take_topk() -> None:
    assert extremes.partitions_well(torch.zeros(4, 100), 2)
    assert not extremes.partitions_well(torch.zeros(4, 100), 1), "a heap is faster"
    assert not extremes.partitions_well(torch.zeros(4, 100, dtype=torch.float64), 2)
    assert not extremes.partitions_well(torch.zeros(4, 100, device="meta"), 2)
    pool, x = SpatialPool(3, 2, 0.7), torch.randn(1, 2, 3, 3)
    for recorded in (
        torch.jit.trace(pool, torch.zeros(1, 2, 3, 3)),  # type: ignore[no-untyped-call]  # torch leaves it untyped
        torch.export.export(pool, (torch.zeros(1, 2, 3, 3),)).module(),
        torch.compile(pool, backend="eager", fullgraph=True),
    ):
        torch.testing.assert_close(recorded(x), pool(x))


def test_torch_func_differentiates_it() -> None:
    x = torch.randn(2, 3, 4, 4)
    leaf = x.clone().requires_grad_()
    expected = torch.autograd.grad(spatial_pool(leaf, 0.3).sum(), leaf)[0]
    torch.testing.assert_close(torch.func.grad(lambda maps: spatial_pool(maps, 0.3).sum())(x), expected)
