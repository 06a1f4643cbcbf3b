"""Engines against eager torch, and class heatmaps against the usual methods; all measured alternately.

    python benchmarks/engines.py --out benchmarks/results/engines.json
    python benchmarks/engines.py --images VOCdevkit --out benchmarks/results/engines.json    # with calibrated int8

For each backbone and size, on one batch:
    eager       the network in evaluation mode, channels last: the reference (1.0)
    hook CAM    class maps from a forward hook on a plain classifier (Zhou et al., CVPR 2016), eager torch
    GradCAM     pytorch-grad-cam, one call per class (pip install grad-cam; skip it with --no-gradcam)
    ENGINE      scores and class maps of all classes, as `wildcat bench` measures
GradCAM is measured on one image, in fewer rounds, beside the fastest engine. Without --images, int8 is calibrated on
random images: its time is valid, its results are not.
"""

from __future__ import annotations

import argparse
import copy
import importlib.metadata
import os
import statistics
import tempfile
from collections.abc import Callable
from typing import Any

import torch
from script import argument_parser, log, random_predictor, save_result, settings_of
from torch import Tensor, nn

from wildcat.data import open_dataset
from wildcat.data.images import read_image
from wildcat.engines import PRECISIONS, calibrate_int8, fold
from wildcat.engines.onnx_graph import probe
from wildcat.errors import EngineError, MissingExtra
from wildcat.fitting.benchmark import engine_versions, speedups, time_in_turn
from wildcat.models.member import Member
from wildcat.predictor import Predictor


class Classifier(nn.Module):
    """The usual classifier: a backbone, average pooling, a linear layer."""

    def __init__(self, network: nn.Module, features: int, classes: int) -> None:
        super().__init__()
        self.network = network
        self.fc = nn.Linear(features, classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(self.network(images).mean(dim=(2, 3)))


def hook_cam(classifier: Classifier, images: Tensor) -> Callable[[], object]:
    """Scores, and maps of all classes from the features that a hook captures."""
    captured: list[Tensor] = []

    def run() -> object:
        # The hook is removed after the call; otherwise it would keep the graph of every later pass alive.
        hook = classifier.network.register_forward_hook(lambda _m, _i, output: captured.append(output))
        with hook, torch.inference_mode():
            scores = classifier(images)
            return scores, torch.einsum("bdhw,cd->bchw", captured.pop(), classifier.fc.weight)

    return run


def grad_cam(classifier: Classifier, image: Tensor, classes: int) -> Callable[[], object]:
    """A heatmap of each class by pytorch-grad-cam, as in its readme."""
    from pytorch_grad_cam import GradCAM  # noqa: PLC0415  optional
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget  # noqa: PLC0415

    cam = GradCAM(model=classifier, target_layers=[classifier.network])
    return lambda: [cam(input_tensor=image, targets=[ClassifierOutputTarget(c)]) for c in range(classes)]


def engine_predictors(member: Member, arguments: argparse.Namespace) -> dict[str, Predictor]:
    """A predictor for each engine and precision that is available here."""
    predictors: dict[str, Predictor] = {}
    names = [f"class {i}" for i in range(arguments.classes)]
    for name, precisions in PRECISIONS.items():
        if name == "compile" and not arguments.compile:
            continue
        for precision in precisions:
            predictor = Predictor("random", [member], names, "multilabel", arguments.device)
            try:
                predictor.use_engine(name, precision)
            except (EngineError, MissingExtra) as error:
                log(f"skipped: {name} {precision}: {error.message}")
                continue
            predictors[f"{name} {precision}"] = predictor
    return predictors


def calibrate(member: Member, data: str | None, count: int) -> None:
    """Create the int8 graph, calibrated on images of a data set or on random ones."""
    size = member.preprocess.size
    batches: Any
    if data is None:
        batches = (probe(size, 8, seed) for seed in range(2))
    else:
        paths = [s.path for s in open_dataset(data).split("train")]
        chosen = paths[:: max(1, len(paths) // count)][:count]
        batches = (member.preprocess(read_image(path))[None] for path in chosen)
    calibrate_int8(member.model.backbone, size, batches)


def measure(backbone: str, size: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """All alternatives for one backbone at one size."""
    classes, device = arguments.classes, torch.device(arguments.device)
    eager = random_predictor(backbone, size, classes, device=arguments.device)
    own = eager.model.backbone
    folded = copy.deepcopy(eager.model)
    folded.backbone = fold(folded.backbone, size)  # as `wildcat.load` does
    member = Member(folded, eager.preprocess)
    if arguments.device == "cpu":
        calibrate(member, arguments.images, arguments.calibration)
    images = probe(size, arguments.batch).to(device).contiguous(memory_format=torch.channels_last)
    engines = engine_predictors(member, arguments)
    classifier = Classifier(own, own.num_features, classes).to(device).eval()
    runs: dict[str, Callable[[], object]] = {"eager": lambda: eager.forward([images], modalities=False)}
    runs["hook CAM"] = hook_cam(classifier, images)
    for label, predictor in engines.items():
        runs[label] = lambda predictor=predictor: predictor.forward([images], modalities=False)  # type: ignore[misc]
    rows = speedups(time_in_turn(runs, arguments.rounds), "eager", arguments.batch)
    best = max(engines, key=lambda label: rows[label]["speedup"])
    result = {"rows": rows, "best": best, "over_hook_cam": over(rows, best, "hook CAM")}
    if not arguments.no_gradcam:
        one = images[:1]
        pair = {
            "GradCAM": grad_cam(classifier, one, classes),
            "eager": lambda: eager.forward([one], modalities=False),
            "best": lambda: engines[best].forward([one], modalities=False),
        }
        result["gradcam"] = speedups(time_in_turn(pair, arguments.gradcam_rounds, warmup=1), "GradCAM")
    return result


def over(rows: dict[str, dict[str, Any]], label: str, other: str) -> float:
    """Ratio of the median times of two rows."""
    return round(rows[other]["seconds"] / rows[label]["seconds"], 3)


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--backbones", default="lite0,lite2")
    parser.add_argument("--sizes", default="224,448")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--classes", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--gradcam-rounds", type=int, default=3)
    parser.add_argument("--no-gradcam", action="store_true")
    parser.add_argument("--images", help="a data set; its training images calibrate int8")
    parser.add_argument("--calibration", type=int, default=64, help="number of calibration images")
    parser.add_argument("--compile", action="store_true", help="also torch.compile, which takes minutes per network")
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        os.environ["WILDCAT_CACHE"] = folder  # the graphs calibrated here are temporary
        for backbone in arguments.backbones.split(","):
            for size in map(int, arguments.sizes.split(",")):
                results[f"{backbone} {size}"] = row = measure(backbone, size, arguments)
                log(backbone, size, row)
    settings = settings_of(arguments)
    if arguments.images:
        settings["images"] = open_dataset(arguments.images).name
    settings["packages"] = engine_versions()
    if not arguments.no_gradcam:
        settings["packages"]["grad-cam"] = importlib.metadata.version("grad-cam")
    best = [row["rows"][row["best"]]["speedup"] for row in results.values()]
    log(f"best engine over eager: {statistics.median(best):.2f} (median of {len(best)})")
    save_result(arguments, settings, results)


if __name__ == "__main__":
    main()
