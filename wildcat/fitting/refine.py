"""Train a segmenter on masks that a run makes of its own training images: `wildcat refine`.

This is the second step of weakly supervised segmentation:

1. The run's class maps of every training image, for its labelled classes, are averaged over several input sizes.
2. With `propagate`: where they are sure, they label pairs of near places, from which the boundaries of objects are
   learned (`wildcat.fitting.boundaries`). A random walk then spreads the maps up to these boundaries.
3. A dense CRF aligns the result with the edges of the image. The labels for training are probabilities.
4. `wildcat.nn.segmenter` is trained on them, on inner layers of the frozen backbone. Its own maps, again for the
   labelled classes, are the source of the labels of the next round.

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
from torch import Tensor, nn

from wildcat.data.dataset import PRESENT, DataSet, Sample
from wildcat.device import choose_device
from wildcat.errors import DataError
from wildcat.files import refuse_existing
from wildcat.fitting.boundaries import boundary_loss, confident_labels
from wildcat.fitting.config import RefineConfig
from wildcat.fitting.labels import maps_at_size, sharpened, small_image, weigh_background
from wildcat.fitting.levels import LevelCache, fit
from wildcat.models.calibration import Calibration, fitted_samples, read_calibration
from wildcat.models.folder import Model, write_refined
from wildcat.models.member import Member, mean_over_views, on_finest_grid
from wildcat.models.run import Run
from wildcat.nn.boundaries import BoundaryNetwork
from wildcat.nn.segmenter import Segmenter, output_level, segmentation_loss
from wildcat.prediction import default_mask_params
from wildcat.progress import SILENT, Progress
from wildcat.regions.crf import MILD_CRF, CrfParams
from wildcat.regions.masks import MaskParams, class_probabilities_with_background, upsample_maps
from wildcat.regions.propagation import propagate

BOUNDARY_BATCH = 8  # images per step of the boundary network, each with a million pairs of places
BOUNDARY_STEPS = 200  # at least: few images are repeated; boundaries that are trained less are blurred, and maps leak


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
        crf: sharpens the labels; in pixels of images of 500 x 375, scaled to the images. None: the defaults, or
            `MILD_CRF` for propagated maps, which are sharp already.
        progress: counts images in each stage: features, maps, boundaries, then labels and training in each round.

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
        refinement = Refinement(run, samples, order, config, crf, calibration, device, progress)
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
    boundaries = refinement.boundaries
    return write_refined(folder, run, segmenter.cpu(), trained, masks, boundaries and boundaries.cpu())


class Refinement:
    """The training of a segmenter: labels and a new segmenter in each round.

    Attributes:
        boundaries: the trained boundary network; None without `propagate`.
        losses: the mean loss of the last epoch of each training.
    """

    def __init__(
        self,
        run: Run,
        samples: Sequence[Sample],
        order: Sequence[int],
        config: RefineConfig,
        crf: CrfParams | None,
        calibration: Calibration | None,
        device: str,
        progress: Progress,
    ) -> None:
        self.device = choose_device(device)
        self.mask_device = torch.device("cpu") if self.device.type == "mps" else self.device  # MPS: no sparse products
        self.member = Member(run.load_model().to(self.device).eval(), run.preprocess)
        self.run, self.samples, self.config, self.progress = run, samples, config, progress
        self.crf = crf or (MILD_CRF if config.propagate else CrfParams())
        self.params = calibration.params if calibration else default_mask_params(run.task)
        self.present = [torch.from_numpy(np.flatnonzero(s.labels[order] == PRESENT)) for s in samples]
        self.cache = LevelCache(self.member.model.backbone, run, samples, self.device, progress)
        self.channels = [shape[0] for shape in self.cache.shapes]
        self.boundaries: BoundaryNetwork | None = None
        self.losses: list[float] = []

    def run_rounds(self) -> Segmenter:
        """Run all rounds; returns the segmenter of the last one, in evaluation mode."""
        maps, params = self.run_maps(), self.params
        if self.config.propagate:
            self.boundaries = self.train_boundaries(maps)
        segmenter = self.run_round(1, maps, params)
        for number in range(2, self.config.rounds + 1):
            maps = self.all_maps(segmenter, f"maps {number} of {self.config.rounds}")
            segmenter = self.run_round(number, maps, MaskParams(rule="score"))
        return segmenter

    def run_round(self, number: int, maps: Sequence[Tensor], params: MaskParams) -> Segmenter:
        """Train a segmenter on labels made of maps."""
        note = f" {number} of {self.config.rounds}" if self.config.rounds > 1 else ""
        return self.train_segmenter(self.make_targets(maps, params, f"labels{note}"), f"segmenter{note}")

    def run_maps(self) -> list[Tensor]:
        """(K, h, w) maps of the labelled classes of each image by the run, averaged over the sizes of labels."""
        by_size = []
        for factor in self.config.size_factors():
            size = round(factor * self.run.preprocess.size)
            task = f"maps at {size} px"
            if factor == 1:
                by_size.append(self.all_maps(None, task))
            else:
                self.progress.start(task, len(self.samples))
                maps = maps_at_size(self.run, self.samples, self.present, size, str(self.device), self.progress)
                by_size.append([one.to(self.mask_device) for one in maps])
        grids = [on_finest_grid([one[None] for one in maps]) for maps in zip(*by_size, strict=True)]
        return [torch.cat(maps).mean(dim=0) for maps in grids]

    def all_maps(self, segmenter: Segmenter | None, task: str) -> list[Tensor]:
        """`maps` of every image."""
        self.progress.start(task, len(self.samples))
        found = []
        for index in range(len(self.samples)):
            found.append(self.maps(index, segmenter))
            self.progress.advance()
        return found

    @torch.inference_mode()
    def maps(self, index: int, segmenter: Segmenter | None) -> Tensor:
        """(K, h, w) maps of the labelled classes of an image, averaged over its views, by the segmenter or the run."""

        def compute(view: int, _: tuple[int, ...]) -> tuple[Tensor, ...]:
            levels = self.cache.batch([index], [view])
            maps = self.member.scores_and_maps(levels[-1]).class_maps if segmenter is None else segmenter(levels)
            return (maps,)

        return mean_over_views(self.run.config.flip, compute)[0][0][self.present[index].to(self.device)].to(
            self.mask_device
        )

    @torch.inference_mode()
    def walls(self, network: BoundaryNetwork, index: int) -> Tensor:
        """(h, w) boundaries of an image in the cells of the targets, averaged over its views."""

        def compute(view: int, _: tuple[int, ...]) -> tuple[Tensor, ...]:
            return (network.walls(self.cache.batch([index], [view])),)

        return mean_over_views(self.run.config.flip, compute)[0][0].to(self.mask_device)

    def train_boundaries(self, maps: Sequence[Tensor]) -> BoundaryNetwork:
        """Train a boundary network on the places where the maps are sure."""
        grid, labels = self.cache.shapes[0][1:], []
        self.progress.start("confident labels", len(self.samples))
        for sample, present, of_image in zip(self.samples, self.present, maps, strict=True):
            image = small_image(sample.path, self.run.preprocess.intensity_range, grid)
            unary = class_probabilities_with_background(upsample_maps(of_image, grid), self.params)
            labels.append(confident_labels(*self.thresholded(image, unary, self.config.confidence), present))
            self.progress.advance()

        def loss(boundaries: Tensor, images: Sequence[int], views: Sequence[int]) -> Tensor:
            pairs = zip(images, views, strict=True)
            wanted = torch.stack([labels[i].flip(self.cache.views[v]) for i, v in pairs])
            return boundary_loss(boundaries, wanted.to(self.device))

        network = BoundaryNetwork(self.channels)
        least = math.ceil(BOUNDARY_STEPS * BOUNDARY_BATCH / len(self.samples))
        epochs = max(self.config.boundary_epochs, least)
        self.losses.append(
            fit(
                network,
                self.cache,
                loss,
                self.config,
                epochs,
                BOUNDARY_BATCH,
                "boundary_lr",
                "boundaries",
                self.progress,
            )
        )
        return network

    def make_targets(self, maps: Sequence[Tensor], params: MaskParams, task: str) -> list[Tensor]:
        """For each image (K + 1, h, w) float16 probabilities of the background and of its K labelled classes."""
        grid = output_level(self.cache.shapes)[1:]
        self.progress.start(task, len(self.samples))
        targets = []
        for index, sample in enumerate(self.samples):
            image = small_image(sample.path, self.run.preprocess.intensity_range)
            size = (image.shape[0], image.shape[1])
            if self.boundaries is None:
                unary = class_probabilities_with_background(upsample_maps(maps[index], size), params)
            else:
                walls = self.walls(self.boundaries, index)
                coarse = upsample_maps(maps[index], (walls.shape[0], walls.shape[1]))
                unary = class_probabilities_with_background(coarse, params)
                unary = upsample_maps(propagate(unary, walls), size)
            targets.append(nn.functional.adaptive_avg_pool2d(self.labels(image, unary)[None], grid)[0].half().cpu())
            self.progress.advance()
        return targets

    def labels(self, image: NDArray[np.uint8], unary: Tensor) -> Tensor:
        """(K + 1, H, W) sharpened probabilities; all 0 where `label_margin` changes object into background."""
        if not self.config.label_margin:
            return self.sharpened(image, unary)
        high, low = self.thresholded(image, unary, self.config.label_margin)
        is_object, is_background = high.argmax(dim=0) > 0, low.argmax(dim=0) == 0
        return torch.where(is_object, high, low) * (is_object | is_background)

    def thresholded(self, image: NDArray[np.uint8], unary: Tensor, margin: float) -> tuple[Tensor, Tensor]:
        """Sharpened probabilities with a high threshold for objects, and with a low one."""
        high, low = (self.sharpened(image, weigh_background(unary, shift)) for shift in (margin, -margin))
        return high, low

    def sharpened(self, image: NDArray[np.uint8], probabilities: Tensor) -> Tensor:
        """Probabilities aligned with the edges of an image, as the settings say."""
        return sharpened(image, probabilities, self.config.sharpen, self.crf)

    def train_segmenter(self, targets: Sequence[Tensor], task: str) -> Segmenter:
        """Train a new segmenter on soft labels."""

        def loss(maps: Tensor, images: Sequence[int], views: Sequence[int]) -> Tensor:
            pairs = zip(images, views, strict=True)
            wanted = torch.stack([self.target(i, targets[i], self.cache.views[v]) for i, v in pairs])
            return segmentation_loss(maps, wanted.to(self.device))

        segmenter = Segmenter(self.channels, len(self.run.classes))
        self.losses.append(
            fit(
                segmenter,
                self.cache,
                loss,
                self.config,
                self.config.epochs,
                self.config.batch_size,
                "lr",
                task,
                self.progress,
            )
        )
        return segmenter

    def target(self, index: int, target: Tensor, axes: tuple[int, ...]) -> Tensor:
        """(C + 1, h, w) float32 target of an image in one view, mirrored along `axes`."""
        full = torch.zeros(len(self.run.classes) + 1, *target.shape[1:])
        full[torch.cat([torch.zeros(1, dtype=torch.int64), self.present[index] + 1])] = target.float()
        return full.flip(axes)
