"""Train and measure many heads on the same cached features: a comparison in minutes instead of hours."""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wildcat.config import FLIP_VIEWS, Flip, TrainConfig
from wildcat.data.cache import cache_folder
from wildcat.data.dataset import DataSet, Sample, label_matrix
from wildcat.data.image_ref import ImageRef, load_image
from wildcat.evaluation import MEASURES, evaluate
from wildcat.fitting.ensemble import fit_combination
from wildcat.models.ensemble import Combine
from wildcat.models.run import create_run
from wildcat.prediction import Prediction
from wildcat.predictor import Outputs, Predictor, load
from wildcat.progress import Progress
from wildcat.train.feature_cache import Features, cached_features
from wildcat.train.loop import train

BATCH = 32


def train_and_evaluate(
    data: DataSet,
    config: TrainConfig,
    split: str,
    progress: Progress | None = None,
    sizes: Sequence[int] = (),
    combine: Combine = "linear",
    measures: Collection[str] = MEASURES,
    flip: Flip = "none",
) -> dict[str, Any]:
    """Train a head (`tune=head`) in a passing run folder and measure it on `split`, both on cached features.

    Args:
        sizes: with several, one head for each input size, combined by `fitting.ensemble`; none: the config's.
        combine: how: a linear classifier trained on the scores of the training images, or their average.
        measures: what to measure, see `wildcat.evaluation.evaluate`.
        flip: mirrored views whose maps are averaged when measured, as `wildcat evaluate --flip` does.

    Returns:
        What `wildcat.evaluation.evaluate` returns; the numbers of `wildcat train` and `wildcat evaluate`, up to the
        half precision of the cache.
    """
    heads = [train_head(data, replace(config, image_size=size), progress) for size in sizes or (config.image_size,)]
    predictor = heads[0]
    if len(heads) > 1:
        members = [member for head in heads for member in head.members]
        predictor = Predictor("ensemble", members, predictor.classes, predictor.task, config.device)
        if combine == "linear":
            learned = data.training_split(config.train_split, config.val_split)[0]
            outputs = outputs_from_features(predictor, learned, config.amp, flip)
            scores = np.concatenate([output.member_scores for output in outputs])
            predictor.combination = fit_combination(scores, label_matrix(learned), data.task)
    samples = data.split(split)
    predictions = predictions_from_features(predictor, samples, config.amp, flip)
    return evaluate(predictor, data, split, predictions=predictions, measures=measures)


def train_head(data: DataSet, config: TrainConfig, progress: Progress | None = None) -> Predictor:
    """The network a training leaves, ready to use; its run folder is gone."""
    with tempfile.TemporaryDirectory() as folder:
        run = create_run(Path(folder) / "run", config, data)
        train(run, data, progress=progress)
        return load(run.folder, config.device)


def features_of(
    predictor: Predictor, samples: Sequence[Sample], amp: bool = False, flip: Flip = "none"
) -> list[Features]:
    """Cached features of the samples for each member of the predictor, as `tune=head` keeps them."""
    folder = cache_folder() / "features"
    return [cached_features(m.model.backbone, samples, m.preprocess, flip, folder, amp=amp) for m in predictor.members]


def outputs_from_features(
    predictor: Predictor, samples: Sequence[Sample], amp: bool = False, flip: Flip = "none"
) -> Iterator[Outputs]:
    """The networks' outputs for the samples, batch by batch in order, without running a backbone again."""
    features = features_of(predictor, samples, amp, flip)
    for start in range(0, len(samples), BATCH):
        part = range(start, min(start + BATCH, len(samples)))
        yield predictor.run_features(
            [_mean_view(f, part, flip).to(predictor.device) for f in features], modalities=False
        )


def _mean_view(features: Features, part: Sequence[int], flip: Flip) -> Tensor:
    """(B, D, h, w): the mean over the views of some images, each mirrored back, as a predictor with `flip` has it."""
    views = [features.batch(part, [v] * len(part)).flip(axes) for v, axes in enumerate(FLIP_VIEWS[flip])]
    return views[0] if len(views) == 1 else torch.stack(views).mean(dim=0)


def predictions_from_features(
    predictor: Predictor, samples: Sequence[Sample], amp: bool = False, flip: Flip = "none"
) -> Iterator[Prediction]:
    """Predictions of the samples, in order, without reading an image or running a backbone again."""
    rest = iter(samples)
    for outputs in outputs_from_features(predictor, samples, amp, flip):
        for scores, class_maps in zip(outputs.scores, outputs.class_maps, strict=True):
            yield _prediction(predictor, next(rest), scores, class_maps)


def _prediction(
    predictor: Predictor, sample: Sample, scores: NDArray[np.float32], class_maps: NDArray[np.float32]
) -> Prediction:
    width, height = image_size(sample.path)
    return Prediction(
        path=str(sample.path),
        width=width,
        height=height,
        classes=predictor.classes,
        task=predictor.task,
        class_scores=scores,
        class_maps=class_maps,
        modality_maps=None,
        image=sample.path,
    )


@cache
def image_size(image: Path | ImageRef) -> tuple[int, int]:
    """(width, height) of the image as a person sees it."""
    return load_image(image).size
