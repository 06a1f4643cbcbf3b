"""Tar shards with labels: layouts of WebDataset users, exact epochs, and errors."""

from __future__ import annotations

import json
import pickle
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from tests.scale.conftest import png, shard
from wildcat.cli import main
from wildcat.data import DataSet, load_image, open_dataset, read_image, write_shapes, write_webdataset
from wildcat.data.dataset import label_matrix
from wildcat.data.loader import epoch_order
from wildcat.data.readers.voc import read_voc
from wildcat.data.transforms import Preprocess
from wildcat.errors import ConfigError, DataError, RunError
from wildcat.models.run import open_run
from wildcat.nn.backbones import create_backbone
from wildcat.train.feature_cache import cached_features


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> DataSet:
    data = read_voc(write_shapes(tmp_path_factory.mktemp("data") / "shapes", train=22, val=10, size=(48, 64)))
    first = data.split("train")[0]
    first.labels[0] = 0  # difficult
    return data


@pytest.fixture(scope="module")
def shards(shapes: DataSet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards") / "shards"
    write_webdataset(shapes, folder, images=8)
    return folder


# --- written and read again ----------------------------------------------------------------------------------


def test_shards_hold_the_same_data(shapes: DataSet, shards: Path) -> None:
    assert [p.name for p in sorted(shards.iterdir())] == [
        "classes.txt",
        *(f"train-{i:06d}.tar" for i in range(3)),
        *(f"val-{i:06d}.tar" for i in range(2)),
    ]
    data = open_dataset(shards)
    assert (data.format, data.name, data.task) == ("webdataset", "shards", "multilabel")
    assert (data.classes, data.splits) == (shapes.classes, ("train", "val"))
    for split in data.splits:
        there, here = shapes.split(split), data.split(split)
        assert np.array_equal(label_matrix(here), label_matrix(there))
        for one, other in zip(here, there, strict=True):
            again = pickle.loads(pickle.dumps(one.path))
            assert np.array_equal(np.asarray(load_image(again)), np.asarray(read_image(other.path)))
    assert len({s.name for split in data.splits for s in data.split(split)}) == 32
    assert data.split("train")[9].name == "train-000001.tar#00000009.jpg"


def test_the_same_data_gives_the_same_bytes_and_nothing_is_overwritten(
    shapes: DataSet, shards: Path, tmp_path: Path
) -> None:
    write_webdataset(shapes, tmp_path / "again", images=8)
    for path in shards.iterdir():
        assert (tmp_path / "again" / path.name).read_bytes() == path.read_bytes()
    with pytest.raises(RunError, match="exists and is never overwritten"):
        write_webdataset(shapes, shards)
    with pytest.raises(ConfigError, match="images=0"):
        write_webdataset(shapes, tmp_path / "none", images=0)


def test_a_pattern_a_shard_and_a_url_are_data_sets(shards: Path) -> None:
    pattern = f"{shards}/{{train,val}}-{{000000..000001}}.tar"
    assert {split: len(open_dataset(pattern).split(split)) for split in ("train", "val")} == {"train": 16, "val": 10}
    assert open_dataset(f"{shards}/val-*.tar").splits == ("val",)
    assert len(open_dataset(shards / "train-000002.tar").split("train")) == 6
    assert open_dataset(f"file://{shards}/val-000000.tar").splits == ("val",)


def test_shards_in_the_working_directory_keep_their_names(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(shards)
    data = open_dataset("train-000001.tar")
    assert (data.name, data.split("train")[0].name) == ("shards", "train-000001.tar#00000008.jpg")


def test_an_epoch_is_a_permutation_for_any_number_of_processes(shards: Path) -> None:
    samples = open_dataset(shards).split("train")
    for size in (1, 2, 3, 4):
        order = epoch_order(len(samples), seed=3, epoch=5)
        taken = Counter(samples[i].name for rank in range(size) for i in order[rank::size])
        assert taken == Counter(s.name for s in samples)


def test_features_of_images_in_shards_are_those_of_files(shapes: DataSet, shards: Path, tmp_path: Path) -> None:
    """The cache identifies an image by its shard and byte range."""
    backbone = create_backbone("test_resnet", "none").eval()
    preprocess = Preprocess(32, backbone.mean, backbone.std)
    files, stored = shapes.split("val"), open_dataset(shards).split("val")
    expected = cached_features(backbone, files, preprocess, "none", tmp_path / "a").batch(range(10))
    for _ in ("computed", "found"):
        found = cached_features(backbone, stored, preprocess, "none", tmp_path / "b").batch(range(10))
        assert np.array_equal(found.numpy(), expected.numpy())
        assert len(list((tmp_path / "b").rglob("*.json"))) == 1


# --- shards of other writers ------------------------------------------------------------------------------------------


def labels_of(folder: Path, members: dict[str, bytes], **options: object) -> tuple[DataSet, list[list[int]]]:
    folder.mkdir(exist_ok=True)
    shard(folder / "train-0.tar", members)
    data = open_dataset(folder, **options)
    return data, label_matrix(data.split("train")).tolist()


def test_class_numbers_are_multiclass(tmp_path: Path) -> None:
    data, labels = labels_of(tmp_path / "a", {"0.cls": b"2\n", "0.jpg": png(0), "1.jpg": png(1), "1.cls": b"0"})
    assert (data.classes, data.task) == (("0", "2"), "multiclass"), "a number invents no other classes"
    assert labels == [[-1, 1], [1, -1]]
    (tmp_path / "a" / "classes.txt").write_text("ant\nbee\ncat\n")
    assert open_dataset(tmp_path / "a").classes == ("ant", "bee", "cat")
    (tmp_path / "a" / "classes.txt").unlink()
    (tmp_path / "names.txt").write_text("x\ny\nz\n")
    for given in (str(tmp_path / "names.txt"), "x,y,z", ("x", "y", "z")):
        assert open_dataset(tmp_path / "a", classes=given).classes == ("x", "y", "z")
    assert open_dataset(tmp_path / "a", task="multilabel").task == "multilabel"


def test_numbers_are_text(tmp_path: Path) -> None:
    members = {
        f"{i}.{kind}": png(i) if kind == "png" else label
        for i, label in enumerate((b"01", b"1", b"7", b"10"))
        for kind in ("png", "cls")
    }
    data, labels = labels_of(tmp_path / "a", members)
    assert data.classes == ("01", "1", "7", "10")
    assert labels == (2 * np.eye(4, dtype=int) - 1).tolist()
    assert any("'01', '1' differ" in note for note in data.notes)
    data, _ = labels_of(
        tmp_path / "b", {"0.png": png(0), "0.cls": b"1", "1.png": png(1), "1.json": b"[0]"}, classes=("x", "y")
    )
    assert data.classes == ("x", "y"), "--classes numbers them"
    data, labels = labels_of(
        tmp_path / "c", {"0.png": png(0), "0.cls": b"x", "1.png": png(1), "1.cls": b"y"}, classes=("y",)
    )
    assert (data.classes, labels) == (("y",), [[1]]), "--classes chooses them"


def test_texts_hold_labels_as_tables_do(tmp_path: Path) -> None:
    texts = {"0": b"round", "1": b"flat,blue", "2": b"round, red", "3": b"flat"}
    members = {f"{key}.png": png(int(key)) for key in texts} | {f"{key}.txt": text for key, text in texts.items()}
    data, _ = labels_of(tmp_path / "a", members)
    assert data.classes == ("blue", "flat", "red", "round")
    assert any("separated by ','" in note for note in data.notes)
    assert labels_of(tmp_path / "b", members, separator="none")[0].classes == (
        "flat",
        "flat,blue",
        "round",
        "round, red",
    )
    members |= {f"{key}.json": json.dumps({"labels": text.decode()}).encode() for key, text in texts.items()}
    assert labels_of(tmp_path / "c", members)[0].classes == data.classes


def test_json_and_text_hold_any_number_of_names(tmp_path: Path) -> None:
    data, labels = labels_of(
        tmp_path / "a",
        {
            "d/0.json": json.dumps({"labels": ["cat", "ant"], "ignored": ["bee"], "caption": "?"}).encode(),
            "d/0.png": png(0),
            "d/0.seg.png": png(9),  # not the image
            "e/0.png": png(1),
            "e/0.json": b'["bee"]',
            "e/0.txt": b"a caption; of no consequence",
            "2.png": png(2),
            "2.txt": b"cat\nant ; bee\n",
            "3.png": png(3),
            "3.json": b'{"label": "ant"}',
            "4.png": png(4),
            "4.json": b'{"labels": []}',
            "lonely.json": b"{",
        },
    )
    assert (data.classes, data.task) == (("ant", "bee", "cat"), "multilabel")
    assert labels == [[1, 0, 1], [-1, 1, -1], [1, 1, 1], [1, -1, -1], [-1, -1, -1]]
    assert [s.name for s in data.split("train")][:2] == ["train-0.tar#d/0.png", "train-0.tar#e/0.png"]


def test_split_folders_of_shards(tmp_path: Path) -> None:
    for split, count in (("train", 2), ("valid", 1)):
        (tmp_path / "shards" / split).mkdir(parents=True)
        for n in range(count):
            shard(tmp_path / "shards" / split / f"{n}.tar", {f"{n}.png": png(n), f"{n}.cls": b"%d" % n})
    for source in (tmp_path / "shards", tmp_path / "shards" / "{train,valid}" / "*.tar"):
        data = open_dataset(source)
        assert (data.format, data.splits) == ("webdataset", ("train", "val"))
        assert [s.name for s in data.split("train")] == ["train/0.tar#0.png", "train/1.tar#1.png"]
        assert [s.name for s in data.split("val")] == ["valid/0.tar#0.png"]
    (tmp_path / "one" / "test").mkdir(parents=True)
    shard(tmp_path / "one" / "test" / "0.tar", {"0.png": png(0), "0.cls": b"1"})
    (tmp_path / "one" / "classes.txt").write_text("ant\nbee\n")
    data = open_dataset(tmp_path / "one")
    assert (data.splits, data.classes) == (("test",), ("ant", "bee"))


def test_shards_without_split_names_are_split_by_class(tmp_path: Path) -> None:
    for n in range(2):
        members = {
            f"{i}.{kind}": png(i) if kind == "png" else str(i % 2).encode()
            for i in range(10)
            for kind in ("png", "cls")
        }
        shard(tmp_path / f"part-{n}.tar", members)
    data = open_dataset(tmp_path)
    assert data.splits == ("train", "val", "all")
    assert [len(data.split(name)) for name in data.splits] == [16, 4, 20]
    assert sorted(label_matrix(data.split("val")).argmax(axis=1)) == [0, 0, 1, 1]
    shard(tmp_path / "train-9.tar", {"0.png": png(0), "0.cls": b"1"})
    with pytest.raises(DataError, match=r"part-0.tar#0.png is in a shard whose name and folder give no split"):
        open_dataset(tmp_path)


@pytest.mark.parametrize(
    ("members", "says"),
    [
        ({"0.png": png(0)}, r"train-0.tar#0.png has no labels"),
        ({"0.png": png(0), "0.jpg": png(0), "0.cls": b"0"}, "is a second image of '0'"),
        ({"0.png": png(0), "0.json": b"{"}, r"train-0.tar#0.json holds no labels"),
        ({"0.png": png(0), "0.json": b"[[1]]"}, "neither a name nor a number"),
        ({"0.png": png(0), "0.json": b"[true]"}, "neither a name nor a number"),
        ({"0.png": png(0), "0.json": b"[" * 100_000}, r"0.json holds no labels"),
        ({"0.png": png(0), "0.json": b"{}"}, "none of labels, label, cls, class"),
        ({"0.png": png(0), "0.txt": b"\xff"}, r"0.txt holds no labels"),
        ({"0.png": png(0), "0.cls": b"x" * (1 << 20) + b"x"}, "1,048,577 bytes"),
        ({"0.png": png(0), "0.json": b"[]"}, "no image has any label"),
        ({"0.png": png(0), "0.cls": b"1", "1.png": png(0), "1.cls": b"cat"}, "numbers in some members and names"),
        (
            {f"{i}.{k}": png(0) if k == "png" else f"a photo {i}".encode() for i in range(30) for k in ("png", "txt")},
            "30 images have 30 labels",
        ),
        ({"readme": b"x"}, "holds no images"),
    ],
)
def test_invalid_labels_are_named(tmp_path: Path, members: dict[str, bytes], says: str) -> None:
    with pytest.raises(DataError, match=says) as caught:
        labels_of(tmp_path / "a", members)
    assert caught.value.hint


def test_unknown_labels_and_missing_shards(tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text("ant\nbee\n")
    shard(tmp_path / "train-0.tar", {"0.png": png(0), "0.cls": b"2"})
    with pytest.raises(DataError, match=r"train-0.tar#0.png: label '2' is none of the 2 classes"):
        open_dataset(tmp_path)
    with pytest.raises(DataError, match=r"val-0.tar holds no tar shards"):
        open_dataset(f"{tmp_path}/{{train,val}}-0.tar")
    with pytest.raises(DataError, match=r"0 labels and 0 ignored|is none of"):
        open_dataset(tmp_path, task="multiclass")
    with pytest.raises(ConfigError, match="task=x"):
        open_dataset(tmp_path, task="x")


def test_a_link_for_a_label_is_not_followed(tmp_path: Path) -> None:
    link = tarfile.TarInfo("0.json")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    shard(tmp_path / "train-0.tar", {"0.png": png(0), "0.json": link})
    with pytest.raises(DataError, match="is a link to '/etc/passwd'"):
        open_dataset(tmp_path)


# --- every command ----------------------------------------------------------------------------------------------------


def test_commands_take_shards(
    shapes: DataSet, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Training and evaluation match those on image files."""
    monkeypatch.setenv("WILDCAT_CACHE", str(tmp_path / "cache"))
    tiny = "--backbone test_resnet --weights none --image-size 64 --workers 0 --device cpu --epochs 1 --lr 0.02"
    source = f"{shards}/{{train,val}}-*.tar"
    assert main(["train", source, "--out", str(tmp_path / "run"), *tiny.split()]) == 0
    assert main(["train", source, "--out", str(tmp_path / "run"), "--resume"]) == 0
    capsys.readouterr()
    assert main(["evaluate", str(tmp_path / "run"), source, "--json", "--device", "cpu"]) == 0
    measured = json.loads(capsys.readouterr().out)
    history = open_run(tmp_path / "run").history()
    assert measured["classification"]["map"] == pytest.approx(history[0]["val"]["map"], abs=1e-6)
    out = tmp_path / "predictions"
    assert main(["predict", str(tmp_path / "run"), source, "--split", "val", "--out", str(out), "--device", "cpu"]) == 0
    rows = [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]
    assert [row["image"] for row in rows] == [f"{s.path}" for s in open_dataset(source).split("val")]
    assert len(list(out.glob("overlays/val-*/*"))) == sum(len(row["labels"]) or 1 for row in rows)
    flags = ["--split", "val", "--shard-rows", "4", "--out", str(tmp_path / "rows"), "--device", "cpu"]
    assert main(["predict", str(tmp_path / "run"), source, *flags]) == 0
    assert json.loads((tmp_path / "rows" / "summary.json").read_text())["rows"] == 10


def test_json_of_other_things_beside_the_labels(tmp_path: Path) -> None:
    members = {"a.png": png(0), "a.json": b'{"filename": "a"}', "a.cls": b"cat", "b.png": png(1), "b.cls": b"dog"}
    shard(tmp_path / "train-0.tar", members)
    data = open_dataset(tmp_path)
    assert data.classes == ("cat", "dog")
    del members["a.cls"]
    shard(tmp_path / "train-0.tar", members)
    with pytest.raises(DataError, match="it has none of labels, label, cls, class"):
        open_dataset(tmp_path).split("train")


def test_a_range_of_shards_is_padded_as_a_shell_does(tmp_path: Path) -> None:
    for number in range(11):
        shard(tmp_path / f"{number}.tar", {"a.png": png(number), "a.cls": b"cat" if number % 2 else b"dog"})
    assert len(open_dataset(f"{tmp_path}/{{0..10}}.tar").split("all")) == 11
