"""Training a head of ten thousand classes on up to a million rows of features: time and memory.

    python benchmarks/many_classes.py --out benchmarks/results/many-classes.json

`wildcat.train.loop.train` with the cached features of images replaced by random ones, one place per image, in shards
of the form of the cache; one epoch, exclusive classes. Each number of rows is trained in a process of its own. The
exponent is the slope of log(seconds of the epoch) over log(rows): 1 is linear. Memory beside the labels of single
images must not grow with rows times classes, which would be 10 GB for a byte each.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from safetensors.torch import save_file
from scaling import exponent
from script import argument_parser, log, save_result, settings_of

from wildcat.cli.allocator import keep_freed_memory
from wildcat.config import TrainConfig
from wildcat.data.dataset import DataSet, Sample, one_label
from wildcat.models.run import create_run
from wildcat.train import batches
from wildcat.train.feature_cache import Features
from wildcat.train.loop import train

BACKBONE = "test_resnet"  # for its number of channels alone
SHARD = 10_000  # rows


def random_features(rows: int, channels: int, folder: Path) -> Features:
    """Random features of one place per image, memory-mapped."""
    rng, locations = np.random.default_rng(0), []
    for start in range(0, rows, SHARD):
        shape = (min(SHARD, rows - start), 1, 1, 1, channels)
        shard = np.memmap(folder / f"{start}.f16", np.float16, "w+", shape=shape)
        shard[:] = rng.standard_normal(shape, np.float32)
        locations += [(torch.from_numpy(shard), row) for row in range(shape[0])]
    return Features(tuple(locations), 1, (channels, 1, 1))


def measure(rows: int, classes: int, batch_size: int, folder: Path) -> dict[str, float]:
    """Train for one epoch in this process, with files in a folder."""
    keep_freed_memory()
    names = tuple(f"{i:05d}" for i in range(classes))
    samples = [Sample(str(i), Path("none"), one_label(i % classes, classes)) for i in range(rows)]
    data = DataSet("random", "folder", Path(), names, "multiclass", {"train": lambda: samples})
    weights = folder / "random.safetensors"
    save_file(timm.create_model(BACKBONE).state_dict(), weights)
    config = TrainConfig(
        backbone=BACKBONE,
        weights=str(weights),
        image_size=64,
        num_maps=1,
        tune="head",
        epochs=1,
        batch_size=batch_size,
        val_split="none",
        workers=0,
    )

    def features_instead(backbone: Any, samples: Sequence[Sample], *rest: Any, **settings: Any) -> Features:
        return random_features(len(samples), backbone.num_features, folder)

    batches.cached_features = features_instead
    run = create_run(folder / "run", config, data)
    start = time.perf_counter()
    train(run, data)
    seconds = time.perf_counter() - start
    (record,) = run.history()
    peak = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert peak is not None
    return {"seconds": round(seconds, 2), "epoch_s": record["seconds"], "peak_mb": round(int(peak[1]) / 1024, 1)}


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--rows", default="10000,100000,1000000")
    parser.add_argument("--classes", type=int, default=10_000)
    parser.add_argument("--batch-size", type=int, default=256)
    arguments = parser.parse_args()
    rows = [int(number) for number in arguments.rows.split(",")]
    found: dict[str, dict[str, float]] = {}
    for number in rows:
        code = "import json, pathlib; from many_classes import measure; print(json.dumps(measure("
        code += f"{number}, {arguments.classes}, {arguments.batch_size}, pathlib.Path({{folder!r}}))))"
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-c", code.format(folder=folder)]
            done = subprocess.run(command, cwd=Path(__file__).parent, stdout=subprocess.PIPE, text=True, check=True)
        found[str(number)] = json.loads(done.stdout.splitlines()[-1])
        log(number, found[str(number)])
    slope = exponent(tuple(rows), [row["epoch_s"] for row in found.values()])
    save_result(arguments, settings_of(arguments) | {"backbone": BACKBONE}, {"rows": found, "exponent": slope})


if __name__ == "__main__":
    main()
