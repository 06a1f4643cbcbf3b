"""Tables: layouts, options and every kind of mistake."""

from __future__ import annotations

import tempfile
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wildcat.data.dataset import DataSet, label_matrix
from wildcat.data.readers.csv import read_table
from wildcat.data.readers.table import find_table
from wildcat.data.registry import open_dataset
from wildcat.errors import ConfigError, DataError


def table(folder: Path, text: str, images: str = "a.jpg b.jpg c.jpg d.jpg", name: str = "tags.csv") -> Path:
    for image in images.split():
        (folder / image).parent.mkdir(parents=True, exist_ok=True)
        (folder / image).touch()
    (folder / name).write_bytes(text.encode())
    return folder / name


def test_several_labels(tmp_path: Path) -> None:
    data = read_table(table(tmp_path, 'image,labels\na.jpg,dog;cat\nb.jpg,\nc.jpg," cat "\n'))
    assert data.classes == ("cat", "dog")
    assert data.task == "multilabel"
    assert label_matrix(data.split("all")).tolist() == [[1, 1], [-1, -1], [1, -1]]
    assert data.split("all")[0].path == tmp_path / "a.jpg"
    assert data.notes == ("Label 'dog' occurs once.",)


def test_one_label_per_row_is_multiclass_by_default(tmp_path: Path) -> None:
    path = table(tmp_path, "image,label\na.jpg,x\nb.jpg,y\nc.jpg,x\n")
    data = read_table(path)
    assert data.task == "multiclass"
    assert "multi-class (--data-option task=multilabel overrides)" in data.notes[0]
    assert read_table(path, task="multilabel").task == "multilabel"
    assert label_matrix(read_table(path, task="multilabel").split("all")).tolist() == [[1, -1], [-1, 1], [1, -1]]


def test_one_column_per_class(tmp_path: Path) -> None:
    path = table(tmp_path, "image,dog,cat\na.jpg,1,False\nb.jpg,,1.0\nc.jpg,0,TRUE\n")
    data = read_table(path)
    assert data.classes == ("dog", "cat"), "in the order of the columns"
    assert data.task == "multilabel"
    assert label_matrix(data.split("all")).tolist() == [[1, -1], [0, 1], [-1, 1]]
    assert read_table(path, classes=["cat"]).classes == ("cat",)
    with pytest.raises(DataError, match="line 3: 1 labels and 1 empty cells") as caught:
        read_table(path, task="multiclass")
    assert "multilabel" in caught.value.hint


@pytest.mark.parametrize(("separator", "joined"), [("|", "new york|rome"), (";", "new york;rome")])
def test_separators(tmp_path: Path, separator: str, joined: str) -> None:
    data = read_table(table(tmp_path, f"image,labels\na.jpg,{joined}\nb.jpg,rome\n"), separator=separator)
    assert data.classes == ("new york", "rome")
    words = read_table(table(tmp_path, "image,labels\na.jpg,x  y\nb.jpg,y\n"), separator=" ")
    assert label_matrix(words.split("all")).tolist() == [[1, 1], [-1, 1]]


def test_byte_order_mark_crlf_and_delimiters(tmp_path: Path) -> None:
    rows = ["image,labels", "a.jpg,x", "b.jpg,y", "c.jpg,x", ""]
    expected = [[1, -1], [-1, 1], [1, -1]]
    for text in ("\ufeff" + "\r\n".join(rows), "\n".join(rows).replace(",", ";"), "\n\n".join(rows)):
        assert label_matrix(read_table(table(tmp_path, text)).split("all")).tolist() == expected
    path = table(tmp_path, "\n".join(rows).replace(",", "\t"), name="tags.tsv")
    assert label_matrix(read_table(path).split("all")).tolist() == expected


def test_split_column_and_named_columns(tmp_path: Path) -> None:
    path = table(tmp_path, "file,what,part\na.jpg,x,Train\nb.jpg,y,validation\nc.jpg,y,fold2\n")
    data = read_table(path, image_column="file", labels_column="what", split_column="part")
    assert data.splits == ("train", "val", "fold2")
    assert [[s.name for s in data.split(n)] for n in data.splits] == [["a.jpg"], ["b.jpg"], ["c.jpg"]]


