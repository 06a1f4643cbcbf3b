"""Labels and loss of the boundary network of `wildcat refine`: pairs of near pixels, never a boundary.

IRN (Ahn, Cho and Kwak, CVPR 2019), without its displacement field, which separates instances.
"""

from __future__ import annotations

import torch
from torch import Tensor

from wildcat.regions.propagation import affinities, neighbours, pair_windows

UNSURE = -1  # label of places that are neither confidently an object nor confidently background
SMALLEST = 1e-5  # added to affinities and their complements before the logarithm, as in the published code


def boundary_loss(boundaries: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of the affinities of near pixels: 1 for equal labels, 0 for different ones.

    Half of the weight goes to pairs of different labels, a quarter each to pairs of one class and of the background:
    1/2 (1/2 bg+ + 1/2 fg+ + neg) of the paper, each a mean over its pairs, or 0 without any.

    Args:
        boundaries: (B, H, W) probabilities.
        labels: (B, H, W) int16, 0 background, i + 1 class i, -1 unsure: in no pair.
    """
    height, width = labels.shape[-2:]
    totals = {kind: boundaries.new_zeros(()) for kind in ("background", "class", "different")}
    counts = dict(totals)
    for (dy, dx), affinity in zip(neighbours(), affinities(boundaries), strict=True):
        near, far = (labels[:, rows, columns] for rows, columns in pair_windows(dy, dx, height, width))
        sure = (near != UNSURE) & (far != UNSURE)
        equal, background = sure & (near == far), near == 0
        together, apart = -(affinity + SMALLEST).log(), -(1 + SMALLEST - affinity).log()
        for kind, pairs, loss in (
            ("background", equal & background, together),
            ("class", equal & ~background, together),
            ("different", sure & ~equal, apart),
        ):
            totals[kind] = totals[kind] + (loss * pairs).sum()
            counts[kind] = counts[kind] + pairs.sum()
    mean = {kind: totals[kind] / counts[kind].clamp_min(1) for kind in totals}
    return 0.5 * (0.5 * mean["background"] + 0.5 * mean["class"] + mean["different"])


def confident_labels(sharp_high: Tensor, sharp_low: Tensor, classes: Tensor) -> Tensor:
    """Labels where two masks of an image agree: objects of the first, background of the second.

    Args:
        sharp_high: (K + 1, h, w) probabilities, background first, with a high threshold for objects.
        sharp_low: the same with a low threshold.
        classes: (K,) int64 classes.

    Returns:
        (h, w) int16: 0 background, i + 1 class i, -1 where neither is sure.
    """
    names = torch.cat([classes.new_zeros(1), classes + 1]).to(torch.int16)
    strong, weak = sharp_high.argmax(dim=0).cpu(), sharp_low.argmax(dim=0).cpu()
    return torch.where(strong > 0, names[strong], torch.where(weak == 0, 0, UNSURE).to(torch.int16))
