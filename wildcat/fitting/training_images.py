"""The images that `wildcat refine` trains a segmenter on: what every method uses of them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from wildcat.data.dataset import PRESENT, Sample, label_matrix
from wildcat.device import choose_device
from wildcat.fitting.config import RefineConfig
from wildcat.fitting.labels import maps_at_size
from wildcat.fitting.levels import LevelCache, fit
from wildcat.fitting.optimise import Loss, Training
from wildcat.models.calibration import Calibration
from wildcat.models.member import Member, mean_over_views, on_finest_grid
from wildcat.models.run import Run
from wildcat.nn.boundaries import BoundaryNetwork
from wildcat.nn.segmenter import Segmenter, output_level
from wildcat.prediction import default_mask_params
from wildcat.progress import Progress
from wildcat.regions.crf import MILD_CRF, CrfParams


class TrainingImages:
    """Labelled images, the levels of the run's frozen backbone for them, and the training of a segmenter on these.

    Attributes:
        present: for each image the indices of its labelled classes.
        params: how the run's maps become masks.
        grid: (h, w) of the segmenter's maps.
        losses: the mean loss of the last epoch of each training.
        boundaries: the boundary network, once it is trained; None without `propagate`.
        image_labels: (N, C) of 1 present, 0 ignored, -1 absent.
        segmenter_loss: of the last segmenter.
    """

    segmenter_loss: Loss

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
        self.image_labels = torch.from_numpy(label_matrix(samples)[:, order])
        self.present = [(labels == PRESENT).nonzero()[:, 0] for labels in self.image_labels]
        self.cache = LevelCache(self.member.model.backbone, run, samples, self.device, progress)
        self.channels = [shape[0] for shape in self.cache.shapes]
        self.grid = output_level(self.cache.shapes)[1:]
        self.losses: list[float] = []
        self.boundaries: BoundaryNetwork | None = None

    def labels(self, images: Sequence[int]) -> Tensor:
        """(B, C + 1) on the device: `image_labels` of images, the background first, which is present in every image."""
        return functional.pad(self.image_labels[list(images)], (1, 0), value=PRESENT).to(self.device)

    def run_maps(self) -> list[Tensor]:
        """(K, h, w) maps of the labelled classes of each image by the run, averaged over the sizes of labels."""
        by_size = []
        for factor in self.config.size_factors():
            size = round(factor * self.run.preprocess.size)
            task = f"maps at {size} px"
            if factor == 1:
                by_size.append(self.all_maps(None, task))
            else:
                self.progress.start(task, len(self.samples) * len(self.cache.views))
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

        (mean,) = mean_over_views(self.run.config.flip, compute)
        return mean[0, self.present[index].to(self.device)].to(self.mask_device)

    def train_segmenter(self, loss: Loss, task: str = "segmenter", prior_sharpness: float | None = None) -> Segmenter:
        """Train a new segmenter, see `wildcat.fitting.levels.fit`; it is in evaluation mode."""
        segmenter = Segmenter(self.channels, len(self.run.classes), prior_sharpness=prior_sharpness)
        training = Training(task, self.config.epochs, self.config.batch_size, "lr")
        self.losses.append(fit(segmenter, self.cache, loss, training, self.config, self.progress))
        self.segmenter_loss = loss
        return segmenter
