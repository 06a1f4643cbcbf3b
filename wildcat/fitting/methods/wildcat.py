"""Our own method of `wildcat refine`: masks that the run makes of its training images are the labels of the segmenter.

1. The run's class maps of every training image, for its labelled classes, are averaged over several input sizes.
2. With `propagate`: where they are sure, they label pairs of near places, from which the boundaries of objects are
   learned (`wildcat.fitting.boundaries`). A random walk then spreads the maps up to these boundaries.
3. A dense CRF aligns the result with the edges of the image. The labels for training are probabilities.
4. The segmenter is trained on them. Its own maps, again for the labelled classes, are the source of the labels of the
   next round.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from wildcat.fitting.boundaries import boundary_loss, confident_labels
from wildcat.fitting.labels import sharpened, small_image, weigh_background
from wildcat.fitting.levels import fit
from wildcat.fitting.optimise import Training
from wildcat.fitting.training_images import TrainingImages
from wildcat.models.member import mean_over_views
from wildcat.nn.boundaries import BoundaryNetwork
from wildcat.nn.segmenter import Segmenter, segmentation_loss
from wildcat.regions.masks import MaskParams, class_probabilities_with_background, upsample_maps
from wildcat.regions.propagation import propagate

BOUNDARY_BATCH = 8  # images per step of the boundary network, each with a million pairs of places
BOUNDARY_STEPS = 200  # at least: few images are repeated; boundaries that are trained less are blurred, and maps leak


def train(images: TrainingImages) -> Segmenter:
    """Run all rounds; returns the segmenter of the last one, in evaluation mode."""
    maps, params, rounds = images.run_maps(), images.params, images.config.rounds
    if images.config.propagate:
        images.boundaries = train_boundaries(images, maps)
    for number in range(1, rounds + 1):
        note = f" {number} of {rounds}" if rounds > 1 else ""
        targets = make_targets(images, maps, params, f"labels{note}")
        segmenter = train_on(images, targets, f"segmenter{note}")
        if number < rounds:
            maps, params = images.all_maps(segmenter, f"maps {number + 1} of {rounds}"), MaskParams(rule="score")
    return segmenter


def train_boundaries(images: TrainingImages, maps: Sequence[Tensor]) -> BoundaryNetwork:
    """Train a boundary network on the places where the maps are sure."""
    grid, labels = images.cache.shapes[0][1:], []
    images.progress.start("confident labels", len(images.samples))
    for sample, present, of_image in zip(images.samples, images.present, maps, strict=True):
        image = small_image(sample.path, images.run.preprocess.intensity_range, grid)
        unary = class_probabilities_with_background(upsample_maps(of_image, grid), images.params)
        labels.append(confident_labels(*thresholded(images, image, unary, images.config.confidence), present))
        images.progress.advance()

    def loss(boundaries: Tensor, batch: Sequence[int], views: Sequence[int]) -> Tensor:
        pairs = zip(batch, views, strict=True)
        wanted = torch.stack([labels[i].flip(images.cache.views[v]) for i, v in pairs])
        return boundary_loss(boundaries, wanted.to(images.device))

    network = BoundaryNetwork(images.channels)
    least = math.ceil(BOUNDARY_STEPS * BOUNDARY_BATCH / len(images.samples))
    training = Training("boundaries", max(images.config.boundary_epochs, least), BOUNDARY_BATCH, "boundary_lr")
    images.losses.append(fit(network, images.cache, loss, training, images.config, images.progress))
    return network


@torch.inference_mode()
def walls(images: TrainingImages, network: BoundaryNetwork, index: int) -> Tensor:
    """(h, w) boundaries of an image in the cells of the targets, averaged over its views."""

    def compute(view: int, _: tuple[int, ...]) -> tuple[Tensor, ...]:
        return (network.walls(images.cache.batch([index], [view])),)

    return mean_over_views(images.run.config.flip, compute)[0][0].to(images.mask_device)


def make_targets(images: TrainingImages, maps: Sequence[Tensor], params: MaskParams, task: str) -> list[Tensor]:
    """For each image (K + 1, h, w) float16 probabilities of the background and of its K labelled classes."""
    images.progress.start(task, len(images.samples))
    targets = []
    for index, sample in enumerate(images.samples):
        image = small_image(sample.path, images.run.preprocess.intensity_range)
        size = (image.shape[0], image.shape[1])
        if images.boundaries is None:
            unary = class_probabilities_with_background(upsample_maps(maps[index], size), params)
        else:
            boundaries = walls(images, images.boundaries, index)
            coarse = upsample_maps(maps[index], (boundaries.shape[0], boundaries.shape[1]))
            unary = class_probabilities_with_background(coarse, params)
            unary = upsample_maps(propagate(unary, boundaries), size)
        labels = nn.functional.adaptive_avg_pool2d(soft_labels(images, image, unary)[None], images.grid)[0]
        targets.append(labels.half().cpu())
        images.progress.advance()
    return targets


def soft_labels(images: TrainingImages, image: NDArray[np.uint8], unary: Tensor) -> Tensor:
    """(K + 1, H, W) sharpened probabilities; all 0 where `label_margin` changes object into background."""
    if not images.config.label_margin:
        return sharpened(image, unary, images.config.sharpen, images.crf)
    high, low = thresholded(images, image, unary, images.config.label_margin)
    is_object, is_background = high.argmax(dim=0) > 0, low.argmax(dim=0) == 0
    return torch.where(is_object, high, low) * (is_object | is_background)


def thresholded(
    images: TrainingImages, image: NDArray[np.uint8], unary: Tensor, margin: float
) -> tuple[Tensor, Tensor]:
    """Sharpened probabilities with a high threshold for objects, and with a low one."""
    high, low = (
        sharpened(image, weigh_background(unary, shift), images.config.sharpen, images.crf)
        for shift in (margin, -margin)
    )
    return high, low


def train_on(images: TrainingImages, targets: Sequence[Tensor], task: str) -> Segmenter:
    """Train a new segmenter on soft labels."""

    def loss(maps: Tensor, batch: Sequence[int], views: Sequence[int]) -> Tensor:
        pairs = zip(batch, views, strict=True)
        wanted = torch.stack([target_of(images, i, targets[i], images.cache.views[v]) for i, v in pairs])
        return segmentation_loss(maps, wanted.to(images.device))

    return images.train_segmenter(loss, task)


def target_of(images: TrainingImages, index: int, target: Tensor, axes: tuple[int, ...]) -> Tensor:
    """(C + 1, h, w) float32 target of an image in one view, mirrored along `axes`."""
    full = torch.zeros(len(images.run.classes) + 1, *target.shape[1:])
    full[torch.cat([torch.zeros(1, dtype=torch.int64), images.present[index] + 1])] = target.float()
    return full.flip(axes)
