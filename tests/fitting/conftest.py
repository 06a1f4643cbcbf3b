"""Fixtures of the tests of `wildcat refine`."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from wildcat.fitting.methods import wildcat as own


@pytest.fixture(scope="module")
def few_boundary_steps() -> Iterator[None]:
    """5 steps of the boundary network instead of 200, which take minutes, where nothing measures its boundaries."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(own, "BOUNDARY_STEPS", 5)
        yield
