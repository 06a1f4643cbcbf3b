"""From a run folder to predictions: `wildcat.load("runs/x").predict("dog.jpg")`."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from timm.data.imagenet_info import ImageNetInfo
from torch import Tensor

from wildcat.config import FLIP_VIEWS, Flip
from wildcat.data.images import read_image, to_rgb
from wildcat.data.sample import Task
from wildcat.data.transforms import Preprocess
from wildcat.errors import ConfigError, ImageError, RunError, did_you_mean
from wildcat.nn.backbones import EMBEDDED
from wildcat.nn.model import Wildcat, imagenet_model
from wildcat.results import Prediction
from wildcat.train.loop import choose_device
from wildcat.train.runs import open_run

Picture = str | Path | Image.Image | NDArray[np.uint8]

PACKAGED = {f"imagenet-{name}": name for name in EMBEDDED}
"""Models that need no training: the ImageNet classifiers of the embedded backbones."""

IMAGENET_SIZES = {"lite0": 224, "lite1": 240, "lite2": 260}
"""Input sizes the embedded classifiers were made for."""

BATCH_SIZE = 8
READERS = 4


class Predictor:
    """A network with all that is needed to use it on pictures.

    Attributes:
        name: what was loaded.
        model: the network, in evaluation mode.
        classes: names, in the order of the scores.
        task: "multilabel" or "multiclass".
        preprocess: from a picture to the network's input.
        flip: mirrored views whose maps are averaged with the picture's own: "none", "horizontal" or "both".
    """

    def __init__(
        self,
        name: str,
        model: Wildcat,
        classes: Sequence[str],
        task: Task,
        preprocess: Preprocess,
        device: str = "auto",
        flip: Flip = "none",
    ) -> None:
        self.name = name
        self.device = choose_device(device)
        self.model = model.eval().to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.classes = tuple(classes)
        self.task = task
        self.preprocess = preprocess
        if flip not in FLIP_VIEWS:
            raise ConfigError(f"flip={flip!r}: give none, horizontal or both.", did_you_mean(str(flip), FLIP_VIEWS))
        self.flip = flip

    @overload
    def predict(self, pictures: Picture, *, modalities: bool = True) -> Prediction: ...
    @overload
    def predict(self, pictures: list[Any] | tuple[Any, ...], *, modalities: bool = True) -> list[Prediction]: ...
    @overload
    def predict(self, pictures: Iterator[Any], *, modalities: bool = True) -> Iterator[Prediction]: ...
    def predict(
        self, pictures: Picture | Iterable[Picture], *, modalities: bool = True
    ) -> Prediction | list[Prediction] | Iterator[Prediction]:
        """Predict one picture, a list of them, or a stream of them.

        Args:
            pictures: a path, a PIL picture or a uint8 array, (H, W, 3) RGB or (H, W) grey; a list or tuple of these
                gives a list, an iterator gives an iterator that reads ahead a few pictures only.
            modalities: keep the M maps behind each class too.

        Raises:
            ImageError: a picture cannot be read.
            ConfigError: not a picture.
        """
        if isinstance(pictures, (str, Path, Image.Image, np.ndarray)):
            return next(self.stream([pictures], modalities=modalities))
        if isinstance(pictures, (list, tuple)):
            return list(self.stream(pictures, modalities=modalities))
        if isinstance(pictures, Iterator):
            return self.stream(pictures, modalities=modalities)
        raise ConfigError(
            f"a {type(pictures).__name__} is not a picture.",
            "Give a path, a PIL picture or a uint8 RGB array; or a list or an iterator of them.",
        )

    def stream(
        self,
        pictures: Iterable[Picture],
        *,
        modalities: bool = True,
        batch_size: int = BATCH_SIZE,
        on_error: Callable[[Picture, ImageError], object] | None = None,
    ) -> Iterator[Prediction]:
        """Predictions in the order of `pictures`, in bounded memory; reading runs ahead of the network in threads.

        Args:
            on_error: called with a picture that cannot be read and the reason, and the stream goes on; without it the
                error is raised.
        """
        source = iter(pictures)
        with ThreadPoolExecutor(READERS) as pool:
            pending: list[tuple[Picture, Future[tuple[Image.Image, Tensor]]]] = []
            while True:
                for picture in itertools.islice(source, 2 * batch_size - len(pending)):
                    pending.append((picture, pool.submit(self._read, picture)))
                if not pending:
                    return
                batch, pending = pending[:batch_size], pending[batch_size:]
                read: list[tuple[Picture, Image.Image, Tensor]] = []
                for picture, future in batch:
                    try:
                        read.append((picture, *future.result()))
                    except ImageError as error:
                        if on_error is None:
                            raise
                        on_error(picture, error)
                if read:
                    yield from self._predict_batch(read, modalities)

    def _read(self, picture: Picture) -> tuple[Image.Image, Tensor]:
        image = open_picture(picture)
        return image, self.preprocess(image)

    def _predict_batch(self, read: list[tuple[Picture, Image.Image, Tensor]], modalities: bool) -> list[Prediction]:
        scores, class_maps, maps = self.run(torch.stack([tensor for _, _, tensor in read]), modalities)
        return [
            Prediction(
                image=str(picture) if isinstance(picture, (str, Path)) else "",
                width=image.width,
                height=image.height,
                classes=self.classes,
                task=self.task,
                class_scores=scores[i],
                class_maps=class_maps[i],
                modality_maps=None if maps is None else maps[i],
                picture=Path(picture) if isinstance(picture, (str, Path)) else image,
            )
            for i, (picture, image, _) in enumerate(read)
        ]

    @torch.inference_mode()
    def run(
        self, images: Tensor, modalities: bool = True
    ) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32] | None]:
        """Preprocessed images (B, 3, S, S) -> scores (B, C), class maps (B, C, h, w), modality maps (B, C, M, h, w)."""
        images = images.to(self.device).contiguous(memory_format=torch.channels_last)
        # Maps are linear in the features: averaging the features of mirrored views, mirrored back, averages their maps.
        mirrored = FLIP_VIEWS[self.flip][1:]  # the plain view needs no copy of the picture or its features
        features = self.model.features(images)
        for axes in mirrored:
            features = features + self.model.features(images.flip(axes)).flip(axes)
        return self.run_features(features / (1 + len(mirrored)) if mirrored else features, modalities)

    @torch.inference_mode()
    def run_features(
        self, features: Tensor, modalities: bool = True
    ) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32] | None]:
        """As `run`, from backbone features (B, D, h, w)."""
        maps = self.model.maps_of(features) if modalities else None  # the M maps cost time only where asked for
        class_maps = self.model.class_maps_of(features) if maps is None else maps.mean(dim=2)
        scores = self.model.pool(class_maps) if self.model.architecture == "a" else self.model.score(features)
        return _array(scores), _array(class_maps), None if maps is None else _array(maps)


def load(source: str | Path, device: str = "auto", flip: Flip = "none") -> Predictor:
    """A model ready to predict: a run folder, or a packaged model such as `imagenet-lite0`.

    Args:
        flip: average the maps of mirrored views, "horizontal" or "both" ways: steadier, at two or four times the cost.

    Raises:
        RunError: no such folder or model, or the folder is damaged.
        MissingExtra: the weights of a packaged model are not installed.
    """
    name = str(source)
    if name in PACKAGED:
        return _load_packaged(name, device, flip)
    folder = Path(source).expanduser()
    if not folder.exists() and (near := did_you_mean(name, PACKAGED)):
        raise RunError(f"there is no run folder or packaged model {name!r}.", near)
    run = open_run(folder)
    return Predictor(name, run.load_model(), run.classes, run.task, run.preprocess, device, flip)


def _load_packaged(name: str, device: str, flip: Flip) -> Predictor:
    backbone = PACKAGED[name]
    model = imagenet_model(backbone)
    info = ImageNetInfo()
    preprocess = Preprocess(
        IMAGENET_SIZES[backbone], model.backbone.mean, model.backbone.std, model.backbone.interpolation
    )
    return Predictor(name, model, imagenet_names(info), "multiclass", preprocess, device, flip)


def imagenet_names(info: ImageNetInfo) -> list[str]:
    """The 1,000 class names: the first of the synonyms of each ("tabby" for "tabby, tabby cat").

    The few that name two classes (crane, maillot, and cardigan but for its case) carry their WordNet id as well.
    """
    names = [info.index_to_description(i).split(",")[0] for i in range(1000)]
    uses = Counter(n.casefold() for n in names)
    return [n if uses[n.casefold()] == 1 else f"{n} {info.index_to_label_name(i)}" for i, n in enumerate(names)]


def open_picture(picture: Picture) -> Image.Image:
    """Any kind of picture `Predictor.predict` takes, as RGB.

    Raises:
        ImageError: the file cannot be read.
        ConfigError: an array that is not uint8, or of another shape.
    """
    if isinstance(picture, (str, Path)):
        return read_image(Path(picture))
    if isinstance(picture, Image.Image):
        return to_rgb(picture)
    if isinstance(picture, np.ndarray):
        fits = picture.ndim == 2 or (picture.ndim == 3 and picture.shape[2] == 3)
        if picture.dtype != np.uint8 or not fits or picture.size == 0:
            raise ConfigError(
                f"an array of shape {picture.shape} and type {picture.dtype} is not a picture.",
                "Give uint8, (height, width, 3) RGB or (height, width) grey.",
            )
        return to_rgb(Image.fromarray(picture))
    raise ConfigError(
        f"a {type(picture).__name__} is not a picture.", "Give a path, a PIL picture or a uint8 RGB array."
    )


def _array(tensor: Tensor) -> NDArray[np.float32]:
    return np.asarray(tensor.float().cpu().numpy())
