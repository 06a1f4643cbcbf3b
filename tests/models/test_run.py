"""A run folder is never overwritten, never half-written, and says what is wrong with it."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from wildcat.config import TrainConfig
from wildcat.data.dataset import DataSet
from wildcat.errors import ConfigError, RunError
from wildcat.files import next_free, remove_leftovers, write_bytes, write_json
from wildcat.models.manifest import MANIFEST, SCHEMA
from wildcat.models.run import (
    CONFIG,
    METRICS,
    STATE,
    WEIGHTS,
    Run,
    check_resumable,
    create_run,
    discard_unused,
    load_state,
    load_weights,
    locked,
    open_run,
    save_state,
    save_weights,
    tidy_run,
    write_history,
)
from wildcat.nn.factory import create_model, model_from_config
from wildcat.settings import read_config

CONFIGURATION = TrainConfig(backbone="test_resnet", weights="none", image_size=64, num_maps=2)


@pytest.fixture
def run(tmp_path: Path, shapes: DataSet) -> Run:
    return create_run(tmp_path / "run", CONFIGURATION, shapes, "shapes")


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# --- creating and opening -------------------------------------------------------------------------------------------


def test_a_run_records_its_settings_and_data(run: Run, shapes: DataSet) -> None:
    opened = open_run(run.folder)
    assert opened == run
    assert opened.config == CONFIGURATION == read_config(run.folder / CONFIG)
    assert opened.classes == shapes.classes
    assert (opened.task, opened.preprocess.size, opened.preprocess.mean) == ("multilabel", 64, (0.5, 0.5, 0.5))
    assert opened.manifest["data"]["images"] == {"train": 22, "val": 10}
    assert opened.manifest["versions"]["torch"] == torch.__version__
    assert opened.history() == []


def test_a_run_is_never_overwritten(run: Run, shapes: DataSet) -> None:
    before = content(run.folder)
    with pytest.raises(RunError) as caught:
        create_run(run.folder, CONFIGURATION, shapes)
    assert caught.value.message == f"{run.folder} exists and is never overwritten."
    assert "--resume" in caught.value.hint
    assert f"{run.folder}-2" in caught.value.hint
    assert content(run.folder) == before


def test_other_files_are_never_overwritten(tmp_path: Path, shapes: DataSet) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("x")
    (tmp_path / "file").write_text("x")
    for taken in ("thesis", "file"):
        with pytest.raises(RunError, match="never overwritten") as caught:
            create_run(tmp_path / taken, CONFIGURATION, shapes)
        assert "--resume" not in caught.value.hint
    assert content(tmp_path) == {"chapter.tex": b"x", "file": b"x"}
    (tmp_path / "empty").mkdir()
    assert create_run(tmp_path / "empty", CONFIGURATION, shapes).folder.name == "empty"


def test_settings_out_of_range_make_no_folder(tmp_path: Path, shapes: DataSet) -> None:
    for config, says in [
        (replace(CONFIGURATION, epochs=0), "epochs=0"),
        (replace(CONFIGURATION, backbone="test_resnot"), "there is no backbone"),
        (replace(CONFIGURATION, val_split="train"), "training images would choose the best epoch"),
    ]:
        with pytest.raises(ConfigError, match=says):
            create_run(tmp_path / "run", config, shapes)
        assert not (tmp_path / "run").exists()


def test_creating_and_loading_do_not_change_the_random_state(run: Run, shapes: DataSet, tmp_path: Path) -> None:
    save_weights(model_from_config(CONFIGURATION, 5), run.folder / WEIGHTS)
    before = torch.get_rng_state()
    create_run(tmp_path / "other", CONFIGURATION, shapes)
    run.load_model()
    assert torch.equal(torch.get_rng_state(), before)


def test_next_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("run", "run-2", "run-4"):
        (tmp_path / name).mkdir()
    assert next_free(tmp_path / "run") == tmp_path / "run-3"
    for name in ("v1.onnx", "v1-2.onnx"):
        (tmp_path / name).touch()
    assert next_free(tmp_path / "v1.onnx") == tmp_path / "v1-3.onnx"
    (tmp_path / "run" / "below").mkdir()
    for place, path in (("run", "."), ("run", ""), ("run/below", "..")):
        monkeypatch.chdir(tmp_path / place)
        assert next_free(Path(path)) == tmp_path / "run-3"
    assert not next_free(Path("/")).exists()


def test_a_run_in_the_working_directory(tmp_path: Path, shapes: DataSet, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert create_run(Path(), CONFIGURATION, shapes).classes == shapes.classes
    with pytest.raises(RunError, match="never overwritten") as caught:
        create_run(Path(), CONFIGURATION, shapes)
    assert f"for example {tmp_path / 'here-2'}" in caught.value.hint


def test_not_a_run_folder(run: Run, tmp_path: Path) -> None:
    with pytest.raises(RunError) as caught:
        open_run(tmp_path / "runn")
    assert caught.value.message == f"there is no model folder {tmp_path / 'runn'}."
    assert caught.value.hint == f"did you mean {tmp_path / 'run'}?"
    for name, what in ((CONFIG, "run"), (MANIFEST, "model")):
        (run.folder / name).rename(run.folder / "away")
        with pytest.raises(RunError, match=rf"is not a {what} folder: it has no {re.escape(name)}"):
            open_run(run.folder)
        (run.folder / "away").rename(run.folder / name)


def changed(**entries: Any) -> Callable[[bytes], bytes]:
    return lambda old: json.dumps({**json.loads(old), **entries}).encode()


@pytest.mark.parametrize(
    ("name", "damage", "says"),
    [
        (MANIFEST, lambda old: old[: len(old) // 2], r"model.json is damaged \(JSONDecodeError: "),
        (MANIFEST, lambda old: b"\xff\xfe\x00", r"model.json is damaged \(UnicodeDecodeError: "),
        (MANIFEST, lambda old: b"", r"model.json is damaged \(JSONDecodeError: "),
        (MANIFEST, lambda old: b"[1]", r"model.json is damaged: it is not a JSON object"),
        (MANIFEST, changed(schema=9), rf"layout version 9; this is wildcat .*, which reads version {SCHEMA}"),
        (MANIFEST, changed(schema=None, versions=[]), r"layout version None"),
        (MANIFEST, changed(classes=[]), r"is damaged: missing or invalid classes\."),
        (MANIFEST, changed(classes=["a", "a"]), r"is damaged: missing or invalid classes\."),
        (MANIFEST, changed(task="regression", kind="x"), r"is damaged: missing or invalid kind, task\."),
        (MANIFEST, changed(data=7), r"is damaged: missing or invalid data\."),
        (MANIFEST, changed(preprocess=5), r"is damaged: its preprocess is 5\."),
        (
            MANIFEST,
            changed(preprocess={"size": "x", "mean": [0], "std": [1], "interpolation": ""}),
            r"its preprocess is",
        ),
        (MANIFEST, changed(preprocess={"size": 3, "mean": 0, "std": [1], "interpolation": ""}), r"its preprocess is"),
        (CONFIG, lambda old: b"epochs: [", r"config.yaml is not YAML"),
        (CONFIG, lambda old: b"\xff\xfe\x00", r"config.yaml is not YAML"),
        (CONFIG, lambda old: old + b"num_mops: 3\n", r"there is no setting 'num_mops'"),
        (CONFIG, lambda old: old.replace(b"epochs: 20", b"epochs: 0"), r"epochs: 0"),
    ],
)
def test_damaged_files(run: Run, name: str, damage: Callable[[bytes], bytes], says: str) -> None:
    path = run.folder / name
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(RunError, match=says):
        open_run(run.folder)


def test_another_layout_names_the_version_that_wrote_it(run: Run) -> None:
    path = run.folder / MANIFEST
    path.write_bytes(changed(schema=9, versions={"wildcat": "7.1"})(path.read_bytes()))
    with pytest.raises(RunError) as caught:
        open_run(run.folder)
    assert caught.value.hint == "It was written by wildcat 7.1: use that one."


def test_a_damaged_history(run: Run) -> None:
    write_history(run.folder / METRICS, [{"epoch": 1}, {"epoch": 2}])
    assert run.history() == [{"epoch": 1}, {"epoch": 2}]
    for damaged in ('{"epoch": 1}\n{"ep', "7\n"):
        (run.folder / METRICS).write_text(damaged)
        with pytest.raises(RunError, match=r"metrics\.jsonl is damaged"):
            run.history()


# --- resuming -------------------------------------------------------------------------------------------------------


def test_settings_that_may_change_on_resume(run: Run) -> None:
    check_resumable(run, replace(CONFIGURATION, device="cuda", workers=7), "shapes", run.classes, "multilabel")
    with pytest.raises(RunError) as caught:
        check_resumable(run, replace(CONFIGURATION, lr=0.5, seed=3), "here", run.classes, "multilabel")
    assert "--lr default -> 0.5; --seed 0 -> 3." in caught.value.message
    assert f"wildcat train here --out {run.folder} --resume" in caught.value.hint
    with pytest.raises(RunError, match="classes 5 -> 4"):
        check_resumable(run, CONFIGURATION, "shapes", run.classes[:4], "multilabel")
    with pytest.raises(RunError, match="classes 5 -> 5 of other names"):
        check_resumable(run, CONFIGURATION, "shapes", (*run.classes[1:], "star"), "multilabel")
    check_resumable(run, CONFIGURATION, "shapes", run.classes[::-1], "multilabel")
    with pytest.raises(RunError, match="task multilabel -> multiclass"):
        check_resumable(run, CONFIGURATION, "shapes", run.classes, "multiclass")


@pytest.mark.skipif(sys.platform == "win32", reason="files are not locked there")
def test_one_process_at_a_time_has_a_run_folder(run: Run) -> None:
    files = content(run.folder)
    with locked(run.folder):
        for change in (discard_unused, tidy_run):
            with pytest.raises(RunError, match="another process trains in "):
                change(run.folder)
        worker = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
        worker.start()
    assert content(run.folder) == files
    time.sleep(2)  # until the worker has closed its copy of the file
    try:
        tidy_run(run.folder)
        assert discard_unused(run.folder), "a worker that outlives its trainer has no lock"
    finally:
        worker.kill()
        worker.join()


# --- weights and state ----------------------------------------------------------------------------------------------


def test_weights_come_back_bit_for_bit(run: Run) -> None:
    model = model_from_config(CONFIGURATION, 5)
    model.transfer.standardize(torch.rand(96), torch.rand(96).where(torch.arange(96) != 7, torch.tensor(0.0)))
    save_weights(model, run.folder / WEIGHTS)
    loaded = run.load_model()
    assert not loaded.training
    own = model.state_dict()
    assert loaded.state_dict().keys() == own.keys()
    assert all(torch.equal(value, own[name]) for name, value in loaded.state_dict().items())


def test_a_run_without_weights(run: Run) -> None:
    with pytest.raises(RunError) as caught:
        run.load_model()
    assert "has no model.safetensors: its training stopped before the first epoch ended" in caught.value.message
    assert f"wildcat train shapes --out {run.folder} --resume" in caught.value.hint


@pytest.mark.parametrize("kept", [0.0, 0.001, 0.5, 0.999])
def test_half_written_weights(run: Run, kept: float) -> None:
    path = run.folder / WEIGHTS
    save_weights(model_from_config(CONFIGURATION, 5), path)
    path.write_bytes(path.read_bytes()[: int(kept * path.stat().st_size)])
    with pytest.raises(RunError, match=r"model.safetensors is damaged or half-written"):
        run.load_model()


@pytest.mark.parametrize(
    ("other", "first"),
    [
        (lambda: create_model("test_resnet", 4, 2, pretrained=False), "transfer.weight"),
        (lambda: create_model("test_efficientnet", 5, 2, pretrained=False), "backbone.network"),
    ],
)
def test_weights_of_another_network(run: Run, other: Callable[[], Any], first: str) -> None:
    save_weights(other(), run.folder / WEIGHTS)
    with pytest.raises(
        RunError, match=rf"does not fit the network of its own config.yaml: \d+ weights differ.*{first}"
    ):
        run.load_model()


@pytest.mark.parametrize("kept", [0.0, 0.01, 0.5, 0.999])
def test_half_written_state(run: Run, kept: float) -> None:
    path = run.folder / STATE
    save_state(path, {"model": {"weight": torch.zeros(1000)}})
    assert torch.equal(load_state(path)["model"]["weight"], torch.zeros(1000))
    path.write_bytes(path.read_bytes()[: int(kept * path.stat().st_size)])
    with pytest.raises(RunError, match=r"state.pt is damaged or half-written"):
        load_state(path)


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "run.json"
    write_json(path, {"a": 1})

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(RunError, match=r"run.json cannot be written: No space left on device"):
        write_bytes(path, b"new")
    assert json.loads(path.read_text()) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["run.json"]


def test_load_weights_of_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="damaged or half-written"):
        load_weights(model_from_config(CONFIGURATION, 5), tmp_path / "none.safetensors")


def test_temporary_files_of_killed_commands_are_removed_and_nothing_else(tmp_path: Path) -> None:
    old = [tmp_path / ".out.abcdefgh.part", tmp_path / ".out.12345678.part"]
    young, others = tmp_path / ".out.zzzzzzzz.part", [tmp_path / ".out.d", tmp_path / "out", tmp_path / ".outer.part"]
    old[0].mkdir()
    for path in (old[0] / "half", old[1], young, *others):
        path.touch()
    for path in (*old, *others):
        os.utime(path, (1, 1))
    remove_leftovers(tmp_path / "out")
    assert sorted(tmp_path.iterdir()) == sorted([young, *others])
    remove_leftovers(tmp_path / "out", seconds=0)
    assert sorted(tmp_path.iterdir()) == sorted(others)


def test_a_run_killed_during_creation_is_tidied_and_user_files_stay(tmp_path: Path) -> None:
    for name in (CONFIG, f".{MANIFEST}.abcdefgh.part"):
        (tmp_path / name).touch()
    tidy_run(tmp_path)
    assert list(tmp_path.iterdir()) == []
    for name in (CONFIG, "thesis.txt"):
        (tmp_path / name).touch()
    tidy_run(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {CONFIG, "thesis.txt"}
    tidy_run(tmp_path / "nowhere")
