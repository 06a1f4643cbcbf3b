"""Train and evaluate many heads on the same cached features: a comparison in minutes instead of hours."""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
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
from wildcat.progress import SILENT, Progress
from wildcat.train.feature_cache import Features, cached_features
from wildcat.train.loop import train

BATCH = 32


def train_and_evaluate(
    data: DataSet,
    config: TrainConfig,
    split: str,
    progress: Progress = SILENT,
    sizes: Sequence[int] = (),
    combine: Combine = "linear",
    measures: Collection[str] = MEASURES,
    flip: Flip = "none",
) -> dict[str, Any]:
    """Train a head (`tune=head`) in a temporary run folder and measure it on `split`, both on cached features.

    Args:
        sizes: several input sizes: one head per size, combined as by `wildcat ensemble`; empty: the config's size.
        combine: a linear classifier trained on the scores of the training images, or their average.
        measures: what to measure, see `wildcat.evaluation.evaluate`.
        flip: mirrored views that are averaged when measuring, as by `wildcat evaluate --flip`.

    Returns:
        What `wildcat.evaluation.evaluate` returns: the values of `wildcat train` and `wildcat evaluate`, up to the
        half precision of the cache.
    """
    heads = [train_head(data, replace(config, image_size=size), progress) for size in sizes or (config.image_size,)]
    predictor = heads[0]
    if len(heads) > 1:
        members = [member for head in heads for member in head.members]
        predictor = Predictor("ensemble", members, predictor.classes, predictor.task, config.device)
        if combine == "linear":
            samples = data.training_split(config.train_split, config.val_split)[0]
            outputs = outputs_from_features(predictor, samples, config.amp, flip)
            scores = np.concatenate([output.member_scores for output in outputs])
            predictor.combination = fit_combination(scores, label_matrix(samples), data.task)
    predictions = predictions_from_features(predictor, data.split(split), config.amp, flip)
    return evaluate(predictor, data, split, predictions=predictions, measures=measures)


def train_head(data: DataSet, config: TrainConfig, progress: Progress = SILENT) -> Predictor:
    """The trained network, loaded for prediction; its run folder is deleted."""
    with tempfile.TemporaryDirectory() as folder:
        run = create_run(Path(folder) / "run", config, data)
        train(run, data, progress=progress)
        return load(run.folder, config.device)


def outputs_from_features(
    predictor: Predictor, samples: Sequence[Sample], amp: bool = False, flip: Flip = "none"
) -> Iterator[Outputs]:
    """The outputs of the networks for the samples, in order, in batches, from the features that `tune=head` caches."""
    folder = cache_folder() / "features"
    features = [
        cached_features(member.model.backbone, samples, member.preprocess, flip, folder, amp=amp)
        for member in predictor.members
    ]
    for start in range(0, len(samples), BATCH):
        batch = range(start, min(start + BATCH, len(samples)))
        inputs = [_mean_over_views(f, batch, flip).to(predictor.device) for f in features]
        yield predictor.run_features(inputs, modalities=False)


def _mean_over_views(features: Features, batch: Sequence[int], flip: Flip) -> Tensor:
    """(B, D, h, w): the mean of the features of all views, each mirrored back."""
    views = [features.batch(batch, [v] * len(batch)).flip(axes) for v, axes in enumerate(FLIP_VIEWS[flip])]
    return views[0] if len(views) == 1 else torch.stack(views).mean(dim=0)


def predictions_from_features(
    predictor: Predictor, samples: Sequence[Sample], amp: bool = False, flip: Flip = "none"
) -> Iterator[Prediction]:
    """Predictions of the samples, in order, from cached features; no image is decoded."""
    remaining = iter(samples)
    for outputs in outputs_from_features(predictor, samples, amp, flip):
        for scores, class_maps in zip(outputs.scores, outputs.class_maps, strict=True):
            path = next(remaining).path
            width, height = image_size(path)
            yield Prediction(
                path=str(path),
                width=width,
                height=height,
                classes=predictor.classes,
                task=predictor.task,
                class_scores=scores,
                class_maps=class_maps,
                modality_maps=None,
                image=path,
            )


@cache
def image_size(image: Path | ImageRef) -> tuple[int, int]:
    """(width, height) of an image after its EXIF orientation."""
    return load_image(image).size
