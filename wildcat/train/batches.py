"""What the training loop eats: images for the whole network, or cached features for the layers after the backbone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from wildcat.config import FLIP_VIEWS, Flip, TrainConfig
from wildcat.data.cache import cache_folder
from wildcat.data.dataset import Sample, label_matrix
from wildcat.data.loader import Augment, ImageDataset, batch_indices, epoch_order, load_batches
from wildcat.data.transforms import Preprocess
from wildcat.nn.model import Wildcat
from wildcat.progress import Progress
from wildcat.train.batchnorm import relearning_norms
from wildcat.train.distributed import rank, share_of, world_size
from wildcat.train.feature_cache import Features, cached_features

STATISTICS_IMAGES = 256
"""How many training images the spread of the features is measured on."""


class Feed(Protocol):
    """Batches for training and val, and the part of the network they go through.

    Of several processes, each gets its share of the inputs of every batch, `share_of(B)`, which may be none.
    """

    images: int
    val_labels: Tensor  # (N, C) int8 of all images of val
    nothing: Tensor  # (0, ...) inputs of no image

    def steps_per_epoch(self, accumulate: int) -> int:
        """Optimiser steps an epoch."""

    def train_batches(self, epoch: int, start: int) -> Iterator[tuple[Tensor, Tensor]]:
        """(inputs of this process, labels (B, C) int8 of the whole batch) of an epoch's batches from `start` on; the
        same ones whenever asked."""

    def val_batches(self) -> Iterator[Tensor]:
        """This process's inputs of val, in order."""

    def scores(self, model: Wildcat, inputs: Tensor) -> Tensor:
        """Inputs -> (B, C) scores, or (B, C + 1) where the network has a background."""

    def freeze(self, model: Wildcat) -> None:
        """Put the layers that are not trained into evaluation mode."""

    def channel_statistics(self, model: Wildcat) -> tuple[Tensor, Tensor] | None:
        """Mean and spread of each backbone channel on training images, or None to leave features as they are."""


