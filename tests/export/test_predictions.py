"""PredictionWriter: rows and drawings of each image, unique file names, no overwriting."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from wildcat.errors import ConfigError, RunError
from wildcat.export import predictions
from wildcat.export.predictions import ROWS, SAVE_KINDS, PredictionWriter, draw_modalities, parse_save
from wildcat.prediction import Prediction

CLASSES = ("cat", "dog")


def prediction(width: int = 90, height: int = 40, **changes: Any) -> Prediction:
    """The cat is in the lower right quarter, the dog is absent."""
    maps = np.array([[[-2, -1], [0, 6]], [[-3, -4], [-4, -5]]], np.float32)
    values: dict[str, Any] = {
        "path": "a.png",
        "width": width,
        "height": height,
        "classes": CLASSES,
        "task": "multilabel",
        "class_scores": np.array([2, -3], np.float32),
        "class_maps": maps,
        "modality_maps": np.stack([maps - 1, maps, maps + 1], axis=1),
        "image": Image.new("RGB", (width, height), (0, 0, 80)),
    }
    return Prediction(**{**values, **changes})


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / ROWS).read_text(encoding="utf-8").splitlines()]


def size_of(path: Path) -> tuple[int, int]:
    with Image.open(path) as image:
        return image.size


def files_in(value: Any) -> list[str]:
    """Every path named anywhere in a row's files."""
    if isinstance(value, str):
        return [value]
    return [f for v in (value.values() if isinstance(value, dict) else value) for f in files_in(v)]


def test_every_kind_is_written_in_the_resolution_of_the_image(tmp_path: Path) -> None:
    with PredictionWriter(tmp_path / "out", SAVE_KINDS) as writer:
        returned = writer.add(prediction(), "pets/a.png")
    (row,) = rows_of(tmp_path / "out")
    assert row == json.loads(json.dumps(returned))
    assert {"image", "width", "height", "scores", "labels", "points", "boxes", "files"} <= set(row)
    assert set(row["files"]) == set(SAVE_KINDS) - {"polygons"}, "which need a georeference"
    files = files_in(row["files"])
    assert len(files) == len(set(files))
    for file in files:
        path = tmp_path / "out" / file
        assert path.is_file()
        if path.suffix != ".npz" and not path.stem.endswith("-all"):
            assert size_of(path) == (90, 40)
    assert list(row["files"]["overlays"]) == ["cat"]  # the predicted class
    assert len(row["files"]["modalities"]["cat"]) == 4  # three maps, and all side by side
    with np.load(tmp_path / "out" / row["files"]["arrays"]) as arrays:
        np.testing.assert_array_equal(arrays["scores"], prediction().class_scores)
        np.testing.assert_array_equal(arrays["class_maps"], prediction().class_maps)
        np.testing.assert_array_equal(arrays["modality_maps"], prediction().modality_maps)
    listed = {ROWS, "overview.jpg", *files}
    assert {str(f.relative_to(tmp_path / "out")) for f in (tmp_path / "out").rglob("*") if f.is_file()} == listed


def test_heat_is_drawn_at_high_map_values(tmp_path: Path) -> None:
    with PredictionWriter(tmp_path / "out", ("overlays", "heatmaps", "modalities")) as writer:
        row = writer.add(prediction(600, 300), "a.png")
    assert isinstance(row["files"], dict)
    for file in (
        row["files"]["overlays"]["cat"],
        row["files"]["heatmaps"]["cat"],
        row["files"]["modalities"]["cat"][2],
    ):
        with Image.open(tmp_path / "out" / file) as image:
            pixels = np.asarray(image.convert("RGB")).astype(int)
        hot, cold = pixels[280:, 560:].mean(axis=(0, 1)), pixels[:20, :40].mean(axis=(0, 1))
        assert hot[0] > cold[0] + 100, file  # redder


