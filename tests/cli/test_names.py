"""File names of every kind go through training, cached features, prediction and export."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.cli.conftest import command
from tests.conftest import TINY
from wildcat.data import open_dataset
from wildcat.data.transforms import Preprocess
from wildcat.nn.backbones import create_backbone
from wildcat.train.feature_cache import cached_features

NAMES = (b"caf\xe9.png", b"-dash.png", b"a[1].png", b"new\nline.png", b" space .png", b"cafe\xcc\x81.png")
NAMES += (b"caf\xc3\xa9.png", b"x" * 240 + b".png", b"{a,b}.png", b"*.png", b"esc\x1b[31m.png")

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="file names are bytes on Linux alone")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("photos [1] {a,b}")
    for name, colour in ((b"bo\xeete", "red"), (b"cat", "blue")):
        (root / os.fsdecode(name)).mkdir()
        for file in NAMES:
            Image.new("RGB", (64, 64), colour).save(root / os.fsdecode(name) / os.fsdecode(file))
    return root


def test_names_of_every_kind(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, out = tmp_path / "run [1]", tmp_path / "out"
    assert command("train", folder, "--out", run, "--epochs", 1, *TINY) == 0
    assert "The name of the class folder 'bo\u00eete' is not UTF-8 and is read as Latin-1." in capsys.readouterr().err
    assert (
        command("predict", run, folder, "--out", out, "--save", "overlays,arrays", "--report", "--device", "cpu") == 0
    )
    rows = [json.loads(line) for line in (out / "predictions.jsonl").read_bytes().splitlines()]
    assert sorted(os.fsencode(Path(row["image"]).name) for row in rows) == sorted(2 * NAMES)
    files = [name for row in rows for name in [row["files"]["arrays"], *row["files"]["overlays"].values()]]
    assert len(set(files)) == 2 * len(rows)
    assert all((out / name).is_file() for name in files)
    assert rows[0]["scores"].keys() == {"bo\u00eete", "cat"}
    for name in ("a[1].png", "*.png", "{a,b}.png", "new\nline.png"):
        capsys.readouterr()
        assert command("predict", run, folder / "cat" / name, "--device", "cpu") == 0
        said = capsys.readouterr()
        assert "1 images" in said.out
        assert name.replace("\n", r"\n") in said.out + said.err
    assert command("export", run, folder, "--format", "coco", "--out", tmp_path / "coco", "--device", "cpu") == 0
    assert len(list((tmp_path / "coco" / "images").iterdir())) == len(rows)


def test_features_of_names_that_are_not_unicode_are_cached(folder: Path, tmp_path: Path) -> None:
    samples = open_dataset(folder).split("all")
    preprocess = Preprocess(64, (0.0,) * 3, (1.0,) * 3)
    backbone = create_backbone("test_resnet", "none", 32, 64).eval()
    first = cached_features(backbone, samples, preprocess, "none", tmp_path)
    again = cached_features(backbone, samples, preprocess, "none", tmp_path)
    indices = range(len(samples))
    assert np.array_equal(first.batch(indices), again.batch(indices))
