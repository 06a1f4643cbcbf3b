"""SEC (Kolesnikov and Lampert, Seed, Expand and Constrain, ECCV 2016): three losses, one for where the labels are sure,
one for how large the classes are, one for where they end."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from wildcat.data.dataset import ABSENT, PRESENT
from wildcat.fitting.labels import scaled_crf, small_image
from wildcat.fitting.training_images import TrainingImages
from wildcat.nn.segmenter import Segmenter, log_probabilities
from wildcat.regions.crf import CrfParams, dense_crf
from wildcat.regions.masks import upsample_maps

PEAK = 0.2  # seeds of a class: places above this fraction of the highest of its map
BACKGROUND_SEEDS = 0.1  # fraction of the places that seed the background: those with the lowest maps
# Decays of `weighted_rank_pool` on the paper's grid of 41 x 41 places: classes of the image, other classes, background.
DECAY, DECAY_ABSENT, DECAY_BACKGROUND, PLACES = 0.996, 0.0, 0.999, 41 * 41
SMALLEST = 1e-4  # of probabilities before a logarithm


def train(images: TrainingImages) -> Segmenter:
    """Train the segmenter with the sum of `seed_loss`, `expand_loss` and `constrain_loss`.

    The paper fine-tunes VGG16, takes the seeds of classes from class activation maps, those of the background from
    gradients of the class scores (saliency). Here both come from the class maps of the run, and the backbone is frozen.
    """
    seeds = [find_seeds(upsample_maps(maps, images.grid)) for maps in images.run_maps()]
    intensity = images.run.preprocess.intensity_range
    pixels = [torch.from_numpy(small_image(s.path, intensity, images.grid)).permute(2, 0, 1) for s in images.samples]
    of_image = images.labels(range(len(images.samples))).cpu()
    present = [(labels == PRESENT).nonzero()[:, 0] for labels in of_image]
    possible = [(labels != ABSENT).nonzero()[:, 0] for labels in of_image]

    def loss(maps: Tensor, batch: Sequence[int], views: Sequence[int]) -> Tensor:
        axes = [images.cache.views[view] for view in views]
        log_probs, labels = log_probabilities(maps), images.labels(batch)
        pairs = list(zip(batch, axes, strict=True))
        seeded = torch.stack([place_seeds(seeds[i], present[i], maps.shape[1]).flip(a) for i, a in pairs])
        wanted = torch.stack(
            [
                sharpened(log_probs[row].detach().to(images.mask_device), pixels[i].flip(a), possible[i], images.crf)
                for row, (i, a) in enumerate(pairs)
            ]
        )
        total = seed_loss(log_probs, seeded.to(log_probs))
        return total + expand_loss(log_probs.exp(), labels) + constrain_loss(log_probs, wanted.to(log_probs))

    return images.train_segmenter(loss)


def find_seeds(maps: Tensor) -> Tensor:
    """(K, h, w) maps of the labels -> (K + 1, h, w) bool seeds, the background first; a place seeds one class or none.

    A class has the places above 20 % of its peak, at least the peak itself; of several classes that of fewest seeds
    gets a place (section 4.1). The background has the tenth of the places with the lowest maps, without those of
    classes.
    """
    flat = maps.flatten(1)  # (K, n)
    peaks = flat.amax(dim=1, keepdim=True)
    above = (flat > PEAK * peaks) & (peaks > 0) | (flat == peaks)
    rank = above.sum(dim=1).argsort(stable=True)
    seeds = torch.zeros(len(maps) + 1, flat.shape[1], dtype=torch.bool, device=maps.device)
    taken = torch.zeros_like(seeds[0])
    for k in rank.tolist():
        seeds[k + 1] = above[k] & ~taken
        taken |= above[k]
    lowest = flat.amax(dim=0).argsort(stable=True)[: round(BACKGROUND_SEEDS * flat.shape[1])]
    seeds[0, lowest] = True
    seeds[0] &= ~taken
    return seeds.reshape(-1, *maps.shape[1:])


def place_seeds(seeds: Tensor, numbers: Tensor, classes: int) -> Tensor:
    """(K + 1, h, w) seeds of the classes with these numbers (0: background) -> (C + 1, h, w)."""
    return seeds.new_zeros(classes + 1, *seeds.shape[1:]).index_copy(0, numbers.to(seeds.device), seeds)


def seed_loss(log_probs: Tensor, seeds: Tensor) -> Tensor:
    """`-(1 / number of seeds) * sum over seeds of log p` of each image, the mean over images; eq. 2.

    Args:
        log_probs: (B, C + 1, h, w).
        seeds: (B, C + 1, h, w), 1 at seeds, else 0.
    """
    return -((log_probs * seeds).sum(dim=(1, 2, 3)) / seeds.sum(dim=(1, 2, 3)).clamp_min(1.0)).mean()


def weighted_rank_pool(x: Tensor, decay: float) -> Tensor:
    """Global weighted rank pooling: `sum_j d^(j-1) x_(j) / sum_j d^(j-1)`, with x_(1) the highest; eq. 4.

    Args:
        x: (..., n).
        decay: d in [0, 1]; 0: the maximum, 1: the mean.

    >>> weighted_rank_pool(torch.tensor([0.0, 4.0, 1.0]), 0.5)  # (4 + 0.5 * 1 + 0.25 * 0) / 1.75
    tensor(2.5714)
    """
    if decay == 0:
        return x.amax(dim=-1)  # without sorting
    weights = decay ** torch.arange(x.shape[-1], device=x.device, dtype=x.dtype)
    return (x.sort(dim=-1, descending=True).values * weights).sum(dim=-1) / weights.sum()


def expand_loss(probs: Tensor, labels: Tensor) -> Tensor:
    """Eq. 5: the pooled probability of each label of the image and of the background shall be 1, of other classes 0.

    `-(mean over labels of log G_c) - (mean over absent classes of log(1 - G_c)) - log G_background`; the mean over
    images. The decays are for a grid of 1,681 places: on n places they are raised to 1,681 / n, so that the same area
    has the same weight.

    Args:
        probs: (B, C + 1, h, w), the background first.
        labels: (B, C + 1) of 1 present, 0 ignored (in neither mean), -1 absent.
    """
    flat, scale = probs.flatten(2), PLACES / probs[0, 0].numel()

    def pooled(x: Tensor, decay: float) -> Tensor:
        return weighted_rank_pool(x, decay**scale).clamp(SMALLEST, 1 - SMALLEST)

    classes, present, absent = flat[:, 1:], labels[:, 1:] == PRESENT, labels[:, 1:] == ABSENT
    image, label = present.nonzero(as_tuple=True)
    inside = flat.new_zeros(len(flat)).index_add(0, image, pooled(classes[image, label], DECAY).log())
    inside = inside / present.sum(dim=1).clamp_min(1)
    outside = ((1 - pooled(classes, DECAY_ABSENT)).log() * absent).sum(dim=1) / absent.sum(dim=1).clamp_min(1)
    return -(inside + outside + pooled(flat[:, 0], DECAY_BACKGROUND).log()).mean()


def sharpened(log_probs: Tensor, pixels: Tensor, numbers: Tensor, crf: CrfParams) -> Tensor:
    """(C + 1, h, w) probabilities of an image after a dense CRF on the grid of the maps; absent classes have 0.

    The paper's CRF has all classes; its time grows with their number. Settings are scaled to the grid, as in the paper.

    Args:
        log_probs: (C + 1, h, w). pixels: (3, h, w) uint8. numbers: (K,) of the classes, 0 for the background.
    """
    probs = log_probs[numbers.to(log_probs.device)].softmax(dim=0)
    aligned = dense_crf(pixels.permute(1, 2, 0), probs, scaled_crf(crf, pixels[0].numel()))
    return torch.zeros_like(log_probs).index_copy(0, numbers.to(log_probs.device), aligned)


def constrain_loss(log_probs: Tensor, wanted: Tensor) -> Tensor:
    """KL divergence of the network's probabilities from those after the CRF, the mean over places and images; eq. 6.

    Those after the CRF are a target without a gradient.

    Args:
        log_probs: (B, C + 1, h, w). wanted: the same shape, probabilities.
    """
    divergence: Tensor = torch.special.xlogy(wanted, wanted) - wanted * log_probs
    return divergence.sum(dim=1).mean()
