"""Figures on several processes equal those on one, whoever predicted what."""

from __future__ import annotations

import contextlib
import io
import json
import pickle
from functools import reduce
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.train.processes import run_processes
from wildcat.cli import main
from wildcat.data import DataSet, open_dataset, write_shapes
from wildcat.errors import ConfigError, DataError, MissingExtra
from wildcat.evaluation import Tally, measure, summarize
from wildcat.predictor import Predictor, load
from wildcat.train.distributed import check_device, gather, process_group, rank, share_of, world_size


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> DataSet:
    return open_dataset(write_shapes(tmp_path_factory.mktemp("data") / "shapes", train=1, val=13, size=(64, 64)))


def test_alone_a_process_has_everything() -> None:
    assert (rank(), world_size(), list(share_of(3)), gather("x")) == (0, 1, [0, 1, 2], ["x"])


def said(arguments: list[str]) -> tuple[int, str]:
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        return main(arguments), out.getvalue()


def test_two_processes_say_what_one_says(tiny: Path, shapes: DataSet, tmp_path: Path) -> None:
    """13 images do not divide by 2: the tail is neither dropped nor counted twice."""
    command = ["evaluate", str(tiny), str(shapes.root), "--json", "--device", "cpu"]
    code, alone = said(command)
    first, second = run_processes(2, tmp_path, said, command, joined=False)
    assert (code, first[0], second) == (0, 0, (0, ""))
    assert json.loads(first[1]) == json.loads(alone)
    assert {"classification", "pointing", "localization", "segmentation"} <= json.loads(alone).keys()


def test_a_process_without_images_does_not_hang_the_others(tiny: Path, shapes: DataSet, tmp_path: Path) -> None:
    """One image on two processes: the second has nothing to predict, and gathers all the same."""
    listing = tmp_path / "one.csv"
    sample = shapes.split("val")[0]
    labels = "|".join(c for i, c in enumerate(shapes.classes) if sample.labels[i] == 1)
    absent = "|".join(c for i, c in enumerate(shapes.classes) if sample.labels[i] != 1)
    other = next(s for s in shapes.split("train"))
    listing.write_text(f"image,labels,split\n{sample.path},{labels},val\n{other.path},{absent},train\n")
    command = ["evaluate", str(tiny), str(listing), "--separator", "|", "--json", "--device", "cpu"]
    first, second = run_processes(2, tmp_path, said, command, joined=False)
    assert first[0] == second[0] == 0 and second[1] == ""
    assert json.loads(first[1])["images"] == 1


@settings(max_examples=20, deadline=None)
@given(owners=st.lists(st.integers(0, 3), min_size=13, max_size=13))
def test_any_partition_gives_the_same_figures(whole: tuple[Predictor, DataSet, Tally], owners: list[int]) -> None:
    _, data, tally = whole
    parts = [
        Tally(
            {i: tally.scores[i] for i, o in enumerate(owners) if o == owner},
            {i: tally.points[i] for i, o in enumerate(owners) if o == owner},
        )
        for owner in range(4)
    ]
    merged = reduce(Tally.merge, parts)
    measures = ("classification", "pointing")
    expected = summarize(Tally(tally.scores, tally.points), data, "val", "voc10", measures=measures)
    assert summarize(merged, data, "val", "voc10", measures=measures) == expected


@pytest.fixture(scope="module")
def whole(tiny: Path, shapes: DataSet) -> tuple[Predictor, DataSet, Tally]:
    predictor = load(tiny, "cpu")
    return predictor, shapes, measure(predictor, shapes, "val")


def test_confusions_add_up_and_no_image_counts_twice() -> None:
    ones = np.ones((2, 2), dtype=np.int64)
    a, b = Tally({0: ones[0]}, {}, ones), Tally({1: ones[0]}, {}, 2 * ones)
    merged = a.merge(b).confusion
    assert merged is not None and merged.tolist() == [[3, 3], [3, 3]]
    with pytest.raises(DataError, match=r"image 0 .* two processes"):
        a.merge(Tally({0: ones[0]}, {}))


def test_a_group_that_cannot_be_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ConfigError, match="torchrun"), process_group():
        pass


def test_restarts_on_several_machines_need_a_store_each(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("WORLD_SIZE", "GROUP_WORLD_SIZE", "TORCHELASTIC_MAX_RESTARTS")
    for name, value in zip((*names, "TORCHELASTIC_USE_AGENT_STORE"), ("4", "2", "3", "True"), strict=True):
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match="hang at the first restart") as caught, process_group():
        pass
    assert "TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1" in caught.value.hint


def test_processes_need_a_device_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wildcat.train.distributed.world_size", lambda: 2)
    monkeypatch.setattr("wildcat.train.distributed.local_size", lambda: 2)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    check_device(torch.device("cpu"))
    for name in ("cuda", "cuda:0", "mps"):
        with pytest.raises(ConfigError, match=f"device={name}: 2 processes of this machine"):
            check_device(torch.device(name))
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    check_device(torch.device("cuda"))


def test_errors_travel_between_processes() -> None:
    for error in (ConfigError("a", "b"), MissingExtra("ray", "ray"), DataError("only this")):
        again = pickle.loads(pickle.dumps(error))
        assert (type(again), str(again)) == (type(error), str(error))
        assert (again.message, again.hint) == (error.message, error.hint)
