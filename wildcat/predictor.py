"""From images to predictions: load -> preprocess -> features -> scores and maps -> `Prediction`.

    wildcat.load("runs/x").predict("dog.jpg")

`Predictor.forward` is the one way to run trained networks; what one network computes is in `wildcat.models.member`.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar, overload

import torch
from PIL import Image
from torch import Tensor

from wildcat.config import FLIP_VIEWS, MOST, EngineName, Flip, Localize, Precision
from wildcat.data.dataset import Task
from wildcat.data.image_ref import (
    FileInput,
    ImageInput,
    ImageRef,
    LoadedImage,
    OnError,
    check_is_image,
    decode_image,
    input_name,
    read_ahead,
    read_open_file,
)
from wildcat.data.transforms import Preprocess, stack_images
from wildcat.device import choose_device, map_batches, refuse_forked
from wildcat.engines import fold, open_engine
from wildcat.errors import ConfigError, RunError, did_you_mean
from wildcat.models.beam_search import check_localize, located
from wildcat.models.calibration import Calibration, read_calibration
from wildcat.models.cascade import Cascade, check_cascade
from wildcat.models.folder import Combination, open_model
from wildcat.models.hub import model_folder
from wildcat.models.member import Member, NetworkOutputs, Outputs, merge_outputs, merge_tiles
from wildcat.models.packaged import PACKAGED, imagenet_names, load_packaged
from wildcat.nn.model import Wildcat
from wildcat.prediction import Prediction
from wildcat.regions.tiling import Rectangle, check_tile, tile_image

BATCH_SIZE = 8

Result = TypeVar("Result")


class Predictor:
    """One or several networks with everything needed to apply them to images.

    Attributes:
        name: as given to `load`.
        members: the networks, in evaluation mode.
        classes: names, in the order of the scores.
        task: "multilabel" or "multiclass".
        combination: of the members' scores; None averages them. Maps are always averaged.
        flip: mirrored views to average: "none", "horizontal" or "both".
        calibration: thresholds and mask settings, see `wildcat calibrate`; None for the defaults.
        tile: images with a side above this many pixels are cut into overlapping tiles; None: never.
        localize: what finds points and boxes: "maps", or "beam-search" for predicted classes.
        propagate, crf: whether masks are spread up to the boundaries, if the members compute them, and sharpened by a
            dense CRF, unless `Prediction.mask` is told otherwise.
        cascade: the second stage, which verifies crops of each image; None: there is none.
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
        localize: Localize = "maps",
        propagate: bool = True,
        crf: bool = False,
        cascade: Cascade | None = None,
    ) -> None:
        check_localize(localize, len(members), tile)
        check_cascade(cascade, name, localize, tile)
        if flip not in FLIP_VIEWS:
            raise ConfigError(f"flip={flip!r}: give none, horizontal or both.", did_you_mean(str(flip), FLIP_VIEWS))
        if tile is not None:
            check_tile(tile)
        self.name, self.members, self.classes, self.task = name, tuple(members), tuple(classes), task
        self.device = choose_device(device)
        self.flip, self.tile, self.combination, self.calibration = flip, tile, combination, calibration
        self.localize, self.propagate, self.crf, self.cascade = localize, propagate, crf, cascade
        self.process = os.getpid()
        networks = [one for member in members for one in member.networks]
        for network in [*networks, *(cascade.networks if cascade else ())]:
            network.eval().to(self.device, memory_format=torch.channels_last)

    def __repr__(self) -> str:
        return f"Predictor({self.name!r}, {self.task}, {len(self.classes)} classes, device {str(self.device)!r})"

    def __getstate__(self) -> dict[str, Any]:
        """Pickle or copy without engines, whose sessions belong to this process."""
        members, engine = tuple(replace(m, engine=None) for m in self.members), self.members[0].engine
        return {**vars(self), "members": members, "engine": engine and (engine.name, engine.precision)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, process=os.getpid())
        if engine := vars(self).pop("engine"):
            self._open_engines(*engine)

    @property
    def model(self) -> Wildcat:
        """The network, or the first of several."""
        return self.members[0].model

    @property
    def preprocess(self) -> Preprocess:
        """The preprocessing of `model`."""
        return self.members[0].preprocess

    @property
    def shares_cores(self) -> bool:
        """Whether forward passes can run side by side with a part of the cores each: with torch on a CPU.

        A GPU runs one after the other, and the other engines manage their own threads.
        """
        return self.device.type == "cpu" and all(m.engine is None or m.engine.name == "torch" for m in self.members)

    @property
    def has_maps(self) -> bool:
        """Whether there are class maps; without, predictions have scores alone."""
        return any(member.has_maps for member in self.members)

    def use_engine(self, engine: EngineName, precision: Precision = "fp32") -> None:
        """Compute features with an engine; see `load`.

        Batch normalisation is folded into the convolutions of the members' backbones, for good.

        Raises:
            ConfigError, EngineError, MissingExtra: see `wildcat.engines.open_engine`.
        """
        refined = any(member.segmenter is not None for member in self.members)
        if refined and (engine, precision) != ("torch", "fp32"):
            raise ConfigError(
                f"{self.name} is a refined model: its segmenter needs inner layers of the backbone, which {engine} "
                f"in {precision} does not return.",
                "Give engine=torch and precision=fp32, or use the run it was made from.",
            )
        for model, size in {member.model: member.preprocess.size for member in self.members}.items():
            model.backbone = fold(model.backbone, size, levels=refined).to(memory_format=torch.channels_last)
        if not refined:
            self._open_engines(engine, precision)

    def _open_engines(self, engine: EngineName, precision: Precision) -> None:
        self.members = tuple(
            replace(m, engine=open_engine(engine, precision, m.model.backbone, m.preprocess.size, self.device))
            for m in self.members
        )

    # --- images -> predictions ---

    @overload
    def predict(self, images: ImageInput | FileInput, *, modalities: bool = True) -> Prediction: ...
    @overload
    def predict(self, images: list[Any] | tuple[Any, ...], *, modalities: bool = True) -> list[Prediction]: ...
    @overload
    def predict(self, images: Iterator[Any], *, modalities: bool = True) -> Iterator[Prediction]: ...
    def predict(
        self, images: ImageInput | FileInput | Iterable[ImageInput | FileInput], *, modalities: bool = True
    ) -> Prediction | list[Prediction] | Iterator[Prediction]:
        """Predict one image, a list of images, or a stream of images.

        Args:
            images: a path, an open binary file (or its content), a PIL image or a uint8 array, (H, W, 3) RGB or (H, W)
                grey; a list or tuple of these returns a list, an iterator returns an iterator that reads only a few
                images ahead, the first one at once.
            modalities: also compute the M maps behind each class.

        Raises:
            ImageError: an image cannot be read.
            ConfigError: not an image.
        """
        if isinstance(images, (list, tuple)):
            for number, image in enumerate(images):
                check_is_image(image, f", item {number} of a {type(images).__name__},")
            return list(self.stream(images, modalities=modalities))
        if isinstance(images, Iterator) and not hasattr(images, "read"):  # an open file iterates over its lines
            first = list(itertools.islice(images, 1))
            for image in first:
                check_is_image(image, f", from a {type(images).__name__},")
            return self.stream(itertools.chain(first, images), modalities=modalities)
        return next(self.stream([read_open_file(images)], modalities=modalities))  # type: ignore[arg-type]

    def stream(
        self,
        images: Iterable[ImageInput | FileInput],
        *,
        modalities: bool = True,
        batch_size: int = BATCH_SIZE,
        on_error: OnError | None = None,
    ) -> Iterator[Prediction]:
        """Predictions in the order of `images`, in bounded memory; threads read ahead of the network.

        Args:
            batch_size: images, or tiles, per forward pass.
            on_error: called with an image that cannot be read and the reason; the image is skipped. Without it the
                error is raised.
        """

        def predicted(loaded: list[LoadedImage]) -> list[Prediction]:
            return self.predictions(loaded, self._run(loaded, modalities, batch_size))

        yield from itertools.chain.from_iterable(self._map(predicted, images, batch_size, on_error))

    def outputs(
        self,
        images: Iterable[ImageInput | FileInput],
        *,
        modalities: bool = False,
        batch_size: int = BATCH_SIZE,
        on_error: OnError | None = None,
    ) -> Iterator[tuple[list[LoadedImage], Outputs]]:
        """As `stream`, batch by batch: the images and the outputs of the networks."""

        def run(loaded: list[LoadedImage]) -> tuple[list[LoadedImage], Outputs]:
            return loaded, self._run(loaded, modalities, batch_size)

        return self._map(run, images, batch_size, on_error)

    def _map(
        self,
        function: Callable[[list[LoadedImage]], Result],
        images: Iterable[ImageInput | FileInput],
        batch_size: int,
        on_error: OnError | None,
    ) -> Iterator[Result]:
        """`function` of batches of prepared images, in order; on a CPU of several at once, if torch computes."""
        batches = read_ahead(images, self.prepare, 1 if self.tile else batch_size, on_error)
        return map_batches(function, batches) if self.shares_cores and not self.tile else map(function, batches)

    def predict_prepared(
        self, images: Sequence[LoadedImage], modalities: bool = True, batch_size: int = BATCH_SIZE
    ) -> list[Prediction]:
        """Predict images returned by `prepare` in one batch; safe to call from several threads.

        Images that are cut into tiles are processed one by one, `batch_size` tiles at a time.
        """
        tiled = any(one.pixels is not None for one in images)
        batches = [[one] for one in images] if tiled else [images]
        return [p for batch in batches for p in self.predictions(batch, self._run(batch, modalities, batch_size))]

    def predictions(self, images: Sequence[LoadedImage], outputs: Outputs) -> list[Prediction]:
        """B images and their outputs -> B predictions."""
        model = (self.classes, self.task)
        common: dict[str, Any] = {"calibration": self.calibration, "device": self.device, "propagate": self.propagate}
        common |= {"crf": self.crf, "intensity_range": self.preprocess.intensity_range}
        modalities = [None] * len(images) if outputs.modality_maps is None else outputs.modality_maps
        walls = [None] * len(images) if outputs.boundaries is None else outputs.boundaries[:, 0]
        rows = zip(images, outputs.scores, outputs.class_maps, modalities, walls, strict=True)
        found = [
            Prediction(one.name, *one.size, *model, scores, maps, m_maps, one.source, boundaries=wall, **common)
            for one, scores, maps, m_maps, wall in rows
        ]
        if outputs.features is not None:
            found = [located(p, self.members[0].fused, x) for p, x in zip(found, outputs.features, strict=True)]
        return found if self.cascade is None else self.cascade.verified(found, self.members, self.flip)

    # --- reading and preprocessing ---

    def prepare(self, image: ImageInput) -> LoadedImage:
        """Read and resize an image, for `predict_prepared`; safe to call from several threads.

        Raises:
            ImageError: it cannot be read.
        """

        def max_downscale(size: tuple[int, int]) -> float:
            return 1.0 if self._is_tiled(size) else min(m.preprocess.max_downscale(size) for m in self.members)

        rgb, size = decode_image(image, max_downscale, self.preprocess.intensity_range)
        source: Image.Image | Path | ImageRef = rgb
        if isinstance(image, (str, Path)):
            source = Path(image)
        elif isinstance(image, ImageRef) and (rgb.size != size or image.holds_pixels):
            source = image
        if self._is_tiled(size):
            return LoadedImage(input_name(image), size, source, pixels=rgb)
        return LoadedImage(input_name(image), size, source, inputs=self._inputs(rgb))

    def _is_tiled(self, size: tuple[int, int]) -> bool:
        return self.tile is not None and max(size) > self.tile

    def _inputs(self, image: Image.Image) -> list[Tensor]:
        """The resized image for each member, (3, S, S) uint8; members with equal preprocessing share it."""
        resized = {p: p.warp(image) for p in dict.fromkeys(member.preprocess for member in self.members)}
        return [resized[member.preprocess] for member in self.members]

    def _batch(self, inputs: Sequence[Sequence[Tensor]]) -> list[Tensor]:
        """`_inputs` of B images -> for each member (B, 3, S, S) float32, normalised."""
        pixels = {m.preprocess: column for m, column in zip(self.members, zip(*inputs, strict=True), strict=True)}
        batches = {p: p.normalise(stack_images(column).to(self.device)) for p, column in pixels.items()}
        return [batches[member.preprocess] for member in self.members]

    # --- the networks ---

    def _run(self, images: Sequence[LoadedImage], modalities: bool, batch_size: int) -> Outputs:
        """The outputs for a batch of images, or for one image that is cut into tiles."""
        if images[0].pixels is not None:
            return self._run_tiles(images[0].pixels, modalities, batch_size)
        return self.forward(self._batch([one.inputs for one in images]), modalities)

    @torch.inference_mode()
    def forward(self, inputs: Sequence[Tensor], modalities: bool = True) -> Outputs:
        """Preprocessed images, (B, 3, S, S) for each member -> scores and maps, averaged over the mirrored views."""
        refuse_forked(self.process)
        outputs = []
        of_one = modalities and sum(member.has_maps for member in self.members) == 1  # of several they are their maps
        for member, batch in zip(self.members, inputs, strict=True):
            images = batch.to(self.device).contiguous(memory_format=torch.channels_last)
            features = member.features(images, self.flip)
            outputs.append(member.scores_and_maps(*features, modalities=of_one))
        return self._merged(outputs, features[0], modalities)

    @torch.inference_mode()
    def forward_features(self, features: Sequence[Tensor]) -> Outputs:
        """As `forward`, from (B, D, h, w) features of each member, without modality maps; not for refined models."""
        outputs = [member.scores_and_maps(x) for member, x in zip(self.members, features, strict=True)]
        return self._merged(outputs, features[0], modalities=False)

    def _merged(self, outputs: Sequence[NetworkOutputs], features: Tensor, modalities: bool) -> Outputs:
        """The outputs of all members as one, with the features of the first where a beam search needs them."""
        merged = merge_outputs(outputs, self.combination, modalities)
        return replace(merged, features=features) if self.localize == "beam-search" else merged

    def _run_tiles(self, image: Image.Image, modalities: bool, batch_size: int) -> Outputs:
        """The outputs for an image that is cut into tiles, (1, ...) each."""

        def run(batch: Sequence[Rectangle]) -> Outputs:
            return self.forward(self._batch([self._inputs(image.crop(tile)) for tile in batch]), modalities)

        tiles = tile_image(*image.size, self.tile or max(image.size))
        batches = (tiles[start : start + batch_size] for start in range(0, len(tiles), batch_size))
        parts = list(map_batches(run, batches) if self.shares_cores else map(run, batches))
        return merge_tiles(parts, image.size, tiles, self.task)


