"""`wildcat predict` from JPEGs on disk to rows on disk, against its network alone on random tensors; the goal is 0.9.

    python benchmarks/predict_throughput.py --run RUN --images FOLDER --out benchmarks/results/predict-throughput.json

Both run in this process, alternately, --rounds times, at each of --sizes: the command (loading the model, listing,
decoding, resizing, network, points, boxes, writing rows; nothing drawn), and `Predictor.forward` on random tensors in
the same batches. The images of the folder are repeated up to --count.

Then the peak memory of a process for --count images and for ten times as many, with a tiny network: the goal is a ratio
of at most 1.05.
"""

from __future__ import annotations

import contextlib
import io
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from script import argument_parser, log, save_result, settings_of

from wildcat.cli import main as wildcat
from wildcat.cli.allocator import keep_freed_memory
from wildcat.config import TrainConfig
from wildcat.data import list_images, open_dataset, write_shapes
from wildcat.fitting.benchmark import time_in_turn
from wildcat.models.run import create_run
from wildcat.predictor import BATCH_SIZE, Predictor, load
from wildcat.reproduce.tables import spread
from wildcat.train.loop import train


def link_images(source: Path, count: int, folder: Path) -> Path:
    """A folder of `count` links to the images of `source`, repeated as needed."""
    found = list_images(source)
    folder.mkdir()
    for i in range(count):
        (folder / f"{i:06d}{found[i % len(found)].suffix}").symlink_to(found[i % len(found)].resolve())
    return folder


def quietly(arguments: list[str]) -> None:
    """Run the command without its output."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        if code := wildcat(arguments):
            raise SystemExit(f"wildcat {' '.join(arguments)} failed with exit code {code}")


def end_to_end(run: str, images: Path, size: int) -> Callable[[], None]:
    def predict() -> None:
        with tempfile.TemporaryDirectory() as folder:
            quietly(["predict", run, str(images), "--sizes", str(size), "--save", "none", "--out", f"{folder}/rows"])

    return predict


def network_alone(predictor: Predictor, count: int) -> Callable[[], None]:
    """`Predictor.forward` on the same random batch, repeated."""
    images = [torch.randn(BATCH_SIZE, 3, m.preprocess.size, m.preprocess.size) for m in predictor.members]

    def run() -> None:
        for start in range(0, count, BATCH_SIZE):
            predictor.forward([x[: count - start] for x in images], modalities=False)

    return run


def compare(run: str, images: Path, count: int, size: int, rounds: int) -> dict[str, Any]:
    """Images per second of both, and the median and range of their ratio over the rounds."""
    runs = {"predict": end_to_end(run, images, size), "network": network_alone(load(run, sizes=(size,)), count)}
    times = time_in_turn(runs, rounds, warmup=1)
    ratios = [network / predict for network, predict in zip(times["network"], times["predict"], strict=True)]
    return {
        "images per second": {name: spread([count / s for s in taken]) for name, taken in times.items()},
        "ratio": round(statistics.median(ratios), 4),
        "lowest": round(min(ratios), 4),
        "highest": round(max(ratios), 4),
    }


# Runs the command and prints the peak memory of its process in kB; the parent cannot measure it (fork copies its own).
MEASURED = """
import re, sys
from pathlib import Path
from wildcat.cli import main
if code := main(sys.argv[1:]):
    raise SystemExit(code)
print(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])
"""


def peak_megabytes(run: Path, images: Path, folder: Path) -> float:
    """Peak resident memory of a process that predicts all images of a folder."""
    line = ["predict", str(run), str(images), "--device", "cpu", "--save", "none", "--out", str(folder)]
    done = subprocess.run([sys.executable, "-c", MEASURED, *line], capture_output=True, text=True, check=True)
    return int(done.stdout.split()[-1]) / 1024


def memory(source: Path, count: int, folder: Path) -> dict[str, float]:
    """Peaks for `count` images and ten times as many."""
    data = open_dataset(write_shapes(folder / "shapes", train=8, val=4, size=(48, 64)))
    config = TrainConfig(backbone="test_resnet", weights="none", image_size=64, epochs=1, batch_size=4, workers=0)
    run = create_run(folder / "tiny", config, data)
    train(run, data)
    peaks = {}
    for number in (count, 10 * count):
        images = link_images(source, number, folder / f"of{number}")
        peaks[f"{number} images"] = round(peak_megabytes(run.folder, images, folder / f"rows{number}"), 1)
        log(number, peaks)
    return peaks | {"ratio": round(peaks[f"{10 * count} images"] / peaks[f"{count} images"], 4)}


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--run", required=True)
    parser.add_argument("--images", type=Path, required=True, help="a folder of images")
    parser.add_argument("--sizes", default="224,448")
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    keep_freed_memory()
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        images = link_images(arguments.images, arguments.count, Path(name) / "images")
        for size in map(int, arguments.sizes.split(",")):
            results[f"{size} px"] = compare(arguments.run, images, arguments.count, size, arguments.rounds)
            log(size, results[f"{size} px"])
        results["peak memory in MB"] = memory(arguments.images, arguments.count, Path(name))
    backbones = [member.model.backbone.name for member in load(arguments.run).members]
    settings = settings_of(arguments, without=("run", "images")) | {"backbones": backbones}
    save_result(arguments, settings, results)


if __name__ == "__main__":
    main()
