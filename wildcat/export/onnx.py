"""Export a model as one ONNX file that maps images to scores and class maps."""

from __future__ import annotations

import json
from pathlib import Path

from torch import Tensor, nn

from wildcat._version import __version__
from wildcat.config import Flip
from wildcat.engines.onnx_graph import describe, trace
from wildcat.engines.torch_backend import fold
from wildcat.errors import ConfigError
from wildcat.files import refuse_existing, remove_leftovers, write_bytes, writing
from wildcat.nn.backbones import Backbone
from wildcat.nn.model import Wildcat
from wildcat.nn.segmenter import Segmenter
from wildcat.predictor import Predictor, mean_over_views

OUTPUTS = ("scores", "class_maps")


def export_onnx(predictor: Predictor, path: str | Path) -> Path:
    """Export a predictor's network as ONNX, and verify it against torch on random images.

    Input: `images` (B, 3, S, S) float32, any B: RGB in [0, 1], resized to S x S without cropping, minus `mean`, divided
    by `std`. Outputs: `scores` (B, C), raw, and `class_maps` (B, C, h, w), averaged over flipped views like the
    predictor's. Metadata, as text: `classes`, `mean` and `std` (JSON lists), `size` (S), `interpolation`, `task` (apply
    a sigmoid to the scores if "multilabel", softmax if "multiclass"), `flip`, and `wildcat`, the version.

    Raises:
        ConfigError: the predictor has several networks or sizes; an ONNX graph holds one.
        EngineError: an operation has no ONNX form, or the results differ from torch's; nothing is written.
        MissingExtra: the packages of extra `export` are not installed.
        RunError: the file exists, or cannot be written.
    """
    path = Path(path)
    if len(predictor.members) > 1:
        raise ConfigError(
            f"{predictor.name} runs {len(predictor.members)} networks or sizes; one ONNX file holds one network at one "
            "size.",
            f"Export one at a time: a member of an ensemble ({predictor.name}/members/1), or one of --sizes.",
        )
    if path.suffix != ".onnx":
        raise ConfigError(f"{path} does not end in .onnx.", f"Give a name such as {path.with_suffix('.onnx')}.")
    if path.exists():
        refuse_existing(path)
    preprocess = predictor.preprocess
    plain, segmenter = predictor.model.backbone, predictor.members[0].segmenter
    network, folded = (
        _ScoresAndMaps(predictor.model, backbone, segmenter, predictor.flip)
        for backbone in (plain, fold(plain) if segmenter is None else plain)  # a folded network has no inner levels
    )
    model = trace(folded, preprocess.size, OUTPUTS, network)
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
            "interpolation": preprocess.interpolation,
            "flip": predictor.flip,
        },
    )
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(path)
    write_bytes(path, model.SerializeToString())
    return path


class _ScoresAndMaps(nn.Module):
    """What the file computes: the features once, their scores, and their maps or those of a segmenter."""

    def __init__(self, model: Wildcat, backbone: Backbone, segmenter: Segmenter | None, flip: Flip) -> None:
        super().__init__()
        self.model = model
        self.backbone = backbone
        self.segmenter = segmenter
        self.flip = flip

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features, *refined = mean_over_views(self.look, images, self.flip)
        maps = self.model.class_maps_of(features)
        return self.model.score(features, maps), refined[0] if refined else maps

    def look(self, images: Tensor) -> tuple[Tensor, ...]:
        """(B, D, h, w) features of one view, and the maps of a segmenter."""
        if self.segmenter is None:
            return (self.backbone(images),)
        levels = self.backbone.levels(images)
        return levels[-1], self.segmenter(levels)
