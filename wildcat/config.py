"""The settings of a run: one frozen dataclass that is the flags, the YAML file and the help at once. No torch here."""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import yaml

from wildcat.errors import ConfigError, did_you_mean

Pooling = Literal["wildcat", "weldon", "topk", "max", "average", "lse"]
Tune = Literal["all", "head"]
Flip = Literal["none", "horizontal", "both"]

FLIP_VIEWS: dict[Flip, tuple[tuple[int, ...], ...]] = {
    "none": ((),),
    "horizontal": ((), (-1,)),
    "both": ((), (-1,), (-2,), (-2, -1)),
}
"""The views of a picture that each setting of flip stands for, as the axes mirrored; the first is the picture."""

Regions = int | float
"""A number of regions: an int counts them, a float in (0, 1] is a proportion of the map."""


@dataclass(frozen=True)
class TrainConfig:
    """Everything that decides what a training run computes, apart from the data."""

    # The docstring under each field is its help on the command line.

    # --- model -------------------------------------------------------------------------------------------------
    backbone: str = "lite0"
    """Feature network: lite0, lite1, lite2 (weights come with the package) or any timm name."""
    weights: str = "imagenet"
    """Where the network starts: imagenet, none (random), a file of backbone weights, or a run folder."""
    output_stride: int = 32
    """Input pixels per cell of the class maps: 32, 16 or 8, where the backbone can."""
    pooling: Pooling = "wildcat"
    """Spatial pooling of the class maps (Table 1 of the paper); fixes kmax, kmin or alpha where its name says so."""
    architecture: Literal["a", "b"] = "a"
    """a: classify each region, then pool (the paper's choice); b: pool the features, then classify."""
    num_maps: int = 4
    """M, the maps per class; each may find another part of the object."""
    kmax: Regions = 0.2
    """k+, the highest regions averaged: an int counts them, a float in (0, 1] is a proportion."""
    kmin: Regions | None = None
    """k-, the lowest regions averaged; None: as kmax; 0: none."""
    alpha: float = 0.7
    """Weight of the lowest regions, at least 0; 0 switches them off."""
    sharpness: float = 4.0
    """r of log-sum-exp pooling (pooling=lse): towards 0 is the average, large is the maximum."""
    standardize: bool = True
    """Standardise each backbone channel with its mean and spread on training pictures (--no-standardize: do not)."""

    # --- data --------------------------------------------------------------------------------------------------
    image_size: int = 320
    """Side in pixels of the square every picture is warped to."""
    flip: Flip = "horizontal"
    """Mirror training pictures at random: none, horizontal, or both ways (where up and down mean nothing)."""
    crop_scale: float = 0.5
    """Training crops cover at least this part of the picture's area; 1: no cropping (--tune head never crops)."""
    train_split: str = "train"
    """Split to learn from."""
    val_split: str = "val"
    """Split that chooses the best epoch (a held-out tenth of train where there is none); none: keep the last epoch."""

    # --- optimisation ------------------------------------------------------------------------------------------
    tune: Tune = "all"
    """all: fine-tune every layer; head: train the layers after the backbone on features computed once and cached."""
    epochs: int = 20
    """Passes over the training pictures."""
    batch_size: int = 16
    """Pictures per step."""
    accumulate: int = 1
    """Steps whose gradients are added up before the weights move."""
    lr: float | None = None
    """Peak learning rate of the layers after the backbone; None: 0.2, or 1 with --tune head."""
    backbone_lr_scale: float = 0.05
    """Learning rate of the backbone as a part of lr."""
    momentum: float = 0.9
    """Momentum of SGD."""
    weight_decay: float = 1e-4
    """Weight decay of SGD (not on biases and normalisation layers)."""
    schedule: Literal["cosine", "step", "constant"] = "cosine"
    """How the learning rate falls; step divides it by 10 after each third of the epochs."""
    warmup: float = 1.0
    """Epochs over which the learning rate rises linearly from zero."""
    balance: bool = False
    """Weigh the loss so that rare classes count as much as common ones."""
    amp: bool = False
    """Compute in bfloat16 where that is safe (autocast)."""

    # --- machine -----------------------------------------------------------------------------------------------
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps."""
    workers: int = -1
    """Processes that read pictures; 0: the training process itself; -1: as the machine suggests."""
    seed: int = 0
    """Seed of the weights, the order and the crops."""

    @property
    def peak_lr(self) -> float:
        """The learning rate in force: `lr`, or the customary one of what is tuned."""
        return self.lr if self.lr is not None else 1.0 if self.tune == "head" else 0.2

    def validate(self) -> None:
        """Check every value and how they fit each other.

        Raises:
            ConfigError: the first value out of range, with what is allowed and what was perhaps meant.
        """
        _check_choices(self)
        check_regions("kmax", self.kmax)
        check_regions("kmin", self.kmin)
        check_alpha(self.alpha)
        for name in ("num_maps", "image_size", "epochs", "batch_size", "accumulate"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)}: give a whole number of at least 1.")
        if self.image_size < 32:
            raise ConfigError(
                f"image_size={self.image_size}: backbones need at least 32 pixels.", "Customary sizes are 224 to 560."
            )
        if self.output_stride not in (8, 16, 32):
            raise ConfigError(f"output_stride={self.output_stride}: give 8, 16 or 32.")
        for name, number in (("lr", self.peak_lr), ("sharpness", self.sharpness)):
            if not (math.isfinite(number) and number > 0):
                raise ConfigError(f"{name}={number}: give a positive number.")
        for name in ("backbone_lr_scale", "weight_decay", "warmup"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) >= 0):
                raise ConfigError(f"{name}={getattr(self, name)}: give a number of at least 0.")
        for name, allowed, right in (
            ("momentum", "a number in [0, 1)", 0 <= self.momentum < 1),
            ("crop_scale", "a part of the picture's area in (0, 1]", 0 < self.crop_scale <= 1),
            ("workers", "a whole number, or -1 to let the machine decide", self.workers >= -1),
            ("seed", "a whole number from 0 to 2^63 - 1", 0 <= self.seed < 2**63),
        ):
            if not right:
                raise ConfigError(f"{name}={getattr(self, name)}: give {allowed}.")
        if self.tune == "head" and self.weights == "none":
            raise ConfigError(
                "tune=head with weights=none would train on the features of a random network.",
                "Give --weights imagenet, or --tune all.",
            )


def _check_choices(config: TrainConfig) -> None:
    """Refuse a setting that is none of the names its type lists."""
    for name, hint in typing.get_type_hints(TrainConfig).items():
        choices = typing.get_args(hint) if typing.get_origin(hint) is Literal else ()
        value = getattr(config, name)
        if choices and value not in choices:
            raise ConfigError(
                f"{name}={value!r}: give {', '.join(choices[:-1])} or {choices[-1]}.", did_you_mean(str(value), choices)
            )


def check_regions(name: str, k: Regions | None) -> None:
    """Refuse a `kmax` or `kmin` that is neither a count nor a proportion.

    Raises:
        ConfigError: names the value, what is allowed and what was perhaps meant.
    """
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
        guess = f"; did you mean {_proportion(k):g} or {math.ceil(k)}?" if math.isfinite(k) and k > 1 else "."
        raise ConfigError(f"{name}={k:g}: {allowed}{guess}")


def _proportion(k: float) -> float:
    """`k` above 1 with its point moved before its first digit: 1.5 -> 0.15, 20 -> 0.2."""
    return float(k / 10 ** (math.floor(math.log10(k)) + 1))


def check_alpha(alpha: float) -> None:
    """Refuse an `alpha` that is negative or not finite.

    Raises:
        ConfigError: names the value and the customary range.
    """
    if not isinstance(alpha, (int, float)) or not math.isfinite(alpha) or alpha < 0:
        raise ConfigError(f"alpha={alpha}: give a finite number of at least 0; the paper finds 0.6 to 0.8 best.")


def to_dict(config: TrainConfig) -> dict[str, Any]:
    """The settings as plain values, in the order of the fields."""
    return dataclasses.asdict(config)


def from_dict(values: typing.Mapping[str, Any], source: str, base: TrainConfig | None = None) -> TrainConfig:
    """Settings from plain values over the defaults (or over `base`); `source` names the file in errors.

    Raises:
        ConfigError: an unknown name, a value of the wrong type, or a value out of range.
    """
    hints = typing.get_type_hints(TrainConfig)
    clean: dict[str, Any] = {}
    for name, value in values.items():
        if name not in hints:
            raise ConfigError(
                f"{source}: there is no setting {name!r}.",
                did_you_mean(str(name), hints) or f"Settings are: {', '.join(hints)}.",
            )
        clean[name] = _typed(name, value, hints[name], source)
    config = dataclasses.replace(base or TrainConfig(), **clean)
    config.validate()
    return config


def _typed(name: str, value: Any, hint: Any, source: str) -> Any:
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    for option in options:
        if typing.get_origin(option) is Literal:
            if value in typing.get_args(option):
                return value
        elif option is types.NoneType:
            if value is None:
                return None
        elif type(value) is option:
            return value
        elif option is float and type(value) is int and int not in options:
            return float(value)
    wanted = " or ".join(
        ", ".join(map(str, typing.get_args(o))) if typing.get_origin(o) is Literal else getattr(o, "__name__", str(o))
        for o in options
    )
    # YAML 1.1 takes 1e-4 without a point for text
    remedy = f"Write it as {float(value)}." if float in options and _is_number(value) else ""
    raise ConfigError(f"{source}: {name}={value!r} should be {wanted.replace('NoneType', 'null')}.", remedy)


def _is_number(text: Any) -> bool:
    try:
        return isinstance(text, str) and math.isfinite(float(text))
    except ValueError:
        return False


def config_text(config: TrainConfig) -> str:
    """The settings as YAML, one line a field."""
    return str(yaml.safe_dump(to_dict(config), sort_keys=False))


def read_config(path: Path, base: TrainConfig | None = None) -> TrainConfig:
    """Read settings from a YAML file over the defaults (or over `base`).

    Raises:
        ConfigError: the file is not YAML, or holds an unknown or wrong setting.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not YAML: it is not a text file.") from error
    return _parse(text, str(path), base)


