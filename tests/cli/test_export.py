"""`wildcat export`: output, files, skipped images, and errors."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO
from safetensors.torch import load_file, save_file

import wildcat
from tests.cli.conftest import command
from tests.conftest import TINY
from wildcat.config import TrainConfig
from wildcat.data import open_dataset
from wildcat.export import ANNOTATION_FORMATS, InstanceParams, find_instances
from wildcat.models.calibration import write_calibration
from wildcat.models.run import open_run
from wildcat.regions import MaskParams


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> Path:
    folder = Path(shutil.copytree(tiny, tmp_path_factory.mktemp("runs") / "tiny"))
    # One epoch leaves every map negative, and there is nothing to draw: raise some classes, so that masks have regions.
    weights = load_file(folder / "model.safetensors")
    bias = next(key for key in weights if key.endswith("bias") and len(weights[key]) == 5 * TrainConfig().num_maps)
    weights[bias] += torch.tensor([3.0, 0.0, 0.5, 1.0, 2.0]).repeat_interleave(TrainConfig().num_maps)
    save_file(weights, folder / "model.safetensors")
    return folder


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Three images, two of one name, and two files that are none."""
    rng = np.random.default_rng(0)
    (tmp_path / "photos" / "x").mkdir(parents=True)
    for name in ("a.jpg", "x/a.jpg", "b 1.png"):
        Image.fromarray(rng.integers(0, 256, (40, 60, 3), np.uint8)).save(tmp_path / "photos" / name)
    (tmp_path / "photos" / "empty.jpg").touch()
    (tmp_path / "photos" / "z.jpg").write_text("not an image")
    return tmp_path / "photos"


