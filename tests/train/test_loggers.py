"""Logs of training: the tools' own readers find what metrics.jsonl says, and the same images in every epoch."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.cli.conftest import command
from tests.conftest import TINY
from wildcat.data.dataset import Sample
from wildcat.models.run import Run
from wildcat.train.loggers import LOGGERS, CsvLogger

pytestmark = pytest.mark.usefixtures("cache")


def trained(folder: Path, data: Path, *flags: object) -> list[dict[str, Any]]:
    """The records of two epochs of training with these flags."""
    assert command("train", data, "--out", folder, "--epochs", 2, *TINY, *flags) == 0
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def test_csv_has_a_row_per_epoch(tmp_path: Path, shapes_folder: Path) -> None:
    records = trained(tmp_path / "run", shapes_folder, "--log", "csv")
    with (tmp_path / "run" / "metrics.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["epoch"]) for row in rows] == [1, 2]
    assert [float(row["loss"]) for row in rows] == [record["loss"] for record in records]
    assert [float(row["val/map"]) for row in rows] == [record["val"]["map"] for record in records]


def test_tensorboard_reads_the_numbers_and_heatmaps(tmp_path: Path, shapes_folder: Path) -> None:
    pytest.importorskip("tensorboard", reason="needs tensorboard (the extra of that name)")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    records = trained(tmp_path / "run", shapes_folder, "--log", "tensorboard", "--log-images", 2)
    log = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    log.Reload()
    assert [(event.step, event.value) for event in log.Scalars("loss")] == [
        (record["epoch"], pytest.approx(record["loss"])) for record in records
    ]
    assert [event.value for event in log.Scalars("val/map")] == pytest.approx([r["val"]["map"] for r in records])
    heatmaps = {tag: [event.step for event in log.Images(tag)] for tag in log.Tags()["images"]}
    assert len(heatmaps) == 2 and set(map(tuple, heatmaps.values())) == {(1, 2)}


def test_mlflow_reads_the_numbers_settings_and_heatmaps(tmp_path: Path, shapes_folder: Path) -> None:
    mlflow = pytest.importorskip("mlflow", reason="needs mlflow-skinny (the extra mlflow)")
    records = trained(tmp_path / "run", shapes_folder, "--log", "mlflow", "--log-images", 1)
    client = mlflow.MlflowClient((tmp_path / "mlruns").as_uri())
    (run,) = client.search_runs([client.get_experiment_by_name("wildcat").experiment_id])
    assert run.info.run_name == "run" and run.info.status == "FINISHED" and run.data.params["backbone"] == "test_resnet"
    assert [(point.step, point.value) for point in client.get_metric_history(run.info.run_id, "loss")] == [
        (record["epoch"], record["loss"]) for record in records
    ]
    (folder,) = client.list_artifacts(run.info.run_id, "heatmaps")
    assert len(client.list_artifacts(run.info.run_id, folder.path)) == 2


def test_wandb_offline_writes_a_run(tmp_path: Path, shapes_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb", reason="needs wandb (the extra of that name)")
    monkeypatch.delenv("WANDB_MODE", raising=False)
    trained(tmp_path / "run", shapes_folder, "--log", "wandb", "--log-images", 1)
    (log,) = (tmp_path / "run" / "wandb").glob("offline-run-*/*.wandb")
    assert log.stat().st_size > 1000
    assert len(list(log.parent.rglob("*.png"))) == 2


def test_heatmaps_are_of_the_labelled_class_whatever_the_order_of_the_classes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for i in range(12):
        Image.new("RGB", (40, 40), (20 * i, 0, 0)).save(tmp_path / f"{i}.png")
    csv = tmp_path / "tags.csv"
    flags = ("--epochs", 1, *TINY, "--separator", "none")
    csv.write_text("image,labels\n" + "".join(f"{i}.png,{'dark' if i < 6 else 'light'}\n" for i in range(12)))
    assert command("train", csv, "--out", tmp_path / "first", *flags, "--classes", "dark,light") == 0
    logged = []

    class Spy(CsvLogger):
        def __init__(self, run: Run, images: Sequence[Sample] = ()) -> None:
            super().__init__(run, images)
            logged.extend((run.classes[int(sample.labels.argmax())], int(sample.path.stem) < 6) for sample in images)

    monkeypatch.setitem(LOGGERS, "csv", Spy)
    line = ("train", csv, *flags, "--log", "csv", "--classes", "light,dark", "--weights", tmp_path / "first")
    assert command(*line, "--out", tmp_path / "second") == 0
    assert logged and all((name == "dark") == dark for name, dark in logged)


@pytest.mark.parametrize(
    ("flags", "code", "message"),
    [
        (("--log", "tensorbord"), 2, "--log tensorbord: there is no such logger."),
        (("--log", "csv", "--log-images", "-1"), 2, "--log-images -1: give at least 0."),
        (("--log", "mlflow"), 1, "pip install 'wildcat-vision[mlflow]'"),
    ],
)
def test_wrong_settings_are_refused_before_anything_is_written(
    tmp_path: Path,
    shapes_folder: Path,
    flags: tuple[str, ...],
    code: int,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)
    assert command("train", shapes_folder, "--out", tmp_path / "run", *TINY, *flags) == code
    assert message in capsys.readouterr().err and not (tmp_path / "run").exists()


def test_a_run_that_failed_before_its_first_save_leaves_no_log(
    tmp_path: Path, shapes_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        (tmp_path / "run" / "tensorboard").mkdir()
        raise MemoryError

    monkeypatch.setattr("wildcat.train.loop.train", fail)
    assert command("train", shapes_folder, "--out", tmp_path / "run", *TINY) == 1
    assert not (tmp_path / "run").exists()