def test_the_split_column_in_another_case_and_one_that_is_not_there(tmp_path: Path) -> None:
    path = table(tmp_path, "Image,Label,Split\na.jpg,x,Train\nb.jpg,y,test\n")
    assert read_table(path).splits == ("train", "test")
    with pytest.raises(DataError, match="has no column 'flod'; it has 'Image', 'Label', 'Split'"):
        read_table(path, split_column="flod")


def test_rows_of_missing_images_are_not_others_of_their_name(tmp_path: Path) -> None:
    path = table(tmp_path, "image,labels\na/1.jpg,x\na/2.jpg,y\nb/1.jpg,y\nb/2.jpg,x\n", "a/1.jpg a/2.jpg")
    with pytest.raises(DataError, match=r"image 'b/1\.jpg' does not exist; 2 of 4 rows"):
        read_table(path)


def test_tables_of_splits_beside_the_folder_of_images(tmp_path: Path) -> None:
    for split, name in (("train", "a.jpg"), ("val", "b.jpg")):
        for folder in ("splits", "images"):
            (tmp_path / folder).mkdir(exist_ok=True)
        table(tmp_path, f"image,labels\n{name},x\n", "", name=f"splits/{split}.csv")
        (tmp_path / "images" / name).touch()
    data = read_table(tmp_path / "splits")
    assert [path_of(data, split).resolve() for split in ("train", "val")] == [
        tmp_path / "images" / name for name in ("a.jpg", "b.jpg")
    ]


def path_of(data: DataSet, split: str) -> Path:
    (sample,) = data.split(split)
    assert isinstance(sample.path, Path)
    return sample.path


@pytest.mark.parametrize("offset", range(5))
def test_default_split_is_stratified_by_the_rarest_label(tmp_path: Path, offset: int) -> None:
    # 11 or 12 images have "rare" beside "a" or "b", so the strata are rare, the other a, the other b.
    rows = [f"{i}.jpg,{'ab'[i % 2]}{';rare' if i % 9 == offset else ''}\n" for i in range(100)]
    path = table(tmp_path, "image,labels\n" + "".join(rows), " ".join(f"{i}.jpg" for i in range(100)))
    data = read_table(path)

    def strata(split: str) -> Counter[str]:
        numbers = [int(s.name.removesuffix(".jpg")) for s in data.split(split)]
        return Counter("rare" if i % 9 == offset else "ab"[i % 2] for i in numbers)

    assert strata("val") == {name: round(0.2 * count) for name, count in strata("all").items()}
    assert strata("train") + strata("val") == strata("all")


def test_windows_paths_and_folders(tmp_path: Path) -> None:
    path = table(tmp_path, "image,labels\nsub\\a.jpg,x\n../b.jpg,y\n", "sub/a.jpg ../b.jpg")
    assert [s.name for s in read_table(path).split("all")] == ["sub/a.jpg", "../b.jpg"]


LISTS = {
    "comma": ("round", '"flat,blue"', '"round, red"', "flat"),
    "comma and blank": ("round", '"flat, blue"', '"round , red"', "flat"),
    "pipe": ("round", "flat|blue", "round | red", "flat"),
    "hash": ("round", "flat#blue", "round#red", "flat"),
    "line break": ("round", '"flat\nblue"', '"round\r\nred"', "flat"),
    "Python": ("['round']", "\"['flat', 'blue']\"", "\"['round', 'red']\"", "['flat']"),
    "NumPy": ("['round']", "['flat' 'blue']", "['round' 'red']", "['flat']"),
    "set": ("{'round'}", "\"{'flat', 'blue'}\"", "\"{'red', 'round'}\"", "{'flat'}"),
    "JSON": ('"[""round""]"', '"[""flat"", ""blue""]"', '"[""round"", ""red""]"', '"[""flat""]"'),
    "unquoted": ("[round]", '"[flat, blue]"', '"[round, red]"', "[flat]"),
    "Label Studio": ("round", '"{""choices"": [""flat"", ""blue""]}"', '"{""choices"": [""round"", ""red""]}"', "flat"),
    "regions": (
        '"[{""x"": 1, ""rectanglelabels"": [""round""]}]"',
        '"[{""rectanglelabels"": [""flat""]}, {""rectanglelabels"": [""blue""]}]"',
        '"[{""rectanglelabels"": [""round"", ""red""]}]"',
        '"[{""rectanglelabels"": [""flat""]}, {""rectanglelabels"": [""flat""]}]"',
    ),
    "flags": (
        '"{""round"": 1}"',
        '"{""flat"": true, ""blue"": 1}"',
        '"{""round"": 1, ""red"": 1}"',
        '"{""flat"": 1, ""red"": 0}"',
    ),
}


