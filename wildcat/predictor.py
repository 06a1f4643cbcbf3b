"""From a run folder to predictions: `wildcat.load("runs/x").predict("dog.jpg")`."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, overload

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from timm.data.imagenet_info import ImageNetInfo
from torch import Tensor
from torch.nn import functional

from wildcat.config import FLIP_VIEWS, EngineChoice, Flip, Precision
from wildcat.data.dataset import Task
from wildcat.data.image_ref import ImageInput, ImageRef, decode_image, input_name
from wildcat.data.transforms import Preprocess
from wildcat.device import choose_device
from wildcat.engines import Engine, open_engine
from wildcat.errors import ConfigError, ImageError, RunError, did_you_mean
from wildcat.models.calibration import Calibration, read_calibration
from wildcat.models.ensemble import is_ensemble, open_ensemble
from wildcat.models.refined import is_refined, open_refined
from wildcat.models.run import open_run
from wildcat.nn.backbones import EMBEDDED
from wildcat.nn.model import Wildcat, imagenet_model
from wildcat.nn.segmenter import Segmenter
from wildcat.prediction import Prediction
from wildcat.regions.tiling import MapCanvas, check_tile, tile_image


class LoadedImage(NamedTuple):
    """An image that has been read.

    Attributes:
        given: what was given.
        image: in RGB, perhaps smaller than it is stored.
        size: (width, height) it is stored with.
        inputs: what each member sees of it, (3, S, S) uint8; none of an image to be tiled.
    """

    given: ImageInput
    image: Image.Image
    size: tuple[int, int]
    inputs: list[Tensor]

    def original(self) -> Image.Image | Path | ImageRef:
        """The image as it is stored, or where: a prediction that is never drawn holds no pixels."""
        if isinstance(self.given, (str, Path)):
            return Path(self.given)
        if isinstance(self.given, ImageRef) and self.image.size != self.size:
            return self.given
        return self.image


PACKAGED = {f"imagenet-{name}": name for name in EMBEDDED}
"""Models that need no training: the ImageNet classifiers of the embedded backbones."""

IMAGENET_SIZES = {"lite0": 224, "lite1": 240, "lite2": 260}
"""Input sizes the embedded classifiers were made for."""

BATCH_SIZE = 8
READERS = 4


@dataclass(frozen=True)
class Member:
    """One network and the size and scaling its images come in; most predictors have a single one.

    Attributes:
        segmenter: draws the class maps instead of the network's own, see `wildcat refine`; None where there is none.
        engine: what computes its features; None: the network itself.
    """

    model: Wildcat
    preprocess: Preprocess
    segmenter: Segmenter | None = None
    engine: Engine | None = None

    def look(self, images: Tensor) -> tuple[Tensor, ...]:
        """(B, 3, S, S) -> features (B, D, h, w), by the engine where there is one; and the maps of the segmenter."""
        if self.segmenter is not None:
            levels = self.model.backbone.levels(images)
            return levels[-1], self.segmenter(levels)
        return (self.model.features(images) if self.engine is None else self.engine.features(images),)


@dataclass(frozen=True)
class Combination:
    """How the scores of S members become one score per class: a linear layer over all of them (Object Bank).

    Attributes:
        weight: (C, S*C) float32; score s*C + c is that of class c by member s.
        bias: (C,) float32.
    """

    weight: NDArray[np.float32]
    bias: NDArray[np.float32]

    def __call__(self, scores: NDArray[np.float32]) -> NDArray[np.float32]:
        """(B, S, C) scores of the members -> (B, C)."""
        return np.asarray(scores.reshape(len(scores), -1) @ self.weight.T + self.bias, dtype=np.float32)


@dataclass(frozen=True)
class Outputs:
    """What the networks say of B images.

    Attributes:
        scores: (B, C), of the members together.
        class_maps: (B, C, h, w), on the finest grid of the members, their average.
        modality_maps: (B, C, M, h, w) of a single network; of several, (B, C, S, h, w), the class maps of each; of a
            segmenter its one map a class; or None where they were not asked for.
        member_scores: (B, S, C).
    """

    scores: NDArray[np.float32]
    class_maps: NDArray[np.float32]
    modality_maps: NDArray[np.float32] | None
    member_scores: NDArray[np.float32]


class Predictor:
    """One network, or several that look at the same image, with all that is needed to use them.

    Attributes:
        name: what was loaded.
        members: the networks, in evaluation mode, and what their images come as.
        classes: names, in the order of the scores.
        task: "multilabel" or "multiclass".
        combination: how the members' scores become one; None averages them. Maps are averaged either way.
        flip: mirrored views whose maps are averaged with the image's own: "none", "horizontal" or "both".
        calibration: how masks are drawn, see `wildcat calibrate`; None for the defaults.
        tile: side in pixels above which an image is cut into overlapping tiles; None: it is looked at whole.
    """

    def __init__(
        self,
        name: str,
        members: Sequence[Member],
        classes: Sequence[str],
        task: Task,
        device: str = "auto",
        flip: Flip = "none",
        combination: Combination | None = None,
        calibration: Calibration | None = None,
        tile: int | None = None,
    ) -> None:
        self.name = name
        self.device = choose_device(device)
        for member in members:
            for network in (member.model, member.segmenter):
                if network is not None:
                    network.eval().to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.members = tuple(members)
        self.classes = tuple(classes)
        self.task = task
        self.combination = combination
        self.calibration = calibration
        if flip not in FLIP_VIEWS:
            raise ConfigError(f"flip={flip!r}: give none, horizontal or both.", did_you_mean(str(flip), FLIP_VIEWS))
        self.flip = flip
        if tile is not None:
            check_tile(tile)
        self.tile = tile

    @property
    def model(self) -> Wildcat:
        """The network, or the first of several."""
        return self.members[0].model

    @property
    def preprocess(self) -> Preprocess:
        """From an image to the input of `model`."""
        return self.members[0].preprocess

    def use_engine(self, engine: EngineChoice, precision: Precision = "fp32") -> None:
        """Let an engine compute the features of every member; see `load`."""
        if any(member.segmenter is not None for member in self.members):
            if engine == "torch" and precision == "fp32":
                return
            raise ConfigError(
                f"{self.name} is a refined model: its segmenter sees levels of the backbone that {engine} "
                f"in {precision} does not give.",
                "Leave --engine and --precision out, or use the run it was made of.",
            )
        opened: dict[tuple[Wildcat, int], Engine] = {}

        def engine_of(member: Member) -> Engine:
            key = member.model, 0 if engine == "torch" else member.preprocess.size  # torch takes images of any size
            if key not in opened:
                opened[key] = open_engine(engine, precision, member.model.backbone, key[1], self.device)
            return opened[key]

        self.members = tuple(replace(member, engine=engine_of(member)) for member in self.members)

    @overload
    def predict(self, images: ImageInput, *, modalities: bool = True) -> Prediction: ...
    @overload
    def predict(self, images: list[Any] | tuple[Any, ...], *, modalities: bool = True) -> list[Prediction]: ...
    @overload
    def predict(self, images: Iterator[Any], *, modalities: bool = True) -> Iterator[Prediction]: ...
    def predict(
        self, images: ImageInput | Iterable[ImageInput], *, modalities: bool = True
    ) -> Prediction | list[Prediction] | Iterator[Prediction]:
        """Predict one image, a list of them, or a stream of them.

        Args:
            images: a path, a PIL image or a uint8 array, (H, W, 3) RGB or (H, W) grey; a list or tuple of these
                gives a list, an iterator gives an iterator that reads ahead a few images only.
            modalities: keep the M maps behind each class too.

        Raises:
            ImageError: an image cannot be read.
            ConfigError: not an image.
        """
        if isinstance(images, (str, Path, Image.Image, np.ndarray, ImageRef)):
            return next(self.stream([images], modalities=modalities))
        if isinstance(images, (list, tuple)):
            return list(self.stream(images, modalities=modalities))
        if isinstance(images, Iterator):
            return self.stream(images, modalities=modalities)
        raise ConfigError(
            f"a {type(images).__name__} is not an image.",
            "Give a path, a PIL image or a uint8 RGB array; or a list or an iterator of them.",
        )

    def stream(
        self,
        images: Iterable[ImageInput],
        *,
        modalities: bool = True,
        batch_size: int = BATCH_SIZE,
        on_error: Callable[[ImageInput, ImageError], object] | None = None,
    ) -> Iterator[Prediction]:
        """Predictions in the order of `images`, in bounded memory; reading runs ahead of the network in threads.

        Where images are tiled they are read one at a time, and `batch_size` tiles go through the network together.

        Args:
            on_error: called with an image that cannot be read and the reason, and the stream goes on; without it the
                error is raised.
        """
        for read in self._read_ahead(images, 1 if self.tile else batch_size, on_error):
            yield from self.predict_prepared(read, modalities, batch_size)

    def stream_outputs(self, images: Iterable[ImageInput], batch_size: int = BATCH_SIZE) -> Iterator[Outputs]:
        """The networks' outputs alone, batch by batch in the order of `images`; see `stream`."""
        for read in self._read_ahead(images, batch_size, None):
            yield self.run(self._stacked([one.inputs for one in read]), modalities=False)

    def prepare(self, image: ImageInput) -> LoadedImage:
        """An image, read and made what the networks see, for `predict_prepared`; any thread may do it.

        Raises:
            ImageError: it cannot be read.
        """
        rgb, size = decode_image(image, self._max_downscale)
        return LoadedImage(image, rgb, size, [] if self._tiled(size) else self._inputs(rgb))

    def predict_prepared(
        self, read: Sequence[LoadedImage], modalities: bool = True, batch_size: int = BATCH_SIZE
    ) -> list[Prediction]:
        """The predictions of images that `prepare` has read, in one pass; several threads may call it at once.

        Images that are tiled go through the network one by one, `batch_size` tiles at a time.
        """
        if all(one.inputs for one in read):
            return self._predictions(read, self.run(self._stacked([one.inputs for one in read]), modalities))
        if len(read) > 1:
            return [self.predict_prepared([one], modalities, batch_size)[0] for one in read]
        return self._predictions(read, self._run_tiles(read[0].image, batch_size, modalities))

    def _read_ahead(
        self,
        images: Iterable[ImageInput],
        batch_size: int,
        on_error: Callable[[ImageInput, ImageError], object] | None,
    ) -> Iterator[list[LoadedImage]]:
        """Batches of images that could be read, in order; threads read at most two batches ahead."""
        source = iter(images)
        with ThreadPoolExecutor(READERS) as pool:
            pending: list[tuple[ImageInput, Future[LoadedImage]]] = []
            while True:
                for image in itertools.islice(source, 2 * batch_size - len(pending)):
                    pending.append((image, pool.submit(self.prepare, image)))
                if not pending:
                    return
                batch, pending = pending[:batch_size], pending[batch_size:]
                read: list[LoadedImage] = []
                for image, future in batch:
                    try:
                        read.append(future.result())
                    except ImageError as error:
                        if on_error is None:
                            raise
                        on_error(image, error)
                if read:
                    yield read

    def _tiled(self, size: tuple[int, int]) -> bool:
        return self.tile is not None and max(size) > self.tile

    def _max_downscale(self, size: tuple[int, int]) -> float:
        """Maximum downscale factor when decoding an image of (width, height), for all members."""
        return 1.0 if self._tiled(size) else min(member.preprocess.max_downscale(size) for member in self.members)

    def _inputs(self, image: Image.Image) -> list[Tensor]:
        """What each member sees of an image, (3, S, S) uint8; members of one size share it."""
        made: dict[Preprocess, Tensor] = {}
        for member in self.members:
            if member.preprocess not in made:
                made[member.preprocess] = member.preprocess.warp(image)
        return [made[member.preprocess] for member in self.members]

    def _stacked(self, inputs: Sequence[Sequence[Tensor]]) -> list[Tensor]:
        """`_inputs` of B images -> for each member its images, (B, 3, S, S) float32."""
        made: dict[Preprocess, Tensor] = {}
        for member, pixels in zip(self.members, zip(*inputs, strict=True), strict=True):
            if member.preprocess not in made:
                made[member.preprocess] = member.preprocess.normalise(torch.stack(pixels).to(self.device))
        return [made[member.preprocess] for member in self.members]

    def _run_tiles(self, image: Image.Image, batch_size: int, modalities: bool) -> Outputs:
        """The outputs for an image larger than a tile, (1, ...) each.

        A class scores what it scores in the tile that shows it best; where classes exclude each other, scores are the
        average over the tiles. Maps are merged, see `wildcat.regions.tiling`.
        """
        tiles = tile_image(*image.size, self.tile or max(image.size))
        canvas, modality_canvas = MapCanvas(tiles), MapCanvas(tiles)
        scores, member_scores = [], []
        rest = iter(tiles)
        while batch := list(itertools.islice(rest, batch_size)):
            inputs = [self._inputs(image.crop(tile)) for tile in batch]
            outputs = self.run(self._stacked(inputs), modalities)
            scores.append(outputs.scores)
            member_scores.append(outputs.member_scores)
            for i, tile in enumerate(batch):
                canvas.add(tile, outputs.class_maps[i])
                if outputs.modality_maps is not None:
                    modality_canvas.add(tile, outputs.modality_maps[i])
        together = np.mean if self.task == "multiclass" else np.max
        return Outputs(
            scores=together(np.concatenate(scores), axis=0, keepdims=True),
            class_maps=canvas.maps()[None],
            modality_maps=modality_canvas.maps()[None] if modalities else None,
            member_scores=together(np.concatenate(member_scores), axis=0, keepdims=True),
        )

    def _predictions(self, read: Sequence[LoadedImage], outputs: Outputs) -> list[Prediction]:
        return [
            Prediction(
                path=input_name(one.given),
                width=one.size[0],
                height=one.size[1],
                classes=self.classes,
                task=self.task,
                class_scores=outputs.scores[i],
                class_maps=outputs.class_maps[i],
                modality_maps=None if outputs.modality_maps is None else outputs.modality_maps[i],
                image=one.original(),
                calibration=self.calibration,
            )
            for i, one in enumerate(read)
        ]

    @torch.inference_mode()
    def run(self, images: Sequence[Tensor], modalities: bool = True) -> Outputs:
        """Preprocessed images of each member, (B, 3, S, S) each, through its network."""
        seen = [self._look(m, x) for m, x in zip(self.members, images, strict=True)]
        return self._outputs([features for features, _ in seen], [maps for _, maps in seen], modalities)

    def _look(self, member: Member, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Features (B, D, h, w) of a member, and the maps of its segmenter; averages over the mirrored views."""
        images = images.to(self.device).contiguous(memory_format=torch.channels_last)
        features, *maps = mean_over_views(member.look, images, self.flip)
        return features, maps[0] if maps else None

    @torch.inference_mode()
    def run_features(self, features: Sequence[Tensor], modalities: bool = True) -> Outputs:
        """As `run`, from the backbone features of each member, (B, D, h, w) each; members have no segmenter."""
        return self._outputs(features, [None] * len(features), modalities)

    def _outputs(self, features: Sequence[Tensor], refined: Sequence[Tensor | None], modalities: bool) -> Outputs:
        single = len(self.members) == 1
        scores, class_maps, modality_maps = [], [], None
        for member, x, maps in zip(self.members, features, refined, strict=True):
            if maps is not None:
                scores.append(member.model.score(x))
                class_maps.append(maps)
                modality_maps = maps[:, :, None] if modalities and single else None
                continue
            if modalities and single:
                modality_maps = member.model.maps_of(x)
                class_maps.append(modality_maps.mean(dim=2))
            else:  # the M maps cost time only where they are asked for
                class_maps.append(member.model.class_maps_of(x))
            scores.append(member.model.score(x, class_maps[-1]))
        member_scores = _array(torch.stack(scores, dim=1))
        if single:
            merged = class_maps[0]
        else:
            stacked = torch.stack(on_finest_grid(class_maps), dim=2)  # S of (B, C, h, w) -> (B, C, S, h, w)
            merged, modality_maps = stacked.mean(dim=2), stacked if modalities else None
        return Outputs(
            scores=member_scores.mean(axis=1) if self.combination is None else self.combination(member_scores),
            class_maps=_array(merged),
            modality_maps=None if modality_maps is None else _array(modality_maps),
            member_scores=member_scores,
        )


def mean_over_views(look: Callable[[Tensor], tuple[Tensor, ...]], images: Tensor, flip: Flip) -> tuple[Tensor, ...]:
    """What `look` makes of (B, 3, S, S) images, (B, K, h, w) each: the mean over mirrored views, mirrored back.

    Maps are linear in the features: averaging the features averages the maps.
    """
    mirrored = FLIP_VIEWS[flip][1:]  # the plain view needs no copy of the image or its features
    totals = look(images)
    for axes in mirrored:
        totals = tuple(a + b.flip(axes) for a, b in zip(totals, look(images.flip(axes)), strict=True))
    return tuple(total / (1 + len(mirrored)) for total in totals) if mirrored else totals


def on_finest_grid(maps: Sequence[Tensor]) -> list[Tensor]:
    """Maps (B, C, h, w) of the same images on grids of their own -> all on the largest, bilinear between centres."""
    size = max((tuple(x.shape[-2:]) for x in maps), key=lambda grid: grid[0] * grid[1])
    return [
        x if tuple(x.shape[-2:]) == size else functional.interpolate(x, size, mode="bilinear", align_corners=False)
        for x in maps
    ]


def load(
    source: str | Path,
    device: str = "auto",
    flip: Flip = "none",
    sizes: Sequence[int] = (),
    *,
    output_stride: int | None = None,
    tile: int | None = None,
    engine: EngineChoice = "torch",
    precision: Precision = "fp32",
    calibrated: bool = True,
) -> Predictor:
    """A model ready to predict: the folder of a run, an ensemble or a refined model, or a packaged `imagenet-lite0`.

    Args:
        flip: average the maps of mirrored views, "horizontal" or "both" ways: steadier, at two or four times the cost.
        sizes: input sides in pixels to look at each image in, scores and maps averaged; empty: the size the network
            was trained at. Larger ones find smaller things and sharper maps, at a cost that grows with their area.
        output_stride: input pixels per cell of the maps, 32, 16 or 8, whatever the network was trained at: finer maps
            with the same weights, for about 2 and 8 times the cost, where the backbone can. None: that of training.
            Counts of regions (k+, k-) given as whole numbers stay as they are; proportions follow the map.
        tile: side in pixels above which an image is cut into overlapping tiles, each looked at like an image, for
            small things in large photographs. None: every image is looked at whole.
        engine: what computes the networks' features: "torch", "compile", "onnx" or "openvino", or "auto", what
            `wildcat bench --pick` found fastest here.
        precision: "fp32", "bf16" (all but onnx) or "int8" (onnx, openvino; prepared by `wildcat bench`): faster,
            at the cost of rounding. Maps and scores are made of the features in float32.
        calibrated: draw masks as `wildcat calibrate` fitted them, where it did; otherwise at the default settings.

    Raises:
        RunError: no such folder or model, or the folder is damaged, or its calibration is of other weights.
        ConfigError: a size or a tile below 32 pixels, an output stride the network cannot give, sizes for an ensemble,
            whose members have their own; a precision the engine has not, or a refined model with another than torch's.
        EngineError: the engine cannot run the network here, or nothing was picked or prepared.
        MissingExtra: the weights of a packaged model, or the engine, are not installed.
    """
    predictor = _load(source, device, flip, sizes, output_stride, tile, calibrated)
    predictor.use_engine(engine, precision)
    return predictor


def _load(
    source: str | Path,
    device: str,
    flip: Flip,
    sizes: Sequence[int],
    output_stride: int | None,
    tile: int | None,
    calibrated: bool,
) -> Predictor:
    name = str(source)
    for size in sizes:
        if size < 32:
            raise ConfigError(
                f"sizes: {size} pixels is too small; give at least 32.", "Customary sizes are 224 to 560."
            )
    if name in PACKAGED:
        members = at_sizes(_packaged_member(name, output_stride or 32), sizes)
        return Predictor(name, members, imagenet_names(ImageNetInfo()), "multiclass", device, flip, tile=tile)
    folder = Path(source).expanduser()
    if not folder.exists() and (near := did_you_mean(name, PACKAGED)):
        raise RunError(f"there is no run folder or packaged model {name!r}.", near)
    if is_ensemble(folder):
        if sizes:
            raise ConfigError(f"{name} is an ensemble: each member has its own size.", "Leave sizes out.")
        predictor = _load_ensemble(name, folder, device, flip, output_stride, tile)
    else:
        refined = open_refined(folder) if is_refined(folder) else None
        run = refined.base if refined else open_run(folder)
        segmenter = refined.load_segmenter() if refined else None
        members = at_sizes(Member(run.load_model(output_stride), run.preprocess, segmenter), sizes)
        predictor = Predictor(name, members, run.classes, run.task, device, flip, tile=tile)
    if calibrated:
        predictor.calibration = read_calibration(folder, predictor.classes)
    return predictor


def at_sizes(member: Member, sizes: Sequence[int]) -> list[Member]:
    """The same network once for each input size, or as it is where none is given."""
    return [replace(member, preprocess=replace(member.preprocess, size=size)) for size in sizes] or [member]


def _load_ensemble(
    name: str, folder: Path, device: str, flip: Flip, output_stride: int | None, tile: int | None
) -> Predictor:
    ensemble = open_ensemble(folder)
    members = [Member(run.load_model(output_stride), run.preprocess) for run in ensemble.runs]
    linear = None if ensemble.weight is None or ensemble.bias is None else Combination(ensemble.weight, ensemble.bias)
    return Predictor(name, members, ensemble.classes, ensemble.task, device, flip, linear, tile=tile)


def _packaged_member(name: str, output_stride: int) -> Member:
    backbone = PACKAGED[name]
    model = imagenet_model(backbone, output_stride)
    size, own = IMAGENET_SIZES[backbone], model.backbone
    return Member(model, Preprocess(size, own.mean, own.std, own.interpolation))


def imagenet_names(info: ImageNetInfo) -> list[str]:
    """The 1,000 class names: the first of the synonyms of each ("tabby" for "tabby, tabby cat").

    The few that name two classes (crane, maillot, and cardigan but for its case) carry their WordNet id as well.
    """
    names = [info.index_to_description(i).split(",")[0] for i in range(1000)]
    uses = Counter(n.casefold() for n in names)
    return [n if uses[n.casefold()] == 1 else f"{n} {info.index_to_label_name(i)}" for i, n in enumerate(names)]


def _array(tensor: Tensor) -> NDArray[np.float32]:
    return np.asarray(tensor.float().cpu().numpy())
