"""Batches for training: images for the whole network, or cached features for the layers after the backbone."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from wildcat.config import FLIP_VIEWS, Flip, TrainConfig
from wildcat.data.dataset import Sample, label_matrix
from wildcat.data.loader import Augment, BatchLoader, ImageDataset, batch_indices, epoch_order, suggested_workers
from wildcat.data.transforms import Preprocess
from wildcat.nn.backbones import Backbone
from wildcat.nn.heads.descriptor import DescriptorNetwork
from wildcat.nn.model import Output, Wildcat
from wildcat.nn.split import split_backbone
from wildcat.progress import Progress
from wildcat.train.batchnorm import (
    avoid_slow_gradients,
    estimate_running_statistics,
    fold_frozen_batchnorm,
    freeze_batchnorm,
    single_values_refused,
    synchronize_batchnorm,
)
from wildcat.train.distributed import data_parallel, local_size, rank, share_of, world_size
from wildcat.train.feature_cache import Features, cached_features

STATISTICS_IMAGES = 256  # training images on which the statistics of the features are measured
VAL_BATCH = 64  # cached features scored together
VECTOR_BYTES = 2 << 30  # most memory for vectors that do not change in training


class Batch(NamedTuple):
    """This process's share of a batch, which may be empty, and the number of images in the whole batch."""

    inputs: Tensor
    labels: Tensor  # (B, C) int8: 1 present, 0 ignored ("difficult"), -1 absent
    size: int


class Batches(Protocol):
    """Batches of a training and a val split, and the part of the network that they go through.

    Of several processes, each gets its share of every batch, the images `rank, rank + world_size, ...` of it.
    """

    images: int  # in the training split
    val_labels: Tensor  # (N, C) int8, of all images of val
    empty: Tensor  # (0, ...), inputs of no image

    def epoch(self, epoch: int, start: int) -> Iterator[Batch]:
        """The batches of an epoch from number `start` on; the same ones whenever asked."""

    def val(self) -> Iterator[Tensor]:
        """This process's inputs of val, in order."""

    def output(self, model: Wildcat, inputs: Tensor) -> Output:
        """Inputs -> what the loss is computed from; (B, C) scores, or (B, C + 1) with a background."""

    def estimate_batchnorm(self, model: Wildcat) -> None:
        """Fit the statistics of the network's normalisation layers to the training images, before the first step."""

    def labelled_features(self, model: Wildcat) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches of (B, D, h, w) features and (B, C) labels of training images, not augmented; always the same."""

    def channel_statistics(self, model: Wildcat) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of each channel of the features over training images: two (D,) float32."""