@pytest.mark.parametrize("cells", LISTS.values(), ids=list(LISTS))
def test_lists_and_separators(tmp_path: Path, cells: tuple[str, ...]) -> None:
    rows = "".join(f"{name}.jpg,{cell}\n" for name, cell in zip("abcd", cells, strict=True))
    data = read_table(table(tmp_path, f"image,labels\n{rows}"))
    assert (data.classes, data.task) == (("blue", "flat", "red", "round"), "multilabel")
    expected = [[-1, -1, -1, 1], [1, 1, -1, -1], [-1, -1, 1, 1], [-1, 1, -1, -1]]
    assert label_matrix(data.split("all")).tolist() == expected


@pytest.mark.parametrize(
    ("cells", "classes", "note"),
    [
        (("hot dog", "dog", "cat"), ("cat", "dog", "hot dog"), "'hot dog' is read as one name; --separator blank"),
        (("no mask", "mask", "no hat", "hat"), ("hat", "mask", "no hat", "no mask"), "--separator blank splits it"),
        (("living room", "bedroom", "dining room"), ("bedroom", "dining room", "living room"), ""),
        (
            ("haze water", "clear", "clear road water", "haze road"),
            ("clear", "haze", "road", "water"),
            "separated by ' '",
        ),
        (("animal/dog", "animal/cat"), ("animal/cat", "animal/dog"), "--separator / splits it"),
        (("C#", "C++", "C"), ("C", "C#", "C++"), ""),
        (("01", "1", "1.0"), ("01", "1", "1.0"), ""),
        (("NaN", "a", "None", "b"), ("a", "b"), "1 of 4 cells hold 'NaN': read as no label"),
        (("none", "a"), ("a", "none"), ""),
        (("caf\u00e9", "cafe\u0301", "x"), ("caf\u00e9", "x"), "Unicode"),
    ],
)
def test_names_that_are_not_lists(tmp_path: Path, cells: tuple[str, ...], classes: tuple[str, ...], note: str) -> None:
    rows = "".join(f"{name}.jpg,{cell}\n" for name, cell in zip("abcd", cells, strict=False))
    data = read_table(table(tmp_path, f"image,labels\n{rows}"))
    assert data.classes == classes
    said = [text for text in data.notes if "occurs once" not in text and "multi-class" not in text]
    assert [note in text for text in said] == ([True] if note else [])


def test_a_separator_that_is_named_overrides(tmp_path: Path) -> None:
    path = table(tmp_path, 'image,labels\na.jpg,"x,y"\nb.jpg,"y;z"\n')
    assert read_table(path, separator="none").classes == ("x,y", "y;z")
    assert read_table(path, separator="comma").classes == ("x", "y", "y;z")
    assert read_table(path, classes=["x,y", "y;z"]).classes == ("x,y", "y;z"), "known names are whole"
    path = table(tmp_path, "image,labels\na.jpg,hot dog\nb.jpg,dog cat\n")
    assert read_table(path, separator=" ").classes == ("cat", "dog", "hot")
    assert read_table(path, classes=["dog", "cat", "hot"]).classes == ("dog", "cat", "hot")


def test_classes_choose_and_order_labels(tmp_path: Path) -> None:
    path = table(tmp_path, "image,labels\na.jpg,x\nb.jpg,y\nc.jpg,z\n")
    data = read_table(path, classes=["y", "x"])
    assert (data.classes, label_matrix(data.split("all")).tolist()) == (("y", "x"), [[-1, 1], [1, -1], [-1, -1]])
    assert any("left out: 'z'" in note for note in data.notes)
    data = read_table(path, classes=["y", "x"], task="multiclass")
    assert [s.name for s in data.split("all")] == ["a.jpg", "b.jpg"], "images of other classes are left out"


def test_columns_with_other_names(tmp_path: Path) -> None:
    text = "Unnamed: 0,filename,width,box,disc,\n0,a.jpg,640,1,no,\n1,b.jpg,32,0,yes,\n"
    data = read_table(table(tmp_path, text))
    assert data.classes == ("box", "disc")
    assert label_matrix(data.split("all")).tolist() == [[1, -1], [-1, 1]]
    assert any("left out: 'width'" in note for note in data.notes)
    data = read_table(table(tmp_path, '"foto";"art"\n"a.jpg";"x"\n"b.jpg";"y"\n'))
    assert (data.classes, data.task) == (("x", "y"), "multiclass")
    assert [note.partition(" (")[0] for note in data.notes[:2]] == [
        "Column 'foto' names the images",
        "Column 'art' holds the labels",
    ]
    data = read_table(table(tmp_path, "id,Species,site\na.jpg,x,3\nb.jpg,y,4\n"), labels_column="Species")
    assert data.classes == ("x", "y")


