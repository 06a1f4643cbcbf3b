"""Train and measure many heads on the same cached features: a comparison in minutes instead of hours."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from wildcat.config import TrainConfig
from wildcat.data.cache import cache_folder
from wildcat.data.images import read_image
from wildcat.data.sample import DataSet, Sample
from wildcat.evaluation import evaluate
from wildcat.predictor import Predictor, load
from wildcat.results import Prediction
from wildcat.train.features import Features, cached_features
from wildcat.train.loop import Listener, train
from wildcat.train.runs import create_run

BATCH = 32


def train_and_evaluate(
    data: DataSet, config: TrainConfig, split: str, listener: Listener | None = None
) -> dict[str, Any]:
    """Train a head (`tune=head`) in a passing run folder and measure it on `split`, both on cached features.

    Returns:
        What `wildcat.evaluation.evaluate` returns; the numbers of `wildcat train` and `wildcat evaluate`, up to the
        half precision of the cache.
    """
    with tempfile.TemporaryDirectory() as folder:
        run = create_run(Path(folder) / "run", config, data)
        train(run, data, listener=listener)
        predictor = load(run.folder, config.device)
    samples = data.split(split)
    features = cached_features(
        predictor.model.backbone, samples, predictor.preprocess, "none", cache_folder() / "features"
    )
    return evaluate(predictor, data, split, predictions=predictions_from_features(predictor, samples, features))


def predictions_from_features(
    predictor: Predictor, samples: Sequence[Sample], features: Features
) -> Iterator[Prediction]:
    """Predictions of the samples, in order, without reading a picture or running the backbone again."""
    for start in range(0, len(samples), BATCH):
        part = range(start, min(start + BATCH, len(samples)))
        scores, class_maps, _ = predictor.run_features(features.batch(part).to(predictor.device), modalities=False)
        for k, i in enumerate(part):
            width, height = picture_size(samples[i].path)
            yield Prediction(
                image=str(samples[i].path),
                width=width,
                height=height,
                classes=predictor.classes,
                task=predictor.task,
                class_scores=scores[k],
                class_maps=class_maps[k],
                modality_maps=None,
                picture=samples[i].path,
            )


@cache
def picture_size(path: Path) -> tuple[int, int]:
    """(width, height) of the picture as a person sees it."""
    return read_image(path).size
