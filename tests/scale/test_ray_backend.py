"""Prediction with Ray Data: the files of one process, whatever dies."""

from __future__ import annotations

import ctypes
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.killing import record, soak_kills
from tests.scale.conftest import png, shard
from wildcat.cli import main
from wildcat.data.image_ref import ImageLocation
from wildcat.errors import DataError, ImageError, RunError
from wildcat.predictor import Predictor, load
from wildcat.scale import ray_backend
from wildcat.scale.inputs import find_sources, image_locations
from wildcat.scale.ray_backend import RayOptions, Worker, import_ray, predict_with_ray
from wildcat.scale.rows import NumberedImage, read_rows
from wildcat.scale.shards import Shard, ShardFolder, split_shards, write_shards

ray = pytest.importorskip("ray")
pa = pytest.importorskip("pyarrow")
REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def started() -> Iterator[None]:
    import_ray().init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import the tests
    yield
    ray.shutdown()


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return shard(tmp_path / "s.tar", {f"{i:03}.png": png(i) if i % 10 else b"no image" for i in range(60)})


def names(images: Path) -> list[str]:
    return [f"{images}#{i:03}.png" for i in range(60)]


def shards_of(images: Path, rows: int = 3) -> Iterator[Shard]:
    return split_shards(image_locations(find_sources([str(images)])), rows)


def rows_in(out: Path) -> list[dict[str, Any]]:
    return [row for path in sorted(out.glob("shard-*")) for row in read_rows(path)]


# --- a worker, without Ray --------------------------------------------------------------------------------------------


class LonelyWorker(Worker):
    """A worker before which others died in every task and image."""

    deaths = 0

    def __init__(self, load: Any) -> None:
        self.options, self.predictor, self.deadly = RayOptions(load, 1), None, 0

    def start(self, key: str) -> int:
        return 1 + self.deaths

    def finish(self, key: str) -> None:
        pass


def test_images_that_always_end_their_worker_get_error_rows(tiny: Path, tmp_path: Path) -> None:
    worker = LonelyWorker(partial(load, str(tiny), "cpu"))
    images = [NumberedImage(i, ImageLocation(str(tmp_path / f"{i}.png"))) for i in range(3)]
    (tmp_path / "0.png").write_bytes(png(0))
    in_batch = worker.predict_task(images)
    worker.deaths = 1
    alone = worker.predict_task(images)
    assert [row.error for row in in_batch] == [row.error for row in alone]
    assert alone[0].error == "" and "1.png does not exist" in alone[1].error
    worker.deaths = ray_backend.IMAGE_ATTEMPTS
    first, second = worker.predict_task(images[:2])
    assert first.number == 0 and first.error == f"{tmp_path}/0.png ended the process that read it."
    assert second.number == 1 and "1.png ended" in second.error
    with pytest.raises(RunError, match=r"the workers die on every image, such as .*2\.png"):
        worker.predict_task(images[2:])


def test_errors_of_a_worker_reach_the_driver(tiny: Path, images: Path, tmp_path: Path) -> None:
    tables = ray_backend._task_tables(list(shards_of(images, rows=25)), batch_size=8)
    assert len(tables) == 3
    with pytest.raises(RunError, match="there is no model folder"):
        list(ray_backend._rows_of([LonelyWorker(partial(load, str(tmp_path / "none"), "cpu"))(tables[0])]))
    worker = LonelyWorker(partial(load, str(tiny), "cpu"))
    assert [row.number for row in ray_backend._rows_of(map(worker, tables))] == list(range(60))
    images.unlink()
    with pytest.raises(DataError, match=r"s\.tar cannot be read") as caught:
        list(ray_backend._rows_of([worker(tables[0])]))
    assert not isinstance(caught.value, ImageError)
    worker.predictor = None
    worker.options = RayOptions(lambda: 1 / 0, 1)  # type: ignore[arg-type,return-value]
    with pytest.raises(RuntimeError, match="ZeroDivisionError"):
        list(ray_backend._rows_of([worker(tables[0])]))


def test_what_is_listed_before_an_error_of_the_sources_is_predicted(images: Path) -> None:
    images.write_bytes(images.read_bytes()[:40_000])
    chunks = []
    with pytest.raises(DataError, match="is cut"):
        chunks.extend(ray_backend._chunks(shards_of(images)))
    (chunk,) = chunks
    assert [shard.number for shard in chunk] == list(range(len(chunk))) and len(chunk) > 3