def test_modalities_share_one_scale(tmp_path: Path) -> None:
    with PredictionWriter(tmp_path / "out", ("modalities",)) as writer:
        row = writer.add(prediction(600, 300), "a.png")
    reds = []
    for file in row["files"]["modalities"]["cat"][:3]:  # type: ignore[index]
        with Image.open(tmp_path / "out" / file) as image:
            reds.append(float(np.asarray(image.convert("RGB"))[280:, 560:, 0].mean()))
    assert reds[0] < reds[1] < reds[2]  # each map is higher than the one before by one


def test_modality_maps_that_are_alike_are_drawn_once(tmp_path: Path) -> None:
    plain = prediction()
    alike = np.stack([plain.class_maps] * 3, axis=1)
    with PredictionWriter(tmp_path / "out", ("modalities",)) as writer:
        row = writer.add(dataclasses.replace(plain, modality_maps=alike), "a.png")
    assert len(row["files"]["modalities"]["cat"]) == 2, "one map, and the image beside it"  # type: ignore[index]
    assert draw_modalities(plain, "cat")[1] == ["cat 1: 0%", "cat 2: 0%", "cat 3: 100%"]
    assert draw_modalities(dataclasses.replace(plain, modality_maps=alike), "cat")[1] == ["cat: 3 maps, all alike"]


def test_given_classes_replace_the_predicted_ones(tmp_path: Path) -> None:
    with PredictionWriter(tmp_path / "out", ("overlays", "heatmaps"), ("dog",)) as writer:
        writer.add(prediction(), "a.png")
    (row,) = rows_of(tmp_path / "out")
    assert [list(row["files"][kind]) for kind in ("overlays", "heatmaps")] == [["dog"], ["dog"]]
    assert row["labels"] == ["cat"]


def test_without_predicted_class_the_most_likely_is_drawn(tmp_path: Path) -> None:
    with PredictionWriter(tmp_path / "out") as writer:
        writer.add(prediction(class_scores=np.array([-2, -1], np.float32)), "a.png")
    (row,) = rows_of(tmp_path / "out")
    assert row["labels"] == [] and list(row["files"]["overlays"]) == ["dog"]


def test_without_kinds_only_rows_are_written(tmp_path: Path) -> None:
    with PredictionWriter(tmp_path / "out", ()) as writer:
        writer.add(prediction(), "a.png")
    assert [f.name for f in (tmp_path / "out").iterdir()] == [ROWS]


# --- names ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "names",
    [
        ["a.jpg", "a.png", "a.jpg"],
        ["x/a.jpg", "y/a.jpg", "a.jpg"],
        ["a.jpg", "a.png", "a-2.jpg", "A.jpg"],
        ["what?.jpg", "what!.jpg", "what_.jpg"],
        ["../../etc/a.jpg", "/etc/a.jpg", "./a.jpg"],
        [".hidden.jpg", "...jpg", " .jpg", "\u4e2d\u6587.jpg", "caf\u00e9 1.jpg", "caf\udce9.jpg", "-rf.jpg"],
        ["n" * 250 + ".jpg", "n" * 250 + ".png"],
        ["a", "a/cat.jpg/b.jpg", "a.npz/b.jpg"],
    ],
)
def test_each_image_has_its_own_files_inside_the_folder(tmp_path: Path, names: list[str]) -> None:
    with PredictionWriter(tmp_path / "out" / "in", ("overlays", "arrays")) as writer:
        for i, name in enumerate(names):
            p = prediction(class_scores=np.array([i + 1, -3], np.float32), path=name)
            writer.add(p, name)
    rows = rows_of(tmp_path / "out" / "in")
    assert [row["image"] for row in rows] == names
    everything = [f.casefold() for row in rows for f in files_in(row["files"])]
    assert len(set(everything)) == len(everything) == 2 * len(names)
    for i, row in enumerate(rows):
        with np.load(tmp_path / "out" / "in" / row["files"]["arrays"]) as arrays:
            assert arrays["scores"][0] == i + 1  # not overwritten by a later one
    assert [f.name for f in (tmp_path / "out").iterdir()] == ["in"]
    assert not list((tmp_path / "out").rglob(".*"))


