"""Tables: layouts, options and every kind of mistake."""

from __future__ import annotations

import tempfile
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wildcat.data.dataset import label_matrix
from wildcat.data.readers.csv import find_table, read_table
from wildcat.errors import ConfigError, DataError


def table(folder: Path, text: str, images: str = "a.jpg b.jpg c.jpg", name: str = "tags.csv") -> Path:
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
    assert "multi-class (task='multilabel' overrides)" in data.notes[0]
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


def test_a_separator_that_may_be_another(tmp_path: Path) -> None:
    data = read_table(table(tmp_path, "image,labels\na.jpg,x|y\nb.jpg,x|y\n"))
    assert any("'x|y' may be several" in note and "separator" in note for note in data.notes)


def test_byte_order_mark_crlf_and_delimiters(tmp_path: Path) -> None:
    rows = ["image,labels", "a.jpg,x", "b.jpg,y", "c.jpg,x", ""]
    expected = [[1, -1], [-1, 1], [1, -1]]
    for text in ("\ufeff" + "\r\n".join(rows), "\n".join(rows).replace(",", ";"), "\n\n".join(rows)):
        assert label_matrix(read_table(table(tmp_path, text)).split("all")).tolist() == expected
    path = table(tmp_path, "\n".join(rows).replace(",", "\t"), name="tags.tsv")
    assert label_matrix(read_table(path).split("all")).tolist() == expected


def test_split_column_and_named_columns(tmp_path: Path) -> None:
    path = table(tmp_path, "file,what,part\na.jpg,x,Train\nb.jpg,y,validation\nc.jpg,y,fold2\n")
    data = read_table(path, image_column="file", label_column="what", split_column="part")
    assert data.splits == ("train", "val", "fold2")
    assert [[s.name for s in data.split(n)] for n in data.splits] == [["a.jpg"], ["b.jpg"], ["c.jpg"]]


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


MISTAKES = [
    ("imge,labels\na.jpg,x\n", {}, ["'image'", "'imge', 'labels'"], "did you mean imge? Rename the column"),
    ("image,labels\na.jpg,x\n", {"label_column": "lables"}, ["'lables'"], "did you mean labels?"),
    ("image,labels\na.jpg,x\nno.jpg,y\nnone.jpg,y\n", {}, ["line 3", "'no.jpg'", "2 of 3 rows"], "relative to"),
    ("image,labels\na.jpg,x\n,y\n", {}, ["line 3", "''", "1 of 2 rows"], "relative to"),
    ("image,labels\na.jpg,x\nb.jpg,y\na.jpg,y\n", {}, ["line 4", "'a.jpg'", "line 2"], "one row"),
    ("image,labels\na.jpg,x,y\n", {}, ["line 2", "3 cells", "has 2"], "quotes"),
    ("image,labels\na.jpg\n", {}, ["line 2", "1 cells"], "cut"),
    ('image,labels\na.jpg,"x\nb.jpg,y\n', {}, ["line 3"], "quotes"),
    ("image,labels,labels\na.jpg,x,y\n", {}, ["two columns called 'labels'"], "Rename or remove"),
    ("image,labels\n", {}, ["no rows"], "one row per image"),
    ("", {}, ["is empty"], "names the columns"),
    ("image,labels\na.jpg,\nb.jpg,\n", {}, ["no label in any row"], "Fill the column 'labels'"),
    ("image,labels\na.jpg,\nb.jpg,y\n", {"task": "multiclass"}, ["line 2: 0 labels", "1 of 2 rows"], "multilabel"),
    ("image,labels\na.jpg,x;y\nb.jpg,y\n", {"task": "multiclass"}, ["line 2: 2 labels"], "multilabel"),
    ("image,labels\na.jpg,cat\nb.jpg,dgo\n", {"classes": ["cat", "dog"]}, ["line 3", "'dgo'"], "did you mean dog?"),
    ("image,x,y\na.jpg,1,-1\n", {}, ["line 2", "column 'y'", "'-1'"], "leave a cell empty"),
    ("image,tags\na.jpg,cat\n", {}, ["line 2", "column 'tags'", "'cat'"], "label_column='tags'"),
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
    with pytest.raises(ConfigError, match="separator='/'"):
        read_table(path, separator="/")
    with pytest.raises(ConfigError, match="multilable") as caught:
        read_table(path, task="multilable")  # type: ignore[arg-type]
    assert "did you mean multilabel" in caught.value.hint


def test_recognise(tmp_path: Path) -> None:
    path = table(tmp_path, "image,labels\na.jpg,x\n")
    assert find_table(path)
    assert find_table(tmp_path), "images and a single table"
    table(tmp_path, "", "images/b.jpg")
    assert find_table(tmp_path), "one folder of images beside it"
    table(tmp_path, "", "cat/b.jpg")
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
