"""Export a model as one ONNX file that maps images to scores and class maps, with or without the processing."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from torch import Tensor, nn

from wildcat._version import __version__
from wildcat.config import Flip
from wildcat.engines.onnx_graph import describe, trace
from wildcat.errors import ConfigError
from wildcat.export.onnx_processing import add_processing
from wildcat.files import make_parent, refuse_existing, remove_leftovers, write_bytes
from wildcat.models.member import Member
from wildcat.prediction import default_mask_params
from wildcat.predictor import Predictor

OUTPUTS = ("scores", "class_maps")  # a method without class maps has the first alone


def export_onnx(predictor: Predictor, path: str | Path, with_processing: bool = False) -> Path:
    """Export a predictor's network as ONNX, and verify it against torch on random images.

    Input: `images` (B, 3, S, S) float32, any B: RGB in [0, 1], resized to S x S without cropping, minus `mean`, divided
    by `std`. Outputs: `scores` (B, C), raw, and `class_maps` (B, C, h, w), averaged over flipped views like the
    predictor's. Metadata, as text: `classes`, `mean`, `std` and `thresholds` (JSON lists; a class is predicted if its
    probability reaches its threshold, in a multi-class model also the likeliest), `size` (S), `interpolation`, `task`
    (apply a sigmoid to the scores if "multilabel", softmax if "multiclass"), `flip`, and `wildcat`, the version.

    Args:
        with_processing: the graph also resizes and normalises, and computes probabilities and points. Input: `image`
            (H, W, 3) uint8, RGB, of any size. Outputs: `scores` (C,), `probabilities` (C,), `classes` (C,), the names,
            `class_maps` (C, h, w) and `points` (C, 2), (x, y) in pixels of the image. The same metadata.

    Raises:
        ConfigError: the predictor has several networks or sizes, or is a cascade; an ONNX graph holds one network. With
            `with_processing` also: it cuts images into tiles, or finds points by a beam search.
        EngineError: an operation has no ONNX form, or the results differ from torch's; nothing is written.
        MissingExtra: the packages of extra `export` are not installed.
        RunError: the file exists, or cannot be written.
    """
    path = Path(path)
    if len(predictor.members) > 1:
        networks = len({id(member.model) for member in predictor.members})
        raise ConfigError(
            f"{predictor.name} runs {len(predictor.members)} networks or sizes; one ONNX file holds one network at one "
            "size.",
            f"Export a member at a time: {predictor.name}/members/1."
            if networks > 1
            else "Give one of the sizes alone.",
        )
    if predictor.cascade is not None:
        raise ConfigError(
            f"{predictor.name} is a cascade, which crops images between its stages; an ONNX file holds one network.",
            f"Export its first stage: {predictor.name}/{predictor.cascade.first_stage}.",
        )
    if with_processing and (predictor.tile is not None or predictor.localize != "maps"):
        setting = f"localize={predictor.localize!r}" if predictor.tile is None else f"tile={predictor.tile}"
        raise ConfigError(f"with_processing=True excludes {setting}.", "Leave one of them out.")
    if path.suffix != ".onnx":
        example = path / "model.onnx" if path.is_dir() else path.with_suffix(".onnx")
        raise ConfigError(f"{path} does not end in .onnx.", f"Give a name such as {example}.")
    refuse_existing(path)
    preprocess = predictor.preprocess
    outputs = OUTPUTS if predictor.has_maps else OUTPUTS[:1]
    model = trace(_ScoresAndMaps(predictor.members[0], predictor.flip), preprocess.size, outputs)
    if with_processing:
        model = add_processing(model, preprocess, predictor.classes, predictor.task)
    params = predictor.calibration.params if predictor.calibration else default_mask_params(predictor.task)
    describe(
        model,
        {
            "wildcat": __version__,
            "name": Path(predictor.name).name,
            "classes": json.dumps(list(predictor.classes), ensure_ascii=False),
            "task": predictor.task,
            "size": str(preprocess.size),
            "mean": json.dumps(list(preprocess.mean)),
            "std": json.dumps(list(preprocess.std)),
            "thresholds": json.dumps(params.gates(len(predictor.classes))),
            "interpolation": preprocess.interpolation,
            "flip": predictor.flip,
        },
    )
    make_parent(path)
    remove_leftovers(path)
    write_bytes(path, model.SerializeToString())
    return path


class _ScoresAndMaps(nn.Module):
    """The network of the file: images -> scores and class maps."""

    def __init__(self, member: Member, flip: Flip) -> None:
        super().__init__()
        self.member = replace(member, engine=None)
        self.networks = nn.ModuleList(n for n in (self.member.fused, member.segmenter) if n is not None)
        self.flip = flip

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        outputs = self.member.scores_and_maps(*self.member.features(images, self.flip))
        return (outputs.scores, outputs.class_maps) if self.member.has_maps else (outputs.scores,)
