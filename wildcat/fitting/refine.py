"""The second step of weakly supervised segmentation: a segmenter trained on masks that a run makes of its own images.

1. The run draws every training image, of the classes it is tagged with, against the background.
2. A dense CRF sharpens the masks to the edges. How sure it is of each place is kept: labels are probabilities.
3. `wildcat.nn.segmenter` learns them on the frozen backbone's levels. Its own masks, again of the tagged classes and
   sharpened, are the labels of the next round.

No true mask is seen. Features are computed once and cached on disk.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from wildcat.config import FLIP_VIEWS, RefineConfig
from wildcat.data.cache import cache_folder
from wildcat.data.dataset import PRESENT, DataSet, Sample
from wildcat.data.image_ref import ImageRef, load_image
from wildcat.data.loader import batch_indices, epoch_order
from wildcat.device import choose_device
from wildcat.errors import ConfigError, DataError, TrainingError
from wildcat.files import refuse_existing
from wildcat.models.calibration import Calibration, fitted_samples, read_calibration, write_calibration
from wildcat.models.refined import Refined, write_refined
from wildcat.models.run import Run
from wildcat.nn.backbones import Backbone
from wildcat.nn.model import Wildcat
from wildcat.nn.segmenter import Segmenter, segmentation_loss
from wildcat.prediction import default_mask_params
from wildcat.progress import Progress
from wildcat.regions.crf import MILD_CRF, CrfParams, dense_crf
from wildcat.regions.masks import MaskParams, class_probabilities_with_background, upsample_maps
from wildcat.train.feature_cache import Features, cached_features, feature_workers

MASK_PIXELS = 1 << 16
"""Pixels of an image that the CRF sees when training labels are made: they are averaged over much larger cells."""

PUBLISHED_PIXELS = 375 * 500
"""Of the images that settings of a dense CRF are published for; its widths shrink with a smaller image."""

WARM_UP = 0.1
"""Part of the steps in which the learning rate rises."""

MEASURED = 64
"""Images the spread of the levels is measured on."""


def refine(
    run: Run,
    data: DataSet,
    folder: Path,
    config: RefineConfig | None = None,
    split: str = "train",
    crf: CrfParams | None = None,
    device: str = "auto",
    progress: Progress | None = None,
) -> Refined:
    """Train a segmenter on the masks a run makes of a split, and write both as a model of their own.

    Args:
        run: what was trained on tags; its calibration, where it has one, says how its masks are drawn.
        split: the images to learn from; their tags are used, their masks never.
        crf: sharpens the labels; in pixels of images of 500 x 375, scaled to what it sees.
        progress: hears of the stages: features, labels and training, round by round.

    Raises:
        ConfigError: a setting is out of range.
        RunError: the folder exists, or cannot be written.
        DataError: the data has other classes than the run, or the split no tagged image.
        TrainingError: the loss is not finite.
        ImageError: an image cannot be read.
    """
    config = config or RefineConfig()
    config.validate()
    refuse_existing(folder)
    if set(run.classes) != set(data.classes):
        raise DataError(f"{data.name} has other classes than {run.folder}.", "Give the data the run was trained on.")
    order = [data.classes.index(name) for name in run.classes]
    samples = [s for s in fitted_samples(data, split) if (s.labels == PRESENT).any()]
    if not samples:
        raise DataError(f"no image of {split} of {data.name} has a tag.", "Name a split with tagged images.")
    model = run.load_model().to(choose_device(device))
    calibration = read_calibration(run.folder, run.classes)
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        refinement = Refinement(run, model, samples, order, config, crf or CrfParams(), calibration, progress)
        segmenter = refinement.run_rounds()
    record = {
        "data": data.name,
        "split": split,
        "images": len(samples),
        **asdict(config),
        "crf": asdict(refinement.crf),
        "losses": refinement.losses,
    }
    gate = calibration.params.gate if calibration else MaskParams().gate
    drawn = {"data": data.name, "split": split, "images": len(samples), "masks": 0, "crf": False}
    drawn |= {"prior": {}, "f1": {}, "tried": []}

    def describe_masks(made: Path) -> None:
        write_calibration(made, run.classes, MaskParams(gate=gate, rule="score"), drawn, MILD_CRF)

    return write_refined(folder, run, segmenter.cpu(), record, describe_masks)


class Refinement:
    """A segmenter on its way through the rounds.

    Attributes:
        losses: the mean loss of the last epoch of each round.
    """

    def __init__(
        self,
        run: Run,
        model: Wildcat,
        samples: Sequence[Sample],
        order: Sequence[int],
        config: RefineConfig,
        crf: CrfParams,
        calibration: Calibration | None,
        progress: Progress | None,
    ) -> None:
        self.model, self.samples, self.config, self.crf = model.eval(), samples, config, crf
        self.progress = progress or Progress()
        self.params = calibration.params if calibration else default_mask_params(run.task)
        self.present = [torch.from_numpy(np.flatnonzero(s.labels[order] == PRESENT)) for s in samples]
        self.device = next(model.parameters()).device
        self.views = FLIP_VIEWS[run.config.flip]
        self.losses: list[float] = []
        flat = FlatLevels(model.backbone)
        self.progress.start("features", len(samples) * len(self.views), 0)
        self.features: Features = cached_features(
            flat,  # type: ignore[arg-type]  # all that is asked of a backbone here
            samples,
            run.preprocess,
            run.config.flip,
            cache_folder() / "features",
            feature_workers(self.device.type),
            progress=self.progress.advance,
            amp=run.config.amp,
        )
        self.shapes = flat.shapes
        self.num_classes = len(run.classes)

    def run_rounds(self) -> Segmenter:
        """The segmenter of the last round, in evaluation mode."""
        segmenter: Segmenter | None = None
        for number in range(1, self.config.rounds + 1):
            note = f" {number} of {self.config.rounds}" if self.config.rounds > 1 else ""
            targets = self.make_targets(segmenter, f"labels{note}")
            segmenter = self.train(targets, f"training{note}")
        if segmenter is None:
            raise ConfigError("no round was asked for.", "Give rounds of at least 1.")
        return segmenter

    def levels(self, indices: Sequence[int], views: Sequence[int]) -> list[Tensor]:
        """The levels of images, each in one of its views, (B, D, h, w) each, on the device."""
        return unflattened(self.features.batch(indices, views).to(self.device), self.shapes)

    @torch.inference_mode()
    def maps(self, index: int, segmenter: Segmenter | None) -> Tensor:
        """(C, h, w) class maps of an image, its views averaged: the segmenter's, or the run's where there is none."""
        total: Tensor | None = None
        for view, axes in enumerate(self.views):
            levels = self.levels([index], [view])
            maps = self.model.class_maps_of(levels[-1]) if segmenter is None else segmenter(levels)
            maps = maps.flip(axes) if axes else maps
            total = maps if total is None else total + maps
        if total is None:
            raise ConfigError("an image has at least one view.")
        return total[0] / len(self.views)

    def make_targets(self, segmenter: Segmenter | None, what: str) -> list[Tensor]:
        """For each image (K + 1, h, w) float16 probabilities of the background and its K classes, on the grid."""
        grid = self.shapes[-2 if len(self.shapes) > 1 else -1][1:]
        params = self.params if segmenter is None else MaskParams(rule="score")
        self.progress.start(what, len(self.samples))
        made = []
        for index, sample in enumerate(self.samples):
            image = small_image(sample.path)
            size = (image.shape[0], image.shape[1])
            maps = upsample_maps(self.maps(index, segmenter)[self.present[index].to(self.device)], size)
            unary = class_probabilities_with_background(maps, params)
            sharp = dense_crf(image, unary, scaled_crf(self.crf, size[0] * size[1]))
            made.append(nn.functional.adaptive_avg_pool2d(sharp[None], grid)[0].half().cpu())
            self.progress.advance(1)
        return made

    def train(self, targets: Sequence[Tensor], what: str) -> Segmenter:
        """A new segmenter trained on soft labels."""
        config, count = self.config, len(self.samples)
        segmenter = Segmenter([shape[0] for shape in self.shapes], self.num_classes)
        segmenter.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        some = epoch_order(count, config.seed, 0)[:MEASURED]
        segmenter.measure(self.levels(some, [0] * len(some)))
        optimizer = torch.optim.AdamW(segmenter.parameters(), config.lr, weight_decay=config.weight_decay)
        batches = len(batch_indices(range(count), config.batch_size))
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, config.lr, total_steps=config.epochs * batches, pct_start=WARM_UP
        )
        self.progress.start(what, config.epochs * count)
        for epoch in range(config.epochs):
            segmenter.train()
            rng = np.random.default_rng([config.seed, epoch, 2])
            views = rng.integers(0, len(self.views), count)
            total = 0.0
            for batch in batch_indices(epoch_order(count, config.seed, epoch), config.batch_size):
                seen = [int(views[i]) for i in batch]
                labels = torch.stack(
                    [self._target(i, targets[i], self.views[v]) for i, v in zip(batch, seen, strict=True)]
                )
                loss = segmentation_loss(segmenter(self.levels(batch, seen)), labels.to(self.device))
                value = float(loss.detach())
                if not math.isfinite(value):
                    raise TrainingError(
                        f"the loss is {value} in epoch {epoch + 1} of refining, learning rate {config.lr:g}.",
                        f"Try --lr {config.lr / 10:g}.",
                    )
                optimizer.zero_grad(set_to_none=True)
                loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
                optimizer.step()
                schedule.step()
                total += value * len(batch)
                self.progress.advance(len(batch), f"epoch {epoch + 1}/{config.epochs} loss {value:.4f}")
        self.losses.append(round(total / count, 6))
        segmenter.eval()
        return segmenter

    def _target(self, index: int, target: Tensor, axes: tuple[int, ...]) -> Tensor:
        """(C + 1, h, w) float32 of one view; `axes` count from the last, see `FLIP_VIEWS`."""
        full = torch.zeros(self.num_classes + 1, *target.shape[1:])
        full[torch.cat([torch.zeros(1, dtype=torch.int64), self.present[index] + 1])] = target.float()
        return full.flip(axes) if axes else full


class FlatLevels(nn.Module):
    """The levels of a backbone as one vector an image, (B, L, 1, 1), in which form features are cached."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone
        self.name = f"{backbone.name}, levels"
        self.shapes: tuple[tuple[int, int, int], ...] = ()

    def forward(self, images: Tensor) -> Tensor:
        levels = self.backbone.levels(images)
        self.shapes = tuple((int(x.shape[1]), int(x.shape[2]), int(x.shape[3])) for x in levels)
        # (B, D, h, w) -> (B, h, w, D), as backbones make them and convolutions read them fastest
        return torch.cat([x.permute(0, 2, 3, 1).flatten(1) for x in levels], dim=1)[:, :, None, None]