def test_excel_and_utf16(tmp_path: Path) -> None:
    for text in ("sep=;\r\nimage;label\r\na.jpg;x\r\nb.jpg;y\r\n", '\ufeff"sep=|"\nimage|label\na.jpg|x\nb.jpg|y\n'):
        assert read_table(table(tmp_path, text)).classes == ("x", "y")
    path = table(tmp_path, "")
    path.write_bytes("image\tlabel\na.jpg\tx\nb.jpg\ty\n".encode("utf-16"))
    assert read_table(path).classes == ("x", "y")
    with pytest.raises(DataError, match="line 3 has 1 cells"):
        table(tmp_path, "sep=;\nimage;label\na.jpg\n")
        read_table(tmp_path / "tags.csv")


def test_rows_of_one_image_are_joined(tmp_path: Path) -> None:
    long = "image,label\na.jpg,x\na.jpg,y\nb.jpg,y\nb.jpg,y\n"
    data = read_table(table(tmp_path, long))
    assert (data.task, [s.name for s in data.split("all")]) == ("multilabel", ["a.jpg", "b.jpg"])
    assert label_matrix(data.split("all")).tolist() == [[1, 1], [-1, 1]]
    assert any("2 rows repeat an image" in note for note in data.notes)
    columns = read_table(table(tmp_path, "image,x,y\na.jpg,1,0\na.jpg,0,1\nb.jpg,,1\n"))
    assert label_matrix(columns.split("all")).tolist() == [[1, 1], [0, 1]]
    same = read_table(table(tmp_path, "image,label\na.jpg,x\na.jpg,x\nb.jpg,y\n"))
    assert (same.task, len(same.split("all"))) == ("multiclass", 2)
    names = [f"{i}.jpg" for i in range(20)]
    rows = "".join(f"{name},{'xy'[i % 2]}\n" for i, name in enumerate(names))
    path = table(tmp_path, f"image,label\n{rows}4.jpg,y\n", " ".join(names))
    with pytest.raises(DataError, match=r"line 22: image '4\.jpg' has another label than in line 6") as caught:
        read_table(path)
    assert "task=multilabel" in caught.value.hint
    assert label_matrix(read_table(path, task="multilabel").split("all"))[4].tolist() == [1, 1]


def test_images_elsewhere(tmp_path: Path) -> None:
    for names in (
        ("C:\\photos\\a.jpg", "C:\\photos\\b.jpg"),
        ("/home/me/a.jpg", "/home/me/b.jpg"),
        ("a", "b"),
        ("A.JPG", "b.Jpg"),
    ):
        rows = "".join(f"{name},{label}\n" for name, label in zip(names, "xy", strict=True))
        data = read_table(table(tmp_path, f"image,label\n{rows}"))
        assert [(s.name, s.path) for s in data.split("all")] == [(n, tmp_path / n) for n in ("a.jpg", "b.jpg")]
        assert any("2 names differ so" in note for note in data.notes)
    (tmp_path / "x").mkdir()
    data = read_table(table(tmp_path / "x", "image,label\nk.jpg,x\nl.jpg,y\n", "photos/k.jpg photos/l.jpg"))
    assert data.split("all")[0].path == tmp_path / "x" / "photos" / "k.jpg"


def test_the_val_split_depends_on_names_alone(tmp_path: Path) -> None:
    rows = [f"{i}.jpg,{i % 2},{int(i % 3 == 0)}" for i in range(30)]
    images = " ".join(f"{i}.jpg" for i in range(30))
    one = read_table(table(tmp_path, "\n".join(["image,b,a", *rows]), images))
    other = read_table(tmp_path / "tags.csv", classes=["a", "b"])
    assert other.classes == ("a", "b") and one.classes == ("b", "a")
    assert [s.name for s in one.split("val")] == [s.name for s in other.split("val")]


