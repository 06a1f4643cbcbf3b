"""The command line as a user meets it: what is printed where, exit codes, files written, interruption, resumption."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import average_precision_score

import wildcat
from tests.cli.conftest import command
from tests.conftest import TINY
from wildcat.cli import parse
from wildcat.cli.options import note_amp
from wildcat.config import TrainConfig
from wildcat.data import open_dataset
from wildcat.data.dataset import label_matrix
from wildcat.errors import ConfigError
from wildcat.evaluation import evaluate
from wildcat.methods import HEADS, METHODS
from wildcat.models import run as runs
from wildcat.settings import config_text, list_recipes, load_recipe, method_settings, read_config


def subprocess_of(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "wildcat", *map(str, arguments)]
    return subprocess.run(line, capture_output=True, text=True, timeout=300, check=False, **options)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of six images of different sizes, one of them broken, and a text file."""
    folder = tmp_path_factory.mktemp("photos")
    (folder / "x").mkdir()
    rng = np.random.default_rng(0)
    for name, size in {"a.jpg": (90, 60), "a.png": (60, 90), "x/a.jpg": (80, 80), "\u00e9 1.png": (50, 40)}.items():
        Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), np.uint8)).save(folder / name)
    (folder / "empty.jpg").touch()
    (folder / "z.jpg").write_text("not an image")
    (folder / "notes.txt").write_text("no image, and not called one")
    return folder


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "predictions.jsonl").read_text(encoding="utf-8").splitlines()]


# --- the command itself ---------------------------------------------------------------------------------------------


def test_help_answers_in_under_a_second_without_torch() -> None:
    before = os.times()
    answered = subprocess_of("--help")
    after = os.times()  # the processor's time: other work may be going on beside the tests
    assert after.children_user + after.children_system - before.children_user - before.children_system < 1
    assert answered.returncode == 0 and answered.stderr == ""
    for name in ("train", "evaluate", "predict", "datasets", "backbones"):
        assert name in answered.stdout
    listed = "import sys, wildcat.cli; wildcat.cli.parse(['evaluate', 'a', 'b']); print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", listed], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "torchvision", "timm", "numpy", "PIL"} & set(modules)


