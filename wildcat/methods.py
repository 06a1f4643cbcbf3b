"""Published methods by name: the heads that the paper compares WILDCAT with, and later ones."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

from wildcat.config import TrainConfig
from wildcat.errors import ConfigError, did_you_mean

# Name -> the settings that define the method, and its description with the source.
METHODS: dict[str, tuple[dict[str, Any], str]] = {
    "global": (
        {"pooling": "average", "architecture": "b", "num_maps": 1},
        "average the features, then classify: the ResNet-101 and VGG16 features of the paper's tables 2 to 4",
    ),
    "deepmil": (
        {"pooling": "max", "num_maps": 1},
        "the highest region (Oquab et al., Is object localization for free?, CVPR 2015)",
    ),
    "top-instances": (
        {"pooling": "topk", "num_maps": 1, "kmax": 0.1},
        "the mean of the highest tenth of the regions (Li & Vasconcelos, Top instances, CVPR 2015)",
    ),
    "gap-a": (
        {"pooling": "average", "num_maps": 1},
        "classify each region, then average: class activation maps (Zhou et al., CVPR 2016)",
    ),
    "gap-b": (
        {"pooling": "average", "architecture": "b", "num_maps": 1},
        "average, then classify, as Zhou et al. train theirs; a linear classifier makes it one model with gap-a",
    ),
    "weldon": (
        {"pooling": "weldon", "num_maps": 1, "kmax": 0.2},
        "the highest plus the lowest regions, equal weights (Durand, Thome & Cord, WELDON, CVPR 2016)",
    ),
    "pronet": (
        {"pooling": "lse", "num_maps": 1, "sharpness": 4.0},
        "log-sum-exp over the regions (Sun et al., ProNet, CVPR 2016)",
    ),
    "wildcat": (
        {"pooling": "wildcat", "num_maps": 4, "kmax": 0.2, "alpha": 0.7},
        "the highest plus alpha times the lowest regions of the mean of M maps (Durand et al., WILDCAT, CVPR 2017)",
    ),
    "wildcat-parts": (
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
    ),
    "csra": (
        {"pooling": "csra", "num_maps": 1, "residual": 0.2, "temperature": math.inf},
        "the average plus a part of the maximum of each class (Zhu & Wu, Residual Attention, ICCV 2021)",
    ),
    "attention": (
        {"pooling": "attention", "num_maps": 1, "attention_size": 128},
        "gated attention, one map of weights per class (Ilse, Tomczak & Welling, ICML 2018; Lu et al., CLAM, 2021)",
    ),
}

# The settings that a method decides: how features become scores and maps, nothing of the backbone, the data or the rest
# of the training.
HEAD_SETTINGS = (
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


def method_settings(name: str) -> dict[str, Any]:
    """All of `HEAD_SETTINGS` for a method of `METHODS`, so that a method is the same with any recipe.

    Raises:
        ConfigError: no such method.

    >>> method_settings("deepmil")["pooling"], method_settings("deepmil")["num_maps"]
    ('max', 1)
    """
    if name not in METHODS:
        raise ConfigError(
            f"there is no method {name!r}.", did_you_mean(name, METHODS) or f"Methods are: {', '.join(METHODS)}."
        )
    defaults = asdict(TrainConfig())
    return {setting: defaults[setting] for setting in HEAD_SETTINGS} | METHODS[name][0]
