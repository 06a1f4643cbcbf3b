"""Architecture (b) of the paper's Table 5, and "c": other orders of pooling and classification."""

from __future__ import annotations

from typing import Self

from torch import Tensor
from torch.nn import functional

from wildcat.nn.model import Output, Wildcat


class PoolThenClassify(Wildcat):
    """Architecture (b) of Table 5: pool each feature over space, classify, pool the M scores of a class."""

    def head(self, features: Tensor) -> Output:
        _, class_maps, maps = super().head(features)
        pooled = self.pool(self.transfer.standardized(features))[:, :, None, None]  # (B, D, h, w) -> (B, D, 1, 1)
        scores = functional.conv2d(pooled, self.transfer.weight, self.transfer.bias)  # (B, C*M, 1, 1)
        scores = self.class_pool(scores)  # (B, C, 1, 1)
        return Output(scores.flatten(1), class_maps, maps)

    def offset_gain(self) -> float:
        """The bias is added after the pooling."""
        return 1.0


class PoolEachMap(Wildcat):
    """Architecture "c" (not in the paper): pool each of the M maps of a class over space, then pool their scores.

    With the mean, each map receives a gradient of its own, at the regions that it selects; with the mean in eq. 1 all M
    maps of a class receive the same.
    """

    def head(self, features: Tensor) -> Output:
        maps = self.transfer(features)  # (B, C*M, h, w)
        scores = self.class_pool(self.pool(maps)[:, :, None, None]).flatten(1)  # (B, C*M) -> (B, C)
        class_maps = self.class_pool(maps)
        return Output(scores, class_maps, maps.unflatten(1, (self.num_classes, self.num_maps)))

    def fuse(self) -> Self:
        """The network itself: pooling each map is not linear in the maps, so their weights cannot be averaged."""
        return self