class ImageBatches:
    """Augmented images through the whole network (`--tune all`)."""

    def __init__(
        self,
        config: TrainConfig,
        samples: Sequence[Sample],
        val_samples: Sequence[Sample],
        preprocess: Preprocess,
        device: torch.device,
    ) -> None:
        self.config, self.device = config, device
        workers = suggested_workers(device.type, local_size()) if config.workers < 0 else config.workers
        augment = Augment(config.seed, config.crop_scale, config.flip, config.augment)
        self.train = BatchLoader(ImageDataset(samples, preprocess, augment), workers, device.type == "cuda")
        self.plain = BatchLoader(ImageDataset(samples, preprocess), workers)
        self.val_loader = BatchLoader(ImageDataset(val_samples, preprocess), workers)
        self.samples, self.val_labels = samples, _labels(val_samples)
        self.images = len(samples)
        self.empty = torch.zeros(0, 3, preprocess.size, preprocess.size)

    def epoch(self, epoch: int, start: int) -> Iterator[Batch]:
        order = epoch_order(self.images, self.config.seed, epoch)
        batches = batch_indices(order, self.config.batch_size)[start:]
        shares = [_share(batch) for batch in batches]
        loaded = self.train.batches([share for share in shares if share], epoch)
        for batch, share in zip(batches, shares, strict=True):
            images, labels = next(loaded) if share else (self.empty, _labels(self.samples, share))
            yield Batch(images, labels, len(batch))

    def val(self) -> Iterator[Tensor]:
        size = max(1, self.config.batch_size // world_size())
        for images, _ in self.val_loader.batches(batch_indices(share_of(len(self.val_labels)), size)):
            yield images

    def output(self, model: Wildcat, inputs: Tensor) -> Output:
        features = model.features(inputs.contiguous(memory_format=torch.channels_last))
        return model.training_output(features, modalities=self.config.map_information > 0)

    def estimate_batchnorm(self, model: Wildcat) -> None:
        if not frozen_batchnorm(self.config):
            estimate_running_statistics(model.backbone, (images for images, _ in self._statistics_images()))

    @torch.no_grad()
    def labelled_features(self, model: Wildcat) -> Iterator[tuple[Tensor, Tensor]]:
        training = model.training
        model.eval()
        for images, labels in self._statistics_images():
            yield model.features(images), labels
        model.train(training)

    def channel_statistics(self, model: Wildcat) -> tuple[Tensor, Tensor]:
        return channel_statistics(features for features, _ in self.labelled_features(model))

    def _statistics_images(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches of training images without augmentation, (B, 3, S, S), on the device, and their labels (B, C)."""
        chosen = epoch_order(self.images, self.config.seed, 0)[:STATISTICS_IMAGES]
        for images, labels in self.plain.batches(batch_indices(chosen, self.config.batch_size)):
            yield images.to(self.device), labels


class FeatureBatches:
    """Cached features of frozen layers through the layers after them (`--tune head` and `last`)."""

    def __init__(
        self,
        config: TrainConfig,
        model: Wildcat,
        samples: Sequence[Sample],
        val_samples: Sequence[Sample],
        preprocess: Preprocess,
        progress: Progress,
    ) -> None:
        self.config, self.model = config, model
        model.eval()
        self.frozen: Backbone = model.backbone
        self.rest: nn.Module = nn.Identity()
        if config.tune == "last":
            self.frozen, self.rest = split_backbone(model.backbone, preprocess.size)
        self.frozen.requires_grad_(False)
        progress.start("features", len(samples) * len(FLIP_VIEWS[config.flip]) + len(val_samples))

        def features_of(part: Sequence[Sample], flip: Flip) -> Features:
            return cached_features(
                self.frozen, part, preprocess, flip, workers=config.workers, progress=progress, amp=config.amp
            )

        self.train = features_of(samples, config.flip)
        self.val_features = features_of(val_samples, "none") if val_samples else None
        self.samples, self.val_labels = samples, _labels(val_samples)
        self.images = len(samples)
        self.empty = self.train.batch([])
        self.vectors: Tensor | None = None  # (views, N, E) of a network whose vectors do not change in training

    def epoch(self, epoch: int, start: int) -> Iterator[Batch]:
        order = epoch_order(self.images, self.config.seed, epoch)
        views = np.random.default_rng([self.config.seed, epoch, 1]).integers(0, self.train.views, self.images)
        if self.vectors is None and self.config.tune == "head" and world_size() == 1:
            self.vectors = self._compute_vectors()
        for batch in batch_indices(order, self.config.batch_size)[start:]:
            share = _share(batch)
            if self.vectors is not None:
                inputs = self.vectors[views[share], share]
            else:
                inputs = self.train.batch(share, [int(views[i]) for i in share])
            yield Batch(inputs, _labels(self.samples, share), len(batch))

    @torch.no_grad()
    def _compute_vectors(self) -> Tensor | None:
        """(views, N, E), the inputs of a classifier of vectors that do not change in training; None if they do, or if
        they do not fit in memory.

        Computed once instead of in every epoch: a tenth of the time for compact-bilinear.
        """
        if not (isinstance(self.model, DescriptorNetwork) and self.model.vectors_are_fixed):
            return None
        vectors: Tensor | None = None
        for view in range(self.train.views):
            for batch in batch_indices(range(self.images), self.config.batch_size):
                features = self.train.batch(batch, [view] * len(batch)).to(self.model.transfer.mean)
                found = self.model.vectors(features).cpu()
                if vectors is None:
                    shape = (self.train.views, self.images, found.shape[1])
                    if 4 * math.prod(shape) > VECTOR_BYTES:
                        return None
                    vectors = torch.empty(shape)
                vectors[view, batch] = found
        return vectors

    def val(self) -> Iterator[Tensor]:
        if self.val_features is not None:
            for batch in batch_indices(share_of(len(self.val_labels)), VAL_BATCH):
                yield self.val_features.batch(batch)

    def output(self, model: Wildcat, inputs: Tensor) -> Output:
        if isinstance(model, DescriptorNetwork) and inputs.dim() == 2:
            return model.classified(inputs)
        return model.training_output(self.rest(inputs), modalities=self.config.map_information > 0)

    def estimate_batchnorm(self, model: Wildcat) -> None:
        pass  # the features are those of the backbone as it is

    @torch.no_grad()
    def labelled_features(self, model: Wildcat) -> Iterator[tuple[Tensor, Tensor]]:
        for batch in batch_indices(range(self.images), self.config.batch_size):
            yield self.rest(self.train.batch(batch).to(model.transfer.mean)), _labels(self.samples, batch)

    @torch.no_grad()
    def channel_statistics(self, model: Wildcat) -> tuple[Tensor, Tensor]:
        every = batch_indices(range(self.images), self.config.batch_size)
        features = (self.train.batch(batch, [v] * len(batch)) for v in range(self.train.views) for batch in every)
        return channel_statistics(self.rest(batch.to(model.transfer.mean)) for batch in features)


def frozen_batchnorm(config: TrainConfig) -> bool:
    """Whether the backbone keeps its running statistics in training; random weights have none worth keeping."""
    return config.freeze_bn and config.weights != "none"


def set_training_mode(model: Wildcat, config: TrainConfig) -> None:
    """Put the layers that are trained into training mode, and frozen ones into evaluation mode."""
    model.train()
    if config.tune == "head":
        model.backbone.eval()
    elif frozen_batchnorm(config):
        freeze_batchnorm(model.backbone)


def channel_statistics(batches: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each channel over all images and places of (B, D, h, w) features: (D,) each.

    Sums within a batch are in float32, which is much faster on a CPU, and of differences to the mean of the first
    batch: the spread of a channel whose mean is much larger keeps its digits.
    """
    count, origin, total, squares = 0, torch.zeros(()), torch.zeros(()), torch.zeros(())
    for batch in batches:
        rows = batch.cpu().permute(0, 2, 3, 1).flatten(0, 2)  # (B*h*w, D), on the CPU: MPS has no double precision
        origin = origin if count else rows.mean(dim=0)
        rows = rows - origin
        total = total + rows.sum(dim=0).double()
        squares = squares + rows.square_().sum(dim=0).double()
        count += len(rows)
    mean = total / count
    return (mean + origin).float(), (squares / count - mean.square()).clamp(min=0).sqrt().float()


def _share(batch: Sequence[int]) -> list[int]:
    """The images of a batch that this process reads."""
    return list(batch[rank() :: world_size()])


def _labels(samples: Sequence[Sample], chosen: Sequence[int] | None = None) -> Tensor:
    """(B, C) int8 of the chosen samples, or of all: gathered for each batch, as (N, C) may not fit in memory."""
    rows = samples if chosen is None else [samples[i] for i in chosen]
    width = len(samples[0].labels) if samples else 0
    return torch.from_numpy(label_matrix(rows)) if rows else torch.zeros(0, width, dtype=torch.int8)


def create_batches(
    config: TrainConfig,
    model: Wildcat,
    samples: Sequence[Sample],
    val_samples: Sequence[Sample],
    preprocess: Preprocess,
    progress: Progress,
) -> Batches:
    """The batches for `config.tune`."""
    model.requires_grad_(True)
    batches: Batches
    if config.tune == "all":
        batches = ImageBatches(config, samples, val_samples, preprocess, next(model.parameters()).device)
    else:
        batches = FeatureBatches(config, model, samples, val_samples, preprocess, progress)
    if config.tune != "head":
        if frozen_batchnorm(config):
            fold_frozen_batchnorm(model.backbone.network)
        avoid_slow_gradients(model.backbone.network)
    return batches


class TrainingOutput(nn.Module):
    """The part of the network that training runs, as one module for data parallelism: inputs -> `Output`."""

    def __init__(self, model: Wildcat, batches: Batches, accepts_empty: bool) -> None:
        super().__init__()
        self.model, self.batches, self.accepts_empty = model, batches, accepts_empty

    def forward(self, inputs: Tensor) -> Output:
        """(B, ...) -> B outputs. An empty share is replaced by zeros, so that there are gradients to average."""
        if len(inputs) or self.accepts_empty:
            with single_values_refused(len(inputs)):
                return self.batches.output(self.model, inputs)
        return Output(*(x[:0] for x in self.batches.output(self.model, inputs.new_zeros(1, *inputs.shape[1:]))))


def parallel_network(model: Wildcat, batches: Batches, config: TrainConfig) -> nn.Module:
    """The network to train, replicated on every process; on GPUs with shared batch normalisation if it is trained."""
    device = next(model.parameters()).device
    trained = config.sync_bn and config.tune != "head" and not frozen_batchnorm(config)
    shared = trained and world_size() > 1 and device.type == "cuda"
    if shared:
        synchronize_batchnorm(model.backbone)
    return data_parallel(TrainingOutput(model, batches, shared), batches.empty.to(device))
