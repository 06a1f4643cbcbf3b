"""The paper's experiments on tiny data: every cell runs once, with the paper's numbers in the tables."""

from __future__ import annotations

import csv
import dataclasses
import json
import os
import shutil
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.train.processes import run_processes
from wildcat.cli import main, parse
from wildcat.config import TrainConfig
from wildcat.data import DataSet, Sample, open_dataset, write_shapes
from wildcat.data.cache import claim
from wildcat.data.readers.scene15 import SCENE_CLASSES
from wildcat.errors import ConfigError, DataError, RunError
from wildcat.progress import SILENT
from wildcat.reproduce import experiments
from wildcat.reproduce import runner as module
from wildcat.reproduce.experiments import EXPERIMENTS, Row, find_experiment
from wildcat.reproduce.runner import Plan, cell_spec, check_plan, needs, plan_flags, protocol, run_cells, summary_path
from wildcat.reproduce.tables import markdown
from wildcat.settings import load_recipe, method_settings

SMALL: dict[str, Any] = {"backbone": "lite0", "image_size": 64, "epochs": 1, "workers": 0, "device": "cpu"}
CONFIG = dataclasses.replace(load_recipe("reproduce"), **SMALL)


pytestmark = pytest.mark.usefixtures("cache")


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> DataSet:
    return open_dataset(write_shapes(tmp_path_factory.mktemp("data") / "shapes", train=12, val=8, size=(64, 64)))


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Table 7 with its first and last row only."""
    experiment = EXPERIMENTS["table7"]
    monkeypatch.setitem(EXPERIMENTS, "table7", dataclasses.replace(experiment, rows=experiment.rows[::4]))


PLAN = Plan("table7", CONFIG, seeds=2, title="small shapes")


@pytest.fixture(scope="module")
def whole(shapes: DataSet, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    """The summary of `PLAN` on the short table, and its folder; read only."""
    folder, experiment = tmp_path_factory.mktemp("whole"), EXPERIMENTS["table7"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(EXPERIMENTS, "table7", dataclasses.replace(experiment, rows=experiment.rows[::4]))
        return reproduce(PLAN, shapes, folder), folder


def reproduce(plan: Plan, data: DataSet, out: Path) -> dict[str, Any]:
    """Run all cells; the summary of the `.json` file."""
    for _ in run_cells(plan, data, out):
        pass
    return dict(json.loads(summary_path(plan, data, out).read_text(encoding="utf-8")))


# --- the declarations -------------------------------------------------------------------------------------------------


def test_numbers_of_the_paper() -> None:
    """Copied by hand from tables 2 to 9 of the paper."""
    paper = {
        (name, row.name): dict(row.paper)
        for name, experiment in EXPERIMENTS.items()
        for row in experiment.rows
        if row.paper
    }
    assert paper[("table2", "WILDCAT")] == {"VOC 2007": 95.0, "VOC 2012": 93.4}
    assert paper[("table2", "global features + linear classifier")] == {"VOC 2007": 89.8, "VOC 2012": 89.2}
    assert paper[("table3", "WILDCAT")] == {"15-Scene": 94.4, "MIT67": 84.0}
    assert paper[("table3", "WELDON")] == {"15-Scene": 94.3, "MIT67": 78.0}
    assert paper[("table4", "WILDCAT")] == {"VOC 2012 Action": 86.0, "COCO": 80.7}
    assert paper[("table8", "WILDCAT")] == {"VOC 2012": 82.9, "COCO": 53.4}
    assert paper[("table2", "RRSVM")] == {"VOC 2007": 92.9}
    assert [paper[("table3", name)]["MIT67"] for name in ("MOP CNN", "Negative parts", "Compact Bilinear Pooling")] == [
        68.9,
        77.1,
        76.2,
    ]
    table9 = [row.paper["VOC 2012"] for row in EXPERIMENTS["table9"].rows if row.paper]
    assert table9 == [24.9, 36.6, 33.8, 35.3, 39.2, 43.7]
    assert [paper[("table6", f"M = {m}")]["VOC 2007"] for m in (1, 2, 4, 8, 12, 16)] == [
        89.0,
        91.0,
        91.6,
        92.5,
        92.3,
        92.0,
    ]
    table5 = [row.paper["VOC 2007"] for row in EXPERIMENTS["table5"].rows if row.paper]
    assert table5 == [89.0, 87.3]
    assert [row.paper.get("VOC 2007") for row in EXPERIMENTS["table7"].rows] == [None, 89.0, 90.3, 91.6, 92.0]


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_row_has_valid_and_distinct_settings(name: str, shapes: DataSet) -> None:
    rows = [row for row in EXPERIMENTS[name].rows if row.settings is not None]
    plan = Plan(name, CONFIG)
    configs = [cell_spec(plan, row, 0, shapes).config for row in rows]
    for config in configs:
        config.validate()
    assert len({row.name for row in EXPERIMENTS[name].rows}) == len(EXPERIMENTS[name].rows)
    cells = {(str(config), row.crf, row.localize, str(row.refine)) for config, row in zip(configs, rows, strict=True)}
    assert len(cells) == len(rows), "no two rows are the same experiment"


def test_rows_differ_only_in_the_head(shapes: DataSet) -> None:
    """Between the rows of a table only the head differs."""
    plan = Plan("table2", CONFIG)
    configs = [cell_spec(plan, row, 0, shapes).config for row in EXPERIMENTS["table2"].rows if row.settings]
    shared = {f.name for f in dataclasses.fields(TrainConfig)}
    for config in configs:
        shared = {name for name in shared if getattr(config, name) == getattr(configs[0], name)}
    assert {"backbone", "image_size", "epochs", "lr", "seed", "batch_size", "flip"} <= shared


# --- running ----------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("short")
def test_a_table_is_written_and_a_second_run_reuses_its_cells(
    shapes: DataSet, whole: tuple[dict[str, Any], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    summary, folder = whole
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    stem = tmp_path / "table7-small-shapes"
    assert json.loads(stem.with_suffix(".json").read_text()) == summary
    rows = list(csv.DictReader(stem.with_suffix(".csv").open()))
    assert len(rows) == 2 * 2
    assert {r["ap_variant"] for r in rows} == {"voc10"}
    assert {(r["train_split"], r["test_split"]) for r in rows} == {("train", "val")}
    assert {"seed", "seconds", "version_torch", "backbone", "map", "point_ap"} <= rows[0].keys()
    for name, row in summary["results"].items():
        ours = [float(r["map"]) for r in rows if r["row"] == name]
        assert row["metrics"]["map"]["mean"] == pytest.approx(statistics.mean(ours), abs=1e-4)
        assert row["metrics"]["map"]["std"] == pytest.approx(statistics.stdev(ours), abs=1e-4)
    text = stem.with_suffix(".md").read_text()
    assert "| max + min, alpha = 0.7, M = 4 |" in text and "| 92.0 |" in text and "paper, VOC 2007" in text

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("a finished cell was run again")

    monkeypatch.setattr(module, "train_and_evaluate", never)
    cells = list(run_cells(PLAN, shapes, tmp_path))
    assert [(cell.number, cell.total) for cell in cells] == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert reproduce(PLAN, shapes, tmp_path)["results"] == summary["results"]


def test_a_cell_is_run_again_if_task_weights_or_boxes_change(shapes: DataSet, tmp_path: Path) -> None:
    file = tmp_path / "weights.pth"
    file.write_bytes(b"one")
    os.utime(file, (0, 0))
    row, config = EXPERIMENTS["table7"].rows[0], dataclasses.replace(CONFIG, weights=str(file))

    def path(data: DataSet) -> Path:
        return cell_spec(Plan("table7", config), row, 0, data).path(tmp_path)

    def with_truth(**truth: Any) -> DataSet:
        samples = [dataclasses.replace(sample, **truth) for sample in shapes.split("val")]
        return dataclasses.replace(shapes, readers={**shapes.readers, "val": lambda: samples}, _cache={})

    boxes = np.zeros((1, 4), np.float32)
    data = [shapes, dataclasses.replace(shapes, task="multiclass"), with_truth(boxes=None), with_truth(boxes=boxes)]
    data += [with_truth(boxes=boxes + 1), with_truth(box_difficult=np.ones(1, bool))]
    before = [path(each) for each in data]
    assert before == [path(each) for each in data] and len(set(before)) == len(data)
    file.write_bytes(b"two")
    assert not set(before) & {path(each) for each in data}


def count_cells(root: Path, out: Path) -> int:
    """Run the short table; how many of its cells this process has run."""
    run_one, calls, experiment = module.train_and_evaluate, [], EXPERIMENTS["table7"]

    def count(*arguments: Any, **options: Any) -> Any:
        calls.append(1)
        return run_one(*arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "train_and_evaluate", count)
        patch.setitem(EXPERIMENTS, "table7", dataclasses.replace(experiment, rows=experiment.rows[::4]))
        reproduce(PLAN, open_dataset(root), out)
    return len(calls)


def test_several_processes_share_the_cells(shapes: DataSet, whole: tuple[dict[str, Any], Path], tmp_path: Path) -> None:
    counts = run_processes(3, tmp_path / "processes", count_cells, shapes.root, tmp_path / "out", joined=False)
    assert sum(counts) == 4, "each once"
    rows = json.loads(summary_path(PLAN, shapes, tmp_path / "out").read_text())["results"]
    assert {name: row["metrics"] for name, row in rows.items()} == {
        name: row["metrics"] for name, row in whole[0]["results"].items()
    }


@pytest.mark.usefixtures("short")
def test_a_cell_that_another_process_runs_comes_last(
    shapes: DataSet, whole: tuple[dict[str, Any], Path], tmp_path: Path
) -> None:
    network = min((whole[1] / "cells").glob("*.lock")).stem
    held = claim(tmp_path / "cells" / network, wait=False)
    assert held is not None
    cells = run_cells(PLAN, shapes, tmp_path)
    found = {next(cells).number for _ in range(3)}
    held.close()
    assert {cell.number for cell in cells} | found == {1, 2, 3, 4}


@pytest.mark.usefixtures("short")
def test_a_table_has_the_rows_of_other_processes(
    shapes: DataSet, whole: tuple[dict[str, Any], Path], tmp_path: Path
) -> None:
    cells = run_cells(PLAN, shapes, tmp_path)
    next(cells)
    for path in (whole[1] / "cells").glob("*.json"):  # another process is faster
        shutil.copyfile(path, tmp_path / "cells" / path.name)
    next(cells), next(cells)
    rows = json.loads(summary_path(PLAN, shapes, tmp_path).read_text())["results"].values()
    assert [bool(row["metrics"]) for row in rows] == [bool(row["metrics"]) for row in whole[0]["results"].values()]


@pytest.mark.usefixtures("short")
def test_a_killed_table_loses_no_finished_cell(
    shapes: DataSet, whole: tuple[dict[str, Any], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_one, calls = module.train_and_evaluate, []

    def second_fails(*arguments: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return run_one(*arguments, **options)

    monkeypatch.setattr(module, "train_and_evaluate", second_fails)
    with pytest.raises(KeyboardInterrupt):
        reproduce(PLAN, shapes, tmp_path / "killed")
    assert len(list((tmp_path / "killed" / "cells").glob("*.json"))) == 1
    resumed = reproduce(PLAN, shapes, tmp_path / "killed")
    assert len(calls) == 2 + 3, "the finished cell is reused, the others are run again"
    for name, row in whole[0]["results"].items():
        assert resumed["results"][name]["metrics"] == row["metrics"]


def test_several_sizes_are_combined_and_plots_are_drawn(shapes: DataSet, tmp_path: Path) -> None:
    experiment = find_experiment("figure5")
    short = dataclasses.replace(experiment, rows=(*experiment.rows[:1], experiment.rows[6]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(EXPERIMENTS, "figure5", short)
        plan = Plan("figure5", CONFIG, seeds=1, sizes=(64, 96))
        summary = reproduce(plan, shapes, tmp_path)
        single = reproduce(Plan("figure5", CONFIG, seeds=1), shapes, tmp_path)
    assert (tmp_path / "figure5-shapes.png").read_bytes().startswith(b"\x89PNG")
    assert summary["settings"]["sizes"] == [64, 96]
    assert "combined by a linear classifier" in markdown(summary)
    first = short.rows[0].name
    assert summary["results"][first]["metrics"] != single["results"][first]["metrics"], "other sizes give other cells"


def test_masks_are_measured_with_and_without_a_crf_and_scores_where_there_are_no_maps(
    shapes: DataSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = {row.name: row for row in EXPERIMENTS["table9"].rows}
    netvlad = Row("NetVLAD", {**method_settings("netvlad"), "head_size": 4}, method="netvlad")
    short = (
        Row("paper only", None, {"VOC 2012": 24.9}, needs="weights"),
        rows["WILDCAT"],
        rows["WILDCAT + CRF"],
        netvlad,
    )
    monkeypatch.setitem(EXPERIMENTS, "table9", dataclasses.replace(EXPERIMENTS["table9"], rows=short))
    summary = reproduce(Plan("table9", CONFIG, seeds=1), shapes, tmp_path)
    metrics = {name: row["metrics"] for name, row in summary["results"].items()}
    assert metrics["paper only"] == {} and set(metrics["NetVLAD"]) == {"map"}
    assert metrics["WILDCAT"]["miou"]["mean"] != metrics["WILDCAT + CRF"]["miou"]["mean"]
    assert metrics["WILDCAT"]["map"] == metrics["WILDCAT + CRF"]["map"]
    text = markdown(summary)
    assert (
        "| paper only | not run: needs weights |  | 24.9 |" in text
        and "mean IoU (voc10) %" not in text
        and "mean IoU %" in text
    )
    monkeypatch.setitem(EXPERIMENTS, "table2", dataclasses.replace(EXPERIMENTS["table2"], rows=short[1:2]))
    monkeypatch.setattr(module, "train_and_evaluate", None)  # a cell of table 9 is one of table 2 too
    other = reproduce(Plan("table2", CONFIG, seeds=1), shapes, tmp_path)
    assert other["results"]["WILDCAT"]["metrics"] == metrics["WILDCAT"]


def test_a_second_stage_trains_once_on_one_network(
    shapes: DataSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = {row.name: row for row in EXPERIMENTS["table9"].rows}
    refined = dataclasses.replace(rows["CCNN + CRF"], refine={"method": "ccnn", "epochs": 1})
    short = (rows["WILDCAT"], refined, dataclasses.replace(refined, name="CCNN", crf=False))
    monkeypatch.setitem(EXPERIMENTS, "table9", dataclasses.replace(EXPERIMENTS["table9"], rows=short))
    metrics = {
        name: row["metrics"]
        for name, row in reproduce(Plan("table9", CONFIG, seeds=1), shapes, tmp_path)["results"].items()
    }
    (network,) = (tmp_path / "runs").iterdir()
    assert {p.name for p in network.iterdir()} == {"64", "refined-ccnn"}
    assert metrics["CCNN"]["map"]["mean"] == pytest.approx(metrics["WILDCAT"]["map"]["mean"], abs=0.02)
    assert len({row["miou"]["mean"] for row in metrics.values()}) == 3
    several = reproduce(Plan("table9", CONFIG, seeds=1, sizes=(64, 96)), shapes, tmp_path / "several")
    assert not several["results"]["CCNN"]["metrics"] and several["results"]["WILDCAT"]["metrics"]
    assert "| CCNN | not run: needs a single input size |" in markdown(several)
    assert "one where no deviation is given" not in markdown(several)
    several["settings"]["seeds"] = 3
    assert "over 3 seeds, one where no deviation is given, last epoch" in markdown(several)


def test_the_cascade_is_on_the_network_of_pronet(
    shapes: DataSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, cascade = (row for row in EXPERIMENTS["table8"].rows if row.name.startswith("ProNet"))
    short = dataclasses.replace(cascade, refine=dict(cascade.refine) | {"epochs": 1})
    monkeypatch.setitem(EXPERIMENTS, "table8", dataclasses.replace(EXPERIMENTS["table8"], rows=(first, short)))
    one, both = reproduce(Plan("table8", CONFIG, seeds=1), shapes, tmp_path)["results"].values()
    assert one["settings"] == both["settings"] and both["settings"]["pooling"] == "lse"
    assert all(one["metrics"][name] != both["metrics"][name] for name in ("map", "point_ap"))
    exclusive = dataclasses.replace(shapes, task="multiclass")
    assert needs(Plan("table2", CONFIG), cascade, exclusive) == "classes that do not exclude each other"
    assert not needs(Plan("table2", CONFIG), cascade, shapes)


@pytest.mark.parametrize(
    ("name", "size", "reason"),
    [
        ("NetVLAD", 64, "netvlad computes 64 clusters, and there are 12 training images"),
        ("MOP CNN", 96, "mop-cnn computes 100 clusters, and there are 12 training images"),
    ],
)
def test_a_method_that_needs_more_images_is_left_out(shapes: DataSet, name: str, size: int, reason: str) -> None:
    row = next(row for row in EXPERIMENTS["table2"].rows if row.name == name)
    plan = Plan("table2", dataclasses.replace(CONFIG, image_size=size))
    assert needs(plan, row, shapes) == f"more or larger images ({reason})"


def test_points_of_a_beam_search(shapes: DataSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = {row.name: row for row in EXPERIMENTS["table8"].rows}
    short = (rows["GAP, architecture (a)"], rows["WSLocalization"])
    monkeypatch.setitem(EXPERIMENTS, "table8", dataclasses.replace(EXPERIMENTS["table8"], rows=short))
    config = dataclasses.replace(CONFIG, epochs=5, image_size=128)
    gap, beam = reproduce(Plan("table8", config, seeds=1), shapes, tmp_path)["results"].values()
    assert gap["metrics"]["map"] == beam["metrics"]["map"]
    assert gap["metrics"]["point_ap"] != beam["metrics"]["point_ap"]


def test_fine_tuning_stores_its_runs(shapes: DataSet, tmp_path: Path) -> None:
    experiment = find_experiment("table7")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(EXPERIMENTS, "table7", dataclasses.replace(experiment, rows=experiment.rows[:1]))
        config = dataclasses.replace(CONFIG, tune="all", backbone="test_resnet", weights="none")
        summary = reproduce(Plan("table7", config, seeds=1, sizes=(64, 96), combine="average"), shapes, tmp_path)
    (cell,) = (tmp_path / "runs").iterdir()
    assert {p.name for p in cell.iterdir()} == {"64", "96", "ensemble"}
    assert 0 <= summary["results"]["max"]["metrics"]["map"]["mean"] <= 1
    assert "every layer of test_resnet" in markdown(summary)


def test_a_run_killed_during_creation_is_trained(shapes: DataSet, tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, tune="all", backbone="test_resnet", weights="none", val_split="none")
    (tmp_path / "config.yaml").write_text("epochs: 1\n")
    (tmp_path / ".model.json.abcdefgh.part").touch()
    assert len(module.trained_run(config, shapes, tmp_path, SILENT).history()) == 1


def test_the_recorded_command_reproduces_the_plan() -> None:
    config = dataclasses.replace(load_recipe("reproduce"), image_size=320, amp=True, standardize=False, lr=3.0)
    plan = Plan("table7", config, 2, (320, 448), "average", "test", "a small VOC")
    command = parse(["reproduce", "table7", "--data", "VOC", *plan_flags(plan)])
    assert command.config == config
    assert (command.seeds, command.sizes, command.combine) == (2, "320,448", "average")
    assert (command.test_split, command.title) == ("test", "a small VOC")


# --- protocols and errors ---------------------------------------------------------------------------------------------


def test_the_protocols_of_the_paper(shapes: DataSet, tmp_path: Path) -> None:
    plan = Plan("table3", CONFIG)
    assert protocol(plan, shapes, 0) == ("train", "val")
    scenes = dataclasses.replace(shapes, format="scenes")
    assert [protocol(plan, scenes, seed) for seed in (0, 4)] == [
        ("train-seed0", "test-seed0"),
        ("train-seed4", "test-seed4"),
    ]
    readers = dict.fromkeys(("train", "val", "trainval", "test"), tuple[Sample, ...])
    voc07 = dataclasses.replace(shapes, readers=readers)
    assert protocol(plan, voc07, 0) == ("trainval", "test")
    named = dataclasses.replace(plan, test_split="test")
    assert protocol(named, voc07, 0) == ("train", "test")


def test_random_splits_of_scenes_by_seed(tmp_path: Path) -> None:
    for image in (tmp_path / "15-Scene" / name / f"{i}.jpg" for name in SCENE_CLASSES for i in range(102)):
        image.parent.mkdir(parents=True, exist_ok=True)
        image.touch()
    data = open_dataset(tmp_path / "15-Scene")
    plan = Plan("table5", CONFIG, seeds=2)
    check_plan(plan, EXPERIMENTS["table5"], data)
    splits = [{s.name for s in data.split(protocol(plan, data, seed)[0])} for seed in (0, 1)]
    assert splits[0] != splits[1]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"seeds": 0}, "seeds=0"),
        ({"config": dataclasses.replace(CONFIG, num_maps=8)}, "num_maps=8: the rows of table6 define num_maps"),
        ({"test_split": "train"}, "used for training and for testing"),
        ({"config": dataclasses.replace(CONFIG, epochs=0)}, "epochs=0"),
        ({"config": dataclasses.replace(CONFIG, val_split="val")}, "val_split=val: no epoch is chosen"),
        ({"config": dataclasses.replace(CONFIG, weights=".")}, "weights=.: a run has a head already"),
    ],
)
def test_invalid_plans(shapes: DataSet, change: dict[str, Any], sentence: str) -> None:
    plan = dataclasses.replace(Plan("table6", CONFIG), **change)
    with pytest.raises(ConfigError, match=sentence):
        check_plan(plan, EXPERIMENTS["table6"], shapes)


@pytest.mark.parametrize(
    ("readers", "train_split", "test_split"),
    [
        (("train", "val", "trainval"), "trainval", None),  # measured on val
        (("train",), "train", "val"),  # val is a tenth of train
    ],
)
def test_images_are_not_used_for_training_and_for_testing(
    shapes: DataSet, readers: tuple[str, ...], train_split: str, test_split: str | None
) -> None:
    both = (*shapes.split("train"), *shapes.split("val"))
    data = dataclasses.replace(shapes, readers={n: shapes.readers.get(n, lambda: both) for n in readers}, _cache={})
    plan = Plan("table7", dataclasses.replace(CONFIG, train_split=train_split), test_split=test_split)
    with pytest.raises(
        ConfigError, match=rf"share images, such as .+ for training and for testing.\n.*has {readers[0]}"
    ):
        check_plan(plan, EXPERIMENTS["table7"], data)


def test_a_file_as_out_is_refused_before_training(
    shapes: DataSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "train_and_evaluate", None)
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="file cannot be written"):
        reproduce(PLAN, shapes, tmp_path / "file")


def test_data_without_the_ground_truth(shapes: DataSet) -> None:
    bare = [dataclasses.replace(s, boxes=None) for s in shapes.split("val")]
    data = dataclasses.replace(shapes, name="tags", readers={"train": lambda: bare, "val": lambda: bare}, _cache={})
    with pytest.raises(DataError, match="tags has no boxes"):
        check_plan(Plan("table8", CONFIG), EXPERIMENTS["table8"], data)
    masked = [dataclasses.replace(s, mask=None) for s in shapes.split("val")]
    data = dataclasses.replace(data, readers={"train": lambda: masked, "val": lambda: masked}, _cache={})
    with pytest.raises(DataError, match="table9 measures masks, and tags has no masks"):
        check_plan(Plan("table9", CONFIG), EXPERIMENTS["table9"], data)
    with pytest.raises(DataError, match="table3 measures accuracy, and shapes has no classes that exclude each other"):
        check_plan(Plan("table3", CONFIG), EXPERIMENTS["table3"], shapes)


@pytest.mark.usefixtures("short")
def test_a_damaged_cell_is_named(shapes: DataSet, whole: tuple[dict[str, Any], Path], tmp_path: Path) -> None:
    shutil.copytree(whole[1], tmp_path, dirs_exist_ok=True)
    cell = next((tmp_path / "cells").glob("*.json"))
    cell.write_text("{")
    with pytest.raises(RunError, match=cell.name):
        reproduce(PLAN, shapes, tmp_path)


@pytest.mark.usefixtures("short")
def test_on_the_command_line(shapes: DataSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = [f"--{k.replace('_', '-')}={v}" for k, v in SMALL.items()]
    command = ["reproduce", "table7", "--data", str(shapes.root), "--seeds", "1", "--out", str(tmp_path), *flags]
    assert main(command) == 0
    said = capsys.readouterr()
    assert "| max + min, alpha = 0.7, M = 4 |" in said.out
    assert "[2/2]" in said.err
    assert main(["reproduce", "table66", "--data", str(shapes.root)]) == 2
    assert "Did you mean table6" in capsys.readouterr().err


def test_all_tables_for_which_there_is_ground_truth(
    shapes: DataSet, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "labels.csv").write_text(
        "image,labels,split\n"
        + "".join(
            f"{s.path},{'|'.join(name for name, v in zip(shapes.classes, s.labels, strict=True) if v == 1)},{split}\n"
            for split in ("train", "val")
            for s in shapes.split(split)
        )
    )
    one_row = {
        name: dataclasses.replace(EXPERIMENTS[name], rows=EXPERIMENTS[name].rows[:1])
        for name in ("table2", "table7", "table8")
    }
    monkeypatch.setattr(experiments, "EXPERIMENTS", one_row)
    flags = [f"--{k.replace('_', '-')}={v}" for k, v in SMALL.items()]
    command = ["reproduce", "all", "--data", str(tmp_path / "labels.csv"), "--seeds", "1"]
    assert main([*command, "--out", str(tmp_path)]) == 1, "a folder of other files"
    assert f"{tmp_path} exists and is never overwritten." in capsys.readouterr().err
    command += ["--out", str(tmp_path / "out")]
    assert main([*command, *flags]) == 0
    said = capsys.readouterr().out
    assert "Left out: table8 measures points, and labels has no boxes." in said
    assert "**Table2" in said and "**Table7" in said