def list_recipes() -> tuple[str, ...]:
    """Names of the packaged recipes."""
    folder = resources.files("wildcat") / "recipes"
    return tuple(sorted(f.name.removesuffix(".yaml") for f in folder.iterdir() if f.name.endswith(".yaml")))


def load_recipe(name: str) -> TrainConfig:
    """The settings of a packaged recipe, or of a YAML file given by its path.

    Raises:
        ConfigError: no such recipe or file.
    """
    if name in list_recipes():
        text = (resources.files("wildcat") / "recipes" / f"{name}.yaml").read_text(encoding="utf-8")
        return _parse(text, f"recipe {name}")
    path = Path(name)
    if path.suffix in (".yaml", ".yml") and path.is_file():
        return read_config(path)
    raise ConfigError(
        f"there is no recipe {name!r}.",
        did_you_mean(name, list_recipes()) or f"Recipes are: {', '.join(list_recipes())}; or give a .yaml file.",
    )


def _parse(text: str, source: str, base: TrainConfig | None = None) -> TrainConfig:
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{source} is not YAML: {str(error).splitlines()[0]}.") from error
    if values is None:
        values = {}
    if not isinstance(values, dict):
        raise ConfigError(f"{source} should hold 'name: value' lines.")
    return from_dict(values, source, base)
