"""Whether a difference between two methods is more than the noise of the images that they were measured on."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from wildcat.errors import ShapeError


def corrected_t_test(differences: ArrayLike, test_ratio: float) -> float:
    """Two-sided p-value of the corrected resampled t-test (Nadeau & Bengio, Machine Learning 52, 2003).

    The training sets of cross-validation overlap, so that the results of its folds vary together and a paired t-test
    finds differences that are none. With J folds, `t = mean / sqrt((1 / J + test_ratio) * variance)` has J - 1 degrees
    of freedom.

    Args:
        differences: (J,) of two methods, on the same folds; at least two.
        test_ratio: number of test images of a fold divided by that of its training images; 0: the paired t-test.

    Returns:
        In [0, 1]; 1 if there are no differences, 0 if all are the same and not 0.

    Raises:
        ShapeError: fewer than two differences.
    """
    from scipy.special import stdtr  # noqa: PLC0415  # slow to import; prediction imports this package, not this test

    d: NDArray[np.float64] = np.asarray(differences, dtype=np.float64)
    if d.ndim != 1 or len(d) < 2:
        raise ShapeError(f"differences of shape {d.shape}: give those of at least two folds.")
    variance = (1 / len(d) + test_ratio) * d.var(ddof=1)
    if variance <= 0:
        return float(d[0] == 0)
    return float(2 * stdtr(len(d) - 1, -abs(d.mean()) / math.sqrt(variance)))


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values adjusted for their number (Holm, Scandinavian Journal of Statistics 6, 1979), in their order.

    Below a level of 0.05, all of them together are wrong with a probability of at most 0.05.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    adjusted, highest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(np.argsort(p_values, kind="stable")):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = highest
    return adjusted
