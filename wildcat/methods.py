"""Published methods by name: what the paper compares WILDCAT with, and later ones.

A new method is an entry of `METHODS`; if it has layers of its own, they are a file of its name in `wildcat/nn/heads`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from wildcat.errors import ConfigError, did_you_mean


@dataclass(frozen=True)
class Method:
    """How features become scores.

    Attributes:
        settings: fields of `TrainConfig` that define it.
        description: one line.
        paper: where it was published.
        has_maps: whether it has class maps, from which points, boxes and masks follow, or scores alone.
        lr_scale: multiple of the default learning rate that suits its layers.
    """

    settings: Mapping[str, Any]
    description: str
    paper: str
    has_maps: bool = True
    lr_scale: float = 1.0


def _head(name: str, description: str, paper: str, has_maps: bool = True, lr_scale: float = 1.0) -> Method:
    """A method with layers of its own, `wildcat.nn.heads.<name>`."""
    return Method({"head": name, "num_maps": 1}, description, paper, has_maps, lr_scale)


METHODS: dict[str, Method] = {
    "global": Method(
        {"pooling": "average", "architecture": "b", "num_maps": 1},
        "average the features, then classify: the ResNet-101 and VGG16 features of the paper's tables 2 to 4",
        "He et al., CVPR 2016",
    ),
    "deepmil": Method(
        {"pooling": "max", "num_maps": 1},
        "the highest region",
        "Oquab et al., Is object localization for free?, CVPR 2015",
    ),
    "top-instances": Method(
        {"pooling": "topk", "num_maps": 1, "kmax": 0.1},
        "the mean of the highest tenth of the regions",
        "Li & Vasconcelos, Top instances, CVPR 2015",
    ),
    "gap-a": Method(
        {"pooling": "average", "num_maps": 1},
        "classify each region, then average: class activation maps",
        "Zhou et al., CVPR 2016",
    ),
    "gap-b": Method(
        {"pooling": "average", "architecture": "b", "num_maps": 1},
        "average, then classify, as Zhou et al. train theirs; a linear classifier makes it one model with gap-a",
        "Zhou et al., CVPR 2016",
    ),
    "weldon": Method(
        {"pooling": "weldon", "num_maps": 1, "kmax": 0.2},
        "the highest plus the lowest regions, equal weights",
        "Durand, Thome & Cord, WELDON, CVPR 2016",
    ),
    "pronet": Method(
        {"pooling": "lse", "num_maps": 1, "sharpness": 4.0},
        "log-sum-exp over the regions",
        "Sun et al., ProNet, CVPR 2016",
    ),
    "wildcat": Method(
        {"pooling": "wildcat", "num_maps": 4, "kmax": 0.2, "alpha": 0.7},
        "the highest plus alpha times the lowest regions of the mean of M maps",
        "Durand et al., WILDCAT, CVPR 2017",
    ),
    "wildcat-parts": Method(
        {
            "pooling": "wildcat",
            "num_maps": 4,
            "kmax": 0.2,
            "alpha": 0.7,
            "class_pool": "softmax",
            "class_sharpness": 1.0,
            "map_information": 1.0,
        },
        "WILDCAT whose M maps compete at each region, so that each learns a part (eq. 1 with a softmax as its Cl.Pool)",
        "of this package",
    ),
    "csra": Method(
        {"pooling": "csra", "num_maps": 1, "residual": 0.2, "temperature": math.inf},
        "the average plus a part of the maximum of each class",
        "Zhu & Wu, Residual attention, ICCV 2021",
    ),
    "attention": Method(
        {"pooling": "attention", "num_maps": 1, "attention_size": 128},
        "gated attention, one map of weights per class",
        "Ilse, Tomczak & Welling, ICML 2018; Lu et al., CLAM, 2021",
    ),
    "rrsvm": _head(
        "rrsvm",
        "learned weights of the sorted regions; size: 32 proportions of the map",
        "Wei & Hoai, Region ranking SVM, CVPR 2016",
    ),
    "spleap": _head(
        "spleap", "learned parts, each with a soft-max pooling; size: 256 parts", "Kulkarni et al., SPLeaP, ECCV 2016"
    ),
    "negative-parts": _head(
        "negative-parts", "parts with weights of both signs; size: 256 parts", "Parizi et al., ICLR 2015"
    ),
    "compact-bilinear": _head(
        "compact-bilinear",
        "a sketch of the outer products of the features; size: 8192 dimensions",
        "Gao et al., CVPR 2016",
    ),
    "mop-cnn": _head(
        "mop-cnn",
        "VLAD of windows of several sizes; size: 100 clusters",
        "Gong et al., MOP-CNN, ECCV 2014",
        has_maps=False,
    ),
    "netvlad": _head(
        "netvlad",
        "residuals to soft clusters; size: 64 clusters",
        "Arandjelović et al., NetVLAD, CVPR 2016",
        has_maps=False,
    ),
    "wsddn": _head(
        "wsddn",
        "classes compete in one branch, regions in the other",
        "Bilen & Vedaldi, WSDDN, CVPR 2016",
        lr_scale=4.0,
    ),
}

HEADS = {method.settings["head"]: method for method in METHODS.values() if "head" in method.settings}

# The settings that a method decides: how features become scores and maps, nothing of the backbone, the data or the rest
# of the training.
HEAD_SETTINGS = (
    "head",
    "head_size",
    "pooling",
    "architecture",
    "num_maps",
    "class_pool",
    "class_sharpness",
    "map_information",
    "kmax",
    "kmin",
    "alpha",
    "sharpness",
    "residual",
    "temperature",
    "attention_size",
)


# What a run takes over from the one that `--weights` names: the network, so that the weights fit.
NETWORK_SETTINGS = ("backbone", "background", *HEAD_SETTINGS)


def find_method(name: str) -> Method:
    """The method of a name.

    Raises:
        ConfigError: no such method.
    """
    if name not in METHODS:
        raise ConfigError(
            f"there is no method {name!r}.", did_you_mean(name, METHODS) or f"Methods are: {', '.join(METHODS)}."
        )
    return METHODS[name]


def check_head(name: str) -> None:
    """Raise ConfigError unless there is a head of this name; "" is none."""
    if name and name not in HEADS:
        raise ConfigError(f"there is no head {name!r}.", did_you_mean(name, HEADS) or f"Heads are: {', '.join(HEADS)}.")


def no_maps(model: str) -> ConfigError:
    """The error of a request for points, boxes, heatmaps or masks of a model whose method has none."""
    return ConfigError(
        f"{model} gives class scores only: its method has no class maps, so no points, boxes, heatmaps or masks.",
        "Train a method that has them; wildcat methods lists what each gives.",
    )