MISTAKES = [
    ("imge,labels\nn.jpg,x\n", {}, ["no column of images", "'imge', 'labels'"], "did you mean imge? Name the column"),
    ("image,labels\na.jpg,x\n", {"labels_column": "lables"}, ["'lables'"], "did you mean labels? Name the column with"),
    ("image,labels\na.jpg,x\n", {"image_column": "img"}, ["'img'"], "--image-column"),
    ("a.jpg,x\nb.jpg,y\n", {}, ["no header", "'a.jpg'"], "image,labels"),
    ("one,two\na.jpg,b.jpg\n", {}, ["several columns", "'one', 'two'"], "--image-column one"),
    ("image,labels\na.jpg,x\nno.jpg,y\nnone.jpg,y\n", {}, ["line 3", "'no.jpg'", "2 of 3 rows"], "relative to"),
    ("image,labels\na.jpg,x\n,y\n", {}, ["line 3", "''", "1 of 2 rows"], "relative to"),
    ("image,labels\na.jpg,x,y\n", {}, ["line 2", "3 cells", "has 2"], "quotes"),
    ("image,labels\na.jpg\n", {}, ["line 2", "1 cells"], "cut"),
    ('image,labels\na.jpg,"x\nb.jpg,y\n', {}, ["line 3"], "quotes"),
    ("image,labels,labels\na.jpg,x,y\n", {}, ["two columns called 'labels'"], "Rename or remove"),
    ("image,labels\n", {}, ["no rows"], "one row per image"),
    ("", {}, ["is empty"], "names the columns"),
    ("image,labels\na.jpg,\nb.jpg,\n", {}, ["no label in any row"], "Fill the column 'labels'"),
    ("image,labels\na.jpg,\nb.jpg,y\n", {"task": "multiclass"}, ["line 2: 0 labels", "1 of 2 rows"], "multilabel"),
    ("image,labels\na.jpg,x;y\nb.jpg,y\n", {"task": "multiclass"}, ["line 2: 2 labels"], "multilabel"),
    ("image,labels\na.jpg,cat\nb.jpg,dgo\n", {"classes": ["cat", "dog"]}, ["--classes", "'dog'"], "did you mean dgo?"),
    ("image,labels\na.jpg,cat\nb.jpg,disc\n", {"classes": ["cat", "xyz"]}, ["--classes", "'xyz'"], "are cat, disc."),
    ('image,labels\na.jpg,x\nb.jpg,"[[""y""]]"\n', {}, ["line 3", "a list within a list"], "--separator none"),
    ('image,labels\na.jpg,x\nb.jpg,"{""y"": 2}"\n', {}, ["line 3", "an object without"], "--separator none"),
    ('image,labels\na.jpg,z\nb.jpg,"x,y"\n', {}, ["line 3", "'x,y' may be one name or several"], "--separator ,"),
    ("image,labels\na.jpg,x\nb.jpg,x y\nc.jpg,z y\nd.jpg,z\n", {}, ["line 3", "'x y'"], "--separator blank"),
    ("image,x,y\na.jpg,1,-1\n", {}, ["line 2", "column 'y'", "'-1'"], "leave a cell empty"),
    ("image,it,tagz\na.jpg,1,cat\n", {}, ["line 2", "column 'tagz'", "'cat'"], "--labels-column tagz"),
    ("image,x\na.jpg,1\n", {"classes": ["z"]}, ["no column 'z'"], "classes"),
    ("image\na.jpg\n", {}, ["no labels", "'image'"], "Add a column 'labels'"),
    ("image,labels,split\na.jpg,x,train\nb.jpg,y,\n", {}, ["line 3", "split is empty"], "train, val or test"),
]


@pytest.mark.parametrize(("text", "options", "said", "remedy"), MISTAKES)
def test_mistakes_are_named(tmp_path: Path, text: str, options: dict, said: list[str], remedy: str) -> None:
    path = table(tmp_path, text)
    with pytest.raises(DataError) as caught:
        read_table(path, **options)
    assert str(path) in caught.value.message
    for part in said:
        assert part in caught.value.message
    assert remedy in caught.value.hint


def test_wrong_encoding(tmp_path: Path) -> None:
    path = table(tmp_path, "")
    path.write_bytes("image,labels\na.jpg,x\nb.jpg,café\n".encode("latin-1"))
    with pytest.raises(DataError, match="line 3: byte 0xe9 is not UTF-8") as caught:
        read_table(path)
    assert "UTF-8" in caught.value.hint


