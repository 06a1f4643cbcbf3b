"""The readers of untrusted files, one by one; with Atheris, a coverage-guided session on one of them.

    python -m tests.fuzz READER --seconds 120        # pip install atheris; Python 3.11

A session mutates a sound file, guided by which lines of the package it reaches. It ends at once, and shows the content,
where a reader raises anything but an error of our own.
"""

from __future__ import annotations

import argparse
import contextlib
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from wildcat.scale.shards import Shard


@dataclass(frozen=True)
class Reader:
    """A file in the folder that `make_places` fills, and the function that reads it."""

    file: str
    read: Callable[[Path], object]


def read_data(place: Path, *parts: str) -> None:
    """Open a data set and read all of its splits."""
    from wildcat.data import open_dataset

    data = open_dataset(str(place.joinpath(*parts)))
    for split in data.splits:
        data.split(split)


def read_run(place: Path) -> None:
    from wildcat.models.run import open_run

    open_run(place / "run").history()


def read_weights(place: Path) -> None:
    from wildcat.models.run import open_run

    open_run(place / "run").load_model()


def read_state(place: Path) -> None:
    from wildcat.models.run import STATE, load_state

    load_state(place / "run" / STATE)


def read_masks(place: Path) -> None:
    from wildcat.models.calibration import read_calibration
    from wildcat.models.run import open_run

    read_calibration(place / "run", open_run(place / "run").classes)


def read_settings(place: Path) -> None:
    from wildcat.settings import load_recipe

    load_recipe(str(place / "recipe.yaml"))


def read_shards(place: Path) -> None:
    from wildcat.scale.shards import ShardFolder

    ShardFolder(place / "rows", {"format": "jsonl"}, resume=True).read_errors(shard_of_one())


def shard_of_one() -> Shard:
    from wildcat.data.image_ref import ImageLocation
    from wildcat.scale.shards import split_shards

    return next(split_shards([ImageLocation("a.png")], 1))


def read_ensemble(place: Path) -> None:
    from wildcat.models.folder import open_model

    open_model(place / "both")


READERS = {
    "csv": Reader("table/t.csv", lambda place: read_data(place, "table", "t.csv")),
    "voc xml": Reader("shapes/Annotations/000001.xml", lambda place: read_data(place, "shapes")),
    "voc list": Reader("shapes/ImageSets/Main/train.txt", lambda place: read_data(place, "shapes")),
    "coco json": Reader("coco/instances.json", lambda place: read_data(place, "coco", "instances.json")),
    "recipe yaml": Reader("recipe.yaml", read_settings),
    "config.yaml": Reader("run/config.yaml", read_run),
    "model.json": Reader("run/model.json", read_run),
    "metrics.jsonl": Reader("run/metrics.jsonl", read_run),
    "model.safetensors": Reader("run/model.safetensors", read_weights),
    "state.pt": Reader("run/state.pt", read_state),
    "calibration.json": Reader("run/calibration.json", read_masks),
    "ensemble": Reader("both/model.json", read_ensemble),
    "manifest.json": Reader("rows/manifest.json", read_shards),
    "shard-00000.jsonl": Reader("rows/shard-00000.jsonl", read_shards),
}


def make_places(place: Path, trained: Path | None = None) -> None:
    """Write a small valid file for each reader; `trained` is a run folder to copy instead of training one."""
    import json

    from wildcat.cli import main
    from wildcat.config import TrainConfig
    from wildcat.data import write_shapes
    from wildcat.scale.rows import error_row
    from wildcat.scale.shards import ShardFolder
    from wildcat.settings import config_text

    shapes = write_shapes(place / "shapes", train=4, val=2, size=(32, 40))
    names = [path.name for path in sorted((shapes / "JPEGImages").iterdir())]
    for folder in ("table", "coco"):
        (place / folder).symlink_to(shapes / "JPEGImages", target_is_directory=True)
    rows = [f"{name},{'cat;dog' if i % 2 else 'cat'},{'val' if i > 3 else 'train'}" for i, name in enumerate(names)]
    (place / "table" / "t.csv").write_text("\n".join(["image,labels,split", *rows]) + "\n")
    content = {
        "images": [{"id": i, "file_name": name} for i, name in enumerate(names)],
        "annotations": [{"image_id": i, "category_id": 3, "bbox": [1, 2, 3.5, 4]} for i in range(len(names))],
        "categories": [{"id": 3, "name": "cat"}, {"id": 5, "name": "dog"}],
    }
    (place / "coco" / "instances.json").write_text(json.dumps(content))
    (place / "recipe.yaml").write_text(config_text(TrainConfig()))
    run = place / "run"
    if trained is None:
        settings = "--backbone test_resnet --weights none --image-size 32 --workers 0 --device cpu --epochs 1"
        assert main(["train", str(shapes), "--out", str(run), *settings.split()]) == 0
    else:
        shutil.copytree(trained, run)
    assert main(["calibrate", str(run), str(shapes), "--device", "cpu"]) == 0
    assert main(["ensemble", str(run), str(run), "--combine", "average", "--out", str(place / "both")]) == 0
    shard = shard_of_one()
    ShardFolder(place / "rows", {"format": "jsonl"}, resume=False).write(shard, [error_row(*shard.images[0], "broken")])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("reader", choices=READERS)
    parser.add_argument("--seconds", type=int, default=120)
    arguments = parser.parse_args()
    import atheris  # type: ignore[import-not-found]

    with atheris.instrument_imports(include=["wildcat", "yaml", "json", "csv"]):
        pass
    from wildcat.errors import WildcatError

    reader = READERS[arguments.reader]
    place = Path(tempfile.mkdtemp(prefix="wildcat-fuzz-"))
    make_places(place)
    path = place / reader.file
    corpus = place / "corpus"
    corpus.mkdir()
    (corpus / "sound").write_bytes(path.read_bytes())

    def once(content: bytes) -> None:
        path.write_bytes(content)
        with contextlib.suppress(WildcatError):
            reader.read(place)

    limits = [f"-max_total_time={arguments.seconds}", "-timeout=10", "-rss_limit_mb=6000", "-print_final_stats=1"]
    atheris.Setup([sys.argv[0], *limits, str(corpus)], once)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
