"""Networks that pool the features into one vector per image and classify it: parts, second-order statistics, VLAD."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator

import torch
from scipy.cluster.vq import kmeans2
from torch import Tensor, nn

from wildcat.errors import ConfigError
from wildcat.nn.backbones import Backbone
from wildcat.nn.model import Labelled, Output, StandardizingLayer, Transfer, Wildcat

REGIONS = 20_000  # most regions of training images from which parts, clusters and components are computed


class Descriptor(nn.Module):
    """A layer that pools standardised features (B, D, h, w) into one vector per image, (B, size).

    Attributes:
        size: E, the length of the vectors.
        normalised: whether all vectors have the length sqrt(D) of standardised features, so that the same learning
            rate suits the classifier. If not, each of their channels is standardised over the training images.
        decays: whether weight decay applies to the weights of the layer, not to the classifier alone.
    """

    size: int
    normalised = True
    decays = False

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """(B, D, h, w) -> (B, E)."""

    def regions(self, x: Tensor) -> Tensor:
        """(B, D, h, w) -> (B, E, h, w), from which the classifier makes class maps; without it there are none."""
        raise NotImplementedError

    def fit(self, images: Labelled, seed: int) -> None:
        """Start the layer from the standardised features of training images; by default it is not."""

    def shrink(self, classifier: Tensor, lr: float) -> None:
        """See `Wildcat.shrink`; `classifier`: (C, E, 1, 1) weights."""

    def check(self, images: int, cells: tuple[int, int]) -> None:
        """Refuse (ConfigError) too few training images, or maps with too few rows and columns."""

    def offset_gain(self) -> float:
        """As `SpatialPool.offset_gain`: the bias is added after the pooling."""
        return 1.0


class DescriptorNetwork(Wildcat):
    """Pool the features into one vector per image, then classify it linearly.

    Attributes:
        pool: standardised features (B, D, h, w) -> vectors (B, E).
        transfer: the classifier, (B, E, h, w) -> (B, C, h, w).
        statistics: mean and standard deviation of the features.
    """

    pool: Descriptor

    def __init__(self, backbone: Backbone, num_classes: int, pool: Descriptor) -> None:
        super().__init__(backbone, num_classes, 1, pool)
        self.has_maps = type(pool).regions is not Descriptor.regions
        self.transfer = Transfer(pool.size, num_classes)
        self.statistics = StandardizingLayer()
        self.statistics.register_statistics(backbone.num_features)

    def head(self, features: Tensor) -> Output:
        if not self.has_maps:
            return self.training_output(features)
        class_maps = self.transfer(self.pool.regions(self.statistics.standardized(features)))
        return Output(self.training_output(features).scores, class_maps, class_maps[:, :, None])

    def training_output(self, features: Tensor, modalities: bool = False) -> Output:
        """The scores alone: the vectors of all regions may be large."""
        return self.classified(self.vectors(features))

    @property
    def vectors_are_fixed(self) -> bool:
        return next(self.pool.parameters(), None) is None

    def vectors(self, features: Tensor) -> Tensor:
        """(B, D, h, w) -> (B, E)."""
        vectors: Tensor = self.pool(self.statistics.standardized(features))
        return vectors

    def classified(self, vectors: Tensor) -> Output:
        """(B, E) vectors -> the scores alone."""
        scores = self.transfer(vectors[:, :, None, None]).flatten(1)
        none = scores.new_zeros(*scores.shape, 1, 0, 0)
        return Output(scores, none[:, :, 0], none)

    @property
    def feature_mean(self) -> Tensor:
        return self.statistics.mean

    def standardize(self, mean: Tensor, std: Tensor) -> None:
        self.statistics.standardize(mean, std)

    @torch.no_grad()
    def fit(self, images: Labelled, seed: int) -> None:
        """Start the pooling layer, and standardise its vectors if they are not normalised."""

        def standardized() -> Iterator[tuple[Tensor, Tensor]]:
            return ((self.statistics.standardized(features), labels) for features, labels in images())

        self.pool.fit(standardized, seed)
        if not self.pool.normalised:
            vectors = torch.cat([self.pool(x) for x, _ in standardized()])
            self.transfer.standardize(vectors.mean(dim=0), vectors.std(dim=0, correction=0))

    def check(self, images: int, cells: tuple[int, int]) -> None:
        self.pool.check(images, cells)

    @torch.no_grad()
    def shrink(self, lr: float) -> None:
        self.pool.shrink(self.transfer.weight, lr)


def sample_regions(
    images: Labelled, count: int, seed: int, regions_of: Callable[[Tensor], Tensor] = torch.Tensor.detach
) -> Tensor:
    """(N, D) on the CPU: about `count` regions, as many of each image, at random places.

    Args:
        regions_of: (B, D, h, w) features -> the map whose regions are taken.
    """
    generator = torch.Generator().manual_seed(seed)
    total = sum(len(labels) for _, labels in images())
    share = -(-count // total)  # of each image
    chosen = []
    for x, _ in images():
        for cells in regions_of(x).flatten(2).mT.cpu():  # (n, D)
            chosen.append(cells[torch.randperm(len(cells), generator=generator)[:share]])
    return torch.cat(chosen)


def cluster_centres(rows: Tensor, clusters: int, seed: int) -> Tensor:
    """(N, D) -> (K, D) by k-means from random rows; a cluster that loses its rows keeps its last centre."""
    centres, _ = kmeans2(rows.double().numpy(), clusters, minit="points", seed=seed % 2**32, missing="warn")
    return torch.from_numpy(centres).to(rows.dtype)


def check_clusters(method: str, clusters: int, images: int) -> None:
    """Raise ConfigError if there are fewer training images than clusters."""
    if images < clusters:
        raise ConfigError(
            f"{method} computes {clusters} clusters, and there are {images} training images.",
            f"Give head_size={images} or fewer, or more images.",
        )
