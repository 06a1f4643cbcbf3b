"""Training boundaries: the loss against a loop over pairs, confident labels, and that an edge is found without one."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from wildcat.errors import TrainingError
from wildcat.fitting.boundaries import UNSURE, boundary_loss, confident_labels
from wildcat.fitting.config import RefineConfig
from wildcat.fitting.levels import fit
from wildcat.fitting.optimise import Training
from wildcat.nn.boundaries import BoundaryNetwork
from wildcat.progress import SILENT


def loop_loss(boundaries: np.ndarray, labels: np.ndarray) -> float:
    """Each pair of pixels nearer than 5, once; the path is every pixel less than 1 from the line, in its box."""
    terms: dict[str, list[float]] = {"background": [], "class": [], "different": []}
    count, height, width = labels.shape
    for n in range(count):
        for i in range(height * width):
            for j in range(i + 1, height * width):
                (ay, ax), (by, bx) = divmod(i, width), divmod(j, width)
                if (ay - by) ** 2 + (ax - bx) ** 2 >= 25:
                    continue
                a, b = labels[n, ay, ax], labels[n, by, bx]
                if UNSURE in (a, b):
                    continue
                on_path = [
                    boundaries[n, y, x]
                    for y in range(min(ay, by), max(ay, by) + 1)
                    for x in range(min(ax, bx), max(ax, bx) + 1)
                    if abs((by - ay) * (x - ax) - (bx - ax) * (y - ay)) < math.hypot(by - ay, bx - ax)
                ]
                affinity = 1 - max(on_path)
                kind = "different" if a != b else "class" if a else "background"
                terms[kind].append(-math.log(1 + 1e-5 - affinity if a != b else affinity + 1e-5))
    mean = {kind: sum(found) / len(found) if found else 0.0 for kind, found in terms.items()}
    return 0.5 * (0.5 * mean["background"] + 0.5 * mean["class"] + mean["different"])


def test_loss_is_the_loop_over_pairs() -> None:
    rng = np.random.default_rng(0)
    boundaries = rng.random((2, 6, 8))
    labels = rng.choice([0, 1, 2, UNSURE], (2, 6, 8), p=[0.4, 0.2, 0.2, 0.2]).astype(np.int16)
    found = boundary_loss(torch.from_numpy(boundaries), torch.from_numpy(labels))
    assert float(found) == pytest.approx(loop_loss(boundaries, labels))


@pytest.mark.parametrize("label", [0, 3, UNSURE])
def test_images_with_one_label_have_a_finite_loss(label: int) -> None:
    """One colour, or a mask that covers everything: no pair differs."""
    boundaries = torch.full((1, 6, 6), 0.25, requires_grad=True)
    loss = boundary_loss(boundaries, torch.full((1, 6, 6), label, dtype=torch.int16))
    loss.backward()
    assert float(loss.detach()) == pytest.approx(0.0 if label == UNSURE else -math.log(0.75 + 1e-5) / 4)
    assert boundaries.grad is not None and bool(boundaries.grad.isfinite().all())


def test_confident_labels_by_hand() -> None:
    high = torch.tensor([[[0.6, 0.1, 0.5]], [[0.3, 0.8, 0.3]], [[0.1, 0.1, 0.2]]])
    low = torch.tensor([[[0.5, 0.0, 0.2]], [[0.4, 0.8, 0.2]], [[0.1, 0.2, 0.6]]])
    assert confident_labels(high, low, torch.tensor([4, 9])).tolist() == [[0, 5, UNSURE]]
    assert confident_labels(high, low, torch.tensor([259, 9])).tolist() == [[0, 260, UNSURE]], "many classes"


def squares(count: int) -> tuple[list[Tensor], list[Tensor]]:
    """One level whose first channel is an image of a bright square, and labels that leave its surroundings unsure."""
    rng, images, labels = np.random.default_rng(0), [], []
    for _ in range(count):
        top, left = (int(v) for v in rng.integers(4, 12, 2))
        image, label = torch.rand(2, 24, 24), torch.zeros(24, 24, dtype=torch.int16)
        image[1] = 0.0
        image[1, top : top + 8, left : left + 1] = image[1, top : top + 8, left + 7] = 5.0  # an edge detector's output
        image[1, top, left : left + 8] = image[1, top + 7, left : left + 8] = 5.0
        label[top - 2 : top + 10, left - 2 : left + 10] = UNSURE
        label[top + 2 : top + 6, left + 2 : left + 6] = 1
        images.append(image)
        labels.append(label)
    return images, labels


class Images:
    """One level of some images, and their mirrored views, as `LevelCache` gives them."""

    def __init__(self, images: list[Tensor]) -> None:
        self.images, self.views, self.device, self.amp = images, ((), (-1,)), torch.device("cpu"), False

    def __len__(self) -> int:
        return len(self.images)

    def batch(self, indices: list[int], views: list[int]) -> list[Tensor]:
        return [torch.stack([self.images[i].flip(self.views[v]) for i, v in zip(indices, views, strict=True)])]


def test_boundaries_are_found_without_any_label_of_one() -> None:
    torch.manual_seed(0)
    images, labels = squares(24)
    cache = Images(images)

    def loss(boundaries: Tensor, batch: list[int], views: list[int]) -> Tensor:
        mirrored = [labels[i].flip(cache.views[v]) for i, v in zip(batch, views, strict=True)]
        return boundary_loss(boundaries, torch.stack(mirrored))

    network, config = BoundaryNetwork([2]), RefineConfig(boundary_lr=0.05, batch_size=8)
    fit(network, cache, loss, Training("boundaries", 30, 8, "boundary_lr"), config, SILENT)  # type: ignore[arg-type]
    with torch.no_grad():
        found = network(cache.batch([0], [0]))[0]
    edge = images[0][1] > 0
    assert float(found[edge].mean()) > 10 * float(found[~edge].mean())
    with pytest.raises(TrainingError, match=r"of boundaries is .* at boundary_lr=1e.30"):
        far = RefineConfig(boundary_lr=1e30)
        fit(network, cache, loss, Training("boundaries", 3, 8, "boundary_lr"), far, SILENT)  # type: ignore[arg-type]
