"""Data sets and settings at the edge: training succeeds, or stops with one sentence and leaves the head usable."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from wildcat.cli import main
from wildcat.config import TrainConfig, Tune
from wildcat.data.dataset import DataSet, Sample, Task
from wildcat.models.run import WEIGHTS, create_run
from wildcat.train.loop import train

TUNES = pytest.mark.parametrize("tune", ["all", "last"])


def write_folders(root: Path, images: Mapping[str, int], side: int = 48, grey: bool = False) -> Path:
    """A folder per class with noise of a brightness of its own."""
    rng = np.random.default_rng(0)
    for brightness, (name, count) in enumerate(images.items()):
        (root / name).mkdir(parents=True)
        for number in range(count):
            noise = rng.integers(0, 150, (side, side + 1) if grey else (side, side + 1, 3)) + 40 * brightness
            Image.fromarray(noise.astype(np.uint8)).save(root / name / f"{number}.png")
    return root


def command(data: Path, out: Path, weights: str, tune: str, *flags: str) -> int:
    settings = [
        "--backbone",
        "test_resnet",
        "--weights",
        weights,
        "--tune",
        tune,
        "--num-maps",
        "2",
        "--batch-size",
        "4",
    ]
    settings += ["--image-size", "64", "--epochs", "1", "--head-epochs", "1", "--workers", "0", "--device", "cpu"]
    return main(["train", str(data), "--out", str(out), *settings, *flags])


def history(run: Path) -> list[str]:
    """The mode of each epoch."""
    return [json.loads(line)["tune"] for line in (run / "metrics.jsonl").read_text().splitlines()]


def scores(run: Path, images: Path, out: Path) -> list[float]:
    assert main(["predict", str(run), str(images), "--out", str(out), "--device", "cpu"]) == 0
    rows = map(json.loads, (out / "predictions.jsonl").read_text().splitlines())
    return [score for row in rows for score in row["scores"].values()]


@TUNES
def test_one_image_of_each_class(tmp_path: Path, weights: str, tune: str, capsys: pytest.CaptureFixture[str]) -> None:
    """There is none to hold out: training says how to do without."""
    data = write_folders(tmp_path / "data", {"a": 1, "b": 1, "c": 1})
    assert command(data, tmp_path / "run", weights, tune) == 1
    assert "or train with --val-split none" in capsys.readouterr().err
    assert command(data, tmp_path / "run", weights, tune, "--val-split", "none") == 0
    assert history(tmp_path / "run") == ["head", tune]


@TUNES
@pytest.mark.parametrize(("side", "grey"), [(48, True), (32, False)])
def test_grey_images_and_small_ones(tmp_path: Path, weights: str, tune: str, side: int, grey: bool) -> None:
    data = write_folders(tmp_path / "data", {"dark": 6, "light": 6}, side, grey)
    run = tmp_path / "run"
    assert command(data, run, weights, tune, "--image-size", str(side), "--augment", "rand") == 0
    assert np.isfinite(scores(run, data, tmp_path / "predicted")).all()


@TUNES
def test_a_batch_of_one_value_per_channel(
    tmp_path: Path, weights: str, tune: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Frozen statistics can be trained with; statistics of one value do not exist, and the head is kept."""
    data = write_folders(tmp_path / "data", {"dark": 4, "light": 4})
    flags = ("--batch-size", "1", "--image-size", "32")  # a map of one cell
    assert command(data, tmp_path / "frozen", weights, tune, *flags) == 0
    capsys.readouterr()
    run = tmp_path / "batch"
    assert command(data, run, weights, tune, *flags, "--no-freeze-bn") == 2
    said = capsys.readouterr().err
    assert "batch normalisation cannot train on a batch of 1 image of this size" in said
    assert "Give --batch-size 2 or more" in said
    assert np.isfinite(scores(run, data, tmp_path / "predicted")).all()
    assert command(data, tmp_path / "two", weights, tune, *flags, "--no-freeze-bn", "--batch-size", "2") == 0


@TUNES
def test_a_loss_that_diverges_when_fine_tuning_begins(
    tmp_path: Path, weights: str, tune: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The sentence names stage, step and remedy; the head predicts, and its remedy leads to a trained network."""
    data = write_folders(tmp_path / "data", {"dark": 6, "light": 6})
    run = tmp_path / "run"
    assert command(data, run, weights, tune, "--backbone-lr-scale", "1e30") == 1
    said = capsys.readouterr().err
    assert "at epoch 2, step 2" in said and f"(--tune {tune})" in said
    assert "Try --lr 0.002, --backbone-lr-scale 1e+29 or a longer --warmup" in said
    assert f"with --weights {run} and another --out: {run} has the head of stage one, usable as it is." in said
    assert history(run) == ["head"]
    head = (run / WEIGHTS).read_bytes()
    assert np.isfinite(scores(run, data, tmp_path / "predicted")).all()

    assert main(["train", str(data), "--out", str(run), "--resume"]) == 1, "the same settings diverge again"
    assert main(["train", str(data), "--out", str(run), "--resume", "--backbone-lr-scale", "0.01"]) == 1
    assert "was begun with other settings: --backbone-lr-scale 1e+30 -> 0.01" in capsys.readouterr().err
    assert (run / WEIGHTS).read_bytes() == head
    assert command(data, tmp_path / "again", str(run), tune) == 0
    assert history(tmp_path / "again") == [tune], "the head is not trained again"


@pytest.mark.parametrize(
    ("tune", "task", "balance"),
    [
        ("head", "multiclass", False),
        ("head", "multilabel", False),
        ("head", "multiclass", True),
        ("head", "multilabel", True),
        ("last", "multiclass", True),
    ],
)
def test_one_image_among_ten_thousand(tmp_path: Path, weights: str, tune: Tune, task: Task, balance: bool) -> None:
    """The rare class begins at its prior, and neither its loss nor its bias diverges."""
    folder = write_folders(tmp_path / "data", {"common": 3, "rare": 1})
    common, rare = (np.array(labels, np.int8) for labels in ([1, -1], [-1, 1]))
    paths = sorted((folder / "common").iterdir())
    samples = [Sample(f"{i}", paths[i % len(paths)], common) for i in range(10_000)]
    samples.append(Sample("rare", folder / "rare" / "0.png", rare))
    data = DataSet("long-tail", "folder", folder, ("common", "rare"), task, {"train": lambda: samples})
    config = TrainConfig(
        backbone="test_resnet",
        weights=weights,
        image_size=32,
        tune=tune,
        head_epochs=1,
        epochs=2,
        batch_size=1024,
        val_split="none",
        workers=0,
        balance=balance,
    )
    run = create_run(tmp_path / "run", config, data)
    assert train(run, data).finished
    losses = [line["loss"] for line in run.history()]
    assert np.isfinite(losses).all() and losses[-1] < 1
    model = run.load_model()
    assert float(model.transfer.bias.detach().abs().max()) < 20
    with torch.no_grad():
        images = torch.stack([run.preprocess(Image.open(s.path).convert("RGB")) for s in (samples[0], samples[-1])])
        scores = model(images)
    assert bool(scores[0].argmax() == 0), "the common class wins on its own images"
