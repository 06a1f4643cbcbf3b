"""The last step of `wildcat refine --tune all`: train the backbone, the head and the segmenter together, on images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from wildcat.config import FLIP_VIEWS
from wildcat.data.dataset import Sample
from wildcat.data.loader import BatchLoader, ImageDataset, suggested_workers
from wildcat.device import bf16_is_native
from wildcat.fitting.config import RefineConfig
from wildcat.fitting.optimise import Batch, Loss, Training, optimise
from wildcat.models.run import Run
from wildcat.nn.model import Wildcat
from wildcat.nn.segmenter import Segmenter
from wildcat.progress import Progress
from wildcat.train.batchnorm import fold_frozen_batchnorm, freeze_batchnorm
from wildcat.train.optim import multiclass_loss, multilabel_loss, with_background

BACKBONE_LR = 0.1  # of the learning rate of the head and the segmenter


def fine_tune(
    model: Wildcat,
    segmenter: Segmenter,
    samples: Sequence[Sample],
    labels: Tensor,
    segmenter_loss: Loss,
    run: Run,
    config: RefineConfig,
    progress: Progress,
) -> float:
    """Train all layers on the labels of places and of images at once; both networks end in evaluation mode.

    The sum of the two losses keeps the scores: the head reads the backbone that the segmenter changes. Images are
    mirrored at random, as in the run's training. Batch normalisation of the backbone keeps its running statistics.

    Args:
        labels: (N, C) of 1 present, 0 ignored, -1 absent, in the order of the run's classes.
        segmenter_loss: (maps of a batch, its images, the view of each) -> the mean loss.

    Returns:
        The mean loss of the last epoch.

    Raises:
        TrainingError: the loss is not finite.
        ImageError: an image cannot be read.
    """
    device = next(model.parameters()).device
    image_loss = multiclass_loss if run.task == "multiclass" else multilabel_loss
    amp = run.config.amp and bf16_is_native(device)
    views = FLIP_VIEWS[run.config.flip]
    loader = BatchLoader(ImageDataset(samples, run.preprocess), suggested_workers(device.type))
    model.requires_grad_(True)
    fold_frozen_batchnorm(model.backbone.network)

    def losses(epoch: int, batches: Sequence[Batch]) -> Iterator[Tensor]:
        model.train()
        segmenter.train()
        freeze_batchnorm(model.backbone)
        for batch, (images, _) in zip(batches, loader.batches([b.images for b in batches], epoch), strict=True):
            mirrored = torch.stack([image.flip(views[v]) for image, v in zip(images, batch.views, strict=True)])
            with torch.autocast(device.type, torch.bfloat16, enabled=amp):
                levels = model.backbone.levels(mirrored.to(device, memory_format=torch.channels_last))
                maps = segmenter(levels[-len(segmenter.channels) :])
                scores = model.training_output(levels[-1]).scores.float()
            wanted = labels[batch.images].to(device)
            wanted = with_background(wanted) if run.config.background else wanted
            yield segmenter_loss(maps.float(), *batch) + image_loss(scores, wanted).mean()

    parts = [(model.backbone, BACKBONE_LR), (model.transfer, 1.0), (model.pool, 1.0), (segmenter, 1.0)]
    training = Training("all layers", config.tune_epochs, config.batch_size, "tune_lr")
    return optimise(parts, losses, len(samples), len(views), training, config, progress)
