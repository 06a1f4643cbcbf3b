"""A second stage that verifies crops which the first one proposes: ProNet's cascade.

Sun, Paluri, Collobert, Nevatia and Bourdev, ProNet: Learning to propose object-specific boxes for cascaded neural
networks (CVPR 2016): a fully convolutional network with log-sum-exp pooling, trained on image-level labels, assigns a
score to boxes at several scales; a second network, trained on hard instances among these boxes, verifies the crops of
the highest ones.

For the K classes of the highest scores s_c, the proposal of each class and each scale in `SIDES` is the window of the
class map with the highest mean. A verifier scores its crop, and

    score_c = (1 - weight) * s_c + weight * max over the proposals p of c of v_c(crop of p).

Other classes are rejected by the first stage and keep s_c. The box of a verified class is the crop of the highest
v_c, and its point the highest cell of the verifier's map of that crop.

Adapted to a frozen backbone: the paper's networks are fine-tuned, the second one is larger than the first, and a box is
the receptive field of a cell of a network that runs at several scales. Here both stages share the backbone, whose input
is the image in the first and the enlarged crop in the second; the verifier is linear, a map whose mean is the score;
scales are windows of one map, which is averaged if the first stage runs at several sizes or has several networks; and
the first stage's score stays part of the cascade's, with a weight. The point is ours, and so is the mean of the
verifiers of several networks.

`wildcat.fitting.methods.pronet_cascade` trains the verifier.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.nn import functional

from wildcat.config import Flip
from wildcat.data.image_ref import Part, cropped, decode_image
from wildcat.data.transforms import stack_images
from wildcat.errors import ConfigError
from wildcat.models.member import Member, on_finest_grid
from wildcat.nn.model import Transfer
from wildcat.prediction import Prediction
from wildcat.regions.boxes import Box
from wildcat.regions.points import peak_points

SIDES = (0.65, 0.4)  # of crops, as fractions of the image's width and height
BATCH = 8  # crops per forward pass


class Proposal(NamedTuple):
    """The crop that a class proposes at one scale."""

    class_index: int
    part: Part


@dataclass(frozen=True)
class Cascade:
    """The second stage of a predictor.

    Attributes:
        verifiers: of the networks of the first stage, in their order: features (N, D, h, w) of crops -> maps
            (N, C, h, w), whose means are the scores; None for a network that has none. Several are averaged.
        crops: the most crops per image; `crops // len(SIDES)` classes are verified.
        weight: of the verifiers in the score, in [0, 1].
        first_stage: the run of a first stage, as a path in the model folder.
    """

    verifiers: tuple[Transfer | None, ...]
    crops: int
    weight: float
    first_stage: str = "base"

    @property
    def networks(self) -> list[Transfer]:
        """The verifiers that there are."""
        return [verifier for verifier in self.verifiers if verifier is not None]

    @torch.inference_mode()
    def verified(self, predictions: Sequence[Prediction], members: Sequence[Member], flip: Flip) -> list[Prediction]:
        """The predictions of the first stage with the scores of both, and a box and a point of each verified class.

        Args:
            members: the networks of the first stage, whose features are those of the crops too.
            flip: mirrored views of the crops to average.
        """
        pairs = [(m, verifier) for m, verifier in zip(members, self.verifiers, strict=True) if verifier is not None]
        proposals = [propose(p.class_maps, verified_classes(p.class_scores, self.crops)) for p in predictions]
        parts = [list(dict.fromkeys(proposal.part for proposal in found)) for found in proposals]
        sized = [member for member, _ in pairs]
        crops = (crop for p, own in zip(predictions, parts, strict=True) for crop in _crops(p, own, sized))
        maps = _maps(crops, pairs, flip)
        return [
            self._combined(p, found, dict(zip(own, islice(maps, len(own)), strict=True)))
            for p, found, own in zip(predictions, proposals, parts, strict=True)
        ]

    def _combined(
        self, prediction: Prediction, proposals: Sequence[Proposal], maps: Mapping[Part, NDArray[np.float32]]
    ) -> Prediction:
        best: dict[int, tuple[float, Part]] = {}  # class -> the highest score of its crops, and that crop
        for index, part in proposals:
            score = float(maps[part][index].mean())
            if index not in best or score > best[index][0]:
                best[index] = score, part
        scores, located, pointed = prediction.class_scores.copy(), {}, {}
        for index, (score, part) in best.items():
            scores[index] = (1 - self.weight) * scores[index] + self.weight * score
            x1, y1, x2, y2 = np.multiply(part, (prediction.width, prediction.height) * 2).tolist()
            x, y = peak_points(maps[part][index], (y2 - y1, x2 - x1)).tolist()
            name = prediction.classes[index]
            located[name], pointed[name] = Box(x1, y1, x2, y2, score), (x1 + x, y1 + y)
        return replace(prediction, class_scores=scores, located=located, pointed=pointed)


def _crops(prediction: Prediction, parts: Sequence[Part], members: Sequence[Member]) -> Iterator[Image.Image]:
    """The crops of an image; a large one is decoded at the size that its smallest crop needs."""

    def max_downscale(size: tuple[int, int]) -> float:
        return min(m.preprocess.max_downscale(size) for m in members) * min(SIDES)

    image, _ = decode_image(prediction.image, max_downscale, prediction.intensity_range)
    return (cropped(image, part) for part in parts)


def _maps(
    crops: Iterator[Image.Image], pairs: Sequence[tuple[Member, Transfer]], flip: Flip
) -> Iterator[NDArray[np.float32]]:
    """(C, h, w) maps of each crop: the average over the verifiers, on the finest of their grids."""
    while batch := list(islice(crops, BATCH)):
        maps = []
        for member, verifier in pairs:
            pixels = stack_images([member.preprocess.warp(crop) for crop in batch])
            images = member.preprocess.normalise(pixels.to(verifier.weight.device))
            features = member.features(images.contiguous(memory_format=torch.channels_last), flip)[0]
            maps.append(verifier(features).float())
        yield from torch.stack(on_finest_grid(maps)).mean(dim=0).cpu().numpy()


def check_cascade(cascade: Cascade | None, name: str, localize: str, tile: int | None) -> None:
    """Refuse a cascade whose first stage has tiles, or whose boxes another method would find.

    Raises:
        ConfigError: names the setting.
    """
    given = {"localize='beam-search'": localize != "maps", f"tile={tile}": tile}
    if cascade is not None and (wrong := next((text for text, found in given.items() if found), "")):
        raise ConfigError(
            f"{name} is a cascade: it verifies crops of one map per image and does not take {wrong}.",
            f"Leave it out, or use the run in it: {name}/{cascade.first_stage}.",
        )


def verified_classes(scores: NDArray[np.float32], crops: int) -> list[int]:
    """The classes of the highest scores (C,) that propose at most `crops` crops."""
    return [int(i) for i in np.argsort(-scores, kind="stable")[: crops // len(SIDES)]]


def propose(class_maps: NDArray[np.float32], classes: Iterable[int]) -> list[Proposal]:
    """For each class and each scale the window of its map (C, h, w) with the highest mean, the first of equal ones.

    >>> propose(np.eye(4, dtype=np.float32)[None, ::-1] * [0, 0, 0, 1], [0])[1].part  # the top right corner is hot
    (0.5, 0.0, 1.0, 0.5)
    """
    height, width = class_maps.shape[1:]
    chosen = list(classes)
    maps = torch.from_numpy(np.ascontiguousarray(class_maps[chosen], dtype=np.float32))
    found = []
    for side in SIDES:
        rows, columns = max(1, round(side * height)), max(1, round(side * width))
        means = functional.avg_pool2d(maps, (rows, columns), stride=1)  # (K, h - rows + 1, w - columns + 1)
        for index, cell in zip(chosen, means.flatten(1).argmax(dim=1).tolist(), strict=True):
            y, x = divmod(cell, means.shape[2])
            part = (x / width, y / height, (x + columns) / width, (y + rows) / height)
            found.append(Proposal(index, part))
    return found
