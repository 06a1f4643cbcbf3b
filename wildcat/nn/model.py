"""The WILDCAT network: backbone, multi-map transfer layer, class-wise pooling, spatial pooling (paper, figure 2)."""

from __future__ import annotations

import math
from typing import get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from wildcat.config import Architecture, Regions, TrainConfig
from wildcat.errors import ConfigError, ShapeError
from wildcat.nn.attention import AttentionPool
from wildcat.nn.backbones import EMBEDDED, Backbone, create_backbone, embedded_classifier
from wildcat.nn.pooling import MapPool, class_wise_pool, create_pool


class Wildcat(nn.Module):
    """Images in, one score per class out; learned from image-level labels only.

    Attributes:
        backbone: images (B, 3, H, W) -> features (B, D, h, w).
        standardize: fixed per-channel scaling of the features; the identity until `FeatureScale.measure` is called.
        transfer: 1x1 convolution with bias from D to C*M maps; map index = c*M + m.
        pool: class maps (B, C, h, w) -> scores (B, C); `AttentionPool` is given the standardised features as well.
        architecture: the order of things, the first two those of Table 5 of the paper.
            "a": classify each region, average the M maps of a class, pool over space.
            "b": pool each feature over space, classify, average the M scores of a class.
            "c" (not in the paper): classify each region, pool each of the M maps over space, average their scores. Only
            here do the M maps of a class get gradients of their own, at the regions that each selects.
            All three are one model with average pooling, and with attention, whose weights are the same for the M maps
            of a class: both are linear in the maps.
        background: whether the classes of a region compete, see `against_the_others`: with each other and with a
            background that is in every image. Class maps are then log-odds against it, and masks need no threshold.
    """

    def __init__(
        self,
        backbone: Backbone,
        num_classes: int,
        num_maps: int,
        pool: MapPool | AttentionPool,
        architecture: Architecture = "a",
        background: bool = False,
    ) -> None:
        super().__init__()
        if num_classes < 1 or num_maps < 1:
            raise ConfigError(f"num_classes={num_classes}, num_maps={num_maps}: both must be at least 1.")
        if architecture not in get_args(Architecture):
            raise ConfigError(
                f"architecture={architecture!r}: give 'a' (classify, then pool), 'b' (pool, then classify) or "
                "'c' (classify, then pool each of the M maps by itself)."
            )
        if background and (architecture != "a" or isinstance(pool, AttentionPool)):
            raise ConfigError(
                "background=True goes with architecture 'a' and a pooling of class maps.",
                "Leave it out, or architecture and pooling at their defaults.",
            )
        self.backbone = backbone
        self.standardize = FeatureScale(backbone.num_features)
        self.transfer = nn.Conv2d(backbone.num_features, num_classes * num_maps, kernel_size=1)
        self.pool = pool
        self.num_classes = num_classes
        self.num_maps = num_maps
        self.architecture = architecture
        self.background = background

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) normalised images -> (B, C) scores (logits)."""
        return self.score(self.features(images))

    def features(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, D, h, w), straight out of the backbone."""
        if images.ndim != 4 or images.shape[1] != 3:
            raise ShapeError(f"images of shape {tuple(images.shape)}: give (batch, 3, height, width), normalised RGB.")
        features: Tensor = self.backbone(images)
        return features

    def score(self, features: Tensor, class_maps: Tensor | None = None) -> Tensor:
        """(B, D, h, w) features -> (B, C) scores; `class_maps` are those of the features, where they have been made."""
        return self.training_scores(features, class_maps)[:, : self.num_classes]

    def training_scores(self, features: Tensor, class_maps: Tensor | None = None) -> Tensor:
        """As `score`, (B, C); with a background (B, C + 1), its score last, whose label is always on."""
        scores: Tensor
        if self.background:
            class_maps = self.class_maps_of(features) if class_maps is None else class_maps
            scores = self.pool(against_the_others(class_maps))
        elif self.architecture == "a" or isinstance(self.pool, AttentionPool):
            class_maps = self.class_maps_of(features) if class_maps is None else class_maps
            attended = (self.standardize(features),) if isinstance(self.pool, AttentionPool) else ()
            scores = self.pool(class_maps, *attended)
        elif self.architecture == "b":
            pooled = self.pool(self.standardize(features))  # (B, D, h, w) -> (B, D)
            maps = self.transfer(pooled[:, :, None, None])  # (B, D, 1, 1) -> (B, C*M, 1, 1)
            scores = class_wise_pool(maps, self.num_maps).flatten(1)
        else:
            maps = self.maps_of(features).flatten(1, 2)  # (B, C, M, h, w) -> (B, C*M, h, w)
            scores = self.pool(maps).unflatten(1, (self.num_classes, self.num_maps)).mean(dim=2)
        return scores

    def maps(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, C, M, h, w): the M modalities of each class."""
        return self.maps_of(self.features(images))

    def class_maps(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, C, h, w): the mean of each class's modalities, eq. 1."""
        return self.class_maps_of(self.features(images))

    def maps_of(self, features: Tensor) -> Tensor:
        """(B, D, h, w) features -> (B, C, M, h, w)."""
        maps = self._transfer(features, self.transfer.weight, self.bias())
        batch, _, height, width = maps.shape
        # (B, C*M, h, w) -> (B, C, M, h, w)
        return maps.reshape(batch, self.num_classes, self.num_maps, height, width)

    def class_maps_of(self, features: Tensor) -> Tensor:
        """(B, D, h, w) features -> (B, C, h, w).

        The transfer layer is linear: the mean of its maps (eq. 1) is the map of its mean weights. Taken of the weights
        it costs nothing, gives the same maps up to rounding, and each of the M weights the same 1/M of the gradient.
        """
        weights = self.transfer.weight.flatten(1)[None, :, None]  # (C*M, D, 1, 1) -> (1, C*M, 1, D): rows in one piece
        weight = class_wise_pool(weights, self.num_maps)[0, :, 0, :, None, None]  # -> (C, D, 1, 1)
        bias = class_wise_pool(self.bias()[None, :, None, None], self.num_maps)  # (1, C*M, 1, 1) -> (1, C, 1, 1)
        return self._transfer(features, weight, bias.flatten())

    def _transfer(self, features: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """(B, D, h, w) -> (B, K, h, w): standardise and transfer in one convolution, no pass over the features."""
        return functional.conv2d(features, *self.standardize.fold_into(weight, bias))

    @torch.no_grad()
    def start_at_prior(self, prior: Tensor, multiclass: bool) -> None:
        """Set the transfer bias so that an uninformed network scores each class at its frequency.

        A score that starts at the class's log-odds (log-frequency where classes exclude each other) spares training
        the epochs it takes to learn that most classes are absent from most images.

        Args:
            prior: (C,) frequencies of the classes in the training set, in (0, 1).
            multiclass: whether classes exclude each other.
        """
        score = prior.log() if multiclass else torch.logit(prior)
        # In architectures (a) and (c) the bias is pooled with the regions: eq. 3 passes it on (1 + alpha) times.
        gain = 1.0 if self.architecture == "b" else self.pool.offset_gain()
        bias = (score / gain).to(self.transfer.weight)
        self.bias().copy_(bias.repeat_interleave(self.num_maps))

    def bias(self) -> Tensor:
        """(C*M,) bias of the transfer layer."""
        bias = self.transfer.bias
        if bias is None:
            raise ConfigError("the transfer layer has lost its bias.")
        return bias


def against_the_others(maps: Tensor) -> Tensor:
    """(B, C, h, w) log-odds of each class against the background -> (B, C + 1, h, w), the background's last.

    What speaks for each class against all others and the background together, at each place: its value less the
    log-sum-exp of the rest, the background being 0. It is the logit of the class's softmax probability (a background
    class that competes at each place: Pinheiro and Collobert, CVPR 2015), so the loss of independent classes fits it.

    >>> against_the_others(torch.zeros(1, 1, 1, 1)).flatten().tolist()  # one class, as likely as the background
    [0.0, 0.0]
    """
    every = torch.cat([maps, torch.zeros_like(maps[:, :1])], dim=1)
    highest, best = every.max(dim=1, keepdim=True)
    is_best = torch.zeros_like(every, dtype=torch.bool).scatter(1, best, value=True)
    # Without the highest, the rest is a sum of its own; without another one, the highest keeps the sum above 1.
    without_best = every.masked_fill(is_best, -torch.inf).logsumexp(dim=1, keepdim=True)
    total = (every - highest).exp().sum(dim=1, keepdim=True)
    own = (every - highest).exp().masked_fill(is_best, 0.0)
    return every - torch.where(is_best, without_best, highest + (total - own).log())


class FeatureScale(nn.Module):
    """Fixed per-channel standardisation, `(x - mean) / std`; the identity until measured.

    Followed by the 1x1 transfer layer it changes no model the network can express (it folds into the weights exactly),
    only how evenly gradient descent moves in them: channels of a ReLU network differ in spread by orders of magnitude.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("std", torch.ones(channels))

    def forward(self, features: Tensor) -> Tensor:
        shape = (1, -1) + (1,) * (features.ndim - 2)
        return (features - self.mean.view(shape)) / self.std.view(shape)

    def fold_into(self, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """The 1x1 convolution that does to raw features what (`weight`, `bias`) does to standardised ones."""
        folded = weight / self.std[:, None, None]
        return folded, bias - (folded * self.mean[:, None, None]).sum(dim=(1, 2, 3))

    @torch.no_grad()
    def measure(self, mean: Tensor, std: Tensor) -> None:
        """Adopt per-channel mean and spread, both (D,).

        The D standardised channels are scaled together to unit length on average (`std` holds the spread times
        sqrt(D)), so that a good learning rate does not depend on D. Channels that never vary are left out of the
        scores.
        """
        self.mean.copy_(mean)
        alive = std > 1e-6 * std.max()
        self.std.copy_(torch.where(alive, std, torch.inf) * math.sqrt(len(std)))


def create_model(
    backbone: str = "resnet101",
    num_classes: int = 20,
    num_maps: int = 4,
    kmax: Regions = 0.2,
    kmin: Regions | None = None,
    alpha: float = 0.7,
    pretrained: bool | str = True,
    output_stride: int = 32,
    pooling: str = "wildcat",
    sharpness: float = 4.0,
    architecture: Architecture = "a",
    image_size: int = 224,
    residual: float = 0.2,
    temperature: float = math.inf,
    attention_size: int = 128,
    background: bool = False,
) -> Wildcat:
    """Build a WILDCAT network on any backbone; the defaults are the paper's.

    Args:
        backbone: `lite0`, `lite1`, `lite2` (weights come with the package) or any timm name.
        num_classes: C.
        num_maps: M, the maps per class.
        kmax, kmin, alpha: of eq. 3, see `wildcat.nn.pooling.spatial_pool`.
        pretrained: True for ImageNet weights, False for random ones, or a file of weights.
        output_stride: input pixels per cell of the maps: 32, 16 or 8.
        pooling: a row of Table 1 or `csra`, see `wildcat.nn.pooling.create_pool`; or `attention`, see
            `wildcat.nn.attention.AttentionPool`.
        sharpness: of log-sum-exp pooling.
        architecture: "a" (classify, then pool), "b" (pool, then classify) or "c" (as "a", each map by itself).
        image_size: input side in pixels, for transformers; convolutional backbones take any size.
        residual, temperature: lambda and T of residual attention, see `wildcat.nn.pooling.csra_pool`.
        attention_size: L, the hidden units of gated attention.
        background: let the classes of a region compete with each other and a background, see `Wildcat`.

    Raises:
        ConfigError, MissingExtra, RunError: see `wildcat.nn.backbones.create_backbone`.

    >>> model = create_model("test_resnet", num_classes=3, pretrained=False)
    >>> images = torch.zeros(2, 3, 160, 96)
    >>> model(images).shape, model.maps(images).shape
    (torch.Size([2, 3]), torch.Size([2, 3, 4, 5, 3]))
    """
    pool: MapPool | AttentionPool | None = None
    if pooling != "attention":  # settings out of range are refused before any weights are read
        pool = create_pool(pooling, kmax, kmin, alpha, sharpness, residual, temperature)
    weights = pretrained if isinstance(pretrained, str) else "imagenet" if pretrained else "none"
    features = create_backbone(backbone, weights, output_stride, image_size)
    if pool is None:
        pool = AttentionPool(features.num_features, num_classes, attention_size)
    return Wildcat(features, num_classes, num_maps, pool, architecture, background)


def model_from_config(config: TrainConfig, num_classes: int, weights: str | None = None) -> Wildcat:
    """The network a run's settings describe; `weights` overrides where the backbone starts."""
    return create_model(
        backbone=config.backbone,
        num_classes=num_classes,
        num_maps=config.num_maps,
        kmax=config.kmax,
        kmin=config.kmin,
        alpha=config.alpha,
        pretrained=config.weights if weights is None else weights,
        output_stride=config.output_stride,
        pooling=config.pooling,
        sharpness=config.sharpness,
        architecture=config.architecture,
        image_size=config.image_size,
        residual=config.residual,
        temperature=config.temperature,
        attention_size=config.attention_size,
        background=config.background,
    )


def imagenet_model(name: str, output_stride: int = 32) -> Wildcat:
    """The ImageNet classifier of an embedded backbone as a WILDCAT network with 1,000 classes and no training.

    Average pooling of class maps made by the classifier's own weights gives the classifier's own logits (Zhou et al.,
    class activation maps, CVPR 2016), so the maps explain exactly what the classifier says.

    Args:
        output_stride: input pixels per cell of the maps, 32, 16 or 8; the weights are those of 32.
    """
    if name not in EMBEDDED:
        raise ConfigError(f"{name} brings no ImageNet classifier.", f"Take one of: {', '.join(EMBEDDED)}.")
    model = create_model(name, num_classes=1000, num_maps=1, pooling="average", output_stride=output_stride)
    weight, bias = embedded_classifier(name)
    with torch.no_grad():
        model.transfer.weight.copy_(weight[:, :, None, None])
        model.bias().copy_(bias)
    return model
