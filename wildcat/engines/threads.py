"""How many threads an engine may use."""

from __future__ import annotations

import torch

from wildcat.device import available_cores


def engine_threads() -> int:
    """Threads for an engine: torch's number (which follows OMP_NUM_THREADS), at most the available cores."""
    return min(torch.get_num_threads(), available_cores())
