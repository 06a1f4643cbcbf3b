"""Train a segmenter on masks that a run makes of its own training images: `wildcat refine`.

This is the second step of weakly supervised segmentation:

1. The run's class maps of every training image, for its labelled classes, are weighed against the background.
2. A dense CRF sharpens them to the edges of the image. The labels for training are probabilities.
3. `wildcat.nn.segmenter` is trained on them, on inner layers of the frozen backbone. Its own maps, again for the
   labelled classes and sharpened, are the labels of the next round.

Ground-truth masks are never used. Features are computed once and cached on disk.
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
from wildcat.data.images import IntensityRange
from wildcat.data.loader import batch_indices, epoch_order
from wildcat.device import choose_device
from wildcat.errors import DataError, TrainingError
from wildcat.files import refuse_existing
from wildcat.models.calibration import Calibration, fitted_samples, read_calibration
from wildcat.models.folder import Model, write_refined
from wildcat.models.member import Member, mean_over_views
from wildcat.models.run import Run
from wildcat.nn.backbones import Backbone
from wildcat.nn.segmenter import Segmenter, segmentation_loss
from wildcat.prediction import default_mask_params
from wildcat.progress import SILENT, Progress
from wildcat.regions.crf import MILD_CRF, CrfParams, dense_crf
from wildcat.regions.masks import MaskParams, class_probabilities_with_background, upsample_maps
from wildcat.train.feature_cache import Features, cached_features, feature_workers

MASK_PIXELS = 1 << 16  # images are downscaled to this many pixels for the CRF; labels are averaged over larger cells
PUBLISHED_PIXELS = 375 * 500  # of the images that CRF settings are published for; sigmas are scaled for smaller ones
WARM_UP = 0.1  # fraction of the steps in which the learning rate rises
MEASURED = 64  # images for the mean and standard deviation of the inner layers


def refine(
    run: Run,
    data: DataSet,
    folder: Path,
    config: RefineConfig | None = None,
    split: str = "train",
    crf: CrfParams | None = None,
    device: str = "auto",
    progress: Progress = SILENT,
) -> Model:
    """Train a segmenter on the masks that a run makes of a split, and write a refined model.

    Args:
        run: trained on image-level labels; its calibration, if it has one, determines its masks.
        split: training images; their labels are used, their masks never.
        crf: sharpens the labels; in pixels of images of 500 x 375, scaled to the images.
        progress: counts images in each stage: features, then labels and training in each round.

    Raises:
        ConfigError: a setting is out of range.
        RunError: the folder exists, or cannot be written.
        DataError: the data has other classes than the run, or the split has no labelled image.
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
        raise DataError(f"no image of {split} of {data.name} has a label.", "Give a split with labelled images.")
    calibration = read_calibration(run.folder, run.classes)
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        refinement = Refinement(run, samples, order, config, crf or CrfParams(), calibration, device, progress)
        segmenter = refinement.run_rounds()
    trained = {
        "data": data.name,
        "split": split,
        "images": len(samples),
        **asdict(config),
        "crf": asdict(refinement.crf),
        "losses": refinement.losses,
    }
    gate = (calibration.params if calibration else default_mask_params(run.task)).gate
    record = {"data": data.name, "split": split, "images": len(samples), "masks": 0, "crf": False}
    record |= {"prior": {}, "f1": {}, "tried": []}
    masks = Calibration(MaskParams(gate=gate, rule="score"), record, MILD_CRF)
    return write_refined(folder, run, segmenter.cpu(), trained, masks)