def test_wrong_options(tmp_path: Path) -> None:
    path = table(tmp_path, "image,labels\na.jpg,x\n")
    with pytest.raises(ConfigError, match="--separator is empty"):
        read_table(path, separator="")
    with pytest.raises(ConfigError, match="multilable") as caught:
        open_dataset(path, task="multilable")
    assert "did you mean multilabel" in caught.value.hint


def test_recognise(tmp_path: Path) -> None:
    path = table(tmp_path, "image,labels\na.jpg,x\n")
    assert find_table(path)
    assert find_table(tmp_path), "images and a single table"
    table(tmp_path, "", "images/b.jpg")
    assert find_table(tmp_path), "one folder of images beside it"
    table(tmp_path, "", "cat/b.jpg dog/b.jpg")
    assert not find_table(tmp_path), "class folders beside it"
    other = tmp_path / "flat"
    table(other, "image,labels\n", "train/a.jpg test/b.jpg")
    assert find_table(other), "flat splits beside it"
    table(other, "", "", name="more.tsv")
    assert not find_table(other), "two tables"
    assert not find_table(tmp_path / "a.jpg")


WORD = st.text("abcdefgh é'\"-,", min_size=1, max_size=8).map(str.strip).filter(bool)


@settings(max_examples=40, deadline=None)
@given(rows=st.lists(st.frozensets(WORD, max_size=4), min_size=1, max_size=12), separator=st.sampled_from(";|"))
def test_any_labels_survive_a_round_trip(rows: list[frozenset[str]], separator: str) -> None:
    names = sorted(set().union(*rows))
    if not names:
        return
    with tempfile.TemporaryDirectory() as folder:
        # Quoted by hand, independent of a csv writer: every quote is doubled.
        cells = [separator.join(sorted(row)).replace('"', '""') for row in rows]
        text = "image,labels\r\n" + "".join(f'{i}.jpg,"{cell}"\r\n' for i, cell in enumerate(cells))
        path = table(Path(folder), text, " ".join(f"{i}.jpg" for i in range(len(rows))))
        data = read_table(path, separator=separator, task="multilabel")
        assert data.classes == tuple(names)
        expected = [[1 if name in row else -1 for name in names] for row in rows]
        assert label_matrix(data.split("all")).tolist() == expected


ROWS = "image,labels\n" + "".join(f"{i}.jpg,{'cat' if i % 2 else 'dog'}\n" for i in range(6))
ONE_HOT = "filename, cat, dog\n" + "".join(f"{i}.jpg, {i % 2}, {1 - i % 2}\n" for i in range(6))
BARE = "id,label\n" + "".join(f"{i},{'cat' if i % 2 else 'dog'}\n" for i in range(6))
SUBMISSION = "id,label\n" + "".join(f"{i},cat\n" for i in range(6))
IDS = "id\n" + "".join(f"{i}\n" for i in range(6))


def lay(root: Path, tables: dict[str, str], *folders: str) -> Path:
    """Tables of images 0.jpg to 5.jpg, of cats (odd) and dogs, and folders with images of these names."""
    for path in (root / folder / f"{i}.jpg" for folder in folders for i in range(6)):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    for name, text in tables.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


@pytest.mark.parametrize(
    ("tables", "folders", "splits"),
    [
        ({f"{s}/_classes.csv": ONE_HOT for s in ("train", "valid")}, ["train", "valid"], ["train", "val"]),
        ({f"{s}/labels.csv": ROWS for s in ("Training", "Testing")}, ["Training", "Testing/images"], ["train", "test"]),
        ({"train.csv": ROWS, "test.csv": ROWS}, ["train", "test"], ["train", "test"]),
        ({"train_labels.csv": ROWS, "val_labels.csv": ROWS}, ["images/train", "images/val"], ["train", "val"]),
        ({"train.csv": BARE, "test.csv": IDS, "sample_submission.csv": SUBMISSION}, ["train", "test"], ["train"]),
        ({"train.csv": BARE, "sample_submission.csv": SUBMISSION}, ["test_images", "train_images"], ["train"]),
        ({"train.csv": BARE}, ["test", "train/train"], ["all"]),
        ({"labels.csv": ROWS}, ["photos"], ["all"]),
        ({"zip/labels.csv": ROWS}, ["zip/images"], ["all"]),
        ({"labels.csv": ROWS}, ["test", "train"], ["all"]),
    ],
)
def test_tables_and_folders(tmp_path: Path, tables: dict[str, str], folders: list[str], splits: list[str]) -> None:
    data = open_dataset(lay(tmp_path, tables, *folders))
    assert (data.format, data.classes) == ("csv", ("cat", "dog"))
    assert [s for s in data.splits if s in splits] == splits and set(splits) == set(data.splits) - (
        {"train", "val"} if splits == ["all"] else set()
    )
    for split in splits:
        samples = data.split(split)
        assert label_matrix(samples).tolist() == [[-1, 1], [1, -1]] * 3
        folder = next(
            (f for f in folders if split[:3] in f.lower()), next((f for f in folders if "tr" in f), folders[0])
        )
        assert [s.path for s in samples] == [tmp_path / folder / f"{i}.jpg" for i in range(6)]


