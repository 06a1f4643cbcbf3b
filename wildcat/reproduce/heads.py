"""Train and evaluate many heads on the same cached features: a comparison in minutes instead of hours."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from wildcat.config import FLIP_VIEWS, Flip, Localize, TrainConfig
from wildcat.data.dataset import DataSet, Sample, cross_validation, label_matrix
from wildcat.data.image_ref import ImageRef, LoadedImage, load_image
from wildcat.data.images import IntensityRange
from wildcat.device import choose_device
from wildcat.errors import ConfigError
from wildcat.evaluation import MEASURES, evaluate
from wildcat.fitting.ensemble import fit_combination
from wildcat.fitting.levels import outputs_from_features
from wildcat.models.beam_search import check_localize
from wildcat.models.folder import Combine
from wildcat.models.hub import SCHEME
from wildcat.models.member import Member
from wildcat.models.run import create_run, preprocess_of
from wildcat.nn.backbones import create_backbone
from wildcat.prediction import Prediction
from wildcat.predictor import Predictor
from wildcat.progress import SILENT, Progress
from wildcat.train.feature_cache import cached_features
from wildcat.train.loop import train


def train_and_evaluate(
    data: DataSet,
    config: TrainConfig,
    split: str,
    progress: Progress = SILENT,
    sizes: Sequence[int] = (),
    combine: Combine = "linear",
    measures: Collection[str] = MEASURES,
    flip: Flip = "none",
    crf: bool = False,
    localize: Localize = "maps",
) -> dict[str, Any]:
    """Train a head (`tune=head`) in a temporary run folder and measure it on `split`, both on cached features.

    Args:
        sizes: several input sizes: one head per size, combined as by `wildcat ensemble`; empty: the config's size.
        combine: a linear classifier trained on the scores of the training images, or their average.
        measures: what to measure, see `wildcat.evaluation.evaluate`.
        flip: mirrored views that are averaged when measuring, as by `wildcat evaluate --flip`.
        crf: sharpen masks with a dense CRF, as by `wildcat evaluate --crf`.
        localize: what finds points, as by `wildcat evaluate --localize`.

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
    check_localize(localize, len(heads), tile=None)
    predictor.localize = localize
    predictions = predictions_from_features(predictor, data.split(split), config.amp, flip)
    return evaluate(predictor, data, split, crf=crf, predictions=predictions, measures=measures)


def check_head_weights(config: TrainConfig) -> None:
    """Refuse weights of a run, which has a head already, where new heads are trained.

    Raises:
        ConfigError: names the run.
    """
    if config.parent or config.weights.startswith(SCHEME):
        raise ConfigError(
            f"weights={config.weights}: a run has a head already.", "Give imagenet, or a file of backbone weights."
        )


def compute_features(samples: Sequence[Sample], config: TrainConfig, progress: Progress = SILENT) -> None:
    """Cache the features of the samples, in all views that training uses: later heads and measurements compute none."""
    device = choose_device(config.device)
    backbone = create_backbone(config.backbone, config.weights, config.output_stride, config.image_size)
    backbone = backbone.eval().to(device).to(memory_format=torch.channels_last)
    progress.start("features", len(samples) * len(FLIP_VIEWS[config.flip]))
    cached_features(
        backbone,
        samples,
        preprocess_of(config, backbone),
        config.flip,
        workers=config.workers,
        progress=progress,
        amp=config.amp,
    )


def train_head(data: DataSet, config: TrainConfig, progress: Progress = SILENT) -> Predictor:
    """The trained network, loaded for prediction; its run folder is deleted."""
    with tempfile.TemporaryDirectory() as folder:
        run = create_run(Path(folder) / "run", config, data)
        if not train(run, data, progress=progress).finished:
            raise KeyboardInterrupt
        # Not `load`, which folds batch normalisation: the features cached for this backbone would not be found.
        members = [Member(run.load_model(), run.preprocess)]
        return Predictor(str(run.folder), members, run.classes, run.task, config.device)


def cross_validate(
    data: DataSet, split: str, config: TrainConfig, folds: int
) -> Iterator[tuple[Predictor, Sequence[Sample]]]:
    """For each fold of a split, a head trained on the other folds, and the samples of the fold."""
    parts = cross_validation(data, split, folds, config.seed)
    for number in range(1, folds + 1):
        settings = replace(config, train_split=f"fold{number}-train", val_split="none")
        yield train_head(parts, settings), parts.split(f"fold{number}-test")


def predictions_from_features(
    predictor: Predictor, samples: Sequence[Sample], amp: bool = False, flip: Flip = "none"
) -> Iterator[Prediction]:
    """Predictions of the samples, in order, from cached features; images are read for their size alone."""
    remaining, intensity = iter(samples), predictor.preprocess.intensity_range
    for outputs in outputs_from_features(predictor, samples, amp, flip):
        batch = itertools.islice(remaining, len(outputs.scores))
        images = [LoadedImage(str(s.path), image_size(s.path, intensity), s.path) for s in batch]
        yield from predictor.predictions(images, outputs)


@cache
def image_size(image: Path | ImageRef, intensity: IntensityRange | None) -> tuple[int, int]:
    """(width, height) of an image after its EXIF orientation."""
    return load_image(image, intensity).size
