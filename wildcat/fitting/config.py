"""The settings of `wildcat refine`: one frozen dataclass that is the flags and the help at once. No torch here."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Literal

from wildcat.config import check_choices
from wildcat.errors import ConfigError
from wildcat.fitting.methods import REFINE_METHODS, refine_method

Sharpen = Literal["crf", "pamr", "none"]
RefineTune = Literal["segmenter", "all"]


@dataclass(frozen=True)
class RefineConfig:
    """Settings for training a second stage from image-level labels, see `wildcat.fitting.refine`."""

    method: str = "wildcat"
    """How the segmenter is trained: wildcat (ours), mil-fcn, mil-base, em-adapt, ccnn or sec; or pronet-cascade, which
    trains a classifier of crops instead. Each refuses the settings of others."""
    label_sizes: str = "0.75,1,1.25"
    """Sizes at which the run's maps are computed for the labels, as multiples of its image size; averaged."""
    sharpen: Sharpen = "crf"
    """What aligns labels with the edges of images: a dense CRF, or the local pamr."""
    propagate: bool = False
    """Train boundaries and spread the maps by a random walk up to them, before labels are made."""
    confidence: float = 1.0
    """Labels of boundaries are objects, or background, that stay so when the log odds are shifted by this much."""
    label_margin: float = 0.0
    """Ignore places whose label changes between object and background when the log odds are shifted by this much."""
    superpixels: bool = False
    """Average the masks of mil-base over superpixels of the image; needs scikit-image."""
    boundary_epochs: int = 3
    """Epochs of the boundary network; more for few images: at least 200 steps."""
    boundary_lr: float = 5e-3
    """Highest learning rate of AdamW for the boundary network."""
    crops: int = 8
    """Most crops of an image that pronet-cascade verifies, each at the cost of an image: two for each likely class."""
    crop_weight: float = 0.7
    """Weight of the crops in the scores of pronet-cascade, from 0 (the run's own scores) to 1."""
    rounds: int = 1
    """Number of times the segmenter is trained: first on the run's masks, then on those of the previous segmenter."""
    epochs: int = 12
    """Epochs of the segmenter in each round, or of the classifier of crops."""
    batch_size: int = 16
    """Images, or crops, per step."""
    lr: float = 2e-3
    """Highest learning rate of AdamW for the segmenter; it rises for a tenth of the steps, then falls to 0."""
    weight_decay: float = 1e-2
    """Weight decay of AdamW."""
    tune: RefineTune = "segmenter"
    """segmenter: on the frozen backbone; all: then the backbone, the head and the segmenter together, on images."""
    tune_epochs: int = 3
    """Epochs of all layers (--tune all)."""
    tune_lr: float = 3e-4
    """Highest learning rate of AdamW for the head and the segmenter with --tune all; the backbone has a tenth of it."""
    seed: int = 0
    """Seed of the initial weights and the order of the images."""

    def validate(self) -> None:
        """Check every value.

        Raises:
            ConfigError: a value is out of range, or is for a step that is not chosen.
        """
        self.check_method()
        self.size_factors()
        check_choices(self)
        for name in ("rounds", "epochs", "batch_size", "boundary_epochs", "tune_epochs"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)}: give at least 1.")
        if self.crops < 2:
            raise ConfigError(f"crops={self.crops}: give at least 2, the crops of one class.", "8 is usual.")
        if not 0 <= self.crop_weight <= 1:
            raise ConfigError(f"crop_weight={self.crop_weight}: give a number from 0 to 1.", "0.7 is usual.")
        for name, usual in (("lr", "0.002"), ("boundary_lr", "0.005"), ("tune_lr", "0.0003")):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) > 0):
                raise ConfigError(f"{name}={getattr(self, name)}: give a number above 0.", f"{usual} is usual.")
        for name in ("confidence", "label_margin", "weight_decay"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) >= 0):
                raise ConfigError(f"{name}={getattr(self, name)}: give a number of at least 0.")
        for step, chosen, names in (
            ("tune='all'", self.tune == "all", ("tune_epochs", "tune_lr")),
            ("propagate=True", self.propagate, ("confidence", "boundary_epochs", "boundary_lr")),
        ):
            for name in names:
                if not chosen and getattr(self, name) != getattr(RefineConfig, name):
                    raise ConfigError(
                        f"{name}={getattr(self, name)} has no effect without {step}.", f"Add {step}, or leave it out."
                    )

    def check_method(self) -> None:
        """Refuse an unknown method, and settings that the method does not use.

        Raises:
            ConfigError: names the setting, and the methods that use it.
        """
        used = refine_method(self.method).settings
        for setting in fields(self):
            value = getattr(self, setting.name)
            if value != setting.default and setting.name not in used:
                users = [name for name, method in REFINE_METHODS.items() if setting.name in method.settings]
                raise ConfigError(
                    f"{setting.name}={value!r} is not a setting of method={self.method!r}.",
                    f"Leave it out; it belongs to {' and '.join(users)}.",
                )

    def size_factors(self) -> tuple[float, ...]:
        """The multiples in `label_sizes`.

        Raises:
            ConfigError: one is not a number from 0.25 to 4.

        >>> RefineConfig(label_sizes="0.5, 1").size_factors()
        (0.5, 1.0)
        """
        try:
            factors = tuple(float(part) for part in self.label_sizes.split(","))
        except ValueError:
            factors = ()
        if not factors or not all(0.25 <= factor <= 4 for factor in factors):
            raise ConfigError(
                f"label_sizes={self.label_sizes!r}: give multiples from 0.25 to 4, separated by commas.",
                "0.75,1,1.25 is usual; 1 is fastest.",
            )
        return factors
