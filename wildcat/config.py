"""The settings of a run: one frozen dataclass that is the flags, the YAML file and the help at once. No torch here."""

from __future__ import annotations

import math
import reprlib
import typing
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

from wildcat.errors import ConfigError, did_you_mean
from wildcat.methods import HEADS, check_head

Pooling = Literal["wildcat", "weldon", "topk", "max", "average", "lse", "csra", "attention"]
ClassPool = Literal["mean", "max", "lse", "softmax"]
Architecture = Literal["a", "b", "c"]
Tune = Literal["all", "last", "head"]
Flip = Literal["none", "horizontal", "both"]
Distortion = Literal["none", "trivial", "rand"]
EngineName = Literal["torch", "compile", "onnx", "openvino"]
ShardFormat = Literal["jsonl", "parquet"]
Precision = Literal["fp32", "bf16", "int8"]
Localize = Literal["maps", "beam-search"]  # what finds points and boxes

FLIP_VIEWS: dict[Flip, tuple[tuple[int, ...], ...]] = {
    "none": ((),),
    "horizontal": ((), (-1,)),
    "both": ((), (-1,), (-2,), (-2, -1)),
}
"""The views of an image that each setting of flip stands for, as the axes mirrored; the first is the image."""

Regions = int | float
"""A number of regions: an int counts them, a float in (0, 1] is a proportion of the map."""


@dataclass(frozen=True)
class Limits:
    """Limits of the HTTP service, which `wildcat serve` has as flags.

    Raises:
        ConfigError: a value is out of range.
    """

    max_mb: float = 20.0
    """Largest request in megabytes of 1,000,000 bytes."""
    max_pixels: int = 40_000_000
    """Most pixels of an image, checked in its header before it is decoded."""
    queue: int = 512
    """Most requests that run or wait; further requests get status 503."""
    queue_mb: float = 256.0
    """Megabytes of uploads in memory above which the rest of other uploads waits to be received."""
    timeout: float = 60.0
    """Seconds to receive a request, or an image from Label Studio."""
    wait: float = 300.0
    """Seconds an upload may wait for memory, and a request for its result; then it gets status 503."""
    worker_timeout: float = 60.0
    """Seconds a worker may take for a batch; a worker process is then killed and restarted."""
    batch_size: int = 4
    """Most images per forward pass. On a CPU more cost memory and gain no speed; for a GPU give more, such as 16."""

    def __post_init__(self) -> None:
        for name in (field.name for field in fields(Limits)):
            lowest = 1 if name in ("max_pixels", "queue", "batch_size") else 1e-6
            if not lowest <= getattr(self, name) < math.inf:
                raise ConfigError(f"{name}={getattr(self, name)}: give a number of at least {lowest:g}.")


