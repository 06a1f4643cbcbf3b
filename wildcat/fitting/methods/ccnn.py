"""CCNN (Pathak, Krähenbühl and Darrell, Constrained Convolutional Neural Networks for Weakly Supervised Segmentation,
ICCV 2015), written from the paper: the labels of pixels are the distribution nearest to the network's own among those
whose areas satisfy linear constraints."""

from __future__ import annotations

import torch
from torch import Tensor

from wildcat.data.dataset import ABSENT, PRESENT
from wildcat.fitting.training_images import TrainingImages
from wildcat.nn.segmenter import Segmenter, log_probabilities, segmentation_loss

LEAST_CLASS = 0.05  # share of the places that a label has at least, with slack
SLACK = 2.0  # price of a share below it (beta in the paper): the highest dual variable
BACKGROUND = (0.3, 0.7)  # lowest and highest share of the background, without slack
STEPS = 300  # of the projected gradient at most
TOLERANCE = 1e-3  # of the shares


def train(images: TrainingImages) -> Segmenter:
    """Train the segmenter with `constrained_loss`.

    The paper fine-tunes VGG16 and uses a dense CRF at prediction time, here `--crf`.
    """
    return images.train_segmenter(lambda maps, batch, _: constrained_loss(maps, images.labels(batch)))


def constrained_loss(maps: Tensor, labels: Tensor) -> Tensor:
    """KL divergence of the network's distribution from the projected one, without its constant part, the entropy: the
    cross-entropy, whose gradient is q - p at each place.

    Args:
        maps: (B, C, h, w) log-odds against the background.
        labels: (B, C + 1) of 1 present, 0 ignored, -1 absent, the background first.
    """
    with torch.no_grad():
        log_probs = log_probabilities(maps)
        bias = constraint_bias(log_probs.flatten(2), labels)
        projected = (log_probs + bias[:, :, None, None]).softmax(dim=1)
    return segmentation_loss(maps, projected)


def constraint_bias(logits: Tensor, labels: Tensor, tolerance: float = TOLERANCE) -> Tensor:
    """The dual solution of the projection of softmax(logits) under the constraints: p = softmax(logits + bias).

    The projection minimises KL(p || q) + SLACK * sum of xi, with the mean share a_l of class l over the places:
    a_l = 0 for absent classes (bias minus infinity), a_l >= LEAST_CLASS - xi_l for labels, xi_l >= 0, and
    BACKGROUND[0] <= a_0 <= BACKGROUND[1]; ignored classes may have any share. With one dual variable for each bound,
    p = softmax(logits + low - up), eq. 8; the dual is minimised by projected gradient (accelerated, with restarts),
    0 <= low <= SLACK for labels.

    Args:
        logits: (B, C + 1, n), the background first.
        labels: (B, C + 1) of 1 present, 0 ignored, -1 absent; the background is always present.
        tolerance: of the shares.

    Returns:
        (B, C + 1).
    """
    # only K classes, as many as are not absent in the image that has most of them
    count = int((labels != ABSENT).sum(dim=1).max())
    order = labels.argsort(dim=1, descending=True, stable=True)[:, :count]  # (B, K)
    kept = labels.gather(1, order)
    present, absent = kept == PRESENT, kept == ABSENT
    values = logits.gather(1, order[:, :, None].expand(-1, -1, logits.shape[2]))
    values = values.masked_fill(absent[:, :, None], -torch.inf)
    is_background = order == 0
    least = torch.where(is_background, BACKGROUND[0], LEAST_CLASS)
    # (B, K, 2): the bounds from below and above, and the highest dual variables
    bounds = torch.stack([least, torch.full_like(least, BACKGROUND[1])], dim=2).to(values)
    caps = [torch.where(is_background, torch.inf, cap) for cap in (SLACK, 0.0)]
    highest = torch.stack(caps, dim=2).masked_fill(~present[:, :, None], 0.0).to(values)
    signs = values.new_tensor([1.0, -1.0])

    def gradient(dual: Tensor) -> Tensor:
        shares = (values + (dual * signs).sum(dim=2)[:, :, None]).softmax(dim=1).mean(dim=2)
        return signs * (shares[:, :, None] - bounds)

    dual, ahead, momentum = torch.zeros_like(bounds), torch.zeros_like(bounds), 1.0
    for _ in range(STEPS):
        slope = gradient(ahead)
        # the Hessian of the mean log-sum-exp is at most 1/2, twice that with two variables for a class: step 1
        new = (ahead - slope).clamp_min(0.0).minimum(highest)
        if (new - ahead).abs().amax() < tolerance:
            dual = new
            break
        if (slope * (new - dual)).sum() > 0:  # the momentum points uphill
            momentum = 1.0
        following = (1 + (1 + 4 * momentum**2) ** 0.5) / 2
        ahead = new + (momentum - 1) / following * (new - dual)
        dual, momentum = new, following
    bias = (dual * signs).sum(dim=2).masked_fill(absent, -torch.inf)
    return torch.full_like(logits[:, :, 0], -torch.inf).scatter(1, order, bias)