def unflattened(vectors: Tensor, shapes: Sequence[tuple[int, int, int]]) -> list[Tensor]:
    """(B, L, 1, 1) of `FlatLevels` -> its levels, (B, D, h, w) each, channels last."""
    parts = torch.split(vectors.flatten(1), [d * h * w for d, h, w in shapes], dim=1)
    return [part.reshape(len(part), h, w, d).permute(0, 3, 1, 2) for part, (d, h, w) in zip(parts, shapes, strict=True)]


def small_image(ref: Path | ImageRef) -> NDArray[np.uint8]:
    """(H, W, 3) of an image, shrunk to `MASK_PIXELS` where it has more."""
    image = load_image(ref)
    scale = min(1.0, math.sqrt(MASK_PIXELS / (image.width * image.height)))
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return np.asarray(image.resize(size, Image.Resampling.BOX) if scale < 1 else image)


def scaled_crf(params: CrfParams, pixels: int) -> CrfParams:
    """Settings in pixels of images of 500 x 375 for one of so many pixels; larger ones keep them."""
    scale = min(1.0, math.sqrt(pixels / PUBLISHED_PIXELS))
    values = asdict(params)
    for name in ("appearance_sigma_xy", "smoothness_sigma"):
        values[name] *= scale
    return CrfParams(**values)
