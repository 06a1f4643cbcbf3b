"""Tables of images and labels: CSV with a column of labels, or one column per class."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from wildcat.data.dataset import (
    ABSENT,
    IGNORED,
    PRESENT,
    SPLIT_NAMES,
    DataSet,
    Reader,
    Sample,
    Task,
    default_splits,
    grouped_splits,
)
from wildcat.data.images import holds_images
from wildcat.data.readers.folder import recognise_folder, split_folders, subfolders
from wildcat.data.readers.lists import add_once
from wildcat.data.remote import path_type
from wildcat.errors import ConfigError, DataError, did_you_mean

TABLE_SUFFIXES = (".csv", ".tsv")
LABEL_COLUMNS = ("labels", "label")  # default names of the column of labels
SEPARATORS = (";", "|", " ")
_DELIMITERS = (",", "\t", ";")
_CELLS = {"1": PRESENT, "1.0": PRESENT, "true": PRESENT, "0": ABSENT, "0.0": ABSENT, "false": ABSENT, "": IGNORED}


@dataclass(frozen=True)
class _Table:
    """The cells of a table as text: `rows` holds (line number in the file, cells)."""

    path: Path
    columns: tuple[str, ...]
    rows: tuple[tuple[int, tuple[str, ...]], ...]

    def column(self, name: str, option: str) -> int:
        if name not in self.columns:
            raise DataError(
                f"{self.path} has no column {name!r}; it has {', '.join(map(repr, self.columns))}.",
                f"{did_you_mean(name, self.columns)} Rename the column, or name it with {option}.".strip(),
            )
        return self.columns.index(name)


def find_table(path: Path) -> Path | None:
    """The table at `path`: itself, or the only one in a folder without class folders; else None.

    In a folder with two or more folders of images, a table is not the data set, unless these are named as splits and
    hold their images directly (`train/`, `test/`).
    """
    if path.is_file():
        return path if path.suffix.lower() in TABLE_SUFFIXES else None
    tables = [p for p in path.glob("*") if p.suffix.lower() in TABLE_SUFFIXES and not p.name.startswith(".")]
    if len(tables) != 1 or not recognise_folder(path):
        return tables[0] if len(tables) == 1 else None
    filled = [p for p in subfolders(path) if holds_images(p)]
    flat_splits = not split_folders(path) and all(p.name.lower() in SPLIT_NAMES for p in filled)
    return tables[0] if len(filled) < 2 or flat_splits else None


def recognise_table(path: Path) -> bool:
    """Whether `path` is a table, or a folder that `find_table` finds one in."""
    return find_table(path) is not None


def check_task(task: str | None) -> None:
    """Refuse an unknown task.

    Raises:
        ConfigError: it is neither None, "multilabel" nor "multiclass".
    """
    if task is not None and task not in get_args(Task):
        raise ConfigError(f"task={task!r}: give multilabel or multiclass.", did_you_mean(task, get_args(Task)))


def read_table(
    path: Path,
    *,
    image_column: str = "image",
    label_column: str | None = None,
    split_column: str = "split",
    separator: str = ";",
    task: Task | None = None,
    classes: Sequence[str] | None = None,
) -> DataSet:
    """The images and labels of a CSV or TSV file in UTF-8; images are relative to the table's folder.

    Two layouts. *Labels*: the column `labels` (or `label`, or `label_column`) holds the labels of an image, several
    joined by `separator`; classes are the labels found, sorted. *One column per class*, if there is no such column:
    1 or true is present, 0 or false absent, an empty cell ignored; classes are the columns, in their order. `classes`
    replaces either: the labels that may occur, or the columns to read.

    Task: unless `task` is given, a column of labels with exactly one in every row is multi-class (a note says so),
    anything else multi-label. A row without labels is a negative image, allowed in a multi-label table only.

    Splits are the values of `split_column` ("valid", "validation" are `val`); without that column, `train` and `val`
    are a fixed 80/20, stratified by each image's rarest label, and `all` is everything.

    The delimiter is the first of comma, tab and semicolon with which the header has the image column.

    Raises:
        ConfigError: an unknown `separator` or `task`.
        DataError: unreadable or empty table, unknown column or label, a cell that fits no layout, a missing image,
            an image listed twice, a multi-class row without exactly one label.
    """
    if separator not in SEPARATORS:
        raise ConfigError(f"separator={separator!r}: labels are joined by ';', '|' or ' '.", "The default is ';'.")
    check_task(task)
    found = find_table(path)
    if found is None:
        raise DataError(f"{path} is no table, nor a folder with a single one.", "Give the .csv or .tsv file itself.")
    table = _read(found, image_column)
    images = _images(table, table.column(image_column, "image_column"))
    notes: list[str] = []
    if label_column is None:
        label_column = next((name for name in LABEL_COLUMNS if name in table.columns), None)
    if label_column is not None:
        names, labels = _labels(table, table.column(label_column, "label_column"), separator, classes, notes)
        if task is None:
            task = "multiclass" if ((labels == PRESENT).sum(axis=1) == 1).all() else "multilabel"
            if task == "multiclass":
                notes.append("Every row has exactly one label: read as multi-class (task='multilabel' overrides).")
    else:
        names, labels = _one_hot(table, (image_column, split_column), classes)
        task = task or "multilabel"
    if task == "multiclass":
        _check_one_label(table, labels)
    for name, count in zip(names, (labels == PRESENT).sum(axis=0), strict=True):
        if count < 2:
            notes.append(f"Label {name!r} occurs once." if count else f"Label {name!r} never occurs.")
    samples = [Sample(name, table.path.parent / name, row) for name, row in zip(images, labels, strict=True)]
    if split_column in table.columns:
        readers = _splits(table, table.columns.index(split_column), samples)
    else:
        readers = default_splits(samples)
    return DataSet(table.path.stem, "csv", table.path, names, task, readers, tuple(notes))


def _read(path: Path, image_column: str) -> _Table:
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise DataError(
            f"{path}, line {line}: byte {error.object[error.start]:#04x} is not UTF-8.", "Save the table as UTF-8."
        ) from error
    header = text.splitlines()[0] if text.strip() else ""
    if not header.strip() or len(header) > csv.field_size_limit():
        raise DataError(
            f"{path} is empty or begins with {'a line of too many letters' if header.strip() else 'an empty line'}.",
            "Its first line names the columns.",
        )
    parsed = {delimiter: next(csv.reader([header], delimiter=delimiter)) for delimiter in _DELIMITERS}
    fits = [d for d, cells in parsed.items() if image_column in map(str.strip, cells)]
    delimiter = fits[0] if fits else max(_DELIMITERS, key=lambda d: len(parsed[d]))
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    rows = []
    try:
        columns = tuple(cell.strip() for cell in next(reader))
        for cells in reader:
            if any(map(str.strip, cells)):
                rows.append((reader.line_num, tuple(cell.strip() for cell in cells)))
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.line_num}: {error}.", "Check the quotes around this line.") from error
    for number, row in rows:
        if len(row) != len(columns):
            raise DataError(
                f"{path}, line {number} has {len(row)} cells; the header has {len(columns)}.",
                "Put quotes around a cell that holds the delimiter, and restore the table if it was cut.",
            )
    twice = [name for name, count in Counter(columns).items() if count > 1]
    if twice:
        raise DataError(f"{path} has two columns called {twice[0]!r}.", "Rename or remove one.")
    if not rows:
        raise DataError(f"{path} has a header and no rows.", "Add one row per image.")
    return _Table(path, columns, tuple(rows))


def _images(table: _Table, column: int) -> list[str]:
    """The image names, as written (with / between folders); each must exist, once."""
    folder = table.path.parent
    lines: dict[str, int] = {}
    for number, cells in table.rows:
        name = cells[column].replace("\\", "/")
        add_once(lines, name, table.path, number, "Give each image one row, with all of its labels.")
    missing = [name for name in lines if not name or path_type(str(folder / name)) != "file"]
    if missing:
        raise DataError(
            f"{table.path}, line {lines[missing[0]]}: image {missing[0]!r} does not exist; {len(missing)} of "
            f"{len(table.rows)} rows name missing images.",
            f"Paths are relative to {folder}: move the table, correct the paths or remove the rows.",
        )
    return list(lines)


def _labels(
    table: _Table, column: int, separator: str, classes: Sequence[str] | None, notes: list[str]
) -> tuple[tuple[str, ...], NDArray[np.int8]]:
    """Classes and (N, C) labels from a column of joined labels."""
    found = [[part.strip() for part in cells[column].split(separator)] for _, cells in table.rows]
    found = [[part for part in parts if part] for parts in found]
    names = tuple(classes) if classes is not None else tuple(sorted({part for parts in found for part in parts}))
    if len(names) < 1:
        raise DataError(f"{table.path} has no label in any row.", f"Fill the column {table.columns[column]!r}.")
    joined = [name for name in names if any(mark in name for mark in (";", "|", ","))]
    if joined:
        notes.append(f"Label {joined[0]!r} may be several: labels are joined by {separator!r} (see option separator).")
    index = {name: position for position, name in enumerate(names)}
    labels = np.full((len(found), len(names)), ABSENT, np.int8)
    for row, parts in enumerate(found):
        for part in parts:
            if part not in index:
                raise DataError(
                    f"{table.path}, line {table.rows[row][0]}: label {part!r} is none of the classes given.",
                    did_you_mean(part, names) or f"The classes are: {', '.join(names)}.",
                )
            labels[row, index[part]] = PRESENT
    return names, labels


def _one_hot(
    table: _Table, others: Sequence[str], classes: Sequence[str] | None
) -> tuple[tuple[str, ...], NDArray[np.int8]]:
    """Classes and (N, C) labels from one column per class."""
    names = tuple(classes) if classes is not None else tuple(c for c in table.columns if c not in others)
    if not names:
        raise DataError(
            f"{table.path} has no labels; its columns are {', '.join(map(repr, table.columns))}.",
            "Add a column 'labels', or one column per class.",
        )
    columns = [table.column(name, "classes") for name in names]
    labels = np.empty((len(table.rows), len(names)), np.int8)
    for row, (number, cells) in enumerate(table.rows):
        for position, column in enumerate(columns):
            value = cells[column].lower()
            if value not in _CELLS:
                raise DataError(
                    f"{table.path}, line {number}, column {names[position]!r}: {cells[column]!r} is not 1, 0 or empty "
                    "(present, absent, ignored).",
                    f"Name a column of labels 'labels' (or pass label_column={names[position]!r}); leave a cell empty "
                    "if the label is unknown; list the class columns in classes if there are others.",
                )
            labels[row, position] = _CELLS[value]
    return names, labels


def _check_one_label(table: _Table, labels: NDArray[np.int8]) -> None:
    present = (labels == PRESENT).sum(axis=1)
    wrong = np.flatnonzero((present != 1) | (labels == IGNORED).any(axis=1))
    if len(wrong):
        row = int(wrong[0])
        unknown = int((labels[row] == IGNORED).sum())
        raise DataError(
            f"{table.path}, line {table.rows[row][0]} has {present[row]} labels"
            f"{f' and {unknown} empty cells' if unknown else ''}; multi-class needs exactly one "
            f"({len(wrong)} of {len(labels)} rows are wrong).",
            "Correct the rows, or choose task 'multilabel'.",
        )


def _splits(table: _Table, column: int, samples: Sequence[Sample]) -> dict[str, Reader]:
    parts: dict[str, list[Sample]] = {}
    for (number, cells), sample in zip(table.rows, samples, strict=True):
        name = cells[column].lower()
        if not name:
            raise DataError(
                f"{table.path}, line {number}: the split is empty.", "Write train, val or test, or remove the column."
            )
        parts.setdefault(SPLIT_NAMES.get(name, name), []).append(sample)
    return grouped_splits(parts)