# --- loading ----------------------------------------------------------------------------------------------------------


def load(
    source: str | Path,
    device: str = "auto",
    flip: Flip = "none",
    sizes: Sequence[int] = (),
    *,
    output_stride: int | None = None,
    tile: int | None = None,
    engine: EngineName = "torch",
    precision: Precision = "fp32",
    calibrated: bool = True,
    propagate: bool | None = None,
    crf: bool | None = None,
    localize: Localize = "maps",
    boundaries: bool = False,
) -> Predictor:
    """Load a model folder of any kind, a packaged model such as `imagenet-lite0`, or a model of the Hugging Face Hub.

    Args:
        source: a path, a name, or `hf://user/name`, also of a revision, `hf://user/name@v1`; see `wildcat.models.hub`.
        flip: average the maps of mirrored views, "horizontal" or "both" ways, at two or four times the cost.
        sizes: input sizes in pixels; with several, scores and maps are averaged. Empty: the size of training. Larger
            sizes find smaller objects and give finer maps, at a cost proportional to their area. The crops of a cascade
            are enlarged to the first.
        output_stride: input pixels per cell of the maps, 32, 16 or 8; None: as in training. Finer maps from the same
            weights, at about 2 and 8 times the cost, if the backbone supports it. Whole numbers for k+ and k- are not
            adapted; proportions are.
        tile: cut images with a side above this many pixels into overlapping tiles, for small objects in large images.
        engine: "torch", "compile" (torch.compile), "onnx" or "openvino": what computes the features.
        precision: "fp32", "bf16" (not onnx) or "int8" (onnx and openvino, after `wildcat bench`): faster, less exact.
            Scores and maps are computed from the features in float32.
        calibrated: use the thresholds and mask settings of `wildcat calibrate`, if the model has them.
        propagate: spread masks by a random walk up to the boundaries that `wildcat refine` has trained; None: as
            `wildcat calibrate` has chosen, otherwise not.
        crf: sharpen masks with a dense CRF; None: likewise.
        localize: "beam-search" finds points and boxes of predicted classes by `wildcat.models.beam_search`, slower.
        boundaries: compute the boundaries, if the model has them, for `Prediction.mask(propagate=True)`.

    Raises:
        RunError: no such folder or model, or the folder is damaged, or its calibration is of other weights; or
            `propagate` for a model without boundaries; or the hub refuses access or cannot be reached.
        ConfigError: a size or a tile below 32 pixels, a size above 16,384, an output stride the backbone does not
            support, sizes for an ensemble, a precision the engine does not have, an engine other than torch for a
            refined model, a beam search with several networks or tiles, or a cascade with tiles or a beam search.
        EngineError: the engine cannot run the network here, or there is no int8 graph yet.
        MissingExtra: the weights of a packaged model, or the engine, are not installed.
    """
    name = str(source)
    if small := [size for size in sizes if size < 32]:
        raise ConfigError(f"sizes={small[0]}: give at least 32 pixels.", "224 to 560 are usual.")
    if large := [size for size in sizes if size > MOST["image_size"]]:
        raise ConfigError(f"sizes={large[0]}: give at most {MOST['image_size']:,} pixels.", "224 to 560 are usual.")
    classes: Sequence[str]
    task: Task
    combination, calibration, cascade = None, None, None
    if name in PACKAGED:
        members = [Member(*load_packaged(name, output_stride or 32))]
        classes, task = imagenet_names(), "multiclass"
    else:
        folder = model_folder(source)
        if not folder.exists() and (near := did_you_mean(name, PACKAGED)):
            raise RunError(f"there is no model folder or packaged model {name!r}.", near)
        model = open_model(folder)
        if sizes and len(model.runs) > 1:
            raise ConfigError(f"sizes={sizes[0]}: each member of the ensemble {name} has its own.", "Leave it out.")
        segmenter = model.load_segmenter()
        trained = model.runs[0].config.output_stride
        if segmenter is not None and output_stride not in (None, trained) and 8 in (output_stride, trained):
            raise ConfigError(
                f"output_stride={output_stride}: the refined model {name} reads levels of the backbone that have other "
                f"strides then.",
                f"Leave it out{'' if trained == 8 else ', or give 16'}.",
            )
        members = [Member(run.load_model(output_stride), run.preprocess, segmenter) for run in model.runs]
        cascade = model.load_cascade([member.model.backbone.num_features for member in members])
        # after the weights: a damaged file is named as such, not as weights that the calibration does not fit
        calibration = read_calibration(folder, model.classes) if calibrated else None
        propagate = bool(calibration and calibration.propagate) if propagate is None else propagate
        if (propagate or boundaries) and (walls := model.load_boundaries()):
            members = [replace(member, boundaries=walls) for member in members]
        classes, task, combination = model.classes, model.task, model.combination
    if propagate and members[0].boundaries is None:
        raise RunError(f"{name} has no trained boundaries to propagate to.", "Train them: wildcat refine --propagate.")
    if sizes:
        members = [replace(m, preprocess=replace(m.preprocess, size=size)) for m in members for size in sizes]
        cascade = cascade and replace(cascade, verifiers=(*cascade.verifiers, *[None] * (len(sizes) - 1)))
    steps = (bool(propagate), bool(calibration and calibration.with_crf) if crf is None else crf)
    rest = (combination, calibration, tile, localize, *steps, cascade)
    predictor = Predictor(name, members, classes, task, device, flip, *rest)
    predictor.use_engine(engine, precision)
    return predictor
