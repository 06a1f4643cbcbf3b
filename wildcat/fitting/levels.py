"""What a frozen backbone computes for every image, cached on disk: its levels, on which a network is trained, and the
features of its last level, from which heads compute scores and maps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from wildcat.config import FLIP_VIEWS, Flip
from wildcat.data.dataset import Sample
from wildcat.data.loader import epoch_order
from wildcat.device import bf16_is_native
from wildcat.engines import fold
from wildcat.fitting.config import RefineConfig
from wildcat.fitting.optimise import Batch, Loss, Training, optimise
from wildcat.models.member import Outputs, mean_over_views
from wildcat.models.run import Run
from wildcat.nn.backbones import Backbone
from wildcat.nn.boundaries import BoundaryNetwork
from wildcat.nn.segmenter import Segmenter
from wildcat.predictor import Predictor
from wildcat.progress import SILENT, Progress
from wildcat.train.feature_cache import Features, cached_features

BATCH = 32  # images per pass of a head
MEASURED = 64  # images for the mean and standard deviation of the levels


class FlatLevels(nn.Module):
    """The levels of a backbone as one vector per image, (B, L, 1, 1), to be cached as features."""

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
    """(B, L, 1, 1) of `FlatLevels` -> the levels, (B, D, h, w) each, channels last."""
    layers = torch.split(vectors.flatten(1), [d * h * w for d, h, w in shapes], dim=1)
    return [x.reshape(len(x), h, w, d).permute(0, 3, 1, 2) for x, (d, h, w) in zip(layers, shapes, strict=True)]


class LevelCache:
    """The levels of N images in the run's mirrored views.

    Attributes:
        shapes: (D, h, w) of each level, the finest first.
        views: the mirrored axes of each view; the first is the image itself.
        amp: whether networks on the levels are trained in bfloat16 (autocast), as the run asks where it is native.
    """

    def __init__(
        self, backbone: Backbone, run: Run, samples: Sequence[Sample], device: torch.device, progress: Progress
    ) -> None:
        self.device, self.views = device, FLIP_VIEWS[run.config.flip]
        self.amp = run.config.amp and bf16_is_native(device)
        flat = FlatLevels(fold(backbone, run.preprocess.size, levels=True))
        progress.start("features", len(samples) * len(self.views))
        self.features = cached_features(
            flat,  # type: ignore[arg-type]  # it has what `cached_features` uses of a backbone
            samples,
            run.preprocess,
            run.config.flip,
            progress=progress,
            amp=run.config.amp,
        )
        self.shapes = flat.shapes

    def __len__(self) -> int:
        return len(self.features)

    def batch(self, indices: Sequence[int], views: Sequence[int]) -> list[Tensor]:
        """The levels of images, each in one of its views, (B, D, h, w) each, on the device."""
        return unflattened(self.features.batch(indices, views).to(self.device), self.shapes)


def outputs_from_features(
    predictor: Predictor, samples: Sequence[Sample], amp: bool, flip: Flip, progress: Progress = SILENT
) -> Iterator[Outputs]:
    """The outputs of the networks for the samples, in order, in batches, from cached features.

    Args:
        amp, flip: as in `wildcat.train.feature_cache.cached_features`; mirrored views are averaged.
        progress: advanced by the number of views of images for each network.
    """
    features = [
        cached_features(m.model.backbone, samples, m.preprocess, flip, progress=progress, amp=amp)
        for m in predictor.members
    ]
    for start in range(0, len(samples), BATCH):
        batch = range(start, min(start + BATCH, len(samples)))
        inputs = [_mean_over_views(f, batch, flip).to(predictor.device) for f in features]
        yield predictor.forward_features(inputs)


def _mean_over_views(features: Features, batch: Sequence[int], flip: Flip) -> Tensor:
    """(B, D, h, w): the mean of the cached features of all views, each mirrored back."""
    (mean,) = mean_over_views(flip, lambda view, _: (features.batch(batch, [view] * len(batch)),))
    return mean


def fit(
    network: Segmenter | BoundaryNetwork,
    cache: LevelCache,
    loss: Loss,
    training: Training,
    config: RefineConfig,
    progress: Progress,
) -> float:
    """Train a network on cached levels, see `optimise`.

    Args:
        loss: (output for a batch, its images, the view of each) -> the mean loss.
    """
    network.to(cache.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    some = epoch_order(len(cache), config.seed, 0)[:MEASURED]
    network.measure(cache.batch(some, [0] * len(some)))

    def losses(_: int, batches: Sequence[Batch]) -> Iterator[Tensor]:
        network.train()
        for batch in batches:
            levels = cache.batch(*batch)
            with torch.autocast(cache.device.type, torch.bfloat16, enabled=cache.amp):
                output = network(levels)
            yield loss(output.float(), *batch)

    return optimise([(network, 1.0)], losses, len(cache), len(cache.views), training, config, progress)
