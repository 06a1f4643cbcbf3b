"""The last step of `wildcat refine --tune all`: train the backbone, the head and the segmenter together, on images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from wildcat.data.loader import BatchLoader, ImageDataset, suggested_workers
from wildcat.data.transforms import stack_images
from wildcat.device import bf16_is_native
from wildcat.fitting.optimise import Batch, Training, optimise
from wildcat.fitting.training_images import TrainingImages
from wildcat.nn.segmenter import Segmenter
from wildcat.train.batchnorm import avoid_slow_gradients, fold_frozen_batchnorm, freeze_batchnorm
from wildcat.train.optim import multiclass_loss, multilabel_loss, with_background

BACKBONE_LR = 0.1  # of the learning rate of the head and the segmenter


def fine_tune(images: TrainingImages, segmenter: Segmenter) -> None:
    """Train all layers on the labels of places and of images at once; both networks end in evaluation mode.

    The sum of the two losses keeps the scores: the head reads the backbone that the segmenter changes. Images are
    mirrored at random, as in the run's training. Batch normalisation of the backbone keeps its running statistics.

    The segmenter has the loss that it was trained with; the mean loss of the last epoch is added to `images.losses`.

    Raises:
        TrainingError: the loss is not finite.
        ImageError: an image cannot be read.
    """
    model, run, config, device = images.member.model, images.run, images.config, images.device
    image_loss = multiclass_loss if run.task == "multiclass" else multilabel_loss
    amp = run.config.amp and bf16_is_native(device)
    views = images.cache.views
    loader = BatchLoader(ImageDataset(images.samples, run.preprocess), suggested_workers(device.type))
    model.requires_grad_(True)
    fold_frozen_batchnorm(model.backbone.network)
    avoid_slow_gradients(model.backbone.network)

    def losses(epoch: int, batches: Sequence[Batch]) -> Iterator[Tensor]:
        model.train()
        segmenter.train()
        freeze_batchnorm(model.backbone)
        for batch, (pixels, _) in zip(batches, loader.batches([b.images for b in batches], epoch), strict=True):
            mirrored = stack_images([image.flip(views[v]) for image, v in zip(pixels, batch.views, strict=True)])
            with torch.autocast(device.type, torch.bfloat16, enabled=amp):
                levels = model.backbone.levels(mirrored.to(device, memory_format=torch.channels_last))
                maps = segmenter(levels[-len(segmenter.channels) :])
                scores = model.training_output(levels[-1]).scores.float()
            wanted = images.image_labels[batch.images].to(device)
            wanted = with_background(wanted) if run.config.background else wanted
            yield images.segmenter_loss(maps.float(), *batch) + image_loss(scores, wanted).mean()

    parts = [(model.backbone, BACKBONE_LR), (model.transfer, 1.0), (model.pool, 1.0), (segmenter, 1.0)]
    training = Training("all layers", config.tune_epochs, config.batch_size, "tune_lr")
    images.losses.append(optimise(parts, losses, len(images.samples), len(views), training, config, images.progress))