def test_a_stop_while_ray_starts_is_an_interruption(
    tiny: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def init(**_: Any) -> None:
        signal.signal(signal.SIGTERM, lambda number, _: sys.exit(number))  # as Ray does
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", init)
    line = ["predict", str(tiny), str(images), "--out", str(tmp_path / "out"), "--engine", "ray", "--device", "cpu"]
    assert main(line) == 143
    assert "wildcat: interrupted. Nothing was written: give the same command again." in capsys.readouterr().err


# --- with Ray ---------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("started")
def test_the_command_writes_the_files_of_one_process_and_resumes_them(
    tiny: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)  # Ray was started in another folder
    monkeypatch.setattr(ray_backend, "TASK_IMAGES", 7)
    line = ["predict", str(tiny), images.name, "--shard-rows", "10", "--device", "cpu", "--batch-size", "3"]
    assert main([*line, "--out", str(tmp_path / "one")]) == 0
    shutil.copytree(tmp_path / "one", tmp_path / "ray")
    for number in (0, 1, 3, 5):
        (tmp_path / "ray" / f"shard-0000{number}.jsonl").unlink()
    capsys.readouterr()
    assert main([*line, "--out", str(tmp_path / "ray"), "--engine", "ray", "--workers", "2", "--resume"]) == 0
    output = capsys.readouterr()
    assert "60 rows in 6 shards" in output.out and "6 of 60 images could not be read" in output.err
    one = {path.name: path.read_bytes() for path in (tmp_path / "one").glob("shard-*")}
    assert len(one) == 6
    assert {path.name: path.read_bytes() for path in (tmp_path / "ray").glob("shard-*")} == one


def load_deadly(run: str, folder: str) -> Predictor:
    """A predictor whose process crashes on image 037.png, and is killed when it first reads image 005.png."""
    predictor = load(run, "cpu")
    prepare = predictor.prepare

    def deadly(image: Any) -> Any:
        if image.name.endswith("037.png"):
            ctypes.string_at(0)  # a segmentation fault
        if image.name.endswith("005.png") and not Path(folder, "killed").exists():
            Path(folder, "killed").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return prepare(image)

    predictor.prepare = deadly  # type: ignore[method-assign]
    return predictor


@pytest.mark.usefixtures("started")
def test_dead_workers_are_restarted_and_every_image_has_one_row(
    tiny: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_backend, "TASK_IMAGES", 4)
    folder = ShardFolder(tmp_path / "out", {"format": "jsonl"}, resume=False)
    options = RayOptions(partial(load_deadly, str(tiny), str(tmp_path)), 2)
    summary = write_shards(shards_of(images), folder, partial(predict_with_ray, options=options))
    assert (tmp_path / "killed").exists()
    assert (summary.shards, summary.rows, summary.failed) == (20, 60, 7)
    rows = rows_in(tmp_path / "out")
    assert [row["image"] for row in rows] == names(images) and [row["row"] for row in rows] == list(range(60))
    assert rows[37]["error"] == f"{images}#037.png ended the process that read it."
    assert [row["row"] for row in rows if "error" in row] == [0, 10, 20, 30, 37, 40, 50]


@pytest.mark.usefixtures("started")
def test_a_killed_driver_resumes_to_one_row_per_image(tiny: Path, images: Path, tmp_path: Path) -> None:
    kills, moments = soak_kills("RAY_KILLS", 1), random.Random(0)
    out = tmp_path / "out"
    line = ["predict", str(tiny), str(images), "--out", str(out), "--shard-rows", "1", "--device", "cpu", "--resume"]
    for _ in range(kills):
        before = len(rows_in(out))
        driver = subprocess.Popen(
            [sys.executable, "-c", SLOW_COMMAND, *line, "--engine", "ray", "--workers", "1"],
            env={**os.environ, "PYTHONPATH": str(REPOSITORY), "RAY_ADDRESS": ray.get_runtime_context().gcs_address},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        while driver.poll() is None and len(rows_in(out)) == before:
            time.sleep(0.05)
        time.sleep(moments.uniform(0, 0.5))
        driver.kill()
        assert driver.wait() == -signal.SIGKILL
        assert before < len(rows_in(out)) < 60
    assert main(line) == 0
    rows = rows_in(out)
    assert [row["image"] for row in rows] == names(images) and [row["row"] for row in rows] == list(range(60))
    record("prediction with Ray", kills=kills, rows=len(rows), missing=0, twice=0)


SLOW_COMMAND = """
import sys, time
from wildcat.cli import main
from wildcat.scale import shards
write = shards.ShardFolder.write
shards.ShardFolder.write = lambda *arguments: (time.sleep(0.1), write(*arguments))[1]
sys.exit(main(sys.argv[1:]))
"""
