"""Parts made by Ray: the same files, whatever dies."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from tests.scale.conftest import png, shard
from wildcat.cli import main
from wildcat.errors import DataError, RunError
from wildcat.predictor import Predictor, load
from wildcat.scale import scheduler as crew
from wildcat.scale.inputs import find_sources, list_images
from wildcat.scale.ray_backend import RayPool, import_ray
from wildcat.scale.shards import Done, Part, PartFolder, read_part, split_parts
from wildcat.scale.worker import PartMaker, run_parts

ray = pytest.importorskip("ray")


@pytest.fixture(scope="module", autouse=True)
def started() -> Iterator[None]:
    import_ray().init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # tests are not installed where workers run
    yield
    ray.shutdown()


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return shard(tmp_path / "s.tar", {f"{i:03}.png": png(i) if i % 10 else b"no image" for i in range(60)})


def parts_of(images: Path, rows: int = 3) -> Iterator[Part]:
    return split_parts(list_images(find_sources([str(images)])), rows)


def pool(run: Path, maker: PartMaker, workers: int = 2) -> RayPool:
    return RayPool(partial(load, str(run), "cpu"), maker, workers)


def test_the_command_writes_the_files_that_one_process_writes(
    run: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # Ray was started elsewhere
    line = ["predict", str(run), images.name, "--part-rows", "7", "--device", "cpu"]
    assert main([*line, "--out", str(tmp_path / "one")]) == 0
    shutil.copytree(tmp_path / "one", tmp_path / "ray")
    for number in (0, 1, 3, 4, 5, 8):
        (tmp_path / "ray" / f"part-0000{number}.jsonl").unlink()
    assert main([*line, "--out", str(tmp_path / "ray"), "--engine", "ray", "--workers", "2", "--resume"]) == 0
    one = {path.name: path.read_bytes() for path in (tmp_path / "one").glob("part-*")}
    assert len(one) == 9
    assert {path.name: path.read_bytes() for path in (tmp_path / "ray").glob("part-*")} == one


def test_workers_that_are_killed_cost_no_row_and_no_more_than_their_share_is_taken(
    run: Path, images: Path, tmp_path: Path
) -> None:
    folder = PartFolder(tmp_path / "out", {"format": "jsonl"}, resume=False)
    taken = finished = 0

    def counted() -> Iterator[Part]:
        nonlocal taken
        for part in parts_of(images):
            taken += 1
            assert taken - finished <= 2
            yield part

    with pool(run, PartMaker(tmp_path / "out", "jsonl")) as workers:
        pids = workers.processes()

        def heard(done: Done, _: bool) -> None:
            nonlocal finished
            finished += 1
            if finished in (2, 9):
                os.kill(pids.pop(), signal.SIGKILL)

        totals = run_parts(counted(), folder, workers.make_all, heard)
    assert not pids
    assert (totals.parts, totals.rows, totals.failed) == (20, 60, 6)
    rows = [row for path in sorted((tmp_path / "out").glob("part-*")) for row in read_part(path)]
    assert [row["row"] for row in rows] == list(range(60))
    assert [row["image"] for row in rows] == [f"{images}#{i:03}.png" for i in range(60)]


@dataclass(frozen=True)
class Deadly(PartMaker):
    """Part 2 kills whoever makes it."""

    def __call__(self, predictor: Predictor, part: Part, careful: bool = False) -> Done:
        if part.number == 2:
            with (self.folder / "tries").open("a") as file:
                file.write(".")
            os._exit(1)
        return super().__call__(predictor, part, careful)


def test_a_part_that_kills_its_worker_is_named_and_the_others_under_way_are_kept(
    run: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(crew, "RETRIES", 1)
    folder = PartFolder(tmp_path / "out", {"format": "jsonl"}, resume=False)
    with (
        pool(run, Deadly(tmp_path / "out", "jsonl"), 1) as workers,
        pytest.raises(RunError, match=r"part 2 \(.*s\.tar#006\.png and what follows\) could not be made in 2 attempts"),
    ):
        run_parts(parts_of(images), folder, workers.make_all)
    assert (tmp_path / "out" / "tries").read_text() == ".."
    assert sorted(folder.done) == [0, 1]
    assert all(folder.path_of(number).is_file() for number in folder.done)


def test_a_source_that_fails_leaves_what_is_under_way_whole(run: Path, images: Path, tmp_path: Path) -> None:
    folder = PartFolder(tmp_path / "out", {"format": "jsonl"}, resume=False)
    images.write_bytes(images.read_bytes()[:40_000])
    with pool(run, PartMaker(tmp_path / "out", "jsonl"), 1) as workers, pytest.raises(DataError, match="is cut"):
        run_parts(parts_of(images), folder, workers.make_all)
    assert sorted(folder.done) == list(range(len(folder.done)))
    assert len(folder.done) == len(list((tmp_path / "out").glob("part-*"))) > 3