class ImageFeed:
    """Images, cropped and mirrored at random, through the whole network (`--tune all`)."""

    def __init__(
        self,
        config: TrainConfig,
        samples: Sequence[Sample],
        val_samples: Sequence[Sample],
        preprocess: Preprocess,
        workers: int,
    ) -> None:
        self.config, self.samples, self.workers = config, samples, workers
        self.plain = ImageDataset(samples, preprocess)
        self.augmented = ImageDataset(samples, preprocess, Augment(config.seed, config.crop_scale, config.flip))
        self.val = ImageDataset(val_samples, preprocess)
        self.labels, self.val_labels = _labels(samples), _labels(val_samples)
        self.images = len(samples)
        self.nothing = torch.zeros(0, 3, preprocess.size, preprocess.size)

    def steps_per_epoch(self, accumulate: int) -> int:
        return -(-len(batch_indices(range(len(self.samples)), self.config.batch_size)) // accumulate)

    def train_batches(self, epoch: int, start: int) -> Iterator[tuple[Tensor, Tensor]]:
        order = epoch_order(len(self.samples), self.config.seed, epoch)
        batches = batch_indices(order, self.config.batch_size)[start:]
        shares = [share for batch in batches if (share := _share(batch))]
        loaded = load_batches(self.augmented, shares, epoch, self.workers, torch.cuda.is_available())
        for batch in batches:
            yield next(loaded)[0] if _share(batch) else self.nothing, self.labels[batch]

    def val_batches(self) -> Iterator[Tensor]:
        batches = batch_indices(share_of(len(self.val)), max(1, self.config.batch_size // world_size()))
        return (images for images, _ in load_batches(self.val, batches, workers=self.workers))

    def scores(self, model: Wildcat, inputs: Tensor) -> Tensor:
        return model.training_scores(model.features(inputs.contiguous(memory_format=torch.channels_last)))

    def freeze(self, model: Wildcat) -> None:
        pass

    @torch.no_grad()
    def channel_statistics(self, model: Wildcat) -> tuple[Tensor, Tensor] | None:
        if not self.config.standardize:
            return None
        chosen = epoch_order(len(self.samples), self.config.seed, 0)[:STATISTICS_IMAGES]
        device = next(model.parameters()).device
        total, squares, count = torch.zeros(()), torch.zeros(()), 0
        batches = load_batches(self.plain, batch_indices(chosen, self.config.batch_size), workers=self.workers)
        with relearning_norms(model):
            for images, _ in batches:
                features = model.features(images.to(device)).cpu().double()  # on the CPU: MPS has no double precision
                total = total + features.sum(dim=(0, 2, 3))
                squares = squares + features.square().sum(dim=(0, 2, 3))
                count += features.numel() // features.shape[1]
        mean = total / count
        return mean.float(), (squares / count - mean.square()).clamp(min=0).sqrt().float()


class FeatureFeed:
    """Cached features through the layers after the backbone (`--tune head`)."""

    def __init__(
        self,
        config: TrainConfig,
        model: Wildcat,
        samples: Sequence[Sample],
        val_samples: Sequence[Sample],
        preprocess: Preprocess,
        workers: int,
        progress: Progress,
    ) -> None:
        self.config = config
        model.backbone.requires_grad_(False)
        model.eval()
        progress.start("features", len(samples) * len(FLIP_VIEWS[config.flip]) + len(val_samples), 0)

        def features_of(part: Sequence[Sample], flip: Flip) -> Features:
            folder = cache_folder() / "features"
            return cached_features(
                model.backbone, part, preprocess, flip, folder, workers, progress=progress.advance, amp=config.amp
            )

        self.train = features_of(samples, config.flip)
        self.val = features_of(val_samples, "none") if val_samples else None
        self.labels, self.val_labels = _labels(samples), _labels(val_samples)
        self.images = len(samples)
        self.nothing = self.train.batch([])

    def steps_per_epoch(self, accumulate: int) -> int:
        return -(-len(batch_indices(range(self.images), self.config.batch_size)) // accumulate)

    def train_batches(self, epoch: int, start: int) -> Iterator[tuple[Tensor, Tensor]]:
        order = epoch_order(self.images, self.config.seed, epoch)
        views = np.random.default_rng([self.config.seed, epoch, 1]).integers(0, self.train.views, self.images)
        for batch in batch_indices(order, self.config.batch_size)[start:]:
            share = _share(batch)
            yield self.train.batch(share, [int(views[i]) for i in share]), self.labels[batch]

    def val_batches(self) -> Iterator[Tensor]:
        if self.val is not None:
            for batch in batch_indices(share_of(len(self.val_labels)), 64):
                yield self.val.batch(batch)

    def scores(self, model: Wildcat, inputs: Tensor) -> Tensor:
        return model.training_scores(inputs)

    def freeze(self, model: Wildcat) -> None:
        model.backbone.eval()

    def channel_statistics(self, model: Wildcat) -> tuple[Tensor, Tensor] | None:
        return self.train.channel_statistics() if self.config.standardize else None


def _share(batch: Sequence[int]) -> list[int]:
    """The images of a batch that this process takes."""
    return list(batch[rank() :: world_size()])


def _labels(samples: Sequence[Sample]) -> Tensor:
    """(N, C) int8; (0, 0) of no images."""
    return torch.from_numpy(label_matrix(samples)) if samples else torch.zeros(0, 0, dtype=torch.int8)


def create_feed(
    config: TrainConfig,
    model: Wildcat,
    samples: Sequence[Sample],
    val_samples: Sequence[Sample],
    preprocess: Preprocess,
    workers: int,
    progress: Progress,
) -> Feed:
    """The feed that `config.tune` asks for."""
    if config.tune == "head":
        return FeatureFeed(config, model, samples, val_samples, preprocess, workers, progress)
    return ImageFeed(config, samples, val_samples, preprocess, workers)
