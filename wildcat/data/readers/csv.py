"""Tables of images and labels: CSV with a column of labels, or one column per class."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, get_args

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
from wildcat.data.layout import name_splits, subfolders
from wildcat.data.remote import path_type
from wildcat.errors import ConfigError, DataError, did_you_mean

TABLE_SUFFIXES = (".csv", ".tsv")
LABEL_COLUMNS = ("labels", "label")  # default names of the column of labels
SEPARATORS = (";", "|", " ")
_DELIMITERS = (",", "\t", ";")
_CELLS = {"1": PRESENT, "1.0": PRESENT, "true": PRESENT, "0": ABSENT, "0.0": ABSENT, "false": ABSENT, "": IGNORED}


class _Table(NamedTuple):
    """The cells of a table as text, and the line number of each row in the file."""

    path: Path
    columns: list[str]
    rows: list[dict[str, str]]
    lines: list[int]

    def error(self, row: int, problem: str, hint: str) -> DataError:
        return DataError(f"{self.path}, line {self.lines[row]}: {problem}", hint)

    def check_column(self, name: str, option: str) -> None:
        if name not in self.columns:
            raise DataError(
                f"{self.path} has no column {name!r}; it has {', '.join(map(repr, self.columns))}.",
                f"{did_you_mean(name, self.columns)} Rename the column, or name it with {option}.".strip(),
            )


def find_table(path: Path) -> Path | None:
    """The table at `path`: itself, or the only one in a folder without class folders; else None.

    In a folder with two or more folders of images, a table is not the data set, unless these are named as splits and
    hold their images directly (`train/`, `test/`).
    """
    if path.is_file():
        return path if path.suffix.lower() in TABLE_SUFFIXES else None
    tables = [p for p in path.glob("*") if p.suffix.lower() in TABLE_SUFFIXES and not p.name.startswith(".")]
    filled = [p for p in subfolders(path) if holds_images(p)]
    flat_splits = len(name_splits(p.name for p in filled)) == len(filled)
    flat_splits = flat_splits and not any(holds_images(inner) for p in filled for inner in subfolders(p))
    return tables[0] if len(tables) == 1 and (len(filled) < 2 or flat_splits) else None


def check_task(task: str | None) -> None:
    """Raise a ConfigError unless the task is None, "multilabel" or "multiclass"."""
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
    images = _images(table, image_column)
    notes: list[str] = []
    if label_column is None:
        label_column = next((name for name in LABEL_COLUMNS if name in table.columns), None)
    if label_column is not None:
        names, labels = _joined_labels(table, label_column, separator, classes, notes)
        if task is None and ((labels == PRESENT).sum(axis=1) == 1).all():
            task = "multiclass"
            notes.append("Every row has exactly one label: read as multi-class (task='multilabel' overrides).")
    else:
        names, labels = _one_hot_labels(table, (image_column, split_column), classes)
    task = task or "multilabel"
    present, unknown = (labels == PRESENT).sum(axis=1), (labels == IGNORED).sum(axis=1)
    wrong = np.flatnonzero((present != 1) | (unknown > 0))
    if task == "multiclass" and len(wrong):
        row = int(wrong[0])
        raise table.error(
            row,
            f"{present[row]} labels and {unknown[row]} empty cells; multi-class needs exactly one label ({len(wrong)} "
            f"of {len(labels)} rows are wrong).",
            "Correct the rows, or choose task 'multilabel'.",
        )
    for name, count in zip(names, (labels == PRESENT).sum(axis=0), strict=True):
        if count < 2:
            notes.append(f"Label {name!r} occurs once." if count else f"Label {name!r} never occurs.")
    samples = [Sample(name, table.path.parent / name, row) for name, row in zip(images, labels, strict=True)]
    readers = _splits(table, split_column, samples) if split_column in table.columns else default_splits(samples)
    return DataSet(table.path.stem, "csv", table.path, names, task, readers, tuple(notes))


def _splits(table: _Table, column: str, samples: Sequence[Sample]) -> dict[str, Reader]:
    splits: dict[str, list[Sample]] = {}
    for row, sample in enumerate(samples):
        split = table.rows[row][column].lower()
        if not split:
            raise table.error(row, "the split is empty.", "Write train, val or test, or remove the column.")
        splits.setdefault(SPLIT_NAMES.get(split, split), []).append(sample)
    return grouped_splits(splits)


def _read(path: Path, image_column: str) -> _Table:
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise DataError(
            f"{path}, line {line}: byte {error.object[error.start]:#04x} is not UTF-8.", "Save the table as UTF-8."
        ) from error
    header = text.partition("\n")[0]
    fits = [d for d in _DELIMITERS if image_column in (cell.strip(' "\r') for cell in header.split(d))]
    delimiter = fits[0] if fits else max(_DELIMITERS, key=header.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        cells = [(reader.line_num, [cell.strip() for cell in row]) for row in reader if any(map(str.strip, row))]
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.line_num}: {error}.", "Check the quotes around this line.") from error
    if len(cells) < 2:
        raise DataError(
            f"{path} is empty or has no rows.", "Its first line names the columns; add one row per image below."
        )
    columns = cells.pop(0)[1]
    if len(set(columns)) < len(columns):
        twice = max(columns, key=columns.count)
        raise DataError(f"{path} has two columns called {twice!r}.", "Rename or remove one.")
    for line, row in cells:
        if len(row) != len(columns):
            raise DataError(
                f"{path}, line {line} has {len(row)} cells; the header has {len(columns)}.",
                "Put quotes around a cell that holds the delimiter, and restore the table if it was cut.",
            )
    rows = [dict(zip(columns, row, strict=True)) for _, row in cells]
    return _Table(path, columns, rows, [line for line, _ in cells])


def _images(table: _Table, column: str) -> list[str]:
    """The image names, as written (with / between folders); each must exist, once."""
    table.check_column(column, "image_column")
    folder = table.path.parent
    first: dict[str, int] = {}
    for row, cells in enumerate(table.rows):
        name = cells[column].replace("\\", "/")
        if name in first:
            raise table.error(
                row,
                f"image {name!r} appears already in line {table.lines[first[name]]}.",
                "Give each image one row, with all of its labels.",
            )
        first[name] = row
    missing = [name for name in first if not name or path_type(str(folder / name)) != "file"]
    if missing:
        raise table.error(
            first[missing[0]],
            f"image {missing[0]!r} does not exist; {len(missing)} of {len(first)} rows name missing images.",
            f"Paths are relative to {folder}: move the table, correct the paths or remove the rows.",
        )
    return list(first)


def _joined_labels(
    table: _Table, column: str, separator: str, classes: Sequence[str] | None, notes: list[str]
) -> tuple[tuple[str, ...], NDArray[np.int8]]:
    """Classes and (N, C) labels from a column of joined labels."""
    table.check_column(column, "label_column")
    found = [[part.strip() for part in cells[column].split(separator) if part.strip()] for cells in table.rows]
    names = tuple(classes) if classes is not None else tuple(sorted({part for parts in found for part in parts}))
    if not names:
        raise DataError(f"{table.path} has no label in any row.", f"Fill the column {column!r}.")
    joined = [name for name in names if any(mark in name for mark in (";", "|", ","))]
    if joined:
        notes.append(f"Label {joined[0]!r} may be several: labels are joined by {separator!r} (see option separator).")
    index = {name: position for position, name in enumerate(names)}
    labels = np.full((len(found), len(names)), ABSENT, np.int8)
    for row, parts in enumerate(found):
        for part in parts:
            if part not in index:
                raise table.error(
                    row,
                    f"label {part!r} is none of the classes given.",
                    did_you_mean(part, names) or f"The classes are: {', '.join(names)}.",
                )
            labels[row, index[part]] = PRESENT
    return names, labels


def _one_hot_labels(
    table: _Table, others: Sequence[str], classes: Sequence[str] | None
) -> tuple[tuple[str, ...], NDArray[np.int8]]:
    """Classes and (N, C) labels from one column per class."""
    names = tuple(classes) if classes is not None else tuple(c for c in table.columns if c not in others)
    if not names:
        raise DataError(
            f"{table.path} has no labels; its columns are {', '.join(map(repr, table.columns))}.",
            "Add a column 'labels', or one column per class.",
        )
    for name in names:
        table.check_column(name, "classes")
    labels = np.empty((len(table.rows), len(names)), np.int8)
    for row, cells in enumerate(table.rows):
        for position, name in enumerate(names):
            value = cells[name].lower()
            if value not in _CELLS:
                raise table.error(
                    row,
                    f"column {name!r}: {cells[name]!r} is not 1, 0 or empty (present, absent, ignored).",
                    f"Name a column of labels 'labels' (or pass label_column={name!r}); leave a cell empty if the "
                    "label is unknown; list the class columns in classes if there are others.",
                )
            labels[row, position] = _CELLS[value]
    return names, labels
