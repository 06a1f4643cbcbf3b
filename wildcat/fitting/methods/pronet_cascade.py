"""ProNet's cascade (Sun, Paluri, Collobert, Nevatia and Bourdev, ProNet: Learning to propose object-specific boxes for
cascaded neural networks, CVPR 2016): a second classifier learns to verify the crops that the run proposes.

`wildcat.models.cascade` has the formula of the score and what was adapted. Labels are those of images: a crop that a
class proposed is a positive example of it if the image has the class, and a hard negative if it has not; it is a
negative example of every other class that the image has not. Other classes of the image may lie outside the crop and do
not count.

The paper takes hard instances alone. All negatives were as good or better on held-out images of VOC 2012 mini, and a
class that is never proposed by mistake has some.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from wildcat.data.dataset import IGNORED, PRESENT, Sample
from wildcat.data.image_ref import ImageCrop, Part
from wildcat.data.loader import batch_indices, epoch_order
from wildcat.device import choose_device
from wildcat.engines import fold
from wildcat.errors import DataError
from wildcat.fitting.config import RefineConfig
from wildcat.fitting.optimise import Batch, Training, optimise
from wildcat.models.cascade import propose, verified_classes
from wildcat.models.member import Member
from wildcat.models.run import Run
from wildcat.nn.backbones import Backbone
from wildcat.nn.model import Transfer
from wildcat.progress import Progress
from wildcat.train.feature_cache import Features, cached_features
from wildcat.train.optim import class_frequencies, multilabel_loss

MEASURED = 4096  # crops for the mean and standard deviation of the features
LR = 0.05  # fraction of the setting `lr`, which is that of a segmenter: a linear layer adds up a thousand features


class MeanFeatures(nn.Module):
    """A backbone whose features are their mean over the cells, to be cached."""

    def __init__(self, backbone: Backbone, size: int) -> None:
        super().__init__()
        self.name = f"{backbone.name}, mean"
        self.backbone = fold(backbone, size)

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.backbone(images)
        return features.mean(dim=(2, 3), keepdim=True)


def train(
    run: Run, samples: Sequence[Sample], labels: Tensor, config: RefineConfig, device: str, progress: Progress
) -> tuple[Transfer, float]:
    """Train the verifier on crops of the samples; also returns the mean loss of the last epoch.

    Args:
        labels: (N, C) of the samples, in the order of the run's classes.

    Raises:
        DataError: a class has no labelled image, so no crop shows it.
        TrainingError: the loss is not finite.
        ImageError: an image cannot be read.
    """
    if missing := [c for c, column in zip(run.classes, labels.T, strict=True) if not (column == PRESENT).any()]:
        raise DataError(
            f"no image to train on has the label {missing[0]!r}, so it has no proposals to learn from.",
            "Give a split with images of every class, such as the one the run was trained on.",
        )
    place = choose_device(device)
    member = Member(run.load_model().to(place).eval(), run.preprocess)
    backbone = member.model.backbone
    settings: dict[str, Any] = {"progress": progress, "amp": run.config.amp}
    progress.start("features", len(samples))
    features = cached_features(backbone, samples, run.preprocess, "none", **settings)
    crops = proposed_crops(member, features, samples, labels, config.crops)
    progress.start("features of crops", len(crops))
    mean: Any = MeanFeatures(backbone, run.preprocess.size)  # it has what `cached_features` uses of a backbone
    features = cached_features(mean, crops, run.preprocess, "none", **settings)
    return fit(features, crops, config, place, progress)


@torch.inference_mode()
def proposed_crops(
    member: Member, features: Features, samples: Sequence[Sample], labels: Tensor, crops: int
) -> list[Sample]:
    """The crops of images that the likeliest classes propose, and the labelled ones, as samples with the labels of the
    image, of which those of present classes that did not propose the crop are ignored.

    Args:
        crops: the most per image for the likeliest classes; those of labelled ones are added.
    """
    found = []
    device = next(member.model.parameters()).device
    for batch in batch_indices(range(len(samples)), 16):
        outputs = member.scores_and_maps(features.batch(batch).to(device))
        scores, maps = (x.float().cpu().numpy() for x in (outputs.scores, outputs.class_maps))
        for i, image_scores, class_maps in zip(batch, scores, maps, strict=True):
            own = labels[i].numpy()
            classes = dict.fromkeys([*verified_classes(image_scores, crops), *np.flatnonzero(own == PRESENT).tolist()])
            elsewhere = np.where(own == PRESENT, IGNORED, own).astype(own.dtype)
            by_part: dict[Part, NDArray[np.int8]] = {}
            for index, part in propose(class_maps, classes):
                by_part.setdefault(part, elsewhere.copy())[index] = own[index]
            found += [
                Sample(f"{samples[i].name} {part}", ImageCrop(samples[i].path, part), crop_labels)
                for part, crop_labels in by_part.items()
            ]
    return found


def fit(
    features: Features, crops: Sequence[Sample], config: RefineConfig, device: torch.device, progress: Progress
) -> tuple[Transfer, float]:
    """Train a linear layer on the mean features of the crops, by binary cross-entropy of the labels that count."""
    labels = torch.from_numpy(np.stack([crop.labels for crop in crops])).to(device)
    verifier = Transfer(features.shape[0], labels.shape[1]).to(device)
    some = features.batch(epoch_order(len(crops), config.seed, 0)[:MEASURED])[:, :, 0, 0]
    verifier.standardize(some.mean(dim=0), some.std(dim=0, correction=0))
    nn.init.normal_(verifier.weight, std=0.01 / math.sqrt(features.shape[0]))
    with torch.no_grad():
        verifier.bias.copy_(torch.logit(class_frequencies((labels > 0).sum(dim=0), (labels < 0).sum(dim=0))))

    def losses(_: int, batches: Sequence[Batch]) -> Iterator[Tensor]:
        for images, _views in batches:
            scores = verifier(features.batch(images).to(device))[:, :, 0, 0]
            yield multilabel_loss(scores, labels[images]).mean()

    training = Training("verifier", config.epochs, config.batch_size, "lr")
    loss = optimise([(verifier, LR)], losses, len(crops), 1, training, config, progress)
    return verifier, loss
