"""The WILDCAT network: backbone, multi-map transfer layer, class-wise pooling, spatial pooling (paper, figure 2)."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from typing import NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from wildcat.errors import ConfigError, ShapeError
from wildcat.nn.backbones import Backbone
from wildcat.nn.pooling import ClassWisePool

Labelled = Callable[[], Iterator[tuple[Tensor, Tensor]]]
"""Gives batches of (B, D, h, w) features and (B, C) labels of training images, the same ones whenever called."""


class Output(NamedTuple):
    """What the layers after the backbone compute.

    Attributes:
        scores: (B, C) logits.
        class_maps: (B, C, h, w), eq. 1; (B, C, 0, 0) where the method has no class maps.
        maps: (B, C, M, h, w), the M modality maps of each class.
    """

    scores: Tensor
    class_maps: Tensor
    maps: Tensor


class Wildcat(nn.Module):
    """Images in, one score per class out; trained from image-level labels only.

    Attributes:
        backbone: images (B, 3, H, W) -> features (B, D, h, w).
        transfer: features (B, D, h, w) -> maps (B, C*M, h, w); map index = c*M + m.
        class_pool: maps (B, C*M, h, w) -> class maps (B, C, h, w), eq. 1.
        pool: class maps (B, C, h, w) -> scores (B, C), eq. 3 or another layer with `offset_gain`,
            see `wildcat.nn.pooling.SpatialPool`.
        has_maps: whether there are class maps, from which points, boxes and masks follow.
    """

    has_maps = True

    def __init__(
        self,
        backbone: Backbone,
        num_classes: int,
        num_maps: int,
        pool: nn.Module,
        class_pool: ClassWisePool | None = None,
    ) -> None:
        super().__init__()
        if num_classes < 1 or num_maps < 1:
            raise ConfigError(f"num_classes={num_classes}, num_maps={num_maps}: both must be at least 1.")
        self.num_classes, self.num_maps = num_classes, num_maps
        self.backbone = backbone
        self.transfer = Transfer(backbone.num_features, num_classes * num_maps)
        self.class_pool = class_pool or ClassWisePool(num_maps)
        self.pool = pool

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) normalised images -> (B, C) scores (logits)."""
        return self.head(self.features(images)).scores

    def features(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) normalised images -> (B, D, h, w)."""
        if images.ndim != 4 or images.shape[1] != 3:
            raise ShapeError(f"images of shape {tuple(images.shape)}: give (batch, 3, height, width), normalised RGB.")
        features: Tensor = self.backbone(images)
        return features

    def head(self, features: Tensor) -> Output:
        """(B, D, h, w) features -> scores, class maps and modality maps."""
        maps = self.transfer(features)  # (B, C*M, h, w)
        class_maps = self.class_pool(maps)  # (B, C, h, w), eq. 1
        scores = self.pool(class_maps)  # (B, C), eq. 3
        return Output(scores, class_maps, maps.unflatten(1, (self.num_classes, self.num_maps)))

    def maps(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, C, M, h, w), the M modality maps of each class."""
        return self.head(self.features(images)).maps

    def training_output(self, features: Tensor, modalities: bool = False) -> Output:
        """(B, D, h, w) features -> what the loss is computed from.

        With a background class (`wildcat.nn.heads.BackgroundWildcat`) the scores have one more column, the last, for
        the background, which is in every image.

        Args:
            modalities: whether the loss is also computed from the M maps; otherwise they are fused where they can be,
                which gives all weights the same gradient in 1/M of the time.
        """
        return (self if modalities else self.fuse()).head(features)

    def fuse(self) -> Self:
        """The same network with one map per class, made by the average of the M maps' weights.

        The mean is linear, so the average of the maps is the map of the average weights: scores, class maps and the
        gradients of all weights are equal, and the transfer layer costs 1/M. All else is shared, not copied; the
        modality maps no longer exist. Without gradients (`torch.no_grad`) the result has parameters of its own, for
        export. Other class-wise poolings are not linear: the network itself is returned.
        """
        if self.class_pool.pool != "mean" or self.num_maps == 1:
            return self
        fused, transfer = copy.copy(self), copy.copy(self.transfer)
        fused._modules = {**self._modules, "transfer": transfer, "class_pool": ClassWisePool(1)}
        fused.num_maps, transfer.out_channels = 1, self.num_classes
        maps = (self.num_classes, self.num_maps)
        averages = {  # (C*M, ...) -> (C, ...)
            name: p.reshape(*maps, *p.shape[1:]).mean(dim=1) for name, p in self.transfer.named_parameters()
        }
        if torch.is_grad_enabled():  # functions of the M maps' weights, so that gradients reach these
            transfer._parameters = averages  # type: ignore[assignment]
        else:
            transfer._parameters = {name: nn.Parameter(average) for name, average in averages.items()}
        return fused

    @property
    def feature_mean(self) -> Tensor:
        """(D,), the mean of each channel over the training images."""
        return self.transfer.mean

    def standardize(self, mean: Tensor, std: Tensor) -> None:
        """Set mean and standard deviation of each channel of the features, both (D,), see `Transfer`."""
        self.transfer.standardize(mean, std)

    def fit(self, images: Labelled, seed: int) -> None:
        """Start layers from the features of the training images, after `standardize`; there are none here."""

    def check(self, images: int, cells: tuple[int, int]) -> None:
        """Refuse too few training images, or maps with too few rows and columns; none is too small here."""

    def shrink(self, lr: float) -> None:
        """Move weights towards zero after a step at this learning rate, by a penalty without a gradient; none here."""

    @torch.no_grad()
    def initialise(self, prior: Tensor, multiclass: bool) -> None:
        """Draw the weights of the transfer layer, and set its bias so that all scores start at the classes' prior.

        A score that starts at the class's log-odds (log-frequency where classes exclude each other) saves the epochs
        it takes to learn that most classes are absent from most images.

        Args:
            prior: (C,) frequencies of the classes in the training set, in (0, 1).
            multiclass: whether classes exclude each other.
        """
        # much smaller than the learned weights, so that the maps of the first epochs are not noise
        nn.init.normal_(self.transfer.weight, std=0.01 / math.sqrt(self.transfer.in_channels))
        score = prior.log() if multiclass else torch.logit(prior)
        self.transfer.bias.copy_((score / self.offset_gain()).to(self.transfer.bias).repeat_interleave(self.num_maps))

    def offset_gain(self) -> float:
        """The rise of a score when the bias of its maps rises by one: eq. 3 passes it on (1 + alpha) times."""
        return float(self.pool.offset_gain())  # type: ignore[operator]  # every pooling layer has it


