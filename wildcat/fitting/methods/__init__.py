"""The methods of `wildcat refine` by name: how a second stage is trained from image-level labels. No torch here.

A method is one line of `REFINE_METHODS` and one module of this package, named like it with underscores for hyphens,
with one function, `train(images: TrainingImages) -> Segmenter`. All train the same segmenter on the same features,
except `pronet-cascade`, which trains a classifier of crops.
"""

from __future__ import annotations

from dataclasses import dataclass

from wildcat.errors import ConfigError, did_you_mean

# Settings of `RefineConfig` that every method uses, and those of every segmenter.
SHARED_SETTINGS = ("method", "epochs", "batch_size", "lr", "weight_decay", "seed")
SEGMENTER_SETTINGS = ("tune", "tune_epochs", "tune_lr")


@dataclass(frozen=True)
class RefineMethod:
    """A line of `REFINE_METHODS`.

    Attributes:
        description: what it does, with its source.
        own: settings of `RefineConfig` that it uses besides those of others.
        multiclass: whether it takes classes that exclude each other, where a class may fill its images.
        gives: what the second stage decides.
    """

    description: str
    own: tuple[str, ...] = ()
    multiclass: bool = False
    gives: str = "masks"

    @property
    def settings(self) -> tuple[str, ...]:
        """The settings of `RefineConfig` that it uses; others are refused."""
        return (*SHARED_SETTINGS, *(SEGMENTER_SETTINGS if self.gives == "masks" else ()), *self.own)


LABEL_SETTINGS = ("label_sizes", "sharpen", "propagate", "confidence", "label_margin", "boundary_epochs", "boundary_lr")

REFINE_METHODS: dict[str, RefineMethod] = {
    "wildcat": RefineMethod(
        "labels from the run's maps, aligned with edges by a CRF", (*LABEL_SETTINGS, "rounds"), multiclass=True
    ),
    "mil-fcn": RefineMethod("the highest pixel of each label (Pathak et al., ICLR workshop 2015)"),
    "mil-base": RefineMethod(
        "log-sum-exp over pixels, image-level prior, superpixels (Pinheiro & Collobert, CVPR 2015)", ("superpixels",)
    ),
    "em-adapt": RefineMethod("each label gets a share of the pixels (Papandreou et al., ICCV 2015)"),
    "ccnn": RefineMethod("the nearest labels under constraints on their areas (Pathak et al., ICCV 2015)"),
    "sec": RefineMethod("seed, expand and constrain (Kolesnikov & Lampert, ECCV 2016)", ("label_sizes",)),
    "pronet-cascade": RefineMethod(
        "a second classifier verifies crops that the maps propose (Sun et al., ProNet, CVPR 2016)",
        ("crops", "crop_weight"),
        gives="scores, points, boxes",
    ),
}


def refine_method(name: str) -> RefineMethod:
    """The method of this name.

    Raises:
        ConfigError: no such method.

    >>> refine_method("mil-base").own
    ('superpixels',)
    """
    if name not in REFINE_METHODS:
        hint = did_you_mean(name, REFINE_METHODS) or f"Methods are: {', '.join(REFINE_METHODS)}."
        raise ConfigError(f"there is no method {name!r} of wildcat refine.", hint)
    return REFINE_METHODS[name]
