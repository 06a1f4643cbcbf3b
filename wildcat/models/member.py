"""What one network computes (images -> features -> scores and maps), and how the outputs of several are merged."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from wildcat.config import FLIP_VIEWS, Flip
from wildcat.data.dataset import Task
from wildcat.data.transforms import Preprocess
from wildcat.engines import Engine
from wildcat.nn.boundaries import BoundaryNetwork
from wildcat.nn.model import Wildcat
from wildcat.nn.segmenter import Segmenter
from wildcat.regions.tiling import Rectangle, assemble_maps

Axes = tuple[int, ...]  # dimensions along which a view is mirrored


class NetworkOutputs(NamedTuple):
    """Outputs of one network for B images: scores (B, C), class maps (B, C, h, w), modality maps (B, C, M, h, w)."""

    scores: Tensor
    class_maps: Tensor
    modality_maps: Tensor | None
    boundaries: Tensor | None = None  # (B, 1, h, w)


@dataclass(frozen=True)
class Member:
    """A network of a predictor, which has one or several.

    Attributes:
        segmenter: computes the class maps instead of the network, see `wildcat refine`; or None.
        boundaries: computes the boundaries to which masks are propagated; or None.
        engine: computes the features; None: the network itself.
    """

    model: Wildcat
    preprocess: Preprocess
    segmenter: Segmenter | None = None
    boundaries: BoundaryNetwork | None = None
    engine: Engine | None = None

    def features(self, images: Tensor, flip: Flip = "none") -> tuple[Tensor, ...]:
        """(B, 3, S, S) -> features (B, D, h, w), and the maps of a segmenter and its boundaries (B, 1, h, w), if the
        member has them; averaged over the mirrored views."""

        def compute(_: int, axes: Axes) -> tuple[Tensor, ...]:
            view = images.flip(axes) if axes else images
            if self.segmenter is not None:
                levels = self.model.backbone.levels(view)
                segmented = self.segmenter(levels[-len(self.segmenter.channels) :])
                boundaries = () if self.boundaries is None else (self.boundaries.walls(levels)[:, None],)
                return levels[-1], segmented, *boundaries
            return (self.model.features(view) if self.engine is None else self.engine.features(view),)

        return mean_over_views(flip, compute)

    def scores_and_maps(
        self,
        features: Tensor,
        segmented: Tensor | None = None,
        boundaries: Tensor | None = None,
        *,
        modalities: bool = False,
    ) -> NetworkOutputs:
        """(B, D, h, w) features, the maps of a segmenter (its class maps are its modality maps), boundaries -> outputs.

        Without `modalities` the M maps of each class are not returned, and not computed where their mean suffices.
        """
        scores, class_maps, maps = (self.model if modalities else self.fused).head(features)
        if segmented is not None:
            class_maps, maps = segmented, segmented[:, :, None]
        return NetworkOutputs(scores, class_maps, maps if modalities else None, boundaries)

    @property
    def has_maps(self) -> bool:
        """Whether there are class maps: of the network's method, or of a segmenter."""
        return self.segmenter is not None or self.model.has_maps

    @property
    def networks(self) -> list[nn.Module]:
        """The networks to move and to put into evaluation mode."""
        return [one for one in (self.model, self.segmenter, self.boundaries) if one is not None]

    @cached_property
    @torch.no_grad()
    def fused(self) -> Wildcat:
        """The network with one map per class, see `Wildcat.fuse`."""
        return self.model.fuse()