def test_tables_of_splits_name_the_file_of_a_mistake(tmp_path: Path) -> None:
    broken = ROWS.replace("3.jpg,cat", "3.jpg,")
    lay(tmp_path, {"train.csv": ROWS, "val.csv": broken}, "train", "val")
    with pytest.raises(DataError, match=r"val\.csv, line 5"):
        open_dataset(tmp_path, task="multiclass")
    lay(tmp_path, {"val.csv": ROWS.replace("3.jpg", "9.jpg")})
    with pytest.raises(DataError, match=r"val\.csv, line 5: image '9.jpg' does not exist"):
        open_dataset(tmp_path)


def test_folders_of_the_images_of_a_table_give_the_splits(tmp_path: Path) -> None:
    text = "image,labels\n" + "".join(f"{s}/{i}.jpg,{i % 2}\n" for s in ("train", "valid") for i in range(6))
    data = open_dataset(lay(tmp_path, {"labels.csv": text}, "train", "valid"))
    assert data.splits == ("train", "val")
    assert [s.name for s in data.split("val")] == [f"valid/{i}.jpg" for i in range(6)]


def test_images_in_several_folders_that_the_table_does_not_name(tmp_path: Path) -> None:
    images = " ".join(f"camera{i % 2}/x/{i}.jpg" for i in range(6))
    data = read_table(table(tmp_path, ROWS, images))
    assert [s.name for s in data.split("all")] == [f"camera{i % 2}/x/{i}.jpg" for i in range(6)]


def test_split_columns_with_other_words(tmp_path: Path) -> None:
    text = "image,labels,split\n0.jpg,a,Training\n1.jpg,b,Training\n2.jpg,a,Validation\n3.jpg,b,TEST\n"
    lay(tmp_path, {"labels.csv": text}, ".")
    assert open_dataset(tmp_path).splits == ("train", "val", "test")
    lay(tmp_path, {"labels.csv": "image,labels,split\n0.jpg,a,default\n1.jpg,b,default\n"})
    assert open_dataset(tmp_path).splits == ("train", "val", "all")


def test_an_image_in_two_splits(tmp_path: Path) -> None:
    text = "image,labels,split\na.jpg,cat,train\nb.jpg,dog,train\nb.jpg,cat,test\n"
    with pytest.raises(
        DataError, match=r"line 4: image 'b.jpg' is in the split 'test', and in 'train' before \(1 rows"
    ):
        read_table(table(tmp_path, text))


def test_one_odd_cell_does_not_drop_a_class(tmp_path: Path) -> None:
    text = "image,cat,dog,cow,age,note\na.jpg,1,0,1,3,\nb.jpg,0,1,-1,12,x\nc.jpg,1,1,0,7,\n"
    with pytest.raises(DataError, match="line 3: column 'cow': '-1' is not 1, 0 or empty"):
        read_table(table(tmp_path, text))
    data = read_table(table(tmp_path, text.replace("-1", "")))
    assert data.classes == ("cat", "dog", "cow")
    assert any("left out: 'age', 'note';" in note for note in data.notes)


def test_labels_of_open_images_that_are_verified_as_absent(tmp_path: Path) -> None:
    text = "ImageID,Source,LabelName,Confidence\na,x,/m/1,1\na,x,/m/2,0\nb,x,/m/2,1\nb,x,/m/1,0\nc,x,/m/1,0\n"
    data = read_table(table(tmp_path, text), labels_column="LabelName", image_column="ImageID")
    assert (data.classes, data.task) == (("/m/1", "/m/2"), "multilabel")
    assert label_matrix(data.split("all")).tolist() == [[1, -1], [-1, 1], [-1, -1]]
