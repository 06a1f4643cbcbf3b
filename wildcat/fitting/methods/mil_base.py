"""MIL-Base with image-level prior and superpixels (Pinheiro and Collobert, From Image-level to Pixel-level Labeling
with Convolutional Networks, CVPR 2015): log-sum-exp pooling of the maps gives the scores that are trained."""

from __future__ import annotations

from torch import Tensor

from wildcat.data.dataset import PRESENT
from wildcat.fitting.training_images import TrainingImages
from wildcat.nn.segmenter import Segmenter, image_scores

SHARPNESS = 5.0  # r in the paper


def train(images: TrainingImages) -> Segmenter:
    """Train the segmenter with `image_loss`; its maps get the image-level prior, see `Segmenter`.

    With `superpixels`, masks made of its maps are averaged over superpixels (`wildcat.regions.superpixels`), stored as
    a mask setting of the refined model.
    """
    return images.train_segmenter(
        lambda maps, batch, _: image_loss(maps, images.labels(batch)), prior_sharpness=SHARPNESS
    )


def image_loss(maps: Tensor, labels: Tensor) -> Tensor:
    """`-(1 / |L|) * sum over l in L of log of the softmax of the scores s_l`, see `image_scores`; the mean over images.

    The paper trains on images of ImageNet with one label, and on images of background alone. Images with several labels
    have equal weights for each of them here, and the background, which is somewhere in each of them, is a label of all:
    L. The scores are pooled from the log-probabilities of the places, with which each place belongs to one class. With
    scores of the log-odds alone, whose background is 0 at all places, a few certain places of a class are enough.

    Args:
        maps: (B, C, h, w) log-odds against the background.
        labels: (B, C + 1) of 1 present, 0 ignored, -1 absent, the background first.
    """
    log_probs = image_scores(maps, SHARPNESS).log_softmax(dim=1)
    present = labels == PRESENT
    return -((log_probs * present).sum(dim=1) / present.sum(dim=1)).mean()
