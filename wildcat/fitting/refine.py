"""Train a second stage on a run's own training images, usually a segmenter: `wildcat refine`.

This is the second step of weakly supervised segmentation. `wildcat.nn.segmenter` is trained on inner layers of the
run's frozen backbone by one of the methods of `wildcat.fitting.methods`; ours labels pixels with the run's masks, the
others learn from the image-level labels. With `tune=all` the backbone, the head and the segmenter are then trained
together. The method `pronet-cascade` trains a classifier of crops instead, see `wildcat.models.cascade`. Ground-truth
masks are never used. Features are computed once and cached on disk.
"""

from __future__ import annotations

import importlib
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from wildcat.data.dataset import PRESENT, DataSet, label_matrix
from wildcat.errors import ConfigError, DataError
from wildcat.files import refuse_existing
from wildcat.fitting.config import RefineConfig
from wildcat.fitting.fine_tune import fine_tune
from wildcat.fitting.methods import pronet_cascade, refine_method
from wildcat.fitting.training_images import TrainingImages
from wildcat.methods import HEADS, no_maps
from wildcat.models.calibration import Calibration, fitted_samples, read_calibration
from wildcat.models.folder import Model, write_cascade, write_refined
from wildcat.models.run import Run
from wildcat.nn.segmenter import Segmenter
from wildcat.prediction import default_mask_params
from wildcat.progress import SILENT, Progress
from wildcat.regions.crf import MILD_CRF, CrfParams
from wildcat.regions.masks import MaskParams
from wildcat.regions.superpixels import superpixels


def refine(
    run: Run,
    data: DataSet,
    folder: Path,
    config: RefineConfig | None = None,
    split: str = "train",
    crf: CrfParams | None = None,
    device: str = "auto",
    progress: Progress = SILENT,
) -> Model:
    """Train a segmenter on a split with the run's features, and write a refined model; or a cascade.

    Args:
        run: trained on image-level labels; its calibration, if it has one, determines its masks.
        split: training images; their labels are used, their masks never.
        crf: sharpens the labels, in the method sec the constraint; in pixels of images of 500 x 375, scaled to the
            images. None: the defaults, or `MILD_CRF` for propagated maps, which are sharp already.
        progress: counts images in each stage: features, maps, boundaries, then labels and training in each round.

    Raises:
        ConfigError: a setting is out of range or not one of the method, or the method cannot take the run's classes, or
            the run has no class maps.
        RunError: the folder exists, or cannot be written.
        DataError: the data has other classes than the run, or the split has no labelled image, for a cascade of each
            class.
        TrainingError: the loss is not finite.
        MissingExtra: scikit-image is not installed, with `superpixels`.
        ImageError: an image cannot be read.
    """
    config = config or RefineConfig()
    config.validate()
    refuse_existing(folder)
    if run.config.head and not HEADS[run.config.head].has_maps:
        raise no_maps(str(run.folder))
    if set(run.classes) != set(data.classes):
        raise DataError(f"{data.name} has other classes than {run.folder}.", "Give the data the run was trained on.")
    method = refine_method(config.method)
    if run.task == "multiclass" and not method.multiclass:
        raise ConfigError(
            f"method={config.method!r} needs a background in every image; the classes of {run.folder} exclude each "
            "other, so one may fill its images.",
            "Leave it out, or train the run with --data-option task=multilabel if its images show objects.",
        )
    check_extras(config)
    order = [data.classes.index(name) for name in run.classes]
    samples = [s for s in fitted_samples(data, split) if (s.labels == PRESENT).any()]
    if not samples:
        raise DataError(f"no image of {split} of {data.name} has a label.", "Give a split with labelled images.")
    trained: dict[str, Any] = {"data": data.name, "split": split, "images": len(samples)}
    trained |= {name: value for name, value in asdict(config).items() if name in method.settings}
    if config.method == "pronet-cascade":
        with torch.random.fork_rng():
            torch.manual_seed(config.seed)
            labels = torch.from_numpy(label_matrix(samples)[:, order])
            verifier, loss = pronet_cascade.train(run, samples, labels, config, device, progress)
        trained["losses"] = [loss]
        return write_cascade(folder, run, verifier, config.crops, config.crop_weight, trained)
    calibration = read_calibration(run.folder, run.classes)
    module = importlib.import_module(f"wildcat.fitting.methods.{config.method.replace('-', '_')}")
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        images = TrainingImages(run, samples, order, config, crf, calibration, device, progress)
        segmenter: Segmenter = module.train(images)
        if config.tune == "all":
            fine_tune(images, segmenter)
    trained |= {"crf": asdict(images.crf), "losses": images.losses}
    gate = (calibration.params if calibration else default_mask_params(run.task)).gate
    record = {"data": data.name, "split": split, "images": len(samples), "masks": 0, "crf": False}
    record |= {"prior": {}, "f1": {}, "tried": []}
    params = MaskParams(gate=gate, rule="score", superpixels=config.superpixels)
    masks = Calibration(params, record, MILD_CRF)
    boundaries, model = images.boundaries, None
    if config.tune == "all":  # the boundary network was trained on features that the model no longer has
        boundaries, model = None, images.member.model.cpu()
    return write_refined(folder, run, segmenter.cpu(), trained, masks, boundaries and boundaries.cpu(), model)


def check_extras(config: RefineConfig) -> None:
    """Raise `MissingExtra` before a training, not after it, if its settings need a package that is not installed."""
    if config.superpixels:
        superpixels(np.zeros((2, 2, 3), dtype=np.uint8))
