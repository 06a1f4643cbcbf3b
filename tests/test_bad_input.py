"""Whatever is wrong with the input: one sentence that names it, what to do, exit code 1 or 2, nothing overwritten."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import wildcat
from tests.conftest import TINY
from wildcat.cli import main
from wildcat.data import write_shapes
from wildcat.errors import RunError
from wildcat.models import run as runs
from wildcat.models.manifest import MANIFEST

LINE = (*TINY, "--epochs", "1")

Refused = Callable[..., str]


pytestmark = pytest.mark.usefixtures("cache")


@pytest.fixture(scope="session")
def shapes(shapes_folder: Path) -> Path:
    """The data that `tiny` was trained on."""
    return shapes_folder


@pytest.fixture
def run(tmp_path: Path, tiny: Path) -> Path:
    """A run folder that a test may damage."""
    return Path(shutil.copytree(tiny, tmp_path / "run"))


@pytest.fixture
def refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Refused:
    """Run a command that must fail: it returns the message, after checking its form and that no file has changed."""

    def contents() -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    def refuse(*arguments: object, names: object, code: int = 1, hint: bool = True) -> str:
        before = contents()
        capsys.readouterr()
        try:
            left = main([str(a) for a in arguments])
        except SystemExit as stop:
            left = int(stop.code or 0)
        told = capsys.readouterr().err
        assert left == code, told
        assert "Traceback" not in told
        said = [line for line in told.splitlines() if line.startswith("wildcat: ")]
        if said:  # not the command line parser's own box
            (sentence,) = said
            assert sentence.endswith((".", "?", ":")), sentence
            assert "\n  " in told.split(sentence)[1] + "\n" or not hint, "no remedy"
            assert len(sentence) < 400
        assert str(names) in told
        assert contents() == before
        return told

    return refuse


def image(path: Path, size: tuple[int, int] = (40, 30), seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), np.uint8)).save(path)
    return path


def classes_in(folder: Path, count: int = 5) -> Path:
    """Two class folders with a few images each."""
    for c, name in enumerate(("cat", "dog")):
        for i in range(count):
            image(folder / name / f"{i}.png", seed=10 * c + i)
    return folder


# --- data -----------------------------------------------------------------------------------------------------------


def test_a_missing_folder(refused: Refused, tmp_path: Path, tiny: Path) -> None:
    classes_in(tmp_path / "pets")
    for command in (["train", "--out", tmp_path / "new", *LINE], ["evaluate", tiny]):
        told = refused(*command, tmp_path / "pest", names=tmp_path / "pest")
        assert "did you mean pets" in told.lower()
    told = refused("predict", tiny, tmp_path / "pest", names=tmp_path / "pest")
    assert f"Did you mean {tmp_path / 'pets'}?" in told


def test_an_empty_class(refused: Refused, tmp_path: Path) -> None:
    (classes_in(tmp_path / "pets") / "fish").mkdir()
    refused("train", tmp_path / "pets", "--out", tmp_path / "new", *LINE, names=tmp_path / "pets" / "fish")


def test_a_folder_that_fits_no_layout(refused: Refused, tmp_path: Path) -> None:
    image(tmp_path / "flat" / "a.png")
    told = refused("train", tmp_path / "flat", "--out", tmp_path / "new", *LINE, names="a.png")
    assert "photos/{cat,dog,...}/*.jpg" in told  # a layout that can be read


def test_a_table_with_an_unknown_column(refused: Refused, tmp_path: Path) -> None:
    image(tmp_path / "a.png")
    (tmp_path / "t.csv").write_text("photo,labels\na.png,cat\n")
    told = refused("train", tmp_path / "t.csv", "--out", tmp_path / "new", *LINE, names="t.csv")
    assert "there is nothing to learn" in told or "holds no images" in told, "the column photo is recognised"
    (tmp_path / "t.csv").write_text("image,cat,size\na.png,1,large\n")
    refused("train", tmp_path / "t.csv", "--out", tmp_path / "new", *LINE, names="'large'")


def test_a_label_that_occurs_once_is_noted_and_learned(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for i in range(12):
        image(tmp_path / f"{i}.png", seed=i)
    rows = [f"{i}.png,{'cat' if i % 2 else 'dog'}{';lynx' if i == 0 else ''}" for i in range(12)]
    (tmp_path / "t.csv").write_text("\n".join(["image,labels", *rows]))
    assert main(["train", str(tmp_path / "t.csv"), "--out", str(tmp_path / "new"), *LINE]) == 0
    assert "Label 'lynx' occurs once." in capsys.readouterr().err
    assert wildcat.load(tmp_path / "new").classes == ("cat", "dog", "lynx")
    assert main(["evaluate", str(tmp_path / "new"), str(tmp_path / "t.csv"), "--json"]) == 0
    ap = json.loads(capsys.readouterr().out)["classification"]["ap"]
    assert ap["lynx"] is None and ap["cat"] is not None  # in train, so nothing to measure on val


@pytest.mark.parametrize(
    ("content", "said"), [(b"", "0 bytes"), (b"<html>404 not found</html>", "is not an image"), (b"\xff\xd8\xff", "")]
)
def test_files_that_are_no_images(
    refused: Refused, tmp_path: Path, tiny: Path, content: bytes, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = classes_in(tmp_path / "pets") / "cat" / "bad.jpg"
    bad.write_bytes(content)
    told = refused("train", tmp_path / "pets", "--out", tmp_path / "new", *LINE, names="bad.jpg")
    assert "1 of 11 images cannot be read" in told and said in told
    assert not (tmp_path / "new").exists()
    assert main(["predict", str(tiny), str(tmp_path / "pets"), "--out", str(tmp_path / "out")]) == 0
    told = capsys.readouterr().err
    assert "1 of 11 images could not be read and were skipped." in told and str(bad) in told
    refused("predict", tiny, bad, names="bad.jpg", hint=False)


def test_a_truncated_image_is_named_and_training_resumes_once_it_is_repaired(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = image(classes_in(tmp_path / "pets") / "cat" / "half.png", (200, 200))
    whole = bad.read_bytes()
    bad.write_bytes(whole[: len(whole) // 2])  # its first bytes are right: found out only when it is read
    line = ["train", str(tmp_path / "pets"), "--out", str(tmp_path / "new")]
    assert main([*line, *LINE]) == 1
    told = capsys.readouterr().err
    assert f"wildcat: {bad} is truncated" in told and "Traceback" not in told
    bad.write_bytes(whole)
    assert main([*line, "--resume"]) == 0
    assert "Writing" in capsys.readouterr().out, "nothing was left of the failed start"


def test_images_of_extreme_shape_work(tmp_path: Path, tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, size in (("dot", (1, 1)), ("wide", (20_000, 50)), ("tall", (3, 900))):
        image(tmp_path / "pets" / "cat" / f"{name}.png", size)
        image(tmp_path / "pets" / "dog" / f"{name}.png", size, seed=1)
    assert main(["train", str(tmp_path / "pets"), "--out", str(tmp_path / "new"), *LINE]) == 0
    out = tmp_path / "out"
    kinds = "overlays,heatmaps,modalities,masks,arrays"
    cats = str(tmp_path / "pets" / "cat")
    assert main(["predict", str(tmp_path / "new"), cats, "--out", str(out), "--save", kinds]) == 0
    for line in (out / "predictions.jsonl").read_text().splitlines():
        row = json.loads(line)
        with Image.open(out / next(iter(row["files"]["overlays"].values()))) as overlay:
            assert overlay.size == (row["width"], row["height"])
        for x, y in row["points"].values():
            assert 0 < x < row["width"] and 0 < y < row["height"]
    assert "skipped" not in capsys.readouterr().err


def test_two_data_sets_that_share_no_class(refused: Refused, tmp_path: Path, tiny: Path) -> None:
    told = refused("evaluate", tiny, classes_in(tmp_path / "pets"), names="have no class in common")
    assert "the model has 'cross'" in told and "the data has 'cat', 'dog'" in told


def test_a_split_that_does_not_exist(refused: Refused, shapes: Path, tiny: Path) -> None:
    for command in ("evaluate", "predict"):
        refused(command, tiny, shapes, "--split", "tset", names="no split 'tset'")
    refused("train", shapes, "--out", "nowhere", "--val-split", "train", *LINE, names="'train'", code=2)


# --- settings -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "names"),
    [
        (["--kmax", "1.5"], "--kmax 1.5: give an int (a count of regions) or a float in (0, 1]"),
        (["--kmax", "0"], "--kmax 0"),
        (["--kmin", "-1"], "--kmin -1"),
        (["--alpha", "nan"], "--alpha nan"),
        (["--alpha", "-0.1"], "--alpha -0.1"),
        (["--backbone", "test_resnett"], "did you mean test_resnet"),
        (["--recipe", "sollar"], "did you mean solar"),
        (["--device", "cuda:99"], "--device cuda:99"),
        (["--device", "gpu"], "--device gpu"),
        (["--device", "meta"], "--device meta"),
        (["--epochs", "0"], "--epochs 0"),
        (["--epochs", "many"], "many"),
        (["--epocs", "3"], "--epochs"),
        (["--pooling", "maximum"], "maximum"),
        (["--image-size", "8"], "--image-size 8"),
        (["--lr", "inf"], "--lr inf"),
        (["--data-option", "task"], "task=multilabel"),
        (["--data-option", "seperator=|"], "seperator"),
        (["--format", "vocc"], "did you mean voc"),
    ],
)
def test_settings_out_of_range(refused: Refused, shapes: Path, tmp_path: Path, flags: list[str], names: str) -> None:
    told = refused("train", shapes, "--out", tmp_path / "new", *LINE, *flags, names="", code=2, hint=False)
    assert names.lower() in told.lower()
    assert not (tmp_path / "new").exists()


def test_an_unknown_class_device_or_kind_of_image(refused: Refused, tmp_path: Path, tiny: Path) -> None:
    a = image(tmp_path / "a.png")
    out = tmp_path / "out"
    line = ("predict", tiny, a, "--out", out, "--classes")
    assert "Did you mean disc?" in refused(*line, "dsc", names="'dsc'", code=2)
    assert "It has: cross, disc" in refused(*line, "x", names="'x'", code=2)
    refused("predict", tiny, a, "--out", out, "--save", "overlay", names="overlay", code=2)
    refused("predict", tiny, a, "--device", "tpu", names="--device tpu", code=2)
    refused("predict", tiny, a, "--batch-size", 0, names="--batch-size 0", code=2, hint=False)
    refused("predict", tiny, names="no images are given", code=2)
    assert not out.exists()


def test_an_unknown_command_or_model(refused: Refused, tmp_path: Path) -> None:
    assert "Did you mean train" in refused("trian", "solar", names="'trian'", code=2)
    assert "Commands are: train" in refused("fly", names="'fly'", code=2)
    a = image(tmp_path / "a.png")
    assert "imagenet-lite0" in refused("predict", "imagenet-lite", a, names="imagenet-lite")
    assert "wildcat train" in refused("predict", tmp_path / "nowhere", a, names="no model folder")
    assert "did you mean resnet50" in refused("backbones", "resnett50", names="'resnett50'", code=2).lower()


# --- run folders ----------------------------------------------------------------------------------------------------


def test_an_output_that_exists(refused: Refused, tmp_path: Path, shapes: Path, run: Path) -> None:
    told = refused("train", shapes, "--out", run, *LINE, names=f"{run} exists and is never overwritten")
    assert "--resume" in told and "run-2" in told
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("precious")
    for out in (tmp_path / "full", tmp_path / "full" / "thesis.txt"):
        assert "--resume" not in refused("train", shapes, "--out", out, *LINE, names=f"{out} exists")
        refused("predict", run, shapes / "JPEGImages", "--out", out, names=f"{out} exists")


def test_resuming_with_other_settings_classes_or_images(
    refused: Refused, tmp_path: Path, shapes: Path, run: Path
) -> None:
    told = refused("train", shapes, "--out", run, "--resume", "--lr", 0.5, "--num-maps", 2, names="--lr 0.001 -> 0.5")
    assert "--num-maps 4 -> 2" in told
    refused("train", classes_in(tmp_path / "pets"), "--out", run, "--resume", "--format", "folder", names="classes")
    other = write_shapes(tmp_path / "other", train=12, val=5, size=(40, 60))
    refused("train", other, "--out", run, "--resume", names="not those")


@pytest.mark.parametrize("part", [0.0, 0.5, 0.999])
def test_half_written_weights(refused: Refused, shapes: Path, run: Path, part: float) -> None:
    weights = run / runs.WEIGHTS
    weights.write_bytes(weights.read_bytes()[: int(part * weights.stat().st_size)])
    for command in (["evaluate", run, shapes], ["predict", run, shapes / "JPEGImages"]):
        refused(*command, names=f"{weights} is damaged or half-written")


@pytest.mark.parametrize("part", [0.0, 0.5, 0.999])
def test_a_half_written_state(refused: Refused, shapes: Path, run: Path, part: float) -> None:
    state = run / runs.STATE
    state.write_bytes(state.read_bytes()[: int(part * state.stat().st_size)])
    refused("train", shapes, "--out", run, "--resume", names=f"{state} is damaged or half-written")
    assert wildcat.load(run).classes  # the best weights are still of use, as the hint says


def test_a_state_that_would_run_code_is_not_opened(refused: Refused, tmp_path: Path, shapes: Path, run: Path) -> None:
    class Harm:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "harm",))

    torch.save({"model": Harm()}, run / runs.STATE)
    refused("train", shapes, "--out", run, "--resume", names="damaged")
    assert not (tmp_path / "harm").exists()


def test_weights_that_cannot_be_read_leave_no_run_behind(refused: Refused, tmp_path: Path, shapes: Path) -> None:
    out = tmp_path / "new"
    refused("train", shapes, "--out", out, *LINE, "--weights", tmp_path / "nosuch.pth", names="nosuch.pth")
    assert not out.exists(), "the same --out can be given again"


def test_a_run_without_weights(refused: Refused, shapes: Path, run: Path) -> None:
    (run / runs.WEIGHTS).unlink()
    assert "--resume" in refused("evaluate", run, shapes, names="training stopped before the first epoch")


def test_weights_of_another_run(refused: Refused, shapes: Path, run: Path) -> None:
    text = (run / runs.CONFIG).read_text()
    (run / runs.CONFIG).write_text(text.replace("num_maps: 4", "num_maps: 2"))
    refused("evaluate", run, shapes, names="does not fit the network of its own config.yaml")


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({"schema": 99}, "layout version 99"),
        ({"schema": None}, "layout version None"),
        ({"classes": []}, "classes"),
        ({"task": "poetry"}, "task"),
        ({"preprocess": {"size": "large", "mean": [0], "std": [1], "interpolation": "bicubic"}}, "preprocess"),
        ({"preprocess": None}, "preprocess"),
    ],
)
def test_a_manifest_of_another_version_or_damaged(
    refused: Refused, shapes: Path, run: Path, change: dict[str, Any], names: str
) -> None:
    manifest = json.loads((run / MANIFEST).read_text())
    (run / MANIFEST).write_text(json.dumps({**manifest, **change}))
    for command in (["evaluate", run, shapes], ["train", shapes, "--out", run, "--resume"]):
        told = refused(*command, names=names)
        assert str(run / MANIFEST) in told


@pytest.mark.parametrize("name", [MANIFEST, runs.CONFIG])
@pytest.mark.parametrize("content", [b"{", b"\xff\xfe\x00", b"[1, 2]", None])
def test_damaged_or_missing_files_of_a_run(
    refused: Refused, shapes: Path, run: Path, name: str, content: bytes | None
) -> None:
    (run / name).write_bytes(content) if content is not None else (run / name).unlink()
    refused("evaluate", run, shapes, names=name, hint=False)


def test_empty_files_of_a_run(refused: Refused, shapes: Path, run: Path) -> None:
    (run / runs.CONFIG).write_bytes(b"")  # an empty YAML file is all defaults: the size of the images tells
    refused("evaluate", run, shapes, names=f"of images of 64 px and {run / runs.CONFIG} of 320: one is damaged")
    (run / MANIFEST).write_bytes(b"")
    refused("evaluate", run, shapes, names=f"{run / MANIFEST} is damaged")


def test_a_damaged_history_is_named_on_resume(refused: Refused, shapes: Path, run: Path) -> None:
    (run / runs.METRICS).write_text('{"epoch": 1, "lo')
    refused("train", shapes, "--out", run, "--resume", names=f"{run / runs.METRICS} is damaged")


# --- disks ----------------------------------------------------------------------------------------------------------


def test_an_output_that_cannot_be_written(refused: Refused, tmp_path: Path, shapes: Path, run: Path) -> None:
    (tmp_path / "file").write_text("a folder cannot be made below a file")
    out = tmp_path / "file" / "out"
    said = refused("train", shapes, "--out", out, *LINE, names=f"{out} cannot be written: Not a directory")
    assert "A part of this path is a file, not a folder; give another path." in said
    curves = tmp_path / "file" / "pr.csv"
    said = refused("evaluate", run, shapes, "--curves", curves, names=f"{curves} cannot be written")
    assert "A part of this path is a file" in said and "images of" not in said, "nothing was computed"
    refused("predict", run, shapes / "JPEGImages", "--out", out, names=f"{out} cannot be written")


def test_a_full_disk_while_training_and_predicting(
    tmp_path: Path, shapes: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("os.fsync", full)  # what each file passes through before it is moved into place
    out = tmp_path / "new"
    assert main(["train", str(shapes), "--out", str(out), *LINE]) == 1
    told = capsys.readouterr().err
    assert "cannot be written: No space left on device." in told and "Traceback" not in told
    assert not [f for f in out.rglob("*") if f.name.startswith(".")]  # no half-written file stays
    assert main(["predict", str(tiny), str(shapes / "JPEGImages"), "--out", str(tmp_path / "out")]) == 1
    told = capsys.readouterr().err
    assert "cannot be written: No space left on device." in told and "Traceback" not in told


def test_a_disk_that_fills_up_later_leaves_the_old_weights(
    tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = Path(shutil.copy(tiny / runs.WEIGHTS, tmp_path))
    before = weights.read_bytes()
    model = wildcat.load(tiny).model
    with torch.no_grad():
        model.transfer.weight.add_(1)

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(RunError, match="No space left on device"):
        runs.save_weights(model, weights)
    assert weights.read_bytes() == before
    assert list(tmp_path.iterdir()) == [weights]


# --- other misuse ---------------------------------------------------------------------------------------------------


def test_a_file_of_weights_is_not_a_model_folder(refused: Refused, tmp_path: Path, run: Path) -> None:
    refused("predict", run / runs.WEIGHTS, image(tmp_path / "a.png"), names="model.safetensors")


def test_masks_of_more_classes_than_a_png_can_hold(refused: Refused, tmp_path: Path) -> None:
    a = image(tmp_path / "a.png")
    told = refused("predict", "imagenet-lite0", a, "--save", "masks", "--out", tmp_path / "o", names="1000", code=2)
    assert "254" in told and not (tmp_path / "o").exists()  # said before the first image


def test_a_file_name_that_is_not_unicode(tmp_path: Path, tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = os.fsdecode(b"caf\xe9.png")  # as old archives leave them on Linux
    try:
        image(tmp_path / "in" / "a.png").rename(tmp_path / "in" / name)
    except OSError:
        pytest.skip("this file system takes Unicode names only")
    assert main(["predict", str(tiny), str(tmp_path / "in"), "--out", str(tmp_path / "out")]) == 0
    row = json.loads((tmp_path / "out" / "predictions.jsonl").read_text(encoding="utf-8"))
    assert Path(row["image"]) == tmp_path / "in" / name


def test_nested_and_linked_class_folders_use_each_image_once(tmp_path: Path, refused: Refused) -> None:
    """A class folder inside a class folder belongs to the outer one; a link to itself does not loop."""
    pets = classes_in(tmp_path / "pets")
    (pets / "cat" / "loop").symlink_to(pets / "cat", target_is_directory=True)
    assert main(["train", str(pets), "--out", str(tmp_path / "new"), *LINE]) == 0
    assert json.loads((tmp_path / "new" / MANIFEST).read_text())["data"]["images"] == {"train": 8, "val": 2}
