"""Engines against plain torch, and heatmaps of all classes against how they are usually made; all timed in turn.

    python benchmarks/engines.py --out benchmarks/results/engines.json
    python benchmarks/engines.py --images VOCdevkit --out benchmarks/results/engines.json    # int8 as well

For each backbone and size, on one batch:
    eager       the network as it is, in evaluation mode, channels last: what 1.0 stands for
    hook CAM    class maps from a forward hook on a plain classifier (Zhou et al., CVPR 2016), eager torch
    GradCAM     pytorch-grad-cam, one call a class (pip install grad-cam; leave it out with --no-gradcam)
    ENGINE      what `wildcat bench` times: scores and class maps of all classes
GradCAM is timed on one image, a call for each of the classes, in fewer rounds of its own beside the fastest engine.
Without --images int8 is calibrated on random images: the same time, no meaning.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import wildcat
from wildcat.cli.allocator import keep_freed_memory
from wildcat.data import open_dataset
from wildcat.data.images import read_image
from wildcat.data.transforms import Preprocess
from wildcat.engines import PRECISIONS, calibrate_int8
from wildcat.engines.onnx_graph import probe
from wildcat.errors import EngineError, MissingExtra
from wildcat.fitting.benchmark import engine_versions
from wildcat.fitting.timing import speedups, time_in_turn
from wildcat.nn.backbones import EMBEDDED
from wildcat.predictor import Member, Predictor
from wildcat.reproduce.record import write_result


class Classifier(nn.Module):
    """What people make heatmaps of: a backbone, average pooling, a linear classifier."""

    def __init__(self, network: nn.Module, features: int, classes: int) -> None:
        super().__init__()
        self.network = network
        self.fc = nn.Linear(features, classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(self.network(images).mean(dim=(2, 3)))


def hook_cam(classifier: Classifier, images: Tensor) -> Callable[[], object]:
    """Scores, and maps of all classes from the features a hook catches."""
    caught: list[Tensor] = []

    def run() -> object:
        # The hook goes with the call: left on the network it would keep the graph of every later pass alive.
        hook = classifier.network.register_forward_hook(lambda _m, _i, output: caught.append(output))
        with hook, torch.inference_mode():
            scores = classifier(images)
            return scores, torch.einsum("bdhw,cd->bchw", caught.pop(), classifier.fc.weight)

    return run


def grad_cam(classifier: Classifier, image: Tensor, classes: int) -> Callable[[], object]:
    """A heatmap of each class by pytorch-grad-cam, as its readme does it."""
    from pytorch_grad_cam import GradCAM  # noqa: PLC0415  # for the comparison only
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget  # noqa: PLC0415

    cam = GradCAM(model=classifier, target_layers=[classifier.network])
    return lambda: [cam(input_tensor=image, targets=[ClassifierOutputTarget(c)]) for c in range(classes)]


def engine_predictors(member: Member, arguments: argparse.Namespace) -> dict[str, Predictor]:
    """A predictor for each engine and precision that runs here."""
    made: dict[str, Predictor] = {}
    names = [f"class {i}" for i in range(arguments.classes)]
    for name, all_of in PRECISIONS.items():
        if name == "compile" and not arguments.compile:
            continue
        for precision in all_of:
            predictor = Predictor("random", [member], names, "multilabel", arguments.device)
            try:
                predictor.use_engine(name, precision)
            except (EngineError, MissingExtra) as error:
                print(f"left out: {name} {precision}: {error.message}", file=sys.stderr)
                continue
            made[f"{name} {precision}"] = predictor
    return made


def calibrate(member: Member, data: str | None, count: int) -> None:
    """Make the int8 graph, with images of a data set or random ones."""
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
    """All alternatives on one backbone at one size."""
    torch.manual_seed(0)
    classes, device = arguments.classes, torch.device(arguments.device)
    model = wildcat.create_model(backbone, num_classes=classes, pretrained=backbone in EMBEDDED).eval()
    own = model.backbone
    member = Member(model, Preprocess(size, own.mean, own.std, own.interpolation))
    if arguments.device == "cpu":
        calibrate(member, arguments.images, arguments.calibration)
    images = probe(size, arguments.batch).to(device).contiguous(memory_format=torch.channels_last)
    eager = Predictor("eager", [member], [str(i) for i in range(classes)], "multilabel", arguments.device)
    engines = engine_predictors(member, arguments)
    classifier = Classifier(own, own.num_features, classes).to(device).eval()
    runs: dict[str, Callable[[], object]] = {"eager": lambda: eager.run([images], modalities=False)}
    runs["hook CAM"] = hook_cam(classifier, images)
    for label, predictor in engines.items():
        runs[label] = lambda predictor=predictor: predictor.run([images], modalities=False)  # type: ignore[misc]
    rows = speedups(time_in_turn(runs, arguments.rounds), "eager", arguments.batch)
    best = max(engines, key=lambda label: rows[label]["speedup"])
    result = {"rows": rows, "best": best, "over_hook_cam": over(rows, best, "hook CAM")}
    if not arguments.no_gradcam:
        one = images[:1]
        pair = {
            "GradCAM": grad_cam(classifier, one, classes),
            "eager": lambda: eager.run([one], modalities=False),
            "best": lambda: engines[best].run([one], modalities=False),
        }
        result["gradcam"] = speedups(time_in_turn(pair, arguments.gradcam_rounds, warmup=1), "GradCAM")
    return result


def over(rows: dict[str, dict[str, Any]], label: str, other: str) -> float:
    """How many times faster one row is than another, by medians."""
    return round(rows[other]["seconds"] / rows[label]["seconds"], 3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbones", default="lite0,lite2")
    parser.add_argument("--sizes", default="224,448")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--classes", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--gradcam-rounds", type=int, default=3)
    parser.add_argument("--no-gradcam", action="store_true")
    parser.add_argument("--images", help="a data set whose training images int8 is calibrated on")
    parser.add_argument("--calibration", type=int, default=64, help="how many of them")
    parser.add_argument("--compile", action="store_true", help="torch.compile too; it takes minutes a network")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    if arguments.device == "cpu":
        keep_freed_memory()
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        os.environ["WILDCAT_CACHE"] = folder  # graphs calibrated here are not left for anybody to use
        for backbone in arguments.backbones.split(","):
            for size in map(int, arguments.sizes.split(",")):
                results[f"{backbone} {size}"] = found = measure(backbone, size, arguments)
                print(backbone, size, found, file=sys.stderr, flush=True)
    settings = {k: v for k, v in vars(arguments).items() if k != "out"}
    if arguments.images:
        settings["images"] = open_dataset(arguments.images).name
    settings["packages"] = engine_versions()
    if not arguments.no_gradcam:
        settings["packages"]["grad-cam"] = importlib.metadata.version("grad-cam")
    best = [row["rows"][row["best"]]["speedup"] for row in results.values()]
    print(f"best engine over eager: {statistics.median(best):.2f} (median of {len(best)})", file=sys.stderr)
    write_result(arguments.out, f"python benchmarks/engines.py --out {arguments.out.name}", settings, results)


if __name__ == "__main__":
    main()
