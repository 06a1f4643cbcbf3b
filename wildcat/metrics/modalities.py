"""How the M modality maps of a class differ: where they are high, what they cover, and which features they select."""

from __future__ import annotations

import itertools

import numpy as np
from numpy.typing import ArrayLike, NDArray

from wildcat.errors import ShapeError

TOP_SHARE = 0.2  # of the regions: k+ of the paper
SAME = 0.05  # deviation of maps from their mean, relative to the spread of the mean, up to which they are alike


def top_regions(maps: ArrayLike, share: float = TOP_SHARE) -> NDArray[np.bool_]:
    """The `share` of regions with the highest values, at least one, in each map: (..., h, w) -> (..., h, w) bool."""
    maps = np.asarray(maps)
    flat = maps.reshape(*maps.shape[:-2], -1)
    count = max(1, round(share * flat.shape[-1]))
    chosen = np.zeros(flat.shape, dtype=bool)
    np.put_along_axis(chosen, np.argsort(-flat, axis=-1, kind="stable")[..., :count], values=True, axis=-1)
    return chosen.reshape(maps.shape)


def top_region_iou(maps: ArrayLike, share: float = TOP_SHARE) -> float:
    """Mean intersection over union of the top regions of two maps, over all pairs of (M, h, w); nan for a single map.

    Independent maps have share / (2 - share), 0.11 for a fifth; equal maps have 1.

    >>> top_region_iou([[[2.0, 1.0, 0.0, 0.0]], [[2.0, 0.0, 1.0, 0.0]]], share=0.5)  # 1 of 3 regions
    0.3333333333333333
    """
    top = top_regions(_modality_maps(maps), share)
    overlaps = [(a & b).sum() / (a | b).sum() for a, b in itertools.combinations(top, 2)]
    return float(np.mean(overlaps)) if overlaps else float("nan")


def mask_coverage(maps: ArrayLike, mask: ArrayLike, share: float = TOP_SHARE) -> tuple[float, float]:
    """The share of a true mask that the top regions of M maps cover: all maps together, and the best single map.

    Args:
        maps: (M, h, w), on a grid over the whole image.
        mask: (H, W) bool, the pixels of the class; nan is returned for an empty one.
    """
    top, mask = top_regions(_modality_maps(maps), share), np.asarray(mask, dtype=bool)
    (height, width), (h, w) = mask.shape, top.shape[1:]
    rows, columns = (np.arange(height) + 0.5) * h // height, (np.arange(width) + 0.5) * w // width
    covered = top[:, rows.astype(int)[:, None], columns.astype(int)] & mask  # (M, H, W), nearest neighbour
    pixels = mask.sum()
    if not pixels:
        return float("nan"), float("nan")
    return float(covered.any(axis=0).sum() / pixels), float(covered.sum(axis=(1, 2)).max() / pixels)


def map_shares(maps: ArrayLike, class_map: ArrayLike, share: float = TOP_SHARE) -> NDArray[np.float64]:
    """The share of the class map's top regions at which each of the (M, h, w) maps is the highest; they sum to one.

    >>> map_shares([[[5.0, 1.0, 0.0, 0.0]], [[0.0, 4.0, 0.0, 1.0]]], [[5.0, 4.0, 0.0, 1.0]], share=0.5).tolist()
    [0.5, 0.5]
    """
    maps = _modality_maps(maps)
    winners = maps.argmax(axis=0)[top_regions(class_map, share)]
    return np.bincount(winners, minlength=len(maps)) / len(winners)


def maps_differ(maps: ArrayLike) -> bool:
    """Whether (M, h, w) maps deviate from their mean by more than 5 % of its spread over the regions.

    The maps of a class that were averaged in training differ by their initial weights only.
    """
    maps = _modality_maps(maps)
    mean = maps.mean(axis=0)
    return bool(np.sqrt(np.mean((maps - mean) ** 2)) > SAME * mean.std())


def cluster_purity(features: ArrayLike, maps: ArrayLike, num_maps: int, seed: int = 0) -> float:
    """Whether each map selects one kind of region: purity of k-means clusters of the features that M maps select.

    The features are scaled to length 1 and clustered into M clusters; the purity is the share of them whose map is the
    most frequent one in their cluster. 1: each cluster belongs to one map. Maps that select regions at random have
    little more than 1/M.

    Args:
        features: (N, D), at the highest region of a map in an image.
        maps: (N,) the index of the map that selected each of them.
    """
    features, maps = np.asarray(features, dtype=np.float64), np.asarray(maps)
    lengths = np.linalg.norm(features, axis=1, keepdims=True)
    from scipy.cluster.vq import kmeans2  # noqa: PLC0415  # slow to import; prediction needs this module, not k-means

    _, clusters = kmeans2(features / np.maximum(lengths, 1e-12), num_maps, minit="++", seed=seed, missing="warn")
    largest = [np.bincount(maps[clusters == c]).max() for c in np.unique(clusters)]
    return float(sum(largest) / len(maps))


def _modality_maps(maps: ArrayLike) -> NDArray[np.floating]:
    maps = np.asarray(maps)
    if maps.ndim != 3 or maps.size == 0:
        raise ShapeError(f"modality maps of shape {maps.shape}: give (maps, height, width), all above 0.")
    return maps
