"""Boxes by beam search over windows of the feature grid, scored by the network's head; nothing is trained.

Bency et al., Weakly Supervised Localization Using Deep Feature Maps (ECCV 2016): a classifier that was trained on
image-level labels scores the feature map with everything outside a window masked; a beam of the best windows is made
smaller step by step.

Adapted: the masked features get their mean over the training images, which a head on standardised features sees as 0;
the windows of a step are those of the step before without one row or column of cells at a side; and the search goes
down to single cells and returns the best window of all steps, so that a beam that is wide enough finds the best of all
windows. One box per class.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple, get_args

import torch
from torch import Tensor

from wildcat.config import Localize
from wildcat.data.dataset import Task
from wildcat.errors import ConfigError, did_you_mean
from wildcat.nn.model import Wildcat
from wildcat.prediction import Prediction
from wildcat.regions.boxes import Box

BEAM = 4  # windows that are kept at each step
BATCH = 64  # windows per forward pass of the head


class Window(NamedTuple):
    """Cells of a grid; the last row and column are exclusive."""

    top: int
    left: int
    bottom: int
    right: int


def check_localize(localize: str, networks: int, tile: int | None) -> None:
    """Refuse an unknown name, and a beam search over the features of several networks or of tiles.

    Raises:
        ConfigError: names the setting.
    """
    if localize not in get_args(Localize):
        raise ConfigError(
            f"localize={localize!r}: give maps or beam-search.", did_you_mean(localize, get_args(Localize))
        )
    if localize == "beam-search" and (networks > 1 or tile is not None):
        source = f"{networks} networks (an ensemble, or several input sizes)" if networks > 1 else f"tile={tile}"
        raise ConfigError(
            f"localize='beam-search' searches one grid of features and does not take {source}.",
            "Give a run and leave sizes and tile out.",
        )


def beam_search(
    score: Callable[[Sequence[Window]], Sequence[float]], grid: tuple[int, int], beam: int = BEAM
) -> tuple[Window, float]:
    """The window of the highest score that is found, the smallest of equal ones, and its score.

    Args:
        score: of windows; called once a step.
        grid: (h, w).
        beam: the number of windows that are kept at each step.

    >>> beam_search(lambda windows: [-abs(w.top - 1) - abs(w.right - 2) for w in windows], (2, 3))
    (Window(top=1, left=1, bottom=2, right=2), 0)
    """
    windows = [Window(0, 0, *grid)]
    best, highest = windows[0], -float("inf")
    while windows:
        ranked = sorted(zip(score(windows), windows, strict=True), key=lambda pair: -pair[0])
        if ranked[0][0] >= highest:
            highest, best = ranked[0]
        windows = list(dict.fromkeys(child for _, window in ranked[:beam] for child in smaller(window)))
    return best, highest


def smaller(window: Window) -> list[Window]:
    """The windows without one row or column at a side; none for a single cell."""
    top, left, bottom, right = window
    found = [Window(top + 1, left, bottom, right), Window(top, left, bottom - 1, right)] if bottom - top > 1 else []
    if right - left > 1:
        found += [Window(top, left + 1, bottom, right), Window(top, left, bottom, right - 1)]
    return found


@torch.inference_mode()
def window_scores(model: Wildcat, features: Tensor, windows: Sequence[Window], task: Task) -> Tensor:
    """(N, C) scores of an image whose features (D, h, w) outside a window are masked, for N windows.

    They are logits, or log-probabilities where classes exclude each other: there a logit alone says little.
    """
    _, height, width = features.shape
    bounds = torch.tensor(windows, device=features.device)[:, :, None, None]  # (N, 4, 1, 1)
    rows = torch.arange(height, device=features.device)[:, None]
    columns = torch.arange(width, device=features.device)[None, :]
    inside = (rows >= bounds[:, 0]) & (columns >= bounds[:, 1]) & (rows < bounds[:, 2]) & (columns < bounds[:, 3])
    blank = model.feature_mean.to(features)[:, None, None]
    scores = torch.cat(
        [model.head(torch.where(kept[:, None], features, blank)).scores for kept in torch.split(inside, BATCH)]
    )
    return scores.log_softmax(dim=1) if task == "multiclass" else scores


def located(prediction: Prediction, model: Wildcat, features: Tensor, beam: int = BEAM) -> Prediction:
    """The prediction with a box for each predicted class, whose score is that of the window.

    Args:
        features: (D, h, w) of the image.
    """
    height, width = features.shape[1:]
    x, y = prediction.width / width, prediction.height / height  # pixels of a cell
    found: dict[str, Box] = {}
    known: dict[Window, Tensor] = {}  # window -> (C,): the searches of all classes begin with the same windows

    def score(index: int, windows: Sequence[Window]) -> list[float]:
        if new := [window for window in windows if window not in known]:
            known.update(zip(new, window_scores(model, features, new, prediction.task).cpu(), strict=True))
        return [float(known[window][index]) for window in windows]

    for name in prediction.labels:
        window, highest = beam_search(partial(score, prediction.index_of(name)), (height, width), beam)
        found[name] = Box(window.left * x, window.top * y, window.right * x, window.bottom * y, highest)
    centres = {name: ((box.x1 + box.x2) / 2, (box.y1 + box.y2) / 2) for name, box in found.items()}
    return replace(prediction, located=found, pointed=centres)
