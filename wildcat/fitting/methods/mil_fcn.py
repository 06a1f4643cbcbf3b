"""MIL-FCN (Pathak, Shelhamer, Long and Darrell, Fully Convolutional Multi-Class Multiple Instance Learning, ICLR
workshop 2015): for each label of an image, the pixel with the highest probability shall have it."""

from __future__ import annotations

from torch import Tensor

from wildcat.data.dataset import PRESENT
from wildcat.fitting.training_images import TrainingImages
from wildcat.nn.segmenter import Segmenter, log_probabilities


def train(images: TrainingImages) -> Segmenter:
    """Train the segmenter with `mil_loss`.

    The paper fine-tunes VGG16 and starts at ImageNet's classifier for the classes that both have; here the backbone is
    frozen, and the segmenter starts at random weights, as in all methods.
    """
    return images.train_segmenter(lambda maps, batch, _: mil_loss(maps, images.labels(batch)))


def mil_loss(maps: Tensor, labels: Tensor) -> Tensor:
    """`-(1 / |L|) * sum over l in L of log(max over places of softmax_l)`, L the labels with the background; the mean
    over images. Absent classes are in the softmax only.

    Args:
        maps: (B, C, h, w) log-odds against the background.
        labels: (B, C + 1) of 1 present, 0 ignored, -1 absent, the background first.
    """
    highest = log_probabilities(maps).flatten(2).max(dim=-1).values  # (B, C + 1)
    present = labels == PRESENT
    return -((highest * present).sum(dim=1) / present.sum(dim=1)).mean()