@pytest.mark.parametrize("name", ["train", "evaluate", "predict", "datasets", "backbones"])
def test_each_command_explains_itself(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(name, "--help") == 0
    text = capsys.readouterr().out
    assert f"wildcat {name}" in text
    assert "STR" not in text.split("options")[0]  # positional arguments are called what they are


def test_the_help_tells_optional_arguments_from_required_ones(capsys: pytest.CaptureFixture[str]) -> None:
    usage = {"methods": "[NAME]", "backbones": "[TEXT]", "datasets": "[NAME]", "export": "[PATH...]", "rank": "PATH..."}
    for name, argument in usage.items():
        assert command(name, "--help") == 0
        text = capsys.readouterr().out
        assert f" {argument}" in text.partition("\n\n")[0] and "(default: )" not in text


def test_without_arguments_the_help_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert command() == 0
    assert "train" in capsys.readouterr().out
    assert command("--version") == 0
    assert capsys.readouterr().out == f"wildcat {wildcat.__version__}\n"


def test_recipes_are_defaults_that_flags_override(tmp_path: Path) -> None:
    for name in list_recipes():
        assert parse(["train", "solar", "--out", "x", "--recipe", name]).config == load_recipe(name)
        config = parse(["train", "solar", f"--recipe={name}", "--out=x", "--epochs", "99"]).config
        assert config.epochs == 99 and config.flip == load_recipe(name).flip
        for amp in (True, False):
            flag = "--amp" if amp else "--no-amp"
            assert parse(["train", "solar", "--out", "x", "--recipe", name, flag]).config.amp is amp
    assert parse(["train", "solar", "--out", "x"]).config == TrainConfig()
    (tmp_path / "mine.yaml").write_text("num_maps: 7\nlr: 0.5\n")
    config = parse(["train", "solar", "--out", "x", "--recipe", str(tmp_path / "mine.yaml"), "--lr", "0.25"]).config
    assert (config.num_maps, config.lr) == (7, 0.25)


@pytest.mark.parametrize("name", METHODS)
def test_a_method_goes_over_the_recipe_and_flags_over_the_method(name: str, tmp_path: Path) -> None:
    line = ["train", "solar", "--out", str(tmp_path / "run")]
    assert parse([*line, "--method", name]).config == replace(TrainConfig(), **method_settings(name))
    (tmp_path / "mine.yaml").write_text("num_maps: 7\nalpha: 0.1\nkmin: 3\nepochs: 5\n")
    over = [*line, f"--method={name}", "--recipe", str(tmp_path / "mine.yaml")]
    assert parse(over).config == replace(TrainConfig(epochs=5), **method_settings(name))
    if name in HEADS:  # which takes the place of the settings below
        return
    flags = parse([*over, "--num-maps", "2", "--epochs", "9", "--architecture", "c", "--temperature", "inf"]).config
    mine = {"num_maps": 2, "architecture": "c", "temperature": math.inf}
    assert flags == replace(TrainConfig(epochs=9), **{**method_settings(name), **mine})


def test_an_unknown_method_is_misuse(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("train", "solar", "--out", tmp_path / "run", "--method", "wilcat") == 2
    assert "there is no method 'wilcat'.\n  Did you mean wildcat" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_the_help_of_train_names_the_methods(capsys: pytest.CaptureFixture[str]) -> None:
    assert command("train", "--help") == 0
    said = " ".join(capsys.readouterr().out.replace("\u2502", " ").split())
    assert ", ".join(METHODS) in said


def test_a_resumed_run_keeps_its_settings(tmp_path: Path) -> None:
    line = ["train", "solar", "--out", str(tmp_path), "--resume"]
    assert parse([*line, "--method", "deepmil"]).config.pooling == "max"  # there is no run yet: start with the method
    (tmp_path / "config.yaml").write_text(config_text(TrainConfig(pooling="attention", num_maps=2)))
    assert parse(line).config == TrainConfig(pooling="attention", num_maps=2)


@pytest.mark.parametrize("flags", [["--method", "deepmil"], ["--recipe", "solar"]])
def test_resuming_with_another_recipe_or_method_is_refused(
    flags: list[str], shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["train", shapes, "--out", tmp_path / "run", *TINY, "--epochs", 1]
    assert command(*line) == 0
    assert command("train", shapes, "--out", tmp_path / "run", "--resume", *flags) == 1
    changed = "pooling wildcat -> max" if "--method" in flags else "backbone test_resnet -> lite0"
    assert changed in capsys.readouterr().err
    assert command(*line, "--resume") == 0  # the settings it has, given again


def test_a_proportion_and_a_count_are_told_apart() -> None:
    def kmax(text: str) -> object:
        return parse(["train", "solar", "--out", "x", "--kmax", text]).config.kmax

    assert kmax("1") == 1 and isinstance(kmax("1"), int)
    assert kmax("1.0") == 1.0 and isinstance(kmax("1.0"), float)
    with pytest.raises(ConfigError, match=r"did you mean 0\.15 or 2"):
        kmax("1.5")


def test_lists_are_for_grep(capsys: pytest.CaptureFixture[str]) -> None:
    assert command("backbones", "lite") == 0
    names = capsys.readouterr().out.splitlines()
    assert names[:3] == ["lite0", "lite1", "lite2"] and all("lite" in n for n in names)
    assert command("datasets") == 0
    assert "solar" in capsys.readouterr().out


def test_a_backbone_is_checked_before_it_is_trained(capsys: pytest.CaptureFixture[str]) -> None:
    assert command("backbones", "--check", "test_convnext", "--image-size", 250, "--output-stride", 16) == 0
    printed = capsys.readouterr().out
    assert "test_convnext: 16 x 16 cells with 64 features at 250 px" in printed
    assert "note: it takes multiples of 16 px: images are resampled to 256 px." in printed
    assert command("backbones", "--check", "pit_ti_224") == 2
    assert "pit_ti_224 gives one vector for each image, not a map" in capsys.readouterr().err
    assert command("backbones", "--check", "test_vit", "--output-stride", 8) == 2
    assert "test_vit has no choice of output stride" in capsys.readouterr().err


def test_amp_says_where_it_computes_in_float32(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("wildcat.device.cpu_has_bf16", lambda: False)
    note_amp(True, torch.device("cpu"))
    expected = "note: this CPU has no bf16 instructions: --amp computes in float32, faster here.\n"
    assert capsys.readouterr().err == expected
    note_amp(False, torch.device("cpu"))
    monkeypatch.setattr("wildcat.device.cpu_has_bf16", lambda: True)
    note_amp(True, torch.device("cpu"))
    assert capsys.readouterr().err == ""


def test_a_reader_that_goes_away_is_no_error() -> None:
    line = f"{sys.executable} -m wildcat datasets | true"
    buffered = {k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"}
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=300, check=False, env=buffered)
    assert done.stdout == "" and done.stderr == ""


# --- train ----------------------------------------------------------------------------------------------------------


def test_training_says_what_it_found_and_what_to_do_next(
    shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "a run"
    assert command("train", shapes, "--out", out, "--epochs", 1, *TINY) == 0
    printed = capsys.readouterr()
    lines = printed.out.splitlines()
    assert lines[0] == (
        "shapes (voc, multilabel): 5 classes, 22 images to train on, 10 to choose the best epoch; device cpu"
    )
    assert f"Writing {out}" in lines[1:]
    assert lines[-1] == f"Next: wildcat evaluate '{out}' {shapes}   or   wildcat predict '{out}' IMAGE --out DIR"
    assert "epoch 1" in printed.err and "epoch" not in lines[0].split(";")[1]
    written = {"config.yaml", "model.json", "model.safetensors", "state.pt", "metrics.jsonl"}
    assert {f.name for f in out.iterdir()} == written
    assert read_config(out / "config.yaml").backbone == "test_resnet"


def test_a_run_that_starts_from_another_has_its_network(shapes: Path, tmp_path: Path) -> None:
    small = ("--image-size", 64, "--workers", 0, "--device", "cpu", "--batch-size", 8, "--epochs", 1)
    first = ("--backbone", "test_resnet", "--weights", "none", "--method", "weldon", *small)
    assert command("train", shapes, "--out", tmp_path / "first", *first) == 0
    line = ("train", shapes, "--recipe", "head", "--weights", tmp_path / "first", *small)
    assert command(*line, "--out", tmp_path / "second") == 0
    config = read_config(tmp_path / "second" / "config.yaml")
    assert (config.backbone, config.pooling, config.num_maps) == ("test_resnet", "weldon", 1)
    assert config.tune == "head", "the rest is that of the recipe"
    assert command(*line, "--out", tmp_path / "third", "--num-maps", 2) == 2, "flags override it, and are refused here"
    again = (
        "train",
        shapes,
        "--recipe",
        tmp_path / "second" / "config.yaml",
        "--kmax",
        0.3,
        "--out",
        tmp_path / "fourth",
    )
    assert command(*again) == 0
    assert read_config(tmp_path / "fourth" / "config.yaml").kmax == 0.3
    assert command(*again[:3], tmp_path / "fourth" / "config.yaml", "--out", tmp_path / "fifth") == 0
    assert read_config(tmp_path / "fifth" / "config.yaml").kmax == 0.3, "a recipe keeps its own settings"


def test_resume_keeps_settings_and_data_options(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for i in range(12):
        Image.new("RGB", (40, 40), (20 * i, 0, 0)).save(tmp_path / f"{i}.png")
    rows = "".join(f"{i}.png,{'dark|small' if i < 6 else 'light'}\n" for i in range(12))
    (tmp_path / "tags.csv").write_text(f"image,labels\n{rows}")
    out = tmp_path / "run"
    data = ("train", tmp_path / "tags.csv", "--out", out)
    assert (
        command(*data, "--separator", "none", "--classes", "light,dark|small", "--format", "csv", "--epochs", 1, *TINY)
        == 0
    )
    before = {f.name: f.read_bytes() for f in out.iterdir()}
    capsys.readouterr()
    assert command(*data, "--resume") == 0
    printed = capsys.readouterr()
    assert f"Continuing {out}" in printed.out and "2 classes" in printed.out
    assert {f.name: f.read_bytes() for f in out.iterdir()} == before  # it was finished


def test_classes_in_another_order_and_data_that_lack_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for i in range(12):
        Image.new("RGB", (40, 40), (20 * i, 0, 0)).save(tmp_path / f"{i}.png")

    def write(name: str, *classes: str) -> Path:
        cells = {"dark": lambda i: i < 6, "red": lambda i: i % 3 == 0, "even": lambda i: i % 2 == 0}
        rows = "".join(f"{i}.png,{','.join(str(int(cells[c](i))) for c in classes)}\n" for i in range(12))
        (tmp_path / name).write_text(f"image,{','.join(classes)}\n{rows}")
        return tmp_path / name

    out = tmp_path / "run"
    data = write("tags.csv", "red", "dark")
    assert command("train", data, "--out", out, "--epochs", 1, *TINY) == 0
    write("tags.csv", "dark", "red")
    capsys.readouterr()
    assert command("train", data, "--out", out, "--resume") == 0
    assert command("evaluate", out, data, "--json", "--device", "cpu") == 0
    lines = capsys.readouterr().out.splitlines()
    history = json.loads((out / "metrics.jsonl").read_text())
    whole = json.loads(lines[-1])["classification"]
    assert whole["map"] == pytest.approx(history["val"]["map"]), "the same images are held out"
    assert (
        command("evaluate", out, write("other.csv", "even", "dark"), "--split", "val", "--json", "--device", "cpu") == 0
    )
    printed = capsys.readouterr()
    result = json.loads(printed.out)
    assert result["classification"]["ap"]["red"] is None
    assert "lacks 'red'" in printed.err and "does not know 'even'" in printed.err
    assert "lacks 'red'" in result["notes"][0] and "does not know 'even'" in result["notes"][1]
    assert command("evaluate", out, tmp_path / "other.csv", "--split", "val", "--device", "cpu") == 0
    printed = capsys.readouterr()
    assert (printed.out + printed.err).count("lacks 'red'") == 1


def test_one_class_is_refused_before_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "photos" / "defect").mkdir(parents=True)
    for i in range(4):
        Image.new("RGB", (40, 40), (20 * i, 0, 0)).save(tmp_path / "photos" / "defect" / f"{i}.png")
    assert command("train", tmp_path / "photos", "--out", tmp_path / "run", *TINY) == 1
    told = capsys.readouterr().err
    assert "same label ('defect'): there is nothing to learn.\n  Add images without it" in told
    assert not (tmp_path / "run").exists()


def test_an_interrupted_training_says_how_to_go_on_and_does(
    shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    flags = ("--epochs", 500, *TINY, "--workers", 1)
    line = [sys.executable, "-m", "wildcat", "train", str(shapes), "--out", str(out), *map(str, flags)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen(line, text=True, start_new_session=True, **pipes)
    try:
        deadline = time.monotonic() + 300
        while not (out / "metrics.jsonl").is_file() and time.monotonic() < deadline:
            time.sleep(0.05)
        assert (out / "metrics.jsonl").is_file()
        os.killpg(process.pid, signal.SIGTERM)  # as `timeout`, Slurm and containers do
        _, told = process.communicate(timeout=300)
    finally:
        process.kill()
    assert process.returncode == 143
    assert "Traceback" not in told and "memory" not in told
    assert f"wildcat train {shapes} --out {out} --resume" in told
    assert "everything is saved" in told
    assert set(wildcat.load(out).classes) == {"cross", "disc", "ring", "square", "triangle"}  # usable as it is
    assert not [f.name for f in out.iterdir() if f.name.startswith(".")]  # no half-written file
    done = len(runs.open_run(out).history())
    assert 1 <= done < 500
    # Shorten it, as a user cannot without another run: the rest is trained by --resume.
    config = (out / "config.yaml").read_text().replace("epochs: 500", f"epochs: {done + 2}")
    (out / "config.yaml").write_text(config)
    assert command("train", shapes, "--out", out, "--resume") == 0
    assert f"Continuing {out}" in capsys.readouterr().out
    assert [line["epoch"] for line in runs.open_run(out).history()] == list(range(1, done + 3))


# --- evaluate -------------------------------------------------------------------------------------------------------


def test_json_is_one_object_with_the_figures_of_the_models_own_scores(
    tiny: Path, shapes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("evaluate", tiny, shapes, "--json", "--ap", "plain", "--device", "cpu") == 0
    printed = capsys.readouterr()
    result = json.loads(printed.out)
    assert printed.out.count("\n") == 1
    assert "shapes (voc, multilabel)" in printed.err
    samples = open_dataset(shapes).split("val")
    predictor = wildcat.load(tiny, device="cpu")
    scores = np.stack([p.class_scores for p in predictor.predict([s.path for s in samples])])
    labels = label_matrix(samples)
    for c, name in enumerate(predictor.classes):
        known = labels[:, c] != 0
        if (labels[:, c] == 1).any():
            expected = average_precision_score(labels[known, c] == 1, scores[known, c])
            assert result["classification"]["ap"][name] == pytest.approx(expected)
        else:
            assert result["classification"]["ap"][name] is None
    values = [v for v in result["classification"]["ap"].values() if v is not None]
    assert result["classification"]["map"] == pytest.approx(np.mean(values))
    assert result["classification"]["variant"] == result["pointing"]["variant"] == "plain"
    assert {"map", "ap"} <= set(result["pointing"])
    assert {"miou", "iou", "threshold"} <= set(result["segmentation"])
    assert result == evaluate(predictor, open_dataset(shapes), "val", "plain")


def test_the_table_has_the_same_figures(
    tiny: Path, shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("evaluate", tiny, shapes, "--json") == 0
    result = json.loads(capsys.readouterr().out)
    curves = tmp_path / "new" / "pr.csv"
    assert command("evaluate", tiny, shapes, "--curves", curves) == 0
    assert curves.read_text().startswith("class,recall,precision,threshold\n")
    text = capsys.readouterr().out
    (disc,) = [line.split() for line in text.splitlines() if line.startswith("disc")]
    expected = [result["classification"]["ap"]["disc"], result["pointing"]["ap"]["disc"]]
    assert disc[1:3] == [f"{100 * v:.1f}" for v in expected]
    assert "voc10" in text and f"{100 * result['segmentation']['miou']:.1f}" in text


def test_what_has_no_ground_truth_is_left_out(
    tiny: Path, shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = ["image,cross,disc,ring,square,triangle"]
    lines += [f"{p},1,0,0,,1" for p in sorted((shapes / "JPEGImages").glob("*.jpg"))[:4]]
    (tmp_path / "tags.csv").write_text("\n".join(lines))
    assert command("evaluate", tiny, tmp_path / "tags.csv", "--split", "all", "--json") == 0
    result = json.loads(capsys.readouterr().out)
    assert set(result) == {"data", "split", "images", "classification", "notes"}
    assert result["notes"] == ["tags lacks 'square': the metrics are over the other 4 classes."]
    assert result["images"] == 4
    assert result["classification"]["ap"] == {"cross": 1.0, "disc": None, "ring": None, "square": None, "triangle": 1.0}
    assert command("evaluate", tiny, tmp_path / "tags.csv", "--split", "all") == 0
    table = capsys.readouterr().out
    assert "point" not in table and "IoU" not in table


def test_errors_of_json_leave_stdout_empty(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        for i in range(5):
            Image.new("RGB", (40, 40)).save(tmp_path / name / f"{i}.png")
    assert command("evaluate", tiny, tmp_path, "--json") == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "have no class in common" in printed.err
    assert "the data has 'cat', 'dog'" in printed.err


# --- predict --------------------------------------------------------------------------------------------------------


def test_a_folder_is_predicted_and_what_cannot_be_read_is_counted(
    tiny: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    kinds = "overlays,heatmaps,modalities,masks,arrays"
    assert command("predict", tiny, photos, "--out", out, "--save", kinds, "--classes", "disc,ring") == 0
    printed = capsys.readouterr()
    assert "2 of 6 images could not be read and were skipped." in printed.err
    assert "empty.jpg is empty (0 bytes)" in printed.err and "z.jpg is not an image" in printed.err
    assert f"4 predictions in {out / 'predictions.jsonl'}" in printed.out
    assert "skipped" not in printed.out
    rows = rows_of(out)
    names = [Path(r["image"]).relative_to(photos).as_posix() for r in rows]
    assert names == ["a.jpg", "a.png", "x/a.jpg", "\u00e9 1.png"]
    predictor = wildcat.load(tiny)
    files = []
    for row in rows:
        assert list(row)[:4] == ["image", "width", "height", "scores"]
        assert {"labels", "points", "boxes", "files"} <= set(row)
        with Image.open(row["image"]) as image:
            size = image.size
        assert (row["width"], row["height"]) == size
        expected = predictor.predict(row["image"])
        assert row["scores"] == pytest.approx(dict(expected.scores), rel=1e-3, abs=1e-4)
        for name, (x, y) in row["points"].items():
            assert (x, y) == pytest.approx(expected.points[name], abs=0.01)
        assert set(row["files"]) == set(kinds.split(","))
        assert list(row["files"]["overlays"]) == ["disc", "ring"]
        images = [*row["files"]["overlays"].values(), *row["files"]["heatmaps"].values(), row["files"]["masks"]]
        images += row["files"]["modalities"]["disc"][:-1]
        for file in images:
            with Image.open(out / file) as made:
                assert made.size == size, file
        files += images
        with np.load(out / row["files"]["arrays"]) as arrays:
            assert arrays["modality_maps"].shape[:2] == (5, 4)
    assert len(set(files)) == len(files)  # images of one name have files of their own


def test_without_out_results_are_printed_only(
    tiny: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert command("predict", tiny, photos / "a.jpg", photos / "\u00e9 1.png") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(": ")[0] for line in lines[1:]] == [str(photos / "a.jpg"), str(photos / "\u00e9 1.png")]
    assert list(tmp_path.iterdir()) == []


def test_exit_code_is_one_where_nothing_could_be_read(
    tiny: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("predict", tiny, photos / "empty.jpg", photos / "z.jpg") == 1
    assert "2 of 2 images could not be read" in capsys.readouterr().err
    assert command("predict", tiny, photos / "empty.jpg", photos / "a.jpg") == 0


def test_files_globs_and_limits(tiny: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("predict", tiny, f"{photos}/**/a.*", photos / "a.jpg", "--out", tmp_path / "glob") == 0
    found = [Path(r["image"]).relative_to(photos).as_posix() for r in rows_of(tmp_path / "glob")]
    assert sorted(found) == ["a.jpg", "a.png", "x/a.jpg"]  # named twice, predicted once
    assert command("predict", tiny, photos, "--limit", 2, "--out", tmp_path / "limit", "--save", "none") == 0
    assert len(rows_of(tmp_path / "limit")) == 2
    assert [f.name for f in (tmp_path / "limit").iterdir()] == ["predictions.jsonl"]


def test_odd_names(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "in [1]"
    folder.mkdir()
    names: list[Any] = [b"caf\xe9.png", "\u4e2d\u6587 \U0001f408.png", "-rf.png", "a..b.png", ".hidden.png", "100%.png"]
    for name in names:
        Image.new("RGB", (40, 30)).save(folder / os.fsdecode(name))
    assert command("predict", tiny, folder, "--out", tmp_path / "folder") == 0
    assert len(rows_of(tmp_path / "folder")) == 5  # the hidden one is for those who name it
    assert {Path(r["image"]) for r in rows_of(tmp_path / "folder")} < set(folder.iterdir())
    monkeypatch.chdir(folder)
    paths = ["../in [1]/.hidden.png", "./-rf.png", "../in [1]/../in [1]/a..b.png"]
    assert command("predict", tiny, *paths, "--out", "../named") == 0
    rows = rows_of(tmp_path / "named")
    assert [r["image"] for r in rows] == [str(Path(p)) for p in paths]
    inside = {f for f in (tmp_path / "named").rglob("*") if f.is_file()}
    assert {tmp_path / "named" / f for r in rows for f in r["files"]["overlays"].values()} < inside
    assert sorted(f.name for f in tmp_path.iterdir()) == ["folder", "in [1]", "named"]


def test_a_split_of_a_data_set(tiny: Path, shapes: Path, tmp_path: Path) -> None:
    assert command("predict", tiny, shapes, "--split", "val", "--out", tmp_path / "out", "--save", "none") == 0
    expected = [str(s.path) for s in open_dataset(shapes).split("val")]
    assert [r["image"] for r in rows_of(tmp_path / "out")] == expected


def test_how_a_data_set_is_read_needs_a_split(
    tiny: Path, shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without one its masks and other files would be taken for images."""
    out = ("--out", tmp_path / "out")
    for line in (
        ("predict", tiny, shapes, "--format", "coco"),
        ("predict", tiny, shapes, "--separator", "|", "--shard-rows", 5, *out),
        ("rank", tiny, shapes, "--data-option", "task=multilabel"),
        ("export", tiny, shapes, "--data-format", "voc", "--format", "coco", *out),
    ):
        assert command(*line) == 2
        said = f"{line[3]} {line[4]} is for a data set, and no split is given.\n  Add --split, such as val."
        assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_split_is_read_as_the_run_has_read_it(
    shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The held-out fifth of another selection of classes holds other images."""
    table = "".join(f"{p},{['ab', 'cd'][i % 2][i // 2 % 2]}\n" for i, p in enumerate(sorted(shapes.rglob("*.jpg"))))
    (tmp_path / "all.csv").write_text(f"image,labels\n{table}")
    line = ("train", tmp_path / "all.csv", "--out", tmp_path / "run", "--epochs", 1, "--classes", "a,c", *TINY)
    assert command(*line) == 0
    out = tmp_path / "out"
    assert (
        command("predict", tmp_path / "run", tmp_path / "all.csv", "--split", "val", "--out", out, "--save", "none")
        == 0
    )
    assert "is read as for" in capsys.readouterr().err
    held_out = open_dataset(tmp_path / "all.csv", classes=["a", "c"]).split("val")
    assert [r["image"] for r in rows_of(out)] == [str(s.path) for s in held_out]


@pytest.mark.parametrize(
    "flags", [("--save", "heatmaps"), ("--top-k", 2), ("--classes", "disc"), ("--crf",), ("--report",)]
)
def test_flags_for_files_need_a_folder(
    tiny: Path, photos: Path, flags: tuple[object, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("predict", tiny, photos, *flags) == 2
    said = capsys.readouterr().err
    assert (
        said
        == f"wildcat: {' '.join(map(str, flags))} is for files, and no folder for them is given.\n  Add --out DIR.\n"
    )


def test_classes_whose_names_hold_commas(tmp_path: Path) -> None:
    """One label of a real collection is "chair, stool": the flag separates with commas and still means it."""
    for name in ("chair, stool", "chair", "table"):
        (tmp_path / "data" / name).mkdir(parents=True)
        for i in range(4):
            Image.new("RGB", (40, 40), (60 * i, 0, 0)).save(tmp_path / "data" / name / f"{i}.png")
    assert command("train", tmp_path / "data", "--out", tmp_path / "run", "--epochs", 1, *TINY) == 0
    image = tmp_path / "data" / "table" / "0.png"
    out = tmp_path / "out"
    assert command("predict", tmp_path / "run", image, "--out", out, "--classes", "table,chair, stool,chair") == 0
    assert list(rows_of(out)[0]["files"]["overlays"]) == ["table", "chair, stool", "chair"]


def test_results_and_progress_go_to_different_streams(
    tiny: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    done = subprocess_of("predict", tiny, photos, "--out", tmp_path / "out", env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0
    assert "4 predictions" in done.stdout and "predicting" not in done.stdout and "skipped" not in done.stdout
    assert "predicting" in done.stderr and "could not be read" in done.stderr and "Traceback" not in done.stderr
    before = (tmp_path / "out" / "predictions.jsonl").read_bytes()
    assert command("predict", tiny, photos, "--out", tmp_path / "out") == 1
    again = capsys.readouterr()
    assert again.out == ""  # it does not say that it will write where it will not
    assert "never overwritten" in again.err
    assert (tmp_path / "out" / "predictions.jsonl").read_bytes() == before


def test_debug_shows_the_traceback() -> None:
    line = ("train", "solar", "--out", "x", "--recipe", "sollar")
    quiet = subprocess_of(*line)
    assert quiet.returncode == 2 and len(quiet.stderr.splitlines()) == 2
    assert quiet.stderr.startswith("wildcat: there is no recipe 'sollar'.\n  Did you mean solar or ")
    loud = subprocess_of(*line, "--debug")
    assert loud.returncode != 0 and "Traceback" in loud.stderr and "ConfigError" in loud.stderr