@dataclass(frozen=True)
class TrainConfig:
    """Everything that decides what a training run computes, apart from the data."""

    # The docstring under each field is its help on the command line.

    # --- model -------------------------------------------------------------------------------------------------
    backbone: str = "lite0"
    """Feature network: lite0 (weights come with the package), lite1, lite2 (with the extra lite) or any timm name."""
    weights: str = "imagenet"
    """Where the network starts: imagenet, none (random), a file of backbone weights, a run folder (whose backbone and
    method are those of the new run), or hf://user/name."""
    output_stride: int = 32
    """Input pixels per cell of the class maps: 32, 16 or 8, where the backbone can."""
    pooling: Pooling = "wildcat"
    """Spatial pooling of the class maps; the rows of the paper's Table 1 fix kmax, kmin or alpha as the name says."""
    architecture: Architecture = "a"
    """a: classify each region, then pool (the paper's choice); b: pool the features, then classify; c: as a, but pool
    each of the M maps by itself."""
    head: str = ""
    """Layers of a published method instead of the maps and their pooling, such as netvlad; --method sets it."""
    head_size: int = 0
    """Size of these layers, such as the number of clusters; 0: the size that wildcat methods lists."""
    background: bool = False
    """Let the classes of a region compete with each other and with a background that is in every image; masks then need
    no threshold. For multi-label data and architecture a."""
    num_maps: int = 4
    """M, the maps per class."""
    class_pool: ClassPool = "mean"
    """Pooling of the M maps of a class at each region (eq. 1): with the mean they learn the same; with max, lse or
    softmax they compete, and each learns the regions that it explains best."""
    class_sharpness: float = 1.0
    """r of --class-pool lse and softmax: towards 0 is the mean, large is the maximum."""
    map_information: float = 0.0
    """Weight of a term that lets the M maps of a class divide the regions of each image that has it among themselves
    (mutual information between regions and maps); 0: off."""
    kmax: Regions = 0.2
    """k+, the highest regions averaged: an int counts them, a float in (0, 1] is a proportion."""
    kmin: Regions | None = None
    """k-, the lowest regions averaged; None: as kmax; 0: none."""
    alpha: float = 0.7
    """Weight of the lowest regions, at least 0; 0 switches them off."""
    sharpness: float = 4.0
    """r of log-sum-exp pooling (--pooling lse): towards 0 is the average, large is the maximum."""
    residual: float = 0.2
    """lambda of residual attention (--pooling csra): weight of the attended score beside the average; 0: none."""
    temperature: float = math.inf
    """T of residual attention: near 0 it attends to all regions alike, inf to the highest one only."""
    attention_size: int = 128
    """Hidden units of gated attention (--pooling attention)."""
    standardize: bool = True
    """Standardise each backbone channel with its mean and spread on training images."""

    # --- data --------------------------------------------------------------------------------------------------
    image_size: int = 320
    """Side in pixels of the square every image is warped to."""
    intensity_range: str = ""
    """LOW,HIGH: the values of grey images of 16 bits, 32 bits or floats that are black and white, such as 0,4095 for
    12-bit data; the model keeps them. Empty: 0,65535 for 16 bits; others are refused."""
    flip: Flip = "horizontal"
    """Mirror training images at random: none, horizontal, or both ways (where up and down mean nothing)."""
    crop_scale: float = 0.5
    """Training crops cover at least this part of the image's area; 1: no cropping (only --tune all crops)."""
    augment: Distortion = "none"
    """Distort colours and shapes of training images at random (only --tune all): trivial is TrivialAugment, rand
    RandAugment of torchvision."""
    train_split: str = "train"
    """Split to learn from."""
    val_split: str = "val"
    """Split that chooses the best epoch (a held-out tenth of train where there is none); none: keep the last epoch."""

    # --- optimisation ------------------------------------------------------------------------------------------
    tune: Tune = "all"
    """all: fine-tune every layer; last: the last stage of the backbone and the head, on features of the stage before it
    that are computed once and cached; head: the layers after the backbone, on its cached features."""
    head_epochs: int = 10
    """Passes over the training images with --tune head before the first epoch of --tune all or last; 0: none. A network
    that starts from random weights or from a run has none."""
    epochs: int = 20
    """Passes over the training images, after those of --head-epochs."""
    batch_size: int = 16
    """Images per step, of all processes together where torchrun starts several."""
    accumulate: int = 1
    """Steps whose gradients are added up before the weights move."""
    lr: float | None = None
    """Peak learning rate of SGD for the layers after the backbone; None: 0.01, times 4 for the method wsddn, and times
    M with --class-pool mean, since each of the M maps then receives 1/M of the gradient. The bias of the maps has this
    times the root of the number of features."""
    backbone_lr_scale: float = 0.01
    """Learning rate of a pretrained backbone as a fraction of that of a class map; train one with random weights
    at 1."""
    layer_decay: float = 1.0
    """Learning rate of a layer of the backbone as a fraction of that of the next one, in (0, 1]."""
    momentum: float = 0.9
    """Momentum of SGD."""
    weight_decay: float | None = None
    """Weight decay of SGD (not on biases and normalisation layers); None: 0.06, divided by M with --class-pool mean,
    so that the mean of the maps moves and decays as a single map does."""
    schedule: Literal["cosine", "step", "constant"] = "cosine"
    """How the learning rate falls; step divides it by 10 after each third of the epochs."""
    warmup: float = 1.0
    """Epochs over which the learning rate rises linearly from zero."""
    balance: bool = False
    """Weigh the loss so that rare classes count as much as common ones; a rare image counts at most 100 times."""
    ema: float = 0.0
    """Decay per step of the moving average of the weights that is measured and kept; 0: the weights themselves. Not for
    --tune head."""
    clip_norm: float = 5.0
    """Largest norm of the gradient of a step; 0: no limit. Not for --tune head."""
    freeze_bn: bool = True
    """Normalise by the running statistics of the pretrained backbone (--no-freeze-bn: by each batch, and train them). A
    backbone that starts from random weights is always trained by batches."""
    amp: bool = False
    """Compute in bfloat16 where that is safe (autocast) and the processor has instructions for it, else in float32;
    with --tune head, in the frozen backbone alone."""
    sync_bn: bool = True
    """Several GPUs: batch normalisation averages over the whole batch (--no-sync-bn: each over its share). On a CPU
    each process averages over its share."""

    # --- machine -----------------------------------------------------------------------------------------------
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps."""
    workers: int = -1
    """Processes that read images; 0: the training process itself; -1: as the machine suggests."""
    save_minutes: float = 10.0
    """Minutes after which everything is saved within an epoch too; a crash loses no more."""
    seed: int = 0
    """Seed of the weights, the order and the crops."""

    @property
    def peak_lr(self) -> float:
        """The peak learning rate of SGD: `lr`, or its default."""
        if self.lr is not None:
            return self.lr
        return 0.01 * self.gradient_shares * (HEADS[self.head].lr_scale if self.head in HEADS else 1.0)

    @property
    def decay(self) -> float:
        """The weight decay of SGD: `weight_decay`, or its default."""
        return 0.06 / self.gradient_shares if self.weight_decay is None else self.weight_decay

    @property
    def gradient_shares(self) -> int:
        """The number of maps among which the gradient of a class map is divided at a region.

        With the mean each of the M maps receives 1/M of it, so M times the learning rate moves the class map as one map
        would. Where the maps compete, the highest receives it: all of it with max, nearly all with lse and softmax.
        """
        return self.num_maps if self.class_pool == "mean" else 1

    @property
    def parent(self) -> Path | None:
        """The run folder that `weights` names; None if it names none."""
        folder = Path(self.weights)
        return folder if self.weights not in ("imagenet", "none") and folder.is_dir() else None

    def validate(self) -> None:
        """Check every value and how they fit each other.

        Raises:
            ConfigError: the first value out of range, with what is allowed and what was perhaps meant.
        """
        check_choices(self)
        check_regions("kmax", self.kmax)
        check_regions("kmin", self.kmin)
        check_alpha(self.alpha)
        check_residual(self.residual, self.temperature)
        check_class_pool(self.class_pool, self.class_sharpness)
        _check_amounts(self)
        if self.image_size < 32:
            raise ConfigError(
                f"image_size={self.image_size}: backbones need at least 32 pixels.", "Customary sizes are 224 to 560."
            )
        if self.output_stride not in (8, 16, 32):
            raise ConfigError(f"output_stride={self.output_stride}: give 8, 16 or 32.")
        for name, number in (("lr", self.lr), ("sharpness", self.sharpness)):
            if number is not None and not (math.isfinite(number) and number > 0):
                raise ConfigError(f"{name}={number}: give a positive number.")
        for name in ("map_information", "backbone_lr_scale", "weight_decay", "warmup"):
            number = getattr(self, name)
            if number is not None and not (math.isfinite(number) and number >= 0):
                raise ConfigError(f"{name}={number}: give a number of at least 0.")
        for name, allowed, right in (
            ("momentum", "a number in [0, 1)", 0 <= self.momentum < 1),
            ("ema", "a number in [0, 1)", 0 <= self.ema < 1),
            ("clip_norm", "a number of at least 0", 0 <= self.clip_norm < math.inf),
            ("layer_decay", "a number in (0, 1]", 0 < self.layer_decay <= 1),
            ("head_epochs", f"a whole number from 0 to {MOST['epochs']:,}", 0 <= self.head_epochs <= MOST["epochs"]),
            ("crop_scale", "a part of the image's area in (0, 1]", 0 < self.crop_scale <= 1),
            ("workers", "a whole number, or -1 to let the machine decide", self.workers >= -1),
            ("save_minutes", "a number above 0, or inf", self.save_minutes > 0),
            ("seed", "a whole number from 0 to 2^63 - 1", 0 <= self.seed < 2**63),
        ):
            if not right:
                raise ConfigError(f"{name}={getattr(self, name)}: give {allowed}.")
        if self.background and (self.architecture != "a" or self.pooling == "attention"):
            raise ConfigError(
                f"background=True goes with architecture=a and pooling of class maps, not with "
                f"architecture={self.architecture}, pooling={self.pooling}.",
                "Leave out background=True, or give architecture=a and pooling=wildcat.",
            )
        if self.tune != "all" and self.weights == "none":
            raise ConfigError(
                f"tune={self.tune} with weights=none would train on the features of a random network.",
                "Give weights=imagenet, or tune=all.",
            )
        _check_method(self)


def _check_method(config: TrainConfig) -> None:
    """Refuse a head that does not exist, and settings of maps and pooling beside one."""
    check_head(config.head)
    if config.head_size < 0 or (config.head_size and not config.head):
        raise ConfigError(f"head_size={config.head_size}: give a whole number above 0, with a head that has a size.")
    replaced = {"pooling": "wildcat", "architecture": "a", "background": False, "num_maps": 1, "class_pool": "mean"}
    for name, value in (replaced | {"map_information": 0.0}).items() if config.head else ():
        if getattr(config, name) != value:
            raise ConfigError(
                f"{name}={getattr(config, name)} is a setting of maps and their pooling, which head={config.head} "
                "replaces.",
                f"Give {name}={value}, or leave head={config.head} out.",
            )


MOST = {
    "num_maps": 1024,
    "attention_size": 8192,
    "head_size": 2**17,
    "image_size": 16_384,
    "epochs": 10**6,
    "batch_size": 10**6,
    "accumulate": 10**6,
    "workers": 1024,
}
"""What nobody means to exceed: a file that says more is damaged, or meant to take all memory."""


def _check_amounts(config: TrainConfig) -> None:
    """Refuse amounts below 1, except where 0 or less is a choice, or beyond `MOST`."""
    for name, most in MOST.items():
        value = getattr(config, name)
        if value < 1 and name not in ("workers", "head_size"):
            raise ConfigError(f"{name}={value}: give a whole number of at least 1.")
        if value > most:
            raise ConfigError(f"{name}={reprlib.repr(value)}: give at most {most:,}.")


def check_choices(config: object) -> None:
    """Raise ConfigError for a setting of a dataclass that is none of the names its type lists."""
    for name, hint in typing.get_type_hints(type(config)).items():
        choices = typing.get_args(hint) if typing.get_origin(hint) is Literal else ()
        value = getattr(config, name)
        if choices and value not in choices:
            raise ConfigError(
                f"{name}={value!r}: give {', '.join(choices[:-1])} or {choices[-1]}.", did_you_mean(str(value), choices)
            )


def check_regions(name: str, k: Regions | None) -> None:
    """Raise ConfigError unless `k` is a count or a proportion."""
    if k is None and name == "kmin":
        return
    allowed = "give an int (a count of regions) or a float in (0, 1] (a proportion)"
    if isinstance(k, bool) or not isinstance(k, (int, float)):
        raise ConfigError(f"{name}={k!r}: {allowed}.")
    if isinstance(k, int):
        lowest = 0 if name == "kmin" else 1
        if k < lowest:
            raise ConfigError(f"{name}={k}: {allowed}; a count is at least {lowest}.")
        return
    if name == "kmin" and k == 0:
        return
    if math.isnan(k) or not 0 < k <= 1:
        guess = f"; did you mean {_proportion(k):g} or {math.ceil(k)}?" if 1 < k < 1e6 else "."
        raise ConfigError(f"{name}={k:g}: {allowed}{guess}")


def _proportion(k: float) -> float:
    """`k` above 1 with its point moved before its first digit: 1.5 -> 0.15, 20 -> 0.2."""
    return float(k / 10 ** (math.floor(math.log10(k)) + 1))


def check_alpha(alpha: float) -> None:
    """Raise ConfigError unless `alpha` is finite and at least 0."""
    if not isinstance(alpha, (int, float)) or not math.isfinite(alpha) or alpha < 0:
        raise ConfigError(f"alpha={alpha}: give a finite number of at least 0; the paper finds 0.6 to 0.8 best.")


def check_residual(residual: float, temperature: float) -> None:
    """Raise ConfigError unless weight and temperature of residual attention are in range."""
    if not isinstance(residual, (int, float)) or not math.isfinite(residual) or residual < 0:
        raise ConfigError(f"residual={residual}: give a finite number of at least 0; CSRA's authors take 0.1 to 0.5.")
    if not isinstance(temperature, (int, float)) or not temperature > 0:  # nan is not above 0 either
        raise ConfigError(f"temperature={temperature}: give a number above 0, or inf for the highest region alone.")


def check_class_pool(pool: str, sharpness: float) -> None:
    """Raise ConfigError unless the class-wise pooling exists and its sharpness is in range."""
    names = typing.get_args(ClassPool)
    if pool not in names:
        raise ConfigError(
            f"there is no class-wise pooling {pool!r}.",
            did_you_mean(pool, names) or f"It is one of: {', '.join(names)}.",
        )
    if not (math.isfinite(sharpness) and sharpness > 0):
        raise ConfigError(f"class_sharpness={sharpness}: give a positive number; 1 to 10 are usual.")
