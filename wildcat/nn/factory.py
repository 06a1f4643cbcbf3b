"""Build networks from names and settings."""

from __future__ import annotations

import math
from importlib import import_module
from typing import get_args

import torch
from torch import nn

from wildcat.config import Architecture, ClassPool, Regions, TrainConfig
from wildcat.errors import ConfigError
from wildcat.methods import check_head
from wildcat.nn.backbones import Backbone, create_backbone
from wildcat.nn.heads import (
    AttentionPool,
    AttentionWildcat,
    BackgroundWildcat,
    PoolEachMap,
    PoolThenClassify,
    create_pool,
)
from wildcat.nn.model import Wildcat
from wildcat.nn.pooling import ClassWisePool
from wildcat.nn.weights import EMBEDDED, embedded_weights, load_exactly

# The order of pooling and classification, see `wildcat.nn.heads`.
ARCHITECTURES: dict[Architecture, type[Wildcat]] = {"a": Wildcat, "b": PoolThenClassify, "c": PoolEachMap}


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
    class_pool: ClassPool = "mean",
    class_sharpness: float = 1.0,
    head: str = "",
    head_size: int = 0,
) -> Wildcat:
    """Build a WILDCAT network on any backbone; the defaults are the paper's.

    Args:
        backbone: `lite0` (weights come with the package), `lite1`, `lite2` (with the extra `lite`) or any timm name.
        num_classes: C.
        num_maps: M, the maps per class.
        kmax, kmin, alpha: of eq. 3, see `wildcat.nn.pooling.spatial_pool`.
        pretrained: True for ImageNet weights, False for random ones, or a file of weights.
        output_stride: input pixels per cell of the maps: 32, 16 or 8.
        pooling: a row of Table 1 or `csra`, see `wildcat.nn.heads.create_pool`; or `attention`, see
            `wildcat.nn.heads.AttentionPool`.
        sharpness: r of log-sum-exp pooling.
        architecture: "a" (classify, then pool), "b" (pool, then classify) or "c" (as "a", each map by itself).
        image_size: input side in pixels, for transformers; convolutional backbones accept any size.
        residual, temperature: lambda and T of residual attention, see `wildcat.nn.heads.csra_pool`.
        attention_size: L, the hidden units of gated attention.
        background: let the classes of a region compete, see `wildcat.nn.heads.BackgroundWildcat`.
        class_pool, class_sharpness: pooling of the M maps of a class, see `wildcat.nn.pooling.class_wise_pool`.
        head, head_size: layers of a published method in place of maps and pooling, such as `netvlad`, and their size;
            see `wildcat.methods` and the file of the same name in `wildcat/nn/heads`.

    Raises:
        ConfigError: a setting is out of range, or the backbone is unknown.
        MissingExtra, RunError: see `wildcat.nn.backbones.create_backbone`.

    >>> model = create_model("test_resnet", num_classes=3, pretrained=False)
    >>> images = torch.zeros(2, 3, 160, 96)
    >>> model(images).shape, model.maps(images).shape
    (torch.Size([2, 3]), torch.Size([2, 3, 4, 5, 3]))
    """
    if architecture not in get_args(Architecture):
        raise ConfigError(
            f"architecture={architecture!r}: give 'a' (classify, then pool), 'b' (pool, then classify) or "
            "'c' (classify, then pool each of the M maps by itself)."
        )
    check_head(head)
    attention = pooling == "attention"
    if background and (architecture != "a" or attention):
        raise ConfigError(
            "background=True goes with architecture 'a' and a pooling of class maps.",
            "Leave it out, or architecture and pooling at their defaults.",
        )
    pool_maps = ClassWisePool(num_maps, class_pool, class_sharpness)
    pool: nn.Module | None = None
    if not attention:  # before any weights are read, so that a wrong setting is reported at once
        pool = create_pool(pooling, kmax, kmin, alpha, sharpness, residual, temperature)
    weights = pretrained if isinstance(pretrained, str) else "imagenet" if pretrained else "none"
    features = create_backbone(backbone, weights, output_stride, image_size)
    if head:
        return _with_head(head, features, num_classes, head_size)
    if pool is None:  # attention is linear in the maps, so all architectures with the mean are the same network
        pool = AttentionPool(features.num_features, num_classes, attention_size)
        return AttentionWildcat(features, num_classes, num_maps, pool, pool_maps)
    network = BackgroundWildcat if background else ARCHITECTURES[architecture]
    return network(features, num_classes, num_maps, pool, pool_maps)


def _with_head(name: str, backbone: Backbone, num_classes: int, size: int) -> Wildcat:
    """The network of a head; `size` 0: the head's own."""
    module = import_module(f"wildcat.nn.heads.{name.replace('-', '_')}")
    if size < 0:
        raise ConfigError(f"head_size={size}: give a whole number of at least 1, or 0 for the size of {name} itself.")
    if size and not module.SIZE:
        raise ConfigError(f"head_size={size}: {name} has no size.", "Leave head_size out.")
    network: Wildcat = module.create(backbone, num_classes, size or module.SIZE)
    return network


@torch.no_grad()
def check_fits(config: TrainConfig, num_classes: int, backbone: Backbone, images: int) -> None:
    """Refuse a head that cannot be trained on so few classes or images, or on maps as small as the backbone's.

    Args:
        backbone: with any weights.

    Raises:
        ConfigError: names the number and the remedy.
    """
    if config.head:
        model = _with_head(config.head, backbone, num_classes, config.head_size).eval()
        features = model.features(torch.zeros(1, 3, config.image_size, config.image_size))
        model.check(images, (features.shape[-2], features.shape[-1]))


def model_from_config(config: TrainConfig, num_classes: int, weights: str | None = None) -> Wildcat:
    """The network of a run's settings; `weights` replaces the initial weights of the backbone."""
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
        class_pool=config.class_pool,
        class_sharpness=config.class_sharpness,
        head=config.head,
        head_size=config.head_size,
    )


def imagenet_model(name: str, output_stride: int = 32) -> Wildcat:
    """The ImageNet classifier of an embedded backbone as a WILDCAT network with 1,000 classes, without training.

    Average pooling of class maps made by the classifier's own weights gives the classifier's own logits (Zhou et al.,
    class activation maps, CVPR 2016).

    Args:
        output_stride: input pixels per cell of the maps: 32, 16 or 8; the weights are those of 32.
    """
    if name not in EMBEDDED:
        raise ConfigError(f"{name} has no ImageNet classifier in this package.", f"Take one of: {', '.join(EMBEDDED)}.")
    model = create_model(name, 1000, 1, pretrained=False, pooling="average", output_stride=output_stride)
    weights = embedded_weights(name, model.backbone.network)
    with torch.no_grad():
        model.transfer.weight.copy_(weights.pop("classifier.weight")[:, :, None, None])
        model.transfer.bias.copy_(weights.pop("classifier.bias"))
    load_exactly(model.backbone.network, weights, name)
    return model
