"""Log training to a CSV file, TensorBoard, MLflow or Weights & Biases: receivers of the progress of training."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from importlib import import_module
from typing import Any, Self

import numpy as np
import torch
from PIL import Image

from wildcat.data.dataset import PRESENT, Sample
from wildcat.data.image_ref import load_image
from wildcat.errors import ConfigError, did_you_mean, import_extra
from wildcat.files import file_names, write_bytes
from wildcat.models.run import Run
from wildcat.nn.model import Wildcat
from wildcat.prediction import Prediction
from wildcat.progress import SILENT, Progress, ProgressOf
from wildcat.train.distributed import rank

SIDE = 480  # pixels of a logged heatmap at its longer side


class Logger(Progress):
    """Logs the numbers of each epoch, and heatmaps of a few images that are the same in every epoch.

    Subclasses open their log in the constructor and implement `log`, `log_image` and `close`.

    Args:
        images: their heatmaps are logged; none of a method without class maps.
    """

    def __init__(self, run: Run, images: Sequence[Sample] = ()) -> None:
        self.run, self.images = run, images

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def epoch(self, record: dict[str, Any], network: Any = None) -> None:
        self.log(int(record["epoch"]), numbers(record))
        if network is not None and self.images:
            for name, image in heatmaps(network, self.run, self.images):
                self.log_image(int(record["epoch"]), name, image)

    def log(self, epoch: int, values: Mapping[str, float]) -> None:
        """Log numbers by name."""

    def log_image(self, epoch: int, name: str, image: Image.Image) -> None:
        """Log the heatmap of an image."""

    def close(self) -> None:
        """Write what is left, and end the log."""


class CsvLogger(Logger):
    """metrics.csv in the run folder: a row per epoch. No images."""

    def log(self, epoch: int, values: Mapping[str, float]) -> None:
        path = self.run.folder / "metrics.csv"
        rows: list[dict[str, Any]] = []
        if path.is_file():  # of a run that is resumed; epochs that are trained again are replaced
            with path.open(encoding="utf-8", newline="") as file:
                rows = [row for row in csv.DictReader(file) if int(row["epoch"]) < epoch]
        rows.append({"epoch": epoch, **values})
        text = io.StringIO()
        writer = csv.DictWriter(text, list(dict.fromkeys(key for row in rows for key in row)), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_bytes(path, text.getvalue().encode())


class TensorBoardLogger(Logger):
    """Event files in RUN/tensorboard: `tensorboard --logdir RUN`."""

    def __init__(self, run: Run, images: Sequence[Sample] = ()) -> None:
        super().__init__(run, images)
        optional("tensorboard")
        writer = import_module("torch.utils.tensorboard")
        self.writer = writer.SummaryWriter(str(run.folder / "tensorboard"))

    def log(self, epoch: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, epoch)

    def log_image(self, epoch: int, name: str, image: Image.Image) -> None:
        self.writer.add_image(name, np.asarray(image), epoch, dataformats="HWC")

    def close(self) -> None:
        self.writer.close()


class MlflowLogger(Logger):
    """A run in the experiment `wildcat`, at MLFLOW_TRACKING_URI, otherwise in the folder `mlruns` beside the run."""

    def __init__(self, run: Run, images: Sequence[Sample] = ()) -> None:
        super().__init__(run, images)
        mlflow = optional("mlflow")
        place = os.environ.get("MLFLOW_TRACKING_URI")
        if not place:
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # newer versions ask for it
            place = (run.folder.absolute().parent / "mlruns").as_uri()
        self.client = mlflow.MlflowClient(place)
        experiment = self.client.get_experiment_by_name("wildcat")
        number = experiment.experiment_id if experiment else self.client.create_experiment("wildcat")
        self.id = self.client.create_run(number, run_name=run.folder.name).info.run_id
        for name, value in asdict(run.config).items():
            self.client.log_param(self.id, name, value)

    def log(self, epoch: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self.client.log_metric(self.id, name, value, step=epoch)

    def log_image(self, epoch: int, name: str, image: Image.Image) -> None:
        self.client.log_image(self.id, image, artifact_file=f"{name}/epoch-{epoch:04}.png")

    def close(self) -> None:
        self.client.set_terminated(self.id)


class WandbLogger(Logger):
    """A run of the project `wildcat` in RUN/wandb, offline unless WANDB_MODE says otherwise; see `wandb sync`."""

    def __init__(self, run: Run, images: Sequence[Sample] = ()) -> None:
        super().__init__(run, images)
        self.wandb = optional("wandb")
        self.log_run = self.wandb.init(
            project="wildcat",
            name=run.folder.name,
            dir=str(run.folder),
            mode=os.environ.get("WANDB_MODE", "offline"),
            config=asdict(run.config),
        )

    def log(self, epoch: int, values: Mapping[str, float]) -> None:
        self.log_run.log(dict(values), step=epoch)

    def log_image(self, epoch: int, name: str, image: Image.Image) -> None:
        self.log_run.log({name: self.wandb.Image(image)}, step=epoch)

    def close(self) -> None:
        self.log_run.finish()


LOGGERS: dict[str, Callable[[Run, Sequence[Sample]], Logger]] = {
    "csv": CsvLogger,
    "tensorboard": TensorBoardLogger,
    "mlflow": MlflowLogger,
    "wandb": WandbLogger,
}


@contextmanager
def logging_to(
    names: Sequence[str], run: Run, images: Sequence[Sample], progress: Progress = SILENT
) -> Iterator[Progress]:
    """Progress that goes on to `progress` and, in the first process, to these loggers; they end with the block."""
    with ExitStack() as stack:
        logs = [stack.enter_context(LOGGERS[name](run, images)) for name in names] if rank() == 0 else []
        yield ProgressOf(progress, *logs)


def check_logs(names: Sequence[str], images: int) -> None:
    """Refuse unknown loggers, those whose package is missing, and a negative number of images, before anything starts.

    Raises:
        ConfigError: names the setting.
        MissingExtra: the package of a logger is not installed.
    """
    if wrong := next((name for name in names if name not in LOGGERS), None):
        choices = f"Choose from: {', '.join(LOGGERS)}."
        raise ConfigError(f"log={wrong!r}: there is no such logger.", did_you_mean(wrong, LOGGERS) or choices)
    if images < 0:
        raise ConfigError(f"log_images={images}: give at least 0.")
    for name in names:
        if name != "csv":
            optional(name)


def optional(package: str) -> Any:
    """The package of a logger, which is also the name of its extra; a MissingExtra if it is not installed."""
    return import_extra(package, package, package)


def numbers(record: Mapping[str, Any]) -> dict[str, float]:
    """The numbers in the record of an epoch, but for its own, by name.

    >>> numbers({"epoch": 3, "tune": "head", "loss": 0.5, "val": {"map": 0.25}, "best": True})
    {'loss': 0.5, 'val/map': 0.25}
    """
    found = {name: value for name, value in record.items() if name != "epoch" and type(value) in (int, float)}
    return found | {f"val/{name}": value for name, value in record.get("val", {}).items()}


@torch.no_grad()
def heatmaps(network: Wildcat, run: Run, images: Sequence[Sample]) -> Iterator[tuple[str, Image.Image]]:
    """For each image, a name and the heatmap of its first class, or of the likeliest one if it has no label."""
    if not network.has_maps:
        return
    training, device = network.training, next(network.parameters()).device
    network.eval()
    try:
        names = file_names(sample.name for sample in images)
        for sample in images:
            image = load_image(sample.path, run.preprocess.intensity_range)
            pixels = run.preprocess.normalise(run.preprocess.warp(image)[None].to(device))
            output = network.head(network.features(pixels))
            scores, maps = (x[0, : len(run.classes)].float().cpu().numpy() for x in (output.scores, output.class_maps))
            prediction = Prediction(str(sample.path), *image.size, run.classes, run.task, scores, maps, None, image)
            present = np.flatnonzero(sample.labels == PRESENT)
            name = run.classes[present[0]] if len(present) else prediction.top
            drawn = prediction.plot(name)
            drawn.thumbnail((SIDE, SIDE))
            yield f"heatmaps/{names[sample.name]}", drawn
    finally:
        network.train(training)