class StandardizingLayer(nn.Module):
    """Standardises features, `(x - mean) / std` per channel: the identity until `standardize` is called.

    Attributes:
        mean, std: (D,), of the features of the training images.
    """

    mean: Tensor
    std: Tensor

    def register_statistics(self, channels: int) -> None:
        """Register the buffers."""
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("std", torch.ones(channels))

    @torch.no_grad()
    def standardize(self, mean: Tensor, std: Tensor) -> None:
        """Set mean and standard deviation of each channel, both (D,); constant channels are ignored."""
        self.mean.copy_(mean)
        self.std.copy_(torch.where(std > 1e-6 * std.max(), std, math.inf))  # x / inf = 0: they add nothing

    def standardized(self, features: Tensor) -> Tensor:
        """(B, D, h, w) -> the same shape, standardised."""
        return (features - self.mean[:, None, None]) / self.std[:, None, None]


class Transfer(nn.Conv2d, StandardizingLayer):
    """1x1 convolution with bias on standardised features, `(x - mean) / std` per channel.

    Standardised features have a spread of 1 in every channel, so one learning rate suits all backbones; channels of a
    ReLU network otherwise differ in spread by orders of magnitude. The standardisation is the identity until
    `standardize` sets it. It is computed inside the convolution's weights, which saves a pass over the features.
    """

    bias: nn.Parameter

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, kernel_size=1)
        self.register_statistics(in_channels)

    def forward(self, features: Tensor) -> Tensor:
        return functional.conv2d(features, *self.folded())

    def folded(self) -> tuple[Tensor, Tensor]:
        """Weight and bias of the same layer as a plain convolution, on features that are not standardised."""
        weight = self.weight / self.std[:, None, None]
        return weight, self.bias - (weight * self.mean[:, None, None]).sum(dim=(1, 2, 3))
