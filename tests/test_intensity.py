"""12-bit data in 16-bit files: the range of a run is used wherever its images are read; errors keep their hints."""

from __future__ import annotations

import base64
import io
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.test_predictor import colour_finder
from wildcat.cli.images import predict_each
from wildcat.cli.options import check_readable
from wildcat.config import TrainConfig
from wildcat.curation.page import _table_image
from wildcat.data import open_dataset
from wildcat.data.image_ref import ImageLocation
from wildcat.data.transforms import parse_range
from wildcat.errors import ConfigError, DataError, RunError
from wildcat.models.folder import check_members, open_model
from wildcat.models.run import create_run, open_run
from wildcat.predictor import Predictor
from wildcat.progress import SILENT
from wildcat.reproduce.heads import train_and_evaluate
from wildcat.scale.rows import NumberedImage, predict_rows
from wildcat.serve.uploads import Upload


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    """Values up to 4095 in a 16-bit PNG; `plain.png` beside it holds the same in 8 bits."""
    plain = np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)
    plain[0, 0] = 255
    Image.fromarray(plain).save(tmp_path / "plain.png")
    Image.fromarray(np.round(plain * (4095 / 255)).astype(np.uint16)).save(tmp_path / "scan.png")
    return tmp_path / "scan.png"


def ranged(text: str) -> Predictor:
    predictor = colour_finder()
    members = [
        replace(m, preprocess=replace(m.preprocess, intensity_range=parse_range(text))) for m in predictor.members
    ]
    return Predictor("x", members, predictor.classes, predictor.task, "cpu")


def test_predict_and_serve_read_with_the_range_of_the_model(scan: Path) -> None:
    predictor = ranged("0,4095")
    expected = predictor.predict(scan.with_name("plain.png"))
    found = predictor.predict(scan)
    assert np.array_equal(found.class_scores, expected.class_scores)
    assert found.load_image().tobytes() == expected.load_image().tobytes()  # what is drawn
    uploaded = predictor.predict(Upload(scan.read_bytes(), 10**6))
    assert uploaded.class_scores.tolist() == expected.class_scores.tolist()
    assert predictor.predict(io.BytesIO(scan.read_bytes())).class_scores.tolist() == expected.class_scores.tolist()
    assert not np.allclose(ranged("").predict(scan).class_scores, expected.class_scores)


def test_a_run_keeps_its_range(tmp_path: Path, scan: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / "data" / name).mkdir(parents=True)
        for i in range(5):
            (tmp_path / "data" / name / f"{i}.png").write_bytes(scan.read_bytes())
    config = TrainConfig(backbone="test_resnet", weights="none", image_size=64, intensity_range="0,4095")
    runs = [
        create_run(tmp_path / "1", config, open_dataset(tmp_path / "data")),
        create_run(tmp_path / "2", replace(config, intensity_range=""), open_dataset(tmp_path / "data")),
    ]
    assert open_run(tmp_path / "1").preprocess.intensity_range == (0.0, 4095.0)
    assert runs[1].preprocess.intensity_range is None
    with pytest.raises(RunError, match="different intensity ranges"):
        check_members([open_model(run.folder) for run in runs])


def test_heads_on_cached_features_are_measured_on_images_of_the_range(
    tmp_path: Path, weights: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Float images cannot be read without their range."""
    monkeypatch.setenv("WILDCAT_CACHE", str(tmp_path / "cache"))
    rng = np.random.default_rng(0)
    for i in range(16):
        path = tmp_path / "data" / ("val" if i > 11 else "train") / "ab"[i % 2] / f"{i}.tif"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.random((40, 48), dtype=np.float32) / (1 + i % 2)).save(path)
    config = TrainConfig(backbone="test_resnet", weights=weights, image_size=64, tune="head", val_split="none")
    config = replace(config, intensity_range="0,1", epochs=1, workers=0, device="cpu")
    data = open_dataset(tmp_path / "data")
    found = train_and_evaluate(data, config, "val", SILENT, (), "linear", ("classification",))
    assert 0 <= found["classification"]["accuracy"] <= 1
    url = _table_image(data.split("val")[0], config).src
    shown = Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2])))
    assert np.asarray(shown).max() > 200


@pytest.mark.parametrize("text", ["4095", "5,5", "9,1", "a,b", "0,inf", "1,2,3"])
def test_wrong_ranges(text: str) -> None:
    with pytest.raises(ConfigError, match=f"--intensity-range {text}: give two numbers"):
        parse_range(text)


def test_dark_images_are_noted(scan: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = [scan.with_name("plain.png"), scan]
    check_readable(images)
    said = capsys.readouterr().err
    assert said.startswith("note: the 16-bit images reach 4,095 of 65,535 (12 bits)")
    assert said.endswith("add --intensity-range 0,4095.\n")
    check_readable(images, "0,4095")
    check_readable(images[:1])
    assert capsys.readouterr().err == ""


def test_errors_of_single_images_keep_their_hint(
    tmp_path: Path, scan: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    (tmp_path / "a.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(64))
    images = [tmp_path / "a.heic", scan]
    found = list(predict_each(colour_finder(), [(path, path.name) for path in images], "predicting", False, 8))
    assert [name for _, name in found] == ["scan.png"]
    said = capsys.readouterr().err
    assert f"skipped {tmp_path / 'a.heic'} is HEIC, which cannot be read: pillow-heif is not installed. Type" in said
    assert "train the model with --intensity-range 0,4095" in said
    rows = list(predict_rows(colour_finder(), [NumberedImage(0, ImageLocation(str(images[0])))]))
    assert rows[0].error.endswith("Type: pip install 'wildcat-vision[heif]'")
    with pytest.raises(DataError, match=r"1 of 2 images cannot be read: a\.heic is HEIC") as caught:
        check_readable(images)
    assert caught.value.hint.endswith("Type: pip install 'wildcat-vision[heif]'")