def test_classes_with_similar_names_have_separate_files(tmp_path: Path) -> None:
    similar = prediction(classes=("a/b", "A b"), class_scores=np.array([2, 3], np.float32))
    with PredictionWriter(tmp_path / "out", ("overlays", "modalities")) as writer:
        writer.add(similar, "a.png")
    (row,) = rows_of(tmp_path / "out")
    files = [f.casefold() for f in files_in(row["files"])]
    assert len(files) == 2 + 8 and len(set(files)) == len(files)


def test_images_larger_than_a_jpeg_allows(tmp_path: Path) -> None:
    with PredictionWriter(tmp_path / "out", SAVE_KINDS) as writer:
        writer.add(prediction(66_000, 3), "wide.png")
    (row,) = rows_of(tmp_path / "out")
    assert size_of(tmp_path / "out" / row["files"]["overlays"]["cat"]) == (66_000, 3)


def test_an_image_of_one_pixel(tmp_path: Path) -> None:
    with PredictionWriter(tmp_path / "out", SAVE_KINDS) as writer:
        writer.add(prediction(1, 1), "dot.png")
    (row,) = rows_of(tmp_path / "out")
    assert row["points"]["cat"] == [0.75, 0.75]
    assert size_of(tmp_path / "out" / row["files"]["heatmaps"]["cat"]) == (1, 1)


# --- failures -------------------------------------------------------------------------------------------------------


def test_a_folder_that_is_not_empty_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    PredictionWriter(tmp_path / "out").__exit__(None, None, None)  # an empty folder is fine
    assert not (tmp_path / "out").exists(), "nothing was predicted: the same folder can be given again"
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "predictions.jsonl").touch()
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(RunError, match="never overwritten") as caught:
        PredictionWriter(tmp_path / "out")
    assert "out-2" in caught.value.hint
    (tmp_path / "file").write_text("mine")
    with pytest.raises(RunError, match="never overwritten"):
        PredictionWriter(tmp_path / "file")
    assert sorted(tmp_path.rglob("*")) == sorted([*before, tmp_path / "file"])


def test_a_folder_that_cannot_be_created(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(RunError, match="cannot be written"):
        PredictionWriter(tmp_path / "file" / "out")


def test_each_row_is_on_disk_at_once(tmp_path: Path) -> None:
    writer = PredictionWriter(tmp_path / "out", ())
    for name in ("a.png", "b.png"):
        writer.add(prediction(path=name), name)
        assert rows_of(tmp_path / "out")[-1]["image"] == name
    writer.rows.close()


def test_a_full_disk_is_one_sentence_for_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(RunError, match="No space left on device"), PredictionWriter(tmp_path / "out") as writer:
        writer.add(prediction(), "a.png")
        monkeypatch.setattr("os.fsync", full)
        writer.add(prediction(), "b.png")
    monkeypatch.undo()
    assert len(rows_of(tmp_path / "out")) == 1
    assert not [f for f in (tmp_path / "out").rglob("*") if "b" in f.name and f.is_file()]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="/dev/full is Linux's disk without space")
def test_a_full_disk_is_one_sentence_for_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predictions, "ROWS", "/dev/full")  # absolute: the folder before it does not count
    with pytest.raises(RunError, match="No space left on device"), PredictionWriter(tmp_path / "out", ()) as writer:
        writer.add(prediction(), "a.png")


def test_parse_save() -> None:
    assert parse_save("overlays, heatmaps,,none") == ("overlays", "heatmaps")
    assert parse_save("none") == parse_save("") == ()
    with pytest.raises(ConfigError, match="--save overlay: unknown") as caught:
        parse_save("heatmaps,overlay")
    assert caught.value.hint == "did you mean overlays?"
    with pytest.raises(ConfigError, match="overlays,heatmaps"):
        parse_save("xyz")
