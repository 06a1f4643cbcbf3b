"""Pseudo labels for `wildcat refine`: class maps of the labelled classes become probabilities of each place."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from wildcat.data.dataset import Sample
from wildcat.data.image_ref import ImageRef, load_image
from wildcat.data.images import IntensityRange
from wildcat.errors import ShapeError
from wildcat.fitting.config import Sharpen
from wildcat.fitting.levels import outputs_from_features
from wildcat.models.member import Member
from wildcat.models.run import Run
from wildcat.predictor import Predictor
from wildcat.progress import Progress
from wildcat.regions.crf import CrfParams, dense_crf
from wildcat.regions.pamr import pamr

MASK_PIXELS = 1 << 16  # images are downscaled to this many pixels for the CRF; labels are averaged over larger cells
PUBLISHED_PIXELS = 375 * 500  # of the images that CRF settings are published for; sigmas are scaled for smaller ones


def small_image(
    ref: Path | ImageRef, intensity: IntensityRange | None = None, size: tuple[int, int] | None = None
) -> NDArray[np.uint8]:
    """(H, W, 3) RGB, resized to `size` = (height, width), or else downscaled to at most `MASK_PIXELS`."""
    image = load_image(ref, intensity)
    if size is None:
        scale = min(1.0, math.sqrt(MASK_PIXELS / (image.width * image.height)))
        size = (max(1, round(image.height * scale)), max(1, round(image.width * scale)))
    return np.asarray(image.resize(size[::-1], Image.Resampling.BOX))


def scaled_crf(params: CrfParams, pixels: int) -> CrfParams:
    """Scale the sigmas of settings for images of 500 x 375 to an image of `pixels`; unchanged for larger images."""
    scale = min(1.0, math.sqrt(pixels / PUBLISHED_PIXELS))
    values = asdict(params)
    for name in ("appearance_sigma_xy", "smoothness_sigma"):
        values[name] *= scale
    return CrfParams(**values)


def sharpened(image: NDArray[np.uint8], probabilities: Tensor, how: Sharpen, crf: CrfParams) -> Tensor:
    """(C, H, W) probabilities aligned with the edges of an image by the chosen method."""
    if how == "crf":
        return dense_crf(image, probabilities, scaled_crf(crf, image.shape[0] * image.shape[1]))
    return pamr(image, probabilities) if how == "pamr" else probabilities


def weigh_background(probabilities: Tensor, margin: float) -> Tensor:
    """(K + 1, H, W) probabilities, background first, with the log odds of the background raised by `margin`."""
    weighed = torch.cat([probabilities[:1] * math.exp(margin), probabilities[1:]])
    return weighed / weighed.sum(dim=0)


def maps_at_size(
    run: Run, samples: Sequence[Sample], present: Sequence[Tensor], size: int, device: str, progress: Progress
) -> list[Tensor]:
    """For each image (K, h, w) maps of its K labelled classes, from images of `size` pixels in the run's views.

    Args:
        progress: advanced by the number of views of images.

    Raises:
        ShapeError: the backbone does not take images of this size.
    """
    member = Member(run.load_model(), replace(run.preprocess, size=size))
    predictor = Predictor(str(run.folder), [member], run.classes, run.task, device)
    try:
        batches = outputs_from_features(predictor, samples, run.config.amp, run.config.flip, progress)
        of_images = (torch.from_numpy(class_maps) for outputs in batches for class_maps in outputs.class_maps)
        return [class_maps[labels] for class_maps, labels in zip(of_images, present, strict=True)]
    except ShapeError as error:
        raise ShapeError(error.message, "Give --label-sizes 1: the maps of the training size alone.") from error