def test_every_format_is_written_and_broken_images_are_named(
    run: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for kind in ANNOTATION_FORMATS:
        out = tmp_path / kind
        assert command("export", run, photos, "--format", kind, "--out", out, "--min-score", 0) == 0
        said = capsys.readouterr()
        assert f"writing {out} as {kind}" in said.out and f"in 3 images: {out}" in said.out
        assert "empty.jpg" in said.err and "z.jpg" in said.err and "2 of 5 images could not be read" in said.err
    coco = COCO(str(tmp_path / "coco" / "annotations.json"))
    assert len(coco.getAnnIds()) >= 3
    assert {i["file_name"] for i in coco.loadImgs(coco.getImgIds())} == {"a.jpg", "x_a.jpg", "b_1.png"}
    for kind in ("coco", "voc"):
        assert open_dataset(str(tmp_path / kind)).format == kind


def test_annotations_match_the_predictor(run: Path, photos: Path, tmp_path: Path) -> None:
    """With a calibration of the run: by rule "constant" its maps, which differ in height, have several regions."""
    run = Path(shutil.copytree(run, tmp_path / "run"))
    fitted = {"data": "shapes", "split": "train", "images": 22, "masks": 0}
    write_calibration(run, open_run(run).classes, MaskParams(rule="constant"), fitted)
    predictor = wildcat.load(run, "cpu", "horizontal")
    prediction = predictor.predict(photos / "a.jpg")
    score = sorted(prediction.class_probs)[1]  # all classes but the least likely
    flags = ("--min-score", score, "--boxes", "largest", "--min-area", 0, "--flip", "horizontal", "--device", "cpu")
    assert command("export", run, photos / "a.jpg", "--format", "coco", "--out", tmp_path / "out", *flags, "--crf") == 0
    expected = find_instances(prediction, InstanceParams(float(score), 0, "largest", crf=True))
    rows = json.loads((tmp_path / "out" / "annotations.json").read_text())["annotations"]
    assert 0 < len(expected) < len(find_instances(prediction, InstanceParams(0, 0)))
    assert [r["category_id"] - 1 for r in rows] == [i.class_index for i in expected]
    assert [r["area"] for r in rows] == [i.area for i in expected]
    assert [r["score"] for r in rows] == pytest.approx([i.score for i in expected], abs=1e-5)


def test_a_split_of_a_data_set_is_a_data_set(
    run: Path, shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ("--split", "val", "--data-format", "voc", "--limit", 4, "--min-score", 0, "--images", "link")
    assert command("export", run, shapes, "--format", "voc", "--out", tmp_path / "out", *flags) == 0
    assert len(open_dataset(str(tmp_path / "out")).split("train")) == 4
    assert all(f.is_symlink() for f in (tmp_path / "out" / "JPEGImages").iterdir())
    again = ("--out", tmp_path / "again", "--epochs", 1, "--val-split", "none")
    assert command("train", tmp_path / "out", *again, *TINY) == 1, "a score of 0 gives all classes to all images"
    assert "there is nothing to learn" in capsys.readouterr().err


def test_the_network_is_exported_as_onnx(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = ("export", run, "--format", "onnx", "--device", "cpu")
    assert command(*line, "--sizes", 96, "--out", tmp_path / "tiny.onnx") == 0
    assert "5 classes, 96 x 96 px" in capsys.readouterr().out
    images = np.random.default_rng(0).normal(size=(3, 3, 96, 96)).astype(np.float32)
    scores, maps = onnxruntime.InferenceSession(tmp_path / "tiny.onnx").run(None, {"images": images})
    expected = wildcat.load(run, "cpu", sizes=(96,)).forward([torch.from_numpy(images)])
    np.testing.assert_allclose(scores, expected.scores, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(maps, expected.class_maps, rtol=1e-3, atol=1e-4)
    assert command(*line, "--with-processing", "--out", tmp_path / "whole.onnx") == 0
    session = onnxruntime.InferenceSession(tmp_path / "whole.onnx")
    image = np.random.default_rng(0).integers(0, 256, (40, 90, 3), dtype=np.uint8)
    (points,) = session.run(["points"], {"image": image})
    expected = wildcat.load(run, "cpu").predict(image)
    np.testing.assert_allclose(points, [expected.points[name] for name in expected.classes], rtol=1e-5)
    (tmp_path / "whole.onnx").unlink()
    for wrong, said in (
        (("--with-processing", "--tile", "512"), "--with-processing excludes --tile 512"),
        (("photo.jpg",), "takes no images, and got photo.jpg"),
        (("--precision", "bf16"), "--engine torch --precision bf16 cannot be used with --format onnx"),
        (("--sizes", "64,96"), "one ONNX file holds one network at one size.\n  Give one of the sizes alone."),
    ):
        assert command(*line, "--out", tmp_path / "x.onnx", *wrong) == 2
        assert said in capsys.readouterr().err
    assert command("export", run, "--format", "coco", "--out", tmp_path / "coco") == 2
    assert "Name images, folders of images, or globs in quotes.\n" in capsys.readouterr().err
    assert [f.name for f in tmp_path.iterdir()] == ["tiny.onnx"]


def test_an_image_without_a_class_has_no_annotation(
    run: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        command("export", run, photos / "a.jpg", "--format", "yolo", "--out", tmp_path / "out", "--min-score", 1) == 0
    )
    assert "0 regions in 1 images" in capsys.readouterr().out
    assert (tmp_path / "out" / "labels" / "a.txt").read_text() == ""


def test_without_readable_images_nothing_is_written(
    run: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("export", run, photos / "z.jpg", "--format", "coco", "--out", tmp_path / "out") == 1
    assert "none of the 1 images could be read" in capsys.readouterr().err
    assert [f.name for f in tmp_path.iterdir()] == ["photos"]


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("--format", "cocoo"), 2, "Did you mean coco?"),
        (("--format", "xml"), 2, "Choose one of: coco, coco-polygons, yolo"),
        (("--format", "coco", "--min-score", "2"), 2, "--min-score 2.0"),
        (("--format", "coco", "--scores"), 2, "Formats with --scores: yolo, yolo-segment."),
        (("--format", "voc", "--simplify", "1"), 2, "--simplify cannot be used with --format voc."),
        (("--format", "yolo-segment", "--simplify", "-1"), 2, "--simplify -1.0"),
        (("--format", "coco", "--with-processing"), 2, "--with-processing cannot be used with --format coco"),
        (("--format", "coco", "--batch-size", "0"), 2, "--batch-size 0"),
    ],
)
def test_misuse_is_one_sentence(
    run: Path,
    photos: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    code: int,
    said: str,
) -> None:
    assert command("export", run, photos, "--out", tmp_path / "out", *arguments) == code
    err = capsys.readouterr().err
    assert said in err and "Traceback" not in err
    assert not (tmp_path / "out").exists()


def test_an_existing_folder_is_not_changed(
    run: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    assert command("export", run, photos, "--format", "coco", "--out", tmp_path / "out") == 1
    assert "never overwritten" in capsys.readouterr().err
    assert [f.name for f in (tmp_path / "out").iterdir()] == ["mine.txt"]


def test_a_thousand_classes_fit_every_format_but_voc(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(photos / "x")
    voc = ("export", "imagenet-lite0", photos / "a.jpg", "--format", "voc", "--out", tmp_path / "voc")
    assert command(*voc) == 2
    assert "1000 classes" in capsys.readouterr().err
    out = tmp_path / "coco"
    assert (
        command("export", "imagenet-lite0", photos / "a.jpg", "--format", "coco", "--out", out, "--min-score", 0.01)
        == 0
    )
    rows = json.loads((out / "annotations.json").read_text())
    assert len(rows["categories"]) == 1000 and rows["annotations"]