def mean_over_views(flip: Flip, compute: Callable[[int, Axes], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
    """The mean over mirrored views of features or maps (B, K, h, w), each mirrored back.

    The M maps of a class are linear in the features, so averaging the features averages the maps.

    Args:
        compute: (index of the view, its mirrored axes) -> features or maps of the images in this view.
    """
    views = FLIP_VIEWS[flip]  # the first is the image itself
    totals = compute(0, views[0])
    for index, axes in enumerate(views[1:], 1):
        totals = tuple(a + b.flip(axes) for a, b in zip(totals, compute(index, axes), strict=True))
    return tuple(total / len(views) for total in totals) if len(views) > 1 else totals


@dataclass(frozen=True)
class Outputs:
    """Outputs of all networks of a predictor for B images.

    Attributes:
        scores: (B, C).
        class_maps: (B, C, h, w), the average over the networks, on the finest of their grids.
        modality_maps: (B, C, M, h, w) of a single network; of S networks (B, C, S, h, w), the class maps of each; None
            if they were not requested.
        member_scores: (B, S, C) scores of each network.
        boundaries: (B, 1, h, w), the average over the networks, on the finest of their grids; None without them.
        features: (B, D, h, w) of a single network, on its device, for `wildcat.models.beam_search`; else None.
    """

    scores: NDArray[np.float32]
    class_maps: NDArray[np.float32]
    modality_maps: NDArray[np.float32] | None
    member_scores: NDArray[np.float32]
    boundaries: NDArray[np.float32] | None = None
    features: Tensor | None = None


def merge_outputs(
    outputs: Sequence[NetworkOutputs],
    combine: Callable[[NDArray[np.float32]], NDArray[np.float32]] | None,
    modalities: bool,
) -> Outputs:
    """The outputs of S networks for the same images -> one, as arrays.

    Args:
        combine: (B, S, C) scores -> (B, C); None: their mean. Maps are always averaged, of the networks that have maps.
    """
    scores = _array(torch.stack([one.scores for one in outputs], dim=1))  # (B, S, C)
    outputs = [one for one in outputs if one.class_maps.numel()] or outputs[:1]
    class_maps, modality_maps = outputs[0].class_maps, outputs[0].modality_maps
    if len(outputs) > 1:
        maps = torch.stack(on_finest_grid([one.class_maps for one in outputs]), dim=2)  # (B, C, S, h, w)
        class_maps, modality_maps = maps.mean(dim=2), maps if modalities else None
    found = [one.boundaries for one in outputs if one.boundaries is not None]
    return Outputs(
        scores=scores.mean(axis=1) if combine is None else combine(scores),
        class_maps=_array(class_maps),
        modality_maps=None if modality_maps is None else _array(modality_maps),
        member_scores=scores,
        boundaries=_array(torch.stack(on_finest_grid(found)).mean(dim=0)) if found else None,
    )


def merge_tiles(parts: Sequence[Outputs], size: tuple[int, int], tiles: Sequence[Rectangle], task: Task) -> Outputs:
    """The outputs for tiles of an image of `size` = (width, height) -> those for the image, (1, ...) each.

    `wildcat.regions.tiling` merges the maps. The score of a class is its highest over the tiles; where classes exclude
    each other the mean.
    """

    def merged(name: str) -> Any:
        values = np.concatenate([getattr(part, name) for part in parts])
        return values.mean(axis=0, keepdims=True) if task == "multiclass" else values.max(axis=0, keepdims=True)

    def assembled(name: str) -> Any:
        found = [getattr(part, name) for part in parts]
        return None if found[0] is None else assemble_maps(size, tiles, [*np.concatenate(found)])[None]

    maps = assembled("class_maps"), assembled("modality_maps")
    return Outputs(merged("scores"), *maps, merged("member_scores"), assembled("boundaries"))


def on_finest_grid(maps: Sequence[Tensor]) -> list[Tensor]:
    """Resize maps (B, C, h, w) to the largest of their grids, bilinear."""
    size = max((tuple(x.shape[-2:]) for x in maps), key=lambda grid: grid[0] * grid[1])
    return [
        x if tuple(x.shape[-2:]) == size else functional.interpolate(x, size, mode="bilinear", align_corners=False)
        for x in maps
    ]


def _array(tensor: Tensor) -> NDArray[np.float32]:
    return np.asarray(tensor.float().cpu().numpy())
