"""EM-Adapt (Papandreou, Chen, Murphy and Yuille, Weakly- and Semi-Supervised Learning of a DCNN for Semantic Image
Segmentation, ICCV 2015): the labels of pixels are the network's own, shifted so that each label gets its share."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from wildcat.data.dataset import ABSENT, PRESENT
from wildcat.fitting.training_images import TrainingImages
from wildcat.nn.segmenter import Segmenter, log_probabilities

BACKGROUND_SHARE, CLASS_SHARE = 0.4, 0.2  # of the places of an image, at least
MARGIN = 0.05  # by which a class that is raised wins a place: without it, classes outbid each other by nothing
SWEEPS = 20  # over the classes; enough unless the shares add up to the image


def train(images: TrainingImages) -> Segmenter:
    """Train the segmenter with `em_loss`: an E-step and an M-step in each step of the optimizer.

    The paper fine-tunes VGG16 and uses a dense CRF at prediction time, here `--crf`.
    """
    return images.train_segmenter(lambda maps, batch, _: em_loss(maps, images.labels(batch)))


def em_loss(maps: Tensor, labels: Tensor) -> Tensor:
    """M-step: mean cross-entropy against the labels of the E-step, `argmax(log p + bias)` at each place.

    Args:
        maps: (B, C, h, w) log-odds against the background.
        labels: (B, C + 1) of 1 present, 0 ignored, -1 absent, the background first.
    """
    log_probs = log_probabilities(maps)
    with torch.no_grad():
        biases = [adaptive_bias(x.flatten(1), of_image) for x, of_image in zip(log_probs, labels, strict=True)]
        assigned = (log_probs + torch.stack(biases)[:, :, None, None]).argmax(dim=1)  # (B, h, w)
    return functional.nll_loss(log_probs, assigned)


def adaptive_bias(logits: Tensor, labels: Tensor) -> Tensor:
    """E-step of one image: biases with which each label wins its share of the places; 0 for ignored classes, which
    may have any share, and -inf for absent ones.

    Each class in turn that wins too few places gets the smallest bias, plus `MARGIN`, with which it wins enough against
    the others, until all do. Where the shares add up to more than the image (more than three classes), they are divided
    by their sum, and reached within some percent. Equal logits cannot be divided: a class wins all of them or none.

    Args:
        logits: (C + 1, n), the background first.
        labels: (C + 1,) of 1 present, 0 ignored, -1 absent.

    Returns:
        (C + 1,) of the type of the logits.

    >>> adaptive_bias(torch.tensor([[5.0, 4.0, 3.0, 2.0, 1.0], [0.0, 0.0, 0.0, 0.0, 0.0]]), torch.tensor([1, 1]))
    tensor([0.0000, 1.0500])
    """
    possible = (labels != ABSENT).nonzero()[:, 0]
    values, places = logits[possible].cpu().double(), logits.shape[1]  # MPS has no double precision
    present = (labels[possible] == PRESENT).nonzero()[:, 0]
    shares = torch.where(possible[present] == 0, BACKGROUND_SHARE, CLASS_SHARE)
    wanted = (shares / shares.sum().clamp_min(1.0) * places + 1e-6).long().clamp_min(1)
    bias = values.new_zeros(len(possible))
    for _ in range(SWEEPS if len(possible) > 1 else 0):
        raised = False
        for k, count in zip(present.tolist(), wanted.tolist(), strict=True):
            biased = values + bias[:, None]
            biased[k] = -torch.inf
            needed = biased.amax(dim=0) - values[k] + MARGIN  # the bias with which k wins each place
            least = needed.kthvalue(count).values
            if least > bias[k]:
                bias[k], raised = least, True
        if not raised:
            break
    return torch.full_like(logits[:, 0], -torch.inf).index_copy(0, possible, bias.to(logits))
