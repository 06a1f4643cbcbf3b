"""Superpixels of an image, over which probabilities are averaged (Pinheiro and Collobert, CVPR 2015, section 3.4)."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wildcat.errors import import_extra

SCALE, SIGMA, MIN_SIZE = 100.0, 0.5, 50  # of Felzenszwalb and Huttenlocher: preference for large ones, blur, pixels


def superpixels(image: NDArray[np.uint8]) -> NDArray[np.int64]:
    """(H, W, 3) uint8 RGB -> (H, W) numbers from 0 of regions of one color (Felzenszwalb and Huttenlocher, IJCV 2004).

    Raises:
        MissingExtra: scikit-image is not installed.
    """
    felzenszwalb = import_extra("skimage.segmentation", "scikit-image", "superpixels").felzenszwalb
    return np.asarray(felzenszwalb(image, SCALE, SIGMA, MIN_SIZE, channel_axis=2), dtype=np.int64)


def average_over(maps: Tensor, regions: NDArray[np.int64]) -> Tensor:
    """(K, H, W) maps -> the same shape, each value replaced by the mean over its region.

    Args:
        regions: (H, W) numbers from 0.

    >>> average_over(torch.tensor([[[0.0, 2.0, 5.0]]]), np.array([[0, 0, 1]])).tolist()
    [[[1.0, 1.0, 5.0]]]
    """
    index = torch.from_numpy(np.ascontiguousarray(regions)).to(maps.device).flatten()
    flat = maps.flatten(1)
    sums = flat.new_zeros(len(flat), int(index.max()) + 1).index_add(1, index, flat)
    return (sums / index.bincount())[:, index].reshape(maps.shape)
