"""Threads that compute at the same time share the cores."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from wildcat.engines.threads import Shares


@pytest.fixture
def torch_threads() -> Iterator[None]:
    """Put torch's number of threads back after a test."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("torch_threads")
def test_concurrent_threads_get_equal_shares() -> None:
    shares = Shares(4)
    counts = []
    with shares.take():
        counts.append(torch.get_num_threads())
        with ThreadPoolExecutor(1) as pool:
            counts.append(pool.submit(in_a_share, shares).result())
        with shares.take(), shares.take():
            counts.append(torch.get_num_threads())
    with shares.take():
        counts.append(torch.get_num_threads())
    assert counts == [4, 2, 1, 4] and shares.taken == 0


def in_a_share(shares: Shares) -> int:
    with shares.take():
        return torch.get_num_threads()


@pytest.mark.usefixtures("torch_threads")
def test_a_share_is_returned_on_an_error() -> None:
    shares = Shares(2)
    with pytest.raises(ZeroDivisionError), shares.take():
        1 / 0  # noqa: B018
    assert shares.taken == 0