class Refinement:
    """The training of a segmenter: labels and a new segmenter in each round.

    Attributes:
        losses: the mean loss of the last epoch of each round.
    """

    def __init__(
        self,
        run: Run,
        samples: Sequence[Sample],
        order: Sequence[int],
        config: RefineConfig,
        crf: CrfParams,
        calibration: Calibration | None,
        device: str,
        progress: Progress,
    ) -> None:
        self.device = choose_device(device)
        self.member = Member(run.load_model().to(self.device).eval(), run.preprocess)
        self.samples, self.config, self.crf, self.progress = samples, config, crf, progress
        self.params = calibration.params if calibration else default_mask_params(run.task)
        self.present = [torch.from_numpy(np.flatnonzero(s.labels[order] == PRESENT)) for s in samples]
        self.flip, self.views = run.config.flip, FLIP_VIEWS[run.config.flip]
        self.num_classes = len(run.classes)
        self.losses: list[float] = []
        flat = FlatLevels(self.member.model.backbone)
        self.progress.start("features", len(samples) * len(self.views))
        self.features: Features = cached_features(
            flat,  # type: ignore[arg-type]  # it has what `cached_features` uses of a backbone
            samples,
            run.preprocess,
            self.flip,
            cache_folder() / "features",
            feature_workers(self.device.type),
            progress=self.progress,
            amp=run.config.amp,
        )
        self.shapes = flat.shapes

    def run_rounds(self) -> Segmenter:
        """Run all rounds; returns the segmenter of the last one, in evaluation mode."""
        segmenter = self.run_round(1, None)
        for number in range(2, self.config.rounds + 1):
            segmenter = self.run_round(number, segmenter)
        return segmenter

    def run_round(self, number: int, previous: Segmenter | None) -> Segmenter:
        """Train a segmenter on labels made by the previous one, in the first round by the run."""
        note = f" {number} of {self.config.rounds}" if self.config.rounds > 1 else ""
        return self.train(self.make_targets(previous, f"labels{note}"), f"training{note}")

    def levels(self, indices: Sequence[int], views: Sequence[int]) -> list[Tensor]:
        """The inner layers of images, each in one of its views, (B, D, h, w) each, on the device."""
        return unflattened(self.features.batch(indices, views).to(self.device), self.shapes)

    @torch.inference_mode()
    def maps(self, index: int, segmenter: Segmenter | None) -> Tensor:
        """(C, h, w) class maps of an image, averaged over its views: of the segmenter, or of the run without one."""

        def compute(view: int, _: tuple[int, ...]) -> tuple[Tensor, ...]:
            levels = self.levels([index], [view])
            if segmenter is not None:
                return (segmenter(levels),)
            return (self.member.scores_and_maps(levels[-1]).class_maps,)

        return mean_over_views(self.flip, compute)[0][0]

    def make_targets(self, segmenter: Segmenter | None, task: str) -> list[Tensor]:
        """For each image (K + 1, h, w) float16 probabilities of the background and of its K labelled classes."""
        grid = self.shapes[-2 if len(self.shapes) > 1 else -1][1:]
        params = self.params if segmenter is None else MaskParams(rule="score")
        self.progress.start(task, len(self.samples))
        targets = []
        for index, sample in enumerate(self.samples):
            image = small_image(sample.path, self.member.preprocess.intensity_range)
            size = (image.shape[0], image.shape[1])
            maps = upsample_maps(self.maps(index, segmenter)[self.present[index].to(self.device)], size)
            unary = class_probabilities_with_background(maps, params)
            sharp = dense_crf(image, unary, scaled_crf(self.crf, size[0] * size[1]))
            targets.append(nn.functional.adaptive_avg_pool2d(sharp[None], grid)[0].half().cpu())
            self.progress.advance()
        return targets

    def train(self, targets: Sequence[Tensor], task: str) -> Segmenter:
        """Train a new segmenter on soft labels."""
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
        self.progress.start(task, config.epochs * count)
        for epoch in range(config.epochs):
            segmenter.train()
            rng = np.random.default_rng([config.seed, epoch, 2])
            views = rng.integers(0, len(self.views), count)
            total = 0.0
            for batch in batch_indices(epoch_order(count, config.seed, epoch), config.batch_size):
                batch_views = [int(views[i]) for i in batch]
                labels = torch.stack(
                    [self._target(i, targets[i], self.views[v]) for i, v in zip(batch, batch_views, strict=True)]
                )
                loss = segmentation_loss(segmenter(self.levels(batch, batch_views)), labels.to(self.device))
                value = float(loss.detach())
                if not math.isfinite(value):
                    raise TrainingError(
                        f"the loss is {value} in epoch {epoch + 1} of refining, at learning rate {config.lr:g}.",
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
        """(C + 1, h, w) float32 target of an image in one view, mirrored along `axes`."""
        full = torch.zeros(self.num_classes + 1, *target.shape[1:])
        full[torch.cat([torch.zeros(1, dtype=torch.int64), self.present[index] + 1])] = target.float()
        return full.flip(axes) if axes else full


class FlatLevels(nn.Module):
    """The inner layers of a backbone as one vector per image, (B, L, 1, 1), to be cached as features."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone
        self.name = f"{backbone.name}, levels"
        self.shapes: tuple[tuple[int, int, int], ...] = ()

    def forward(self, images: Tensor) -> Tensor:
        levels = self.backbone.levels(images)
        self.shapes = tuple((int(x.shape[1]), int(x.shape[2]), int(x.shape[3])) for x in levels)
        # (B, D, h, w) -> (B, h, w, D): channels last, as the backbone returns them
        return torch.cat([x.permute(0, 2, 3, 1).flatten(1) for x in levels], dim=1)[:, :, None, None]


def unflattened(vectors: Tensor, shapes: Sequence[tuple[int, int, int]]) -> list[Tensor]:
    """(B, L, 1, 1) of `FlatLevels` -> the inner layers, (B, D, h, w) each, channels last."""
    layers = torch.split(vectors.flatten(1), [d * h * w for d, h, w in shapes], dim=1)
    return [x.reshape(len(x), h, w, d).permute(0, 3, 1, 2) for x, (d, h, w) in zip(layers, shapes, strict=True)]


def small_image(ref: Path | ImageRef, intensity: IntensityRange | None = None) -> NDArray[np.uint8]:
    """(H, W, 3) RGB, downscaled to at most `MASK_PIXELS`."""
    image = load_image(ref, intensity)
    scale = min(1.0, math.sqrt(MASK_PIXELS / (image.width * image.height)))
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return np.asarray(image.resize(size, Image.Resampling.BOX) if scale < 1 else image)


def scaled_crf(params: CrfParams, pixels: int) -> CrfParams:
    """Scale the sigmas of settings for images of 500 x 375 to an image of `pixels`; unchanged for larger images."""
    scale = min(1.0, math.sqrt(pixels / PUBLISHED_PIXELS))
    values = asdict(params)
    for name in ("appearance_sigma_xy", "smoothness_sigma"):
        values[name] *= scale
    return CrfParams(**values)
